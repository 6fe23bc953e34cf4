"""A log is read by direct gets as by a consumer: every message, in order, whatever it contains."""

import anyio
import pytest
from msgspec.structs import replace

from broker.adapters.embedded_nats import EmbeddedNats
from broker.adapters.log_reader import WINDOW, LogReader
from broker.adapters.streams import StreamSettings, ensure_streams
from schemas.client.connection import Connection
from schemas.client.errors import BusRefusedError, StreamLostError
from schemas.client.reader import StreamReader
from schemas.wire.bus import OutgoingMessage, StoredMessage
from schemas.wire.subjects import STATE_STREAM
from tests.bus.builders import a_state, store
from tests.bus.test_hostile_messages import BLOCKS, WORDS
from tests.hostile import published, published_with, say

pytestmark = pytest.mark.anyio

CLAIMS = "dra.v1.state.*.claim.>"


def a_reader(connection: Connection, after: int = 0) -> LogReader:
    return LogReader(connection, STATE_STREAM, CLAIMS, after)


async def all_of(reader: LogReader) -> list[StoredMessage]:
    found: list[StoredMessage] = []
    while batch := await reader.take():
        assert reader.position == batch[-1].stream_sequence
        found += batch
    return found


async def by_consumer(connection: Connection) -> list[StoredMessage]:
    return [each async for batch in StreamReader(connection, STATE_STREAM).read(0, filters=[CLAIMS]) for each in batch]


async def test_reads_what_a_consumer_reads_and_then_what_comes(connection: Connection) -> None:
    reader = a_reader(connection)
    assert await reader.take() == []
    count = 2 * WINDOW + 7
    for number in range(count):
        headers = {"a": "b", "Nats-Msg-Id": str(number)} if number % 2 else {}
        await connection.publish(f"dra.v1.state.east.claim.u{number}", b"x" * (number % 9), headers)
        if number % 3 == 0:
            await connection.publish(f"dra.v1.state.east.slice.s{number}", b"x")
    await store(connection, a_state("last"))
    found = await all_of(reader)
    assert len(found) == count + 1
    expected = await by_consumer(connection)
    assert [replace(each, headers=dict(each.headers)) for each in found] == [
        replace(each, headers=dict(each.headers)) for each in expected
    ]
    await store(connection, a_state("new"))
    assert [each.payload for each in await reader.take()] == [b"new"]
    assert [each.payload for each in await all_of(a_reader(connection, reader.position - 1))] == [b"new"]


async def test_reads_past_whatever_a_message_contains(connection: Connection, nats_url: str) -> None:
    subject = b"dra.v1.state.west.claim."
    said = [published_with(subject + b"u%d" % number, block, b"{}") for number, block in enumerate(BLOCKS.values())]
    said += [published(subject + word, b"{}") for word in WORDS.values()]
    sequence = b"NATS/1.0\r\nNats-Sequence: 9999\r\nNats-Subject: dra.v1.state.east.claim.theirs\r\n\r\n"
    said.append(published_with(subject + b"forged", sequence, b"{}"))
    await say(nats_url, said)
    last = await store(connection, a_state("honest"))
    reader = a_reader(connection)
    found = await all_of(reader)
    assert found[-1].payload == b"honest"
    assert reader.position == last
    assert [each.stream_sequence for each in found] == [each.stream_sequence for each in await by_consumer(connection)]
    assert {each.subject.split(".")[3] for each in found[:-1]} == {"west"}


async def test_a_stream_that_was_made_again_is_an_error(connection: Connection) -> None:
    await store(connection, a_state("1"), a_state("2"))
    reader = LogReader(connection, STATE_STREAM, CLAIMS, look_every_s=0.0)
    assert len(await all_of(reader)) == 2
    await connection.api(f"STREAM.DELETE.{STATE_STREAM}")
    assert await reader.take() == [], "nobody answers for it just now"
    await ensure_streams(connection, StreamSettings())
    await store(connection, OutgoingMessage("dra.v1.state.east.claim.u1", b"other"))
    with pytest.raises(StreamLostError, match="ends at sequence 1, but was read up to 2"):
        await reader.take()


async def test_goes_on_when_the_server_is_back(own_nats: EmbeddedNats, own_connection: Connection) -> None:
    await store(own_connection, a_state("1"))
    reader = a_reader(own_connection)
    assert len(await all_of(reader)) == 1
    await own_nats.kill()
    assert await reader.take() == []
    await own_nats.start()
    await own_connection.wait_until_up()
    with anyio.fail_after(10):
        while True:
            try:
                await store(own_connection, a_state("2"))
                break
            except BusRefusedError:
                continue
        while (found := await reader.take()) == []:
            pass
    assert [each.payload for each in found] == [b"2"]
