"""An answer of another shape than JetStream's is no answer: who asked waits, and asks again."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from broker.adapters.agent_consumers import AgentConsumers
from broker.adapters.dead_letters import DeadLetters
from broker.adapters.errors import StreamSettingsError
from broker.adapters.ledger_store import LedgerStore
from broker.adapters.ledger_store import Uncertain as NotKnown
from broker.adapters.streams import StreamSettings, ensure_streams, ledger_segments, stream_end
from cluster_agent.adapters.bus import AgentBus
from cluster_agent.adapters.state_publisher import Uncertain
from schemas.client.api import ApiError
from schemas.client.connection import Connection
from schemas.client.errors import BusUnavailableError
from schemas.client.reader import StreamReader
from schemas.wire.bus import OutgoingMessage
from schemas.wire.subjects import STATE_STREAM
from tests.bus.builders import a_batch, a_state
from tests.bus.test_durability import a_config
from tests.nats_fixture import connect_to, servers

pytestmark = pytest.mark.anyio

ANSWERS = {
    "an object without anything": b"{}",
    "a list": b"[]",
    "no JSON": b"\xff",
    "nested too deeply": b'{"a":' + b"[" * 50_000,
    "a stream of another shape": b'{"config":[],"state":{"messages":"many"},"ts":1}',
    "no names": b'{"total":2,"streams":[1,2]}',
    "a message of another shape": b'{"message":{"subject":1}}',
    "a message without a time": b'{"message":{"subject":"a","seq":1,"time":"soon"}}',
    "a message that is not base64": b'{"message":{"subject":"","seq":1,"time":"2026-01-01T00:00:00Z","data":"a"}}',
    "an ack of another shape": b'{"stream":"DRA_STATE","seq":"one"}',
}
NO_TIME = b'{"config":{},"ts":"soon","state":{"messages":0,"first_seq":0,"last_seq":0,"last_ts":"never"}}'
QUESTIONS: dict[str, Callable[[Connection], Awaitable[object]]] = {
    "the segments": lambda connection: ledger_segments(connection, "main"),
    "where a stream ends": lambda connection: stream_end(connection, STATE_STREAM),
    "a message": lambda connection: StreamReader(connection, STATE_STREAM).at(1),
    "the last messages": lambda connection: StreamReader(connection, STATE_STREAM).last_messages(),
    "a message of any replica": lambda connection: StreamReader(connection, STATE_STREAM).direct_last("dra.v1.state"),
    "an ack": lambda connection: DeadLetters(connection).keep(OutgoingMessage("dra.v1.deadletter.east", b"")),
}


@asynccontextmanager
async def a_stranger(root: Path, answer: bytes) -> AsyncIterator[Connection]:
    """A connection to a server without JetStream, where something else answers in its place."""
    config, url, _ = a_config(root, jetstream="")
    async with servers(config), connect_to(url) as connection, connect_to(url) as other:

        async def say(message: object) -> None:
            await message.respond(answer)  # type: ignore[attr-defined]

        for subject in ("$JS.API.>", "dra.v1.>"):
            await other.client.subscribe(subject, cb=say)
        await other.flush()
        yield connection


@pytest.mark.parametrize("answer", [pytest.param(answer, id=name) for name, answer in ANSWERS.items()])
async def test_an_answer_of_another_shape_is_none(tmp_path: Path, answer: bytes) -> None:
    async with a_stranger(tmp_path, answer) as connection:
        for ask in QUESTIONS.values():
            with anyio.fail_after(2), pytest.raises(BusUnavailableError, match="cannot be read"):
                await ask(connection)
        with pytest.raises(ApiError, match="cannot be read"):
            await AgentConsumers(connection, "DRA_LEDGER_main_0").join("east", b'{"type":"dev.dragoman.join.v1"}')
        with pytest.raises((BusUnavailableError, StreamSettingsError)):
            await ensure_streams(connection, StreamSettings(replicas=1))
        assert isinstance(await LedgerStore(connection, "DRA_LEDGER_main_0").append(a_batch("x", 2), 0), NotKnown)
        assert isinstance(await AgentBus(connection, "east").publish_state(a_state("x"), 0), Uncertain)


async def test_an_answer_of_no_time_is_none(tmp_path: Path) -> None:
    async with a_stranger(tmp_path, NO_TIME) as connection:
        with pytest.raises(BusUnavailableError, match="cannot be read"):
            await stream_end(connection, STATE_STREAM)
