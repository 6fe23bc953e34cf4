"""A member cluster: its API server, who wrote which allocation, and what its people do."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from cluster_agent.adapters.object_store import ObjectKey, ObjectStore
from cluster_agent.mirror.actions import (
    ClaimRead,
    ClearAllocation,
    ObjectGone,
    ObjectSeen,
    ReadClaim,
    Write,
    WriteAllocation,
    WriteFailed,
    Wrote,
)
from cluster_agent.mirror.tracked import holds_of, metadata_of
from cluster_agent.ports import ApiConflictError, ApiInvalidError, ApiNotFoundError, ApiObject
from schemas.wire.ledger import DeviceHold

Kind = Literal["slice", "class", "pod", "claim"]
KINDS: tuple[Kind, ...] = ("slice", "class", "pod", "claim")  # in the order in which an agent lists them
DRIVER = "gpu.example.com"
CLASS = "gpu"
MEMORY = "memory"
NAMESPACE = "default"

# Who set an allocation: the ledger sequence of its Allocate; "initial": it was there before anything; "stranger".
Author = int | Literal["initial", "stranger"]


@dataclass(frozen=True)
class Allocation:
    """An allocation in an API server, from the write that set it to the one that cleared it."""

    cluster: str
    uid: str
    since: int  # resourceVersion of the write that set it
    author: Author
    holds: tuple[DeviceHold, ...]

    @property
    def counts(self) -> bool:
        """Whether it must never share a device with another that counts; strangers are outside of what we promise."""
        return self.author != "stranger"


@dataclass
class SimCluster:
    """One cluster. Every write goes through here, so that who allocated what is known for certain.

    on_allocated: told of each allocation in the moment in which it is set.
    """

    name: str
    on_allocated: Callable[[Allocation], None] = lambda _: None
    store: ObjectStore = field(init=False)
    allocations: dict[str, Allocation] = field(default_factory=dict)  # live ones by claim UID
    history: dict[str, list[tuple[int, Allocation | None]]] = field(default_factory=dict)  # by UID, from which rv on
    events: dict[str, list[ObjectSeen | ObjectGone]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    keys: dict[str, ObjectKey] = field(default_factory=dict)  # of live claims by UID
    deleted: set[str] = field(default_factory=set)  # UIDs of claims that are gone
    broken: dict[str, set[tuple[str, str]]] = field(default_factory=dict)  # pool and device, by claim: ever reported so
    _touches: int = 0
    _noted: int = 0  # resourceVersion up to which `_note` has looked

    def __post_init__(self) -> None:
        self.store = ObjectStore(
            new_uid=lambda resource_version: f"{self.name}-{resource_version}", now=lambda: "2026-01-01T00:00:00Z"
        )

    # --- what agents do

    def perform(self, action: Write) -> Wrote | WriteFailed:
        """A write reaches the API server."""
        status = isinstance(action, WriteAllocation | ClearAllocation)
        write = self.store.update_claim_status if status else self.store.update_claim
        try:
            written = write(action.object)
        except ApiConflictError as error:
            return WriteFailed(action, "conflict", str(error))
        except ApiInvalidError as error:
            return WriteFailed(action, "invalid", str(error))
        except ApiNotFoundError as error:
            return WriteFailed(action, "gone", str(error))
        self._note(action.ledger_sequence if isinstance(action, WriteAllocation) else "stranger")
        return Wrote(action, written, version_of(written))

    def read(self, action: ReadClaim) -> ClaimRead:
        """A consistent read."""
        found = self.store.get("claim", action.claim.namespace, action.claim.name)
        if found is not None and metadata_of(found).get("uid") != action.claim.uid:
            found = None
        return ClaimRead(action, found, version_of(found) if found else 0)

    def can_land(self, action: Write) -> bool:
        """Whether this write would set an allocation if it came now."""
        if not isinstance(action, WriteAllocation) or action.claim.uid in self.allocations:
            return False
        now = self.claim(action.claim.uid)
        return now is not None and metadata_of(now)["resourceVersion"] == metadata_of(action.object)["resourceVersion"]

    def seen(self, kind: Kind) -> list[ObjectSeen]:
        """A consistent list."""
        return [ObjectSeen(kind, each.object, version_of(each.object)) for each in self.store.list_objects(kind)]

    # --- what there is

    def claim(self, uid: str) -> ApiObject | None:
        """The claim as it is now."""
        key = self.keys.get(uid)
        return self.store.objects[key].object if key is not None else None

    def claims(self) -> list[ApiObject]:
        """All claims."""
        return [self.store.objects[key].object for key in sorted(self.keys.values())]

    def allocation_at(self, uid: str, resource_version: int) -> Allocation | None:
        """The allocation that a view of the claim at this resourceVersion shows."""
        found = None
        for since, allocation in self.history.get(uid, []):
            if since <= resource_version:
                found = allocation
        return found

    # --- what people do

    def create(self, kind: Kind, obj: ApiObject, author: Author = "stranger") -> str:
        """Create an object; returns its UID."""
        made = self.store.create(kind, obj)
        self._note(author)
        return str(metadata_of(made)["uid"])

    def change(self, kind: Kind, obj: ApiObject) -> None:
        """Replace an object that is not a claim."""
        self.store.replace(kind, obj)
        self._note("stranger")

    def delete(self, kind: Kind, name: str) -> None:
        """Delete an object."""
        self.store.delete(kind, NAMESPACE if kind in ("claim", "pod") else "", name)
        self._note("stranger")

    def touch(self, uid: str) -> None:
        """A write that has nothing to do with us."""
        claim = self.store.get("claim", NAMESPACE, self.keys[uid].name)
        assert claim is not None
        self._touches += 1
        claim["metadata"]["annotations"] = {
            **(claim["metadata"].get("annotations") or {}),
            "touched": str(self._touches),
        }
        self.store.update_claim(claim)
        self._note("stranger")

    def clear(self, uid: str) -> None:
        """The scheduler, or anyone, clears an allocation."""
        claim = self.claim(uid)
        assert claim is not None
        self.store.update_claim_status({**claim, "status": {}})
        self._note("stranger")

    def report(self, uid: str, *conditions: dict[str, str]) -> None:
        """The driver says this of every device that the claim has."""
        claim = self.claim(uid)
        assert claim is not None
        status = claim["status"]
        devices = [
            {key: result[key] for key in ("driver", "pool", "device", "shareID") if key in result}
            | {"conditions": [{"lastTransitionTime": "2026-01-01T00:00:00Z", **each} for each in conditions]}
            for result in status["allocation"]["devices"]["results"]
        ]
        self.store.update_claim_status({**claim, "status": {**status, "devices": devices}})
        self._note("stranger")

    def allocate(self, uid: str, devices: Iterable[tuple[str, str]]) -> None:
        """A stranger allocates devices, given as pool and name."""
        claim = self.claim(uid)
        assert claim is not None
        self.store.update_claim_status({**claim, "status": {"allocation": an_allocation(devices)}})
        self._note("stranger")

    def clean_up(self, uid: str) -> bool:
        """What kube-controller-manager does for one claim; returns whether it did anything."""
        key = self.keys[uid]
        did = self.store.release_unused(key.namespace, key.name)
        self._note("stranger")
        return did

    def _note(self, author: Author) -> None:
        """Keep what the last writes led to: watch events, and allocations that came or went."""
        for event in self.store.events_since(self._noted):
            kind, uid = event.key.kind, str(metadata_of(event.object)["uid"])
            if event.type == "DELETED":
                self.events[kind].append(ObjectGone(kind, event.object, event.resource_version))
            else:
                self.events[kind].append(ObjectSeen(kind, event.object, event.resource_version))
            if kind == "claim":
                self._note_claim(uid, event.key, event.object, event.type == "DELETED", event.resource_version, author)
        self._noted = self.store.resource_version
        self.store.compact(0)

    def _note_claim(
        self, uid: str, key: ObjectKey, claim: ApiObject, is_gone: bool, resource_version: int, author: Author
    ) -> None:
        holds = None if is_gone else holds_of(claim)
        before = self.allocations.get(uid)
        if is_gone:
            self.keys.pop(uid, None)
            self.deleted.add(uid)
        else:
            self.keys[uid] = key
        if (holds is None) == (before is None):
            return
        if holds is None:
            del self.allocations[uid]
            self.history.setdefault(uid, []).append((resource_version, None))
            return
        allocation = Allocation(self.name, uid, resource_version, author, tuple(holds))
        self.allocations[uid] = allocation
        self.history.setdefault(uid, []).append((resource_version, allocation))
        self.on_allocated(allocation)


# --- objects


def version_of(obj: ApiObject) -> int:
    """An object's resourceVersion."""
    return int(metadata_of(obj)["resourceVersion"])


def an_allocation(devices: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A status.allocation of devices, given as pool and name."""
    results = [{"request": "gpu", "driver": DRIVER, "pool": pool, "device": device} for pool, device in devices]
    return {"devices": {"results": results}}


def a_claim(
    name: str,
    *,
    count: int = 1,
    immediate: bool = True,
    share: bool = False,
    allocation: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A claim for `count` devices of the one class. share: only for a share of each."""
    exactly: dict[str, Any] = {"deviceClassName": CLASS, "allocationMode": "ExactCount", "count": count}
    if share:
        exactly["capacity"] = {"requests": {MEMORY: "1"}}
    metadata: dict[str, Any] = {"name": name, "namespace": NAMESPACE}
    if immediate:
        metadata["annotations"] = {"dragoman.dev/allocate": "Immediate"}
    claim: dict[str, Any] = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": metadata,
        "spec": {"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}},
    }
    if allocation is not None:
        claim["status"] = {"allocation": allocation}
    return claim


def a_class(*, brokered: bool = True) -> dict[str, Any]:
    """The one class: whatever device it is."""
    labels = {"labels": {"dragoman.dev/brokered": "true"}} if brokered else {}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": CLASS, **labels},
        "spec": {},
    }


def a_slice(
    name: str, pool: str, devices: Iterable[str], *, generation: int = 1, count: int = 1, shares: int = 0
) -> dict[str, Any]:
    """A ResourceSlice; with count 1 a whole pool. shares: into how many each device can be divided; 0: it cannot."""
    sharing = {"allowMultipleAllocations": True, "capacity": {MEMORY: {"value": str(shares)}}} if shares else {}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": name},
        "spec": {
            "driver": DRIVER,
            "pool": {"name": pool, "generation": generation, "resourceSliceCount": count},
            "allNodes": True,
            "devices": [{"name": device, **sharing} for device in devices],
        },
    }


def a_pod(name: str, claims: Iterable[str]) -> dict[str, Any]:
    """A pod that uses claims, given by name."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"resourceClaims": [{"name": f"c{n}", "resourceClaimName": each} for n, each in enumerate(claims)]},
    }
