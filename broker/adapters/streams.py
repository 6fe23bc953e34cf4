"""The streams of the protocol: made if they are absent, compared if they are there.

A broker makes and checks them and changes none; `dragoman nats-setup` may change one that Dragoman made, if it does not
promise less afterwards. Two that start at once make the same ones; the second sees the first's.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from broker.adapters.durability import DEFAULT, Durability, server_problems
from broker.adapters.errors import StreamSettingsError
from schemas.client.connection import Connection, read_answer
from schemas.client.errors import BusRefusedError, BusUnavailableError
from schemas.wire.bus import unix_ms
from schemas.wire.subjects import DEAD_LETTER_STREAM, EVENTS_STREAM, PREFIX, STATE_STREAM, ledger_stream

_log = logging.getLogger(__name__)

HOUR_S = 3600
STATE_AGE_S = 72 * HOUR_S
EVENTS_AGE_S = DEAD_LETTERS_AGE_S = 30 * 24 * HOUR_S
REPLICAS_IN_A_CLUSTER = 3
STREAM_NOT_FOUND = 10059
PER_SUBJECT = 64  # messages of one object that DRA_STATE keeps
MADE_BY_US = {"dev.dragoman": "v1"}  # metadata of a stream; one without it is somebody else's
# What keeps an acknowledged message: without it a decision can be lost, but nothing else goes wrong.
_DURABILITY = frozenset({"num_replicas", "storage", "deny_delete", "deny_purge", "duplicate_window"})
# More of it only promises more; of an age 0 is the most.
_AT_LEAST = frozenset({"num_replicas", "max_age", "duplicate_window"})
_FOR_EVER = frozenset({"max_age"})


class StreamSettings(msgspec.Struct, frozen=True):
    """What an operator may choose.

    replicas: at least; None: what the servers make possible, three in a cluster of them, else one.
    state_age_s: an agent publishes each object again before a third of it has passed.
    An age that is None stays as it is; a new stream has the default.
    """

    replicas: int | None = None
    state_age_s: int | None = None
    events_age_s: int | None = None
    dead_letters_age_s: int | None = None


LEAST_AGE_S = HOUR_S
# What a broker wants of streams that it finds: an operator may have chosen other ages.
LEAST = StreamSettings(state_age_s=LEAST_AGE_S, events_age_s=LEAST_AGE_S, dead_letters_age_s=LEAST_AGE_S)


class StreamDone(msgspec.Struct, frozen=True):
    """What became of one stream. changes: one sentence each."""

    stream: str
    action: Literal["made", "changed", "found"]
    changes: list[str]
    replicas: int


def stream_configs(
    settings: StreamSettings, shard: str, segment: int, first_sequence: int = 0, state_first_sequence: int = 0
) -> list[dict[str, Any]]:
    """The streams, as JetStream's API names their settings. None in `settings` is the default, one as to replicas.

    first_sequence: of the ledger's segment, where it is to be made after others; see `ledger_segments`.
    state_first_sequence: of DRA_STATE, where it is to be made in place of one that was lost.
    """
    return [
        {
            "name": STATE_STREAM,
            "subjects": [f"{PREFIX}.state.>"],
            "max_age": _ns(settings.state_age_s or STATE_AGE_S),
            # A log, at most 64 messages per subject: the oldest of the subject goes. `discard: new` alone is about the
            # limits of the whole stream, of which there are none; only with `discard_new_per_subject` would the 65th
            # message of a subject be refused, and then an object could never be heard of again.
            "max_msgs_per_subject": PER_SUBJECT,
            "discard": "new",
            "discard_new_per_subject": False,
            "allow_atomic": True,
            "duplicate_window": _ns(120),
            **({"first_seq": state_first_sequence} if state_first_sequence else {}),
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
            "max_age": _ns(settings.events_age_s or EVENTS_AGE_S),
            "discard": "old",
            "allow_atomic": True,
            **_common(settings),
        },
        {
            "name": DEAD_LETTER_STREAM,
            "subjects": [f"{PREFIX}.deadletter.>"],
            "max_age": _ns(settings.dead_letters_age_s or DEAD_LETTERS_AGE_S),
            "discard": "old",
            **_common(settings),
        },
    ]


class StreamEnd(msgspec.Struct, frozen=True):
    """Where a stream ends, all of one moment.

    messages: that it holds; with none of them left, `last_sequence` still is the last one's.
    over_ms: Unix milliseconds; what was to be stored by then was, or would have expired since.
    """

    takes_batches: bool
    messages: int
    last_sequence: int
    over_ms: int


class _StreamConfig(msgspec.Struct):
    allow_atomic: bool = False
    max_age: int = 0


class _StreamState(msgspec.Struct):
    messages: int
    last_seq: int
    last_ts: str


class _StreamInfo(msgspec.Struct):
    config: _StreamConfig
    state: _StreamState
    ts: str


class _StreamSettings(msgspec.Struct):
    config: dict[str, Any]


class _StreamNames(msgspec.Struct):
    total: int
    streams: list[str] | None = None


async def ensure_streams(
    connection: Connection,
    settings: StreamSettings,
    shard: str = "main",
    segment: int = 0,
    first_sequence: int = 0,
    durability: Durability = DEFAULT,
    state_first_sequence: int = 0,
) -> None:
    """Make the streams that are absent; check those that are there, and the servers that keep them.

    Raises: StreamSettingsError with every difference of every stream; BusUnavailableError; BusRefusedError.
    """
    settings = await _with_replicas(connection, settings)
    least = msgspec.structs.replace(LEAST, replicas=settings.replicas)
    unsafe = await server_problems(connection, durability)
    wrong: list[str] = []
    for config, wanted in zip(
        stream_configs(settings, shard, segment, first_sequence, state_first_sequence),
        stream_configs(least, shard, segment, first_sequence, state_first_sequence),
        strict=True,
    ):
        if config["name"] == ledger_stream(shard, segment):
            config["num_replicas"] = await _replicas_before(connection, shard, segment) or config["num_replicas"]
        present, _ = await _present(connection, config)
        if config["name"] == EVENTS_STREAM:
            del wanted["allow_atomic"]  # only events wait for it, see `Projector`
        for field, sentence in _differences(wanted, present):
            (unsafe if field in _DURABILITY else wrong).append(sentence)
    if wrong or (unsafe and not durability.allow_unsafe):
        raise StreamSettingsError([*wrong, *unsafe], may_allow=not wrong)
    for sentence in unsafe:
        _log.warning("not safe, but allowed by --allow-unsafe-durability: %s", sentence)


async def _replicas_before(connection: Connection, shard: str, segment: int) -> int | None:
    """Of the last segment before this one: what an operator has chosen goes for those that follow."""
    before = [each for each in await ledger_segments(connection, shard) if each < segment]
    if not before:
        return None
    answer = await connection.api(f"STREAM.INFO.{ledger_stream(shard, before[-1])}")
    replicas: int = msgspec.json.decode(answer)["config"]["num_replicas"]
    return replicas


async def ensure_dead_letters(connection: Connection, settings: StreamSettings) -> bool:
    """Make DRA_DEADLETTER if it is absent; whether it was. Raises: BusUnavailableError, BusRefusedError."""
    configs = stream_configs(await _with_replicas(connection, settings), "main", 0)
    (config,) = (each for each in configs if each["name"] == DEAD_LETTER_STREAM)
    _, is_new = await _present(connection, config)
    return is_new


async def set_up_streams(
    connection: Connection,
    settings: StreamSettings,
    *,
    adopt: bool = False,
    loosen: bool = False,
    shard: str = "main",
) -> list[StreamDone]:
    """Make the streams, and change those of ours that differ from `settings`.

    adopt: also change streams that Dragoman did not make. loosen: also where a stream then promises less.
    Raises: StreamSettingsError when one would have to be changed and may not: then none is changed.
        BusUnavailableError; BusRefusedError, also when the server cannot make the change.
    """
    settings = await _with_replicas(connection, settings)
    segments = await ledger_segments(connection, shard)
    configs = stream_configs(settings, shard, segments[-1] if segments else 0)
    found = [(config, *await _present(connection, config)) for config in configs]
    _keep_ages(settings, found)
    refused = []
    for config, present, _ in found:
        differs = _differences(config, present, exactly=True)
        if differs and not adopt and not MADE_BY_US.items() <= present.get("metadata", {}).items():
            refused += [f"{sentence} (not made by Dragoman: --adopt changes it)" for _, sentence in differs]
        elif not loosen:
            less = {field for field, _ in _differences(config, present)}
            refused += [
                f"{sentence} (more than asked for: --loosen changes it)"
                for field, sentence in differs
                if field not in less
            ]
    if refused:
        raise StreamSettingsError(refused)
    done = []
    for config, present, is_new in found:
        changes = [sentence for _, sentence in _differences(config, present, exactly=True)]
        if changes:
            metadata = {**present.get("metadata", {}), **MADE_BY_US}
            body = {**present, **config, "metadata": metadata}
            await connection.api(f"STREAM.UPDATE.{config['name']}", body)
        action: Literal["made", "changed", "found"] = "made" if is_new else "changed" if changes else "found"
        done.append(StreamDone(config["name"], action, changes, config["num_replicas"]))
    return done


async def _with_replicas(connection: Connection, settings: StreamSettings) -> StreamSettings:
    if settings.replicas is not None:
        return settings
    replicas = REPLICAS_IN_A_CLUSTER if connection.is_clustered else 1
    return msgspec.structs.replace(settings, replicas=replicas)


def _keep_ages(settings: StreamSettings, found: Sequence[tuple[dict[str, Any], dict[str, Any], bool]]) -> None:
    """An age that is not chosen now stays as it is, unless no broker would take it."""
    chosen = {
        STATE_STREAM: settings.state_age_s,
        EVENTS_STREAM: settings.events_age_s,
        DEAD_LETTER_STREAM: settings.dead_letters_age_s,
    }
    for config, present, _ in found:
        is_open = config["name"] in chosen and chosen[config["name"]] is None
        if is_open and _amount("max_age", present["max_age"]) >= _ns(LEAST_AGE_S):
            config["max_age"] = present["max_age"]


async def ledger_segments(connection: Connection, shard: str) -> list[int]:
    """The segments of a ledger that there are, ascending. Raises: BusUnavailableError, BusRefusedError."""
    prefix = ledger_stream(shard, 0)[:-1]
    names = [name.removeprefix(prefix) for name in await stream_names(connection, f"{PREFIX}.ledger.{shard}.>")]
    return sorted(int(number) for number in names if number.isdigit())


async def stream_end(connection: Connection, stream: str) -> StreamEnd:
    """What the stream's leader says of its end. Raises: BusUnavailableError, BusRefusedError."""
    request = f"STREAM.INFO.{stream}"
    info = read_answer(request, await connection.api(request), _StreamInfo)
    # By the server's clock, as the times of messages are; it is read after the state. The age alone would not do where
    # messages have expired under a shorter one. Nor would the last message's time: a server may not know it (it says
    # year 1 then), and clocks of servers that keep two streams differ by more than passes between their messages.
    try:
        expired_ms = unix_ms(info.ts) - info.config.max_age // 1_000_000 if info.config.max_age else 0
        over_ms = max(unix_ms(info.state.last_ts), expired_ms)
    except ValueError as error:
        raise BusUnavailableError(f"NATS' answer to {request} cannot be read: {error}") from error
    return StreamEnd(info.config.allow_atomic, info.state.messages, info.state.last_seq, over_ms)


async def stream_names(connection: Connection, subject: str) -> list[str]:
    """The streams that may hold messages on `subject`. Raises: BusUnavailableError, BusRefusedError."""
    names: list[str] = []
    total = 0
    while True:  # a page has 1,024 of them
        asked = {"subject": subject, "offset": len(names)}
        page = read_answer("STREAM.NAMES", await connection.api("STREAM.NAMES", asked), _StreamNames)
        if names and page.total != total:
            names = []  # one was made or deleted in between: pages of two moments miss some
            continue
        total = page.total
        names += page.streams or []
        if len(names) >= total or not page.streams:
            return names


async def _present(connection: Connection, config: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """The stream's settings as the server has them, and whether we made it just now: it was absent."""
    name = config["name"]
    is_new = False
    try:
        answer = await connection.api(f"STREAM.INFO.{name}")
    except BusRefusedError as error:
        if error.err_code != STREAM_NOT_FOUND:
            raise
        try:
            answer = await connection.api(f"STREAM.CREATE.{name}", {**config, "metadata": MADE_BY_US})
            is_new = True
        except BusRefusedError as refused:
            try:
                # Perhaps another broker made it in between, with settings of its own.
                answer = await connection.api(f"STREAM.INFO.{name}")
            except BusRefusedError:
                raise refused from None
    return read_answer(f"STREAM.INFO.{name}", answer, _StreamSettings).config, is_new


def _differences(wanted: dict[str, Any], present: dict[str, Any], *, exactly: bool = False) -> list[tuple[str, str]]:
    """Field and sentence for each setting that is not as wanted. exactly: nor may it be more than that."""
    found = []
    for field, value in wanted.items():
        has = present.get(field, False if isinstance(value, bool) else None)
        enough = field in _AT_LEAST and _amount(field, has) >= _amount(field, value) and value != 0
        if has == value or (enough and not exactly):
            continue
        least = "at least " if field in _AT_LEAST and value != 0 and not exactly else ""
        sentence = f"{wanted['name']}: {field} is {_text(field, has)}, not {least}{_text(field, value)}"
        found.append((field, sentence))
    return found


def _amount(field: str, value: int | None) -> float:
    return math.inf if value == 0 and field in _FOR_EVER else value or 0


def _text(field: str, value: Any) -> str:
    if field in ("max_age", "duplicate_window") and isinstance(value, int):
        return f"{value / 1e9:.15g}s"
    return msgspec.json.encode(value).decode()


def _common(settings: StreamSettings) -> dict[str, Any]:
    return {
        "storage": "file",
        "retention": "limits",
        "max_msgs": -1,
        "num_replicas": settings.replicas or 1,
        "allow_direct": True,
        "sealed": False,
    }


def _ns(seconds: int) -> int:
    return seconds * 1_000_000_000
