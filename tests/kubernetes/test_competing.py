"""Pods of two clusters compete for the same devices, while whatever stands between is killed and started again."""

import math
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import anyio
import pytest

from tests.controlplane.api import Object, wait_for
from tests.controlplane.fixture import StartPlane
from tests.controlplane.plane import ControlPlane
from tests.kubernetes.checker import Checker
from tests.kubernetes.federation import Federation, a_kube_federation, a_pod, brokered, is_bound
from tests.manifests import CLASS, class_manifest, slice_manifest

pytestmark = pytest.mark.anyio

PODS = int(os.environ.get("COMPETING_PODS", "40"))  # in each of two members
DEVICES = int(os.environ.get("COMPETING_DEVICES", "24"))
DEADLINE_S = 60.0 + 2 * PODS
PODS_OF_A_NODE = 110
DEVICES_OF_A_SLICE = 128
LOCAL, LOCAL_DRIVER = "local", "local.example.com"  # kube-scheduler's own
LOCAL_DEVICES = 8  # in each member
# kube-controller-manager makes and frees 20 claims a second unless it is let.
FAST = {
    "kube-controller-manager": ["--kube-api-qps=300", "--kube-api-burst=300"],
}


@pytest.fixture
async def federation(tmp_path: Path, start_plane: StartPlane) -> AsyncIterator[Federation]:
    hub = await start_plane("hub", scheduler=False, controller_manager=False)
    await hub.api.create(brokered(class_manifest()))
    slices = math.ceil(DEVICES / DEVICES_OF_A_SLICE)
    for number in range(slices):
        devices = [f"gpu-{each}" for each in range(number, DEVICES, slices)]
        await hub.api.create(slice_manifest(devices, name=f"rack-{number}", slices=slices))
    planes = {"hub": hub}
    for name in ("east", "west"):
        planes[name] = await start_plane(name, arguments=FAST)
        for number in range(math.ceil(DEVICES / PODS_OF_A_NODE)):
            await planes[name].add_node(f"n{number}")
        await planes[name].api.create(class_manifest(LOCAL, driver=LOCAL_DRIVER))
        local = [f"local-{number}" for number in range(LOCAL_DEVICES)]
        await planes[name].api.create(slice_manifest(local, name=LOCAL, pool=f"of-{name}", driver=LOCAL_DRIVER))
        for device_class in (CLASS, LOCAL):
            await planes[name].api.create(a_template(device_class))
    async with a_kube_federation(tmp_path, planes) as federation:
        await federation.start("broker", *planes)
        yield federation


def a_template(device_class: str) -> Object:
    """Of the class's name."""
    request = {"name": "gpu", "exactly": {"deviceClassName": device_class}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": device_class, "namespace": "default"},
        "spec": {"spec": {"devices": {"requests": [request]}}},
    }


async def compete(federation: Federation, checker: Checker, *, scheduler_may_double: bool = False) -> None:
    """Create all pods, finish those that are bound until every one has run, and wait until everything is free.

    scheduler_may_double: devices that it allocates itself. When the answer to its write is lost with the API server it
    takes the device for free, and until its watch says otherwise it gives it to the next pod.
    """
    members = {name: federation.planes[name] for name in federation.members}
    for plane in members.values():
        await create_pods(plane)
    finished: set[tuple[str, str]] = set()

    async def all_have_run() -> bool:
        for name, plane in members.items():
            with suppress(aiohttp.ClientError):  # its API server is being restarted
                for pod in await plane.api.list_all("Pod", "default"):
                    key = (name, pod["metadata"]["name"])
                    if is_bound(pod) and key not in finished:
                        await plane.finish_pod(key[1], "default")
                        finished.add(key)
        return len(finished) == PODS * len(members)

    await wait_for(all_have_run, DEADLINE_S, lambda: f"{len(finished)} pods of {PODS * len(members)} have run")
    for plane in members.values():

        async def all_are_gone(plane: ControlPlane = plane) -> bool:
            with suppress(aiohttp.ClientError):
                return not await plane.api.list_all("ResourceClaim", "default")
            return False

        await wait_for(all_are_gone, DEADLINE_S, lambda: "claims of finished pods stay")
    its_own = [each for each in checker.collisions if each.startswith("of-")]
    assert [each for each in checker.collisions if each not in its_own] == []
    assert scheduler_may_double or its_own == []
    print(f"kube-scheduler has given devices of its own to two claims {len(its_own)} times")
    assert checker.allocated >= (PODS + PODS // 4) * len(members)
    print(f"{checker.allocated} allocations were seen, {PODS} pods in each of {len(members)} clusters have run")


async def create_pods(plane: ControlPlane) -> None:
    """Every fourth of them needs a device of its own cluster, too."""
    for number in range(PODS):
        pod = a_pod(f"pod-{number}", "default", template=CLASS)
        if number % 4 == 0:
            pod["spec"]["resourceClaims"].append({"name": LOCAL, "resourceClaimTemplateName": LOCAL})
            pod["spec"]["containers"][0]["resources"]["claims"].append({"name": LOCAL})
        await plane.api.create(pod)


@pytest.mark.timeout(2 * DEADLINE_S + 300)
async def test_every_pod_runs_and_no_device_is_held_twice(federation: Federation) -> None:
    checker = Checker({name: federation.planes[name].api for name in federation.members})
    async with anyio.create_task_group() as tasks:
        await tasks.start(checker.run)
        await compete(federation, checker)
        tasks.cancel_scope.cancel()
    federation.check()


@pytest.mark.timeout(2 * DEADLINE_S + 300)
async def test_ends_the_same_however_often_agents_and_api_servers_end(federation: Federation) -> None:
    checker = Checker({name: federation.planes[name].api for name in federation.members})
    disturbed = 0

    async def disturb() -> None:
        """Whenever some more claims have got their devices."""
        nonlocal disturbed
        for number in range(5):
            await wait_for(lambda: has_allocated(checker, (number + 1) * PODS // 4), DEADLINE_S)  # noqa: B023
            for name in federation.members:
                await federation.processes[name].kill()
                if number == 2:
                    await federation.planes[name].restart_apiserver()
                await federation.processes[name].start()
            if number == 3:
                await federation.planes["hub"].restart_apiserver()
            disturbed += 1

    async with anyio.create_task_group() as tasks:
        await tasks.start(checker.run)
        async with anyio.create_task_group() as both:
            both.start_soon(disturb)
            await compete(federation, checker, scheduler_may_double=True)
        tasks.cancel_scope.cancel()
    assert disturbed == 5
    federation.check()


async def has_allocated(checker: Checker, count: int) -> bool:
    return checker.allocated >= count
