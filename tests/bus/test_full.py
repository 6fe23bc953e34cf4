"""A NATS that has no room: nothing is stored, nothing is lost, and all goes on when there is room again."""

import logging

import anyio
import msgspec
import pytest

from broker.adapters.ledger_store import Committed, LedgerStore, Uncertain
from cluster_agent.adapters.bus import AgentBus
from cluster_agent.adapters.state_publisher import Published
from cluster_agent.adapters.state_publisher import Uncertain as PublishUncertain
from schemas.client.connection import Connection
from schemas.wire.subjects import STATE_STREAM
from tests.bus.builders import a_state, an_entry
from tests.bus.conftest import LEDGER

pytestmark = pytest.mark.anyio


async def limit(connection: Connection, stream: str, bytes_max: int) -> None:
    """How much the stream may hold; -1: no limit."""
    info = msgspec.json.decode(await connection.api(f"STREAM.INFO.{stream}"))
    await connection.api(f"STREAM.UPDATE.{stream}", {**info["config"], "max_bytes": bytes_max})


async def test_a_batch_for_which_there_is_no_room_is_stored_once_when_there_is(
    connection: Connection, ledger: LedgerStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    assert await ledger.append([an_entry("1")], 0) == Committed(1)
    await limit(connection, LEDGER, 1_000)
    batch = [an_entry("2" * 400), an_entry("3" * 400), an_entry("4" * 400)]
    refused = await ledger.append(batch, 1)
    assert isinstance(refused, Uncertain), "nobody may conclude anything from an error"
    assert await ledger.last_sequence() == 1, "nor is a part of it there"
    async with anyio.create_task_group() as tg:
        results = []

        async def append() -> None:
            results.append(await ledger.append_until_known(batch, 1, retry_after_s=0.2))

        tg.start_soon(append)
        with anyio.fail_after(30):
            while caplog.text.count("is uncertain") < 2:  # noqa: ASYNC110  # a log tells nobody
                await anyio.sleep(0.02)
        assert results == []
        await limit(connection, LEDGER, -1)
    assert results == [Committed(4)]
    assert await ledger.last_sequence() == 4


async def test_what_an_agent_says_is_refused_and_taken_when_there_is_room(connection: Connection) -> None:
    bus = AgentBus(connection, "east")
    assert await bus.publish_state(a_state("first"), 0) == Published(1)
    await limit(connection, STATE_STREAM, 600)
    refused = await bus.publish_state(a_state("x" * 1_000), 1)
    assert isinstance(refused, PublishUncertain)
    assert "maximum bytes exceeded" in refused.reason
    last = await bus.last_message(a_state("").subject)
    assert last is not None
    assert last.stream_sequence == 1, "what was said before is still there"
    await limit(connection, STATE_STREAM, -1)
    assert await bus.publish_state(a_state("x" * 1_000), 1) == Published(2)
