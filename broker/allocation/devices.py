"""Pools as the index keeps them: what is known about their devices beyond what the slices say.

A device is a bit. The parts of a pool's slices follow one another in its layout, each from a whole byte on, and sets of
a pool's devices are masks over the layout. What is here changes when a slice changes or when someone takes or gives
back a device; nothing depends on a claim.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from broker.allocation.capacity import CapacityAsk, Consumption, consumption_of, is_trivial
from broker.allocation.cel.engine import BoundDevice, SelectorEngine, SelectorFailure
from broker.allocation.columns import DEVICES_MAX, SliceColumns, bits, mask_of
from broker.allocation.constraints import Values, attribute_values
from broker.allocation.nodes import EVERYWHERE, NodeGroup, NodeView, Reach, reach_of
from broker.allocation.reasons import Cause
from broker.allocation.supplies import PoolSupply
from broker.allocation.taints import blocking_taints
from broker.allocation.unsupported import unsupported_in_device, unsupported_in_slice
from broker.world.keys import DeviceKey, PoolKey
from broker.world.pools import Pool
from broker.world.usage import Use
from schemas.resource import Device, DeviceTaint, ResourceSlice

NO_OBSTACLES: frozenset[Cause] = frozenset()
_CONSUMPTIONS_KEPT = 16  # for each device that a search looked at


class Place(NamedTuple):
    """Where a device can be used.

    binds: only on a node that is known by name.
    skips: only on a node that can skip node operations.
    """

    reach: Reach
    binds: bool = False
    skips: bool = False

    def is_usable_on(self, node: NodeView) -> bool:
        """The node can do what the device needs of it, apart from reaching it."""
        return (not self.binds or node.name != "") and (not self.skips or node.skips_operations)


_ON_ALL_NODES = Place(EVERYWHERE)


class Standing(NamedTuple):
    """What can rule a device out whoever holds it.

    taints: those that keep claims off.
    unsupported: the path of the field that we cannot honour, see broker.allocation.unsupported.
    """

    place: Place
    taints: tuple[DeviceTaint, ...]
    unsupported: str | None


class IndexedDevice:
    """A device that a search looks at. Compared by identity: within one allocation there is one object for each."""

    __slots__ = ("_bound", "_consumptions", "_values", "block", "derived", "device", "index", "key")

    def __init__(self, block: "SliceBlock", index: int) -> None:
        self.block = block
        self.index = index  # in the block
        self.device: Device = block.devices[index]
        self.key = DeviceKey(block.pool.key, self.device.name)
        self.derived: dict[str, Values | SelectorFailure | None] | None = None  # by expression; see Matching.derive
        self._bound: BoundDevice | None = None
        self._values: dict[str, Values | None] = {}
        self._consumptions: dict[CapacityAsk, Consumption | str] | None = None

    @property
    def is_plain(self) -> bool:
        """It is taken as a whole, and nothing else is taken with it."""
        return not self.device.consumes_counters and is_trivial(self.device, ())

    @property
    def slice(self) -> ResourceSlice:
        """The slice that publishes it."""
        return self.block.slice

    @property
    def standing(self) -> Standing:
        """What can rule it out whoever holds it."""
        return self.block.standing(self.index)

    @property
    def reach(self) -> Reach:
        """The nodes that reach it."""
        return self.standing.place.reach

    def consumption(self, ask: CapacityAsk) -> Consumption | str:
        """What a request consumes of the device's capacities, or why it never can."""
        if self._consumptions is None or len(self._consumptions) >= _CONSUMPTIONS_KEPT:
            self._consumptions = {}  # amounts come from tenants too
        found = self._consumptions.get(ask)
        if found is None:
            found = self._consumptions[ask] = () if is_trivial(self.device, ask) else consumption_of(self.device, ask)
        return found

    def bound(self, engine: SelectorEngine) -> BoundDevice:
        """The device in the engine's own form."""
        if self._bound is None:
            self._bound = engine.bind(self.slice.spec.driver, self.device)
        return self._bound

    def values_of(self, attribute: str) -> Values | None:
        """The values of a fully qualified attribute; None if the device does not have it."""
        if attribute not in self._values:
            self._values[attribute] = attribute_values(self.device, self.slice.spec.driver, attribute)
        return self._values[attribute]


class SliceBlock:
    """The devices of a slice, or up to 128 of them where a slice has more than the API allows.

    first: how many devices of the slice come before.
    offset: of its first device in the layout of the pool.
    reaches: of the slice, or of its devices where each says its own.
    everything: the mask of all its devices, from bit 0 on.
    standings: each that occurs, with the mask of its devices.
    shared, drawing: the devices of which shares can be had, and those that draw from counters.
    limited: those that a request cannot always have as a whole: shared ones, and those with a capacity policy.
    """

    __slots__ = (
        "_index_by_name",
        "columns",
        "devices",
        "drawing",
        "everything",
        "first",
        "has_binding_conditions",
        "limited",
        "offset",
        "pool",
        "reaches",
        "shared",
        "slice",
        "standings",
    )

    def __init__(self, pool: "IndexedPool", slice_: ResourceSlice, first: int) -> None:
        spec = slice_.spec
        self.pool = pool
        self.slice = slice_
        self.first = first
        self.offset = 0
        self.devices: Sequence[Device] = (
            spec.devices if len(spec.devices) <= DEVICES_MAX else spec.devices[first : first + DEVICES_MAX]
        )
        self.everything = (1 << len(self.devices)) - 1
        self.columns = SliceColumns(spec.driver, self.devices)
        self.standings = self._read_standings()
        self.shared = _mask_where(each.allow_multiple_allocations for each in self.devices)
        self.drawing = _mask_where(each.consumes_counters for each in self.devices)
        self.limited = _mask_where(not is_trivial(each, ()) for each in self.devices)
        self.reaches = (
            tuple(dict.fromkeys(standing.place.reach for standing, _ in self.standings))
            if spec.per_device_node_selection
            else (reach_of(spec.node_name, spec.all_nodes, spec.node_selector),)
        )
        self.has_binding_conditions = any(each.binding_conditions for each in self.devices)
        self._index_by_name: dict[str, int] | None = None

    def _read_standings(self) -> tuple[tuple[Standing, int], ...]:
        spec, pool = self.slice.spec, self.pool.key
        per_device = spec.per_device_node_selection
        reach = EVERYWHERE if per_device else reach_of(spec.node_name, spec.all_nodes, spec.node_selector)
        skips = bool(spec.skip_node_operations)
        usual = Standing(Place(reach, skips=skips), (), unsupported_in_slice(pool, self.slice))
        masks: dict[Standing, int] = {}
        usual_mask = self.everything
        for index, device in enumerate(self.devices):
            unsupported = usual.unsupported or unsupported_in_device(pool, self.slice, self.first + index)
            if per_device or device.taints or device.binds_to_node or unsupported != usual.unsupported:
                where = reach_of(device.node_name, device.all_nodes, device.node_selector) if per_device else reach
                place = Place(where, bool(device.binds_to_node), skips)
                standing = Standing(place, blocking_taints(device), unsupported)
                masks[standing] = masks.get(standing, 0) | 1 << index
                usual_mask &= ~(1 << index)
        if usual_mask:
            masks[usual] = masks.get(usual, 0) | usual_mask
        return tuple(masks.items())

    @property
    def size(self) -> int:
        """How many bytes of the layout it takes."""
        return (len(self.devices) + 7) // 8

    def standing(self, index: int) -> Standing:
        """Of one device."""
        return next(standing for standing, mask in self.standings if mask >> index & 1)

    def index_of(self, name: str) -> int | None:
        """The device with this name; the first, should there be several."""
        if self._index_by_name is None:
            self._index_by_name = {each.name: index for index, each in reversed(list(enumerate(self.devices)))}
        return self._index_by_name.get(name)

    def retire(self) -> None:
        """The slice is gone. Masks over an old layout may still name the block; they must not keep the slice alive."""
        self.slice, self.devices, self._index_by_name = ResourceSlice(), (), None
        self.columns = SliceColumns("", ())

    def is_seen_by(self, group: NodeGroup) -> bool:
        """The nodes reach at least one of the slice's devices."""
        return any(group.sees(reach) for reach in self.reaches)


def _mask_where(flags: Iterable[object]) -> int:
    return mask_of([index for index, flag in enumerate(flags) if flag])


class Layout:
    """Where the devices of a pool stand in its masks. A pool whose slices change gets another one.

    offsets: of each block, in bits; block.offset is of the pool's layout now.
    everything: the mask of all devices.
    """

    __slots__ = ("blocks", "everything", "offsets", "size")

    def __init__(self, blocks: tuple[SliceBlock, ...]) -> None:
        self.blocks = blocks
        offsets = []
        self.size = 0  # in bytes
        for block in blocks:
            offsets.append(self.size * 8)
            self.size += block.size
        self.offsets = tuple(offsets)
        self.everything = self.joined([block.everything for block in blocks])

    def joined(self, masks: Sequence[int]) -> int:
        """The mask of the pool for one mask of each block."""
        if len(masks) == 1:
            return masks[0]
        pieces = (mask.to_bytes(block.size, "little") for block, mask in zip(self.blocks, masks, strict=True))
        return int.from_bytes(b"".join(pieces), "little")

    def split(self, mask: int) -> Iterator[tuple[SliceBlock, int]]:
        """For each block that has any of the devices its own mask of them, in order."""
        if len(self.blocks) == 1:
            if mask:
                yield self.blocks[0], mask
            return
        while mask:
            position = (mask & -mask).bit_length() - 1
            number = bisect_right(self.offsets, position) - 1
            # Blocks without devices share their offset with the one behind them, which bisect_right finds.
            block, offset = self.blocks[number], self.offsets[number]
            of_block = mask >> offset & block.everything
            yield block, of_block
            mask ^= of_block << offset


class IndexedPool:
    """A pool with its devices in their layout.

    used, whole, parted: the devices that somebody has, those of which somebody has all, and those of which somebody has
        a share.
    standings: each that occurs, with the mask of its devices.
    shared, drawing, limited: as for a SliceBlock.
    reaches: those of its slices that are not on all nodes, each once, in order.
    waiting: the blocks with binding conditions.
    obstacles: what may rule out devices of the pool, besides who holds them and what is asked for.
    fleets: how many sets of pools it is in.
    """

    __slots__ = (
        "_members_by_counter_set",
        "_never",
        "_supply",
        "drawing",
        "fleets",
        "key",
        "layout",
        "limited",
        "obstacles",
        "parted",
        "pool",
        "reaches",
        "shared",
        "standings",
        "used",
        "waiting",
        "whole",
    )

    def __init__(self, key: PoolKey) -> None:
        self.key = key
        self.pool = _nothing_of(key)
        self.fleets = 0
        self.layout = Layout(())
        self.used = self.whole = self.parted = 0
        self.shared = self.drawing = self.limited = 0
        self.standings: tuple[tuple[Standing, int], ...] = ()
        self.reaches: tuple[Reach, ...] = ()
        self.waiting: tuple[SliceBlock, ...] = ()
        self.obstacles = NO_OBSTACLES
        self._supply: PoolSupply | None = None
        self._never: int | None = None
        self._members_by_counter_set: dict[str, int] | None = None

    def update(self, pool: Pool, uses: Mapping[str, Use]) -> list[SliceBlock]:
        """The pool is now like this; only slices that are new cost anything.

        uses: of its devices, by name; some may be unknown here.
        Returns: the blocks that it does not have any more, to be retired.
        """
        self.pool = pool
        self._supply = self._never = self._members_by_counter_set = None
        self.obstacles = _obstacles_of(pool, self.standings)
        known: dict[int, list[SliceBlock]] = {}
        for block in self.layout.blocks:
            known.setdefault(id(block.slice), []).append(block)
        blocks = tuple(block for each in pool.slices for block in known.get(id(each)) or _blocks_of(self, each))
        if blocks == self.layout.blocks:
            return []
        kept = set(blocks)
        gone = [block for block in self.layout.blocks if block not in kept]
        layout = self.layout = Layout(blocks)
        for block, offset in zip(blocks, layout.offsets, strict=True):
            block.offset = offset
        masks: dict[Standing, list[int]] = {}
        for number, block in enumerate(blocks):
            for standing, mask in block.standings:
                masks.setdefault(standing, [0] * len(blocks))[number] = mask
        self.standings = tuple((standing, layout.joined(each)) for standing, each in masks.items())
        self.obstacles = _obstacles_of(pool, self.standings)
        self.shared = layout.joined([block.shared for block in blocks])
        self.drawing = layout.joined([block.drawing for block in blocks])
        self.limited = layout.joined([block.limited for block in blocks])
        reaches = (reach for block in blocks for reach in block.reaches if reach is not EVERYWHERE)
        self.reaches = tuple(dict.fromkeys(reaches))
        self.waiting = tuple(block for block in blocks if block.has_binding_conditions)
        self.use_all(uses)
        return gone

    def retire(self) -> None:
        """The pool is gone. Whoever still names it must not keep its slices alive."""
        self.pool = _nothing_of(self.key)
        self._supply = self._never = self._members_by_counter_set = None
        for block in self.layout.blocks:
            block.retire()

    # --- holders

    def use(self, name: str, use: Use | None) -> int:
        """Somebody else has the device now, or nobody; returns its mask, 0 if it is not known."""
        position = self.position_of(name)
        if position is None:
            return 0
        mask = 1 << position
        self.used = _with(self.used, mask, use is not None)
        self.whole = _with(self.whole, mask, use is not None and use.is_whole)
        self.parted = _with(self.parted, mask, use is not None and use.is_shared)
        return mask

    def use_all(self, uses: Mapping[str, Use]) -> None:
        """These are all devices that somebody has."""
        self.used = self.whole = self.parted = 0
        for name, use in uses.items():
            self.use(name, use)

    @property
    def taken(self) -> int:
        """The devices of which nobody can have anything, unless with admin access."""
        return self.whole | self.used & ~self.shared

    @property
    def drawn(self) -> int:
        """The devices that draw nothing more when somebody gets a share of them: others have shares already."""
        return self.shared & self.parted

    # --- devices

    def position_of(self, name: str) -> int | None:
        """Where the device is in the layout."""
        for block in self.layout.blocks:
            index = block.index_of(name)
            if index is not None:
                return block.offset + index
        return None

    def devices_in(self, mask: int) -> Iterator[tuple[int, Device]]:
        """The devices of a mask, each with its own mask, in order."""
        for block, of_block in self.layout.split(mask):
            for index in bits(of_block):
                yield 1 << block.offset + index, block.devices[index]

    def is_seen_by(self, group: NodeGroup) -> bool:
        """The nodes reach a slice of the pool. One whose devices say where they are is nowhere while it has none."""
        if not self.reaches:
            return any(block.reaches for block in self.layout.blocks)
        return any(block.is_seen_by(group) for block in self.layout.blocks)

    # --- counters

    @property
    def supply(self) -> PoolSupply:
        """The pool's counters, read when they are first needed."""
        if self._supply is None:
            self._supply = PoolSupply(self.pool)
        return self._supply

    @property
    def never(self) -> int:
        """The devices that draw more from counters than there is even if all others are free."""
        if self._never is None:
            self._never = 0
            for mask, device in self.devices_in(self.drawing):
                if self.supply.never(self.supply.draws.get(device.name, ())):
                    self._never |= mask
        return self._never

    def members(self, counter_set: str) -> int:
        """The devices that draw from a counter set; none while the pool cannot be used."""
        if self._members_by_counter_set is None:
            found: dict[str, int] = {}
            for mask, device in self.devices_in(self.drawing):
                for draw in self.supply.draws.get(device.name, ()):
                    found[draw.counter_set] = found.get(draw.counter_set, 0) | mask
            self._members_by_counter_set = found
        return self._members_by_counter_set.get(counter_set, 0)

    def drawing_beside(self, mask: int) -> int:
        """The devices that draw from a counter set which one of these draws from."""
        found = 0
        for _, device in self.devices_in(mask & self.drawing):
            for draw in self.supply.draws.get(device.name, ()):
                found |= self.members(draw.counter_set)
        return found


def _with(mask: int, devices: int, is_so: bool) -> int:
    return mask | devices if is_so else mask & ~devices


def _obstacles_of(pool: Pool, standings: Iterable[tuple[Standing, int]]) -> frozenset[Cause]:
    found = set()
    if pool.problem is not None:
        found.add(Cause.POOL_INVALID if pool.is_complete else Cause.POOL_INCOMPLETE)
    for (place, taints, unsupported), _ in standings:
        if taints:
            found.add(Cause.TAINT)
        if unsupported is not None:
            found.add(Cause.UNSUPPORTED)
        if place != _ON_ALL_NODES:
            found.add(Cause.NODE)
    return frozenset(found) if found else NO_OBSTACLES


def _nothing_of(key: PoolKey) -> Pool:
    return Pool(key=key, generation=0, slices=(), obsolete=(), is_complete=False, problem=None)


def _blocks_of(pool: IndexedPool, slice_: ResourceSlice) -> list[SliceBlock]:
    return [SliceBlock(pool, slice_, first) for first in range(0, max(1, len(slice_.spec.devices)), DEVICES_MAX)]
