"""Devices for people: what their holders report of them, and the taints that the broker keeps."""

import msgspec

from broker.world.commitments import published
from broker.world.keys import DeviceKey
from broker.world.records import Claim
from broker.world.world import World
from schemas.resource import AllocatedDeviceStatus
from schemas.wire.ledger import DeviceTainted

CONDITIONS_TOLD = 8  # as many as an API server takes for a device


class ConditionRow(msgspec.Struct, frozen=True):
    """One condition that a driver reports."""

    type: str
    status: str
    reason: str
    message: str


class TaintRow(msgspec.Struct, frozen=True):
    """A taint that the broker keeps. by: the operator, or the claim that reported it; since: Unix milliseconds."""

    key: str
    effect: str
    by: str
    reason: str
    since_ms: int
    ledger_sequence: int


class DeviceStatusRow(msgspec.Struct, frozen=True):
    """A device of a claim. conditions, addresses (interface, then IPs, then the hardware's): from status.devices."""

    driver: str
    pool: str
    device: str
    share_id: str
    conditions: list[ConditionRow]
    addresses: list[str]
    taints: list[TaintRow]


class DeviceRow(msgspec.Struct, frozen=True):
    """A device that the broker has tainted. holders: claims that have it, or a share of it."""

    scope: str
    driver: str
    pool: str
    device: str
    is_published: bool
    holders: list[str]
    taints: list[TaintRow]


def device_rows(world: World) -> list[DeviceRow]:
    """All devices with taints that the broker keeps, by key."""
    rows = []
    for device in sorted(world.taints):
        pool, use = device.pool, world.in_use.get(device)
        rows.append(
            DeviceRow(
                pool.scope,
                pool.driver,
                pool.pool,
                device.device,
                published(world, device) is not None,
                list(use.holders) if use is not None else [],
                taint_rows(world, device),
            )
        )
    return rows


def device_statuses(world: World, claim: Claim) -> list[DeviceStatusRow]:
    """The devices that the claim's allocation shows, in its order."""
    statuses = claim.spec.status.devices if claim.spec is not None else []
    said = {(each.driver, each.pool, each.device, each.share_id or ""): each for each in statuses}
    rows = []
    for hold in claim.shown or ():
        status = said.get((hold.driver, hold.pool, hold.device, hold.share_id))
        rows.append(
            DeviceStatusRow(
                hold.driver,
                hold.pool,
                hold.device,
                hold.share_id,
                _conditions(status) if status is not None else [],
                _addresses(status) if status is not None else [],
                taint_rows(world, world.device_key(claim.key.cluster, hold)),
            )
        )
    return rows


def taint_rows(world: World, device: DeviceKey) -> list[TaintRow]:
    """The taints that the broker keeps on a device, by key."""
    return [_taint_row(taint) for _, taint in sorted(world.taints.get(device, {}).items())]


def _taint_row(taint: DeviceTainted) -> TaintRow:
    by, reason = taint.operator, taint.reason
    if (report := taint.report) is not None:
        by = f"claim {report.cluster}/{report.namespace}/{report.name}"
        reason = ": ".join(each for each in (report.condition, report.reason, report.message) if each)
    return TaintRow(taint.key, taint.effect, by, reason, taint.at_ms, taint.ledger_sequence)


def _conditions(status: AllocatedDeviceStatus) -> list[ConditionRow]:
    return [
        ConditionRow(each.type_, each.status, each.reason, each.message) for each in status.conditions[:CONDITIONS_TOLD]
    ]


def _addresses(status: AllocatedDeviceStatus) -> list[str]:
    network = status.network_data
    if network is None:
        return []
    return [each for each in (network.interface_name, *network.ips, network.hardware_address) if each]
