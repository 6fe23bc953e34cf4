"""One seed, one history: what happens next is drawn from all that may happen.

Faults: messages late, lost or repeated, in any order across subjects; answers lost, requests arriving late, also after
their sender died; agents and brokers killed and restarted at any moment, two at once; messages that expire; and people
who delete, touch, clear and allocate as they like; a ledger that goes on in new segments, whose checkpoints may be
damaged. Each seed draws how often each of these happens, many not at all.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import msgspec

from broker.machine import Effects
from broker.world.federation import Fabric, Federation, PoolPattern
from broker.world.keys import ClusterId
from cluster_agent.mirror import Mirror
from cluster_agent.mirror.actions import Publish, ReadClaim, WriteAllocation
from cluster_agent.mirror.tracked import holds_of, metadata_of
from schemas.wire.calls import Ask
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import CheckpointClaims, ClaimKept
from schemas.wire.subjects import run_subject
from tests.simulation.agent import AgentRun, Call, Request, describe
from tests.simulation.broker import Attempt, BrokerRun
from tests.simulation.cluster import (
    CLASS,
    KINDS,
    Kind,
    SimCluster,
    a_claim,
    a_class,
    a_pod,
    a_slice,
    an_allocation,
)
from tests.simulation.oracle import Oracle, Violation
from tests.simulation.streams import Batch, DurableConsumer, Ledger, StateLog

DRAWS = 100
POOLS = ("rack7", "rack8")
FAULTS = {  # how often, if at all, relative to the 100 or so of all that goes as it should
    "lose an answer": 0.8,  # of each call
    "arrive late": 0.5,
    "kill an agent": 0.3,  # each of them
    "second agent": 0.8,
    "kill a broker": 0.4,
    "second broker": 0.4,
    "lose an append": 2.0,
    "expire a subject": 0.6,
    "expire the log": 0.6,
    "relist": 0.2,
    "deliver again": 1.0,
    "delete a claim": 1.2,
    "touch a claim": 1.5,
    "clear an allocation": 1.0,
    "a stranger allocates": 0.5,
    "reject": 1.0,
    "change slices": 0.5,
    "change the class": 0.3,
    "time leaps": 1.0,
    "rotate": 1.5,
    "damage a checkpoint": 1.0,
}


@dataclass(frozen=True)
class Plan:
    """What a seed starts with."""

    members: list[str]
    hub: str
    source: str
    devices: dict[str, int]  # by pool
    claims: dict[str, int]  # by member
    found: dict[str, int]  # allocations that are there before anything, by member
    publishes_all: bool
    pods: bool
    warm: bool  # all is at rest when the events begin; else nobody has started yet
    refresh_ms: int
    messages_per_subject: int
    faults: dict[str, float]
    overlaps: bool  # a second agent comes often, and the one before it is slow to notice

    @classmethod
    def draw(cls, rng: random.Random) -> "Plan":
        """The plan of a seed."""
        members = ["east", "west", "north"][: rng.choice((2, 2, 2, 3))]
        hub = rng.choice(("", "", "hub"))
        devices = {pool: rng.randint(1, 3) for pool in POOLS[: rng.choice((1, 1, 2))]}
        wanted = rng.randint(0, min(2, sum(devices.values())))
        found = dict.fromkeys(members, 0)
        for _ in range(wanted if rng.random() < 0.5 else 0):
            found[rng.choice(members)] += 1
        publishes_all = bool(hub) or rng.random() < 0.5
        loud = rng.uniform(0.2, 2.0)  # some seeds are quiet, so that what takes long is reached too
        faults = {
            name: loud * often * rng.uniform(0.3, 1.5) if rng.random() < 0.5 else 0.0 for name, often in FAULTS.items()
        }
        if not publishes_all and faults["change the class"]:
            # A claim whose class is not brokered any more, and whose messages have expired, is not told of again: the
            # broker may give it something until it hears so. That takes an agent that was silent for days, which the
            # broker will know by then (a later release: stale clusters).
            faults["expire a subject"] = faults["expire the log"] = 0.0
        overlaps = rng.random() < 0.4
        if overlaps:
            faults |= {"second agent": 4.0, "touch a claim": 3.0, "arrive late": 3.0, "kill an agent": 0.0}
        return cls(
            members=members,
            hub=hub,
            source=hub or rng.choice(members),
            devices=devices,
            claims={member: rng.randint(1, 3) for member in members},
            found=found,
            publishes_all=publishes_all,
            pods=rng.random() < 0.5,
            warm=rng.random() < 0.6,
            refresh_ms=rng.choice((10**9, 10**9, 20_000)),
            messages_per_subject=rng.choice((64, 64, 8, 3)),
            faults=faults,
            overlaps=overlaps,
        )

    @property
    def clusters(self) -> list[str]:
        """All that have an agent."""
        return [*self.members, *([self.hub] if self.hub else [])]

    def federation(self) -> Federation:
        """The broker's config."""
        fabric = Fabric(
            name="fab",
            source=ClusterId(self.source),
            clusters=[ClusterId(each) for each in self.members],
            pools=[PoolPattern()],
        )
        return Federation(
            fabrics=[fabric], hub=ClusterId(self.hub), clusters=[ClusterId(each) for each in self.clusters]
        )


@dataclass
class Doubles:
    """What a run is made of; a test double with a rule switched off is put in here. See `rules`."""

    mirror: type[Mirror] = Mirror
    agent: type[AgentRun] = AgentRun
    broker: type[BrokerRun] = BrokerRun


@dataclass
class Simulation:
    """A run of one seed. `history` tells what happened, line by line."""

    seed: int
    doubles: Doubles = field(default_factory=Doubles)
    history: list[str] = field(default_factory=list)
    now_ms: int = 1_000

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.plan = Plan.draw(self.rng)
        self.log = StateLog(self.plan.messages_per_subject)
        self.ledger = Ledger(self._stored)
        self.clusters = {name: SimCluster(name) for name in self.plan.clusters}
        self.consumers = {name: DurableConsumer(self.ledger, name) for name in self.plan.clusters}
        self.oracle = Oracle(self.plan.federation(), self.clusters, self.log, self._writes_under_way)
        self.agents: list[AgentRun] = []
        self.brokers: list[BrokerRun] = []
        self.late: list[tuple[AgentRun, Request]] = []  # requests nobody waits for, which may still arrive
        self.appends: list[Attempt] = []  # the same for batches, and those whose writer waits
        self.asks: list[tuple[str, Ask]] = []
        self._runs = 0
        self._names = 0
        for cluster in self.clusters.values():
            cluster.on_allocated = self.oracle.on_allocated
        self._set_up()
        self.say(f"plan: {self.plan}")

    def _set_up(self) -> None:
        plan = self.plan
        source = self.clusters[plan.source]
        self.device_names = {pool: [f"gpu-{index}" for index in range(count)] for pool, count in plan.devices.items()}
        for pool, names in self.device_names.items():
            source.create("slice", a_slice(f"slice-{pool}", pool, names))
        for name in [plan.hub] if plan.hub else plan.members:
            self.clusters[name].create("class", a_class())
        devices = [(pool, name) for pool, names in self.device_names.items() for name in names]
        self.rng.shuffle(devices)
        for member in plan.members:
            for _ in range(plan.found[member]):
                self.clusters[member].create(
                    "claim", a_claim(self._name("found"), allocation=an_allocation([devices.pop()])), author="initial"
                )
            for _ in range(plan.claims[member]):
                self._create_claim(self.clusters[member])

    def say(self, line: str) -> None:
        """One line of the history."""
        self.history.append(line)

    def digest(self) -> str:
        """Equal histories and ledgers have equal digests."""
        found = hashlib.sha256("\n".join(self.history).encode())
        for message in self.ledger.messages:
            found.update(message.payload)
        return found.hexdigest()

    # --- who is there

    def live_agents(self, cluster: str = "") -> list[AgentRun]:
        """Agents whose process runs, oldest first."""
        return [each for each in self.agents if cluster in ("", each.cluster.name)]

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
            f"broker-{self._runs}", self.log, self.ledger, self.plan.federation(), self._committed
        )
        self.brokers.append(broker)
        self.say(f"{broker.instance} starts at ledger {self.ledger.last_sequence}")
        self.appends.append(broker.begin())
        return broker

    def bury(self) -> None:
        """Forget processes that have ended; what they have sent may still arrive."""
        for agent in [each for each in self.agents if not each.is_alive]:
            self.agents.remove(agent)
            self.late += [(agent, call.request) for call in agent.calls if not call.is_done and not call.is_reading]
            self.say(f"{agent.instance} has ended: {agent.why_stopped}")
        for broker in [each for each in self.brokers if each.phase == "stopped"]:
            self.brokers.remove(broker)
            self.say(f"{broker.instance} has ended: {broker.why_stopped}")

    # --- what the oracle hears

    def _stored(self, batch: Batch) -> None:
        writer = next((each.machine for each in self.brokers if each.batch is batch), None)
        for broker in self.brokers:
            if broker.batch is batch and broker.effects is not None:
                self.oracle.dead_letters |= {each.stream_sequence for each in broker.effects.dead_letters}
        self.oracle.on_stored(batch, writer)

    def _committed(self, broker: BrokerRun, effects: Effects) -> None:
        for letter in effects.dead_letters:
            self.oracle.dead_letters.add(letter.stream_sequence)
            self.say(f"{broker.instance} keeps aside: {letter.reason}: {letter.message}")
            if letter.reason == "InternalError":
                raise Violation(letter.message)
        self.asks += effects.asks
        for entry in effects.entries[1:]:
            self.say(f"    {entry}")

    def _writes_under_way(self) -> Iterator[tuple[SimCluster, WriteAllocation]]:
        for agent in self.agents:
            for call in agent.calls:
                if isinstance(call.request, WriteAllocation) and not call.is_done:
                    yield agent.cluster, call.request
        for agent, request in self.late:
            if isinstance(request, WriteAllocation):
                yield agent.cluster, request

    # --- what may happen

    def run(self, steps: int) -> None:
        """Let `steps` events happen. Raises: Violation."""
        for _ in range(steps):
            self.happen()

    def happen(self) -> None:
        """One event: what is drawn until something comes of it. At rest, and without faults, that may be nothing."""
        told = len(self.history)
        for _ in range(DRAWS):
            if len(self.history) > told:
                break
            self.now_ms += self.rng.randint(1, 200)
            moves = [move for move in self._moves() if move[0] > 0]
            pick = self.rng.random() * sum(weight for weight, _ in moves)
            for weight, act in moves:
                pick -= weight
                if pick <= 0:
                    act()
                    break
        self.bury()

    def _moves(self) -> Iterator[tuple[float, Callable[[], None]]]:
        fault = self.plan.faults
        for agent in self.agents:
            yield from self._agent_moves(agent)
        for index in range(len(self.late)):
            yield 1.5, partial(self._late_arrives, index)
        for cluster in self.clusters:
            running = [each for each in self.live_agents(cluster) if each.runs]
            if not self.live_agents(cluster):
                yield 6, partial(self._starts, cluster)
            elif len(self.live_agents(cluster)) == 1:
                yield fault["second agent"], partial(self._starts, cluster)
            if running:
                yield from self._consumer_moves(cluster, running)
        for broker in self.brokers:
            yield from self._broker_moves(broker)
        for attempt in self.appends:
            yield from self._append_moves(attempt)
        if not self.brokers:
            yield 6, self._broker_starts
        elif len(self.brokers) == 1:
            yield fault["second broker"], self._broker_starts
        yield fault["damage a checkpoint"], self._checkpoint_is_damaged
        if self.asks:
            yield 4, self._ask_arrives
        yield from self._people()
        yield fault["time leaps"], self._time_leaps
        yield fault["expire a subject"], self._subject_expires
        yield fault["expire the log"], self._log_expires

    def _agent_moves(self, agent: AgentRun) -> Iterator[tuple[float, Callable[[], None]]]:
        fault = self.plan.faults
        yield fault["kill an agent"], partial(self._kill_agent, agent)
        if not agent.runs:
            yield 10, partial(self._start_step, agent)
            return
        for call in agent.calls:
            yield 4, partial(self._call_moves, call)
            if call.is_reading or isinstance(call.request, ReadClaim):
                continue  # it would simply ask again
            yield fault["lose an answer"], partial(self._answer_lost, call)
            often = fault["arrive late"] * (0.2 if isinstance(call.request, Publish) else 3)
            yield often, partial(self._times_out, call)
        for kind in KINDS:
            if agent.lag(kind):
                yield 4, partial(self._watch, agent, kind)
            yield fault["relist"], partial(self._relist, agent, kind)
        if agent.other_run():
            yield 0.05 if self.plan.overlaps else 2, partial(self._follow_run, agent)
        yield 0.5, partial(self._beat, agent)
        yield 0.3, partial(self._tick, agent)

    def _consumer_moves(self, cluster: str, running: list[AgentRun]) -> Iterator[tuple[float, Callable[[], None]]]:
        consumer = self.consumers[cluster]
        if consumer.has_new():
            yield 6, partial(self._take, running, None)
        for sequence, (_, holder) in consumer.taken.items():
            often = 0.0 if holder in running else 2.0
            often += self.plan.faults["deliver again"]
            yield often, partial(self._take, running, sequence)

    def _broker_moves(self, broker: BrokerRun) -> Iterator[tuple[float, Callable[[], None]]]:
        # In the middle of a rotation more often: it is short.
        often = 8 if broker.phase == "opens" else 1
        yield often * self.plan.faults["kill a broker"], partial(self._kill_broker, broker)
        if broker.must_look:
            yield 6, partial(self._look, broker)
        elif broker.must_retry:
            yield 6, partial(self._retry, broker)
        elif broker.phase == "leads" and not broker.is_waiting:
            if broker.unread():
                yield 8, partial(self._read, broker)
            if broker.machine.has_work(self.now_ms):
                yield 12, partial(self._step, broker)
            yield self.plan.faults["rotate"], partial(self._rotate, broker)
        elif broker.phase == "opens" and not broker.is_waiting:
            yield 8, partial(self._open_on, broker)

    def _append_moves(self, attempt: Attempt) -> Iterator[tuple[float, Callable[[], None]]]:
        fault = self.plan.faults
        yield 8, partial(self._append, attempt)
        if attempt.broker.attempt is attempt:
            yield fault["lose an append"], lambda: self._append_unanswered(attempt, arrives=True)
            yield fault["lose an append"], lambda: self._append_unanswered(attempt, arrives=False)
        else:
            yield 0.5, partial(self._append_dropped, attempt)

    def _people(self) -> Iterator[tuple[float, Callable[[], None]]]:
        fault = self.plan.faults
        yield 0.7, self._somebody_creates
        yield fault["delete a claim"], self._somebody_deletes
        yield fault["touch a claim"], self._somebody_touches
        yield fault["clear an allocation"], self._somebody_clears
        yield fault["a stranger allocates"], self._stranger_allocates
        yield fault["reject"], self._rejected
        yield fault["change slices"], self._slices_change
        yield fault["change the class"], self._class_changes
        if self.plan.pods:
            yield 1.5, self._pods_change
        yield 1.0, self._controller_manager

    # --- agents

    def _starts(self, cluster: str) -> None:
        self.start_agent(cluster)

    def _start_step(self, agent: AgentRun) -> None:
        for _ in range(self.rng.choice((1, 2, 5))):
            lost = self.rng.random() < 0.1 * self.plan.faults["lose an answer"]
            self.say(f"{agent.instance}: {agent.start_step(answer_is_lost=lost)}{', answer lost' if lost else ''}")
            if agent.step == "run":
                break

    def _kill_agent(self, agent: AgentRun) -> None:
        agent.stop("killed")

    def _call_moves(self, call: Call) -> None:
        """It arrives, or its answer does, or both at once."""
        if not call.is_done:
            call.agent.carry_out(call)
            arrived = bool(call.is_done)  # carrying it out tells
            self.say(f"{call} {'arrives' if arrived else 'is refused'}{_result(call)}")
            if not arrived or self.rng.random() < 0.25:
                return
        self.say(f"{call}: answered")
        call.agent.deliver(call)

    def _answer_lost(self, call: Call) -> None:
        if not call.is_done:
            call.agent.carry_out(call)
        self.say(f"{call}: answer lost{_result(call)}")
        request = call.agent.time_out(call)
        assert request is None or isinstance(request, Publish), "it has arrived"

    def _times_out(self, call: Call) -> None:
        request = call.agent.time_out(call)
        self.say(f"{call}: timed out")
        if request is not None and not isinstance(request, ReadClaim):
            self.late.append((call.agent, request))

    def _late_arrives(self, index: int) -> None:
        agent, request = self.late.pop(index)
        if self.rng.random() < 0.3:
            self.say(f"{describe(request)} of {agent.instance} never arrives")
            return
        self.say(f"{describe(request)} of {agent.instance} arrives late")
        agent.arrive(request)

    def _watch(self, agent: AgentRun, kind: Kind) -> None:
        count = self.rng.choice((1, 1, 2, 100))
        self.say(f"{agent.instance}: its watch delivers {min(count, agent.lag(kind))} of {kind}")
        agent.watch(kind, count)

    def _relist(self, agent: AgentRun, kind: Kind) -> None:
        self.say(f"{agent.instance}: lists {kind} again")
        agent.relist(kind)

    def _follow_run(self, agent: AgentRun) -> None:
        self.say(f"{agent.instance}: hears of another run")
        agent.follow_run()

    def _tick(self, agent: AgentRun) -> None:
        agent.tick(self.now_ms)

    def _beat(self, agent: AgentRun) -> None:
        beat = agent.mirror.beat()
        leader = next((each for each in self.brokers if each.phase == "leads" and not each.is_waiting), None)
        if beat is None or leader is None:
            return
        ask = leader.hear(agent.cluster.name, beat)
        if ask is not None:
            self.say(f"{leader.instance} hears {beat} of {agent.instance}: {ask}")
            self.asks.append((agent.cluster.name, ask))

    def _take(self, running: list[AgentRun], sequence: int | None) -> None:
        agent = self.rng.choice(running)
        self.say(f"{agent.instance}: gets {'the next decision' if sequence is None else f'decision {sequence} again'}")
        agent.take_decision(sequence)

    def _ask_arrives(self) -> None:
        cluster, ask = self.asks.pop(self.rng.randrange(len(self.asks)))
        heard = [each for each in self.live_agents(cluster) if each.runs and self.rng.random() < 0.8]
        self.say(f"{ask} reaches {[each.instance for each in heard]}")
        for agent in heard:
            agent.ask(ask)

    # --- brokers

    def _broker_starts(self) -> None:
        self.start_broker()

    def _kill_broker(self, broker: BrokerRun) -> None:
        broker.stop("killed")

    def _look(self, broker: BrokerRun) -> None:
        self.say(f"{broker.instance}: reads the ledger's tail")
        broker.look()

    def _retry(self, broker: BrokerRun) -> None:
        self.say(f"{broker.instance}: appends the same batch again")
        self.appends.append(broker.retry())

    def _read(self, broker: BrokerRun) -> None:
        count = self.rng.choice((1, 2, 4, 100))
        broker.read(count)
        self.say(f"{broker.instance}: reads state up to {broker.read_up_to}")

    def _step(self, broker: BrokerRun) -> None:
        self.say(f"{broker.instance}: steps")
        attempt = broker.step(self.now_ms)
        if attempt is not None:
            self.appends.append(attempt)

    def _rotate(self, broker: BrokerRun) -> None:
        self.say(f"{broker.instance}: closes the segment")
        self.appends.append(broker.close_segment(self.now_ms))

    def _open_on(self, broker: BrokerRun) -> None:
        self.say(f"{broker.instance}: opens the next segment")
        self.appends.append(broker.go_on())

    def _checkpoint_is_damaged(self) -> None:
        """The last one: its segment goes on, and somebody may start from it."""
        found = self.ledger.segment(self.ledger.segments[-1])
        if not any(b"ledger.inputs" in message.payload or b"leader-elected" in message.payload for message in found):
            return
        for message in found:
            entry = decode_entry(message.payload)
            if isinstance(entry, CheckpointClaims) and entry.claims:
                self.say(f"the checkpoint's entry {message.stream_sequence} forgets what claims have")
                forgotten = [ClaimKept(each.cluster, each.uid, each.namespace, each.name) for each in entry.claims]
                harmed = encode(msgspec.structs.replace(entry, claims=forgotten))
                self.ledger.damage(msgspec.structs.replace(message, payload=harmed))

    def _append(self, attempt: Attempt) -> None:
        if not attempt.is_done:
            attempt.broker.arrive(attempt)
            self.say(f"{attempt} {'is stored' if attempt.was_stored else 'is refused'}")
            if self.rng.random() < 0.3:
                return
        self.appends.remove(attempt)
        attempt.broker.deliver(attempt)

    def _append_unanswered(self, attempt: Attempt, *, arrives: bool) -> None:
        if arrives and not attempt.is_done:
            attempt.broker.arrive(attempt)
        self.say(f"{attempt}: {'answer lost' if attempt.is_done else 'timed out'}")
        if attempt.is_done:
            self.appends.remove(attempt)
        attempt.broker.lose(attempt)

    def _append_dropped(self, attempt: Attempt) -> None:
        self.say(f"{attempt} never arrives")
        self.appends.remove(attempt)

    # --- time

    def _time_leaps(self) -> None:
        self.now_ms += self.rng.choice((2_000, 30_000))
        self.say(f"it is {self.now_ms}")

    def _subject_expires(self) -> None:
        """Only what every leader has read: what may expire before is in `_log_expires`."""
        old = [
            subject
            for subject in self.log.subjects()
            if (last := self.log.last(subject)) and last.stream_sequence <= self.oracle.position
        ]
        # A living agent says again in time that its sync is finished, so that its run does not expire under it.
        kept = {run_subject(name) for name in self.clusters if self.live_agents(name)}
        if old:
            subject = self.rng.choice(old)
            if subject not in kept:
                self.say(f"{subject} expires")
                self.log.expire_subject(subject)
                self._forget_publishes()

    def _log_expires(self) -> None:
        """Everything up to some message, read or not; but what a living agent publishes again in time stays."""
        if self.rng.random() < 0.5:
            self.say("everything stands still for days")
            for agent in self.agents:
                agent.stop("power cut")
            for broker in self.brokers:
                broker.stop("power cut")
            self.bury()
        until = self.log.last_sequence
        for name in self.clusters:
            for agent in self.live_agents(name):
                kept = [message.stream_sequence for message in self.log.last_messages(name)]
                until = min([until, *(sequence - 1 for sequence in kept)])
                if not agent.runs:
                    until = 0
        if until > 0:
            until = self.rng.randint(1, until)
            self.say(f"state up to {until} expires")
            self.log.expire_up_to(until)
            self._forget_publishes()

    def _forget_publishes(self) -> None:
        """No publish travels as long as messages are kept. (A write to an API server may: nobody promised else.)"""
        self.late = [each for each in self.late if not isinstance(each[1], Publish)]

    # --- people

    def _name(self, word: str) -> str:
        self._names += 1
        return f"{word}-{self._names}"

    def _create_claim(self, cluster: SimCluster, name: str = "") -> None:
        immediate = not self.plan.pods or self.rng.random() < 0.5
        name = name or self._name("claim")
        uid = cluster.create("claim", a_claim(name, count=self.rng.choice((1, 1, 1, 2)), immediate=immediate))
        self.say(f"claim {name} of {cluster.name} is created: {uid}")
        if not immediate and self.rng.random() < 0.7:
            cluster.create("pod", a_pod(self._name("pod"), [name]))

    def _any_claim(self, is_allocated: bool | None = None) -> tuple[SimCluster, str] | None:
        found = [
            (cluster, str(metadata_of(claim)["uid"]))
            for cluster in self.clusters.values()
            for claim in cluster.claims()
            if is_allocated in (None, holds_of(claim) is not None)
        ]
        return self.rng.choice(found) if found else None

    def _somebody_creates(self) -> None:
        cluster = self.clusters[self.rng.choice(self.plan.members)]
        if len(cluster.keys) < 5:
            self._create_claim(cluster)

    def _somebody_deletes(self) -> None:
        found = self._any_claim()
        if found is None:
            return
        cluster, uid = found
        name = cluster.keys[uid].name
        self.say(f"claim {uid} is deleted")
        cluster.delete("claim", name)
        if uid not in cluster.keys and self.rng.random() < 0.3:
            self._create_claim(cluster, name)  # the same name, another claim

    def _somebody_touches(self) -> None:
        found = self._any_claim()
        if found is not None:
            self.say(f"claim {found[1]} is touched")
            found[0].touch(found[1])

    def _somebody_clears(self) -> None:
        found = self._any_claim(is_allocated=True)
        if found is not None:
            self.say(f"the allocation of {found[1]} is cleared")
            found[0].clear(found[1])

    def _stranger_allocates(self) -> None:
        found = self._any_claim(is_allocated=False)
        if found is not None:
            pool = self.rng.choice(sorted(self.device_names))
            device = self.rng.choice(self.device_names[pool] or ["gpu-9"])
            self.say(f"a stranger allocates {pool}/{device} to {found[1]}")
            found[0].allocate(found[1], [(pool, device)])

    def _rejected(self) -> None:
        found = self._any_claim(is_allocated=True)
        if found is None:
            return
        for agent in self.live_agents(found[0].name):
            if agent.runs:
                self.say(f"{agent.instance}: {found[1]} is rejected")
                agent.reject(found[1])

    def _slices_change(self) -> None:
        source = self.clusters[self.plan.source]
        pool = self.rng.choice(sorted(self.device_names))
        generation = self._names = self._names + 1
        names = [f"gpu-{index}" for index in range(self.rng.randint(0, 4))]
        made = a_slice(f"slice-{pool}", pool, names, generation=generation, count=self.rng.choice((1, 1, 1, 2)))
        there = source.store.get("slice", "", f"slice-{pool}")
        if there is not None and self.rng.random() < 0.2:
            self.say(f"the slice of {pool} is deleted")
            source.delete("slice", f"slice-{pool}")
            self.device_names[pool] = []
            return
        self.say(f"the slice of {pool} has {names} now, {made['spec']['pool']}")
        source.change("slice", made) if there is not None else source.create("slice", made)
        self.device_names[pool] = names

    def _class_changes(self) -> None:
        cluster = self.clusters[self.plan.hub or self.rng.choice(self.plan.members)]
        there = cluster.store.get("class", "", CLASS)
        if there is None:
            self.say(f"the class of {cluster.name} is created")
            cluster.create("class", a_class())
        elif self.rng.random() < 0.5:
            self.say(f"the class of {cluster.name} is deleted")
            cluster.delete("class", CLASS)
        else:
            brokered = not metadata_of(there).get("labels")
            self.say(f"the class of {cluster.name} is {'brokered' if brokered else 'not brokered'} now")
            cluster.change("class", a_class(brokered=brokered))

    def _pods_change(self) -> None:
        cluster = self.clusters[self.rng.choice(self.plan.members)]
        pods = [each.object for each in cluster.store.list_objects("pod")]
        names = [each.name for each in cluster.keys.values()]
        what = self.rng.choice(("create", "schedule", "finish", "delete"))
        if what == "create":
            if len(pods) < 4 and names:
                pod, claim = self._name("pod"), self.rng.choice(sorted(names))
                self.say(f"pod {pod} of {cluster.name} uses {claim}")
                cluster.create("pod", a_pod(pod, [claim]))
            return
        if not pods:
            return
        pod_object = self.rng.choice(pods)
        name = metadata_of(pod_object)["name"]
        self.say(f"pod {name} of {cluster.name}: {what}")
        if what == "schedule":
            cluster.change("pod", {**pod_object, "spec": {**pod_object["spec"], "nodeName": "node-1"}})
        elif what == "finish":
            cluster.change("pod", {**pod_object, "status": {"phase": "Succeeded"}})
        else:
            cluster.delete("pod", name)

    def _controller_manager(self) -> None:
        found = self._any_claim()
        if found is not None and found[0].clean_up(found[1]):
            self.say(f"kube-controller-manager cleans up {found[1]}")


def _result(call: Call) -> str:
    return f": {[type(event).__name__ for event in call.answer]}" if call.is_done else ""
