"""What the holder of a device reports of it in its claim's status.devices, and whether that makes it a broken device.

KEP-4817 defines one condition type, Ready: the device is configured as its claim wants it. That is False while it is
being prepared, and may be the claim's own fault, so it says nothing of the device. Which conditions do is a setting.
"""

from collections.abc import Iterator
from typing import NamedTuple

from broker.world.federation import DeviceHealth
from broker.world.keys import ClaimKey, DeviceKey
from broker.world.records import Claim
from broker.world.world import World
from schemas.resource import AllocatedDeviceStatus
from schemas.resource.meta import Condition
from schemas.wire.ledger import DeviceHold

Identity = tuple[str, str, str, str]  # driver, pool, device and shareID ("": the whole device)


class Verdict(NamedTuple):
    """condition: the one that says so."""

    is_healthy: bool
    condition: Condition


def verdict_on(status: AllocatedDeviceStatus, settings: DeviceHealth) -> Verdict | None:
    """Whether the device is healthy; None where nothing is said about that, or that it is not known."""
    found: Verdict | None = None
    for condition in status.conditions:
        says = {"True": True, "False": False}.get(condition.status)
        if says is None:
            continue
        if condition.type_ in settings.unhealthy:
            says = not says
        elif condition.type_ not in settings.healthy:
            continue
        if not says:
            return Verdict(False, condition)
        found = found or Verdict(True, condition)
    return found


def identity_of(each: AllocatedDeviceStatus | DeviceHold) -> Identity:
    """By what a status.devices entry and a result of the allocation are the same device (and share)."""
    return each.driver, each.pool, each.device, each.share_id or ""


def held_by(claim: Claim) -> dict[Identity, DeviceKey]:
    """The devices that the claim can speak about: granted to it, and shown by it. Admin access holds nothing."""
    return {
        identity_of(hold): device
        for grant in claim.grants
        if grant.holds == claim.shown
        for hold, device in zip(grant.holds, grant.devices, strict=True)
        if not hold.admin_access
    }


def verdicts(claim: Claim, settings: DeviceHealth) -> dict[Identity, bool]:
    """What the claim says now of devices, whether it holds them or not."""
    statuses = claim.spec.status.devices if claim.spec is not None else []
    found = {identity_of(status): verdict_on(status, settings) for status in statuses}
    return {identity: verdict.is_healthy for identity, verdict in found.items() if verdict is not None}


def who_says_unhealthy(world: World, device: DeviceKey) -> Iterator[ClaimKey]:
    """The claims that hold the device and report it unhealthy, as they were last heard."""
    for grant in world.granted.get(device, ()):
        claim = world.claims[grant.claim]
        said = verdicts(claim, world.federation.device_health)
        if any(key == device and said.get(identity) is False for identity, key in held_by(claim).items()):
            yield claim.key
