"""Is a ledger whole, and does it say nothing that cannot be? Read entry by entry, segment by segment, as anybody may.

What a ledger alone can show is checked: numbers without holes, segments that go on from each other, checkpoints that
are what the segments before them give, batches that say what they were decided from, and devices that nobody holds
twice. How much of a device its shares may take is not in the ledger, nor whether each decision was right: that takes
the state that it was decided on.
"""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from broker.errors import CheckpointError, InvariantError
from broker.machine.ledger_batches import BatchCheck
from broker.machine.ledger_chain import ChainCheck
from broker.world import checkpoint, fold
from broker.world.check import check
from broker.world.commitments import granted_on, why_too_much
from broker.world.federation import Federation
from broker.world.keys import DeviceKey
from broker.world.records import Claim
from broker.world.world import World
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    LeaderElected,
    LedgerRebuilt,
    SegmentClosed,
    SegmentOpened,
    entry_place,
    inputs_of,
)
from schemas.wire.subjects import ledger_subject


class BadEntry(msgspec.Struct, frozen=True):
    """The first entry of a segment that is not as it must be. subject: "" where it is about what is not there."""

    segment: int
    sequence: int
    subject: str
    problem: str


class SegmentFound(msgspec.Struct):
    """A segment, as far as it was read.

    checkpoint: how many entries opened it. compared: its checkpoint was compared with the segments before it.
    closed: no entry can follow. abandoned: by a rebuild. bad: what is wrong with it.
    """

    segment: int
    first: int = 0
    last: int = 0
    entries: int = 0
    checkpoint: int = 0
    compared: bool = False
    opened: bool = False
    closed: bool = False
    abandoned: bool = False
    bad: BadEntry | None = None


class LedgerCheck:
    """Tell it of each segment in order: `begin`, its entries, `end`.

    notes: what is no fault, and yet to be known. chain: of the entries so far.
    """

    def __init__(self, shard: str) -> None:
        self.shard = shard
        self.segments: list[SegmentFound] = []
        self.chain = ChainCheck()
        self.notes: list[str] = []
        self._before: World | None = None  # what the segment before has left, closed; None: nobody knows
        self._world: World | None = None  # of this segment, once it is open
        self._found = SegmentFound(0)
        self._opening: list[tuple[StoredMessage, AnyEntry]] = []
        self._doubt: BadEntry | None = None  # about a checkpoint, unless it is opened anew behind it
        self._batches = BatchCheck()
        self._touched: set[DeviceKey] = set()

    @property
    def world(self) -> World | None:
        """By the ledger, of all entries so far; None where the segment is not open."""
        return self._world

    @property
    def bad(self) -> BadEntry | None:
        """The first of all."""
        return next((each.bad for each in self.segments if each.bad is not None), None)

    def begin(self, segment: int) -> None:
        """The entries of this segment follow."""
        last = self.segments[-1] if self.segments else None
        if last is None and segment:
            self.notes.append(
                f"segments before {segment} are not here: its checkpoint is believed by its checksum alone"
            )
        if last is not None and segment != last.segment + 1:
            self.notes.append(f"segments {last.segment + 1} to {segment - 1} are not here")
            self._before = None
        elif last is not None and last.bad is None and not last.closed:
            text = f"it ends without a SegmentClosed, and segment {segment} is there"
            last.bad = BadEntry(last.segment, last.last, "", text)
        follows = last is not None and segment == last.segment + 1 and last.bad is None
        self.chain.begin(segment, follows=follows)
        self._batches.begin(follows=follows)
        self._found = SegmentFound(segment)
        self.segments.append(self._found)
        self._world, self._doubt, self._opening = None, None, []
        self._touched = set()

    def add(self, messages: Iterable[StoredMessage]) -> None:
        """Entries of the segment, in order. After a bad one nothing more is looked at before the next segment."""
        for message in messages:
            if self._found.abandoned:
                self.chain.leave_out(message)  # of somebody who had not read that it is over; a rebuild goes on from it
                continue
            if self._found.bad is None:
                self._number(message)
            if self._found.bad is None and (problem := self.chain.add(message)):
                self._is_bad(message, problem)
            if self._found.bad is None:
                self._entry(message)
            if self._found.bad is not None:
                return

    def end(self) -> None:
        """That was all of the segment."""
        found = self._found
        if found.abandoned:
            self._before, found.closed = None, True
            self.notes.append(f"segment {found.segment} was abandoned by a rebuild: the next one stands for itself")
            return
        if found.bad is None and self._doubt is not None:
            found.bad = self._doubt
        if found.bad is None and self._world is not None:
            self._batch_ends()
        if found.bad is None:
            self._no_batch_is_open("nothing")
        if found.bad is None and self._world is not None:
            try:
                check(self._world)
            except InvariantError as error:
                found.bad = BadEntry(found.segment, found.last, "", str(error))
        if found.bad is None and self._world is None and found.entries:
            self.notes.append(f"segment {found.segment} is not open yet: the next leader opens it anew")
        has_end = found.bad is None and self._world is not None and self._world.is_closed
        found.closed = has_end
        self._before = self._world if has_end else None

    # --- one entry

    def _number(self, message: StoredMessage) -> None:
        found = self._found
        if not found.entries:
            found.first = message.stream_sequence
            before = next((each.last for each in reversed(self.segments[:-1]) if each.last), 0)
            goes_on = self._before is not None or found.segment == 0
            if (goes_on and message.stream_sequence != before + 1) or message.stream_sequence <= before:
                self._is_bad(message, f"it begins the segment, and {before + 1} would follow what was before it")
        elif message.stream_sequence != found.last + 1:
            missing = f"{found.last + 1} to {message.stream_sequence - 1}"
            self._is_bad(message, f"it follows {found.last}: entries {missing} are missing")
        found.last = message.stream_sequence
        found.entries += 1

    def _entry(self, message: StoredMessage) -> None:
        try:
            entry = decode_entry(message.payload)
        except WireError as error:
            self._is_bad(message, f"it cannot be read: {error}")
            return
        place = ledger_subject(self.shard, self._found.segment, *entry_place(entry))
        if message.subject != place:
            self._is_bad(message, f"a {type(entry).__name__} of subject {place} stands there")
        elif self._is_of_checkpoint(entry):
            self._opens(message, entry)
        elif isinstance(entry, SegmentClosed) and entry.is_abandoned:
            self._found.abandoned = True
            if (first := self._batches.first) is not None:  # no fault: what was lost may have begun within it
                self.notes.append(
                    f"entries {first.stream_sequence} to {message.stream_sequence - 1} are a batch whose end was lost:"
                    " what it was decided from is not known"
                )
        elif self._world is None:
            text = f"{type(entry).__name__} stands in a segment that is not open: {self._opened_so_far()}"
            self._is_bad(message, text)
        elif self._doubt is not None:
            self._found.bad = self._doubt
        else:
            self._folds(message, entry)

    def _is_of_checkpoint(self, entry: AnyEntry) -> bool:
        if isinstance(entry, SegmentOpened):
            return True
        first = self._opening[0][1] if self._opening else None
        is_open = not isinstance(first, SegmentOpened) or len(self._opening) > first.entries
        return not is_open and isinstance(entry, checkpoint.KINDS)

    def _opened_so_far(self) -> str:
        first = self._opening[0][1] if self._opening else None
        if not isinstance(first, SegmentOpened):
            return "no SegmentOpened comes before it"
        return f"{len(self._opening) - 1} of {first.entries} entries of its checkpoint are there"

    def _opens(self, message: StoredMessage, entry: AnyEntry) -> None:
        if isinstance(entry, SegmentOpened):
            if self._world is not None and self._found.entries > len(self._opening) + 1 and self._doubt is None:
                self._is_bad(message, "the segment is open already")
                return
            # Whoever began before has not finished, or what it left was damaged.
            self._opening, self._doubt, self._world = [], None, None
        self._opening.append((message, entry))
        first = self._opening[0][1]
        assert isinstance(first, SegmentOpened)
        if len(self._opening) == first.entries + 1:
            self._is_whole(first)

    def _is_whole(self, first: SegmentOpened) -> None:
        """The checkpoint is complete: is it what it says, and what the segments before it give?"""
        message = self._opening[0][0]
        world = World(Federation())
        try:
            if (first.shard, first.segment) != (self.shard, self._found.segment):
                raise CheckpointError(self._found.segment, f"it says that it opens segment {first.segment}")
            if not self.chain.erased:
                checkpoint.verify(first, [each.payload for each, _ in self._opening[1:]])
            checkpoint.load(world, first, [entry for _, entry in self._opening[1:]])
            check(world)
            for entry in (each for _, each in self._opening if isinstance(each, LedgerRebuilt)):
                self.notes.append(f"segment {first.segment} was rebuilt by {entry.operator}: {entry.reason}")
            if self.chain.erased:
                self.notes.append(
                    f"names were erased: the checkpoint of segment {first.segment} is not what it was made as, and only"
                    " the chain says that nothing else was changed"
                )
            elif self._before is not None:
                self._found.compared = True
                if first.covers != self._before.ledger_last:
                    text = f"it covers {first.covers}, and the segment before it ends at {self._before.ledger_last}"
                    raise CheckpointError(self._found.segment, text)
                for difference in differences(self._before, world):
                    raise CheckpointError(
                        self._found.segment, f"the segments before it give another world: {difference}"
                    )
        except (CheckpointError, InvariantError, ValueError, KeyError) as error:
            self._doubt = BadEntry(self._found.segment, message.stream_sequence, message.subject, str(error))
        checkpoint.opened(world, self._found.segment, self._opening[-1][0].stream_sequence)
        self._batches.opened()
        self._world, self._found.opened, self._found.checkpoint = world, True, first.entries + 1

    def _folds(self, message: StoredMessage, entry: AnyEntry) -> None:
        assert self._world is not None
        inputs = inputs_of(entry)
        if not self._world.leader_epoch and not isinstance(entry, LeaderElected):
            self._is_bad(message, f"{type(entry).__name__} stands before anybody was elected")
            return
        if inputs is not None and inputs.leader_epoch != self._world.leader_epoch:
            text = f"leader {inputs.leader_epoch} wrote it, and {self._world.leader_epoch} was elected last"
            self._is_bad(message, text)
            return
        if isinstance(entry, LeaderElected):
            self._no_batch_is_open("an election")
            if self._found.bad is not None:
                return
        if problem := self._batches.add(message, entry):
            self._is_bad(message, problem)
            return
        try:
            fold.apply_entry(self._world, entry, message.stream_sequence)
        except (InvariantError, ValueError, KeyError, AssertionError) as error:
            self._is_bad(message, f"it cannot follow what comes before it: {error}")
            return
        if isinstance(entry, Allocate | Adopted):
            self._touched.update(key for key in _devices(entry) if key in self._world.granted)
        if inputs is not None:
            self._batch_ends()

    def _batch_ends(self) -> None:
        """At the end of each batch: nobody holds a device that another one holds."""
        assert self._world is not None
        for device in sorted(self._touched):
            why = why_too_much(self._world, device, granted_on(self._world, device))
            if why is not None:
                at = max(grant.ledger_sequence for grant in self._world.granted[device])
                self._found.bad = BadEntry(self._found.segment, at, "", f"since then {why}")
                return
        self._touched.clear()

    def _no_batch_is_open(self, then: str) -> None:
        """Whoever decides says from what. then: what comes next instead."""
        if (first := self._batches.first) is not None:
            self._is_bad(first, f"its batch has no end that says what it was decided from: {then} follows")

    def _is_bad(self, message: StoredMessage, problem: str) -> None:
        self._found.bad = BadEntry(self._found.segment, message.stream_sequence, message.subject, problem)


def differences(before: World, after: World) -> Iterator[str]:
    """What a checkpoint says otherwise than the entries before it.

    Not compared: the words in which a claim's reason was told last, which no entry has; and claims of which nothing but
    a past is left, which a running leader has forgotten when they are gone.
    """
    for name in ("position", "leader_epoch", "told_classes", "taints"):
        if getattr(before, name) != getattr(after, name):
            yield f"{name} is {getattr(after, name)}, not {getattr(before, name)}"
    for cluster in sorted(before.clusters.keys() | after.clusters.keys()):
        then, now = checkpoint.cluster_kept(before.cluster(cluster)), checkpoint.cluster_kept(after.cluster(cluster))
        if then != now:
            yield f"cluster {cluster} is {now}, not {then}"
        rules_then, rules_now = (world.cluster(cluster).taint_rules for world in (before, after))
        if rules_then != rules_now:
            yield f"the taint rules of {cluster} are {rules_now}, not {rules_then}"
    for key in sorted(before.claims.keys() | after.claims.keys()):
        then_claim, now_claim = before.claims.get(key) or Claim(key), after.claims.get(key) or Claim(key)
        if _held(then_claim) != _held(now_claim):
            yield f"claim {key} has {_held(now_claim)}, not {_held(then_claim)}"
        elif key in before.claims and key in after.claims and _past(then_claim) != _past(now_claim):
            yield f"of claim {key} it has {_past(now_claim)}, not {_past(then_claim)}"


def _held(claim: Claim) -> tuple[object, ...]:
    return tuple(claim.grants), claim.unsettled


def _past(claim: Claim) -> tuple[object, ...]:
    why = claim.waiting and (claim.waiting.state, claim.waiting.reason, claim.waiting.order, claim.waiting.since_ms)
    last = (claim.last_decision, claim.failures, claim.not_before_ms)
    return *last, why, claim.collision, sorted(claim.avoid), sorted(map(sorted, claim.spent))


def _devices(entry: Allocate | Adopted) -> Sequence[DeviceKey]:
    return fold.devices_of(entry.holds, entry.scopes)
