"""The streams of the protocol, as the server really keeps them."""

from contextlib import suppress
from pathlib import Path

import anyio
import msgspec
import pytest

from broker.adapters.durability import Durability
from broker.adapters.errors import StreamSettingsError
from broker.adapters.streams import (
    HOUR_S,
    MADE_BY_US,
    StreamSettings,
    ensure_streams,
    ledger_segments,
    set_up_streams,
    stream_configs,
    stream_end,
)
from schemas.client.connection import Connection
from schemas.client.errors import BusRefusedError, BusUnavailableError
from schemas.client.reader import StreamReader
from tests.bus.builders import a_state, store
from tests.chaos.servers import make_servers
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio


async def test_makes_the_streams_once_and_finds_them_again(nats_url: str) -> None:
    async with connect_to(nats_url) as one, connect_to(nats_url) as two, anyio.create_task_group() as tg:
        for connection in (one, two, one, two):
            tg.start_soon(ensure_streams, connection, StreamSettings())
    async with connect_to(nats_url) as connection:
        await ensure_streams(connection, StreamSettings())
        for name in ("DRA_STATE", "DRA_LEDGER_main_0", "DRA_EVENTS", "DRA_DEADLETTER"):
            assert (await StreamReader(connection, name).state()).last_sequence == 0


async def test_names_every_setting_that_differs_and_changes_nothing(nats_url: str) -> None:
    async with connect_to(nats_url) as connection:
        wrong = {"name": "DRA_STATE", "subjects": ["dra.v1.state.>"], "max_age": 10**9, "storage": "memory"}
        await connection.api("STREAM.CREATE.DRA_STATE", {**wrong, "allow_direct": True})
        ledger = {"name": "DRA_LEDGER_main_0", "subjects": ["dra.v1.ledger.main.0.>"], "storage": "file"}
        await connection.api("STREAM.CREATE.DRA_LEDGER_main_0", ledger)
        with pytest.raises(StreamSettingsError, match="dragoman nats-setup") as error:
            await ensure_streams(connection, StreamSettings())
        assert "DRA_STATE: max_age is 1s, not at least 3600s" in error.value.differences
        assert 'DRA_STATE: storage is "memory", not "file"' in error.value.differences
        assert "DRA_STATE: max_msgs_per_subject is -1, not 64" in error.value.differences
        assert 'DRA_STATE: discard is "old", not "new"' in error.value.differences
        assert "DRA_LEDGER_main_0: allow_atomic is false, not true" in error.value.differences
        assert "DRA_LEDGER_main_0: deny_purge is false, not true" in error.value.differences
        with pytest.raises(StreamSettingsError):
            await ensure_streams(connection, StreamSettings())


async def test_an_operator_may_have_chosen_more_replicas_but_not_fewer(nats_url: str) -> None:
    async with connect_to(nats_url) as connection:
        await ensure_streams(connection, StreamSettings(replicas=1))
        with pytest.raises(StreamSettingsError, match="num_replicas is 1, not at least 3"):
            await ensure_streams(connection, StreamSettings(replicas=3))


async def replicas_of(connection: Connection, segment: int) -> int:
    answer = await connection.api(f"STREAM.INFO.DRA_LEDGER_main_{segment}")
    replicas: int = msgspec.json.decode(answer)["config"]["num_replicas"]
    return replicas


async def test_the_next_segment_has_the_replicas_of_the_one_before(tmp_path: Path) -> None:
    nodes = make_servers(tmp_path, 3)
    durability = Durability(allow_unsafe=True)
    try:
        for node in nodes:
            await node.start()
        async with connect_to(nodes[0].url) as connection:

            async def ensure(segment: int, replicas: int | None = None) -> None:
                """As soon as the servers have found each other."""
                with anyio.fail_after(60):
                    while True:
                        with suppress(BusRefusedError, BusUnavailableError):
                            settings = StreamSettings(replicas=replicas)
                            return await ensure_streams(connection, settings, "main", segment, 0, durability)
                        await anyio.sleep(0.2)

            await ensure(0, replicas=1)
            await ensure(1)
            assert await replicas_of(connection, 1) == 1  # by default it would be 3
            await connection.api("STREAM.DELETE.DRA_LEDGER_main_1")
            await set_up_streams(connection, StreamSettings(replicas=3))
            await ensure(1, replicas=1)
            assert await replicas_of(connection, 1) == 3
    finally:
        for node in nodes:
            await node.kill()


async def test_state_keeps_the_last_64_messages_of_a_subject_and_refuses_none(connection: Connection) -> None:
    await store(connection, a_state("of another", key="u2"))
    await store(connection, *(a_state(str(number)) for number in range(100)))
    reader = StreamReader(connection, "DRA_STATE")
    texts = [message.payload.decode() async for batch in reader.read(0) for message in batch]
    assert texts == ["of another", *map(str, range(36, 100))]


UNSAFE = {"name": "DRA_EVENTS", "subjects": ["dra.v1.events.>"], "storage": "memory", "allow_direct": True}


async def test_starts_on_unsafe_streams_only_if_told_to(nats_url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with connect_to(nats_url) as connection:
        await connection.api("STREAM.CREATE.DRA_EVENTS", {**UNSAFE, "max_age": 30 * 24 * HOUR_S * 10**9})
        with pytest.raises(StreamSettingsError, match="--allow-unsafe-durability") as error:
            await ensure_streams(connection, StreamSettings())
        assert error.value.differences == ('DRA_EVENTS: storage is "memory", not "file"',)
        await ensure_streams(connection, StreamSettings(), durability=Durability(allow_unsafe=True))
    assert 'DRA_EVENTS: storage is "memory"' in caplog.text


async def test_what_does_more_than_lose_messages_is_never_allowed(nats_url: str) -> None:
    async with connect_to(nats_url) as connection:
        await connection.api("STREAM.CREATE.DRA_EVENTS", {**UNSAFE, "max_age": 10**9})
        with pytest.raises(StreamSettingsError) as error:
            await ensure_streams(connection, StreamSettings(), durability=Durability(allow_unsafe=True))
        assert "allow-unsafe" not in str(error.value)
        assert len(error.value.differences) == 2


async def test_setup_makes_changes_and_finds(nats_url: str) -> None:
    async with connect_to(nats_url) as connection:
        made = await set_up_streams(connection, StreamSettings())
        assert {each.action for each in made} == {"made"}
        longer = StreamSettings(state_age_s=100 * HOUR_S)
        state, *others = await set_up_streams(connection, longer)
        assert (state.action, state.changes) == ("changed", ["DRA_STATE: max_age is 259200s, not 360000s"])
        assert {each.action for each in others} == {"found"}
        assert {each.action for each in await set_up_streams(connection, longer)} == {"found"}
        await ensure_streams(connection, StreamSettings())  # a broker takes any age that is long enough


async def test_setup_loosens_nothing_unless_told_to(nats_url: str) -> None:
    shorter = StreamSettings(state_age_s=10 * HOUR_S)
    async with connect_to(nats_url) as connection:
        await set_up_streams(connection, StreamSettings())
        with pytest.raises(
            StreamSettingsError, match=r"max_age is 259200s, not 36000s \(more than asked for: --loosen"
        ):
            await set_up_streams(connection, shorter)
        state, *_ = await set_up_streams(connection, shorter, loosen=True)
        assert state.action == "changed"


async def test_setup_keeps_what_was_chosen_before(nats_url: str) -> None:
    chosen = StreamSettings(state_age_s=168 * HOUR_S, events_age_s=2 * HOUR_S)
    async with connect_to(nats_url) as connection:
        await set_up_streams(connection, chosen)
        assert {each.action for each in await set_up_streams(connection, StreamSettings())} == {"found"}
        letters = await set_up_streams(connection, StreamSettings(dead_letters_age_s=1000 * HOUR_S))
        assert [each.changes for each in letters] == [[], [], [], ["DRA_DEADLETTER: max_age is 2592000s, not 3600000s"]]


@pytest.mark.parametrize(
    ("age_s", "becomes"),
    [
        pytest.param(60, 30 * 24 * HOUR_S, id="an age that no broker takes becomes the default"),
        pytest.param(HOUR_S, HOUR_S, id="the shortest that one takes stays"),
        pytest.param(0, 0, id="for ever stays for ever"),
    ],
)
async def test_setup_keeps_no_age_that_a_broker_does_not_take(nats_url: str, age_s: int, becomes: int) -> None:
    async with connect_to(nats_url) as connection:
        await set_up_streams(connection, StreamSettings())
        config = msgspec.json.decode(await connection.api("STREAM.INFO.DRA_EVENTS"))["config"]
        short = {"max_age": age_s * 10**9, "duplicate_window": 60 * 10**9}
        await connection.api("STREAM.UPDATE.DRA_EVENTS", {**config, **short})
        await set_up_streams(connection, StreamSettings())
        config = msgspec.json.decode(await connection.api("STREAM.INFO.DRA_EVENTS"))["config"]
        assert config["max_age"] == becomes * 10**9
        await ensure_streams(connection, StreamSettings())


async def test_setup_leaves_a_stream_of_somebody_else_alone_unless_told_to(nats_url: str) -> None:
    async with connect_to(nats_url) as connection:
        theirs = {"name": "DRA_EVENTS", "subjects": ["dra.v1.events.>"], "max_age": HOUR_S * 10**9, "description": "x"}
        await connection.api("STREAM.CREATE.DRA_EVENTS", theirs)
        with pytest.raises(StreamSettingsError, match="not made by Dragoman: --adopt") as error:
            await set_up_streams(connection, StreamSettings())
        assert len(error.value.differences) == 2  # allow_atomic, allow_direct
        *_, events, _ = await set_up_streams(connection, StreamSettings(), adopt=True)
        assert (events.stream, events.action) == ("DRA_EVENTS", "changed")
        assert b'"description":"x"' in bytes(await connection.api("STREAM.INFO.DRA_EVENTS"))
        assert {each.action for each in await set_up_streams(connection, StreamSettings())} == {"found"}


async def test_events_that_an_earlier_build_kept_do_not_stop_a_start(nats_url: str) -> None:
    async with connect_to(nats_url) as connection:
        before = next(each for each in stream_configs(StreamSettings(), "main", 0) if each["name"] == "DRA_EVENTS")
        del before["allow_atomic"]
        await connection.api("STREAM.CREATE.DRA_EVENTS", {**before, "metadata": MADE_BY_US})
        await ensure_streams(connection, StreamSettings())
        assert not (await stream_end(connection, "DRA_EVENTS")).takes_batches
        await set_up_streams(connection, StreamSettings())
        assert (await stream_end(connection, "DRA_EVENTS")).takes_batches


async def test_every_segment_is_seen_however_many_there_are(nats_url: str) -> None:
    """The server names 1,024 at a time, in the order of text: 1023 comes before 999."""
    async with connect_to(nats_url) as connection:
        for number in range(1_100):
            name = f"DRA_LEDGER_main_{number}"
            config = {"name": name, "subjects": [f"dra.v1.ledger.main.{number}.>"], "storage": "memory"}
            await connection.api(f"STREAM.CREATE.{name}", config)
        assert await ledger_segments(connection, "main") == list(range(1_100))
