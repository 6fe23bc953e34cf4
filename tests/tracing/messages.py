"""Messages of both logs with times, for claims that a test makes up."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from broker.tracing import Episode, Span, Stories, TraceProblem
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import encode, trace_parent
from schemas.wire.ledger import (
    Allocate,
    AnyEntry,
    DeviceHold,
    GrantEnded,
    Inputs,
    OutcomeRecorded,
    ReasonChanged,
    entry_place,
)
from schemas.wire.stages import CAUSE, TIMES, write_times
from schemas.wire.state import NO_OBJECT, ClaimState, Consumer, Settled
from schemas.wire.subjects import ledger_subject, state_subject

BASE_US = 1_790_000_000_000_000  # times in tests are milliseconds after it
HOLD = DeviceHold("gpu", "gpu.example.com", "rack", "gpu-0")


def us(ms: float) -> int:
    """A moment of a test, Unix microseconds."""
    return BASE_US + round(ms * 1_000)


def header(times: Mapping[str, float]) -> str:
    """Dra-Times of these milliseconds."""
    return write_times({stage: us(ms) for stage, ms in times.items()})


def a_state(
    sequence: int,
    stored_ms: int,
    times: Mapping[str, float] | None = None,
    *,
    uid: str = "u",
    cluster: str = "east",
    decision: int = 0,
    is_gone: bool = False,
    is_scheduled: bool = False,
    annotations: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> StoredMessage:
    """A claim's message in DRA_STATE."""
    claim = {"metadata": {"name": "train", "namespace": "ml", "uid": uid, "annotations": dict(annotations or {})}}
    message = ClaimState(
        agent_epoch=1,
        decision=Settled(decision, "Applied") if decision else None,
        consumers=[Consumer("p", "pod", scheduled=True)] if is_scheduled else [],
        claim=NO_OBJECT if is_gone else msgspec.Raw(msgspec.json.encode(claim)),
    )
    found = {"traceparent": trace_parent(cluster, uid, f"state-{sequence}"), "Nats-Msg-Id": f"state-{sequence}"}
    if times:
        found[TIMES] = header(times)
    found |= headers or {}
    subject = state_subject(cluster, "claim", uid)
    return StoredMessage(subject, encode(message), found, sequence, us(stored_ms) // 1_000)


def an_entry(
    entry: AnyEntry,
    sequence: int,
    stored_ms: int,
    times: Mapping[str, float] | None = None,
    cause: int = 0,
    headers: Mapping[str, str] | None = None,
) -> StoredMessage:
    """A message of the ledger."""
    cluster, kind, key = entry_place(entry)
    found = {"traceparent": trace_parent(cluster, key, f"b.{sequence}"), "Nats-Msg-Id": f"b.{sequence}"}
    if times:
        found[TIMES] = header(times)
    if cause:
        found[CAUSE] = f"DRA_STATE.{cause}"
    found |= headers or {}
    subject = ledger_subject("main", 0, cluster, kind, key)
    return StoredMessage(subject, encode(entry), found, sequence, us(stored_ms) // 1_000)


def an_allocate(uid: str = "u", cluster: str = "east", **more: Any) -> Allocate:
    """A decision."""
    return Allocate(
        cluster=cluster,
        uid=uid,
        namespace="ml",
        name="train",
        resource_version="7",
        state_sequence=1,
        allocation={},
        holds=[HOLD],
        scopes=["fabric/f"],
        **more,
    )


def an_outcome(decision: int, uid: str = "u", **more: Any) -> OutcomeRecorded:
    """What became of it."""
    fields: dict[str, Any] = {"outcome": "Applied", "cluster": "east"} | more
    return OutcomeRecorded(uid=uid, decision_sequence=decision, **fields)


def an_end(grant: int, cause: Any = "ClaimDeleted", uid: str = "u", cluster: str = "east") -> GrantEnded:
    """A grant ends."""
    return GrantEnded(cluster=cluster, uid=uid, grant_sequence=grant, cause=cause)


def a_reason(reason: str = "DevicesInUse", state: Any = "Pending", **more: Any) -> ReasonChanged:
    """A claim waits, or is refused."""
    fields: dict[str, Any] = {"cluster": "east", "uid": "u", "namespace": "ml", "name": "train"} | more
    return ReasonChanged(state=state, reason=reason, message="why", since_ms=0, order=1, **fields)


def an_input(**more: Any) -> Inputs:
    """What ends a batch."""
    return Inputs(leader_epoch=1, **more)


# One claim from its creation to its end: allocated at 20, written at 40, its pod scheduled at 60, deleted at 80.
ASKED = a_state(1, 11, {"seen": 10, "sent": 10.5})
DECIDED = an_entry(
    an_allocate(),
    5,
    20,
    {"stepped": 13, "ended": 18, "sent": 18.5, "received": 12, "deciding": 14, "decided": 16, "filtered": 15},
    cause=1,
)
APPLIED = a_state(2, 43, {"seen": 41, "delivered": 25, "writing": 27, "written": 40, "sent": 42}, decision=5)
SETTLED = an_entry(an_outcome(5), 6, 50, {"stepped": 45, "ended": 46, "sent": 47, "received": 44}, cause=2)
SCHEDULED = a_state(3, 61, {"seen": 60, "sent": 60.5}, decision=5, is_scheduled=True)
DELETED = a_state(4, 81, {"seen": 80, "sent": 80.5}, decision=5, is_gone=True)
ENDED = an_entry(an_end(5), 7, 86, {"stepped": 83, "ended": 84, "sent": 85, "received": 82}, cause=4)
LIFE = [ASKED, DECIDED, APPLIED, SETTLED, SCHEDULED, DELETED, ENDED]


class Told:
    """Stories, and all that came of them."""

    def __init__(self) -> None:
        self.problems: list[TraceProblem] = []
        self.stories = Stories(self.problems.append)
        self.episodes: list[Episode] = []

    def tell(self, messages: Sequence[StoredMessage]) -> list[Episode]:
        """What follows from these messages."""
        found: list[Episode] = []
        for message in messages:
            is_state = message.subject.startswith("dra.v1.state.")
            found += self.stories.state(message) if is_state else self.stories.entry(message)
        self.episodes += found
        return found


def stages(episode: Episode) -> dict[str, tuple[float, float]]:
    """Begin and end of what is directly below the top, milliseconds."""
    return {span.name: times(span) for span in episode.spans if span.parent_id == episode.top.span_id}


def times(span: Span) -> tuple[float, float]:
    """Begin and end, milliseconds."""
    return (span.start_us - BASE_US) / 1_000, (span.end_us - BASE_US) / 1_000
