"""ResourceSlice: what a driver publishes about the devices of one pool, or of a part of it."""

import msgspec
from msgspec import field

from schemas.resource.device import DeviceTaint
from schemas.resource.meta import ApiStruct, Int64, NodeSelector, ObjectMeta, QuantityText


class ResourcePool(ApiStruct, frozen=True, kw_only=True, gc=False):
    """The pool that a slice is a part of.

    generation: the driver's counter; only slices of the highest one count.
    resource_slice_count: how many slices of this generation make the pool complete.
    """

    name: str = ""
    generation: Int64 = 0
    resource_slice_count: Int64 = 0


class Counter(ApiStruct, frozen=True, kw_only=True, gc=False):
    """An amount of something that devices share. Source: KEP-4815."""

    value: QuantityText = "0"


class CounterSet(ApiStruct, frozen=True, kw_only=True):
    """Counters that the devices of a pool draw from, by name."""

    name: str = ""
    counters: dict[str, Counter] = field(default_factory=dict)


class DeviceCounterConsumption(ApiStruct, frozen=True, kw_only=True):
    """What a device takes from one counter set as long as it is allocated.

    compatibility_groups: devices that draw from the set at the same time must share a group. Source: KEP-5963.
    """

    counter_set: str = ""
    counters: dict[str, Counter] = field(default_factory=dict)
    compatibility_groups: list[str] = field(default_factory=list)


class DeviceAttribute(ApiStruct, frozen=True, kw_only=True, gc=False):
    """One property of a device; exactly one field is set. Lists: KEP-5491."""

    int_: Int64 | None = field(name="int", default=None)
    bool_: bool | None = field(name="bool", default=None)
    string: str | None = None
    version: str | None = None
    ints: list[Int64] | None = None
    bools: list[bool] | None = None
    strings: list[str] | None = None
    versions: list[str] | None = None


class CapacityRequestPolicyRange(ApiStruct, frozen=True, kw_only=True, gc=False):
    """From where to where, and in which steps, a capacity can be requested.

    min_, max_, step: None if not limited in that way; the API requires min.
    """

    min_: QuantityText | None = field(name="min", default=None)
    max_: QuantityText | None = field(name="max", default=None)
    step: QuantityText | None = None


class CapacityRequestPolicy(ApiStruct, frozen=True, kw_only=True, gc=False):
    """How much of a shared device's capacity one request consumes. Source: KEP-5075.

    default: consumed where the request names no amount.
    valid_values, valid_range: at most one is set; a request is rounded up to the next valid amount.
    """

    default: QuantityText | None = None
    valid_values: list[QuantityText] = field(default_factory=list)
    valid_range: CapacityRequestPolicyRange | None = None


class DeviceCapacity(ApiStruct, frozen=True, kw_only=True, gc=False):
    """An amount that a device has."""

    value: QuantityText = "0"
    request_policy: CapacityRequestPolicy | None = None


class NodeAllocatableMapping(ApiStruct, frozen=True, kw_only=True, gc=False):
    """How a device counts as a resource of its node. Source: KEP-5517."""

    capacity_key: str | None = None
    capacity_multiplier: QuantityText | None = None
    device_multiplier: QuantityText | None = None


class NodeAllocatableOverhead(ApiStruct, frozen=True, kw_only=True, gc=False):
    """What using a device costs besides, on its node. Source: KEP-5517."""

    per_pod: QuantityText | None = None
    per_container: QuantityText | None = None


class NodeAllocatableResource(ApiStruct, frozen=True, kw_only=True, gc=False):
    """What a device takes of one resource of its node (cpu, memory, hugepages). Source: KEP-5517."""

    mapping: NodeAllocatableMapping | None = None
    overhead: NodeAllocatableOverhead | None = None


class Device(ApiStruct, frozen=True, kw_only=True):
    """One device of a slice.

    attributes, capacity: by qualified name; a name without a domain belongs to the slice's driver.
    node_name, node_selector, all_nodes: set only where the slice says perDeviceNodeSelection.
    binds_to_node: the allocation is then pinned to the chosen node. Source, with both condition lists: KEP-5007.
    allow_multiple_allocations: shares of it can be allocated. Source: KEP-5075.
    """

    name: str = ""
    attributes: dict[str, DeviceAttribute] = field(default_factory=dict)
    capacity: dict[str, DeviceCapacity] = field(default_factory=dict)
    consumes_counters: list[DeviceCounterConsumption] = field(default_factory=list)
    node_name: str | None = None
    node_selector: NodeSelector | None = None
    all_nodes: bool | None = None
    taints: list[DeviceTaint] = field(default_factory=list)
    binds_to_node: bool | None = None
    binding_conditions: list[str] = field(default_factory=list)
    binding_failure_conditions: list[str] = field(default_factory=list)
    allow_multiple_allocations: bool | None = None
    node_allocatable_resources: dict[str, NodeAllocatableResource] = field(default_factory=dict)


class ResourceSliceSpec(ApiStruct, frozen=True, kw_only=True):
    """Devices of one pool, and the nodes that reach them.

    node_name, node_selector, all_nodes, per_device_node_selection: exactly one says where the devices can be used.
    shared_counters: in slices of their own, without devices. Source: KEP-4815.
    partition_type_attribute: the attribute that names a partition's type, for reports only.
    skip_node_operations: what no node has to do for these devices. Source: KEP-5945.
    """

    driver: str = ""
    pool: ResourcePool = field(default_factory=ResourcePool)
    node_name: str | None = None
    node_selector: NodeSelector | None = None
    all_nodes: bool | None = None
    devices: list[Device] = field(default_factory=list)
    per_device_node_selection: bool | None = None
    shared_counters: list[CounterSet] = field(default_factory=list)
    partition_type_attribute: str | None = None
    skip_node_operations: list[str] = field(default_factory=list)


class ResourceSlice(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of a pool, as its driver published it."""

    api_version: str = "resource.k8s.io/v1"
    kind: str = "ResourceSlice"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: ResourceSliceSpec = field(default_factory=ResourceSliceSpec)
