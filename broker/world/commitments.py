"""What grants commit: devices, shares of their capacity, and counters of their pools, against what there is.

An exclusive device has at most one claim, the shares of a device never exceed its capacity, and counters never go below
zero. What is granted here keeps to that by itself; what clusters show may not, and what a driver publishes may shrink
below what is granted already.
"""

from collections.abc import Iterable, Iterator

from broker.world.counters import CounterName, draws_of, totals_of
from broker.world.keys import ClaimKey, DeviceKey, PoolKey
from broker.world.pools import Pool
from broker.world.records import Claim, Grant
from broker.world.usage import share_amounts
from broker.world.world import World
from schemas.quantity import Quantity, QuantityError
from schemas.resource import Device
from schemas.wire.ledger import DeviceHold

Held = tuple[ClaimKey, DeviceHold]


def grants_in_the_way(world: World, claim: Claim) -> list[Grant]:
    """Grants of other claims beside which what this one shows would be too much, each once, by ledger sequence."""
    found: list[Grant] = []
    occupying = [hold for hold in claim.shown or () if not hold.admin_access]
    own: dict[DeviceKey, list[Held]] = {}
    for device, hold in zip(claim.shown_devices, occupying, strict=True):
        own.setdefault(device, []).append((claim.key, hold))
    for device, holds in own.items():
        others = [each for each in granted_on(world, device) if each[0] != claim.key]
        if others and why_too_much(world, device, [*holds, *others]):
            found += world.granted[device]
    for key in dict.fromkeys(device.pool for device in own):
        found += _drawing_too_much(world, key, own)
    others_only = {grant.ledger_sequence: grant for grant in found if grant.claim != claim.key}
    return [others_only[sequence] for sequence in sorted(others_only)]


def over_commitments(world: World) -> Iterator[str]:
    """Everything that is granted beyond what there is, for people."""
    for device in world.granted:
        holds = list(granted_on(world, device))
        if why := why_too_much(world, device, holds):
            yield why
    names_by_pool: dict[PoolKey, list[str]] = {}
    for device in world.granted:
        names_by_pool.setdefault(device.pool, []).append(device.device)
    for key, names in names_by_pool.items():
        pool = world.inventory.pool(key)
        if pool is not None:
            for counter_set, name in sorted(overdrawn(pool, names)):
                yield f"counter {name} of counter set {counter_set} of pool {key} is below zero"


def granted_on(world: World, device: DeviceKey) -> Iterator[Held]:
    """What grants hold of the device."""
    for grant in world.granted.get(device, ()):
        for key, hold in zip(grant.devices, grant.holds, strict=True):
            if key == device and not hold.admin_access:
                yield grant.claim, hold


def why_too_much(world: World, key: DeviceKey, holds: Iterable[Held]) -> str | None:
    """Why the device cannot be held like this, for people; None if it can. One hold of a claim counts once.

    Nobody knows how much there is of a device that is not published any more, so any shares of it can be.
    """
    held = {(claim, hold.share_id, *hold.consumed_capacity.items()): hold for claim, hold in holds}
    claims = sorted({str(claim) for claim, *_ in held})
    shares = [share_amounts(hold) for hold in held.values()]
    if any(share is None for share in shares):
        return f"device {key} is granted to {claims}" if len(claims) > 1 else None
    device = published(world, key)
    for name, capacity in device.capacity.items() if device is not None else ():
        consumed = sum(share.get(name, 0) for share in shares if share is not None)
        try:
            if consumed > Quantity.parse(capacity.value).nanos:
                return f"the shares of {claims} consume {Quantity(consumed)} of {name} of {key}, of {capacity.value}"
        except QuantityError:
            continue  # nobody can be given a share of it
    return None


def published(world: World, key: DeviceKey) -> Device | None:
    """The device as it is published now."""
    pool = world.inventory.pool(key.pool)
    return next((device for _, device in pool if device.name == key.device), None) if pool is not None else None


def overdrawn(pool: Pool, names: Iterable[str]) -> set[CounterName]:
    """The counters that do not suffice for these devices of the pool together; none while the pool is not usable."""
    if not pool.is_usable:
        return set()
    left = totals_of(pool.slices)
    held = set(names)
    for _, device in pool if left else ():
        for draw in draws_of(device) if device.name in held else ():
            for name, amount in draw.amounts:
                left[draw.counter_set, name] -= amount
    return {counter for counter, amount in left.items() if amount < 0}


def _drawing_too_much(world: World, key: PoolKey, own: Iterable[DeviceKey]) -> Iterator[Grant]:
    pool = world.inventory.pool(key)
    if pool is None:
        return
    granted = {name for name in world.in_use.of_pool(key) if DeviceKey(key, name) in world.granted}
    wanted = {device.device for device in own if device.pool == key}
    beyond = {counter_set for counter_set, _ in overdrawn(pool, granted | wanted)}
    drawing = {device.name: {draw.counter_set for draw in draws_of(device)} & beyond for _, device in pool if beyond}
    contended: set[str] = set().union(*(drawing.get(name, ()) for name in wanted))
    for name in sorted(granted):
        if drawing.get(name, set()) & contended:
            yield from world.granted[DeviceKey(key, name)]
