"""A broker is elected behind the entries that it has read, and leads behind no others."""

from pathlib import Path
from unittest.mock import patch

import anyio
import msgspec
import pytest

from broker.adapters.dead_letters import DeadLetters
from broker.adapters.durability import DEFAULT, Durability
from broker.adapters.ledger_store import Committed, LedgerStore
from broker.adapters.streams import StreamSettings, ensure_streams
from broker.allocation.cel.engine import default_engine
from broker.app import broker as app
from broker.app.broker import Broker, BrokerSettings
from broker.app.envelopes import Envelopes
from broker.errors import LedgerLostError
from broker.world.federation import Federation
from schemas.client.connection import Connection
from schemas.client.follow import StreamState, stream_state
from schemas.wire.bus import OutgoingMessage
from schemas.wire.calls import DeadLetter
from schemas.wire.codec import decode_entry
from schemas.wire.ledger import AnyEntry, LeaderElected, SegmentClosed, SegmentOpened
from tests.bus.builders import store
from tests.bus.conftest import LEDGER
from tests.bus.test_durability import a_config
from tests.nats_fixture import connect_to, servers

pytestmark = pytest.mark.anyio

BEGUN: list[AnyEntry] = [
    SegmentOpened(shard="main", segment=0),
    LeaderElected(instance="old", build="", state_sequence=0),
]


def a_broker(connection: Connection, durability: Durability = DEFAULT) -> Broker:
    settings = BrokerSettings(
        Federation(), instance="new", build="", settings_digest="", durability=durability, is_alone=True
    )
    return Broker(connection, default_engine(), settings)


async def append(ledger: LedgerStore, *entries: AnyEntry) -> None:
    batch = Envelopes("main", 0, "old").batch(entries, 1, 0, None)
    assert await ledger.append(batch, 0) == Committed(len(entries))


async def entries(ledger: LedgerStore) -> list[AnyEntry]:
    return [decode_entry(message.payload) async for batch in ledger.read(0) for message in batch]


async def test_a_broker_does_not_lead_behind_entries_that_it_has_not_read(
    connection: Connection, ledger: LedgerStore
) -> None:
    """The end of the ledger is lost after it was read, and who wrote it has said so in its place, with the same id."""
    await append(ledger, *BEGUN)
    has_changed = False

    async def change_then_ask(asked: Connection, stream: str) -> StreamState:
        nonlocal has_changed
        if not has_changed:
            has_changed = True
            await connection.api(f"STREAM.DELETE.{LEDGER}")
            await ensure_streams(connection, StreamSettings())
            await append(ledger, BEGUN[0], SegmentClosed(next_segment=1, is_abandoned=True))
        return await stream_state(asked, stream)

    with (
        patch.object(app, "stream_state", change_then_ask),
        pytest.RaisesGroup(pytest.RaisesExc(LedgerLostError, match="has another entry at 2 than it had")),
    ):
        await a_broker(connection).run()
    found = [type(entry) for entry in await entries(ledger)]
    assert found == [SegmentOpened, SegmentClosed, LeaderElected, SegmentClosed]
    # And nobody else takes it for a ledger that goes on.
    with pytest.RaisesGroup(pytest.RaisesExc(LedgerLostError, match="abandoned after segment 0")):
        await a_broker(connection).run()


async def test_a_dead_letter_that_is_too_large_is_kept_without_its_payload(tmp_path: Path) -> None:
    """As where `max_payload` is lowered below its default: no broker ends by it."""
    config, url, _ = a_config(tmp_path)
    config.write_text(config.read_text() + "max_payload: 256KB\n")
    async with servers(config), connect_to(url) as connection:
        await ensure_streams(connection, StreamSettings(), durability=Durability(allow_unsafe=True))
        subject = "dra.v1.state.east.claim.u1"
        payloads = (b"x" * 100_000, b"x" * 240_000, b"z")
        await store(connection, *(OutgoingMessage(subject, payload) for payload in payloads))
        letters: list[DeadLetter] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a_broker(connection, Durability(allow_unsafe=True)).run)
            with anyio.fail_after(10):
                while len(letters) < len(payloads):
                    kept = await DeadLetters(connection).all()
                    letters = [msgspec.json.decode(each.payload, type=DeadLetter) for each in kept]
            tasks.cancel_scope.cancel()
    assert [letter.payload for letter in letters] == [payloads[0], b"", payloads[2]]
    assert "kept without its payload of 240000 bytes" in letters[1].message
