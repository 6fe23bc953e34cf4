"""What is known about devices beyond what their slices say, kept from one claim to the next.

An index follows what changes: pools by the log of `world.inventory.PoolsOfScopes`, holders by that of `world.usage`.
Any other sequence of pools is compared with what is known, which costs as much as there is; so does another InUse than
the last time. Nothing here changes a decision: an empty DeviceIndex gives the same answers, later.

What lives where: `columns` (values of devices), `devices` (pools, slices and devices), `matching` (what selectors
said), `room` (capacity and counters), `stock` (what is free for whom). How to choose among them is not known here; see
`candidates`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

from broker.allocation.budget import Budget
from broker.allocation.cel.engine import (
    DerivedAttribute,
    Selector,
    SelectorCompileError,
    SelectorEngine,
    SelectorFailure,
)
from broker.allocation.constraints import Values
from broker.allocation.devices import NO_OBSTACLES, IndexedDevice, IndexedPool, SliceBlock
from broker.allocation.matching import Asking, Chain, FailedSelector, Matching
from broker.allocation.nodes import NodeGroup, NodeView, Reach, hypothetical_nodes, node_groups
from broker.allocation.reached import Reached
from broker.allocation.reasons import Cause
from broker.allocation.room import Room
from broker.allocation.stock import Change, Stock, Terms
from broker.allocation.supplies import PoolSupply
from broker.world.changes import Changes
from broker.world.inventory import PoolsOfScopes
from broker.world.keys import DeviceKey, PoolKey
from broker.world.pools import Pool
from broker.world.usage import InUse
from schemas.resource import DeviceClass

__all__ = ["DeviceIndex", "FailedSelector", "Fleet", "Groups", "IndexedDevice", "IndexedPool", "SliceBlock"]

_FLEETS_KEPT = 256  # sets of pools; each cluster has one
_STOCKED_KEPT = 500_000  # pools of stocks; beyond that the least recently used half is forgotten
_CLASSES_KEPT = 10_000
_ASKINGS_KEPT = 10_000  # chains of selectors, of one fleet
_TIDY_AFTER = 64  # allocations; then what is kept is counted
_STEPS_FOR_DERIVED = 3
_DERIVED_AHEAD = 5_000  # devices; with the budget of a broker a search does not get to more


class Fleet:
    """The pools that some claims can use, in the order in which to try them.

    position: of each pool in `pools`.
    order: changes whenever the positions do.
    troubled: the pools with a problem.
    waiting: those that can be used and have binding conditions, by who reaches the slices with these.
    obstructed: how many pools have devices that a cause may rule out whoever asks; see IndexedPool.obstacles.
    sharing: the pools with devices of which shares can be had.
    """

    def __init__(self, index: "DeviceIndex") -> None:
        self.pools: list[IndexedPool] = []
        self.position: dict[IndexedPool, int] = {}
        self.order = 0
        self.matching = index.matching
        self.room = index.room
        self._index = index
        self._by_key: dict[PoolKey, IndexedPool] = {}
        self._read = -1  # up to where the log of the PoolsOfScopes was read; -1: not at all
        self._checked = 0  # up to where the index's own log was
        self._stocks: dict[Terms, Stock] = {}  # the least recently used first
        self._asking: dict[Chain, Asking] = {}  # the same
        self.troubled = Reached()
        self.waiting = Reached()
        self.obstructed: Counter[Cause] = Counter()
        self._obstacles: dict[IndexedPool, frozenset[Cause]] = {}
        self.sharing: dict[IndexedPool, None] = {}
        self._local: dict[IndexedPool, tuple[Reach, ...]] = {}  # the pools that not all nodes reach, and who does
        self._reaches: list[Reach] | None = None
        self._groups: tuple[Sequence[NodeView] | None, str | None, Groups] | None = None

    def follow(self, pools: Sequence[Pool]) -> None:
        """The pools are these now."""
        changed = pools.changes.since(self._read) if isinstance(pools, PoolsOfScopes) else None
        if not isinstance(pools, PoolsOfScopes) or changed is None:
            self._compare(pools)
        else:
            # Another fleet may have had another state of a pool in the meantime.
            touched = self._index.changes.since(self._checked)
            if touched is None:
                suspects = [each.key for each in self.pools]
            else:  # who has a device is a matter of stocks
                suspects = [each.pool.key for each in touched if each.devices is None]
            gone_or_new = False
            for key in dict.fromkeys([*changed, *suspects]):
                pool, known = pools.get(key), self._by_key.get(key)
                gone_or_new |= (pool is None) != (known is None)
                if pool is not None and known is not None:
                    self._update(known, pool)
            if gone_or_new:
                self._compare(pools)
        if isinstance(pools, PoolsOfScopes):
            self._read = pools.changes.end
        self._checked = self._index.changes.end

    def _compare(self, pools: Sequence[Pool]) -> None:
        indexed = [self._by_key.get(pool.key) or self._index.add(pool.key) for pool in pools]
        for known, pool in zip(indexed, pools, strict=True):
            self._update(known, pool)
        if indexed != self.pools:
            gone = [each for each in self.pools if each.key not in {pool.key for pool in pools}]
            self.pools, self.position = indexed, {each: position for position, each in enumerate(indexed)}
            self._by_key = {each.key: each for each in indexed}
            self.order += 1
            self._reaches = None
            for each in gone:
                for marked in (self.sharing, self._local):
                    marked.pop(each, None)
                for reached in (self.troubled, self.waiting):
                    reached.put(each, None)
                self._note_obstacles(each, NO_OBSTACLES)
                self._index.release(each)

    def _update(self, known: IndexedPool, pool: Pool) -> None:
        if known.pool is not pool:
            self._index.update(known, pool)
        has_problem = pool.problem is not None
        self.troubled.put(known, _reaches_of(known.layout.blocks) if has_problem else None)
        self.waiting.put(known, _reaches_of(known.waiting) if known.waiting and not has_problem else None)
        if self._obstacles.get(known, NO_OBSTACLES) != known.obstacles:
            self._note_obstacles(known, known.obstacles)
        _mark(self.sharing, known, bool(known.shared))
        if self._local.get(known, ()) != known.reaches:
            self._reaches = None
            self._local[known] = known.reaches

    def _note_obstacles(self, pool: IndexedPool, obstacles: frozenset[Cause]) -> None:
        self.obstructed.subtract(self._obstacles.pop(pool, NO_OBSTACLES))
        self.obstructed.update(obstacles)
        if obstacles:
            self._obstacles[pool] = obstacles

    def pool(self, key: PoolKey) -> IndexedPool | None:
        """The pool with this key, if it is among them."""
        return self._by_key.get(key)

    def in_trouble(self) -> list[IndexedPool]:
        """The pools with a problem, in order."""
        return sorted(self.troubled.reaches, key=self.position.__getitem__)

    @property
    def reaches(self) -> list[Reach]:
        """All that occur, each once, but for EVERYWHERE."""
        if self._reaches is None:
            self._groups = None
            local = sorted(self._local, key=self.position.__getitem__)
            self._reaches = list(dict.fromkeys(reach for pool in local for reach in pool.reaches))
        return self._reaches

    def groups(self, nodes: Sequence[NodeView] | None, only: str | None) -> "Groups":
        """The nodes to try, in order, those that reach the same devices at once; see Snapshot for both arguments."""
        reaches = self.reaches
        if self._groups is None or self._groups[0] is not nodes or self._groups[1] != only:
            self._groups = (nodes, only, Groups(node_groups(_nodes(nodes, only, reaches), reaches)))
        return self._groups[2]

    def ask_ahead(self, terms: Terms, derived: Iterable[str], allowance: Budget) -> None:
        """Find out what a request with these terms and derived attributes needs to know, as far as it is allowed.

        Raises: BudgetExceededError. Another call goes on where this one ended.
        """
        for length in range(1, len(terms.chain) + 1):
            self._ask(terms.chain[:length], allowance)
        stock = self._stock(terms)
        stock.catch_up(self._index.in_use, allowance)
        left = _DERIVED_AHEAD
        for expression in derived:
            for block, mask in stock.live():
                if left > 0:
                    left -= mask.bit_count()
                    self.matching.derive_ahead(block, mask, expression, allowance)

    def _ask(self, chain: Chain, allowance: Budget) -> None:
        asking = self._asking.pop(chain, None)
        log = self._index.layout_changes
        changed = log.since(asking.read) if asking is not None and asking.is_valid else None
        if asking is None or changed is None:
            asking, changed = Asking(chain, self.matching), self.pools
        self._asking[chain] = asking
        for pool in changed:
            asking.change(pool, pool in self.position)
        asking.read = log.end
        asking.go_on(allowance)

    def stock(self, terms: Terms) -> Stock:
        """The devices that meet the terms, as of now."""
        found = self._stock(terms)
        found.catch_up(self._index.in_use)
        return found

    def _stock(self, terms: Terms) -> Stock:
        found = self._stocks.pop(terms, None)
        if found is None:
            found = Stock(terms, self, self.matching, self.room, self._index.changes)
        self._stocks[terms] = found
        return found

    def derive(self, device: IndexedDevice, expression: str, budget: Budget) -> Values | SelectorFailure | None:
        """The values of a derived attribute whose expression compiles, kept at the device; None: an empty list.

        Raises: BudgetExceededError.
        """
        budget.spend(_STEPS_FOR_DERIVED)
        return self.matching.derive(device, expression)

    def pool_supply(self, key: PoolKey) -> PoolSupply:
        """The counters of one of the pools."""
        return self._by_key[key].supply

    def catch_up(self) -> None:
        """Bring all that is kept up to date at once, which otherwise happens when it is asked for."""
        for each in self._stocks.values():
            each.catch_up(self._index.in_use)

    def tidy(self) -> None:
        """Forget what was asked by halves for claims that are gone, and what was forgotten elsewhere."""
        valid = [each for each in self._asking.items() if each[1].is_valid]
        self._asking = dict(valid[-_ASKINGS_KEPT:])

    @property
    def size(self) -> int:
        """How many pools of stocks it keeps."""
        return sum(each.size for each in self._stocks.values())

    def forget_half(self) -> None:
        """Forget the stocks that were not asked for recently."""
        for terms in list(self._stocks)[: (len(self._stocks) + 1) // 2]:
            del self._stocks[terms]

    def release(self) -> None:
        """Nobody uses the fleet any more."""
        for each in self.pools:
            self._index.release(each)


class Groups(Sequence[NodeGroup]):
    """Nodes that reach the same devices, in the order in which to try them."""

    def __init__(self, groups: Sequence[NodeGroup]) -> None:
        self._groups = groups
        self._numbers_by_reach: dict[Reach, list[int]] = {}
        for number, group in enumerate(groups):
            for reach in group.reaches or ():
                self._numbers_by_reach.setdefault(reach, []).append(number)

    @overload
    def __getitem__(self, index: int) -> NodeGroup: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[NodeGroup]: ...

    def __getitem__(self, index: int | slice) -> NodeGroup | Sequence[NodeGroup]:
        return self._groups[index]

    def __len__(self) -> int:
        return len(self._groups)

    def reaching(self, reaches: Iterable[Reach]) -> list[NodeGroup]:
        """Those that reach any of these, in order."""
        numbers = {number for reach in reaches for number in self._numbers_by_reach.get(reach, ())}
        return [self._groups[number] for number in sorted(numbers)]


def _reaches_of(blocks: Iterable[SliceBlock]) -> Iterable[Reach]:
    return (reach for block in blocks for reach in block.reaches)


def _mark(marked: dict[IndexedPool, None], pool: IndexedPool, is_so: bool) -> None:
    if is_so:
        marked[pool] = None
    else:
        marked.pop(pool, None)


def _nodes(nodes: Sequence[NodeView] | None, only: str | None, reaches: Sequence[Reach]) -> Sequence[NodeView]:
    if only is not None:
        return [each for each in nodes or () if each.name == only] or [NodeView(only)]
    if nodes is None:
        return list(hypothetical_nodes(reaches))
    return nodes or [NodeView("")]


class DeviceIndex:
    """Devices and selectors, indexed. One for the life of a broker; hand the same one to every allocation.

    engine: one that keeps what it compiled, as `default_engine()` does.
    in_use: who has what, as of the last `fleet`.
    changes: pools that are not what they were, or of which a device changed hands.
    layout_changes: pools that have other slices.
    """

    def __init__(self, engine: SelectorEngine) -> None:
        self.matching = Matching(engine)
        self.room = Room()
        self.in_use = InUse()
        self.changes: Changes[Change] = Changes()
        self.layout_changes: Changes[IndexedPool] = Changes()
        self.requests_read: dict[tuple[int, int, bool], Any] = {}  # see broker.allocation.requests
        self._in_use_read = 0
        self._pools: dict[PoolKey, IndexedPool] = {}  # those of the fleets
        self._fleets: dict[int, tuple[PoolsOfScopes, Fleet]] = {}  # by id; the least recently used first
        self._other_fleet: Fleet | None = None  # for all other sequences
        self._classes: dict[str, tuple[DeviceClass, str | None]] = {}  # by name, with what is wrong with them
        self._until_tidied = _TIDY_AFTER  # calls

    def compile(self, expression: str) -> Selector | SelectorCompileError:
        """The compiled selector, or why it does not compile."""
        return self.matching.compile(expression)

    def compile_attribute(self, expression: str) -> DerivedAttribute | SelectorCompileError:
        """The compiled expression of a derived attribute, or why it does not compile."""
        return self.matching.compile_attribute(expression)

    def check_class(
        self, device_class: DeviceClass, problem_of: Callable[[DeviceClass, "DeviceIndex"], str | None]
    ) -> str | None:
        """What is wrong with a class; asked again only when it is another object than the last time."""
        known = self._classes.get(device_class.metadata.name)
        if known is not None and known[0] is device_class:
            return known[1]
        if len(self._classes) >= _CLASSES_KEPT:
            self._classes.clear()
        problem = problem_of(device_class, self)
        self._classes[device_class.metadata.name] = (device_class, problem)
        return problem

    def fleet(self, pools: Sequence[Pool], in_use: InUse) -> Fleet:
        """The pools with their devices, as they are now and as they are held now."""
        self._tidy()
        self._follow(in_use)
        if isinstance(pools, PoolsOfScopes):
            known = self._fleets.pop(id(pools), None)
            fleet = known[1] if known is not None else Fleet(self)
            self._fleets[id(pools)] = (pools, fleet)
        else:
            fleet = self._other_fleet = self._other_fleet or Fleet(self)
        fleet.follow(pools)
        return fleet

    def _tidy(self) -> None:
        self.matching.tidy()
        self.room.tidy()
        if len(self._fleets) > _FLEETS_KEPT:
            self._fleets.pop(next(iter(self._fleets)))[1].release()
        self._until_tidied -= 1
        if self._until_tidied <= 0:
            self.matching.tidy_combinations()
            fleets = [*(each for _, each in self._fleets.values()), *([self._other_fleet] if self._other_fleet else [])]
            is_too_much = sum(each.size for each in fleets) > _STOCKED_KEPT
            for each in fleets:
                each.tidy()
                if is_too_much:
                    each.forget_half()
            self._until_tidied = _TIDY_AFTER

    # --- for fleets

    def add(self, key: PoolKey) -> IndexedPool:
        """The pool, for one more fleet; `update` says what is in it."""
        found = self._pools.get(key)
        if found is None:
            found = self._pools[key] = IndexedPool(key)
        found.fleets += 1
        self._has_changed(found)  # in this fleet; others may have had it before
        return found

    def update(self, known: IndexedPool, pool: Pool) -> None:
        """The pool is like this now."""
        layout = known.layout
        gone = known.update(pool, self.in_use.of_pool(pool.key))
        if gone:
            self.matching.forget_blocks(gone)
            for block in gone:
                block.retire()
        self.changes.note(Change(known, None))
        if known.layout is not layout:
            self.layout_changes.note(known)

    def release(self, pool: IndexedPool) -> None:
        """One fleet fewer has the pool."""
        pool.fleets -= 1
        self._has_changed(pool)
        if pool.fleets == 0:
            self.matching.forget_pool(pool)
            pool.retire()
            del self._pools[pool.key]

    def _has_changed(self, pool: IndexedPool) -> None:
        self.changes.note(Change(pool, None))
        self.layout_changes.note(pool)

    # --- holders

    def _follow(self, in_use: InUse) -> None:
        changed = in_use.changes.since(self._in_use_read) if in_use is self.in_use else None
        self.in_use, self._in_use_read = in_use, in_use.changes.end
        if changed is None:
            for pool in self._pools.values():
                before = (pool.used, pool.whole)
                pool.use_all(in_use.of_pool(pool.key))
                if (pool.used, pool.whole) != before or pool.used & pool.shared or pool.drawing:
                    self.changes.note(Change(pool, None))
            return
        for key in changed:
            self._use(key)

    def _use(self, key: DeviceKey) -> None:
        known = self._pools.get(key.pool)
        if known is not None:
            devices = known.use(key.device, self.in_use.get(key))
            if devices:
                self.changes.note(Change(known, devices))
