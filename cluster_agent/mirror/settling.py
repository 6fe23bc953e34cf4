"""Carry out a decision, and find out for certain what became of it.

An Allocate is never reported as settled without its allocation while a write for it, ours or that of an agent before
us, could still land. A write is guarded by the resourceVersion that the decision names, or by the one that our own
finalizer write, guarded by the former, returned; no later read ever supplies the guard. Where that fails, the claim is
read, and if it has no allocation, written with a mark: that voids whatever was sent before, and only then is it
reported. See `model/README.md` of the design for the histories that these rules exclude.

A Release takes nothing from a pod that runs: kube-scheduler binds a pod without touching a claim that is reserved for
it, so no resourceVersion says that it has. The watch of pods may be behind, so those that the claim is reserved for are
read before it is cleared; for any other the scheduler has to write the claim first.
"""

from typing import Any, assert_never

from cluster_agent.mirror.actions import (
    Action,
    ClaimRead,
    Cleaning,
    ClearAllocation,
    ReadClaim,
    RemoveFinalizer,
    Void,
    WriteAllocation,
    WriteFailed,
    WriteFinalizers,
    Wrote,
)
from cluster_agent.mirror.tracked import (
    Job,
    Tracked,
    holds_of,
    is_held,
    metadata_of,
    reserved_pods,
    with_allocation,
    with_finalizers,
    with_void_mark,
    without_finalizers,
)
from schemas.wire.ledger import Allocate
from schemas.wire.state import Outcome, Settled

IS_RUNNING = "a pod that uses it has a node by now"


def advance(tracked: Tracked) -> list[Action]:
    """Begin with the decision, if there is one and the view has caught up; or let a deleted claim go."""
    job = tracked.job
    if job is None:
        return _let_go(tracked)
    if job.stage != "start":
        return []
    if tracked.object is None and tracked.view_version:
        return _finish(tracked, job, "Gone", "the claim was deleted")
    if tracked.object is None or not tracked.view_is_current:
        return []  # the watch will bring it
    if isinstance(job.decision, Cleaning):
        return settle(tracked, job)
    if holds_of(tracked.object) == job.decision.holds:
        return _allocated(tracked, job)
    if not isinstance(job.decision, Allocate):
        return _finish(tracked, job, "Applied", "the allocation was gone already")
    return _allocate(tracked, job, job.decision)


def settle(tracked: Tracked, job: Job) -> list[Action]:
    """Find out what became of it, with a consistent read."""
    job.stage = "sent"
    return [ReadClaim(tracked.ref, job.ledger_sequence)]


def answer(tracked: Tracked, event: Wrote | WriteFailed | ClaimRead, now_ms: int) -> list[Action]:
    """What an action of ours led to."""
    action = event.action
    if isinstance(event, Wrote):
        # Also when the decision is no longer ours to settle: what we publish must not be older than what we wrote.
        tracked.own_version = max(tracked.own_version, event.resource_version)
    if isinstance(action, RemoveFinalizer):
        tracked.removal = ""
        if isinstance(event, WriteFailed):
            tracked.removal = "failed"
            tracked.removal_refused.note(now_ms)
        return []
    job = tracked.job
    if job is None or job.ledger_sequence != action.ledger_sequence:
        return []
    match event:
        case Wrote():
            return _wrote(tracked, job, event)
        case WriteFailed():
            return _failed(tracked, job, event, now_ms)
        case ClaimRead():
            return _read(tracked, job, event)
        case _:
            assert_never(event)


def _allocate(tracked: Tracked, job: Job, decision: Allocate) -> list[Action]:
    assert tracked.object is not None
    if decision.resource_version != str(tracked.view_version):
        if decision.resource_version.isdigit() and int(decision.resource_version) > tracked.view_version:
            return []  # decided on a state that our watch has not brought yet
        job.failure = ("Conflict", "the claim has changed since it was decided on")
        return settle(tracked, job)
    job.stage = "sent"
    protected = with_finalizers(tracked.object)
    if protected is not None:
        return [WriteFinalizers(tracked.ref, job.ledger_sequence, protected)]
    return [WriteAllocation(tracked.ref, job.ledger_sequence, with_allocation(tracked.object, decision))]


def _allocated(tracked: Tracked, job: Job) -> list[Action]:
    """The view shows the allocation that the decision names."""
    assert tracked.object is not None
    if isinstance(job.decision, Allocate):
        return _finish(tracked, job, "Applied")
    if tracked.is_running:
        return _finish(tracked, job, "Failed", IS_RUNNING)
    job.stage = "sent"
    return [_clear(tracked, job, tracked.object)]


def _wrote(tracked: Tracked, job: Job, event: Wrote) -> list[Action]:
    match event.action:
        case WriteFinalizers():
            job.half_way = event.resource_version
            guarded = with_allocation(event.object, job.decision)
            return [WriteAllocation(tracked.ref, job.ledger_sequence, guarded)]
        case WriteAllocation() | ClearAllocation():
            return _finish(tracked, job, "Applied")
        case Void():
            return _finish(tracked, job, *job.failure)
    return []


def _failed(tracked: Tracked, job: Job, event: WriteFailed, now_ms: int) -> list[Action]:
    job.half_way = 0
    if isinstance(event.action, Void) or isinstance(job.decision, Cleaning):
        if event.cause == "invalid":  # refused for what it says, an admission policy perhaps: not at once again
            job.note_refusal(now_ms)
            return []
        return settle(tracked, job)
    if event.cause == "running":
        job.is_in_use = True  # what was sent before, and is not known, stays so
        return settle(tracked, job)
    job.is_unknown = event.cause == "unknown"
    if event.cause == "conflict":
        job.failure = ("Conflict", event.message)
    else:
        job.failure = ("Failed", event.message)
    return settle(tracked, job)


def _read(tracked: Tracked, job: Job, event: ClaimRead) -> list[Action]:
    if event.object is None:
        tracked.must_be_gone = tracked.object is not None
        return _finish(tracked, job, "Gone", "the claim was deleted")
    tracked.own_version = max(tracked.own_version, event.resource_version)
    found = holds_of(event.object)
    if isinstance(job.decision, Cleaning):
        return _clean(tracked, job, job.decision, event.object)
    if not isinstance(job.decision, Allocate):
        if found != job.decision.holds:
            return _finish(tracked, job, "Applied")
        if tracked.is_running or job.is_in_use:
            job.failure = ("Failed", IS_RUNNING)
            if job.is_unknown:
                return _void(tracked, job, event.object)  # else what was sent could still clear it
        if job.failure[0] == "Failed" and not job.is_unknown:
            return _finish(tracked, job, *job.failure)
        return [_clear(tracked, job, event.object)]
    if found == job.decision.holds:
        return _finish(tracked, job, "Applied")
    if found is not None:
        return _finish(tracked, job, "Conflict", "the claim has another allocation")
    return _void(tracked, job, event.object)


def _clean(tracked: Tracked, job: Job, cleaning: Cleaning, claim: dict[str, Any]) -> list[Action]:
    """Either write voids what was sent before; it is guarded by what was just read.

    Where an allocation is kept nothing can land any more: what was decided before was decided for a claim without one.
    """
    why = "the ledger was rebuilt" if cleaning.keeps_allocation else "the cluster was readmitted"
    job.failure = ("Applied", why)
    if holds_of(claim) is not None:
        if cleaning.keeps_allocation:
            return _finish(tracked, job, *job.failure)
        return [_clear(tracked, job, claim)]
    return _void(tracked, job, claim)


def _clear(tracked: Tracked, job: Job, claim: dict[str, Any]) -> ClearAllocation:
    """A cluster that was cut off keeps nothing, whatever runs there."""
    reserved = () if isinstance(job.decision, Cleaning) else reserved_pods(claim)
    return ClearAllocation(tracked.ref, job.ledger_sequence, with_allocation(claim, job.decision), reserved)


def _void(tracked: Tracked, job: Job, claim: dict[str, Any]) -> list[Action]:
    job.voids += 1
    return [Void(tracked.ref, job.ledger_sequence, with_void_mark(claim, job.ledger_sequence, job.voids))]


def _finish(tracked: Tracked, job: Job, outcome: Outcome, message: str = "") -> list[Action]:
    tracked.decision = Settled(job.ledger_sequence, outcome, message)
    tracked.job = None
    tracked.is_dirty = True
    if isinstance(job.decision, Allocate) and outcome == "Applied":
        tracked.rejected = None
    return []


def _let_go(tracked: Tracked) -> list[Action]:
    """A claim that is being deleted and holds nothing does not need our finalizer any more, nor the one that
    kube-controller-manager would take away if it runs."""
    metadata = metadata_of(tracked.object)
    if (
        tracked.object is None
        or tracked.removal
        or not tracked.view_is_current
        or metadata.get("deletionTimestamp") is None
        or not is_held(tracked.object)
        or holds_of(tracked.object) is not None
    ):
        return []
    tracked.removal = "sent"
    return [RemoveFinalizer(tracked.ref, 0, without_finalizers(tracked.object))]
