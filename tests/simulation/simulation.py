"""Everything that there is in one seed: clusters, streams, processes, and what is under way between them.

What happens next is drawn in `schedule`, from the moves of `traffic`, `people` and `faults`.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from broker.machine import Effects
from cluster_agent.mirror import Mirror
from cluster_agent.mirror.actions import WriteAllocation
from schemas.wire.calls import Ask
from schemas.wire.ledger import Allocate, AnyEntry
from tests.simulation.agent import AgentRun, Request
from tests.simulation.broker import Attempt, BrokerRun
from tests.simulation.cluster import SimCluster, a_claim, a_class, a_pod, a_slice, an_allocation
from tests.simulation.oracle import Oracle, Violation
from tests.simulation.plan import SHARES, Plan
from tests.simulation.rebuild import rebuild_ledger
from tests.simulation.streams import Batch, DurableConsumer, Ledger, StateLog

Process = AgentRun | BrokerRun
BEACON_MS = 1_000  # how often a leader shows it, and looks who is silent when it comes back
Side = Literal["bus", "API server", "watch of claims"]


@dataclass
class Doubles:
    """What a run is made of; a test double with a rule switched off is put in here. See `rules`."""

    mirror: type[Mirror] = Mirror
    agent: type[AgentRun] = AgentRun
    broker: type[BrokerRun] = BrokerRun


@dataclass
class Simulation:
    """A run of one seed. `history` tells what happened, line by line, with the entries that were decided.

    faults: how often each kind has happened. paused, cut: until which event a process stands still, or is cut off
    from one of the sides that it talks to. clock_ms: how far a process' clock is off.
    """

    seed: int
    doubles: Doubles = field(default_factory=Doubles)
    history: list[str | AnyEntry] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    now_ms: int = 1_000
    events: int = 0
    claims: int = 0

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.plan = plan = Plan.draw(self.rng)
        self.log = StateLog(plan.messages_per_subject)
        self.ledger = Ledger(self._stored)
        self.clusters = {name: SimCluster(name) for name in plan.clusters}
        self.consumers = {name: DurableConsumer(self.ledger, name) for name in plan.clusters}
        self.oracle = Oracle(
            plan.federation(), self.clusters, self.log, self._writes_under_way, dict.fromkeys(plan.shared, SHARES)
        )
        self.agents: list[AgentRun] = []
        self.brokers: list[BrokerRun] = []
        self.late: list[tuple[AgentRun, Request]] = []  # requests nobody waits for, which may still arrive
        self.appends: list[Attempt] = []  # the same for batches, and those whose writer waits
        self.asks: list[tuple[str, Ask]] = []
        self.paused: dict[Process, int] = {}
        self.cut: dict[Process, tuple[int, Side]] = {}
        self.clock_ms: dict[Process, int] = {}
        self.decisions = self.allocates = 0
        self.lost_until = 0  # the highest sequence that the log has acknowledged and lost
        self.told_last = 0  # DRA_STATE's last sequence when an operator last ordered an eviction
        self._looked_ms = self.now_ms
        self._runs = 0
        self._rebuilt = 0  # where the ledger that was rebuilt last began
        self._names = 0
        for cluster in self.clusters.values():
            cluster.on_allocated = self.oracle.on_allocated
        self._set_up()
        self.say(f"plan: {plan}")

    def _set_up(self) -> None:
        plan = self.plan
        self.device_names = {pool: [f"gpu-{index}" for index in range(count)] for pool, count in plan.devices.items()}
        for pool, names in self.device_names.items():
            self.clusters[plan.source_of(pool)].create("slice", self.a_slice(pool, names))
        for name in [plan.hub] if plan.hub else plan.members:
            self.clusters[name].create("class", a_class())
        devices = [(pool, name) for pool, names in self.device_names.items() for name in names]
        self.rng.shuffle(devices)
        for member in plan.members:
            for _ in range(plan.found[member]):
                allocation = an_allocation([devices.pop()])
                self.clusters[member].create("claim", a_claim(self.name("found"), allocation=allocation), "initial")
                self.claims += 1
            for _ in range(plan.claims[member]):
                self.create_claim(self.clusters[member])

    def say(self, line: str) -> None:
        """One line of the history."""
        self.history.append(line)

    def fault(self, kind: str, line: str) -> None:
        """A fault has happened."""
        self.faults[kind] += 1
        self.say(line)

    def told(self, most: int | None = None) -> list[str]:
        """The last so many lines of the history; all of them."""
        last = self.history if most is None else self.history[-most:]
        return [each if isinstance(each, str) else f"    {each}" for each in last]

    def digest(self) -> str:
        """Equal histories and ledgers have equal digests."""
        found = hashlib.sha256("\n".join(each for each in self.history if isinstance(each, str)).encode())
        for message in self.ledger.messages:
            found.update(message.payload)
        return found.hexdigest()

    # --- objects

    def name(self, word: str) -> str:
        """A name that nothing had before."""
        self._names += 1
        return f"{word}-{self._names}"

    def new_generation(self) -> int:
        """Of a pool; higher than all before."""
        self._names += 1
        return self._names

    def a_slice(self, pool: str, names: list[str], *, generation: int = 1, count: int = 1) -> dict[str, object]:
        """The one slice of a pool; with count 2 the other one never comes."""
        shares = SHARES if pool in self.plan.shared else 0
        return a_slice(f"slice-{pool}", pool, names, generation=generation, count=count, shares=shares)

    def create_claim(self, cluster: SimCluster, name: str = "") -> None:
        """Somebody creates a claim, perhaps with a pod that uses it."""
        self.claims += 1
        immediate = not self.plan.pods or self.rng.random() < 0.5
        name = name or self.name("claim")
        share = bool(self.plan.shared) and self.rng.random() < 0.5
        made = a_claim(name, count=self.rng.choice((1, 1, 1, 2)), immediate=immediate, share=share)
        uid = cluster.create("claim", made)
        self.say(f"claim {name} of {cluster.name} is created: {uid}")
        if not immediate and self.rng.random() < (0.95 if self.plan.is_calm else 0.7):
            cluster.create("pod", a_pod(self.name("pod"), [name]))

    # --- processes

    def live_agents(self, cluster: str = "") -> list[AgentRun]:
        """Processes of a cluster's agent that have not ended."""
        return [each for each in self.agents if each.is_alive and cluster in ("", each.cluster.name)]

    def start_agent(self, cluster: str) -> AgentRun:
        """A new process."""
        self._runs += 1
        mirror = self.doubles.mirror(cluster, publishes_all=self.plan.publishes_all, refresh_ms=self.plan.refresh_ms)
        agent = self.doubles.agent(
            f"{cluster}-agent-{self._runs}",
            self.clusters[cluster],
            self.log,
            self.ledger,
            self.consumers[cluster],
            mirror,
            self.now_ms,
        )
        self.agents.append(agent)
        self.say(f"{agent.instance} starts")
        return agent

    def start_broker(self) -> BrokerRun:
        """A new process."""
        self._runs += 1
        broker = self.doubles.broker(
            f"broker-{self._runs}", self.log, self.ledger, self.plan.federation(), self._committed, self.now_ms
        )
        self.brokers.append(broker)
        self.say(f"{broker.instance} starts at ledger {self.ledger.last_sequence}")
        self.appends.append(broker.begin())
        return broker

    def rebuild_ledger(self) -> None:
        """An operator does: `dragoman ledger rebuild --above`, with the number that the one before has printed."""
        first = rebuild_ledger(self.log, self.ledger, self.plan.federation(), self.now_ms, self._rebuilt)
        self._rebuilt = first
        for consumer in self.consumers.values():
            consumer.forget()
        self.say(f"an operator rebuilds the ledger, which goes on at {first}")

    def bury(self) -> None:
        """Forget processes that have ended; what they have sent may still arrive."""
        for agent in [each for each in self.agents if not each.is_alive]:
            self.agents.remove(agent)
            self.late += [(agent, call.request) for call in agent.calls if not call.is_done and not call.is_reading]
            self.say(f"{agent.instance} has ended: {agent.why_stopped}")
        for broker in [each for each in self.brokers if each.phase == "stopped"]:
            self.brokers.remove(broker)
            self.say(f"{broker.instance} has ended: {broker.why_stopped}")

    def reaches(self, process: Process, side: Side) -> bool:
        """Whether it can do anything there now."""
        if process in self.paused:
            return False
        cut = self.cut.get(process)
        return cut is None or cut[1] != side

    def now_of(self, process: Process) -> int:
        """What its clock says."""
        return self.now_ms + self.clock_ms.get(process, 0)

    def is_written(self, cluster: str = "") -> bool:
        """Whether an allocation is on its way to an API server."""
        return any(cluster in ("", where.name) for where, _ in self._writes_under_way())

    def leader(self) -> BrokerRun | None:
        """A broker that leads, as far as it knows, and hears operators and heartbeats."""
        for broker in self.brokers:
            if broker.phase == "leads" and not broker.is_waiting and self.reaches(broker, "bus"):
                return broker
        return None

    def pass_time(self, ms: int) -> None:
        """Brokers look who is silent, as often as their beacon comes back."""
        until_ms = self.now_ms + ms
        while until_ms - self._looked_ms >= BEACON_MS:
            self._looked_ms += BEACON_MS
            self.now_ms = max(self.now_ms, self._looked_ms)
            for broker in self.brokers:
                if self.reaches(broker, "bus"):
                    broker.look(self.now_of(broker))
        self.now_ms = until_ms

    # --- what the oracle hears

    def _stored(self, batch: Batch) -> None:
        writer = next((each.machine for each in self.brokers if each.batch is batch), None)
        for broker in self.brokers:
            if broker.batch is batch and broker.effects is not None:
                self.oracle.dead_letters |= {each.stream_sequence for each in broker.effects.dead_letters}
        self.oracle.on_stored(batch, writer)
        self.decisions += len(batch.decisions)
        self.allocates += sum(isinstance(each, Allocate) for each in batch.decisions)

    def _committed(self, broker: BrokerRun, effects: Effects) -> None:
        for letter in effects.dead_letters:
            self.oracle.dead_letters.add(letter.stream_sequence)
            self.say(f"{broker.instance} keeps aside: {letter.reason}: {letter.message}")
            if letter.reason == "InternalError":
                raise Violation(letter.message)
        self.asks += effects.asks
        for refusal in effects.answers:
            self.say(f"    order: {refusal or 'done'}")
        self.history += effects.entries[1:]

    def _writes_under_way(self) -> Iterator[tuple[SimCluster, WriteAllocation]]:
        for agent in self.agents:
            for call in agent.calls:
                if isinstance(call.request, WriteAllocation) and not call.is_done:
                    yield agent.cluster, call.request
        for agent, request in self.late:
            if isinstance(request, WriteAllocation):
                yield agent.cluster, request
