"""The search: which devices for which request, the first solution in kube-scheduler's order.

Claims in the order given, in each its requests, for each its alternatives and then one device after the other; the
devices of one request in the order of the candidates, never the same set twice. What failed is given back and the
next is tried, until everything fits or nothing is left. So it finds a solution whenever there is one, and it is the
one that upstream's allocator finds, if that finds any.

Three things keep it from trying the same over and over. Devices that are alike (see `kinds`) are tried once at each
point: else n devices that are one too few cost n! tries. Of two requests in a row that ask for the same, the second
takes no device before the first one's: the other way round is the same solution later. And where a request begins with
the same devices taken as before, by whichever requests, and the same left of constraints, it fails as it did before.
Besides, it takes no device that a later request cannot do without (see `scarce`), and does not go on where one has lost
such a device to others that draw from the same counters.
"""

from collections.abc import Hashable, Iterator
from itertools import count
from typing import NamedTuple

from broker.allocation.budget import Budget
from broker.allocation.constraints import Constraint
from broker.allocation.index import FailedSelector, IndexedDevice
from broker.allocation.kinds import Kinds
from broker.allocation.problem import Problem
from broker.allocation.requests import Alternative
from broker.allocation.scarce import Scarcity
from broker.allocation.taken import Taken
from schemas.resource.limits import ALLOCATION_RESULTS_MAX

_STEPS_FOR_SUPPLIES = 3  # where counters or capacities have to be looked at, beside the device itself


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
        self._constraints_after = self._find_constraints_after()
        self._repeats = [self._does_repeat(index) for index in range(len(problem.requests))]
        self._needing_all = self._find_needing_all()
        self._scarcity = Scarcity(problem, budget)
        self._first_positions = [0] * len(problem.requests)  # of each request's first device among its candidates

    def run(self) -> list[Chosen] | None:
        """The first solution, in the order of the requests, or None if there is none.

        Raises: SelectorFailedError, BudgetExceededError.
        """
        if not self._requests:
            return []
        if not self._scarcity.suffices():
            return None
        choices: list[tuple[Iterator[_Point], Hashable]] = [(self._choose(_Point(0)), None)]
        dead: set[Hashable] = set()  # states in which a request began, and in which nothing was found
        while choices:
            choice, state = choices[-1]
            after = next(choice, None)
            if after is None:
                choices.pop()
                if state is not None:
                    dead.add(state)
            elif after.request == len(self._requests):
                return [Chosen(alternative, device) for alternative, device in self._taken.chosen()]
            else:
                state = self._state(after.request) if after.alternative is None else None
                if state is None or (state not in dead and self._spares_what_is_needed(after.request)):
                    choices.append((self._choose(after), state))
        return None

    def _spares_what_is_needed(self, request: int) -> bool:
        """Whoever needs all of its candidates, from this request on, can still have each of them."""
        for alternative in self._needing_all[request]:
            for device in self._candidates[alternative].devices:
                self._budget.spend(1 if device.is_plain else _STEPS_FOR_SUPPLIES)
                if not self._taken.can_take(alternative, device):
                    return False
        return True

    def _state(self, request: int) -> Hashable:
        """All that the rest of the search depends on where this request begins."""
        self._budget.spend(2)
        claim_index = self._requests[request].claim_index
        constraints = tuple(each.state for each in self._constraints_after[request])
        return request, self._results_by_claim[claim_index], self._taken.state(), constraints

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
            if fits_result and candidates.suffice:
                yield _Point(point.request, alternative)

    def _choose_all(self, point: _Point, alternative: Alternative) -> Iterator[_Point]:
        candidates = self._candidates[alternative]
        device = next(iter(candidates.failures), None)
        if device is not None:
            raise SelectorFailedError(alternative, device, candidates.failures[device])
        taken = 0
        for device in candidates.devices:
            if not self._choose_one(point.request, alternative, device):
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
        start = point.start
        if point.taken == 0 and self._repeats[point.request]:
            start = self._first_positions[point.request - 1]
        # Devices on which a selector failed are gone to even where too few are left behind them.
        behind = 1 if failures else missing
        for position in count(start):
            if not devices.has(position + behind):
                return
            device = devices[position]
            if failures and device in failures:
                if self._taken.is_exclusively(device):
                    continue  # as upstream, which does not ask a selector about a device that is taken
                raise SelectorFailedError(alternative, device, failures[device])
            if failed_kinds:
                self._budget.spend(1 if device.is_plain else _STEPS_FOR_SUPPLIES)
                if self._kind(device) in failed_kinds:
                    continue
            if not self._choose_one(point.request, alternative, device):
                continue
            if point.taken == 0:
                self._first_positions[point.request] = position
            if missing == 1:
                yield _Point(point.request + 1)
            else:
                yield _Point(point.request, alternative, point.taken + 1, position + 1)
            self._give_back()
            failed_kinds.add(self._kind(device))

    def _choose_one(self, request: int, alternative: Alternative, device: IndexedDevice) -> bool:
        self._budget.spend(1 if device.is_plain else _STEPS_FOR_SUPPLIES)
        is_scarce = self._is_scarce(device)
        if is_scarce and not self._scarcity.can_spare(device, request):
            return False
        if not self._taken.take(alternative, device):
            return False
        if is_scarce:
            self._scarcity.take(device)
        constraints = self._constraints[alternative]
        if constraints:
            self._budget.spend(len(constraints))
        for index, constraint in enumerate(constraints):
            if not constraint.add(alternative.values_of(device, constraint.attribute)):
                for added in constraints[:index]:
                    added.remove()
                self._taken.give_back()
                if is_scarce:
                    self._scarcity.give_back(device)
                return False
        self._results_by_claim[alternative.claim_index] += 1
        return True

    def _is_scarce(self, device: IndexedDevice) -> bool:
        """Later requests may need the device, and nobody has it."""
        return device in self._scarcity.sets_of and not self._taken.is_exclusively(device)

    def _give_back(self) -> None:
        alternative, device = self._taken.give_back()
        if self._is_scarce(device):
            self._scarcity.give_back(device)
        self._results_by_claim[alternative.claim_index] -= 1
        for constraint in self._constraints[alternative]:
            constraint.remove()

    def _kind(self, device: IndexedDevice) -> Hashable:
        if self._kinds is None:  # most searches never fail anywhere
            self._kinds = Kinds(self._problem, self._taken, self._budget)
        return self._kinds.of(device)

    def _does_repeat(self, index: int) -> bool:
        """The request asks for the same as the one before it."""
        if index == 0 or self._requests[index].claim_index != self._requests[index - 1].claim_index:
            return False
        own, before = self._requests[index].alternatives, self._requests[index - 1].alternatives
        if len(own) > 1 or len(before) > 1 or own[0].takes_all or before[0].takes_all:
            return False
        mine, theirs = own[0], before[0]
        if (mine.asks, mine.count, mine.derived) != (theirs.asks, theirs.count, theirs.derived):
            return False
        # Then they have the same candidates too, however those were narrowed.
        return self._constraints[mine] == self._constraints[theirs]

    def _find_constraints_after(self) -> list[list[Constraint]]:
        """For each request the constraints that it or a later one of its claim, or of later claims, is bound by."""
        found: list[list[Constraint]] = []
        after: dict[Constraint, None] = {}
        for request in reversed(self._requests):
            after = {**{each: None for one in request.alternatives for each in self._constraints[one]}, **after}
            found.append(list(after))
        return found[::-1]

    def _find_needing_all(self) -> list[list[Alternative]]:
        """For each request, which alternatives that are certain from it on need all of their candidates."""
        found: list[list[Alternative]] = []
        needing: list[Alternative] = []
        if len(self._requests) == 1:
            return [needing]  # nobody takes anything before it
        for request in reversed(self._requests):
            only = request.alternatives[0]
            candidates = self._candidates[only]
            if len(request.alternatives) == 1 and not candidates.devices.has(candidates.count + 1):
                needing = [only, *needing]
            found.append(needing)
        return found[::-1]

    def _count_least(self) -> list[int]:
        least = [0] * len(self._requests)
        for index in reversed(range(len(self._requests) - 1)):
            after = self._requests[index + 1]
            if after.claim_index == self._requests[index].claim_index:
                least[index] = least[index + 1] + min(self._candidates[each].count for each in after.alternatives)
        return least
