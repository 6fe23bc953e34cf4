"""When the mirror says that its cluster cannot use an allocation."""

from typing import Any

import pytest

from cluster_agent.mirror.actions import Relisted, Tick, WriteAllocation
from cluster_agent.mirror.rejections import Patience
from schemas.wire.state import Rejected, Settled
from tests.builders import DRIVER, a_claim
from tests.mirror.driven import (
    UID,
    Driven,
    Manifest,
    a_manifest,
    a_release,
    a_state,
    allocated,
    an_allocate,
    an_allocation,
    decides,
    gone,
    protected,
    seen,
    told,
    wrote,
)

PATIENCE = Patience()
APPLIED = Settled(50, "Applied")
ATTACHED, FAILED = "example.com/Attached", "example.com/AttachFailed"
ALLOCATED_AT, ALLOCATED_AT_MS = "2026-01-01T00:00:00Z", 1_767_225_600_000
NO_NODE = "0/2 nodes are available: 2 Insufficient cpu."


def a_pod(name: str = "worker", *, message: str | None = NO_NODE, node: str = "", **metadata: Any) -> Manifest:
    """A pod that uses the claim. message: kube-scheduler's; None: it has not tried yet."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", **metadata},
        "spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "train"}], "nodeName": node},
        "status": {"conditions": [condition] if message is not None else []},
    }


def started(manifest: Manifest, *pods: Manifest, decision: Settled | None = APPLIED, now_ms: int = 0) -> Driven:
    """An agent that starts with the claim as it is, and what its predecessor has settled."""
    driven = Driven()
    driven.tell(Tick(now_ms))
    before = a_state(manifest, 100, decision=decision)
    driven.started(*(seen(pod, 90, "pod") for pod in pods), seen(manifest, 100), told=[told(before, 7)])
    return driven


def passes(driven: Driven, now_ms: int) -> None:
    """Time passes, and everything that the mirror says is stored."""
    driven.tell(Tick(now_ms))
    driven.store_all()


def test_a_pod_that_stays_unschedulable_rejects_what_its_claim_was_given() -> None:
    driven = Driven()
    driven.started(seen(a_pod(), 90, "pod"), seen(protected(), 100))
    passes(driven, 1_000_000)
    driven.tell(decides(an_allocate(100), 50))
    driven.tell(wrote(driven.take(WriteAllocation), 101))
    driven.tell(seen(allocated(protected()), 101))
    driven.store_all()
    passes(driven, 1_000_000 + PATIENCE.unschedulable_ms - 1)
    assert driven.said().rejected is None
    passes(driven, 1_000_000 + PATIENCE.unschedulable_ms)
    assert driven.said().rejected == Rejected(50, "Unschedulable", f"pod worker: {NO_NODE}")
    assert driven.said().decision == APPLIED
    passes(driven, 2_000_000)
    assert driven.mirror.is_idle


def test_the_time_begins_when_the_scheduler_refuses_the_pod() -> None:
    driven = started(allocated(protected()), a_pod(message=None))
    passes(driven, 500_000)
    driven.tell(seen(a_pod(), 110, "pod"))
    passes(driven, 500_000 + PATIENCE.unschedulable_ms - 1)
    assert driven.said().rejected is None
    passes(driven, 500_000 + PATIENCE.unschedulable_ms)
    assert driven.said().rejected is not None


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(a_pod(message=None), id="the scheduler has not tried it"),
        pytest.param(a_pod(node="n1"), id="it has a node"),
        pytest.param(a_pod(deletionTimestamp="2026-01-01T00:00:00Z"), id="it is being deleted"),
        pytest.param({**a_pod(), "status": {**a_pod()["status"], "phase": "Failed"}}, id="it has failed"),
        pytest.param({**a_pod(), "status": {"conditions": "none"}}, id="its conditions are garbage"),
    ],
)
def test_a_pod_that_is_not_refused_rejects_nothing(pod: Manifest) -> None:
    driven = started(allocated(protected()), pod)
    passes(driven, 10 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is None


def test_a_pod_that_is_being_deleted_runs_until_it_is_done() -> None:
    """Its replacement waits, perhaps for the very node; the device is not free."""
    going = a_pod("old", message=None, node="n1", deletionTimestamp="2026-01-01T00:00:00Z")
    driven = started(allocated(protected()), going, a_pod())
    passes(driven, 10 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is None
    driven.tell(gone(going, 120, "pod"))
    driven.store_all()
    passes(driven, 11 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is not None


def test_a_pod_that_is_taken_in_time_rejects_nothing() -> None:
    driven = started(allocated(protected()), a_pod())
    passes(driven, PATIENCE.unschedulable_ms - 1)
    driven.tell(seen(a_pod(node="n1"), 110, "pod"))
    passes(driven, 10 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is None


def test_a_claim_is_kept_longer_while_its_pod_lacks_another_one_but_not_for_ever() -> None:
    pod = a_pod()
    pod["spec"]["resourceClaims"].append({"name": "net", "resourceClaimName": "other"})
    other = a_manifest(a_claim(name="other"))
    driven = Driven()
    driven.tell(Tick(0))
    before = a_state(allocated(protected()), 100, decision=APPLIED)
    driven.started(seen(pod, 90, "pod"), seen(other, 95), seen(allocated(protected()), 100), told=[told(before, 7)])
    passes(driven, 10 * PATIENCE.unschedulable_ms - 1)
    assert driven.said().rejected is None
    driven.tell(seen(allocated(other), 110))
    passes(driven, 10 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is None, "now it has both, and the scheduler is given its time"
    driven.tell(seen(other, 120))
    passes(driven, 10 * PATIENCE.unschedulable_ms)
    passes(driven, 20 * PATIENCE.unschedulable_ms - 1)
    assert driven.said().rejected is None
    passes(driven, 20 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is not None


def test_a_claim_that_is_not_ours_gives_a_pod_no_more_time() -> None:
    pod = a_pod()
    pod["spec"]["resourceClaims"].append({"name": "net", "resourceClaimName": "other"})
    driven = Driven(publishes_all=False)
    driven.tell(Tick(0))
    before = a_state(allocated(protected()), 100, decision=APPLIED)
    other = seen(a_manifest(a_claim(name="other")), 95)
    driven.started(seen(pod, 90, "pod"), other, seen(allocated(protected()), 100), told=[told(before, 7)])
    passes(driven, PATIENCE.unschedulable_ms)
    assert driven.said().rejected is not None


def test_a_rejection_ends_for_good_when_a_pod_has_got_a_node_after_all() -> None:
    driven = started(allocated(protected()), a_pod())
    passes(driven, PATIENCE.unschedulable_ms)
    assert driven.said().rejected is not None
    driven.tell(seen(a_pod(node="n1"), 110, "pod"))
    driven.store_all()
    assert driven.said().rejected is None
    driven.tell(gone(a_pod(node="n1"), 111, "pod"))
    passes(driven, 10 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is None


def test_nothing_is_rejected_while_another_pod_runs_with_it() -> None:
    driven = started(allocated(protected()), a_pod(), a_pod("runs", node="n1"))
    passes(driven, 10 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is None
    driven.tell(gone(a_pod("runs", node="n1"), 110, "pod"))
    passes(driven, 11 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is not None


def test_a_new_list_of_pods_without_the_refused_one_rejects_nothing() -> None:
    driven = started(allocated(protected()), a_pod())
    driven.tell(Relisted("pod", [seen(a_pod("other", message=None), 120, "pod")], 120))
    passes(driven, 10 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is None


@pytest.mark.parametrize(
    ("manifest", "decision"),
    [
        pytest.param(allocated(protected()), None, id="an allocation that is not ours"),
        pytest.param(allocated(protected()), Settled(50, "Conflict"), id="ours was not applied"),
        pytest.param(protected(), APPLIED, id="there is no allocation any more"),
    ],
)
def test_a_pod_without_an_allocation_of_ours_rejects_nothing(manifest: Manifest, decision: Settled | None) -> None:
    driven = started(manifest, a_pod(), decision=decision)
    passes(driven, 10 * PATIENCE.unschedulable_ms)
    assert driven.said().rejected is None


def test_nothing_is_rejected_while_it_is_being_asked_back() -> None:
    driven = started(allocated(protected()), a_pod())
    driven.tell(decides(a_release(), 60))
    driven.tell(Tick(10 * PATIENCE.unschedulable_ms))
    assert driven.said().rejected is None


def test_a_claim_that_goes_while_its_pod_waits_is_forgotten() -> None:
    driven = started(allocated(a_manifest()), a_pod())
    driven.tell(gone(allocated(a_manifest()), 110))
    passes(driven, 10 * PATIENCE.unschedulable_ms)
    assert driven.said().is_tombstone


@pytest.mark.parametrize("reason", ["SchedulingGated", "SchedulerError"])
def test_a_pod_that_was_not_tried_says_nothing_of_its_allocation(reason: str) -> None:
    pod = a_pod()
    pod["status"]["conditions"][0]["reason"] = reason
    driven = started(allocated(protected()), pod)
    for now_ms in (0, PATIENCE.unschedulable_ms, 10 * PATIENCE.unschedulable_ms):
        passes(driven, now_ms)
    assert driven.said().rejected is None


# --- binding conditions


def binding(*conditions: Manifest, at: Any = ALLOCATED_AT, share: str = "", reported: str = "gpu-0") -> Manifest:
    """The claim with a device that must be attached first, and what is reported of it."""
    manifest = allocated(protected())
    device = {"driver": DRIVER, "pool": "rack7", "device": reported, **({"shareID": share} if share else {})}
    (result,) = manifest["status"]["allocation"]["devices"]["results"]
    result |= {"bindingConditions": [ATTACHED], "bindingFailureConditions": [FAILED]}
    manifest["status"]["allocation"]["allocationTimestamp"] = at
    manifest["status"]["devices"] = [{**device, "conditions": list(conditions)}]
    return manifest


def condition(kind: str, status: str = "True", reason: str = "", message: str = "") -> Manifest:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def test_a_device_that_cannot_be_bound_is_rejected_at_once() -> None:
    driven = started(binding(), a_pod(), now_ms=ALLOCATED_AT_MS)
    driven.tell(seen(binding(condition(FAILED, reason="LinkDown", message="port 4 is dark")), 110))
    driven.store_all()
    said = f"device {DRIVER}/rack7/gpu-0 reports {FAILED}: LinkDown: port 4 is dark"
    assert driven.said().rejected == Rejected(50, "BindingFailed", said)


def test_a_device_that_is_not_bound_in_time_is_rejected() -> None:
    driven = started(binding(condition(ATTACHED, "False")), a_pod(), now_ms=ALLOCATED_AT_MS)
    passes(driven, ALLOCATED_AT_MS + PATIENCE.binding_ms - 1)
    assert driven.said().rejected is None, "the pod is Unschedulable from before, and waits for the device"
    passes(driven, ALLOCATED_AT_MS + PATIENCE.binding_ms)
    said = f"not True 600 s after the allocation: {ATTACHED} of {DRIVER}/rack7/gpu-0"
    assert driven.said().rejected == Rejected(50, "BindingTimedOut", said)


def test_a_restart_does_not_give_a_device_more_time_to_be_bound() -> None:
    driven = started(binding(), now_ms=ALLOCATED_AT_MS + PATIENCE.binding_ms)
    assert driven.said().rejected.reason == "BindingTimedOut"


def test_what_is_bound_in_time_gives_the_scheduler_its_own_time() -> None:
    driven = started(binding(), a_pod(), now_ms=ALLOCATED_AT_MS)
    bound_ms = ALLOCATED_AT_MS + 100_000
    passes(driven, bound_ms)
    driven.tell(seen(binding(condition(ATTACHED)), 110))
    passes(driven, bound_ms + PATIENCE.unschedulable_ms - 1)
    assert driven.said().rejected is None
    passes(driven, bound_ms + PATIENCE.unschedulable_ms)
    assert driven.said().rejected.reason == "Unschedulable"


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(binding(condition(FAILED, "False")), id="it is not True"),
        pytest.param(binding(condition(FAILED), reported="gpu-1"), id="of another device"),
        pytest.param(binding(condition(FAILED), share="s-1"), id="of another share"),
        pytest.param(binding(condition("example.com/Other")), id="of a type that the device does not name"),
        pytest.param(binding({"type": [FAILED], "status": True}), id="garbage"),
    ],
)
def test_no_other_condition_fails_a_binding(manifest: Manifest) -> None:
    assert started(manifest, now_ms=ALLOCATED_AT_MS).said().rejected is None


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(binding(condition(ATTACHED)), id="all are True"),
        pytest.param(
            {**protected(), "status": {"allocation": {**an_allocation("gpu-0"), "allocationTimestamp": ALLOCATED_AT}}},
            id="there are none",
        ),
    ],
)
def test_what_is_bound_may_wait_for_its_pod(manifest: Manifest) -> None:
    driven = started(manifest, now_ms=ALLOCATED_AT_MS)
    passes(driven, ALLOCATED_AT_MS + 10 * PATIENCE.binding_ms)
    driven.tell(seen(manifest, 110))
    passes(driven, ALLOCATED_AT_MS + 20 * PATIENCE.binding_ms)
    assert driven.said().rejected is None


@pytest.mark.parametrize("at", [None, "", "yesterday", 5, "2026-01-01T00:00:00"])
def test_without_a_time_of_allocation_nothing_is_too_late(at: Any) -> None:
    driven = started(binding(at=at), now_ms=ALLOCATED_AT_MS)
    passes(driven, ALLOCATED_AT_MS + 10 * PATIENCE.binding_ms)
    assert driven.said().rejected is None


def test_a_pod_that_runs_does_not_lose_its_device_by_a_late_condition() -> None:
    driven = started(binding(), a_pod(node="n1"), now_ms=ALLOCATED_AT_MS)
    driven.tell(seen(binding(condition(FAILED)), 110))
    passes(driven, ALLOCATED_AT_MS + 10 * PATIENCE.binding_ms)
    assert driven.said().rejected is None
    assert driven.claim()["metadata"]["uid"] == UID
