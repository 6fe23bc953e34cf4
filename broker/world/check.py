"""What must always be true of a committed world (DESIGN: invariants 1 and 3). Tests call it after every event."""

from msgspec.structs import replace

from broker.errors import InvariantError
from broker.world.commitments import over_commitments
from broker.world.usage import use_of
from broker.world.world import World


def check(world: World) -> None:
    """Raises: InvariantError naming the first thing that is wrong.

    A driver that takes away capacity or counters under live grants makes it fail too: nobody can prevent that.
    """
    granted = set()
    for claim in world.claims.values():
        own = [grant for grant in claim.grants if not grant.is_adopted]
        if len(own) > 1:
            raise InvariantError(f"{claim.key} has {len(own)} grants of ours")
        for grant in claim.grants:
            for device, hold in zip(grant.devices, grant.holds, strict=True):
                if not hold.admin_access:
                    granted.add(device)
    if granted != set(world.granted):
        raise InvariantError(f"index of granted devices differs: {sorted(map(str, granted ^ set(world.granted)))}")
    for device in set(world.granted) | set(world.shown):
        use = use_of(world.holds_on(device), world.holder_name)
        known = world.in_use.get(device)
        if use is None or known is None or replace(known, holders=use.holders) != use:
            raise InvariantError(f"device {device} is used by {use}, and counts as {known}")
    if set(world.in_use) != set(world.granted) | set(world.shown):
        raise InvariantError("index of devices in use differs from grants and shown allocations")
    for text in over_commitments(world):
        raise InvariantError(text)
