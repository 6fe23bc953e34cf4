"""What every Kubernetes object carries, and the small types that several kinds share.

As in the API's own Go types, a field that is absent has its zero value ("" or an empty list) unless "absent" and "zero"
mean different things; then it is None. What must be present is the business of `schemas.resource.validate`.
Objects are frozen: change one with `msgspec.structs.replace`.
"""

from typing import Annotated

import msgspec
from msgspec import field

# A quantity as it was written, e.g. "16Gi"; `schemas.quantity` reads it. `schemas.resource.decode` accepts numbers too.
QuantityText = Annotated[str, msgspec.Meta(extra={"quantity": True})]
Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class ApiStruct(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A part of an object, with the API's own names for its fields when it is written."""


class OwnerReference(ApiStruct, frozen=True, kw_only=True):
    """The object that this one goes away with. Source: metav1.OwnerReference."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(ApiStruct, frozen=True, kw_only=True):
    """The parts of metav1.ObjectMeta that we read; others, like managedFields, are kept when an object is written back.

    resource_version: opaque; compare it for equality only.
    creation_timestamp, deletion_timestamp: RFC 3339 text, as the API server wrote it.
    """

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: Int64 = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    owner_references: list[OwnerReference] = field(default_factory=list)
    finalizers: list[str] = field(default_factory=list)


class Condition(ApiStruct, frozen=True, kw_only=True):
    """One condition of a status. Source: metav1.Condition."""

    type_: str = field(name="type", default="")
    status: str = ""
    observed_generation: Int64 = 0
    last_transition_time: str | None = None
    reason: str = ""
    message: str = ""


class NodeSelectorRequirement(ApiStruct, frozen=True, kw_only=True):
    """One test of a node's label, or of its name under matchFields."""

    key: str = ""
    operator: str = ""
    values: list[str] = field(default_factory=list)


class NodeSelectorTerm(ApiStruct, frozen=True, kw_only=True):
    """Requirements that must all hold; a term without any matches no node."""

    match_expressions: list[NodeSelectorRequirement] = field(default_factory=list)
    match_fields: list[NodeSelectorRequirement] = field(default_factory=list)


class NodeSelector(ApiStruct, frozen=True, kw_only=True):
    """Terms of which one must hold. Source: corev1.NodeSelector."""

    node_selector_terms: list[NodeSelectorTerm] = field(default_factory=list)
