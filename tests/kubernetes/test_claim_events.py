"""`kubectl describe resourceclaim` says why a claim waits and what it was given: Events, on a real API server."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane.api import Object, wait_for
from tests.controlplane.plane import ControlPlane, Options, start
from tests.controlplane.programs import Programs
from tests.kubernetes.federation import Federation, a_kube_federation, a_pod, brokered, is_bound
from tests.kubernetes.kubectl import kubectl
from tests.manifests import claim_manifest, class_manifest, slice_manifest

pytestmark = pytest.mark.anyio


@pytest.fixture
async def federation(programs: Programs, tmp_path: Path) -> AsyncIterator[Federation]:
    """A hub that publishes gpu-0, and a member."""
    only_api = Options(scheduler=False, controller_manager=False)
    async with (
        start(programs, tmp_path / "hub", only_api) as hub,
        start(programs, tmp_path / "east") as east,
        a_kube_federation(tmp_path, {"hub": hub, "east": east}) as federation,
    ):
        await hub.api.create(brokered(class_manifest()))
        await hub.api.create(slice_manifest(["gpu-0"]))
        await east.add_node("n1")
        await federation.start("broker", "hub", "east")
        yield federation
        federation.check()


async def described(plane: ControlPlane, name: str, namespace: str) -> str:
    return await kubectl(plane.admin.kubeconfig, "describe", "resourceclaim", name, "-n", namespace)


async def until_described(plane: ControlPlane, name: str, namespace: str, *words: str) -> str:
    """What kubectl says once all of the words are on one line of it."""
    said = ""

    async def is_there() -> bool:
        nonlocal said
        said = await described(plane, name, namespace)
        return any(all(word in line for word in words) for line in said.splitlines())

    await wait_for(is_there, otherwise=lambda: f"no line with {words} in:\n{said}")
    return said


async def events_of(plane: ControlPlane, namespace: str, claim: str) -> list[Object]:
    return [
        each
        for each in await plane.api.list_all("Event")
        if each["involvedObject"].get("kind") == "ResourceClaim"
        and each["involvedObject"]["name"] == claim
        and each["metadata"]["namespace"] == namespace
        and each["reason"].startswith("Dragoman")
    ]


async def test_kubectl_describe_answers_why_it_waits_and_what_it_has(federation: Federation) -> None:
    east = federation.planes["east"]
    namespace = await east.add_namespace()
    for name in ("first", "second"):
        await east.api.create(claim_manifest(name, namespace=namespace))
    await until_described(east, "first", namespace, "Normal", "DragomanPending", "WaitingForConsumer")
    await east.api.create(a_pod("first", namespace, "first"))
    await east.api.until("Pod", "first", namespace, is_bound)
    said = await until_described(east, "first", namespace, "Normal", "DragomanAllocated", "gpu: rack/gpu-0")
    assert "dragoman.dev/agent" in said
    await east.api.create(a_pod("second", namespace, "second"))
    await until_described(east, "second", namespace, "Warning", "DragomanPending", "DevicesInUse")
    await east.finish_pod("first", namespace)
    await until_described(east, "second", namespace, "Normal", "DragomanAllocated")
    await until_described(east, "first", namespace, "Normal", "DragomanReleased")
    (allocated,) = [each for each in await events_of(east, namespace, "first") if each["reason"] == "DragomanAllocated"]
    claim = await east.api.get("ResourceClaim", "first", namespace)
    assert allocated["involvedObject"]["uid"] == claim["metadata"]["uid"]


async def test_what_is_said_again_is_one_event_with_a_series(federation: Federation) -> None:
    east = federation.planes["east"]
    namespace = await east.add_namespace()
    await east.api.create(claim_manifest("c", namespace=namespace))
    waits = ("Normal", "DragomanPending", "WaitingForConsumer")
    await until_described(east, "c", namespace, *waits)
    for number in range(2):
        pod = await east.api.create(a_pod(f"p{number}", namespace, "c", nodeSelector={"there-is": "no-such-node"}))
        await until_count(east, namespace, "DragomanAllocated", 1)
        await east.delete_pod(pod["metadata"]["name"], namespace)
        await until_count(east, namespace, "DragomanPending", number + 2)
    told = [each for each in await events_of(east, namespace, "c") if "WaitingForConsumer" in each["message"]]
    assert [each["series"]["count"] >= 2 for each in told] == [True]


async def until_count(plane: ControlPlane, namespace: str, reason: str, count: int) -> None:
    """Return when Events of this reason were counted so often, all series together."""
    found: list[Any] = []

    async def is_so() -> bool:
        nonlocal found
        found = await events_of(plane, namespace, "c")
        times = [(each.get("series") or {}).get("count", 1) for each in found if each["reason"] == reason]
        return bool(sum(times) >= count)

    await wait_for(is_so, otherwise=lambda: f"{reason} not {count} times: {found}")


async def test_without_them_nothing_is_written_and_no_right_is_needed(federation: Federation) -> None:
    east = federation.planes["east"]
    await federation.processes["east"].stop()
    await federation.add_agent("east", "", "--no-claim-events")
    await federation.start("east")
    namespace = await east.add_namespace()
    await east.api.create(claim_manifest("c", namespace=namespace))
    await east.api.create(a_pod("p", namespace, "c"))
    await east.api.until("Pod", "p", namespace, is_bound)
    assert await events_of(east, namespace, "c") == []
