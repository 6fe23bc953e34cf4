"""Claims as the search reads them: requests, their alternatives, and for each the selectors that a device must pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from broker.allocation.budget import Budget
from broker.allocation.capacity import CapacityAsk
from broker.allocation.cel.engine import SelectorFailure
from broker.allocation.constraints import Values, constraint_of
from broker.allocation.index import DeviceIndex, IndexedDevice
from broker.allocation.reasons import NoFit, Reason, WaitsOn
from broker.allocation.snapshot import Snapshot
from broker.allocation.unsupported import unsupported_in_claim
from broker.allocation.validate_selectors import compile_claim, compile_class
from schemas.resource import (
    DeviceClass,
    DeviceDerivedAttribute,
    DeviceRequest,
    DeviceSubRequest,
    DeviceToleration,
    ExactDeviceRequest,
    ResourceClaim,
    ResourceClaimSpec,
)
from schemas.resource.validate import validate_class

ADMIN_ACCESS_LABEL = "resource.kubernetes.io/admin-access"  # of a namespace, "true" where it is allowed (KEP-5018)

_READ_KEPT = 10_000

# The chain, the tolerations, whether it takes all, whether it has admin access, capacities, derived attributes.
Asks = tuple[tuple[str, ...], tuple[DeviceToleration, ...], bool, bool, CapacityAsk, tuple[str, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Alternative:
    """One way to satisfy a request: the request itself, or one of its sub-requests. Compared by identity.

    name: "main" or "main/sub", as results, constraints and configuration name it.
    chain: the selectors of the class, then those of the request.
    class_selectors: how many of the chain belong to the class.
    count: how many devices; of no meaning when `takes_all`.
    capacity: what it asks of each device's capacities.
    derived: expressions of its derived attributes, by their fully qualified names.
    asks: all that decides which devices it may use: equal for alternatives that may use the same.
    """

    claim_index: int
    name: str
    device_class: DeviceClass
    chain: tuple[str, ...]
    class_selectors: int
    takes_all: bool
    count: int
    tolerations: tuple[DeviceToleration, ...]
    admin_access: bool = False
    capacity: CapacityAsk = ()
    derived: Mapping[str, str] = field(default_factory=dict)
    asks: Asks = field(init=False)

    def __post_init__(self) -> None:
        derived = tuple(self.derived.values())
        asks = (self.chain, self.tolerations, self.takes_all, self.admin_access, self.capacity, derived)
        object.__setattr__(self, "asks", asks)

    def values_of(self, device: IndexedDevice, attribute: str) -> Values | None:
        """What constraints compare: the request's own derived attributes go before those of the device."""
        expression = self.derived.get(attribute)
        if expression is None:
            return device.values_of(attribute)
        values = (device.derived or {}).get(expression)  # a candidate was asked before, see `candidates`
        return None if isinstance(values, SelectorFailure) else values


@dataclass(frozen=True, slots=True)
class Request:
    """One request of one claim, with its alternatives in order of preference."""

    claim_index: int
    alternatives: tuple[Alternative, ...]


def claim_name(claim: ResourceClaim) -> str:
    """As people write it."""
    return f"{claim.metadata.namespace}/{claim.metadata.name}"


def read_requests(
    claims: Sequence[ResourceClaim], snapshot: Snapshot, device_index: DeviceIndex, budget: Budget
) -> tuple[Request, ...] | NoFit:
    """Read the claims, or say why one of them cannot be read. No device is looked at here.

    Raises: BudgetExceededError where compiling alone takes too long.
    """
    requests: list[Request] = []
    for claim_index, claim in enumerate(claims):
        key = (id(claim.spec), claim_index, snapshot.allows_admin_access)
        known: _Read | None = device_index.requests_read.get(key)
        if known is None or any(snapshot.classes.get(each.metadata.name) is not each for each in known.classes):
            left = budget.left
            found = _read(claims, claim_index, snapshot, device_index, budget)
            if isinstance(found, NoFit):
                return found
            classes = [one.device_class for each in found for one in each.alternatives]
            if len(device_index.requests_read) >= _READ_KEPT:
                device_index.requests_read.clear()
            known = device_index.requests_read[key] = _Read(claim.spec, classes, left - budget.left, found)
        else:
            budget.spend(known.steps)
        requests += known.requests
    return tuple(requests)


class _Read(NamedTuple):
    """What a claim asks for, for all claims with the same spec. spec: kept, so that its id stays its own."""

    spec: ResourceClaimSpec
    classes: list[DeviceClass]
    steps: int
    requests: list[Request]


def _read(
    claims: Sequence[ResourceClaim], claim_index: int, snapshot: Snapshot, device_index: DeviceIndex, budget: Budget
) -> list[Request] | NoFit:
    claim = claims[claim_index]
    requests: list[Request] = []
    where = f"claim {claim_name(claim)}: " if len(claims) > 1 else ""
    if path := unsupported_in_claim(claim):
        return NoFit(Reason.UNSUPPORTED_FEATURE, f"{where}{path} is not supported by this release")
    if errors := compile_claim(claim, device_index, budget):
        return NoFit(Reason.INVALID_SELECTOR, f"{where}{errors[0].sentence()}")
    for request in claim.spec.devices.requests:
        if request.exactly is not None and request.exactly.admin_access and not snapshot.allows_admin_access:
            text = f"{where}request {request.name} asks for admin access, for which the namespace "
            text += f'{claim.metadata.namespace} must be labelled {ADMIN_ACCESS_LABEL}: "true"'
            return NoFit(Reason.ADMIN_ACCESS_NOT_ALLOWED, text)
        alternatives: list[Alternative] = []
        for name, each in _named(request):
            device_class = _usable_class(each.device_class_name, f"{where}request {name}", snapshot, device_index)
            if isinstance(device_class, NoFit):
                return device_class
            of_class = [selector.cel.expression for selector in device_class.spec.selectors if selector.cel]
            of_request = [selector.cel.expression for selector in each.selectors if selector.cel]
            alternatives.append(
                Alternative(
                    claim_index=claim_index,
                    name=name,
                    device_class=device_class,
                    chain=(*of_class, *of_request),
                    class_selectors=len(of_class),
                    takes_all=each.allocation_mode == "All",
                    count=each.count,
                    tolerations=tuple(each.tolerations),
                    admin_access=isinstance(each, ExactDeviceRequest) and bool(each.admin_access),
                    capacity=tuple(sorted(each.capacity.requests.items())) if each.capacity else (),
                    derived=_compared(each.derived_attributes, name, claim),
                )
            )
        requests.append(Request(claim_index, tuple(alternatives)))
    return requests


def _compared(derived: Sequence[DeviceDerivedAttribute], name: str, claim: ResourceClaim) -> dict[str, str]:
    """The derived attributes that a constraint on the request compares; no others are computed, as upstream."""
    if not derived:
        return {}
    constraints = [constraint_of(each) for each in claim.spec.devices.constraints]
    wanted = {each.attribute for each in constraints if each.applies_to(name)}
    return {each.name: each.expression for each in derived if each.name in wanted}


def _named(request: DeviceRequest) -> list[tuple[str, ExactDeviceRequest | DeviceSubRequest]]:
    """The alternatives of a request by their full names."""
    if request.exactly is not None:
        return [(request.name, request.exactly)]
    return [(f"{request.name}/{each.name}", each) for each in request.first_available]


def _usable_class(name: str, where: str, snapshot: Snapshot, device_index: DeviceIndex) -> DeviceClass | NoFit:
    """As upstream, a class that is missing fails the claim even where another alternative would do."""
    waits_on = WaitsOn(classes=(name,))
    device_class = snapshot.classes.get(name)
    if device_class is None:
        known = ", ".join(sorted(snapshot.classes)) or "none"
        message = f"{where} names the device class {name}, which does not exist; known classes: {known}"
        return NoFit(Reason.UNKNOWN_DEVICE_CLASS, message, waits_on=waits_on)
    problem = device_index.check_class(device_class, _problem_of_class)
    if problem is not None:
        message = f"{where} names the device class {name}, which cannot be used: {problem}"
        return NoFit(Reason.INVALID_DEVICE_CLASS, message, waits_on=waits_on)
    return device_class


def _problem_of_class(device_class: DeviceClass, device_index: DeviceIndex) -> str | None:
    problems = [str(error) for error in validate_class(device_class)]
    problems += [error.sentence() for error in compile_class(device_class, device_index)]
    return problems[0] if problems else None
