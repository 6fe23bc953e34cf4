"""Decisions a second and their latency: a broker, a real nats-server, and one process that stands for all agents."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import yaml
from msgspec.structs import replace

from broker.adapters.embedded_nats import embedded_nats
from broker.adapters.ledger_store import Committed, LedgerStore
from broker.adapters.streams import StreamSettings, ensure_streams
from schemas.client.connection import BusOptions, Connection, connect, raise_api_error
from schemas.client.follow import Follower, follow
from schemas.resource import ResourceClaim
from schemas.wire.bus import MESSAGE_ID, OutgoingMessage, StoredMessage
from schemas.wire.codec import decode_entry
from schemas.wire.ledger import Allocate
from schemas.wire.subjects import STATE_STREAM
from tests.bench.clusters import CLUSTERS, Log, answer
from tests.bench.fleet import a_claim_for, selects_model, some_slices
from tests.bench.measure import Table, count, ms, progress, ratio
from tests.builders import DRIVER

LEDGER = "DRA_LEDGER_main_0"
CLAIMS = 10_000
LATENCY_CLAIMS, LATENCY_RATE = 2_000, 200  # claims, and claims a second
BATCH = 200  # messages
ALL_MODELS = 320  # devices, in which each model occurs twice
READY_DEADLINE_S = 30.0
DEADLINE_S = 180.0


def measure(claims: int = CLAIMS, latency_claims: int = LATENCY_CLAIMS) -> list[Table]:
    """Claims at once, then claims at a steady rate, then the server alone."""
    return anyio.run(_measure, claims, latency_claims)


async def _measure(claims: int, latency_claims: int) -> list[Table]:
    progress(f"throughput: {count(claims)} claims at once")
    async with _a_federation(claims + claims // 10 + ALL_MODELS) as load:
        decided, entries, entry_bytes = await load.all_at_once(claims)
    progress(f"throughput: {count(latency_claims)} claims, {LATENCY_RATE} a second")
    async with _a_federation(latency_claims + latency_claims // 10 + ALL_MODELS) as load:
        delays = sorted(await load.steadily(latency_claims))
    progress("throughput: the server alone")
    alone = await _server_alone(entries, entry_bytes)
    p99 = delays[min(int(len(delays) * 0.99), len(delays) - 1)]
    return [
        Table(
            "throughput: decisions a second",
            ["claims", "Allocate/s", "ledger entries/s", "server alone: entries/s", "to server alone"],
            [
                [
                    count(claims),
                    count(claims / decided),
                    count(entries / decided),
                    count(entries / alone),
                    ratio(decided, alone),
                ]
            ],
            [
                "From the first claim's message stored to the last Allocate stored, by the server's clock; meanwhile",
                "outcomes of all and deletions of half of the claims flow. One node, sync_interval: always; broker,",
                f"server and load share the cores. Server alone: entries as many and as large, in batches of {BATCH}.",
            ],
        ),
        Table(
            "throughput: from a claim's message to its visible decision",
            ["claims", "claims/s", "median ms", "p99 ms", "most ms"],
            [
                [
                    count(latency_claims),
                    count(LATENCY_RATE),
                    ms(statistics.median(delays)),
                    ms(p99),
                    ms(delays[-1]),
                ]
            ],
            ["From publishing the claim to reading its Allocate from the ledger, in the load's process."],
        ),
    ]


class _Load:
    """Two clusters' agents in one, and what they read of the ledger."""

    def __init__(self, connection: Connection, ledger: Follower) -> None:
        self._connection = connection
        self._ledger = ledger
        self._log = Log()
        self._sent = 0
        self._sending = anyio.Lock()  # two tasks publish; the log has one order
        self._claims: dict[str, ResourceClaim] = {}

    async def begin(self, devices: int) -> None:
        """Inventory and syncs; returns when the broker has decided a first claim."""
        self._log.start(some_slices(devices))
        self._log.finish_syncs()
        self._ask(0)
        await self._send()
        await self._until_decided(1)

    async def all_at_once(self, claims: int) -> tuple[float, int, int]:
        """Seconds for all decisions, how many entries the ledger took in that time, and their mean size in bytes."""
        for index in range(1, claims + 1):
            self._ask(index)
        first = self._sent + 1
        await self._send()
        entries = await self._until_decided(claims)
        began_ms = await self._stored_at(first)
        sizes = [len(each.payload) for each in entries]
        return max(entries[-1].time_ms - began_ms, 1) / 1e3, len(entries), sum(sizes) // len(sizes)

    async def steadily(self, claims: int) -> list[float]:
        """The delay of each decision, in seconds."""
        asked_at: dict[str, float] = {}
        delays: list[float] = []

        def note(entry: Allocate) -> None:
            delays.append(time.perf_counter() - asked_at[entry.uid])

        async with anyio.create_task_group() as tg:
            tg.start_soon(self._until_decided, claims, note)
            began = time.perf_counter()
            for index in range(1, claims + 1):
                await anyio.sleep(max(0.0, began + index / LATENCY_RATE - time.perf_counter()))
                uid = self._ask(index)
                asked_at[uid] = time.perf_counter()
                await self._send()
        return delays

    def _ask(self, index: int) -> str:
        # Each its own UID; one selector in ten, as templates have it.
        claim = a_claim_for(f'device.attributes["{DRIVER}"].index >= 0 && {selects_model(index)}', index)
        claim = replace(claim, metadata=replace(claim.metadata, uid=f"uid-{index:06}"))
        self._claims[claim.metadata.uid] = claim
        self._log.publish_claim(CLUSTERS[index % 2], claim)
        return claim.metadata.uid

    async def _send(self) -> None:
        """Publish what is new in the log, in order and in atomic batches."""
        async with self._sending:
            await self._send_batches()

    async def _send_batches(self) -> None:
        while messages := self._log.since(self._sent)[:BATCH]:
            batch_id = self._connection.unique_name()
            for number, message in enumerate(messages, start=1):
                headers = {"Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
                if number < len(messages):
                    await self._connection.publish(message.subject, message.payload, headers)
                else:
                    headers["Nats-Batch-Commit"] = "1"
                    reply = await self._connection.request(
                        message.subject, message.payload, headers, deadline_s=READY_DEADLINE_S
                    )
                    raise_api_error(message.subject, reply.payload)
            self._sent += len(messages)

    async def _until_decided(self, claims: int, tell: Callable[[Allocate], None] | None = None) -> list[StoredMessage]:
        """Answer decisions until there are so many; returns all entries up to the last of them."""
        entries: list[StoredMessage] = []
        decided = 0
        with anyio.fail_after(DEADLINE_S):
            while decided < claims:
                batch = await self._ledger.next_batch()
                assert isinstance(batch, list), f"the ledger expired: {batch}"
                for message in batch:
                    entries.append(message)
                    entry = decode_entry(message.payload)
                    if isinstance(entry, Allocate):
                        decided += 1
                        if tell is not None:
                            tell(entry)
                        answer(self._log, [(message.stream_sequence, entry)], self._claims)
                        if decided % 2:
                            self._log.delete_claim(entry.cluster, entry.uid)
                await self._send()
        return entries

    async def _stored_at(self, sequence: int) -> int:
        async with follow(self._connection, STATE_STREAM, sequence - 1, whole=True) as state:
            batch = await state.next_batch(1)
        assert isinstance(batch, list)
        return batch[0].time_ms


@asynccontextmanager
async def _a_federation(devices: int) -> AsyncIterator[_Load]:
    """A server, a broker process that leads, and the load, whose first claim is decided."""
    with tempfile.TemporaryDirectory(prefix="dragoman-bench-") as directory:
        async with embedded_nats() as server, connect(BusOptions((server.url,))) as connection:
            await ensure_streams(connection, StreamSettings(), "main", 0)
            with _a_broker(Path(directory), server.url):
                async with follow(connection, LEDGER, 0, whole=True) as ledger:
                    load = _Load(connection, ledger)
                    with anyio.fail_after(READY_DEADLINE_S):
                        await load.begin(devices)
                    yield load


@contextmanager
def _a_broker(directory: Path, url: str) -> Iterator[None]:
    config, log = directory / "config.yaml", directory / "broker.log"
    fabric = {"name": "f", "source": CLUSTERS[0], "clusters": list(CLUSTERS), "pools": [{"driver": DRIVER}]}
    config.write_text(yaml.safe_dump({"clusters": list(CLUSTERS), "fabrics": [fabric]}))
    command = [sys.executable, "-m", "broker.cli.main", "broker", "--config", str(config), "--nats", url]
    with log.open("wb") as out:
        broker = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield
        assert broker.poll() is None, f"the broker ended: {log.read_text()[-3000:]}"
    finally:
        broker.kill()
        broker.wait()


async def _server_alone(entries: int, size: int) -> float:
    """Seconds for as many entries as large, in atomic batches."""
    async with embedded_nats() as server, connect(BusOptions((server.url,))) as connection:
        await ensure_streams(connection, StreamSettings(), "main", 0)
        store, last = LedgerStore(connection, LEDGER), 0
        payload = b"x" * size
        began = time.perf_counter()
        while last < entries:
            batch: Sequence[OutgoingMessage] = [
                OutgoingMessage("dra.v1.ledger.main.0.east.record.x", payload, {MESSAGE_ID: f"{last}-{number}"})
                for number in range(min(BATCH, entries - last))
            ]
            result = await store.append(batch, last)
            assert isinstance(result, Committed), result
            last = result.last_sequence
        return time.perf_counter() - began
