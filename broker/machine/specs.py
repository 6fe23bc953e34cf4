"""What is known of a claim's spec: found out once for all claims that ask for the same, as those of a template do."""

from contextlib import suppress

import msgspec

from broker.allocation.budget import Budget, BudgetExceededError
from broker.allocation.index import DeviceIndex
from broker.allocation.validate_selectors import compile_claim
from schemas.resource import ResourceClaim, ResourceClaimSpec
from schemas.resource.validate import validate_claim_spec

# Of one claim, see broker.allocation.budget; with as much again to find out why it does not fit. So that a claim that
# was made to be slow delays the others by some 50 ms.
STEP_BUDGET = 25_000
_KEPT = 10_000


class SpecFacts(msgspec.Struct, frozen=True, eq=False):
    """spec: one object for all claims that ask for the same.

    text: the spec as JSON.
    errors, selector_errors: why such a claim is invalid, for people.
    class_names: the DeviceClasses that it names, each once, in order.
    """

    spec: ResourceClaimSpec
    text: bytes
    errors: list[str]
    selector_errors: list[str]
    class_names: list[str]


class Specs:
    """Facts about specs; what is not asked for again is forgotten some time."""

    def __init__(self, index: DeviceIndex) -> None:
        self._index = index
        self._by_text: dict[bytes, SpecFacts] = {}
        self._by_id: dict[int, SpecFacts] = {}  # of `spec`, which lives as long as its facts

    def of(self, spec: ResourceClaimSpec) -> SpecFacts:
        """All about the spec."""
        found = self._by_id.get(id(spec))
        if found is not None:
            return found
        text = msgspec.json.encode(spec)
        found = self._by_text.get(text)
        if found is None:
            if len(self._by_text) >= _KEPT:
                self._by_text.clear()
                self._by_id.clear()
            found = self._by_text[text] = self._by_id[id(spec)] = self._find_out(spec, text)
        return found

    def _find_out(self, spec: ResourceClaimSpec, text: bytes) -> SpecFacts:
        errors = [str(error) for error in validate_claim_spec(spec)]
        selector_errors: list[str] = []
        if not errors:
            with suppress(BudgetExceededError):  # what it is refused for when it is decided
                found = compile_claim(ResourceClaim(spec=spec), self._index, Budget(STEP_BUDGET))
                selector_errors = [error.sentence() for error in found]
        return SpecFacts(spec, text, errors, selector_errors, class_names(spec))


def class_names(spec: ResourceClaimSpec) -> list[str]:
    """The DeviceClasses that a claim names, each once, in order."""
    names = []
    for request in spec.devices.requests:
        if request.exactly is not None:
            names.append(request.exactly.device_class_name)
        names.extend(sub.device_class_name for sub in request.first_available)
    return list(dict.fromkeys(names))
