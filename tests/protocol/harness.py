"""A stage for histories that are told step by step.

The test releases what agents and brokers do one by one, and says what is late, lost or repeated; `rest` then lets
everything else happen. Streams, API servers and hands are those of the simulation, which draws such histories.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from broker.machine import Effects, Notice
from broker.world.check import check
from broker.world.federation import Fabric, Federation, PoolPattern
from broker.world.keys import ClaimKey, ClaimUid, ClusterId
from broker.world.records import Claim
from broker.world.world import World
from cluster_agent.mirror import Mirror
from cluster_agent.mirror.actions import Publish
from cluster_agent.mirror.tracked import holds_of, metadata_of
from schemas.wire.bus import StoredMessage
from schemas.wire.calls import Ask, DeadLetter
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import (
    ClusterEvicted,
    ClusterReadmitted,
    DeviceHold,
    Entry,
    FenceLifted,
    OperatorCommand,
    Verb,
)
from tests.simulation.agent import AgentRun, Call, Request
from tests.simulation.broker import BrokerRun
from tests.simulation.cluster import Allocation, SimCluster, a_claim, a_class, a_slice
from tests.simulation.rebuild import rebuild_ledger
from tests.simulation.streams import Batch, DurableConsumer, Ledger, StateLog

ROUNDS = 100  # many more than any history needs to come to rest
STEPS = 200
ENTRY_BYTES_MAX = 256 * 1024  # of a ledger entry, unless the test is about one as large as can be
POOL = "rack7"

E = TypeVar("E", bound=Entry)


class BadEndError(AssertionError):
    """A history has come to an end that the protocol promises not to have."""


class AllocatedTwiceError(BadEndError):
    """Two claims have one device, in their API servers."""


class GrantLeakedError(BadEndError):
    """A grant stays although its claim has no such allocation, and nobody will ever end it."""


class UnsettledError(BadEndError):
    """Something stays open for ever."""


@dataclass
class Late:
    """A request whose sender is gone; it may still arrive."""

    agent: AgentRun
    request: Request

    def arrives(self) -> None:
        """It reaches the API server, or the log."""
        self.agent.arrive(self.request)


class Stage:
    """Clusters that share one fabric, their agents, a broker, and what lies between them.

    Unless a federation is given, `hub` has the class and a slice of `devices`; east and west reach these. mirror,
    agent, broker: what processes are made of; a test double with one rule switched off is put in here.
    Every pool name stands for one physical pool: two allocations of one device are an error wherever they are.
    """

    def __init__(
        self,
        *,
        devices: Sequence[str] = ("d",),
        federation: Federation | None = None,
        mirror: type[Mirror] = Mirror,
        agent: type[AgentRun] = AgentRun,
        broker: type[BrokerRun] = BrokerRun,
    ) -> None:
        self.federation = federation or _a_federation()
        self.log = StateLog()
        self.ledger = Ledger(self._stored)
        self.clusters = {str(name): SimCluster(name, self._allocated) for name in self.federation.clusters}
        self.consumers = {name: DurableConsumer(self.ledger, name) for name in self.clusters}
        self.agents: list[AgentRun] = []
        self.now_ms = 1_000
        self.dead_letters: list[DeadLetter] = []
        self.asks: list[tuple[str, Ask]] = []
        self.broker: BrokerRun | None = None
        self._mirror, self._agent, self._broker = mirror, agent, broker
        self.notices: list[Notice] = []
        self.answers: list[str] = []
        self.entry_bytes_max = ENTRY_BYTES_MAX
        self._runs = 0
        if federation is None:
            self.clusters["hub"].create("class", a_class())
            self.clusters["hub"].create("slice", a_slice("s", POOL, devices))

    # --- agents

    def agent(self, cluster: str, mirror: type[Mirror] | None = None) -> AgentRun:
        """A new run of a cluster's agent, which has taken its epoch, read its subjects and listed its cluster."""
        return self.begin_agent(cluster, mirror).start()

    def begin_agent(self, cluster: str, mirror: type[Mirror] | None = None) -> AgentRun:
        """A new run of a cluster's agent, which has done nothing yet."""
        self._runs += 1
        made = (mirror or self._mirror)(cluster, publishes_all=True, refresh_ms=10**12)
        run = self._agent(
            f"{cluster}-{self._runs}",
            self.clusters[cluster],
            self.log,
            self.ledger,
            self.consumers[cluster],
            made,
            self.now_ms,
        )
        self.agents.append(run)
        return run

    def agent_of(self, cluster: str) -> AgentRun:
        """The newest of a cluster's agents that run."""
        return next(each for each in reversed(self.agents) if each.cluster.name == cluster and each.is_alive)

    def serve(self, agent: AgentRun) -> None:
        """All that the agent asks for is done, and all that its cluster has to tell is told."""
        for _ in range(10 * STEPS * (1 + len(agent.cluster.keys))):
            if not agent.is_alive:
                return
            if agent.calls:
                agent.do(agent.calls[0])
            else:
                agent.watch_all()
                if not agent.calls:
                    return
        raise UnsettledError(f"{agent.instance} never rests")

    def tell(self, cluster: str) -> None:
        """The cluster's agent serves, and the broker decides on what it says."""
        self.serve(self.agent_of(cluster).start())
        self.decide()

    def pending(self, agent: AgentRun, action: type[Request], key: str = "") -> Call:
        """The one request of this type that the agent is waiting for (about the object `key`)."""
        (call,) = [
            each
            for each in agent.calls
            if isinstance(each.request, action)
            and key in ("", each.request.name.key if isinstance(each.request, Publish) else each.request.claim.uid)
        ]
        return call

    def do(self, agent: AgentRun, action: type[Request], key: str = "") -> None:
        """That request arrives, and so does its answer."""
        agent.do(self.pending(agent, action, key))

    def kill(self, agent: AgentRun) -> list[Late]:
        """The process ends. What it has asked for is still under way, and may arrive whenever the test says so."""
        agent.stop("killed")
        return [Late(agent, call.request) for call in agent.calls if not call.is_done]

    # --- the broker

    def start_broker(self, kind: type[BrokerRun] | None = None) -> BrokerRun:
        """A new broker that leads, after the one before was killed."""
        if self.broker is not None:
            self.broker.stop("killed")
        self._runs += 1
        self.broker = (kind or self._broker)(
            f"broker-{self._runs}", self.log, self.ledger, self.federation, self._committed
        )
        attempt = self.broker.begin()
        while True:
            self.broker.arrive(attempt)
            self.broker.deliver(attempt)
            if self.broker.phase != "opens":
                return self.broker
            attempt = self.broker.go_on()

    @property
    def world(self) -> World:
        """What the broker believes."""
        assert self.broker is not None
        return self.broker.world

    def decide(self) -> None:
        """The broker reads the log, message by message, and does all that follows now."""
        assert self.broker is not None
        while self.broker.unread():
            self.broker.read(1)
            assert self.broker.phase == "leads", self.broker.why_stopped
            self.step_all()
        self.step_all()

    def order(self, verb: Verb, cluster: str, *, fenced: bool = False) -> None:
        """An operator orders something, and the broker does it."""
        assert self.broker is not None
        last = self.log.last_sequence if verb == "evict" else 0
        self.broker.machine.order(OperatorCommand(verb, cluster, "ada", "fire", fenced, last))
        self.step_all()
        assert self.answers.pop() == ""

    def step_all(self) -> None:
        """The broker steps until it has nothing to do."""
        assert self.broker is not None
        for _ in range(STEPS):
            if not self.broker.machine.has_work(self.now_ms):
                return
            self.step()
        raise UnsettledError("the broker always has something to do")

    def step(self) -> None:
        """One step of the broker; its batch is stored."""
        assert self.broker is not None
        attempt = self.broker.step(self.now_ms)
        if attempt is not None:
            self.broker.arrive(attempt)
            assert attempt.was_stored, "there is one broker, and nobody else appends"
            self.broker.deliver(attempt)

    # --- the end

    def rest(self, *, asks_arrive: bool = True) -> None:
        """Everything happens that can happen without faults, until nothing does. Raises: BadEndError."""
        if self.broker is None or self.broker.phase != "leads":
            self.start_broker()
        for _ in range(ROUNDS):
            if self._round(asks_arrive):
                continue
            assert self.broker is not None
            wake_ms = self.broker.machine.wake_at_ms()
            if wake_ms is None:
                break
            self.now_ms = max(self.now_ms, wake_ms)
        else:
            raise UnsettledError(f"it never rests: {self._open()}")
        self._check_rest()

    def _round(self, asks_arrive: bool) -> bool:
        before = self._marks()
        for name in self.clusters:
            if not any(each.is_alive and each.cluster.name == name for each in self.agents):
                self.agent(name)
        for agent in [each for each in self.agents if each.is_alive]:
            agent.follow_evictions()
            if agent.start().runs:
                self.serve(agent)
            if agent.runs:
                agent.follow_run()
        for name, consumer in self.consumers.items():
            newest = [each for each in self.agents if each.runs and each.cluster.name == name][-1:]
            for agent in newest:
                while consumer.has_new():
                    agent.take_decision()
                for sequence, (_, holder) in list(consumer.taken.items()):
                    if isinstance(holder, AgentRun) and not holder.is_alive:
                        agent.take_decision(sequence)
        self.decide()
        self._deliver_asks(asks_arrive)
        return self._marks() != before or any(agent.calls for agent in self.agents if agent.is_alive)

    def _deliver_asks(self, asks_arrive: bool) -> None:
        assert self.broker is not None
        for agent in [each for each in self.agents if each.is_alive]:
            agent.tick(self.now_ms)
            beat = agent.mirror.beat()
            ask = self.broker.hear(agent.cluster.name, beat) if beat is not None else None
            if ask is not None:
                self.asks.append((agent.cluster.name, ask))
        asks, self.asks = self.asks, []
        for name, ask in asks:
            for agent in self.agents:
                if asks_arrive and agent.runs and agent.cluster.name == name:
                    agent.ask(ask)

    def _marks(self) -> object:
        stores = [cluster.store.resource_version for cluster in self.clusters.values()]
        alive = [each.instance for each in self.agents if each.is_alive]
        return self.log.last_sequence, self.ledger.last_sequence, stores, alive

    def _check_rest(self) -> None:
        if self._open():
            raise UnsettledError(f"it rests, and yet is open: {self._open()}")
        for claim in self.world.claims.values():
            shown = self._holds(claim.key.cluster, claim.key.uid)
            for grant in claim.grants:
                if grant.holds != shown:
                    raise GrantLeakedError(f"{grant} is left, its claim has {shown}")
            if shown is not None and not claim.grants and claim.collision is None:
                raise UnsettledError(f"{claim.key} has {shown}, and no grant")

    def _open(self) -> list[str]:
        """What still waits for somebody."""
        unsettled = [f"{claim.key}: {claim.unsettled}" for claim in self.world.claims.values() if claim.unsettled]
        there = [each for each in self.agents if each.is_alive and not each.is_shut_out]
        busy = [each.instance for each in there if not each.mirror.is_idle]
        return unsettled + busy

    # --- people, and what can be seen

    def claim(self, cluster: str, name: str, *, count: int = 1, immediate: bool = True) -> str:
        """Somebody creates a claim for `count` devices; returns its UID."""
        return self.clusters[cluster].create("claim", a_claim(name, count=count, immediate=immediate))

    def delete(self, cluster: str, name: str) -> None:
        """Somebody deletes a claim; kube-controller-manager takes its part, the agent will take its finalizer."""
        (uid,) = [uid for uid, key in self.clusters[cluster].keys.items() if key.name == name]
        self.clusters[cluster].delete("claim", name)
        while uid in self.clusters[cluster].keys and self.clusters[cluster].clean_up(uid):
            pass

    def lose_ledger(self, after: int = 0, *, agents_too: bool = True) -> None:
        """The ledger's entries after this one are gone; the broker, and the agents if not told otherwise, restart."""
        for agent in self.agents if agents_too else []:
            agent.stop("restarted")
        self.ledger.lose(after)
        for consumer in self.consumers.values():
            consumer.forget()
        if self.broker is not None:
            self.broker.stop("restarted")

    def rebuild(self) -> int:
        """An operator rebuilds the ledger while no broker runs; returns where it begins."""
        if self.broker is not None:
            self.broker.stop("killed")
        first = rebuild_ledger(self.log, self.ledger, self.federation, self.now_ms)
        for consumer in self.consumers.values():
            consumer.forget()
        return first

    def allocated(self) -> dict[str, list[str]]:
        """Which devices claims have in their API servers, as "cluster/name"."""
        found = {}
        for name, cluster in self.clusters.items():
            for claim in cluster.claims():
                holds = holds_of(claim)
                if holds is not None:
                    found[f"{name}/{metadata_of(claim)['name']}"] = [hold.device for hold in holds]
        return found

    def believed(self, cluster: str, uid: str) -> Claim:
        """What the broker knows of a claim."""
        return self.world.claims[ClaimKey(ClusterId(cluster), ClaimUid(uid))]

    def reason(self, cluster: str, uid: str) -> str:
        """Why the claim waits; "" if it does not."""
        waiting = self.believed(cluster, uid).waiting
        return waiting.reason if waiting else ""

    def entries(self, type_: type[E]) -> list[E]:
        """The ledger's entries of this type."""
        found = [decode_entry(message.payload) for message in self.ledger.messages]
        return [entry for entry in found if isinstance(entry, type_)]

    def publish(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> StoredMessage:
        """Somebody with an agent's credential publishes what no agent of ours would."""
        last = self.log.last(subject)
        self.log.publish(subject, payload, last.stream_sequence if last else 0)
        stored = self.log.last(subject)
        assert stored is not None
        assert isinstance(stored.headers, dict)
        stored.headers.update(headers or {})
        return stored

    def _holds(self, cluster: str, uid: str) -> tuple[DeviceHold, ...] | None:
        allocation = self.clusters[cluster].allocations.get(uid)
        return allocation.holds if allocation else None

    def is_cut_off(self, cluster: str) -> bool:
        """An operator vouches that nothing there reaches a device, and has not let it back yet."""
        _, entry = self.ledger.evictions.get(cluster, (0, None))
        return isinstance(entry, ClusterEvicted | ClusterReadmitted) and entry.is_fenced

    def _allocated(self, allocation: Allocation) -> None:
        """Raises: AllocatedTwiceError if others have a device of it."""
        mine = _devices(allocation)
        for cluster in self.clusters.values():
            for other in cluster.allocations.values():
                is_cut_off = self.is_cut_off(other.cluster) or self.is_cut_off(allocation.cluster)
                if other is not allocation and not is_cut_off and mine & _devices(other):
                    raise AllocatedTwiceError(f"{mine & _devices(other)} are allocated to {other} and to {allocation}")

    def _committed(self, broker: BrokerRun, effects: Effects) -> None:
        check(broker.world)
        self.dead_letters += effects.dead_letters
        self.asks += effects.asks
        self.notices += effects.notices
        self.answers += effects.answers

    def _stored(self, batch: Batch) -> None:
        for entry in batch.entries:
            size = len(encode(entry))
            assert size < self.entry_bytes_max, f"a {type(entry).__name__} of {size} bytes"
            if isinstance(entry, FenceLifted):
                for allocation in self.clusters[entry.cluster].allocations.values():
                    self._allocated(allocation)


def _devices(allocation: Allocation) -> set[tuple[str, str, str]]:
    return {(hold.driver, hold.pool, hold.device) for hold in allocation.holds}


def a_fabric(name: str, source: str, *clusters: str, pool: str = "*") -> Fabric:
    """A fabric that has the pools of that name."""
    reach = [ClusterId(each) for each in clusters]
    return Fabric(name=name, source=ClusterId(source), clusters=reach, pools=[PoolPattern(pool=pool)])


def _a_federation() -> Federation:
    clusters = [ClusterId(each) for each in ("hub", "east", "west")]
    return Federation(fabrics=[a_fabric("fab", "hub", "east", "west")], hub=clusters[0], clusters=clusters)
