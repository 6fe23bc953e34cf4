"""State messages: what an agent knows of its cluster, level-triggered (DRA_STATE).

The last message on a subject is the whole truth about its object; losing the ones before it loses only audit detail.
A message without an object is a tombstone.
"""

import hashlib
from typing import Literal

import msgspec

from schemas.wire.subjects import RUN_KEY

NO_OBJECT = msgspec.Raw(b"null")  # of a tombstone
Outcome = Literal["Applied", "Conflict", "Gone", "Failed"]

# The list of a full sync. Kubernetes is made for 5,000 nodes and 150,000 pods: with a claim for each pod and ten
# slices on each node that is half of what fits. What is longer is not read, or few bytes would fill a broker's memory.
NAMES_IN_PART = 2_000  # in one message; at most about half a MiB
PARTS_MAX = 200  # messages before the last one, so 402,000 objects
NAMES_BYTES_MAX = 2_000 * 260  # of all names in one message: a name has at most 253 characters


class Consumer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A pod that uses a claim."""

    uid: str
    name: str
    scheduled: bool = False
    terminal: bool = False
    deleting: bool = False

    @property
    def is_live(self) -> bool:
        """Neither finished nor being deleted: it is reserved for."""
        return not (self.terminal or self.deleting)

    @property
    def is_running(self) -> bool:
        """It has a node and is not finished: it may use its devices, also while it is being deleted."""
        return self.scheduled and not self.terminal


class Settled(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last decision of which the agent knows for certain what became of it."""

    ledger_sequence: int
    outcome: Outcome
    message: str = ""


class Rejected(msgspec.Struct, frozen=True, omit_defaults=True):
    """The cluster cannot use the allocation of this grant: no node takes its pod, or attaching failed."""

    ledger_sequence: int
    reason: str
    message: str = ""


class ClaimState(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.state.claim.v1", kw_only=True
):
    """All that is known of one ResourceClaim.

    claim: the object as the API server has it; absent in a tombstone.
    resource_version: of the view that this message tells.
    error: why the agent could not read the object, which is published as it is.
    """

    agent_epoch: int
    claim: msgspec.Raw = NO_OBJECT
    resource_version: str = ""
    consumers: list[Consumer] = []
    namespace_labels: dict[str, str] = {}
    decision: Settled | None = None
    rejected: Rejected | None = None
    error: str = ""

    @property
    def is_tombstone(self) -> bool:
        """The claim is gone."""
        return self.claim == NO_OBJECT


class ObjectState(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.state.object.v1", kw_only=True
):
    """A ResourceSlice, DeviceClass, Node or DeviceTaintRule as the API server has it; no object: a tombstone."""

    agent_epoch: int
    object: msgspec.Raw = NO_OBJECT
    resource_version: str = ""
    error: str = ""

    @property
    def is_tombstone(self) -> bool:
        """The object is gone."""
        return self.object == NO_OBJECT


class AgentStarted(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.state.agent-started.v1"
):
    """The first message of an agent's run: its stream sequence is the run's epoch."""

    instance: str  # tells two runs apart, also when the answer to a publish was lost


class ObjectName(msgspec.Struct, frozen=True, array_like=True, order=True):
    """An object of a cluster in the words of its subject."""

    kind: str
    key: str


class SyncPart(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.state.sync-part.v1"
):
    """A part of the list of a full sync; the rest of it follows in later parts and in SyncFinished."""

    agent_epoch: int
    sync: int  # counts an agent's syncs; parts of another one are not part of this
    part: int  # from 1 to PARTS_MAX, as in its subject
    objects: list[ObjectName]  # at most NAMES_IN_PART


class SyncFinished(
    msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.state.sync-finished.v1"
):
    """A full sync is finished: what lives, as published up to this message, is this and the parts before it.

    readmission: ledger sequence of the ClusterReadmitted whose cleaning this run has done; 0: it met none.
    """

    agent_epoch: int
    sync: int
    parts: int  # how many SyncPart messages came before, at most PARTS_MAX
    objects: list[ObjectName] = []  # at most NAMES_IN_PART
    readmission: int = 0


AgentMessage = AgentStarted | SyncPart | SyncFinished

DIGEST_BITS = 128


def why_no_list(message: SyncPart | SyncFinished, key: str) -> str:
    """Why no agent writes this list of a full sync on `agent.KEY`, "" if one may have."""
    if isinstance(message, SyncFinished):
        if key != RUN_KEY:
            return f"a full sync ends on agent.{RUN_KEY}, not on agent.{key}"
        if not 0 <= message.parts <= PARTS_MAX:
            return f"a full sync of {message.parts} parts, where at most {PARTS_MAX} are read"
    elif not 1 <= message.part <= PARTS_MAX:
        return f"part {message.part} of a full sync, where parts 1 to {PARTS_MAX} are read"
    elif key != f"sync-{message.part}":
        return f"part {message.part} of a full sync on agent.{key}"
    if len(message.objects) > NAMES_IN_PART:
        return f"{len(message.objects)} objects in one part of a full sync, where at most {NAMES_IN_PART} are read"
    size = sum(_memory_bytes(name.kind) + _memory_bytes(name.key) for name in message.objects)
    return f"names of {size} bytes in one part of a full sync" if size > NAMES_BYTES_MAX else ""


def _memory_bytes(text: str) -> int:
    """At most: one letter that is not ASCII makes all of them wide."""
    return len(text) if text.isascii() else 4 * len(text)


def object_digest(name: ObjectName, stream_sequence: int) -> int:
    """One live object's share of a cluster's digest; the digest is the sum of all, modulo 2**DIGEST_BITS.

    stream_sequence: of the object's last message. It stands for all that the message says: of two messages with equal
    resourceVersions one may tell of consumers that the other does not know.
    """
    text = "\0".join((name.kind, name.key, str(stream_sequence)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[: DIGEST_BITS // 8], "big")


def add_to_digest(digest: int, share: int) -> int:
    """`digest` with one object more (or, with a negative share, one less)."""
    return (digest + share) % (1 << DIGEST_BITS)
