"""Before the search: drop what no solution can contain.

Only counting, so it is cheap, and only what is hopeless, so the first solution stays the first. It is what ends a
hopeless claim (17 devices of one fabric where fabrics have 16) at once instead of after every combination of 16.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from broker.allocation.candidates import Candidates
from broker.allocation.constraints import Constraint, DistinctAttribute, MatchAttribute, Values, constraint_of
from broker.allocation.index import IndexedDevice
from broker.allocation.requests import Alternative, Request
from schemas.resource import ResourceClaim
from schemas.resource.limits import ALLOCATION_RESULTS_MAX

# What one pass drops can make more hopeless. A claim can be built to need hundreds of passes; the search copes with
# what is left after a few.
_PASSES = 4


@dataclass(frozen=True, slots=True)
class Problem:
    """What the search is to solve: one choice of alternative, and then of devices, for each request in turn.

    constraints_by_claim: with no device chosen.
    """

    requests: Sequence[Request]
    candidates: Mapping[Alternative, Candidates]
    constraints_by_claim: Sequence[Sequence[Constraint]]

    def constraints_on(self, alternative: Alternative) -> list[Constraint]:
        """Those with the alternative in their scope."""
        return [
            each for each in self.constraints_by_claim[alternative.claim_index] if each.applies_to(alternative.name)
        ]


def pose(
    requests: Sequence[Request],
    candidates: Mapping[Alternative, Candidates],
    claims: Sequence[ResourceClaim],
    with_constraints: bool = True,
) -> Problem:
    """The problem as the claims pose it."""
    constraints = [
        [constraint_of(each) for each in claim.spec.devices.constraints if with_constraints] for claim in claims
    ]
    return Problem(requests, candidates, constraints)


def narrow(problem: Problem) -> Problem | None:
    """The problem without hopeless alternatives and devices; None if it is plain that there is no solution."""
    for _ in range(_PASSES):
        requests = [_without_hopeless(request, problem.candidates) for request in problem.requests]
        if not all(request.alternatives for request in requests):
            return None
        problem = replace(problem, requests=requests)
        if not (_devices_suffice(problem) and _results_fit(problem) and _distinct_values_suffice(problem)):
            return None
        narrower = _without_hopeless_devices(problem)
        if narrower is problem:
            break
        problem = narrower
    return problem


def _without_hopeless(request: Request, candidates: Mapping[Alternative, Candidates]) -> Request:
    fitting = tuple(
        each
        for each in request.alternatives
        if len(candidates[each].devices) >= candidates[each].count and candidates[each].count <= ALLOCATION_RESULTS_MAX
    )
    return request if len(fitting) == len(request.alternatives) else Request(request.claim_index, fitting)


def _certain(problem: Problem) -> list[Alternative]:
    """The alternatives that every solution contains: those of requests with only one left."""
    return [request.alternatives[0] for request in problem.requests if len(request.alternatives) == 1]


def _devices_suffice(problem: Problem) -> bool:
    certain = _certain(problem)
    if len(certain) == 1:
        return True  # counted already
    devices = {device for each in certain for device in problem.candidates[each].devices}
    return len(devices) >= sum(problem.candidates[each].count for each in certain)


def _results_fit(problem: Problem) -> bool:
    least: Counter[int] = Counter()
    for request in problem.requests:
        least[request.claim_index] += min(problem.candidates[each].count for each in request.alternatives)
    return all(count <= ALLOCATION_RESULTS_MAX for count in least.values())


def _bound(problem: Problem) -> Iterator[tuple[Constraint, list[Alternative]]]:
    """Each constraint with the alternatives in its scope."""
    for claim_index, constraints in enumerate(problem.constraints_by_claim):
        of_claim = [
            each for request in problem.requests if request.claim_index == claim_index for each in request.alternatives
        ]
        for constraint in constraints:
            yield constraint, [each for each in of_claim if constraint.applies_to(each.name)]


def _distinct_values_suffice(problem: Problem) -> bool:
    certain = set(_certain(problem))
    for constraint, bound in _bound(problem):
        if isinstance(constraint, DistinctAttribute):
            candidates = [problem.candidates[each] for each in bound if each in certain]
            devices = {device for each in candidates for device in each.devices}
            values = {value for device in devices for value in device.values_of(constraint.attribute) or ()}
            if len(values) < sum(each.count for each in candidates):
                return False
    return True


def _without_hopeless_devices(problem: Problem) -> Problem:
    """Drop the devices that a constraint keeps out of every solution; the same problem if there is none.

    A device needs the attribute; for matchAttribute also a value that enough devices have, for its own alternative
    together with all those that every solution contains.
    """
    certain = set(_certain(problem))
    candidates = dict(problem.candidates)
    has_dropped = False
    for constraint, bound in _bound(problem):
        attribute = constraint.attribute
        matching = isinstance(constraint, MatchAttribute)
        in_any_case = [candidates[each] for each in bound if each in certain]
        common = _sufficient_values(attribute, in_any_case) if matching and in_any_case else None
        for alternative in bound:
            before = candidates[alternative]
            if not matching:
                left = [each for each in before.devices if each.values_of(attribute) is not None]
            else:
                values = common
                if values is None or alternative not in certain:
                    values = _sufficient_values(attribute, [before, *in_any_case])
                left = [each for each in before.devices if not values.isdisjoint(each.values_of(attribute) or ())]
            if len(left) < len(before.devices):
                candidates[alternative] = replace(before, devices=left)
                has_dropped = True
    return replace(problem, candidates=candidates) if has_dropped else problem


def _sufficient_values(attribute: str, candidates: Sequence[Candidates]) -> Values:
    """The values that enough devices have, for each of the alternatives and for all of them together."""
    supplies = [supply(attribute, each.devices) for each in candidates]
    together = (
        supplies[0] if len(supplies) == 1 else supply(attribute, {d for each in candidates for d in each.devices})
    )
    needed = sum(each.count for each in candidates)
    return frozenset(
        value
        for value, supply in together.items()
        if supply >= needed and all(own[value] >= each.count for own, each in zip(supplies, candidates, strict=True))
    )


def supply(attribute: str, devices: Iterable[IndexedDevice]) -> Counter[tuple[str, object]]:
    """How many of the devices have each value."""
    return Counter(value for device in devices for value in device.values_of(attribute) or ())
