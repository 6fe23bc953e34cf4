"""What DeviceTaintRules do in a cluster that has no ResourceSlice of the devices, on which the agent rests."""

from typing import Any

import pytest

from tests.cluster_agent.objects import a_raw_claim, a_raw_pod, an_allocation, with_status
from tests.controlplane.api import Object
from tests.controlplane.plane import ControlPlane
from tests.kubernetes.pods import is_bound
from tests.manifests import a_manifest

pytestmark = pytest.mark.anyio

KEY = "example.com/broken"


def a_rule(name: str, device: str, effect: str, **taint: Any) -> Object:
    """A rule for a device as `an_allocation` names it."""
    (result,) = an_allocation(device)["devices"]["results"]
    selector = {key: result[key] for key in ("driver", "pool", "device")}
    return a_manifest("DeviceTaintRule", name, {"deviceSelector": selector, "taint": {"key": KEY, "effect": effect}})


async def a_bound_pod(plane: ControlPlane, namespace: str, name: str, device: str, **result: Any) -> None:
    """A pod that runs with this device, of which no slice exists. result: more of what its claim's allocation says."""
    allocation = an_allocation(device)
    allocation["devices"]["results"][0] |= result
    claim = await plane.api.create(a_raw_claim(name, namespace=namespace))
    await plane.api.put_status(with_status(claim, allocation=allocation))
    await plane.api.create(a_raw_pod(name, namespace=namespace, claim=name))
    await plane.api.until("Pod", name, namespace, is_bound)


async def test_a_rule_that_is_no_execute_ends_the_pods_of_a_device_without_a_slice(
    plane: ControlPlane, namespace: str
) -> None:
    """It is matched against the claim's allocation. So the broker's taints can end pods where no inventory is."""
    assert await plane.api.list_all("ResourceSlice") == []
    first, other, kept = (plane.unique_name("gpu") for _ in range(3))
    await a_bound_pod(plane, namespace, "other", other)
    await a_bound_pod(plane, namespace, "first", first)
    tolerates = {"tolerations": [{"key": KEY, "operator": "Exists", "effect": "NoExecute"}]}
    await a_bound_pod(plane, namespace, "kept", kept, **tolerates)

    await plane.api.create(a_rule(kept, kept, "NoExecute"))
    await plane.api.create(a_rule(other, other, "NoSchedule"))
    await plane.api.create(a_rule(first, first, "NoExecute"))
    pod = await plane.api.until("Pod", "first", namespace, lambda pod: "deletionTimestamp" in pod["metadata"])
    assert ("DisruptionTarget", "DeletionByDeviceTaintManager") in {
        (condition["type"], condition.get("reason")) for condition in pod["status"]["conditions"]
    }
    (rule,) = [each for each in await plane.api.list_all("DeviceTaintRule") if each["metadata"]["name"] == first]
    assert rule["spec"]["taint"]["timeAdded"], "the API server adds it: no drift of ours"
    for name in ("other", "kept"):
        pod = await plane.api.get("Pod", name, namespace)
        assert "deletionTimestamp" not in pod["metadata"]
    for name in (first, other, kept):
        await plane.api.delete("DeviceTaintRule", name)


async def test_a_rule_does_not_keep_an_allocation_from_outside_off(plane: ControlPlane, namespace: str) -> None:
    """Only the scheduler's own choice heeds NoSchedule: where there is no slice such a rule does nothing."""
    device = plane.unique_name("gpu")
    await plane.api.create(a_rule(device, device, "NoSchedule"))
    await a_bound_pod(plane, namespace, "p", device)
    await plane.api.delete("DeviceTaintRule", device)
