"""Who has which devices, and how much of them: what a decision must know of all that was granted or is shown.

What a held device draws from its pool's counters is not here: that is in its slice, and follows from its being held.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping
from typing import TypeVar

import msgspec

from broker.world.changes import Changes
from broker.world.keys import DeviceKey, PoolKey
from schemas.quantity import Quantity, QuantityError
from schemas.wire.ledger import DeviceHold

_NONE: Mapping[str, "Use"] = {}

Holder = TypeVar("Holder", bound=Hashable)


class Use(msgspec.Struct, frozen=True):
    """Who has a device.

    holders: for people, each once; never empty.
    is_whole: somebody has all of it.
    is_shared: somebody has a share of it. Both only where something went wrong, or what the device is has changed.
    consumed: what the shares together consume of each capacity, in billionths, by the capacity's name.
    """

    holders: tuple[str, ...]
    is_whole: bool = True
    is_shared: bool = False
    consumed: Mapping[str, int] = {}


def use_of(holds: Iterable[tuple[Holder, DeviceHold]], name_of: Callable[[Holder], str] = str) -> Use | None:
    """What holds of one device come to, each with who has it; None if there is none.

    A hold counts once, however many sources tell of it. A share whose amounts cannot be read counts as all of it.
    name_of: how people call a holder. Two holders may be called alike, and each has what it has.
    """
    held = {(holder, (hold.share_id, *hold.consumed_capacity.items())): hold for holder, hold in holds}
    if not held:
        return None
    holders = tuple(dict.fromkeys([name_of(holder) for holder in dict.fromkeys([holder for holder, _ in held])]))
    shares = [share for share in map(share_amounts, held.values()) if share is not None]
    consumed: dict[str, int] = {}
    for share in shares:
        for name, amount in share.items():
            consumed[name] = consumed.get(name, 0) + amount
    return Use(holders, is_whole=len(shares) < len(held), is_shared=bool(shares), consumed=consumed)


def share_amounts(hold: DeviceHold) -> dict[str, int] | None:
    """What a share consumes of each capacity, in billionths; None where the hold is no share that one can read."""
    if not hold.share_id:
        return None
    try:
        amounts = {name: Quantity.parse(amount).nanos for name, amount in hold.consumed_capacity.items()}
    except QuantityError:
        return None
    return amounts if min(amounts.values(), default=0) >= 0 else None


class InUse(MutableMapping[DeviceKey, Use]):
    """The devices that are in use, by key and by pool; kept up to date device by device.

    changes: the devices that are used otherwise than before.
    """

    __slots__ = ("_by_device", "_by_pool", "_versions", "changes")

    def __init__(self, uses: Mapping[DeviceKey, Use] | None = None) -> None:
        self.changes: Changes[DeviceKey] = Changes()
        self._by_device: dict[DeviceKey, Use] = {}
        self._by_pool: dict[PoolKey, dict[str, Use]] = {}
        self._versions: dict[PoolKey, int] = {}
        self.update(uses or {})

    def of_pool(self, pool: PoolKey) -> Mapping[str, Use]:
        """The devices of one pool that are in use, by name."""
        return self._by_pool.get(pool, _NONE)

    def version_of(self, pool: PoolKey) -> int:
        """Changes with each change to a device of the pool."""
        return self._versions.get(pool, 0)

    def __getitem__(self, device: DeviceKey) -> Use:
        return self._by_device[device]

    def __setitem__(self, device: DeviceKey, use: Use) -> None:
        self._by_device[device] = use
        self._by_pool.setdefault(device.pool, {})[device.device] = use
        self._has_changed(device)

    def __delitem__(self, device: DeviceKey) -> None:
        del self._by_device[device]
        of_pool = self._by_pool[device.pool]
        del of_pool[device.device]
        if not of_pool:
            del self._by_pool[device.pool]
        self._has_changed(device)

    def _has_changed(self, device: DeviceKey) -> None:
        self._versions[device.pool] = self.version_of(device.pool) + 1
        self.changes.note(device)

    def __contains__(self, device: object) -> bool:
        return device in self._by_device

    def __iter__(self) -> Iterator[DeviceKey]:
        return iter(self._by_device)

    def __len__(self) -> int:
        return len(self._by_device)
