"""DRA_STATE in stream order: at once, without loss, through trouble; ranges; the last message of each subject."""

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from broker.adapters.embedded_nats import EmbeddedNats
from broker.adapters.state_reader import PositionExpired, StateReader, read_state
from broker.adapters.streams import StreamSettings, ensure_streams
from schemas.client.connection import Connection
from schemas.client.follow import WINDOW, follow
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.subjects import STATE_STREAM
from tests.bus.builders import a_state, store
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio


async def take(reader: StateReader, count: int, within_s: float = 5) -> list[str]:
    """The texts of the next `count` messages."""
    texts: list[str] = []
    with anyio.fail_after(within_s):
        while len(texts) < count:
            batch = await reader.next_batch(count - len(texts))
            assert isinstance(batch, list)
            assert batch
            texts += [message.payload.decode() for message in batch]
    return texts


def texts_of(messages: list[StoredMessage]) -> list[str]:
    return [message.payload.decode() for message in messages]


async def test_reads_what_is_there_and_then_what_comes(connection: Connection) -> None:
    await store(connection, *(a_state(f"old {number}", key=f"u{number}") for number in range(5)))
    async with read_state(connection, start_after=2) as reader:
        assert await take(reader, 3) == ["old 2", "old 3", "old 4"]
        assert reader.position == 5
        with anyio.move_on_after(0.05):
            pytest.fail(f"nothing is new, but there is {await reader.next_batch()}")
        await store(connection, a_state("new 1"), a_state("new 2"))
        assert await take(reader, 2, within_s=0.5) == ["new 1", "new 2"]
        assert reader.position == await reader.last_sequence() == 7


async def test_a_batch_holds_no_more_than_asked_for(connection: Connection) -> None:
    await store(connection, *(a_state(str(number), key=f"u{number}") for number in range(10)))
    async with read_state(connection, start_after=0) as reader:
        batch = await reader.next_batch(messages_max=4)
        assert isinstance(batch, list)
        assert 1 <= len(batch) <= 4
        assert texts_of(batch) + await take(reader, 10 - len(batch)) == [str(number) for number in range(10)]


async def test_reads_more_than_several_windows_in_order(connection: Connection) -> None:
    count = 3 * WINDOW + 7
    await fill(connection, count)
    async with read_state(connection, start_after=0) as reader:
        assert await take(reader, count, within_s=20) == [str(number) for number in range(count)]


async def test_reads_messages_that_fill_a_window_by_their_size(connection: Connection) -> None:
    large = "x" * 900_000
    await store(connection, *(a_state(f"{number} {large}", key=f"u{number}") for number in range(50)))
    async with read_state(connection, start_after=0) as reader:
        assert [text.split()[0] for text in await take(reader, 50, within_s=20)] == [str(n) for n in range(50)]


async def test_a_cancelled_read_loses_nothing(connection: Connection) -> None:
    await fill(connection, 500)
    texts: list[str] = []
    async with read_state(connection, start_after=0) as reader, anyio.create_task_group() as tg:

        async def read_until_cancelled(scope: anyio.CancelScope) -> None:
            with scope:
                while True:
                    batch = await reader.next_batch(7)
                    assert isinstance(batch, list)
                    texts.extend(texts_of(batch))
                    if len(texts) == 500:
                        return

        for _ in range(60):
            scope = anyio.CancelScope()
            async with anyio.create_task_group() as one:
                one.start_soon(read_until_cancelled, scope)
                for _ in range(len(texts) % 11):
                    await checkpoint()
                scope.cancel()
        with anyio.fail_after(5):
            await read_until_cancelled(anyio.CancelScope())
        tg.cancel_scope.cancel()
    assert texts == [str(number) for number in range(500)]


@pytest.mark.parametrize("how", ["kill", "stop"])
async def test_goes_on_soon_after_the_server_was_started_again(
    own_nats: EmbeddedNats, own_connection: Connection, how: str
) -> None:
    await store(own_connection, a_state("before 1"), a_state("before 2"))
    async with read_state(own_connection, start_after=0) as reader:
        assert await take(reader, 2) == ["before 1", "before 2"]
        for round_ in range(3):
            await (own_nats.kill() if how == "kill" else own_nats.stop())
            await own_nats.start()
            await store(own_connection, a_state(f"after {round_}"))
            assert await take(reader, 1, within_s=5) == [f"after {round_}"]


async def test_a_reader_that_waits_while_the_server_is_away_hears_the_next_message(
    own_nats: EmbeddedNats, own_connection: Connection
) -> None:
    heard: list[str] = []
    async with read_state(own_connection, start_after=0) as reader, anyio.create_task_group() as tg:

        async def read() -> None:
            heard.extend(await take(reader, 1, within_s=20))

        tg.start_soon(read)
        await own_nats.kill()
        await own_nats.start()
        await store(own_connection, a_state("heard"))
    assert heard == ["heard"]


async def test_goes_on_when_the_server_forgot_its_consumer(connection: Connection) -> None:
    async with read_state(connection, start_after=0) as reader:
        await store(connection, a_state("1"))
        assert await take(reader, 1) == ["1"]
        names = msgspec.json.decode(await connection.api("CONSUMER.NAMES.DRA_STATE"))["consumers"]
        for name in names:
            await connection.api(f"CONSUMER.DELETE.DRA_STATE.{name}")
        await store(connection, a_state("2"))
        assert await take(reader, 1, within_s=5) == ["2"]


async def test_says_where_the_stream_begins_when_the_position_has_expired(connection: Connection) -> None:
    await store(connection, *(a_state(str(number)) for number in range(70)))  # the first six are dropped
    async with read_state(connection, start_after=3) as reader:
        assert await reader.next_batch() == PositionExpired(7)
        assert await reader.next_batch() == PositionExpired(7)
    async with read_state(connection, start_after=6) as reader:
        assert (await take(reader, 64))[0] == "6"


async def test_a_position_at_the_end_of_an_empty_stream_has_not_expired(connection: Connection) -> None:
    await store(connection, a_state("1"), a_state("2"))
    await connection.api("STREAM.PURGE.DRA_STATE", {})
    async with read_state(connection, start_after=2) as reader:
        await store(connection, a_state("3"))
        assert await take(reader, 1) == ["3"]
    async with read_state(connection, start_after=1) as reader:
        assert await reader.next_batch() == PositionExpired(3)


async def test_a_follower_waits_for_a_stream_that_is_not_there_yet(nats_url: str) -> None:
    heard: list[str] = []
    async with (
        connect_to(nats_url) as connection,
        read_state(connection, start_after=0) as reader,
        anyio.create_task_group() as tg,
    ):

        async def read() -> None:
            heard.extend(await take(reader, 1))

        tg.start_soon(read)
        await ensure_streams(connection, StreamSettings())
        await store(connection, a_state("there"))
    assert heard == ["there"]


async def test_reads_a_range_that_still_exists(connection: Connection) -> None:
    await store(connection, *(a_state(str(number), key=f"u{number % 3}") for number in range(1, 11)))
    await connection.api("STREAM.MSG.DELETE.DRA_STATE", {"seq": 5})
    await connection.api("STREAM.MSG.DELETE.DRA_STATE", {"seq": 6})
    reader = StreamReader(connection, STATE_STREAM)
    assert [texts_of(batch) async for batch in reader.read(2, 6)] == [["3", "4"]]
    assert [texts_of(batch) async for batch in reader.read(8, 99)] == [["9", "10"]]
    assert [texts_of(batch) async for batch in reader.read(10, 99)] == []


async def test_the_last_message_of_each_subject(connection: Connection) -> None:
    messages = [("u1", "1"), ("u2", "2"), ("u1", "3"), ("u3", "4"), ("u2", "5"), ("u1", "6")]
    await store(connection, *(a_state(text, key=key) for key, text in messages))
    await store(connection, a_state("7", key="u9", cluster="west"))
    async with read_state(connection, start_after=0) as reader:
        assert texts_of(await reader.last_messages()) == ["4", "5", "6", "7"]
        assert texts_of(await reader.last_messages("dra.v1.state.east.>")) == ["4", "5", "6"]
        assert texts_of(await reader.last_messages("dra.v1.state.north.>")) == []
        assert texts_of(await reader.last_messages(up_to=4)) == ["2", "3", "4"]
        assert texts_of(await reader.last_messages("dra.v1.state.*.claim.u1", up_to=2)) == ["1"]
        assert texts_of(await reader.last_messages(up_to=0)) == []


async def test_the_last_message_of_many_subjects_at_a_position(connection: Connection) -> None:
    await store(connection, *(a_state("old", key=f"u{number}") for number in range(450)))
    await store(connection, *(a_state("new", key=f"u{number}") for number in range(400)))
    async with read_state(connection, start_after=0) as reader:
        last = await reader.last_messages(up_to=450)
        assert [message.stream_sequence for message in last] == list(range(1, 451))
        last = await reader.last_messages()
        assert texts_of(last) == ["old"] * 50 + ["new"] * 400


async def test_several_filters_are_read_in_stream_order(connection: Connection) -> None:
    await store(connection, *(a_state(key, key=key) for key in ("u1", "u2", "u3", "u4")))
    filters = ["dra.v1.state.east.claim.u4", "dra.v1.state.east.claim.u2"]
    async with follow(connection, "DRA_STATE", filters=filters) as follower:
        got: list[str] = []
        with anyio.fail_after(5):
            while len(got) < 2:
                batch = await follower.next_batch()
                assert isinstance(batch, list)
                got += texts_of(batch)
    assert got == ["u2", "u4"]


async def fill(connection: Connection, count: int) -> None:
    """`count` messages "0", "1", ...; sent at once, and waited for from time to time."""
    for number in range(count):
        message = a_state(str(number), key=f"u{number}")
        if number % 250 == 0 or number == count - 1:
            await store(connection, message)
        else:
            await connection.publish(message.subject, message.payload)
