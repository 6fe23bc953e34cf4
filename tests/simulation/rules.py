"""Rules of the protocol, each with a double that leaves it out: what the simulator must notice (DESIGN, section 4).

A double is a subclass where the rule has a seam of its own. Where it is one function, that function is put aside for
the time of the run; nothing in the product knows of this.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import msgspec

from broker.machine import claims, clusters, intake, liveness, recovery, syncs
from broker.machine.segments import LedgerStart
from broker.world import checkpoint, fold
from broker.world.federation import Federation
from broker.world.records import Cluster
from cluster_agent.mirror import Mirror, settling
from cluster_agent.mirror.actions import (
    Action,
    ClaimRead,
    Cleaning,
    Event,
    Publish,
    Started,
    WriteAllocation,
    WriteFailed,
    WriteFinalizers,
)
from cluster_agent.mirror.tracked import Job, Tracked, holds_of, with_allocation, with_finalizers
from schemas.wire.ledger import Allocate, ClusterEntry
from schemas.wire.state import ObjectName, SyncFinished
from tests.simulation.agent import AgentRun
from tests.simulation.broker import Attempt, BrokerRun
from tests.simulation.simulation import Doubles
from tests.simulation.streams import Batch, Ledger

Patch = tuple[object, str, Any]  # where, name, what is put there


@dataclass(frozen=True)
class Rule:
    """A rule that can be switched off. what: the mistake that is then made."""

    what: str
    doubles: Doubles = field(default_factory=Doubles)
    patches: list[Patch] = field(default_factory=list)


@contextmanager
def doubles_without(name: str | None) -> Iterator[Doubles]:
    """What a run is made of, with the rule `name` switched off (None: with all rules)."""
    if name is None:
        yield Doubles()
        return
    rule = RULES[name]
    patches = [patch.object(where, attribute, instead) for where, attribute, instead in rule.patches]
    try:
        for each in patches:
            each.start()
        yield rule.doubles
    finally:
        for each in reversed(patches):
            each.stop()


# --- doubles of the agent's rules


def _report_at_once(tracked: Tracked, job: Job, event: WriteFailed) -> list[Action]:
    """A 409 or a timeout is the outcome, with nothing voided."""
    return settling._finish(tracked, job, "Conflict" if event.cause == "conflict" else "Failed", event.message)


def _report_what_is_read(tracked: Tracked, job: Job, event: ClaimRead) -> list[Action]:
    """It is read again, but nothing is written that would void what was sent before."""
    if event.object is not None and holds_of(event.object) is None and isinstance(job.decision, Allocate):
        tracked.own_version = max(tracked.own_version, event.resource_version)
        return settling._finish(tracked, job, *job.failure)
    return _read(tracked, job, event)


def _guard_by_the_view(tracked: Tracked, job: Job, decision: Allocate) -> list[Action]:
    """Whatever resourceVersion the agent sees now is the guard."""
    assert tracked.object is not None
    job.stage = "sent"
    protected = with_finalizers(tracked.object)
    if protected is not None:
        return [WriteFinalizers(tracked.ref, job.ledger_sequence, protected)]
    return [WriteAllocation(tracked.ref, job.ledger_sequence, with_allocation(tracked.object, decision))]


class SpeaksForTheList(Mirror):
    """A sync that says what was listed, not what was published."""

    def handle(self, event: Event) -> list[Action]:
        """Remember the first list."""
        if isinstance(event, Started):
            self.listed = sorted(
                ObjectName(seen.kind, str(seen.object["metadata"]["uid" if seen.kind == "claim" else "name"]))
                for seen in event.objects
                if seen.kind != "pod"
            )
        return super().handle(event)

    def _publish_next_part(self) -> None:
        if self._sync_in_flight is None and self._sync_queue and isinstance(self._sync_queue[0], SyncFinished):
            self._sync_queue[0] = msgspec.structs.replace(self._sync_queue[0], objects=self.listed)
        super()._publish_next_part()


class StaysOn(AgentRun):
    """It goes on until it is refused, whoever has taken over."""

    def follow_run(self) -> None:
        """It does not look."""

    def other_run(self) -> int:
        """It does not know."""
        return 0


class NeverReadsTheLedgerAgain(AgentRun):
    """Decisions come from the shared consumer, where an ack is taken for the end of it, and from nowhere else."""

    def take_decision(self, sequence: int | None = None) -> None:
        """What was delivered once is done with."""
        super().take_decision(sequence)
        for taken, (_, holder) in list(self._consumer.taken.items()):
            if holder is self:
                self._consumer.ack(taken)

    def _read_again(self, request: Publish) -> list[Event]:
        return super()._read_again(request)[:1]


class IgnoresItsSubject(Mirror):
    """It publishes its view even where the subject's last message was made from a newer one."""

    def _learn(self, last: Any) -> None:
        super()._learn(last)
        if last.message is not None:
            self.tracked[last.name].subject_version = 0


class SyncsBesideItsPublishes(Mirror):
    """A sync may be said to be finished while a publish of which nothing is known may still land."""

    def _refused(self, event: Any) -> None:
        super()._refused(event)
        self._owed.discard(event.action.name)


# --- doubles of the broker's rules


class Recomputes(BrokerRun):
    """After an append without an answer, it decides again with whatever has come meanwhile."""

    def read_tail(self) -> None:
        """An entry of our own epoch there is taken for our batch; nothing there, for a batch that never was."""
        if self.phase != "leads" or self.batch is None:
            super().read_tail()
            return
        self.must_look = False
        if self._ledger.holds(self.batch) is not None:
            if self.world.leader_epoch > self.batch.expected_last:
                self.stop("the ledger goes on without us")
            else:
                self._committed()
            return
        decided, read_up_to = self.batch.expected_last, self.read_up_to
        self.batch = self.attempt = None
        self._start_over(decided, read_up_to)

    def _start_over(self, decided: int, read_up_to: int) -> None:
        """The world as it was before the batch, and then all that is there now."""
        again = type(self)(self.instance, self._log, self._ledger, self.world.federation, self._on_committed)
        start = LedgerStart(self._ledger.segments, again._a_machine)
        while start.wanted is not None:
            start.add([each for each in self._ledger.segment(start.wanted) if each.stream_sequence <= decided])
            start.end()
        again.machine = start.machine
        again._recover()
        self.machine = again.machine
        self.read_up_to = again.read_up_to


class BelievesErrors(BrokerRun):
    """An append without an answer has failed."""

    def read_tail(self) -> None:
        """It goes on with the next batch, at the ledger's end."""
        if self.phase != "leads" or self.batch is None:
            super().read_tail()
            return
        self.must_look = False
        self.batch = self.attempt = None
        self.machine.core.world.ledger_last = self._ledger.last_sequence
        for claim in self.world.claims.values():
            self.machine.core.queue.make_due(claim.key)


class AppendsUnfenced(BrokerRun):
    """Its batches come after whatever is there, not after what it has read."""

    def arrive(self, attempt: Attempt) -> None:
        """Without expected-last-sequence."""
        batch = attempt.batch
        attempt.batch = Batch.of(
            batch.entries,
            self._ledger.last_sequence,
            self.instance,
            batch.segment,
            is_of_checkpoint=batch.is_of_checkpoint,
        )
        super().arrive(attempt)


class TrustsItsLease(AppendsUnfenced):
    """As long as it leads, and has heard of no other leader, nobody else appends: so why be fenced?"""

    def arrive(self, attempt: Attempt) -> None:
        """Fenced only while it tries to lead."""
        if self.phase in ("leads", "stopped"):
            super().arrive(attempt)
        else:
            BrokerRun.arrive(self, attempt)


class BelievesNothingAgain(BrokerRun):
    """A start goes on from the recorded position, with nothing of what was believed there."""

    def _recover(self) -> None:
        if self._log.has_expired(self.world.position):
            super()._recover()
            return
        self.read_up_to = self.world.position
        recovery.resume(self.machine)


class BelievesEmptySegments(BrokerRun):
    """A segment without an entry is the beginning of a ledger."""

    def begin(self) -> Attempt:
        """It leads at once, with nothing."""
        last = self._ledger.segments[-1]
        if self._ledger.segment(last):
            return super().begin()
        self.world.segment, self.world.ledger_last = last, self._ledger.last_sequence
        return self._elect()


def _counts_the_sync_found(machine: Any, messages: Any, position: int) -> None:
    """A start from the last messages takes the syncs among them for what they say."""
    core = machine.core
    core.note_position_expired()
    machine.feed_after_expiry(list(messages), position)


def _counts_incomplete_syncs(core: Any, cluster: Any, said: SyncFinished, stream_sequence: int) -> None:
    """A sync counts even where messages of what it names were never met."""
    met = [name for name in said.objects if name in core.world.cluster(cluster).known]
    _sync_finished(core, cluster, msgspec.structs.replace(said, objects=met), stream_sequence)


def _says_nothing(core: Any, cluster: Any, beat: Any) -> None:
    """Heartbeats are not compared with what is believed."""


def _any_sync_lifts_the_fence(core: Any, record: Cluster, readmission: int) -> None:
    """A sync of a run that does not know of the readmission lifts the fence, too."""
    _come_back(core, record, record.eviction.readmitted if record.eviction is not None else readmission)


def _clears_without_voiding(tracked: Tracked, job: Job, cleaning: Cleaning, claim: dict[str, Any]) -> list[Action]:
    """What has no allocation is taken for clean."""
    if holds_of(claim) is None:
        return settling._finish(tracked, job, "Applied")
    return _clean(tracked, job, cleaning, claim)


def _goes_on_from_what_is_left(start: LedgerStart) -> None:
    """That entries were lost is passed over."""
    start.machine.world.is_abandoned = False
    _end_segment(start)


def _goes_on_with_its_epoch(world: Any, entry: ClusterEntry, ledger_sequence: int) -> None:
    """An eviction says nothing about the runs of before."""
    record = world.cluster(entry.cluster)
    epoch = record.epoch
    _fold_cluster(world, entry, ledger_sequence)
    record.epoch = epoch


_end_segment = LedgerStart.end
_come_back = syncs._come_back
_clean = settling._clean
_fold_cluster = fold._cluster
_read: Callable[[Tracked, Job, ClaimRead], list[Action]] = settling._read
_sync_finished = syncs.sync_finished


RULES: dict[str, Rule] = {
    # The six that must be found (and their halves).
    "free-only-when-settled": Rule(
        "a grant is freed by any message without its allocation",
        patches=[(claims, "_is_settled", lambda claim, grant: True)],
    ),
    "void-before-reporting": Rule(
        "a 409 or a timeout is reported at once", patches=[(settling, "_failed", _report_at_once)]
    ),
    "void-after-reading": Rule(
        "after a 409 or a timeout the claim is read, but nothing is voided",
        patches=[(settling, "_read", _report_what_is_read)],
    ),
    "guard-from-the-decision": Rule(
        "the guard of a write is taken from the agent's view", patches=[(settling, "_allocate", _guard_by_the_view)]
    ),
    "same-batch-again": Rule("after a lost answer the broker decides again", doubles=Doubles(broker=Recomputes)),
    "wait-for-every-cluster": Rule(
        "grants are made before every cluster was heard",
        patches=[(Federation, "must_be_heard", lambda self, fabric: [])],
    ),
    "sync-speaks-for-publishes": Rule("a sync speaks for what was listed", doubles=Doubles(mirror=SpeaksForTheList)),
    # More of them.
    "errors-prove-nothing": Rule(
        "an append without an answer is taken for one that failed", doubles=Doubles(broker=BelievesErrors)
    ),
    "adopted-grants-end": Rule(
        "an adopted grant ends only by a decision that nobody settles",
        patches=[
            (
                claims,
                "_is_settled",
                lambda claim, grant: (
                    claim.settled is not None and claim.settled.ledger_sequence >= grant.ledger_sequence
                ),
            )
        ],
    ),
    "view-not-older-than-subject": Rule(
        "a view is published that is older than the subject's last message", doubles=Doubles(mirror=IgnoresItsSubject)
    ),
    "leave-when-replaced": Rule("an agent goes on until it is refused", doubles=Doubles(agent=StaysOn)),
    "read-the-ledger-again": Rule(
        "decisions come from the shared consumer alone", doubles=Doubles(agent=NeverReadsTheLedgerAgain)
    ),
    "believe-again": Rule(
        "a start forgets what was believed at its position, and heartbeats are not compared",
        doubles=Doubles(broker=BelievesNothingAgain),
        patches=[(syncs, "on_beat", _says_nothing)],
    ),
    "no-sync-before-publishes-land": Rule(
        "a sync is finished while a publish may still land", doubles=Doubles(mirror=SyncsBesideItsPublishes)
    ),
    "clean-up-before-the-fence-is-lifted": Rule(
        "a cluster is readmitted without clearing and voiding",
        patches=[(Mirror, "_clean", lambda self, cleaning, decided: None)],
    ),
    "void-before-the-fence-is-lifted": Rule(
        "a readmitted cluster clears what it has, and voids nothing",
        patches=[(settling, "_clean", _clears_without_voiding)],
    ),
    "its-own-sync-lifts-the-fence": Rule(
        "any sync lifts the fence of an evicted cluster", patches=[(syncs, "_come_back", _any_sync_lifts_the_fence)]
    ),
    # The epoch alone is not missed: what a run of before the eviction says after the readmission changes nothing that
    # counts before a sync of a run that knows of it, whose epoch is higher, has lifted the fence.
    "evicted-epochs-are-over": Rule(
        "what the runs of before an eviction say is believed",
        patches=[
            (fold, "_cluster", _goes_on_with_its_epoch),
            (Cluster, "is_silenced", lambda self, sequence: False),
        ],
    ),
    "lost-must-sync": Rule(
        "a cluster that was lost is as any other when it is heard",
        patches=[
            (where, "next_liveness", lambda record, mark: mark.state if record.synced_sequence else record.liveness)
            for where in (liveness, clusters)
        ],
    ),
    "appends-are-fenced": Rule(
        "a batch is appended without the expected last sequence", doubles=Doubles(broker=AppendsUnfenced)
    ),
    "a-lease-proves-nothing": Rule(
        "whoever has the lease appends without being fenced", doubles=Doubles(broker=TrustsItsLease)
    ),
    "new-syncs-after-expiry": Rule(
        "a start from the last messages counts old syncs",
        patches=[(recovery, "position_expired", _counts_the_sync_found)],
    ),
    "an-empty-segment-is-not-open": Rule(
        "an empty new segment is believed", doubles=Doubles(broker=BelievesEmptySegments)
    ),
    "checkpoints-have-a-checksum": Rule(
        "a checkpoint is believed without its checksum",
        patches=[(checkpoint, "verify", lambda first, payloads: None)],
    ),
    "an-abandoned-ledger-is-over": Rule(
        "a broker goes on from what is left of a ledger that was cut",
        patches=[(LedgerStart, "end", _goes_on_from_what_is_left)],
    ),
    "an-election-follows-what-was-read": Rule(
        "a broker leads though other entries stand before its election than it has read",
        patches=[(Ledger, "has", lambda self, message: True)],
    ),
    "lower-epochs-are-ignored": Rule(
        "a message of a run that was replaced is believed",
        patches=[(intake, "_is_believed", lambda core, message, subject, epoch: True)],
    ),
}
