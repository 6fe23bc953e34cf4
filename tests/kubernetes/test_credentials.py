"""Who the agent is at its API server, in each way that `kubectl` and pods know."""

import base64
import stat
from pathlib import Path

import pytest
import yaml
from kubernetes_asyncio.config import incluster_config

from cluster_agent.adapters.kube_cluster import KubernetesCluster
from cluster_agent.adapters.kube_connection import Credentials, KubeConnection, connect_to_cluster
from cluster_agent.errors import ClusterAccessError
from cluster_agent.ports import ApiDeniedError, ApiUncertainError
from tests.cluster_agent.contract import next_event
from tests.controlplane.certificates import make_certificates
from tests.controlplane.plane import ControlPlane, Rule

pytestmark = pytest.mark.anyio

AT_ONCE = 0.0  # credentials are renewed as often as they are refused


def a_kubeconfig(plane: ControlPlane, directory: Path, user: dict[str, object]) -> Credentials:
    """The admin's kubeconfig with another user in it."""
    config = yaml.safe_load(plane.admin.kubeconfig.read_text())
    config["users"][0]["user"] = user
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return Credentials(str(path))


def with_plugin(plane: ControlPlane, directory: Path, command: str, more: str = "") -> Credentials:
    """A kubeconfig whose token is what a shell command prints. more: fields of its status."""
    plugin = directory / "plugin"
    status = f'{{"token":"%s"{more}}}'
    credential = f'{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{status}}}'
    plugin.write_text(f"#!/bin/sh\nset -e\ntoken=$({command})\nprintf '{credential}' \"$token\"\n")
    plugin.chmod(plugin.stat().st_mode | stat.S_IXUSR)
    exec_ = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    return a_kubeconfig(plane, directory, {"exec": exec_})


async def test_a_missing_right_names_who_what_and_where(plane: ControlPlane, namespace: str) -> None:
    identity = await plane.service_account(plane.unique_name("agent"), namespace, [Rule("", ["pods"], ["list"])])
    async with connect_to_cluster(Credentials(str(identity.kubeconfig))) as connection:
        with pytest.raises(ApiDeniedError) as denied:
            await KubernetesCluster(connection).list_objects("node")
    assert identity.user in str(denied.value)
    assert 'cannot list resource "nodes"' in str(denied.value)


async def test_a_token_that_has_expired_is_renewed_by_its_plugin(plane: ControlPlane, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("expired")
    async with connect_to_cluster(with_plugin(plane, tmp_path, f"cat {token}"), AT_ONCE) as connection:
        cluster = KubernetesCluster(connection)
        with pytest.raises(ApiDeniedError, match="401"):
            await cluster.list_objects("namespace")
        token.write_text(plane.admin.token)
        assert (await cluster.list_objects("namespace")).objects


async def test_a_plugin_is_asked_again_before_its_token_expires_and_not_otherwise(
    plane: ControlPlane, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    for expires, expected in (("2020-01-01T00:00:00Z", 3), ("2100-01-01T00:00:00Z", 1)):
        runs.write_text("")
        command = f"echo >>{runs}; echo {plane.admin.token}"
        credentials = with_plugin(plane, tmp_path, command, f',"expirationTimestamp":"{expires}"')
        async with connect_to_cluster(credentials, AT_ONCE) as connection:
            for _ in range(2):
                assert (await KubernetesCluster(connection).list_objects("namespace")).objects
        assert len(runs.read_text()) == expected


async def test_a_plugin_whose_token_is_refused_is_not_run_for_each_call(plane: ControlPlane, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    async with connect_to_cluster(with_plugin(plane, tmp_path, f"echo >>{runs}; echo expired")) as connection:
        for _ in range(5):
            with pytest.raises(ApiDeniedError, match="401"):
                await KubernetesCluster(connection).list_objects("namespace")
    assert len(runs.read_text()) == 2  # at the start, and once more


async def test_another_token_cuts_no_watch(plane: ControlPlane, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(plane.admin.token)
    credentials = a_kubeconfig(plane, tmp_path, {"tokenFile": str(token)})
    async with connect_to_cluster(credentials, AT_ONCE) as connection:
        cluster = KubernetesCluster(connection)
        watch = cluster.watch("namespace", (await cluster.list_objects("namespace")).resource_version)
        first = await plane.add_namespace()
        assert (await next_event(watch)).object["metadata"]["name"] == first
        token.write_text("expired")
        await connection.open()  # whose token is refused from here on
        token.write_text(plane.admin.token)
        assert (await cluster.list_objects("namespace")).objects
        second = await plane.add_namespace()
        assert (await next_event(watch)).object["metadata"]["name"] == second


async def test_a_plugin_that_fails_says_why(plane: ControlPlane, tmp_path: Path) -> None:
    with pytest.raises(ClusterAccessError, match="no network"):
        await KubeConnection(with_plugin(plane, tmp_path, "echo no network >&2; exit 3")).open()


async def test_a_token_in_a_file_is_read_again_when_it_is_refused(plane: ControlPlane, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("expired")
    async with connect_to_cluster(a_kubeconfig(plane, tmp_path, {"tokenFile": str(token)})) as connection:
        token.write_text(plane.admin.token)
        assert (await KubernetesCluster(connection).list_objects("namespace")).objects


async def test_a_pod_uses_its_service_account_and_the_token_that_follows(
    plane: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = [Rule("", ["namespaces"], ["list"])]
    identity = await plane.service_account(plane.unique_name("agent"), namespace, rules)
    host, port = plane.server.removeprefix("https://").split(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    token = tmp_path / "token"
    token.write_text("expired\n")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(plane.ca))
    async with connect_to_cluster(Credentials(in_cluster=True), AT_ONCE) as connection:
        cluster = KubernetesCluster(connection)
        with pytest.raises(ApiDeniedError, match="401"):
            await cluster.list_objects("namespace")
        token.write_text(f"{identity.token}\n")
        assert (await cluster.list_objects("namespace")).objects


async def test_a_server_whose_certificate_nobody_vouches_for_is_believed_once_the_file_says_so(
    plane: ControlPlane, tmp_path: Path
) -> None:
    path = tmp_path / "kubeconfig"
    right = yaml.safe_load(plane.admin.kubeconfig.read_text())
    wrong = yaml.safe_load(plane.admin.kubeconfig.read_text())
    stranger = make_certificates(tmp_path).ca.read_bytes()
    wrong["clusters"][0]["cluster"]["certificate-authority-data"] = base64.b64encode(stranger).decode()
    path.write_text(yaml.safe_dump(wrong))
    async with connect_to_cluster(Credentials(str(path)), AT_ONCE) as connection:
        cluster = KubernetesCluster(connection)
        with pytest.raises(ApiUncertainError, match="is not who it says"):
            await cluster.list_objects("namespace")
        path.write_text(yaml.safe_dump(right))
        assert (await cluster.list_objects("namespace")).objects
