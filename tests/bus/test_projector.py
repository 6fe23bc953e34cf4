"""The public events where the last of them cannot say how far they are, and where somebody else stores some too."""

from collections.abc import Awaitable, Callable

import anyio
import msgspec
import pytest

from broker.adapters.ledger_store import Committed, LedgerStore
from broker.adapters.streams import StreamSettings, ensure_streams, set_up_streams
from broker.app.envelopes import Envelopes
from broker.app.projector import Projector
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.ledger import AnyEntry, ClusterCordoned, Inputs, LeaderElected, SegmentClosed, SegmentOpened
from schemas.wire.subjects import EVENTS_STREAM, ledger_stream

pytestmark = pytest.mark.anyio

CLUSTERS = ("east", "north", "south", "west")
OPENING: list[AnyEntry] = [SegmentOpened(shard="main", segment=0), LeaderElected(instance="a", build="")]


def cordoned(*clusters: str) -> list[AnyEntry]:
    """Entries that have an event each."""
    return [ClusterCordoned(cluster=name, operator="ada", at_ms=1, is_cordoned=True) for name in clusters]


async def append(ledger: LedgerStore, *entries: AnyEntry, segment: int = 0) -> int:
    """Returns the last one's ledger sequence."""
    last = await ledger.last_sequence()
    messages = Envelopes("main", segment, "a").batch(entries, last + 1, 0, None)
    assert await ledger.append(messages, last) == Committed(last + len(entries))
    return last + len(entries)


async def at_once() -> None:
    """There is nothing more urgent."""


async def project_until(
    connection: Connection, sequence: int, until_calm: Callable[[], Awaitable[None]] = at_once
) -> None:
    """Until the entry with this ledger sequence is told."""
    told = Projector(connection, "main", until_calm)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(told.run)
            while told.projected < sequence:  # noqa: ASYNC110  # nobody tells
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()


async def stored(connection: Connection) -> list[StoredMessage]:
    reader = StreamReader(connection, EVENTS_STREAM)
    return [message async for batch in reader.read(0) for message in batch]


def ids(events: list[StoredMessage]) -> list[str]:
    return [event.headers["ce-id"] for event in events]


async def keep_for(connection: Connection, age_s: float) -> None:
    """Set how long events are kept."""
    config = msgspec.json.decode(await connection.api(f"STREAM.INFO.{EVENTS_STREAM}"))["config"]
    change = {"max_age": int(age_s * 1e9), "duplicate_window": int(min(age_s, 120) * 1e9)}
    await connection.api(f"STREAM.UPDATE.{EVENTS_STREAM}", {**config, **change})


async def until_expired(connection: Connection) -> None:
    with anyio.fail_after(30):
        while (await StreamReader(connection, EVENTS_STREAM).state()).messages:  # noqa: ASYNC110  # nobody tells
            await anyio.sleep(0.05)


async def test_events_that_another_one_has_stored_meanwhile_are_not_told_again(
    connection: Connection, ledger: LedgerStore
) -> None:
    last = await append(ledger, *OPENING, *cordoned("east", "north"))
    tries = 0

    async def another_is_faster() -> None:
        """It stores two events of the four that this one is about to."""
        nonlocal tries
        tries += 1
        if tries == 1:
            await project_until(connection, last)
            await append(ledger, *cordoned("south", "west"), Inputs(leader_epoch=2))

    await project_until(connection, last + 3, another_is_faster)
    assert tries > 1, "it looked again"
    assert ids(await stored(connection)) == ["main.3", "main.4", "main.5", "main.6"]


async def test_events_go_on_when_all_of_them_have_expired(connection: Connection, ledger: LedgerStore) -> None:
    await project_until(connection, await append(ledger, *OPENING, *cordoned("east", "north")))
    await keep_for(connection, 0.2)
    await until_expired(connection)
    await keep_for(connection, 3600)  # what was told is younger than that, and is not told again
    await project_until(connection, await append(ledger, *cordoned("south", "west")))
    await project_until(connection, await append(ledger, *cordoned("east")))
    events = await stored(connection)
    assert ids(events) == ["main.5", "main.6", "main.7"]
    assert [event.stream_sequence for event in events] == [3, 4, 5]


async def test_events_that_have_expired_go_on_in_the_segment_where_they_were(
    connection: Connection, ledger: LedgerStore
) -> None:
    await project_until(connection, await append(ledger, *OPENING, *cordoned("east", "north")))
    await keep_for(connection, 0.2)
    await until_expired(connection)
    await keep_for(connection, 3600)
    last = await append(ledger, *cordoned("south"), SegmentClosed(next_segment=1))
    await ensure_streams(connection, StreamSettings(), "main", 1, last + 1)
    second = LedgerStore(connection, ledger_stream("main", 1))
    opening = SegmentOpened(shard="main", segment=1, covers=last)
    end = await append(second, opening, *cordoned("west"), segment=1)
    await project_until(connection, end)
    assert ids(await stored(connection)) == ["main.5", "main.8"]
    await keep_for(connection, 0.2)
    await until_expired(connection)
    await keep_for(connection, 3600)
    await project_until(connection, await append(second, *cordoned("east"), segment=1))
    assert ids(await stored(connection)) == ["main.9"]


@pytest.mark.parametrize(
    ("age_s", "told"),
    [
        pytest.param(3600, ["main.3", "main.4", "main.5", "main.6"], id="entries younger than the age are told"),
        pytest.param(0.2, [], id="entries whose events would have expired are not"),
        pytest.param(0, ["main.3", "main.4", "main.5", "main.6"], id="nothing is too old where nothing expires"),
    ],
)
async def test_of_a_stream_that_does_not_know_when_it_had_its_last_event(
    connection: Connection, ledger: LedgerStore, age_s: float, told: list[str]
) -> None:
    config = msgspec.json.decode(await connection.api(f"STREAM.INFO.{EVENTS_STREAM}"))["config"]
    await connection.api(f"STREAM.DELETE.{EVENTS_STREAM}")
    # Without a message so far, but not at its beginning.
    change = {"first_seq": 8, "max_age": int(age_s * 1e9), "duplicate_window": 0}
    await connection.api(f"STREAM.CREATE.{EVENTS_STREAM}", {**config, **change})
    last = await append(ledger, *OPENING, *cordoned(*CLUSTERS))
    await anyio.sleep(0.3)  # the entries' age
    await project_until(connection, last)
    end = await StreamReader(connection, EVENTS_STREAM).state()
    assert end.last_sequence == 7 + len(told)
    assert ids(await stored(connection)) == told


async def test_a_stream_that_was_deleted_is_filled_again(
    connection: Connection, ledger: LedgerStore, caplog: pytest.LogCaptureFixture
) -> None:
    first = await append(ledger, *OPENING, *cordoned("east", "north"))
    told = Projector(connection, "main", at_once)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(told.run)
            while told.projected < first:  # noqa: ASYNC110  # nobody tells
                await anyio.sleep(0.02)
            await connection.api(f"STREAM.DELETE.{EVENTS_STREAM}")
            last = await append(ledger, *cordoned("south"))
            while "DRA_EVENTS is gone" not in caplog.text:  # noqa: ASYNC110  # nor does a log
                await anyio.sleep(0.02)
            await anyio.sleep(2.5)  # it is tried again, and said once
            assert caplog.text.count("DRA_EVENTS is gone") == 1
            assert "`dragoman nats-setup` makes it again" in caplog.text
            assert "rebuild" not in caplog.text
            await set_up_streams(connection, StreamSettings())
            while told.projected < last:  # noqa: ASYNC110
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()
    assert caplog.text.count("events are projected again") == 1
    assert ids(await stored(connection)) == ["main.3", "main.4", "main.5"]
