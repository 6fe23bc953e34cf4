"""The corpus of real manifests, applied with kubectl to a member whose devices are at a hub.

What is expected of each claim is in tests/corpus.yaml, with what only a cluster can say: which pods are bound. Taint
rules are applied at the hub, where the devices are; all else at the member.
"""

import copy
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import msgspec
import pytest
import yaml

from schemas.client.api import call_api
from schemas.client.connection import Connection
from schemas.client.errors import BusRefusedError
from schemas.client.reader import StreamReader
from tests.cluster_agent.objects import TIME
from tests.controlplane.api import Object, wait_for
from tests.controlplane.plane import ControlPlane, Options, start
from tests.controlplane.programs import Programs
from tests.corpus import CASES, Case, ExpectedClaim, corpus, has
from tests.corpus_profiles import CPU, GPU, NET, manifests
from tests.kubernetes.federation import Federation, a_kube_federation, brokered
from tests.kubernetes.kubectl import KubectlError, kubectl
from tests.kubernetes.pods import is_bound, unscheduled
from tests.nats_fixture import connect_to
from tests.processes.harness import Row

__all__ = ["corpus"]

pytestmark = pytest.mark.anyio

# What the API server refuses, by a part of the file's name, and what kubectl says then.
REFUSED = {
    "4-pod-not-scheduled": "apiVersion not set",
    "podgroup-resourceclaimtemplate": 'no matches for kind "PodGroup" in version "scheduling.k8s.io/v1alpha2"',
}
# Its pods are made by a Deployment, so its claims are not in corpus.yaml.
DEPLOYED = "podgroup-resourceclaimtemplate/podgroup-resourceclaimtemplate.yaml"


OLD = ["resource.k8s.io/v1beta2"]  # in which the corpus has its taint rules
AT_HUB = Options(scheduler=False, controller_manager=False, serve=OLD)
AT_MEMBER = Options(serve=OLD)


class Bed:
    """A hub, the member east and their federation; the inventory at the hub is that of one profile."""

    def __init__(self, hub: ControlPlane, east: ControlPlane, federation: Federation, connection: Connection) -> None:
        self.hub = hub
        self.east = east
        self.federation = federation
        self.connection = connection
        self._state = StreamReader(connection, "DRA_STATE")
        self._published: list[Object] = []

    async def publish(self, profile: str) -> None:
        """The profile's devices and class at the hub; return when the member has the class, too."""
        for obj in self._published:
            await self.hub.api.delete(obj["kind"], obj["metadata"]["name"])
            await self._until_told(obj, is_there=False)
            if obj["kind"] == "DeviceClass":
                await self.east.api.until_gone("DeviceClass", obj["metadata"]["name"])
        self._published = []
        for manifest in manifests(profile):
            if manifest["kind"] == "DeviceClass":
                await self.create_at_hub(brokered(manifest))
                await self.east.api.until("DeviceClass", manifest["metadata"]["name"], "", lambda _: True)
            else:
                await self.create_at_hub(manifest)

    async def create_at_hub(self, manifest: Object) -> None:
        """Return when the broker will meet it before anything that is created from now on."""
        created = await self.hub.api.create(manifest)
        self._published.append(created)
        await self._until_told(created, is_there=True)

    async def take_from_hub(self, kind: str) -> None:
        """Delete all of a kind there, however they were made."""
        for obj in await self.hub.api.list_all(kind):
            await self.hub.api.delete(kind, obj["metadata"]["name"])
            await self._until_told(obj, is_there=False)

    async def told(self, kind: str) -> None:
        """Return when the broker will meet all of a kind at the hub before anything that is created from now on."""
        for obj in await self.hub.api.list_all(kind):
            await self._until_told(obj, is_there=True)

    async def _until_told(self, obj: Object, *, is_there: bool) -> None:
        kind = {"ResourceSlice": "slice", "DeviceClass": "class", "DeviceTaintRule": "taintrule"}[obj["kind"]]
        subject = f"dra.v1.state.hub.{kind}.{obj['metadata']['name']}"

        async def holds() -> bool:
            try:
                message = await self._state.last(subject)
            except BusRefusedError:
                return False  # the broker has still to make the stream
            return message is not None and (obj["metadata"]["uid"].encode() in message.payload) == is_there

        await wait_for(holds, otherwise=lambda: f"{subject} is not told: {self.federation.processes['hub'].tail()}")

    async def rows(self) -> list[Row]:
        """The member's claims, as the broker shows them."""
        return msgspec.json.decode(await call_api(self.connection, "claims", b""), type=list[Row])


@pytest.fixture(scope="module")
async def shared_bed(
    anyio_backend: str, programs: Programs, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bed]:
    root = tmp_path_factory.mktemp("corpus")
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(start(programs, root / "hub", AT_HUB))
        east = await stack.enter_async_context(start(programs, root / "east", AT_MEMBER))
        await east.add_node("n1")
        federation = await stack.enter_async_context(a_kube_federation(root, {"hub": hub, "east": east}))
        pools = [{"driver": driver} for driver in (GPU, NET, CPU)]
        fabric = {"name": "rack7", "source": "hub", "clusters": ["east"], "pools": pools}
        config = {"clusters": ["hub", "east"], "hub": "hub", "fabrics": [fabric]}
        (root / "config.yaml").write_text(yaml.safe_dump(config))
        await federation.start("broker", "hub", "east")
        connection = await stack.enter_async_context(connect_to(federation.nats))
        yield Bed(hub, east, federation, connection)


@pytest.fixture
async def bed(shared_bed: Bed) -> AsyncIterator[Bed]:
    """The one of this module, emptied after the test: nothing of ours may stay where the users' objects are gone."""
    yield shared_bed
    shared_bed.federation.show()
    print(shared_bed.east.logs_since_shown())
    api = shared_bed.east.api
    for kind in ("Deployment", "ReplicaSet", "ResourceClaimTemplate", "ResourceClaim", "Pod"):
        for obj in await api.list_all(kind):
            metadata = obj["metadata"]
            await api.delete(kind, metadata["name"], metadata["namespace"], gracePeriodSeconds=0)
    await shared_bed.take_from_hub("DeviceTaintRule")

    async def is_empty() -> bool:
        return not await api.list_all("ResourceClaim") and not await api.list_all("Pod")

    await wait_for(is_empty, otherwise=lambda: "pods or claims stay")


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES if case.files != [DEPLOYED]])
async def test_pods_end_as_the_corpus_says(case: Case, bed: Bed, corpus: Path) -> None:
    await bed.publish(case.profile)
    await apply(bed, [corpus / file for file in case.files])
    pods = await bed.east.api.list_all("Pod")
    expected = [(each, each.allocation) for each in case.claims if each.allocation is not None]
    found = [await the_claim(bed, each) for each, _ in expected]
    allocations = [claim["status"]["allocation"] for claim in found]
    for allocation, (_, parts) in zip(allocations, expected, strict=True):
        assert has(without_devices(allocation), without_devices(parts)), allocation
        assert allocation["allocationTimestamp"]
    # Which of two pods comes first is the controllers' choice.
    assert sorted(map(devices, allocations)) == sorted(devices(parts) for _, parts in expected)
    for claim in found:
        await confirm_binding(bed, claim)
    for each in case.claims:
        # UnsupportedFeature: an extended resource, of which kube-scheduler makes a claim once it has a device for it.
        if each.reason and each.reason != "UnsupportedFeature":
            await wait_for(partial(is_told, bed, each), otherwise=partial(str, each))
    names = {claim["metadata"]["name"] for claim in found}
    for pod in pods:
        await ends(bed, pod, names)


async def test_pods_of_deployments_get_a_device_each_where_the_server_knows_no_groups(bed: Bed, corpus: Path) -> None:
    """The groups are of an alpha API; without it the template is each pod's own."""
    await bed.publish("gpu")
    await apply(bed, [corpus / DEPLOYED])

    async def four_are_bound() -> list[Object]:
        pods = [pod for pod in await bed.east.api.list_all("Pod") if is_bound(pod)]
        return pods if len(pods) == 4 else []

    await wait_for(four_are_bound)
    claims = await bed.east.api.list_all("ResourceClaim")
    assert len({each for claim in claims for each in devices(claim["status"]["allocation"])}) == 4


async def apply(bed: Bed, files: Iterable[Path]) -> None:
    """Rules first: the ends are those of pods that came after them."""
    rest = []
    for file in files:
        if "kind: DeviceTaintRule" in file.read_text():
            await kubectl(bed.hub.admin.kubeconfig, "apply", "-f", str(file))
        else:
            rest.append(file)
    await bed.told("DeviceTaintRule")
    for file in rest:
        refusal = REFUSED.get(file.stem)
        if refusal is None:
            await kubectl(bed.east.admin.kubeconfig, "apply", "-f", str(file))
        else:
            with pytest.raises(KubectlError) as refused:
                await kubectl(bed.east.admin.kubeconfig, "apply", "-f", str(file))
            assert refusal in str(refused.value)


async def the_claim(bed: Bed, expected: ExpectedClaim) -> Object:
    """The claim of that name, once it is allocated."""

    async def allocated() -> Object | None:
        for claim in await bed.east.api.list_all("ResourceClaim"):
            if fnmatchcase(claim["metadata"]["name"], expected.name) and "allocation" in claim.get("status", {}):
                return claim
        return None

    return await wait_for(allocated, otherwise=lambda: f"{expected.name} is not allocated")


async def is_told(bed: Bed, expected: ExpectedClaim) -> bool:
    """The broker says why the claim is not allocated."""
    return any(
        fnmatchcase(row.name, expected.name) and row.reason == expected.reason and expected.message in row.message
        for row in await bed.rows()
    )


async def confirm_binding(bed: Bed, claim: Object) -> None:
    """What the fabric's driver does once the device is attached."""
    results = claim["status"]["allocation"]["devices"]["results"]
    metadata = claim["metadata"]
    attached = [
        {
            **{key: result[key] for key in ("driver", "pool", "device")},
            "conditions": [
                {"type": each, "status": "True", "reason": "Attached", "lastTransitionTime": TIME, "message": ""}
                for each in result["bindingConditions"]
            ],
        }
        for result in results
        if "bindingConditions" in result
    ]
    if attached:
        [pod] = await bed.east.api.list_all("Pod", metadata["namespace"])
        waits = await bed.east.api.until(
            "Pod", pod["metadata"]["name"], metadata["namespace"], lambda pod: pod["status"].get("nominatedNodeName")
        )
        assert not is_bound(waits)
        current = await bed.east.api.get("ResourceClaim", metadata["name"], metadata["namespace"])
        await bed.east.api.put_status({**current, "status": {**current["status"], "devices": attached}})


async def ends(bed: Bed, pod: Object, allocated: set[str]) -> None:
    """It is bound if it has claims and all of them are allocated, else it waits."""
    name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
    wanted = pod["spec"].get("resourceClaims", [])
    made = [each for each in wanted if "resourceClaimTemplateName" in each]
    pod = await bed.east.api.until(
        "Pod", name, namespace, lambda pod: len(pod["status"].get("resourceClaimStatuses", [])) == len(made)
    )
    names = {each["resourceClaimName"] for each in pod["status"].get("resourceClaimStatuses", [])}
    names |= {each["resourceClaimName"] for each in wanted if "resourceClaimName" in each}
    if names and names <= allocated:
        await bed.east.api.until("Pod", name, namespace, is_bound)
    else:
        waiting = await bed.east.api.until("Pod", name, namespace, unscheduled("Unschedulable"))
        assert not is_bound(waiting)


def devices(allocation: Object) -> list[str]:
    """Of its results."""
    return [result["device"] for result in allocation["devices"]["results"]]


def without_devices(allocation: Object) -> Object:
    """The allocation but for which devices it has."""
    rest = copy.deepcopy(allocation)
    for result in rest["devices"]["results"]:
        result.pop("device")
    return rest
