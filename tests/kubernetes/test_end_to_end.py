"""Pods of a real cluster get the device of a fabric: real scheduler, controller-manager, nats-server, broker, agents.

The agents talk to their API servers by way of proxies, which do no harm until a test tells them to.
"""

import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import msgspec
import pytest
from aiohttp import web
from anyio import to_thread

from broker.cli.main import main
from cluster_agent.app.agent import READS_AT_ONCE
from schemas.client.connection import Connection
from tests.controlplane.api import Object, path_of, wait_for
from tests.controlplane.plane import Options, start
from tests.controlplane.programs import Programs
from tests.kubernetes.faulty_proxy import Answer, FaultyProxy, a_faulty_proxy, answers, no_such_page
from tests.kubernetes.federation import (
    Federation,
    a_kube_federation,
    a_pod,
    agent_identity,
    brokered,
    devices_of,
    is_bound,
)
from tests.manifests import claim_manifest, class_manifest, slice_manifest
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio

UNSCHEDULABLE_S = 2
NOWHERE: dict[str, Any] = {"nodeSelector": {"there-is": "no-such-node"}}
FINALIZERS = ["resource.kubernetes.io/delete-protection", "dragoman.dev/held"]


class Running:
    """A hub that publishes gpu-0, and the member `plane`; both agents go by way of a proxy."""

    def __init__(self, federation: Federation, proxy: FaultyProxy, hub_proxy: FaultyProxy) -> None:
        self.federation = federation
        self.hub_proxy = hub_proxy
        self.plane = federation.planes["east"]
        self.api = self.plane.api
        self.proxy = proxy

    async def claim(self, namespace: str, name: str = "c", **metadata: object) -> Object:
        claim = claim_manifest(name, namespace=namespace)
        return await self.api.create({**claim, "metadata": {**claim["metadata"], **metadata}})

    async def bound(self, namespace: str, name: str = "p", claim: str = "c", **spec: Any) -> None:
        """A new pod, once it is bound."""
        await self.api.create(a_pod(name, namespace, claim, **spec))
        await self.api.until("Pod", name, namespace, is_bound)

    async def until_free(self, namespace: str, name: str = "c") -> Object:
        return await self.api.until("ResourceClaim", name, namespace, lambda claim: not devices_of(claim))

    async def devices(self, namespace: str, name: str = "c") -> list[str]:
        return devices_of(await self.api.get("ResourceClaim", name, namespace))


@pytest.fixture(scope="module")
async def module_running(
    anyio_backend: str, programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    root = tmp_path_factory.mktemp("end-to-end")
    only_api = Options(scheduler=False, controller_manager=False)
    async with (
        start(programs, root / "hub", only_api) as hub,
        start(programs, root / "east") as east,
        a_kube_federation(root, {"hub": hub, "east": east}) as federation,
        a_faulty_proxy(east, await agent_identity(east, "member")) as proxy,
        a_faulty_proxy(hub, await agent_identity(hub, "hub")) as hub_proxy,
    ):
        await hub.api.create(brokered(class_manifest()))
        await hub.api.create(slice_manifest(["gpu-0"]))
        await east.add_node("n1")
        await federation.add_agent("hub", hub_proxy.kubeconfig)
        await federation.add_agent("east", proxy.kubeconfig, "--unschedulable-after", str(UNSCHEDULABLE_S))
        await federation.start("broker", "hub", "east")
        yield Running(federation, proxy, hub_proxy)


@pytest.fixture
async def running(module_running: Running) -> AsyncIterator[Running]:
    """Nothing holds the device; afterwards neither."""
    yield module_running
    plane, proxy = module_running.plane, module_running.proxy
    unmet = [fault for fault in proxy.faults if fault.times]
    proxy.faults.clear()
    module_running.federation.check()
    for pod in await plane.api.list_all("Pod"):
        await plane.delete_pod(pod["metadata"]["name"], pod["metadata"]["namespace"])
    for claim in await plane.api.list_all("ResourceClaim"):
        await plane.api.delete("ResourceClaim", claim["metadata"]["name"], claim["metadata"]["namespace"])
        await plane.api.until_gone("ResourceClaim", claim["metadata"]["name"], claim["metadata"]["namespace"])
    assert unmet == [], "what was to go wrong did not happen"


@pytest.fixture
async def namespace(running: Running) -> str:
    return await running.plane.add_namespace()


async def test_a_finished_pod_frees_the_device_for_the_one_that_waits(running: Running, namespace: str) -> None:
    for name in ("first", "second"):
        await running.claim(namespace, name)
    await running.bound(namespace, "first", "first")
    assert await running.devices(namespace, "first") == ["gpu-0"]
    await running.api.create(a_pod("second", namespace, "second"))
    waiting = await running.api.until("Pod", "second", namespace, lambda pod: pod["status"].get("conditions"))
    assert not is_bound(waiting)
    await running.plane.finish_pod("first", namespace)
    await running.api.until("Pod", "second", namespace, is_bound)
    assert await running.devices(namespace, "second") == ["gpu-0"]
    assert await running.devices(namespace, "first") == []


async def test_what_is_written_is_what_drivers_and_schedulers_expect(running: Running, namespace: str) -> None:
    await running.claim(namespace)
    await running.bound(namespace)
    claim = await running.api.get("ResourceClaim", "c", namespace)
    pod = await running.api.get("Pod", "p", namespace)
    assert claim["metadata"]["finalizers"] == FINALIZERS
    assert claim["status"]["allocation"]["allocationTimestamp"]
    assert "nodeSelector" not in claim["status"]["allocation"]  # kube-scheduler clears one that fits no node
    (consumer,) = claim["status"]["reservedFor"]
    assert (consumer["resource"], consumer["uid"]) == ("pods", pod["metadata"]["uid"])


async def test_a_finished_pod_that_stays_does_not_get_its_device_again_and_again(
    running: Running, namespace: str
) -> None:
    await running.claim(namespace)
    await running.bound(namespace)
    await running.plane.finish_pod("p", namespace)
    freed = await running.until_free(namespace)
    # kube-controller-manager takes its finalizer away in a write of its own.
    quiet = await running.api.until(
        "ResourceClaim", "c", namespace, lambda claim: claim["metadata"].get("finalizers") == FINALIZERS[1:]
    )
    assert quiet["metadata"]["uid"] == freed["metadata"]["uid"]
    async with running.api.watch(
        "ResourceClaim", namespace, quiet["metadata"]["resourceVersion"], timeoutSeconds="2"
    ) as events:
        assert [event["type"] async for event in events if event["type"] != "BOOKMARK"] == []


async def test_a_pod_may_have_a_device_of_its_own_cluster_beside_ours(running: Running, namespace: str) -> None:
    local = slice_manifest(["nic-0"], name="local", pool="local", driver="nic.example.com")
    await running.api.apply([local, class_manifest("nic", driver="nic.example.com")])
    await running.claim(namespace)
    await running.api.create(claim_manifest("nic", namespace=namespace, device_class="nic"))
    both = [{"name": "gpu", "resourceClaimName": "c"}, {"name": "nic", "resourceClaimName": "nic"}]
    await running.bound(namespace, resourceClaims=both)
    assert await running.devices(namespace) == ["gpu-0"]
    assert await running.devices(namespace, "nic") == ["nic-0"]
    theirs = await running.api.get("ResourceClaim", "nic", namespace)
    assert "dragoman.dev/held" not in theirs["metadata"]["finalizers"]
    await running.plane.finish_pod("p", namespace)
    await running.until_free(namespace)
    await running.until_free(namespace, "nic")


async def test_a_pod_that_no_node_takes_gives_its_device_to_one_that_can_run(running: Running, namespace: str) -> None:
    await running.claim(namespace, "stuck")
    await running.api.create(a_pod("stuck", namespace, "stuck", **NOWHERE))
    await running.api.until("ResourceClaim", "stuck", namespace, devices_of)
    await running.claim(namespace)
    await running.bound(namespace)
    assert await running.devices(namespace) == ["gpu-0"]
    assert await running.devices(namespace, "stuck") == []


async def test_a_pod_that_is_deleted_before_it_was_scheduled_frees_its_device(running: Running, namespace: str) -> None:
    await running.claim(namespace)
    await running.api.create(a_pod("p", namespace, "c", **NOWHERE))
    await running.api.until("ResourceClaim", "c", namespace, devices_of)
    await running.plane.delete_pod("p", namespace)
    await running.until_free(namespace)


async def test_a_claim_that_pods_share_is_free_when_the_last_has_finished(running: Running, namespace: str) -> None:
    """While one has finished and another runs, kube-controller-manager writes the claim twenty times a second
    (kubernetes/kubernetes#141274): nothing follows from that."""
    await running.claim(namespace)
    await running.bound(namespace, "first")
    await running.bound(namespace, "second")
    await running.plane.finish_pod("first", namespace)
    await running.claim(namespace, "next")
    await running.api.create(a_pod("next", namespace, "next"))
    await running.api.until("Pod", "next", namespace, lambda pod: pod["status"].get("conditions"))
    assert await running.devices(namespace) == ["gpu-0"]
    assert await running.devices(namespace, "next") == []
    await running.plane.finish_pod("second", namespace)
    await running.api.until("Pod", "next", namespace, is_bound)
    assert await running.devices(namespace) == []


async def test_a_namespace_goes_with_its_claims_and_pods(running: Running, namespace: str) -> None:
    await running.claim(namespace)
    await running.bound(namespace)
    await running.api.delete("Namespace", namespace)
    await running.plane.delete_pod("p", namespace)
    await running.api.until_gone("Namespace", namespace)


async def test_a_claim_that_is_deleted_in_use_goes_after_its_pod(running: Running, namespace: str) -> None:
    await running.claim(namespace)
    await running.bound(namespace)
    await running.api.delete("ResourceClaim", "c", namespace)
    deleting = await running.api.get("ResourceClaim", "c", namespace)
    assert deleting["metadata"]["deletionTimestamp"]
    assert devices_of(deleting) == ["gpu-0"]
    await running.plane.finish_pod("p", namespace)
    await running.api.until_gone("ResourceClaim", "c", namespace)


async def test_a_claim_that_is_made_again_under_its_name_is_another_one(running: Running, namespace: str) -> None:
    for _ in range(3):
        await running.claim(namespace)
        await running.bound(namespace)
        await running.api.delete("ResourceClaim", "c", namespace)
        await running.plane.delete_pod("p", namespace)
        await running.api.until_gone("ResourceClaim", "c", namespace)


async def test_a_claim_that_changes_while_it_is_decided_is_decided_again(running: Running, namespace: str) -> None:
    await running.claim(namespace)

    async def edit_before(request: web.Request, body: bytes) -> web.StreamResponse:
        """Somebody labels the claim just before the agent's write of its finalizers arrives."""
        await running.api.merge("ResourceClaim", "c", namespace, {"metadata": {"labels": {"edited": "yes"}}})
        return await running.proxy.forward(request, body)

    running.proxy.fail("PUT", "/resourceclaims/c", edit_before)
    await running.bound(namespace)
    claim = await running.api.get("ResourceClaim", "c", namespace)
    assert claim["metadata"]["labels"] == {"edited": "yes"}
    assert claim["metadata"]["annotations"]["dragoman.dev/voided"]  # the first decision can not land any more


async def test_a_deleted_claim_that_is_free_goes_without_kube_controller_manager(
    running: Running, namespace: str
) -> None:
    await running.claim(namespace)
    running.proxy.fail("PUT", "/resourceclaims/c/status", answers(422, "Invalid"), times=1_000)
    await running.api.create(a_pod("p", namespace, "c"))
    # Its finalizers are written, its allocation was refused, and that can not land any more.
    await running.api.until("ResourceClaim", "c", namespace, is_voided)
    await running.plane.delete_pod("p", namespace)
    running.proxy.faults.clear()
    await running.plane.controller_manager.kill()
    try:
        claim = await running.api.get("ResourceClaim", "c", namespace)
        assert claim["metadata"]["finalizers"] == FINALIZERS
        await running.api.delete("ResourceClaim", "c", namespace)
        await running.api.until_gone("ResourceClaim", "c", namespace)
    finally:
        await running.plane.controller_manager.start()


# --- an API server that is not well


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(answers(429, "TooManyRequests", Retry_After="1"), id="429"),
        pytest.param(answers(500, "InternalError"), id="500"),
        pytest.param(answers(503, "ServiceUnavailable"), id="503"),
    ],
)
@pytest.mark.parametrize("part", ["/resourceclaims/c", "/resourceclaims/c/status"])
async def test_a_pod_gets_its_device_although_writes_fail(
    running: Running, namespace: str, part: str, answer: object
) -> None:
    await running.claim(namespace)
    running.proxy.fail("PUT", part, answer, times=2)  # type: ignore[arg-type]
    await running.bound(namespace)
    assert await running.devices(namespace) == ["gpu-0"]


@pytest.mark.parametrize("part", ["/resourceclaims/c", "/resourceclaims/c/status"])
async def test_a_write_that_is_done_while_its_answer_is_cut_off_counts(
    running: Running, namespace: str, part: str
) -> None:
    await running.claim(namespace)
    running.proxy.fail("PUT", part, running.proxy.forward_and_cut)
    await running.bound(namespace)
    assert await running.devices(namespace) == ["gpu-0"]


async def test_writes_that_fail_all_the_time_are_not_tried_in_a_row(running: Running, namespace: str) -> None:
    path = f"/namespaces/{namespace}/resourceclaims/c"
    running.proxy.fail("PUT", path, answers(500, "InternalError"), times=1_000)
    await running.claim(namespace)
    await running.api.create(a_pod("p", namespace, "c"))

    async def are_tried(times: int) -> bool:
        return running.proxy.count("PUT", path) >= times

    await wait_for(lambda: are_tried(2))  # the second finds out what became of the first, at once
    began = time.monotonic()
    await wait_for(lambda: are_tried(7))
    assert time.monotonic() - began > 0.1 + 0.2 + 0.4 + 0.8 + 1.4
    running.proxy.faults.clear()
    await running.api.until("Pod", "p", namespace, is_bound)


async def test_reads_that_fail_while_a_write_is_in_doubt_are_repeated(running: Running, namespace: str) -> None:
    await running.claim(namespace)
    running.proxy.fail("PUT", "/resourceclaims/c/status", answers(500, "InternalError"))
    running.proxy.fail("GET", "/resourceclaims/c", answers(504, "Timeout"), times=2)
    await running.bound(namespace)


async def test_watches_that_are_cut_or_expire_go_on(running: Running, namespace: str) -> None:
    await running.proxy.cut_watches(half_a_line=b'{"type":"MODIFIED","object":{"metadata"')
    running.proxy.fail("GET", "resourceclaims?watch=true", answers(410, "Expired"))
    running.proxy.fail("GET", "pods?watch=true", answers(500, "InternalError"), times=2)
    await running.claim(namespace)
    await running.bound(namespace)
    await running.plane.finish_pod("p", namespace)
    await running.until_free(namespace)


async def test_a_right_that_is_taken_away_is_named_and_missed_until_it_is_back(
    running: Running, namespace: str
) -> None:
    denied = answers(403, "Forbidden", 'User "agent" cannot update resource "resourceclaims"')
    agent = running.federation.processes["east"]
    running.proxy.fail("PUT", "/resourceclaims/c", denied, times=3)
    await running.claim(namespace)
    await running.bound(namespace)
    assert 'User "agent" cannot update resource "resourceclaims"' in agent.said()


async def test_an_apiserver_that_restarts_is_listed_again(running: Running, namespace: str) -> None:
    await running.claim(namespace)
    await running.bound(namespace)
    await running.plane.restart_apiserver()
    await running.claim(namespace, "next")
    await running.plane.finish_pod("p", namespace)
    await running.bound(namespace, "next", "next")


async def test_a_router_that_knows_no_path_ends_no_grant(running: Running, namespace: str) -> None:
    """The list of claims meets its 404, and the question what is served another."""
    await running.claim(namespace)
    await running.bound(namespace)
    running.proxy.fail("GET", "resourceclaims?watch=true", answers(410, "Expired"))
    running.proxy.fail("GET", "/apis/resource.k8s.io", no_such_page, times=4)
    await running.proxy.cut_watches(part="/resourceclaims")
    await holds_on(running, namespace)


async def test_a_list_that_is_older_than_what_was_watched_ends_no_grant(running: Running, namespace: str) -> None:
    await running.claim(namespace)
    await running.bound(namespace)
    running.proxy.fail("GET", "resourceclaims?limit=", empty_at("7"), times=2)
    running.proxy.fail("GET", "resourceclaims?watch=true", answers(410, "Expired"), times=2)
    await running.proxy.cut_watches(part="/resourceclaims")
    await holds_on(running, namespace)
    assert "is of 7, older than what was seen" in running.federation.processes["east"].said()


async def test_a_cluster_that_was_restored_from_a_backup_is_listed_again(running: Running, namespace: str) -> None:
    """Its list is as good as it is old; the proxy makes it old."""
    await running.claim(namespace)
    await running.bound(namespace)

    async def older(request: web.Request, body: bytes) -> web.StreamResponse:
        response = await running.proxy.forward(request, body)
        assert isinstance(response, web.Response)
        page = msgspec.json.decode(bytes(response.body))  # type: ignore[arg-type]
        page["metadata"]["resourceVersion"] = "7"
        return web.Response(body=msgspec.json.encode(page), content_type="application/json")

    running.proxy.fail("GET", "resourceclaims?watch=true", no_event)
    running.proxy.fail("GET", "resourceclaims?limit=1", older)
    running.proxy.fail("GET", "resourceclaims?limit=", older)
    await running.proxy.cut_watches(part="/resourceclaims")
    await wait_for(lambda: is_asked(running, "resourceclaims?watch=true&allowWatchBookmarks=true&resourceVersion=7&"))
    await holds_on(running, namespace)
    assert "restored from a backup" in running.federation.processes["east"].said()


async def is_asked(running: Running, path: str) -> bool:
    return running.proxy.count("GET", path) > 0


async def holds_on(running: Running, namespace: str) -> None:
    """All that was to go wrong has done so, another claim waits for the device as before, and gets it in the end."""
    await wait_for(lambda: have_gone_wrong(running))
    await running.claim(namespace, "next")
    await running.api.create(a_pod("next", namespace, "next"))

    async def waits() -> bool:
        return any(
            event["reason"] == "DragomanPending" and "DevicesInUse" in event.get("message", "")
            for event in await running.api.list_all("Event", namespace)
            if event["involvedObject"]["name"] == "next"
        )

    await wait_for(waits, otherwise=lambda: "the device was given again, or nobody says that it is in use")
    assert await running.devices(namespace) == ["gpu-0"]
    await running.plane.finish_pod("p", namespace)
    await running.api.until("Pod", "next", namespace, is_bound)
    assert await running.devices(namespace, "next") == ["gpu-0"]


async def have_gone_wrong(running: Running) -> bool:
    return not any(fault.times for fault in running.proxy.faults)


def empty_at(resource_version: str) -> Answer:
    """A list of claims that has none."""
    page = {
        "kind": "ResourceClaimList",
        "apiVersion": "resource.k8s.io/v1",
        "metadata": {"resourceVersion": resource_version},
        "items": [],
    }

    async def answer(_request: web.Request, _body: bytes) -> web.StreamResponse:
        return web.Response(body=msgspec.json.encode(page), content_type="application/json")

    return answer


async def no_event(_request: web.Request, _body: bytes) -> web.StreamResponse:
    """A watch that ends without any."""
    return web.Response(body=b"")


def is_voided(claim: Object) -> bool:
    return "dragoman.dev/voided" in claim["metadata"].get("annotations", {})


class Reads:
    """Of claims: how many were under way at once, at most. They wait for one another, as far as they are allowed."""

    def __init__(self, proxy: FaultyProxy) -> None:
        self._proxy = proxy
        self._under_way = self.most = 0
        self._are_enough = anyio.Event()

    async def answer(self, request: web.Request, body: bytes) -> web.StreamResponse:
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        if self.most == READS_AT_ONCE:
            self._are_enough.set()
        await self._are_enough.wait()
        try:
            return await self._proxy.forward(request, body)
        finally:
            self._under_way -= 1


async def test_claims_that_have_to_be_read_are_not_read_all_at_once(running: Running, namespace: str) -> None:
    """All of them have to when their cluster comes back from an eviction."""
    names = [f"c-{number}" for number in range(5 * READS_AT_ONCE)]
    for name in names:
        await running.claim(namespace, name)
    path, reads = f"/namespaces/{namespace}/resourceclaims/c-", Reads(running.proxy)
    running.proxy.fail("GET", path, reads.answer, times=len(names))
    await running.federation.processes["east"].until_it_says("first sync of")
    for arguments in (["evict", "east", "--fenced", "--yes"], ["readmit", "east"]):
        order = [*arguments, "--reason", "smoke", "--operator", "ada", "--nats", running.federation.nats.url]
        assert await to_thread.run_sync(main, ["cluster", *order]) == 0
    await wait_for(lambda: have_gone_wrong(running))
    for name in names:
        await running.api.until("ResourceClaim", name, namespace, is_voided)
    assert reads.most == READS_AT_ONCE


async def test_a_claim_that_is_nested_too_deeply_harms_nobody_else(running: Running, namespace: str) -> None:
    claim = claim_manifest("deep", namespace=namespace)
    parameters = msgspec.Raw(b'{"":' * 1_900 + b"{}" + b"}" * 1_900)
    claim["spec"]["devices"]["config"] = [{"opaque": {"driver": "gpu.example.com", "parameters": parameters}}]
    with suppress(
        RecursionError
    ):  # of the test's own client, which reads the answer; it may have been given more depth
        await running.api.create(claim)
    assert f'"name":"deep","namespace":"{namespace}"' in await running.api.text(path_of("ResourceClaim", namespace))
    try:
        await running.claim(namespace)
        await running.bound(namespace)
        await running.proxy.list_again("resourceclaims")
        await running.plane.finish_pod("p", namespace)
        await running.until_free(namespace)
    finally:
        with suppress(RecursionError):
            await running.api.delete("ResourceClaim", "deep", namespace)


async def test_a_slice_that_is_garbage_is_kept_apart_and_the_others_count(running: Running, namespace: str) -> None:
    garbage: Object = {
        "metadata": {"name": "garbage", "uid": "not-a-uid", "resourceVersion": "1"},
        "spec": {"driver": 7, "devices": "all of them"},
    }

    async def with_garbage(request: web.Request, body: bytes) -> web.StreamResponse:
        response = await running.hub_proxy.forward(request, body)
        assert isinstance(response, web.Response)
        page = msgspec.json.decode(bytes(response.body))  # type: ignore[arg-type]
        page["items"].append(garbage)
        return web.Response(body=msgspec.json.encode(page), content_type="application/json")

    async with connect_to(running.federation.nats) as connection:
        letters = DeadLetters(connection)
        before = await letters.count()
        running.hub_proxy.fail("GET", "resourceslices?limit", with_garbage)
        await running.hub_proxy.list_again("resourceslices")
        await wait_for(lambda: letters.are_more_than(before))
        await running.claim(namespace)
        await running.bound(namespace)
        await running.hub_proxy.list_again("resourceslices")  # without it: it is gone


class DeadLetters:
    """What the broker could not use."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def count(self) -> int:
        info = msgspec.json.decode(await self._connection.api("STREAM.INFO.DRA_DEADLETTER"))
        return int(info["state"]["last_seq"])

    async def are_more_than(self, count: int) -> bool:
        return await self.count() > count
