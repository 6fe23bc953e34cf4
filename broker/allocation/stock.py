"""What is there for those who ask for the same: the free devices that match, kept from one claim to the next.

A Stock follows the pools of one fleet. Whenever it is asked it catches up with the pools that have changed since, so
a claim costs as much as has changed, not as much as there is. Nothing here depends on the order in which changes came:
a stock that was just made gives the same answers.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import product, starmap
from typing import NamedTuple, Protocol

from broker.allocation.budget import Budget
from broker.allocation.capacity import CapacityAsk
from broker.allocation.columns import mask_of
from broker.allocation.devices import IndexedPool, Layout, Place, SliceBlock, Standing
from broker.allocation.matching import Chain, Matching
from broker.allocation.nodes import EVERYWHERE, NodeGroup, Reach
from broker.allocation.reached import Reached
from broker.allocation.reasons import Cause
from broker.allocation.room import Room, undrawable
from broker.allocation.taints import untolerated
from broker.allocation.tally import Attributes, Tally
from broker.world.changes import Changes
from broker.world.usage import InUse
from schemas.resource import DeviceToleration

_STEPS_FOR_POOL = 20
_FEW_LIVE = 8  # pools
_FEW_POOLS = 32  # that the decisions before have changed: part of any decision


class Terms(NamedTuple):
    """All that decides which devices are in a stock.

    ignored: causes to look away from, to find out whether they are what stands in the way. With IN_USE all that holders
        have is ignored.
    """

    chain: Chain
    tolerations: tuple[DeviceToleration, ...] = ()
    capacity: CapacityAsk = ()
    admin_access: bool = False
    ignored: frozenset[Cause] = frozenset()

    def allow(self, standing: Standing) -> bool:
        """Wherever the node is, such a device may be used."""
        if standing.unsupported is not None and Cause.UNSUPPORTED not in self.ignored:
            return False
        return (
            not standing.taints or Cause.TAINT in self.ignored or untolerated(standing.taints, self.tolerations) is None
        )


class Change(NamedTuple):
    """Of a pool.

    devices: those that others have now, or nobody; None: all may be.
    """

    pool: IndexedPool
    devices: int | None


class HasPools(Protocol):
    """A fleet, as far as its stocks need it.

    order: changes whenever the positions do.
    """

    @property
    def position(self) -> Mapping[IndexedPool, int]: ...

    @property
    def pools(self) -> Sequence[IndexedPool]: ...

    @property
    def order(self) -> int: ...


class _Live(NamedTuple):
    layout: Layout
    mask: int


_NOTHING = _Live(Layout(()), 0)


class Part:
    """The devices of a stock that can be used in one place.

    is_local: which not all nodes reach.
    live: the mask of each pool that has any.
    count: how many they are.
    matched: how many there would be if nobody held one and no taint kept anybody off.
    """

    __slots__ = ("_matched_by_pool", "_order", "_positions", "count", "is_local", "live", "matched", "tallies")

    def __init__(self, is_local: bool) -> None:
        self.is_local = is_local
        self.live: dict[IndexedPool, _Live] = {}
        self.count = 0
        self.matched = 0
        self._matched_by_pool: dict[IndexedPool, int] = {}
        self.tallies: dict[Attributes, Tally] = {}
        self._positions = 0  # bit i: the fleet's pool at position i has live devices
        self._order = -1  # of the fleet, when _positions was made

    def put(self, pool: IndexedPool, live: int, matched: int, fleet: HasPools) -> None:
        """The pool has these devices now."""
        self.matched += matched - self._matched_by_pool.get(pool, 0)
        if matched:
            self._matched_by_pool[pool] = matched
        else:
            self._matched_by_pool.pop(pool, None)
        before = self.live.get(pool, _NOTHING)
        if before.mask == live and (before.layout is pool.layout or not live):
            return
        self.count += live.bit_count() - before.mask.bit_count()
        for tally in self.tallies.values():
            _count_changes(tally, before, pool.layout, live)
        if live:
            self.live[pool] = _Live(pool.layout, live)
        else:
            del self.live[pool]
        if self._order == fleet.order and bool(live) != bool(before.mask):
            self._positions ^= 1 << fleet.position[pool]

    def drop(self, pool: IndexedPool) -> None:
        """The pool is not in the fleet any more."""
        self.matched -= self._matched_by_pool.pop(pool, 0)
        before = self.live.pop(pool, _NOTHING)
        self.count -= before.mask.bit_count()
        for tally in self.tallies.values():
            _count_changes(tally, before, _NOTHING.layout, 0)

    def positions(self, fleet: HasPools) -> int:
        """Bit i is set where the fleet's pool at position i has live devices."""
        if len(self.live) <= _FEW_LIVE:  # those of one node: not worth a mask that is as long as the fleet
            return mask_of([fleet.position[pool] for pool in self.live])
        if self._order != fleet.order:
            self._positions = mask_of([fleet.position[pool] for pool in self.live])
            self._order = fleet.order
        return self._positions

    def tally(self, attributes: Attributes) -> Tally:
        """The devices by value; made when it is first asked for."""
        found = self.tallies.get(attributes)
        if found is None:
            found = self.tallies[attributes] = Tally(attributes)
            for live in self.live.values():
                for block, mask in live.layout.split(live.mask):
                    found.add(block, mask, 1)
        return found


def _count_changes(tally: Tally, before: _Live, layout: Layout, live: int) -> None:
    if before.layout is layout:
        for block, mask in layout.split(before.mask & ~live):
            tally.add(block, mask, -1)
        for block, mask in layout.split(live & ~before.mask):
            tally.add(block, mask, 1)
        return
    old, new = dict(before.layout.split(before.mask)), dict(layout.split(live))
    for block, mask in old.items():
        if gone := mask & ~new.get(block, 0):
            tally.add(block, gone, -1)
    for block, mask in new.items():
        if come := mask & ~old.get(block, 0):
            tally.add(block, come, 1)
    kept = set(layout.blocks)
    tally.forget(block for block in before.layout.blocks if block not in kept)


class _Crowded(NamedTuple):
    """The devices of a pool that a request does not fit into as holders leave them.

    is_overdrawn: when it was worked out, a counter of the pool was below zero.
    """

    layout: Layout
    crowded: int
    is_overdrawn: bool


class Stock:
    """The devices of a fleet that meet some terms, by the place where they can be used.

    failing: of the pools where a selector failed on some devices, held or not, those devices.
    count_by_reach: how many devices there are, wherever there are any.
    """

    def __init__(self, terms: Terms, fleet: HasPools, matching: Matching, room: Room, changes: Changes[Change]) -> None:
        self.terms = terms
        self.fleet = fleet
        self.parts: dict[Place, Part] = {}
        self.failing: dict[IndexedPool, int] = {}
        self.failing_by_reach = Reached()
        self.count_by_reach: dict[Reach, int] = {}
        self._matching = matching
        self._room = room
        self._changes = changes
        self._read = -1  # up to where
        self._left: dict[IndexedPool, int | None] = {}  # changed pools; which of the devices did, None: any of them
        self._places_by_pool: dict[IndexedPool, Collection[Place]] = {}
        self._crowded: dict[IndexedPool, _Crowded] = {}

    @property
    def size(self) -> int:
        """How many pools it keeps something of; one more, for it is something itself."""
        return 1 + len(self._places_by_pool)

    def catch_up(self, in_use: InUse, allowance: Budget | None = None) -> None:
        """Take in what has changed since the last time.

        Raises: BudgetExceededError where not all is allowed at once; another call goes on where this one ended.
        """
        log = self._changes
        if self._read != log.end:
            changes = log.since(self._read)
            self._read = log.end
            if changes is None:
                self._left = dict.fromkeys([*self.fleet.pools, *self._places_by_pool, *self.failing])
            for pool, devices in changes or ():
                before = self._left.get(pool, 0)
                self._left[pool] = None if before is None or devices is None else before | devices
        while self._left:
            if allowance is not None and len(self._left) > _FEW_POOLS:
                allowance.begin(_STEPS_FOR_POOL)
            pool, of_pool = self._left.popitem()
            if pool in self.fleet.position:
                self._put(pool, of_pool, in_use)
            else:
                self._drop(pool)
        self._left = {}  # an emptied dict keeps its size

    def live(self) -> Iterator[tuple[SliceBlock, int]]:
        """The free devices, wherever they can be used; in no particular order."""
        for part in self.parts.values():
            for pool, live in part.live.items():
                yield from pool.layout.split(live.mask)

    def _put(self, pool: IndexedPool, changed: int | None, in_use: InUse) -> None:
        terms = self.terms
        matches = self._matching.match(pool, terms.chain)
        is_barred = pool.pool.problem is not None and problem_of(pool) not in terms.ignored
        found: dict[Place, tuple[int, int]] = {}
        if not is_barred and matches.possible:
            capable = matches.possible & self._room.capable(pool, terms.capacity)
            open_ = capable & ~self._closed(pool, capable, changed, in_use)
            for standing, mask in pool.standings:
                if capable & mask:
                    live, matched = found.get(standing.place, (0, 0))
                    usable = open_ & mask if terms.allow(standing) else 0
                    found[standing.place] = (live | usable, matched + (capable & mask).bit_count())
        for place in self._places_by_pool.get(pool, ()):
            if place not in found:
                self._put_part(place, pool, 0, 0)
        for place, (live, matched) in found.items():
            self._put_part(place, pool, live, matched)
        if found:
            self._places_by_pool[pool] = tuple(found)
        else:
            self._places_by_pool.pop(pool, None)
        if matches.failing and not is_barred:
            self.failing[pool] = matches.failing
            self.failing_by_reach.put(pool, [standing.place.reach for standing, _ in pool.standings])
        elif self.failing:
            self.failing.pop(pool, None)
            self.failing_by_reach.put(pool, None)

    def _put_part(self, place: Place, pool: IndexedPool, live: int, matched: int) -> None:
        part = self.parts.get(place)
        if part is None:
            part = self.parts[place] = Part(place.reach is not EVERYWHERE)
        before = part.count
        part.put(pool, live, matched, self.fleet)
        self._count(place.reach, part.count - before)

    def _count(self, reach: Reach, more: int) -> None:
        if more:
            self.count_by_reach[reach] = self.count_by_reach.get(reach, 0) + more
            if not self.count_by_reach[reach]:
                del self.count_by_reach[reach]

    def _closed(self, pool: IndexedPool, possible: int, changed: int | None, in_use: InUse) -> int:
        """Those of the possible devices that holders leave nothing of, or too little."""
        ignores_holders = Cause.IN_USE in self.terms.ignored
        taken = 0 if ignores_holders or self.terms.admin_access else pool.taken
        crowdable = possible & (pool.shared | pool.drawing)
        if not crowdable:
            return taken
        if ignores_holders:
            return pool.never
        is_overdrawn = bool(pool.drawing) and pool.supply.counters(in_use).is_overdrawn
        known = self._crowded.get(pool)
        if known is None or known.layout is not pool.layout or changed is None or is_overdrawn != known.is_overdrawn:
            crowded, affected = 0, crowdable
        else:
            affected = (changed | pool.drawing_beside(changed)) & crowdable
            crowded = known.crowded & ~affected
        crowded |= self._room.full(pool, self.terms.capacity, affected, in_use)
        crowded |= undrawable(pool, affected, in_use)
        self._crowded[pool] = _Crowded(pool.layout, crowded, is_overdrawn)
        return taken | pool.never & ~pool.drawn | crowded

    def _drop(self, pool: IndexedPool) -> None:
        for place in self._places_by_pool.pop(pool, ()):
            before = self.parts[place].count
            self.parts[place].drop(pool)
            self._count(place.reach, self.parts[place].count - before)
        self.failing.pop(pool, None)
        self.failing_by_reach.put(pool, None)
        self._crowded.pop(pool, None)

    def count_for(self, group: NodeGroup) -> int:
        """How many devices the nodes reach at most: for some they may have to be known by name."""
        counts = self.count_by_reach
        if group.reaches is None:
            return sum(counts.values())
        return sum([counts.get(reach, 0) for reach in group.reaches], start=counts.get(EVERYWHERE, 0))

    def parts_for(self, group: NodeGroup) -> list[Part]:
        """Those that the nodes of the group reach."""
        if group.reaches is None:
            places: Iterable[Place] = self.parts
        elif len(self.parts) == 1 and _ON_ALL_NODES in self.parts:
            places = (_ON_ALL_NODES,)
        else:
            places = _places_of([each for each in group.reaches if each in self.count_by_reach])
        is_any_node = Cause.NODE in self.terms.ignored
        return [
            self.parts[each] for each in places if each in self.parts and (is_any_node or each.is_usable_on(group.node))
        ]

    def matched_for(self, group: NodeGroup) -> int:
        """How many devices the nodes of the group reach that match, held or not."""
        if group.reaches is None:
            return sum(part.matched for part in self.parts.values())
        return sum(self.parts[each].matched for each in _places_of(group.reaches) if each in self.parts)


_ON_ALL_NODES = Place(EVERYWHERE)


def _places_of(reaches: Iterable[Reach]) -> Iterator[Place]:
    return starmap(Place, product((EVERYWHERE, *reaches), (False, True), (False, True)))


def problem_of(pool: IndexedPool) -> Cause:
    """What rules out the devices of a pool that has a problem."""
    return Cause.POOL_INVALID if pool.pool.is_complete else Cause.POOL_INCOMPLETE


def pools_at(positions: int, pools: Sequence[IndexedPool]) -> Iterator[IndexedPool]:
    """The pools at the positions whose bits are set, in order."""
    while positions:
        low = positions & -positions
        yield pools[low.bit_length() - 1]
        positions ^= low
