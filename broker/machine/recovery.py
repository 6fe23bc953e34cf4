"""A start: the world from the ledger, then what was believed at its position, then the log goes on.

The ledger gives who holds what. What clusters said is read again from DRA_STATE: the last message of each subject at
or below the recorded position counts as believed, without its consequences, for those are in the ledger already.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from broker.machine import claims, clusters, intake
from broker.machine.core import Core
from broker.machine.machine import Machine
from broker.world import fold
from broker.world.keys import ClusterId
from broker.world.records import Eviction
from schemas.wire.bus import CONTENT_ENCODING, StoredMessage
from schemas.wire.calls import Ask
from schemas.wire.codec import WireError
from schemas.wire.ledger import AnyEntry
from schemas.wire.state import AgentStarted, ObjectName, SyncFinished, SyncPart
from schemas.wire.subjects import KINDS, StateSubject, parse_state_subject, sync_part_subject


def fold_entries(machine: Machine, entries: Iterable[AnyEntry], first_sequence: int) -> None:
    """Fold entries that we appended ourselves, such as our election."""
    for sequence, entry in enumerate(entries, start=first_sequence):
        fold.apply_entry(machine.world, entry, sequence)


class LastBelieved:
    """What was believed: messages of DRA_STATE up to the recorded position, added in stream order, then taken in.

    A standby does so again whenever the ledger has gone on.
    Of each subject only the last one that counts is kept, and a later one that cannot be read: it takes nothing back.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._core = machine.core
        self._belief = _Belief(machine.core)
        self._last: dict[str, _Heard] = {}
        self._unreadable: dict[str, _Heard] = {}  # after the last that could be read
        self._counted: list[_Heard] = []  # syncs that counted: what they lacked was forgotten
        self._may_count: dict[
            str, _Heard
        ] = {}  # by cluster: a sync of which the ledger does not say yet that it counts
        self._evictions = _evictions(machine)

    @property
    def is_outdated(self) -> bool:
        """A cluster was evicted or readmitted since: what it said before is believed no more. Begin again."""
        return self._evictions != _evictions(self._machine)

    def add(self, messages: Iterable[StoredMessage]) -> None:
        """More of the log."""
        for message in messages:
            heard = self._belief.of(message)
            if not isinstance(heard, _Heard):
                continue
            if isinstance(heard.said, WireError):
                self._unreadable[message.subject] = heard.as_kept()
            else:
                self._last[message.subject] = heard.as_kept()
                self._unreadable.pop(message.subject, None)
                self._keep_if_it_counted(heard)

    def take_in(self) -> None:
        """Take in what was added, without its consequences."""
        self._core.is_replaying = True
        counts_now = [heard for heard in self._may_count.values() if self._counts(heard)]
        kept = {
            heard.message.stream_sequence: heard
            for heard in (*self._last.values(), *self._unreadable.values(), *self._counted, *counts_now)
        }
        for _, heard in sorted(kept.items()):
            said = heard.said or _said(heard.message, heard.subject)
            if isinstance(said, WireError):
                intake.unreadable(self._core, heard.message, heard.subject, said)
            else:
                intake.take_in(self._core, heard.message, heard.subject, said)
        self._last, self._unreadable, self._counted = {}, {}, []
        for heard in counts_now:
            del self._may_count[heard.subject.cluster]
        self._core.is_replaying = False

    def _keep_if_it_counted(self, heard: "_Heard") -> None:
        if not isinstance(heard.said, SyncFinished):
            return
        cluster = heard.subject.cluster
        if self._counts(heard):
            parts = sync_part_subject(cluster, 0)[:-1]
            self._counted += [each for subject, each in self._last.items() if subject.startswith(parts)]
            self._counted.append(heard)
            self._may_count.pop(cluster, None)
        else:
            self._may_count[cluster] = heard

    def _counts(self, heard: "_Heard") -> bool:
        cluster = self._core.world.cluster(ClusterId(heard.subject.cluster))
        return heard.message.stream_sequence == cluster.synced_sequence


def position_expired(machine: Machine, messages: Iterable[StoredMessage], position: int) -> None:
    """DRA_STATE dropped messages after the recorded position: go on from the last message of each subject.

    messages: those last messages, in stream order. position: the end of the log when they were read.
    Epochs come first. No sync found there counts: every cluster is asked for a new one, and until it is finished
    nothing of its fabrics is granted.
    """
    core = machine.core
    kept = list(messages)
    core.note_position_expired()
    for message in kept:
        subject = parse_state_subject(message.subject)
        if subject is not None and subject.kind == "agent" and _is_expected(core, subject):
            _learn_epoch(core, subject, message)
    for cluster in core.world.clusters.values():
        cluster.synced_sequence = 0
    belief = _Belief(core)
    believed = [each for each in kept if belief.of(each) != "late" and not _is_of_an_agent(each)]
    machine.feed_after_expiry(believed, position)
    for name in sorted(core.world.clusters):
        core.ask(name, Ask())


def resume(machine: Machine) -> None:
    """All is known again: everything that may be undone is looked at once more."""
    core, world = machine.core, machine.world
    clusters.resume(core)
    for key in sorted(world.claims):
        cluster = world.cluster(key.cluster)
        if world.claims[key].grants and ObjectName("claim", key.uid) not in cluster.known:
            # It has ended, and the message that says so was lost with its last ones: a full sync tells.
            cluster.asked_at = cluster.asked_at or max(world.position, 1)
        if world.claims[key].is_shown_without_grant and not claims.is_fenced(core, key.cluster):
            core.to_adopt.add(key)
        core.queue.make_due(key)
    if world.federation.believe_labels and world.all_heard():
        world.inventory.open_labels()
        world.resolve_again()
    core.classes_changed = bool(world.federation.hub)


def _evictions(machine: Machine) -> dict[ClusterId, Eviction]:
    return {name: each.eviction for name, each in machine.world.clusters.items() if each.eviction is not None}


class _Heard(NamedTuple):
    """A message that counts; said: what it says, or why that cannot be read; None: to be read again."""

    message: StoredMessage
    subject: StateSubject
    said: intake.Said | WireError | None

    def as_kept(self) -> "_Heard":
        """Until it is taken in: what takes far more memory once it is read is read again then."""
        grows = isinstance(self.said, SyncPart | WireError) or CONTENT_ENCODING in self.message.headers
        return self._replace(said=None) if grows else self


def _said(message: StoredMessage, subject: StateSubject) -> intake.Said | WireError:
    try:
        return intake.read(message, subject)
    except WireError as error:
        return error


class _Belief:
    """Which messages were believed when they came: those before which no newer run of their cluster's agent came.

    The cluster's epoch alone does not tell: between two runs that are both over, one may have spoken out of turn.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._newest: dict[str, int] = {}  # epoch by cluster

    def of(self, message: StoredMessage) -> "_Heard | Literal['late', 'unexpected']":
        """What became of a message when it came; of messages in stream order."""
        subject = parse_state_subject(message.subject)
        if subject is None or not _is_expected(self._core, subject):
            return "unexpected"
        record = self._core.world.cluster(ClusterId(subject.cluster))
        is_silenced = record.is_silenced(message.stream_sequence)  # it was evicted then, or since
        said = _said(message, subject)
        if isinstance(said, WireError):
            return "late" if is_silenced else _Heard(message, subject, said)
        epoch = message.stream_sequence if isinstance(said, AgentStarted) else said.agent_epoch
        is_late = epoch < self._newest.get(subject.cluster, 0) or record.is_replaced(epoch, message.stream_sequence)
        if is_late or epoch > message.stream_sequence:
            return "late"
        self._newest[subject.cluster] = epoch
        return "late" if is_silenced else _Heard(message, subject, said)


def _is_of_an_agent(message: StoredMessage) -> bool:
    subject = parse_state_subject(message.subject)
    return subject is not None and subject.kind == "agent"


def _is_expected(core: Core, subject: StateSubject) -> bool:
    members = core.world.federation.clusters
    return subject.kind in (*KINDS, "agent") and (not members or subject.cluster in members)


def _learn_epoch(core: Core, subject: StateSubject, message: StoredMessage) -> None:
    try:
        said = intake.read(message, subject)
    except WireError:
        return  # nobody believed it either when it came
    cluster = ClusterId(subject.cluster)
    epoch = message.stream_sequence if isinstance(said, AgentStarted) else said.agent_epoch
    if core.world.cluster(cluster).epoch < epoch <= message.stream_sequence:
        core.note_epoch(cluster, epoch)
