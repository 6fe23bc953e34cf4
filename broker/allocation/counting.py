"""What the index's counts say about a problem, without looking at devices.

Which values of the attributes that constraints compare enough devices have; and that of devices which are alike in all
that matters a solution takes no more than the requests ask for together.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence, Set
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

_DEVICES_PER_STEP = 4  # when their values are counted
_CONSTRAINTS_PER_STEP = 2  # on one alternative; most claims have few, and many nodes to be tried on


def narrow_by_counts(problem: Problem, budget: Budget, thoroughly: bool = False) -> Problem | None:
    """The problem with only those devices that are worth trying; None if it is plain that there is no solution.

    thoroughly: count also what the index does not keep: of each value to match the distinct values.
    Raises: BudgetExceededError.
    """
    hopeful = with_hope(problem)
    if hopeful is None or not _results_fit(hopeful) or not _offers_suffice(hopeful):
        return None
    certain = {request.alternatives[0] for request in hopeful.requests if len(request.alternatives) == 1}
    choices = [request for request in hopeful.requests if len(request.alternatives) > 1]
    bound = [
        _Bound(constraint, scope, hopeful.candidates, certain, choices)
        for constraint, scope in constraints_with_scope(hopeful, budget)
    ]
    if bound and not _distinct_values_suffice(bound, hopeful.candidates):
        return None
    if thoroughly:
        joint = _JointCounts(budget)
        for each in bound:
            each.count_distinct(bound, joint)
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
        test = _Test(alternative, before, bound, budget)
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
    least: dict[int, int] = {}
    for request in problem.requests:
        fewest = min([problem.candidates[each].count for each in request.alternatives])
        least[request.claim_index] = least.get(request.claim_index, 0) + fewest
    return all(count <= ALLOCATION_RESULTS_MAX for count in least.values())


class _Bound:
    """A constraint with what it binds.

    certain: the alternatives in its scope that every solution contains, and whose values the index counts.
    """

    def __init__(
        self,
        constraint: Constraint,
        scope: Sequence[Alternative],
        candidates: Mapping[Alternative, Candidates],
        certain: Collection[Alternative],
        choices: Sequence[Request],
    ) -> None:
        self.attribute = constraint.attribute
        self.is_distinct = isinstance(constraint, DistinctAttribute)
        self.is_match = isinstance(constraint, MatchAttribute)
        self.scope = frozenset(scope)
        known = [each for each in scope if self.attribute not in each.derived]
        self.certain = [each for each in known if each in certain]
        # Requests with alternatives, whichever of which is chosen the constraint binds it.
        self._choices = [request for request in choices if self.scope.issuperset(request.alternatives)]
        self._candidates = candidates
        self._short: dict[ValueKey, list[Request]] = {}
        self._needs: list[tuple[ValueCounts, int]] | None = None
        # With the constraints that keep the same requests apart, how many values of theirs each of its values has, and
        # how many those requests need.
        self._distinct: list[tuple[Mapping[ValueKey, int], int]] = []

    def count_distinct(self, bound: Sequence["_Bound"], joint: "_JointCounts") -> None:
        """Count the values to be distinct for each value to match. Raises: BudgetExceededError."""
        for other in bound if self.is_match else ():
            both = [each for each in self.certain if other.is_distinct and each in other.certain]
            needed = sum(self._candidates[each].count for each in both)
            if needed > 1:
                offers = dict.fromkeys(self._candidates[each].offer for each in both)
                self._distinct.append((joint.of(self.attribute, other.attribute, tuple(offers)), needed))

    def has_distinct(self, value: ValueKey) -> bool:
        """As far as was counted, as many values as have to be distinct are found among the devices with the value."""
        return all(counts.get(value, 0) >= needed for counts, needed in self._distinct)

    def needs(self, alternative: Alternative) -> list[tuple[ValueCounts, int]]:
        """How many devices of one value each offer must have for the alternative and all that are certain."""
        if alternative not in self.certain:
            return self._needs_of([alternative, *self.certain])
        if self._needs is None:
            self._needs = self._needs_of(self.certain)
        return self._needs

    def _needs_of(self, alternatives: Sequence[Alternative]) -> list[tuple[ValueCounts, int]]:
        candidates = [self._candidates[each] for each in alternatives]
        return _needs((self.attribute,), candidates) if len(candidates) > 1 else []

    def short_of(self, value: ValueKey) -> Sequence[Request]:
        """The requests none of whose alternatives has enough devices of the value."""
        if value not in self._short:
            self._short[value] = [
                each for each in self._choices if not any(self._has(one, value) for one in each.alternatives)
            ]
        return self._short[value]

    def _has(self, alternative: Alternative, value: ValueKey) -> bool:
        candidates = self._candidates[alternative]
        if self.attribute in alternative.derived:
            return True  # as far as the index can tell
        return candidates.offer.counts((self.attribute,))[value] >= candidates.count


class _JointCounts:
    """How many values of one attribute the devices with each value of another have. Counted when asked for."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._pairs: dict[tuple[Offer, Attributes], Set[tuple[Any, ...]]] = {}
        self._counts: dict[tuple[str, str, tuple[Offer, ...]], Mapping[ValueKey, int]] = {}

    def of(self, attribute: str, other: str, offers: tuple[Offer, ...]) -> Mapping[ValueKey, int]:
        """For each value of the attribute, the values of the other that the offers have together with it.

        Raises: BudgetExceededError.
        """
        key = (attribute, other, offers)
        if key not in self._counts:
            together: set[tuple[Any, ...]] = set().union(*(self._pairs_of(each, (attribute, other)) for each in offers))
            self._counts[key] = Counter(first for first, _ in together)
        return self._counts[key]

    def _pairs_of(self, offer: Offer, attributes: Attributes) -> Set[tuple[Any, ...]]:
        if (offer, attributes) not in self._pairs:
            self._budget.spend(offer.count // _DEVICES_PER_STEP)
            self._pairs[offer, attributes] = {tuple(key) for key in offer.keys(attributes) if isinstance(key, tuple)}
        return self._pairs[offer, attributes]


def _distinct_values_suffice(bound: Sequence[_Bound], candidates: Mapping[Alternative, Candidates]) -> bool:
    for each in bound:
        if each.is_distinct:
            needed = sum(candidates[one].count for one in each.certain)
            values: set[ValueKey] = set()
            for offer in dict.fromkeys(candidates[one].offer for one in each.certain):
                for value in offer.counts((each.attribute,)):
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

    def __init__(self, alternative: Alternative, own: Candidates, bound: Sequence[_Bound], budget: Budget) -> None:
        mine = [each for each in bound if alternative in each.scope]
        budget.spend(len(mine) // _CONSTRAINTS_PER_STEP)
        matching = [each for each in mine if each.is_match]
        self._matched: Attributes = tuple(dict.fromkeys(each.attribute for each in matching))
        self.attributes: Attributes = tuple(dict.fromkeys([*self._matched, *(each.attribute for each in mine)]))
        self._alternative = alternative
        self._own = own.offer.counts(self._matched) if self._matched else None
        self._needed = own.count
        self._budget = budget
        # With each constraint to match, what all need together that every solution gives the same value.
        self._others = [(self._matched.index(each.attribute), each, each.needs(alternative)) for each in matching]
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
        if key not in self._known:
            values: Sequence[Any] = key if len(self._matched) > 1 else (key,)
            self._known[key] = all(self._suffices_for(each, needs, values[at]) for at, each, needs in self._others)
        return self._known[key]

    def _suffices_for(self, bound: _Bound, needs: Sequence[tuple[ValueCounts, int]], value: ValueKey) -> bool:
        self._budget.spend(len(needs))
        return (
            all(counts[value] >= needed for counts, needed in needs)
            and all(self._alternative in short.alternatives for short in bound.short_of(value))
            and bound.has_distinct(value)
        )


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
