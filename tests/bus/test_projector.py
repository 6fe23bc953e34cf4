"""The public events where another leader's projector has stored some of them in between."""

from unittest.mock import patch

import anyio
import pytest

from broker.adapters.ledger_store import Committed, LedgerStore
from broker.app import projector
from broker.app.envelopes import Envelopes
from broker.app.projector import Projector
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.ledger import AnyEntry, ClusterCordoned, Inputs, LeaderElected, SegmentOpened
from schemas.wire.subjects import EVENTS_STREAM

pytestmark = pytest.mark.anyio

CLUSTERS = ("east", "north", "south", "west")


async def at_once() -> None:
    """There is nothing more urgent."""


async def project_until(connection: Connection, sequence: int) -> None:
    """Until the entry with this ledger sequence is told."""
    told = Projector(connection, "main", at_once)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(told.run)
            while told.projected < sequence:  # noqa: ASYNC110  # nobody tells
                await anyio.sleep(0.02)
            tasks.cancel_scope.cancel()


async def stored(connection: Connection) -> list[StoredMessage]:
    reader = StreamReader(connection, EVENTS_STREAM)
    return [message async for batch in reader.read(0) for message in batch]


async def test_events_that_another_one_has_stored_meanwhile_are_not_told_again(
    connection: Connection, ledger: LedgerStore
) -> None:
    entries: list[AnyEntry] = [
        SegmentOpened(shard="main", segment=0),
        LeaderElected(instance="a", build=""),
        *[ClusterCordoned(cluster=name, operator="ada", at_ms=1, is_cordoned=True) for name in CLUSTERS],
        Inputs(leader_epoch=2),
    ]
    messages = Envelopes("main", 0, "a").batch(entries, 1, 0, None)
    assert await ledger.append(messages[:4], 0) == Committed(4)
    await project_until(connection, 4)
    assert len(await stored(connection)) == 2
    assert await ledger.append(messages[4:], 4) == Committed(len(entries))

    last = StreamReader.last
    stale = [None]  # the first look comes before the other one stores its two

    async def look(self: StreamReader, subject: str = ">", deadline_s: float = 1.0) -> StoredMessage | None:
        return stale.pop() if stale else await last(self, subject, deadline_s)

    with patch.object(StreamReader, "last", look), patch.object(projector, "RETRY_S", 0.01):
        await project_until(connection, len(entries))
    assert not stale
    found = await stored(connection)
    assert [event.headers["ce-id"] for event in found] == ["main.3", "main.4", "main.5", "main.6"]
