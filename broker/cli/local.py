"""Everything in one process, over directories of manifests: what `up` and `demo` run."""

import hashlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import msgspec
from anyio.abc import TaskGroup

from broker.adapters.durability import DEFAULT, Durability
from broker.adapters.embedded_nats import embedded_nats
from broker.allocation.cel.engine import default_engine
from broker.app.broker import Broker, BrokerSettings
from broker.cli.build import build
from broker.machine import Machine, Notice, report
from broker.machine.report import ClaimRow
from broker.world.federation import Federation
from broker.world.keys import ClusterId
from cluster_agent.adapters.bus import AgentBus
from cluster_agent.adapters.manifest_cluster import ManifestCluster
from cluster_agent.app.agent import Agent, AgentSettings
from schemas.client.connection import BusOptions, Connection, connect
from schemas.errors import ManifestError

_log = logging.getLogger(__name__)

PROGRESS_S = 2.0  # what takes longer says what it waits for


class LocalFederation:
    """A broker and its agents in this process; made by `local_federation`."""

    def __init__(
        self,
        url: str,
        broker: Broker,
        agents: dict[str, Agent],
        manifests: dict[str, ManifestCluster],
        tasks: TaskGroup,
    ) -> None:
        self.url = url
        self.broker = broker
        self.agents = agents
        self.manifests = manifests
        self._tasks = tasks

    async def start_agents(self) -> None:
        """Let the clusters take part, one after the other: who comes first in the order that was given waits first."""
        for agent in self.agents.values():
            self._tasks.start_soon(agent.run)
            await agent.synced.wait()

    def follow_files(self) -> None:
        """Take in what changes in the manifests from here on."""
        for cluster in self.manifests.values():
            self._tasks.start_soon(cluster.run)

    async def claims(self) -> list[ClaimRow]:
        """Where every claim is."""
        return await self.broker.ask_world(lambda machine: report.claim_rows(machine.world))

    async def wait_until_settled(self) -> None:
        """Return when all input is consumed, every decision has its outcome, and nothing is left to try."""
        agents = list(self.agents.values())
        names = [ClusterId(name) for name in self.agents]
        quiet_s = 0.0
        while True:
            changed = self.broker.changed
            if all(agent.is_idle for agent in agents):
                told = [beat.last_sequence for agent in agents if (beat := agent.mirror.beat()) is not None]

                def is_settled(machine: Machine, told: list[int] = told) -> bool:
                    world = machine.world
                    return world.position >= max(told, default=0) and report.is_settled(world, clusters=names)

                if await self.broker.ask_world(is_settled) and all(agent.is_idle for agent in agents):
                    return
            with anyio.move_on_after(0.02) as waiting:
                await changed.wait()
            quiet_s = quiet_s + 0.02 if waiting.cancelled_caught else 0.0
            if quiet_s > PROGRESS_S:
                quiet_s = 0.0
                busy = [agent.name for agent in agents if not agent.is_idle]
                _log.warning("still working: %s", f"agents of {', '.join(busy)}" if busy else "the broker")


@asynccontextmanager
async def local_federation(
    directories: Mapping[str, Path],
    federation: Federation,
    *,
    data_dir: Path | None,
    tell: Callable[[Notice], None],
) -> AsyncIterator[LocalFederation]:
    """Embedded NATS, a broker, and an agent (not started yet) for each directory.

    data_dir: what must outlive the process; None forgets all of it.
    Raises: EmbeddedNatsError, ManifestError, JournalError.
    """
    async with (
        embedded_nats(data_dir / "nats" if data_dir else None) as nats,
        connect(BusOptions((nats.url,), name="dragoman up")) as connection,
        anyio.create_task_group() as tasks,
    ):
        settings = broker_settings(federation, is_alone=True, durability=Durability(is_embedded=True))
        broker = Broker(connection, default_engine(), settings, tell)
        local = LocalFederation(nats.url, broker, {}, {}, tasks)
        for name, directory in directories.items():
            kept = data_dir / "clusters" / name if data_dir else None
            manifests = ManifestCluster([directory], data_dir=kept, report=log_problem)
            local.manifests[name] = manifests
            local.agents[name] = make_agent(name, manifests, connection)
        await tasks.start(broker.run)
        try:
            yield local
        finally:
            tasks.cancel_scope.cancel()
            for manifests in local.manifests.values():
                manifests.close()


def make_agent(name: str, manifests: ManifestCluster, connection: Connection) -> Agent:
    """The agent of a directory of manifests."""
    return Agent(name, manifests, AgentBus(connection, name), new_instance(), AgentSettings(publishes_all=True))


def log_problem(problem: ManifestError) -> None:
    """Something is wrong with a file."""
    _log.error("%s", problem)


def broker_settings(
    federation: Federation, *, is_alone: bool = False, durability: Durability = DEFAULT
) -> BrokerSettings:
    """Settings with what the ledger records of the process itself."""
    return BrokerSettings(
        federation=federation,
        instance=new_instance(),
        build=build(),
        settings_digest=settings_digest(federation),
        is_alone=is_alone,
        durability=durability,
    )


def settings_digest(federation: Federation) -> str:
    """By which the ledger tells with which settings a broker has decided."""
    return hashlib.sha256(msgspec.json.encode(federation)).hexdigest()[:32]


def new_instance() -> str:
    """A name for this run of a process, never used again: a batch in the ledger tells by it who wrote it."""
    return uuid.uuid4().hex[:12]
