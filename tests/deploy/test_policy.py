"""The policy of the agent's chart, enforced by a real API server on a real scheduler and controller-manager."""

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster_agent.mirror.tracked import DELETE_PROTECTION, HELD
from tests.cluster_agent.objects import a_raw_claim, a_raw_pod, an_allocation, consumer_of, with_metadata, with_status
from tests.controlplane.api import Api, Object, StatusError, wait_for
from tests.controlplane.plane import ControlPlane, Rule, start
from tests.controlplane.programs import Programs
from tests.deploy.charts import AGENT, only, render
from tests.kubernetes.pods import is_bound, unscheduled

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]

KINDS = (
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
)
NAME = "held-claims.dragoman.dev"
NOWHERE = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["nowhere"]}]}]}
# All that a client needs to allocate a claim where there is no policy.
RIGHTS = [
    Rule("resource.k8s.io", ["resourceclaims"], ["get", "create", "update"]),
    Rule("resource.k8s.io", ["resourceclaims/status", "resourceclaims/binding"], ["update"]),
]


@pytest.fixture(scope="module")
async def guarded_plane(
    anyio_backend: str, programs: Programs, helm_program: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ControlPlane]:
    """A control plane with a node, where the agent's account and rights are the chart's and the policy is in force."""
    objects = render(helm_program, "agent", AGENT, "default")
    async with start(programs, tmp_path_factory.mktemp("guarded")) as plane:
        await plane.add_node("n1")
        await plane.api.apply(only(objects, kind) for kind in KINDS)
        scheduler = await plane.client(plane.scheduler_identity)
        probe = with_status(await a_claim(plane, "default"), allocation=an_allocation())
        path = "/apis/resource.k8s.io/v1/namespaces/default/resourceclaims/c/status"

        async def is_in_force() -> bool:
            try:
                await scheduler.call("PUT", path, probe, {"dryRun": "All"})
            except StatusError as error:
                return NAME in error.message
            return False

        await wait_for(is_in_force)
        yield plane


@pytest.fixture
async def guarded(guarded_plane: ControlPlane) -> AsyncIterator[ControlPlane]:
    """The control plane of this module, whose logs are shown where the test fails."""
    yield guarded_plane
    print(guarded_plane.logs_since_shown())


@pytest.fixture
async def namespace(guarded: ControlPlane) -> str:
    """A new one there."""
    return await guarded.add_namespace()


async def a_claim(plane: ControlPlane, namespace: str, *, name: str = "c", held: bool = True) -> Object:
    finalizers = [DELETE_PROTECTION, HELD] if held else [DELETE_PROTECTION]
    return await plane.api.create(a_raw_claim(name, namespace=namespace, finalizers=finalizers))


async def the_agent(plane: ControlPlane) -> Api:
    """A client as the account of the chart."""
    return await plane.client(await plane.identify("dragoman-agent"))


async def somebody_else(plane: ControlPlane, namespace: str) -> Api:
    """A client that may allocate other claims, once the API server knows of that."""
    name = plane.unique_name("somebody")
    api = await plane.client(await plane.service_account(name, namespace, RIGHTS))
    claim = await a_claim(plane, namespace, name=name, held=False)

    async def may_write() -> bool:
        with suppress(StatusError):
            await api.put_status(with_status(claim, allocation=an_allocation()))
            return True
        return False

    await wait_for(may_write)
    return api


@pytest.mark.parametrize(
    ("values", "has_it"),
    [
        pytest.param({}, True, id="a member"),
        pytest.param({"role": "both"}, True, id="both"),
        pytest.param({"role": "hub"}, False, id="a hub has no claims"),
        pytest.param({"policy": {"enabled": False}}, False, id="not wanted"),
    ],
)
def test_the_chart_has_it_where_there_are_claims(helm_program: Path, values: Object, has_it: bool) -> None:
    kinds = {each["kind"] for each in render(helm_program, "agent", {**AGENT, **values})}
    policy = {"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
    assert kinds & policy == (policy if has_it else set())


async def test_its_expressions_are_sound(guarded: ControlPlane) -> None:
    """kube-controller-manager checks their types."""
    policy = await guarded.api.until("ValidatingAdmissionPolicy", NAME, "", lambda policy: policy.get("status"))
    assert policy["status"] == {"observedGeneration": 1, "typeChecking": {}}


async def test_only_who_may_allocate_held_claims_sets_and_clears_them(guarded: ControlPlane, namespace: str) -> None:
    agent, other = await the_agent(guarded), await somebody_else(guarded, namespace)
    claim = await a_claim(guarded, namespace)
    with pytest.raises(StatusError) as refused:
        await other.put_status(with_status(claim, allocation=an_allocation()))
    assert (refused.value.code, refused.value.reason) == (403, "Forbidden")
    assert "only Dragoman allocates a claim that has the finalizer dragoman.dev/held" in refused.value.message
    claim = await agent.put_status(with_status(claim, allocation=an_allocation()))
    with pytest.raises(StatusError) as refused:
        await other.put_status(with_status(claim))
    assert refused.value.code == 403
    assert "frees a claim that has the finalizer dragoman.dev/held" in refused.value.message
    user = {"apiGroup": "example.com", "resource": "jobs", "name": "j", "uid": "u"}
    reserved = with_status(claim, allocation=an_allocation(), reservedFor=[user])
    claim = await other.put_status(reserved)  # the rest of the status is anybody's who has the right
    assert (await agent.put_status(with_status(claim)))["status"] == {}


async def test_only_who_may_allocate_held_claims_says_that_they_are_held(guarded: ControlPlane, namespace: str) -> None:
    """A finalizer that a tenant could add would stop the whole fabric: to the broker its ledger were lost."""
    agent, other = await the_agent(guarded), await somebody_else(guarded, namespace)
    says = "only Dragoman adds and removes the finalizer dragoman.dev/held"
    with pytest.raises(StatusError, match=says):
        await other.create(a_raw_claim("new", namespace=namespace, finalizers=[HELD]))
    claim = await other.create(a_raw_claim(namespace=namespace, finalizers=["example.com/theirs"]))
    with pytest.raises(StatusError, match=says):
        await other.put(with_metadata(claim, finalizers=["example.com/theirs", HELD]))
    claim = await agent.put(with_metadata(claim, finalizers=["example.com/theirs", HELD]))
    with pytest.raises(StatusError, match=says):
        await other.put(with_metadata(claim, finalizers=["example.com/theirs"]))
    claim = await other.put(with_metadata(claim, finalizers=[HELD], labels={"theirs": "too"}))
    assert (await agent.put(with_metadata(claim, finalizers=[])))["metadata"].get("finalizers") is None


async def test_claims_without_our_finalizer_are_not_touched(guarded: ControlPlane, namespace: str) -> None:
    other = await somebody_else(guarded, namespace)
    claim = await other.put_status(
        with_status(await a_claim(guarded, namespace, held=False), allocation=an_allocation())
    )
    assert (await other.put_status(with_status(claim)))["status"] == {}


async def test_the_scheduler_keeps_an_allocation_that_no_node_can_reach(guarded: ControlPlane, namespace: str) -> None:
    allocation = {**an_allocation(), "nodeSelector": NOWHERE}
    await guarded.api.put_status(with_status(await a_claim(guarded, namespace), allocation=allocation))
    await guarded.api.create(a_raw_pod(namespace=namespace, claim="c"))
    await guarded.api.until("Pod", "p", namespace, unscheduled("Unschedulable"))
    # Without the policy its next try is made of a claim that it has freed. A node where it fits ends that.
    claim = await guarded.api.get("ResourceClaim", "c", namespace)
    assert claim["status"] == {"allocation": allocation}
    await guarded.add_node("n2", {"zone": "nowhere"})
    pod = await guarded.api.until("Pod", "p", namespace, is_bound)
    assert pod["spec"]["nodeName"] == "n2"


async def test_the_scheduler_cannot_allocate_a_held_claim_by_itself(guarded: ControlPlane, namespace: str) -> None:
    await guarded.api.apply([A_CLASS, A_SLICE])
    await a_claim(guarded, namespace)
    await guarded.api.create(a_raw_pod(namespace=namespace, claim="c"))
    await guarded.api.until("Pod", "p", namespace, unscheduled("SchedulerError", NAME))
    agent = await the_agent(guarded)
    claim = await guarded.api.get("ResourceClaim", "c", namespace)
    assert "allocation" not in claim.get("status", {})
    await agent.put_status(with_status(claim, allocation=an_allocation("gpu-9")))
    await guarded.api.until("Pod", "p", namespace, is_bound)


async def test_the_controller_manager_frees_what_no_pod_uses_any_more(guarded: ControlPlane, namespace: str) -> None:
    pod = await guarded.api.create(a_raw_pod(namespace=namespace, claim="c"))
    claim = await a_claim(guarded, namespace)
    await guarded.api.put_status(with_status(claim, allocation=an_allocation(), reservedFor=[consumer_of(pod)]))
    await guarded.api.until("Pod", "p", namespace, is_bound)
    await guarded.finish_pod("p", namespace)
    freed = await guarded.api.until("ResourceClaim", "c", namespace, lambda claim: not claim.get("status"))
    assert HELD in freed["metadata"]["finalizers"]


A_CLASS: Object = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceClass",
    "metadata": {"name": "gpu.example.com"},
    "spec": {"selectors": [{"cel": {"expression": 'device.driver == "gpu.example.com"'}}]},
}
A_SLICE: Object = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "ResourceSlice",
    "metadata": {"name": "rack7"},
    "spec": {
        "driver": "gpu.example.com",
        "pool": {"name": "rack7", "generation": 1, "resourceSliceCount": 1},
        "allNodes": True,
        "devices": [{"name": "gpu-5"}],
    },
}
