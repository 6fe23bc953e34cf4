"""What a claim's message does to its decisions and grants: the rules that free a device, and no other.

A grant ends exactly when (a) the claim is deleted, or a finished full sync lacks it; or (b) a message shows no
allocation, or another one, and says that the grant's decision is settled (or the grant was adopted: nobody settles
those). A message that has not settled the decision says nothing about the grant: the agent may not have written yet.
"""

from collections.abc import Sequence

from broker.machine import device_taints, pools
from broker.machine.core import Core
from broker.world import observe
from broker.world.commitments import grants_in_the_way
from broker.world.keys import ClaimKey, ClaimUid, ClusterId
from broker.world.records import Claim, Grant
from schemas.resource import ResourceClaim
from schemas.resource.validate import validate_metadata
from schemas.wire.ledger import (
    Adopted,
    ClaimForgotten,
    ClusterAhead,
    CollisionFound,
    EndCause,
    GrantEnded,
    OutcomeRecorded,
    Release,
)
from schemas.wire.state import ClaimState, ObjectName

HELD = "dragoman.dev/held"  # the agent's finalizer
BACK_OFF_FIRST_MS = 1_000
ERRORS_TOLD = 5
HOLDERS_TOLD = 20
TEXT_LENGTH_MAX = 1_000  # of what a cluster says and the ledger repeats
BACK_OFF_MOST_MS = 300_000


def on_claim(
    core: Core, cluster: ClusterId, uid: str, state: ClaimState, spec: ResourceClaim | None, stream_sequence: int
) -> None:
    """The claim lives, and this is all that its agent knows of it."""
    world = core.world
    known = world.claims.get(ClaimKey(cluster, ClaimUid(uid)))
    if not core.is_replaying and not world.cluster(cluster).is_ahead:
        lost = _why_lost(core, cluster, known, state, spec)
        if lost:
            _distrust(core, cluster, f"claim {uid}: {lost}")
    told_before = device_taints.told_by(core, known)
    shown_before = known.shown_devices if known is not None else ()
    claim = observe.observe_claim(world, cluster, ClaimUid(uid), state, spec, stream_sequence)
    claim.is_checked, claim.invalid = (False, None) if spec is not None else (True, ("Unreadable", claim.error))
    if core.is_replaying:
        return
    # Nothing changed for those who wait where a grant of the claim has the device anyway, as when an allocation of ours
    # is reported as applied: to try them all again for each report would cost the square of a full fleet.
    changed = set(shown_before) ^ set(claim.shown_devices)
    core.wake_devices(changed.difference(*(grant.devices for grant in claim.grants)))
    if not world.cluster(cluster).is_ahead:  # else what it says of decisions is about others than ours
        _settle(core, claim)
        if spec is not None:  # what cannot be read ends nothing: its grants stay
            for grant in reversed(list(claim.grants)):
                if claim.shown == grant.holds or not _is_settled(claim, grant):
                    continue
                if claim.shown is not None:
                    end_grant(core, grant, "AllocationReplaced")
                elif _is_rejected(claim, grant):
                    end_grant(core, grant, "AllocationRejected", claim.failures + 1)
                    _tell_rejection(core, claim, "its cluster has cleared it while a pod waits for a node")
                else:
                    end_grant(core, grant, "AllocationCleared")
            device_taints.take_reports(core, claim, told_before)
            release_if_rejected(core, claim)
    if claim.is_shown_without_grant and not is_fenced(core, cluster):
        core.to_adopt.add(claim.key)
    core.queue.make_due(claim.key)


def check(core: Core, claim: Claim) -> None:
    """Find out whether a claim can ever be allocated as it is, unless that is known."""
    if claim.is_checked or claim.spec is None:
        return
    claim.is_checked, claim.invalid = True, _why_invalid(core, claim.spec)
    if claim.invalid is not None:
        core.notice("warning", claim.invalid[0], f"claim {core.world.holder_name(claim.key)}", claim.invalid[1])


def on_tombstone(core: Core, cluster: ClusterId, uid: str, stream_sequence: int) -> None:
    """The claim was deleted. stream_sequence: of the message that says so, or of the sync that lacks it."""
    core.world.know(core.world.cluster(cluster), ObjectName("claim", uid), 0)
    key = ClaimKey(cluster, ClaimUid(uid))
    claim = core.world.claims.get(key)
    if claim is None:
        return
    if not core.is_replaying:
        _end_claim(core, key, "ClaimDeleted")
    elif not claim.grants and claim.unsettled is None:
        core.queue.remove(key)
        waiting = claim.waiting
        core.world.forget_claim(claim)  # only its history is in the ledger
        if waiting is not None and waiting.order > stream_sequence:
            core.world.claim(key).waiting = waiting  # of later: what came after that cannot be read


def on_unreadable(core: Core, cluster: ClusterId, uid: str, error: str, stream_sequence: int) -> None:
    """A message on the claim's subject that is not JSON or not a claim's: the claim is there, that is all."""
    claim = observe.observe_unreadable_claim(core.world, cluster, ClaimUid(uid), error, stream_sequence)
    claim.is_checked, claim.invalid = True, ("Unreadable", error)
    core.queue.make_due(claim.key)


def end_missing(core: Core) -> None:
    """End what a finished full sync lacked, as much as the batch has room for."""
    while core.to_end and core.has_room():
        key, cause, stream_sequence = core.to_end.popleft()
        claim = core.world.claims.get(key)
        core.cause = stream_sequence if cause == "ClaimMissing" else 0
        if claim is not None and claim.state_sequence <= stream_sequence:
            core.world.know(core.world.cluster(key.cluster), ObjectName("claim", key.uid), 0)
            _end_claim(core, key, cause)


def is_fenced(core: Core, cluster: ClusterId) -> bool:
    """It was evicted as cut off: its agent has yet to clear what it shows, and none of that becomes a grant."""
    eviction = core.world.cluster(cluster).eviction
    return eviction is not None and eviction.is_fenced


def may_adopt(core: Core) -> bool:
    """Whether it is known which fabric a device is on: where labels say so, only after every cluster was heard."""
    return core.world.inventory.labels_open or not core.world.federation.believe_labels


def adopt(core: Core) -> None:
    """Allocations that no grant covers become grants, as soon as nobody else's grant holds what they hold."""
    world = core.world
    if not may_adopt(core):
        return
    for claim in sorted(
        (world.claims[key] for key in core.to_adopt if key in world.claims), key=lambda each: each.state_sequence
    ):
        if not core.has_room():
            return
        core.to_adopt.discard(claim.key)
        core.cause = claim.state_sequence
        if not claim.is_shown_without_grant or claim.shown is None or claim.spec is None:
            continue
        if is_fenced(core, claim.key.cluster):
            continue
        devices = [world.device_key(claim.key.cluster, hold) for hold in claim.shown]
        in_the_way = grants_in_the_way(world, claim)
        if not in_the_way:
            core.record(
                Adopted(
                    cluster=claim.key.cluster,
                    uid=claim.key.uid,
                    namespace=claim.namespace,
                    name=claim.name,
                    state_sequence=claim.state_sequence,
                    holds=list(claim.shown),
                    scopes=[device.pool.scope for device in devices],
                )
            )
            device_taints.take_reports(core, claim, {})
        elif claim.collision != claim.shown:
            first = in_the_way[:HOLDERS_TOLD]  # of shares there may be any number
            held_by = [f"{world.holder_name(grant.claim)} (grant {grant.ledger_sequence})" for grant in first]
            if len(in_the_way) > len(first):
                held_by.append(f"{len(in_the_way) - len(first)} more")
            core.record(
                CollisionFound(
                    cluster=claim.key.cluster,
                    uid=claim.key.uid,
                    namespace=claim.namespace,
                    name=claim.name,
                    holds=list(claim.shown),
                    held_by=held_by,
                )
            )
            core.notice(
                "error",
                "DeviceHeldTwice",
                f"claim {world.holder_name(claim.key)}",
                f"its allocation has devices that are held by {', '.join(held_by)}; it is adopted when those end",
            )
    core.to_adopt &= world.claims.keys()


def end_grant(core: Core, grant: Grant, cause: EndCause, rejections: int = 0) -> None:
    """The grant's devices are free from here on. rejections: in a row, this one included."""
    core.record(
        GrantEnded(
            cluster=grant.claim.cluster,
            uid=grant.claim.uid,
            grant_sequence=grant.ledger_sequence,
            cause=cause,
            retry_at_ms=core.now_ms + back_off_ms(rejections) if rejections else 0,
            rejections=rejections,
        )
    )
    core.wake_devices(grant.devices)
    for device in grant.devices:
        core.to_adopt.update(core.world.shown_beside(device))
    if not core.world.federation.believe_labels:
        return
    for driver, pool in sorted({(device.pool.driver, device.pool.pool) for device in grant.devices}):
        for (cluster, _), placed in core.world.inventory.place_again(driver, pool):
            if placed.key is not None:
                pools.changed(core, placed.key, cluster)
                core.world.resolve_again()


def back_off_ms(failures: int) -> int:
    """How long to wait after so many failures in a row (at least one)."""
    return min(BACK_OFF_FIRST_MS << min(failures - 1, 20), BACK_OFF_MOST_MS)


def _why_lost(
    core: Core, cluster: ClusterId, known: Claim | None, state: ClaimState, spec: ResourceClaim | None
) -> str:
    """What the message knows that the ledger would know, had nothing of it been lost; "" if there is nothing.

    An agent has no decision but from the ledger, and our finalizer comes with the first one. What holds nothing and
    names a decision that was never made for it is odd, and does no harm.
    """
    said = state.decision.ledger_sequence if state.decision is not None else 0
    if said > core.world.ledger_last:
        return f"decision {said} is later than the ledger"
    if spec is None or (known is not None and known.grants):
        return ""
    last = known.last_decision if known is not None else 0
    cleaned = core.world.cluster(cluster).cleaned
    if said > max(last, cleaned) and spec.status.allocation is not None:
        return f"it is allocated by decision {said}, which is not in the ledger"
    if HELD in spec.metadata.finalizers and not (said or last or cleaned):
        return f"it carries {HELD}, and the ledger knows of no decision for it"
    return ""


def _distrust(core: Core, cluster: ClusterId, why: str) -> None:
    """The cluster knows of a decision that the ledger does not have: it was lost or cut, or the cluster is wrong.

    Either way nothing of the fabrics that it reaches may be granted, for it may hold devices that nobody knows of. That
    goes into the ledger: when it has grown, the numbers alone tell nothing any more.
    """
    core.record(ClusterAhead(cluster=cluster, message=why[:TEXT_LENGTH_MAX]))
    core.notice(
        "error",
        "LedgerLost",
        cluster,
        f"{why}; the ledger, which ends at {core.world.ledger_last}, was lost or cut, or is an older copy. Nothing that"
        f" {cluster} reaches is granted until `dragoman ledger rebuild` (docs/reliability.md)",
    )


def _why_invalid(core: Core, claim: ResourceClaim) -> tuple[str, str] | None:
    facts = core.specs.of(claim.spec)
    errors = [*map(str, validate_metadata(claim.metadata)), *facts.errors]
    if errors:
        return "InvalidClaim", _told(errors)
    return ("InvalidSelector", _told(facts.selector_errors)) if facts.selector_errors else None


def _told(found: Sequence[str]) -> str:
    """The first few of many."""
    more = f"; and {len(found) - ERRORS_TOLD} more" if len(found) > ERRORS_TOLD else ""
    return "; ".join(found[:ERRORS_TOLD]) + more


def _is_settled(claim: Claim, grant: Grant) -> bool:
    return grant.is_adopted or (claim.settled is not None and claim.settled.ledger_sequence >= grant.ledger_sequence)


def _is_rejected(claim: Claim, grant: Grant) -> bool:
    """It was in force, and was cleared while a pod that it was made for waits for a node: by kube-scheduler, which has
    found none that can use it. kube-controller-manager clears what no live pod is reserved for.
    """
    return grant.was_applied and not grant.is_released and bool(grant.unscheduled & claim.live_unscheduled)


def _settle(core: Core, claim: Claim) -> None:
    unsettled, said = claim.unsettled, claim.settled
    if unsettled is None or said is None or said.ledger_sequence < unsettled.ledger_sequence:
        return
    failed = said.outcome == "Failed"
    failures = claim.failures + 1 if failed else 0
    core.record(
        OutcomeRecorded(
            cluster=claim.key.cluster,
            uid=claim.key.uid,
            decision_sequence=unsettled.ledger_sequence,
            outcome=said.outcome,
            message=said.message[:TEXT_LENGTH_MAX],
            failures=failures,
            retry_at_ms=core.now_ms + back_off_ms(failures) if failed else 0,
        )
    )


def release_if_rejected(core: Core, claim: Claim) -> None:
    """Ask an allocation back that its cluster cannot use; again after a while where that failed."""
    rejected = claim.rejected
    if rejected is None or claim.unsettled is not None or claim.not_before_ms > core.now_ms:
        return
    if core.world.cluster(claim.key.cluster).is_ahead:
        return  # what it names is not a decision of this ledger
    if any(pod.is_running for pod in claim.consumers):
        return  # a pod runs with it after all
    grant = next((grant for grant in claim.grants if grant.ledger_sequence == rejected.ledger_sequence), None)
    if grant is None or grant.is_released:
        return
    rejections = claim.failures + 1
    _tell_rejection(core, claim, f"{rejected.reason}: {rejected.message}")
    core.record(
        Release(
            cluster=claim.key.cluster,
            uid=claim.key.uid,
            namespace=claim.namespace,
            name=claim.name,
            grant_sequence=grant.ledger_sequence,
            resource_version=claim.resource_version,
            holds=list(grant.holds),
            reason=rejected.reason[:TEXT_LENGTH_MAX],
            message=rejected.message[:TEXT_LENGTH_MAX],
            rejections=rejections,
            retry_at_ms=core.now_ms + back_off_ms(rejections),
        )
    )


def _tell_rejection(core: Core, claim: Claim, why: str) -> None:
    core.notice("warning", "AllocationRejected", f"claim {core.world.holder_name(claim.key)}", why)


def _end_claim(core: Core, key: ClaimKey, cause: EndCause) -> None:
    """The claim is gone for ever: whatever it held or waited for ends."""
    claim = core.world.claims[key]
    if claim.unsettled is not None:
        core.record(
            OutcomeRecorded(
                cluster=key.cluster,
                uid=key.uid,
                decision_sequence=claim.unsettled.ledger_sequence,
                outcome="Gone",
                message="the cluster was evicted" if cause == "ClusterEvicted" else "",
            )
        )
    for grant in list(claim.grants):
        end_grant(core, grant, cause)
    if cause == "ClaimMissing" and claim.has_history:
        core.record(ClaimForgotten(cluster=key.cluster, uid=key.uid))
    core.wake_devices(claim.shown_devices)
    core.queue.remove(key)
    core.to_adopt.discard(key)
    core.world.forget_claim(claim)
