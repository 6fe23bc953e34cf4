"""Manifests as one cluster that was heard completely: devices and classes into a world, claims into a list.

What cannot be used is a value beside the rest. Nothing is allocated here; that is in `allocate`.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from broker.allocation.reasons import Reason
from broker.allocation.requests import ADMIN_ACCESS_LABEL
from broker.world import observe
from broker.world.federation import Federation
from broker.world.keys import ClaimKey, ClaimUid, ClusterId
from broker.world.world import World
from cluster_agent.adapters.generated_claims import (
    POD_CLAIM_NAME,
    generated_claim,
    generated_name,
    template_references,
)
from cluster_agent.adapters.object_store import is_finished, key_of, pod_owner
from schemas.errors import DecodeError, FieldError, ManifestError
from schemas.manifests import Document, ManifestSet
from schemas.resource import (
    AllocationResult,
    DeviceClass,
    DeviceTaintRule,
    Namespace,
    Node,
    Pod,
    Resource,
    ResourceClaim,
    ResourceClaimTemplate,
    ResourceSlice,
)
from schemas.resource.decode import decode_object
from schemas.resource.untyped import as_dict
from schemas.resource.validate import (
    validate_claim,
    validate_class,
    validate_slice,
    validate_taint_rule,
    validate_template,
)

# How a pod asks for a device of a class without naming a claim. Source: KEP-5004.
_IMPLICIT_EXTENDED_RESOURCE = "deviceclass.resource.kubernetes.io/"
_NAMESPACED = {"ResourceClaim": "claim", "ResourceClaimTemplate": "template", "Pod": "pod"}


class InputClaim(msgspec.Struct, frozen=True):
    """A claim of the input, written there or made for a pod.

    claim: None where it cannot be tried, which `reason` and `message` explain, and where it need not be.
    allocation: that it has already; it is then a holder, whatever else may be wrong with it.
    """

    namespace: str
    name: str
    claim: ResourceClaim | None = None
    reason: str = ""
    message: str = ""
    allocation: AllocationResult | None = None

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class OfflineInput(msgspec.Struct, frozen=True):
    """What manifests say.

    claims: in the order of the input; a claim made for a pod stands where its pod does.
    problems: what cannot be read, or an API server would refuse. Everything else is in the world all the same.
    admin_namespaces: those that allow claims to ask for admin access.
    notices: what is right and yet not used, for people.
    pod_groups: how many PodGroups there are, which this release makes no claims for.
    """

    cluster: ClusterId
    world: World
    claims: list[InputClaim]
    admin_namespaces: frozenset[str]
    problems: list[ManifestError]
    notices: list[str]
    pod_groups: int


def read_input(found: ManifestSet, federation: Federation, cluster: ClusterId) -> OfflineInput:
    """Make a world of manifests.

    federation: `cluster` is the source of all its fabrics.
    """
    reader = _Reader(World(federation), cluster, list(found.errors))
    reader.read(found.documents)
    pod_groups = found.skipped.get("PodGroup", 0)
    if pod_groups:
        text = f"{pod_groups} PodGroup: claims of pod groups are not made here yet"
        reader.notices.append(f"{Reason.UNSUPPORTED_FEATURE}: {text}")
    if not reader.claims:
        passed_over = ", ".join(f"{count} {kind}" for kind, count in found.skipped.items())
        text = "the input has no ResourceClaim and no Pod that needs one"
        reader.notices.append(f"{text}; passed over: {passed_over}" if passed_over else text)
    admin_namespaces = frozenset(reader.admin_namespaces)
    return OfflineInput(
        cluster, reader.world, reader.claims, admin_namespaces, reader.problems, reader.notices, pod_groups
    )


def hold(world: World, cluster: ClusterId, claim: InputClaim, allocation: AllocationResult) -> None:
    """From here on the claim has these devices."""
    record = world.claim(ClaimKey(cluster, ClaimUid(str(claim))))  # names will do for UIDs: nothing is recreated here
    record.namespace, record.name = claim.namespace, claim.name
    world.show(record, observe.allocation_holds(allocation))


class _Item(NamedTuple):
    """An object of the input. found: itself, or why it cannot be read."""

    kind: str
    namespace: str
    name: str
    document: Document
    found: Resource | ManifestError


class _Reader:
    """Takes objects into a world; what cannot be used lands in `problems`."""

    def __init__(self, world: World, cluster: ClusterId, problems: list[ManifestError]) -> None:
        self.world = world
        self.world.inventory.labels_open = True
        self.problems = problems
        self.notices: list[str] = []
        self.claims: list[InputClaim] = []
        self.admin_namespaces: set[str] = set()
        self._cluster = cluster
        self._templates: dict[tuple[str, str], tuple[Document, str]] = {}  # the text: why it cannot be used
        self._written: set[tuple[str, str]] = set()  # claims, by namespace and name
        self._written_for: set[tuple[str, str, str]] = set()  # claims made for pods: namespace, pod, name in the pod

    def read(self, documents: Iterable[Document]) -> None:
        """Devices and classes first, for what an allocation means depends on them; then claims in their order."""
        items = list(self._items(documents))
        for item in items:
            self._take_in(item)
        for pool in self.world.inventory.all_pools():
            self.notices += [f"pool {pool.key} is not used: {pool.problem}"] if pool.problem else []
            self.notices += [
                f"ResourceSlice {name} of pool {pool.key} is older than generation {pool.generation} and is not used"
                for name in pool.obsolete
            ]
        for item in items:
            if item.kind == "ResourceClaim":
                self.claims.append(self._written_claim(item))
            elif isinstance(item.found, Pod) and not is_finished(item.document.raw):
                self.claims += self._claims_of(item, item.found)
        for claim in self.claims:
            if claim.allocation is not None:
                hold(self.world, self._cluster, claim, claim.allocation)

    def _items(self, documents: Iterable[Document]) -> Iterator[_Item]:
        """Each object once."""
        seen: dict[tuple[str, str, str], Document] = {}
        for document in documents:
            kind = document.raw["kind"]
            _, namespace, name = msgspec.structs.astuple(key_of(_NAMESPACED.get(kind, ""), document.raw))
            if not name:
                self.problems.append(document.error(FieldError("metadata.name", "every object needs a name here")))
                continue
            first = seen.setdefault((kind, namespace, name), document)
            if first is not document:
                if first.raw != document.raw:
                    text = f"this {kind} is in {first.path}:{first.line} already, with another content; that one counts"
                    self.problems.append(document.error(FieldError("metadata.name", text)))
                continue
            found: Resource | ManifestError
            try:
                found = document.decode()
            except ManifestError as error:
                self.problems.append(error)
                found = error
            yield _Item(kind, namespace, name, document, found)

    def _take_in(self, item: _Item) -> None:
        document = item.document
        match item.found:
            case ResourceSlice() as resource_slice:
                if not self._refusal(document, validate_slice(resource_slice)):
                    placed = observe.observe_slice(self.world, self._cluster, item.name, resource_slice)
                    self.notices += [placed.message] if placed.message else []
            case DeviceClass() as device_class:
                self._refusal(document, validate_class(device_class))
                observe.observe_class(self.world, self._cluster, device_class)  # even so: claims on it will say why
            case Namespace() as namespace if namespace.metadata.labels.get(ADMIN_ACCESS_LABEL) == "true":
                self.admin_namespaces.add(item.name)
            case Node() as node:
                observe.observe_node(self.world, self._cluster, node)
            case DeviceTaintRule() as rule:
                if not self._refusal(document, validate_taint_rule(rule)):
                    observe.observe_taint_rule(self.world, self._cluster, rule)
            case ResourceClaimTemplate() as template:
                refusal = self._refusal(document, validate_template(template))
                self._templates[item.namespace, item.name] = document, refusal
            case ManifestError() as error if item.kind == "ResourceClaimTemplate":
                self._templates[item.namespace, item.name] = document, str(error)
            case _ if item.kind == "ResourceClaim":
                self._written.add((item.namespace, item.name))
                owner = pod_owner(document.raw)
                pod_claim = as_dict(document.raw["metadata"].get("annotations")).get(POD_CLAIM_NAME)
                if owner and pod_claim:
                    self._written_for.add((item.namespace, str(owner["name"]), str(pod_claim)))

    def _refusal(self, document: Document, errors: Sequence[FieldError]) -> str:
        """Note what an API server would refuse; returns it as one text."""
        problems = [document.error(error) for error in errors]
        self.problems += problems
        return "; ".join(map(str, problems))

    def _written_claim(self, item: _Item) -> InputClaim:
        allocation = _allocation_of(item)
        if allocation is not None:
            return InputClaim(item.namespace, item.name, allocation=allocation)
        if not isinstance(item.found, ResourceClaim):
            return InputClaim(item.namespace, item.name, reason="Unreadable", message=str(item.found))
        if refusal := self._refusal(item.document, validate_claim(item.found)):
            return InputClaim(item.namespace, item.name, reason="InvalidClaim", message=refusal)
        return _to_allocate(item.found, item.namespace)

    def _claims_of(self, item: _Item, pod: Pod) -> Iterator[InputClaim]:
        """The claims that Kubernetes would make for a pod, except those that it has made already."""
        who, namespace, document = f"pod {item.namespace}/{item.name}", item.namespace, item.document
        metadata = {"uid": "", **document.raw["metadata"], "namespace": namespace}
        owner = {**document.raw, "metadata": metadata}
        for pod_claim, template_name in template_references(owner):
            name = generated_name(namespace, item.name, pod_claim)
            if (namespace, item.name, pod_claim) in self._written_for or (namespace, name) in self._written:
                continue
            if (namespace, template_name) not in self._templates:
                text = f"{who} needs a claim made from ResourceClaimTemplate {template_name}, which is not in the input"
                yield InputClaim(namespace, name, reason="UnknownClaimTemplate", message=text)
                continue
            template, refusal = self._templates[namespace, template_name]
            if refusal:
                yield InputClaim(namespace, name, reason="InvalidClaim", message=refusal)
                continue
            made = decode_object(generated_claim(template.raw, owner, pod_claim))
            assert isinstance(made, ResourceClaim)
            yield _to_allocate(made, namespace)
        for claim in pod.spec.resource_claims:
            if claim.resource_claim_name and (namespace, claim.resource_claim_name) not in self._written:
                self.notices.append(f"{who} uses ResourceClaim {claim.resource_claim_name}, which is not in the input")
        path = self._extended_resource(pod)
        if path and pod.status.extended_resource_claim_status is None:
            name = generated_name(namespace, item.name, "extended-resources")
            text = f"{path} of {who} is not supported by this release; name a claim in spec.resourceClaims instead"
            yield InputClaim(namespace, name, reason=Reason.UNSUPPORTED_FEATURE.value, message=text)

    def _extended_resource(self, pod: Pod) -> str | None:
        """The path of the first extended resource that stands for devices of a class."""
        declared = {each.spec.extended_resource_name for each in self.world.classes.values()}
        for place, containers in (("initContainers", pod.spec.init_containers), ("containers", pod.spec.containers)):
            for index, container in enumerate(containers):
                for kind, amounts in (
                    ("limits", container.resources.limits),
                    ("requests", container.resources.requests),
                ):
                    for name in amounts:
                        if name in declared or name.startswith(_IMPLICIT_EXTENDED_RESOURCE):
                            return f"spec.{place}[{index}].resources.{kind}[{name}]"
        return None


def _to_allocate(claim: ResourceClaim, namespace: str) -> InputClaim:
    metadata = msgspec.structs.replace(claim.metadata, namespace=namespace)
    return InputClaim(namespace, metadata.name, claim=msgspec.structs.replace(claim, metadata=metadata))


def _allocation_of(item: _Item) -> AllocationResult | None:
    """A claim's allocation, also where only its status can be read: its devices are not free."""
    claim = item.found
    if isinstance(claim, ManifestError):
        raw = item.document.raw
        try:
            claim = decode_object({name: raw.get(name) for name in ("apiVersion", "kind", "status")})
        except DecodeError:
            return None
    assert isinstance(claim, ResourceClaim)
    return claim.status.allocation
