"""Kubernetes objects for tests: each builder takes what the test is about and fills in the rest.

The defaults fit together: `a_claim()` asks for one device of `a_class()`, and `a_slice()` publishes one such device,
usable on all nodes, as a complete pool.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from broker.world.keys import PoolKey
from broker.world.pools import Pool, assemble_pool
from schemas.resource import (
    CELDeviceSelector,
    Device,
    DeviceAttribute,
    DeviceCapacity,
    DeviceClaim,
    DeviceClaimConfiguration,
    DeviceClass,
    DeviceClassConfiguration,
    DeviceClassSpec,
    DeviceConstraint,
    DeviceRequest,
    DeviceSelector,
    DeviceSubRequest,
    DeviceTaint,
    DeviceToleration,
    ExactDeviceRequest,
    NodeSelector,
    NodeSelectorRequirement,
    NodeSelectorTerm,
    ObjectMeta,
    OpaqueDeviceConfiguration,
    ResourceClaim,
    ResourceClaimSpec,
    ResourcePool,
    ResourceSlice,
    ResourceSliceSpec,
)

DRIVER = "gpu.example.com"
CLASS = "gpu.example.com"

AttributeValue = bool | int | str | list[bool] | list[int] | list[str] | DeviceAttribute


def an_attribute(value: AttributeValue) -> DeviceAttribute:
    """The attribute for a Python value; pass a DeviceAttribute where it should be a version."""
    match value:
        case DeviceAttribute():
            return value
        case bool():
            return DeviceAttribute(bool_=value)
        case int():
            return DeviceAttribute(int_=value)
        case str():
            return DeviceAttribute(string=value)
    if all(isinstance(item, bool) for item in value):
        return DeviceAttribute(bools=[item for item in value if isinstance(item, bool)])
    if all(isinstance(item, int) for item in value):
        return DeviceAttribute(ints=[item for item in value if isinstance(item, int)])
    return DeviceAttribute(strings=[str(item) for item in value])


def a_device(name: str = "gpu-0", *, capacity: Mapping[str, str] | None = None, **attributes: AttributeValue) -> Device:
    """A device with unqualified attributes; change anything else with `msgspec.structs.replace`."""
    return Device(
        name=name,
        attributes={key: an_attribute(value) for key, value in attributes.items()},
        capacity={key: DeviceCapacity(value=value) for key, value in (capacity or {}).items()},
    )


def some_devices(count: int, *, first: int = 0, **attributes: AttributeValue) -> list[Device]:
    """`gpu-0`, `gpu-1` and so on, all alike."""
    return [a_device(f"gpu-{index}", capacity=None, **attributes) for index in range(first, first + count)]


def a_taint(key: str = "example.com/broken", effect: str = "NoSchedule", value: str = "") -> DeviceTaint:
    """A taint that nothing tolerates by chance."""
    return DeviceTaint(key=key, value=value, effect=effect)


def a_toleration(key: str = "example.com/broken", effect: str = "", **fields: Any) -> DeviceToleration:
    """Tolerates `a_taint()`."""
    return DeviceToleration(**({"key": key, "operator": "Exists", "effect": effect} | fields))


def a_slice(
    devices: Iterable[Device] | None = None,
    *,
    name: str = "slice-0",
    driver: str = DRIVER,
    pool: str = "rack7",
    generation: int = 1,
    slice_count: int = 1,
    labels: Mapping[str, str] | None = None,
    **spec: Any,
) -> ResourceSlice:
    """A slice usable on all nodes, unless `spec` says where (node_name, node_selector, per_device_node_selection)."""
    if not spec.keys() & {"all_nodes", "node_name", "node_selector", "per_device_node_selection"}:
        spec["all_nodes"] = True
    return ResourceSlice(
        metadata=ObjectMeta(name=name, uid=f"uid-{name}", labels=dict(labels or {})),
        spec=ResourceSliceSpec(
            driver=driver,
            pool=ResourcePool(name=pool, generation=generation, resource_slice_count=slice_count),
            devices=[a_device()] if devices is None else list(devices),
            **spec,
        ),
    )


def a_pool(*slices: ResourceSlice, scope: str = "fabric/f") -> Pool:
    """The pool of the slices, of which all are of one driver and one pool; of `a_slice()` unless any are given."""
    slices = slices or (a_slice(),)
    spec = slices[0].spec
    return assemble_pool(PoolKey(scope, spec.driver, spec.pool.name), slices)


def a_node_selector(**labels: str | Sequence[str]) -> NodeSelector:
    """Matches the nodes that carry one of the given values under each label."""
    return NodeSelector(
        node_selector_terms=[
            NodeSelectorTerm(
                match_expressions=[
                    NodeSelectorRequirement(
                        key=key, operator="In", values=[values] if isinstance(values, str) else list(values)
                    )
                    for key, values in labels.items()
                ]
            )
        ]
    )


def a_selector(expression: str) -> DeviceSelector:
    """A CEL selector."""
    return DeviceSelector(cel=CELDeviceSelector(expression=expression))


def a_config(driver: str = DRIVER, **parameters: Any) -> OpaqueDeviceConfiguration:
    """Opaque parameters for a driver."""
    return OpaqueDeviceConfiguration(driver=driver, parameters=parameters)


def a_class(
    name: str = CLASS,
    *expressions: str,
    config: Iterable[OpaqueDeviceConfiguration] = (),
    labels: Mapping[str, str] | None = None,
) -> DeviceClass:
    """A class that selects by driver, unless expressions are given."""
    return DeviceClass(
        metadata=ObjectMeta(name=name, labels=dict(labels or {})),
        spec=DeviceClassSpec(
            selectors=[a_selector(each) for each in expressions or (f'device.driver == "{DRIVER}"',)],
            config=[DeviceClassConfiguration(opaque=opaque) for opaque in config],
        ),
    )


def a_request(name: str = "gpu", *expressions: str, of: str = CLASS, **exactly: Any) -> DeviceRequest:
    """A request for one device; `expressions` are its selectors, `exactly` sets count, tolerations and so on."""
    return DeviceRequest(
        name=name,
        exactly=ExactDeviceRequest(
            device_class_name=of, selectors=[a_selector(each) for each in expressions], **exactly
        ),
    )


def a_request_for_all(name: str = "gpu", *expressions: str, of: str = CLASS, **exactly: Any) -> DeviceRequest:
    """A request for every matching device."""
    return a_request(name, *expressions, of=of, allocation_mode="All", **exactly)


def a_sub_request(name: str, *expressions: str, of: str = CLASS, **fields: Any) -> DeviceSubRequest:
    """One alternative of `a_choice()`."""
    return DeviceSubRequest(
        name=name, device_class_name=of, selectors=[a_selector(each) for each in expressions], **fields
    )


def a_choice(name: str, *alternatives: DeviceSubRequest) -> DeviceRequest:
    """A request with alternatives, the best first."""
    return DeviceRequest(name=name, first_available=list(alternatives))


def a_match(attribute: str, *requests: str) -> DeviceConstraint:
    """All devices (of the requests named) share a value of the attribute."""
    return DeviceConstraint(requests=list(requests), match_attribute=attribute)


def a_distinct(attribute: str, *requests: str) -> DeviceConstraint:
    """No two devices (of the requests named) share a value of the attribute."""
    return DeviceConstraint(requests=list(requests), distinct_attribute=attribute)


def a_claim_config(opaque: OpaqueDeviceConfiguration, *requests: str) -> DeviceClaimConfiguration:
    """Configuration in a claim, for the requests named or for all."""
    return DeviceClaimConfiguration(requests=list(requests), opaque=opaque)


def a_claim(
    *requests: DeviceRequest,
    name: str = "train",
    namespace: str = "default",
    uid: str = "",
    constraints: Iterable[DeviceConstraint] = (),
    config: Iterable[DeviceClaimConfiguration] = (),
    annotations: Mapping[str, str] | None = None,
) -> ResourceClaim:
    """A claim for one device, unless requests are given."""
    return ResourceClaim(
        metadata=ObjectMeta(
            name=name, namespace=namespace, uid=uid or f"uid-{namespace}-{name}", annotations=dict(annotations or {})
        ),
        spec=ResourceClaimSpec(
            devices=DeviceClaim(
                requests=list(requests) or [a_request()], constraints=list(constraints), config=list(config)
            )
        ),
    )
