"""Taints that others than the driver put on devices: by DeviceTaintRules (KEP-5055), and by the broker itself.

A rule counts where its cluster may speak for the pool: the hub's and the source's for a fabric, the cluster's own for
a local pool. It becomes a taint of the devices it selects, so that the allocation core knows one kind of taint only.
"""

from collections.abc import Mapping, Sequence

import msgspec

from schemas.resource import Device, DeviceTaint, DeviceTaintRule, ResourceSlice


def with_rules(resource_slice: ResourceSlice, rules: Sequence[DeviceTaintRule]) -> ResourceSlice:
    """The slice with the taints of the rules that select its devices; the very same one where none does."""
    spec = resource_slice.spec
    concerned = [rule for rule in rules if selects_pool(rule, spec.driver, spec.pool.name)]
    if not concerned:
        return resource_slice
    devices = [_tainted(device, concerned) for device in spec.devices]
    return msgspec.structs.replace(resource_slice, spec=msgspec.structs.replace(spec, devices=devices))


def with_taints(resource_slice: ResourceSlice, taints: Mapping[str, Sequence[DeviceTaint]]) -> ResourceSlice:
    """The slice with these taints of its devices, by name; the very same one where it has none of them."""
    spec = resource_slice.spec
    if not taints or not any(device.name in taints for device in spec.devices):
        return resource_slice
    devices = [
        msgspec.structs.replace(device, taints=[*device.taints, *taints[device.name]])
        if device.name in taints
        else device
        for device in spec.devices
    ]
    return msgspec.structs.replace(resource_slice, spec=msgspec.structs.replace(spec, devices=devices))


def selects_pool(rule: DeviceTaintRule, driver: str, pool: str) -> bool:
    """The rule is about devices of this pool."""
    selector = rule.spec.device_selector
    return selector is not None and selector.driver in (None, driver) and selector.pool in (None, pool)


def _tainted(device: Device, rules: Sequence[DeviceTaintRule]) -> Device:
    added = [
        rule.spec.taint
        for rule in rules
        if rule.spec.device_selector is not None and rule.spec.device_selector.device in (None, device.name)
    ]
    return msgspec.structs.replace(device, taints=[*device.taints, *added]) if added else device
