"""A start: the world from the ledger, then what was believed at its position, then the log goes on.

The ledger gives who holds what. What clusters said is read again from DRA_STATE: the last message of each subject at
or below the recorded position counts as believed, without its consequences, for those are in the ledger already.
"""

from collections.abc import Iterable

from broker.machine import intake
from broker.machine.core import Core
from broker.machine.machine import Machine
from broker.world import fold
from broker.world.keys import ClusterId
from schemas.wire.bus import PayloadError, StoredMessage
from schemas.wire.calls import Ask
from schemas.wire.codec import WireError, decode_agent_message, decode_entry, peek_epoch
from schemas.wire.ledger import AnyEntry
from schemas.wire.state import AgentStarted
from schemas.wire.subjects import parse_state_subject


def fold_ledger(machine: Machine, messages: Iterable[StoredMessage]) -> None:
    """Fold ledger entries, in order, into the machine's world.

    Raises: WireError if an entry cannot be read (a newer broker wrote it); InvariantError if one cannot follow.
    """
    for message in messages:
        fold.apply_entry(machine.world, decode_entry(message.payload), message.stream_sequence)


def fold_entries(machine: Machine, entries: Iterable[AnyEntry], first_sequence: int) -> None:
    """Fold entries that we appended ourselves, such as our election."""
    for sequence, entry in enumerate(entries, start=first_sequence):
        fold.apply_entry(machine.world, entry, sequence)


class LastBelieved:
    """What was believed: messages of DRA_STATE up to the recorded position, added in stream order.

    Of each subject only the last one that counts is kept.
    """

    def __init__(self, machine: Machine) -> None:
        self._core = machine.core
        self._belief = _Belief(machine.core)
        self._last: dict[str, StoredMessage] = {}

    def add(self, messages: Iterable[StoredMessage]) -> None:
        """More of the log."""
        for message in messages:
            if self._belief.counts(message):
                self._last[message.subject] = message

    def take_in(self) -> None:
        """Take in what was added, without its consequences."""
        self._core.is_replaying = True
        for message in sorted(self._last.values(), key=lambda each: each.stream_sequence):
            intake.accept(self._core, message)
        self._core.is_replaying = False


def believe_again(machine: Machine, messages: Iterable[StoredMessage]) -> None:
    """Take in what was believed, where all of it is at hand."""
    believed = LastBelieved(machine)
    believed.add(messages)
    believed.take_in()


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
        if subject is not None and _is_of_an_agent(message):
            _learn_epoch(core, ClusterId(subject.cluster), message)
    for cluster in core.world.clusters.values():
        cluster.synced_sequence = 0
    belief = _Belief(core)
    believed = [each for each in kept if belief.counts(each) and not _is_of_an_agent(each)]
    machine.feed_after_expiry(believed, position)
    for name in sorted(core.world.clusters):
        core.ask(name, Ask())


def resume(machine: Machine) -> None:
    """All is known again: everything that may be undone is looked at once more."""
    core, world = machine.core, machine.world
    for key in sorted(world.claims):
        # One of which only the ledger knows has ended, or its messages have expired: its cluster's next sync tells.
        if world.claims[key].is_shown_without_grant:
            core.to_adopt.add(key)
        core.queue.make_due(key)
    if world.federation.believe_labels and world.all_heard():
        world.inventory.open_labels()
        world.resolve_again()
    core.classes_changed = bool(world.federation.hub)


class _Belief:
    """Which messages were believed when they came: those before which no newer run of their cluster's agent came.

    The cluster's epoch alone does not tell: between two runs that are both over, one may have spoken out of turn.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._newest: dict[str, int] = {}  # epoch by cluster

    def counts(self, message: StoredMessage) -> bool:
        """Of a message, in stream order. What cannot be read counts: it was kept as a dead letter then."""
        subject = parse_state_subject(message.subject)
        if subject is None:
            return False
        try:
            epoch = peek_epoch(message.body())
        except (WireError, PayloadError):
            return True
        if epoch is None:  # a run begins
            epoch = message.stream_sequence
        final = self._core.world.cluster(ClusterId(subject.cluster)).epoch
        is_late = epoch < self._newest.get(subject.cluster, 0) or epoch < final <= message.stream_sequence
        if is_late or epoch > message.stream_sequence:
            return False
        self._newest[subject.cluster] = epoch
        return True


def _is_of_an_agent(message: StoredMessage) -> bool:
    subject = parse_state_subject(message.subject)
    return subject is not None and subject.kind == "agent"


def _learn_epoch(core: Core, cluster: ClusterId, message: StoredMessage) -> None:
    try:
        said = decode_agent_message(message.body())
    except (WireError, PayloadError):
        return  # the step that applies it keeps it as a dead letter
    epoch = message.stream_sequence if isinstance(said, AgentStarted) else said.agent_epoch
    if core.world.cluster(cluster).epoch < epoch <= message.stream_sequence:
        core.note_epoch(cluster, epoch)
