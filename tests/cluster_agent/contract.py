"""What every adapter of the cluster port must do, whatever is behind it.

A test module subclasses ClusterContract and gives the fixture `bed`: a cluster, and a person beside the agent who
creates and deletes objects there.
"""

from collections.abc import AsyncIterator
from typing import Any, Protocol

import anyio
import pytest

from cluster_agent.ports import (
    ApiConflictError,
    ApiInvalidError,
    ApiNotFoundError,
    ApiObject,
    Cluster,
    ExpiredError,
    WatchEvent,
)
from tests.cluster_agent.objects import HELD, a_raw_claim, an_allocation, with_metadata, with_status


class Bed(Protocol):
    """A cluster under test. expired_version: a resourceVersion whose history the cluster no longer has."""

    cluster: Cluster
    expired_version: str

    async def create(self, obj: ApiObject) -> None:
        """Create an object as a person would."""

    async def delete_claim(self, name: str) -> None:
        """Delete a claim of the namespace `default` as a person would."""


async def next_event(watch: AsyncIterator[WatchEvent]) -> WatchEvent:
    with anyio.fail_after(10):
        while (event := await anext(watch)).type == "BOOKMARK":
            pass
        return event


async def a_created_claim(bed: Bed, name: str = "c", **kwargs: Any) -> ApiObject:
    await bed.create(a_raw_claim(name, **kwargs))
    claim = await bed.cluster.get_claim("default", name)
    assert claim is not None
    return claim


class ClusterContract:
    pytestmark = pytest.mark.anyio

    async def test_lists_what_a_watch_from_there_does_not_repeat(self, bed: Bed) -> None:
        claim = await a_created_claim(bed)
        listing = await bed.cluster.list_objects("claim")
        assert listing.objects == [claim]
        assert listing.errors == {}
        watch = bed.cluster.watch("claim", listing.resource_version)
        await bed.create(a_raw_claim("later"))
        event = await next_event(watch)
        assert (event.type, event.object["metadata"]["name"]) == ("ADDED", "later")
        assert event.object["metadata"]["resourceVersion"] == event.resource_version

    async def test_a_watch_goes_on_from_the_version_of_any_event(self, bed: Bed) -> None:
        start = (await bed.cluster.list_objects("claim")).resource_version
        for name in "ab":
            await bed.create(a_raw_claim(name))
        first = await next_event(bed.cluster.watch("claim", start))
        second = await next_event(bed.cluster.watch("claim", first.resource_version))
        assert [event.object["metadata"]["name"] for event in (first, second)] == ["a", "b"]

    async def test_a_watch_tells_of_one_kind_only(self, bed: Bed) -> None:
        start = (await bed.cluster.list_objects("class")).resource_version
        await bed.create(a_raw_claim())
        spec = {"selectors": [{"cel": {"expression": "true"}}]}
        await bed.create(
            {
                "apiVersion": "resource.k8s.io/v1",
                "kind": "DeviceClass",
                "metadata": {"name": "gpu.example.com"},
                "spec": spec,
            }
        )
        event = await next_event(bed.cluster.watch("class", start))
        assert (event.type, event.object["kind"], event.object["spec"]) == ("ADDED", "DeviceClass", spec)

    async def test_a_version_that_is_forgotten_has_expired(self, bed: Bed) -> None:
        with pytest.raises(ExpiredError):
            await next_event(bed.cluster.watch("claim", bed.expired_version))

    async def test_reads_what_was_written(self, bed: Bed) -> None:
        claim = await a_created_claim(bed)
        watch = bed.cluster.watch("claim", claim["metadata"]["resourceVersion"])
        held = await bed.cluster.update_claim(with_metadata(claim, finalizers=[HELD]))
        allocated = await bed.cluster.update_claim_status(with_status(held, allocation=an_allocation()))
        assert await bed.cluster.get_claim("default", "c") == allocated
        assert allocated["metadata"]["finalizers"] == [HELD]
        assert [(await next_event(watch)).object for _ in range(2)] == [held, allocated]

    async def test_there_may_be_no_such_claim(self, bed: Bed) -> None:
        assert await bed.cluster.get_claim("default", "missing") is None
        claim = await a_created_claim(bed)
        with pytest.raises(ApiNotFoundError):
            await bed.cluster.update_claim(with_metadata(claim, name="missing"))

    async def test_reads_a_pod_that_uses_claims(self, bed: Bed) -> None:
        container = {"name": "main", "image": "example.com/none"}
        uses = [{"name": "gpu", "resourceClaimName": "c"}]
        for name, claims in (("p", uses), ("plain", [])):
            spec = {"containers": [container], "resourceClaims": claims}
            metadata = {"name": name, "namespace": "default"}
            await bed.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
        found = await bed.cluster.get_pod("default", "p")
        assert found is not None
        assert (found["metadata"]["name"], found["spec"]["resourceClaims"]) == ("p", uses)
        assert found in (await bed.cluster.list_objects("pod")).objects
        assert await bed.cluster.get_pod("default", "missing") is None

    async def test_refuses_a_write_that_its_guards_do_not_cover(self, bed: Bed) -> None:
        old = await a_created_claim(bed)
        new = await bed.cluster.update_claim(with_metadata(old, labels={"a": "b"}))
        put = with_status(old, allocation=an_allocation())
        another = with_metadata(put, uid="00000000-0000-4000-8000-000000000000")
        with pytest.raises(ApiConflictError):
            await bed.cluster.update_claim(old)
        with pytest.raises(ApiConflictError):
            await bed.cluster.update_claim_status(put)
        with pytest.raises(ApiConflictError):
            await bed.cluster.update_claim_status(another)
        assert await bed.cluster.get_claim("default", "c") == new

    @pytest.mark.parametrize("guard", ["uid", "resourceVersion"])
    async def test_does_not_even_send_a_write_without_guards(self, bed: Bed, guard: str) -> None:
        claim = await a_created_claim(bed)
        unguarded = with_metadata(claim, **{guard: ""})
        with pytest.raises(ValueError, match="uid and resourceVersion"):
            await bed.cluster.update_claim_status(unguarded)
        with pytest.raises(ValueError, match="uid and resourceVersion"):
            await bed.cluster.update_claim(unguarded)

    async def test_an_identical_write_changes_nothing(self, bed: Bed) -> None:
        claim = await a_created_claim(bed)
        allocated = await bed.cluster.update_claim_status(with_status(claim, allocation=an_allocation()))
        assert await bed.cluster.update_claim_status(allocated) == allocated
        assert await bed.cluster.update_claim(allocated) == allocated

    async def test_each_write_leaves_the_other_part_alone(self, bed: Bed) -> None:
        claim = await a_created_claim(bed)
        held = await bed.cluster.update_claim(
            with_metadata(with_status(claim, allocation=an_allocation()), finalizers=[HELD])
        )
        assert held.get("status", {}) == {}
        allocated = await bed.cluster.update_claim_status(
            with_metadata(with_status(held, allocation=an_allocation()), finalizers=[], labels={"a": "b"})
        )
        assert allocated["metadata"]["finalizers"] == [HELD]
        assert "labels" not in allocated["metadata"]

    async def test_an_allocation_can_be_cleared_but_not_changed(self, bed: Bed) -> None:
        claim = await a_created_claim(bed)
        claim = await bed.cluster.update_claim_status(with_status(claim, allocation=an_allocation()))
        with pytest.raises(ApiInvalidError) as refused:
            await bed.cluster.update_claim_status(with_status(claim, allocation=an_allocation("gpu-1")))
        assert refused.value.field == "status.allocation"
        cleared = await bed.cluster.update_claim_status(with_status(claim))
        assert cleared.get("status", {}) == {}

    async def test_a_finalizer_holds_a_deleted_claim(self, bed: Bed) -> None:
        claim = await a_created_claim(bed, finalizers=[HELD])
        watch = bed.cluster.watch("claim", claim["metadata"]["resourceVersion"])
        await bed.delete_claim("c")
        deleting = await bed.cluster.get_claim("default", "c")
        assert deleting is not None
        assert deleting["metadata"]["deletionTimestamp"]
        with pytest.raises(ApiInvalidError) as refused:
            await bed.cluster.update_claim(with_metadata(deleting, finalizers=[HELD, "example.com/another"]))
        assert refused.value.field == "metadata.finalizers"
        await bed.cluster.update_claim(with_metadata(deleting, finalizers=[]))
        assert await bed.cluster.get_claim("default", "c") is None
        events = [await next_event(watch), await next_event(watch)]
        assert [event.type for event in events] == ["MODIFIED", "DELETED"]
        assert events[1].object["metadata"]["uid"] == claim["metadata"]["uid"]

    async def test_the_same_name_later_is_another_claim(self, bed: Bed) -> None:
        first = await a_created_claim(bed)
        await bed.delete_claim("c")
        second = await a_created_claim(bed)
        assert second["metadata"]["uid"] != first["metadata"]["uid"]
        stale = with_metadata(first, resourceVersion=second["metadata"]["resourceVersion"])
        with pytest.raises(ApiConflictError):
            await bed.cluster.update_claim_status(with_status(stale, allocation=an_allocation()))

    async def test_what_is_handed_out_may_be_changed(self, bed: Bed) -> None:
        claim = await a_created_claim(bed)
        listing = await bed.cluster.list_objects("claim")
        listing.objects[0]["spec"]["devices"].clear()
        claim["spec"]["devices"].clear()
        again = await bed.cluster.get_claim("default", "c")
        assert again is not None
        assert again["spec"]["devices"]
