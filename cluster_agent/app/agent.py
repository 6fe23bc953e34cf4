"""One cluster's agent: a mirror with hands.

Whoever has news hands the mirror one event, at once and without waiting for anybody, and has begun what the mirror asks
for. That runs beside it and comes back as an event. Publishes and writes are repeatable or settled by the mirror, so
that the process may be killed at any moment.
"""

import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus
from anyio.lowlevel import checkpoint

from cluster_agent.adapters.bus import AgentBus, LedgerFollower
from cluster_agent.adapters.state_publisher import Published as StoredAt
from cluster_agent.adapters.state_publisher import RefusedBySubject, Uncertain
from cluster_agent.app.claim_events import ClaimEvents
from cluster_agent.app.projection import ClassProjection, Projection, TaintRuleProjection
from cluster_agent.app.stage_times import StageTimes, now_us
from cluster_agent.app.workers import Workers
from cluster_agent.errors import AgentReplacedError, EvictedError, NewerLedgerError
from cluster_agent.mirror import Mirror
from cluster_agent.mirror.actions import (
    Action,
    Asked,
    ClaimRead,
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
    RunTaken,
    Started,
    Tick,
    Watched,
    Write,
    WriteAllocation,
    WriteFailed,
    WriteFinalizers,
    Wrote,
)
from cluster_agent.mirror.consumers import consumer_of
from cluster_agent.mirror.rejections import PATIENCE, Patience
from cluster_agent.ports import (
    UNANSWERED,
    ApiBusyError,
    ApiConflictError,
    ApiDeniedError,
    ApiInvalidError,
    ApiNotFoundError,
    ApiObject,
    ApiUncertainError,
    Cluster,
    ExpiredError,
    Kind,
    Listing,
    RestoredError,
)
from schemas.client.errors import BusError, MessageTooLargeError
from schemas.client.follow import Delivered
from schemas.resource.untyped import allocation_of, results_of
from schemas.wire.bus import OutgoingMessage, PayloadError, StoredMessage
from schemas.wire.calls import Ask, LedgerGoesOn
from schemas.wire.codec import (
    WireError,
    cloud_event_headers,
    decode_agent_message,
    decode_call,
    decode_claim_state,
    decode_entry,
    decode_object_state,
    encode,
    peek_epoch,
    trace_parent,
)
from schemas.wire.ledger import (
    EVICTION_KEY,
    REBUILT_KEY,
    TAINT_RULES_KEY,
    Allocate,
    AnyEntry,
    ClassBrokered,
    ClusterEvicted,
    ClusterReadmitted,
    ClusterRebuilt,
    Release,
    TaintRule,
    TaintRulesChanged,
    own_sequence,
)
from schemas.wire.state import AgentStarted, ClaimState, ObjectName, ObjectState
from schemas.wire.subjects import PREFIX, RUN_KEY, STATE_STREAM, parse_state_subject, run_subject, state_subject

_log = logging.getLogger(__name__)
T = TypeVar("T")

KINDS: tuple[Kind, ...] = ("namespace", "node", "slice", "class", "pod", "claim", "taintrule")
NEWS_AT_ONCE = 50  # before others have their turn
PUBLISHES_AT_ONCE = 256
READS_AT_ONCE = 16  # of single objects; thousands of claims may have to be read at one moment
WRITES_AT_ONCE = 8  # four to eight are fastest on a real API server
BUSY = 4  # actions under way: Events on claims wait
RETRY_FIRST_S = 0.1
RETRY_MOST_S = 5.0
TELL_AGAIN_S = 60.0
TRACE_ANNOTATION = "dragoman.dev/traceparent"
PUBLISH_AGAIN_S = 0.5
READMITTED_S = 1.0  # how often an evicted cluster's agent looks whether it may come back
LOOK_AT_RUN_S = 0.5
RUN_MISSED_MOST = 20  # looks in a row: ten seconds
FOR_EVER_MS = 1 << 62


class AgentSettings(msgspec.Struct, frozen=True):
    """kinds: what of the cluster is read. patience: with what it cannot use. beat_s: time between heartbeats.

    annotates_trace: claims are annotated with the trace context of the decision that gives them devices.
    """

    publishes_all: bool
    kinds: tuple[Kind, ...] = KINDS
    patience: Patience = PATIENCE
    beat_s: float = 1.0
    annotates_trace: bool = False


class Trouble:
    """Warnings about one thing that may go on for long: the first at once, then one in a minute, with the number of
    those that were kept back."""

    def __init__(self) -> None:
        self._told_at = -TELL_AGAIN_S
        self._kept_back = 0

    def tell(self, message: str, *arguments: object) -> None:
        """As Logger.warning."""
        if time.monotonic() - self._told_at < TELL_AGAIN_S:
            self._kept_back += 1
            _log.debug(message, *arguments)
            return
        if self._kept_back:
            message, arguments = message + " (%d more like this in between)", (*arguments, self._kept_back)
        _log.warning(message, *arguments)
        self._told_at, self._kept_back = time.monotonic(), 0


class Standing(msgspec.Struct, frozen=True):
    """How the cluster stands with the operators.

    sequence: of the last entry about its eviction or a rebuild, 0 if there never was one. readmission, cleaning: see
    Started.
    """

    sequence: int = 0
    readmission: int = 0
    cleaning: Cleaning | None = None


class Agent:
    """Runs until it is cancelled or another agent takes over."""

    def __init__(
        self,
        name: str,
        cluster: Cluster,
        bus: AgentBus,
        instance: str,
        settings: AgentSettings,
        classes: ClassProjection | None = None,
        taint_rules: TaintRuleProjection | None = None,
        claim_events: ClaimEvents | None = None,
    ) -> None:
        """classes, taint_rules: what is kept in the cluster as the broker says, where that is wanted.

        claim_events: tells people there how their claims stand.
        """
        self.name = name
        self.classes = classes
        self.taint_rules = taint_rules
        self._claim_events = claim_events
        self._projections: dict[Kind, Projection] = {each.kind: each for each in (classes, taint_rules) if each}
        self._rules_unwritten = 0  # that the broker wants, and nobody writes
        self._cluster = cluster
        self._bus = bus
        self._settings = settings
        self._read_limit = anyio.CapacityLimiter(READS_AT_ONCE)
        self.synced = anyio.Event()  # a run has published its first full sync; how this one stands: is_synced
        self._runs = 0
        self._process = instance
        self._refusals: dict[type[Exception], Trouble] = defaultdict(Trouble)  # of writes, by the error
        self._begin_run()

    def _begin_run(self) -> None:
        """Forget all that a run knows: the next one is as another process."""
        self.mirror = Mirror(
            self.name,
            publishes_all=self._settings.publishes_all,
            refresh_ms=FOR_EVER_MS,
            patience=self._settings.patience,
        )
        self._instance = f"{self._process}.{self._runs}" if self._runs else self._process
        self._runs += 1
        # Decisions by claim UID, with their ledger sequences, until they are settled.
        self._unacked: dict[str, list[tuple[int, Delivered]]] = defaultdict(list)
        self._publishers = Workers(PUBLISHES_AT_ONCE, self._publish)
        self._writers = Workers(WRITES_AT_ONCE, self._write)
        self._tasks: TaskGroup | None = None
        self._settled: list[Delivered] = []  # entries that are to be acknowledged
        self._has_settled = anyio.Event()
        self._stages = StageTimes()
        self._doubts: dict[str, int] = {}  # by claim UID: writes in a row, but the first, of which nobody knows
        self._has_told_sync = False
        self._began = 0.0
        self._beside = 0  # tasks that were begun for an action
        self._follower: LedgerFollower | None = None
        self._standing = Standing()

    @property
    def is_synced(self) -> bool:
        """All that the cluster has was told in this run. After an eviction, say, another run has to tell it again."""
        return self.mirror.has_synced

    @property
    def is_idle(self) -> bool:
        """Everything was told, nothing is under way."""
        return self.mirror.is_idle and self._under_way == 0

    @property
    def _under_way(self) -> int:
        """Actions that were begun."""
        return self._publishers.open + self._writers.open + self._beside

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Take the epoch, publish what differs, follow the cluster and the ledger.

        Raises: AgentReplacedError when another agent serves the cluster.
        """
        while True:
            evicted = False
            try:
                await self._run_once(task_status)
            except* EvictedError as found:
                evicted = True
                _log.warning("agent of %s begins again: %s", self.name, "; ".join(map(str, found.exceptions)))
            assert evicted, "a run ends by an error only"
            task_status = anyio.TASK_STATUS_IGNORED
            self._begin_run()

    async def _run_once(self, task_status: TaskStatus[None]) -> None:
        joined = await self._bus.wait_for_broker()
        self._standing = await self._until_admitted()
        if joined.state_age_s:
            self.mirror.refresh_ms = int(joined.state_age_s * 1000 / 3)
        epoch = await self._take_epoch()
        _log.info("agent of %s runs with epoch %d", self.name, epoch)
        self._began = time.monotonic()
        async with anyio.create_task_group() as tg:
            self._tasks = tg
            tg.start_soon(self._follow_run, epoch)
            self._publishers.start(tg)
            self._writers.start(tg)
            tg.start_soon(self._acknowledge)
            self.mirror.handle(Tick(_now_ms()))
            started = await self._look_around(epoch)
            self._take(started)
            for kind in self._settings.kinds:
                tg.start_soon(self._follow_cluster, kind, str(started.listed_at[kind]))
            tg.start_soon(self._follow_ledger)
            tg.start_soon(self._follow_asks)
            tg.start_soon(self._tick)
            for projection in self._projections.values():
                tg.start_soon(projection.run)
            if self._claim_events is not None:
                tg.start_soon(self._claim_events.run, self._claim_of, lambda: self._under_way >= BUSY)
            task_status.started()

    def _take(self, event: Event) -> None:
        """Tell the mirror what happened, and begin with what follows."""
        for action in self.mirror.handle(event):
            self._begin(action)
        if self.mirror.has_synced and not self._has_told_sync:
            self._has_told_sync = True
            self.synced.set()
            took_s = time.monotonic() - self._began
            _log.info("first sync of %s: %d objects in %.1f s", self.name, len(self.mirror.tracked), took_s)
        self._note_settled(event)

    # --- the start

    async def _until_admitted(self) -> Standing:
        """How the cluster stands; waits while it is evicted, for nothing that it says would be believed."""
        told = 0
        while True:
            sequence, entry = await self._last_about_us(EVICTION_KEY)
            rebuilt, _ = await self._last_about_us(REBUILT_KEY)
            if not isinstance(entry, ClusterEvicted):
                readmission = sequence if isinstance(entry, ClusterReadmitted) else 0
                cleaning = Cleaning(rebuilt, keeps_allocation=True) if rebuilt else None
                if isinstance(entry, ClusterReadmitted) and entry.is_fenced:
                    cleaning = Cleaning(max(readmission, rebuilt))
                return Standing(max(sequence, rebuilt), max(readmission, rebuilt), cleaning)
            if sequence != told:
                told = sequence
                _log.error(
                    "cluster %s was evicted by %s (%s): waiting for `dragoman cluster readmit %s`",
                    self.name,
                    entry.operator,
                    entry.reason,
                    self.name,
                )
            await anyio.sleep(READMITTED_S)

    async def _last_about_us(self, key: str) -> tuple[int, AnyEntry | None]:
        """The last entry about the cluster under this key, and its ledger sequence; 0 without one."""
        last = await self._until_answered(lambda: self._bus.last_about_cluster(key))
        if last is None:
            return 0, None
        entry = _entry(last)
        return own_sequence(entry, last.stream_sequence), entry

    async def _take_epoch(self) -> int:
        subject = run_subject(self.name)
        attempt = at_least = 0
        while True:
            last = await self._until_answered(partial(self._bus.last_message, subject, at_least))
            if last is not None and self._is_our_start(last):
                return last.stream_sequence  # the answer was lost
            attempt += 1
            message = AgentStarted(self._instance)
            headers = self._headers(message, f"{self.name}.{self._instance}.start-{attempt}", RUN_KEY, "")
            outgoing = OutgoingMessage(subject, encode(message), headers)
            stored = await self._bus.publish_state(outgoing, last.stream_sequence if last else 0)
            if isinstance(stored, StoredAt) and not stored.is_duplicate:
                return stored.stream_sequence
            if isinstance(stored, RefusedBySubject):
                at_least = stored.last_sequence
            if isinstance(stored, Uncertain):
                _log.warning("taking the epoch of %s is uncertain, trying again: %s", self.name, stored.reason)
                await anyio.sleep(PUBLISH_AGAIN_S)

    def _is_our_start(self, message: StoredMessage) -> bool:
        try:
            said = decode_agent_message(message.body())
        except (WireError, PayloadError):
            return False
        return isinstance(said, AgentStarted) and said.instance == self._instance

    async def _look_around(self, epoch: int) -> Started:
        """Read our subjects, then list the cluster: in this order, so that what is listed is not older."""
        messages = await self._until_answered(self._bus.last_messages)
        last_messages, sync_parts, run_sequence = [], {}, epoch
        for message in messages:
            subject = parse_state_subject(message.subject)
            if subject is None:
                continue
            if subject.kind == "agent":
                if subject.key == RUN_KEY:
                    run_sequence = message.stream_sequence
                elif subject.key.startswith("sync-") and subject.key[5:].isdigit():
                    sync_parts[int(subject.key[5:])] = message.stream_sequence
            else:
                last_messages.append(_last(ObjectName(subject.kind, subject.key), message))
        objects: list[ObjectSeen] = []
        listed_at: dict[str, int] = {}
        for kind in self._settings.kinds:
            listing = await self._list(kind)
            objects += self._seen(kind, listing)
            listed_at[kind] = int(listing.resource_version)
        decisions = []
        for entry_message in await self._until_answered(self._bus.last_decisions):
            entry = _entry(entry_message)
            if isinstance(entry, Allocate | Release):
                decisions.append((own_sequence(entry, entry_message.stream_sequence), entry))
        if self.classes is not None:
            for entry_message in await self._until_answered(self._bus.last_classes):
                entry = _entry(entry_message)
                if isinstance(entry, ClassBrokered):
                    self.classes.told(entry)
        _, last_rules = await self._last_about_us(TAINT_RULES_KEY)
        self._take_taint_rules(last_rules.rules if isinstance(last_rules, TaintRulesChanged) else [])
        standing = self._standing
        return Started(
            epoch,
            run_sequence,
            sync_parts,
            last_messages,
            objects,
            decisions,
            listed_at,
            standing.readmission,
            standing.cleaning,
        )

    async def _list(self, kind: Kind) -> Listing:
        return await self._until_answered(lambda: self._cluster.list_objects(kind))

    def _seen(self, kind: Kind, listing: Listing) -> list[ObjectSeen]:
        """What is listed is what there is."""
        if kind in self._projections:
            self._projections[kind].listed(listing.objects, listing.resource_version)
        return [
            ObjectSeen(kind, each, _version_of(each), listing.errors.get(each["metadata"].get("uid", ""), ""), now_us())
            for each in listing.objects
        ]

    # --- what happens outside

    async def _follow_cluster(self, kind: Kind, resource_version: str) -> None:
        delay_s = RETRY_FIRST_S
        trouble, disbelief = Trouble(), Trouble()
        seen = 0
        while True:
            try:
                async for event in self._cluster.watch(kind, resource_version):
                    seen += 1
                    if seen % NEWS_AT_ONCE == 0:
                        await checkpoint()
                    resource_version = event.resource_version
                    delay_s = RETRY_FIRST_S
                    if kind in self._projections:
                        self._projections[kind].saw(event)
                    if event.type == "DELETED":
                        self._take(ObjectGone(kind, event.object, int(event.resource_version), now_us()))
                    elif event.type == "BOOKMARK":
                        self._take(Watched(kind, int(event.resource_version)))
                    else:
                        self._take(ObjectSeen(kind, event.object, int(event.resource_version), event.error, now_us()))
            except ExpiredError as error:
                _log.info("watch of %s in %s has expired, listing again: %s", kind, self.name, error)
                listing, before = await self._list(kind), resource_version
                if isinstance(error, RestoredError) or int(listing.resource_version) >= int(before):
                    resource_version = listing.resource_version
                    self._take(Relisted(kind, self._seen(kind, listing), int(resource_version)))
                else:  # nothing that it lacks is gone
                    disbelief.tell(
                        "list of %s in %s is of %s, older than what was seen, %s: not believed, watching again in %g s",
                        kind,
                        self.name,
                        listing.resource_version,
                        before,
                        delay_s,
                    )
            except UNANSWERED as error:
                delay_s = max(delay_s, _asked_to_wait(error))
                trouble.tell("watch of %s in %s was cut, going on in %g s: %s", kind, self.name, delay_s, error)
            await anyio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_MOST_S)

    async def _follow_run(self, epoch: int) -> None:
        """Whoever writes on our agent.run and is not us has taken over, whether or not it refused us.

        Raises: EvictedError when our own message is not there any more: what we have said is lost.
        """
        times_missed = 0
        while True:
            await anyio.sleep(LOOK_AT_RUN_S)
            try:
                last = await self._bus.last_message(run_subject(self.name))
            except BusError as error:
                _log.debug("cannot see whether another agent runs: %s", error)
                continue
            # A replica that lags may still show what was there before us; not for long.
            is_missed = last is None or last.stream_sequence < epoch
            times_missed = times_missed + 1 if is_missed else 0
            if times_missed == RUN_MISSED_MOST:
                raise EvictedError(
                    f"our run {epoch} is not in {STATE_STREAM} any more: it was lost, or is an older copy"
                )
            if last is not None and last.stream_sequence > epoch and _epoch_of(last) != epoch:
                self._take(RunTaken(last.stream_sequence))

    async def _follow_ledger(self) -> None:
        async with self._bus.follow_ledger() as follower:
            self._follower = follower
            while True:
                for delivered in await follower.next_batch(NEWS_AT_ONCE):
                    if self._claim_events is not None and _is_record(delivered.message):
                        self._claim_events.hear(delivered.message)
                    # What is recorded about a claim asks nothing of an agent, of whatever build.
                    entry = None if _is_record(delivered.message) else _entry(delivered.message)
                    if isinstance(entry, Allocate | Release):
                        sequence = own_sequence(entry, delivered.message.stream_sequence)
                        self._unacked[entry.uid].append((sequence, delivered))
                        context = delivered.message.headers.get("traceparent", "")
                        self._stages.delivered(entry.uid, sequence, context)
                        self._take(DecisionSeen(sequence, entry))
                    else:
                        self._acknowledge_soon(delivered)
                    if isinstance(entry, ClassBrokered) and self.classes is not None:
                        self.classes.told(entry)
                    if isinstance(entry, TaintRulesChanged):
                        self._take_taint_rules(entry.rules)
                    if isinstance(entry, ClusterEvicted | ClusterReadmitted | ClusterRebuilt):
                        sequence = own_sequence(entry, delivered.message.stream_sequence)
                        if sequence > self._standing.sequence:
                            raise EvictedError(f"ledger entry {sequence} {type(entry).__name__}")
                await checkpoint()

    def _claim_of(self, uid: str) -> ApiObject | None:
        tracked = self.mirror.tracked.get(ObjectName("claim", uid))
        return tracked.object if tracked is not None else None

    def _take_taint_rules(self, rules: list[TaintRule]) -> None:
        """The ledger wants these DeviceTaintRules here, and no others of ours."""
        if self.taint_rules is not None:
            self.taint_rules.told(rules)
            return
        if rules and not self._rules_unwritten:
            _log.error(
                "the broker's config wants DeviceTaintRules in %s, and this agent runs without --write-taint-rules:"
                " pods keep devices that are tainted NoExecute",
                self.name,
            )
        self._rules_unwritten = len(rules)

    @property
    def taint_rules_wrong(self) -> int:
        """How many DeviceTaintRules are not here as the broker wants them."""
        if self.taint_rules is None:
            return self._rules_unwritten
        return sum(map(bool, self.taint_rules.problems.values()))

    async def _follow_asks(self) -> None:
        async with self._bus.follow_asks() as asks:
            async for message in asks:
                try:
                    ask = decode_call(message.payload)
                except WireError as error:
                    _log.warning("an ask on %s cannot be read: %s", message.subject, error)
                    continue
                if isinstance(ask, Ask):
                    _log.info(
                        "asked to publish %s again", f"{len(ask.objects)} objects" if ask.objects else "everything"
                    )
                    self._take(Asked(ask.objects))
                elif isinstance(ask, LedgerGoesOn) and self._follower is not None:
                    self._follower.goes_on_in(ask.stream)

    async def _tick(self) -> None:
        while True:
            self._take(Tick(_now_ms()))
            while self._bus.publisher.is_telling:  # else the beat would speak of a message and not of one before it
                await checkpoint()
            beat = self.mirror.beat()
            if beat is not None:
                try:
                    await self._bus.beat(encode(beat))
                except BusError as error:
                    _log.debug("a heartbeat was not sent: %s", error)
            await anyio.sleep(self._settings.beat_s)

    def _note_settled(self, event: Event) -> None:
        """A decision's entry is acknowledged once its outcome is published: until then it comes again, to whoever."""
        match event:
            case Published():
                uid = event.action.name.key
            case DecisionSeen():
                uid = event.decision.uid
            case _:
                return
        # Also where no entry was delivered: what a readmission or a rebuild asks of each claim has none.
        if (noted := self._stages.noted(uid)) and self.mirror.has_published_outcome(uid, noted):
            self._stages.forget(uid, noted)
        open_entries = self._unacked.pop(uid, [])
        for sequence, delivered in open_entries:
            if self.mirror.has_published_outcome(uid, sequence):
                self._acknowledge_soon(delivered)
            else:
                self._unacked[uid].append((sequence, delivered))

    def _acknowledge_soon(self, delivered: Delivered) -> None:
        self._settled.append(delivered)
        self._has_settled.set()

    async def _acknowledge(self) -> None:
        while True:
            await self._has_settled.wait()
            self._has_settled = anyio.Event()
            settled, self._settled = self._settled, []
            assert self._follower is not None, "an entry was delivered by nobody"
            await self._follower.acknowledge(settled)

    # --- what the mirror asks for

    def _begin(self, action: Action) -> None:
        match action:
            case Exit():
                raise AgentReplacedError(action.reason)
            case Publish():
                self._publishers.give(action)
            case ReadClaim():
                self._begin_beside(self._read, action)
            case ClearAllocation():
                self._begin_beside(self._clear, action)
            case _:
                self._writers.give(action)

    def _begin_beside(self, do: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """In a task of its own: what may take long and must keep nothing waiting."""

        async def run() -> None:
            try:
                await do(*arguments)
            finally:
                self._beside -= 1

        assert self._tasks is not None, "nothing is begun before the run"
        self._beside += 1
        self._tasks.start_soon(run)

    async def _publish(self, action: Publish) -> None:
        subject = self._subject(action.name)
        # With a part that nobody can guess: whoever publishes an id first makes the server drop ours as repeated.
        event_id = f"{self.name}.{self._instance}.{action.attempt}"
        try:
            stored = await self._bus.publish_state(self._outgoing(action, subject, event_id), action.expected_sequence)
        except MessageTooLargeError as error:
            _log.error("%s", error)
            small = msgspec.structs.replace(action, message=_without_body(action, str(error)))
            stored = await self._bus.publish_state(
                self._outgoing(small, subject, f"{event_id}-small"), action.expected_sequence
            )
        if isinstance(stored, StoredAt) and not stored.is_duplicate:
            self._take(Published(action, stored.stream_sequence))
            return
        if isinstance(stored, Uncertain):
            _log.warning("publish on %s is uncertain, reading the subject: %s", subject, stored.reason)
            await anyio.sleep(PUBLISH_AGAIN_S)  # a stream that refuses everything is not asked in a hot loop
        at_least = stored.last_sequence if isinstance(stored, RefusedBySubject) else 0
        last = await self._until_answered(lambda: self._bus.last_message(subject, at_least))
        is_ours = last is not None and last.message_id in (event_id, f"{event_id}-small")
        self._take(PublishRefused(action, _last(action.name, last) if last else None, _epoch_of(last), is_ours))
        if action.name.kind == "claim" and not is_ours:
            # Whoever wrote there may have taken a decision that was ours to settle.
            decision = await self._until_answered(lambda: self._bus.last_decision(action.name.key))
            entry = _entry(decision) if decision is not None else None
            if decision is not None and isinstance(entry, Allocate | Release):
                self._take(DecisionSeen(own_sequence(entry, decision.stream_sequence), entry))

    def _with_context(self, action: Write) -> ApiObject:
        """What is to be written; where it is wanted, metadata name the trace, in a write that is made anyway."""
        context = self._stages.context(action.claim.uid, action.ledger_sequence)
        if not (self._settings.annotates_trace and context and isinstance(action, WriteFinalizers)):
            return action.object
        metadata = action.object["metadata"]
        annotations = {**(metadata.get("annotations") or {}), TRACE_ANNOTATION: context}
        return {**action.object, "metadata": {**metadata, "annotations": annotations}}

    async def _write(self, action: Write) -> None:
        status = isinstance(action, WriteAllocation | ClearAllocation)
        write = self._cluster.update_claim_status if status else self._cluster.update_claim
        self._stages.writing(action.claim.uid, action.ledger_sequence)
        event: Event
        try:
            written = await self._until_not_busy(lambda: write(self._with_context(action)))
            event = Wrote(action, written, _version_of(written))
        except ApiConflictError as error:
            event = WriteFailed(action, "conflict", str(error))
        except (ApiInvalidError, ApiDeniedError) as error:
            self._refusals[type(error)].tell("%s", error)
            event = WriteFailed(action, "invalid", str(error))
        except ApiNotFoundError as error:
            event = WriteFailed(action, "gone", str(error))
        except ApiUncertainError as error:
            self._refusals[type(error)].tell("a write's result is not known, finding out: %s", error)
            event = WriteFailed(action, "unknown", str(error))
        self._stages.written(action.claim.uid, action.ledger_sequence)
        uid = action.claim.uid
        if isinstance(event, WriteFailed) and event.cause == "unknown":
            self._doubts[uid] = self._doubts.get(uid, -1) + 1
            self._begin_beside(self._find_out, event, self._doubts[uid])
        else:
            self._doubts.pop(uid, None)
            self._take(event)

    async def _find_out(self, event: WriteFailed, doubts: int) -> None:
        """It takes a read and a write. Where they fail all the time, as with a webhook, not in a row."""
        if doubts:
            await anyio.sleep(min(RETRY_FIRST_S * 2 ** min(doubts - 1, 10), RETRY_MOST_S))
        self._take(event)

    async def _clear(self, action: ClearAllocation) -> None:
        if await self._is_running(action):
            self._take(WriteFailed(action, "running", "a pod that it is reserved for has a node"))
        else:
            self._writers.give(action)

    async def _is_running(self, action: ClearAllocation) -> bool:
        for name, uid in action.unless_running:
            pod = await self._until_read(partial(self._cluster.get_pod, action.claim.namespace, name))
            found = consumer_of(pod) if pod is not None else None
            if found is not None and found.uid == uid and found.is_running:
                return True
        return False

    async def _until_not_busy(self, write: Callable[[], Awaitable[T]]) -> T:
        """A write that was put off has written nothing, and its guards are as good as they were."""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                return await write()
            except ApiBusyError as error:
                delay_s = max(delay_s, error.retry_after_s)
                self._refusals[type(error)].tell("a write is put off for %g s: %s", delay_s, error)
            await anyio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_MOST_S)

    async def _read(self, action: ReadClaim) -> None:
        ref = action.claim
        found = await self._until_read(partial(self._cluster.get_claim, ref.namespace, ref.name))
        if found is not None and found["metadata"].get("uid") != ref.uid:
            found = None  # another claim of that name: ours is gone
        self._take(ClaimRead(action, found, _version_of(found) if found else 0))

    async def _until_read(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read one object. One that gives no answer keeps others waiting no longer than that is waited for."""

        async def in_turn() -> T:
            async with self._read_limit:
                return await read()

        return await self._until_answered(in_turn)

    # --- small things

    async def _until_answered(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask something repeatable until it is answered."""
        delay_s = RETRY_FIRST_S
        trouble = Trouble()
        while True:
            try:
                return await ask()
            except (BusError, *UNANSWERED) as error:
                delay_s = max(delay_s, _asked_to_wait(error))
                trouble.tell("agent of %s tries again in %g s: %s", self.name, delay_s, error)
            await anyio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_MOST_S)

    def _subject(self, name: ObjectName) -> str:
        if name.kind == "agent":
            return f"{PREFIX}.state.{self.name}.agent.{name.key}"
        return state_subject(self.name, name.kind, name.key)

    def _outgoing(self, action: Publish, subject: str, event_id: str) -> OutgoingMessage:
        uid = action.name.key if action.name.kind == "claim" else ""
        headers = self._headers(action.message, event_id, f"{action.name.kind}/{action.name.key}", uid)
        if isinstance(action.message, ClaimState):
            headers |= self._stages.headers(uid, action.message, action.seen_us)
        return OutgoingMessage(subject, encode(action.message), headers)

    def _headers(self, message: msgspec.Struct, event_id: str, subject: str, uid: str) -> dict[str, str]:
        trace = trace_parent(self.name, uid or f"agent/{self._instance}", event_id)
        return cloud_event_headers(
            message,
            event_id=event_id,
            source=f"/dragoman/clusters/{self.name}",
            subject=subject,
            now_ms=_now_ms(),
            trace=trace,
        )


def _asked_to_wait(error: Exception) -> float:
    return error.retry_after_s if isinstance(error, ApiBusyError) else 0.0


def _is_record(message: StoredMessage) -> bool:
    return message.subject.split(".")[6] == "record"


def _entry(message: StoredMessage) -> AnyEntry:
    """Raises: NewerLedgerError."""
    try:
        return decode_entry(message.payload)
    except WireError as error:
        raise NewerLedgerError(
            f"ledger entry {message.stream_sequence} on {message.subject} cannot be read by this build ({error}):"
            " a newer broker wrote it, run an agent of that build or a later one, see docs/upgrades.md"
        ) from error


def _last(name: ObjectName, message: StoredMessage) -> LastMessage:
    """A subject's last message; one that cannot be read says nothing, and is published over."""
    said: ClaimState | ObjectState | None = None
    try:
        if name.kind == "claim":
            said = decode_claim_state(message.body())
        elif name.kind != "agent":
            said = decode_object_state(message.body())
    except (WireError, PayloadError) as error:
        _log.warning("the last message on %s cannot be read and is replaced: %s", message.subject, error)
    return LastMessage(name, said, message.stream_sequence, message.time_ms)


def _epoch_of(message: StoredMessage | None) -> int:
    if message is None:
        return 0
    try:
        epoch = peek_epoch(message.body())
    except (WireError, PayloadError):
        return 0
    return message.stream_sequence if epoch is None else epoch


def _without_body(action: Publish, error: str) -> ClaimState | ObjectState:
    """What can be said of an object that is too large for the bus: that it is there, and why no more is said."""
    assert isinstance(action.message, ClaimState | ObjectState)
    if isinstance(action.message, ObjectState):
        return msgspec.structs.replace(action.message, object=msgspec.Raw(b'{"metadata":{}}'), error=error)
    # Its devices must not look free: they are all that is told of it.
    claim = msgspec.json.decode(action.message.claim)
    metadata = {name: claim["metadata"].get(name) for name in ("namespace", "name", "uid")}
    allocation = allocation_of(claim)
    kept = ("request", "driver", "pool", "device", "shareID", "consumedCapacity")
    named = [{name: each.get(name) for name in kept} for each in results_of(allocation)]
    body: ApiObject = {"metadata": metadata}
    if allocation is not None:
        body["status"] = {"allocation": {"devices": {"results": named}}}
    return msgspec.structs.replace(
        action.message, claim=msgspec.Raw(msgspec.json.encode(body)), consumers=[], namespace_labels={}, error=error
    )


def _version_of(obj: ApiObject) -> int:
    return int(obj["metadata"]["resourceVersion"])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
