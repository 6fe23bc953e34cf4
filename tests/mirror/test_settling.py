"""Decisions: what is written for them, guarded by what, and when it is certain what became of them."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest

from cluster_agent.mirror.actions import (
    ClearAllocation,
    Publish,
    ReadClaim,
    RemoveFinalizer,
    Tick,
    Void,
    Watched,
    WriteAllocation,
    WriteFinalizers,
)
from cluster_agent.mirror.settling import IS_RUNNING
from cluster_agent.mirror.tracked import DELETE_PROTECTION, HELD, VOIDED_ANNOTATION
from schemas.wire.ledger import DeviceHold
from schemas.wire.state import Outcome, Rejected, Settled
from tests.builders import DRIVER
from tests.mirror.driven import (
    TRAIN,
    UID,
    Driven,
    Manifest,
    a_manifest,
    a_release,
    a_state,
    allocated,
    an_allocate,
    an_allocation,
    an_object,
    decides,
    failed,
    gone,
    protected,
    read,
    seen,
    told,
    wrote,
)


def deleted(manifest: Manifest) -> Manifest:
    """The same claim, being deleted."""
    return {**manifest, "metadata": {**manifest["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}


def a_started(manifest: Manifest | None = None) -> Driven:
    """The claim is there, as of resourceVersion 100, and everything was told."""
    return Driven().started(seen(manifest or protected(), 100))


# --- an Allocate that goes well


def test_writes_the_finalizers_then_the_allocation_then_reports() -> None:
    driven = a_started(a_manifest(finalizers=["example.com/other"]))
    (finalizers,) = driven.tell(decides(an_allocate(100)))
    assert isinstance(finalizers, WriteFinalizers)
    assert (finalizers.claim.uid, finalizers.claim.namespace, finalizers.claim.name) == (UID, "default", "train")
    metadata = finalizers.object["metadata"]
    assert metadata["finalizers"] == ["example.com/other", DELETE_PROTECTION, HELD]
    assert (metadata["resourceVersion"], metadata["uid"]) == ("100", UID)
    assert "status" not in finalizers.object
    (allocation,) = driven.tell(wrote(driven.take(WriteFinalizers), 101))
    assert isinstance(allocation, WriteAllocation)
    assert allocation.object["metadata"]["resourceVersion"] == "101"  # the guard is what our own write returned
    assert allocation.object["status"] == {
        "allocation": an_allocation("gpu-0"),
        "reservedFor": [{"resource": "pods", "name": "worker", "uid": "uid-worker"}],
    }
    assert driven.tell(wrote(driven.take(WriteAllocation), 102)) == []
    assert not driven.mirror.has_published_outcome(UID, 50)
    driven.tell(seen(protected(), 101))
    assert driven.pending == []  # not before the watch has delivered the write
    driven.tell(seen(allocated(protected()), 102))
    driven.store()
    assert driven.said().decision == Settled(50, "Applied")
    assert driven.claim()["status"]["allocation"] == an_allocation("gpu-0")
    assert driven.mirror.has_published_outcome(UID, 50)
    assert driven.mirror.is_idle


def test_what_is_only_half_written_is_not_told() -> None:
    driven = a_started(a_manifest())
    driven.tell(decides(an_allocate(100)))
    driven.tell(wrote(driven.take(WriteFinalizers), 101))
    driven.tell(seen(protected(), 101))  # the watch is faster than the next write
    allocation = driven.take(WriteAllocation)
    assert driven.pending == []
    driven.tell(wrote(allocation, 102))
    assert driven.pending == []
    driven.tell(seen(allocated(protected()), 102))
    driven.store()
    assert driven.said().decision == Settled(50, "Applied")
    assert driven.mirror.is_idle


def test_what_others_change_while_it_is_half_written_is_told() -> None:
    driven = a_started(a_manifest())
    driven.tell(decides(an_allocate(100)))
    driven.tell(wrote(driven.take(WriteFinalizers), 101))
    driven.take(WriteAllocation)
    driven.tell(seen(deleted(protected()), 102))
    driven.store()
    assert driven.claim()["metadata"]["deletionTimestamp"]


def test_fields_that_this_build_does_not_know_are_kept() -> None:
    manifest = a_manifest(tomorrow={"x": 1})
    manifest["spec"]["tomorrow"] = [2]
    driven = a_started(manifest)
    assert (driven.claim()["metadata"]["tomorrow"], driven.claim()["spec"]["tomorrow"]) == ({"x": 1}, [2])
    (write,) = driven.tell(decides(an_allocate(100)))
    assert isinstance(write, WriteFinalizers)
    assert (write.object["metadata"]["tomorrow"], write.object["spec"]["tomorrow"]) == ({"x": 1}, [2])
    (write,) = driven.tell(wrote(driven.take(WriteFinalizers), 101))
    assert isinstance(write, WriteAllocation)
    assert (write.object["metadata"]["tomorrow"], write.object["spec"]["tomorrow"]) == ({"x": 1}, [2])


def test_reserves_for_nobody_where_the_decision_names_nobody() -> None:
    driven = a_started()
    (write,) = driven.tell(decides(an_allocate(100, reserved_for=[])))
    assert isinstance(write, WriteAllocation)
    assert "reservedFor" not in write.object["status"]


def test_what_was_in_the_status_of_an_earlier_allocation_is_not_carried_over() -> None:
    stale = {**protected(), "status": {"reservedFor": [{"name": "old"}], "devices": [{"device": "old"}]}}
    driven = a_started(stale)
    (write,) = driven.tell(decides(an_allocate(100, reserved_for=[])))
    assert isinstance(write, WriteAllocation)
    assert write.object["status"] == {"allocation": an_allocation("gpu-0")}


def test_waits_for_the_view_that_the_decision_was_made_on() -> None:
    driven = a_started()
    assert driven.tell(decides(an_allocate(105))) == []
    driven.tell(seen(protected(labels={"a": "1"}), 105))
    assert driven.only(WriteAllocation).object["metadata"]["resourceVersion"] == "105"


def test_a_decision_for_a_claim_that_the_watch_has_still_to_bring_is_not_done() -> None:
    driven = Driven().started(listed_at={"claim": 90})  # another agent, whose watch is ahead, has told of it
    assert driven.tell(decides(an_allocate(100))) == []
    assert not driven.mirror.has_published_outcome(UID, 50)
    driven.tell(seen(protected(), 100))
    assert driven.only(WriteAllocation).object["metadata"]["resourceVersion"] == "100"


def test_a_release_for_a_claim_that_the_watch_has_still_to_bring_is_not_done() -> None:
    driven = Driven().started(listed_at={"claim": 90})  # its allocation is another agent's, who has taken over
    release = msgspec.structs.replace(a_release(), resource_version="100")
    assert driven.tell(decides(release)) == []
    assert not driven.mirror.has_published_outcome(UID, 50)
    driven.tell(seen(allocated(protected()), 100))
    assert driven.only(ClearAllocation).object["metadata"]["resourceVersion"] == "100"


def test_a_decision_for_a_claim_that_the_watch_has_passed_is_done() -> None:
    driven = Driven().started(listed_at={"claim": 90})
    driven.tell(decides(an_allocate(100)))
    driven.tell(Watched("claim", 100))
    assert driven.mirror.has_published_outcome(UID, 50)
    assert driven.tell(decides(an_allocate(100))) == []
    assert driven.mirror.has_published_outcome(UID, 50)


def test_reports_what_is_there_already() -> None:
    driven = a_started(allocated(protected()))
    (publish,) = driven.tell(decides(an_allocate(90)))
    assert isinstance(publish, Publish)
    driven.store(publish)
    assert driven.said().decision == Settled(50, "Applied")


# --- an Allocate whose claim has changed


def test_a_decision_on_another_resource_version_is_voided_and_then_a_conflict() -> None:
    driven = a_started()
    (reading,) = driven.tell(decides(an_allocate(99)))
    assert isinstance(reading, ReadClaim)
    (void,) = driven.tell(read(driven.take(ReadClaim), protected(), 100))
    assert isinstance(void, Void)
    assert void.object["metadata"]["annotations"] == {VOIDED_ANNOTATION: "50-1"}
    assert void.object["metadata"]["resourceVersion"] == "100"
    driven.tell(wrote(driven.take(Void), 101))
    assert driven.pending == []
    driven.tell(seen(void.object, 101))
    driven.store()
    assert driven.said().decision == Settled(50, "Conflict", "the claim has changed since it was decided on")


def test_no_later_read_ever_supplies_the_guard() -> None:
    driven = a_started()
    driven.tell(decides(an_allocate(100)))
    driven.tell(failed(driven.take(WriteAllocation), "conflict"))
    driven.tell(read(driven.take(ReadClaim), protected(), 110))
    assert driven.all(WriteAllocation) == []
    driven.take(Void)


# --- an Allocate that fails


@pytest.mark.parametrize(
    ("cause", "outcome"),
    [
        pytest.param("conflict", "Conflict", id="409"),
        pytest.param("invalid", "Failed", id="422"),
        pytest.param("unknown", "Failed", id="nobody knows"),
        pytest.param("gone", "Failed", id="404, but it is there"),
    ],
)
@pytest.mark.parametrize("stage", [WriteFinalizers, WriteAllocation])
def test_a_failed_write_is_read_and_voided_before_it_is_reported(stage: type, cause: str, outcome: Outcome) -> None:
    driven = a_started(a_manifest())
    driven.tell(decides(an_allocate(100)))
    if stage is WriteAllocation:
        driven.tell(wrote(driven.take(WriteFinalizers), 101))
    driven.tell(failed(driven.take(stage), cause))
    driven.tell(read(driven.take(ReadClaim), a_manifest(), 102))
    void = driven.take(Void)
    driven.tell(wrote(void, 103))
    assert driven.pending == []
    driven.tell(seen(void.object, 103))
    driven.store()
    assert driven.said().decision == Settled(50, outcome, f"it was {cause}")


def test_a_write_that_was_done_after_all_is_applied() -> None:
    driven = a_started()
    driven.tell(decides(an_allocate(100)))
    driven.tell(failed(driven.take(WriteAllocation), "unknown"))
    driven.tell(read(driven.take(ReadClaim), allocated(protected()), 101))
    assert driven.pending == []
    driven.tell(seen(allocated(protected()), 101))
    driven.store()
    assert driven.said().decision == Settled(50, "Applied")


def test_an_allocation_that_another_wrote_is_a_conflict_without_a_void() -> None:
    driven = a_started()
    driven.tell(decides(an_allocate(100)))
    driven.tell(failed(driven.take(WriteAllocation), "conflict"))
    driven.tell(read(driven.take(ReadClaim), allocated(protected(), "gpu-7"), 101))
    driven.tell(seen(allocated(protected(), "gpu-7"), 101))
    driven.store()
    assert driven.said().decision == Settled(50, "Conflict", "the claim has another allocation")


def test_a_claim_that_is_not_there_any_more_is_gone() -> None:
    driven = a_started()
    driven.tell(decides(an_allocate(100)))
    driven.tell(failed(driven.take(WriteAllocation), "gone"))
    assert driven.tell(read(driven.take(ReadClaim), None, 0)) == []  # the watch has not said so yet
    driven.tell(gone(protected(), 105))
    driven.store()
    assert driven.said().is_tombstone
    assert driven.said().decision == Settled(50, "Gone", "the claim was deleted")


def test_a_void_that_conflicts_starts_again_with_the_read_and_another_mark() -> None:
    driven = a_started()
    driven.tell(decides(an_allocate(99)))
    driven.tell(read(driven.take(ReadClaim), protected(), 100))
    driven.tell(failed(driven.take(Void), "conflict"))
    driven.tell(read(driven.take(ReadClaim), protected(), 104))
    void = driven.take(Void)
    assert void.object["metadata"]["annotations"][VOIDED_ANNOTATION] == "50-2"
    assert void.object["metadata"]["resourceVersion"] == "104"


def test_a_void_that_is_refused_for_what_it_says_is_tried_again_with_time() -> None:
    driven = a_started()
    driven.tell(decides(an_allocate(99)))
    driven.tell(read(driven.take(ReadClaim), protected(), 100))
    assert driven.tell(failed(driven.take(Void), "invalid")) == []
    driven.tell(seen(protected(labels={"a": "1"}), 101))
    driven.store()
    assert driven.said().decision is None  # it says what is there, and settles nothing
    driven.tell(Tick(1_000))
    driven.tell(read(driven.take(ReadClaim), protected(), 101))
    driven.tell(wrote(driven.take(Void), 102))
    driven.tell(seen(protected(annotations={VOIDED_ANNOTATION: "50-2"}), 102))
    driven.store()
    assert driven.said().decision.outcome == "Conflict"


def test_a_void_that_is_refused_again_and_again_is_tried_ever_more_seldom() -> None:
    """A policy that is wrong refuses those of all claims, and it may stay so for hours."""
    driven = a_started()
    driven.tell(decides(an_allocate(99)))
    tried = []
    for second in range(600):
        now_ms = 1_000 * second
        driven.tell(Tick(now_ms))
        if driven.pending:
            tried.append(second)
            driven.tell(read(driven.take(ReadClaim), protected(), 100))
            driven.tell(failed(driven.take(Void), "invalid"))
    assert tried[:8] == [0, 1, 3, 7, 15, 31, 63, 123]
    assert {later - earlier for earlier, later in pairwise(tried[6:])} == {60}
    driven.tell(Tick(0))  # somebody has set the clock back
    driven.take(ReadClaim)


def test_settles_one_decision_at_a_time_and_ignores_what_is_settled() -> None:
    driven = a_started()
    driven.tell(decides(an_allocate(100), 50))
    assert driven.tell(decides(an_allocate(100), 50)) == []
    write = driven.take(WriteAllocation)
    driven.tell(wrote(write, 101))
    driven.tell(seen(allocated(protected()), 101))
    driven.store()
    assert driven.tell(decides(an_allocate(100), 50)) == []
    assert driven.tell(decides(an_allocate(100), 49)) == []


def test_a_later_decision_takes_the_place_of_one_that_is_under_way() -> None:
    driven = a_started()
    driven.tell(decides(an_allocate(100), 50))
    first = driven.take(WriteAllocation)
    assert driven.tell(decides(an_allocate(105), 70)) == []  # decided on what our watch has not brought yet
    assert driven.tell(failed(first, "conflict")) == []  # that one is not ours to settle any more
    driven.tell(seen(protected(labels={"a": "1"}), 105))
    assert driven.only(WriteAllocation).ledger_sequence == 70


# --- a Release


def test_a_release_clears_the_allocation_that_it_names() -> None:
    driven = a_started({**allocated(protected()), "status": {"allocation": an_allocation("gpu-0"), "reservedFor": [1]}})
    (clear,) = driven.tell(decides(a_release()))
    assert isinstance(clear, ClearAllocation)
    assert clear.object["status"] == {}
    assert clear.object["metadata"]["resourceVersion"] == "100"
    driven.tell(wrote(driven.take(ClearAllocation), 101))
    driven.tell(seen(protected(), 101))
    driven.store()
    assert driven.said().decision == Settled(50, "Applied")


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(protected(), id="there is none"),
        pytest.param(allocated(protected(), "gpu-9"), id="there is another"),
    ],
)
def test_a_release_of_what_is_not_there_is_done(manifest: Manifest) -> None:
    driven = a_started(manifest)
    driven.tell(decides(a_release()))
    assert driven.all(ClearAllocation) == []
    driven.store()
    assert driven.said().decision == Settled(50, "Applied", "the allocation was gone already")


@pytest.mark.parametrize(
    ("cause", "is_tried_again"),
    [
        pytest.param("conflict", True, id="409"),
        pytest.param("unknown", True, id="nobody knows"),
        pytest.param("invalid", False, id="422"),
    ],
)
def test_a_release_that_failed_is_tried_again_where_that_may_help(cause: str, is_tried_again: bool) -> None:
    driven = a_started(allocated(protected()))
    driven.tell(decides(a_release()))
    driven.tell(failed(driven.take(ClearAllocation), cause))
    driven.tell(read(driven.take(ReadClaim), allocated(protected()), 105))
    if is_tried_again:
        assert driven.take(ClearAllocation).object["metadata"]["resourceVersion"] == "105"
        return
    driven.tell(seen(allocated(protected()), 105))
    driven.store()
    assert driven.said().decision == Settled(50, "Failed", "it was invalid")


def test_a_release_whose_result_is_unknown_and_is_there_is_applied() -> None:
    driven = a_started(allocated(protected()))
    driven.tell(decides(a_release()))
    driven.tell(failed(driven.take(ClearAllocation), "unknown"))
    driven.tell(read(driven.take(ReadClaim), protected(), 105))
    driven.tell(seen(protected(), 105))
    driven.store()
    assert driven.said().decision == Settled(50, "Applied")


# --- rejections


def test_the_next_allocation_that_is_applied_is_not_rejected() -> None:
    rejected = Rejected(40, "Unschedulable")
    before = a_state(protected(), 100, decision=Settled(45, "Applied"), rejected=rejected)
    driven = Driven().started(seen(protected(), 100), told=[told(before, 7)])
    driven.tell(decides(an_allocate(100), 50))
    driven.tell(wrote(driven.take(WriteAllocation), 101))
    driven.tell(seen(allocated(protected()), 101))
    driven.store()
    assert driven.said().rejected is None


# --- a pod that runs


def a_pod(node: str = "", **metadata: Any) -> Manifest:
    return an_object("pod", "worker", uid="uid-worker", namespace="default", **metadata) | {
        "spec": {"nodeName": node, "resourceClaims": [{"name": "gpu", "resourceClaimName": "train"}]}
    }


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(a_pod("n1"), id="it runs"),
        pytest.param(a_pod("n1", deletionTimestamp="2026-01-01T00:00:00Z"), id="it is being deleted"),
    ],
)
def test_a_release_takes_nothing_from_a_pod_that_runs(pod: Manifest) -> None:
    driven = a_started(allocated(protected()))
    driven.tell(seen(pod, 101, "pod"))
    driven.store_all()
    driven.tell(decides(a_release()))
    driven.store()
    assert driven.said().decision == Settled(50, "Failed", IS_RUNNING)
    assert driven.pending == []


def test_a_release_whose_result_is_unknown_is_voided_when_a_pod_has_got_a_node_meanwhile() -> None:
    driven = a_started(allocated(protected()))
    driven.tell(seen(a_pod(), 101, "pod"))
    driven.store_all()
    driven.tell(decides(a_release()))
    clear = driven.take(ClearAllocation)
    driven.tell(seen(a_pod("n1"), 102, "pod"))
    driven.store_all()
    driven.tell(failed(clear, "unknown"))
    driven.tell(read(driven.take(ReadClaim), allocated(protected()), 100))
    driven.tell(wrote(driven.take(Void), 105))
    driven.tell(seen(allocated(protected()), 105))
    driven.store()
    assert driven.said().decision == Settled(50, "Failed", IS_RUNNING)


def reserved(claim: Manifest) -> Manifest:
    reserved_for = [{"resource": "pods", "name": "worker", "uid": "uid-worker"}, {"resource": "others", "name": "x"}]
    return {**claim, "status": {**claim["status"], "reservedFor": reserved_for}}


def test_a_release_takes_nothing_from_a_pod_that_runs_and_that_the_watch_has_not_told_of() -> None:
    driven = a_started(reserved(allocated(protected())))
    driven.tell(decides(a_release()))
    clear = driven.take(ClearAllocation)
    assert clear.unless_running == (("worker", "uid-worker"),)
    driven.tell(failed(clear, "running"))
    driven.tell(read(driven.take(ReadClaim), reserved(allocated(protected())), 100))
    driven.store()
    assert driven.said().decision == Settled(50, "Failed", IS_RUNNING)
    assert driven.pending == []


def test_a_release_whose_result_is_unknown_is_voided_where_a_pod_is_found_to_run() -> None:
    driven = a_started(reserved(allocated(protected())))
    driven.tell(decides(a_release()))
    driven.tell(failed(driven.take(ClearAllocation), "unknown"))
    driven.tell(read(driven.take(ReadClaim), reserved(allocated(protected())), 100))
    driven.tell(failed(driven.take(ClearAllocation), "running"))
    driven.tell(read(driven.take(ReadClaim), reserved(allocated(protected())), 100))
    driven.tell(wrote(driven.take(Void), 105))
    driven.tell(seen(reserved(allocated(protected())), 105))
    driven.store()
    assert driven.said().decision == Settled(50, "Failed", IS_RUNNING)


def test_a_release_that_was_refused_is_not_repeated_when_a_pod_has_got_a_node_meanwhile() -> None:
    driven = a_started(allocated(protected()))
    driven.tell(seen(a_pod(), 101, "pod"))
    driven.store_all()
    driven.tell(decides(a_release()))
    clear = driven.take(ClearAllocation)
    driven.tell(seen(a_pod("n1"), 102, "pod"))
    driven.store_all()
    driven.tell(failed(clear, "conflict"))
    driven.tell(read(driven.take(ReadClaim), allocated(protected()), 104))
    driven.tell(seen(allocated(protected()), 104))
    driven.store()
    assert driven.said().decision == Settled(50, "Failed", IS_RUNNING)
    assert driven.pending == []


# --- our finalizer


def test_lets_a_deleted_claim_that_holds_nothing_go() -> None:
    driven = a_started(deleted(a_manifest(finalizers=[DELETE_PROTECTION, "example.com/other", HELD])))
    removal = driven.take(RemoveFinalizer)
    # kube-controller-manager takes away its own, if it runs.
    assert removal.object["metadata"]["finalizers"] == ["example.com/other"]
    assert removal.object["metadata"]["resourceVersion"] == "100"
    driven.tell(wrote(removal, 101))
    assert driven.pending == []
    driven.tell(seen(deleted(a_manifest(finalizers=["example.com/other"])), 101))
    driven.store()
    assert driven.mirror.is_idle


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(protected(), id="it is not being deleted"),
        pytest.param(deleted(allocated(protected())), id="it has an allocation"),
        pytest.param(deleted(a_manifest(finalizers=[DELETE_PROTECTION])), id="the finalizer is another's"),
    ],
)
def test_keeps_the_finalizer_otherwise(manifest: Manifest) -> None:
    driven = a_started(manifest)
    assert driven.pending == []


def test_keeps_the_finalizer_while_a_decision_is_under_way() -> None:
    driven = a_started()
    driven.tell(decides(an_allocate(100)))
    write = driven.take(WriteAllocation)
    driven.tell(seen(deleted(protected()), 101))
    driven.store()
    driven.tell(failed(write, "conflict"))
    driven.tell(read(driven.take(ReadClaim), deleted(protected()), 101))
    driven.tell(wrote(driven.take(Void), 102))
    assert driven.pending == []
    driven.tell(seen(deleted(protected()), 102))
    assert driven.all(RemoveFinalizer)


@pytest.mark.parametrize("again", [Tick(1_000), seen(deleted(protected(labels={"a": "1"})), 105)])
def test_a_removal_that_failed_is_tried_again_with_a_new_view_or_with_time(again: object) -> None:
    driven = a_started(deleted(protected()))
    assert driven.tell(failed(driven.take(RemoveFinalizer), "conflict")) == []
    driven.tell(again)  # type: ignore[arg-type]
    assert driven.all(RemoveFinalizer)


def test_a_removal_that_is_refused_again_and_again_is_tried_less_and_less_often() -> None:
    """Else a wrong policy makes thousands of writes each second, and decisions wait behind them."""
    driven = a_started(deleted(protected()))
    tried_ms = []
    for now_ms in range(0, 200_000, 1_000):
        driven.tell(Tick(now_ms))
        if driven.all(RemoveFinalizer):
            tried_ms.append(now_ms)
            driven.tell(failed(driven.take(RemoveFinalizer), "invalid"))
    assert tried_ms == [0, 1_000, 3_000, 7_000, 15_000, 31_000, 63_000, 123_000, 183_000]


def test_a_claim_that_goes_while_its_decision_is_under_way_is_forgotten_when_both_are_done() -> None:
    driven = a_started()
    driven.tell(decides(an_allocate(100)))
    write = driven.take(WriteAllocation)
    driven.tell(gone(protected(), 101))
    driven.store()
    assert driven.said().is_tombstone  # which says all that the broker need know
    driven.tell(failed(write, "gone"))
    assert driven.tell(read(driven.take(ReadClaim), None, 0)) == []
    assert TRAIN not in driven.mirror.tracked
    assert driven.mirror.has_published_outcome(UID, 50)
    assert driven.tell(wrote(write, 102)) == []


SHARED = DeviceHold(
    "gpu", DRIVER, "rack7", "gpu-0", share_id="s", admin_access=True, consumed_capacity={"memory": "10Gi"}
)


def shared() -> Driven:
    """An agent of a claim with such an allocation, of which nobody has said yet what it came from."""
    result = {**an_allocation("gpu-0")["devices"]["results"][0], "shareID": "s", "adminAccess": True}
    result["consumedCapacity"] = {"memory": "10Gi"}
    return a_started({**protected(), "status": {"allocation": {"devices": {"results": [result]}}}})


def test_an_allocation_is_the_decisions_by_all_that_it_holds() -> None:
    driven = shared()
    driven.tell(decides(an_allocate(90, holds=[SHARED])))
    driven.store()
    assert driven.said().decision == Settled(50, "Applied")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(msgspec.structs.replace(SHARED, share_id="t"), id="another share"),
        pytest.param(msgspec.structs.replace(SHARED, admin_access=False), id="no admin access"),
        pytest.param(msgspec.structs.replace(SHARED, consumed_capacity={"memory": "20Gi"}), id="more of it"),
    ],
)
def test_an_allocation_that_differs_in_what_it_holds_is_another(other: DeviceHold) -> None:
    driven = shared()
    driven.tell(decides(an_allocate(90, holds=[other])))
    assert driven.all(ReadClaim)
