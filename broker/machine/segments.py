"""Which world the segments of a ledger give: the last checkpoint that is whole, and all that follows it.

Nothing is concluded from a segment's being there: one without a whole checkpoint is not open yet, and one whose
checkpoint is damaged says only what follows it; the world before it comes from the segment before it, which was closed.
"""

from collections.abc import Callable, Iterable, Sequence

from broker.errors import REMEDY, CheckpointError, LedgerLostError, UnreadableEntryError
from broker.machine.machine import Machine
from broker.world import checkpoint, fold
from broker.world.world import World
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import AnyEntry, SegmentOpened


class SegmentFold:
    """Folds one segment into a world, from its first entry on.

    world: an empty one, which the checkpoint fills; or one that the segment before has left closed, which is what the
    checkpoint says too: it is passed over then, whatever is in it.
    """

    def __init__(self, world: World, segment: int) -> None:
        self._world = world
        self._segment = segment
        # Of the checkpoint, as long as that may go on; None: cannot be read.
        self._opening: list[tuple[StoredMessage, AnyEntry | None]] = []
        self.is_open = False

    def add(self, messages: Iterable[StoredMessage]) -> None:
        """The next entries.

        Raises: CheckpointError; UnreadableEntryError; InvariantError if an entry cannot follow.
        """
        for message in messages:
            if not self.is_open and self._is_of_checkpoint(message):
                continue
            if not self.is_open:
                self._open()
            fold.apply_entry(self._world, _entry(message), message.stream_sequence)

    def finish(self) -> bool:
        """There are no more entries; says whether the segment is open. Raises: CheckpointError."""
        if not self.is_open and not self._world.is_closed and self._opening:
            self._opened()
            if self._has_all():
                self._open()
        return self.is_open

    def _is_of_checkpoint(self, message: StoredMessage) -> bool:
        """Keeps what may belong to the checkpoint; the batches after it begin with entries of other kinds."""
        try:
            entry: AnyEntry | None = _entry(message)
        except UnreadableEntryError:
            if self._has_all():
                raise
            entry = None  # damaged, or a newer broker's: told when the checkpoint is to be believed
        if entry is not None and not isinstance(entry, checkpoint.KINDS):
            return False
        if isinstance(entry, SegmentOpened):
            self._opening = []  # whoever began before has not finished
        self._opening.append((message, entry))
        return True

    def _has_all(self) -> bool:
        """As many entries are there as the first one promises."""
        first = self._opening[0][1] if self._opening else None
        return isinstance(first, SegmentOpened) and len(self._opening) > first.entries

    def _open(self) -> None:
        world = self._world
        if not world.is_closed:
            opened = self._opened()
            payloads = [message.payload for message, _ in self._opening[1:]]
            checkpoint.verify(opened, payloads)
            readable = (entry or _entry(message) for message, entry in self._opening[1:])
            checkpoint.load(world, opened, readable)
        last = self._opening[-1][0].stream_sequence if self._opening else world.ledger_last
        checkpoint.opened(world, self._segment, last)
        self._opening = []
        self.is_open = True

    def _opened(self) -> SegmentOpened:
        entry = self._opening[0][1] if self._opening else None
        if not isinstance(entry, SegmentOpened) or entry.segment != self._segment:
            raise CheckpointError(self._segment, f"it begins with {entry!r:.100}")
        return entry


class LedgerStart:
    """A start from segments: read the one that is `wanted` from its first entry to its last, `end` it, until none is.

    segments: those that there are, ascending. new_machine: one with an empty world.
    Most starts read the last one alone. It goes down until a checkpoint can be believed, and up again from there.
    """

    def __init__(self, segments: Sequence[int], new_machine: Callable[[], Machine]) -> None:
        self._segments = list(segments)
        self._new_machine = new_machine
        self._goes_up = False
        self._error: CheckpointError | None = None
        self.damaged: list[CheckpointError] = []  # to be told
        self.last_sequence = 0  # of all that was read
        self.last_message: StoredMessage | None = None  # that was read
        self.after = 0  # where to read the wanted segment on
        self.wanted: int | None = None
        self._last: int | None = None  # that was wanted
        self.machine = new_machine()
        self._fold = SegmentFold(self.machine.world, 0)
        if segments:
            self._want(segments[-1])

    def add(self, messages: Sequence[StoredMessage]) -> None:
        """Entries of the wanted segment. Raises: UnreadableEntryError, InvariantError."""
        if messages:
            self.after = messages[-1].stream_sequence
            self.last_sequence = max(self.last_sequence, self.after)
            self.last_message = messages[-1]
        if self._error is None:
            try:
                self._fold.add(messages)
            except CheckpointError as error:
                self._error = error

    def end(self) -> None:
        """That was all of the wanted segment. Raises: LedgerLostError."""
        try:
            is_open = self._error is None and self._fold.finish()
        except CheckpointError as error:
            self._error, is_open = error, False
        if self._error is not None:
            self.damaged.append(self._error)
        if self.machine.world.is_abandoned:
            text = f"the ledger was abandoned after segment {self.wanted}: entries were lost, or a rebuild not finished"
            raise LedgerLostError(f"{text}. {REMEDY}")
        if is_open or self._goes_up or self._is_new():
            self._go_up()
        else:
            self._go_down()

    def go_on(self, segments: Sequence[int]) -> None:
        """After all was read: read on, for there may be more of it by now, and segments above."""
        self._segments = list(segments)
        self._goes_up = True
        self.wanted = self._last

    def _is_new(self) -> bool:
        """Segment 0 alone has none before it: without an entry it is a ledger that nobody has begun."""
        return self.wanted == 0 and self._segments == [0] and self.last_sequence == 0

    def _go_up(self) -> None:
        self._goes_up = True
        above = [segment for segment in self._segments if self.wanted is not None and segment > self.wanted]
        if not above:
            self._last, self.wanted = self.wanted, None
        elif not self.machine.world.is_closed:
            raise LedgerLostError(
                f"ledger segment {above[0]} is there, but segment {self.wanted} before it was never closed. {REMEDY}"
            )
        else:
            self.wanted, self.after = above[0], 0
            self._error, self._fold = None, SegmentFold(self.machine.world, above[0])

    def _go_down(self) -> None:
        assert self.wanted is not None
        before = self.wanted - 1
        if before not in self._segments:
            problem = self._error or f"ledger segment {self.wanted} has no whole checkpoint"
            raise LedgerLostError(f"{problem}, and there is no segment {before} to start from. {REMEDY}")
        self._want(before)

    def _want(self, segment: int) -> None:
        self.wanted, self.after = segment, 0
        self.machine = self._new_machine()
        self._error, self._fold = None, SegmentFold(self.machine.world, segment)


def _entry(message: StoredMessage) -> AnyEntry:
    try:
        return decode_entry(message.payload)
    except WireError as error:
        raise UnreadableEntryError(
            f"ledger entry {message.stream_sequence} on {message.subject} cannot be read by this build ({error}):"
            " a newer broker wrote it, run that build or a later one, see docs/upgrades.md"
        ) from error
