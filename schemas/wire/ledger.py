"""Ledger entries: what was decided and what became of it. The ledger is the source of truth about who holds what.

Kinds of subject: Allocate and Release go to `claim` (so that the last message of a claim's subject is its last
decision), all else about a claim to `record`, how a cluster stands to `cluster`; leadership, inputs and what the broker
says of a device (`device`) belong to no cluster.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import msgspec

from schemas.quantity import Quantity, QuantityError
from schemas.wire.bus import CONTENT_ENCODING, StoredMessage
from schemas.wire.state import Outcome

EndCause = Literal[
    "ClaimDeleted", "ClaimMissing", "AllocationCleared", "AllocationRejected", "AllocationReplaced", "ClusterEvicted"
]
RequestState = Literal["Pending", "Invalid"]
Liveness = Literal["Live", "Stale", "Lost", "Returning"]
TaintEffect = Literal["NoSchedule", "NoExecute"]
DeviceVerb = Literal["taint", "untaint"]
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
    """What all ledger entries share; see the subclasses.

    inputs: what the batch that ends here was decided from, unless an entry of its own says that; see `inputs_of`.
    """

    inputs: "Inputs | None" = None


class SegmentOpened(Entry, frozen=True, tag="dev.dragoman.ledger.segment-opened.v1", kw_only=True):
    """Opens a segment with a checkpoint: the world at `covers`, the last ledger sequence before it (0: empty).

    entries: how many entries follow that belong to the checkpoint; the segment is open when all of them are there.
    checksum: SHA-256 over this entry without its checksum, and over each of those; see `checkpoint_checksum`.
    """

    shard: str
    segment: int
    covers: int = 0
    entries: int = 0
    checksum: str = ""


class SegmentClosed(Entry, frozen=True, tag="dev.dragoman.ledger.segment-closed.v1", kw_only=True):
    """The last entry of a segment; the ledger goes on in segment `next_segment`.

    is_abandoned: by a rebuild: the next segment does not go on from here, its world comes from the clusters.
    """

    next_segment: int
    is_abandoned: bool = False


class LedgerRebuilt(Entry, frozen=True, tag="dev.dragoman.ledger.rebuilt.v1", kw_only=True):
    """Part of a checkpoint: the ledger was lost, and an operator has begun it anew; it stands in for SegmentClosed.

    highest_seen: the highest ledger sequence that was found anywhere. state_sequence: DRA_STATE's last; nothing that
    was said up to there counts.
    """

    operator: str
    reason: str
    at_ms: int
    highest_seen: int
    state_sequence: int


class OrderKept(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who ordered something about a cluster; see OperatorEntry. ledger_sequence: of the entry that says so."""

    operator: str
    reason: str = ""
    at_ms: int = 0
    ledger_sequence: int = 0


class EvictionKept(msgspec.Struct, frozen=True, omit_defaults=True):
    """A cluster is evicted; see ClusterEvicted. readmitted: ledger sequence of its ClusterReadmitted, 0 before."""

    ordered: OrderKept
    is_fenced: bool
    state_sequence: int
    readmitted: int = 0
    readmission: OrderKept | None = None


class ClusterKept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the ledger holds of a cluster; see Inputs, and the entries about clusters.

    silences: its messages in DRA_STATE after the one sequence, up to the other, count for nothing.
    cleaned: up to this ledger sequence its decisions are over; see ClusterReadmitted and ClusterRebuilt. rebuilt: of
    its ClusterRebuilt, 0 without one. is_ahead: see ClusterAhead.
    """

    name: str
    epoch: int = 0
    synced_sequence: int = 0
    liveness: Liveness = "Live"
    liveness_since_ms: int = 0
    cordon: OrderKept | None = None
    exclusion: OrderKept | None = None
    eviction: EvictionKept | None = None
    silences: list[tuple[int, int]] = []
    cleaned: int = 0
    rebuilt: int = 0
    is_ahead: bool = False
    epoch_from: int = 0  # see Inputs


class CheckpointWorld(Entry, frozen=True, tag="dev.dragoman.ledger.checkpoint-world.v1", kw_only=True):
    """A part of a checkpoint: how far the world had come. position: of DRA_STATE."""

    position: int
    leader_epoch: int
    clusters: list[ClusterKept] = []


class GrantKept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of a grant so far. Its Allocate or Adopted is stated again, on its own subject."""

    ledger_sequence: int
    was_applied: bool = False
    is_released: bool = False


class WaitingKept(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a claim waits; see ReasonChanged."""

    state: RequestState
    reason: str
    message: str
    since_ms: int
    order: int
    explanation: dict[str, Any] = {}


class ClaimKept(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the ledger holds of a claim, besides the decisions that are stated again.

    grants: in the order in which they began. unsettled: ledger sequence of its unsettled decision, 0 without one.
    """

    cluster: str
    uid: str
    namespace: str = ""
    name: str = ""
    grants: list[GrantKept] = []
    unsettled: int = 0
    last_decision: int = 0
    failures: int = 0
    not_before_ms: int = 0
    waiting: WaitingKept | None = None
    collision: list[DeviceHold] | None = None


class DeviceAvoided(msgspec.Struct, frozen=True, array_like=True, order=True):
    """A device that a claim is not to get again."""

    cluster: str
    uid: str
    scope: str
    driver: str
    pool: str
    device: str


class ConsumersServed(msgspec.Struct, frozen=True, array_like=True, order=True):
    """Consumers for which a claim is not allocated again: UIDs, sorted."""

    cluster: str
    uid: str
    consumers: list[str]


class CheckpointClaims(Entry, frozen=True, tag="dev.dragoman.ledger.checkpoint-claims.v1", kw_only=True):
    """A part of a checkpoint: some claims, and what is kept of others that a message could not take as a whole."""

    claims: list[ClaimKept] = []
    avoided: list[DeviceAvoided] = []
    served: list[ConsumersServed] = []


class CheckpointEnds(Entry, frozen=True, tag="dev.dragoman.ledger.checkpoint-ends.v1", kw_only=True):
    """Opens the first batch behind a checkpoint, unless that is an election.

    What follows may look like a part of the checkpoint, whose end is told by this though its count is damaged.
    """


class LeaderElected(Entry, frozen=True, tag="dev.dragoman.ledger.leader-elected.v2", kw_only=True):
    """Who writes from here on; its ledger sequence is the leader's epoch.

    A new type, so that a build stops here that does not look for `inputs` within other entries (ADR 14).
    state_sequence: DRA_STATE's last then: nothing is decided before all up to there is known. The ledger may be an
    older one than the clusters know of, and only what they have said shows that.
    """

    instance: str
    build: str
    state_sequence: int = 0


class LeaderElectedBefore(LeaderElected, frozen=True, tag="dev.dragoman.ledger.leader-elected.v1", kw_only=True):
    """The same, of a leader whose batches open with their Inputs."""


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


class DeviceCommand(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="order", tag="device-command"):
    """What an operator wants of a device.

    scope: of its pool; "" where there is only one pool of that name. key: of the taint; "" for the usual one (taint),
    or the only one (untaint). effect: of the taint.
    """

    verb: DeviceVerb
    driver: str
    pool: str
    device: str
    operator: str
    reason: str = ""
    scope: str = ""
    key: str = ""
    effect: TaintEffect = "NoSchedule"


Command = OperatorCommand | DeviceCommand
Order = LivenessMark | Command


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step of the core, at `now_ms` of the broker's clock: first the orders, then all messages up to `position`."""

    position: int
    now_ms: int
    orders: list[Order] = []


PLAIN_STEPS = 16  # more of them would make an agent's decisions long


class Inputs(Entry, frozen=True, tag="dev.dragoman.ledger.inputs.v1", kw_only=True):
    """All that the core saw since the last batch. It ends each batch: within its last entry, or as an entry of its own.

    So most batches are one message, which costs NATS a fifth of two. What is about all clusters is not put into an
    entry that one of them reads.

    epochs, synced: what changed, by cluster; `synced` holds the stream sequence of the finished sync's last message.
    epochs_from: of epochs with which no run was seen to begin: the stream sequence of the message that named it first.
    Up to there a lower epoch was believed.
    position_expired: DRA_STATE had dropped messages after the recorded position, so the core started again from the
    last message of each subject and asked every cluster for a new sync.
    state_digest: over the messages of DRA_STATE that the steps applied, see `StateDigest`; "" where there were none.
    """

    leader_epoch: int
    steps: list[Step] = []
    epochs: dict[str, int] = {}
    synced: dict[str, int] = {}
    position_expired: bool = False
    settings_digest: str = ""
    build: str = ""
    algorithm: int = 0
    state_digest: str = ""
    epochs_from: dict[str, int] = {}

    @property
    def is_plain(self) -> bool:
        """It says nothing but how far the state was read, and when."""
        has_more = self.epochs or self.synced or self.position_expired or any(step.orders for step in self.steps)
        return not has_more and len(self.steps) <= PLAIN_STEPS


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
    ledger_sequence: int = 0  # of its own, where a checkpoint states it again; see `own_sequence`


class Release(Entry, frozen=True, tag="dev.dragoman.ledger.release.v1", kw_only=True):
    """Clear the allocation of the grant `grant_sequence`, and only that one.

    resource_version: of the claim when it was decided; "" of an older broker.
    """

    cluster: str
    uid: str
    namespace: str
    name: str
    grant_sequence: int
    resource_version: str = ""
    holds: list[DeviceHold]
    reason: str
    message: str = ""
    retry_at_ms: int = 0  # not decided again before this
    rejections: int = 0  # in a row
    ledger_sequence: int = 0  # of its own, where a checkpoint states it again; see `own_sequence`


class Adopted(Entry, frozen=True, tag="dev.dragoman.ledger.adopted.v1", kw_only=True):
    """A claim has an allocation that no grant covers: it is a grant from here on, and asks nothing of an agent."""

    cluster: str
    uid: str
    namespace: str
    name: str
    state_sequence: int
    holds: list[DeviceHold]
    scopes: list[str]
    ledger_sequence: int = 0  # of its own, where a checkpoint states it again; see `own_sequence`


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
    """A grant holds its devices no longer.

    AllocationRejected: the cluster cleared it while a pod that it was made for still waits for a node. Only then:
    rejections: in a row. retry_at_ms: not decided again before this.
    """

    cluster: str
    uid: str
    grant_sequence: int
    cause: EndCause
    retry_at_ms: int = 0
    rejections: int = 0


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
    ledger_sequence: int = 0  # of its own, where a checkpoint states it again; see `own_sequence`


class LivenessChanged(ClusterEntry, frozen=True, tag="dev.dragoman.ledger.liveness.v1", kw_only=True):
    """A cluster's agent went silent, or is heard again. heard_ms: when it was last heard, 0 if nobody knows."""

    state: Liveness
    since_ms: int
    heard_ms: int = 0


class TaintRule(msgspec.Struct, frozen=True, omit_defaults=True, order=True):
    """A DeviceTaintRule in a member. device: "" for every device of the pool. reason: for people."""

    name: str
    driver: str
    pool: str
    device: str = ""
    key: str = ""
    value: str = ""
    effect: TaintEffect = "NoExecute"
    reason: str = ""


class TaintRulesChanged(ClusterEntry, frozen=True, tag="dev.dragoman.ledger.taint-rules.v1", kw_only=True):
    """The DeviceTaintRules that the cluster's agent keeps there: these, ascending by name, and no others of ours."""

    rules: list[TaintRule] = []


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


class ClusterAhead(ClusterEntry, frozen=True, tag="dev.dragoman.ledger.ahead.v1", kw_only=True):
    """The cluster knows of a decision that the ledger does not have: it was lost, or cut.

    Nothing of the fabrics that it reaches is granted before the ledger is rebuilt, or the cluster evicted as cut off.
    """

    message: str


class ClusterRebuilt(ClusterEntry, frozen=True, tag="dev.dragoman.ledger.cluster-rebuilt.v1", kw_only=True):
    """The ledger was rebuilt: no earlier decision counts, and the cluster is not heard yet.

    A new run of its agent keeps every allocation, and writes every claim without one once, so that no earlier write can
    land; then its full sync names this entry.
    """


class ReportedBy(msgspec.Struct, frozen=True, omit_defaults=True):
    """The claim that held a device and reported this of it in status.devices. condition: its type and status."""

    cluster: str
    uid: str
    namespace: str
    name: str
    condition: str
    reason: str = ""
    message: str = ""


class DeviceEntry(Entry, frozen=True, kw_only=True):
    """What entries about a device share. Either an operator ordered it, with the reason, or a claim's report led to it.

    scope: of the device's pool, see `Allocate.scopes`. key: of the taint.
    """

    scope: str
    driver: str
    pool: str
    device: str
    key: str
    at_ms: int
    operator: str = ""
    reason: str = ""
    report: ReportedBy | None = None
    ledger_sequence: int = 0  # of its own, where a checkpoint states it again; see `own_sequence`


class DeviceTainted(DeviceEntry, frozen=True, tag="dev.dragoman.ledger.device-tainted.v1", kw_only=True):
    """The broker keeps claims off the device that do not tolerate this taint, as KEP-5055 has it.

    effect: NoExecute ends pods that have the device, where agents write DeviceTaintRules; see TaintRulesChanged.
    """

    effect: TaintEffect = "NoSchedule"


class DeviceUntainted(DeviceEntry, frozen=True, tag="dev.dragoman.ledger.device-untainted.v1", kw_only=True):
    """The taint of this key is taken off the device."""


class FenceLifted(ClusterEntry, frozen=True, tag="dev.dragoman.ledger.fence-lifted.v1", kw_only=True):
    """The cluster has done what its readmission asks for, and is as any other again."""

    at_ms: int


Decision = Allocate | Release
AnyEntry = (
    SegmentOpened
    | SegmentClosed
    | LedgerRebuilt
    | CheckpointWorld
    | CheckpointClaims
    | CheckpointEnds
    | LeaderElected
    | LeaderElectedBefore
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
    | ClusterAhead
    | ClusterRebuilt
    | TaintRulesChanged
    | FenceLifted
    | DeviceTainted
    | DeviceUntainted
)

_CLAIM_KINDS = (Allocate, Release)
EVICTION_KEY = "eviction"
REBUILT_KEY = "rebuilt"
TAINT_RULES_KEY = "taintrules"
_CLUSTER_KEYS: dict[type[ClusterEntry], str] = {
    LivenessChanged: "liveness",
    ClusterCordoned: "cordon",
    ClusterExcluded: "exclusion",
    ClusterEvicted: EVICTION_KEY,
    ClusterReadmitted: EVICTION_KEY,
    FenceLifted: EVICTION_KEY,
    ClusterAhead: "ahead",
    ClusterRebuilt: REBUILT_KEY,
    TaintRulesChanged: TAINT_RULES_KEY,
}


_LEADER_KEYS: dict[type, str] = {
    SegmentOpened: "checkpoint",
    CheckpointWorld: "checkpoint",
    CheckpointClaims: "checkpoint",
    CheckpointEnds: "checkpoint",
    SegmentClosed: "closed",
    LedgerRebuilt: REBUILT_KEY,
    LeaderElected: "elected",
    LeaderElectedBefore: "elected",
}


def entry_place(entry: AnyEntry) -> tuple[str, str, str]:
    """Cluster, kind and key of the entry's subject."""
    match entry:
        case (
            SegmentOpened()
            | SegmentClosed()
            | LedgerRebuilt()
            | CheckpointWorld()
            | CheckpointClaims()
            | CheckpointEnds()
            | LeaderElected()
        ):
            return "_", "leader", _LEADER_KEYS[type(entry)]
        case Inputs():
            return "_", "inputs", "batch"
        case ClassBrokered():
            return entry.cluster, "class", entry.name
        case ClusterEntry():
            return entry.cluster, "cluster", _CLUSTER_KEYS[type(entry)]
        case DeviceEntry():
            return "_", "device", "/".join((entry.scope, entry.driver, entry.pool, entry.device, entry.key))
        case _:
            return entry.cluster, "claim" if isinstance(entry, _CLAIM_KINDS) else "record", entry.uid


def inputs_of(entry: AnyEntry) -> Inputs | None:
    """What the batch that ends with this entry was decided from; None within a batch, and of an election."""
    return entry if isinstance(entry, Inputs) else entry.inputs


# Keys of a payload whose texts name people and what is theirs, or may; see `schemas.wire.chain`.
_OF_CLAIM = ("namespace", "name")
_OF_OPERATOR = ("operator", "reason")
_WHY = (*_OF_CLAIM, "message", "claim", "detail")
_NAMES: dict[type, tuple[str, ...]] = {
    LedgerRebuilt: _OF_OPERATOR,
    CheckpointWorld: _OF_OPERATOR,
    CheckpointClaims: _WHY,
    Allocate: _OF_CLAIM,
    Release: (*_OF_CLAIM, "message"),
    Adopted: _OF_CLAIM,
    OutcomeRecorded: ("message",),
    CollisionFound: (*_OF_CLAIM, "held_by"),
    ReasonChanged: _WHY,
    ClusterCordoned: _OF_OPERATOR,
    ClusterExcluded: _OF_OPERATOR,
    ClusterEvicted: _OF_OPERATOR,
    ClusterReadmitted: _OF_OPERATOR,
    ClusterAhead: ("message",),
    DeviceTainted: (*_OF_OPERATOR, *_OF_CLAIM, "message"),
    DeviceUntainted: (*_OF_OPERATOR, *_OF_CLAIM, "message"),
}


def names_in(entry: AnyEntry) -> tuple[str, ...]:
    """The keys of an entry's payload whose texts are names; () where it has none."""
    inputs = inputs_of(entry)
    has_orders = inputs is not None and any(step.orders for step in inputs.steps)
    # Most of these two have none, and each costs some microseconds.
    if isinstance(entry, Inputs) or (isinstance(entry, OutcomeRecorded) and not entry.message):
        found: tuple[str, ...] = ()
    else:
        found = _NAMES.get(type(entry), ())
    return tuple(dict.fromkeys((*found, *_OF_OPERATOR))) if has_orders else found


class StateDigest:
    """Digest of messages of DRA_STATE, as Inputs has it: SHA-256 over what `add` was told, "" if it was nothing."""

    def __init__(self) -> None:
        self._found = hashlib.sha256()
        self._is_empty = True

    def add(self, message: StoredMessage) -> None:
        """The next message that was applied: its sequence, subject, encoding, and its payload as it is stored."""
        payload = message.payload
        encoding = message.headers.get(CONTENT_ENCODING, "")
        self._found.update(f"{message.stream_sequence} {message.subject} {encoding} {len(payload)}\n".encode())
        self._found.update(payload)
        self._is_empty = False

    def take(self) -> str:
        """The digest so far, in hex; it begins again."""
        found = "" if self._is_empty else self._found.hexdigest()
        self._found, self._is_empty = hashlib.sha256(), True
        return found


def own_sequence(entry: AnyEntry, stream_sequence: int) -> int:
    """The ledger sequence by which an entry is known: a checkpoint states some again, elsewhere."""
    own = entry.ledger_sequence if isinstance(entry, Allocate | Release | Adopted | ClusterEntry | DeviceEntry) else 0
    return own or stream_sequence


def checkpoint_checksum(opened: SegmentOpened, payloads: Iterable[bytes]) -> str:
    """Over a checkpoint as it is stored: its first entry without the checksum, then those that follow it."""
    found = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(opened, checksum="")))
    for payload in payloads:
        found.update(len(payload).to_bytes(8, "big") + payload)
    return found.hexdigest()
