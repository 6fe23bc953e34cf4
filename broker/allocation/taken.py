"""What a search has taken so far: devices, shares of their capacity, and counters of their pools.

Everything can be given back, the last first. Admin access takes as others do while the search goes on, as upstream;
only afterwards it holds nothing. Source: KEP-4815, KEP-5018, KEP-5075, KEP-5963.
"""

from collections.abc import Hashable
from typing import NamedTuple

from broker.allocation.capacity import Consumption
from broker.allocation.index import IndexedDevice
from broker.allocation.requests import Alternative
from broker.allocation.supplies import Groups, Supplies, admits, joined
from broker.world.counters import Draw
from broker.world.keys import PoolKey

CounterSet = tuple[PoolKey, str]


class _Step(NamedTuple):
    """One device that was taken. draws: those that it had to pay for; groups: those before it, draw by draw."""

    alternative: Alternative
    device: IndexedDevice
    consumption: Consumption | None
    draws: tuple[Draw, ...]
    groups: tuple[Groups, ...]


class Taken:
    """Beside what holders have. A device must be a candidate of the alternative that takes it."""

    def __init__(self, supplies: Supplies) -> None:
        self._supplies = supplies
        self._steps: list[_Step] = []
        self._claims: dict[IndexedDevice, list[int]] = {}  # exclusive devices, by the claims that have them
        self._consumed: dict[IndexedDevice, dict[str, int]] = {}  # of shared devices; with an entry once shared
        self._shares: dict[IndexedDevice, int] = {}
        self._drawn: dict[CounterSet, dict[str, int]] = {}
        self._groups: dict[CounterSet, Groups] = {}

    def take(self, alternative: Alternative, device: IndexedDevice) -> bool:
        """Take the device if there is enough for it; if not, nothing has changed."""
        needs = self._needs(alternative, device)
        if needs is None:
            return False
        consumption, draws = needs
        groups = self._draw(device.key.pool, draws)
        self._steps.append(_Step(alternative, device, consumption, draws, groups))
        if consumption is None:
            self._claims.setdefault(device, []).append(alternative.claim_index)
        else:
            consumed = self._consumed.setdefault(device, {})
            for name, amount, _ in consumption:
                consumed[name] = consumed.get(name, 0) + amount.nanos
            self._shares[device] = self._shares.get(device, 0) + 1
        return True

    def is_exclusively(self, device: IndexedDevice) -> bool:
        """The device is taken as a whole, by a request before."""
        return bool(self._claims.get(device))

    def can_take(self, alternative: Alternative, device: IndexedDevice) -> bool:
        """There is enough for it. What is not there now is not there later either, unless something is given back."""
        return self._needs(alternative, device) is not None

    def _needs(
        self, alternative: Alternative, device: IndexedDevice
    ) -> tuple[Consumption | None, tuple[Draw, ...]] | None:
        """What taking the device costs: of a shared one its capacity, and counters; None if it cannot be had."""
        is_shared = bool(device.device.allow_multiple_allocations)
        consumption: Consumption | None = None
        if is_shared:
            found = device.consumption(alternative.capacity)
            if isinstance(found, str) or not self._has_capacity(device, found):
                return None
            consumption = found
        else:
            claims = self._claims.get(device)
            if claims and (not alternative.admin_access or alternative.claim_index in claims):
                return None
        if not device.device.consumes_counters or (is_shared and self._is_shared_already(device)):
            return consumption, ()
        draws = self._supplies.draws(device.key)
        return (consumption, draws) if self._may_draw(device.key.pool, draws) else None

    def give_back(self) -> tuple[Alternative, IndexedDevice]:
        """Give back the device that was taken last."""
        alternative, device, consumption, draws, groups = self._steps.pop()
        if consumption is None:
            claims = self._claims[device]
            claims.pop()
            if not claims:
                del self._claims[device]
        else:
            consumed = self._consumed[device]
            for name, amount, _ in consumption:
                consumed[name] -= amount.nanos
            self._shares[device] -= 1
            if not self._shares[device]:
                del self._shares[device], self._consumed[device]
        for draw, before in zip(draws, groups, strict=True):
            counter_set = (device.key.pool, draw.counter_set)
            self._groups[counter_set] = before
            drawn = self._drawn[counter_set]
            for counter, drawn_by_it in draw.amounts:
                drawn[counter] -= drawn_by_it
        return alternative, device

    def chosen(self) -> list[tuple[Alternative, IndexedDevice]]:
        """All that is taken, in order."""
        return [(step.alternative, step.device) for step in self._steps]

    def state(self) -> Hashable:
        """Equal when the same can still be taken."""
        # What was drawn from counters follows from the devices, whoever took them first.
        shares = frozenset((device, *sorted(consumed.items())) for device, consumed in self._consumed.items())
        return frozenset((device, *claims) for device, claims in self._claims.items()), shares

    def state_of(self, device: IndexedDevice) -> Hashable:
        """What a search has to tell two devices apart by, as far as what was taken of them goes.

        Not the counters that they draw from; see `state_of_counters`.
        """
        if device.device.allow_multiple_allocations:
            held, taken = self._supplies.consumed(device.key), self._consumed.get(device, {})
            left = tuple((name, held.get(name, 0) + taken.get(name, 0)) for name in sorted(held.keys() | taken.keys()))
            return left, self._is_shared_already(device)
        claims = self._claims.get(device)
        return tuple(claims) if claims else None

    def state_of_counters(self, counter_set: CounterSet) -> Hashable:
        """The same of a counter set: what is left in it, and which compatibility groups it admits."""
        pool, name = counter_set
        drawn = self._drawn.get(counter_set, {})
        left = self._supplies.counters(pool).left
        amounts = tuple((counter, left[of, counter] - drawn.get(counter, 0)) for of, counter in left if of == name)
        return amounts, self._groups_of(counter_set)

    def _has_capacity(self, device: IndexedDevice, consumption: Consumption) -> bool:
        held, taken = self._supplies.consumed(device.key), self._consumed.get(device)
        if not held and taken is None:
            return True
        return all(
            held.get(name, 0) + (taken.get(name, 0) if taken else 0) + amount.nanos <= limit
            for name, amount, limit in consumption
        )

    def _is_shared_already(self, device: IndexedDevice) -> bool:
        return device in self._shares or self._supplies.has_shares(device.key)

    def _may_draw(self, pool: PoolKey, draws: tuple[Draw, ...]) -> bool:
        counters = self._supplies.counters(pool)
        for draw in draws:
            drawn = self._drawn.get((pool, draw.counter_set), {})
            for name, amount in draw.amounts:
                if counters.left[draw.counter_set, name] - drawn.get(name, 0) < amount:
                    return False
            if not admits(self._groups_of((pool, draw.counter_set)), draw.groups):
                return False
        return not counters.is_overdrawn

    def _draw(self, pool: PoolKey, draws: tuple[Draw, ...]) -> tuple[Groups, ...]:
        before = []
        for draw in draws:
            counter_set = (pool, draw.counter_set)
            drawn = self._drawn.setdefault(counter_set, {})
            for name, amount in draw.amounts:
                drawn[name] = drawn.get(name, 0) + amount
            groups = self._groups_of(counter_set)
            before.append(groups)
            self._groups[counter_set] = joined(groups, draw.groups)
        return tuple(before)

    def _groups_of(self, counter_set: CounterSet) -> Groups:
        if counter_set in self._groups:
            return self._groups[counter_set]
        pool, name = counter_set
        return self._supplies.counters(pool).groups.get(name)
