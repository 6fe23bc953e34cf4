"""The streams of the protocol, as the server really keeps them."""

import anyio
import pytest

from broker.adapters.errors import StreamSettingsError
from broker.adapters.streams import StreamSettings, ensure_streams
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from tests.bus.builders import a_state, store
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
        with pytest.raises(StreamSettingsError, match="nats stream edit") as error:
            await ensure_streams(connection, StreamSettings())
        assert "DRA_STATE: max_age is 1s, not 259200s" in error.value.differences
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
        with pytest.raises(StreamSettingsError, match="num_replicas is 1, not 3"):
            await ensure_streams(connection, StreamSettings(replicas=3))


async def test_state_keeps_the_last_64_messages_of_a_subject_and_refuses_none(connection: Connection) -> None:
    await store(connection, a_state("of another", key="u2"))
    await store(connection, *(a_state(str(number)) for number in range(100)))
    reader = StreamReader(connection, "DRA_STATE")
    texts = [message.payload.decode() async for batch in reader.read(0) for message in batch]
    assert texts == ["of another", *map(str, range(36, 100))]
