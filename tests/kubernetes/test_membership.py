"""A pool that a real cluster's own scheduler gives out comes under brokering and goes out again; no pod ends by it."""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from broker.cli.main import main
from tests.controlplane.api import Object
from tests.controlplane.fixture import StartPlane
from tests.controlplane.plane import ControlPlane
from tests.kubernetes.federation import Federation, a_kube_federation, a_pod, brokered, devices_of
from tests.kubernetes.pods import is_bound, unscheduled
from tests.manifests import CLASS, claim_manifest, class_manifest, slice_manifest

pytestmark = pytest.mark.anyio

SLICE = slice_manifest(["gpu-0", "gpu-1"])


@pytest.fixture
async def federation(tmp_path: Path, start_plane: StartPlane) -> AsyncIterator[Federation]:
    """East's scheduler gives out the devices that it finds in its own cluster; the hub has nothing yet."""
    hub = await start_plane("hub", scheduler=False, controller_manager=False)
    east = await start_plane("east")
    await east.add_node("n1")
    await east.api.create({**class_manifest(), "metadata": {"name": CLASS, "labels": {"team": "a"}}})
    await east.api.create(SLICE)
    async with a_kube_federation(tmp_path, {"hub": hub, "east": east}) as federation:
        yield federation


async def run(east: ControlPlane, *arguments: str) -> int:
    """`dragoman cluster ...` as an administrator of east."""
    command = ["cluster", *arguments, "--kubeconfig", str(east.admin.kubeconfig), "--context", "test"]
    return await anyio.to_thread.run_sync(main, command)


async def a_pod_with_claim(east: ControlPlane, name: str) -> None:
    await east.api.create(claim_manifest(name))
    await east.api.create(a_pod(name, "default", name))


async def allocated(east: ControlPlane, name: str) -> Object:
    """Its claim, once its pod is bound."""
    await east.api.until("Pod", name, "default", is_bound)
    return await east.api.get("ResourceClaim", name, "default")


async def test_a_pool_in_use_comes_under_brokering_and_goes_out_again(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    hub, east = federation.planes["hub"], federation.planes["east"]
    await a_pod_with_claim(east, "old")
    old = await allocated(east, "old")
    pod = await east.api.get("Pod", "old", "default")
    before = await east.api.get("DeviceClass", CLASS)
    await federation.start("broker", "hub", "east")

    assert await run(east, "join", CLASS) == 0
    assert "1 claims on them hold devices, and keep them" in capsys.readouterr().out
    await east.api.delete("ResourceSlice", SLICE["metadata"]["name"])  # its driver publishes at the hub from now on
    await hub.api.create(brokered(class_manifest()))
    await hub.api.create(SLICE)
    await a_pod_with_claim(east, "new")
    assert devices_of(await allocated(east, "new")) == sorted({"gpu-0", "gpu-1"} - set(devices_of(old)))
    await a_pod_with_claim(east, "waits")
    await east.api.until("Pod", "waits", "default", unscheduled("Unschedulable"))
    assert (await east.api.get("DeviceClass", CLASS))["spec"] == {"selectors": [{"cel": {"expression": "false"}}]}
    assert (await east.api.get("ResourceClaim", "old", "default"))["status"] == old["status"]

    await federation.processes["east"].stop()
    assert await run(east, "leave") == 0
    said = capsys.readouterr().out
    assert f"DeviceClass {CLASS} of test is what it was before" in said
    assert "1 claims do not carry dragoman.dev/held any more" in said
    after = await east.api.get("DeviceClass", CLASS)
    assert (after["spec"], after["metadata"]["labels"]) == (before["spec"], before["metadata"]["labels"])
    assert "annotations" not in after["metadata"]
    new = await east.api.get("ResourceClaim", "new", "default")
    assert new["metadata"]["finalizers"] == ["resource.kubernetes.io/delete-protection"]

    # East's own scheduler goes on with what is free, once a pod is finished.
    await east.api.create(SLICE)
    await east.finish_pod("new", "default")
    assert devices_of(await allocated(east, "waits")) == devices_of(new)
    assert (await east.api.get("Pod", "old", "default"))["metadata"]["uid"] == pod["metadata"]["uid"]
    assert (await east.api.get("ResourceClaim", "old", "default"))["status"] == old["status"]


async def test_what_is_not_there_is_named(start_plane: StartPlane, capsys: pytest.CaptureFixture[str]) -> None:
    east = await start_plane("east", scheduler=False, controller_manager=False)
    await east.api.create(class_manifest())
    assert await run(east, "join", CLASS, "missing") == 1
    assert "class missing: there is no such class" in capsys.readouterr().err
    assert "labels" not in (await east.api.get("DeviceClass", CLASS))["metadata"]
    assert await run(east, "join", CLASS, CLASS) == 0
    assert await run(east, "join", CLASS) == 0
    assert f"{CLASS} selects nothing in test any more (it was before)" in capsys.readouterr().out
    assert await run(east, "leave") == 0
    assert await run(east, "leave") == 0
    assert (await east.api.get("DeviceClass", CLASS))["spec"] == class_manifest()["spec"]
