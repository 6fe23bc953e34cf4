"""One run of an agent: a real mirror, and hands that do as `cluster_agent.app` does, one move at a time.

Whoever drives it decides when each request arrives, when its answer does, and whether either is lost.
"""

from dataclasses import dataclass, field
from typing import Literal

from cluster_agent.mirror import Mirror
from cluster_agent.mirror.actions import (
    Asked,
    Cleaning,
    ClearAllocation,
    DecisionSeen,
    Event,
    Exit,
    LastMessage,
    ObjectGone,
    ObjectSeen,
    Publish,
    Published,
    PublishRefused,
    ReadClaim,
    Relisted,
    RemoveFinalizer,
    RunTaken,
    Started,
    Tick,
    Void,
    Write,
    WriteAllocation,
    WriteFailed,
    WriteFinalizers,
)
from schemas.wire.bus import StoredMessage
from schemas.wire.calls import Ask
from schemas.wire.codec import (
    WireError,
    decode_agent_message,
    decode_claim_state,
    decode_object_state,
    encode,
    peek_epoch,
)
from schemas.wire.ledger import ClusterEvicted, ClusterReadmitted
from schemas.wire.state import AgentStarted, ClaimState, ObjectName, ObjectState
from schemas.wire.subjects import PREFIX, parse_state_subject, run_subject, state_subject
from tests.simulation.cluster import KINDS, Kind, SimCluster, a_pod
from tests.simulation.streams import DurableConsumer, Ledger, StateLog

Request = Publish | Write | ReadClaim
StartStep = Literal["read the run", "take the epoch", "read the subjects", "list", "read the decisions", "run"]


@dataclass(eq=False)
class Call:
    """A request of an agent, under way. is_done: it had its effect, and `answer` is on its way back.

    is_reading: a publish that was refused or got no answer; what is under way now is the reading of its subject.
    """

    agent: "AgentRun"
    request: Request
    is_reading: bool = False
    is_done: bool = False
    answer: list[Event] = field(default_factory=list)

    def __str__(self) -> str:
        what = "reading again after " if self.is_reading else ""
        return f"{what}{describe(self.request)} of {self.agent.instance}"


class AgentRun:
    """From the start of a process to its end."""

    def __init__(
        self,
        instance: str,
        cluster: SimCluster,
        log: StateLog,
        ledger: Ledger,
        consumer: DurableConsumer,
        mirror: Mirror,
        now_ms: int = 0,
    ) -> None:
        self.instance = instance
        self.cluster = cluster
        self.mirror = mirror
        self.is_alive = True
        self.why_stopped = ""
        self.step: StartStep = "read the run"
        self.calls: list[Call] = []
        self._log = log
        self._ledger = ledger
        self._consumer = consumer
        self._now_ms = now_ms
        self._expected = 0
        self._epoch = 0
        self._run_sequence = 0
        self._sync_parts: dict[int, int] = {}
        self._last: list[LastMessage] = []
        self._admission = 0  # ledger sequence of the last entry about the cluster's eviction
        self._readmission = 0
        self._cleaning: Cleaning | None = None
        self._run = run_subject(cluster.name)
        self._last_run: tuple[StoredMessage | None, int] = (None, 0)  # with its epoch
        self._seen: dict[str, int] = {}  # how many of the cluster's events of each kind the watch has delivered

    # --- the start

    @property
    def runs(self) -> bool:
        """It has started and has not stopped."""
        return self.is_alive and self.step == "run"

    @property
    def is_shut_out(self) -> bool:
        """It waits for the cluster to be readmitted."""
        _, entry = self._ledger.evictions.get(self.cluster.name, (0, None))
        return self.step == "read the run" and isinstance(entry, ClusterEvicted)

    def start(self) -> "AgentRun":
        """All of the start at once, as far as it may."""
        while self.is_alive and self.step != "run" and not self.is_shut_out:
            self.start_step()
        return self

    def start_step(self, *, answer_is_lost: bool = False) -> str:
        """The next move of the start; returns what was done."""
        done = self.step
        run = run_subject(self.cluster.name)
        if self.is_shut_out:
            return "waits to be readmitted"
        if self.step == "read the run":
            last = self._log.last(run)
            started = _decoded_start(last)
            if last is not None and started is not None and started.instance == self.instance:
                # The answer was lost. How the cluster stands was read before the epoch was taken, and not again.
                self._epoch, self.step = last.stream_sequence, "read the subjects"
            else:
                self._admission, entry = self._ledger.evictions.get(self.cluster.name, (0, None))
                rebuilt = self._ledger.rebuilt.get(self.cluster.name, 0)
                self._readmission = max(rebuilt, self._admission if isinstance(entry, ClusterReadmitted) else 0)
                self._cleaning = Cleaning(rebuilt, keeps_allocation=True) if rebuilt else None
                if isinstance(entry, ClusterReadmitted) and entry.is_fenced:
                    self._cleaning = Cleaning(self._readmission)
                self._admission = max(self._admission, rebuilt)
                self._expected, self.step = last.stream_sequence if last else 0, "take the epoch"
        elif self.step == "take the epoch":
            payload = encode(AgentStarted(self.instance))
            stored = self._log.publish(run, payload, self._expected, self.instance, self._now_ms)
            if stored is None or answer_is_lost:
                self.step = "read the run"
            else:
                self._epoch, self.step = stored, "read the subjects"
        elif self.step == "read the subjects":
            self._read_subjects()
            self.step = "list"
        elif self.step == "list":
            self._objects = [seen for kind in KINDS for seen in self.cluster.seen(kind)]
            self._listed_at = self.cluster.store.resource_version
            self._seen = {kind: len(self.cluster.events[kind]) for kind in KINDS}
            self.step = "read the decisions"
        elif self.step == "read the decisions":
            self.step = "run"
            decisions = self._ledger.last_decisions(self.cluster.name)
            self.mirror.handle(Tick(self._now_ms))
            self.handle(
                Started(
                    self._epoch,
                    self._run_sequence,
                    self._sync_parts,
                    self._last,
                    self._objects,
                    decisions,
                    dict.fromkeys(KINDS, self._listed_at),
                    self._readmission,
                    self._cleaning,
                )
            )
        return done

    def _read_subjects(self) -> None:
        self._run_sequence = self._epoch
        for message in self._log.last_messages(self.cluster.name):
            subject = parse_state_subject(message.subject)
            assert subject is not None
            if subject.kind != "agent":
                self._last.append(_last(ObjectName(subject.kind, subject.key), message))
            elif subject.key == "run":
                self._run_sequence = message.stream_sequence
            else:
                self._sync_parts[int(subject.key.removeprefix("sync-"))] = message.stream_sequence

    # --- what it is told

    def handle(self, event: Event) -> None:
        """Let the mirror know, and begin what it asks for."""
        for action in self.mirror.handle(event):
            if isinstance(action, Exit):
                self.stop(action.reason)
                return
            self.calls.append(Call(self, action))

    def stop(self, why: str) -> None:
        """The process ends: its memory is gone; what it has sent is still under way."""
        self.is_alive, self.why_stopped = False, why

    def tick(self, now_ms: int) -> None:
        """Time passes."""
        self._now_ms = now_ms
        if self.runs:
            self.handle(Tick(now_ms))

    def lag(self, kind: Kind) -> int:
        """How many events of a kind the watch has not delivered yet."""
        return len(self.cluster.events[kind]) - self._seen[kind]

    def behind(self) -> list[Kind]:
        """Kinds of which it has not delivered all."""
        events, seen = self.cluster.events, self._seen
        return [kind for kind in KINDS if len(events[kind]) > seen[kind]]

    def watch(self, kind: Kind, count: int = 1) -> None:
        """The watch delivers the next events of a kind."""
        for _ in range(min(count, self.lag(kind))):
            event = self.cluster.events[kind][self._seen[kind]]
            self._seen[kind] += 1
            self.handle(event)

    def watch_all(self) -> None:
        """The watches catch up."""
        for kind in KINDS:
            self.watch(kind, self.lag(kind))

    def relist(self, kind: Kind) -> None:
        """The watch has expired: a new list, and on from there."""
        self._seen[kind] = len(self.cluster.events[kind])
        self.handle(Relisted(kind, self.cluster.seen(kind), self.cluster.store.resource_version))

    def other_run(self) -> int:
        """Sequence of the last message on agent.run if it is not ours, else 0."""
        last = self._log.last(self._run)
        if last is not self._last_run[0]:
            self._last_run = last, _epoch_of(last)
        return last.stream_sequence if last is not None and self._last_run[1] != self._epoch else 0

    def is_evicted(self) -> bool:
        """The ledger has more about its cluster's eviction than it knows."""
        sequence, entry = self._ledger.evictions.get(self.cluster.name, (0, None))
        is_rebuilt = self._ledger.rebuilt.get(self.cluster.name, 0) > self._admission
        is_evicted = sequence > self._admission and isinstance(entry, ClusterEvicted | ClusterReadmitted)
        return self.runs and (is_evicted or is_rebuilt)

    def follow_evictions(self) -> None:
        """It hears of that, if there is any, and another run begins in its place."""
        if self.is_evicted():
            self.stop("evicted or readmitted")

    def follow_run(self) -> None:
        """It hears of the last message on agent.run, if that is not its own."""
        if self.other_run():
            self.handle(RunTaken(self.other_run()))

    def take_decision(self, sequence: int | None = None) -> None:
        """The ledger's consumer delivers an entry: a new one, or (by its sequence) one that was not acknowledged."""
        taken = self._consumer.take(self) if sequence is None else self._consumer.again(sequence, self)
        self.handle(DecisionSeen(*taken))
        self.ack_settled()

    def ack_settled(self) -> None:
        """Acknowledge what needs nothing more."""
        for sequence, (entry, holder) in list(self._consumer.taken.items()):
            if holder is self and self.mirror.has_published_outcome(entry.uid, sequence):
                self._consumer.ack(sequence)

    def ask(self, ask: Ask) -> None:
        """The broker asks."""
        self.handle(Asked(ask.objects))

    def reject(self, uid: str) -> None:
        """A pod comes that no node takes, for as long as the agent waits, and goes again. No other agent sees it."""
        pod = a_pod("refused", [self.cluster.keys[uid].name])
        pod["metadata"]["uid"] = f"refused-{uid}"
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node"}
        pod["status"] = {"conditions": [condition]}
        now_ms = self._now_ms
        for event in (
            ObjectSeen("pod", pod, 0),
            Tick(now_ms + self.mirror.patience.unschedulable_ms),
            ObjectGone("pod", pod, 0),
            Tick(now_ms),
        ):
            if self.runs:
                self.handle(event)

    # --- what it does

    def carry_out(self, call: Call) -> None:
        """The request arrives and has its effect; the answer is not there yet."""
        assert not call.is_done
        request = call.request
        call.is_done = True
        if not isinstance(request, Publish):
            call.answer = [
                self.cluster.read(request) if isinstance(request, ReadClaim) else self.cluster.perform(request)
            ]
        elif call.is_reading:
            call.answer = self._read_again(request)
        else:
            stored = self._store(request)
            if stored is None:
                call.is_reading, call.is_done = True, False
            else:
                call.answer = [Published(request, stored)]

    def deliver(self, call: Call) -> None:
        """The answer arrives."""
        assert call.is_done
        self.calls.remove(call)
        for event in call.answer:
            if self.is_alive:
                self.handle(event)
        self.ack_settled()

    def do(self, call: Call) -> None:
        """The request and its answer arrive."""
        while not call.is_done:
            self.carry_out(call)
        self.deliver(call)

    def time_out(self, call: Call) -> Request | None:
        """The agent waits no longer. Returns the request if it is still under way and may yet arrive."""
        request, was_done = call.request, call.is_done
        if isinstance(request, ReadClaim) or call.is_reading:
            call.is_done = False  # it simply asks again
            return None
        if isinstance(request, Publish):
            call.is_reading, call.is_done = True, False
        else:
            self.calls.remove(call)
            self.handle(WriteFailed(request, "unknown", "no answer"))
        return None if was_done else request

    def arrive(self, request: Request) -> None:
        """A request arrives for which nobody waits any more."""
        if isinstance(request, Publish):
            self._store(request)
        elif not isinstance(request, ReadClaim):
            self.cluster.perform(request)

    def subject(self, name: ObjectName) -> str:
        """Where it publishes what it knows of an object."""
        if name.kind == "agent":
            return f"{PREFIX}.state.{self.cluster.name}.agent.{name.key}"
        return state_subject(self.cluster.name, name.kind, name.key)

    def _message_id(self, request: Publish) -> str:
        return f"{self.cluster.name}.{self._epoch}.{request.attempt}"

    def _store(self, request: Publish) -> int | None:
        return self._log.publish(
            self.subject(request.name),
            encode(request.message),
            request.expected_sequence,
            self._message_id(request),
            self._now_ms,
        )

    def _read_again(self, request: Publish) -> list[Event]:
        """What the subject says now, and then what the ledger last decided: a decision may be ours to settle again."""
        last = self._log.last(self.subject(request.name))
        is_ours = last is not None and last.message_id == self._message_id(request)
        events: list[Event] = [
            PublishRefused(request, _last(request.name, last) if last else None, _epoch_of(last), is_ours)
        ]
        if request.name.kind == "claim" and not is_ours:
            decisions = self._ledger.last_decisions(self.cluster.name)
            events += [DecisionSeen(*each) for each in decisions if each[1].uid == request.name.key]
        return events


def describe(request: Request) -> str:
    """A request for the history."""
    match request:
        case Publish():
            message = request.message
            said = ""
            if isinstance(message, ClaimState):
                said = f" rv {message.resource_version} {message.decision}"
            return f"publish {request.name.kind}/{request.name.key}{said} after {request.expected_sequence}"
        case ReadClaim():
            return f"read {request.claim.uid}"
        case WriteAllocation() | ClearAllocation() | WriteFinalizers() | Void() | RemoveFinalizer():
            guard = request.object["metadata"]["resourceVersion"]
            return f"{type(request).__name__} {request.claim.uid} for {request.ledger_sequence} guarded by rv {guard}"


def _decoded_start(message: StoredMessage | None) -> AgentStarted | None:
    said = decode_agent_message(message.payload) if message is not None else None
    return said if isinstance(said, AgentStarted) else None


def _epoch_of(message: StoredMessage | None) -> int:
    if message is None:
        return 0
    try:
        return peek_epoch(message.payload) or message.stream_sequence
    except WireError:
        return 0


def _last(name: ObjectName, message: StoredMessage) -> LastMessage:
    said: ClaimState | ObjectState | None = None
    try:
        if name.kind == "claim":
            said = decode_claim_state(message.payload)
        elif name.kind != "agent":
            said = decode_object_state(message.payload)
    except WireError:
        pass
    return LastMessage(name, said, message.stream_sequence, message.time_ms)
