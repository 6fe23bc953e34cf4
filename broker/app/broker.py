"""A broker process: stand by, lead, decide. One task owns the machine; everything else hands it messages.

Who leads is proved by the append alone. The beacon only keeps others from trying: a broker that hears one stands by, a
leader that hears of a later one, or whose append is refused, drops its world and stands by too.
"""

import gc
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import anyio
import msgspec
from anyio import to_thread
from anyio.abc import TaskGroup, TaskStatus
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from broker.adapters.agent_consumers import AgentConsumers
from broker.adapters.api_service import serve_api
from broker.adapters.asks import Asks
from broker.adapters.durability import Durability
from broker.adapters.ledger_store import LedgerStore, Refused, as_batches
from broker.adapters.state_reader import PositionExpired, read_state
from broker.adapters.streams import StreamSettings, ensure_streams, ledger_segments, stream_names
from broker.allocation.cel.engine import SelectorEngine
from broker.allocation.index import DeviceIndex
from broker.app import api
from broker.app.envelopes import Envelopes
from broker.app.letters import Letters
from broker.app.metrics import BrokerMetrics
from broker.app.projector import Projector
from broker.app.stage_times import Decided, StageTimes
from broker.app.warm_world import WarmWorld, collector_paused
from broker.errors import REMEDY, DeposedError, LedgerLostError, flat
from broker.machine import Effects, Identity, Machine, Notice, recovery
from broker.machine.liveness import Silence
from broker.machine.syncs import on_beat
from broker.world import checkpoint
from broker.world.federation import Federation
from broker.world.keys import ClusterId
from broker.world.world import World
from schemas.client.connection import Connection
from schemas.client.errors import BusError, BusRefusedError, BusUnavailableError, StreamLostError
from schemas.client.follow import stream_state
from schemas.wire.bus import OutgoingMessage, ReceivedMessage, StoredMessage
from schemas.wire.calls import Ask, Beat, LeaderBeacon, LedgerGoesOn
from schemas.wire.codec import WireError, decode_call, encode
from schemas.wire.ledger import (
    AnyEntry,
    ClusterAhead,
    Command,
    LeaderElected,
    OperatorCommand,
    SegmentClosed,
    SegmentOpened,
)
from schemas.wire.subjects import PREFIX, STATE_STREAM, ledger_stream

_log = logging.getLogger(__name__)
T = TypeVar("T")

SHARD = "main"
BEACON_S = 0.5
SILENT_AFTER_S = 2.0  # then a standby tries; a takeover takes this and a start
ITEMS_WAITING = 16  # batches of state messages, mostly; each may have 32 MiB
RETRY_S = 0.5
LARGE = 64  # entries of a batch
FEW = 8  # messages that are taken one by one
CALM_S, CALM_AFTER_S = 0.5, 30.0  # what is not urgent waits for what is: so long without a large batch, or at most
UNREAD_MS = 5_000  # then a message of which a heartbeat tells may not be there at all
UNREAD_DEADLINE_S = 2.0


class BrokerSettings(msgspec.Struct, frozen=True):
    """is_alone: nobody else can lead (an embedded server), so that nothing need be waited for at the start."""

    federation: Federation
    instance: str
    build: str
    settings_digest: str
    streams: StreamSettings = StreamSettings()
    durability: Durability = Durability()
    is_alone: bool = False


class Step(NamedTuple):
    """One of the machine's; stages: a header of each entry, see `StageTimes`. decided: about claims, by it."""

    effects: Effects
    stages: list[dict[str, str]]
    decided: Sequence[Decided] = ()


class Question(msgspec.Struct, eq=False):
    """Something that is to be read from the world between two batches."""

    read: Callable[[Machine], Any]
    answered: anyio.Event
    answer: Any = None
    error: Exception | None = None


class Commanded(msgspec.Struct, eq=False):
    """What an operator orders; answered when what follows from it is stored. refusal: why it cannot be done, or ""."""

    command: Command
    answered: anyio.Event
    refusal: str | None = None  # None: this broker was deposed, and nobody knows whether it was carried out


class HeardOurselves(msgspec.Struct, frozen=True):
    """Our own beacon came back: the bus carries what is sent, so that who is not heard is silent."""


class HeardBeat(msgspec.Struct, frozen=True):
    """A heartbeat of a cluster's agent."""

    cluster: ClusterId
    beat: Beat


Item = list[StoredMessage] | HeardBeat | HeardOurselves | Question | Commanded


class Broker:
    """Runs until it is cancelled. `ask_world` and `changed` are for whoever shows the world."""

    def __init__(
        self,
        connection: Connection,
        engine: SelectorEngine,
        settings: BrokerSettings,
        tell: Callable[[Notice], None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._engine = engine
        self._settings = settings
        self._tell = tell
        self._asks = Asks(connection)
        self._letters = Letters(connection, settings.streams)
        self._agent_consumers = AgentConsumers(connection, ledger_stream(SHARD, 0), settings.federation.clusters)
        self._ends_at = 0  # the ledger, as far as we have appended
        self._last_message: StoredMessage | OutgoingMessage | None = None  # that we have read of the ledger or appended
        self._stages = StageTimes()
        self._use_segment(0)
        # To the task that owns the machine; None while standing by.
        self._items: MemoryObjectSendStream[Item] | None = None
        self._open: list[Question | Commanded] = []
        self._commands: deque[Commanded] = deque()  # that the machine has, and has not answered
        self._has_streams = False
        self._busy_at = 0.0  # when the last large batch was made
        self._silence = Silence(0)  # of this term
        self._beats: dict[ClusterId, Beat] = {}  # of agents that were heard while we stood by
        self._unread_since_ms: dict[ClusterId, int] = {}  # beats name messages that we have not met
        self.changed = anyio.Event()  # set when a step was done, and then replaced
        self.metrics = BrokerMetrics()
        self.metrics.is_build(settings.build, settings.instance)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Make the streams, then stand by and lead in turn. Raises: StreamSettingsError, InvariantError."""
        await self._until_available(self._make_streams)
        self._has_streams = True
        task_status.started()
        while True:
            gc.unfreeze()  # the world of a term before is garbage
            world = WarmWorld(self._connection, SHARD, self._new_machine)
            if not self._settings.is_alone:
                await self._stand_by(world)
            try:
                await self._lead(world)
            except* DeposedError as deposed:
                _log.warning("stopped leading: %s", "; ".join(map(str, flat(deposed))))

    @property
    def leads(self) -> bool:
        """Whether this broker decides now."""
        return self._items is not None

    def why_not_ready(self) -> str:
        """Why this broker neither leads nor could take over, "" if it does or can."""
        if not self._connection.is_up:
            return f"not connected to NATS ({self._connection.places})"
        return "" if self._has_streams else "the streams are not there yet"

    async def ask_world(self, read: Callable[[Machine], T]) -> T:
        """What `read` says of the machine, between two batches; waits until this broker leads.

        Raises: whatever `read` raises.
        """
        while True:
            changed, items = self.changed, self._items
            if items is None:
                await changed.wait()
                continue
            question = Question(read, anyio.Event())
            self._open.append(question)
            try:
                await items.send(question)
                await question.answered.wait()
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                continue
            finally:
                self._open.remove(question)
            if isinstance(question.error, DeposedError):
                continue
            if question.error is not None:
                raise question.error
            answer: T = question.answer
            return answer

    async def _make_streams(self) -> None:
        segments = await ledger_segments(self._connection, SHARD)
        last = segments[-1] if segments else 0
        state_first = 0
        if segments and STATE_STREAM not in await stream_names(self._connection, f"{PREFIX}.state.>"):
            # Above all that the ledger knows of the one that was lost: no epoch and no position is met twice. One is
            # left out, so that a start sees that messages are missing, and asks every cluster for everything.
            world = WarmWorld(self._connection, SHARD, self._new_machine)
            await world.read_ledger()
            state_first = checkpoint.last_state_sequence(world.machine.world) + 2
            _log.error(
                "%s is gone: made anew, beginning at %d; every cluster is asked for everything",
                STATE_STREAM,
                state_first,
            )
        await ensure_streams(
            self._connection,
            self._settings.streams,
            SHARD,
            last,
            durability=self._settings.durability,
            state_first_sequence=state_first,
        )

    async def command(self, command: Command) -> str:
        """Carry out what an operator orders; returns why it cannot be done, "" if it was, and is in the ledger.

        Raises: DeposedError when nobody knows; BusError when nothing was done.
        """
        if isinstance(command, OperatorCommand) and command.verb == "evict":
            # Whatever the cluster's agents have said up to now is of an epoch that is over.
            state = await stream_state(self._connection, STATE_STREAM)
            command = msgspec.structs.replace(command, state_sequence=state.last_sequence)
        commanded = Commanded(command, anyio.Event())
        self._open.append(commanded)
        try:
            if self._items is None:
                raise DeposedError("this broker does not lead")
            await self._items.send(commanded)
            await commanded.answered.wait()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise DeposedError("this broker does not lead any more") from error
        finally:
            self._open.remove(commanded)
        if commanded.refusal is None:
            raise DeposedError("this broker does not lead any more")
        return commanded.refusal

    def heard_ms(self, cluster: ClusterId) -> int:
        """When the cluster's agent was heard last, Unix milliseconds; 0: not in this leader's term."""
        return self._silence.heard_ms.get(cluster, 0)

    # --- who leads

    async def _stand_by(self, world: WarmWorld) -> None:
        """Keep `world` warm until no leader was heard of for a while, in which each agent that runs was heard."""
        async with self._asks.follow_leader(SHARD) as beacons, anyio.create_task_group() as tg:
            tg.start_soon(world.keep)
            tg.start_soon(self._note_beats)
            while not await self._is_silent(beacons):
                pass
            tg.cancel_scope.cancel()

    async def _is_silent(self, beacons: MemoryObjectReceiveStream[ReceivedMessage]) -> bool:
        """Whether no leader is heard for a while on a connection that is well: on another all are silent."""
        await self._connection.wait_until_up()
        losses = self._connection.losses
        with self._connection.wait_scope(SILENT_AFTER_S) as silence:
            await beacons.receive()
        if not silence.cancelled_caught or self._connection.losses != losses:
            return False
        # What the server sent before its answer comes before it: also where the link, or this process, stood still.
        with anyio.move_on_after(SILENT_AFTER_S) as asking:
            await self._connection.flush()
        is_well = self._connection.is_up and self._connection.losses == losses and not asking.cancelled_caught
        return is_well and not beacons.statistics().current_buffer_used

    async def _note_beats(self) -> None:
        self._beats.clear()
        async with self._asks.follow_beats() as beats:
            async for message in beats:
                with suppress(WireError):  # told when we lead
                    beat = decode_call(message.payload)
                    if isinstance(beat, Beat):
                        self._beats[ClusterId(message.subject.rpartition(".")[2])] = beat

    def _ahead_of(self, machine: Machine, state_last: int) -> list[AnyEntry]:
        """Clusters whose agents have stored more in DRA_STATE than it has: it, perhaps the ledger too, is an older one.

        Known before anything is decided: an older ledger takes for free what was given away since. Of one that was not
        heard in this ledger's life nothing is granted anyway.
        """
        found: list[AnyEntry] = []
        for name, beat in sorted(self._beats.items()):
            record = machine.world.clusters.get(name)
            if record is None or not record.is_heard or record.eviction is not None:
                continue
            if beat.agent_epoch < record.epoch or beat.last_sequence <= state_last:
                continue
            text = f"its agent has stored message {beat.last_sequence} in {STATE_STREAM}, which ends at {state_last}"
            _log.error("LedgerLost: %s: %s; nothing that it reaches is granted. %s", name, text, REMEDY)
            found.append(ClusterAhead(cluster=name, message=text))
        return found

    async def _lead(self, world: WarmWorld) -> None:
        """Lead until deposed. Raises: DeposedError, perhaps in a group."""
        async with anyio.create_task_group() as tg:
            with collector_paused():
                position = await self._take_over(world, tg)
            await self._serve(world.machine, position)

    async def _take_over(self, world: WarmWorld, tg: TaskGroup) -> int:
        """Bring the world up to date and be elected; returns the position of DRA_STATE up to which all is known."""
        times = [time.monotonic()]
        await self._until_available(world.read_ledger)
        times.append(time.monotonic())
        machine = world.machine
        self._use_segment(machine.world.segment)
        self._last_message = world.last_message
        # What follows may take longer than others would wait before they try to lead.
        tg.start_soon(self._show_the_beacon, world)
        if machine.world.is_closed:
            await self._open_segment(machine, world.last_sequence)
        tail = machine.world.ledger_last - machine.world.checkpoint_last
        await self._elect(machine)
        self._agent_consumers.ledger = self._ledger.stream
        tg.start_soon(self._watch_for_another, machine.world.leader_epoch)
        times.append(time.monotonic())
        position = await self._until_available(world.believe_or_begin_again)
        machine = world.machine
        times.append(time.monotonic())
        await to_thread.run_sync(recovery.resume, machine)
        ahead = [name for name, cluster in machine.world.clusters.items() if cluster.is_ahead]
        if ahead:
            _log.error("the ledger was lost or cut: %s know of later decisions than it has", ", ".join(sorted(ahead)))
        _log.info(
            "leads %s with epoch %d, started in %.1f s (ledger %.1f, clusters %.1f): checkpoint at %d, %d entries after"
            " it, %d claims, state up to %d",
            SHARD,
            machine.world.leader_epoch,
            time.monotonic() - times[0],
            times[1] - times[0],
            times[3] - times[2],
            machine.world.checkpoint_last,
            tail,
            len(machine.world.claims),
            position,
        )
        return position

    def _new_machine(self) -> Machine:
        # An index for each term: when a claim's selectors are all asked depends on what it knows already, and a replay
        # of the term begins knowing nothing.
        identity = Identity(self._settings.instance, self._settings.build, self._settings.settings_digest)
        return Machine(World(self._settings.federation), DeviceIndex(self._engine), identity, self._stages)

    async def _elect(self, machine: Machine) -> None:
        """The proof of leadership: our entry follows all that we have read. Raises: DeposedError; LedgerLostError."""
        last = machine.world.ledger_last
        entries: list[AnyEntry] = [] if last else [SegmentOpened(shard=SHARD, segment=0)]
        state = await self._until_available(lambda: stream_state(self._connection, STATE_STREAM))
        elected = LeaderElected(
            instance=self._settings.instance, build=self._settings.build, state_sequence=state.last_sequence
        )
        entries += [elected, *self._ahead_of(machine, state.last_sequence)]
        before = self._last_message
        await self._append(entries, last)
        if before is not None and not await self._until_available(partial(self._ledger.has, last, before)):
            # Between our reading and the append its end was lost, and others have written as far as it went.
            await self._abandon(last + len(entries), f"has another entry at {last} than it had")
        recovery.fold_entries(machine, entries, last + 1)

    def _use_segment(self, segment: int) -> None:
        self._ledger = LedgerStore(self._connection, ledger_stream(SHARD, segment))
        self._envelopes = Envelopes(SHARD, segment, self._settings.instance)

    async def _open_segment(self, machine: Machine, expected_last: int) -> None:
        """Go on in the next segment: it opens with a checkpoint, and counts when all of that is stored.

        expected_last: where we have seen it end, or the closed one before it: whoever opens it at the same time is
            refused, or we are.
        Raises: DeposedError; StreamSettingsError.
        """
        started = time.monotonic()
        world = machine.world
        segment, first = world.segment + 1, world.ledger_last + 1
        # The servers were checked at the start; that one cannot be looked at now is no reason to stop.
        durability = Durability(allow_unsafe=self._settings.durability.allow_unsafe, is_embedded=True)
        await self._until_available(
            lambda: ensure_streams(self._connection, self._settings.streams, SHARD, segment, first, durability)
        )
        self._use_segment(segment)
        entries = await to_thread.run_sync(checkpoint.checkpoint, world, SHARD, segment)
        messages = self._envelopes.batch(entries, expected_last + 1, _now_ms(), self._last_message)
        for batch in as_batches(messages):
            await self._append_messages(batch, expected_last)
            expected_last += len(batch)
        checkpoint.opened(world, segment, expected_last)
        self._agent_consumers.ledger = self._ledger.stream
        for cluster in sorted(world.clusters):
            await self._ask(cluster, LedgerGoesOn(self._ledger.stream))
        _log.info(
            "the ledger goes on in %s, whose checkpoint has %d entries, after %.1f s",
            self._ledger.stream,
            len(entries),
            time.monotonic() - started,
        )

    # --- leading

    async def _serve(self, machine: Machine, position: int) -> None:
        send, receive = anyio.create_memory_object_stream[Item](ITEMS_WAITING)
        async with send, receive, anyio.create_task_group() as tg:
            tg.start_soon(self._follow_state, position, send)
            tg.start_soon(self._follow_beats, send)
            tg.start_soon(self._serve_api)
            tg.start_soon(Projector(self._connection, SHARD, self._until_calm).run)
            self._silence = Silence(_now_ms())
            self._commands.clear()
            self._items = send
            self.metrics.began_to_lead()
            self._say_changed()
            try:
                await self._decide(machine, receive)
            finally:
                self._items = None
                for each in self._open:
                    if isinstance(each, Question):
                        each.error = DeposedError("this broker does not lead any more")
                    each.answered.set()

    async def _decide(self, machine: Machine, receive: MemoryObjectReceiveStream[Item]) -> None:
        """The one task that owns the machine: step and append, answer, take what came, and so on.

        A step runs in a thread, so that the beacon is shown and NATS is heard however long it takes. Nobody else
        touches the machine meanwhile. What came in the meantime is taken in before the next step.
        """
        items: list[Item] = []
        while True:
            if machine.has_work(_now_ms()):
                steps = await to_thread.run_sync(self._steps, machine)
                if len(steps[-1].effects.entries) >= LARGE:
                    self._busy_at = time.monotonic()
                await self._carry_out(steps)
                await self._rotate_if_long(machine)
            if machine.has_work(_now_ms()):
                came = _items_there(receive)
            else:
                for item in items:
                    await self._answer(machine, item)
                items = []
                # What was answered may have been an order.
                has_work = machine.has_work(_now_ms())
                came = _items_there(receive) if has_work else await _next_items(machine, receive)
            items += [item for item in came if not isinstance(item, list)]
            for item in came:
                if isinstance(item, list):
                    machine.feed(item)

    def _steps(self, machine: Machine) -> list[Step]:
        """The next step, in a thread; or, where few messages wait, one for each of them.

        A batch of one entry costs so much less that several of them in a row take less time than one of as many.
        """
        steps: list[Step] = []
        with collector_paused():
            few = FEW if machine.waiting <= FEW and self._ledger.takes_rows else None
            while not steps or (few and len(steps) < FEW and len(steps[-1].effects.entries) <= 1):
                if steps and not machine.has_work(_now_ms()):
                    break
                self._stages.step_begins()
                with self.metrics.step():
                    effects = machine.step(_now_ms(), 1 if few else None)
                self._stages.step_ended()
                steps.append(Step(effects, self._stages.headers(effects), self._stages.decisions(effects)))
        return steps

    async def _until_calm(self) -> None:
        """Return when no large batch was made for a moment, or after a while all the same."""
        with anyio.move_on_after(CALM_AFTER_S):
            while time.monotonic() - self._busy_at < CALM_S:  # noqa: ASYNC110  # nobody tells of what does not happen
                await anyio.sleep(CALM_S / 4)

    async def _rotate_if_long(self, machine: Machine) -> None:
        """Close the segment when a start would have to read too much of it."""
        world = machine.world
        if world.ledger_last - world.checkpoint_last >= self._settings.federation.ledger.segment_entries:
            self._stages.step_begins()
            closing = machine.close_segment(_now_ms())
            self._stages.step_ended()
            await self._carry_out([Step(closing, self._stages.headers(closing))])
            await self._open_segment(machine, world.ledger_last)

    async def _answer(self, machine: Machine, item: Item) -> None:
        """What waits for the messages before it to be applied, and for the batch to be stored."""
        if isinstance(item, Question):
            _answer_question(machine, item)
        elif isinstance(item, Commanded):
            machine.order(item.command)
            self._commands.append(item)
        elif isinstance(item, HeardOurselves):
            for mark in self._silence.marks(machine.world, _now_ms()):
                machine.order(mark)
            await self._letters.keep([])
        elif isinstance(item, HeardBeat):
            self._silence.hear(machine.world, item.cluster, item.beat.agent_epoch, _now_ms())
            ask = on_beat(machine.core, item.cluster, item.beat)
            if ask is None and await self._lacks_messages(machine, item):
                ask = Ask()
            if ask is not None:
                await self._ask(item.cluster, ask)

    async def _lacks_messages(self, machine: Machine, heard: HeardBeat) -> bool:
        """Whether DRA_STATE ends before a message that the agent has stored there: it was lost, or is an older copy.

        What the agent says again then shows whether the ledger is an older one too.
        """
        cluster, last = heard.cluster, heard.beat.last_sequence
        if last <= machine.world.position or heard.beat.agent_epoch < machine.world.cluster(cluster).epoch:
            self._unread_since_ms.pop(cluster, None)
            return False
        if _now_ms() - self._unread_since_ms.setdefault(cluster, _now_ms()) < UNREAD_MS:
            return False  # we may be slow
        del self._unread_since_ms[cluster]
        try:
            ends_at = (await stream_state(self._connection, STATE_STREAM, UNREAD_DEADLINE_S)).last_sequence
        except BusError as error:
            _log.debug("cannot see where %s ends: %s", STATE_STREAM, error)
            return False
        if ends_at < last:
            _log.error(
                "%s has stored message %d in %s, which ends at %d: it was lost, or is an older copy; asking for all",
                cluster,
                last,
                STATE_STREAM,
                ends_at,
            )
        return ends_at < last

    async def _carry_out(self, steps: list[Step]) -> None:
        # Before the append, which moves our position on: after a crash in between nobody would look at them again.
        dead = chain.from_iterable(step.effects.dead_letters for step in steps)
        await self._letters.keep([self._envelopes.dead_letter(letter, _now_ms()) for letter in dead])
        await self._append_all([step for step in steps if step.effects.entries])
        await self._letters.keep([])  # where NATS did not answer for a while it does now
        self.metrics.decided([each for step in steps for each in step.decided], time.time_ns() // 1_000)
        for refusal in chain.from_iterable(step.effects.answers for step in steps):
            commanded = self._commands.popleft()
            commanded.refusal = refusal
            commanded.answered.set()
        for cluster, ask in chain.from_iterable(step.effects.asks for step in steps):
            await self._ask(cluster, ask)
        for notice in chain.from_iterable(step.effects.notices for step in steps):
            self.metrics.noticed(notice.code)
            self._tell(notice)
        self._say_changed()

    async def _append_all(self, steps: list[Step]) -> None:
        """Append the batch of each step and return when all are known to be stored; otherwise as `_append`."""
        row = [step for step in steps if len(step.effects.entries) == 1]
        if len(row) > 1:
            await self._append_in_a_row(row)
            steps = steps[len(row) :]
        for step in steps:
            await self._append(step.effects.entries, step.effects.first_sequence - 1, step.stages)

    async def _append_in_a_row(self, steps: list[Step]) -> None:
        """Batches of one entry each: the next is sent before it is known that the one before is stored."""
        expected_last, now_ms = steps[0].effects.first_sequence - 1, _now_ms()
        messages: list[OutgoingMessage] = []
        before = self._last_message
        for sequence, step in enumerate(steps, start=expected_last + 1):
            messages += self._envelopes.batch(step.effects.entries, sequence, now_ms, before, step.stages)
            before = messages[-1]
        with self.metrics.append(entry for step in steps for entry in step.effects.entries):
            if await self._ledger.append_in_a_row(messages, expected_last):
                self._ends_at, self._last_message = expected_last + len(messages), messages[-1]
                return
            for sequence, message in enumerate(messages, start=expected_last):
                await self._append_messages([message], sequence)

    async def _append(self, entries: list[AnyEntry], expected_last: int, stages: Sequence[dict[str, str]] = ()) -> None:
        """Append one batch and return when it is known to be stored. Raises: DeposedError when another's is there."""
        batch = self._envelopes.batch(entries, expected_last + 1, _now_ms(), self._last_message, stages)
        with self.metrics.append(entries):
            await self._append_messages(batch, expected_last)

    async def _append_messages(self, batch: list[OutgoingMessage], expected_last: int) -> None:
        result = await self._ledger.append_until_known(batch, expected_last)
        if isinstance(result, Refused):
            if result.last_sequence < expected_last:
                await self._abandon(result.last_sequence, _cut(result.last_sequence, expected_last))
            raise DeposedError(f"the ledger goes on to {result.last_sequence} without us, after {expected_last}")
        self._ends_at = result.last_sequence
        self._last_message = batch[-1]

    async def _abandon(self, ends_at: int, why: str) -> None:
        """Entries that we have appended or read are lost. Whoever starts next cannot know that: say it in what is left.

        Raises: LedgerLostError.
        """
        world_segment = int(self._ledger.stream.rpartition("_")[2])
        closed = SegmentClosed(next_segment=world_segment + 1, is_abandoned=True)
        left = await self._until_available(partial(self._ledger.at, ends_at))
        batch = self._envelopes.batch([closed], ends_at + 1, _now_ms(), left)
        await self._ledger.append_until_known(batch, ends_at)
        raise LedgerLostError(
            f"{self._ledger.stream} {why}: it was cut, or an older copy was put in its place. {REMEDY}"
        )

    async def _ask(self, cluster: str, ask: Ask | LedgerGoesOn) -> None:
        try:
            await self._asks.ask(cluster, encode(ask))
        except BusError as error:
            _log.debug("an ask for %s was not sent, it is repeated: %s", cluster, error)

    # --- what happens outside

    async def _follow_state(self, position: int, send: MemoryObjectSendStream[Item]) -> None:
        async with read_state(self._connection, position) as reader:
            while True:
                try:
                    batch = await reader.next_batch()
                except StreamLostError:  # and perhaps not that stream alone
                    ends_at = await self._until_available(self._ledger.last_sequence)
                    if ends_at < self._ends_at:
                        await self._abandon(ends_at, _cut(ends_at, self._ends_at))
                    raise
                if isinstance(batch, PositionExpired):
                    raise DeposedError("state expired faster than it was read: starting again from the last messages")
                self._stages.arrived(batch)
                await send.send(batch)

    async def _follow_beats(self, send: MemoryObjectSendStream[Item]) -> None:
        async with self._asks.follow_beats() as beats:
            async for message in beats:
                cluster = message.subject.rpartition(".")[2]
                try:
                    beat = decode_call(message.payload)
                except WireError as error:
                    _log.warning("a heartbeat of %s cannot be read: %s", cluster, error)
                    continue
                if isinstance(beat, Beat):
                    await send.send(HeardBeat(ClusterId(cluster), beat))

    async def _show_the_beacon(self, world: WarmWorld) -> None:
        """Others stand by meanwhile. Before we are elected it has the epoch of the leader before us."""
        while True:
            payload = encode(LeaderBeacon(world.machine.world.leader_epoch, self._settings.instance))
            try:
                await self._asks.lead(SHARD, payload)
            except BusError as error:
                _log.debug("the beacon was not sent: %s", error)
            await anyio.sleep(BEACON_S)

    async def _watch_for_another(self, epoch: int) -> None:
        async with self._asks.follow_leader(SHARD) as beacons:
            async for message in beacons:
                try:
                    beacon = decode_call(message.payload)
                except WireError as error:
                    _log.warning("a leader's beacon cannot be read: %s", error)
                    continue
                if isinstance(beacon, LeaderBeacon) and beacon.leader_epoch > epoch:
                    raise DeposedError(f"broker {beacon.instance} leads with epoch {beacon.leader_epoch}")
                if isinstance(beacon, LeaderBeacon) and beacon.leader_epoch == epoch and self._items is not None:
                    with suppress(anyio.WouldBlock):  # there is enough to do; the next one will do
                        self._items.send_nowait(HeardOurselves())

    async def _serve_api(self) -> None:
        """Only the leader answers: the others' worlds are empty."""
        while True:
            try:
                async with serve_api(self._connection, api.handlers(self), {"join": self._agent_consumers.join}):
                    await anyio.sleep_forever()
            except BusUnavailableError as error:
                _log.warning("the API is not served yet, trying again: %s", error)
            await anyio.sleep(RETRY_S)

    def _say_changed(self) -> None:
        changed, self.changed = self.changed, anyio.Event()
        changed.set()

    async def _until_available(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Do something repeatable until NATS answers."""
        while True:
            try:
                return await ask()
            except (BusUnavailableError, BusRefusedError) as error:
                _log.warning("trying again: %s", error)
            await anyio.sleep(RETRY_S)


async def _next_items(machine: Machine, receive: MemoryObjectReceiveStream[Item]) -> list[Item]:
    """All that is there; waits for the first, but not longer than until a claim is to be tried again."""
    there = _items_there(receive)
    if there:
        return there
    wake_at_ms = machine.wake_at_ms()
    delay_s = math.inf if wake_at_ms is None else max(0.0, (wake_at_ms - _now_ms()) / 1000)
    with anyio.move_on_after(delay_s):
        there.append(await receive.receive())
    return there + _items_there(receive)


def _items_there(receive: MemoryObjectReceiveStream[Item]) -> list[Item]:
    there: list[Item] = []
    while len(there) < ITEMS_WAITING:
        try:
            there.append(receive.receive_nowait())
        except anyio.WouldBlock:
            break
    return there


def _answer_question(machine: Machine, question: Question) -> None:
    try:
        question.answer = question.read(machine)
    except Exception as error:  # the asker's fault, and the asker's to hear of
        question.error = error
    question.answered.set()


def _cut(ends_at: int, ended_at: int) -> str:
    return f"ends at {ends_at}, and did at {ended_at} before"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
