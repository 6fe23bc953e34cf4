"""The control plane itself: that it is a real one, with real rights and TLS, and that it ends with its block."""

import os
import ssl
from pathlib import Path

import aiohttp
import anyio
import pytest
import yaml

from tests.cluster_agent.objects import a_raw_claim
from tests.controlplane.api import Object, StatusError, connect, wait_for
from tests.controlplane.fixture import StartPlane
from tests.controlplane.plane import ControlPlane, Options, Rule, start
from tests.controlplane.process import ProgramDiedError
from tests.controlplane.programs import KUBERNETES, Programs

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]


def a_pod(name: str, namespace: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "main", "image": "registry.example/none"}]},
    }


async def test_a_pod_is_scheduled_finishes_and_goes(plane: ControlPlane, namespace: str) -> None:
    assert (await plane.api.call("GET", "/version"))["gitVersion"] == KUBERNETES.version
    await plane.api.create(a_pod("p", namespace))
    pod = await plane.api.until("Pod", "p", namespace, lambda pod: pod["spec"].get("nodeName"))
    assert pod["spec"]["nodeName"] in ("n1", "n2")
    await plane.finish_pod("p", namespace)
    assert (await plane.api.get("Pod", "p", namespace))["status"]["phase"] == "Succeeded"
    await plane.delete_pod("p", namespace)
    await plane.api.until_gone("Pod", "p", namespace)


async def test_the_controller_manager_has_the_rights_of_each_controller(plane: ControlPlane, namespace: str) -> None:
    """The ServiceAccounts of its controllers are what policies name."""
    await plane.api.until("ServiceAccount", "resource-claim-controller", "kube-system", lambda _: True)
    root = await plane.api.until("ConfigMap", "kube-root-ca.crt", namespace, lambda _: True)
    assert root["data"]["ca.crt"] == plane.ca.read_text()


async def test_an_account_may_do_what_it_was_granted_and_nothing_else(plane: ControlPlane, namespace: str) -> None:
    agent = await plane.service_account("agent", namespace)
    api = await plane.client(agent)
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    said = await api.call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    assert said["status"]["userInfo"]["username"] == agent.user == f"system:serviceaccount:{namespace}:agent"
    with pytest.raises(StatusError) as refused:
        await api.list_all("ResourceClaim")
    assert refused.value.code == 403
    await plane.grant("agent", namespace, [Rule("resource.k8s.io", ["resourceclaims"], ["list"])])

    async def may_list() -> bool:
        try:
            return await api.list_all("ResourceClaim", namespace) == []
        except StatusError:
            return False  # the authorizer follows a watch

    await wait_for(may_list)
    with pytest.raises(StatusError) as refused:
        await api.create(a_raw_claim("c", namespace=namespace))
    assert refused.value.code == 403


async def test_a_kubeconfig_verifies_the_server(plane: ControlPlane, start_plane: StartPlane) -> None:
    config = yaml.safe_load(plane.admin.kubeconfig.read_text())
    assert config["clusters"][0]["cluster"]["server"] == plane.server
    assert "insecure-skip-tls-verify" not in plane.admin.kubeconfig.read_text()
    other = await start_plane(scheduler=False, controller_manager=False)
    async with connect(plane.server, other.ca, plane.admin.token) as api:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await api.list_all("Node")
    async with connect(other.server, other.ca, plane.admin.token) as api:
        with pytest.raises(StatusError) as unknown:
            await api.list_all("Node")
    assert unknown.value.code == 401
    assert await other.api.list_all("Node") == []
    assert len(await plane.api.list_all("Node")) == 2


async def test_comes_back_with_its_port_and_data(start_plane: StartPlane) -> None:
    plane = await start_plane(scheduler=False, controller_manager=False)
    kept = await plane.api.create(a_raw_claim("c"))
    async with plane.api.watch("ResourceClaim", "default") as events:
        assert (await anext(events))["object"]["metadata"]["uid"] == kept["metadata"]["uid"]
        await plane.apiserver.kill()
        with pytest.raises(aiohttp.ClientError):
            assert {event["type"] async for event in events} == {"BOOKMARK"}
    with pytest.raises(aiohttp.ClientError):
        await plane.api.find("ResourceClaim", "c", "default")
    await plane.apiserver.start()
    assert await plane.api.get("ResourceClaim", "c", "default") == kept


async def test_a_plane_is_as_the_options_say(start_plane: StartPlane) -> None:
    plane = await start_plane(
        controller_manager=False,
        feature_gates={"DRAConsumableCapacity": False},
        serve=["resource.k8s.io/v1beta2"],
        binding_timeout_s=20,
    )
    assert (plane.scheduler.is_running, plane.controller_manager.is_running) == (True, False)
    assert 'name="DRAConsumableCapacity",stage="BETA"} 0' in await plane.api.text("/metrics")
    groups = await plane.api.call("GET", "/apis/resource.k8s.io")
    assert [version["version"] for version in groups["versions"]] == ["v1", "v1beta2"]
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {plane.admin.token}"}) as session:
        port = next(
            argument.rpartition("=")[2] for argument in _command(plane.scheduler.pid) if "secure-port" in argument
        )
        unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        unverified.check_hostname = False
        unverified.verify_mode = ssl.CERT_NONE
        async with session.get(f"https://127.0.0.1:{port}/configz", ssl=unverified) as response:
            assert '"bindingTimeout":"20s"' in await response.text()


async def test_every_program_has_ended_after_a_failure(programs: Programs, tmp_path: Path, anyio_backend: str) -> None:
    pids: list[int] = []

    async def failing() -> None:
        async with start(programs, tmp_path) as plane:
            pids.extend(program.pid for program in plane.programs)
            raise RuntimeError("the test fails")

    with pytest.raises(RuntimeError, match="the test fails"):
        await failing()
    assert len(pids) == 4
    assert not any(_lives(pid) for pid in pids)
    assert (tmp_path / "kube-apiserver.log").stat().st_size > 0
    assert not (tmp_path / "etcd").exists()


async def test_a_cancelled_test_ends_its_programs_too(programs: Programs, tmp_path: Path, anyio_backend: str) -> None:
    options = Options(scheduler=False, controller_manager=False)
    with anyio.move_on_after(30) as scope:
        async with start(programs, tmp_path, options) as plane:
            pids = [plane.etcd.pid, plane.apiserver.pid]
            scope.cancel()
            await anyio.sleep_forever()
    assert not any(_lives(pid) for pid in pids)


async def test_a_program_that_does_not_start_says_why(programs: Programs, tmp_path: Path, anyio_backend: str) -> None:
    options = Options(arguments={"kube-apiserver": ["--no-such-flag"]})
    with pytest.raises(ProgramDiedError, match=r"(?s)kube-apiserver ended with 1:.*unknown flag: --no-such-flag"):
        async with start(programs, tmp_path, options):
            pass


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
