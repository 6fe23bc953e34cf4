"""The contract of the agent's cluster port, held by the adapter for Kubernetes on a real API server."""

from collections.abc import AsyncIterator

import pytest

from cluster_agent.adapters.kube_cluster import KubernetesCluster
from cluster_agent.adapters.kube_connection import Credentials, connect_to_cluster
from cluster_agent.ports import ApiObject, Cluster
from schemas.resource.versions import claim_as
from tests.cluster_agent.contract import ClusterContract
from tests.controlplane.api import Api, path_of
from tests.controlplane.plane import ControlPlane, Options, start
from tests.controlplane.programs import Programs

WITHOUT_FINALIZERS: ApiObject = {"metadata": {"finalizers": []}}


class KubernetesBed:
    def __init__(self, cluster: Cluster, api: Api, api_version: str, expired_version: str) -> None:
        self.cluster = cluster
        self.expired_version = expired_version
        self._api = api
        self._api_version = api_version

    async def create(self, obj: ApiObject) -> None:
        await self._api.create(obj if obj["kind"] == "Pod" else claim_as(self._api_version, obj))

    async def delete_claim(self, name: str) -> None:
        await self._api.call("DELETE", path_of("ResourceClaim", "default", name, self._api_version))

    async def clean(self) -> None:
        """Delete all claims, classes and pods."""
        await self._api.call("DELETE", path_of("Pod", "default"), {"gracePeriodSeconds": 0})
        for kind in ("ResourceClaim", "DeviceClass"):
            for obj in (await self._api.call("GET", path_of(kind, api_version=self._api_version)))["items"]:
                metadata = obj["metadata"]
                path = path_of(kind, metadata.get("namespace", ""), metadata["name"], self._api_version)
                if metadata.get("finalizers"):
                    await self._api.call("PATCH", path, WITHOUT_FINALIZERS, content_type="application/merge-patch+json")
                if not metadata.get("deletionTimestamp"):
                    await self._api.call("DELETE", path)


@pytest.fixture(scope="module", params=["v1", "v1beta2", "v1beta1"])
async def bare_plane(
    anyio_backend: str, programs: Programs, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[ControlPlane, str, str]]:
    """A control plane where nobody but the test writes claims, the version of the API that it has, and a
    resourceVersion that it has forgotten."""
    served = f"resource.k8s.io/{request.param}"
    only = f"resource.k8s.io/v1=false,{served}=true"
    options = Options(
        scheduler=False, controller_manager=False, arguments={"kube-apiserver": [f"--runtime-config={only}"]}
    )
    async with start(programs, tmp_path_factory.mktemp("contract"), options) as plane:
        first = await plane.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "first"}})
        await plane.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "later"}})
        await plane.restart_apiserver()  # its history begins with what it finds in etcd
        yield plane, served, first["metadata"]["resourceVersion"]


class TestContract(ClusterContract):
    @pytest.fixture
    async def bed(self, bare_plane: tuple[ControlPlane, str, str]) -> AsyncIterator[KubernetesBed]:
        plane, api_version, expired_version = bare_plane
        async with connect_to_cluster(Credentials(str(plane.admin.kubeconfig))) as connection:
            cluster = KubernetesCluster(connection)
            assert (await cluster.versions())["claim"] == api_version
            bed = KubernetesBed(cluster, plane.api, api_version, expired_version)
            yield bed
            await bed.clean()
