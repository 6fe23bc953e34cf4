"""The streams of the protocol: made if they are absent, compared if they are there, never changed.

This release lets the broker make them. Two brokers that start at once make the same ones; the second sees the first's.
"""

from typing import Any

import msgspec

from broker.adapters.errors import StreamSettingsError
from schemas.client.connection import Connection
from schemas.client.errors import BusRefusedError
from schemas.wire.subjects import DEAD_LETTER_STREAM, EVENTS_STREAM, PREFIX, STATE_STREAM, ledger_stream

SERVER_VERSION_MIN = (2, 14, 6)  # earlier ones can skip the sync to disk although `sync_interval: always` is set

HOUR_S = 3600
STREAM_NOT_FOUND = 10059
# Not part of what the protocol needs: who runs NATS may choose more replicas, or where they live.
_AT_LEAST = frozenset({"num_replicas"})


class StreamSettings(msgspec.Struct, frozen=True):
    """What an operator may choose.

    state_age_s: an agent publishes each object again before a third of it has passed.
    """

    replicas: int = 1
    state_age_s: int = 72 * HOUR_S
    events_age_s: int = 30 * 24 * HOUR_S
    dead_letters_age_s: int = 30 * 24 * HOUR_S


def stream_configs(settings: StreamSettings, shard: str, segment: int, first_sequence: int = 0) -> list[dict[str, Any]]:
    """The streams, as JetStream's API names their settings.

    first_sequence: of the ledger's segment, where it is to be made after others; see `ledger_segments`.
    """
    return [
        {
            "name": STATE_STREAM,
            "subjects": [f"{PREFIX}.state.>"],
            "max_age": _ns(settings.state_age_s),
            # A log, at most 64 messages per subject: the oldest of the subject goes. `discard: new` alone is about the
            # limits of the whole stream, of which there are none; only with `discard_new_per_subject` would the 65th
            # message of a subject be refused, and then an object could never be heard of again.
            "max_msgs_per_subject": 64,
            "discard": "new",
            "discard_new_per_subject": False,
            "allow_atomic": True,
            "duplicate_window": _ns(120),
            **_common(settings),
        },
        {
            "name": ledger_stream(shard, segment),
            "subjects": [f"{PREFIX}.ledger.{shard}.{segment}.>"],
            "max_age": 0,
            "max_msgs_per_subject": -1,
            "discard": "new",
            "deny_delete": True,
            "deny_purge": True,
            "allow_atomic": True,
            # Short: expected-last-sequence already keeps a batch from being stored twice, and ids that the server
            # remembers from a batch that was never stored would only have the same batch refused when it is repeated.
            "duplicate_window": _ns(1),
            **({"first_seq": first_sequence} if first_sequence else {}),
            **_common(settings),
        },
        {
            "name": EVENTS_STREAM,
            "subjects": [f"{PREFIX}.events.>"],
            "max_age": _ns(settings.events_age_s),
            "discard": "old",
            **_common(settings),
        },
        {
            "name": DEAD_LETTER_STREAM,
            "subjects": [f"{PREFIX}.deadletter.>"],
            "max_age": _ns(settings.dead_letters_age_s),
            "discard": "old",
            **_common(settings),
        },
    ]


class _StreamNames(msgspec.Struct):
    streams: list[str] | None = None


async def ensure_streams(
    connection: Connection,
    settings: StreamSettings,
    shard: str = "main",
    segment: int = 0,
    first_sequence: int = 0,
) -> None:
    """Make the streams that are absent; check those that are there.

    Raises: StreamSettingsError with every difference of every stream; BusUnavailableError; BusRefusedError.
    """
    version = connection.server_version
    if version < SERVER_VERSION_MIN:
        wanted, found = (".".join(map(str, numbers)) for numbers in (SERVER_VERSION_MIN, version))
        raise StreamSettingsError([f"nats-server is {found}, {wanted} or later is needed"])
    differences = []
    for config in stream_configs(settings, shard, segment, first_sequence):
        present = await _present(connection, config)
        differences += _differences(config, present)
    if differences:
        raise StreamSettingsError(differences)


async def ledger_segments(connection: Connection, shard: str) -> list[int]:
    """The segments of a ledger that there are, ascending. Raises: BusUnavailableError, BusRefusedError."""
    answer = await connection.api("STREAM.NAMES", {"subject": f"{PREFIX}.ledger.{shard}.>"})
    prefix = ledger_stream(shard, 0)[:-1]
    names = [name.removeprefix(prefix) for name in msgspec.json.decode(answer, type=_StreamNames).streams or []]
    return sorted(int(number) for number in names if number.isdigit())


async def _present(connection: Connection, config: dict[str, Any]) -> dict[str, Any]:
    """The stream's settings as the server has them; it is made if it is absent."""
    name = config["name"]
    try:
        answer = await connection.api(f"STREAM.INFO.{name}")
    except BusRefusedError as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise
        try:
            answer = await connection.api(f"STREAM.CREATE.{name}", config)
        except BusRefusedError:
            # Perhaps another broker made it in between, with settings of its own.
            answer = await connection.api(f"STREAM.INFO.{name}")
    present: dict[str, Any] = msgspec.json.decode(answer)["config"]
    return present


def _differences(wanted: dict[str, Any], present: dict[str, Any]) -> list[str]:
    found = []
    for field, value in wanted.items():
        has = present.get(field, False if isinstance(value, bool) else None)
        if has == value or (field in _AT_LEAST and has is not None and has >= value):
            continue
        found.append(f"{wanted['name']}: {field} is {_text(field, has)}, not {_text(field, value)}")
    return found


def _text(field: str, value: Any) -> str:
    if field in ("max_age", "duplicate_window") and isinstance(value, int):
        return f"{value / 1e9:g}s"
    return msgspec.json.encode(value).decode()


def _common(settings: StreamSettings) -> dict[str, Any]:
    return {
        "storage": "file",
        "retention": "limits",
        "max_msgs": -1,
        "max_bytes": -1,
        "num_replicas": settings.replicas,
        "allow_direct": True,
        "sealed": False,
    }


def _ns(seconds: int) -> int:
    return seconds * 1_000_000_000
