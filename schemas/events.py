"""The public events: what other services hear of Dragoman, in `DRA_EVENTS`.

Each is the data of a CloudEvent 1.0 whose `type` is the Struct's tag. What was decided (intent) and what became of it
at the cluster (outcome) are events of their own. A type only ever gains optional fields; what would break a reader is a
new type (`...v2`). A field that does not apply is left out.
"""

from typing import Any, Literal

import msgspec

from schemas.wire.ledger import DeviceHold
from schemas.wire.subjects import PREFIX, encode_key

SOURCE = "/dragoman"


class ClaimRef(msgspec.Struct, frozen=True, omit_defaults=True):
    """A ResourceClaim. uid: what identifies it for ever. namespace, name: for people, "" if they are not known."""

    cluster: str
    uid: str
    namespace: str = ""
    name: str = ""


class PublicEvent(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", kw_only=True):
    """What all events share. ledger_sequence: of the ledger's entry that it tells of."""

    ledger_sequence: int


class ClaimEvent(PublicEvent, frozen=True, kw_only=True):
    """Something about a claim."""

    claim: ClaimRef


class ClaimPending(ClaimEvent, frozen=True, tag="dev.dragoman.claim.pending.v1", kw_only=True):
    """The claim waits; said again when the reason changes.

    reason: a code, see docs/reasons.md. since_ms: Unix milliseconds. explanation: counts by cause for each request.
    """

    reason: str
    message: str
    since_ms: int
    explanation: dict[str, Any] = {}


class ClaimRefused(ClaimEvent, frozen=True, tag="dev.dragoman.claim.refused.v1", kw_only=True):
    """The claim cannot be decided as it is: it, or what it names, is wrong or not supported."""

    reason: str
    message: str


class ClaimGranted(ClaimEvent, frozen=True, tag="dev.dragoman.claim.granted.v1", kw_only=True):
    """Intent: the devices are the claim's from here on, and nobody else gets them.

    The cluster is told; `allocated` or `allocation-failed` follows. pods: UIDs of those that it was decided for.
    """

    devices: list[DeviceHold]
    pods: list[str] = []


class ClaimAllocated(ClaimEvent, frozen=True, tag="dev.dragoman.claim.allocated.v1", kw_only=True):
    """Outcome: the claim's status shows the devices of grant `grant` (the ledger_sequence of its `granted`)."""

    devices: list[DeviceHold]
    grant: int


class ClaimAllocationFailed(ClaimEvent, frozen=True, tag="dev.dragoman.claim.allocation-failed.v1", kw_only=True):
    """Outcome: the cluster did not take the allocation; the claim is decided again. retry_at_ms: not before this."""

    grant: int
    outcome: Literal["Conflict", "Gone", "Failed"]
    message: str = ""
    retry_at_ms: int = 0


class ClaimReleasing(ClaimEvent, frozen=True, tag="dev.dragoman.claim.releasing.v1", kw_only=True):
    """Intent: the cluster is asked to clear the allocation of a grant. It is free when `released` says so."""

    grant: int
    devices: list[DeviceHold]
    reason: str
    message: str = ""


class ClaimReleased(ClaimEvent, frozen=True, tag="dev.dragoman.claim.released.v1", kw_only=True):
    """The grant has ended, and its devices are free."""

    grant: int
    devices: list[DeviceHold]
    cause: Literal["ClaimDeleted", "ClaimMissing", "AllocationCleared", "AllocationReplaced", "AllocationRejected"]


class ClaimEvicted(ClaimEvent, frozen=True, tag="dev.dragoman.claim.evicted.v1", kw_only=True):
    """The grant has ended because an operator vouched that its cluster is cut off from the devices."""

    grant: int
    devices: list[DeviceHold]


class ClaimAdopted(ClaimEvent, frozen=True, tag="dev.dragoman.claim.adopted.v1", kw_only=True):
    """The claim shows an allocation that the broker did not make: it is a grant from here on."""

    devices: list[DeviceHold]


class ClaimCollided(ClaimEvent, frozen=True, tag="dev.dragoman.claim.collided.v1", kw_only=True):
    """The claim shows devices that others hold and keep. held_by: their claims, for people."""

    devices: list[DeviceHold]
    held_by: list[str]


class DeviceRef(msgspec.Struct, frozen=True):
    """A device. scope: `fabric/NAME` or `cluster/NAME`, whose pool it is in."""

    scope: str
    driver: str
    pool: str
    device: str


class DeviceTainted(PublicEvent, frozen=True, tag="dev.dragoman.device.tainted.v1", kw_only=True):
    """Claims that do not tolerate the taint are kept off the device. operator: who ordered it, or a claim reported."""

    device: DeviceRef
    key: str
    effect: str
    operator: str = ""
    reason: str = ""
    reported_by: ClaimRef | None = None


class DeviceUntainted(PublicEvent, frozen=True, tag="dev.dragoman.device.untainted.v1", kw_only=True):
    """The taint is taken off the device."""

    device: DeviceRef
    key: str
    operator: str = ""
    reason: str = ""
    reported_by: ClaimRef | None = None


class ClusterEvent(PublicEvent, frozen=True, kw_only=True):
    """Something about a cluster as such."""

    cluster: str


class ClusterStale(ClusterEvent, frozen=True, tag="dev.dragoman.cluster.stale.v1", kw_only=True):
    """Its agent is silent: nothing new is granted to it. heard_ms: when it was heard last, Unix milliseconds."""

    heard_ms: int = 0


class ClusterLost(ClusterEvent, frozen=True, tag="dev.dragoman.cluster.lost.v1", kw_only=True):
    """Its agent was silent for so long that nobody knows how it stands; what it holds stays held."""

    heard_ms: int = 0


class ClusterReturning(ClusterEvent, frozen=True, tag="dev.dragoman.cluster.returning.v1", kw_only=True):
    """A lost cluster is heard again, and must finish a full sync."""


class ClusterLive(ClusterEvent, frozen=True, tag="dev.dragoman.cluster.live.v1", kw_only=True):
    """Its agent is heard as it should be."""


class OperatorEvent(ClusterEvent, frozen=True, kw_only=True):
    """What an operator ordered."""

    operator: str
    reason: str = ""


class ClusterCordoned(OperatorEvent, frozen=True, tag="dev.dragoman.cluster.cordoned.v1", kw_only=True):
    """Nothing new is granted to its claims."""


class ClusterUncordoned(OperatorEvent, frozen=True, tag="dev.dragoman.cluster.uncordoned.v1", kw_only=True):
    """Its claims get devices again."""


class ClusterExcluded(OperatorEvent, frozen=True, tag="dev.dragoman.cluster.excluded.v1", kw_only=True):
    """Nobody waits for it, although it was never heard."""


class ClusterIncluded(OperatorEvent, frozen=True, tag="dev.dragoman.cluster.included.v1", kw_only=True):
    """It was heard: its exclusion is over."""


class ClusterEvicted(OperatorEvent, frozen=True, tag="dev.dragoman.cluster.evicted.v1", kw_only=True):
    """It is not believed any more. is_fenced: it is cut off from its devices, and others get them."""

    is_fenced: bool


class ClusterReadmitted(OperatorEvent, frozen=True, tag="dev.dragoman.cluster.readmitted.v1", kw_only=True):
    """It may come back, once it has cleaned up."""


class ClusterBack(ClusterEvent, frozen=True, tag="dev.dragoman.cluster.back.v1", kw_only=True):
    """A readmitted cluster has cleaned up, and is as any other again."""


class ClusterAhead(ClusterEvent, frozen=True, tag="dev.dragoman.cluster.ahead.v1", kw_only=True):
    """It knows of decisions that the ledger lost: nothing that it reaches is granted before that is rebuilt."""

    message: str


AnyEvent = (
    ClaimPending
    | ClaimRefused
    | ClaimGranted
    | ClaimAllocated
    | ClaimAllocationFailed
    | ClaimReleasing
    | ClaimReleased
    | ClaimEvicted
    | ClaimAdopted
    | ClaimCollided
    | DeviceTainted
    | DeviceUntainted
    | ClusterStale
    | ClusterLost
    | ClusterReturning
    | ClusterLive
    | ClusterCordoned
    | ClusterUncordoned
    | ClusterExcluded
    | ClusterIncluded
    | ClusterEvicted
    | ClusterReadmitted
    | ClusterBack
    | ClusterAhead
)


def event_type(event: AnyEvent | type[AnyEvent]) -> str:
    """The CloudEvents type."""
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def event_key(event: AnyEvent) -> str:
    """What it is about, as `ce-subject` has it: `claim/CLUSTER/UID`, `cluster/NAME`, `device/DRIVER/POOL/DEVICE`."""
    if isinstance(event, ClaimEvent):
        return f"claim/{event.claim.cluster}/{event.claim.uid}"
    if isinstance(event, ClusterEvent):
        return f"cluster/{event.cluster}"
    device = event.device
    return f"device/{device.driver}/{device.pool}/{device.device}"


def event_subject(event: AnyEvent) -> str:
    """Where it is published: `dra.v1.events.<cluster>.<entity>.<what>.<key>`.

    cluster: `_` where it is of none. key: a claim's UID, a cluster's name, or driver, pool and device.
    """
    _, _, entity, what, _ = event_type(event).split(".")
    if isinstance(event, ClaimEvent):
        cluster, key = event.claim.cluster, event.claim.uid
    elif isinstance(event, ClusterEvent):
        cluster, key = event.cluster, event.cluster
    else:
        cluster, key = "_", event_key(event).removeprefix("device/")
    return f"{PREFIX}.events.{cluster}.{entity}.{what}.{encode_key(key)}"
