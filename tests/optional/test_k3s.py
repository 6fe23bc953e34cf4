"""K3s, where Kubernetes' own programs cannot be built: what the shared control plane of the tests has to do."""

from collections.abc import AsyncIterator
from pathlib import Path

import docker
import pytest

from tests.cluster_agent.objects import a_raw_claim, a_raw_pod, an_allocation, with_status
from tests.controlplane.api import StatusError
from tests.controlplane.k3s import choose_k3s, start_k3s
from tests.controlplane.plane import ControlPlane, Rule
from tests.kubernetes.pods import is_bound

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600)]


@pytest.fixture
async def plane(engine: docker.DockerClient, anyio_backend: str, tmp_path: Path) -> AsyncIterator[ControlPlane]:
    async with start_k3s(choose_k3s(), tmp_path) as plane:
        await plane.add_node("n1")
        yield plane


async def test_scheduler_controllers_and_rights_are_as_in_kubernetes_own_programs(plane: ControlPlane) -> None:
    namespace = await plane.add_namespace()
    reader = await plane.service_account("reader", namespace, [Rule("resource.k8s.io", ["resourceclaims"], ["list"])])
    client = await plane.client(reader)
    claim = await plane.api.create(a_raw_claim(namespace=namespace))
    assert [each["metadata"]["name"] for each in await client.list_all("ResourceClaim")] == [claim["metadata"]["name"]]
    with pytest.raises(StatusError) as caught:
        await client.put_status(with_status(claim, allocation=an_allocation()))
    assert caught.value.code == 403

    await plane.api.put_status(with_status(claim, allocation=an_allocation()))
    await plane.api.create(a_raw_pod(namespace=namespace, claim=claim["metadata"]["name"]))
    await plane.api.until("Pod", "p", namespace, is_bound)
    await plane.finish_pod("p", namespace)
    await plane.api.until("ResourceClaim", claim["metadata"]["name"], namespace, lambda claim: not claim.get("status"))
