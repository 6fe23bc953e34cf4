"""One run of a broker: the real machine and recovery, and hands that do as `broker.app` does, one move at a time."""

from collections.abc import Callable
from typing import Literal

from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.machine import Effects, Identity, Machine, recovery, syncs
from broker.machine.liveness import Silence
from broker.machine.segments import LedgerStart
from broker.world import checkpoint
from broker.world.federation import Federation
from broker.world.keys import ClusterId
from broker.world.world import World
from schemas.wire.bus import StoredMessage
from schemas.wire.calls import Ask, Beat
from schemas.wire.ledger import AnyEntry, LeaderElected, SegmentOpened
from tests.believing import believe_again
from tests.simulation.rebuild import abandon
from tests.simulation.streams import Batch, Ledger, StateLog

Phase = Literal["starts", "opens", "elects", "leads", "stopped"]
CHECKPOINT_BATCH = 3  # entries: few, so that a small checkpoint takes several batches
_ENGINE = default_engine()


class Attempt:
    """One try to append a batch, under way. is_done: it arrived; `was_stored` is the answer, on its way back."""

    def __init__(self, broker: "BrokerRun", batch: Batch) -> None:
        self.broker = broker
        self.batch = batch
        self.is_done = False
        self.was_stored = False

    def __str__(self) -> str:
        names = ", ".join(type(entry).__name__ for entry in self.batch.entries)
        return f"batch of {self.broker.instance} after {self.batch.expected_last}: {names}"


class BrokerRun:
    """From the moment in which a process tries to lead to the one in which it gives up or dies.

    on_committed: told when a batch of ours is known to be stored, with what may be seen from then on.
    """

    def __init__(
        self,
        instance: str,
        log: StateLog,
        ledger: Ledger,
        federation: Federation,
        on_committed: Callable[["BrokerRun", Effects], None] = lambda _, __: None,
        now_ms: int = 0,
    ) -> None:
        self.instance = instance
        self.phase: Phase = "starts"
        self.why_stopped = ""
        self._federation = federation
        self.machine = self._a_machine()
        self.batch: Batch | None = None  # nobody knows yet whether it was stored
        self.must_look = False  # the answer was lost: the tail has to be read
        self.must_retry = False  # nothing was there: the same batch again
        self.attempt: Attempt | None = None  # whose answer it waits for
        self._checkpoint: list[list[AnyEntry]] = []  # batches of it that are left, while it opens a segment
        self._ends_at = 0  # the segment that it opens, as far as it knows
        self._last_message: StoredMessage | None = None  # that was read of the ledger, or appended, before the election
        self.read_up_to = 0
        self._log = log
        self._ledger = ledger
        self._on_committed = on_committed
        self.effects: Effects | None = None
        self.silence = Silence(now_ms)

    @property
    def is_waiting(self) -> bool:
        """It waits for what became of a batch, and nothing of its world may be seen."""
        return self.batch is not None

    @property
    def world(self) -> World:
        """What it believes."""
        return self.machine.world

    # --- the start

    def begin(self) -> Attempt:
        """Fold the ledger, and try to be its next writer. Where there is no stream it makes one."""
        self._ledger.is_gone = False
        start = LedgerStart(self._ledger.segments, self._a_machine)
        while start.wanted is not None:
            start.add(self._ledger.segment(start.wanted))
            start.end()
        self.machine, self._last_message = start.machine, start.last_message
        if not self.world.is_closed:
            return self._elect()
        self._open(start.last_sequence)
        return self.go_on()

    def _a_machine(self) -> Machine:
        return Machine(World(self._federation), DeviceIndex(_ENGINE), Identity(self.instance, "test", ""))

    def _elect(self) -> Attempt:
        last = self.world.ledger_last
        entries: list[AnyEntry] = [] if last else [SegmentOpened(shard="main", segment=0)]
        last_said = self._log.last_sequence
        entries.append(LeaderElected(instance=self.instance, build="test", state_sequence=last_said))
        self.phase = "elects"
        return self._append(entries, last)

    # --- segments

    def close_segment(self, now_ms: int) -> Attempt:
        """The ledger is to go on in its next segment."""
        self.effects = self.machine.close_segment(now_ms)
        return self._append(self.effects.entries, self.effects.first_sequence - 1)

    def _open(self, ends_at: int) -> None:
        """The next segment is to be opened, after what is there of it already."""
        segment = self.world.segment + 1
        self._ledger.ensure_segment(segment)
        entries = checkpoint.checkpoint(self.world, "main", segment)
        self._checkpoint = [
            entries[first : first + CHECKPOINT_BATCH] for first in range(0, len(entries), CHECKPOINT_BATCH)
        ]
        self._ends_at = ends_at
        self.phase = "opens"

    def go_on(self) -> Attempt:
        """The next batch of the checkpoint; then, where nobody leads yet, an election."""
        if self._checkpoint:
            entries = self._checkpoint.pop(0)
            segment = self.world.segment + 1
            self.batch = Batch.of(entries, self._ends_at, self.instance, segment, is_of_checkpoint=True)
            self._last_message = self.batch.messages[-1]
            self._ends_at += len(entries)
            self.attempt = Attempt(self, self.batch)
            return self.attempt
        return self._elect()

    def _opened(self) -> None:
        checkpoint.opened(self.world, self.world.segment + 1, self._ends_at)
        if self.effects is not None:  # it has led before
            self.phase = "leads"

    def _recover(self) -> None:
        """What was believed at the recorded position, or, where the log has gone on without us, all that is left."""
        position = self.world.position
        if self._log.has_expired(position):
            self.read_up_to = self._log.last_sequence
            recovery.position_expired(self.machine, self._log.last_messages(), self.read_up_to)
        else:
            self.read_up_to = position
            believe_again(self.machine, self._log.read(0, position))
        recovery.resume(self.machine)

    # --- leading

    def unread(self) -> int:
        """How far the log has gone on."""
        return self._log.last_sequence - self.read_up_to

    def read(self, count: int) -> None:
        """Take the next messages of the log."""
        assert self.read_up_to <= self._log.last_sequence, "what it has read is not there any more"
        if self._log.has_expired(self.read_up_to):
            self.stop("state expired faster than it was read")
            return
        until = min(self.read_up_to + count, self._log.last_sequence)
        self.machine.feed(self._log.read(self.read_up_to, until))
        self.read_up_to = until

    def step(self, now_ms: int) -> Attempt | None:
        """One step of the machine; returns the append that it leads to."""
        effects = self.machine.step(now_ms)
        self.effects = effects
        if effects.entries:
            return self._append(effects.entries, effects.first_sequence - 1)
        self._on_committed(self, effects)
        return None

    def hear(self, cluster: str, beat: Beat, now_ms: int = 0) -> Ask | None:
        """A heartbeat arrives, between two batches."""
        self.silence.hear(self.world, ClusterId(cluster), beat.agent_epoch, now_ms)
        return syncs.on_beat(self.machine.core, ClusterId(cluster), beat)

    def look(self, now_ms: int) -> None:
        """Its own beacon comes back: who is silent?"""
        if self.phase == "leads" and not self.is_waiting:
            for mark in self.silence.marks(self.world, now_ms):
                self.machine.order(mark)

    def stop(self, why: str) -> None:
        """It leads no more, or it is killed: its memory is gone; what it has sent is still under way."""
        self.phase, self.why_stopped = "stopped", why
        self.batch = self.attempt = None
        self.must_look = self.must_retry = False

    # --- appending

    def arrive(self, attempt: Attempt) -> None:
        """An append arrives at the ledger."""
        assert not attempt.is_done
        attempt.is_done = True
        attempt.was_stored = self._ledger.append(attempt.batch)

    def deliver(self, attempt: Attempt) -> None:
        """Its answer arrives. A refusal proves nothing: it may be our own earlier try that is in the way."""
        if attempt is self.attempt and self.batch is not None:
            if attempt.was_stored:
                self._committed()
            else:
                self.lose(attempt)

    def lose(self, attempt: Attempt) -> None:
        """The broker waits for this answer no longer."""
        if attempt is self.attempt:
            self.attempt, self.must_look = None, True

    def read_tail(self) -> None:
        """Read the ledger's tail: ours, another's, or nothing."""
        assert self.batch is not None
        self.must_look = False
        if self._ledger.is_gone:
            self.stop("the ledger is gone")
            return
        if self._ledger.last_sequence < self.batch.expected_last:
            self.find_entries_lost()
            return
        there = self._ledger.holds(self.batch)
        if there:
            self._committed()
        elif there is False:
            self.stop("the ledger goes on without us")
        else:
            self.must_retry = True

    def find_entries_lost(self) -> None:
        """Entries that it has written or read are not there any more: it says so in what is left, and ends."""
        if self._ledger.messages and self.world.segment == self._ledger.segments[-1]:
            abandon(self._ledger, self.instance)
        self.stop("entries of the ledger are lost")

    def retry(self) -> Attempt:
        """The same batch again."""
        assert self.batch is not None
        self.must_retry = False
        self.attempt = Attempt(self, self.batch)
        return self.attempt

    def _append(self, entries: list[AnyEntry], expected_last: int) -> Attempt:
        self.batch = Batch.of(entries, expected_last, self.instance, self.world.segment)
        self.attempt = Attempt(self, self.batch)
        return self.attempt

    def _committed(self) -> None:
        assert self.batch is not None
        batch, self.batch, self.attempt, self.must_look, self.must_retry = self.batch, None, None, False, False
        if self.phase == "elects" and self._last_message is not None and not self._ledger.has(self._last_message):
            self.find_entries_lost()
        elif self.phase == "elects":
            recovery.fold_entries(self.machine, batch.entries, batch.expected_last + 1)
            self._recover()
            self.phase = "leads"
        elif self.phase == "opens":
            if not self._checkpoint:
                self._opened()
        else:
            assert self.effects is not None
            self._on_committed(self, self.effects)
            if self.world.is_closed:
                self._open(self.world.ledger_last)
