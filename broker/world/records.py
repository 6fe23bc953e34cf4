"""What we believe of clusters, claims and grants. Plain data; `world` keeps the indexes over it true."""

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from broker.world.keys import ClaimKey, ClusterId, DeviceKey
from schemas.resource import ResourceClaim
from schemas.wire.ledger import DeviceHold, Liveness, RequestState, TaintRule
from schemas.wire.state import Consumer, ObjectName, Rejected, Settled

FOR_EVER = 1 << 62  # a stream sequence that no message has


@dataclass(slots=True, frozen=True)
class Ordered:
    """Who ordered something about a cluster, why and when. ledger_sequence: of the entry that says so."""

    operator: str
    reason: str
    at_ms: int
    ledger_sequence: int = 0


@dataclass(slots=True, frozen=True)
class Eviction:
    """An operator has evicted the cluster; until its fence is lifted it is granted nothing.

    is_fenced: all of its grants end; else they stay (quarantine). state_sequence: DRA_STATE's last then.
    """

    ordered: Ordered
    is_fenced: bool
    state_sequence: int
    readmission: Ordered | None = None

    @property
    def readmitted(self) -> int:
        """Ledger sequence of its readmission, 0 before: until then nothing that it says is believed."""
        return self.readmission.ledger_sequence if self.readmission else 0


@dataclass(slots=True)
class Cluster:
    """A member (or the hub): which run of its agent is believed, and whether it was heard in this ledger's life."""

    name: ClusterId
    epoch: int = 0
    epoch_from: int = 0  # the message that named the epoch first, where no run was seen to begin with it; else 0
    synced_sequence: int = 0  # stream sequence of the last finished sync that counted; 0: not heard
    known: dict[ObjectName, int] = field(default_factory=dict)  # stream sequence of each live object's last message
    digest: int = 0  # over `known`
    sync: int = 0  # the sync whose parts are being collected
    sync_parts: dict[int, list[ObjectName]] = field(default_factory=dict)
    last_sequence: int = 0  # stream sequence of the last message of its that was believed
    asked_at: int = 0  # our position when everything was asked for; 0: nothing is asked for

    # From the ledger alone.
    liveness: Liveness = "Live"  # as last recorded; Returning: it was lost, and must finish a full sync
    liveness_since_ms: int = 0
    cordon: Ordered | None = None
    exclusion: Ordered | None = None
    eviction: Eviction | None = None
    silences: list[tuple[int, int]] = field(default_factory=list)  # its messages after the one, up to the other: void
    is_ahead: bool = False  # it knows of a decision that the ledger does not have
    cleaned: int = 0  # up to this ledger sequence all of its decisions are over, and its agent may say so
    rebuilt: int = 0  # a full sync counts only if it names this entry, or a later one
    taint_rules: tuple[TaintRule, ...] | None = None  # what its agent was told to keep there, if ever; by name

    @property
    def is_heard(self) -> bool:
        """It has finished one full sync in this ledger's life (DESIGN: unheard is not free)."""
        return self.synced_sequence > 0 and not self.is_ahead

    @property
    def is_waited_for(self) -> bool:
        """Nobody knows what it holds, and no operator has vouched that nobody need know."""
        is_cut_off = self.eviction is not None and self.eviction.is_fenced
        return not self.is_heard and self.exclusion is None and not is_cut_off

    def is_replaced(self, epoch: int, stream_sequence: int) -> bool:
        """Whether a message of that epoch, at this place of DRA_STATE, came after a later run's beginning."""
        return epoch < self.epoch and stream_sequence >= (self.epoch_from or self.epoch)

    def is_silenced(self, stream_sequence: int) -> bool:
        """Whether its message at this place of DRA_STATE counts for nothing, for it was evicted."""
        return any(after < stream_sequence <= until for after, until in self.silences)


class Grant(msgspec.Struct, frozen=True):
    """A hold on devices: an Allocate that has not ended, or an allocation that was found and adopted.

    state_sequence: of the claim's message that it was made from.
    stated: its Allocate or Adopted as JSON, for a checkpoint to state it again.
    """

    claim: ClaimKey
    ledger_sequence: int
    holds: tuple[DeviceHold, ...]
    devices: tuple[DeviceKey, ...]  # of `holds`, index by index
    is_adopted: bool
    state_sequence: int
    unscheduled: frozenset[str] = frozenset()  # consumers that it was decided for
    was_applied: bool = False
    is_released: bool = False  # we asked for it back
    stated: bytes = b""


class Unsettled(msgspec.Struct, frozen=True):
    """The one decision of a claim whose outcome is not known yet. stated: as JSON, for a checkpoint."""

    ledger_sequence: int
    kind: Literal["Allocate", "Release"]
    stated: bytes = b""


class Waiting(msgspec.Struct, frozen=True):
    """Why a claim has no allocation. order: its place in the queue."""

    state: RequestState
    reason: str
    message: str
    since_ms: int
    order: int
    explanation: dict[str, object] = {}


@dataclass(slots=True)
class Claim:
    """A ResourceClaim: what its cluster last said of it, and what the ledger holds for it.

    The first block comes from DRA_STATE and is read again at a start; the second comes from the ledger alone.
    """

    key: ClaimKey
    namespace: str = ""
    name: str = ""

    state_sequence: int = 0  # of the last believed message; 0: only the ledger knows of it
    first_sequence: int = 0
    spec: ResourceClaim | None = None  # None: unreadable, see error
    error: str = ""
    is_checked: bool = False  # whether `invalid` can be relied on: one that holds a grant need not be looked at
    invalid: tuple[str, str] | None = None  # reason and message why it can never be allocated as it is
    resource_version: str = ""
    consumers: tuple[Consumer, ...] = ()
    namespace_labels: dict[str, str] = field(default_factory=dict)
    settled: Settled | None = None
    rejected: Rejected | None = None
    shown: tuple[DeviceHold, ...] | None = None  # what status.allocation says; None: no allocation
    shown_devices: tuple[DeviceKey, ...] = ()

    grants: list[Grant] = field(default_factory=list)
    unsettled: Unsettled | None = None
    last_decision: int = 0  # ledger sequence of the last Allocate or Release
    spent: set[frozenset[str]] = field(default_factory=set)  # consumers that an Applied allocation has already served
    avoid: set[DeviceKey] = field(default_factory=set)  # rejected before; cleared when an allocation is Applied
    failures: int = 0  # Failed outcomes or rejections in a row
    not_before_ms: int = 0
    waiting: Waiting | None = None
    collision: tuple[DeviceHold, ...] | None = None  # reported for this shown allocation

    def forget_history(self) -> None:
        """It is gone. Should its cluster ever tell of it again, as of a claim that was not our business for a while,
        it is a new one, whatever the ledger has of it.
        """
        self.spent, self.avoid = set(), set()
        self.last_decision = self.failures = self.not_before_ms = 0
        self.waiting = self.collision = None

    @property
    def has_history(self) -> bool:
        """The ledger has something about it, besides what it holds and waits for now."""
        return bool(self.waiting or self.collision or self.spent or self.avoid or self.last_decision)

    @property
    def is_shown_without_grant(self) -> bool:
        """It has an allocation that no grant covers: to be adopted, or colliding."""
        return self.shown is not None and all(grant.holds != self.shown for grant in self.grants)

    @property
    def live_unscheduled(self) -> frozenset[str]:
        """UIDs of the consumers that an allocation would help to start."""
        return frozenset(pod.uid for pod in self.consumers if pod.is_live and not pod.scheduled)
