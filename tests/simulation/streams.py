"""DRA_STATE and the ledger, in memory: what JetStream promises of them, and nothing more."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable

import msgspec

from schemas.wire.bus import MESSAGE_ID, StoredMessage
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import (
    Allocate,
    AnyEntry,
    ClusterEvicted,
    ClusterReadmitted,
    ClusterRebuilt,
    FenceLifted,
    LeaderElected,
    Release,
    SegmentOpened,
    entry_place,
    inputs_of,
    own_sequence,
)
from schemas.wire.subjects import PREFIX, ledger_subject


class StateLog:
    """DRA_STATE: compare-and-set per subject, at most so many messages a subject, and messages expire.

    archive: every message that was ever stored, by sequence from 1; for the oracle alone.
    """

    def __init__(self, messages_per_subject: int = 64) -> None:
        self.archive: list[StoredMessage] = []
        self.starts: dict[str, list[int]] = defaultdict(list)  # of runs, by cluster; as the archive
        self._messages_per_subject = messages_per_subject
        self._kept: dict[int, StoredMessage] = {}  # ascending
        self._by_subject: dict[str, list[int]] = {}

    @property
    def last_sequence(self) -> int:
        """Of the last message ever stored."""
        return len(self.archive)

    @property
    def first_sequence(self) -> int:
        """Of the first message that is still there."""
        return next(iter(self._kept), self.last_sequence + 1)

    def lose(self) -> None:
        """The stream is gone, and another one begins at 1."""
        self.archive, self._kept, self._by_subject = [], {}, {}
        self.starts.clear()

    def publish(self, subject: str, payload: bytes, expected: int, message_id: str = "", now_ms: int = 0) -> int | None:
        """Store a message if `expected` is the subject's last sequence (0: none); None: it is not."""
        sequences = self._by_subject.setdefault(subject, [])
        if (sequences[-1] if sequences else 0) != expected:
            return None
        sequence = len(self.archive) + 1
        message = StoredMessage(subject, payload, {MESSAGE_ID: message_id}, sequence, now_ms)
        self.archive.append(message)
        if subject.endswith(".agent.run") and b"agent-started" in payload:
            self.starts[subject.split(".")[3]].append(sequence)
        self._kept[sequence] = message
        sequences.append(sequence)
        # Runs are kept longer: they tell which of two was believed. (A real log keeps 64 messages of each subject.)
        most = 64 if ".agent." in subject else self._messages_per_subject
        if len(sequences) > most:
            del self._kept[sequences.pop(0)]
        return sequence

    def last(self, subject: str) -> StoredMessage | None:
        """The last message of a subject, None where there is none (any more)."""
        sequences = self._by_subject.get(subject)
        return self._kept[sequences[-1]] if sequences else None

    def last_messages(self, cluster: str = "") -> list[StoredMessage]:
        """The last message of each subject (of a cluster), in stream order."""
        prefix = f"{PREFIX}.state.{cluster}." if cluster else ""
        last = [each[-1] for subject, each in self._by_subject.items() if each and subject.startswith(prefix)]
        return [self._kept[sequence] for sequence in sorted(last)]

    def read(self, after: int, until: int) -> list[StoredMessage]:
        """What is still there of the messages after `after`, up to and with `until`."""
        found = (self._kept.get(sequence) for sequence in range(after + 1, until + 1))
        return [message for message in found if message is not None]

    def has_expired(self, position: int) -> bool:
        """Whether a reader that stands at `position` has missed messages for good (as the adapters tell)."""
        return self.first_sequence > position + 1

    def subjects(self) -> list[str]:
        """Subjects with a message, in order of their first one."""
        return [subject for subject, each in self._by_subject.items() if each]

    def lose_after(self, sequence: int) -> None:
        """Whatever was stored after `sequence` never was; its numbers are given again."""
        del self.archive[sequence:]
        for starts in self.starts.values():
            starts[:] = [each for each in starts if each <= sequence]
        for lost in [each for each in self._kept if each > sequence]:
            self._by_subject[self._kept.pop(lost).subject].remove(lost)

    def expire_subject(self, subject: str) -> None:
        """All messages of one subject reach their age."""
        for sequence in self._by_subject.get(subject, []):
            del self._kept[sequence]
        self._by_subject[subject] = []

    def expire_up_to(self, sequence: int) -> None:
        """All messages up to `sequence` reach their age."""
        for old in [each for each in self._kept if each <= sequence]:
            self._by_subject[self._kept.pop(old).subject].remove(old)


class Batch(msgspec.Struct, frozen=True):
    """A ledger batch as its writer made it: appended again as it is while nobody knows whether it was stored.

    is_of_checkpoint: its entries state again what others before them have said.
    """

    expected_last: int
    messages: list[StoredMessage]
    entries: list[AnyEntry]
    segment: int = 0
    is_of_checkpoint: bool = False

    @property
    def position(self) -> int:
        """Up to where it speaks of the log."""
        inputs = inputs_of(self.entries[-1])
        return inputs.steps[-1].position if inputs is not None else 0

    @property
    def decisions(self) -> list[Allocate | Release]:
        """Those that are made in it."""
        return [] if self.is_of_checkpoint else [each for each in self.entries if isinstance(each, Allocate | Release)]

    @classmethod
    def of(
        cls,
        entries: Iterable[AnyEntry],
        expected_last: int,
        writer: str,
        segment: int = 0,
        *,
        is_of_checkpoint: bool = False,
    ) -> "Batch":
        """The batch that follows `expected_last`."""
        listed = list(entries)
        messages = []
        for sequence, entry in enumerate(listed, start=expected_last + 1):
            subject = ledger_subject("main", segment, *entry_place(entry))
            messages.append(StoredMessage(subject, encode(entry), {MESSAGE_ID: f"{writer}.{sequence}"}, sequence, 0))
        return cls(expected_last, messages, listed, segment, is_of_checkpoint)


class Ledger:
    """A ledger: append-only, whole batches, and only after the expected last entry of the batch's segment.

    messages: of all segments; the numbers go on from one to the next, unless that was rebuilt. on_stored: told of each
    batch in the moment in which it is stored. is_gone: there is no stream any more, until a broker that starts, or an
    operator, makes one.
    """

    def __init__(self, on_stored: Callable[[Batch], None] = lambda _: None) -> None:
        self.messages: list[StoredMessage] = []
        self.is_gone = False
        self.decisions: dict[str, list[tuple[int, Allocate | Release]]] = {}  # Allocate and Release by cluster
        self._begins = [0]  # how many entries there are before each segment
        self._before = [0]  # the sequence before the first one of each segment
        # What agents read, as the open segment has it: the last entry about a cluster's eviction, and of each claim.
        self.evictions: dict[str, tuple[int, AnyEntry]] = {}
        self.rebuilt: dict[str, int] = {}  # ledger sequence of the ClusterRebuilt of a cluster
        self.latest: dict[tuple[str, str], tuple[int, Allocate | Release]] = {}
        self._opening: SegmentOpened | None = None  # whose checkpoint is not whole yet
        self._restated: list[StoredMessage] = []
        self._on_stored = on_stored

    @property
    def last_sequence(self) -> int:
        """Of the last entry."""
        return self._ends_at(len(self._begins) - 1)

    def _ends_at(self, segment: int) -> int:
        there = self.segment(segment)
        return there[-1].stream_sequence if there else self._before[segment]

    @property
    def segments(self) -> list[int]:
        """Those that there are."""
        return list(range(len(self._begins)))

    def segment(self, number: int) -> list[StoredMessage]:
        """All entries of a segment."""
        return self.messages[self._begins[number] : [*self._begins, None][number + 1]]

    def ensure_segment(self, number: int) -> None:
        """Make the next segment's stream, unless it is there."""
        if number == len(self._begins):
            self._begin_segment(self.last_sequence)

    def begin_again(self, begins_at: int) -> int:
        """Make a stream that begins there, for an operator who rebuilds: the first, if none is left; returns which."""
        self.decisions, self.is_gone = {}, False
        if self.messages:
            self._begin_segment(begins_at - 1)
        else:
            self._begins, self._before = [0], [begins_at - 1]
        return self.segments[-1]

    def _begin_segment(self, before: int) -> None:
        self._begins.append(len(self.messages))
        self._before.append(before)

    def damage(self, message: StoredMessage) -> None:
        """An entry is not as it was stored any more."""
        self.messages[self._index(message.stream_sequence)] = message

    def _index(self, sequence: int) -> int:
        """How many entries are below a sequence."""
        return bisect_left(self.messages, sequence, key=lambda each: each.stream_sequence)

    def lose(self, after: int = 0) -> None:
        """The entries after this one are gone; without any left the next one gets the sequence 1."""
        left = self.messages[: self._index(after + 1)]
        self.messages, self.is_gone = left, not left
        self.decisions, self.evictions, self.latest, self.rebuilt = {}, {}, {}, {}
        self._opening, self._restated = None, []
        self._begins = [each for each in self._begins if not each or each <= len(left)]
        self._before = self._before[: len(self._begins)] if left else [0]
        for message in left:
            self._read(message)

    def append(self, batch: Batch) -> bool:
        """Store the batch whole, or nothing of it."""
        if self.is_gone:
            return False
        if batch.segment != self.segments[-1]:
            return self._append_behind_the_close(batch)
        if batch.expected_last != self.last_sequence:
            return False
        self.messages += batch.messages
        for message in batch.messages:
            self._read(message)
        self._on_stored(batch)
        return True

    def _append_behind_the_close(self, batch: Batch) -> bool:
        """Nothing is between a closed segment's end and whoever appends; nobody counts that as part of the ledger."""
        if batch.segment not in self.segments or batch.expected_last != self._ends_at(batch.segment):
            return False
        assert [*map(type, batch.entries)] == [LeaderElected], f"{batch} is appended to a closed segment"
        at = self._begins[batch.segment + 1]
        self.messages[at:at] = batch.messages
        for later in range(batch.segment + 1, len(self._begins)):
            self._begins[later] += len(batch.messages)
        return True

    def has(self, message: StoredMessage) -> bool:
        """Whether it stands there."""
        return self.messages[self._index(message.stream_sequence) :][:1] == [message]

    def _read(self, message: StoredMessage) -> None:
        entry = decode_entry(message.payload)
        if isinstance(entry, Allocate | Release):
            sequence = own_sequence(entry, message.stream_sequence)
            self.decisions.setdefault(entry.cluster, []).append((sequence, entry))
        self._restate(message, entry)

    def _restate(self, message: StoredMessage, entry: AnyEntry) -> None:
        """What agents read changes with an entry of the open segment, and with the last one of a checkpoint."""
        if isinstance(entry, SegmentOpened):
            self._opening, self._restated = entry, []
        elif self._opening is not None:
            self._restated.append(message)
        else:
            self._tell(message, entry)
        if self._opening is not None and len(self._restated) == self._opening.entries:
            self._opening, self.evictions, self.latest, self.rebuilt = None, {}, {}, {}
            for each in self._restated:
                self._tell(each, decode_entry(each.payload))

    def _tell(self, message: StoredMessage, entry: AnyEntry) -> None:
        if isinstance(entry, Allocate | Release):
            self.latest[entry.cluster, entry.uid] = (own_sequence(entry, message.stream_sequence), entry)
        elif isinstance(entry, ClusterEvicted | ClusterReadmitted | FenceLifted):
            self.evictions[entry.cluster] = (own_sequence(entry, message.stream_sequence), entry)
        elif isinstance(entry, ClusterRebuilt):
            self.rebuilt[entry.cluster] = own_sequence(entry, message.stream_sequence)

    def holds(self, batch: Batch) -> bool | None:
        """What the tail says: it is there entry for entry, something else is (False), or nothing yet (None)."""
        first = self._index(batch.expected_last + 1)
        there = self.messages[first : first + len(batch.messages)]
        return None if not there else there == batch.messages

    def last_decisions(self, cluster: str) -> list[tuple[int, Allocate | Release]]:
        """The last Allocate or Release of each claim of a cluster, by ledger sequence, as the open segment has it."""
        return sorted((last for (name, _), last in self.latest.items() if name == cluster), key=lambda each: each[0])


class DurableConsumer:
    """A cluster's consumer of the ledger, which its agents share: what nobody acknowledged comes again, to anyone.

    `taken` remembers who has an entry, so that one whose holder is gone can be given to the next.
    """

    def __init__(self, ledger: Ledger, cluster: str) -> None:
        self._ledger = ledger
        self._cluster = cluster
        self._next = 0
        self.taken: dict[int, tuple[Allocate | Release, object]] = {}  # by ledger sequence

    def forget(self) -> None:
        """The ledger was lost, and this consumer with it."""
        self._next, self.taken = 0, {}

    def has_new(self) -> bool:
        """Whether there is an entry that nobody has got yet."""
        return self._next < len(self._ledger.decisions.get(self._cluster, []))

    def take(self, holder: object) -> tuple[int, Allocate | Release]:
        """The next new entry goes to `holder`."""
        sequence, entry = self._ledger.decisions[self._cluster][self._next]
        self._next += 1
        self.taken[sequence] = (entry, holder)
        return sequence, entry

    def again(self, sequence: int, holder: object) -> tuple[int, Allocate | Release]:
        """An entry that was not acknowledged goes to `holder`."""
        entry, _ = self.taken[sequence]
        self.taken[sequence] = (entry, holder)
        return sequence, entry

    def ack(self, sequence: int) -> None:
        """The entry need not come again."""
        self.taken.pop(sequence, None)
