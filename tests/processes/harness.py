"""A federation of real processes around a real nats-server: started, killed, started again, and looked into."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import anyio
import msgspec
import yaml
from anyio.abc import Process as OsProcess

from broker.adapters.api_service import call_api
from broker.adapters.embedded_nats import EmbeddedNats, dying_with_us, embedded_nats
from cluster_agent.adapters.manifest_cluster import ManifestCluster
from schemas.client.connection import Connection
from schemas.client.errors import BusError
from schemas.client.reader import StreamReader
from tests.manifests import DRIVER, Manifest, write_manifests
from tests.nats_fixture import connect_to
from tests.processes.ledger_view import LedgerView, follow_ledger

HTTP_AT = "probes and metrics: "
DEADLINE_S = 60.0  # for one condition; reached only when something hangs


class Row(msgspec.Struct, frozen=True):
    """A claim as the API shows it."""

    cluster: str
    namespace: str
    name: str
    uid: str
    state: str
    results: list[dict[str, str]]
    reason: str
    message: str


class Process:
    """One dragoman process; may be killed and started again.

    source: the directory whose code it runs; None: ours. newest: arguments that only ours is given.
    """

    def __init__(self, name: str, arguments: Sequence[str], log: Path, newest: Sequence[str] = ()) -> None:
        self.name = name
        self.log = log
        self.source: Path | None = None
        self._arguments = arguments
        self._newest = newest
        self._process: OsProcess | None = None
        self._log_began = 0  # where the log of this run begins

    @property
    def is_running(self) -> bool:
        """Or stopped by a signal; it has not ended."""
        return self._process is not None and self._process.returncode is None

    def command(self) -> list[str]:
        """What is run."""
        newest = self._newest if self.source is None else ()
        return dying_with_us([sys.executable, "-m", "broker.cli.main", "-v", *self._arguments, *newest])

    @property
    def pid(self) -> int:
        """Of the run that was started last."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.returncode if self._process is not None else None

    async def start(self) -> None:
        assert not self.is_running, f"{self.name} is running"
        self._log_began = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = await anyio.open_process(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                cwd=self.source,  # `python -m` looks there first
            )

    async def kill(self) -> None:
        """As a power cut would."""
        assert self._process is not None, f"{self.name} was never started"
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
            await self._process.aclose()

    def suspend(self) -> None:
        """Until `resume` it does nothing, and knows nothing of it."""
        assert self._process is not None, f"{self.name} was never started"
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """It goes on where it was."""
        assert self._process is not None, f"{self.name} was never started"
        self._process.send_signal(signal.SIGCONT)

    async def ends(self) -> int:
        """Return when it has ended by itself; its exit code."""
        assert self._process is not None, f"{self.name} was never started"
        with anyio.fail_after(DEADLINE_S):
            return await self._process.wait()

    async def stop(self) -> int:
        """In good order; returns the exit code."""
        assert self._process is not None, f"{self.name} was never started"
        began = time.monotonic()
        self._process.terminate()
        with anyio.fail_after(DEADLINE_S):
            code = await self._process.wait()
        await self._process.aclose()
        print(f"  {self.name} stopped within {time.monotonic() - began:.2f} s")
        return code

    async def http(self) -> str:
        """Where it answers probes, once it says so."""
        await self.until_it_says(HTTP_AT)
        return self.said().partition(HTTP_AT)[2].split("/metrics", 1)[0]

    def check(self) -> None:
        """It did not end by itself."""
        assert self._process is None or self._process.returncode in (None, -signal.SIGKILL), (
            f"{self.name} ended with {self._process.returncode}:\n{self.tail()}"
        )

    async def until_it_says(self, text: str) -> None:
        """Return when its log has this, written since it was started."""
        with anyio.fail_after(DEADLINE_S):
            while text not in self.said():  # noqa: ASYNC110  # files tell nobody
                await anyio.sleep(0.02)

    def said(self) -> str:
        """Its log since it was started."""
        return self.log.read_bytes()[self._log_began :].decode(errors="replace") if self.log.exists() else ""

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-3000:] if self.log.exists() else ""


class Federation:
    """nats-server, agents and brokers, with directories of manifests in `root`; made by `a_federation`."""

    def __init__(
        self, root: Path, nats: EmbeddedNats, connection: Connection, clusters: Sequence[str], segment_entries: int = 0
    ) -> None:
        self.root = root
        self.nats = nats
        self.connection = connection
        self.clusters = list(clusters)
        self.members = [name for name in clusters if name != "hub"]
        self.view = LedgerView()
        self.processes: dict[str, Process] = {}
        self._changed = anyio.Event()
        self._following = anyio.CancelScope()
        self._began = time.monotonic()
        for name in clusters:
            (root / name).mkdir()
            where = ["--manifests", str(root / name), "--data", str(self.data(name))]
            self._add(name, "agent", "--cluster", name, *where)
        config = root / "config.yaml"
        source = clusters[0]
        fabric = {"name": "rack", "source": source, "clusters": self.members, "pools": [{"driver": DRIVER}]}
        hub = {"hub": "hub"} if "hub" in clusters else {}
        ledger = {"ledger": {"segment_entries": segment_entries}} if segment_entries else {}
        config.write_text(yaml.safe_dump({"clusters": self.clusters, "fabrics": [fabric], **hub, **ledger}))
        for name in ("broker", "broker-2"):
            self._add(name, "broker", "--config", str(config))

    def _add(self, name: str, *arguments: str) -> None:
        log, newest = self.root / f"{name}.log", ["--http", "127.0.0.1:0"]
        self.processes[name] = Process(name, [*arguments, "--nats", self.nats.url], log, newest)

    def data(self, cluster: str) -> Path:
        return self.root / f"{cluster}-data"

    def write(self, cluster: str, name: str, *documents: Manifest) -> None:
        """A file of manifests."""
        write_manifests(self.root / cluster / f"{name}.yaml", *documents)

    def remove(self, cluster: str, name: str) -> None:
        (self.root / cluster / f"{name}.yaml").unlink()

    async def start(self, *names: str) -> None:
        for name in names:
            await self.processes[name].start()

    async def restart(self, *names: str) -> None:
        """SIGKILL, and start again at once."""
        for name in names:
            await self.processes[name].kill()
        await self.start(*names)

    def say(self, text: str) -> None:
        """Progress, for who watches the tests (pytest -s)."""
        print(f"  {time.monotonic() - self._began:5.1f} s  {text}", flush=True)

    # --- waiting, by following the ledger

    async def until(self, what: str, is_true: Callable[[LedgerView], bool]) -> None:
        """Return as soon as the ledger says so."""
        with anyio.move_on_after(DEADLINE_S) as waiting:
            while not is_true(self.view):
                changed = self._changed
                for process in self.processes.values():
                    process.check()
                with anyio.move_on_after(1.0):  # to look whether the processes live
                    await changed.wait()
        logs = "\n".join(f"--- {name}\n{process.tail()}" for name, process in self.processes.items())
        assert not waiting.cancelled_caught, f"{what} did not happen within {DEADLINE_S:g} s; {self.view}\n{logs}"
        self.say(f"{what}: {self.view}")

    def stop_following(self) -> None:
        """What comes in the ledger from here on is not for the view."""
        self._following.cancel()

    async def follow_ledger(self) -> None:
        with self._following:
            async with aclosing(follow_ledger(self.connection, self.view)) as batches:
                async for _ in batches:
                    changed, self._changed = self._changed, anyio.Event()
                    changed.set()

    # --- looking into it

    async def call(self, verb: str, payload: bytes = b"") -> bytes:
        """Ask the broker that leads; until one does."""
        with anyio.fail_after(DEADLINE_S):
            while True:
                try:
                    return await call_api(self.connection, verb, payload, deadline_s=5)
                except BusError:
                    await anyio.sleep(0.1)

    async def rows(self, count: int) -> list[Row]:
        """All claims, as the API shows them, once there are so many."""
        with anyio.move_on_after(DEADLINE_S):
            while True:
                rows = msgspec.json.decode(await self.call("claims"), type=list[Row])
                if len(rows) == count:
                    return rows
                await anyio.sleep(0.1)
        raise AssertionError(f"{len(rows)} claims, not {count}; {self.view}")

    async def leader(self) -> str:
        """The process whose election is the ledger's last, as soon as it says so."""
        sentence = f"leads main with epoch {self.view.leaders[-1][0]},"
        with anyio.fail_after(DEADLINE_S):
            while True:
                for name, process in self.processes.items():
                    if sentence in process.tail():
                        return name
                await anyio.sleep(0.02)

    async def kept_allocations(self, cluster: str) -> dict[str, list[tuple[str, str, str]]]:
        """By UID what each claim's status says in the data directory of an agent that has stopped."""
        found = {}
        manifests = ManifestCluster([self.root / cluster], data_dir=self.data(cluster))
        try:
            for claim in (await manifests.list_objects("claim")).objects:
                allocation = claim.get("status", {}).get("allocation")
                results = allocation["devices"]["results"] if allocation else []
                found[claim["metadata"]["uid"]] = [(each["driver"], each["pool"], each["device"]) for each in results]
        finally:
            manifests.close()
        return found

    async def dead_letters(self) -> int:
        """How many messages were kept aside."""
        return (await StreamReader(self.connection, "DRA_DEADLETTER").state()).last_sequence


@asynccontextmanager
async def a_federation(
    root: Path, *, has_hub: bool = False, segment_entries: int = 0, follows_ledger: bool = True
) -> AsyncIterator[Federation]:
    """Nothing runs yet but nats-server; at the end everything is killed. follows_ledger: it is never lost."""
    async with embedded_nats(root / "nats") as nats, connect_to(nats) as connection:
        clusters = ["hub", "east", "west"] if has_hub else ["east", "west"]
        federation = Federation(root, nats, connection, clusters, segment_entries)
        try:
            async with anyio.create_task_group() as tasks:
                if follows_ledger:
                    tasks.start_soon(federation.follow_ledger)
                yield federation
                tasks.cancel_scope.cancel()
        finally:
            for process in federation.processes.values():
                if process.is_running:
                    await process.kill()


def states(rows: Sequence[Row]) -> Counter[str]:
    """How many claims are in which state."""
    return Counter(row.state for row in rows)
