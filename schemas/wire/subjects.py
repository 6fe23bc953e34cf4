"""Subjects of the bus, and the keys inside them (prefix `dra.v1`).

An object's name becomes subject tokens as it is (its dots make more tokens). What NATS does not allow in a token is
percent-encoded, so that even an object with an impossible name has a subject of its own.
"""

import re

import msgspec

PREFIX = "dra.v1"
STATE_STREAM = "DRA_STATE"
EVENTS_STREAM = "DRA_EVENTS"
DEAD_LETTER_STREAM = "DRA_DEADLETTER"

KINDS = ("slice", "class", "claim", "node", "taintrule")  # of objects in DRA_STATE; "agent" is the agent itself
RUN_KEY = "run"
KEY_LENGTH_MAX = 1024  # of an encoded key; a Kubernetes name has at most 253 characters

_PLAIN = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")  # a key that is the name itself
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
_BARE_DOT = re.compile(r"^\.|\.$|\.(?=\.)")


class StateSubject(msgspec.Struct, frozen=True):
    """The parts of a DRA_STATE subject."""

    cluster: str
    kind: str
    key: str


def encode_key(name: str) -> str:
    """An object's name (or UID) as subject tokens; reversible by `decode_key`."""
    if _PLAIN.fullmatch(name):
        return name
    escaped = _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)
    return _BARE_DOT.sub("%2E", escaped) or "%"


def decode_key(tokens: str) -> str:
    """The name that `encode_key` turned into `tokens`."""
    if tokens == "%":
        return ""
    return re.sub(
        r"(?:%[0-9A-F]{2})+", lambda found: bytes.fromhex(found[0].replace("%", "")).decode(errors="replace"), tokens
    )


def state_subject(cluster: str, kind: str, key: str) -> str:
    """Where `cluster`'s agent publishes what it knows of one object."""
    return f"{PREFIX}.state.{cluster}.{kind}.{encode_key(key)}"


def run_subject(cluster: str) -> str:
    """Where an agent takes its epoch and says that a sync is finished."""
    return f"{PREFIX}.state.{cluster}.agent.{RUN_KEY}"


def sync_part_subject(cluster: str, part: int) -> str:
    """Where part number `part` (from 1) of the list of a full sync goes."""
    return f"{PREFIX}.state.{cluster}.agent.sync-{part}"


def parse_state_subject(subject: str) -> StateSubject | None:
    """The parts of a state subject; None when it is not one, or its key is not as `encode_key` writes it."""
    parts = subject.split(".", 5)
    if len(parts) != 6 or parts[:3] != ["dra", "v1", "state"] or not all(parts) or len(parts[5]) > KEY_LENGTH_MAX:
        return None
    if _PLAIN.fullmatch(parts[5]):
        return StateSubject(*parts[3:])
    key = decode_key(parts[5])
    return StateSubject(parts[3], parts[4], key) if encode_key(key) == parts[5] else None


def ledger_stream(shard: str, segment: int) -> str:
    """The stream of one ledger segment."""
    return f"DRA_LEDGER_{shard}_{segment}"


def ledger_subject(shard: str, segment: int, cluster: str, kind: str, key: str) -> str:
    """Where a ledger entry goes. kind: claim, record, class, cluster, or of no cluster (`_`) leader, inputs, device."""
    return f"{PREFIX}.ledger.{shard}.{segment}.{cluster}.{kind}.{encode_key(key)}"


def ask_subject(cluster: str) -> str:
    """Where the broker asks `cluster`'s agent to publish again."""
    return f"{PREFIX}.ask.{cluster}"


def join_subject(cluster: str) -> str:
    """Where `cluster`'s agent asks the broker what it may read (a call: `schemas.wire.calls.Joined`)."""
    return f"{PREFIX}.api.join.{cluster}"


def agent_consumer(cluster: str) -> str:
    """The consumer that the broker makes for `cluster`'s agent; with `_last`, the one of last messages."""
    return f"agent_{cluster}"


def durable_consumer(name: str) -> str:
    """The consumer of DRA_EVENTS that keeps the place of whoever reads events under this durable name."""
    return f"subscriber_{name}"


def inbox_prefix(name: str) -> str:
    """Where whoever has this name at NATS hears answers, and nobody else may."""
    return f"_INBOX.{name}"


def beat_subject(cluster: str) -> str:
    """Where `cluster`'s agent says that it lives."""
    return f"{PREFIX}.beat.{cluster}"


def lead_subject(shard: str) -> str:
    """Where the leader of `shard` says that it lives; it decides only who tries to lead, never who leads."""
    return f"{PREFIX}.lead.{shard}"


def dead_letter_subject(cluster: str) -> str:
    """Where messages of `cluster` that could not be applied are kept."""
    return f"{PREFIX}.deadletter.{cluster}"
