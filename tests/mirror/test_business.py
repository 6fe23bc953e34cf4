"""Which claims are told of, who uses them, and the labels of their namespaces."""

import pytest

from cluster_agent.mirror.actions import Asked, Publish, Relisted, Watched
from schemas.wire.state import Consumer, ObjectName, Rejected, Settled
from tests.builders import CLASS, a_choice, a_claim, a_request, a_sub_request
from tests.mirror.driven import (
    TRAIN,
    Driven,
    Manifest,
    a_manifest,
    a_state,
    allocated,
    an_allocate,
    an_object,
    decides,
    gone,
    protected,
    seen,
    told,
)

BROKERED = {"dragoman.dev/brokered": "true"}


def a_pod(name: str = "worker", *claims: str, **metadata: object) -> Manifest:
    named = [{"name": f"c{number}", "resourceClaimName": claim} for number, claim in enumerate(claims)]
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": f"uid-{name}", **metadata},
        "spec": {"resourceClaims": named},
    }


def a_class(name: str = CLASS, labels: dict[str, str] | None = None) -> Manifest:
    return an_object("DeviceClass", name, labels=labels if labels is not None else BROKERED)


# --- consumers


@pytest.mark.parametrize(
    ("claim", "pod"),
    [
        pytest.param(a_manifest(), a_pod("worker", "train"), id="by name"),
        pytest.param(
            a_manifest(),
            a_pod() | {"status": {"resourceClaimStatuses": [{"name": "c", "resourceClaimName": "train"}]}},
            id="by status, as for a template",
        ),
        pytest.param(
            a_manifest(ownerReferences=[{"kind": "Pod", "uid": "uid-worker", "name": "worker"}]), a_pod(), id="as owner"
        ),
    ],
)
@pytest.mark.parametrize("pod_first", [True, False])
def test_finds_the_pods_that_use_a_claim(claim: Manifest, pod: Manifest, pod_first: bool) -> None:
    events = [seen(claim, 100), seen(pod, 101, "pod")]
    driven = Driven().started(*(reversed(events) if pod_first else events))
    assert driven.said().consumers == [Consumer("uid-worker", "worker")]


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(a_pod("worker", "other"), id="another claim"),
        pytest.param(a_pod("worker", "train", namespace="elsewhere"), id="another namespace"),
        pytest.param(a_pod(), id="no claim"),
    ],
)
def test_other_pods_do_not_use_it(pod: Manifest) -> None:
    driven = Driven().started(seen(a_manifest(), 100), seen(pod, 101, "pod"))
    assert driven.said().consumers == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"spec": {"nodeName": "n1"}}, Consumer("uid-worker", "worker", scheduled=True), id="scheduled"),
        pytest.param(
            {"status": {"phase": "Succeeded"}}, Consumer("uid-worker", "worker", terminal=True), id="succeeded"
        ),
        pytest.param({"status": {"phase": "Failed"}}, Consumer("uid-worker", "worker", terminal=True), id="failed"),
        pytest.param({"status": {"phase": "Running"}}, Consumer("uid-worker", "worker"), id="running"),
        pytest.param(
            {"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}},
            Consumer("uid-worker", "worker", deleting=True),
            id="being deleted",
        ),
    ],
)
def test_says_how_a_pod_is(change: Manifest, expected: Consumer) -> None:
    pod = a_pod("worker", "train")
    pod = {key: {**pod.get(key, {}), **change.get(key, {})} for key in ("metadata", "spec", "status")}
    driven = Driven().started(seen(a_manifest(), 100), seen(pod, 101, "pod"))
    assert driven.said().consumers == [expected]


def test_publishes_a_claim_again_when_its_pods_change() -> None:
    driven = Driven().started(seen(a_manifest(), 100))
    driven.tell(seen(a_pod("b", "train"), 101, "pod"))
    driven.store()
    driven.tell(seen(a_pod("a", "train"), 102, "pod"))
    driven.store()
    assert [pod.name for pod in driven.said().consumers] == ["a", "b"]
    driven.tell(seen(a_pod("a"), 103, "pod"))  # it does not use the claim any more
    driven.store()
    driven.tell(gone(a_pod("b", "train"), 104, "pod"))
    driven.store()
    assert driven.said().consumers == []
    assert driven.said().resource_version == "100"


def test_a_new_list_of_pods_is_all_there_is() -> None:
    driven = Driven().started(seen(a_manifest(), 100), seen(a_pod("a", "train"), 101, "pod"))
    driven.tell(Relisted("pod", [seen(a_pod("b", "train"), 110, "pod")], 110))
    driven.store()
    assert [pod.name for pod in driven.said().consumers] == ["b"]
    driven.tell(Relisted("pod", [], 120))
    driven.store()
    assert driven.said().consumers == []


def test_tells_the_labels_of_the_namespace() -> None:
    driven = Driven().started(
        seen(a_manifest(), 100), seen(an_object("Namespace", "other", labels={}), 101, "namespace")
    )
    assert driven.said().namespace_labels == {}
    driven.tell(seen(an_object("Namespace", "default", labels={"team": "a"}), 102, "namespace"))
    driven.store()
    assert driven.said().namespace_labels == {"team": "a"}
    driven.tell(gone(an_object("Namespace", "default"), 103, "namespace"))
    driven.store()
    assert driven.said().namespace_labels == {}


def test_a_rejection_is_not_told_while_a_pod_runs_with_the_allocation() -> None:
    rejected = Rejected(50, "Unschedulable")
    before = a_state(allocated(protected()), 100, decision=Settled(50, "Applied"), rejected=rejected)
    running = a_pod("worker", "train")
    running["spec"]["nodeName"] = "n1"
    driven = Driven().started(seen(allocated(protected()), 100), seen(running, 101, "pod"), told=[told(before, 7)])
    assert driven.said().rejected is None


# --- which claims


def test_tells_of_every_claim_in_a_directory() -> None:
    driven = Driven(publishes_all=True).started(seen(a_manifest(a_claim(a_request(of="unheard-of"))), 100))
    assert TRAIN in driven.stored


@pytest.mark.parametrize(
    ("manifest", "is_told"),
    [
        pytest.param(a_manifest(), True, id="on a brokered class"),
        pytest.param(a_manifest(a_claim(a_request(of="plain"))), False, id="on another class"),
        pytest.param(a_manifest(a_claim(a_request(of="unheard-of"))), False, id="on a class that is not there"),
        pytest.param(
            a_manifest(a_claim(a_choice("any", a_sub_request("a", of="plain"), a_sub_request("b")))),
            True,
            id="on a brokered class among alternatives",
        ),
        pytest.param(allocated(a_manifest(a_claim(a_request(of="plain")))), True, id="allocated, whatever its class"),
    ],
)
def test_tells_of_claims_that_are_the_brokers_business(manifest: Manifest, is_told: bool) -> None:
    driven = Driven(publishes_all=False)
    driven.started(
        seen(a_class(), 1, "class"), seen(a_class("plain", {"other": "true"}), 2, "class"), seen(manifest, 100)
    )
    assert (TRAIN in driven.stored) == is_told
    assert (TRAIN in driven.syncs[0]) == is_told


def test_tells_of_claims_whose_class_becomes_brokered() -> None:
    driven = Driven(publishes_all=False).started(seen(a_class(labels={}), 1, "class"), seen(a_manifest(), 100))
    assert TRAIN not in driven.stored
    driven.tell(seen(a_class(), 101, "class"))
    assert {each.name for each in driven.all(Publish)} == {TRAIN, ObjectName("class", CLASS)}
    driven.store_all()
    assert driven.mirror.is_idle


def test_goes_on_telling_of_a_claim_whose_class_is_brokered_no_more() -> None:
    driven = Driven(publishes_all=False).started(seen(a_class(), 1, "class"), seen(a_manifest(), 100))
    driven.tell(seen(a_class(labels={}), 101, "class"))
    driven.store_all()
    driven.tell(seen(a_manifest(labels={"a": "1"}), 102))
    driven.store()
    driven.tell(Asked([]))
    driven.store_all()
    assert TRAIN in driven.syncs[-1]


def test_forgets_that_a_class_that_went_was_brokered() -> None:
    driven = Driven(publishes_all=False).started(seen(a_class(), 1, "class"))
    driven.tell(gone(a_class(), 101, "class"))
    driven.store_all()
    driven.tell(seen(a_manifest(), 102))
    assert driven.pending == []


def test_tells_of_a_claim_for_which_there_is_a_decision() -> None:
    driven = Driven(publishes_all=False).started(seen(a_manifest(), 100))
    assert TRAIN not in driven.stored
    driven.tell(decides(an_allocate(100)))
    assert driven.only(Publish).name == TRAIN


def test_tells_of_a_claim_for_which_something_was_decided_once() -> None:
    """Only its finalizer says so: a sync without it would have the broker forget what it knows of it."""
    driven = Driven(publishes_all=False).started(seen(protected(), 100))
    assert driven.syncs == [[TRAIN]]


def test_tells_of_a_claim_that_an_agent_before_told_of() -> None:
    driven = Driven(publishes_all=False).started(seen(a_manifest(), 101), told=[told(a_state(a_manifest(), 100), 7)])
    assert driven.said().resource_version == "101"
    assert driven.syncs == [[TRAIN]]


def test_an_ask_for_a_claim_that_is_not_our_business_is_not_answered_with_it() -> None:
    driven = Driven(publishes_all=False).started(seen(a_manifest(), 100))
    assert driven.tell(Asked([TRAIN])) == []
    assert driven.tell(Watched("claim", 200)) == []
