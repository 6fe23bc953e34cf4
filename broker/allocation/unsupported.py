"""What no allocator of our version can do. It is refused by name, never looked away from.

In a claim, modes and kinds of requests, selectors and constraints that a later Kubernetes may bring: it is refused.
In a slice, what an API server would not take, and nodes where there are none: the device is ruled out.
What nodeAllocatableResources say is not looked at, as upstream's allocator does not: counting a node's own CPU and
memory is the business of the scheduler that places the pod.
"""

from broker.world.keys import PoolKey
from schemas.resource import Device, DeviceSubRequest, ExactDeviceRequest, ResourceClaim, ResourceSlice

ALLOCATION_MODES = ("ExactCount", "All")


def unsupported_in_claim(claim: ResourceClaim) -> str | None:
    """The path of the first field that we cannot honour."""
    for index, request in enumerate(claim.spec.devices.requests):
        path = f"spec.devices.requests[{index}]"
        if request.exactly is None and not request.first_available:
            return path
        if request.exactly is not None and (found := _unsupported_in_request(request.exactly, f"{path}.exactly")):
            return found
        for sub_index, sub_request in enumerate(request.first_available):
            if found := _unsupported_in_request(sub_request, f"{path}.firstAvailable[{sub_index}]"):
                return found
    for index, constraint in enumerate(claim.spec.devices.constraints):
        if constraint.match_attribute is None and constraint.distinct_attribute is None:
            return f"spec.devices.constraints[{index}]"
    return None


def _unsupported_in_request(request: ExactDeviceRequest | DeviceSubRequest, path: str) -> str | None:
    if request.allocation_mode not in ALLOCATION_MODES:
        return f"{path}.allocationMode"
    for index, selector in enumerate(request.selectors):
        if selector.cel is None:
            return f"{path}.selectors[{index}]"
    return None


def unsupported_in_slice(pool: PoolKey, slice_: ResourceSlice) -> str | None:
    """The path of the first field that keeps us from using any device of the slice."""
    spec = slice_.spec
    if spec.node_selector is not None and len(spec.node_selector.node_selector_terms) > 1:
        return "spec.nodeSelector.nodeSelectorTerms"
    if spec.node_name and pool.scope.startswith("fabric/"):
        return "spec.nodeName (a device of a fabric belongs to no node)"
    return None


def unsupported_in_device(pool: PoolKey, slice_: ResourceSlice, index: int) -> str | None:
    """The path of the first field that keeps us from using the device."""
    device: Device = slice_.spec.devices[index]
    path = f"spec.devices[{index}]"
    if slice_.spec.per_device_node_selection:
        if device.node_selector is not None and len(device.node_selector.node_selector_terms) > 1:
            return f"{path}.nodeSelector.nodeSelectorTerms"
        if device.node_name and pool.scope.startswith("fabric/"):
            return f"{path}.nodeName (a device of a fabric belongs to no node)"
    return None
