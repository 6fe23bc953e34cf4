"""One run: start everything, let the schedule happen to it, stop all faults, wait until all is settled, compare."""

import hashlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
import yaml

from broker.adapters.api_service import call_api
from broker.adapters.streams import ledger_segments
from cluster_agent.adapters.manifest_cluster import ManifestCluster
from schemas.client.connection import BusOptions, Connection, connect
from schemas.client.errors import BusError
from schemas.client.reader import StreamReader
from schemas.resource.untyped import allocation_of, results_of
from schemas.wire.bus import StoredMessage
from schemas.wire.subjects import DEAD_LETTER_STREAM, STATE_STREAM, ledger_stream
from tests.chaos import agreement
from tests.chaos.agreement import KeptClaim, StrictView
from tests.chaos.links import Link, open_link
from tests.chaos.load import CAPACITY, SHARED_DRIVER, Load
from tests.chaos.schedule import Fault, faults
from tests.chaos.servers import Server, make_servers
from tests.manifests import DRIVER
from tests.processes.harness import Process, Row
from tests.processes.ledger_view import follow_ledger

CLUSTERS = ("east", "west", "north")
BROKERS = ("broker", "broker-2")
LOOK_S = 0.3
START_DEADLINE_S = 60.0
DRAIN_DEADLINE_S = 120.0
SEGMENT_ENTRIES = 2_000
# As a process says when it could not begin, for want of NATS; whoever runs it starts it again then.
NO_NATS = "cannot connect to NATS"
PASSING = frozenset({"Allocating", "Releasing", "NotDecidedYet", "BackingOff", "BeingDeleted"})


class Report(NamedTuple):
    """What happened, and what should not have."""

    servers: int
    faults: Counter[str]
    claims: int
    decisions: int
    elections: int
    segments: int
    drained_s: float
    dead_letters: Counter[str]
    violations: list[str]

    @property
    def kills(self) -> int:
        return sum(number for name, number in self.faults.items() if name.startswith("kill "))

    def text(self) -> str:
        what = ", ".join(f"{name} {number}" for name, number in sorted(self.faults.items()))
        letters = ", ".join(f"{name} {number}" for name, number in sorted(self.dead_letters.items())) or "none"
        return (
            f"{self.servers} nats-server: {self.kills} kills ({what}), {self.claims} claims,"
            f" {self.decisions} decisions, {self.elections} elections, {self.segments} segments,"
            f" drained in {self.drained_s:.1f} s, dead letters: {letters}; {len(self.violations)} violations"
        )


class Chaos:
    """The processes of one run, and what happens to them; made by `_started`."""

    def __init__(self, root: Path, servers: list[Server], load: Load, connection: Connection) -> None:
        self.root = root
        self.servers = servers
        self.load = load
        self.connection = connection
        self.view = StrictView(CAPACITY)
        self.violations: list[str] = []
        self.done: Counter[str] = Counter()
        self.processes: dict[str, Process] = {}
        self._links: dict[str, list[Link]] = {}
        self._entries: list[bytes] = []  # digests of the ledger's entries as they were seen first
        self._busy: set[str] = set()  # something happens to it
        self._down: set[str] = set()  # killed, and not to be started yet
        self._began = time.monotonic()

    async def add_processes(self, tasks: anyio.abc.TaskGroup) -> None:
        """Each with links of its own."""
        config = self.root / "config.yaml"
        fabric = {
            "name": "rack",
            "source": CLUSTERS[0],
            "clusters": list(CLUSTERS),
            "pools": [{"driver": DRIVER}, {"driver": SHARED_DRIVER}],
        }
        ledger = {"segment_entries": SEGMENT_ENTRIES}
        timers = {"stale_after_s": 4, "lost_after_s": 12}
        config.write_text(yaml.safe_dump({"clusters": list(CLUSTERS), "fabrics": [fabric], "ledger": ledger, **timers}))
        arguments = {name: ["broker", "--config", str(config)] for name in BROKERS}
        for name in CLUSTERS:
            places = ["--manifests", str(self.root / name), "--data", str(self._data(name))]
            arguments[name] = ["agent", "--cluster", name, *places]
        for name, command in arguments.items():
            self._links[name] = [await open_link(server.port, tasks) for server in self.servers]
            urls = [part for link in self._links[name] for part in ("--nats", f"nats://127.0.0.1:{link.port}")]
            self.processes[name] = Process(name, [*command, *urls], self.root / f"{name}.log")
        self.processes.update((server.name, server) for server in self.servers)

    def _data(self, cluster: str) -> Path:
        return self.root / f"{cluster}-data"

    def say(self, text: str) -> None:
        """Progress, in the run's own log."""
        with (self.root / "chaos.log").open("a") as log:
            log.write(f"{time.monotonic() - self._began:6.1f} s  {text}\n")

    def wrong(self, text: str) -> None:
        """Something that must not be."""
        self.say(f"VIOLATION {text}")
        self.violations.append(text)

    # --- what happens

    async def let_happen(self, schedule: list[Fault], seconds: float) -> None:
        """All of it, at its time; returns when everything is undone."""
        with anyio.fail_after(START_DEADLINE_S):
            while self.view.synced != set(CLUSTERS):  # noqa: ASYNC110  # by a ledger that is folded elsewhere
                await anyio.sleep(LOOK_S)
        began = time.monotonic()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.load.run, seconds)
            for fault in schedule:
                await anyio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
                tasks.start_soon(self._let_happen, fault)

    async def _let_happen(self, fault: Fault) -> None:
        name = self._victim(fault)
        if name in self._busy or name in self._down:
            return
        self._busy.add(name)
        self.say(f"{name}: {fault}; {self.view}")
        self.done[f"{fault.kind} {fault.victim}"] += 1
        try:
            await self._do(fault, name)
        finally:
            self._busy.discard(name)

    async def _do(self, fault: Fault, name: str) -> None:
        process = self.processes[name]
        if fault.kind == "kill":
            self._down.add(name)
            await process.kill()
            await anyio.sleep(fault.lasts_s)
            await process.start()
            self._down.discard(name)
        elif fault.kind == "stop":
            if process.is_running:
                process.suspend()
                await anyio.sleep(fault.lasts_s)
                process.resume()
        else:
            links = self._links[name]
            number = fault.which % (len(links) + 1)
            chosen = links[number : number + 1] or links
            for link in chosen:
                if fault.kind == "cut":
                    link.cut()
                elif fault.kind == "silence":
                    link.silence()
                else:
                    link.delay_s = 0.01 + fault.which / 5_000
            await anyio.sleep(fault.lasts_s)
            for link in chosen:
                link.heal()

    def _victim(self, fault: Fault) -> str:
        if fault.victim == "nats":
            return self.servers[fault.which % len(self.servers)].name
        if fault.victim == "agent":
            return CLUSTERS[fault.which % len(CLUSTERS)]
        leader = self._leader() or BROKERS[fault.which % len(BROKERS)]
        return leader if fault.victim == "leader" else next(name for name in BROKERS if name != leader)

    def _leader(self) -> str | None:
        sentence = f"with epoch {self.view.leaders[-1][0]}," if self.view.leaders else ""
        return next((name for name in BROKERS if sentence and sentence in self.processes[name].said()), None)

    async def watch_over(self) -> None:
        """Start again what ended by itself, and say so if it had no reason."""
        while True:
            for name, process in self.processes.items():
                if name not in self._down and not process.is_running:
                    self._down.add(name)
                    said = process.said()
                    if NO_NATS not in said[-500:]:
                        self.wrong(f"{name} ended by itself: {said[-3000:]}")
                    self.say(f"{name} ended by itself and is started again")
                    await process.start()
                    self._down.discard(name)
            await anyio.sleep(LOOK_S)

    async def follow_ledger(self) -> None:
        """Every entry is checked as it comes, and remembered."""
        try:
            async with aclosing(follow_ledger(self.connection, self.view)) as batches:
                async for messages in batches:
                    self._entries += map(_digest, messages)
        except (AssertionError, KeyError, BusError) as error:
            self.wrong(f"in the ledger: {error!r}; {self.view}")

    # --- the end

    async def drained(self) -> list[Row]:
        """Where every claim is, once nothing is under way any more."""
        rows: list[Row] = []
        expected = sum(map(len, self.load.claims().values()))
        with anyio.move_on_after(DRAIN_DEADLINE_S):
            for name in BROKERS:
                await self.processes[name].until_it_says("unverified")
            for name in CLUSTERS:
                await self.processes[name].until_it_says("runs with epoch")
            while True:
                rows = await self._rows()
                is_settled = len(rows) == expected and not any(_is_passing(row) for row in rows)
                if is_settled and not self.view.unsettled and self.view.last == await self._ledger_last():
                    return rows
                await anyio.sleep(LOOK_S)
        passing = [row for row in rows if _is_passing(row)]
        self.wrong(
            f"not settled after {DRAIN_DEADLINE_S:g} s without faults: {len(rows)} claims instead of {expected},"
            f" {len(self.view.unsettled)} unsettled, under way: {passing[:5]}; {self.view}"
        )
        return rows

    async def _rows(self) -> list[Row]:
        while True:
            try:
                return msgspec.json.decode(await call_api(self.connection, "claims", b"", deadline_s=5), type=list[Row])
            except BusError:
                await anyio.sleep(LOOK_S)

    async def _ledger_last(self) -> int:
        segment = (await ledger_segments(self.connection, "main"))[-1]
        return (await StreamReader(self.connection, ledger_stream("main", segment)).state()).last_sequence

    async def stop_processes(self) -> None:
        """In good order."""
        for name in (*CLUSTERS, *BROKERS):
            code = await self.processes[name].stop()
            if code:
                self.wrong(f"{name} ended with {code} when told to stop: {self.processes[name].tail()}")

    async def compare(self, rows: list[Row]) -> Counter[str]:
        """Everything with everything; returns the dead letters by reason."""
        objects = {uid: claim for cluster in CLUSTERS for uid, claim in (await self._kept(cluster)).items()}
        whole = await self._read_ledger()
        state = StreamReader(self.connection, STATE_STREAM)
        problems = [
            *agreement.files_and_objects(self.load.claims(), objects),
            *agreement.objects_and_ledger(objects, whole),
            *agreement.objects_and_broker(objects, rows),
            *agreement.reasons(rows, whole),
            *agreement.settled_in_ledger(await state.last_messages(), whole),
        ]
        async with aclosing(StreamReader(self.connection, DEAD_LETTER_STREAM).read(0)) as batches:
            letters = [message async for batch in batches for message in batch]
        counts, unexpected = agreement.dead_letters(letters)
        for problem in problems + unexpected:
            self.wrong(problem)
        for name in (*CLUSTERS, *BROKERS):
            for word in ("Traceback", "InvariantError", "never retrieved"):
                text = self.processes[name].log.read_text(errors="replace")
                if word in text:
                    self.wrong(f"{name} says {text[text.index(word) :][:2000]}")
        return counts

    async def _kept(self, cluster: str) -> dict[str, KeptClaim]:
        manifests = ManifestCluster([self.root / cluster], data_dir=self._data(cluster))
        try:
            claims = (await manifests.list_objects("claim")).objects
        finally:
            manifests.close()
        return {
            claim["metadata"]["uid"]: KeptClaim(
                cluster,
                claim["metadata"]["name"],
                Counter(
                    (each["driver"], each["pool"], each["device"]) for each in results_of(allocation_of(claim) or {})
                ),
            )
            for claim in claims
        }

    async def _read_ledger(self) -> StrictView:
        """From its first entry to its last, as the servers have it now; all that was seen must be there."""
        view = StrictView(CAPACITY)
        found: list[bytes] = []
        for segment in await ledger_segments(self.connection, "main"):
            reader = StreamReader(self.connection, ledger_stream("main", segment))
            async with aclosing(reader.read(view.last)) as batches:
                async for batch in batches:
                    found += map(_digest, batch)
                    try:
                        view.fold(batch)
                    except (AssertionError, KeyError) as error:
                        self.wrong(f"in the ledger, read whole: {error!r}")
                        return view
        if found[: len(self._entries)] != self._entries:
            differs = next(
                (
                    number
                    for number, pair in enumerate(zip(found, self._entries, strict=False), 1)
                    if pair[0] != pair[1]
                ),
                len(found) + 1,
            )
            self.wrong(f"ledger entry {differs} is not what it was when it was seen first; {view}")
        return view


async def run(root: Path, servers: int, seconds: float, seed: int, say: Callable[[str], None]) -> Report:
    """A run with its files in `root`, which is empty."""
    async with _started(root, servers, seed) as chaos:
        say(f"{servers} nats-server: {seconds:g} s of faults, then everything must settle; logs are in {root}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(chaos.follow_ledger)
            tasks.start_soon(chaos.watch_over)
            await chaos.let_happen(faults(seed, seconds), seconds)
            healed = time.monotonic()
            chaos.say(f"all faults are over; {chaos.view}")
            rows = [] if chaos.violations else await chaos.drained()
            drained_s = time.monotonic() - healed
            tasks.cancel_scope.cancel()
        letters: Counter[str] = Counter()
        if not chaos.violations:  # else the first is what counts
            await chaos.stop_processes()
            letters = await chaos.compare(rows)
        view = chaos.view
        return Report(
            servers,
            chaos.done,
            chaos.load.created,
            view.allocates,
            len(view.leaders),
            view.segments,
            drained_s,
            letters,
            chaos.violations,
        )


@asynccontextmanager
async def _started(root: Path, servers: int, seed: int) -> AsyncIterator[Chaos]:
    load = Load(root, CLUSTERS, seed)
    nodes = make_servers(root, servers)
    processes: dict[str, Process] = {node.name: node for node in nodes}
    try:
        for node in nodes:
            await node.start()
        for node in nodes:
            await node.until_ready()
        options = BusOptions(tuple(node.url for node in nodes), name="chaos")
        async with connect(options) as connection, anyio.create_task_group() as links:
            chaos = Chaos(root, nodes, load, connection)
            for cluster in CLUSTERS:
                (root / cluster).mkdir()
            load.write_inventory(CLUSTERS[0])
            await chaos.add_processes(links)
            processes = chaos.processes
            for name in (*BROKERS, *CLUSTERS):
                await processes[name].start()
            yield chaos
            links.cancel_scope.cancel()
    finally:
        for process in processes.values():
            if process.is_running:
                await process.kill()


def _digest(message: StoredMessage) -> bytes:
    digest = hashlib.blake2b(message.subject.encode(), digest_size=16)
    digest.update(b"\0" + message.payload)
    return digest.digest()


def _is_passing(row: Row) -> bool:
    return row.state != "Allocated" and (row.reason in PASSING or row.reason.startswith(("Cluster", "Waiting")))
