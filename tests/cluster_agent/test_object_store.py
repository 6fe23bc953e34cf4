from typing import Any

import pytest

from cluster_agent.adapters.object_store import ObjectKey, ObjectStore
from cluster_agent.ports import (
    ApiConflictError,
    ApiInvalidError,
    ApiNotFoundError,
    ApiObject,
    ExpiredError,
)
from tests.cluster_agent.objects import (
    HELD,
    PROTECTED,
    TIME,
    a_raw_claim,
    a_raw_pod,
    an_allocation,
    consumer_of,
    with_metadata,
    with_status,
)


@pytest.fixture
def store() -> ObjectStore:
    return a_store()


def a_store() -> ObjectStore:
    return ObjectStore(new_uid=lambda version: f"uid-{version}", now=lambda: TIME)


def version_of(obj: ApiObject) -> str:
    return str(obj["metadata"]["resourceVersion"])


def history(store: ObjectStore, since: int = 0) -> list[tuple[str, str]]:
    return [(event.type, event.key.name) for event in store.events_since(since)]


def an_allocated_claim(store: ObjectStore, *, finalizers: list[str], pods: tuple[ApiObject, ...] = ()) -> ApiObject:
    claim = store.create("claim", a_raw_claim(finalizers=finalizers))
    reserved = [consumer_of(pod) for pod in pods]
    return store.update_claim_status(with_status(claim, allocation=an_allocation(), reservedFor=reserved))


# One counter


def test_numbers_the_changes_of_all_kinds_with_one_counter(store: ObjectStore) -> None:
    claim, pod = store.create("claim", a_raw_claim()), store.create("pod", a_raw_pod())
    assert (version_of(claim), version_of(pod)) == ("1", "2")
    assert store.resource_version == 2


def test_gives_a_new_object_its_own_uid_and_time_whatever_the_manifest_says(store: ObjectStore) -> None:
    exported = with_metadata(
        a_raw_claim(), uid="theirs", resourceVersion="99", creationTimestamp="1999-01-01T00:00:00Z", managedFields=[{}]
    )
    metadata = store.create("claim", exported)["metadata"]
    assert metadata == {
        "name": "c",
        "namespace": "default",
        "uid": "uid-1",
        "resourceVersion": "1",
        "creationTimestamp": TIME,
    }


def test_refuses_a_second_object_of_the_same_name(store: ObjectStore) -> None:
    store.create("claim", a_raw_claim())
    with pytest.raises(ApiConflictError, match="exists already"):
        store.create("claim", a_raw_claim())


def test_gives_a_later_object_of_the_same_name_a_new_uid(store: ObjectStore) -> None:
    first = store.create("claim", a_raw_claim())
    store.delete("claim", "default", "c")
    second = store.create("claim", a_raw_claim())
    assert first["metadata"]["uid"] != second["metadata"]["uid"]


def test_shares_nothing_with_its_callers(store: ObjectStore) -> None:
    manifest = a_raw_claim()
    created = store.create("claim", manifest)
    manifest["spec"]["devices"]["requests"].clear()
    created["spec"]["devices"]["requests"].clear()
    store.list_objects("claim")[0].object["spec"].clear()
    claim = store.get("claim", "default", "c")
    assert claim is not None
    assert claim["spec"] == a_raw_claim()["spec"]


# Guards


@pytest.mark.parametrize("method", ["update_claim", "update_claim_status"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"resourceVersion": "999"}, ApiConflictError, id="another resourceVersion is stale"),
        pytest.param({"uid": "another"}, ApiConflictError, id="another UID is another object"),
        pytest.param({"uid": "another", "resourceVersion": ""}, ApiConflictError, id="a UID alone is a guard too"),
        pytest.param({"name": "missing"}, ApiNotFoundError, id="there is no such claim"),
        pytest.param({"namespace": "missing"}, ApiNotFoundError, id="there is none in that namespace"),
    ],
)
def test_refuses_a_put_whose_guard_does_not_hold(
    store: ObjectStore, method: str, change: dict[str, str], expected: type[Exception]
) -> None:
    claim = store.create("claim", a_raw_claim())
    put = with_status(with_metadata(claim, labels={"a": "b"}, **change), allocation=an_allocation())
    with pytest.raises(expected):
        getattr(store, method)(put)
    assert store.get("claim", "default", "c") == claim


@pytest.mark.parametrize("method", ["update_claim", "update_claim_status"])
def test_an_identical_put_changes_nothing(store: ObjectStore, method: str) -> None:
    claim = an_allocated_claim(store, finalizers=[PROTECTED])
    assert getattr(store, method)(claim) == claim
    assert store.resource_version == int(version_of(claim))


@pytest.mark.parametrize("method", ["update_claim", "update_claim_status"])
def test_an_identical_put_with_a_stale_guard_is_a_conflict_all_the_same(store: ObjectStore, method: str) -> None:
    claim = store.create("claim", a_raw_claim())
    store.update_claim(with_metadata(claim, labels={"a": "b"}))
    with pytest.raises(ApiConflictError):
        getattr(store, method)(claim)


def test_a_put_of_the_claim_ignores_its_status(store: ObjectStore) -> None:
    claim = store.create("claim", a_raw_claim())
    written = store.update_claim(with_metadata(with_status(claim, allocation=an_allocation()), finalizers=[HELD]))
    assert "status" not in written
    assert written["metadata"]["finalizers"] == [HELD]


def test_a_put_of_the_status_ignores_metadata_and_spec(store: ObjectStore) -> None:
    claim = store.create("claim", a_raw_claim())
    put = with_metadata(with_status(claim, allocation=an_allocation()), finalizers=[HELD], annotations={"a": "b"})
    put["spec"] = {}
    written = store.update_claim_status(put)
    assert written == {
        **claim,
        "metadata": {**claim["metadata"], "resourceVersion": "2"},
        "status": {"allocation": an_allocation()},
    }


def test_a_put_cannot_change_what_the_server_owns(store: ObjectStore) -> None:
    claim = store.create("claim", a_raw_claim(finalizers=[HELD]))
    store.delete("claim", "default", "c")
    deleting = store.get("claim", "default", "c")
    assert deleting is not None
    forged = with_metadata(deleting, deletionTimestamp=None, creationTimestamp="1999-01-01T00:00:00Z")
    assert store.update_claim(forged) == deleting
    assert deleting["metadata"]["creationTimestamp"] == claim["metadata"]["creationTimestamp"]


# Fields that do not change


def test_refuses_another_spec(store: ObjectStore) -> None:
    claim = store.create("claim", a_raw_claim())
    with pytest.raises(ApiInvalidError) as refused:
        store.update_claim({**claim, "spec": {"devices": {"requests": []}}})
    assert (refused.value.field, refused.value.reason) == ("spec", "FieldValueInvalid")


def test_takes_a_spec_that_spells_out_the_defaults_for_the_same(store: ObjectStore) -> None:
    claim = store.create("claim", a_raw_claim())
    exactly = {"deviceClassName": "gpu.example.com", "allocationMode": "ExactCount", "count": 1}
    put = {**claim, "spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}}}
    assert store.update_claim(put) == claim


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(an_allocation("gpu-1"), id="another device"),
        pytest.param({**an_allocation(), "allocationTimestamp": "2026-01-02T00:00:00Z"}, id="another time"),
        pytest.param({"devices": an_allocation()["devices"]}, id="no time"),
        pytest.param({**an_allocation(), "nodeSelector": {"nodeSelectorTerms": [{}]}}, id="a node selector"),
    ],
)
def test_refuses_to_change_an_allocation(store: ObjectStore, change: ApiObject) -> None:
    claim = an_allocated_claim(store, finalizers=[])
    with pytest.raises(ApiInvalidError) as refused:
        store.update_claim_status(with_status(claim, allocation=change))
    assert (refused.value.field, refused.value.reason) == ("status.allocation", "FieldValueInvalid")


def test_an_allocation_that_was_cleared_can_be_set_again(store: ObjectStore) -> None:
    claim = an_allocated_claim(store, finalizers=[])
    cleared = store.update_claim_status(with_status(claim))
    assert "status" not in cleared
    again = store.update_claim_status(with_status(cleared, allocation=an_allocation("gpu-1")))
    assert again["status"]["allocation"] == an_allocation("gpu-1")


def test_what_drivers_said_about_devices_goes_with_the_allocation(store: ObjectStore) -> None:
    claim = an_allocated_claim(store, finalizers=[])
    devices = [{"driver": "gpu.example.com", "pool": "rack7", "device": "gpu-0", "data": {"a": 1}}]
    claim = store.update_claim_status(with_status(claim, allocation=an_allocation(), devices=devices))
    assert claim["status"]["devices"] == devices
    assert "status" not in store.update_claim_status(with_status(claim, devices=devices))


def test_refuses_results_for_a_request_that_the_claim_does_not_have(store: ObjectStore) -> None:
    claim = store.create("claim", a_raw_claim())
    with pytest.raises(ApiInvalidError) as refused:
        store.update_claim_status(with_status(claim, allocation=an_allocation(request="nic")))
    assert refused.value.field == "status.allocation.devices.results[0].request"


def test_takes_results_for_a_subrequest(store: ObjectStore) -> None:
    claim = a_raw_claim()
    claim["spec"]["devices"]["requests"] = [{"name": "gpu", "firstAvailable": [{"name": "big"}, {"name": "small"}]}]
    created = store.create("claim", claim)
    allocation = an_allocation(request="gpu/small")
    assert store.update_claim_status(with_status(created, allocation=allocation))["status"]["allocation"] == allocation


# Who uses a claim


def consumers(count: int) -> list[ApiObject]:
    return [{"resource": "pods", "name": f"p{index}", "uid": f"pod-{index}"} for index in range(count)]


@pytest.mark.parametrize(
    ("status", "field", "reason"),
    [
        pytest.param(
            {"reservedFor": consumers(1)}, "status.reservedFor", "FieldValueForbidden", id="without an allocation"
        ),
        pytest.param(
            {"allocation": an_allocation(), "reservedFor": consumers(257)},
            "status.reservedFor",
            "FieldValueTooMany",
            id="more than 256",
        ),
        pytest.param(
            {"allocation": an_allocation(), "reservedFor": consumers(1) * 2},
            "status.reservedFor[1]",
            "FieldValueDuplicate",
            id="the same UID twice",
        ),
        pytest.param(
            {"allocation": an_allocation(), "reservedFor": [{"resource": "pods", "name": "p"}]},
            "status.reservedFor[0].uid",
            "FieldValueRequired",
            id="no UID",
        ),
    ],
)
def test_refuses_consumers_that_cannot_be(store: ObjectStore, status: ApiObject, field: str, reason: str) -> None:
    claim = store.create("claim", a_raw_claim())
    with pytest.raises(ApiInvalidError) as refused:
        store.update_claim_status(with_status(claim, **status))
    assert (refused.value.field, refused.value.reason) == (field, reason)


def test_takes_256_consumers(store: ObjectStore) -> None:
    claim = store.create("claim", a_raw_claim())
    written = store.update_claim_status(with_status(claim, allocation=an_allocation(), reservedFor=consumers(256)))
    assert len(written["status"]["reservedFor"]) == 256


def test_clearing_an_allocation_needs_its_consumers_cleared_in_the_same_write(store: ObjectStore) -> None:
    claim = an_allocated_claim(store, finalizers=[], pods=(store.create("pod", a_raw_pod()),))
    with pytest.raises(ApiInvalidError) as refused:
        store.update_claim_status(with_status(claim, reservedFor=claim["status"]["reservedFor"]))
    assert refused.value.field == "status.reservedFor"
    assert "status" not in store.update_claim_status(with_status(claim))


def test_a_deleted_claim_gets_no_new_consumers_but_may_lose_some(store: ObjectStore) -> None:
    claim = store.create("claim", a_raw_claim(finalizers=[HELD]))
    store.update_claim_status(with_status(claim, allocation=an_allocation(), reservedFor=consumers(2)))
    store.delete("claim", "default", "c")
    deleting = store.get("claim", "default", "c")
    assert deleting is not None
    with pytest.raises(ApiInvalidError) as refused:
        store.update_claim_status(with_status(deleting, allocation=an_allocation(), reservedFor=consumers(3)))
    assert (refused.value.field, refused.value.reason) == ("status.reservedFor", "FieldValueForbidden")
    left = store.update_claim_status(with_status(deleting, allocation=an_allocation(), reservedFor=consumers(1)))
    assert left["status"]["reservedFor"] == consumers(1)


# Deletion


def test_an_object_without_finalizers_goes_at_once_and_is_told_of_as_it_was_last(store: ObjectStore) -> None:
    claim = an_allocated_claim(store, finalizers=[])
    store.delete("claim", "default", "c")
    assert not store.objects
    event = store.events_since(int(version_of(claim)))[0]
    assert event.type == "DELETED"
    assert event.object["status"] == claim["status"]
    assert event.object["metadata"]["uid"] == claim["metadata"]["uid"]
    assert version_of(event.object) == str(event.resource_version) == "3"


def test_finalizers_hold_a_deleted_object_until_the_last_is_taken_away(store: ObjectStore) -> None:
    claim = store.create("claim", a_raw_claim(finalizers=[PROTECTED, HELD]))
    store.delete("claim", "default", "c")
    store.delete("claim", "default", "c")  # once more changes nothing
    deleting = store.get("claim", "default", "c")
    assert deleting is not None
    assert deleting["metadata"]["deletionTimestamp"] == TIME
    one_left = store.update_claim(with_metadata(deleting, finalizers=[HELD]))
    store.update_claim(with_metadata(one_left, finalizers=[]))
    assert history(store) == [("ADDED", "c"), ("MODIFIED", "c"), ("MODIFIED", "c"), ("DELETED", "c")]
    with pytest.raises(ApiNotFoundError):
        store.update_claim(claim)


def test_a_deleted_object_gets_no_new_finalizers(store: ObjectStore) -> None:
    store.create("claim", a_raw_claim(finalizers=[PROTECTED]))
    store.delete("claim", "default", "c")
    deleting = store.get("claim", "default", "c")
    assert deleting is not None
    with pytest.raises(ApiInvalidError) as refused:
        store.update_claim(with_metadata(deleting, finalizers=[PROTECTED, HELD]))
    assert (refused.value.field, refused.value.reason) == ("metadata.finalizers", "FieldValueForbidden")


def test_deleting_what_is_not_there_says_so(store: ObjectStore) -> None:
    with pytest.raises(ApiNotFoundError):
        store.delete("claim", "default", "c")


# kube-controller-manager


def test_when_the_last_consumer_is_gone_the_allocation_goes_in_one_write_and_then_the_finalizer(
    store: ObjectStore,
) -> None:
    claim = an_allocated_claim(store, finalizers=[PROTECTED, HELD], pods=(store.create("pod", a_raw_pod()),))
    assert not store.release_unused("default", "c")
    store.delete("pod", "default", "p")
    before = store.resource_version
    assert store.release_unused("default", "c")
    first, second = store.events_since(before)
    assert "status" not in first.object
    assert first.object["metadata"]["finalizers"] == [PROTECTED, HELD]
    assert second.object["metadata"]["finalizers"] == [HELD]
    assert second.object["metadata"]["uid"] == claim["metadata"]["uid"]
    assert not store.release_unused("default", "c")


@pytest.mark.parametrize(
    ("pod", "is_released"),
    [
        pytest.param(a_raw_pod(phase="Running"), False, id="a pod that runs is a consumer"),
        pytest.param(a_raw_pod(phase="Succeeded"), True, id="one that has succeeded is none any more"),
        pytest.param(a_raw_pod(phase="Failed"), True, id="nor is one that has failed"),
    ],
)
def test_asks_what_became_of_a_consumer(store: ObjectStore, pod: ApiObject, is_released: bool) -> None:
    an_allocated_claim(store, finalizers=[PROTECTED], pods=(store.create("pod", a_raw_pod()),))
    store.replace("pod", pod)
    assert store.release_unused("default", "c") is is_released
    claim = store.get("claim", "default", "c")
    assert claim is not None
    assert ("status" not in claim) is is_released


def test_a_pod_of_the_same_name_is_another_consumer(store: ObjectStore) -> None:
    an_allocated_claim(store, finalizers=[PROTECTED], pods=(store.create("pod", a_raw_pod()),))
    store.delete("pod", "default", "p")
    store.create("pod", a_raw_pod())
    assert store.release_unused("default", "c")


def test_an_allocation_stays_while_one_of_two_consumers_does(store: ObjectStore) -> None:
    pods = store.create("pod", a_raw_pod("p")), store.create("pod", a_raw_pod("q"))
    an_allocated_claim(store, finalizers=[PROTECTED], pods=pods)
    store.delete("pod", "default", "p")
    store.release_all_unused()
    claim = store.get("claim", "default", "c")
    assert claim is not None
    assert claim["status"] == {"allocation": an_allocation(), "reservedFor": [consumer_of(pods[1])]}


def test_without_the_finalizer_only_the_reservation_goes(store: ObjectStore) -> None:
    an_allocated_claim(store, finalizers=[], pods=(store.create("pod", a_raw_pod()),))
    store.delete("pod", "default", "p")
    store.release_all_unused()
    claim = store.get("claim", "default", "c")
    assert claim is not None
    assert claim["status"] == {"allocation": an_allocation()}


def test_an_allocation_that_was_never_reserved_stays(store: ObjectStore) -> None:
    claim = an_allocated_claim(store, finalizers=[PROTECTED])
    store.release_all_unused()
    assert store.get("claim", "default", "c") == claim


def test_consumers_that_are_not_pods_are_kept(store: ObjectStore) -> None:
    claim = store.create("claim", a_raw_claim(finalizers=[PROTECTED]))
    group = {"apiGroup": "scheduling.k8s.io", "resource": "podgroups", "name": "g", "uid": "g-1"}
    claim = store.update_claim_status(with_status(claim, allocation=an_allocation(), reservedFor=[group]))
    assert not store.release_unused("default", "c")


@pytest.mark.parametrize(
    ("finalizers", "left"),
    [
        pytest.param([PROTECTED], None, id="with delete-protection alone it is gone then"),
        pytest.param([PROTECTED, HELD], [HELD], id="ours stays for the agent"),
    ],
)
def test_a_deleted_claim_that_nobody_uses_loses_its_allocation(
    store: ObjectStore, finalizers: list[str], left: list[str] | None
) -> None:
    an_allocated_claim(store, finalizers=finalizers)
    store.delete("claim", "default", "c")
    store.release_all_unused()
    claim = store.get("claim", "default", "c")
    assert (claim and claim["metadata"]["finalizers"]) == left
    assert "status" not in (claim or {})


def test_a_deleted_claim_in_use_stays_until_its_pod_is_gone(store: ObjectStore) -> None:
    an_allocated_claim(store, finalizers=[PROTECTED], pods=(store.create("pod", a_raw_pod()),))
    store.delete("claim", "default", "c")
    assert not store.release_unused("default", "c")
    store.delete("pod", "default", "p")
    store.release_all_unused()
    assert not store.objects


@pytest.mark.parametrize("how", ["gone", "finished", "replaced"])
def test_a_claim_that_was_made_for_a_pod_goes_with_it(store: ObjectStore, how: str) -> None:
    pod = store.create("pod", a_raw_pod())
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"], "controller": True}
    store.create("claim", with_metadata(a_raw_claim(), ownerReferences=[owner]))
    store.release_all_unused()
    assert ObjectKey("claim", "default", "c") in store.objects
    if how == "finished":
        store.replace("pod", a_raw_pod(phase="Succeeded"))
    else:
        store.delete("pod", "default", "p")
    if how == "replaced":
        store.create("pod", a_raw_pod())
    store.release_all_unused()
    assert ObjectKey("claim", "default", "c") not in store.objects


# History


def test_tells_the_changes_of_one_kind_or_of_all(store: ObjectStore) -> None:
    store.create("claim", a_raw_claim())
    store.create("pod", a_raw_pod())
    assert history(store) == [("ADDED", "c"), ("ADDED", "p")]
    assert history(store, since=1) == [("ADDED", "p")]
    assert [event.key.kind for event in store.events_since(0, "claim")] == ["claim"]
    assert store.events_since(2) == []


@pytest.mark.parametrize("version", [pytest.param(1, id="forgotten"), pytest.param(4, id="not yet")])
def test_a_version_outside_of_the_history_has_expired(store: ObjectStore, version: int) -> None:
    for name in "abc":
        store.create("claim", a_raw_claim(name))
    store.compact(keep=1)
    assert history(store, since=2) == [("ADDED", "c")]
    with pytest.raises(ExpiredError):
        store.events_since(version)


def test_a_copy_goes_its_own_way(store: ObjectStore) -> None:
    store.create("claim", a_raw_claim())
    other = store.copy()
    other.delete("claim", "default", "c")
    assert history(store) == [("ADDED", "c")]
    assert history(other) == [("ADDED", "c"), ("DELETED", "c")]
    assert store.get("claim", "default", "c")


def test_the_same_calls_give_the_same_objects() -> None:
    def run() -> list[Any]:
        store = a_store()
        an_allocated_claim(store, finalizers=[PROTECTED], pods=(store.create("pod", a_raw_pod()),))
        store.delete("pod", "default", "p")
        store.release_all_unused()
        return store.events_since(0)

    assert run() == run()


def test_keeps_an_object_that_cannot_be_read_as_it_is(store: ObjectStore) -> None:
    broken = {**a_raw_claim(), "spec": 5, "status": "none"}
    store.create("claim", broken, error="spec: expected an object")
    (stored,) = store.list_objects("claim")
    assert stored.error == "spec: expected an object"
    assert (stored.object["spec"], stored.object["status"]) == (5, "none")
    store.release_all_unused()
    store.update_claim(with_metadata(stored.object, finalizers=[HELD]))
    store.delete("claim", "default", "c")
    assert [event.error for event in store.events_since(0)] == ["spec: expected an object"] * 3
