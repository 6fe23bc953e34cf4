import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
import yaml
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_agent.adapters.journal import JournalError
from cluster_agent.adapters.manifest_cluster import ManifestCluster
from cluster_agent.ports import ApiConflictError, ApiObject, Kind, WatchEvent
from schemas.errors import ManifestError
from tests.cluster_agent.contract import ClusterContract, next_event
from tests.cluster_agent.objects import (
    HELD,
    PROTECTED,
    TIME,
    a_raw_claim,
    a_raw_pod,
    a_raw_template,
    an_allocation,
    consumer_of,
    with_metadata,
    with_status,
)

pytestmark = pytest.mark.anyio

Open = Callable[..., ManifestCluster]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The directory of manifests."""
    directory = tmp_path / "manifests"
    directory.mkdir()
    return directory


@pytest.fixture
def opened(tmp_path: Path, files: Path) -> Iterator[Open]:
    """Opens the cluster of `files`; closes the one before."""
    current: list[ManifestCluster] = []
    numbers = iter(range(10_000))

    def open_cluster(*paths: Path, data: bool = False, **kwargs: Any) -> ManifestCluster:
        while current:
            current.pop().close()
        cluster = ManifestCluster(
            paths or [files],
            data_dir=tmp_path / "data" if data else None,
            new_uid=lambda _: f"uid-{next(numbers)}",
            now=lambda: TIME,
            **kwargs,
        )
        current.append(cluster)
        return cluster

    yield open_cluster
    for cluster in current:
        cluster.close()


def write(path: Path, *objects: ApiObject) -> None:
    path.write_text(yaml.safe_dump_all(objects, sort_keys=False))


def a_raw_class(name: str = "gpu.example.com", **metadata: Any) -> ApiObject:
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": name, **metadata},
        "spec": {},
    }


async def names(cluster: ManifestCluster, kind: Kind = "claim") -> list[str]:
    return [obj["metadata"]["name"] for obj in (await cluster.list_objects(kind)).objects]


async def the_claim(cluster: ManifestCluster, name: str = "c") -> ApiObject:
    claim = await cluster.get_claim("default", name)
    assert claim is not None
    return claim


async def only(cluster: ManifestCluster, kind: Kind) -> ApiObject:
    (obj,) = (await cluster.list_objects(kind)).objects
    return obj


async def changes(cluster: ManifestCluster, since: str, kind: Kind = "claim") -> list[WatchEvent]:
    """What a watch has to say without waiting."""
    found = []

    async def read() -> None:
        async for event in cluster.watch(kind, since):
            found.append(event)  # noqa: PERF401  # it is cancelled

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    return found


async def allocate(cluster: ManifestCluster, name: str = "c", *, reserved: tuple[ApiObject, ...] = ()) -> ApiObject:
    """Write what an agent writes."""
    claim = await the_claim(cluster, name)
    held = await cluster.update_claim(with_metadata(claim, finalizers=[PROTECTED, HELD]))
    status = {"allocation": an_allocation(), "reservedFor": [consumer_of(pod) for pod in reserved]}
    return await cluster.update_claim_status(with_status(held, **status))


# The contract of the port


class ManifestBed:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        write(directory / "namespace.yaml", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}})
        self.cluster = ManifestCluster([directory])
        self.expired_version = "4711"

    async def create(self, obj: ApiObject) -> None:
        write(self._directory / f"{obj['metadata']['name']}.yaml", obj)
        self.cluster.rescan()

    async def delete_claim(self, name: str) -> None:
        (self._directory / f"{name}.yaml").unlink()
        self.cluster.rescan()


class TestContract(ClusterContract):
    @pytest.fixture
    def bed(self, files: Path) -> ManifestBed:
        return ManifestBed(files)


# What is read, and how


async def test_reads_directories_and_files_of_yaml_and_json(files: Path, opened: Open, tmp_path: Path) -> None:
    write(files / "many.yaml", a_raw_claim("a"), a_raw_claim("b"))
    (files / "below" / "deeper").mkdir(parents=True)
    (files / "below" / "deeper" / "list.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "List", "items": [a_raw_claim("c"), a_raw_claim("d")]})
    )
    for hidden in (".hidden.yaml", "backup.yaml~", ".d.yaml.swp", "notes.txt"):
        write(files / hidden, a_raw_claim("never"))
    single = tmp_path / "single.manifest"
    write(single, a_raw_claim("e"))
    assert await names(opened(files, single)) == ["a", "b", "c", "d", "e"]


async def test_passes_over_what_does_not_concern_us_and_counts_it(files: Path, opened: Open) -> None:
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
    write(files / "a.yaml", deployment, service, a_raw_claim())
    write(files / "b.yaml", deployment)
    cluster = opened()
    assert cluster.skipped == {"Deployment": 2, "Service": 1}
    assert cluster.problems == []


async def test_marks_classes_and_claims_unless_they_are_marked(files: Path, opened: Open) -> None:
    write(
        files / "a.yaml",
        a_raw_class("plain"),
        a_raw_class("local", labels={"dragoman.dev/brokered": "false", "a": "b"}),
        a_raw_claim("plain"),
        with_metadata(a_raw_claim("lazy"), annotations={"dragoman.dev/allocate": "WaitForFirstConsumer"}),
    )
    cluster = opened()
    local, plain = (await cluster.list_objects("class")).objects
    assert plain["metadata"]["labels"] == {"dragoman.dev/brokered": "true"}
    assert local["metadata"]["labels"] == {"dragoman.dev/brokered": "false", "a": "b"}
    assert (await the_claim(cluster, "plain"))["metadata"]["annotations"] == {"dragoman.dev/allocate": "Immediate"}
    lazy = await the_claim(cluster, "lazy")
    assert lazy["metadata"]["annotations"] == {"dragoman.dev/allocate": "WaitForFirstConsumer"}


async def test_objects_without_a_namespace_belong_to_default(files: Path, opened: Open) -> None:
    claim = a_raw_claim()
    del claim["metadata"]["namespace"]
    write(files / "a.yaml", claim, a_raw_claim("b", namespace="team"))
    cluster = opened()
    assert (await the_claim(cluster))["metadata"]["namespace"] == "default"
    assert await cluster.get_claim("team", "b")


async def test_older_versions_of_the_api_come_out_as_v1(files: Path, opened: Open) -> None:
    claim = {**a_raw_claim(), "apiVersion": "resource.k8s.io/v1beta1"}
    claim["spec"] = {"devices": {"requests": [{"name": "gpu", "deviceClassName": "gpu.example.com"}]}}
    write(files / "a.yaml", claim)
    found = await the_claim(opened())
    assert found["apiVersion"] == "resource.k8s.io/v1"
    assert found["spec"] == a_raw_claim()["spec"]


async def test_keeps_an_allocation_that_is_in_the_manifest(files: Path, opened: Open) -> None:
    write(files / "a.yaml", with_status(a_raw_claim(finalizers=[PROTECTED]), allocation=an_allocation()))
    cluster = opened()
    assert (await the_claim(cluster))["status"] == {"allocation": an_allocation()}
    (files / "b.yaml").touch()
    cluster.rescan()
    assert (await the_claim(cluster))["status"] == {"allocation": an_allocation()}


async def test_never_writes_the_files(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim(), a_raw_template(), a_raw_pod(template="t"))
    before = (files / "a.yaml").read_bytes(), (files / "a.yaml").stat().st_mtime_ns
    await allocate(opened(data=True))
    assert ((files / "a.yaml").read_bytes(), (files / "a.yaml").stat().st_mtime_ns) == before
    assert [entry.name for entry in os.scandir(files)] == ["a.yaml"]


async def test_finalizers_that_nobody_here_would_take_away_are_left_out(files: Path, opened: Open) -> None:
    finalizers = ["batch.kubernetes.io/job-tracking", HELD]
    write(files / "a.yaml", a_raw_claim(finalizers=finalizers), with_metadata(a_raw_pod(), finalizers=finalizers))
    cluster = opened()
    assert (await the_claim(cluster))["metadata"]["finalizers"] == [HELD]
    assert "finalizers" not in (await only(cluster, "pod"))["metadata"]


# Changes of the files


async def test_adds_changes_and_deletes_as_the_files_do(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_class("a"), a_raw_class("b"), a_raw_class("c"))
    cluster = opened()
    start = (await cluster.list_objects("class")).resource_version
    write(files / "a.yaml", a_raw_class("a"), a_raw_class("b", labels={"color": "red"}), a_raw_class("d"))
    cluster.rescan()
    told = [(event.type, event.object["metadata"]["name"]) for event in await changes(cluster, start, "class")]
    assert told == [("DELETED", "c"), ("MODIFIED", "b"), ("ADDED", "d")]


@pytest.mark.parametrize("how", ["unchanged", "touched", "reordered", "renamed", "commented"])
async def test_says_nothing_when_the_objects_stay_the_same(files: Path, opened: Open, how: str) -> None:
    objects = [a_raw_class(), a_raw_claim(), a_raw_template(), a_raw_pod(template="t")]
    write(files / "a.yaml", *objects)
    cluster = opened()
    start = (await cluster.list_objects("class")).resource_version
    if how == "touched":
        write(files / "a.yaml", *objects)
    elif how == "reordered":
        write(files / "a.yaml", *reversed(objects))
    elif how == "renamed":
        (files / "a.yaml").rename(files / "z.yaml")
    elif how == "commented":
        (files / "a.yaml").write_text("# A comment.\n" + (files / "a.yaml").read_text())
    cluster.rescan()
    assert (await cluster.list_objects("class")).resource_version == start


async def test_the_same_name_later_is_another_claim(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened()
    first = await the_claim(cluster)
    (files / "a.yaml").unlink()
    cluster.rescan()
    write(files / "a.yaml", a_raw_claim())
    cluster.rescan()
    assert (await the_claim(cluster))["metadata"]["uid"] != first["metadata"]["uid"]


async def test_a_claim_that_is_held_keeps_its_name_until_the_agent_lets_go(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened()
    first = await allocate(cluster)
    (files / "a.yaml").unlink()
    cluster.rescan()
    write(files / "a.yaml", a_raw_claim())
    cluster.rescan()
    deleting = await the_claim(cluster)
    assert deleting["metadata"]["uid"] == first["metadata"]["uid"]
    assert deleting["metadata"]["finalizers"] == [HELD]
    assert "status" not in deleting
    await cluster.update_claim(with_metadata(deleting, finalizers=[]))
    again = await the_claim(cluster)
    assert again["metadata"]["uid"] != first["metadata"]["uid"]
    assert "deletionTimestamp" not in again["metadata"]


async def test_changes_of_metadata_leave_what_the_agent_wrote(files: Path, opened: Open) -> None:
    write(files / "a.yaml", with_metadata(a_raw_claim(), labels={"stays": "1", "goes": "1"}))
    cluster = opened()
    before = await allocate(cluster)
    before = await cluster.update_claim(with_metadata(before, labels={**before["metadata"]["labels"], "agent": "1"}))
    write(files / "a.yaml", with_metadata(a_raw_claim(), labels={"stays": "2", "new": "1"}, annotations={"note": "1"}))
    cluster.rescan()
    after = await the_claim(cluster)
    assert after["metadata"]["labels"] == {"agent": "1", "stays": "2", "new": "1"}
    assert after["metadata"]["annotations"] == {"dragoman.dev/allocate": "Immediate", "note": "1"}
    for kept in ("uid", "finalizers"):
        assert after["metadata"][kept] == before["metadata"][kept]
    assert after["status"] == before["status"]


def another_spec(claim: ApiObject) -> ApiObject:
    request = {"name": "gpu", "exactly": {"deviceClassName": "another.example.com"}}
    return {**claim, "spec": {"devices": {"requests": [request]}}}


async def test_a_claim_without_devices_whose_spec_changes_is_made_anew(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened()
    first = await the_claim(cluster)
    write(files / "a.yaml", another_spec(a_raw_claim()))
    cluster.rescan()
    second = await the_claim(cluster)
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    assert second["spec"] == another_spec(a_raw_claim())["spec"]
    assert cluster.problems == []


async def test_it_is_made_anew_even_if_only_the_cluster_itself_protects_it(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim(finalizers=[PROTECTED]))
    cluster = opened()
    first = await the_claim(cluster)
    write(files / "a.yaml", another_spec(a_raw_claim()))
    cluster.rescan()
    assert (await the_claim(cluster))["metadata"]["uid"] != first["metadata"]["uid"]


async def test_the_spec_of_a_claim_that_holds_devices_cannot_change(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened()
    allocated = await allocate(cluster)
    write(files / "a.yaml", another_spec(a_raw_claim()))
    cluster.rescan()
    assert await the_claim(cluster) == allocated
    (problem,) = cluster.problems
    assert (problem.field, problem.line) == ("spec", 6)
    write(files / "a.yaml", a_raw_claim())
    cluster.rescan()
    assert (cluster.problems, await the_claim(cluster)) == ([], allocated)


async def test_when_its_last_pod_is_removed_a_claim_is_released(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim())
    write(files / "b.yaml", a_raw_pod())
    cluster = opened()
    await allocate(cluster, reserved=(await only(cluster, "pod"),))
    (files / "b.yaml").unlink()
    cluster.rescan()
    claim = await the_claim(cluster)
    assert "status" not in claim
    assert claim["metadata"]["finalizers"] == [HELD]


# Bad input


BROKEN = "apiVersion: resource.k8s.io/v1\nkind: ResourceClaim\nmetadata: {name: c\n"


async def test_a_file_that_breaks_leaves_its_objects_as_they_were(files: Path, opened: Open) -> None:
    reports: list[ManifestError] = []
    write(files / "a.yaml", a_raw_claim(), a_raw_template())
    write(files / "b.yaml", a_raw_claim("other"), a_raw_pod(template="t"))
    cluster = opened(report=reports.append)
    before = (await cluster.list_objects("claim")).objects
    text = (files / "a.yaml").read_text()
    (files / "a.yaml").write_text(BROKEN)
    (files / "b.yaml").write_text((files / "b.yaml").read_text() + "---\n" + yaml.safe_dump(a_raw_claim("new")))
    cluster.rescan()
    assert [obj for obj in (await cluster.list_objects("claim")).objects if obj["metadata"]["name"] != "new"] == before
    assert await cluster.get_claim("default", "new")
    (problem,) = cluster.problems
    assert [problem.path] == cluster.broken_files == [str(files / "a.yaml")]
    assert problem.line > 0
    (files / "a.yaml").write_text(text)
    cluster.rescan()
    assert cluster.problems == []
    assert cluster.broken_files == []
    assert len(reports) == 1


async def test_one_broken_document_spoils_itself_alone(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim("a"), a_raw_claim("b"), a_raw_claim("c"))
    cluster = opened()
    write(files / "a.yaml", a_raw_claim("a"), a_raw_claim("d"))
    (files / "a.yaml").write_text((files / "a.yaml").read_text() + "---\n" + BROKEN)
    cluster.rescan()
    assert await names(cluster) == ["a", "b", "c", "d"]
    write(files / "a.yaml", a_raw_claim("a"), a_raw_claim("d"))
    cluster.rescan()
    assert await names(cluster) == ["a", "d"]


async def test_a_broken_file_is_reported_once_and_again_when_it_changes(files: Path, opened: Open) -> None:
    reports: list[ManifestError] = []
    write(files / "a.yaml", {"kind": "ResourceClaim"})
    cluster = opened(report=reports.append)
    write(files / "b.yaml", a_raw_claim())
    cluster.rescan()
    assert len(reports) == 1
    write(files / "a.yaml", {"kind": "ResourceClaim"}, a_raw_claim())
    cluster.rescan()
    assert [str(report) for report in reports[:1]] == [str(report) for report in reports[1:2]]


async def test_a_file_that_is_not_text_is_named(files: Path, opened: Open) -> None:
    (files / "a.yaml").write_bytes(b"kind: Pod\nname: \xff\n")
    (problem,) = opened().problems
    assert (problem.path, problem.line) == (str(files / "a.yaml"), 2)


@pytest.mark.parametrize("metadata", [None, {}, {"name": ""}, {"name": None}, "text", [1]])
async def test_an_object_without_a_name_is_named_by_its_place(files: Path, opened: Open, metadata: Any) -> None:
    write(files / "a.yaml", {**a_raw_claim(), "metadata": metadata}, a_raw_claim("fine"))
    cluster = opened()
    (problem,) = cluster.problems
    assert (problem.document, problem.field) == (1, "metadata.name")
    assert await names(cluster) == ["fine"]


async def test_of_two_documents_for_one_object_the_first_counts(files: Path, opened: Open) -> None:
    write(files / "a.yaml", with_metadata(a_raw_claim(), labels={"from": "a"}))
    write(files / "b.yaml", with_metadata(a_raw_claim(), labels={"from": "b"}))
    cluster = opened()
    assert (await the_claim(cluster))["metadata"]["labels"] == {"from": "a"}
    (problem,) = cluster.problems
    assert problem.path == str(files / "b.yaml")
    assert str(files / "a.yaml") in problem.message
    uid = (await the_claim(cluster))["metadata"]["uid"]
    (files / "a.yaml").unlink()
    cluster.rescan()
    taken_over = (await the_claim(cluster))["metadata"]
    assert (taken_over["uid"], taken_over["labels"], cluster.problems) == (uid, {"from": "b"}, [])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"spec": {"devices": {"requests": "gpu"}}}, "spec.devices.requests", id="it cannot be decoded"),
        pytest.param({"spec": {"devices": {"requests": [{"name": "gpu"}]}}}, "requests[0]", id="it would be refused"),
        pytest.param({"apiVersion": "resource.k8s.io/v9"}, "apiVersion", id="nobody knows its version"),
    ],
)
async def test_an_object_that_cannot_be_read_is_delivered_as_it_is_with_its_error(
    files: Path, opened: Open, change: ApiObject, field: str
) -> None:
    write(files / "a.yaml", a_raw_class(), {**a_raw_claim(), **change})
    cluster = opened()
    listing = await cluster.list_objects("claim")
    (claim,) = listing.objects
    error = listing.errors[claim["metadata"]["uid"]]
    assert f"{files / 'a.yaml'}:" in error
    assert "(document 2)" in error
    assert field in error
    assert cluster.problems == []
    (event,) = await changes(cluster, "0")
    assert (event.type, event.error, event.object) == ("ADDED", error, claim)
    if "spec" in change:
        assert claim["spec"] == change["spec"]


async def test_an_error_names_the_place_where_the_object_is_now(files: Path, opened: Open) -> None:
    write(files / "a.yaml", {**a_raw_claim(), "spec": 5})
    cluster = opened()
    before = await cluster.list_objects("claim")
    (files / "a.yaml").write_text("# A comment.\n" + (files / "a.yaml").read_text())
    cluster.rescan()
    after = await cluster.list_objects("claim")
    assert after.objects == before.objects
    (old,), (new,) = before.errors.values(), after.errors.values()
    assert ("a.yaml:6:" in old, "a.yaml:7:" in new) == (True, True)


@pytest.mark.parametrize(
    "broken_claim",
    [
        pytest.param({**a_raw_claim(), "spec": 5}, id="broken in its spec"),
        pytest.param(with_metadata(a_raw_claim(), labels={"a": 5}), id="broken in its metadata"),
    ],
)
async def test_a_claim_that_is_mended_is_a_new_one_since_no_api_server_would_have_had_it(
    files: Path, opened: Open, broken_claim: ApiObject
) -> None:
    write(files / "a.yaml", broken_claim)
    cluster = opened()
    broken = await the_claim(cluster)
    write(files / "a.yaml", a_raw_claim())
    cluster.rescan()
    listing = await cluster.list_objects("claim")
    assert listing.errors == {}
    assert listing.objects[0]["spec"] == a_raw_claim()["spec"]
    assert "labels" not in listing.objects[0]["metadata"]
    assert listing.objects[0]["metadata"]["uid"] != broken["metadata"]["uid"]


async def test_a_class_that_breaks_keeps_its_uid(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_class())
    cluster = opened()
    good = await only(cluster, "class")
    write(files / "a.yaml", {**a_raw_class(), "spec": {"selectors": 5}})
    cluster.rescan()
    listing = await cluster.list_objects("class")
    assert list(listing.errors) == [good["metadata"]["uid"]]
    write(files / "a.yaml", a_raw_class())
    cluster.rescan()
    assert (await cluster.list_objects("class")).errors == {}


def test_a_path_that_is_not_there_is_an_error_at_the_start(opened: Open, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        opened(tmp_path / "missing")


async def test_a_directory_that_vanishes_says_nothing_about_its_objects(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened()
    elsewhere = shutil.move(files, files.with_name("elsewhere"))
    cluster.rescan()
    assert await names(cluster) == ["c"]
    assert [problem.path for problem in cluster.problems] == [str(files)]
    shutil.move(elsewhere, files)
    cluster.rescan()
    assert cluster.problems == []


# Claims made for pods


async def test_makes_the_claims_of_pods_from_templates(files: Path, opened: Open) -> None:
    metadata = {"labels": {"team": "a"}, "annotations": {"note": "b"}}
    write(files / "a.yaml", a_raw_pod(template="t"), a_raw_template(metadata=metadata))
    cluster = opened()
    pod, claim = await only(cluster, "pod"), await only(cluster, "claim")
    assert claim["metadata"]["name"].startswith("p-gpu-")
    assert len(claim["metadata"]["name"]) == len("p-gpu-") + 5
    assert claim["metadata"]["labels"] == {"team": "a"}
    assert claim["metadata"]["annotations"] == {
        "note": "b",
        "resource.kubernetes.io/pod-claim-name": "gpu",
        "dragoman.dev/allocate": "Immediate",
    }
    assert claim["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": pod["metadata"]["uid"], "controller": True}
    ]
    assert claim["spec"] == a_raw_claim()["spec"]
    assert pod["status"]["resourceClaimStatuses"] == [{"name": "gpu", "resourceClaimName": claim["metadata"]["name"]}]


async def test_the_same_files_give_the_same_names(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_template(), a_raw_pod("p", template="t"), a_raw_pod("q", template="t"))
    first, second = await names(opened()), await names(opened())
    assert first == second
    assert len(set(first)) == 2


async def test_a_pod_takes_its_claims_along(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_template())
    write(files / "b.yaml", a_raw_pod(template="t"))
    cluster = opened()
    (files / "b.yaml").unlink()
    cluster.rescan()
    assert await names(cluster) == []


async def test_a_pod_that_is_made_again_gets_a_claim_of_its_own(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_template())
    write(files / "b.yaml", a_raw_pod(template="t"))
    cluster = opened()
    (name,) = await names(cluster)
    first = await allocate(cluster, name, reserved=(await only(cluster, "pod"),))
    (files / "b.yaml").unlink()
    cluster.rescan()
    write(files / "b.yaml", a_raw_pod(template="t"))
    cluster.rescan()
    deleting = await the_claim(cluster, name)
    assert (deleting["metadata"]["uid"], "status" in deleting) == (first["metadata"]["uid"], False)
    assert "status" not in await only(cluster, "pod")  # what is being deleted is not this pod's
    await cluster.update_claim(with_metadata(deleting, finalizers=[]))
    pod, claim = await only(cluster, "pod"), await the_claim(cluster, name)
    assert claim["metadata"]["ownerReferences"][0]["uid"] == pod["metadata"]["uid"]
    assert pod["status"]["resourceClaimStatuses"] == [{"name": "gpu", "resourceClaimName": name}]


async def test_a_pod_that_has_finished_needs_no_claim(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_template(), a_raw_pod(template="t"), a_raw_pod("q", template="t", phase="Failed"))
    cluster = opened()
    (name,) = await names(cluster)
    assert name.startswith("p-gpu-")
    write(files / "a.yaml", a_raw_template(), a_raw_pod(template="t", phase="Succeeded"))
    cluster.rescan()
    assert await names(cluster) == []
    (files / "b.yaml").touch()
    cluster.rescan()
    assert await names(cluster) == []


async def test_a_pod_waits_for_its_template(files: Path, opened: Open) -> None:
    reports: list[ManifestError] = []
    write(files / "a.yaml", a_raw_pod(template="t"))
    cluster = opened(report=reports.append)
    assert await names(cluster) == []
    assert reports == cluster.waiting
    (waiting,) = reports
    assert "no ResourceClaimTemplate t" in waiting.message
    assert (waiting.path, waiting.field) == (str(files / "a.yaml"), "spec.resourceClaims")
    assert cluster.problems == []
    write(files / "b.yaml", a_raw_template())
    cluster.rescan()
    assert len(await names(cluster)) == 1
    assert cluster.waiting == []


async def test_a_claim_outlives_its_template(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_pod(template="t"))
    write(files / "b.yaml", a_raw_template())
    cluster = opened()
    before = await only(cluster, "claim")
    (files / "b.yaml").unlink()
    cluster.rescan()
    assert await only(cluster, "claim") == before
    assert cluster.waiting == []


async def test_a_template_that_changes_makes_only_claims_without_devices_anew(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_template(), a_raw_pod("p", template="t"), a_raw_pod("q", template="t"))
    cluster = opened()
    holds, waits = await names(cluster)
    allocated = await allocate(cluster, holds)
    template = a_raw_template()
    template["spec"]["spec"] = another_spec(a_raw_claim())["spec"]
    write(files / "a.yaml", template, a_raw_pod("p", template="t"), a_raw_pod("q", template="t"))
    cluster.rescan()
    assert await the_claim(cluster, holds) == allocated
    assert (await the_claim(cluster, waits))["spec"] == another_spec(a_raw_claim())["spec"]
    assert cluster.problems == []


async def test_a_template_that_would_be_refused_shows_in_the_claim_and_as_a_problem(files: Path, opened: Open) -> None:
    template = a_raw_template()
    template["spec"]["spec"] = {"devices": {"requests": [{"name": "gpu"}]}}
    write(files / "a.yaml", template, a_raw_pod(template="t"))
    cluster = opened()
    (problem,) = cluster.problems
    assert problem.field.startswith("spec.spec.devices.requests[0]")
    assert list((await cluster.list_objects("claim")).errors.values()) == [str(problem)]


async def test_claims_exported_with_their_pods_find_each_other_again(files: Path, opened: Open) -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "old", "controller": True}
    claim = with_metadata(
        a_raw_claim("p-gpu-xyz", finalizers=[PROTECTED]),
        uid="old-claim",
        ownerReferences=[owner],
        annotations={"resource.kubernetes.io/pod-claim-name": "gpu"},
    )
    reserved = [{"resource": "pods", "name": "p", "uid": "old"}, {"resource": "pods", "name": "gone", "uid": "older"}]
    claim = with_status(claim, allocation=an_allocation(), reservedFor=reserved)
    write(files / "a.yaml", claim, a_raw_template(), with_metadata(a_raw_pod(template="t"), uid="old"))
    cluster = opened()
    pod, found = await only(cluster, "pod"), await only(cluster, "claim")
    assert found["metadata"]["ownerReferences"] == [{**owner, "uid": pod["metadata"]["uid"]}]
    assert found["status"] == {"allocation": an_allocation(), "reservedFor": [consumer_of(pod)]}
    assert pod["status"]["resourceClaimStatuses"] == [{"name": "gpu", "resourceClaimName": "p-gpu-xyz"}]


async def test_a_claim_exported_with_a_pod_that_has_finished_stays(files: Path, opened: Open) -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "old", "controller": True}
    write(files / "a.yaml", with_metadata(a_raw_claim(), ownerReferences=[owner]), a_raw_pod(phase="Succeeded"))
    cluster = opened()
    before = await the_claim(cluster)
    write(files / "b.yaml", a_raw_claim("b"))
    cluster.rescan()
    assert await the_claim(cluster) == before


async def test_a_claim_of_a_broken_file_is_still_its_pods(files: Path, opened: Open) -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "old", "controller": True}
    annotations = {"resource.kubernetes.io/pod-claim-name": "gpu"}
    write(files / "a.yaml", with_metadata(a_raw_claim(), ownerReferences=[owner], annotations=annotations))
    write(files / "b.yaml", a_raw_pod(template="t"), a_raw_template())
    cluster = opened()
    (files / "a.yaml").write_text(BROKEN)
    cluster.rescan()
    assert await names(cluster) == ["c"]


async def test_while_its_file_is_broken_no_other_file_has_an_object(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened()
    before = await the_claim(cluster)
    (files / "a.yaml").write_text(BROKEN)
    write(files / "b.yaml", another_spec(a_raw_claim()))
    cluster.rescan()
    assert await the_claim(cluster) == before
    (files / "a.yaml").unlink()
    cluster.rescan()
    assert (await the_claim(cluster))["spec"] == another_spec(a_raw_claim())["spec"]


async def test_a_claim_exported_without_its_pod_stays(files: Path, opened: Open) -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "old", "controller": True}
    reserved = [{"resource": "pods", "name": "p", "uid": "old"}]
    claim = with_metadata(a_raw_claim(finalizers=[PROTECTED]), ownerReferences=[owner])
    write(files / "a.yaml", with_status(claim, allocation=an_allocation(), reservedFor=reserved))
    assert (await only(opened(), "claim"))["status"] == {"allocation": an_allocation(), "reservedFor": []}


# The data directory


async def test_a_restart_finds_everything_as_it_was(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim(), a_raw_class(), a_raw_template(), a_raw_pod(template="t"))
    write(files / "b.yaml", {**a_raw_class("broken"), "spec": 5})
    cluster = opened(data=True)
    await allocate(cluster, reserved=(await only(cluster, "pod"),))
    kinds: tuple[Kind, ...] = ("claim", "class", "pod")
    before = [await cluster.list_objects(kind) for kind in kinds]
    again = opened(data=True)
    assert [await again.list_objects(kind) for kind in kinds] == before
    assert before[1].errors


async def test_numbers_go_on_after_a_restart(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim("a"), a_raw_claim("b"))
    before = (await opened(data=True).list_objects("claim")).resource_version
    write(files / "a.yaml", a_raw_claim("a"))
    opened(data=True)
    write(files / "a.yaml", a_raw_claim("a"), a_raw_claim("c"))
    cluster = opened(data=True)
    assert int((await the_claim(cluster, "c"))["metadata"]["resourceVersion"]) == int(before) + 2
    write(files / "a.yaml", a_raw_claim("c"))
    cluster.rescan()
    last = (await cluster.list_objects("claim")).resource_version
    cluster = opened(data=True)
    assert (await cluster.list_objects("claim")).resource_version == last
    assert await changes(cluster, last) == []


async def test_what_changed_while_it_was_down_is_taken_in_at_the_start(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim("stays"), a_raw_claim("goes"), a_raw_claim("held"))
    cluster = opened(data=True)
    for name in ("stays", "held"):
        await allocate(cluster, name)
    stays = await the_claim(cluster, "stays")
    write(files / "a.yaml", a_raw_claim("stays"), a_raw_claim("new"))
    cluster = opened(data=True)
    assert await names(cluster) == ["held", "new", "stays"]
    assert await the_claim(cluster, "stays") == stays
    held = await the_claim(cluster, "held")
    assert (held["metadata"]["finalizers"], held["metadata"]["deletionTimestamp"]) == ([HELD], TIME)


async def test_what_a_file_had_before_it_broke_outlives_a_restart(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim(), a_raw_template(), a_raw_pod(template="t"))
    cluster = opened(data=True)
    before = [await allocate(cluster, name) for name in await names(cluster)]
    (files / "a.yaml").write_text(BROKEN)
    moved = shutil.move(files, files.with_name("mounted-elsewhere"))
    cluster = opened(moved, data=True)
    assert len(cluster.problems) == 1
    assert (await cluster.list_objects("claim")).objects == before


async def test_knows_after_a_restart_that_a_file_was_renamed(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened(data=True)
    (files / "a.yaml").rename(files / "b.yaml")
    cluster.rescan()
    (files / "b.yaml").write_text(BROKEN)
    assert await names(opened(data=True)) == ["c"]


async def test_labels_that_the_files_had_before_a_restart_go_with_them(files: Path, opened: Open) -> None:
    write(files / "a.yaml", with_metadata(a_raw_claim(), labels={"a": "1"}))
    opened(data=True)
    write(files / "a.yaml", a_raw_claim())
    assert "labels" not in (await the_claim(opened(data=True)))["metadata"]


def test_only_one_process_can_have_a_data_directory(files: Path, tmp_path: Path) -> None:
    first = ManifestCluster([files], data_dir=tmp_path / "data")
    with pytest.raises(JournalError, match="another process"):
        ManifestCluster([files], data_dir=tmp_path / "data")
    first.close()
    ManifestCluster([files], data_dir=tmp_path / "data").close()


async def test_a_write_costs_the_journal_no_more_than_its_object(files: Path, opened: Open, tmp_path: Path) -> None:
    write(files / "a.yaml", *(a_raw_claim(f"c{index}") for index in range(200)))
    cluster = opened(data=True)
    journal = tmp_path / "data" / "cluster.journal"
    before = journal.stat().st_size
    await allocate(cluster, "c7")
    assert journal.stat().st_size - before < 2_000 < before


async def test_the_journal_does_not_grow_for_ever(files: Path, opened: Open, tmp_path: Path) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened(data=True)
    claim = await the_claim(cluster)
    sizes = []
    for index in range(30):
        claim = await cluster.update_claim(with_metadata(claim, annotations={"big": str(index) + "x" * 100_000}))
        sizes.append((tmp_path / "data" / "cluster.journal").stat().st_size)
    assert max(sizes) < 1_500_000
    assert await the_claim(opened(data=True)) == claim


async def test_a_journal_cut_off_anywhere_gives_a_state_that_once_was(
    files: Path, opened: Open, tmp_path: Path
) -> None:
    """SIGKILL in the middle of a write leaves a prefix of it."""
    write(files / "a.yaml", a_raw_claim("a"), a_raw_claim("b"))
    cluster = opened(data=True)
    states: list[tuple[int, dict[str, ApiObject]]] = []
    journal = tmp_path / "data" / "cluster.journal"

    async def note() -> None:
        listing = await cluster.list_objects("claim")
        states.append((journal.stat().st_size, {obj["metadata"]["name"]: obj for obj in listing.objects}))

    await note()
    for name in ("a", "b"):
        claim = await the_claim(cluster, name)
        claim = await cluster.update_claim(with_metadata(claim, finalizers=[PROTECTED, HELD]))
        await note()
        claim = await cluster.update_claim_status(with_status(claim, allocation=an_allocation()))
        await note()
        await cluster.update_claim_status(with_status(claim))
        await note()
    cluster.close()
    content = journal.read_bytes()
    assert states[-1][0] == len(content)
    for length in range(states[0][0], len(content) + 1):
        journal.write_bytes(content[:length])
        expected = next(state for size, state in reversed(states) if size <= length)
        listing = await opened(data=True).list_objects("claim")
        assert {obj["metadata"]["name"]: obj for obj in listing.objects} == expected


def test_a_journal_without_its_beginning_is_not_taken_for_an_empty_one(
    files: Path, opened: Open, tmp_path: Path
) -> None:
    """The beginning replaces the file at once, so no kill does this; and new UIDs would free what is held."""
    write(files / "a.yaml", a_raw_claim())
    opened(data=True).close()
    journal = tmp_path / "data" / "cluster.journal"
    content = journal.read_bytes()
    for length in range(len(content)):
        journal.write_bytes(content[:length])
        with pytest.raises(JournalError, match="damaged"):
            opened(data=True)


async def test_a_kill_while_the_journal_begins_anew_leaves_the_old_one(
    files: Path, opened: Open, tmp_path: Path
) -> None:
    write(files / "a.yaml", a_raw_claim())
    before = await allocate(opened(data=True))
    (tmp_path / "data" / "cluster.new").write_bytes(b"half a beginn")
    assert await the_claim(opened(data=True)) == before


async def test_a_last_batch_of_which_not_all_reached_the_disk_counts_as_cut_off(
    files: Path, opened: Open, tmp_path: Path
) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened(data=True)
    before = await the_claim(cluster)
    await allocate(cluster)
    journal = tmp_path / "data" / "cluster.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:-2], bytes(len(lines[-2]) - 1) + b"\n"]))
    assert await the_claim(opened(data=True)) == before


@pytest.mark.parametrize("where", ["first", "middle"])
def test_a_damaged_journal_is_not_taken_for_an_empty_one(files: Path, opened: Open, tmp_path: Path, where: str) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened(data=True)
    write(files / "a.yaml", a_raw_claim(), a_raw_claim("b"))
    cluster.rescan()
    cluster.close()
    journal = tmp_path / "data" / "cluster.journal"
    content = bytearray(journal.read_bytes())
    content[2 if where == "first" else content.index(b"\n") + 20] ^= 1
    journal.write_bytes(content)
    with pytest.raises(JournalError, match="damaged"):
        opened(data=True)


async def test_after_a_write_to_the_disk_has_failed_nothing_goes_on(files: Path, tmp_path: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened(data=True)
    claim = await the_claim(cluster)
    claim = await cluster.update_claim(with_metadata(claim, annotations={"big": "x" * 2_000_000}))
    watch = cluster.watch("claim", claim["metadata"]["resourceVersion"])
    shutil.rmtree(tmp_path / "data")  # the journal is long now, so the next write begins a new one, and cannot
    put = with_metadata(claim, annotations={})
    with pytest.raises(JournalError):
        await cluster.update_claim(put)
    for call in (the_claim(cluster), cluster.list_objects("claim"), cluster.update_claim(put), next_event(watch)):
        with pytest.raises(JournalError):
            await call


# Watching the files


async def test_follows_the_files_as_editors_write_them(files: Path, opened: Open, tmp_path: Path) -> None:
    single = tmp_path / "single" / "claim.yaml"
    single.parent.mkdir()
    write(single, a_raw_claim("single"))
    write(files / "a.yaml", a_raw_claim("a"))
    cluster = opened(files, single, settle=checkpoint, poll_s=0.05)
    watch = cluster.watch("claim", (await cluster.list_objects("claim")).resource_version)

    async def told() -> tuple[str, str]:
        event = await next_event(watch)
        return event.type, event.object["metadata"]["name"]

    async with anyio.create_task_group() as tg:
        await tg.start(cluster.run)
        write(files / "b.yaml", a_raw_claim("b"))
        assert await told() == ("ADDED", "b")
        write(files / ".b.yaml.swp", with_metadata(a_raw_claim("b"), labels={"color": "red"}))
        (files / ".b.yaml.swp").replace(files / "b.yaml")
        assert await told() == ("MODIFIED", "b")
        write(tmp_path / "elsewhere", with_metadata(a_raw_claim("single"), labels={"color": "red"}))
        (tmp_path / "elsewhere").replace(single)
        assert await told() == ("MODIFIED", "single")
        (files / "a.yaml").unlink()
        assert await told() == ("DELETED", "a")
        single.unlink()
        assert await told() == ("DELETED", "single")
        tg.cancel_scope.cancel()


async def test_goes_on_following_when_a_directory_comes_back(files: Path, opened: Open) -> None:
    reports: list[ManifestError] = []
    write(files / "a.yaml", a_raw_claim())
    cluster = opened(report=reports.append, settle=checkpoint, poll_s=0.05)
    watch = cluster.watch("claim", (await cluster.list_objects("claim")).resource_version)
    async with anyio.create_task_group() as tg:
        await tg.start(cluster.run)
        with anyio.fail_after(10):
            elsewhere = shutil.move(files, files.with_name("elsewhere"))
            while not reports:
                await checkpoint()
            shutil.move(elsewhere, files)
            while cluster.problems:
                await checkpoint()
        write(files / "b.yaml", a_raw_claim("b"))
        event = await next_event(watch)
        tg.cancel_scope.cancel()
    assert (event.type, event.object["metadata"]["name"]) == ("ADDED", "b")


async def test_a_file_that_is_just_being_written_deletes_nothing(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim("a"))
    content = (files / "a.yaml").read_text()

    stages = iter(["# Almost.\n", "# Not quite.\n"])

    async def finish_writing() -> None:
        (files / "a.yaml").write_text(next(stages, content))

    cluster = opened(settle=finish_writing, poll_s=0.05)
    watch = cluster.watch("claim", (await cluster.list_objects("claim")).resource_version)
    async with anyio.create_task_group() as tg:
        await tg.start(cluster.run)
        (files / "a.yaml").write_text("")
        with anyio.fail_after(10):
            while (files / "a.yaml").read_text() != content:
                await checkpoint()
        write(files / "b.yaml", a_raw_claim("b"))
        event = await next_event(watch)
        tg.cancel_scope.cancel()
    assert (event.type, event.object["metadata"]["name"]) == ("ADDED", "b")


async def test_of_a_directory_that_never_comes_to_rest_the_files_that_do_are_taken(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim("a"))
    write(files / "gone.yaml", a_raw_claim("gone"))
    numbers = count()

    async def change_again() -> None:
        (files / "a.yaml").write_text(f"# Half written: {next(numbers)}\n")
        await checkpoint()

    cluster = opened(settle=change_again, poll_s=0.05)
    watch = cluster.watch("claim", (await cluster.list_objects("claim")).resource_version)
    async with anyio.create_task_group() as tg:
        await tg.start(cluster.run)
        write(files / "b.yaml", a_raw_claim("b"))
        (files / "gone.yaml").unlink()
        events = [await next_event(watch), await next_event(watch)]
        tg.cancel_scope.cancel()
    assert {(event.type, event.object["metadata"]["name"]) for event in events} == {("ADDED", "b"), ("DELETED", "gone")}
    assert await names(cluster) == ["a", "b"]  # of a file that is just being written nothing is believed


DOCUMENTS = [
    a_raw_claim("a"),
    another_spec(a_raw_claim("a")),
    {**a_raw_claim("a"), "spec": 5},
    with_metadata(a_raw_claim("a"), labels={"color": "red"}),
    a_raw_claim("b"),
    a_raw_template(),
    a_raw_template(metadata={"labels": {"color": "red"}}),
    a_raw_pod("p", template="t"),
    a_raw_pod("p", template="t", phase="Succeeded"),
    a_raw_pod("p"),
    a_raw_class(),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.sampled_from(DOCUMENTS), max_size=6), min_size=2, max_size=5))
def test_how_files_became_what_they_are_does_not_matter(steps: list[list[ApiObject]]) -> None:
    """The template is always there: without it a claim that was made before would stay."""

    def everything(cluster: ManifestCluster) -> Any:
        found = anyio.run(lists, cluster)
        return [
            [
                (obj["metadata"]["name"], obj["metadata"].get("labels"), obj.get("spec"), obj.get("status"))
                for obj in objs
            ]
            for objs in found
        ]

    async def lists(cluster: ManifestCluster) -> list[list[ApiObject]]:
        kinds: tuple[Kind, ...] = ("class", "pod", "claim")
        return [(await cluster.list_objects(kind)).objects for kind in kinds]

    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "a.yaml")
        write(file, *steps[0])
        cluster = ManifestCluster([Path(directory)])
        for step in steps[1:]:
            step = [*step, a_raw_template()]
            write(file, *step)
            cluster.rescan()
        assert everything(cluster) == everything(ManifestCluster([Path(directory)]))


async def test_concurrent_writers_are_told_apart_by_their_guards(files: Path, opened: Open) -> None:
    write(files / "a.yaml", a_raw_claim())
    cluster = opened(data=True)
    claim = await the_claim(cluster)
    outcomes: list[str] = []

    async def put(device: str) -> None:
        try:
            await cluster.update_claim_status(with_status(claim, allocation=an_allocation(device)))
        except ApiConflictError:
            outcomes.append("conflict")
        else:
            outcomes.append(device)

    async with anyio.create_task_group() as tg:
        for index in range(8):
            tg.start_soon(put, f"gpu-{index}")
    winner = (await the_claim(cluster))["status"]["allocation"]["devices"]["results"][0]["device"]
    assert sorted(outcomes) == ["conflict"] * 7 + [winner]


async def test_what_it_delivers_is_json(files: Path, opened: Open) -> None:
    (files / "a.yaml").write_text(
        yaml.safe_dump(a_raw_claim()).replace("metadata:", "metadata:\n  creationTimestamp: 2026-01-01T00:00:00Z", 1)
    )
    claim = await only(opened(), "claim")
    assert msgspec.json.decode(msgspec.json.encode(claim)) == claim
