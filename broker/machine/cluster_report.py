"""Clusters for people and for machines: how each stands, what it holds, and what operators ordered."""

from collections import Counter
from collections.abc import Callable

import msgspec

from broker.world.keys import ClusterId
from broker.world.records import Cluster, Ordered
from broker.world.world import World

CLUSTER_STATES = (
    "Ready",
    "Waiting",
    "Stale",
    "Lost",
    "Returning",
    "Ahead",
    "Excluded",
    "Evicted",
    "Quarantined",
    "Readmitting",
)


class OrderRow(msgspec.Struct, frozen=True):
    """Who ordered something, why, and when (Unix milliseconds)."""

    operator: str
    reason: str
    at_ms: int


class ClusterRow(msgspec.Struct, frozen=True):
    """A cluster.

    state: Ready; Waiting, not heard in this ledger's life; Stale, Lost, Returning, see docs/clusters.md; Ahead, it
    knows of decisions that the ledger lost; Excluded; Evicted (cut off), Quarantined, Readmitting.
    heard_ms: when its agent was heard last, 0: not since this broker leads. devices: that it publishes.
    """

    cluster: str
    state: str
    epoch: int
    heard_ms: int
    synced: bool
    claims: int
    grants: int
    devices: int
    cordon: OrderRow | None = None
    exclusion: OrderRow | None = None
    eviction: OrderRow | None = None


def cluster_rows(world: World, heard_ms: Callable[[ClusterId], int] = lambda _: 0) -> list[ClusterRow]:
    """All clusters that take part, or were heard of, by name."""
    claims = Counter(key.cluster for key, claim in world.claims.items() if claim.state_sequence or claim.grants)
    grants: Counter[ClusterId] = Counter()
    for key, claim in world.claims.items():
        grants[key.cluster] += len(claim.grants)
    devices: Counter[ClusterId] = Counter()
    for (cluster, _), each in world.inventory.slices.items():
        devices[cluster] += len(each.spec.devices)
    rows = []
    for name in sorted(world.federation.names() | world.clusters.keys()):
        record = world.clusters.get(name) or Cluster(name)
        rows.append(
            ClusterRow(
                cluster=name,
                state=state_of(record),
                epoch=record.epoch,
                heard_ms=heard_ms(name),
                synced=record.synced_sequence > 0,
                claims=claims[name],
                grants=grants[name],
                devices=devices[name],
                cordon=_row(record.cordon),
                exclusion=_row(record.exclusion),
                eviction=_row(record.eviction.ordered if record.eviction else None),
            )
        )
    return rows


def state_of(record: Cluster) -> str:
    """How the cluster stands, in one word; whether it is cordoned is told apart."""
    if record.eviction is not None:
        if record.eviction.readmitted:
            return "Readmitting"
        return "Evicted" if record.eviction.is_fenced else "Quarantined"
    if record.exclusion is not None:
        return "Excluded"
    if record.is_ahead:
        return "Ahead"
    if not record.synced_sequence:
        return "Waiting"
    return "Ready" if record.liveness == "Live" else record.liveness


def _row(ordered: Ordered | None) -> OrderRow | None:
    return OrderRow(ordered.operator, ordered.reason, ordered.at_ms) if ordered is not None else None
