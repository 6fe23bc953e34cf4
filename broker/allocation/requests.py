"""Claims as the search reads them: requests, their alternatives, and for each the selectors that a device must pass."""

from collections.abc import Sequence
from dataclasses import dataclass

from broker.allocation.index import DeviceIndex
from broker.allocation.reasons import NoFit, Reason, WaitsOn
from broker.allocation.snapshot import Snapshot
from broker.allocation.unsupported import unsupported_in_claim
from broker.allocation.validate_selectors import compile_claim, compile_class
from schemas.resource import DeviceClass, DeviceSubRequest, DeviceToleration, ExactDeviceRequest, ResourceClaim
from schemas.resource.validate import validate_class

Asks = tuple[tuple[str, ...], tuple[DeviceToleration, ...], bool]  # the chain, the tolerations, whether it takes all


@dataclass(frozen=True, slots=True, eq=False)
class Alternative:
    """One way to satisfy a request: the request itself, or one of its sub-requests. Compared by identity.

    name: "main" or "main/sub", as results, constraints and configuration name it.
    chain: the selectors of the class, then those of the request.
    class_selectors: how many of the chain belong to the class.
    count: how many devices; of no meaning when `takes_all`.
    """

    claim_index: int
    name: str
    device_class: DeviceClass
    chain: tuple[str, ...]
    class_selectors: int
    takes_all: bool
    count: int
    tolerations: tuple[DeviceToleration, ...]

    @property
    def asks(self) -> Asks:
        """All that decides which devices it may use: equal for alternatives that may use the same."""
        return (self.chain, self.tolerations, self.takes_all)


@dataclass(frozen=True, slots=True)
class Request:
    """One request of one claim, with its alternatives in order of preference."""

    claim_index: int
    alternatives: tuple[Alternative, ...]


def claim_name(claim: ResourceClaim) -> str:
    """As people write it."""
    return f"{claim.metadata.namespace}/{claim.metadata.name}"


def read_requests(
    claims: Sequence[ResourceClaim], snapshot: Snapshot, device_index: DeviceIndex
) -> tuple[Request, ...] | NoFit:
    """Read the claims, or say why one of them cannot be read. No device is looked at here."""
    requests: list[Request] = []
    for claim_index, claim in enumerate(claims):
        where = f"claim {claim_name(claim)}: " if len(claims) > 1 else ""
        if path := unsupported_in_claim(claim):
            return NoFit(Reason.UNSUPPORTED_FEATURE, f"{where}{path} is not supported by this release")
        if errors := compile_claim(claim, device_index):
            return NoFit(Reason.INVALID_SELECTOR, f"{where}{errors[0].sentence()}")
        for request in claim.spec.devices.requests:
            named: list[tuple[str, ExactDeviceRequest | DeviceSubRequest]]
            if request.exactly is not None:
                named = [(request.name, request.exactly)]
            else:
                named = [(f"{request.name}/{each.name}", each) for each in request.first_available]
            alternatives: list[Alternative] = []
            for name, each in named:
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
                    )
                )
            requests.append(Request(claim_index, tuple(alternatives)))
    return tuple(requests)


def _usable_class(name: str, where: str, snapshot: Snapshot, device_index: DeviceIndex) -> DeviceClass | NoFit:
    """As upstream, a class that is missing fails the claim even where another alternative would do."""
    waits_on = WaitsOn(classes=(name,))
    device_class = snapshot.classes.get(name)
    if device_class is None:
        known = ", ".join(sorted(snapshot.classes)) or "none"
        message = f"{where} names the device class {name}, which does not exist; known classes: {known}"
        return NoFit(Reason.UNKNOWN_DEVICE_CLASS, message, waits_on=waits_on)
    problems = [str(error) for error in validate_class(device_class)]
    problems += [error.sentence() for error in compile_class(device_class, device_index)]
    if problems:
        message = f"{where} names the device class {name}, which cannot be used: {problems[0]}"
        return NoFit(Reason.INVALID_DEVICE_CLASS, message, waits_on=waits_on)
    return device_class
