"""What the environment says of how to reach an API server: proxies are used, and a ~/.netrc is none of its business."""

from pathlib import Path

import pytest

from cluster_agent.adapters.kube_cluster import KubernetesCluster
from cluster_agent.adapters.kube_connection import Credentials, connect_to_cluster
from cluster_agent.ports import ApiUncertainError
from tests.controlplane.plane import ControlPlane
from tests.nats_fixture import free_port

pytestmark = pytest.mark.anyio


async def nodes(plane: ControlPlane) -> int:
    """How many there are, by a connection that is made now."""
    async with connect_to_cluster(Credentials(str(plane.admin.kubeconfig))) as connection:
        return len((await KubernetesCluster(connection).list_objects("node")).objects)


async def test_a_netrc_for_the_host_does_not_take_the_place_of_the_token(
    plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert await nodes(plane) > 0


async def test_the_proxy_of_the_environment_is_used_but_for_hosts_that_need_none(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("https_proxy", f"http://{nobody}")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ApiUncertainError, match=nobody):
        await nodes(plane)
    monkeypatch.setenv("no_proxy", "example.com,127.0.0.1")
    assert await nodes(plane) > 0
