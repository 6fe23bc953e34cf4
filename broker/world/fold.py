"""Fold one ledger entry into the world. The only way in which grants, decisions and reasons change."""

from dataclasses import replace
from typing import assert_never

from msgspec import structs

from broker.errors import InvariantError
from broker.world.keys import ClaimKey, ClaimUid, ClusterId, DeviceKey, PoolKey
from broker.world.records import FOR_EVER, Claim, Eviction, Grant, Ordered, Unsettled, Waiting
from broker.world.world import World
from schemas.wire.codec import encode
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    CheckpointClaims,
    CheckpointEnds,
    CheckpointWorld,
    ClaimForgotten,
    ClassBrokered,
    ClusterAhead,
    ClusterCordoned,
    ClusterEntry,
    ClusterEvicted,
    ClusterExcluded,
    ClusterReadmitted,
    CollisionFound,
    DeviceEntry,
    DeviceHold,
    DeviceTainted,
    DeviceUntainted,
    FenceLifted,
    GrantEnded,
    Inputs,
    LeaderElected,
    LedgerRebuilt,
    LivenessChanged,
    OperatorEntry,
    OutcomeRecorded,
    ReasonChanged,
    Release,
    SegmentClosed,
    SegmentOpened,
    TaintRulesChanged,
)


def apply_entry(world: World, entry: AnyEntry, ledger_sequence: int) -> None:
    """The world after `entry`, which stands at `ledger_sequence`.

    Raises: InvariantError if the entry cannot follow what was folded before.
    """
    if world.is_abandoned:
        world.ledger_last = ledger_sequence  # of somebody who had not read that it is over: it says nothing
        return
    if world.is_closed:
        raise InvariantError(f"entry {ledger_sequence} follows the SegmentClosed of segment {world.segment}")
    match entry:
        case SegmentOpened() if not world.ledger_last and not entry.entries:
            world.checkpoint_last = ledger_sequence  # of the whole ledger: there was nothing before it
        case SegmentOpened() | CheckpointWorld() | CheckpointClaims() | LedgerRebuilt():
            raise InvariantError(f"{type(entry).__name__} {ledger_sequence} stands outside of a checkpoint")
        case SegmentClosed():
            world.is_closed, world.is_abandoned = True, entry.is_abandoned
        case CheckpointEnds():
            pass
        case LeaderElected():
            world.leader_epoch, world.decides_from = ledger_sequence, entry.state_sequence
        case Inputs():
            _inputs(world, entry)
        case Allocate():
            _allocate(world, entry, ledger_sequence)
        case Release():
            _release(world, entry, ledger_sequence)
        case Adopted():
            claim = _claim(world, entry)
            world.add_grant(grant_of(claim, entry, ledger_sequence))
            claim.waiting = claim.collision = None
        case OutcomeRecorded():
            _outcome(world, entry)
        case GrantEnded():
            _grant_ended(world, entry)
        case CollisionFound():
            _claim(world, entry).collision = tuple(entry.holds)
        case ReasonChanged():
            _claim(world, entry).waiting = waiting_of(entry)
        case ClaimForgotten():
            _claim_of(world, entry.cluster, entry.uid).forget_history()
        case ClassBrokered():
            world.told_classes[ClusterId(entry.cluster), entry.name] = entry.spec
        case ClusterEntry():
            _cluster(world, entry, ledger_sequence)
        case DeviceTainted() | DeviceUntainted():
            device = device_of(entry)
            is_tainted = entry.key in world.taints.get(device, {})
            if is_tainted == isinstance(entry, DeviceTainted):
                raise InvariantError(f"{type(entry).__name__} {ledger_sequence} of {device}: {entry.key} is as it says")
            taint(world, entry, ledger_sequence)
        case _:
            assert_never(entry)
    if entry.inputs is not None:
        _inputs(world, entry.inputs)
    world.ledger_last = ledger_sequence


def waiting_of(entry: ReasonChanged) -> Waiting:
    """What a ReasonChanged says, as the claim's record keeps it."""
    return Waiting(entry.state, entry.reason, entry.message, entry.since_ms, entry.order, entry.explanation)


def _inputs(world: World, entry: Inputs) -> None:
    if entry.position_expired:
        for cluster in world.clusters.values():
            cluster.synced_sequence = 0
    for name, epoch in entry.epochs.items():
        record = world.cluster(ClusterId(name))
        record.epoch, record.epoch_from = epoch, entry.epochs_from.get(name, 0)
    for name, sequence in entry.synced.items():
        world.cluster(ClusterId(name)).synced_sequence = sequence
    if entry.steps:
        world.position = entry.steps[-1].position


def _cluster(world: World, entry: ClusterEntry, ledger_sequence: int) -> None:
    record = world.cluster(ClusterId(entry.cluster))
    match entry:
        case LivenessChanged():
            record.liveness, record.liveness_since_ms = entry.state, entry.since_ms
        case ClusterCordoned():
            record.cordon = _ordered(entry, ledger_sequence) if entry.is_cordoned else None
        case ClusterExcluded():
            record.exclusion = _ordered(entry, ledger_sequence) if entry.is_excluded else None
        case ClusterEvicted():
            record.eviction = Eviction(_ordered(entry, ledger_sequence), entry.is_fenced, entry.state_sequence)
            if entry.state_sequence >= record.epoch:
                record.epoch, record.epoch_from = entry.state_sequence + 1, 0
            record.liveness, record.liveness_since_ms = "Live", entry.at_ms
            if entry.is_fenced:  # nothing that it ever said counts any more
                record.synced_sequence, record.silences, record.is_ahead = 0, [(0, FOR_EVER)], False
            elif not record.is_silenced(FOR_EVER):
                record.silences.append((entry.position, FOR_EVER))
        case ClusterReadmitted():
            if record.eviction is None or record.eviction.readmitted:
                raise InvariantError(f"{entry.cluster} is readmitted by {ledger_sequence}, and is not evicted")
            record.eviction = replace(record.eviction, readmission=_ordered(entry, ledger_sequence))
            after, _ = record.silences.pop()
            record.silences.append((after, entry.position))
            if entry.is_fenced:  # all that its claims held has ended, and what was known of them is not true any more
                record.cleaned = ledger_sequence
                for claim in [each for each in world.claims.values() if each.key.cluster == record.name]:
                    world.forget_claim(claim)
        case FenceLifted():
            record.eviction = None
        case ClusterAhead():
            record.is_ahead = True
        case TaintRulesChanged():
            record.taint_rules = tuple(entry.rules)
        case _:
            raise AssertionError(f"{type(entry).__name__} says nothing of a cluster")


def device_of(entry: DeviceEntry) -> DeviceKey:
    """Which device it is about."""
    return DeviceKey(PoolKey(entry.scope, entry.driver, entry.pool), entry.device)


def taint(world: World, entry: DeviceTainted | DeviceUntainted, ledger_sequence: int) -> None:
    """The broker keeps, or keeps no more, this taint on a device."""
    kept = None
    if isinstance(entry, DeviceTainted):
        kept = structs.replace(entry, ledger_sequence=ledger_sequence, inputs=None)
    world.put_taint(device_of(entry), entry.key, kept)


def _ordered(entry: OperatorEntry, ledger_sequence: int) -> Ordered:
    return Ordered(entry.operator, entry.reason, entry.at_ms, ledger_sequence)


def _allocate(world: World, entry: Allocate, ledger_sequence: int) -> None:
    claim = _claim(world, entry)
    if claim.unsettled or claim.grants:
        before = claim.unsettled or claim.grants
        raise InvariantError(f"Allocate {ledger_sequence} for {claim.key}, which still has {before}")
    grant = grant_of(claim, entry, ledger_sequence)
    world.add_grant(grant)
    claim.unsettled = Unsettled(ledger_sequence, "Allocate", grant.stated)
    claim.last_decision = ledger_sequence
    claim.waiting = None


def restated(entry: Allocate | Release | Adopted, ledger_sequence: int) -> bytes:
    """The entry as a checkpoint states it again: with the ledger sequence by which it is known."""
    return encode(structs.replace(entry, ledger_sequence=ledger_sequence, inputs=None))


def grant_of(claim: Claim, entry: Allocate | Adopted, ledger_sequence: int) -> Grant:
    """The grant that an entry makes, as it begins."""
    return Grant(
        claim=claim.key,
        ledger_sequence=ledger_sequence,
        holds=tuple(entry.holds),
        devices=devices_of(entry.holds, entry.scopes),
        is_adopted=isinstance(entry, Adopted),
        state_sequence=entry.state_sequence,
        unscheduled=frozenset(entry.unscheduled if isinstance(entry, Allocate) else ()),
        stated=restated(entry, ledger_sequence),
    )


def _release(world: World, entry: Release, ledger_sequence: int) -> None:
    claim = _claim(world, entry)
    grant = _grant(claim, entry.grant_sequence)
    if claim.unsettled or grant is None:
        raise InvariantError(f"Release {ledger_sequence} of {claim.key}: unsettled {claim.unsettled}, grant {grant}")
    world.replace_grant(grant, structs.replace(grant, is_released=True))
    claim.unsettled = Unsettled(ledger_sequence, "Release", restated(entry, ledger_sequence))
    claim.last_decision = ledger_sequence
    claim.avoid.update(grant.devices)
    claim.failures = entry.rejections
    claim.not_before_ms = entry.retry_at_ms


def _outcome(world: World, entry: OutcomeRecorded) -> None:
    claim = _claim_of(world, entry.cluster, entry.uid)
    unsettled = claim.unsettled
    if unsettled is None or unsettled.ledger_sequence != entry.decision_sequence:
        raise InvariantError(f"outcome of {entry.decision_sequence} for {claim.key}, which waits for {unsettled}")
    claim.unsettled = None
    if unsettled.kind == "Release":
        if entry.outcome != "Applied":  # it is asked for again, not before the time that the Release named
            for released in [grant for grant in claim.grants if grant.is_released]:
                world.replace_grant(released, structs.replace(released, is_released=False))
        return
    grant = _grant(claim, entry.decision_sequence)
    if entry.outcome == "Applied":
        if grant is not None:
            world.replace_grant(grant, structs.replace(grant, was_applied=True))
    else:
        claim.failures, claim.not_before_ms = entry.failures, entry.retry_at_ms


def _grant_ended(world: World, entry: GrantEnded) -> None:
    claim = _claim_of(world, entry.cluster, entry.uid)
    grant = _grant(claim, entry.grant_sequence)
    if grant is None:
        raise InvariantError(f"grant {entry.grant_sequence} of {claim.key} ends, but is not there")
    world.end_grant(grant)
    if entry.cause == "ClaimMissing":
        claim.forget_history()
    elif entry.cause == "AllocationRejected":
        claim.avoid.update(grant.devices)
        claim.failures, claim.not_before_ms = entry.rejections, entry.retry_at_ms
    elif grant.was_applied and not grant.is_released:
        # kube-controller-manager cleared it: it would clear the next one for the same consumers too, for ever.
        claim.spent.add(grant.unscheduled)
        claim.failures, claim.not_before_ms = 0, 0
        claim.avoid.clear()


def _claim(world: World, entry: Allocate | Release | Adopted | CollisionFound | ReasonChanged) -> Claim:
    claim = _claim_of(world, entry.cluster, entry.uid)
    claim.namespace, claim.name = entry.namespace, entry.name
    return claim


def _claim_of(world: World, cluster: str, uid: str) -> Claim:
    return world.claim(ClaimKey(ClusterId(cluster), ClaimUid(uid)))


def _grant(claim: Claim, ledger_sequence: int) -> Grant | None:
    return next((grant for grant in claim.grants if grant.ledger_sequence == ledger_sequence), None)


def devices_of(holds: list[DeviceHold], scopes: list[str]) -> tuple[DeviceKey, ...]:
    """The device of each hold. Raises: ValueError unless there is a scope for each."""
    return tuple(
        DeviceKey(PoolKey(scope, hold.driver, hold.pool), hold.device)
        for hold, scope in zip(holds, scopes, strict=True)
    )
