"""Pods of real clusters get devices of a fabric: real scheduler, controller-manager, nats-server, broker and agents."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.controlplane.fixture import StartPlane
from tests.controlplane.plane import ControlPlane
from tests.kubernetes.federation import (
    Federation,
    a_kube_federation,
    a_pod,
    brokered,
    closed_class,
    devices_of,
    is_bound,
)
from tests.manifests import claim_manifest, class_manifest, slice_manifest

pytestmark = pytest.mark.anyio


@pytest.fixture
async def federation(tmp_path: Path, plane: ControlPlane, start_plane: StartPlane) -> AsyncIterator[Federation]:
    """A hub that publishes one device, and the member east."""
    hub = await start_plane("hub", scheduler=False, controller_manager=False)
    await hub.api.create(brokered(class_manifest()))
    await hub.api.create(slice_manifest(["gpu-0"]))
    await plane.api.apply(closed_class())
    async with a_kube_federation(tmp_path, {"hub": hub, "east": plane}) as federation:
        await federation.start("broker", "hub", "east")
        yield federation


async def test_a_finished_pod_frees_the_device_for_the_one_that_waits(
    federation: Federation, plane: ControlPlane, namespace: str
) -> None:
    api = plane.api
    for name in ("first", "second"):
        await api.create(claim_manifest(name, namespace=namespace))
    await api.create(a_pod("first", namespace, "first"))
    await api.until("Pod", "first", namespace, is_bound)
    held = await api.get("ResourceClaim", "first", namespace)
    assert devices_of(held) == ["gpu-0"]
    await api.create(a_pod("second", namespace, "second"))
    waiting = await api.until("Pod", "second", namespace, lambda pod: pod["status"].get("conditions"))
    assert not is_bound(waiting)
    await plane.finish_pod("first", namespace)
    await api.until("Pod", "second", namespace, is_bound)
    assert devices_of(await api.get("ResourceClaim", "second", namespace)) == ["gpu-0"]
    assert devices_of(await api.get("ResourceClaim", "first", namespace)) == []
