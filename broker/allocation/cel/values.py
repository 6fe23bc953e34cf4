"""A device as selectors see it, before an engine makes its own values of it."""

from collections.abc import Callable
from typing import Any

import msgspec

from broker.allocation.cel.engine import SelectorFailure
from schemas.quantity import Quantity
from schemas.resource import Device, DeviceAttribute
from schemas.semver import Semver


class DeviceValues(msgspec.Struct, frozen=True):
    """attributes, capacity: by domain, then by name; values as the engine wants them."""

    driver: str
    allow_multiple_allocations: bool
    attributes: dict[str, dict[str, Any]]
    capacity: dict[str, dict[str, Any]]


def device_values(driver: str, device: Device, encode: Callable[[Any], Any]) -> DeviceValues | SelectorFailure:
    """Sort a device's attributes and capacities by domain; names without a domain get the driver's.

    encode: turns a bool, int, str, Semver or Quantity, or a list of one of them, into the engine's value.
    Returns: the failure that every selector on this device ends with, where Kubernetes could not read an attribute.
    """
    attributes: dict[str, dict[str, Any]] = {}
    capacity: dict[str, dict[str, Any]] = {}
    try:
        for qualified, attribute in device.attributes.items():
            domain, name = split_name(qualified, driver)
            attributes.setdefault(domain, {})[name] = encode(_attribute_value(attribute))
        for qualified, amount in device.capacity.items():
            domain, name = split_name(qualified, driver)
            capacity.setdefault(domain, {})[name] = encode(Quantity.parse(amount.value))
    except ValueError as error:
        return SelectorFailure(f"{qualified} cannot be read: {error}")
    return DeviceValues(driver, bool(device.allow_multiple_allocations), attributes, capacity)


def split_name(qualified: str, driver: str) -> tuple[str, str]:
    """Domain and name of "domain/name", or the driver as domain of a name without one."""
    domain, slash, name = qualified.partition("/")
    return (domain, name) if slash else (driver, qualified)


def _attribute_value(attribute: DeviceAttribute) -> Any:
    """The one value that is set; lists are looked at first, as upstream does.

    Raises: ValueError.
    """
    for values in (attribute.ints, attribute.bools, attribute.strings):
        if values is not None:
            return list(values)
    if attribute.versions is not None:
        return [Semver.parse(text) for text in attribute.versions]
    for value in (attribute.int_, attribute.bool_, attribute.string):
        if value is not None:
            return value
    if attribute.version is not None:
        return Semver.parse(attribute.version)
    raise ValueError("it has none of the values that are known here")
