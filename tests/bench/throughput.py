"""Decisions a second and their latency: a broker, a real nats-server, and one process that stands for all agents."""

import os
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
from schemas.client.client import as_published
from schemas.client.connection import BusOptions, Connection, connect, raise_api_error
from schemas.client.errors import BusError
from schemas.client.follow import Follower, follow
from schemas.resource import ResourceClaim
from schemas.wire.bus import MESSAGE_ID, OutgoingMessage, StoredMessage, header_block
from schemas.wire.codec import cloud_event_headers, decode_entry, trace_parent
from schemas.wire.ledger import Allocate
from schemas.wire.state import ClaimState
from schemas.wire.subjects import STATE_STREAM
from tests.bench.clusters import CLUSTERS, Log, answer
from tests.bench.fleet import a_claim_for, selects_model, some_slices
from tests.bench.measure import Table, count, cpu_seconds, ms, progress
from tests.builders import DRIVER

LEDGER = "DRA_LEDGER_main_0"
CLAIMS = 10_000
LATENCY_CLAIMS, LATENCY_RATE = 2_000, 200  # claims, and claims a second
BATCH = 200  # messages
BATCH_FROM = 10  # messages; fewer are stored sooner one by one
ALL_MODELS = 320  # devices, in which each model occurs twice
READY_DEADLINE_S = 30.0
DEADLINE_S = 600.0
_A_STATE = ClaimState(agent_epoch=0)


def measure(claims: int = CLAIMS, latency_claims: int = LATENCY_CLAIMS) -> list[Table]:
    """Claims at once, then claims at a steady rate, then the server alone."""
    return anyio.run(_measure, claims, latency_claims)


async def _measure(claims: int, latency_claims: int) -> list[Table]:
    progress(f"throughput: {count(claims)} claims at once")
    async with a_federation(claims + claims // 10 + ALL_MODELS) as load:
        before = cpu_seconds(load.processes)
        decided, entries, entry_bytes = await load.all_at_once(claims)
        burst = {name: spent - before[name] for name, spent in cpu_seconds(load.processes).items()}
    progress(f"throughput: {count(latency_claims)} claims, {LATENCY_RATE} a second")
    async with a_federation(latency_claims + latency_claims // 10 + ALL_MODELS) as load:
        before = cpu_seconds(load.processes)
        lasted, delays = await load.steadily(latency_claims)
        steady = {name: spent - before[name] for name, spent in cpu_seconds(load.processes).items()}
    delays.sort()
    p99 = delays[min(int(len(delays) * 0.99), len(delays) - 1)]
    progress("throughput: the server alone")
    in_batches = await _in_batches_alone(entries, entry_bytes)
    singly = await _singly_alone(latency_claims, entry_bytes)
    return [
        Table(
            "throughput: decisions a second",
            ["claims", "Allocate/s", "ledger entries/s", "server alone: in batches/s", "one by one/s"],
            [
                [
                    count(claims),
                    count(claims / decided),
                    count(entries / decided),
                    count(entries / in_batches),
                    count(latency_claims / singly),
                ]
            ],
            [
                "From the first claim's message stored to the last Allocate stored, by the server's clock; meanwhile",
                "outcomes of all and deletions of half of the claims flow. One node, sync_interval: always; broker,",
                f"server and load share the cores. Server alone: entries as many and as large, in batches of {BATCH};",
                f"and messages as large one by one, {BATCH} of them under way.",
            ],
        ),
        Table(
            "throughput: from a claim's message to its visible decision",
            ["claims", "claims/s", "median ms", "p99 ms", "most ms"],
            [
                [
                    count(latency_claims),
                    count(latency_claims / lasted),
                    ms(statistics.median(delays)),
                    ms(p99),
                    ms(delays[-1]),
                ]
            ],
            [
                "From publishing the claim to reading its Allocate from the ledger, in the load's process.",
                f"{LATENCY_RATE} claims a second are asked for, whether those before are decided or not.",
            ],
        ),
        Table(
            "throughput: milliseconds of CPU for each claim",
            ["load", *burst],
            [
                ["all at once", *(ms(spent / claims) for spent in burst.values())],
                ["steady", *(ms(spent / latency_claims) for spent in steady.values())],
            ],
            ["With its outcome and half a deletion; what others do on the machine does not count here."],
        ),
    ]


class Load:
    """Two clusters' agents in one, and what they read of the ledger.

    Like an agent it gives each message its headers and the subject's last sequence; what waits goes out as an atomic
    batch if it is much, else message by message, none of which waits for another subject's.
    """

    def __init__(
        self, connection: Connection, ledger: Follower, inbox: str, processes: dict[str, int], config: Path
    ) -> None:
        self.processes = processes  # ids by name
        self.config = config  # the broker's
        self.connection = self._connection = connection
        self._ledger = ledger
        self._inbox = inbox
        self._log = Log()
        self._sent = 0
        self._sending = anyio.Lock()  # two tasks publish; the log has one order
        self._claims: dict[str, ResourceClaim] = {}
        self._last_sequences: dict[str, int] = {}  # by subject
        self._to_delete: list[Allocate] = []

    async def begin(self, devices: int) -> None:
        """Inventory and syncs; returns when the broker has decided a first claim."""
        self._log.start(some_slices(devices))
        self._log.finish_syncs()
        self._ask(0)
        await self._send()
        await self._until_decided(1)

    async def all_at_once(self, claims: int) -> tuple[float, int, int]:
        """Seconds for all decisions, how many entries the ledger took in that time, and their mean size in bytes."""
        first = self._sent + 1
        entries: list[StoredMessage] = []

        async def answer_all() -> None:
            entries.extend(await self._until_decided(claims))

        async with anyio.create_task_group() as tg:
            tg.start_soon(answer_all)
            for index in range(1, claims + 1):
                self._ask(index)
                if index % BATCH == 0:
                    await self._send()
            await self._send()
        began_ms = await self._stored_at(first)
        sizes = [len(each.payload) for each in entries]
        return max(entries[-1].time_ms - began_ms, 1) / 1e3, len(entries), sum(sizes) // len(sizes)

    async def steadily(self, claims: int) -> tuple[float, list[float]]:
        """Seconds for all, and the delay of each decision."""
        asked_at: dict[str, float] = {}
        delays: list[float] = []

        def note(entry: Allocate) -> None:
            delays.append(time.perf_counter() - asked_at[entry.uid])

        began = time.perf_counter()
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._until_decided, claims, note)
            for index in range(1, claims + 1):
                await anyio.sleep(max(0.0, began + index / LATENCY_RATE - time.perf_counter()))
                uid = self._ask(index)
                asked_at[uid] = time.perf_counter()
                await self._send()
        return time.perf_counter() - began, delays

    def _ask(self, index: int) -> str:
        # Each its own UID; one selector in ten, as templates have it.
        claim = a_claim_for(f'device.attributes["{DRIVER}"].index >= 0 && {selects_model(index)}', index)
        claim = replace(claim, metadata=replace(claim.metadata, uid=f"uid-{index:06}"))
        self._claims[claim.metadata.uid] = claim
        self._log.publish_claim(CLUSTERS[index % 2], claim)
        return claim.metadata.uid

    async def _send(self) -> None:
        """Publish what is new in the log, in order."""
        async with self._sending:
            while messages := _until_repeated(self._log.since(self._sent)[:BATCH]):
                self._sent += len(messages)
                if len(messages) >= BATCH_FROM:
                    await self._publish_batch(messages)
                else:
                    for each in messages:
                        await self._connection.publish(
                            each.subject, each.payload, self._headers(each), reply=self._inbox
                        )

    async def _publish_batch(self, messages: Sequence[StoredMessage]) -> None:
        batch_id = self._connection.unique_name()
        ready = []
        for number, each in enumerate(messages, start=1):
            headers = {**self._headers(each), "Nats-Batch-Id": batch_id, "Nats-Batch-Sequence": str(number)}
            if number < len(messages):
                ready.append(as_published(each.subject, header_block(headers), each.payload))
        await self._connection.publish_all(b"".join(ready), messages[0].subject)
        last = messages[-1]
        headers["Nats-Batch-Commit"] = "1"
        reply = await self._connection.request(last.subject, last.payload, headers, deadline_s=READY_DEADLINE_S)
        raise_api_error(last.subject, reply.payload)

    def _headers(self, message: StoredMessage) -> dict[str, str]:
        sequence = self._last_sequences.get(message.subject, 0)
        self._last_sequences[message.subject] = message.stream_sequence
        _, _, _, cluster, kind, key = message.subject.split(".", 5)
        event_id = f"load.{message.stream_sequence}"
        headers = cloud_event_headers(
            _A_STATE,
            event_id=event_id,
            source=f"/dragoman/clusters/{cluster}",
            subject=f"{kind}/{key}",
            now_ms=message.time_ms,
            trace=trace_parent(cluster, key, event_id),
        )
        return {**headers, "Nats-Expected-Last-Subject-Sequence": str(sequence)}

    async def _until_decided(self, claims: int, tell: Callable[[Allocate], None] | None = None) -> list[StoredMessage]:
        """Answer decisions until there are so many; returns all entries up to the last of them.

        Each decision is reported as applied, and half of the claims are deleted when the next decisions come.
        """
        entries: list[StoredMessage] = []
        decided = 0
        with anyio.fail_after(DEADLINE_S):
            while decided < claims:
                batch = await self._ledger.next_batch()
                assert isinstance(batch, list), f"the ledger expired: {batch}"
                for each in self._to_delete:
                    self._log.delete_claim(each.cluster, each.uid)
                self._to_delete = []
                for message in batch:
                    entries.append(message)
                    entry = decode_entry(message.payload) if message.subject.split(".")[6] == "claim" else None
                    if isinstance(entry, Allocate):
                        decided += 1
                        if tell is not None:
                            tell(entry)
                        answer(self._log, [(message.stream_sequence, entry)], self._claims)
                        if decided % 2:
                            self._to_delete.append(entry)
                await self._send()
        return entries

    async def _stored_at(self, sequence: int) -> int:
        async with follow(self._connection, STATE_STREAM, sequence - 1, whole=True) as state:
            batch = await state.next_batch(1)
        assert isinstance(batch, list)
        return batch[0].time_ms


def _until_repeated(messages: Sequence[StoredMessage]) -> Sequence[StoredMessage]:
    """Up to where a subject comes again: within a batch each can be expected to have its last sequence only once."""
    seen: set[str] = set()
    for number, each in enumerate(messages):
        if each.subject in seen:
            return messages[:number]
        seen.add(each.subject)
    return messages


@asynccontextmanager
async def a_federation(devices: int) -> AsyncIterator[Load]:
    """A server, a broker process that leads, and the load, whose first claim is decided."""
    refused: list[bytes] = []

    def check_ack(_subject: bytes, _reply: bytes, payload: bytes, _headers: bytes) -> None:
        try:
            raise_api_error("state", payload)
        except BusError:
            refused.append(payload)

    with tempfile.TemporaryDirectory(prefix="dragoman-bench-") as directory:
        async with embedded_nats() as server, connect(BusOptions((server.url,))) as connection:
            await ensure_streams(connection, StreamSettings(), "main", 0)
            with a_broker(Path(directory), server.url) as broker:
                processes = {"broker": broker, "nats-server": server.pid, "load": os.getpid()}
                async with connection.inbox(check_ack) as inbox, follow(connection, LEDGER, 0, whole=True) as ledger:
                    load = Load(connection, ledger, inbox, processes, Path(directory) / "config.yaml")
                    with anyio.fail_after(READY_DEADLINE_S):
                        await load.begin(devices)
                    yield load
    assert not refused, f"{len(refused)} state messages were refused, the first with {refused[0]!r}"


@contextmanager
def a_broker(directory: Path, url: str) -> Iterator[int]:
    """A broker process, which logs to broker.log there; gives its process ID."""
    config, log = directory / "config.yaml", directory / "broker.log"
    fabric = {"name": "f", "source": CLUSTERS[0], "clusters": list(CLUSTERS), "pools": [{"driver": DRIVER}]}
    whole = {"segment_entries": 10_000_000}  # what is measured reads one segment
    config.write_text(yaml.safe_dump({"clusters": list(CLUSTERS), "fabrics": [fabric], "ledger": whole}))
    command = [sys.executable, "-m", "broker.cli.main", "-v", "broker", "--config", str(config), "--nats", url]
    with log.open("wb") as out:
        broker = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        yield broker.pid
        assert broker.poll() is None, f"the broker ended: {log.read_text()[-3000:]}"
    finally:
        broker.kill()
        broker.wait()


async def _in_batches_alone(entries: int, size: int) -> float:
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


async def _singly_alone(messages: int, size: int) -> float:
    """Seconds for as many messages as large, each stored by itself, `BATCH` of them under way at a time."""
    limit = anyio.CapacityLimiter(BATCH)
    payload = b"x" * size
    async with embedded_nats() as server, connect(BusOptions((server.url,))) as connection:
        await ensure_streams(connection, StreamSettings(), "main", 0)

        async def publish(number: int) -> None:
            subject = f"dra.v1.state.east.claim.{number}"
            try:
                reply = await connection.request(
                    subject, payload, {MESSAGE_ID: str(number)}, deadline_s=READY_DEADLINE_S
                )
            finally:
                limit.release_on_behalf_of(number)
            raise_api_error(subject, reply.payload)

        began = time.perf_counter()
        async with anyio.create_task_group() as tg:
            for number in range(messages):
                await limit.acquire_on_behalf_of(number)
                tg.start_soon(publish, number)
        return time.perf_counter() - began
