"""Ledger entries: what was decided and what became of it. The ledger is the source of truth about who holds what.

Kinds of subject: Allocate and Release go to `claim` (so that the last message of a claim's subject is its last
decision), all else about a claim to `record`, how a cluster stands to `cluster`; leadership and inputs belong to none.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from schemas.quantity import Quantity, QuantityError
from schemas.wire.state import Outcome

EndCause = Literal["ClaimDeleted", "ClaimMissing", "AllocationCleared", "AllocationReplaced", "ClusterEvicted"]
RequestState = Literal["Pending", "Invalid"]
Liveness = Literal["Live", "Stale", "Lost", "Returning"]
Verb = Literal["cordon", "uncordon", "exclude", "evict", "readmit"]


class DeviceHold(msgspec.Struct, frozen=True, omit_defaults=True):
    """One result of an allocation, as far as holding a device and telling allocations apart goes.

    share_id: "" where the result is the whole device.
    consumed_capacity: of a share, by the capacity's name; see `canonical_amounts`.
    """

    request: str
    driver: str
    pool: str
    device: str
    share_id: str = ""
    admin_access: bool = False
    consumed_capacity: dict[str, str] = {}


def canonical_amounts(amounts: Mapping[str, Any]) -> dict[str, str]:
    """Quantities as an API server gives them back, by name, so that equal amounts are equal texts.

    What is no quantity stays as it is: who reads it must not take it for nothing.
    """

    def canonical(amount: Any) -> str:
        try:
            return str(Quantity.parse(amount))
        except (QuantityError, ArithmeticError, TypeError):
            return str(amount)

    return {name: canonical(amounts[name]) for name in sorted(amounts)}


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", kw_only=True):
    """What all ledger entries share; see the subclasses."""


class SegmentOpened(Entry, frozen=True, tag="dev.dragoman.ledger.segment-opened.v1", kw_only=True):
    """Opens a segment with a checkpoint: the world at `covers`, the last ledger sequence before it (0: empty)."""

    shard: str
    segment: int
    covers: int = 0
    checkpoint: dict[str, Any] = {}


class LeaderElected(Entry, frozen=True, tag="dev.dragoman.ledger.leader-elected.v1", kw_only=True):
    """Who writes from here on; its ledger sequence is the leader's epoch."""

    instance: str
    build: str


class LivenessMark(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="order", tag="mark"):
    """What the broker's clock says of a cluster. heard_ms: when it was last heard; 0: not by this leader."""

    cluster: str
    state: Literal["Live", "Stale", "Lost"]
    heard_ms: int = 0


class OperatorCommand(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="order", tag="command"):
    """What an operator wants of a cluster. state_sequence: for evict, DRA_STATE's last when it was given."""

    verb: Verb
    cluster: str
    operator: str
    reason: str = ""
    is_fenced: bool = False
    state_sequence: int = 0


Order = LivenessMark | OperatorCommand


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of the core, at `now_ms` of the broker's clock: first the orders, then all messages up to `position`."""

    position: int
    now_ms: int
    orders: list[Order] = []


class Inputs(Entry, frozen=True, tag="dev.dragoman.ledger.inputs.v1", kw_only=True):
    """Opens every batch: all that the core saw since the last one.

    epochs, synced: what changed, by cluster; `synced` holds the stream sequence of the finished sync's last message.
    position_expired: DRA_STATE had dropped messages after the recorded position, so the core started again from the
    last message of each subject and asked every cluster for a new sync.
    """

    leader_epoch: int
    steps: list[Step] = []
    epochs: dict[str, int] = {}
    synced: dict[str, int] = {}
    position_expired: bool = False
    settings_digest: str = ""
    build: str = ""
    algorithm: int = 0


class ConsumerRef(msgspec.Struct, frozen=True, order=True):
    """A pod for which a decision was made."""

    uid: str
    name: str


class Allocate(Entry, frozen=True, tag="dev.dragoman.ledger.allocate.v1", kw_only=True):
    """Write this allocation into the claim, guarded by the resourceVersion that the decision was made on.

    allocation: a resource.k8s.io/v1 AllocationResult as JSON. reserved_for: the live consumers it was decided for.
    unscheduled: UIDs of those that no node runs yet, sorted; the same set is not allocated for twice.
    """

    cluster: str
    uid: str
    namespace: str
    name: str
    resource_version: str
    state_sequence: int
    allocation: dict[str, Any]
    holds: list[DeviceHold]
    scopes: list[str]  # of the pools in `holds`, index by index
    reserved_for: list[ConsumerRef] = []
    unscheduled: list[str] = []


class Release(Entry, frozen=True, tag="dev.dragoman.ledger.release.v1", kw_only=True):
    """Clear the allocation of the grant `grant_sequence`, and only that one."""

    cluster: str
    uid: str
    namespace: str
    name: str
    grant_sequence: int
    holds: list[DeviceHold]
    reason: str
    message: str = ""
    retry_at_ms: int = 0  # not decided again before this
    rejections: int = 0  # in a row


class Adopted(Entry, frozen=True, tag="dev.dragoman.ledger.adopted.v1", kw_only=True):
    """A claim has an allocation that no grant covers: it is a grant from here on, and asks nothing of an agent."""

    cluster: str
    uid: str
    namespace: str
    name: str
    state_sequence: int
    holds: list[DeviceHold]
    scopes: list[str]


class OutcomeRecorded(Entry, frozen=True, tag="dev.dragoman.ledger.outcome.v1", kw_only=True):
    """What became of a decision at its cluster; it is settled."""

    cluster: str
    uid: str
    decision_sequence: int
    outcome: Outcome
    message: str = ""
    retry_at_ms: int = 0
    failures: int = 0  # in a row


class GrantEnded(Entry, frozen=True, tag="dev.dragoman.ledger.grant-ended.v1", kw_only=True):
    """A grant holds its devices no longer."""

    cluster: str
    uid: str
    grant_sequence: int
    cause: EndCause


class CollisionFound(Entry, frozen=True, tag="dev.dragoman.ledger.collision.v1", kw_only=True):
    """A claim has an allocation with devices that others hold; it is adopted when their grants end."""

    cluster: str
    uid: str
    namespace: str
    name: str
    holds: list[DeviceHold]
    held_by: list[str]


class ReasonChanged(Entry, frozen=True, tag="dev.dragoman.ledger.reason.v1", kw_only=True):
    """Why a claim has no allocation; written when the reason's code or what it is about changes.

    order: place in the queue, the stream sequence of the message with which the claim began to wait.
    explanation: counts by cause for each device request, as data.
    """

    cluster: str
    uid: str
    namespace: str
    name: str
    state: RequestState
    reason: str
    message: str
    since_ms: int
    order: int
    explanation: dict[str, Any] = {}


class ClaimForgotten(Entry, frozen=True, tag="dev.dragoman.ledger.forgotten.v1", kw_only=True):
    """A full sync lacked the claim, which held nothing: nothing that stands here about it counts any more."""

    cluster: str
    uid: str


class ClassBrokered(Entry, frozen=True, tag="dev.dragoman.ledger.class.v1", kw_only=True):
    """What a member must know of a brokered DeviceClass of the hub; without a spec, that it is gone."""

    cluster: str
    name: str
    spec: dict[str, Any] | None = None


class ClusterEntry(Entry, frozen=True, kw_only=True):
    """What all entries about a cluster as such share. The last of each subject is how the cluster stands."""

    cluster: str


class LivenessChanged(ClusterEntry, frozen=True, tag="dev.dragoman.ledger.liveness.v1", kw_only=True):
    """A cluster's agent went silent, or is heard again. heard_ms: when it was last heard, 0 if nobody knows."""

    state: Liveness
    since_ms: int
    heard_ms: int = 0


class OperatorEntry(ClusterEntry, frozen=True, kw_only=True):
    """What an operator ordered, with the name that was given and the reason."""

    operator: str
    reason: str = ""
    at_ms: int


class ClusterCordoned(OperatorEntry, frozen=True, tag="dev.dragoman.ledger.cordoned.v1", kw_only=True):
    """Nothing new is granted to claims of the cluster, or again it is."""

    is_cordoned: bool


class ClusterExcluded(OperatorEntry, frozen=True, tag="dev.dragoman.ledger.excluded.v1", kw_only=True):
    """Nobody waits for a cluster that was not heard; it ends, without an operator, with its first full sync."""

    is_excluded: bool


class ClusterEvicted(OperatorEntry, frozen=True, tag="dev.dragoman.ledger.evicted.v1", kw_only=True):
    """The cluster is not believed any more. is_fenced: it is cut off, and all of its grants end.

    state_sequence: DRA_STATE's last; only an epoch after it is believed again, and only after ClusterReadmitted.
    position: up to where its messages were applied.
    """

    is_fenced: bool
    state_sequence: int
    position: int


class ClusterReadmitted(OperatorEntry, frozen=True, tag="dev.dragoman.ledger.readmitted.v1", kw_only=True):
    """The cluster may come back. Its messages after `position` count, and until FenceLifted it is granted nothing.

    is_fenced: its grants have ended: a new run of its agent clears every allocation, and writes every claim once so
    that no earlier write can land; then its full sync names this entry.
    """

    is_fenced: bool
    position: int


class FenceLifted(ClusterEntry, frozen=True, tag="dev.dragoman.ledger.fence-lifted.v1", kw_only=True):
    """The cluster has done what its readmission asks for, and is as any other again."""

    at_ms: int


Decision = Allocate | Release
AnyEntry = (
    SegmentOpened
    | LeaderElected
    | Inputs
    | Allocate
    | Release
    | Adopted
    | OutcomeRecorded
    | GrantEnded
    | CollisionFound
    | ReasonChanged
    | ClassBrokered
    | ClaimForgotten
    | LivenessChanged
    | ClusterCordoned
    | ClusterExcluded
    | ClusterEvicted
    | ClusterReadmitted
    | FenceLifted
)

_CLAIM_KINDS = (Allocate, Release)
EVICTION_KEY = "eviction"
_CLUSTER_KEYS: dict[type[ClusterEntry], str] = {
    LivenessChanged: "liveness",
    ClusterCordoned: "cordon",
    ClusterExcluded: "exclusion",
    ClusterEvicted: EVICTION_KEY,
    ClusterReadmitted: EVICTION_KEY,
    FenceLifted: EVICTION_KEY,
}


def entry_place(entry: AnyEntry) -> tuple[str, str, str]:
    """Cluster, kind and key of the entry's subject."""
    if isinstance(entry, SegmentOpened | LeaderElected):
        return "_", "leader", "checkpoint" if isinstance(entry, SegmentOpened) else "elected"
    if isinstance(entry, Inputs):
        return "_", "inputs", "batch"
    if isinstance(entry, ClassBrokered):
        return entry.cluster, "class", entry.name
    if isinstance(entry, ClusterEntry):
        return entry.cluster, "cluster", _CLUSTER_KEYS[type(entry)]
    return entry.cluster, "claim" if isinstance(entry, _CLAIM_KINDS) else "record", entry.uid
