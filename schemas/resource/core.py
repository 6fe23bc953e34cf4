"""The parts of Pod, Node and Namespace that we read. Everything else in them is kept when they are written back."""

import msgspec
from msgspec import field

from schemas.resource.meta import ApiStruct, Condition, ObjectMeta, QuantityText


class ContainerClaim(ApiStruct, frozen=True, kw_only=True, gc=False):
    """A claim of the pod that a container uses; in the API corev1.ResourceClaim, a name that we need for another.

    name: of an entry in the pod's spec.resourceClaims.
    request: only the devices of this request; "" means all.
    """

    name: str = ""
    request: str = ""


class ResourceRequirements(ApiStruct, frozen=True, kw_only=True):
    """What a container needs; amounts by resource name."""

    claims: list[ContainerClaim] = field(default_factory=list)
    requests: dict[str, QuantityText] = field(default_factory=dict)
    limits: dict[str, QuantityText] = field(default_factory=dict)


class Container(ApiStruct, frozen=True, kw_only=True):
    """One container of a pod."""

    name: str = ""
    resources: ResourceRequirements = field(default_factory=ResourceRequirements)


class PodResourceClaim(ApiStruct, frozen=True, kw_only=True, gc=False):
    """A claim under the name that the pod's containers use; exactly one of the two sources is set."""

    name: str = ""
    resource_claim_name: str | None = None
    resource_claim_template_name: str | None = None


class PodSchedulingGate(ApiStruct, frozen=True, kw_only=True, gc=False):
    """A reason not to schedule the pod yet."""

    name: str = ""


class PodSchedulingGroup(ApiStruct, frozen=True, kw_only=True, gc=False):
    """The pod group that the pod is scheduled with."""

    pod_group_name: str | None = None


class PodSpec(ApiStruct, frozen=True, kw_only=True):
    """What we read of a pod's spec."""

    containers: list[Container] = field(default_factory=list)
    init_containers: list[Container] = field(default_factory=list)
    resource_claims: list[PodResourceClaim] = field(default_factory=list)
    node_name: str = ""
    scheduling_gates: list[PodSchedulingGate] = field(default_factory=list)
    scheduling_group: PodSchedulingGroup | None = None


class PodResourceClaimStatus(ApiStruct, frozen=True, kw_only=True, gc=False):
    """The claim that was made from a template for the pod.

    resource_claim_name: None where none had to be made.
    """

    name: str = ""
    resource_claim_name: str | None = None


class PodExtendedResourceClaimStatus(ApiStruct, frozen=True, kw_only=True):
    """The claim that kube-scheduler made for the pod's extended resources. Source: KEP-5004."""

    resource_claim_name: str = ""


class PodStatus(ApiStruct, frozen=True, kw_only=True):
    """What we read of a pod's status.

    phase: Pending, Running, Succeeded, Failed or Unknown; "" before the first kubelet or scheduler spoke.
    """

    phase: str = ""
    conditions: list[Condition] = field(default_factory=list)
    resource_claim_statuses: list[PodResourceClaimStatus] = field(default_factory=list)
    extended_resource_claim_status: PodExtendedResourceClaimStatus | None = None


class Pod(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A workload that consumes claims."""

    api_version: str = "v1"
    kind: str = "Pod"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: PodSpec = field(default_factory=PodSpec)
    status: PodStatus = field(default_factory=PodStatus)


class NodeStatus(ApiStruct, frozen=True, kw_only=True):
    """What we read of a node's status.

    declared_features: what its kubelet can do that others cannot. Source: KEP-5328.
    """

    declared_features: list[str] = field(default_factory=list)


class Node(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A machine of a cluster: its name and labels, for node selectors, and what its kubelet can do."""

    api_version: str = "v1"
    kind: str = "Node"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    status: NodeStatus = field(default_factory=NodeStatus)


class Namespace(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A namespace: its labels say who is charged and whether admin access is allowed."""

    api_version: str = "v1"
    kind: str = "Namespace"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
