"""Which devices a request may use, seen from one group of nodes.

What a device may be ruled out by, and in which order, is decided here (and in `stock`, for those that are free) and
nowhere else; see `reasons.Cause`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import overload

from broker.allocation.budget import Budget
from broker.allocation.cel.engine import SelectorFailure
from broker.allocation.columns import bits
from broker.allocation.devices import IndexedDevice, IndexedPool, Place
from broker.allocation.index import Fleet, Groups
from broker.allocation.matching import FailedSelector
from broker.allocation.nodes import EVERYWHERE, NodeGroup
from broker.allocation.offer import Offer
from broker.allocation.reasons import Cause
from broker.allocation.requests import Alternative, Asks, Request
from broker.allocation.room import undrawable
from broker.allocation.snapshot import Snapshot
from broker.allocation.stock import Stock, Terms, pools_at, problem_of
from broker.allocation.supplies import Supplies
from broker.allocation.taints import untolerated
from broker.world.usage import InUse
from schemas.resource.limits import ALLOCATION_RESULTS_MAX

_NOBODY = InUse()  # holds nothing
_STEPS_FOR_DEVICE = 2


class View:
    """The pools of a snapshot as one group of nodes sees them.

    There may be thousands of groups, so nothing is worked out before somebody asks.

    ignored: causes to look away from, to find out whether they are what stands in the way.
    supplies: what holders leave of counters and capacities.
    avoided: masks of devices not to use.
    """

    def __init__(
        self, snapshot: Snapshot, fleet: Fleet, group: NodeGroup, ignored: frozenset[Cause] = frozenset()
    ) -> None:
        self.group = group
        self.fleet = fleet
        self.ignored = ignored
        self.in_use = _NOBODY if Cause.IN_USE in ignored else snapshot.in_use  # and so is all that they have drawn
        self.supplies = Supplies(self.in_use, fleet.pool_supply)
        self.avoided = _avoided(snapshot, fleet) if snapshot.avoid and Cause.AVOIDED not in ignored else {}
        self._asked: dict[Alternative, tuple[Alternative, Stock]] = {}
        self._first_by_asks: dict[Asks, Alternative] = {}
        self._begin()

    def _begin(self) -> None:
        self._order = _Order(self.fleet, self.group)
        self._offers: dict[Stock, Offer] = {}  # requests that ask for the same share the answer
        self._candidates: dict[Alternative, Candidates] = {}

    def of(self, group: NodeGroup) -> "View":
        """The same pools as other nodes see them."""
        if group is self.group:
            return self
        other = copy(self)
        other.group = group
        other._begin()
        return other

    @property
    def spoils_all(self) -> bool:
        """Nobody knows how many "all" are: a pool is not whole, whatever its devices look like."""
        troubled = self.fleet.troubled
        return bool(troubled) and any(problem_of(pool) not in self.ignored for pool in troubled.seen_by(self.group))

    def candidates(self, alternative: Alternative, budget: Budget) -> "Candidates":
        """The devices for one alternative; All needs every matching device, so one that is ruled out spoils it.

        budget: for selectors and derived attributes.
        Raises: BudgetExceededError.
        """
        first, _ = self._ask(alternative)
        found = self._candidates.get(first)
        if found is None:
            found = self._candidates[first] = self._gather(alternative, budget)
        return found if alternative.takes_all else found.for_count(alternative.count)

    def _gather(self, alternative: Alternative, budget: Budget) -> "Candidates":
        offer = self.offer(alternative)
        devices, count = None, offer.count
        if alternative.derived:
            expressions = tuple(dict.fromkeys(alternative.derived.values()))
            devices = [each for each in offer.devices() if not self.fails_to_derive(each, expressions, budget)]
            count = len(devices)
        is_spoiled = alternative.takes_all and (self.spoils_all or not count or count < offer.matched)
        return Candidates(offer, count + is_spoiled, alternative.takes_all, budget, devices)

    def offer(self, alternative: Alternative) -> Offer:
        """The devices that meet the alternative's terms, some of which may be of no use to it."""
        stock = self.stock(alternative)
        offer = self._offers.get(stock)
        if offer is None:
            offer = self._offers[stock] = Offer(stock, self.fleet, self.group, self.avoided, self._order)
        return offer

    def stock(self, alternative: Alternative) -> Stock:
        """What such an offer is taken from; the same for all nodes."""
        return self._ask(alternative)[1]

    def _ask(self, alternative: Alternative) -> tuple[Alternative, Stock]:
        """The first alternative that asks for the same, and the stock of all of these; the same for all nodes."""
        found = self._asked.get(alternative)
        if found is None:
            first = self._first_by_asks.setdefault(alternative.asks, alternative)
            found = self._asked[alternative] = first, self.fleet.stock(terms_of(alternative, self.ignored))
        return found

    def fails_to_derive(self, device: IndexedDevice, expressions: Sequence[str], budget: Budget) -> bool:
        """A derived attribute cannot be computed for the device.

        Raises: BudgetExceededError.
        """
        return any(isinstance(self.fleet.derive(device, each, budget), SelectorFailure) for each in expressions)

    def drawing_from(self, counter_set: str, pool: IndexedPool) -> Iterator[IndexedDevice]:
        """The devices of the pool that draw from a counter set, in order."""
        for block, mask in pool.layout.split(pool.members(counter_set)):
            yield from (self.fleet.matching.device(block, index) for index in bits(mask))

    def sees(self, place: Place) -> bool:
        """The nodes can use a device there."""
        return self.group.sees(place.reach) and place.is_usable_on(self.group.node)

    def charged(self, pool: IndexedPool, alternative: Alternative, budget: Budget) -> dict[Cause, int]:
        """The devices of the pool on which no selector is false, by the first cause that rules them out.

        For a view that ignores nothing.
        Raises: BudgetExceededError.
        """
        matches = self.fleet.matching.match(pool, alternative.chain)
        left = matches.possible
        found: dict[Cause, int] = {}

        def charge(cause: Cause, mask: int) -> None:
            nonlocal left
            if mask & left:
                found[cause] = found.get(cause, 0) | mask & left
                left &= ~mask

        charge(Cause.SELECTOR_FAILED, matches.failing)
        charge(Cause.CAPACITY, ~self.fleet.room.capable(pool, alternative.capacity))
        if alternative.derived:
            charge(Cause.DERIVED_ATTRIBUTE, self._underivable(pool, left, alternative, budget))
        for standing, mask in pool.standings:
            if standing.unsupported is not None:
                charge(Cause.UNSUPPORTED, mask)
        for standing, mask in pool.standings:
            if not self.sees(standing.place):
                charge(Cause.NODE, mask)
        if pool.pool.problem is not None:
            charge(problem_of(pool), left)
        charge(Cause.COUNTERS, pool.never & ~pool.drawn if left & pool.drawing else 0)
        for standing, mask in pool.standings:
            if untolerated(standing.taints, alternative.tolerations):
                charge(Cause.TAINT, mask)
        charge(Cause.IN_USE, 0 if alternative.admin_access else pool.taken)
        charge(Cause.CAPACITY_IN_USE, self.fleet.room.full(pool, alternative.capacity, left, self.in_use))
        charge(Cause.COUNTERS_IN_USE, undrawable(pool, left, self.in_use))
        charge(Cause.AVOIDED, self.avoided.get(pool, 0))
        return found

    def _underivable(self, pool: IndexedPool, mask: int, alternative: Alternative, budget: Budget) -> int:
        expressions = tuple(dict.fromkeys(alternative.derived.values()))
        found = 0
        for block, of_block in pool.layout.split(mask):
            for index in bits(of_block):
                if self.fails_to_derive(self.fleet.matching.device(block, index), expressions, budget):
                    found |= 1 << block.offset + index
        return found


class _Order:
    """Pools as nodes of a group are to try them: those with binding conditions last, the pod would have to wait for
    them (KEP-5007). As upstream, slices that the nodes do not see have no say in that, nor has an incomplete pool.
    """

    def __init__(self, fleet: Fleet, group: NodeGroup) -> None:
        self._fleet = fleet
        self._group = group
        self._last: int | None = None

    def __call__(self, positions: int) -> Iterator[IndexedPool]:
        """The pools at these positions of the fleet, in order."""
        fleet = self._fleet
        if self._last is None:
            waiting = fleet.waiting
            self._last = waiting.positions_for(self._group, fleet.position, fleet.order) if waiting else 0
        last = self._last
        if not last:
            return pools_at(positions, fleet.pools)
        return (pool for part in (positions & ~last, positions & last) for pool in pools_at(part, fleet.pools))


def _avoided(snapshot: Snapshot, fleet: Fleet) -> dict[IndexedPool, int]:
    found: dict[IndexedPool, int] = {}
    for key in snapshot.avoid:
        pool = fleet.pool(key.pool)
        position = pool.position_of(key.device) if pool is not None else None
        if pool is not None and position is not None:
            found[pool] = found.get(pool, 0) | 1 << position
    return found


def terms_of(alternative: Alternative, ignored: frozenset[Cause]) -> Terms:
    """What decides which devices the alternative may use."""
    return Terms(
        alternative.chain,
        alternative.tolerations,
        alternative.capacity,
        alternative.admin_access,
        ignored - {Cause.AVOIDED},  # who is avoided is a matter of the claim, not of the terms
    )


def hopeful_groups(
    fleet: Fleet, groups: Groups, requests: Sequence[Request], ignored: frozenset[Cause]
) -> Iterable[NodeGroup]:
    """The groups whose nodes reach enough devices for each request, in order; others need not be tried.

    Where most nodes of a cluster are full, this does not look at those.
    """
    if len(groups) == 1:
        return groups
    wanted: list[list[tuple[Stock, int]]] = []  # for each request that not all nodes can satisfy
    for request in requests:
        ways = [
            (fleet.stock(terms_of(each, ignored)), 1 if each.takes_all else each.count) for each in request.alternatives
        ]
        if all(stock.count_by_reach.get(EVERYWHERE, 0) < count for stock, count in ways):
            wanted.append(ways)
    if not wanted:
        return groups
    fewest = min(wanted, key=lambda ways: sum(len(stock.count_by_reach) for stock, _ in ways))
    tried: Sequence[NodeGroup] = groups
    if sum(len(stock.count_by_reach) for stock, _ in fewest) < len(groups) // 2:
        tried = groups.reaching(reach for stock, _ in fewest for reach in stock.count_by_reach)
    return (
        group
        for group in tried
        if all(any(stock.count_for(group) >= count for stock, count in ways) for ways in wanted)
    )


class Lineup(Sequence[IndexedDevice]):
    """Devices in the order in which to try them, looked up only as far as anybody looks.

    budget: charged for each that is looked up. Then any access can raise BudgetExceededError.
    """

    def __init__(self, devices: Iterable[IndexedDevice], budget: Budget) -> None:
        self._found: list[IndexedDevice] = []
        self._rest: Iterator[IndexedDevice] | None = iter(devices)
        self._budget = budget

    def has(self, count: int) -> bool:
        """There are at least so many."""
        found = self._found
        if self._rest is not None:
            while len(found) < count:
                device = next(self._rest, None)
                if device is None:
                    self._rest = None
                    break
                found.append(device)
                self._budget.spend(_STEPS_FOR_DEVICE)
        return len(found) >= count

    @overload
    def __getitem__(self, index: int) -> IndexedDevice: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[IndexedDevice]: ...

    def __getitem__(self, index: int | slice) -> IndexedDevice | Sequence[IndexedDevice]:
        if isinstance(index, slice) or index < 0:
            len(self)
        else:
            self.has(index + 1)
        return self._found[index]

    def __len__(self) -> int:
        while self._rest is not None:
            self.has(len(self._found) + 1)
        return len(self._found)


_NO_FAILURES: Mapping[IndexedDevice, FailedSelector] = {}


class Candidates:
    """The devices that one alternative may use, in the order in which to try them.

    devices: of the offer, or those of it that are worth trying.
    failures: those of them on which a selector failed, for All also of those that are not free; the search must stop
        when it gets to one.
    count: how many are needed. More than there are devices if the alternative cannot be satisfied.
    """

    __slots__ = ("_budget", "_devices", "_source", "count", "is_whole", "offer", "takes_all")

    def __init__(
        self,
        offer: Offer,
        count: int,
        takes_all: bool,
        budget: Budget,
        devices: Iterable[IndexedDevice] | None = None,
    ) -> None:
        self.offer = offer
        self.count = count
        self.takes_all = takes_all
        self.is_whole = devices is None  # the devices are all those of the offer
        self._source = devices
        self._budget = budget
        self._devices: Lineup | None = None

    @property
    def devices(self) -> Lineup:
        """See above."""
        if self._devices is None:
            self._devices = Lineup(self.offer.devices() if self._source is None else self._source, self._budget)
        return self._devices

    @property
    def failures(self) -> Mapping[IndexedDevice, FailedSelector]:
        """See above."""
        return _Failures(self) if self.offer.may_fail else _NO_FAILURES

    @property
    def suffice(self) -> bool:
        """There are as many as are needed, and a claim can have as many."""
        if self.count > min(self.offer.count, ALLOCATION_RESULTS_MAX):
            return False
        return self.is_whole or self.devices.has(self.count)

    def for_count(self, count: int) -> "Candidates":
        """The same devices for somebody who needs another number of them."""
        return Candidates(self.offer, count, self.takes_all, self._budget, None if self.is_whole else self.devices)

    def only(self, devices: Iterable[IndexedDevice]) -> "Candidates":
        """Fewer of the devices."""
        return Candidates(self.offer, self.count, self.takes_all, self._budget, devices)

    def includes(self, device: IndexedDevice) -> bool:
        """The alternative may use the device, even if it is not worth trying."""
        return self.offer.includes(device)


class _Failures(Mapping[IndexedDevice, FailedSelector]):
    """Looked up when asked for; it may turn out to be empty."""

    def __init__(self, candidates: Candidates) -> None:
        self._candidates = candidates

    def __getitem__(self, device: IndexedDevice) -> FailedSelector:
        failure = self._candidates.offer.failure(device)
        if failure is None:
            raise KeyError(device)
        return failure

    def __iter__(self) -> Iterator[IndexedDevice]:
        if self._candidates.takes_all or self._candidates.is_whole:
            return self._candidates.offer.failing(free_only=not self._candidates.takes_all)
        return (each for each in self._candidates.devices if self._candidates.offer.failure(each) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True  # as far as anybody knows; to look would be to look at all devices
