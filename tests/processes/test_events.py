"""The events of real brokers, one of which is killed: exactly what follows from the ledger, each once, in its order."""

from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from broker.adapters.streams import ledger_segments
from broker.machine.public_events import Projection
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import decode_entry
from schemas.wire.subjects import EVENTS_STREAM, ledger_stream
from tests.processes.harness import DEADLINE_S, Federation, a_federation
from tests.processes.test_federation import check_end, is_settled, start_and_wait, write_claims

pytestmark = [pytest.mark.anyio, pytest.mark.processes]


async def test_every_event_is_there_once_whoever_projects(tmp_path: Path) -> None:
    async with a_federation(tmp_path, segment_entries=400) as federation:
        await start_and_wait(federation)
        await federation.start("broker-2")
        write_claims(federation, *federation.members)
        await federation.until("60 decisions", lambda view: view.allocates >= 60)
        await federation.restart("broker")
        await federation.until("another leader", lambda view: len(view.leaders) >= 2)
        await federation.until("150 of 400 claims allocated", is_settled)
        await check_end(federation, 400)
        for process in ("east", "west"):  # so that the ledger comes to rest
            await federation.processes[process].kill()
        events: list[StoredMessage] = []
        expected = await expected_events(federation)
        with anyio.fail_after(DEADLINE_S):
            while len(events) < len(expected):
                await anyio.sleep(0.1)
                events = await stored(federation, EVENTS_STREAM)
                expected = await expected_events(federation)
        assert [each.message_id for each in events] == expected
        assert len(set(expected)) == len(expected) >= 550  # 150 granted and allocated, 250 waiting
        first = events[0]
        assert first.headers["ce-specversion"] == "1.0"
        assert first.headers["ce-id"] == f"main.{int(first.headers['ce-sequence'])}"
        claim = next(each for each in events if ".claim.granted." in each.subject)
        assert claim.headers["ce-type"] == "dev.dragoman.claim.granted.v1"
        assert claim.headers["ce-source"] == "/dragoman/main"
        assert claim.headers["ce-subject"].split("/")[0] == "claim"
        uid = claim.subject.rpartition(".")[2]
        of_claim = [each.headers for each in events if each.subject.endswith(f".{uid}")]
        assert len({headers["traceparent"].split("-")[1] for headers in of_claim}) == 1


async def expected_events(federation: Federation) -> list[str]:
    """By the ledger as it is now."""
    projection = Projection("main")
    found = []
    for segment in await ledger_segments(federation.connection, "main"):
        for message in await stored(federation, ledger_stream("main", segment)):
            event = projection.project(decode_entry(message.payload), message.stream_sequence)
            if event is not None:
                found.append(event.event_id)
    return found


async def stored(federation: Federation, stream: str) -> list[StoredMessage]:
    found: list[StoredMessage] = []
    reader = StreamReader(federation.connection, stream)
    first = (await reader.state()).first_sequence
    async with aclosing(reader.read(first - 1)) as batches:
        async for batch in batches:
            found += batch
    return found
