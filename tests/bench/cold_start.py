"""A broker's start from a ledger of many segments: a real nats-server, a real broker process, its own words."""

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio
from anyio import to_thread

from broker.adapters.embedded_nats import embedded_nats
from broker.adapters.ledger_store import Committed, LedgerStore, as_batches
from broker.adapters.streams import StreamSettings, ensure_streams
from broker.app.envelopes import Envelopes
from broker.world import fold
from broker.world.checkpoint import checkpoint, opened
from broker.world.world import World
from schemas.client.connection import BusOptions, Connection, connect, raise_api_error
from schemas.wire.bus import OutgoingMessage, StoredMessage
from schemas.wire.ledger import AnyEntry, Inputs, LeaderElected, SegmentClosed, Step
from schemas.wire.subjects import ledger_stream
from tests.bench.clusters import CLUSTERS, federation
from tests.bench.fleet import a_claim_for
from tests.bench.measure import Table, count, progress
from tests.bench.start import History, reason
from tests.bench.throughput import BATCH, READY_DEADLINE_S, a_broker

GRANTS = 50_000
ENTRIES = 1_000_000
SEGMENT = 100_000  # entries after the checkpoint; the last segment has as many as the broker allows
DEADLINE_S = 180.0
_STARTED = re.compile(r"started in ([\d.]+) s \(ledger ([\d.]+), clusters ([\d.]+)\)")


def measure(grants: int = GRANTS, entries: int = ENTRIES, segment: int = SEGMENT) -> list[Table]:
    """Twice as many devices as grants; entries: in all segments together, at least."""
    return [anyio.run(_measure, grants, entries, segment)]


async def _measure(grants: int, entries: int, segment: int) -> Table:
    progress(f"cold start: writing {count(grants)} grants and {count(entries)} ledger entries")
    history = History(3 * grants, holding=grants, waiting=0, devices=2 * grants)
    with tempfile.TemporaryDirectory(prefix="dragoman-bench-") as directory:
        async with embedded_nats() as server, connect(BusOptions((server.url,))) as connection:
            ledger = _Ledger(connection, history)
            await ledger.begin()
            while ledger.world.ledger_last < entries:
                await ledger.go_on(segment)
            await _publish(connection, history.state)
            progress("cold start: starting a broker")
            began = time.monotonic()
            with a_broker(Path(directory), server.url):
                started = await to_thread.run_sync(_started, Path(directory, "broker.log"))
                until_leading = time.monotonic() - began
        read = len(history.state)
    return Table(
        "start: a broker process and a real nats-server",
        [
            "devices",
            "grants",
            "entries",
            "segments",
            "messages",
            "ledger s",
            "clusters s",
            "start s",
            "process s",
        ],
        [
            [
                count(2 * grants),
                count(grants),
                count(ledger.world.ledger_last),
                count(ledger.world.segment + 1),
                count(read),
                started[2],
                started[3],
                started[1],
                f"{until_leading:.1f}",
            ]
        ],
        [
            f"The last segment has a checkpoint and {count(segment)} entries after it. Ledger, clusters: reading and",
            "folding the segment; reading and believing what clusters said. Start: until it decides, as the broker",
            "says. Process: from its exec until it says so, Python's imports and the connection with it.",
        ],
    )


def _started(log: Path) -> re.Match[str]:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if found := _STARTED.search(log.read_text()):
            return found
        time.sleep(0.05)
    raise TimeoutError(f"the broker does not lead after {DEADLINE_S:g} s: {log.read_text()[-3000:]}")


async def _publish(connection: Connection, messages: Sequence[StoredMessage]) -> None:
    for at in range(0, len(messages), BATCH):
        batch, batch_id = messages[at : at + BATCH], connection.unique_name()
        for number, message in enumerate(batch, start=1):
            headers = {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
            if number < len(batch):
                await connection.publish(message.subject, message.payload, headers)
            else:
                headers["Nats-Batch-Commit"] = "1"
                reply = await connection.request(message.subject, message.payload, headers, deadline_s=READY_DEADLINE_S)
                raise_api_error(message.subject, reply.payload)


class _Ledger:
    """Writes a ledger as leaders would have: of the history, and of claims that wait, segment by segment."""

    def __init__(self, connection: Connection, history: History) -> None:
        self._connection = connection
        self._history = history
        self.world = World(federation())
        self._store: LedgerStore
        self._envelopes: Envelopes
        self._last: OutgoingMessage | None = None

    async def begin(self) -> None:
        """Segment 0, with all grants."""
        await self._use(0, 1)
        await self._append(self._history.entries)

    async def go_on(self, entries: int) -> None:
        """Close the segment, open the next one with a checkpoint and as many entries."""
        await self._append([SegmentClosed(next_segment=self.world.segment + 1)])
        segment, first = self.world.segment + 1, self.world.ledger_last + 1
        await self._use(segment, first)
        opening = checkpoint(self.world, "main", segment)
        await self._store_all(opening, first)
        opened(self.world, segment, first + len(opening) - 1)
        await self._append([LeaderElected(instance="bench", build="bench")])
        await self._append(list(self._waiting(entries - 1)))

    def _waiting(self, entries: int) -> Iterator[AnyEntry]:
        end = len(self._history.state)
        for number in range(entries):
            if number % 4 == 0:
                yield Inputs(leader_epoch=self.world.leader_epoch, steps=[Step(end, 0)])
            else:
                yield reason(CLUSTERS[0], a_claim_for("true", number % 100), end)

    async def _use(self, segment: int, first: int) -> None:
        await ensure_streams(self._connection, StreamSettings(), "main", segment, first)
        self._store = LedgerStore(self._connection, ledger_stream("main", segment))
        self._envelopes = Envelopes("main", segment, "bench")

    async def _append(self, entries: Sequence[AnyEntry]) -> None:
        first = self.world.ledger_last + 1
        for sequence, entry in enumerate(entries, start=first):
            fold.apply_entry(self.world, entry, sequence)
        await self._store_all(entries, first)

    async def _store_all(self, entries: Sequence[AnyEntry], first: int) -> None:
        last = 0 if first == 1 else first - 1
        for batch in as_batches(self._envelopes.batch(entries, first, 0, self._last)):
            result = await self._store.append(batch, last)
            assert isinstance(result, Committed), result
            last, self._last = result.last_sequence, batch[-1]
