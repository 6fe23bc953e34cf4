"""A message may hold any bytes that a server takes: who hears it goes on hearing the next."""

import logging

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client

from broker.adapters.api_service import serve_api
from schemas.client.client import BusClient
from schemas.client.connection import Connection
from schemas.client.follow import follow
from schemas.client.options import BusOptions
from schemas.client.reader import StreamReader
from schemas.wire.bus import header_block
from schemas.wire.subjects import STATE_STREAM
from tests.hostile import published, published_with, say
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio

SOON_S = 2.0  # a connection that hears nothing finds out after 15 s
BLOCKS = {
    "a description that is not UTF-8": b"NATS/1.0 200 \xff\r\n\r\n",
    "a status that is not UTF-8": b"NATS/1.0 \xff\xff\xff\r\n\r\n",
    "a description that is not UTF-8, and headers": b"NATS/1.0 100 \xff\r\na: b\r\n\r\n",
    "nothing but the version": b"NATS/1.0",
    "nothing but the version and a space": b"NATS/1.0 ",
    "less than the version": b"N",
    "something else": b"\xff\x00\r\r\n\n:",
    "a name that is not UTF-8": b"NATS/1.0\r\n\xff: \xff\r\n\r\n",
    "many headers": b"NATS/1.0\r\n" + b"".join(b"A%d: b\r\n" % number for number in range(2_000)) + b"\r\n",
}
# No white space for the server, and so a part of a subject.
WORDS = {"not UTF-8": b"\xff", "a vertical tab": b"\x0b", "a form feed": b"a\x0c7", "a control character": b"\x00\x7f"}


def hostile(subject: bytes) -> list[bytes]:
    """Such messages on `subject`, to which anybody may be asked to answer."""
    said = [published_with(subject, block, body) for block in BLOCKS.values() for body in (b"", b"{}")]
    return said + [published(subject + b" " + word, b"{}") for word in WORDS.values()]


@pytest.mark.parametrize("subject", ["dra.v1.beat.west", "dra.v1.beat.*", ">"])
async def test_a_listener_hears_what_is_said_afterwards(nats_url: str, subject: str) -> None:
    async with connect_to(nats_url) as connection, connection.listen(subject) as heard:
        said = hostile(b"dra.v1.beat.west") + [published(b"dra.v1.beat." + word, b"{}") for word in WORDS.values()]
        for each in said:
            await say(nats_url, [each, published(b"dra.v1.beat.west", b"honest")])
            with anyio.fail_after(SOON_S):
                while (await heard.receive()).payload != b"honest":
                    pass
        await connection.api("INFO", deadline_s=SOON_S)
        assert connection.losses == 0


async def test_who_asks_hears_its_answer(nats_url: str) -> None:
    async with connect_to(nats_url) as connection:
        await connection.api("INFO")  # it has an inbox for answers now
        answers = connection.client._answers.encode()
        assert answers
        for each in hostile(answers + b".x") + [published(answers + b"." + word, b"{}") for word in WORDS.values()]:
            await say(nats_url, [each])
            await connection.api("INFO", deadline_s=SOON_S)
        assert connection.losses == 0


async def test_a_service_answers_the_next(nats_url: str) -> None:
    async def join(payload: bytes) -> bytes:
        return payload

    async def west(cluster: str, payload: bytes) -> bytes:
        return payload

    async with connect_to(nats_url) as connection, connect_to(nats_url) as asker:
        async with serve_api(connection, {"explain": join}, {"join": west}):
            for subject in ("dra.v1.api.join.west", "dra.v1.api.explain"):
                said = hostile(subject.encode())
                said += [published(b"dra.v1.api.join." + word + b" _INBOX.x", b"{}") for word in WORDS.values()]
                for each in said:
                    await say(nats_url, [each])
                    assert (await asker.request(subject, b"honest", deadline_s=SOON_S)).payload == b"honest"
        assert connection.losses == asker.losses == 0


async def test_a_sink_that_fails_ends_nothing(nats_url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with connect_to(nats_url) as connection, connection.inbox(lambda *_: [][0]) as inbox:
        for _ in range(3):
            await connection.publish(inbox, b"x")
        await connection.api("INFO", deadline_s=SOON_S)
        assert connection.client.dropped == 3
        assert connection.losses == 0
    told = [record.message for record in caplog.records if "dropped" in record.message]
    assert len(told) == 1, "once a minute"
    assert inbox in told[0]
    assert "IndexError" in told[0]


@pytest.mark.parametrize("word", [pytest.param(word, id=name) for name, word in WORDS.items()])
async def test_a_stream_is_read_past_a_subject_of_any_bytes(connection: Connection, nats_url: str, word: bytes) -> None:
    """Where one reader fails, each fails: the message stays in the stream."""
    subjects = [b"dra.v1.state.west.claim." + each for each in (word, b"a" + word + b"b", b"a" + word)]
    said = [published(subject, b"{}") for subject in subjects]
    await say(nats_url, [*said, published(b"dra.v1.state.west.claim.u1", b"honest")])
    with anyio.fail_after(SOON_S):
        async with follow(connection, STATE_STREAM) as follower:
            found: list[bytes] = []
            while len(found) < len(said) + 1:
                batch = await follower.next_batch()
                assert isinstance(batch, list)
                found += [message.payload for message in batch]
        assert found[-1] == b"honest"
        await say(nats_url, said)  # it ends with one of them
        last = await StreamReader(connection, STATE_STREAM).last_messages()
        assert b"honest" in [message.payload for message in last]
    assert connection.losses == 0


@given(
    st.dictionaries(
        st.sampled_from(["ce-id", "ce-type", "Nats-Msg-Id"]),
        st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=9),
    ),
    st.sampled_from(["", " 404 No Messages", " 100 Idle Heartbeat"]),
)
@example({}, " 503")  # with headers nats-py takes those for its description
async def test_honest_headers_are_read_as_nats_py_reads_them(headers: dict[str, str], status: str) -> None:
    block = header_block(headers).replace(b"NATS/1.0", b"NATS/1.0" + status.encode(), 1)
    theirs = await Client()._process_headers(block)
    assert await BusClient(BusOptions())._process_headers(block) == theirs


@given(st.binary(max_size=40), st.sampled_from([b"", b"NATS/1.0", b"NATS/1.0 ", b"NATS/1.0\r\n"]))
async def test_headers_of_any_bytes_are_read(rest: bytes, begin: bytes) -> None:
    await BusClient(BusOptions())._process_headers(begin + rest)
