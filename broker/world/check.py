"""What must always be true of a committed world (DESIGN: invariants 1 and 3). Tests call it after every event."""

from broker.errors import InvariantError
from broker.world.keys import DeviceKey
from broker.world.records import Grant
from broker.world.world import World
from schemas.wire.ledger import DeviceHold


def check(world: World) -> None:
    """Raises: InvariantError naming the first thing that is wrong."""
    granted: dict[DeviceKey, list[tuple[Grant, DeviceHold]]] = {}
    for claim in world.claims.values():
        own = [grant for grant in claim.grants if not grant.is_adopted]
        if len(own) > 1:
            raise InvariantError(f"{claim.key} has {len(own)} grants of ours")
        for grant in claim.grants:
            for device, hold in zip(grant.devices, grant.holds, strict=True):
                if not hold.admin_access:
                    granted.setdefault(device, []).append((grant, hold))
    for device, holders in granted.items():
        claims = {grant.claim for grant, _ in holders}
        if len(claims) > 1 and not all(hold.share_id for _, hold in holders):
            raise InvariantError(f"device {device} is granted to {sorted(map(str, claims))}")
        if device not in world.in_use:
            raise InvariantError(f"device {device} is granted to {sorted(map(str, claims))} but counts as free")
    if set(granted) != set(world.granted):
        raise InvariantError(f"index of granted devices differs: {sorted(map(str, set(granted) ^ set(world.granted)))}")
    if set(world.in_use) != set(world.granted) | set(world.shown):
        raise InvariantError("index of devices in use differs from grants and shown allocations")
