"""matchAttribute and distinctAttribute, while devices are chosen and given back one by one.

An attribute is the set of its values: one for a scalar, several for a list. Devices match when all of them have a
value in common, and are distinct when no two of them have. A device without the attribute satisfies neither.
Source: KEP-4381, KEP-5491 (lists), KEP-6080 (derived). Upstream compares versions as text, and so do we.
"""

from collections.abc import Hashable, Iterable
from typing import Protocol, Self

from broker.allocation.cel.engine import AttributeValue, Scalar
from schemas.resource import Device, DeviceAttribute, DeviceConstraint
from schemas.semver import Semver

Values = frozenset[tuple[str, object]]  # (type, value): 1, True and "1" are three different values


def attribute_values(device: Device, driver: str, attribute: str) -> Values | None:
    """Look an attribute up by its fully qualified name; one without a domain belongs to the driver's."""
    found = device.attributes.get(attribute)
    if found is None:
        domain, _, name = attribute.partition("/")
        found = device.attributes.get(name) if domain == driver else None
    return _values(found) if found is not None else None


def derived_values(value: AttributeValue) -> Values | None:
    """The same of a derived attribute; None for an empty list, which has nothing in common with anything."""
    listed = value if isinstance(value, list) else [value]
    return frozenset((_kind_of(each), str(each) if isinstance(each, Semver) else each) for each in listed) or None


def _kind_of(value: Scalar) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return "int"
        case str():
            return "string"
    return "version"


def _values(attribute: DeviceAttribute) -> Values | None:
    # Lists first and then the scalars, as upstream; an attribute of a type that we do not know has no values.
    for kind, listed, scalar in (
        ("int", attribute.ints, attribute.int_),
        ("bool", attribute.bools, attribute.bool_),
        ("string", attribute.strings, attribute.string),
        ("version", attribute.versions, attribute.version),
    ):
        if listed:
            return frozenset((kind, each) for each in listed)
        if scalar is not None:
            return frozenset([(kind, scalar)])
    return None


class Constraint(Protocol):
    """One constraint of a claim, over the devices chosen so far."""

    attribute: str

    def applies_to(self, request: str) -> bool:
        """The request ("main" or "main/sub") is in its scope."""

    def fresh(self) -> "Constraint":
        """The same with no device chosen."""

    def add(self, values: Values | None) -> bool:
        """Choose a device with these values if it goes with the ones chosen before; if not, nothing has changed."""

    def remove(self) -> None:
        """Give back the device that was chosen last."""

    @property
    def state(self) -> Hashable:
        """Equal when the same devices can be added."""


class _Scope:
    """What both kinds of constraint share. Naming a request includes all of its alternatives."""

    def __init__(self, attribute: str, requests: Iterable[str]) -> None:
        self.attribute = attribute
        self._requests = frozenset(requests)

    def applies_to(self, request: str) -> bool:
        return not self._requests or request in self._requests or request.partition("/")[0] in self._requests

    def fresh(self) -> Self:
        return type(self)(self.attribute, self._requests)


class MatchAttribute(_Scope):
    """All devices have a value in common."""

    def __init__(self, attribute: str, requests: Iterable[str]) -> None:
        super().__init__(attribute, requests)
        self._common: list[Values] = []  # after each device: the values that all have in common; never empty sets

    def add(self, values: Values | None) -> bool:
        if values is None:
            return False
        if self._common:
            values &= self._common[-1]
            if not values:
                return False
        self._common.append(values)
        return True

    def remove(self) -> None:
        self._common.pop()

    @property
    def state(self) -> Hashable:
        return self._common[-1] if self._common else None


class DistinctAttribute(_Scope):
    """No two devices have a value in common."""

    def __init__(self, attribute: str, requests: Iterable[str]) -> None:
        super().__init__(attribute, requests)
        self._chosen: list[Values] = []
        self._taken: set[tuple[str, object]] = set()  # the union of _chosen, whose sets are disjoint

    def add(self, values: Values | None) -> bool:
        if values is None or not self._taken.isdisjoint(values):
            return False
        self._chosen.append(values)
        self._taken |= values
        return True

    def remove(self) -> None:
        self._taken -= self._chosen.pop()

    @property
    def state(self) -> Hashable:
        return frozenset(self._taken)


def constraint_of(spec: DeviceConstraint) -> MatchAttribute | DistinctAttribute:
    """The constraint with no device chosen; one that is neither kind was refused before (`unsupported`)."""
    if spec.match_attribute is not None:
        return MatchAttribute(spec.match_attribute, spec.requests)
    assert spec.distinct_attribute is not None
    return DistinctAttribute(spec.distinct_attribute, spec.requests)
