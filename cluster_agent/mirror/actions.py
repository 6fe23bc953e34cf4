"""What the mirror is told (events) and what it asks for (actions). Values only; `cluster_agent.app` carries them out.

Every action is answered by exactly one event, unless the process dies. Resource versions are integers here: a
cluster's resourceVersions are compared to know whether a view has caught up with a write (KEP-5504 makes them
comparable; the API server has always made them so).
"""

from typing import Any

import msgspec

from schemas.wire.ledger import Allocate, Release
from schemas.wire.state import AgentMessage, ClaimState, ObjectName, ObjectState, SyncPart

Decision = Allocate | Release


class Cleaning(msgspec.Struct, frozen=True):
    """No earlier write for the claim may land any more. It is settled as a decision is, with the sequence of the entry
    that asks for it.

    since: that sequence; what was decided later stands.
    keeps_allocation: the ledger was rebuilt, and what the claim has is its own. Else the cluster was evicted as cut off
    and is readmitted: a claim of before must have no allocation.
    """

    since: int
    keeps_allocation: bool = False


class ClaimRef(msgspec.Struct, frozen=True, order=True):
    """A claim as the API server addresses it, and as we know it."""

    uid: str
    namespace: str
    name: str


# --- events


class ObjectSeen(msgspec.Struct, frozen=True):
    """The watch (or a list) shows an object as it is now. error: why it cannot be read. seen_us: see Publish."""

    kind: str  # slice, class, claim, node, taintrule, pod or namespace
    object: dict[str, Any]
    resource_version: int
    error: str = ""
    seen_us: int = 0


class ObjectGone(msgspec.Struct, frozen=True):
    """The watch shows that an object was deleted, at this resourceVersion. object: its last state."""

    kind: str
    object: dict[str, Any]
    resource_version: int
    seen_us: int = 0


class LastMessage(msgspec.Struct, frozen=True):
    """The last message of a subject of ours. None where there is none. stored_ms: when it was stored."""

    name: ObjectName
    message: ClaimState | ObjectState | None
    stream_sequence: int
    stored_ms: int


class Started(msgspec.Struct, frozen=True):
    """The epoch is taken, our subjects were read, and then the cluster was listed; in this order."""

    epoch: int
    run_sequence: int  # of the last message on agent.run; the epoch, unless another agent has taken over since
    sync_part_sequences: dict[int, int]  # of the last message on agent.sync-<n>, by n
    last_messages: list[LastMessage]
    objects: list[ObjectSeen]
    decisions: list[tuple[int, Decision]]  # the ledger's last decision of each claim, with its ledger sequence
    listed_at: dict[str, int] = {}  # resourceVersion of the list of each kind
    # Ledger sequence of the ClusterReadmitted or ClusterRebuilt under which this run begins; 0: there is none.
    readmission: int = 0
    cleaning: Cleaning | None = None  # what every claim of before needs


class Watched(msgspec.Struct, frozen=True):
    """The watch of a kind has come so far without bringing anything."""

    kind: str
    resource_version: int


class Relisted(msgspec.Struct, frozen=True):
    """The watch had to start again from a new list, which is all there is."""

    kind: str
    objects: list[ObjectSeen]
    resource_version: int


class DecisionSeen(msgspec.Struct, frozen=True):
    """The ledger has a decision for a claim of ours."""

    ledger_sequence: int
    decision: Decision


class Published(msgspec.Struct, frozen=True):
    """A publish was stored."""

    action: "Publish"
    stream_sequence: int


class PublishRefused(msgspec.Struct, frozen=True):
    """A publish was refused, or nobody knows: the subject was read again, and this is its last message.

    is_ours: that message is the very one whose publish was tried.
    """

    action: "Publish"
    last: LastMessage | None
    last_epoch: int  # of the last message there, 0 if there is none
    is_ours: bool


class Wrote(msgspec.Struct, frozen=True):
    """A write was done. object: as the API server returned it."""

    action: "Write"
    object: dict[str, Any]
    resource_version: int


class WriteFailed(msgspec.Struct, frozen=True):
    """A write was refused, or its result is not known.

    cause: conflict (409: another resourceVersion or uid), invalid (422 and the like: refused for what it says),
    gone (404), unknown (it may have been done, or may still be), running (nothing was sent, see ClearAllocation).
    """

    action: "Write"
    cause: str
    message: str


class ClaimRead(msgspec.Struct, frozen=True):
    """A consistent read of a claim; None: there is no claim of that UID."""

    action: "ReadClaim"
    object: dict[str, Any] | None
    resource_version: int


class Asked(msgspec.Struct, frozen=True):
    """The broker wants objects published again; none named: all, and then a sync."""

    objects: list[ObjectName]


class RunTaken(msgspec.Struct, frozen=True):
    """The last message on agent.run is not ours: another agent serves this cluster."""

    stream_sequence: int


class Tick(msgspec.Struct, frozen=True):
    """Time passes. now_ms: the agent's clock."""

    now_ms: int


# --- actions


class Publish(msgspec.Struct, frozen=True):
    """Publish, expecting `expected_sequence` to be the last of the subject (0: none).

    name: of the object; of kind "agent" for what the agent says of itself.
    seen_us: when the first news came that it tells, Unix microseconds; 0: nobody took the time.
    """

    name: ObjectName
    message: ClaimState | ObjectState | AgentMessage | SyncPart
    expected_sequence: int
    attempt: int  # numbers an agent's publishes: never two with the same id
    seen_us: int = 0


class WriteFinalizers(msgspec.Struct, frozen=True):
    """PUT the claim with both finalizers, guarded by uid and resourceVersion of `object`."""

    claim: ClaimRef
    ledger_sequence: int
    object: dict[str, Any]


class WriteAllocation(msgspec.Struct, frozen=True):
    """PUT the claim's status with the allocation, guarded by uid and resourceVersion of `object`."""

    claim: ClaimRef
    ledger_sequence: int
    object: dict[str, Any]


class ClearAllocation(msgspec.Struct, frozen=True):
    """PUT the claim's status without allocation, guarded by uid and resourceVersion of `object`.

    unless_running: names and UIDs of the pods that it is reserved for. Where one of them has a node, which the watch
    may not have told of yet, nothing is written.
    """

    claim: ClaimRef
    ledger_sequence: int
    object: dict[str, Any]
    unless_running: tuple[tuple[str, str], ...] = ()


class Void(msgspec.Struct, frozen=True):
    """PUT the claim with a mark that changes its resourceVersion, so that no earlier write can land any more."""

    claim: ClaimRef
    ledger_sequence: int
    object: dict[str, Any]


class RemoveFinalizer(msgspec.Struct, frozen=True):
    """PUT the claim without both finalizers: it is being deleted and holds nothing."""

    claim: ClaimRef
    ledger_sequence: int
    object: dict[str, Any]


class ReadClaim(msgspec.Struct, frozen=True):
    """Read the claim, consistently."""

    claim: ClaimRef
    ledger_sequence: int


class Exit(msgspec.Struct, frozen=True):
    """Stop at once: another agent serves this cluster, or we cannot go on."""

    reason: str


Write = WriteFinalizers | WriteAllocation | ClearAllocation | Void | RemoveFinalizer
Action = Publish | Write | ReadClaim | Exit
Event = (
    Started
    | Watched
    | Relisted
    | ObjectSeen
    | ObjectGone
    | DecisionSeen
    | Published
    | PublishRefused
    | Wrote
    | WriteFailed
    | ClaimRead
    | Asked
    | RunTaken
    | Tick
)
