"""Before the search: drop what no solution can contain.

Only counting, so it is cheap, and only what is hopeless, so the first solution stays the first. It is what ends a
hopeless claim (17 devices of one fabric where fabrics have 16) at once instead of after every combination of 16.

First the counts that the index keeps are asked (`counting`), which does not depend on how many devices there are. Where
few devices are left, they are then looked at one by one, for what only all requests and constraints together show.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from broker.allocation.budget import Budget, BudgetExceededError
from broker.allocation.candidates import Candidates
from broker.allocation.constraints import MatchAttribute, Values
from broker.allocation.counting import narrow_by_counts, with_hope
from broker.allocation.index import IndexedDevice
from broker.allocation.poor_values import without_poor_values
from broker.allocation.problem import Problem
from broker.allocation.requests import Alternative
from broker.allocation.suffice import Sufficiency, constraints_with_scope, look_at

# What one pass drops can make more hopeless. A claim can be built to need hundreds of passes; the search copes with
# what is left after a few.
_PASSES = 4
_FEW_DEVICES = 128  # of one alternative, to be looked at one by one
_STEPS_FOR_POOR_VALUES = 3  # for each device, about


def narrow(problem: Problem, budget: Budget, thoroughly: bool = False) -> Problem | None:
    """The problem without hopeless alternatives and devices; None if it is plain that there is no solution.

    budget: half of what is left of it may be spent. Then the problem is as narrow as it got: counting serves the
        search, and must not use up what that needs.
    thoroughly: count also what takes long, and what a search seldom needs.
    """
    counted = narrow_by_counts(problem, budget, thoroughly)
    if counted is None:
        return None
    problem = counted
    allowance = Budget(budget.left // 2)
    try:
        if thoroughly:
            hopeful = with_hope(without_poor_values(problem, allowance, allowance.steps // _STEPS_FOR_POOR_VALUES))
            if hopeful is None:
                return None
            problem = hopeful
        if _is_plain(problem):
            return problem
        for _ in range(_PASSES):
            narrower = _Pass(problem, allowance).run()
            if narrower is None or narrower is problem:
                return narrower
            hopeful = with_hope(narrower)
            if hopeful is None:
                return None
            problem = hopeful
    except BudgetExceededError:
        pass
    finally:
        budget.spend(allowance.steps - allowance.left)
    return problem


def _is_plain(problem: Problem) -> bool:
    """Looking at the devices would not show more than the counts did, or it would take too long."""
    alternatives = [each for request in problem.requests for each in request.alternatives]
    if any(each.derived for each in alternatives):
        return False  # the index does not count those, and every device was looked at already
    if len(alternatives) == 1 and sum(map(len, problem.constraints_by_claim)) < 2:
        return True
    return any(problem.candidates[each].devices.has(_FEW_DEVICES + 1) for each in alternatives)


class _Pass:
    """One look at the whole problem."""

    def __init__(self, problem: Problem, budget: Budget) -> None:
        self._problem = problem
        self._budget = budget
        self._sufficiency = Sufficiency(problem, budget)

    def run(self) -> Problem | None:
        """The same problem if there is nothing to drop, None if it has no solution."""
        return self._without_hopeless_devices() if self._sufficiency.is_given() else None

    def _without_hopeless_devices(self) -> Problem:
        """Drop the devices that a constraint keeps out of every solution; the same problem if there is none.

        A device needs the attribute; for matchAttribute also a value that enough devices have, for its own alternative
        together with all those that every solution contains.
        """
        candidates = dict(self._problem.candidates)
        has_dropped = False
        for constraint, bound in constraints_with_scope(self._problem, self._budget):
            attribute = constraint.attribute
            matching = isinstance(constraint, MatchAttribute)
            in_any_case = [each for each in bound if each in self._sufficiency.certain]
            common: Values | None = None
            if matching and in_any_case:
                common = self._sufficient_values(attribute, in_any_case, candidates)
            for alternative in bound:
                before = candidates[alternative]
                if not matching:
                    sufficient = None
                elif common is not None and alternative in self._sufficiency.certain:
                    sufficient = common
                else:
                    sufficient = self._sufficient_values(attribute, [alternative, *in_any_case], candidates)
                look_at(before.devices, self._budget)
                left = [
                    device
                    for device in before.devices
                    if (values := alternative.values_of(device, attribute)) is not None
                    and (sufficient is None or not sufficient.isdisjoint(values))
                ]
                if len(left) < len(before.devices):
                    candidates[alternative] = before.only(left)
                    has_dropped = True
        return replace(self._problem, candidates=candidates) if has_dropped else self._problem

    def _sufficient_values(
        self, attribute: str, alternatives: Sequence[Alternative], candidates: Mapping[Alternative, Candidates]
    ) -> Values:
        """The values that enough devices have, for each of the alternatives and for all of them together."""
        own = [
            (candidates[each].count, self._sufficiency.supply(attribute, each, candidates[each].devices))
            for each in alternatives
        ]
        together = own[0][1]
        if len(own) > 1:
            # A device counts once, but a shared one for each alternative: each can have a share of it.
            counted: set[tuple[IndexedDevice, Values]] = set()
            together = Counter()
            for each in alternatives:
                look_at(candidates[each].devices, self._budget)
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
            for value, count_of_all in together.items()
            if count_of_all >= needed and all(mine[value] >= count for count, mine in own)
        )
