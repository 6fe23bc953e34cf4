"""Failover: from SIGKILL of the leader to the next decision that anyone can read, with claims flowing."""

import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import yaml
from msgspec.structs import replace

from broker.adapters.embedded_nats import embedded_nats
from broker.adapters.streams import StreamSettings, ensure_streams
from schemas.client.connection import BusOptions, Connection, connect, raise_api_error
from schemas.client.follow import Follower, follow
from schemas.resource import ResourceClaim
from schemas.wire.codec import decode_entry
from schemas.wire.ledger import Allocate, LeaderElected
from tests.bench.clusters import CLUSTERS, Log, answer
from tests.bench.fleet import a_claim_for, some_slices
from tests.bench.measure import Table, count, progress
from tests.builders import DRIVER
from tests.processes.harness import Process

LEDGER = "DRA_LEDGER_main_0"
TRIALS = 50
RATE = 50  # claims a second
DEVICES = 500
DECISIONS_BETWEEN = 100  # that the new leader makes, beside a standby that runs, before it is killed
DEADLINE_S = 60.0


def measure(trials: int = TRIALS) -> list[Table]:
    """Kill whoever leads, again and again; the one that was killed is started again and stands by."""
    return anyio.run(_measure, trials)


async def _measure(trials: int) -> list[Table]:
    elected: list[float] = []
    decided: list[float] = []
    async with _two_brokers() as pair, anyio.create_task_group() as tasks:
        tasks.start_soon(pair.flow.claims_come)
        tasks.start_soon(pair.flow.decisions_are_carried_out)
        for trial in range(trials):
            if trial % 10 == 0:
                progress(f"failover: trial {trial + 1} of {trials}")
            leader, standby = await pair.ready()
            began = time.perf_counter()
            await pair.processes[leader].kill()
            elected_at, decided_at = await pair.flow.next_leader(began)
            elected.append(elected_at - began)
            decided.append(decided_at - began)
            assert standby == await pair.leader(), "the one that was killed leads"
            await pair.processes[leader].start()
        entries, messages = pair.flow.position, pair.flow.messages
        tasks.cancel_scope.cancel()
    decided.sort()
    return [
        Table(
            "failover: from SIGKILL of the leader to the next decision in the ledger",
            ["trials", "elected p50 s", "p50 s", "p99 s", "most s", "ledger entries", "state messages"],
            [
                [
                    count(trials),
                    f"{statistics.median(elected):.2f}",
                    f"{statistics.median(decided):.2f}",
                    f"{decided[min(int(trials * 0.99), trials - 1)]:.2f}",
                    f"{decided[-1]:.2f}",
                    count(entries),
                    count(messages),
                ]
            ],
            [
                f"Two broker processes, one nats-server with sync_interval: always, {RATE} claims a second from one",
                "process that stands for the agents, and reads the ledger. Entries and messages: at the end.",
            ],
        )
    ]


class _Flow:
    """Two clusters whose claims come at a steady rate, get a device, and go."""

    def __init__(self, connection: Connection, ledger: Follower) -> None:
        self.position = 0
        self.messages = 0
        self.decisions = 0
        self.epoch = 0
        self._connection = connection
        self._ledger = ledger
        self._log = Log()
        self._sending = anyio.Lock()
        self._claims: dict[str, ResourceClaim] = {}
        self._changed = anyio.Event()
        # When the last leader's election and its first decision were read.
        self._elected_at = self._decided_at = 0.0

    async def begin(self) -> None:
        """Inventory and syncs."""
        self._log.start(some_slices(DEVICES))
        self._log.finish_syncs()
        await self._send()

    async def claims_come(self) -> None:
        index = 0
        began = time.perf_counter()
        while True:
            index += 1
            await anyio.sleep(max(0.0, began + index / RATE - time.perf_counter()))
            claim = a_claim_for(f'device.attributes["{DRIVER}"].index >= 0', index)
            claim = replace(claim, metadata=replace(claim.metadata, uid=f"uid-{index:06}"))
            self._claims[claim.metadata.uid] = claim
            self._log.publish_claim(CLUSTERS[index % 2], claim)
            await self._send()

    async def decisions_are_carried_out(self) -> None:
        """And the claims deleted after that."""
        while True:
            batch = await self._ledger.next_batch()
            assert isinstance(batch, list), f"the ledger expired: {batch}"
            for message in batch:
                self.position = message.stream_sequence
                entry = decode_entry(message.payload)
                if isinstance(entry, LeaderElected):
                    self.epoch = message.stream_sequence
                    self._elected_at, self._decided_at = time.perf_counter(), 0.0
                elif isinstance(entry, Allocate):
                    self.decisions += 1
                    self._decided_at = self._decided_at or time.perf_counter()
                    answer(self._log, [(message.stream_sequence, entry)], self._claims)
                    self._log.delete_claim(entry.cluster, entry.uid)
            await self._send()
            changed, self._changed = self._changed, anyio.Event()
            changed.set()

    async def next_leader(self, after: float) -> tuple[float, float]:
        """When its election and its first decision were read."""
        with anyio.fail_after(DEADLINE_S):
            while not after < self._elected_at < self._decided_at:
                await self._changed.wait()
        return self._elected_at, self._decided_at

    async def until_decided(self, more: int) -> None:
        """So many more decisions are made."""
        enough = self.decisions + more
        with anyio.fail_after(DEADLINE_S):
            while self.decisions < enough:
                await self._changed.wait()

    async def _send(self) -> None:
        async with self._sending:  # two tasks publish; the log has one order
            for message in self._log.since(self.messages):
                reply = await self._connection.request(message.subject, message.payload, deadline_s=DEADLINE_S)
                raise_api_error(message.subject, reply.payload)
                self.messages += 1


class _Pair:
    """Two brokers."""

    def __init__(self, processes: dict[str, Process], flow: _Flow) -> None:
        self.processes = processes
        self.flow = flow

    async def ready(self) -> tuple[str, str]:
        """The leader and the standby, when both have a warm world, and some decisions later."""
        for process in self.processes.values():
            await process.until_it_says("stands by with a warm world")
        await self.flow.until_decided(DECISIONS_BETWEEN)
        leader = await self.leader()
        return leader, next(name for name in self.processes if name != leader)

    async def leader(self) -> str:
        """Who says that it has the last election."""
        with anyio.fail_after(DEADLINE_S):
            while True:
                for name, process in self.processes.items():
                    process.check()
                    if f"with epoch {self.flow.epoch}," in process.said():
                        return name
                await anyio.sleep(0.01)


@asynccontextmanager
async def _two_brokers() -> AsyncIterator[_Pair]:
    with tempfile.TemporaryDirectory(prefix="dragoman-bench-") as directory:
        config = _config(Path(directory))
        async with embedded_nats() as server, connect(BusOptions((server.url,))) as connection:
            await ensure_streams(connection, StreamSettings(), "main", 0)
            arguments = ["broker", "--config", str(config), "--nats", server.url]
            processes = {name: Process(name, arguments, Path(directory, f"{name}.log")) for name in ("one", "two")}
            async with follow(connection, LEDGER, 0, whole=True) as ledger:
                flow = _Flow(connection, ledger)
                await flow.begin()
                try:
                    for process in processes.values():
                        await process.start()
                    yield _Pair(processes, flow)
                finally:
                    for process in processes.values():
                        if process.is_running:
                            await process.kill()


def _config(directory: Path) -> Path:
    path = directory / "config.yaml"
    fabric = {"name": "f", "source": CLUSTERS[0], "clusters": list(CLUSTERS), "pools": [{"driver": DRIVER}]}
    silent = {"stale_after_s": 80_000, "lost_after_s": 86_400}  # nobody sends heartbeats
    path.write_text(yaml.safe_dump({"clusters": list(CLUSTERS), "fabrics": [fabric], **silent}))
    return path
