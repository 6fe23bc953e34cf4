"""What this release of Kubernetes has on and serves where nobody says otherwise."""

import re

import pytest

from tests.controlplane.api import StatusError
from tests.controlplane.plane import ControlPlane

pytestmark = pytest.mark.anyio

RELEASE = "v1.37"
# The gates of DRA and of what it stands on: (stage, on by default); a stage of "" is GA.
GATES = {
    "DRAAdminAccess": ("", True),
    "DRAConsumableCapacity": ("BETA", True),
    "DRADerivedAttributes": ("ALPHA", False),
    "DRADeviceBindingConditions": ("BETA", True),
    "DRADeviceCompatibilityGroups": ("ALPHA", False),
    "DRADeviceTaintRules": ("", True),
    "DRADeviceTaints": ("", True),
    "DRAExtendedResource": ("", True),
    "DRAFractionalCapacityRange": ("BETA", False),
    "DRAListTypeAttributes": ("ALPHA", False),
    "DRANodeAllocatableResources": ("ALPHA", False),
    "DRAOptionalNodeOperations": ("ALPHA", False),
    "DRAPartitionableDevices": ("BETA", True),
    "DRAPartitionableDevicesType": ("ALPHA", False),
    "DRAPrioritizedList": ("", True),
    "DRAResourceClaimDeviceStatus": ("", True),
    "DRAResourceClaimGranularStatusAuthorization": ("BETA", True),
    "DRAResourcePoolStatus": ("ALPHA", False),
    "DRASchedulerFilterTimeout": ("BETA", True),
    "DRAWorkloadResourceClaims": ("BETA", False),
    "DynamicResourceAllocation": ("", True),
    "GenericWorkload": ("BETA", False),
    "WatchList": ("BETA", True),
}


@pytest.fixture
async def release(plane: ControlPlane) -> None:
    """The facts below are those of one release; KUBEBUILDER_ASSETS may be of another."""
    version = (await plane.api.call("GET", "/version"))["gitVersion"]
    if not version.startswith(f"{RELEASE}."):
        pytest.skip(f"the control plane is {version}, these facts are those of {RELEASE}")


async def test_the_gates_that_are_on(plane: ControlPlane, release: None) -> None:
    """A gate of DRA that is new, gone, or changed is read about before the agent meets it."""
    line = re.compile(r'^kubernetes_feature_enabled\{name="([^"]+)",stage="([^"]*)"\} ([01])$', re.MULTILINE)
    found = {name: (stage, on == "1") for name, stage, on in line.findall(await plane.api.text("/metrics"))}
    assert {name: gate for name, gate in found.items() if name.startswith("DRA") or name in GATES} == GATES


async def test_the_apis_that_are_served(plane: ControlPlane, release: None) -> None:
    group = await plane.api.call("GET", "/apis/resource.k8s.io")
    assert [version["version"] for version in group["versions"]] == ["v1"]
    with pytest.raises(StatusError) as caught:
        await plane.api.call("GET", "/apis/resource.k8s.io/v1beta1/resourceclaims")
    assert caught.value.code == 404
    resources = (await plane.api.call("GET", "/apis/resource.k8s.io/v1"))["resources"]
    assert {resource["name"] for resource in resources} == {
        "deviceclasses",
        "devicetaintrules",
        "devicetaintrules/status",
        "resourceclaims",
        "resourceclaims/status",
        "resourceclaimtemplates",
        "resourceslices",
    }
