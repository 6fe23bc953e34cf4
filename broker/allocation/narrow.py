"""Before the search: drop what no solution can contain.

Only counting, so it is cheap, and only what is hopeless, so the first solution stays the first. It is what ends a
hopeless claim (17 devices of one fabric where fabrics have 16) at once instead of after every combination of 16.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from broker.allocation.budget import Budget, BudgetExceededError
from broker.allocation.candidates import Candidates, View
from broker.allocation.constraints import Constraint, DistinctAttribute, MatchAttribute, Values, constraint_of
from broker.allocation.index import IndexedDevice
from broker.allocation.requests import Alternative, Request
from broker.allocation.supplies import Supplies
from schemas.resource import ResourceClaim
from schemas.resource.limits import ALLOCATION_RESULTS_MAX

# What one pass drops can make more hopeless. A claim can be built to need hundreds of passes; the search copes with
# what is left after a few.
_PASSES = 4
_DEVICES_PER_STEP = 4

Supply = Counter[tuple[str, object]]  # how many devices have each value


@dataclass(frozen=True, slots=True)
class Problem:
    """What the search is to solve: one choice of alternative, and then of devices, for each request in turn.

    constraints_by_claim: with no device chosen.
    supplies: what holders leave of counters and capacities.
    """

    requests: Sequence[Request]
    candidates: Mapping[Alternative, Candidates]
    constraints_by_claim: Sequence[Sequence[Constraint]]
    supplies: Supplies

    def constraints_on(self, alternative: Alternative) -> list[Constraint]:
        """Those with the alternative in their scope."""
        return [
            each for each in self.constraints_by_claim[alternative.claim_index] if each.applies_to(alternative.name)
        ]


def pose(
    requests: Sequence[Request],
    view: View,
    claims: Sequence[ResourceClaim],
    budget: Budget,
    with_constraints: bool = True,
) -> Problem:
    """The problem as the claims pose it, with the devices that a group of nodes sees.

    Raises: BudgetExceededError.
    """
    candidates = {each: view.candidates(each, budget) for request in requests for each in request.alternatives}
    constraints = [
        [constraint_of(each) for each in claim.spec.devices.constraints if with_constraints] for claim in claims
    ]
    return Problem(requests, candidates, constraints, view.supplies)


def narrow(problem: Problem, budget: Budget) -> Problem | None:
    """The problem without hopeless alternatives and devices; None if it is plain that there is no solution.

    budget: half of what is left of it may be spent. Then the problem is as narrow as it got: counting serves the
        search, and must not use up what that needs.
    """
    allowance = Budget(budget.left // 2)
    try:
        for _ in range(_PASSES):
            requests = [_without_hopeless(request, problem.candidates) for request in problem.requests]
            if not all(request.alternatives for request in requests):
                return None
            problem = replace(problem, requests=requests)
            narrower = _Pass(problem, allowance).run()
            if narrower is None or narrower is problem:
                return narrower
            problem = narrower
    except BudgetExceededError:
        pass
    finally:
        budget.spend(allowance.steps - allowance.left)
    return problem


def _without_hopeless(request: Request, candidates: Mapping[Alternative, Candidates]) -> Request:
    fitting = tuple(
        each
        for each in request.alternatives
        if len(candidates[each].devices) >= candidates[each].count and candidates[each].count <= ALLOCATION_RESULTS_MAX
    )
    return request if len(fitting) == len(request.alternatives) else Request(request.claim_index, fitting)


class _Pass:
    """One look at the whole problem. What is counted for one constraint serves the others too."""

    def __init__(self, problem: Problem, budget: Budget) -> None:
        self._problem = problem
        self._budget = budget
        self._certain = {
            request.alternatives[0]: None for request in problem.requests if len(request.alternatives) == 1
        }
        # By the identity of a list of devices and the attribute; with the list, so that no other gets its identity.
        self._supplies: dict[tuple[int, str], tuple[Sequence[IndexedDevice], Supply]] = {}

    def run(self) -> Problem | None:
        """The same problem if there is nothing to drop, None if it has no solution."""
        if not (self._devices_suffice() and self._results_fit() and self._distinct_values_suffice()):
            return None
        return self._without_hopeless_devices()

    def _devices_suffice(self) -> bool:
        """For the alternatives that every solution contains; without admin access, which takes nothing from others."""
        asking = [each for each in self._certain if not each.admin_access]
        if len(asking) <= 1:
            return True  # counted already
        return self._places(asking) >= sum(self._problem.candidates[each].count for each in asking)

    def _places(self, alternatives: Sequence[Alternative]) -> int:
        """How many devices the alternatives can have together; of a shared one each can have a share."""
        exclusive: set[IndexedDevice] = set()
        shares = 0
        for each in alternatives:
            devices = self._problem.candidates[each].devices
            self._look_at(devices)
            alone = [device for device in devices if not device.device.allow_multiple_allocations]
            exclusive.update(alone)
            shares += len(devices) - len(alone)
        return len(exclusive) + shares

    def _results_fit(self) -> bool:
        least: Counter[int] = Counter()
        for request in self._problem.requests:
            least[request.claim_index] += min(self._problem.candidates[each].count for each in request.alternatives)
        return all(count <= ALLOCATION_RESULTS_MAX for count in least.values())

    def _bound(self) -> Iterator[tuple[Constraint, list[Alternative]]]:
        """Each constraint with the alternatives in its scope."""
        problem = self._problem
        for claim_index, constraints in enumerate(problem.constraints_by_claim):
            of_claim = [
                each
                for request in problem.requests
                if request.claim_index == claim_index
                for each in request.alternatives
            ]
            for constraint in constraints:
                self._budget.spend(len(of_claim))
                yield constraint, [each for each in of_claim if constraint.applies_to(each.name)]

    def _distinct_values_suffice(self) -> bool:
        for constraint, bound in self._bound():
            if isinstance(constraint, DistinctAttribute):
                certain = [each for each in bound if each in self._certain]
                values: set[tuple[str, object]] = set()
                for each in certain:
                    values |= self._supply(constraint.attribute, each, self._problem.candidates[each].devices).keys()
                if len(values) < sum(self._problem.candidates[each].count for each in certain):
                    return False
        return True

    def _without_hopeless_devices(self) -> Problem:
        """Drop the devices that a constraint keeps out of every solution; the same problem if there is none.

        A device needs the attribute; for matchAttribute also a value that enough devices have, for its own alternative
        together with all those that every solution contains.
        """
        candidates = dict(self._problem.candidates)
        has_dropped = False
        for constraint, bound in self._bound():
            attribute = constraint.attribute
            matching = isinstance(constraint, MatchAttribute)
            in_any_case = [each for each in bound if each in self._certain]
            common: Values | None = None
            if matching and in_any_case:
                common = self._sufficient_values(attribute, in_any_case, candidates)
            for alternative in bound:
                before = candidates[alternative]
                if not matching:
                    sufficient = None
                elif common is not None and alternative in self._certain:
                    sufficient = common
                else:
                    sufficient = self._sufficient_values(attribute, [alternative, *in_any_case], candidates)
                self._look_at(before.devices)
                left = [
                    device
                    for device in before.devices
                    if (values := alternative.values_of(device, attribute)) is not None
                    and (sufficient is None or not sufficient.isdisjoint(values))
                ]
                if len(left) < len(before.devices):
                    candidates[alternative] = replace(before, devices=left)
                    has_dropped = True
        return replace(self._problem, candidates=candidates) if has_dropped else self._problem

    def _sufficient_values(
        self, attribute: str, alternatives: Sequence[Alternative], candidates: Mapping[Alternative, Candidates]
    ) -> Values:
        """The values that enough devices have, for each of the alternatives and for all of them together."""
        own = [
            (candidates[each].count, self._supply(attribute, each, candidates[each].devices)) for each in alternatives
        ]
        together = own[0][1]
        if len(own) > 1:
            # A device counts once, but a shared one for each alternative: each can have a share of it.
            counted: set[tuple[IndexedDevice, Values]] = set()
            together = Counter()
            for each in alternatives:
                self._look_at(candidates[each].devices)
                for device in candidates[each].devices:
                    values = each.values_of(device, attribute)
                    if values is None or (device, values) in counted:
                        continue
                    if not device.device.allow_multiple_allocations:
                        counted.add((device, values))
                    together.update(values)
        needed = sum(count for count, _ in own)
        return frozenset(
            value
            for value, supply in together.items()
            if supply >= needed and all(mine[value] >= count for count, mine in own)
        )

    def _look_at(self, devices: Sequence[IndexedDevice]) -> None:
        self._budget.spend(1 + len(devices) // _DEVICES_PER_STEP)

    def _supply(self, attribute: str, alternative: Alternative, devices: Sequence[IndexedDevice]) -> Supply:
        name = alternative.derived.get(attribute)
        key = (id(devices), f"={name}" if name is not None else attribute)
        if key not in self._supplies:
            self._look_at(devices)
            self._supplies[key] = devices, supply(attribute, alternative, devices)
        return self._supplies[key][1]


def supply(attribute: str, alternative: Alternative, devices: Sequence[IndexedDevice]) -> Supply:
    """How many of the devices have each value."""
    return Counter(value for device in devices for value in alternative.values_of(device, attribute) or ())
