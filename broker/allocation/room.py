"""Room for a request in devices that are not taken as a whole: capacity and counters, for a whole pool at once.

What is asked here is asked of `capacity` and `supplies` device by device; masks keep the answers. Source: KEP-4815
(counters), KEP-5075 (shares).
"""

from broker.allocation.capacity import CapacityAsk, Consumption, consumption_of
from broker.allocation.columns import Cell
from broker.allocation.devices import IndexedPool, Layout
from broker.world.usage import InUse
from schemas.resource import Device

_ANSWERS_KEPT = 100_000  # amounts come from tenants


class Room:
    """Whether a request fits into the devices of pools, as their holders leave them."""

    def __init__(self) -> None:
        self._consumptions: dict[tuple[Cell, CapacityAsk], Consumption | str] = {}
        self._capable: dict[tuple[IndexedPool, CapacityAsk], tuple[Layout, int]] = {}

    def tidy(self) -> None:
        """Forget what is beyond the bounds."""
        if len(self._consumptions) > _ANSWERS_KEPT:
            self._consumptions.clear()
        if len(self._capable) > _ANSWERS_KEPT:
            self._capable.clear()

    def capable(self, pool: IndexedPool, ask: CapacityAsk) -> int:
        """The devices that have the capacities which are asked for, in amounts that their policies allow."""
        if not ask and not pool.limited:
            return pool.layout.everything
        known = self._capable.get((pool, ask))
        if known is not None and known[0] is pool.layout:
            return known[1]
        masks = []
        for block in pool.layout.blocks:
            mask = block.everything
            if ask or block.limited:
                column = block.columns.profiles
                for code, profile in enumerate(column.cells):
                    if isinstance(self._consumption(profile, block.devices[column.codes.index(code)], ask), str):
                        mask &= ~column.mask(code)
            masks.append(mask if ask else mask | ~block.limited & block.everything)
        found = pool.layout.joined(masks)
        self._capable[pool, ask] = (pool.layout, found)
        return found

    def full(self, pool: IndexedPool, ask: CapacityAsk, among: int, in_use: InUse) -> int:
        """Those of the devices of which others have shares, and have left too little."""
        found = 0
        uses = in_use.of_pool(pool.key)
        for block, mask in pool.layout.split(among & pool.shared & pool.used):
            column = block.columns.profiles
            while mask:
                low = mask & -mask
                mask ^= low
                index = low.bit_length() - 1
                device = block.devices[index]
                consumption = self._consumption(column.cells[column.codes[index]], device, ask)
                consumed = uses[device.name].consumed
                if isinstance(consumption, str) or any(
                    consumed.get(name, 0) + amount.nanos > limit for name, amount, limit in consumption if consumed
                ):
                    found |= low << block.offset
        return found

    def _consumption(self, profile: Cell, device: Device, ask: CapacityAsk) -> Consumption | str:
        found = self._consumptions.get((profile, ask))
        if found is None:
            found = self._consumptions[profile, ask] = consumption_of(device, ask)
        return found


def undrawable(pool: IndexedPool, among: int, in_use: InUse) -> int:
    """Those of the devices for which others have left too little in the counters, or do not go together with them."""
    must_draw = among & pool.drawing & ~pool.drawn & ~pool.never
    if not must_draw or not in_use.of_pool(pool.key):
        return 0
    counters = pool.supply.counters(in_use)
    found = 0
    for mask, device in pool.devices_in(must_draw):
        if counters.why_not(pool.supply.draws.get(device.name, ())):
            found |= mask
    return found
