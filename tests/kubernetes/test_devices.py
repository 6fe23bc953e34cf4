"""What a driver reports in status.devices of a real cluster: binding that fails, a device that is broken."""

from collections.abc import AsyncIterator

import msgspec
import pytest
import yaml

from broker.adapters.api_service import call_api
from broker.machine.device_report import DeviceRow
from broker.machine.device_taints import UNHEALTHY
from tests.controlplane.api import Object, StatusError, wait_for
from tests.controlplane.plane import ControlPlane, Options, start
from tests.controlplane.programs import Programs
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
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio

ATTACHED, FAILED = "example.com/Attached", "example.com/AttachFailed"
BINDING = {"bindingConditions": [ATTACHED], "bindingFailureConditions": [FAILED]}


@pytest.fixture
async def federation(
    anyio_backend: str, programs: Programs, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Federation]:
    """Two devices that have to be attached first; one that fails to be is broken."""
    root = tmp_path_factory.mktemp("devices")
    only_api = Options(scheduler=False, controller_manager=False)
    async with (
        start(programs, root / "hub", only_api) as hub,
        start(programs, root / "east") as east,
        a_kube_federation(root, {"hub": hub, "east": east}) as federation,
    ):
        config = yaml.safe_load((root / "config.yaml").read_text())
        (root / "config.yaml").write_text(yaml.safe_dump({**config, "device_health": {"unhealthy": [FAILED]}}))
        await hub.api.create(brokered(class_manifest()))
        await hub.api.create(slice_manifest([{"name": name, **BINDING} for name in ("gpu-0", "gpu-1")]))
        await east.add_node("n1")
        await east.api.create(closed_class())
        await federation.start("broker", "hub", "east")
        yield federation
        federation.check()


async def reports(plane: ControlPlane, namespace: str, device: str, condition: str) -> None:
    """The fabric's controller says this of the claim's device, once the claim has it."""

    async def is_said() -> bool:
        claim = await plane.api.until("ResourceClaim", "c", namespace, lambda claim: devices_of(claim) == [device])
        (result,) = claim["status"]["allocation"]["devices"]["results"]
        assert {key: result[key] for key in BINDING} == BINDING
        said = {
            "type": condition,
            "status": "True",
            "reason": "Said",
            "message": "so",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        identity = {key: result[key] for key in ("driver", "pool", "device")}
        claim["status"]["devices"] = [{**identity, "conditions": [said]}]
        try:
            await plane.api.put_status(claim)
        except StatusError as error:
            if error.code != 409:
                raise
            return False
        return True

    await wait_for(is_said)


async def tainted(federation: Federation) -> dict[str, list[str]]:
    """Keys of the taints that the broker keeps, by device."""
    async with connect_to(federation.nats) as connection:
        rows = msgspec.json.decode(await call_api(connection, "devices", b"", 10), type=list[DeviceRow])
    return {row.device: [taint.key for taint in row.taints] for row in rows}


async def test_a_device_that_cannot_be_attached_is_replaced_and_kept_from_others(federation: Federation) -> None:
    plane = federation.planes["east"]
    namespace = await plane.add_namespace()
    await plane.api.create(claim_manifest("c", namespace=namespace))
    await plane.api.create(a_pod("p", namespace, "c"))
    await reports(plane, namespace, "gpu-0", FAILED)
    await reports(plane, namespace, "gpu-1", ATTACHED)
    await plane.api.until("Pod", "p", namespace, is_bound)
    assert await tainted(federation) == {"gpu-0": [UNHEALTHY]}

    other: Object = claim_manifest("other", namespace=namespace)
    await plane.api.create(other)
    await plane.api.create(a_pod("other", namespace, "other"))
    await plane.finish_pod("p", namespace)
    held = await plane.api.until("ResourceClaim", "other", namespace, devices_of)
    assert devices_of(held) == ["gpu-1"], "gpu-0 was free all the time"
