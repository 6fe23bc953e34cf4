"""Before the search: drop what no solution can contain.

Only counting, so it is cheap, and only what is hopeless, so the first solution stays the first. It is what ends a
hopeless claim (17 devices of one fabric where fabrics have 16) at once instead of after every combination of 16.

First the counts that the index keeps are asked, which does not depend on how many devices there are. Where several
constraints meet and few devices are left, those are then looked at one by one, for what only both together show.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product
from typing import Any

from broker.allocation.candidates import Candidates, IsGood, Offer
from broker.allocation.columns import Cell, values_of_cell
from broker.allocation.constraints import Constraint, DistinctAttribute, MatchAttribute, Values, constraint_of
from broker.allocation.index import IndexedDevice
from broker.allocation.requests import Alternative, Request
from broker.allocation.supply import Attributes, ValueKey
from schemas.resource import ResourceClaim
from schemas.resource.limits import ALLOCATION_RESULTS_MAX

# What one pass drops can make more hopeless. A claim can be built to need hundreds of passes; the search copes with
# what is left after a few.
_PASSES = 4
_FEW_DEVICES = 512  # of one alternative, to be looked at one by one


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
    by_counts = _narrow_by_counts(problem)
    if by_counts is None or sum(map(len, problem.constraints_by_claim)) < 2 or not _are_few(by_counts):
        return by_counts
    return _narrow_by_devices(by_counts)


def _are_few(problem: Problem) -> bool:
    return not any(
        problem.candidates[each].devices.has(_FEW_DEVICES + 1)
        for request in problem.requests
        for each in request.alternatives
    )


# --- by what the index counts


def _narrow_by_counts(problem: Problem) -> Problem | None:
    narrower = _with_hope(problem)
    if narrower is None or not (_results_fit(narrower) and _distinct_values_suffice(narrower)):
        return None
    certain = set(_certain(narrower))
    # A solution takes no more of devices that are alike in all that a constraint compares, so more need not be tried:
    # whoever takes a later one could take an earlier one that nobody takes.
    limit = sum(max(problem.candidates[each].count for each in request.alternatives) for request in narrower.requests)
    candidates = dict(narrower.candidates)
    bound = list(_bound(narrower))
    for request in narrower.requests:
        for alternative in request.alternatives:
            if not alternative.takes_all:
                test = _Test(alternative, candidates[alternative], bound, problem.candidates, certain)
                if test.is_hopeless:
                    candidates[alternative] = candidates[alternative].only(iter(()))
                else:
                    found = candidates[alternative].offer.devices(test.attributes, test.is_good, limit)
                    candidates[alternative] = candidates[alternative].only(found)
    narrower = _with_hope(replace(narrower, candidates=candidates))
    return narrower if narrower is not None and _devices_suffice(narrower, limit) else None


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
        # With each attribute to be matched, those that every solution chooses devices with the same value for.
        self._others = [
            (self._matched.index(constraint.attribute), [candidates[each] for each in scope if each in certain])
            for constraint, scope in matching
        ]
        if alternative not in certain:
            self._others = [(index, [own, *others]) for index, others in self._others]
        self._is_simple = all(others == [own] for _, others in self._others)
        self._known: dict[ValueKey, bool] = {}
        self.is_good: IsGood | None = self._is_good if self.attributes else None

    @property
    def is_hopeless(self) -> bool:
        """No value will do."""
        return self._own is not None and self._own.most < self._needed

    def _is_good(self, cell: Cell) -> bool:
        if len(self.attributes) == 1:
            values = values_of_cell(cell)
            return bool(values) if self._own is None else any(map(self._suffices, values))
        assert isinstance(cell, tuple)
        by_attribute = [values_of_cell(each) for each in cell]
        if not all(by_attribute):
            return False
        if len(self._matched) == 1:
            return any(map(self._suffices, by_attribute[0]))
        return self._own is None or any(map(self._suffices, product(*by_attribute[: len(self._matched)])))

    def _suffices(self, key: ValueKey) -> bool:
        """Enough devices have the value (or the values, one of each attribute), for all that are to match."""
        assert self._own is not None
        if self._own[key] < self._needed:
            return False
        if self._is_simple:
            return True
        if key not in self._known:
            values: Sequence[Any] = key if len(self._matched) > 1 else (key,)
            self._known[key] = all(self._all_find(values[index], index, others) for index, others in self._others)
        return self._known[key]

    def _all_find(self, value: ValueKey, index: int, others: Sequence[Candidates]) -> bool:
        attribute = self._matched[index]
        needed_by_offer: Counter[Offer] = Counter()
        for each in others:
            needed_by_offer[each.offer] += each.count
        return all(offer.counts((attribute,))[value] >= needed for offer, needed in needed_by_offer.items())


def _with_hope(problem: Problem) -> Problem | None:
    """The problem without the alternatives that lack devices; None if a request has no other."""
    requests = [_without_hopeless(request, problem.candidates) for request in problem.requests]
    return replace(problem, requests=requests) if all(request.alternatives for request in requests) else None


def _without_hopeless(request: Request, candidates: Mapping[Alternative, Candidates]) -> Request:
    fitting = tuple(
        each
        for each in request.alternatives
        if candidates[each].count <= ALLOCATION_RESULTS_MAX and candidates[each].suffice
    )
    return request if len(fitting) == len(request.alternatives) else Request(request.claim_index, fitting)


def _certain(problem: Problem) -> list[Alternative]:
    """The alternatives that every solution contains: those of requests with only one left."""
    return [request.alternatives[0] for request in problem.requests if len(request.alternatives) == 1]


def _devices_suffice(problem: Problem, limit: int) -> bool:
    """limit: so many devices of each alternative will do to tell."""
    certain = _certain(problem)
    if len(certain) == 1:
        return True  # counted already
    devices: set[IndexedDevice] = set()
    needed = sum(problem.candidates[each].count for each in certain)
    for each in certain:
        devices.update(islice(problem.candidates[each].devices, limit))
        if len(devices) >= needed:
            return True
    return not certain


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
            needed = sum(each.count for each in candidates)
            values: set[ValueKey] = set()
            for offer in dict.fromkeys(each.offer for each in candidates):
                for value in offer.counts((constraint.attribute,)):
                    if len(values) >= needed:
                        break
                    values.add(value)
            if len(values) < needed:
                return False
    return True


# --- by looking at devices


def _narrow_by_devices(problem: Problem) -> Problem | None:
    for _ in range(_PASSES):
        narrower = _without_hopeless_devices(problem)
        if narrower is problem:
            break
        hopeful = _with_hope(narrower)
        if hopeful is None or not _results_fit(hopeful):
            return None
        problem = hopeful
    return problem


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
                candidates[alternative] = before.only(iter(left))
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
