"""What one message says of a claim and of the stages that it went through.

A header that is not as it should be takes its part from the trace and nothing else: it is a `TraceProblem`, to be told
and counted, and the message counts without it.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from schemas.errors import UNREADABLE
from schemas.wire.bus import PayloadError, StoredMessage
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import AnyEntry
from schemas.wire.stages import CAUSE, TIMES, StageTimesError, read_times
from schemas.wire.subjects import STATE_STREAM, parse_state_subject

TRACEPARENT_ANNOTATION = "traceparent"  # on a claim: a span of whoever made it
BODY_BYTES_MAX = 2 * 1024 * 1024
_CONTEXT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)


class TraceProblem(msgspec.Struct, frozen=True):
    """A part of a message that cannot be used. code: to count by; place: which message; message: what is wrong."""

    code: str
    place: str
    message: str


Tell = Callable[[TraceProblem], None]


class Context(msgspec.Struct, frozen=True):
    """A W3C trace context."""

    trace_id: str
    span_id: str


class StateFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A claim's state message. times: Unix microseconds by stage. settled: ledger sequence of its settled decision."""

    sequence: int
    stored_us: int
    context: Context
    times: dict[str, int] = {}
    message_id: str = ""
    settled: int = 0
    is_scheduled: bool = False
    is_tombstone: bool = False
    asked_by: Context | None = None


class EntryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """A ledger entry. cause: sequence of the state message that it follows from, 0 where there is none."""

    sequence: int
    stored_us: int
    context: Context
    entry: AnyEntry
    times: dict[str, int] = {}
    message_id: str = ""
    cause: int = 0


class _Metadata(msgspec.Struct):
    annotations: dict[str, Any] | None = None


class _Claim(msgspec.Struct):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


class _Pod(msgspec.Struct):
    scheduled: bool = False


class _Settled(msgspec.Struct):
    ledger_sequence: int = 0


class _Said(msgspec.Struct):
    """As much of a ClaimState as is looked at here."""

    claim: _Claim | None = None
    consumers: list[_Pod] = []
    decision: _Settled | None = None


_said = msgspec.json.Decoder(_Said)


def state_facts(message: StoredMessage, tell: Tell) -> tuple[str, str, StateFacts] | None:
    """Cluster and UID of a claim, and what its message says; None where that cannot be read."""
    subject = parse_state_subject(message.subject)
    if subject is None or subject.kind != "claim":
        return None
    place = f"{STATE_STREAM} {message.stream_sequence}"
    context = _context_of(message, place, tell)
    if context is None:
        return None
    try:
        said = _said.decode(message.body(BODY_BYTES_MAX))
    except (PayloadError, *UNREADABLE) as error:
        tell(TraceProblem("MalformedMessage", place, str(error)))
        return None
    annotations = said.claim.metadata.annotations if said.claim is not None else None
    asked_by = (annotations or {}).get(TRACEPARENT_ANNOTATION)
    facts = StateFacts(
        sequence=message.stream_sequence,
        stored_us=message.time_ms * 1_000,
        context=context,
        times=_times_of(message, place, tell),
        message_id=message.message_id,
        settled=said.decision.ledger_sequence if said.decision is not None else 0,
        is_scheduled=any(pod.scheduled for pod in said.consumers),
        is_tombstone=said.claim is None,
        asked_by=_read_context(asked_by) if isinstance(asked_by, str) else None,
    )
    if asked_by is not None and facts.asked_by is None:
        text = f"the claim's annotation {TRACEPARENT_ANNOTATION} is no W3C traceparent: {str(asked_by)[:100]!r}"
        tell(TraceProblem("MalformedAnnotation", place, text))
    return subject.cluster, subject.key, facts


def entry_facts(message: StoredMessage, tell: Tell) -> EntryFacts | None:
    """What a ledger entry says; None where that cannot be read."""
    place = f"ledger entry {message.stream_sequence}"
    context = _context_of(message, place, tell)
    if context is None:
        return None
    try:
        entry = decode_entry(message.payload)
    except WireError as error:
        tell(TraceProblem("MalformedMessage", place, str(error)))
        return None
    stream, _, sequence = message.headers.get(CAUSE, "").rpartition(".")
    is_sequence = stream == STATE_STREAM and sequence.isascii() and sequence.isdigit() and len(sequence) < 20
    if stream and not is_sequence:
        tell(TraceProblem("MalformedCause", place, f"{CAUSE} is not {STATE_STREAM}.SEQUENCE: {stream[:100]!r}"))
    return EntryFacts(
        sequence=message.stream_sequence,
        stored_us=message.time_ms * 1_000,
        context=context,
        entry=entry,
        times=_times_of(message, place, tell),
        message_id=message.message_id,
        cause=int(sequence) if is_sequence else 0,
    )


def _times_of(message: StoredMessage, place: str, tell: Tell) -> dict[str, int]:
    try:
        return read_times(message.headers.get(TIMES, ""))
    except StageTimesError as error:
        tell(TraceProblem("MalformedTimes", place, str(error)))
        return {}


def _context_of(message: StoredMessage, place: str, tell: Tell) -> Context | None:
    text = message.headers.get("traceparent", "")
    context = _read_context(text)
    if context is None:
        tell(TraceProblem("MalformedContext", place, f"traceparent {text[:100]!r} is not as W3C has it"))
    return context


def _read_context(text: str) -> Context | None:
    found = _CONTEXT.fullmatch(text)
    return Context(found[1], found[2]) if found is not None and not text.startswith("ff") else None
