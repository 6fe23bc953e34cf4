"""ResourceClaim and ResourceClaimTemplate: what a workload asks for, and what it was given."""

from typing import Any

import msgspec
from msgspec import field
from msgspec.structs import force_setattr

from schemas.resource.device import DeviceSelector, DeviceToleration, OpaqueDeviceConfiguration
from schemas.resource.meta import ApiStruct, Condition, Int64, NodeSelector, ObjectMeta, QuantityText


class CapacityRequirements(ApiStruct, frozen=True, kw_only=True):
    """How much capacity each device must provide, by qualified name. Source: KEP-5075."""

    requests: dict[str, QuantityText] = field(default_factory=dict)


class DeviceDerivedAttribute(ApiStruct, frozen=True, kw_only=True, gc=False):
    """An attribute computed for each device, for constraints to name. Source: KEP-6080."""

    name: str = ""
    expression: str = ""


class ExactDeviceRequest(ApiStruct, frozen=True, kw_only=True):
    """One request without alternatives.

    allocation_mode: ExactCount or All; absent means ExactCount; one that we do not know must be refused.
    count: of ExactCount; absent means 1. With All it stays 0.
    """

    device_class_name: str = ""
    selectors: list[DeviceSelector] = field(default_factory=list)
    allocation_mode: str = ""
    count: Int64 = 0
    admin_access: bool | None = None
    tolerations: list[DeviceToleration] = field(default_factory=list)
    capacity: CapacityRequirements | None = None
    derived_attributes: list[DeviceDerivedAttribute] = field(default_factory=list)

    def __post_init__(self) -> None:
        _default_allocation_mode(self)


class DeviceSubRequest(ApiStruct, frozen=True, kw_only=True):
    """One alternative of a request; like ExactDeviceRequest, without admin access. Source: KEP-4816."""

    name: str = ""
    device_class_name: str = ""
    selectors: list[DeviceSelector] = field(default_factory=list)
    allocation_mode: str = ""
    count: Int64 = 0
    tolerations: list[DeviceToleration] = field(default_factory=list)
    capacity: CapacityRequirements | None = None
    derived_attributes: list[DeviceDerivedAttribute] = field(default_factory=list)

    def __post_init__(self) -> None:
        _default_allocation_mode(self)


def _default_allocation_mode(request: ExactDeviceRequest | DeviceSubRequest) -> None:
    if not request.allocation_mode:
        force_setattr(request, "allocation_mode", "ExactCount")
    if request.allocation_mode == "ExactCount" and request.count == 0:
        force_setattr(request, "count", 1)


class DeviceRequest(ApiStruct, frozen=True, kw_only=True):
    """One entry of spec.devices.requests: exactly one of `exactly` and `first_available` is set.

    first_available: in order of preference; a result names the chosen one as "request/subrequest".
    """

    name: str = ""
    exactly: ExactDeviceRequest | None = None
    first_available: list[DeviceSubRequest] = field(default_factory=list)


class DeviceConstraint(ApiStruct, frozen=True, kw_only=True):
    """What must hold across the devices of several requests.

    requests: names, "request" or "request/subrequest"; empty means all of the claim.
    match_attribute, distinct_attribute: exactly one is set, with a fully qualified name.
    """

    requests: list[str] = field(default_factory=list)
    match_attribute: str | None = None
    distinct_attribute: str | None = None


class DeviceClaimConfiguration(ApiStruct, frozen=True, kw_only=True):
    """Configuration for the devices of some requests; no names means all of them."""

    requests: list[str] = field(default_factory=list)
    opaque: OpaqueDeviceConfiguration | None = None


class DeviceClaim(ApiStruct, frozen=True, kw_only=True):
    """The devices that a claim asks for."""

    requests: list[DeviceRequest] = field(default_factory=list)
    constraints: list[DeviceConstraint] = field(default_factory=list)
    config: list[DeviceClaimConfiguration] = field(default_factory=list)


class ResourceClaimSpec(ApiStruct, frozen=True, kw_only=True):
    """Immutable once the claim exists."""

    devices: DeviceClaim = field(default_factory=DeviceClaim)


class DeviceRequestAllocationResult(ApiStruct, frozen=True, kw_only=True):
    """One device, or share of one, that was allocated for a request.

    request: "request", or "request/subrequest" for an alternative.
    share_id: a lowercase UUID that tells shares of one device apart. Source, with consumed_capacity: KEP-5075.
    consumed_capacity: by qualified name.
    binding_conditions, binding_failure_conditions: copied from the device. Source: KEP-5007.
    skip_node_operations: copied from the slice. Source: KEP-5945.
    """

    request: str = ""
    driver: str = ""
    pool: str = ""
    device: str = ""
    admin_access: bool | None = None
    tolerations: list[DeviceToleration] = field(default_factory=list)
    binding_conditions: list[str] = field(default_factory=list)
    binding_failure_conditions: list[str] = field(default_factory=list)
    share_id: str | None = field(name="shareID", default=None)
    consumed_capacity: dict[str, QuantityText] = field(default_factory=dict)
    skip_node_operations: list[str] = field(default_factory=list)


class DeviceAllocationConfiguration(ApiStruct, frozen=True, kw_only=True):
    """Configuration that was in force when the devices were allocated.

    source: FromClass or FromClaim.
    requests: empty means all requests of the claim.
    """

    source: str = ""
    requests: list[str] = field(default_factory=list)
    opaque: OpaqueDeviceConfiguration | None = None


class DeviceAllocationResult(ApiStruct, frozen=True, kw_only=True):
    """Which devices were allocated, in the order of the requests, and their configuration."""

    results: list[DeviceRequestAllocationResult] = field(default_factory=list)
    config: list[DeviceAllocationConfiguration] = field(default_factory=list)


class AllocationResult(ApiStruct, frozen=True, kw_only=True):
    """What a claim was given; immutable until it is cleared.

    node_selector: where the devices can be used; None means everywhere.
    allocation_timestamp: RFC 3339; without it kube-scheduler never schedules the pod.
    """

    devices: DeviceAllocationResult = field(default_factory=DeviceAllocationResult)
    node_selector: NodeSelector | None = None
    allocation_timestamp: str | None = None


class ResourceClaimConsumerReference(ApiStruct, frozen=True, kw_only=True, gc=False):
    """A pod (resource "pods", no API group) or a pod group that may use the claim."""

    api_group: str = ""
    resource: str = ""
    name: str = ""
    uid: str = ""


class NetworkDeviceData(ApiStruct, frozen=True, kw_only=True):
    """How a network device can be reached. Source: KEP-4817."""

    interface_name: str = ""
    ips: list[str] = field(default_factory=list)
    hardware_address: str = ""


class AllocatedDeviceStatus(ApiStruct, frozen=True, kw_only=True):
    """What a driver reports about one allocated device. Source: KEP-4817.

    data: anything that the driver likes, at most 10 KiB.
    """

    driver: str = ""
    pool: str = ""
    device: str = ""
    share_id: str | None = field(name="shareID", default=None)
    conditions: list[Condition] = field(default_factory=list)
    data: Any = None
    network_data: NetworkDeviceData | None = None


class ResourceClaimStatus(ApiStruct, frozen=True, kw_only=True):
    """What became of a claim."""

    allocation: AllocationResult | None = None
    reserved_for: list[ResourceClaimConsumerReference] = field(default_factory=list)
    devices: list[AllocatedDeviceStatus] = field(default_factory=list)


class ResourceClaim(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A workload's request for devices."""

    api_version: str = "resource.k8s.io/v1"
    kind: str = "ResourceClaim"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: ResourceClaimSpec = field(default_factory=ResourceClaimSpec)
    status: ResourceClaimStatus = field(default_factory=ResourceClaimStatus)


class ResourceClaimTemplateSpec(ApiStruct, frozen=True, kw_only=True):
    """What the claims made from a template get: labels and annotations, and their spec."""

    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: ResourceClaimSpec = field(default_factory=ResourceClaimSpec)


class ResourceClaimTemplate(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """From which a claim is made for each pod that names it."""

    api_version: str = "resource.k8s.io/v1"
    kind: str = "ResourceClaimTemplate"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: ResourceClaimTemplateSpec = field(default_factory=ResourceClaimTemplateSpec)
