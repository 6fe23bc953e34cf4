"""A claim as the ledger told it at one of its entries: what it held, what was decided of it, and why it waited."""

from typing import Any

import msgspec

from broker.world.keys import ClaimKey, ClaimUid, ClusterId
from broker.world.records import Claim
from broker.world.world import World
from schemas.wire.bus import StoredMessage
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    CheckpointClaims,
    ClaimForgotten,
    CollisionFound,
    GrantEnded,
    OutcomeRecorded,
    ReasonChanged,
    Release,
    own_sequence,
)

_NAMED = (Allocate, Release, Adopted, CollisionFound, ReasonChanged)


class EntryTold(msgspec.Struct, frozen=True):
    """An entry about a claim. ledger_sequence: by which it is known; a checkpoint states some again."""

    ledger_sequence: int
    time: str
    entry: str
    what: str


class ClaimTold(msgspec.Struct, frozen=True, kw_only=True):
    """A claim after the entry `at`.

    state: Allocated (its cluster has applied it, or it was found so), Allocating, Releasing, Pending, Invalid, or Ended
    where it neither holds anything nor waits. requests: what became of the devices, see broker.allocation.reasons.
    entries: in the segment that `at` is in, from its checkpoint on.
    """

    at: int
    at_time: str
    cluster: str
    namespace: str
    name: str
    uid: str
    state: str
    reason: str
    message: str
    devices: list[str]
    grants: list[int]
    unsettled: str
    waiting_since_ms: int | None
    requests: list[dict[str, Any]]
    entries: list[EntryTold]


class ClaimHistory:
    """Tell it of a segment's entries in order, up to the one that is asked about."""

    def __init__(self, namespace: str, name: str, cluster: str) -> None:
        """cluster: "" where any will do."""
        self._name = (namespace, name)
        self._cluster = cluster
        self._entries: dict[ClaimKey, list[EntryTold]] = {}
        self.last_sequence = 0
        self.last_time = ""

    def add(self, message: StoredMessage, entry: AnyEntry) -> None:
        """The next entry."""
        self.last_sequence, self.last_time = message.stream_sequence, message.headers.get("ce-time", "")
        if isinstance(entry, CheckpointClaims):
            for kept in entry.claims:
                if (kept.namespace, kept.name) == self._name:
                    self._entries.setdefault(_key(kept.cluster, kept.uid), [])
            return
        if isinstance(entry, _NAMED) and (entry.namespace, entry.name) == self._name:
            self._entries.setdefault(_key(entry.cluster, entry.uid), [])
        if isinstance(entry, (*_NAMED, OutcomeRecorded, GrantEnded, ClaimForgotten)):
            found = self._entries.get(_key(entry.cluster, entry.uid))
            if found is not None:
                sequence = own_sequence(entry, message.stream_sequence)
                found.append(EntryTold(sequence, self.last_time, type(entry).__name__, _what(entry)))

    def told(self, world: World) -> list[ClaimTold]:
        """The claims of that name. world: by the ledger, after the last entry."""
        return [
            self._told(world.claims[key], entries)
            for key, entries in sorted(self._entries.items())
            if key in world.claims and self._cluster in ("", key.cluster)
        ]

    def _told(self, claim: Claim, entries: list[EntryTold]) -> ClaimTold:
        waiting, unsettled = claim.waiting, claim.unsettled
        requests = waiting.explanation.get("requests", []) if waiting is not None else []
        assert isinstance(requests, list)
        return ClaimTold(
            at=self.last_sequence,
            at_time=self.last_time,
            cluster=claim.key.cluster,
            namespace=claim.namespace,
            name=claim.name,
            uid=claim.key.uid,
            state=_state(claim),
            reason=waiting.reason if waiting is not None else "",
            message=waiting.message if waiting is not None else "",
            devices=[str(device) for grant in claim.grants for device in grant.devices],
            grants=[grant.ledger_sequence for grant in claim.grants],
            unsettled=f"{unsettled.kind} {unsettled.ledger_sequence}" if unsettled is not None else "",
            waiting_since_ms=waiting.since_ms if waiting is not None else None,
            requests=requests,
            entries=entries,
        )


def _state(claim: Claim) -> str:
    if claim.unsettled is not None:
        return "Allocating" if claim.unsettled.kind == "Allocate" else "Releasing"
    if claim.grants:
        return "Allocated"
    return claim.waiting.state if claim.waiting is not None else "Ended"


def _what(entry: AnyEntry) -> str:
    match entry:
        case Allocate() | Adopted():
            return ", ".join(f"{hold.request}={hold.pool}/{hold.device}" for hold in entry.holds)
        case Release():
            return f"of {entry.grant_sequence}: {entry.reason}"
        case OutcomeRecorded():
            return f"of {entry.decision_sequence}: {entry.outcome}{f' ({entry.message})' if entry.message else ''}"
        case GrantEnded():
            return f"of {entry.grant_sequence}: {entry.cause}"
        case ReasonChanged():
            return f"{entry.reason}: {entry.message}"
        case CollisionFound():
            return f"with {', '.join(entry.held_by)}"
        case _:
            return ""


def _key(cluster: str, uid: str) -> ClaimKey:
    return ClaimKey(ClusterId(cluster), ClaimUid(uid))
