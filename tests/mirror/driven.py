"""A mirror for tests: what it asks for is kept until the test answers it, one event for one action.

What must always be true is checked as it goes: one publish in flight per subject, one write per claim, every message
with the mirror's epoch and the sequence that it expects, and a digest over what was stored.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from cluster_agent.mirror import Mirror
from cluster_agent.mirror.actions import (
    Action,
    ClaimRead,
    Cleaning,
    ClearAllocation,
    Decision,
    DecisionSeen,
    Event,
    LastMessage,
    ObjectGone,
    ObjectSeen,
    Publish,
    Published,
    ReadClaim,
    RemoveFinalizer,
    Started,
    Void,
    WriteAllocation,
    WriteFailed,
    WriteFinalizers,
    Wrote,
)
from cluster_agent.mirror.tracked import DELETE_PROTECTION, HELD
from schemas.resource import ResourceClaim
from schemas.wire.ledger import Allocate, ConsumerRef, DeviceHold, Release
from schemas.wire.state import (
    ClaimState,
    ObjectName,
    ObjectState,
    SyncFinished,
    SyncPart,
    add_to_digest,
    object_digest,
)
from tests.builders import DRIVER, a_claim

EPOCH = 10_000
UID = "uid-default-train"
TRAIN = ObjectName("claim", UID)
WRITES = (WriteFinalizers, WriteAllocation, ClearAllocation, Void, RemoveFinalizer)

A = TypeVar("A")
Manifest = dict[str, Any]


class Driven:
    """A mirror and the stream that its publishes go to."""

    def __init__(self, *, publishes_all: bool = True, refresh_ms: int = 1_000_000) -> None:
        self.mirror = Mirror("east", publishes_all=publishes_all, refresh_ms=refresh_ms)
        self.pending: list[Action] = []
        self.last_sequence = EPOCH
        self.stored: dict[ObjectName, tuple[int, ClaimState | ObjectState]] = {}
        self.syncs: list[list[ObjectName]] = []
        self._part: list[ObjectName] = []
        self._digest = 0
        self._attempts: set[int] = set()

    def starts(
        self,
        *objects: ObjectSeen,
        told: Iterable[LastMessage] = (),
        decisions: Iterable[tuple[int, Decision]] = (),
        listed_at: dict[str, int] | None = None,
        run_sequence: int = EPOCH,
        readmission: int = 0,
        cleaning: Cleaning | None = None,
    ) -> list[Action]:
        """The mirror starts; returns what it asks for."""
        told = list(told)
        for each in told:
            self.keep(each.name, each.message, each.stream_sequence)
        self.last_sequence = max([self.last_sequence, *(each.stream_sequence for each in told)])
        return self.tell(
            Started(
                EPOCH,
                run_sequence,
                {},
                told,
                list(objects),
                list(decisions),
                listed_at or {},
                readmission,
                cleaning,
            )
        )

    def started(self, *objects: ObjectSeen, **more: Any) -> "Driven":
        """The mirror starts, and everything that it says is stored."""
        self.starts(*objects, **more)
        self.store_all()
        return self

    def tell(self, event: Event) -> list[Action]:
        """An event; returns what the mirror asks for."""
        actions = self.mirror.handle(event)
        self.pending += actions
        self._check(actions)
        return actions

    def store(self, publish: Publish | None = None) -> list[Action]:
        """A publish (the only one, unless it is named) is stored."""
        publish = publish or self.only(Publish)
        self.pending.remove(publish)
        self.last_sequence += 1
        message = publish.message
        if isinstance(message, ClaimState | ObjectState):
            self.keep(publish.name, message, self.last_sequence)
        elif isinstance(message, SyncPart):
            self._part += message.objects
        elif isinstance(message, SyncFinished):
            self.syncs.append([*self._part, *message.objects])
            self._part = []
        actions = self.tell(Published(publish, self.last_sequence))
        beat = self.mirror.beat()
        if beat is not None:
            assert beat.digest == self.digest()
            assert (beat.agent_epoch, beat.last_sequence) == (EPOCH, self.last_sequence)
        return actions

    def store_all(self) -> None:
        """Every publish, and what follows from it."""
        while publishes := self.all(Publish):
            self.store(publishes[0])

    def all(self, kind: type[A]) -> list[A]:
        """The pending actions of a kind."""
        return [action for action in self.pending if isinstance(action, kind)]

    def only(self, kind: type[A]) -> A:
        """The one pending action of a kind."""
        (action,) = self.all(kind)
        return action

    def take(self, kind: type[A]) -> A:
        """The one pending action, of that kind, which the test answers itself."""
        (action,) = self.pending
        assert isinstance(action, kind), action
        self.pending.clear()
        return action

    def said(self, name: ObjectName = TRAIN) -> Any:
        """The message that the subject has last."""
        return self.stored[name][1]

    def claim(self, name: ObjectName = TRAIN) -> Manifest:
        """The claim in that message."""
        manifest: Manifest = msgspec.json.decode(self.said(name).claim)
        return manifest

    def keep(self, name: ObjectName, message: ClaimState | ObjectState | None, sequence: int) -> None:
        """The subject's last message is this; None: it has none any more."""
        before, said = self.stored.pop(name, (0, None))
        if said is not None and not said.is_tombstone:
            self._digest = add_to_digest(self._digest, -object_digest(name, before))
        if message is not None:
            self.stored[name] = (sequence, message)
            if not message.is_tombstone:
                self._digest = add_to_digest(self._digest, object_digest(name, sequence))

    def digest(self) -> str:
        """What a heartbeat must say."""
        return format(self._digest, "x")

    def _check(self, actions: list[Action]) -> None:
        if not actions:
            return
        publishes = self.all(Publish)
        assert len({each.name for each in publishes}) == len(publishes), "two publishes in flight for one subject"
        writes = [each.claim.uid for each in self.pending if isinstance(each, (*WRITES, ReadClaim))]
        assert len(set(writes)) == len(writes), "two writes under way for one claim"
        for action in actions:
            if isinstance(action, Publish):
                assert action.attempt not in self._attempts, "an attempt's number was used twice"
                self._attempts.add(action.attempt)
                assert action.message.agent_epoch == EPOCH  # type: ignore[union-attr]


def a_manifest(claim: ResourceClaim | None = None, **metadata: Any) -> Manifest:
    """A claim as the API server has it; `metadata` as it calls it."""
    manifest: Manifest = msgspec.to_builtins(claim or a_claim())
    manifest["metadata"] = {
        key: value for key, value in {**manifest["metadata"], **metadata}.items() if value not in ("", None, [], {})
    }
    manifest.pop("status", None)
    return manifest


def protected(claim: ResourceClaim | None = None, **metadata: Any) -> Manifest:
    """A claim that carries both finalizers."""
    return a_manifest(claim, finalizers=[DELETE_PROTECTION, HELD], **metadata)


def allocated(manifest: Manifest, *devices: str) -> Manifest:
    """The claim with an allocation of these devices."""
    return {**manifest, "status": {"allocation": an_allocation(*devices or ("gpu-0",))}}


def an_allocation(*devices: str) -> Manifest:
    """status.allocation with these devices."""
    return {
        "devices": {
            "results": [{"request": "gpu", "driver": DRIVER, "pool": "rack7", "device": name} for name in devices]
        }
    }


def holds(*devices: str) -> list[DeviceHold]:
    """The same as a decision has it."""
    return [DeviceHold("gpu", DRIVER, "rack7", name) for name in devices]


def an_object(kind: str, name: str, **metadata: Any) -> Manifest:
    """An object that is no claim."""
    return {"kind": kind, "metadata": {"name": name, **metadata}}


def seen(manifest: Manifest, resource_version: int, kind: str = "claim", error: str = "") -> ObjectSeen:
    """The watch shows it."""
    manifest = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(resource_version)}}
    return ObjectSeen(kind, manifest, resource_version, error)


def gone(manifest: Manifest, resource_version: int, kind: str = "claim") -> ObjectGone:
    """The watch shows that it was deleted."""
    return ObjectGone(kind, manifest, resource_version)


def told(message: ClaimState | ObjectState, sequence: int, name: ObjectName = TRAIN, stored_ms: int = 0) -> LastMessage:
    """The last message of a subject."""
    return LastMessage(name, message, sequence, stored_ms)


def a_state(manifest: Manifest | None = None, resource_version: int = 100, epoch: int = 5, **state: Any) -> ClaimState:
    """What an agent said of a claim as it was at that resourceVersion; without one, a tombstone."""
    if manifest is not None:
        state["claim"] = raw_of(manifest, resource_version)
    return ClaimState(agent_epoch=epoch, resource_version=str(resource_version), **state)


def raw_of(manifest: Manifest, resource_version: int) -> msgspec.Raw:
    """A manifest inside a message."""
    return msgspec.Raw(msgspec.json.encode(seen(manifest, resource_version).object, order="sorted"))


def an_allocate(resource_version: int = 100, *devices: str, **changed: Any) -> Allocate:
    """A decision for the claim as it was at that resourceVersion."""
    entry = Allocate(
        cluster="east",
        uid=UID,
        namespace="default",
        name="train",
        resource_version=str(resource_version),
        state_sequence=11,
        allocation=an_allocation(*devices or ("gpu-0",)),
        holds=holds(*devices or ("gpu-0",)),
        scopes=["fabric/f"] * len(devices or "1"),
        reserved_for=[ConsumerRef("uid-worker", "worker")],
    )
    return msgspec.structs.replace(entry, **changed)


def a_release(grant_sequence: int = 50, *devices: str) -> Release:
    """The allocation of a grant is asked back."""
    return Release(
        cluster="east",
        uid=UID,
        namespace="default",
        name="train",
        grant_sequence=grant_sequence,
        holds=holds(*devices or ("gpu-0",)),
        reason="Unschedulable",
    )


def decides(decision: Decision, ledger_sequence: int = 50) -> DecisionSeen:
    """The ledger has it."""
    return DecisionSeen(ledger_sequence, decision)


def wrote(action: Any, resource_version: int) -> Wrote:
    """The API server took the write."""
    return Wrote(action, seen(action.object, resource_version).object, resource_version)


def failed(action: Any, cause: str) -> WriteFailed:
    """The API server did not, or nobody knows."""
    return WriteFailed(action, cause, f"it was {cause}")


def read(action: ReadClaim, manifest: Manifest | None, resource_version: int) -> ClaimRead:
    """A consistent read found this."""
    found = None if manifest is None else seen(manifest, resource_version).object
    return ClaimRead(action, found, resource_version)
