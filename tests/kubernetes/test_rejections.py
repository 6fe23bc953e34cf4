"""What no node takes is asked back, and what a pod uses is not, whatever the agent has heard of that pod."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from broker.cli.ledger_bus import entries_of
from schemas.wire.codec import decode_entry
from schemas.wire.ledger import OutcomeRecorded
from schemas.wire.subjects import ledger_stream
from tests.controlplane.api import wait_for
from tests.controlplane.plane import ControlPlane, Options, start
from tests.controlplane.programs import Programs
from tests.kubernetes.faulty_proxy import FaultyProxy, a_faulty_proxy
from tests.kubernetes.federation import (
    Federation,
    a_kube_federation,
    a_pod,
    agent_identity,
    brokered,
    closed_class,
    devices_of,
    is_bound,
)
from tests.kubernetes.pods import unscheduled
from tests.manifests import claim_manifest, class_manifest, slice_manifest
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio

SOMEWHERE: dict[str, Any] = {"nodeSelector": {"room": "enough"}}  # no node has it at first


@pytest.fixture
async def proxy(programs: Programs, tmp_path: Path) -> AsyncIterator[tuple[Federation, FaultyProxy]]:
    """A hub with two devices and a member, whose agent has one second of patience, and a proxy before its cluster."""
    only_api = Options(scheduler=False, controller_manager=False)
    async with (
        start(programs, tmp_path / "hub", only_api) as hub,
        start(programs, tmp_path / "east") as east,
        a_kube_federation(tmp_path, {"hub": hub, "east": east}) as federation,
        a_faulty_proxy(east, await agent_identity(east, "member")) as proxy,
    ):
        await hub.api.create(brokered(class_manifest()))
        await hub.api.create(slice_manifest(["gpu-0", "gpu-1"]))
        await east.add_node("n1")
        await east.api.create(closed_class())
        await federation.add_agent("east", proxy.kubeconfig, "--unschedulable-after", "1")
        await federation.start("broker", "hub", "east")
        yield federation, proxy
        federation.check()


async def held(plane: ControlPlane, name: str, namespace: str) -> list[str]:
    return devices_of(await plane.api.get("ResourceClaim", name, namespace))


async def test_a_pod_whose_watch_says_nothing_keeps_what_it_runs_with(proxy: tuple[Federation, FaultyProxy]) -> None:
    """As a watch does whose API server is ending, while another one binds the pod."""
    federation, faulty = proxy
    plane = federation.planes["east"]
    namespace = await plane.add_namespace()
    await plane.api.create(claim_manifest("c", namespace=namespace))
    faulty.swallows = "/pods?"
    await plane.api.create(a_pod("p", namespace, "c", **SOMEWHERE))
    # The agent lists pods anew, and the watch after that is silent.
    await plane.api.until("Pod", "p", namespace, unscheduled("Unschedulable"))
    await faulty.list_again("pods")
    await plane.api.until("ResourceClaim", "c", namespace, devices_of)
    await plane.add_node("n2", {"room": "enough"})
    await plane.api.until("Pod", "p", namespace, is_bound)

    async def has_failed() -> bool:
        async with connect_to(federation.nats) as connection:
            batches = [batch async for batch in entries_of(connection, ledger_stream("main", 0))]
        entries = [decode_entry(message.payload) for batch in batches for message in batch]
        outcomes = [each for each in entries if isinstance(each, OutcomeRecorded)]
        return any(each.outcome == "Failed" and "has a node" in each.message for each in outcomes)

    await wait_for(has_failed)
    assert await held(plane, "c", namespace)


async def test_a_pod_that_is_being_deleted_keeps_what_it_runs_with(proxy: tuple[Federation, FaultyProxy]) -> None:
    federation, _ = proxy
    plane = federation.planes["east"]
    namespace = await plane.add_namespace()
    await plane.api.create(claim_manifest("c", namespace=namespace))
    await plane.api.create(a_pod("old", namespace, "c", terminationGracePeriodSeconds=600))
    await plane.api.until("Pod", "old", namespace, is_bound)
    await plane.api.delete("Pod", "old", namespace)
    await plane.api.create(a_pod("new", namespace, "c", **SOMEWHERE))
    await plane.api.until("Pod", "new", namespace, unscheduled("Unschedulable"))
    # Of one that nobody runs with, it is asked back meanwhile.
    await plane.api.create(claim_manifest("other", namespace=namespace))
    await plane.api.create(a_pod("other", namespace, "other", **SOMEWHERE))
    await plane.api.until("ResourceClaim", "other", namespace, devices_of)
    await plane.api.until("ResourceClaim", "other", namespace, lambda claim: not devices_of(claim))
    old = await plane.api.get("Pod", "old", namespace)
    assert old["metadata"]["deletionTimestamp"]
    assert await held(plane, "c", namespace) == ["gpu-0"]
