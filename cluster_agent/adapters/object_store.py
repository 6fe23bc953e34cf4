"""The part of an API server that an outside allocator meets, in memory.

One counter numbers all changes; PUTs are guarded by resourceVersion and UID; a claim's spec and a set allocation never
change; finalizers hold a deleted object. Also the part of kube-controller-manager that frees unused claims. Time and
UIDs come from the caller and nothing waits, so the same calls give the same objects: the manifest cluster keeps one,
and a simulation may keep many.

Left out: admission, RBAC, field managers, graceful deletion, and every check of content but those of a claim's status.
Measured on Kubernetes 1.36.2 and 1.37.2; the source is named where the order of checks matters.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from cluster_agent.ports import (
    ApiConflictError,
    ApiInvalidError,
    ApiNotFoundError,
    ApiObject,
    ExpiredError,
)
from schemas.errors import DecodeError
from schemas.resource import ResourceClaim
from schemas.resource.decode import decode_object
from schemas.resource.untyped import as_dict, as_list

DELETE_PROTECTION = "resource.kubernetes.io/delete-protection"
RESERVED_FOR_MAX = 256
RESULTS_MAX = 32

NAMESPACED = frozenset({"claim", "pod", "template"})
_OF_THE_SERVER = frozenset(
    {"name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp"}
)

_DROPPED = frozenset({"managedFields", "selfLink", "deletionGracePeriodSeconds"})


class ObjectKey(msgspec.Struct, frozen=True, order=True):
    """Which object. kind: one of the port's, or a word of the store's owner. namespace: "" for kinds without one."""

    kind: str
    namespace: str
    name: str


class StoredObject(msgspec.Struct, frozen=True):
    """An object as it is. error: why it cannot be read, "" if it can; only its owner knows."""

    object: ApiObject  # never changed in place: a write makes another one
    error: str = ""


class StoreEvent(msgspec.Struct, frozen=True):
    """One change. object: the new state, or the last one; its own resourceVersion is that of the event."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    key: ObjectKey
    object: ApiObject  # shared with the store; not to be changed
    error: str
    resource_version: int


class ObjectStore:
    """Objects of any kind, and the history of their changes."""

    def __init__(self, *, new_uid: Callable[[int], str], now: Callable[[], str]) -> None:
        """new_uid: given the resourceVersion of the creation, an UID never used before.

        now: RFC 3339, for creationTimestamp and deletionTimestamp.
        """
        self._new_uid = new_uid
        self._now = now
        self._objects: dict[ObjectKey, StoredObject] = {}
        self._events: deque[StoreEvent] = deque()  # ascending; complete after _compacted
        self._compacted = 0
        self._resource_version = 0

    @property
    def resource_version(self) -> int:
        """The number of the last change."""
        return self._resource_version

    @property
    def objects(self) -> Mapping[ObjectKey, StoredObject]:
        """Everything there is, to look at without copying."""
        return MappingProxyType(self._objects)

    def copy(self) -> "ObjectStore":
        """A second store that goes its own way from here."""
        other = ObjectStore(new_uid=self._new_uid, now=self._now)
        other._objects = dict(self._objects)
        other._events = deque(self._events)
        other._compacted = self._compacted
        other._resource_version = self._resource_version
        return other

    def restore(self, objects: Iterable[tuple[ObjectKey, StoredObject]], resource_version: int) -> None:
        """Become what an earlier store was. Its history is not part of that: earlier watches have expired."""
        self._objects = dict(objects)
        self._events.clear()
        self._compacted = self._resource_version = resource_version

    # Reading

    def get(self, kind: str, namespace: str, name: str) -> ApiObject | None:
        """The object, or None."""
        stored = self._objects.get(ObjectKey(kind, namespace, name))
        return copy_of(stored.object) if stored else None

    def list_objects(self, kind: str) -> list[StoredObject]:
        """All objects of a kind, by namespace and name."""
        keys = sorted(key for key in self._objects if key.kind == kind)
        return [StoredObject(copy_of(self._objects[key].object), self._objects[key].error) for key in keys]

    def events_since(self, resource_version: int, kind: str | None = None) -> list[StoreEvent]:
        """The changes after `resource_version`, in order.

        Raises: ExpiredError if some of them are forgotten, or if that version is not ours.
        """
        if not self._compacted <= resource_version <= self._resource_version:
            raise ExpiredError(f"too old resource version: {resource_version} ({self._compacted})", kind=kind or "")
        found: list[StoreEvent] = []
        for event in reversed(self._events):
            if event.resource_version <= resource_version:
                break
            if kind is None or event.key.kind == kind:
                found.append(event)
        return found[::-1]

    def compact(self, keep: int) -> None:
        """Forget all changes but the last `keep`. The history grows until its owner calls this."""
        while len(self._events) > keep:
            self._compacted = self._events.popleft().resource_version

    # Writing

    def create(self, kind: str, obj: ApiObject, error: str = "") -> ApiObject:
        """Add a new object, with a UID of its own.

        Other than in a POST a status is kept: this is how an allocation that is already there comes into being.
        Raises: ApiConflictError if the name is taken, by an object that is being deleted too.
        """
        key = key_of(kind, obj)
        if key in self._objects:
            raise ApiConflictError("the object exists already", **_where(key))
        metadata = {
            name: value for name, value in _client_metadata(obj).items() if name not in _OF_THE_SERVER
        } | _place(key)
        metadata["uid"] = self._new_uid(self._resource_version + 1)
        metadata["creationTimestamp"] = self._now()
        return self._commit("ADDED", key, _tidy({**copy_of(obj), "metadata": metadata}), error)

    def replace(self, kind: str, obj: ApiObject, error: str = "") -> ApiObject:
        """Let an object of any kind but `claim` become `obj`, unconditionally and status included.

        Raises: ApiNotFoundError.
        """
        assert kind != "claim", "claims have rules: update_claim, update_claim_status"
        key = key_of(kind, obj)
        old = self._objects.get(key)
        if old is None:
            raise ApiNotFoundError("there is no such object", **_where(key))
        new = _tidy({**copy_of(obj), "metadata": _merged_metadata(old.object, obj)})
        return self._write(key, new, error)

    def update_claim(self, obj: ApiObject) -> ApiObject:
        """PUT a claim: metadata; the status in `obj` is ignored, the spec must be the same.

        Without resourceVersion or UID the PUT is unconditional, as at an API server.
        Raises: ApiNotFoundError, ApiConflictError, ApiInvalidError.
        """
        key, stored = self._guarded_claim(obj)
        old = stored.object
        if not same_spec(old, obj):
            raise _invalid(key, "spec", "FieldValueInvalid", "field is immutable")
        metadata = _merged_metadata(old, obj)
        if is_deleting(old) and set(as_list(metadata.get("finalizers"))) - set(finalizers_of(old)):
            message = "no new finalizers can be added if the object is being deleted"
            raise _invalid(key, "metadata.finalizers", "FieldValueForbidden", message)
        return self._write(key, _tidy({**old, "metadata": metadata}), stored.error)

    def update_claim_status(self, obj: ApiObject) -> ApiObject:
        """PUT a claim's status; everything else in `obj` but its resourceVersion and UID is ignored.

        Raises: ApiNotFoundError, ApiConflictError, ApiInvalidError.
        Source: the order of checks from ValidateResourceClaimStatusUpdate.
        """
        key, stored = self._guarded_claim(obj)
        old = stored.object
        status = {name: value for name, value in copy_of(as_dict(obj.get("status"))).items() if value not in (None, [])}
        _check_reserved_for(key, status, old)
        allocation, before = status.get("allocation"), allocation_of(old)
        if allocation is not None and before is not None and allocation != before:
            raise _invalid(key, "status.allocation", "FieldValueInvalid", "field cannot be modified once set")
        if allocation is not None and before is None:
            _check_results(key, allocation, old)
        if allocation is None:
            status.pop("devices", None)  # what drivers said about devices goes with the devices
        return self._write(key, _tidy({**old, "status": status}), stored.error)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object, or mark it as being deleted for as long as it has finalizers.

        Raises: ApiNotFoundError.
        """
        key = ObjectKey(kind, namespace, name)
        stored = self._objects.get(key)
        if stored is None:
            raise ApiNotFoundError("there is no such object", **_where(key))
        if not finalizers_of(stored.object):
            self._commit("DELETED", key, stored.object, stored.error)
        elif not is_deleting(stored.object):
            metadata = {**stored.object["metadata"], "deletionTimestamp": self._now()}
            self._commit("MODIFIED", key, {**stored.object, "metadata": metadata}, stored.error)

    def note_error(self, key: ObjectKey, error: str) -> None:
        """Say otherwise why an object that did not change cannot be read; nobody is told."""
        self._objects[key] = StoredObject(self._objects[key].object, error)

    # What kube-controller-manager does

    def release_unused(self, namespace: str, name: str) -> bool:
        """Do for one claim what kube-controller-manager would do about pods that are gone or will not run any more.

        Their reservations are removed; with the last of them the allocation, if the claim has the finalizer
        delete-protection, and then that. An allocation that was never reserved stays. A deleted claim that nobody uses
        loses allocation and finalizer; a claim that was made for such a pod is deleted.
        Returns: whether anything was written. Until it was not, there may be more to do.
        Source: syncClaim in pkg/controller/resourceclaim, and the garbage collector for pods that are gone.
        """
        key = ObjectKey("claim", namespace, name)
        if key not in self._objects:
            return False
        before = self._resource_version
        claim = self._objects[key].object
        status = as_dict(claim.get("status"))
        reserved = as_list(status.get("reservedFor"))
        remaining = [consumer for consumer in reserved if not self._is_finished(consumer, namespace)]
        protected = DELETE_PROTECTION in finalizers_of(claim)
        if len(remaining) < len(reserved):
            left = {**status, "reservedFor": remaining}
            if not remaining and protected:
                left["allocation"] = None
            claim = self.update_claim_status({**claim, "status": left})
            if protected and allocation_of(claim) is None:
                self._unprotect(claim)
        elif protected and is_deleting(claim) and not remaining:
            if allocation_of(claim) is not None:
                claim = self.update_claim_status({**claim, "status": {}})
            self._unprotect(claim)
        owner = pod_owner(claim)
        is_live = key in self._objects and not is_deleting(self._objects[key].object)
        if owner and is_live and not remaining and self._is_finished({"resource": "pods", **owner}, namespace):
            self.delete("claim", namespace, name)
        return self._resource_version > before

    def release_all_unused(self) -> None:
        """Do so for every claim until nothing is left to do."""
        for key in sorted(key for key in self._objects if key.kind == "claim"):
            while self.release_unused(key.namespace, key.name):
                pass

    def _is_finished(self, consumer: Any, namespace: str) -> bool:
        if as_dict(consumer).get("resource") != "pods" or consumer.get("apiGroup"):
            return False  # kept, since nobody can tell
        stored = self._objects.get(ObjectKey("pod", namespace, str(consumer.get("name"))))
        return stored is None or stored.object["metadata"]["uid"] != consumer.get("uid") or is_finished(stored.object)

    def _unprotect(self, claim: ApiObject) -> None:
        finalizers = [finalizer for finalizer in finalizers_of(claim) if finalizer != DELETE_PROTECTION]
        self.update_claim({**claim, "metadata": {**claim["metadata"], "finalizers": finalizers}})

    # Common to all writes

    def _guarded_claim(self, obj: ApiObject) -> tuple[ObjectKey, StoredObject]:
        key = key_of("claim", obj)
        stored = self._objects.get(key)
        if stored is None:
            raise ApiNotFoundError("there is no such object", **_where(key))
        theirs, ours = as_dict(obj.get("metadata")), stored.object["metadata"]
        if theirs.get("uid") not in (None, "", ours["uid"]):
            message = f"the UID in the precondition is {theirs['uid']}, that of the object is {ours['uid']}"
            raise ApiConflictError(message, **_where(key))
        if theirs.get("resourceVersion") not in (None, "", ours["resourceVersion"]):
            message = (
                f"the object has been modified: it is at {ours['resourceVersion']}, not {theirs['resourceVersion']}"
            )
            raise ApiConflictError(message, **_where(key))
        return key, stored

    def _write(self, key: ObjectKey, new: ApiObject, error: str) -> ApiObject:
        old = self._objects[key]
        if new == old.object and error == old.error:
            return copy_of(new)
        if is_deleting(new) and not finalizers_of(new):
            return self._commit("DELETED", key, new, error)
        return self._commit("MODIFIED", key, new, error)

    def _commit(
        self, type_: Literal["ADDED", "MODIFIED", "DELETED"], key: ObjectKey, obj: ApiObject, error: str
    ) -> ApiObject:
        self._resource_version += 1
        obj = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self._resource_version)}}
        if type_ == "DELETED":
            del self._objects[key]
        else:
            self._objects[key] = StoredObject(obj, error)
        self._events.append(StoreEvent(type_, key, obj, error, self._resource_version))
        return copy_of(obj)


def key_of(kind: str, obj: ApiObject) -> ObjectKey:
    """Where an object is kept; one of a namespaced kind without namespace belongs to `default`."""
    metadata = as_dict(obj.get("metadata"))
    namespace = str(metadata.get("namespace") or "default") if kind in NAMESPACED else ""
    return ObjectKey(kind, namespace, str(metadata.get("name") or ""))


def allocation_of(claim: ApiObject) -> Any:
    """A claim's allocation, or None."""
    return as_dict(claim.get("status")).get("allocation")


def finalizers_of(obj: ApiObject) -> list[str]:
    """What holds an object when it is deleted."""
    return [text for text in as_list(as_dict(obj.get("metadata")).get("finalizers")) if isinstance(text, str)]


def is_deleting(obj: ApiObject) -> bool:
    """Whether only finalizers keep the object."""
    return bool(as_dict(obj.get("metadata")).get("deletionTimestamp"))


def is_finished(pod: ApiObject) -> bool:
    """Whether a pod will not run any more. Source: isPodDone in pkg/controller/resourceclaim."""
    if as_dict(pod.get("status")).get("phase") in ("Succeeded", "Failed"):
        return True
    return is_deleting(pod) and not as_dict(pod.get("spec")).get("nodeName")


def pod_owner(claim: ApiObject) -> dict[str, Any] | None:
    """`name` and `uid` of the pod that a claim was made for."""
    for owner in as_list(as_dict(claim.get("metadata")).get("ownerReferences")):
        if as_dict(owner).get("controller") and owner.get("kind") == "Pod" and owner.get("apiVersion") == "v1":
            return {"name": owner.get("name"), "uid": owner.get("uid")}
    return None


def _check_reserved_for(key: ObjectKey, status: ApiObject, old: ApiObject) -> None:
    field = "status.reservedFor"
    reserved = status.get("reservedFor", [])
    if not isinstance(reserved, list) or not all(isinstance(consumer, dict) for consumer in reserved):
        raise _invalid(key, field, "FieldValueTypeInvalid", "expected a list of consumers")
    if len(reserved) > RESERVED_FOR_MAX:
        raise _invalid(key, field, "FieldValueTooMany", f"must have at most {RESERVED_FOR_MAX} items")
    uids: set[str] = set()
    for index, consumer in enumerate(reserved):
        for name in ("resource", "name", "uid"):
            if not consumer.get(name):
                raise _invalid(key, f"{field}[{index}].{name}", "FieldValueRequired", "must be set")
        if consumer["uid"] in uids:
            raise _invalid(key, f"{field}[{index}]", "FieldValueDuplicate", f"uid {consumer['uid']} is there already")
        uids.add(consumer["uid"])
    if reserved and status.get("allocation") is None:
        raise _invalid(key, field, "FieldValueForbidden", "may not be specified when `allocated` is not set")
    known = as_list(as_dict(old.get("status")).get("reservedFor"))
    if is_deleting(old) and any(consumer not in known for consumer in reserved):
        raise _invalid(
            key, field, "FieldValueForbidden", "new entries may not be added while the claim is being deleted"
        )


def _check_results(key: ObjectKey, allocation: Any, claim: ApiObject) -> None:
    """Only what a claim itself can tell; nobody checks that the devices exist."""
    field = "status.allocation.devices.results"
    results = as_list(as_dict(as_dict(allocation).get("devices")).get("results"))
    if len(results) > RESULTS_MAX:
        raise _invalid(key, field, "FieldValueTooMany", f"must have at most {RESULTS_MAX} items")
    names: set[Any] = set()
    for request in as_list(as_dict(as_dict(claim.get("spec")).get("devices")).get("requests")):
        name = as_dict(request).get("name")
        names.add(name)
        names.update(f"{name}/{as_dict(sub).get('name')}" for sub in as_list(as_dict(request).get("firstAvailable")))
    for index, result in enumerate(results):
        if as_dict(result).get("request") not in names:
            message = "must be the name of a request in the claim or that and a subrequest, separated by '/'"
            raise _invalid(key, f"{field}[{index}].request", "FieldValueInvalid", message)


def same_spec(old: ApiObject, new: ApiObject) -> bool:
    """Whether both ask for the same, even if one of them spells out the API's defaults."""
    if old.get("spec") == new.get("spec"):
        return True
    try:
        ours, theirs = decode_object(old), decode_object(new)
    except DecodeError:
        return False
    return isinstance(ours, ResourceClaim) and isinstance(theirs, ResourceClaim) and ours.spec == theirs.spec


def _client_metadata(obj: ApiObject) -> dict[str, Any]:
    metadata = copy_of(as_dict(obj.get("metadata")))
    return {name: value for name, value in metadata.items() if name not in _DROPPED}


def _merged_metadata(old: ApiObject, new: ApiObject) -> dict[str, Any]:
    theirs = {name: value for name, value in _client_metadata(new).items() if name not in _OF_THE_SERVER}
    ours = {name: value for name, value in old["metadata"].items() if name in _OF_THE_SERVER}
    return {**theirs, **ours}


def _place(key: ObjectKey) -> dict[str, str]:
    return {"name": key.name, "namespace": key.namespace} if key.namespace else {"name": key.name}


def _tidy(obj: ApiObject) -> ApiObject:
    """Absent, null and empty are the same in these places, so that writing one for another changes nothing."""
    metadata = {name: value for name, value in obj["metadata"].items() if value not in (None, [], {})}
    tidy = {**obj, "metadata": metadata}
    if tidy.get("status", {}) in (None, {}):
        tidy.pop("status", None)
    return tidy


def _invalid(key: ObjectKey, field: str, reason: str, message: str) -> ApiInvalidError:
    return ApiInvalidError(message, field=field, reason=reason, **_where(key))


def _where(key: ObjectKey) -> dict[str, str]:
    return {"kind": key.kind, "namespace": key.namespace, "name": key.name}


def copy_of(obj: ApiObject) -> ApiObject:
    """An equal object that shares nothing with `obj`."""
    return {name: _copy(value) for name, value in obj.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return copy_of(value)
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value
