"""What holders leave of the counters of pools and of the capacity of shared devices, before a search takes any.

Whether a device can be held at all beside them is decided here; what a search has taken itself is in `taken`.
Source: KEP-4815 (counters), KEP-5963 (compatibility groups), KEP-5075 (shares).
"""

from collections.abc import Callable, Iterable, Mapping

from broker.world.counters import CounterName, Draw, draws_of, totals_of
from broker.world.keys import DeviceKey, PoolKey
from broker.world.pools import Pool
from broker.world.usage import InUse, Use

Groups = frozenset[str] | None  # common to all that draw from a counter set; empty: they have none; None: nobody draws
_NOBODY = frozenset([""])  # no group has this name
_NO_CONSUMPTION: Mapping[str, int] = {}


def admits(together: Groups, groups: frozenset[str]) -> bool:
    """A device of these groups may draw beside those that draw already."""
    if together is None or not together or not groups:
        return together is None or together == groups
    return not together.isdisjoint(groups)


def joined(together: Groups, groups: frozenset[str]) -> frozenset[str]:
    """The groups in common once the device draws too.

    Holders that do not go together, as when a driver changed their groups, let nobody in; upstream goes by the order of
    their slices then.
    """
    if together is None or together == groups:
        return groups
    return together & groups or _NOBODY


class PoolCounters:
    """The counters of one pool as holders leave them.

    left: in billionths; below zero where a driver took away what is drawn.
    is_overdrawn: some counter is below zero. As upstream, nothing of the pool that draws is then given to anybody.
    """

    __slots__ = ("groups", "is_overdrawn", "left")

    def __init__(self, totals: Mapping[CounterName, int], held: Iterable[tuple[Draw, ...]]) -> None:
        self.left = dict(totals)
        self.groups: dict[str, frozenset[str]] = {}
        for draws in held:
            for draw in draws:
                for name, amount in draw.amounts:
                    self.left[draw.counter_set, name] -= amount
                self.groups[draw.counter_set] = joined(self.groups.get(draw.counter_set), draw.groups)
        self.is_overdrawn = min(self.left.values(), default=0) < 0

    def why_not(self, draws: Iterable[Draw]) -> str | None:
        """Why a device that draws so cannot be held now, for people."""
        if self.is_overdrawn:
            return "a counter of the pool is overdrawn"
        for draw in draws:
            for name, amount in draw.amounts:
                if self.left[draw.counter_set, name] < amount:
                    return f"{name} of {draw.counter_set}"
            if not admits(self.groups.get(draw.counter_set), draw.groups):
                return f"compatibility groups in {draw.counter_set}"
        return None


class PoolSupply:
    """What does not depend on holders, worked out once for each version of a pool.

    draws: of the devices that draw from counters, by name.
    """

    __slots__ = ("_counters", "_in_use", "_key", "_totals", "_version", "draws")

    def __init__(self, pool: Pool) -> None:
        self._key = pool.key
        self._totals = totals_of(pool.slices) if pool.is_usable else {}
        self.draws: dict[str, tuple[Draw, ...]] = {
            device.name: draws_of(device) for _, device in pool if device.consumes_counters and pool.is_usable
        }
        self._counters: PoolCounters | None = None
        self._in_use: InUse | None = None  # what _counters were worked out from, and its version
        self._version = 0

    def counters(self, in_use: InUse) -> PoolCounters:
        """The counters beside these holders; worked out anew only when a device of the pool changed hands."""
        version = in_use.version_of(self._key)
        if self._counters is None or self._in_use is not in_use or self._version != version:
            held = in_use.of_pool(self._key)
            self._counters = PoolCounters(self._totals, (self.draws[name] for name in held if name in self.draws))
            self._in_use, self._version = in_use, version
        return self._counters

    def never(self, draws: Iterable[Draw]) -> str | None:
        """Why the device cannot be held even if all others are free, for people."""
        for draw in draws:
            for name, amount in draw.amounts:
                if self._totals[draw.counter_set, name] < amount:
                    return f"{name} of {draw.counter_set}"
        return None


class Supplies:
    """The supplies of all pools, beside one set of holders."""

    def __init__(self, in_use: InUse, supply_of: Callable[[PoolKey], PoolSupply]) -> None:
        self.in_use = in_use
        self._supply_of = supply_of

    def draws(self, device: DeviceKey) -> tuple[Draw, ...]:
        """What the device draws from counters when it is held; () of a pool that cannot be used."""
        return self._supply_of(device.pool).draws.get(device.device, ())

    def never(self, device: DeviceKey) -> str | None:
        """Why its counters can never suffice, for people."""
        return self._supply_of(device.pool).never(self.draws(device))

    def counters(self, pool: PoolKey) -> PoolCounters:
        """The counters of a pool."""
        return self._supply_of(pool).counters(self.in_use)

    def has_shares(self, device: DeviceKey) -> bool:
        """Somebody has a share of it, so its counters are drawn already."""
        use: Use | None = self.in_use.get(device)
        return use is not None and use.is_shared

    def consumed(self, device: DeviceKey) -> Mapping[str, int]:
        """What shares consume of it, by capacity."""
        use: Use | None = self.in_use.get(device)
        return use.consumed if use is not None else _NO_CONSUMPTION
