"""From what files say to what a store holds, as far as finalizers and immutable fields allow.

Level-triggered: each run compares everything that should exist with everything there is, so it does not matter how the
files came to be what they are. No clock, no disk: `manifest_cluster` reads the files and keeps the result.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from cluster_agent.adapters.generated_claims import POD_CLAIM_NAME, generated_claim, generated_name, template_references
from cluster_agent.adapters.manifest_files import Manifest, ManifestFile, digest_of, marked
from cluster_agent.adapters.object_store import (
    ObjectKey,
    ObjectStore,
    StoredObject,
    allocation_of,
    is_deleting,
    is_finished,
    key_of,
    pod_owner,
    same_spec,
)
from cluster_agent.ports import ApiObject
from schemas.errors import ManifestError
from schemas.resource.untyped import as_dict, as_list


class Origin(msgspec.Struct, frozen=True):
    """What the files said of an object when it was last written; what they do not say any more has to go.

    source: the file. labels, annotations, finalizers: by key; others in the object are somebody else's.
    """

    source: str
    digest: str
    labels: list[str]
    annotations: list[str]
    finalizers: list[str]


class Reconciler:
    """Keeps a store as files say.

    origins: for every object in the store, what the files said of it last.
    problems: what is wrong with the files, and what they say that could not be done.
    waiting: pods whose claims cannot be made yet.
    touched: objects of which something changed that is not in the object, so that no event tells of it.
    """

    def __init__(self, store: ObjectStore, origins: dict[ObjectKey, Origin]) -> None:
        """origins: of the objects that the store has from an earlier life."""
        self._store = store
        self.origins = origins
        self.problems: list[ManifestError] = []
        self.waiting: list[ManifestError] = []
        self.touched: set[ObjectKey] = set()
        self._pods: dict[ObjectKey, Manifest] = {}
        self._claims: dict[ObjectKey, Manifest] = {}  # all that should exist, made for pods too
        self._kept: set[ObjectKey] = set()  # from files that are broken now
        self._left_alone: set[ObjectKey] = set()  # claims of pods for which none would be made any more
        self._pod_claims: dict[tuple[ObjectKey, str], ObjectKey] = {}  # the claim by pod and name in the pod

    def is_missing(self, key: ObjectKey) -> bool:
        """Whether a claim should exist and does not: its name has become free."""
        return key in self._claims and key not in self._store.objects

    def reconcile(self, files: Iterable[ManifestFile]) -> None:
        """Create, change and delete until the store is what the files say."""
        files = list(files)
        self.problems, self.waiting = [], []
        desired = self._desired(files)
        # An editor's half-written file must not delete claims: what it does not have now it may have in a moment.
        broken = {file.source for file in files if file.is_broken}
        self._kept = {key for key in self._store.objects if self.origins[key].source in broken}
        desired = {
            key: manifest
            for key, manifest in desired.items()
            if key not in self._kept or manifest.source == self.origins[key].source
        }
        for key in sorted(self._store.objects):
            if key.kind != "claim" and key not in desired and key not in self._kept:
                self._store.delete(key.kind, key.namespace, key.name)
        for key, manifest in desired.items():
            if key.kind != "claim":
                self._put(manifest)
        self._pods = {key: manifest for key, manifest in desired.items() if key.kind == "pod"}
        self._claims = {key: manifest for key, manifest in desired.items() if key.kind == "claim"}
        self._claims.update(self._generated())
        wanted = self._claims.keys() | self._left_alone | self._kept
        for key in sorted(self._store.objects):
            if key.kind == "claim" and key not in wanted:
                self._store.delete(key.kind, key.namespace, key.name)
        for manifest in self._claims.values():
            self._put_claim(manifest)
        self._store.release_all_unused()
        for manifest in self._claims.values():
            if manifest.key not in self._store.objects:
                self._put_claim(manifest)  # its name has just become free
        for key in sorted(key for key in self._store.objects if key.kind == "pod"):
            self._name_claims(key)

    def _desired(self, files: list[ManifestFile]) -> dict[ObjectKey, Manifest]:
        desired: dict[ObjectKey, Manifest] = {}
        for file in files:
            self.problems += file.problems
            for manifest in file.manifests:
                first = desired.setdefault(manifest.key, manifest)
                if first is not manifest:
                    name = "/".join(part for part in (manifest.key.namespace, manifest.key.name) if part)
                    self.problems.append(
                        manifest.problem(f"{manifest.key.kind} {name} is in {first.place} already; this one is ignored")
                    )
        return desired

    def _put(self, manifest: Manifest) -> None:
        key = manifest.key
        origin = _origin(manifest)
        known = self.origins.get(key)
        self._note(key, origin, manifest.error)
        if key not in self._store.objects:
            self._store.create(key.kind, self._with_claim_names(manifest.object, manifest.error), manifest.error)
        elif known is None or known.digest != origin.digest:
            self._store.replace(key.kind, self._with_claim_names(manifest.object, manifest.error), manifest.error)

    def _put_claim(self, manifest: Manifest) -> None:
        """Create a claim, or change what may change in it. What holds nothing yet is made anew where it may not."""
        key = manifest.key
        manifest = self._localized(manifest)
        origin, known = _origin(manifest), self.origins.get(key)
        stored = self._store.objects.get(key)
        if stored is not None:
            if is_deleting(stored.object):
                return  # The name becomes free with the last finalizer.
            if known is not None and known.digest == origin.digest:
                self._note(key, origin, manifest.error)
                return
            if not stored.error and not manifest.error and same_spec(stored.object, manifest.object):
                metadata = _merged_metadata(stored.object, manifest.object, self.origins[key])
                self._note(key, origin, "")
                self._store.update_claim({**stored.object, "metadata": metadata})
                return
            if not stored.error and allocation_of(stored.object) is not None:
                # The pod's template may change at any time; claims made from it before stay as they are.
                if manifest.document is not None:
                    self.problems.append(
                        manifest.problem(
                            "a claim's spec cannot be changed, and this one holds devices. To let go of them, remove "
                            "it from the files and add it again",
                            field="spec",
                        )
                    )
                return
            self._store.delete(key.kind, key.namespace, key.name)
            if key in self._store.objects:
                return
        self._note(key, origin, manifest.error)
        self._store.create(key.kind, manifest.object, manifest.error)

    def _note(self, key: ObjectKey, origin: Origin, error: str) -> None:
        stored = self._store.objects.get(key)
        if stored is not None and (self.origins.get(key) != origin or stored.error != error):
            self.touched.add(key)
            if self.origins[key].digest == origin.digest:
                self._store.note_error(key, error)  # its line may be another one now
        self.origins[key] = origin

    def _localized(self, manifest: Manifest) -> Manifest:
        """A claim that was exported together with its pods, with the UIDs that these have here.

        Owners and consumers that are not here cannot be told from those that are gone; they would take the claim along.
        """
        obj = manifest.object
        if manifest.document is None:
            return manifest
        metadata, status = as_dict(obj.get("metadata")), as_dict(obj.get("status"))
        owners = [
            {**owner, "uid": pod.object["metadata"]["uid"]} if pod else owner
            for owner in as_list(metadata.get("ownerReferences"))
            if (pod := self._pod(manifest.key, owner)) or as_dict(owner).get("kind") != "Pod"
            if pod is None or not is_finished(pod.object)
        ]
        consumers = [
            {**consumer, "uid": pod.object["metadata"]["uid"]}
            for consumer in as_list(status.get("reservedFor"))
            if as_dict(consumer).get("resource") == "pods" and (pod := self._pod(manifest.key, consumer))
        ]
        if owners == metadata.get("ownerReferences", []) and consumers == status.get("reservedFor", []):
            return manifest
        obj = {**obj, "metadata": {**metadata, "ownerReferences": owners}}
        if status:
            obj["status"] = {**status, "reservedFor": consumers}
        return msgspec.structs.replace(manifest, object=obj, digest=digest_of(obj))

    def _pod(self, claim: ObjectKey, reference: Any) -> StoredObject | None:
        if as_dict(reference).get("kind", "Pod") != "Pod":
            return None
        return self._store.objects.get(ObjectKey("pod", claim.namespace, str(as_dict(reference).get("name"))))

    # Claims made for pods

    def _generated(self) -> dict[ObjectKey, Manifest]:
        """All claims that pods need and no file has; says which ones cannot be made."""
        self._pod_claims, self._left_alone = {}, set()
        there = {key: self._store.objects[key].object for key in self._kept if key.kind == "claim"}
        there |= {key: manifest.object for key, manifest in self._claims.items()}
        for key, claim in there.items():
            pod_claim = as_dict(as_dict(claim.get("metadata")).get("annotations")).get(POD_CLAIM_NAME)
            owner = pod_owner(claim)
            if owner and pod_claim:
                self._pod_claims[ObjectKey("pod", key.namespace, str(owner["name"])), pod_claim] = key
        made: dict[ObjectKey, Manifest] = {}
        for pod_key in sorted(key for key in self._store.objects if key.kind == "pod"):
            pod = self._store.objects[pod_key]
            for pod_claim, template in template_references(pod.object) if not pod.error else ():
                if (pod_key, pod_claim) in self._pod_claims:
                    continue
                key = ObjectKey("claim", pod_key.namespace, generated_name(pod_key.namespace, pod_key.name, pod_claim))
                self._pod_claims[pod_key, pod_claim] = key
                made_manifest = self._made_for(pod_key, pod_claim, template, key)
                if made_manifest is not None:
                    made[key] = made_manifest
        return made

    def _made_for(self, pod_key: ObjectKey, pod_claim: str, template_name: str, key: ObjectKey) -> Manifest | None:
        pod, origin = self._store.objects[pod_key].object, self.origins[pod_key]
        template = self._store.objects.get(ObjectKey("template", pod_key.namespace, template_name))
        who = f"pod {pod_key.namespace}/{pod_key.name}"
        if key in self._claims:
            message = f"{who} needs this name for its claim {pod_claim}; give the claim another name"
            self.problems.append(self._claims[key].problem(message, "metadata.name"))
            return None
        if is_finished(pod) or template is None:
            self._left_alone.add(key)
            manifest = self._pods.get(pod_key)  # None where a broken file says nothing new of it
            if manifest and template is None and not is_finished(pod) and key not in self._store.objects:
                message = (
                    f"{who}: its claim {pod_claim} cannot be made, since there is no ResourceClaimTemplate "
                    f"{template_name} in its namespace; add it, and the claim is made"
                )
                self.waiting.append(manifest.problem(message, "spec.resourceClaims"))
            return None
        claim = marked("claim", generated_claim(template.object, pod, pod_claim))
        return Manifest(key, claim, template.error, origin.source, digest_of(claim))

    def _with_claim_names(self, pod: ApiObject, error: str) -> ApiObject:
        """A pod that says in its status which claims were made for it; other objects as they are."""
        if error or pod.get("kind") != "Pod":
            return pod
        key = key_of("pod", pod)
        names = [
            {"name": pod_claim, "resourceClaimName": claim.name}
            for pod_claim, _ in template_references(pod)
            if (claim := self._pod_claims.get((key, pod_claim))) and self._is_for(claim, key)
        ]
        status = {name: value for name, value in as_dict(pod.get("status")).items() if name != "resourceClaimStatuses"}
        return {**pod, "status": {**status, "resourceClaimStatuses": names} if names else status}

    def _is_for(self, claim: ObjectKey, pod: ObjectKey) -> bool:
        """Whether the claim is there and was made for this pod, not for an earlier one of its name."""
        stored, owner = self._store.objects.get(claim), self._store.objects.get(pod)
        if stored is None or owner is None:
            return False
        return bool((pod_owner(stored.object) or {}).get("uid") == owner.object["metadata"]["uid"])

    def _name_claims(self, key: ObjectKey) -> None:
        stored = self._store.objects[key]
        self._store.replace(key.kind, self._with_claim_names(stored.object, stored.error), stored.error)


def _origin(manifest: Manifest) -> Origin:
    metadata = as_dict(manifest.object.get("metadata"))
    return Origin(
        source=manifest.source,
        digest=manifest.digest,
        labels=sorted(as_dict(metadata.get("labels"))),
        annotations=sorted(as_dict(metadata.get("annotations"))),
        finalizers=[text for text in as_list(metadata.get("finalizers")) if isinstance(text, str)],
    )


def _merged_metadata(live: ApiObject, manifest: ApiObject, origin: Origin) -> dict[str, Any]:
    """The object's metadata with what the files say now in place of what they said before; the rest is others'."""
    ours, theirs = as_dict(manifest.get("metadata")), live["metadata"]
    finalizers = [text for text in as_list(theirs.get("finalizers")) if text not in origin.finalizers]
    return {
        **theirs,
        "labels": _merged_map(theirs.get("labels"), ours.get("labels"), origin.labels),
        "annotations": _merged_map(theirs.get("annotations"), ours.get("annotations"), origin.annotations),
        "finalizers": finalizers + [text for text in as_list(ours.get("finalizers")) if text not in finalizers],
        "ownerReferences": as_list(ours.get("ownerReferences")),
    }


def _merged_map(live: Any, manifest: Any, before: list[str]) -> dict[str, Any]:
    others = {name: value for name, value in as_dict(live).items() if name not in before}
    return {**others, **as_dict(manifest)}
