"""The world as numbers: how many claims wait for what, how many devices are free. Read only after a batch is stored."""

from collections import Counter

import msgspec

from broker.machine.cluster_report import state_of
from broker.machine.report import claim_row
from broker.world.keys import ClusterId
from broker.world.world import World


class Totals(msgspec.Struct, frozen=True):
    """Counts of one moment.

    claims: by state and reason, see `report.ClaimRow`; the reason is "" where the state says all.
    devices: by scope and whether they are `free`, `held` or `unusable` (their pool is incomplete or wrong).
    tainted: devices that the broker has tainted, by scope and whether a `report` led to it or an `operator` ordered it.
    clusters: each one's state, see `cluster_report.ClusterRow`.
    ledger_sequence, state_sequence: up to where the ledger goes and DRA_STATE was applied.
    """

    claims: dict[tuple[str, str], int]
    devices: dict[tuple[str, str], int]
    tainted: dict[tuple[str, str], int]
    clusters: dict[ClusterId, str]
    ledger_sequence: int
    state_sequence: int


def totals(world: World) -> Totals:
    """Count once over claims and pools."""
    rows = (claim_row(claim) for claim in world.claims.values() if claim.state_sequence)
    claims = Counter((row.state, row.reason) for row in rows)
    devices: Counter[tuple[str, str]] = Counter()
    for pool in world.inventory.all_pools():
        held = world.in_use.of_pool(pool.key)
        names = [device.name for _, device in pool]
        taken = sum(name in held for name in names) if held else 0
        devices[pool.key.scope, "held"] += taken
        devices[pool.key.scope, "free" if pool.is_usable else "unusable"] += len(names) - taken
    tainted = Counter(
        (device.pool.scope, by)
        for device, taints in world.taints.items()
        for by in {"report" if taint.report is not None else "operator" for taint in taints.values()}
    )
    return Totals(
        claims={(state, reason): number for (state, reason), number in claims.items()},
        devices=dict(devices),
        tainted=dict(tainted),
        clusters={
            name: state_of(world.cluster(name)) for name in sorted(world.federation.names() | world.clusters.keys())
        },
        ledger_sequence=world.ledger_last,
        state_sequence=world.position,
    )
