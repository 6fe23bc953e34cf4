"""The search: which devices for which request, the first solution in kube-scheduler's order.

Claims in the order given, in each its requests, for each its alternatives and then one device after the other; the
devices of one request in the order of the candidates, never the same set twice. What failed is given back and the
next is tried, until everything fits or nothing is left. So it finds a solution whenever there is one, and it is the
one that upstream's allocator finds, if that finds any.

Devices that are alike (see `kinds`) are tried once at each point. Without that, n devices that are one too few cost n!
tries.
"""

from collections.abc import Hashable, Iterator
from typing import NamedTuple

from broker.allocation.budget import Budget
from broker.allocation.index import FailedSelector, IndexedDevice
from broker.allocation.kinds import Kinds
from broker.allocation.narrow import Problem
from broker.allocation.requests import Alternative
from broker.allocation.taken import Taken
from schemas.resource.limits import ALLOCATION_RESULTS_MAX


class Chosen(NamedTuple):
    """One device for one request."""

    alternative: Alternative
    device: IndexedDevice


class SelectorFailedError(Exception):
    """The search came to a device on which a selector failed; as upstream, that ends it."""

    def __init__(self, alternative: Alternative, device: IndexedDevice, failure: FailedSelector) -> None:
        super().__init__(failure.failure.message)
        self.alternative = alternative
        self.device = device
        self.failure = failure


class _Point(NamedTuple):
    """Where a choice is to be made.

    alternative: None if it is the alternative that is to be chosen.
    taken: how many of its devices are chosen.
    start: the first candidate to look at.
    """

    request: int
    alternative: Alternative | None = None
    taken: int = 0
    start: int = 0


class Search:
    """One search. Its state is the choices made so far, each of which can be given back."""

    def __init__(self, problem: Problem, budget: Budget) -> None:
        self._problem = problem
        self._requests = problem.requests
        self._candidates = problem.candidates
        self._constraints = {
            each: problem.constraints_on(each) for request in problem.requests for each in request.alternatives
        }
        self._budget = budget
        self._taken = Taken(problem.supplies)
        self._results_by_claim = [0] * len(problem.constraints_by_claim)  # how many devices each claim has so far
        # After the requests up to an index: how many devices the rest of the same claim needs at least.
        self._least_after = self._count_least()
        self._kinds: Kinds | None = None

    def run(self) -> list[Chosen] | None:
        """The first solution, in the order of the requests, or None if there is none.

        Raises: SelectorFailedError, BudgetExceededError.
        """
        if not self._requests:
            return []
        choices = [self._choose(_Point(0))]
        while choices:
            after = next(choices[-1], None)
            if after is None:
                choices.pop()
            elif after.request == len(self._requests):
                return [Chosen(alternative, device) for alternative, device in self._taken.chosen()]
            else:
                choices.append(self._choose(after))
        return None

    def _choose(self, point: _Point) -> Iterator[_Point]:
        """Make each choice that there is at a point, yield where to go on, and undo it when asked for the next."""
        if point.alternative is None:
            return self._choose_alternative(point)
        if point.alternative.takes_all:
            return self._choose_all(point, point.alternative)
        return self._choose_device(point, point.alternative)

    def _choose_alternative(self, point: _Point) -> Iterator[_Point]:
        for alternative in self._requests[point.request].alternatives:
            self._budget.spend()
            candidates = self._candidates[alternative]
            results = self._results_by_claim[alternative.claim_index] + candidates.count
            fits_result = results + self._least_after[point.request] <= ALLOCATION_RESULTS_MAX
            if fits_result and len(candidates.devices) >= candidates.count:
                yield _Point(point.request, alternative)

    def _choose_all(self, point: _Point, alternative: Alternative) -> Iterator[_Point]:
        candidates = self._candidates[alternative]
        if candidates.failures:
            device = next(iter(candidates.failures))
            raise SelectorFailedError(alternative, device, candidates.failures[device])
        taken = 0
        for device in candidates.devices:
            if not self._choose_one(alternative, device):
                break
            taken += 1
        else:
            yield _Point(point.request + 1)
        for _ in range(taken):
            self._give_back()

    def _choose_device(self, point: _Point, alternative: Alternative) -> Iterator[_Point]:
        candidates = self._candidates[alternative]
        devices, failures = candidates.devices, candidates.failures
        missing = candidates.count - point.taken
        failed_kinds: set[Hashable] = set()
        for position in range(point.start, len(devices) - missing + 1):
            device = devices[position]
            if failures and device in failures:
                raise SelectorFailedError(alternative, device, failures[device])
            if failed_kinds:
                self._budget.spend()
                if self._kind(device) in failed_kinds:
                    continue
            if not self._choose_one(alternative, device):
                continue
            if missing == 1:
                yield _Point(point.request + 1)
            else:
                yield _Point(point.request, alternative, point.taken + 1, position + 1)
            self._give_back()
            failed_kinds.add(self._kind(device))

    def _choose_one(self, alternative: Alternative, device: IndexedDevice) -> bool:
        self._budget.spend()
        if not self._taken.take(alternative, device):
            return False
        constraints = self._constraints[alternative]
        if constraints:
            self._budget.spend(len(constraints))
        for index, constraint in enumerate(constraints):
            if not constraint.add(alternative.values_of(device, constraint.attribute)):
                for added in constraints[:index]:
                    added.remove()
                self._taken.give_back()
                return False
        self._results_by_claim[alternative.claim_index] += 1
        return True

    def _give_back(self) -> None:
        alternative, _ = self._taken.give_back()
        self._results_by_claim[alternative.claim_index] -= 1
        for constraint in self._constraints[alternative]:
            constraint.remove()

    def _kind(self, device: IndexedDevice) -> Hashable:
        if self._kinds is None:  # most searches never fail anywhere
            self._kinds = Kinds(self._problem, self._taken, self._budget)
        return self._kinds.of(device)

    def _count_least(self) -> list[int]:
        least = [0] * len(self._requests)
        for index in reversed(range(len(self._requests) - 1)):
            after = self._requests[index + 1]
            if after.claim_index == self._requests[index].claim_index:
                least[index] = least[index + 1] + min(self._candidates[each].count for each in after.alternatives)
        return least
