"""What the index's counts say about a problem, without looking at devices.

Which values of the attributes that constraints compare enough devices have; and that of devices which are alike in all
that matters a solution takes no more than the requests ask for together.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from broker.allocation.budget import Budget
from broker.allocation.candidates import Candidates
from broker.allocation.columns import Cell, values_of_cell
from broker.allocation.constraints import Constraint, DistinctAttribute, MatchAttribute
from broker.allocation.index import IndexedDevice, IndexedPool
from broker.allocation.offer import Filters, Offer, ValueCounts
from broker.allocation.problem import Problem
from broker.allocation.requests import Alternative, Request
from broker.allocation.suffice import constraints_with_scope
from broker.allocation.tally import Attributes, ValueKey, keys_of
from schemas.resource.limits import ALLOCATION_RESULTS_MAX


def narrow_by_counts(problem: Problem, budget: Budget) -> Problem | None:
    """The problem with only those devices that are worth trying; None if it is plain that there is no solution.

    Raises: BudgetExceededError.
    """
    hopeful = with_hope(problem)
    if hopeful is None or not _results_fit(hopeful) or not _offers_suffice(hopeful):
        return None
    bound = list(constraints_with_scope(hopeful, budget))
    certain = {request.alternatives[0] for request in hopeful.requests if len(request.alternatives) == 1}
    if bound and not _distinct_values_suffice(hopeful, bound, certain):
        return None
    # A solution takes no more of devices that are alike in all that a constraint compares, so more need not be tried:
    # whoever takes a later one could take an earlier one that nobody takes.
    limit = sum([max([hopeful.candidates[each].count for each in one.alternatives]) for one in hopeful.requests])
    candidates = dict(hopeful.candidates)
    for alternative in [each for request in hopeful.requests for each in request.alternatives]:
        before = candidates[alternative]
        if alternative.takes_all or alternative.derived:
            continue  # all of them are needed; or only the devices themselves can tell
        if not bound:
            candidates[alternative] = before.only(before.offer.devices(limit=limit))
            continue
        test = _Test(alternative, before, bound, hopeful.candidates, certain)
        if test.is_hopeless:
            candidates[alternative] = before.only(())
        else:
            found = before.offer.devices(test.filters, test.attributes, limit, test.pools)
            candidates[alternative] = before.only(found)
    narrower = Problem(hopeful.requests, candidates, hopeful.constraints_by_claim, hopeful.view)
    tested = with_hope(narrower) if bound else narrower
    if not bound and not any(each.derived for each in certain):
        return tested  # the offers were counted already
    return tested if tested is not None and _devices_suffice(tested, limit) else None


def with_hope(problem: Problem) -> Problem | None:
    """The problem without the alternatives that lack devices; None if a request has no other."""
    candidates = problem.candidates
    requests = []
    for request in problem.requests:
        fitting = tuple(
            each
            for each in request.alternatives
            if candidates[each].count <= ALLOCATION_RESULTS_MAX and candidates[each].suffice
        )
        if not fitting:
            return None
        requests.append(request if len(fitting) == len(request.alternatives) else Request(request.claim_index, fitting))
    return Problem(requests, candidates, problem.constraints_by_claim, problem.view)


def _results_fit(problem: Problem) -> bool:
    least: Counter[int] = Counter()
    for request in problem.requests:
        least[request.claim_index] += min(problem.candidates[each].count for each in request.alternatives)
    return all(count <= ALLOCATION_RESULTS_MAX for count in least.values())


def _distinct_values_suffice(
    problem: Problem, bound: Sequence[tuple[Constraint, Sequence[Alternative]]], certain: set[Alternative]
) -> bool:
    for constraint, scope in bound:
        if isinstance(constraint, DistinctAttribute):
            concerned = [each for each in scope if each in certain]
            if any(constraint.attribute in each.derived for each in concerned):
                continue
            needed = sum(problem.candidates[each].count for each in concerned)
            values: set[ValueKey] = set()
            for offer in dict.fromkeys(problem.candidates[each].offer for each in concerned):
                for value in offer.counts((constraint.attribute,)):
                    if len(values) >= needed:
                        break
                    values.add(value)
            if len(values) < needed:
                return False
    return True


def _offers_suffice(problem: Problem) -> bool:
    """There are as many devices as those need together that every solution contains, and that take from each other."""
    alternatives = [request.alternatives[0] for request in problem.requests if len(request.alternatives) == 1]
    asking = [problem.candidates[each] for each in alternatives if not each.admin_access]
    needed = sum([each.count for each in asking])
    offers = dict.fromkeys([each.offer for each in asking])
    if len(asking) <= 1 or any(each.count >= needed for each in offers):
        return True
    found: dict[IndexedPool, int] = {}
    for each in offers:
        for pool, mask in each.masks().items():
            if mask & pool.shared:
                return True  # each can have a share
            found[pool] = found.get(pool, 0) | mask
    return sum(map(int.bit_count, found.values())) >= needed


def _devices_suffice(problem: Problem, limit: int) -> bool:
    """limit: so many devices of each alternative will do to tell."""
    alternatives = [request.alternatives[0] for request in problem.requests if len(request.alternatives) == 1]
    asking = [each for each in alternatives if not each.admin_access]  # which takes nothing from others
    if len(asking) <= 1:
        return True  # counted already
    devices: set[IndexedDevice] = set()
    needed = sum(problem.candidates[each].count for each in asking)
    for each in asking:
        first = list(islice(problem.candidates[each].devices, limit))
        if any(device.device.allow_multiple_allocations for device in first):
            return True  # each can have a share
        devices.update(first)
        if len(devices) >= needed:
            return True
    return False


class _Test:
    """Whether an alternative can use devices with given values, as far as counting tells.

    attributes: all that a constraint on the alternative compares, those to be matched first.
    """

    def __init__(
        self,
        alternative: Alternative,
        own: Candidates,
        bound: Sequence[tuple[Constraint, Sequence[Alternative]]],
        candidates: Mapping[Alternative, Candidates],
        certain: set[Alternative],
    ) -> None:
        mine = [(constraint, scope) for constraint, scope in bound if alternative in scope]
        matching = [each for each in mine if isinstance(each[0], MatchAttribute)]
        self._matched: Attributes = tuple(dict.fromkeys(constraint.attribute for constraint, _ in matching))
        self.attributes: Attributes = tuple(
            dict.fromkeys([*self._matched, *(constraint.attribute for constraint, _ in mine)])
        )
        self._own = own.offer.counts(self._matched) if self._matched else None
        self._needed = own.count
        # With each attribute to be matched, what all need together that every solution gives the same value.
        self._others: list[tuple[int, list[tuple[ValueCounts, int]]]] = []
        for constraint, scope in matching:
            known = [each for each in scope if constraint.attribute not in each.derived]
            others = [candidates[each] for each in known if each in certain and each is not alternative]
            if others:
                index = self._matched.index(constraint.attribute)
                self._others.append((index, _needs((constraint.attribute,), [own, *others])))
        self._known: dict[ValueKey, bool] = {}

    @property
    def is_hopeless(self) -> bool:
        """No value will do."""
        return self._own is not None and self._own.most < self._needed

    @property
    def pools(self) -> Sequence[IndexedPool] | None:
        """Where devices that pass the filters are, if the counts tell."""
        return self._own.pools_with(self._needed) if self._own is not None else None

    @property
    def filters(self) -> Filters:
        """What devices must have to be worth trying."""
        found: list[tuple[Attributes, Callable[[Cell], bool]]] = []
        if self._matched:
            found.append((self._matched, lambda cell: any(map(self._suffices, keys_of(cell, self._matched)))))
        found += [((each,), lambda cell: bool(values_of_cell(cell))) for each in self.attributes[len(self._matched) :]]
        return found

    def _suffices(self, key: ValueKey) -> bool:
        """Enough devices have the value (or the values, one of each attribute), for all that are to match."""
        assert self._own is not None
        if self._own[key] < self._needed:
            return False
        if not self._others:
            return True
        if key not in self._known:
            values: Sequence[Any] = key if len(self._matched) > 1 else (key,)
            self._known[key] = all(
                counts[values[index]] >= needed for index, needs in self._others for counts, needed in needs
            )
        return self._known[key]


def _needs(attributes: Attributes, candidates: Sequence[Candidates]) -> list[tuple[ValueCounts, int]]:
    """How many devices of one value each offer must have for all of the candidates together."""
    needed_by_offer: Counter[Offer] = Counter()
    for each in candidates:
        # Of shared devices each can have a share.
        before = needed_by_offer[each.offer]
        needed_by_offer[each.offer] = max(before, each.count) if each.offer.may_share else before + each.count
    return [
        (
            offer.counts(attributes),
            # Who may use fewer devices takes them away from those who may use more.
            needed if offer.may_share else sum(n for each, n in needed_by_offer.items() if each.is_within(offer)),
        )
        for offer, needed in needed_by_offer.items()
    ]
