"""What kube-scheduler and kube-controller-manager do with allocations from outside, on which the agent rests."""

import signal
from typing import Any

import aiohttp
import anyio
import pytest

from cluster_agent.mirror.tracked import DELETE_PROTECTION
from tests.cluster_agent.objects import (
    a_raw_claim,
    a_raw_pod,
    an_allocation,
    consumer_of,
    with_metadata,
    with_status,
)
from tests.controlplane.api import Object, wait_for
from tests.controlplane.fixture import StartPlane
from tests.controlplane.plane import ControlPlane
from tests.kubernetes.pods import is_bound, unscheduled

pytestmark = pytest.mark.anyio

NOWHERE = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["nowhere"]}]}]}
WITHOUT_TIMESTAMP = {"devices": an_allocation()["devices"]}


async def an_allocated_claim(
    plane: ControlPlane, namespace: str, allocation: Object, *, name: str = "c", **status: Any
) -> Object:
    claim = await a_protected_claim(plane, namespace, name=name)
    return await plane.api.put_status(with_status(claim, allocation=allocation, **status))


async def a_protected_claim(plane: ControlPlane, namespace: str, *, name: str = "c") -> Object:
    return await plane.api.create(a_raw_claim(name, namespace=namespace, finalizers=[DELETE_PROTECTION]))


async def test_a_pod_is_bound_when_its_claim_has_an_allocation_with_a_timestamp(
    plane: ControlPlane, namespace: str
) -> None:
    await plane.api.create(a_raw_pod(namespace=namespace, claim="c"))
    await an_allocated_claim(plane, namespace, an_allocation())
    pod = await plane.api.until("Pod", "p", namespace, is_bound)
    claim = await plane.api.get("ResourceClaim", "c", namespace)
    assert claim["status"] == {"allocation": an_allocation(), "reservedFor": [consumer_of(pod)]}


async def test_without_a_timestamp_it_never_is(plane: ControlPlane, namespace: str) -> None:
    """The scheduler fills the timestamp in, and the API server refuses that."""
    await an_allocated_claim(plane, namespace, WITHOUT_TIMESTAMP)
    await plane.api.create(a_raw_pod(namespace=namespace, claim="c"))
    await plane.api.until("Pod", "p", namespace, unscheduled("SchedulerError", "status.allocation"))
    # What comes after it goes on; it stays, however often it is tried again.
    await an_allocated_claim(plane, namespace, an_allocation("gpu-1"), name="c2")
    await plane.api.create(a_raw_pod("p2", namespace=namespace, claim="c2"))
    await plane.api.until("Pod", "p2", namespace, is_bound)
    assert not is_bound(await plane.api.get("Pod", "p", namespace))
    assert "reservedFor" not in (await plane.api.get("ResourceClaim", "c", namespace))["status"]


async def test_a_pod_whose_claim_is_reserved_for_it_is_bound_at_once(plane: ControlPlane, namespace: str) -> None:
    pod = await plane.api.create(a_raw_pod(namespace=namespace, claim="c"))
    claim = await an_allocated_claim(plane, namespace, an_allocation(), reservedFor=[consumer_of(pod)])
    await plane.api.until("Pod", "p", namespace, is_bound)
    assert (await plane.api.get("ResourceClaim", "c", namespace))["status"] == claim["status"]


async def test_the_scheduler_drops_an_allocation_that_no_node_can_reach(plane: ControlPlane, namespace: str) -> None:
    """Why a selector is written only where a device does not reach every node, and why the policy exists."""
    await an_allocated_claim(plane, namespace, {**an_allocation(), "nodeSelector": NOWHERE})
    await plane.api.create(a_raw_pod(namespace=namespace, claim="c"))
    await plane.api.until("ResourceClaim", "c", namespace, lambda claim: not claim.get("status"))
    await plane.api.until("Pod", "p", namespace, unscheduled("Unschedulable"))


async def test_a_zone_is_honoured(plane: ControlPlane, namespace: str) -> None:
    zone = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["b"]}
    selector = {"nodeSelectorTerms": [{"matchExpressions": [zone]}]}
    await an_allocated_claim(plane, namespace, {**an_allocation(), "nodeSelector": selector})
    await plane.api.create(a_raw_pod(namespace=namespace, claim="c"))
    pod = await plane.api.until("Pod", "p", namespace, is_bound)
    assert pod["spec"]["nodeName"] == "n2"


async def test_what_a_pod_used_is_freed_when_it_has_finished(plane: ControlPlane, namespace: str) -> None:
    await an_allocated_claim(plane, namespace, an_allocation())
    await plane.api.create(a_raw_pod(namespace=namespace, claim="c"))
    await plane.api.until("Pod", "p", namespace, is_bound)
    await plane.finish_pod("p", namespace)
    await plane.api.until("ResourceClaim", "c", namespace, lambda claim: not claim.get("status"))
    await plane.api.until("ResourceClaim", "c", namespace, lambda claim: "finalizers" not in claim["metadata"])


def a_gated_pod(name: str, namespace: str, claim: str) -> Object:
    """A pod that the scheduler does not try."""
    pod = a_raw_pod(name, namespace=namespace, claim=claim)
    pod["spec"]["schedulingGates"] = [{"name": "dragoman.dev/test"}]
    return pod


@pytest.mark.parametrize("reserved", [True, False])
async def test_a_pod_that_goes_before_it_is_scheduled_frees_only_what_was_reserved_for_it(
    plane: ControlPlane, namespace: str, reserved: bool
) -> None:
    """Why the agent writes reservedFor: without it the allocation stays for ever."""
    pod = await plane.api.create(a_gated_pod("p", namespace, "c"))
    status = {"reservedFor": [consumer_of(pod)]} if reserved else {}
    await plane.api.put_status(
        with_status(await a_protected_claim(plane, namespace), allocation=an_allocation(), **status)
    )
    await plane.delete_pod("p", namespace)
    if reserved:
        await plane.api.until("ResourceClaim", "c", namespace, lambda claim: not claim.get("status"))
        return
    # A claim that is freed later shows that the controller has seen the pod go by then.
    other = await plane.api.create(a_gated_pod("p2", namespace, "c2"))
    await an_allocated_claim(plane, namespace, an_allocation("gpu-1"), name="c2", reservedFor=[consumer_of(other)])
    await plane.delete_pod("p2", namespace)
    await plane.api.until("ResourceClaim", "c2", namespace, lambda claim: not claim.get("status"))
    assert (await plane.api.get("ResourceClaim", "c", namespace))["status"] == {"allocation": an_allocation()}


async def test_our_finalizer_keeps_a_deleted_claim_until_we_have_seen_that_it_is_free(
    plane: ControlPlane, namespace: str
) -> None:
    claim = await an_allocated_claim(plane, namespace, an_allocation())
    held = await plane.api.put(with_metadata(claim, finalizers=[*claim["metadata"]["finalizers"], "dragoman.dev/held"]))
    await plane.api.delete("ResourceClaim", "c", namespace)
    freed = await plane.api.until("ResourceClaim", "c", namespace, lambda claim: not claim.get("status"))
    assert freed["metadata"]["uid"] == held["metadata"]["uid"]
    last = await plane.api.until(
        "ResourceClaim", "c", namespace, lambda claim: claim["metadata"]["finalizers"] == ["dragoman.dev/held"]
    )
    await plane.api.put(with_metadata(last, finalizers=[]))
    await plane.api.until_gone("ResourceClaim", "c", namespace)


async def test_after_a_restart_the_history_is_gone(start_plane: StartPlane) -> None:
    plane = await start_plane(scheduler=False, controller_manager=False)
    claim = await plane.api.create(a_raw_claim())
    await plane.api.put(with_metadata(claim, labels={"edited": "once"}))
    await plane.restart_apiserver()
    async with plane.api.watch("ResourceClaim", "", claim["metadata"]["resourceVersion"]) as events:
        event = await anext(events)
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


async def test_a_server_that_ends_leaves_its_watches_open_and_silent(start_plane: StartPlane) -> None:
    """Why an open watch is no sign of life."""
    plane = await start_plane(scheduler=False, controller_manager=False)
    claim = await plane.api.create(a_raw_claim())
    async with plane.api.watch("ResourceClaim", "", claim["metadata"]["resourceVersion"]) as events:
        await plane.api.put(with_metadata(claim, labels={"edited": "once"}))
        assert (await anext(events))["type"] == "MODIFIED"
        plane.apiserver.send_signal(signal.SIGTERM)

        async def refuses() -> bool:
            try:
                async with aiohttp.ClientSession() as session, session.get(plane.server, ssl=False):
                    return False
            except aiohttp.ClientConnectorError:
                return True

        await wait_for(refuses)
        with anyio.move_on_after(3) as waiting:
            event = await anext(events)
            raise AssertionError(f"a server that ends said {event}")
        assert waiting.cancelled_caught
        assert plane.apiserver.is_running
