"""The hub's brokered classes in a real member: they come, are kept as they should be, and go."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.controlplane.api import Object
from tests.controlplane.fixture import StartPlane
from tests.controlplane.plane import ControlPlane
from tests.kubernetes.federation import Federation, a_kube_federation, a_pod, brokered, devices_of
from tests.kubernetes.pods import is_bound
from tests.manifests import CLASS, claim_manifest, class_manifest, slice_manifest

pytestmark = pytest.mark.anyio

SELECTOR = 'device.driver == "gpu.example.com"'


@pytest.fixture
async def federation(tmp_path: Path, start_plane: StartPlane) -> AsyncIterator[Federation]:
    """A hub with the class and a device, and the member east, which has nothing yet."""
    hub = await start_plane("hub", scheduler=False, controller_manager=False)
    east = await start_plane("east")
    await east.add_node("n1")
    await hub.api.create(brokered(class_manifest()))
    await hub.api.create(slice_manifest(["gpu-0"]))
    async with a_kube_federation(tmp_path, {"hub": hub, "east": east}) as federation:
        await federation.start("broker", "hub", "east")
        yield federation


async def the_class(plane: ControlPlane, selectors: str = SELECTOR) -> Object:
    """As it should be in a member, once it is."""

    def is_right(found: Object) -> bool:
        annotations = found["metadata"].get("annotations", {})
        closed = {"selectors": [{"cel": {"expression": "false"}}]}
        return bool(found["spec"] == closed and annotations.get("dragoman.dev/selectors") == selectors)

    return await plane.api.until("DeviceClass", CLASS, "", is_right)


async def test_a_member_has_the_hubs_classes_as_they_should_be(federation: Federation) -> None:
    hub, east = federation.planes["hub"], federation.planes["east"]
    found = await the_class(east)
    assert found["metadata"]["labels"] == {"dragoman.dev/brokered": "true", "dragoman.dev/projected": "true"}
    await east.api.create(claim_manifest("first"))
    await east.api.create(a_pod("first", "default", "first"))
    await east.api.until("Pod", "first", "default", is_bound)
    assert devices_of(await east.api.get("ResourceClaim", "first", "default")) == ["gpu-0"]

    # Somebody opens it to the member's own scheduler, or deletes it.
    await east.api.merge("DeviceClass", CLASS, "", {"spec": {"selectors": []}})
    await the_class(east)
    await east.api.delete("DeviceClass", CLASS)
    again = await the_class(east)
    assert again["metadata"]["uid"] != found["metadata"]["uid"]

    # The hub's changes, while nobody listens too.
    await federation.processes["east"].kill()
    await hub.api.merge("DeviceClass", CLASS, "", {"spec": {"selectors": [{"cel": {"expression": "true"}}]}})
    await federation.start("east")
    await the_class(east, "true")

    await hub.api.delete("DeviceClass", CLASS)
    await east.api.until_gone("DeviceClass", CLASS)
    assert "ClassDiffers" not in federation.processes["broker"].tail()


async def test_somebody_elses_class_of_that_name_stays_and_is_reported(tmp_path: Path, start_plane: StartPlane) -> None:
    hub = await start_plane("hub", scheduler=False, controller_manager=False)
    east = await start_plane("east", scheduler=False, controller_manager=False)
    theirs = await east.api.create(class_manifest())
    await hub.api.create(brokered(class_manifest()))
    async with a_kube_federation(tmp_path, {"hub": hub, "east": east}) as federation:
        await federation.start("broker", "hub", "east")
        await federation.processes["east"].until_it_says(f"DeviceClass {CLASS} of east is somebody else's")
        assert await east.api.get("DeviceClass", CLASS) == theirs
        await east.api.delete("DeviceClass", CLASS)  # as the log says
        await the_class(east)
