"""A pool that a cluster's own scheduler hands out comes under the broker and back, and no pod is touched."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio import to_thread

from tests.controlplane.api import Object, wait_for
from tests.controlplane.fixture import StartPlane
from tests.kubernetes.federation import Federation, a_kube_federation, a_pod, brokered, devices_of
from tests.kubernetes.pods import is_bound
from tests.manifests import CLASS, claim_manifest, class_manifest, slice_manifest

pytestmark = pytest.mark.anyio

INVENTORY = slice_manifest(["gpu-0", "gpu-1"])


@pytest.fixture
async def federation(tmp_path: Path, start_plane: StartPlane) -> AsyncIterator[Federation]:
    """East hands out two devices by itself, and one of them is in use; hub and broker run, east's agent does not."""
    hub = await start_plane("hub", scheduler=False, controller_manager=False)
    east = await start_plane("east")
    await east.add_node("n1")
    await east.api.create({**class_manifest(), "metadata": {"name": CLASS, "labels": {"team": "a"}}})
    await east.api.create(INVENTORY)
    async with a_kube_federation(tmp_path, {"hub": hub, "east": east}) as federation:
        await runs(federation, "old")
        await federation.start("broker")
        await wait_for(partial(broker_answers, federation))
        yield federation


async def broker_answers(federation: Federation) -> bool:
    command = [sys.executable, "-m", "broker.cli.main", "cluster", "list", "--nats", federation.nats.url]
    return await to_thread.run_sync(lambda: subprocess.run(command, capture_output=True).returncode) == 0


async def runs(federation: Federation, name: str) -> list[str]:
    """A pod is bound; the devices of its claim."""
    east = federation.planes["east"].api
    await east.create(claim_manifest(name))
    await east.create(a_pod(name, "default", name))
    await east.until("Pod", name, "default", is_bound)
    return devices_of(await east.get("ResourceClaim", name, "default"))


async def order(federation: Federation, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`dragoman cluster ...`, as a person types it."""
    command = [sys.executable, "-m", "broker.cli.main", "cluster", *arguments, "--nats", federation.nats.url]
    where = ["--kubeconfig", str(federation.planes["east"].admin.kubeconfig)]
    return await to_thread.run_sync(
        lambda: subprocess.run([*command, *where], capture_output=True, text=True, env=dict(os.environ), timeout=120)
    )


async def test_a_pool_in_use_joins_and_leaves(federation: Federation) -> None:
    hub, east = federation.planes["hub"].api, federation.planes["east"].api
    theirs = await east.get("DeviceClass", CLASS)
    old = await east.get("ResourceClaim", "old", "default")

    # The driver moves, and the operator joins; the agent comes while that waits.
    await east.delete("ResourceSlice", INVENTORY["metadata"]["name"])
    await hub.create(INVENTORY)
    await hub.create(brokered(class_manifest()))
    async with anyio.create_task_group() as tasks:

        async def start_agents() -> None:
            await east.until("DeviceClass", CLASS, "", is_closed)
            await federation.start("hub", "east")

        tasks.start_soon(start_agents)
        joined = await order(federation, "join", "east", "--class", CLASS, "--settle", "1", "--timeout", "60")
    assert joined.returncode == 0, joined.stderr
    assert "1 of its claims hold devices" in joined.stderr
    assert "start its agent" in joined.stderr
    assert joined.stdout == "cluster east has joined: the broker knows of 1 claims that hold devices\n"

    # What was given away stays so, and the broker gives the other one.
    assert set(await runs(federation, "new")) | set(devices_of(old)) == {"gpu-0", "gpu-1"}
    assert (await east.get("ResourceClaim", "old", "default"))["status"] == old["status"]
    assert "dragoman.dev/held" in (await east.get("ResourceClaim", "new", "default"))["metadata"]["finalizers"]

    async with anyio.create_task_group() as tasks:

        async def stop_the_agent() -> None:
            await wait_for(partial(is_cordoned, federation))
            await federation.processes["east"].kill()

        tasks.start_soon(stop_the_agent)
        left = await order(federation, "leave", "east", "--reason", "back", "--operator", "ada", "--timeout", "60")
    assert left.returncode == 0, left.stderr
    assert "cluster east has left: 1 claims lost the finalizer dragoman.dev/held and keep their devices" in left.stdout
    found = await east.get("DeviceClass", CLASS)
    assert found["spec"] == theirs["spec"]
    assert found["metadata"]["labels"] == {"team": "a"}
    assert not found["metadata"].get("annotations")
    for name in ("old", "new"):
        claim = await east.get("ResourceClaim", name, "default")
        assert len(devices_of(claim)) == 1
        assert "dragoman.dev/held" not in claim["metadata"]["finalizers"]
        assert is_bound(await east.get("Pod", name, "default"))

    # Its own scheduler hands it out again.
    await east.create({**INVENTORY, "metadata": {"name": "again"}})
    await federation.planes["east"].finish_pod("old", "default")
    await runs(federation, "last")


async def test_what_cannot_join_is_named(federation: Federation) -> None:
    elsewhere = await order(federation, "join", "north", "--class", CLASS, "--settle", "0")
    assert elsewhere.returncode == 2
    assert "north: the broker's config has east, hub; add it there first" in elsewhere.stderr
    unknown = await order(federation, "join", "east", "--settle", "0", "--class", "nothing")
    assert unknown.returncode == 2
    assert f"--class nothing: there is no such DeviceClass; there are {CLASS}" in unknown.stderr
    silent = await order(federation, "join", "east", "--class", CLASS, "--settle", "0", "--timeout", "1")
    assert silent.returncode == 1
    assert "gave up after 1 s: the broker has not heard east (Waiting): start its agent" in silent.stderr


async def is_cordoned(federation: Federation) -> bool:
    command = [sys.executable, "-m", "broker.cli.main", "cluster", "list", "-o", "json", "--nats", federation.nats.url]
    done = await to_thread.run_sync(lambda: subprocess.run(command, capture_output=True, check=True))
    [east] = [row for row in msgspec.json.decode(done.stdout) if row["cluster"] == "east"]
    return east["cordon"] is not None


def is_closed(found: Object) -> bool:
    return bool(found["spec"]["selectors"] == [{"cel": {"expression": "false"}}])
