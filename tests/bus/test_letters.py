"""Dead letters where their stream is gone, or takes none: kept where that is possible, and nobody waits long."""

import logging
import time

import anyio
import msgspec
import pytest

from broker.adapters.dead_letters import DeadLetters
from broker.adapters.embedded_nats import EmbeddedNats
from broker.adapters.streams import StreamSettings
from broker.app.letters import LOOK_EVERY_S, PATIENCE_S, WAITING_MAX, Letters
from schemas.client.connection import Connection
from schemas.wire.bus import OutgoingMessage
from schemas.wire.subjects import DEAD_LETTER_STREAM

pytestmark = pytest.mark.anyio


def some(*texts: str) -> list[OutgoingMessage]:
    return [OutgoingMessage("dra.v1.deadletter.east", text.encode(), {"Nats-Msg-Id": text}) for text in texts]


async def kept(connection: Connection) -> list[str]:
    return [letter.payload.decode() for letter in await DeadLetters(connection).all()]


async def limit(connection: Connection, messages: int) -> None:
    """The stream takes so many, -1: any number."""
    answer = await connection.api(f"STREAM.INFO.{DEAD_LETTER_STREAM}")
    config = msgspec.json.decode(answer)["config"]
    await connection.api(f"STREAM.UPDATE.{DEAD_LETTER_STREAM}", {**config, "max_msgs": messages, "discard": "new"})


async def until_kept(letters: Letters) -> None:
    with anyio.fail_after(30):
        while not letters.are_kept:
            await letters.keep([])
            await anyio.sleep(0.05)


async def test_a_stream_that_is_gone_is_made_again(connection: Connection, caplog: pytest.LogCaptureFixture) -> None:
    letters = Letters(connection, StreamSettings())
    await letters.keep(some("first"))
    await connection.api(f"STREAM.DELETE.{DEAD_LETTER_STREAM}")
    began = time.monotonic()
    await letters.keep(some("second", "third"))
    assert time.monotonic() - began < PATIENCE_S
    assert await kept(connection) == ["second", "third"]
    assert [record.message[:50] for record in caplog.records] == ["DRA_DEADLETTER was gone, with all that it had: mad"]


async def test_what_the_stream_does_not_take_waits_and_the_rest_goes_on(
    connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    letters = Letters(connection, StreamSettings())
    await limit(connection, 1)
    with caplog.at_level(logging.WARNING):
        began = time.monotonic()
        await letters.keep(some("a", "b", "c"))
        assert PATIENCE_S <= time.monotonic() - began < 2 * PATIENCE_S
        began = time.monotonic()
        for number in range(WAITING_MAX):
            await letters.keep(some(f"more-{number}"))
        assert time.monotonic() - began < LOOK_EVERY_S
        assert not letters.are_kept
        assert await kept(connection) == ["a"]
        await limit(connection, -1)
        await until_kept(letters)
    (cannot, again) = caplog.messages
    assert cannot.startswith("dead letters cannot be kept, decisions go on")
    assert "maximum messages exceeded" in cannot
    assert again == "dead letters are kept again; 2 of them are in the log alone"
    expected = ["a", "b", "c", *(f"more-{number}" for number in range(WAITING_MAX - 2))]
    assert await kept(connection) == expected


async def test_nobody_waits_for_servers_that_do_not_answer(
    own_nats: EmbeddedNats, own_connection: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    letters = Letters(own_connection, StreamSettings())
    await own_nats.kill()
    began = time.monotonic()
    await letters.keep(some("a"))
    assert time.monotonic() - began < 2 * PATIENCE_S
    await own_nats.start()
    await until_kept(letters)
    assert await kept(own_connection) == ["a"]
