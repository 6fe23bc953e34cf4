"""Our types against resource.k8s.io/v1 of Kubernetes 1.37, as k8s.io/api, resource/v1/types.go, has it."""

import msgspec
import pytest

from schemas import resource

_FIELDS = {
    "ResourceSlice": "apiVersion kind metadata spec",
    "ResourceSliceSpec": "driver pool nodeName nodeSelector allNodes devices perDeviceNodeSelection sharedCounters "
    "partitionTypeAttribute skipNodeOperations",
    "CounterSet": "name counters",
    "ResourcePool": "name generation resourceSliceCount",
    "Device": "name attributes capacity consumesCounters nodeName nodeSelector allNodes taints bindsToNode "
    "bindingConditions bindingFailureConditions allowMultipleAllocations nodeAllocatableResources",
    "NodeAllocatableResource": "mapping overhead",
    "NodeAllocatableMapping": "capacityKey capacityMultiplier deviceMultiplier",
    "NodeAllocatableOverhead": "perPod perContainer",
    "DeviceCounterConsumption": "counterSet counters compatibilityGroups",
    "DeviceCapacity": "value requestPolicy",
    "Counter": "value",
    "CapacityRequestPolicy": "default validValues validRange",
    "CapacityRequestPolicyRange": "min max step",
    "DeviceAttribute": "int bool string version ints bools strings versions",
    "DeviceTaint": "key value effect timeAdded",
    "DeviceTaintRule": "apiVersion kind metadata spec status",
    "DeviceTaintRuleSpec": "deviceSelector taint",
    "DeviceTaintSelector": "driver pool device",
    "DeviceTaintRuleStatus": "conditions",
    "ResourceClaim": "apiVersion kind metadata spec status",
    "ResourceClaimSpec": "devices",
    "DeviceClaim": "requests constraints config",
    "DeviceRequest": "name exactly firstAvailable",
    "ExactDeviceRequest": "deviceClassName selectors allocationMode count adminAccess tolerations capacity "
    "derivedAttributes",
    "DeviceSubRequest": "name deviceClassName selectors allocationMode count tolerations capacity derivedAttributes",
    "CapacityRequirements": "requests",
    "DeviceSelector": "cel",
    "CELDeviceSelector": "expression",
    "DeviceDerivedAttribute": "name expression",
    "DeviceConstraint": "requests matchAttribute distinctAttribute",
    "DeviceClaimConfiguration": "requests opaque",
    "OpaqueDeviceConfiguration": "driver parameters",
    "DeviceToleration": "key operator value effect tolerationSeconds",
    "ResourceClaimStatus": "allocation reservedFor devices",
    "ResourceClaimConsumerReference": "apiGroup resource name uid",
    "AllocationResult": "devices nodeSelector allocationTimestamp",
    "DeviceAllocationResult": "results config",
    "DeviceRequestAllocationResult": "request driver pool device adminAccess tolerations bindingConditions "
    "bindingFailureConditions shareID consumedCapacity skipNodeOperations",
    "DeviceAllocationConfiguration": "source requests opaque",
    "DeviceClass": "apiVersion kind metadata spec",
    "DeviceClassSpec": "selectors config extendedResourceName",
    "DeviceClassConfiguration": "opaque",
    "ResourceClaimTemplate": "apiVersion kind metadata spec",
    "ResourceClaimTemplateSpec": "metadata spec",
    "AllocatedDeviceStatus": "driver pool device shareID conditions data networkData",
    "NetworkDeviceData": "interfaceName ips hardwareAddress",
    # meta/v1 and core/v1, whole
    "Condition": "type status observedGeneration lastTransitionTime reason message",
    "OwnerReference": "apiVersion kind name uid controller blockOwnerDeletion",
    "NodeSelector": "nodeSelectorTerms",
    "NodeSelectorTerm": "matchExpressions matchFields",
    "NodeSelectorRequirement": "key operator values",
}
# What we read of bigger types; the rest is only kept.
_PARTS = {
    "ObjectMeta",
    "Pod",
    "PodSpec",
    "PodStatus",
    "Container",
    "ContainerClaim",
    "ResourceRequirements",
    "PodResourceClaim",
    "PodResourceClaimStatus",
    "PodExtendedResourceClaimStatus",
    "PodSchedulingGate",
    "PodSchedulingGroup",
    "Node",
    "NodeStatus",
    "Namespace",
}
_STRUCTS = {name: item for name in resource.__all__ if isinstance(item := getattr(resource, name), type)}


@pytest.mark.parametrize("name", sorted(_FIELDS))
def test_has_every_field_of_the_api_and_no_other(name: str) -> None:
    fields = {field.encode_name for field in msgspec.structs.fields(_STRUCTS[name])}
    assert fields == set(_FIELDS[name].split())


def test_every_type_is_compared_or_said_to_be_a_part() -> None:
    assert set(_STRUCTS) == set(_FIELDS) | _PARTS


@pytest.mark.parametrize("name", sorted(_STRUCTS))
def test_every_field_may_be_absent(name: str) -> None:
    assert msgspec.convert({}, _STRUCTS[name]) == _STRUCTS[name]()
