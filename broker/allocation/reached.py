"""Pools that have something in common, by the nodes that reach it: so that nobody looks at those of other nodes."""

from collections.abc import Iterable, Iterator, Mapping

from broker.allocation.columns import mask_of
from broker.allocation.devices import IndexedPool
from broker.allocation.nodes import EVERYWHERE, NodeGroup, Reach


class Reached:
    """Some pools.

    reaches: of each pool, those of what it is here for.
    changes: how often something changed.
    """

    def __init__(self) -> None:
        self.reaches: dict[IndexedPool, tuple[Reach, ...]] = {}
        self.changes = 0
        self._pools: dict[Reach, dict[IndexedPool, None]] = {}
        self._positions: dict[Reach, int] = {}  # masks, as of _made_at
        self._made_at = (-1, -1)

    def __bool__(self) -> bool:
        return bool(self.reaches)

    def put(self, pool: IndexedPool, reaches: Iterable[Reach] | None) -> bool:
        """These nodes reach it; None if it is not one of the pools. Returns whether that is new."""
        before, after = self.reaches.get(pool), None if reaches is None else tuple(dict.fromkeys(reaches))
        if before == after:
            return False
        self.changes += 1
        for each in before or ():
            del self._pools[each][pool]
            if not self._pools[each]:
                del self._pools[each]
        for each in after or ():
            self._pools.setdefault(each, {})[pool] = None
        if after is None:
            del self.reaches[pool]
        else:
            self.reaches[pool] = after
        return True

    def seen_by(self, group: NodeGroup) -> Iterator[IndexedPool]:
        """Those that the nodes of the group reach, in no particular order, some more than once."""
        reaches = self._pools if group.reaches is None else (EVERYWHERE, *group.reaches)
        return (pool for each in reaches for pool in self._pools.get(each, ()))

    def positions_for(self, group: NodeGroup, position: Mapping[IndexedPool, int], order: int) -> int:
        """The positions of those that the nodes of the group reach, as a mask.

        position, order: of the fleet.
        """
        if self._made_at != (order, self.changes):
            self._positions, self._made_at = {}, (order, self.changes)
        found = 0
        for each in self._pools if group.reaches is None else (EVERYWHERE, *group.reaches):
            if each in self._pools:
                mask = self._positions.get(each)
                if mask is None:
                    mask = self._positions[each] = mask_of([position[pool] for pool in self._pools[each]])
                found |= mask
        return found
