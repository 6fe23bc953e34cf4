"""Pools as the index keeps them: what is known about their devices beyond what the slices say.

A device is a bit. The parts of a pool's slices follow one another in its layout, each from a whole byte on, and sets of
a pool's devices are masks over the layout. What is here changes when a slice changes or when someone takes or gives
back a device; nothing depends on a claim.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from broker.allocation.cel.engine import BoundDevice, SelectorEngine
from broker.allocation.columns import DEVICES_MAX, SliceColumns
from broker.allocation.constraints import Values, attribute_values
from broker.allocation.nodes import EVERYWHERE, NodeGroup, Reach, reach_of
from broker.allocation.taints import blocking_taints
from broker.allocation.unsupported import unsupported_in_device, unsupported_in_slice
from broker.world.keys import DeviceKey, PoolKey
from broker.world.pools import Pool
from schemas.resource import Device, DeviceTaint, ResourceSlice


class Place(NamedTuple):
    """Where a device can be used.

    binds: only on a node that is known by name.
    """

    reach: Reach
    binds: bool


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

    __slots__ = ("_bound", "_values", "block", "device", "index", "key")

    def __init__(self, block: "SliceBlock", index: int) -> None:
        self.block = block
        self.index = index  # in the block
        self.device: Device = block.devices[index]
        self.key = DeviceKey(block.pool.key, self.device.name)
        self._bound: BoundDevice | None = None
        self._values: dict[str, Values | None] = {}

    @property
    def slice(self) -> ResourceSlice:
        """The slice that publishes it."""
        return self.block.slice

    @property
    def reach(self) -> Reach:
        """The nodes that reach it."""
        return self.block.standing(self.index).place.reach

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
    """

    __slots__ = (
        "_index_by_name",
        "columns",
        "devices",
        "everything",
        "first",
        "has_binding_conditions",
        "offset",
        "pool",
        "reaches",
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
        usual = Standing(Place(reach, False), (), unsupported_in_slice(pool, self.slice))
        masks: dict[Standing, int] = {}
        usual_mask = self.everything
        for index, device in enumerate(self.devices):
            unsupported = usual.unsupported or unsupported_in_device(pool, self.slice, self.first + index)
            if per_device or device.taints or device.binds_to_node or unsupported != usual.unsupported:
                where = reach_of(device.node_name, device.all_nodes, device.node_selector) if per_device else reach
                standing = Standing(Place(where, bool(device.binds_to_node)), blocking_taints(device), unsupported)
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

    free: those that nobody holds.
    standings: each that occurs, with the mask of its devices.
    reaches: those of its slices that are not on all nodes, each once, in order.
    waiting: the blocks with binding conditions.
    fleets: how many sets of pools it is in.
    """

    __slots__ = ("fleets", "free", "key", "layout", "pool", "reaches", "standings", "waiting")

    def __init__(self, key: PoolKey) -> None:
        self.key = key
        self.pool = _nothing_of(key)
        self.fleets = 0
        self.layout = Layout(())
        self.free = 0
        self.standings: tuple[tuple[Standing, int], ...] = ()
        self.reaches: tuple[Reach, ...] = ()
        self.waiting: tuple[SliceBlock, ...] = ()

    def update(self, pool: Pool, held: Collection[str]) -> list[SliceBlock]:
        """The pool is now like this; only slices that are new cost anything.

        held: the names of the devices that are not free; they may be unknown here.
        Returns: the blocks that it does not have any more, to be retired.
        """
        self.pool = pool
        known: dict[int, list[SliceBlock]] = {}
        for block in self.layout.blocks:
            known.setdefault(id(block.slice), []).append(block)
        blocks = tuple(block for each in pool.slices for block in known.get(id(each)) or _blocks_of(self, each))
        if blocks == self.layout.blocks:
            return []
        kept = set(blocks)
        gone = [block for block in self.layout.blocks if block not in kept]
        self.layout = Layout(blocks)
        for block, offset in zip(blocks, self.layout.offsets, strict=True):
            block.offset = offset
        masks: dict[Standing, list[int]] = {}
        for number, block in enumerate(blocks):
            for standing, mask in block.standings:
                masks.setdefault(standing, [0] * len(blocks))[number] = mask
        self.standings = tuple((standing, self.layout.joined(each)) for standing, each in masks.items())
        reaches = (reach for block in blocks for reach in block.reaches if reach is not EVERYWHERE)
        self.reaches = tuple(dict.fromkeys(reaches))
        self.waiting = tuple(block for block in blocks if block.has_binding_conditions)
        self.free = self.layout.everything
        for name in held:
            self.take(name)
        return gone

    def retire(self) -> None:
        """The pool is gone. Whoever still names it must not keep its slices alive."""
        self.pool = _nothing_of(self.key)
        for block in self.layout.blocks:
            block.retire()

    def take(self, name: str) -> None:
        """Someone holds the device."""
        self.free &= ~self._mask_of(name)

    def give_back(self, name: str) -> None:
        """Nobody holds the device any more."""
        self.free |= self._mask_of(name)

    def position_of(self, name: str) -> int | None:
        """Where the device is in the layout."""
        for block in self.layout.blocks:
            index = block.index_of(name)
            if index is not None:
                return block.offset + index
        return None

    def _mask_of(self, name: str) -> int:
        position = self.position_of(name)
        return 0 if position is None else 1 << position

    def is_seen_by(self, group: NodeGroup) -> bool:
        """The nodes reach a slice of the pool; as upstream, one that is on all nodes counts without devices too."""
        return any(block.is_seen_by(group) for block in self.layout.blocks) if self.reaches else bool(self.pool.slices)


def _nothing_of(key: PoolKey) -> Pool:
    return Pool(key=key, generation=0, slices=(), obsolete=(), is_complete=False, problem=None)


def _blocks_of(pool: IndexedPool, slice_: ResourceSlice) -> list[SliceBlock]:
    return [SliceBlock(pool, slice_, first) for first in range(0, max(1, len(slice_.spec.devices)), DEVICES_MAX)]
