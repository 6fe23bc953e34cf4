"""What kube-apiserver 1.37 refuses when a ResourceSlice is created; see `validate`."""

from msgspec import structs

from schemas.errors import FieldError
from schemas.quantity import Quantity, QuantityError
from schemas.resource import (
    Counter,
    CounterSet,
    Device,
    DeviceAttribute,
    DeviceCounterConsumption,
    NodeAllocatableResource,
    NodeSelector,
    ResourceSlice,
    ResourceSliceSpec,
    checks,
    limits,
    names,
)
from schemas.resource.checks import Errors, entries, optional, required
from schemas.resource.validate_capacity import capacity_errors
from schemas.semver import SEMVER_PATTERN

_VALUES = tuple(field.encode_name for field in structs.fields(DeviceAttribute))


def validate_slice(resource_slice: ResourceSlice) -> list[FieldError]:
    """What is wrong with a slice.

    A taint effect that we do not know is refused, as by an API server of our version; in a slice that a newer one has
    accepted, it stands for None.
    """
    return [*checks.metadata(resource_slice.metadata), *_spec(resource_slice.spec)]


def _spec(spec: ResourceSliceSpec) -> Errors:
    yield from required(spec.driver, "spec.driver", names.driver_name)
    yield from required(spec.pool.name, "spec.pool.name", names.pool_name)
    if spec.pool.resource_slice_count <= 0:
        found = spec.pool.resource_slice_count
        yield FieldError("spec.pool.resourceSliceCount", f"must be greater than 0, found {found}", found)
    if spec.pool.generation < 0:
        yield FieldError("spec.pool.generation", f"must not be negative, found {spec.pool.generation}")
    yield from _placement(spec, "spec", ("perDeviceNodeSelection", spec.per_device_node_selection))
    if spec.node_selector is not None and len(spec.node_selector.node_selector_terms) > 1:
        found = len(spec.node_selector.node_selector_terms)
        yield FieldError("spec.nodeSelector.nodeSelectorTerms", f"must be exactly one term, found {found}")
    if spec.shared_counters and spec.devices:
        yield FieldError("spec", "must have one of `sharedCounters` and `devices`, found both; use two slices")
    yield from entries(
        spec.devices,
        "spec.devices",
        limits.DEVICES_WITH_ADVANCED_FEATURES_MAX
        if any(map(_has_advanced_features, spec.devices))
        else limits.DEVICES_PER_SLICE_MAX,
        lambda device, path: _device(device, path, bool(spec.per_device_node_selection)),
        identity=lambda device: device.name,
    )
    yield from entries(
        spec.shared_counters,
        "spec.sharedCounters",
        limits.COUNTER_SETS_MAX,
        _counter_set,
        identity=lambda counter_set: counter_set.name,
    )
    if spec.partition_type_attribute is not None:
        yield from _partition_type_attribute(spec, spec.partition_type_attribute)
    yield from checks.skip_node_operations(spec.skip_node_operations, "spec.skipNodeOperations")


def _has_advanced_features(device: Device) -> bool:
    return bool(device.taints or device.consumes_counters) or any(
        attribute.ints is not None
        or attribute.bools is not None
        or attribute.strings is not None
        or attribute.versions is not None
        for attribute in device.attributes.values()
    )


def _placement(owner: ResourceSliceSpec | Device, path: str, *more: tuple[str, bool | None]) -> Errors:
    """Exactly one field says which nodes reach the devices."""
    if owner.node_name is not None:
        yield from required(owner.node_name, f"{path}.nodeName", names.dns_subdomain)
    if owner.node_selector is not None:
        yield from checks.node_selector(owner.node_selector, f"{path}.nodeSelector")
    flags = (("allNodes", owner.all_nodes), *more)
    for name, flag in flags:
        if flag is False:
            yield FieldError(f"{path}.{name}", "must be true or absent, found false", False)
    choices: dict[str, bool | str | NodeSelector | None] = {
        "nodeName": owner.node_name,
        "nodeSelector": owner.node_selector,
        **dict(flags),
    }
    chosen = [name for name, value in choices.items() if value]
    if len(chosen) != 1:
        yield FieldError(path, f"must have exactly one of {', '.join(choices)}, found {' and '.join(chosen) or 'none'}")


def _partition_type_attribute(spec: ResourceSliceSpec, name: str) -> Errors:
    path = "spec.partitionTypeAttribute"
    consumers = [(index, device) for index, device in enumerate(spec.devices) if device.consumes_counters]
    if problem := names.fully_qualified_name(name):
        yield FieldError(path, problem, name)
    elif not consumers:
        yield FieldError(path, "must only be set on a slice with devices that consume counters", name)
    else:
        bare = name.removeprefix(f"{spec.driver}/")
        for index, device in consumers:
            attribute = device.attributes.get(name) or device.attributes.get(bare)
            if attribute is None or attribute.string is None:
                message = "must be set to a string, since partitionTypeAttribute names it and the device has counters"
                yield FieldError(f"spec.devices[{index}].attributes[{name}]", message)


def _device(device: Device, path: str, has_placement: bool) -> Errors:
    yield from required(device.name, f"{path}.name", names.dns_label)
    if has_placement:
        yield from _placement(device, path)
    elif device.node_name is not None or device.node_selector is not None or device.all_nodes is not None:
        yield FieldError(path, "must not say which nodes reach it unless the slice has perDeviceNodeSelection: true")
    count = len(device.attributes) + len(device.capacity)
    if count > limits.ATTRIBUTES_AND_CAPACITIES_MAX:
        maximum = limits.ATTRIBUTES_AND_CAPACITIES_MAX
        yield FieldError(path, f"must have at most {maximum} attributes and capacities together, found {count}", count)
    values = sum(map(_value_count, device.attributes.values()))
    if values > limits.ATTRIBUTE_VALUES_MAX:
        yield FieldError(
            path, f"must have at most {limits.ATTRIBUTE_VALUES_MAX} attribute values, found {values}", values
        )
    for name, attribute in device.attributes.items():
        if names.qualified_name(name) or not _is_short_text(attribute):
            place = f"{path}.attributes[{name}]"
            yield from optional(name, place, names.qualified_name)
            yield from _attribute(attribute, place)
    for name, capacity in device.capacity.items():
        place = f"{path}.capacity[{name}]"
        yield from optional(name, place, names.qualified_name)
        yield from capacity_errors(capacity, place, bool(device.allow_multiple_allocations))
    if device.taints:
        yield from entries(device.taints, f"{path}.taints", limits.TAINTS_MAX, checks.taint)
    if device.consumes_counters:
        yield from entries(
            device.consumes_counters,
            f"{path}.consumesCounters",
            limits.CONSUMED_COUNTER_SETS_MAX,
            _counter_consumption,
            identity=lambda consumption: consumption.counter_set,
        )
    if device.binding_conditions or device.binding_failure_conditions:
        yield from checks.binding_conditions(device.binding_conditions, device.binding_failure_conditions, path)
    for name, resource in device.node_allocatable_resources.items():
        yield from _node_allocatable(name, resource, f"{path}.nodeAllocatableResources[{name}]", device)


def _is_short_text(attribute: DeviceAttribute) -> bool:
    """Nearly all are, and nothing is wrong with them; there can be millions."""
    text = attribute.string
    if text is None or len(text) > limits.ATTRIBUTE_VALUE_MAX_BYTES or not text.isascii():
        return False
    return structs.astuple(attribute).count(None) == len(_VALUES) - 1


def _value_count(attribute: DeviceAttribute) -> int:
    lists = (attribute.ints, attribute.bools, attribute.strings, attribute.versions)
    return sum(len(values) for values in lists if values) if any(lists) else 1


def _attribute(attribute: DeviceAttribute, path: str) -> Errors:
    values = structs.astuple(attribute)
    if values.count(None) != len(values) - 1:
        found = " and ".join(name for name, value in zip(_VALUES, values, strict=True) if value is not None)
        yield FieldError(path, f"must have exactly one of {', '.join(_VALUES)}, found {found or 'none'}")
    if attribute.string is not None:
        yield from optional(attribute.string, f"{path}.string", _text_value)
    if attribute.version is not None:
        yield from optional(attribute.version, f"{path}.version", _version_value)
    if [] in values:
        for name in (name for name, value in zip(_VALUES, values, strict=True) if value == []):
            yield FieldError(f"{path}.{name}", "must not be an empty list")
    for index, text in enumerate(attribute.strings or ()):
        yield from optional(text, f"{path}.strings[{index}]", _text_value)
    for index, text in enumerate(attribute.versions or ()):
        yield from optional(text, f"{path}.versions[{index}]", _version_value)


def _text_value(text: str) -> str | None:
    size = names.byte_length(text)
    maximum = limits.ATTRIBUTE_VALUE_MAX_BYTES
    return f"must have at most {maximum} bytes, found {size}" if size > maximum else None


def _version_value(text: str) -> str | None:
    if not SEMVER_PATTERN.fullmatch(text):
        return f'must be a version MAJOR.MINOR.PATCH as semver.org defines it, found "{text[:64]}"'
    return _text_value(text)


def _counter_set(counter_set: CounterSet, path: str) -> Errors:
    yield from required(counter_set.name, f"{path}.name", names.dns_label)
    yield from _counters(counter_set.counters, f"{path}.counters")


def _counter_consumption(consumption: DeviceCounterConsumption, path: str) -> Errors:
    yield from required(consumption.counter_set, f"{path}.counterSet", names.dns_label)
    yield from _counters(consumption.counters, f"{path}.counters")
    yield from entries(
        consumption.compatibility_groups,
        f"{path}.compatibilityGroups",
        limits.COMPATIBILITY_GROUPS_MAX,
        lambda name, place: required(name, place, names.dns_label),
        identity=str,
    )


def _counters(counters: dict[str, Counter], path: str) -> Errors:
    if not counters:
        yield FieldError(path, "must be set")
    elif len(counters) > limits.COUNTERS_MAX:
        yield FieldError(path, f"must have at most {limits.COUNTERS_MAX} entries, found {len(counters)}", len(counters))
    else:
        for name, counter in counters.items():
            yield from required(name, f"{path}[{name}]", names.dns_label)
            yield from checks.quantity(counter.value, f"{path}[{name}].value")


def _node_allocatable(name: str, resource: NodeAllocatableResource, path: str, device: Device) -> Errors:
    """Source: KEP-5517."""
    if name not in ("cpu", "memory") and not name.startswith("hugepages-"):
        yield FieldError(path, f'must be cpu, memory or hugepages-SIZE, found "{name}"', name)
    mapping, overhead = resource.mapping, resource.overhead
    if mapping is None and overhead is None:
        yield FieldError(path, "must have `mapping` or `overhead`")
    if mapping is not None:
        if (mapping.capacity_key is None) == (mapping.device_multiplier is None):
            found = "neither" if mapping.capacity_key is None else "both"
            yield FieldError(f"{path}.mapping", f"must have one of `capacityKey` and `deviceMultiplier`, found {found}")
        if mapping.capacity_key is not None and mapping.capacity_key not in device.capacity:
            message = f'must name a capacity of the device, found "{mapping.capacity_key}"'
            yield FieldError(f"{path}.mapping.capacityKey", message, mapping.capacity_key)
        if (mapping.capacity_key is None) != (mapping.capacity_multiplier is None):
            missing = "capacityKey" if mapping.capacity_key is None else "capacityMultiplier"
            yield FieldError(f"{path}.mapping.{missing}", "must be set where the other of the two is")
        yield from _amount(mapping.capacity_multiplier, f"{path}.mapping.capacityMultiplier", minimum=1)
        yield from _amount(mapping.device_multiplier, f"{path}.mapping.deviceMultiplier", minimum=1)
    if overhead is not None:
        if overhead.per_pod is None and overhead.per_container is None:
            yield FieldError(f"{path}.overhead", "must have `perPod` or `perContainer`")
        yield from _amount(overhead.per_pod, f"{path}.overhead.perPod", minimum=0)
        yield from _amount(overhead.per_container, f"{path}.overhead.perContainer", minimum=0)


def _amount(text: str | None, path: str, minimum: int) -> Errors:
    """minimum: in the smallest unit there is, so 1 stands for anything above zero."""
    try:
        if text is not None and Quantity.parse(text).nanos < minimum:
            yield FieldError(path, f"must {'be greater than 0' if minimum else 'not be negative'}, found {text}", text)
    except QuantityError as error:
        yield FieldError(path, str(error), text)
