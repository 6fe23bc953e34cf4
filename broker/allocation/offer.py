"""The devices that a request may use from some nodes, in order, and how many have which values.

Lazy in all that depends on how many there are: devices are looked up one by one, values are counted in `tally`.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from broker.allocation.columns import DEVICES_MAX, Cell, Column, bits, mask_of
from broker.allocation.devices import IndexedDevice, IndexedPool
from broker.allocation.index import Fleet
from broker.allocation.matching import FailedSelector
from broker.allocation.nodes import NodeGroup
from broker.allocation.stock import Part, Stock
from broker.allocation.tally import Attributes, Tally, ValueKey, column_for, keys_of

Filters = Sequence[tuple[Attributes, Callable[[Cell], bool]]]  # what is wanted in the columns of attributes


_FEW_PARTS = 16  # of an offer: those of more are put together before anybody asks about one pool or value
_NONE: Mapping[IndexedPool, int] = {}


class Offer:
    """The devices of a stock that the nodes of a group reach, without those to be avoided.

    count: how many they are.
    """

    def __init__(
        self,
        stock: Stock,
        fleet: Fleet,
        group: NodeGroup,
        avoided: Mapping[IndexedPool, int],
        in_order: Callable[[int], Iterator[IndexedPool]],
    ) -> None:
        self._stock = stock
        self._fleet = fleet
        self._group = group
        self._in_order = in_order
        self._matching = fleet.matching
        self._parts = stock.parts_for(group)
        self._masks_of_many: dict[IndexedPool, int] | None = None
        self._avoided: Mapping[IndexedPool, int] = _NONE
        self.count = sum([part.count for part in self._parts])
        if avoided:
            self._avoided = {pool: mask for pool, avoided in avoided.items() if (mask := self._all(pool) & avoided)}
            self.count -= sum(map(int.bit_count, self._avoided.values()))
        self._counts: dict[Attributes, ValueCounts] = {}

    def count_for(self, group: NodeGroup) -> int:
        """How many devices other nodes reach at most."""
        return self._stock.count_for(group)

    @property
    def matched(self) -> int:
        """How many there would be if nobody held one and no taint kept anybody off."""
        return self._stock.matched_for(self._group)

    @property
    def is_local(self) -> bool:
        """None of them can be used from all nodes."""
        return all(each.is_local or not each.count for each in self._parts)

    def local(self) -> dict[IndexedPool, int]:
        """Those that not all nodes reach, as masks of their pools."""
        return self._masks([each for each in self._parts if each.is_local])

    def masks(self) -> dict[IndexedPool, int]:
        """All of them, as masks of their pools."""
        return self._masks(self._parts)

    def _masks(self, parts: Iterable[Part]) -> dict[IndexedPool, int]:
        found: dict[IndexedPool, int] = {}
        for part in parts:
            for pool, live in part.live.items():
                found[pool] = found.get(pool, 0) | live.mask & ~self._avoided.get(pool, 0)
        return found

    def mask(self, pool: IndexedPool) -> int:
        """Those of one pool."""
        mask = self._all(pool)
        return mask & ~self._avoided.get(pool, 0) if self._avoided else mask

    def _all(self, pool: IndexedPool) -> int:
        if len(self._parts) > _FEW_PARTS:
            if self._masks_of_many is None:
                self._masks_of_many = self._masks(self._parts)
            return self._masks_of_many.get(pool, 0)
        mask = 0
        for part in self._parts:
            live = part.live.get(pool)
            if live is not None:
                mask |= live.mask
        return mask

    def is_within(self, other: "Offer") -> bool:
        """The other offer has all of these devices, as far as what both ask for tells."""
        own, wider = self._stock.terms, other._stock.terms
        return own._replace(chain=own.chain[: len(wider.chain)]) == wider

    def includes(self, device: IndexedDevice) -> bool:
        """The device is one of them."""
        block = device.block
        return bool(self.mask(block.pool) >> (block.offset + device.index) & 1)

    def failure(self, device: IndexedDevice) -> FailedSelector | None:
        """The selector that failed on the device, if one did."""
        if device.block.pool not in self._stock.failing:
            return None
        return self._matching.failures(device.block, self._stock.terms.chain).get(device.index)

    @property
    def may_fail(self) -> bool:
        """A selector failed on some device, free or not, wherever it can be used."""
        return bool(self._stock.failing)

    @property
    def may_share(self) -> bool:
        """Shares can be had of some device of the fleet."""
        return bool(self._fleet.sharing)

    @property
    def fails_locally(self) -> bool:
        """A selector failed on some device that these nodes reach, free or not."""
        return self.may_fail and next(self._stock.failing_by_reach.seen_by(self._group), None) is not None

    def failing(self, free_only: bool) -> Iterator[IndexedDevice]:
        """Those on which a selector failed, in order; also of those that would be in the offer if they were free."""
        pools = dict.fromkeys(self._stock.failing_by_reach.seen_by(self._group))
        for pool in self._in_order(mask_of([self._fleet.position[pool] for pool in pools])):
            among = self.mask(pool)
            if not free_only:
                among = sum(mask for standing, mask in pool.standings if self._group.sees(standing.place.reach))
            for block, mask in pool.layout.split(self._stock.failing[pool] & among):
                yield from (self._matching.device(block, index) for index in bits(mask))

    def counts(self, attributes: Attributes) -> "ValueCounts":
        """How many there are of each value."""
        found = self._counts.get(attributes)
        if found is None:
            found = self._counts[attributes] = ValueCounts(
                attributes, [part.tally(attributes) for part in self._parts], self._avoided
            )
        return found

    def keys(self, attributes: Attributes) -> set[ValueKey]:
        """The values that some device has, found by looking at all of them; `counts` are kept from then on."""
        found: set[ValueKey] = set()
        for pool in {pool for part in self._parts for pool in part.live}:
            for block, mask in pool.layout.split(self.mask(pool)):
                column = column_for(block, attributes)
                for code in {column.codes[index] for index in bits(mask)}:
                    found.update(keys_of(column.cells[code], attributes))
        return found

    def devices(
        self,
        filters: Filters = (),
        alike: Attributes = (),
        limit: int | None = None,
        only_in: Iterable[IndexedPool] | None = None,
    ) -> Iterator[IndexedDevice]:
        """In the order in which to try them.

        only_in: where those that pass the filters are, if that is known.
        limit: how many are wanted of those that are alike: which agree in these attributes. But all on which a selector
            failed, and all that are shared or draw from counters.
        """
        positions = 0
        for part in self._parts:
            positions |= part.positions(self._fleet)
        if only_in is not None:
            positions &= mask_of([self._fleet.position[pool] for pool in only_in])
        seen: Counter[Cell] = Counter()
        device, failing = self._matching.device, self._stock.failing
        for pool in self._in_order(positions):
            unlike = pool.shared | pool.drawing | failing.get(pool, 0)
            if limit is not None and not alike and not unlike and seen[None] >= limit:
                continue
            for block, left in pool.layout.split(self.mask(pool)):
                for attributes, is_good in filters:
                    left &= _good(column_for(block, attributes), is_good) if left else 0
                if limit is None:
                    yield from (device(block, index) for index in bits(left))
                elif left:
                    kinds = column_for(block, alike) if alike else _ONE_KIND
                    for index in _limited(kinds, left, unlike >> block.offset, limit, seen):
                        yield device(block, index)


_ONE_KIND = Column((None,), bytes(DEVICES_MAX))


def _good(column: Column, is_good: Callable[[Cell], bool]) -> int:
    good = [code for code, cell in enumerate(column.cells) if is_good(cell)]
    return column.everything if len(good) == len(column.cells) else column.mask_of(good)


def _limited(kinds: Column, mask: int, unlike: int, limit: int, seen: Counter[Cell]) -> Iterator[int]:
    """The devices of the mask, in order; of each kind only until so many were seen, but all that are unlike others."""
    left = _below_limit(kinds, mask, limit, seen) | mask & unlike
    while left:
        low = left & -left
        left ^= low
        index = low.bit_length() - 1
        if not low & unlike:
            cell = kinds.cells[kinds.codes[index]]
            seen[cell] += 1
            if seen[cell] >= limit:
                left &= ~kinds.mask(kinds.codes[index]) | unlike
        yield index


def _below_limit(column: Column, mask: int, limit: int, seen: Mapping[Cell, int]) -> int:
    """The devices of the mask whose cells were not seen often enough yet."""
    over = [code for code, cell in enumerate(column.cells) if seen.get(cell, 0) >= limit]
    if not over:
        return mask
    return mask & ~column.mask_of(over) if len(over) < len(column.cells) else 0


class ValueCounts:
    """How many devices of an offer there are of each value of some attributes."""

    def __init__(self, attributes: Attributes, tallies: Sequence[Tally], avoided: Mapping[IndexedPool, int]) -> None:
        self._tallies = tallies
        if len(tallies) > _FEW_PARTS:
            together: Counter[ValueKey] = Counter()
            for each in tallies:
                for key, count in each.counts.items():
                    together[key] += count
            self._together: Mapping[ValueKey, int] | None = together
        else:
            self._together = None
        self._avoided: Counter[ValueKey] = Counter()
        for pool, mask in avoided.items():
            for block, of_block in pool.layout.split(mask):
                column = column_for(block, attributes)
                for index in bits(of_block):
                    self._avoided.update(keys_of(column.cells[column.codes[index]], attributes))

    def pools_with(self, least: int) -> list[IndexedPool] | None:
        """All pools with devices of values that at least so many devices have; None if that is not known."""
        return self._tallies[0].pools_with(least) if len(self._tallies) == 1 else None

    def __getitem__(self, key: ValueKey) -> int:
        if self._together is not None:
            return self._together.get(key, 0) - self._avoided[key]
        return sum(each.counts.get(key, 0) for each in self._tallies) - self._avoided[key]

    def __iter__(self) -> Iterator[ValueKey]:
        """The values that some device has; in no particular order."""
        if len(self._tallies) == 1 and not self._avoided:
            return iter(self._tallies[0].counts)
        return (key for key in {key for each in self._tallies for key in each.counts} if self[key])

    @property
    def number(self) -> int:
        """How many values there are."""
        if len(self._tallies) == 1 and not self._avoided:
            return len(self._tallies[0].counts)
        return sum(1 for _ in self)

    @property
    def most(self) -> int:
        """The most devices that one value has."""
        if len(self._tallies) == 1 and not self._avoided:
            return self._tallies[0].most
        return max((self[key] for key in self), default=0)
