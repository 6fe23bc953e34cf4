"""The search: which devices for which request, the first solution in kube-scheduler's order.

Claims in the order given, in each its requests, for each its alternatives and then one device after the other; the
devices of one request in the order of the candidates, never the same set twice. What failed is given back and the
next is tried, until everything fits or nothing is left. So it finds a solution whenever there is one, and it is the
one that upstream's allocator finds, if that finds any.

Two free devices are alike when they are candidates of the same alternatives and agree on every attribute that a
constraint names: then each can stand for the other in any solution. After one has failed at some point of the
search, those like it are passed over there. Without that, n devices that are one too few cost n! tries.
"""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from broker.allocation.index import FailedSelector, IndexedDevice
from broker.allocation.narrow import Problem
from broker.allocation.requests import Alternative
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


class BudgetExceededError(Exception):
    """The search took as many steps as it may."""


class Budget:
    """Steps, not seconds: so that a replay ends where the first run did. One step is one look at one candidate."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._left = steps

    def spend(self) -> None:
        """Take one step.

        Raises: BudgetExceededError.
        """
        self._left -= 1
        if self._left < 0:
            raise BudgetExceededError


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
        self._requests = problem.requests
        self._candidates = problem.candidates
        self._constraints = {
            each: problem.constraints_on(each) for request in problem.requests for each in request.alternatives
        }
        self._attributes = tuple({c.attribute: None for each in self._constraints.values() for c in each})
        self._budget = budget
        self._chosen: list[Chosen] = []
        self._taken: set[IndexedDevice] = set()  # the devices of _chosen
        self._results_by_claim = [0] * len(problem.constraints_by_claim)  # how many of _chosen each claim has
        # After the requests up to an index: how many devices the rest of the same claim needs at least.
        self._least_after = self._count_least()
        self._kinds: dict[IndexedDevice, int] = {}
        self._kind_numbers: dict[object, int] = {}

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
                return self._chosen
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
            candidates = self._candidates[alternative]
            results = self._results_by_claim[alternative.claim_index] + candidates.count
            fits_result = results + self._least_after[point.request] <= ALLOCATION_RESULTS_MAX
            if fits_result and candidates.suffice:
                yield _Point(point.request, alternative)

    def _choose_all(self, point: _Point, alternative: Alternative) -> Iterator[_Point]:
        candidates = self._candidates[alternative]
        device = next(iter(candidates.failures), None)
        if device is not None:
            raise SelectorFailedError(alternative, device, candidates.failures[device])
        before = len(self._chosen)
        for device in candidates.devices:
            self._budget.spend()
            if device in self._taken or not self._choose_one(alternative, device):
                break
        else:
            yield _Point(point.request + 1)
        while len(self._chosen) > before:
            self._give_back()

    def _choose_device(self, point: _Point, alternative: Alternative) -> Iterator[_Point]:
        candidates = self._candidates[alternative]
        devices, failures = candidates.devices, candidates.failures
        missing = candidates.count - point.taken
        failed_kinds: set[int] = set()
        # Devices on which a selector failed are gone to even where too few are left behind them.
        behind = 1 if failures else missing
        for position in count(point.start):
            if not devices.has(position + behind):
                return
            self._budget.spend()
            device = devices[position]
            if device in self._taken or (failed_kinds and self._kind(device) in failed_kinds):
                continue
            if failures and device in failures:
                raise SelectorFailedError(alternative, device, failures[device])
            if not self._choose_one(alternative, device):
                continue
            if missing == 1:
                yield _Point(point.request + 1)
            else:
                yield _Point(point.request, alternative, point.taken + 1, position + 1)
            self._give_back()
            failed_kinds.add(self._kind(device))

    def _choose_one(self, alternative: Alternative, device: IndexedDevice) -> bool:
        constraints = self._constraints[alternative]
        for index, constraint in enumerate(constraints):
            if not constraint.add(device):
                for added in constraints[:index]:
                    added.remove()
                return False
        self._chosen.append(Chosen(alternative, device))
        self._taken.add(device)
        self._results_by_claim[alternative.claim_index] += 1
        return True

    def _give_back(self) -> None:
        alternative, device = self._chosen.pop()
        self._taken.remove(device)
        self._results_by_claim[alternative.claim_index] -= 1
        for constraint in self._constraints[alternative]:
            constraint.remove()

    def _kind(self, device: IndexedDevice) -> int:
        """Equal for devices that are alike. Worked out when first something failed."""
        kind = self._kinds.get(device)
        if kind is None:
            likeness = (
                tuple(self._candidates[alternative].includes(device) for alternative in self._constraints),
                tuple(map(device.values_of, self._attributes)),
            )
            kind = self._kinds[device] = self._kind_numbers.setdefault(likeness, len(self._kind_numbers))
        return kind

    def _count_least(self) -> list[int]:
        least = [0] * len(self._requests)
        for index in reversed(range(len(self._requests) - 1)):
            after = self._requests[index + 1]
            if after.claim_index == self._requests[index].claim_index:
                least[index] = least[index + 1] + min(self._candidates[each].count for each in after.alternatives)
        return least
