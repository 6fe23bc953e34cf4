"""Compare-and-append on a real nats-server: what is committed, refused, uncertain, and that nothing lands twice."""

from collections.abc import Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint

from broker.adapters.embedded_nats import EmbeddedNats
from broker.adapters.errors import BatchTooLargeError, LedgerTornError
from broker.adapters.ledger_store import AppendResult, Committed, LedgerStore, Refused, Uncertain
from broker.adapters.streams import StreamSettings, ensure_streams
from broker.errors import InvariantError, LedgerLostError
from schemas.client.connection import Connection
from schemas.client.errors import BusRefusedError, MessageTooLargeError, StreamGapError, StreamLostError
from schemas.client.follow import follow
from schemas.client.reader import StreamReader
from schemas.wire.bus import OutgoingMessage, StoredMessage
from tests.bus.builders import Cut, a_batch, a_proxy, an_entry, store
from tests.bus.conftest import LEDGER
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio


async def everything(ledger: LedgerStore, after: int = 0, until: int | None = None) -> list[StoredMessage]:
    return [message async for batch in ledger.read(after, until) for message in batch]


def texts(messages: list[StoredMessage] | list[OutgoingMessage]) -> list[str]:
    return [message.payload.decode() for message in messages]


async def test_appends_a_batch_behind_the_entry_it_expects(ledger: LedgerStore) -> None:
    assert await ledger.last_sequence() == 0
    assert await ledger.append(a_batch("first", 3), expected_last=0) == Committed(3)
    assert await ledger.append([an_entry("single")], expected_last=3) == Committed(4)
    assert await ledger.last_sequence() == 4

    stored = await everything(ledger)
    assert texts(stored) == ["first-0", "first-1", "first-2", "single"]
    assert [message.stream_sequence for message in stored] == [1, 2, 3, 4]
    assert [message.message_id for message in stored] == ["first-0", "first-1", "first-2", "single"]
    assert stored[0].subject == "dra.v1.ledger.main.0.east.claim.u0"


async def test_refuses_a_batch_that_expects_another_end(ledger: LedgerStore) -> None:
    await ledger.append(a_batch("first", 3), expected_last=0)
    assert await ledger.append(a_batch("late", 2), expected_last=0) == Refused(3)
    assert await ledger.append(a_batch("in the middle", 2), expected_last=1) == Refused(3)
    assert len(await everything(ledger)) == 3


async def test_refuses_to_append_after_entries_that_are_lost(ledger: LedgerStore) -> None:
    await ledger.append(a_batch("first", 3), expected_last=0)
    assert await ledger.append(a_batch("next", 2), expected_last=7) == Refused(3)


async def test_the_same_batch_again_is_committed_and_not_stored_twice(ledger: LedgerStore) -> None:
    batch = a_batch("once", 5)
    assert await ledger.append(batch, expected_last=0) == Committed(5)
    # The server says "duplicate message id" now, and "wrong last sequence" once it has forgotten the ids.
    assert await ledger.append(batch, expected_last=0) == Committed(5)
    assert texts(await everything(ledger)) == texts(batch)


async def test_a_batch_that_differs_in_one_entry_is_not_taken_for_ours(ledger: LedgerStore) -> None:
    stored = a_batch("entry", 3)
    await ledger.append(stored, expected_last=0)
    for other in (
        [an_entry("other", message_id="entry-0", claim="u0"), *stored[1:]],
        [an_entry("entry-0", message_id="other", claim="u0"), *stored[1:]],
        [an_entry("entry-0", claim="other"), *stored[1:]],
    ):
        assert await ledger.append(other, expected_last=0) == Refused(3)


async def test_says_so_when_only_a_part_of_a_batch_is_there(connection: Connection, ledger: LedgerStore) -> None:
    batch = a_batch("torn", 3)
    await store(connection, *batch[:2])  # as no server may leave it
    result = await ledger.append(batch, expected_last=0)
    assert isinstance(result, Uncertain)
    assert result.visible == 2
    with pytest.raises(LedgerTornError, match="holds only 2 of the 3") as torn:
        await ledger.append_until_known(batch, expected_last=0, retry_after_s=0.1)
    assert isinstance(torn.value, LedgerLostError)  # what commands end with, in a sentence
    await store(connection, an_entry("another"))
    with pytest.raises(LedgerTornError, match="holds only 2 of the 3"):
        await ledger.append(batch, expected_last=0)


async def test_of_two_writers_exactly_one_wins_each_position(nats_url: str, connection: Connection) -> None:
    won: dict[str, list[int]] = {"one": [], "two": []}

    async def write(name: str) -> None:
        async with connect_to(nats_url) as own:
            mine = LedgerStore(own, LEDGER)
            last = 0
            for number in range(40):
                result = await mine.append(a_batch(f"{name}-{number}", 3), expected_last=last)
                assert not isinstance(result, Uncertain)
                if isinstance(result, Committed):
                    won[name].append(result.last_sequence)
                last = result.last_sequence

    async with anyio.create_task_group() as tg:
        tg.start_soon(write, "one")
        tg.start_soon(write, "two")

    ledger = LedgerStore(connection, LEDGER)
    assert sorted(won["one"] + won["two"]) == list(range(3, await ledger.last_sequence() + 1, 3))
    names = [text.rpartition("-")[0] for text in texts(await everything(ledger))]
    assert names[0::3] == names[1::3] == names[2::3]  # no batch is mixed with another


async def test_a_batch_of_1000_is_stored_and_a_larger_one_is_not_even_sent(ledger: LedgerStore) -> None:
    with pytest.raises(BatchTooLargeError, match="1001 messages: the server takes at most 1000") as refused:
        await ledger.append(a_batch("large", 1001), expected_last=0)
    assert isinstance(refused.value, InvariantError)
    assert await ledger.append(a_batch("full", 1000), expected_last=0) == Committed(1000)


async def test_a_message_that_nats_does_not_take_stops_the_batch_before_it_is_sent(ledger: LedgerStore) -> None:
    batch = [an_entry("small"), an_entry("x" * (1024 * 1024), message_id="big")]
    with pytest.raises(MessageTooLargeError, match="raise max_payload"):
        await ledger.append(batch, expected_last=0)
    assert await ledger.last_sequence() == 0


def before_the_commit(sent: bytes) -> Cut | None:
    commit = sent.find(b"Nats-Batch-Commit")
    return None if commit < 0 else Cut(sent.rfind(b"HPUB", 0, commit))


def within_the_commit(sent: bytes) -> Cut | None:
    commit = sent.find(b"Nats-Batch-Commit")
    return None if commit < 0 else Cut(commit)


def before_the_first_message(sent: bytes) -> Cut | None:
    first = sent.find(b"Nats-Batch-Id")
    return None if first < 0 else Cut(sent.rfind(b"HPUB", 0, first))


def after_the_second_message(sent: bytes) -> Cut | None:
    third = sent.find(b"Nats-Batch-Sequence: 3\r\n")
    return None if third < 0 else Cut(sent.rfind(b"HPUB", 0, third))


def before_the_ack(sent: bytes) -> Cut | None:
    return Cut(len(sent), after_answer=b'"stream"') if b"Nats-Batch-Commit" in sent else None


@pytest.mark.parametrize(
    ("cut_at", "arrived"),
    [
        pytest.param(before_the_first_message, False, id="nothing of it arrives"),
        pytest.param(after_the_second_message, False, id="two messages arrive"),
        pytest.param(before_the_commit, False, id="all but the commit arrives"),
        pytest.param(within_the_commit, False, id="half of the commit arrives"),
        pytest.param(before_the_ack, True, id="it is stored and the ack is lost"),
    ],
)
async def test_a_batch_cut_off_anywhere_is_committed_once(
    nats_server: EmbeddedNats, connection: Connection, cut_at: Callable[[bytes], Cut | None], arrived: bool
) -> None:
    batch = a_batch("cut", 4)
    async with a_proxy(nats_server.port) as proxy, connect_to(proxy.url) as shaky:
        ledger = LedgerStore(shaky, LEDGER)
        assert await ledger.append([an_entry("before")], expected_last=0) == Committed(1)
        proxy.cut_at = cut_at
        result = await ledger.append(batch, expected_last=1)
        assert proxy.cuts == 1
        assert result == Committed(5) if arrived else isinstance(result, Uncertain)

        assert await ledger.append_until_known(batch, expected_last=1, retry_after_s=0.1) == Committed(5)
    assert texts(await everything(LedgerStore(connection, LEDGER))) == ["before", *texts(batch)]


@pytest.mark.parametrize("cut_at", [before_the_commit, before_the_ack])
async def test_a_batch_cut_off_while_another_writer_appends_has_one_outcome(
    nats_server: EmbeddedNats, ledger: LedgerStore, cut_at: Callable[[bytes], Cut | None]
) -> None:
    mine, theirs = a_batch("mine", 4), a_batch("theirs", 2)
    async with a_proxy(nats_server.port) as proxy, connect_to(proxy.url) as shaky:
        store_of_mine = LedgerStore(shaky, LEDGER)
        results: dict[str, AppendResult] = {}
        proxy.cut_at = cut_at

        async def append_mine() -> None:
            results["mine"] = await store_of_mine.append_until_known(mine, expected_last=0, retry_after_s=0.1)

        async def append_theirs() -> None:
            results["theirs"] = await ledger.append_until_known(theirs, expected_last=0, retry_after_s=0.1)

        async with anyio.create_task_group() as tg:
            tg.start_soon(append_mine)
            tg.start_soon(append_theirs)

    if isinstance(results["mine"], Committed):
        assert results == {"mine": Committed(4), "theirs": Refused(4)}
        assert texts(await everything(ledger)) == texts(mine)
    else:
        assert results == {"mine": Refused(2), "theirs": Committed(2)}
        assert texts(await everything(ledger)) == texts(theirs)


async def test_every_batch_is_committed_once_while_the_server_is_killed(
    own_nats: EmbeddedNats, own_connection: Connection
) -> None:
    ledger = LedgerStore(own_connection, LEDGER)
    batches = [a_batch(f"batch-{number}", 200) for number in range(10)]
    results: list[Committed | Refused] = []
    last = 0
    for number, batch in enumerate(batches):

        async def append(batch: list[OutgoingMessage] = batch, last: int = last) -> None:
            results.append(await ledger.append_until_known(batch, last, retry_after_s=0.2))

        async with anyio.create_task_group() as tg:
            tg.start_soon(append)
            for _ in range(number * 2):  # so that each kill hits another moment
                await checkpoint()
            await own_nats.kill()
            await own_nats.start()
        last += len(batch)
    assert results == [Committed(200 * number) for number in range(1, 11)]
    assert texts(await everything(ledger)) == [text for batch in batches for text in texts(batch)]


async def test_an_append_without_a_server_is_uncertain_within_its_deadline(
    own_nats: EmbeddedNats, own_connection: Connection
) -> None:
    ledger = LedgerStore(own_connection, LEDGER)
    await own_nats.kill()
    with anyio.fail_after(3):
        result = await ledger.append([an_entry("nowhere")], expected_last=0, deadline_s=0.2)
    assert isinstance(result, Uncertain)
    # What was not sent is not kept for later either.
    await own_nats.start()
    await own_connection.wait_until_up()
    assert await ledger.last_sequence() == 0


async def test_reads_a_part_of_the_ledger(ledger: LedgerStore) -> None:
    await ledger.append(a_batch("entry", 10), expected_last=0)
    assert texts(await everything(ledger, after=4)) == [f"entry-{index}" for index in range(4, 10)]
    assert texts(await everything(ledger, after=4, until=6)) == ["entry-4", "entry-5"]
    assert await everything(ledger, after=10) == []
    assert len(await everything(ledger, until=99)) == 10


async def test_a_message_reads_the_same_by_itself_and_in_a_range(connection: Connection, ledger: LedgerStore) -> None:
    await ledger.append(a_batch("entry", 3), expected_last=0)
    reader = StreamReader(connection, LEDGER)
    assert [await reader.at(sequence) for sequence in (1, 2, 3)] == await everything(ledger)
    assert await reader.at(4) is None


async def test_reading_after_the_end_or_over_a_gap_is_an_error(connection: Connection) -> None:
    await connection.api("STREAM.CREATE.GAPS", {"name": "GAPS", "subjects": ["gaps"], "storage": "memory"})
    for _ in range(3):
        await connection.request("gaps", b"", deadline_s=5)
    await connection.api("STREAM.MSG.DELETE.GAPS", {"seq": 2})
    with pytest.raises(StreamGapError, match="sequence 3 where 2 was expected"):
        await everything(LedgerStore(connection, "GAPS"))
    assert await everything(LedgerStore(connection, "GAPS"), after=9) == []


async def test_no_entry_can_be_deleted(connection: Connection, ledger: LedgerStore) -> None:
    await ledger.append(a_batch("entry", 3), expected_last=0)
    with pytest.raises(BusRefusedError, match="not permitted"):
        await connection.api(f"STREAM.MSG.DELETE.{LEDGER}", {"seq": 2})
    with pytest.raises(BusRefusedError, match="not permitted"):
        await connection.api(f"STREAM.PURGE.{LEDGER}", {})


async def test_following_a_stream_that_was_made_again_is_an_error(connection: Connection, ledger: LedgerStore) -> None:
    await ledger.append(a_batch("entry", 3), expected_last=0)
    await connection.api(f"STREAM.DELETE.{LEDGER}")
    await ensure_streams(connection, StreamSettings())
    await ledger.append(a_batch("new", 1), expected_last=0)
    reader = StreamReader(connection, LEDGER)
    assert [batch async for batch in reader.read(3)] == []
    async with follow(connection, LEDGER, after=3) as follower:
        with pytest.raises(StreamLostError, match="ends at sequence 1, but was read up to 3"):
            await follower.next_batch()


async def test_entries_in_a_row_are_stored_without_waiting_for_each(ledger: LedgerStore) -> None:
    assert await ledger.append_in_a_row(a_batch("first", 3), expected_last=0)
    assert await ledger.append_in_a_row([an_entry("single")], expected_last=3)
    assert texts(await everything(ledger)) == ["first-0", "first-1", "first-2", "single"]


async def test_of_a_row_nothing_is_stored_behind_an_entry_that_is_refused(ledger: LedgerStore) -> None:
    await ledger.append([an_entry("other")], expected_last=0)
    row = a_batch("late", 3)
    assert not await ledger.append_in_a_row(row, expected_last=0)
    assert texts(await everything(ledger)) == ["other"]
    assert await ledger.append_until_known(row[:1], expected_last=0) == Refused(1)


async def test_a_row_is_whole_where_its_first_entry_was_there_already(ledger: LedgerStore) -> None:
    row = a_batch("row", 3)
    await ledger.append(row[:1], expected_last=0)  # our own, whose ack was lost
    assert await ledger.append_in_a_row(row, expected_last=0)
    assert texts(await everything(ledger)) == ["row-0", "row-1", "row-2"]


def before_the_third(sent: bytes) -> Cut | None:
    third = sent.find(b"Nats-Expected-Last-Sequence: 2\r\n")
    return None if third < 0 else Cut(sent.rfind(b"HPUB", 0, third))


def before_the_ack_of_the_row(sent: bytes) -> Cut | None:
    return Cut(len(sent), after_answer=b'"stream"') if b"Nats-Expected-Last-Sequence: 3\r\n" in sent else None


@pytest.mark.parametrize("cut_at", [before_the_third, before_the_ack_of_the_row])
async def test_a_row_cut_off_anywhere_is_committed_once_when_asked_one_by_one(
    nats_server: EmbeddedNats, connection: Connection, cut_at: Callable[[bytes], Cut | None]
) -> None:
    row = a_batch("cut", 4)
    async with a_proxy(nats_server.port) as proxy, connect_to(proxy.url) as shaky:
        ledger = LedgerStore(shaky, LEDGER)
        proxy.cut_at = cut_at
        assert not await ledger.append_in_a_row(row, expected_last=0)
        assert proxy.cuts == 1
        for expected, message in enumerate(row):
            result = await ledger.append_until_known([message], expected, retry_after_s=0.1)
            assert result == Committed(expected + 1)
    assert texts(await everything(LedgerStore(connection, LEDGER))) == texts(row)
