"""Bytes to messages and back, and the CloudEvents headers around them.

A payload that cannot be read is a value for the caller to keep aside (`WireError`), never the end of anything.
"""

import hashlib
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from schemas.errors import UNREADABLE
from schemas.wire.calls import Ask, Beat, DeadLetter, Join, Joined, LeaderBeacon, LedgerGoesOn
from schemas.wire.ledger import AnyEntry
from schemas.wire.state import AgentMessage, ClaimState, ObjectState

M = TypeVar("M")


Call = Ask | Beat | DeadLetter | LeaderBeacon | Join | Joined | LedgerGoesOn


class _Peek(msgspec.Struct):
    type: Any = None
    agent_epoch: int | None = None


_encoder = msgspec.json.Encoder()
_peeks: msgspec.json.Decoder[_Peek] = msgspec.json.Decoder(_Peek)
_claims: msgspec.json.Decoder[ClaimState] = msgspec.json.Decoder(ClaimState)
_objects: msgspec.json.Decoder[ObjectState] = msgspec.json.Decoder(ObjectState)
_agents: msgspec.json.Decoder[AgentMessage] = msgspec.json.Decoder(AgentMessage)
_entries: msgspec.json.Decoder[AnyEntry] = msgspec.json.Decoder(AnyEntry)
_calls: msgspec.json.Decoder[Call] = msgspec.json.Decoder(Call)


class WireError(ValueError):
    """A payload is not what its subject promises. `reason` is a code; the text says where and what."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def encode(message: msgspec.Struct) -> bytes:
    """A message as JSON; the same message gives the same bytes."""
    return _encoder.encode(message)


def message_type(message: msgspec.Struct) -> str:
    """The CloudEvents type of a message, which its payload repeats as `type`."""
    tag = message.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def _decode(decoder: msgspec.json.Decoder[M], payload: bytes) -> M:
    try:
        return decoder.decode(payload)
    except msgspec.ValidationError as error:
        # A ValidationError says only what is wrong; an unknown type is told apart, for it may be a newer agent.
        found = _peek_type(payload)
        reason = "UnknownType" if "Invalid value" in str(error) and "$.type" in str(error) else "Malformed"
        raise WireError(reason, f"message of type {found!r} cannot be read: {error}") from error
    except RecursionError as error:
        raise WireError("NotJSON", "message is nested too deeply") from error
    except UNREADABLE as error:
        raise WireError("NotJSON", f"message is not JSON: {error}") from error


def _peek_type(payload: bytes) -> str:
    try:
        return str(_peeks.decode(payload).type)[:100]
    except UNREADABLE:
        return "unknown"


def decode_claim_state(payload: bytes) -> ClaimState:
    """Raises: WireError."""
    return _decode(_claims, payload)


def decode_object_state(payload: bytes) -> ObjectState:
    """Raises: WireError."""
    return _decode(_objects, payload)


def decode_agent_message(payload: bytes) -> AgentMessage:
    """Raises: WireError."""
    return _decode(_agents, payload)


def decode_entry(payload: bytes) -> AnyEntry:
    """Raises: WireError."""
    return _decode(_entries, payload)


def decode_call(payload: bytes) -> Call:
    """Raises: WireError."""
    return _decode(_calls, payload)


def peek_epoch(payload: bytes) -> int | None:
    """The epoch of the agent that wrote a state message; None where its message says none.

    Raises: WireError.
    """
    return _decode(_peeks, payload).agent_epoch


def trace_id(cluster: str, uid: str) -> str:
    """The W3C trace id of a claim's life."""
    return hashlib.sha256(f"{cluster}/{uid}".encode()).hexdigest()[:32]


def trace_parent(cluster: str, uid: str, span: str) -> str:
    """W3C traceparent: the trace is the claim's, so that all sides agree on it without asking.

    span: what this message is, such as its id.
    """
    return f"00-{trace_id(cluster, uid)}-{hashlib.sha256(span.encode()).hexdigest()[:16]}-01"


@lru_cache(maxsize=8)  # a batch has one
def _time_text(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def cloud_event_headers(
    message: msgspec.Struct, *, event_id: str, source: str, subject: str, now_ms: int, trace: str
) -> dict[str, str]:
    """CloudEvents 1.0 headers of NATS' binary mode; `Nats-Msg-Id` equals `ce-id`."""
    return {
        "ce-specversion": "1.0",
        "ce-type": message_type(message),
        "ce-source": source,
        "ce-id": event_id,
        "ce-time": _time_text(now_ms),
        "ce-subject": subject,
        "ce-datacontenttype": "application/json",
        "traceparent": trace,
        "Nats-Msg-Id": event_id,
    }
