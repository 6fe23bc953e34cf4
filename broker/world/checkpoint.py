"""The world as ledger entries that open a segment, and back. Only what the ledger alone holds: no state of clusters.

A checkpoint is complete when as many entries as its first one says are there, and believed when its checksum is right.
Grants and unsettled decisions are stated again on their own subjects, so that agents need no older segment for them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple
from typing import Any, Literal

from msgspec import structs

from broker.errors import CheckpointError
from broker.world import fold
from broker.world.keys import ClaimKey, ClaimUid, ClusterId, DeviceKey, PoolKey
from broker.world.records import Claim, Cluster, Eviction, Ordered, Unsettled, Waiting
from broker.world.world import World
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    CheckpointClaims,
    CheckpointWorld,
    ClaimKept,
    ClassBrokered,
    ClusterCordoned,
    ClusterEntry,
    ClusterEvicted,
    ClusterExcluded,
    ClusterKept,
    ClusterReadmitted,
    ClusterRebuilt,
    ConsumersServed,
    DeviceAvoided,
    DeviceTainted,
    EvictionKept,
    GrantKept,
    LedgerRebuilt,
    OrderKept,
    Release,
    SegmentOpened,
    TaintRulesChanged,
    WaitingKept,
    checkpoint_checksum,
)

PART_BYTES = 128 * 1024  # of the claims in one entry: far below what one message may have
_PARTS = (LedgerRebuilt, CheckpointWorld, CheckpointClaims, ClassBrokered, ClusterEntry, DeviceTainted)
KINDS = (SegmentOpened, *_PARTS, Allocate, Release, Adopted)

Restated = ClusterCordoned | ClusterExcluded | ClusterEvicted | ClusterReadmitted | ClusterRebuilt | TaintRulesChanged
Record = ClaimKept | DeviceAvoided | ConsumersServed


def checkpoint(world: World, shard: str, segment: int, rebuilt: LedgerRebuilt | None = None) -> list[AnyEntry]:
    """The entries that open `segment` with this world: first what it covers, then parts, then decisions as they were.

    Decisions come in the order in which they were made, a claim's unsettled one after its grants: the last message of a
    claim's subject stays its last decision, unless that is settled and made no grant.
    rebuilt: it does not go on from the segment before it, but stands for itself.
    """
    clusters = [
        kept for _, each in sorted(world.clusters.items()) if (kept := cluster_kept(each)) != ClusterKept(each.name)
    ]
    claims = [claim for _, claim in sorted(world.claims.items()) if _is_kept(claim)]
    entries: list[AnyEntry] = [] if rebuilt is None else [rebuilt]
    entries += _world_parts(world, clusters)
    entries += _parts(claims)
    for (cluster, name), spec in sorted(world.told_classes.items(), key=lambda each: each[0]):
        entries.append(ClassBrokered(cluster=cluster, name=name, spec=spec))
    for _, cluster_record in sorted(world.clusters.items()):
        entries += _orders(cluster_record)
    for _, taints in sorted(world.taints.items()):
        entries += [taint for _, taint in sorted(taints.items())]
    stated = {grant.ledger_sequence: grant.stated for claim in claims for grant in claim.grants}
    for claim in claims:
        if claim.unsettled is not None:
            stated[claim.unsettled.ledger_sequence] = claim.unsettled.stated
    entries += [decode_entry(payload) for _, payload in sorted(stated.items())]
    first = SegmentOpened(shard=shard, segment=segment, covers=world.ledger_last, entries=len(entries))
    checksum = checkpoint_checksum(first, map(encode, entries))
    return [structs.replace(first, checksum=checksum), *entries]


def verify(first: SegmentOpened, payloads: Sequence[bytes]) -> None:
    """Raises: CheckpointError unless these are, byte for byte, the entries that followed `first` when it was made."""
    if len(payloads) != first.entries:
        raise CheckpointError(first.segment, f"it has {len(payloads)} entries instead of {first.entries}")
    # A ledger's beginning opens with nothing, which needs no checksum.
    if (first.segment or first.entries) and checkpoint_checksum(first, payloads) != first.checksum:
        raise CheckpointError(first.segment, "its checksum is wrong")


def load(world: World, first: SegmentOpened, entries: Iterable[AnyEntry]) -> None:
    """Make an empty `world` what it was when the checkpoint was made.

    entries: those after `first`, which were verified.
    """
    kept: dict[int, GrantKept] = {}
    unsettled: dict[int, ClaimKey] = {}
    for entry in entries:
        match entry:
            case CheckpointWorld():
                _load_world(world, entry)
            case CheckpointClaims():
                for claim in entry.claims:
                    _load_claim(world, claim)
                    kept.update((grant.ledger_sequence, grant) for grant in claim.grants)
                    if claim.unsettled:
                        unsettled[claim.unsettled] = _key(claim.cluster, claim.uid)
                for device in entry.avoided:
                    key = DeviceKey(PoolKey(device.scope, device.driver, device.pool), device.device)
                    world.claim(_key(device.cluster, device.uid)).avoid.add(key)
                for served in entry.served:
                    world.claim(_key(served.cluster, served.uid)).spent.add(frozenset(served.consumers))
            case ClassBrokered():
                world.told_classes[ClusterId(entry.cluster), entry.name] = entry.spec
            case DeviceTainted():
                fold.taint(world, entry, entry.ledger_sequence)
            case TaintRulesChanged():  # not in CheckpointWorld: there may be many
                world.cluster(ClusterId(entry.cluster)).taint_rules = tuple(entry.rules)
            case LedgerRebuilt() | ClusterEntry():
                pass  # CheckpointWorld has it; this is for the cluster's agent, which may read no other
            case Allocate() | Adopted() | Release():
                _load_decision(world, entry, kept, unsettled)
            case _:
                raise CheckpointError(first.segment, f"{type(entry).__name__} does not belong into one")


def opened(world: World, segment: int, last_sequence: int) -> None:
    """The checkpoint is in the ledger, whole, and ends at `last_sequence`: the world goes on from there."""
    world.segment, world.is_closed, world.is_abandoned = segment, False, False
    world.ledger_last = world.checkpoint_last = last_sequence


def last_state_sequence(world: World) -> int:
    """The last message of DRA_STATE of which the ledger knows."""
    known = [world.position]
    for cluster in world.clusters.values():
        known += [cluster.epoch, cluster.synced_sequence]
        known += [cluster.eviction.state_sequence] if cluster.eviction is not None else []
    return max(known)


def _load_world(world: World, entry: CheckpointWorld) -> None:
    world.position, world.leader_epoch = entry.position, entry.leader_epoch
    for each in entry.clusters:
        cluster = world.cluster(ClusterId(each.name))
        cluster.epoch, cluster.synced_sequence = each.epoch, each.synced_sequence
        cluster.liveness, cluster.liveness_since_ms = each.liveness, each.liveness_since_ms
        cluster.cordon, cluster.exclusion = _ordered(each.cordon), _ordered(each.exclusion)
        if each.eviction is not None:
            why = each.eviction
            readmission = _ordered(why.readmission)
            if why.readmitted and readmission is None:  # as builds before this one have kept it
                readmission = Ordered("", "", 0, why.readmitted)
            ordered = Ordered(*structs.astuple(why.ordered))
            cluster.eviction = Eviction(ordered, why.is_fenced, why.state_sequence, readmission)
        cluster.silences = list(each.silences)
        cluster.cleaned, cluster.rebuilt, cluster.is_ahead = each.cleaned, each.rebuilt, each.is_ahead
        cluster.epoch_from = each.epoch_from


def cluster_kept(cluster: Cluster) -> ClusterKept:
    """All that the ledger holds of a cluster."""
    eviction = None
    if (why := cluster.eviction) is not None:
        ordered = OrderKept(*astuple(why.ordered))
        readmission = _order_kept(why.readmission)
        eviction = EvictionKept(ordered, why.is_fenced, why.state_sequence, why.readmitted, readmission)
    return ClusterKept(
        cluster.name,
        cluster.epoch,
        cluster.synced_sequence,
        cluster.liveness,
        cluster.liveness_since_ms,
        _order_kept(cluster.cordon),
        _order_kept(cluster.exclusion),
        eviction,
        list(cluster.silences),
        cluster.cleaned,
        cluster.rebuilt,
        cluster.is_ahead,
        cluster.epoch_from,
    )


def _orders(cluster: Cluster) -> Iterator[Restated]:
    """What is in force for the cluster, as it was said: agents read no older segment for it."""

    def said_by(order: Ordered) -> dict[str, Any]:
        return {"cluster": cluster.name, **asdict(order)}

    if cluster.cordon is not None:
        yield ClusterCordoned(is_cordoned=True, **said_by(cluster.cordon))
    if cluster.exclusion is not None:
        yield ClusterExcluded(is_excluded=True, **said_by(cluster.exclusion))
    if (why := cluster.eviction) is not None:
        after, until = cluster.silences[-1]
        if why.readmission is not None:
            yield ClusterReadmitted(is_fenced=why.is_fenced, position=until, **said_by(why.readmission))
        else:
            said = said_by(why.ordered)
            yield ClusterEvicted(is_fenced=why.is_fenced, state_sequence=why.state_sequence, position=after, **said)
    if cluster.rebuilt:
        yield ClusterRebuilt(cluster=cluster.name, ledger_sequence=cluster.rebuilt)
    if cluster.taint_rules is not None:
        yield TaintRulesChanged(cluster=cluster.name, rules=list(cluster.taint_rules))


def _order_kept(order: Ordered | None) -> OrderKept | None:
    return None if order is None else OrderKept(*astuple(order))


def _ordered(kept: OrderKept | None) -> Ordered | None:
    return None if kept is None else Ordered(*structs.astuple(kept))


def _load_claim(world: World, kept: ClaimKept) -> None:
    claim = world.claim(_key(kept.cluster, kept.uid))
    claim.namespace, claim.name = kept.namespace, kept.name
    claim.last_decision, claim.failures, claim.not_before_ms = kept.last_decision, kept.failures, kept.not_before_ms
    if kept.waiting is not None:
        why = kept.waiting
        claim.waiting = Waiting(why.state, why.reason, why.message, why.since_ms, why.order, why.explanation)
    if kept.collision is not None:
        claim.collision = tuple(kept.collision)


def _load_decision(
    world: World, entry: Allocate | Adopted | Release, kept: dict[int, GrantKept], unsettled: dict[int, ClaimKey]
) -> None:
    sequence = entry.ledger_sequence
    claim = world.claim(_key(entry.cluster, entry.uid))
    if sequence in kept and not isinstance(entry, Release):
        grant = fold.grant_of(claim, entry, sequence)
        world.add_grant(
            structs.replace(grant, was_applied=kept[sequence].was_applied, is_released=kept[sequence].is_released)
        )
    if unsettled.get(sequence) == claim.key:
        kind: Literal["Allocate", "Release"] = "Release" if isinstance(entry, Release) else "Allocate"
        claim.unsettled = Unsettled(sequence, kind, fold.restated(entry, sequence))


def _is_kept(claim: Claim) -> bool:
    """Whether the ledger holds anything of the claim. A settled past alone counts: it may be tried again."""
    return bool(
        claim.grants
        or claim.unsettled
        or claim.last_decision
        or claim.spent
        or claim.avoid
        or claim.failures
        or claim.not_before_ms
        or claim.waiting
        or claim.collision is not None
    )


def _world_parts(world: World, clusters: Iterable[ClusterKept]) -> Iterator[CheckpointWorld]:
    """How far the world had come, once, or again with each part of the clusters where there are very many."""
    part: list[ClusterKept] = []
    size = 0
    for kept in clusters:
        size_of = len(encode(kept))
        if part and size + size_of > PART_BYTES:
            yield CheckpointWorld(position=world.position, leader_epoch=world.leader_epoch, clusters=part)
            part, size = [], 0
        part.append(kept)
        size += size_of
    yield CheckpointWorld(position=world.position, leader_epoch=world.leader_epoch, clusters=part)


def _parts(claims: Iterable[Claim]) -> Iterator[CheckpointClaims]:
    part, size = CheckpointClaims(), 0
    for claim in claims:
        for record in _records(claim):
            size_of = len(encode(record))
            if size and size + size_of > PART_BYTES:
                yield part
                part, size = CheckpointClaims(claims=[], avoided=[], served=[]), 0
            match record:
                case ClaimKept():
                    part.claims.append(record)
                case DeviceAvoided():
                    part.avoided.append(record)
                case ConsumersServed():
                    part.served.append(record)
            size += size_of
    if size:
        yield part


def _records(claim: Claim) -> Iterator[Record]:
    """What is kept of a claim, in pieces none of which is larger than the ledger entries that it comes from."""
    cluster, uid = claim.key.cluster, claim.key.uid
    yield ClaimKept(
        cluster=cluster,
        uid=uid,
        namespace=claim.namespace,
        name=claim.name,
        grants=[GrantKept(each.ledger_sequence, each.was_applied, each.is_released) for each in claim.grants],
        unsettled=claim.unsettled.ledger_sequence if claim.unsettled else 0,
        last_decision=claim.last_decision,
        failures=claim.failures,
        not_before_ms=claim.not_before_ms,
        waiting=_waiting_kept(claim.waiting),
        collision=None if claim.collision is None else list(claim.collision),
    )
    for device in sorted(claim.avoid):
        pool = device.pool
        yield DeviceAvoided(cluster, uid, pool.scope, pool.driver, pool.pool, device.device)
    for consumers in sorted(map(sorted, claim.spent)):
        yield ConsumersServed(cluster, uid, consumers)


def _waiting_kept(why: Waiting | None) -> WaitingKept | None:
    if why is None:
        return None
    return WaitingKept(why.state, why.reason, why.message, why.since_ms, why.order, dict(why.explanation))


def _key(cluster: str, uid: str) -> ClaimKey:
    return ClaimKey(ClusterId(cluster), ClaimUid(uid))
