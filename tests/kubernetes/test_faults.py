"""What may go wrong between the adapter and its API server, with a real one behind a proxy that does harm."""

from collections.abc import AsyncIterator

import anyio
import msgspec
import pytest
from aiohttp import web

from cluster_agent.adapters.kube_cluster import KubernetesCluster
from cluster_agent.adapters.kube_connection import Credentials, Where, connect_to_cluster
from cluster_agent.ports import (
    ApiBusyError,
    ApiObject,
    ApiUncertainError,
    ExpiredError,
    RestoredError,
    WatchEvent,
)
from tests.cluster_agent.contract import next_event
from tests.cluster_agent.objects import HELD, a_raw_claim, a_raw_slice, with_metadata
from tests.controlplane.api import wait_for
from tests.controlplane.fixture import StartPlane
from tests.controlplane.plane import ControlPlane
from tests.kubernetes.faulty_proxy import (
    Answer,
    FaultyProxy,
    a_faulty_proxy,
    a_page_of_html,
    answers,
    hang,
    no_such_page,
)

pytestmark = pytest.mark.anyio

SILENT_S = 1.0
CONNECTIONS = 100  # that kubernetes-asyncio would keep at most
CALLS = CONNECTIONS + 50
DISCOVERY = "/apis/resource.k8s.io"


@pytest.fixture
async def proxy(plane: ControlPlane) -> AsyncIterator[FaultyProxy]:
    async with a_faulty_proxy(plane, plane.admin) as proxy:
        yield proxy


@pytest.fixture
async def cluster(proxy: FaultyProxy) -> AsyncIterator[KubernetesCluster]:
    """The cluster by way of the proxy."""
    async with connect_to_cluster(Credentials(proxy.kubeconfig)) as connection:
        yield KubernetesCluster(connection, silent_s=SILENT_S)


@pytest.fixture
async def claim(plane: ControlPlane, namespace: str, cluster: KubernetesCluster) -> ApiObject:
    await plane.api.create(a_raw_claim(namespace=namespace))
    claim = await cluster.get_claim(namespace, "c")
    assert claim is not None
    return claim


async def version_of(plane: ControlPlane, claim: ApiObject) -> str:
    found = await plane.api.get("ResourceClaim", claim["metadata"]["name"], claim["metadata"]["namespace"])
    return str(found["metadata"]["resourceVersion"])


# --- writes


async def test_a_write_that_is_put_off_was_not_done(
    plane: ControlPlane, proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject
) -> None:
    proxy.fail("PUT", "/resourceclaims/", answers(429, "TooManyRequests", Retry_After="7"))
    with pytest.raises(ApiBusyError) as refused:
        await cluster.update_claim(with_metadata(claim, finalizers=[HELD]))
    assert refused.value.retry_after_s == 7
    assert await version_of(plane, claim) == claim["metadata"]["resourceVersion"]


@pytest.mark.parametrize("code", [500, 502, 503, 504])
async def test_nobody_knows_what_became_of_a_write_that_met_an_error_of_the_server(
    proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject, code: int
) -> None:
    proxy.fail("PUT", "/resourceclaims/", answers(code, "InternalError"))
    with pytest.raises(ApiUncertainError, match=f"status {code}: told to"):
        await cluster.update_claim(with_metadata(claim, finalizers=[HELD]))


async def test_a_write_whose_answer_is_cut_off_is_not_tried_again(
    plane: ControlPlane, proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject
) -> None:
    proxy.fail("PUT", "/resourceclaims/", proxy.forward_and_cut)
    with pytest.raises(ApiUncertainError):
        await cluster.update_claim(with_metadata(claim, labels={"a": "b"}))
    assert await version_of(plane, claim) != claim["metadata"]["resourceVersion"]  # it was done
    assert proxy.count("PUT", "/resourceclaims/") == 1


async def test_an_answer_of_somebody_else_says_nothing(
    proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject
) -> None:
    proxy.fail("PUT", "/resourceclaims/", a_page_of_html)
    with pytest.raises(ApiUncertainError, match="none of an API server"):
        await cluster.update_claim(with_metadata(claim, labels={"a": "b"}))


async def test_a_server_that_does_not_answer_is_given_up(proxy: FaultyProxy, namespace: str) -> None:
    async with connect_to_cluster(Credentials(proxy.kubeconfig)) as connection:
        proxy.fail("GET", "/api/v1/namespaces", hang)
        with pytest.raises(ApiUncertainError, match="gave no answer"):
            await connection.call("GET", "/api/v1/namespaces", where=Where(), answer_s=0.2)


async def test_a_call_does_not_wait_for_others_that_have_no_answer(
    proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject
) -> None:
    """Else its time would be over before it is sent, and nobody could say whether it was done."""
    proxy.fail("GET", "/api/v1/nodes", hang, times=CALLS)
    async with anyio.create_task_group() as tasks:
        for _ in range(CALLS):
            tasks.start_soon(cluster.list_objects, "node")
        await wait_for(lambda: _is_true(proxy.count("GET", "/api/v1/nodes") >= CONNECTIONS))
        with anyio.fail_after(10):
            await cluster.update_claim(with_metadata(claim, labels={"a": "b"}))
        tasks.cancel_scope.cancel()


# --- answers that no API server gives to a read

REFUSALS = [
    pytest.param(no_such_page, id="404 of a router"),
    *(pytest.param(answers(code, "Told"), id=str(code)) for code in (400, 404, 405, 406, 409, 413, 415, 422)),
]


@pytest.mark.parametrize("answer", REFUSALS)
async def test_a_list_that_is_refused_says_nothing_of_what_there_is(
    proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject, answer: Answer
) -> None:
    assert (await cluster.list_objects("claim")).objects
    proxy.fail("GET", "/resourceclaims?limit=", answer)
    proxy.fail("GET", DISCOVERY, answer, times=2)
    for _ in range(3):  # the list; then what is served is looked for
        with pytest.raises(ApiUncertainError):
            await cluster.list_objects("claim")
    listing = await cluster.list_objects("claim")
    assert claim["metadata"]["uid"] in {obj["metadata"]["uid"] for obj in listing.objects}


@pytest.mark.parametrize("answer", REFUSALS)
async def test_a_watch_that_is_refused_is_no_end_of_anything(
    plane: ControlPlane,
    proxy: FaultyProxy,
    cluster: KubernetesCluster,
    claim: ApiObject,
    namespace: str,
    answer: Answer,
) -> None:
    version = claim["metadata"]["resourceVersion"]
    proxy.fail("GET", "/resourceclaims?watch=true", answer)
    with pytest.raises(ApiUncertainError):
        await next_event(cluster.watch("claim", version))
    proxy.fail("GET", "/resourceclaims?watch=true", _nothing)
    proxy.fail("GET", "/resourceclaims?limit=1", answer)  # by which a watch looks whether the cluster was restored
    with pytest.raises(ApiUncertainError):
        await next_event(cluster.watch("claim", version))
    await plane.api.create(a_raw_claim("later", namespace=namespace))
    assert named(await next_in(namespace, cluster.watch("claim", version))) == ("ADDED", "later")


@pytest.mark.parametrize("answer", [*REFUSALS, pytest.param(answers(410, "Gone"), id="410")])
async def test_a_claim_is_gone_only_where_the_server_says_so_of_it(
    plane: ControlPlane, proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject, answer: Answer
) -> None:
    proxy.fail("GET", "/resourceclaims/c", answer)
    namespace = claim["metadata"]["namespace"]
    with pytest.raises(ApiUncertainError):
        await cluster.get_claim(namespace, "c")
    assert await cluster.get_claim(namespace, "c") == claim
    await plane.api.delete("ResourceClaim", "c", namespace)
    assert await cluster.get_claim(namespace, "c") is None


@pytest.mark.parametrize("answer", [*REFUSALS, pytest.param(answers(410, "Gone"), id="410")])
async def test_a_pod_is_gone_only_where_the_server_lists_none(
    proxy: FaultyProxy, cluster: KubernetesCluster, namespace: str, answer: Answer
) -> None:
    proxy.fail("GET", "/pods?fieldSelector=", answer)
    with pytest.raises(ApiUncertainError):
        await cluster.get_pod(namespace, "p")
    assert await cluster.get_pod(namespace, "p") is None


@pytest.mark.parametrize(
    "details",
    [
        pytest.param({"name": "another", "kind": "resourceclaims"}, id="another claim"),
        pytest.param({"name": "c", "kind": "clusters"}, id="something else of that name"),
    ],
)
async def test_a_404_about_something_else_says_nothing_of_the_claim(
    proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject, details: dict[str, str]
) -> None:
    proxy.fail("GET", "/resourceclaims/c", answers(404, "NotFound", details=details))
    with pytest.raises(ApiUncertainError):
        await cluster.get_claim(claim["metadata"]["namespace"], "c")


async def test_a_write_that_meets_a_410_may_have_been_done(
    proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject
) -> None:
    proxy.fail("PUT", "/resourceclaims/c", answers(410, "Gone"))
    with pytest.raises(ApiUncertainError):
        await cluster.update_claim(with_metadata(claim, labels={"a": "b"}))


async def test_a_kind_that_may_be_absent_is_empty_only_where_the_server_has_the_rest(
    proxy: FaultyProxy, cluster: KubernetesCluster
) -> None:
    proxy.fail("GET", DISCOVERY, no_such_page)
    with pytest.raises(ApiUncertainError):
        await cluster.list_objects("taintrule")

    async def without_rules(request: web.Request, body: bytes) -> web.StreamResponse:
        response = await proxy.forward(request, body)
        assert isinstance(response, web.Response)
        found = msgspec.json.decode(bytes(response.body))  # type: ignore[arg-type]
        if "resources" in found:
            found["resources"] = [each for each in found["resources"] if "taintrules" not in each["name"]]
        return web.Response(body=msgspec.json.encode(found), content_type="application/json")

    proxy.fail("GET", DISCOVERY, without_rules, times=20)
    assert (await cluster.list_objects("taintrule")).objects == []
    assert (await cluster.list_objects("claim")).resource_version != "0"


# --- watches


async def next_in(namespace: str, watch: AsyncIterator[WatchEvent]) -> WatchEvent:
    """The next event there: what tests before have left elsewhere may still be going."""
    while (event := await next_event(watch)).object["metadata"]["namespace"] != namespace:
        pass
    return event


def named(event: WatchEvent) -> tuple[str, str]:
    return event.type, event.object["metadata"]["name"]


async def test_a_watch_that_is_cut_in_a_line_goes_on_where_it_was(
    plane: ControlPlane, proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject, namespace: str
) -> None:
    version = claim["metadata"]["resourceVersion"]
    watch = cluster.watch("claim", version)
    await plane.api.create(a_raw_claim("before", namespace=namespace))
    event = await next_in(namespace, watch)
    assert named(event) == ("ADDED", "before")
    await proxy.cut_watches(half_a_line=b'{"type":"ADDED","object":{"metadata":{"na')
    with pytest.raises(ApiUncertainError):
        await next_in(namespace, watch)
    await plane.api.create(a_raw_claim("after", namespace=namespace))
    assert named(await next_in(namespace, cluster.watch("claim", event.resource_version))) == ("ADDED", "after")


async def test_what_comes_twice_is_told_once(
    plane: ControlPlane, proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject, namespace: str
) -> None:
    proxy.repeats_lines = True
    watch = cluster.watch("claim", claim["metadata"]["resourceVersion"])
    for name in ("x", "y"):
        await plane.api.create(a_raw_claim(name, namespace=namespace))
    assert [named(await next_in(namespace, watch)) for _ in range(2)] == [("ADDED", "x"), ("ADDED", "y")]


async def test_a_watch_that_is_open_but_silent_is_opened_anew(
    plane: ControlPlane, proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject, namespace: str
) -> None:
    proxy.swallows = "watch=true"
    watch = cluster.watch("claim", claim["metadata"]["resourceVersion"])
    async with anyio.create_task_group() as tasks:

        async def heal() -> None:
            await wait_for(lambda: _is_true(proxy.count("GET", "watch=true") > 0))
            await plane.api.create(a_raw_claim("unheard", namespace=namespace))
            proxy.swallows = ""  # of the watches that are still to come: nothing comes on this one any more

        tasks.start_soon(heal)
        assert named(await next_in(namespace, watch)) == ("ADDED", "unheard")


async def _is_true(value: bool) -> bool:
    return value


async def test_a_watch_that_has_expired_says_so_by_status_too(
    proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject
) -> None:
    proxy.fail("GET", "watch=true", answers(410, "Expired"))
    with pytest.raises(ExpiredError):
        await next_event(cluster.watch("claim", claim["metadata"]["resourceVersion"]))


async def test_a_version_that_the_cluster_has_not_reached_has_expired(
    cluster: KubernetesCluster, claim: ApiObject
) -> None:
    far_ahead = str(int(claim["metadata"]["resourceVersion"]) + 1_000_000_000)
    with pytest.raises(RestoredError, match="restored from a backup"):
        await next_event(cluster.watch("claim", far_ahead))


async def test_a_watch_that_ends_at_once_is_no_watch(
    proxy: FaultyProxy, cluster: KubernetesCluster, claim: ApiObject
) -> None:
    proxy.fail("GET", "watch=true", _nothing, times=5)
    with pytest.raises(ApiUncertainError, match="at once"):
        await next_event(cluster.watch("claim", claim["metadata"]["resourceVersion"]))


async def _nothing(_request: object, _body: bytes) -> web.StreamResponse:
    return web.Response(body=b"")


# --- lists


async def test_a_list_whose_pages_expire_is_read_again(
    plane: ControlPlane, proxy: FaultyProxy, cluster: KubernetesCluster
) -> None:
    names = [plane.unique_name("slice") for _ in range(60)]
    for name in names:
        await plane.api.create(a_raw_slice(name))
    proxy.fail("GET", "continue=", answers(410, "Expired"))
    listing = await cluster.list_objects("slice")
    assert {obj["metadata"]["name"] for obj in listing.objects} >= set(names)
    assert listing.errors == {}
    assert proxy.count("GET", "continue=") == 1
    assert not any("resourceVersion" in path for method, path in proxy.requests if "resourceslices" in path)
    for name in names:
        await plane.api.delete("ResourceSlice", name)


async def test_an_apiserver_that_restarts_ends_the_watch_and_its_history(
    start_plane: StartPlane,
) -> None:
    own = await start_plane("own", scheduler=False, controller_manager=False)
    async with connect_to_cluster(Credentials(str(own.admin.kubeconfig))) as connection:
        cluster = KubernetesCluster(connection)
        version = (await cluster.list_objects("claim")).resource_version
        await own.api.create(a_raw_claim("before"))
        watch = cluster.watch("claim", version)
        assert named(await next_event(watch)) == ("ADDED", "before")
        await own.restart_apiserver()
        with pytest.raises(ApiUncertainError):
            await next_event(watch)
        with pytest.raises(ExpiredError):
            await next_event(cluster.watch("claim", version))
        listing = await cluster.list_objects("claim")
        assert [obj["metadata"]["name"] for obj in listing.objects] == ["before"]
