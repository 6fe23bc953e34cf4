"""Audit a ledger: its chain, what it says, and whether its decisions come out the same when they are made again.

What cannot be made again is said with the reason, entry by entry, and never counts as made again.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Protocol

import msgspec
from anyio import to_thread

from broker.adapters.state_history import InputsExpiredError, Kept, StateHistory
from broker.allocation.cel.engine import SelectorEngine
from broker.machine.effects import ALGORITHM
from broker.machine.ledger_check import BadEntry, LedgerCheck
from broker.machine.replay import TermReplay, world_of
from broker.world.federation import Federation
from broker.world.world import World
from schemas.wire.anchor import Anchor
from schemas.wire.bus import StoredMessage
from schemas.wire.chain import chain_of, is_erased
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import (
    Allocate,
    AnyEntry,
    ClusterAhead,
    Inputs,
    LeaderElected,
    LeaderElectedBefore,
    ReasonChanged,
    Release,
    SegmentClosed,
    SegmentOpened,
    inputs_of,
)
from schemas.wire.stages import TIMES
from schemas.wire.subjects import STATE_STREAM

DECISIONS = (Allocate, Release, ReasonChanged)
NO_INPUTS = "the ledger does not say what it was decided from"
LARGE = 200  # entries and messages, which take a tenth of a second at most
BELIEVED_AGE = 3  # an agent publishes each object again before this part of the stream's age has passed


class Ledger(Protocol):
    """Where a ledger is: at NATS, or in files."""

    shard: str

    async def segments(self) -> list[int]:
        """Those that there are, ascending."""
        ...

    async def first(self, segment: int) -> StoredMessage | None:
        """Its first entry."""
        ...

    def entries(self, segment: int) -> AsyncGenerator[list[StoredMessage], None]:
        """All of them, in order; to be closed."""
        ...


class Range(msgspec.Struct, frozen=True):
    """Entries from and up to a sequence or a time (Unix milliseconds, by the server's clock), each included."""

    since: int | None = None
    since_ms: int | None = None
    until: int | None = None
    until_ms: int | None = None

    def begins_before(self, message: StoredMessage) -> bool:
        """Whether entries before this one are in it."""
        if self.since is not None:
            return self.since < message.stream_sequence
        return self.since_ms is None or self.since_ms < message.time_ms

    def is_over(self, message: StoredMessage) -> bool:
        """Whether this one comes after it."""
        if self.until is not None:
            return message.stream_sequence > self.until
        return self.until_ms is not None and message.time_ms > self.until_ms

    def has(self, message: StoredMessage) -> bool:
        """Whether this one is in it."""
        if self.since is not None and message.stream_sequence < self.since:
            return False
        if self.since_ms is not None and message.time_ms < self.since_ms:
            return False
        return not self.is_over(message)


async def segments_from(ledger: Ledger, within: Range) -> list[int]:
    """The segments to read: from the one in which the range begins."""
    segments = await ledger.segments()
    begins = 0
    for index, segment in enumerate(segments[1:], start=1):
        first = await ledger.first(segment)
        if first is None or within.begins_before(first):
            break
        begins = index
    return segments[begins:]


class LeftOut(msgspec.Struct):
    """Entries, from `first` to `last`, with decisions that were not made again, and why."""

    first: int
    last: int
    decisions: int
    why: str


class Replayed(msgspec.Struct):
    """What was made again, and gave the same bytes. decisions: Allocate, Release, and why a claim waits."""

    terms: int = 0
    batches: int = 0
    entries: int = 0
    decisions: int = 0
    left_out: list[LeftOut] = []


class Replayer:
    """Makes decisions again, batch by batch, as a ledger is read."""

    def __init__(self, history: StateHistory, engine: SelectorEngine, federations: Mapping[str, Federation]) -> None:
        """federations: by the digest that the ledger has of settings."""
        self._history = history
        self._engine = engine
        self._federations = federations
        self._term: TermReplay | None = None
        self._why = "its leader was elected before what was read"
        self._is_new = False  # a leader was elected, and has decided nothing yet
        self._of_checkpoint = 0  # entries of it that are to come
        self._has_opened = False  # a checkpoint, behind which nothing has come yet
        self._batch: list[StoredMessage] = []
        self._decisions = 0
        self._segment = 0
        self._world: World | None = None
        self.found = Replayed()
        self.bad: BadEntry | None = None

    async def add(self, message: StoredMessage, entry: AnyEntry, segment: int, world: World | None) -> None:
        """The next entry. world: by the ledger, before it.

        Raises: BusError.
        """
        self._segment = segment
        if self._of_checkpoint and not isinstance(entry, SegmentOpened):
            self._of_checkpoint -= 1
            return
        match entry:
            case SegmentOpened():
                self.end()
                self._of_checkpoint, self._has_opened = entry.entries, True
                return
            case LeaderElected():
                self.end()
                self._term, self._is_new, self._has_opened = None, True, False
                if isinstance(entry, LeaderElectedBefore):
                    self._is_new, self._why = False, f"batches of build {entry.build} have another form"
                return
            case SegmentClosed() if entry.is_abandoned:
                self.end()
                return
            case ClusterAhead() if self._is_new and not self._batch and TIMES not in message.headers:
                return  # known when it was elected; not from the state
        if self._has_opened:
            self._has_opened = False
            if self._term is not None:
                self._term.segment_opened(segment, message.stream_sequence - 1)
        if self._is_new and world is not None and not self._batch:
            self._world = world_of(world.federation, world)  # the other one goes on
        self._batch.append(message)
        self._decisions += isinstance(entry, DECISIONS)
        inputs = inputs_of(entry)
        if inputs is not None and inputs.steps:
            if self._is_new and self._world is not None:
                self._is_new = False
                await self._begin(inputs, self._world)
            await self._replay(inputs)

    async def _replay(self, inputs: Inputs) -> None:
        batch, self._batch = self._batch, []
        decisions, self._decisions = self._decisions, 0
        if self._term is not None and any(map(is_erased, batch)):
            self._stop("names were erased, without which it cannot be made again")
        if self._term is not None:
            try:
                state = await self._history.after(inputs.steps[-1].position)
            except InputsExpiredError as error:
                self._stop(str(error))
            else:
                if len(batch) + len(state) < LARGE:  # another thread costs more than most batches
                    differs = self._term.batch(batch, state)
                else:
                    differs = await to_thread.run_sync(self._term.batch, batch, state)
                if differs is None:
                    self.found.batches += 1
                    self.found.entries += len(batch)
                    self.found.decisions += decisions
                    return
                subject = batch[min(differs.sequence - batch[0].stream_sequence, len(batch) - 1)].subject
                text = f"made again it comes out otherwise (build {inputs.build} has decided): {differs.problem}"
                self.bad = BadEntry(self._segment, differs.sequence, subject, text)
                return
        self._leave_out(batch, decisions, self._why)

    def end(self) -> None:
        """No more entries of the batch will come, though it has no inputs: those of an older build open with them."""
        if self._batch:
            is_replayed = self._is_new or self._term is not None
            self._leave_out(self._batch, self._decisions, NO_INPUTS if is_replayed else self._why)
        self._batch, self._decisions = [], 0

    def _leave_out(self, batch: list[StoredMessage], decisions: int, why: str) -> None:
        left, last = self.found.left_out, batch[-1].stream_sequence
        if left and left[-1].why == why:
            left[-1].last, left[-1].decisions = last, left[-1].decisions + decisions
        else:
            left.append(LeftOut(batch[0].stream_sequence, last, decisions, why))

    def _stop(self, why: str) -> None:
        self._term, self._why = None, why

    async def _begin(self, inputs: Inputs, world: World) -> None:
        if why := self._cannot_be(inputs):
            self._stop(why)
            return
        federation = self._federations[inputs.settings_digest]
        term = TermReplay(await to_thread.run_sync(world_of, federation, world), self._engine, inputs)
        why = await self._believe(term, inputs, world)
        if why:
            self._stop(why)
            return
        self._term = term
        self.found.terms += 1
        await self._history.begin_at(term.position)

    def _cannot_be(self, inputs: Inputs) -> str:
        if inputs.algorithm != ALGORITHM:
            return f"decided by algorithm {inputs.algorithm} (build {inputs.build}), not in this build ({ALGORITHM})"
        if inputs.position_expired:
            return f"its leader was elected after messages of {STATE_STREAM} had expired that it had to read"
        if inputs.settings_digest not in self._federations:
            return f"decided with settings {inputs.settings_digest}: give that config file with --config"
        return ""

    async def _believe(self, term: TermReplay, inputs: Inputs, world: World) -> str:
        """Take in what clusters had said when the term began; returns why that is not all there, "" if it is."""
        missing = await self._history.up_to(term.position, term.believe)
        if why := why_expired(self._history.kept, term.position, inputs.steps[0].now_ms, missing, world):
            return why
        await to_thread.run_sync(term.resume)
        return ""


def why_expired(kept: Kept, position: int, began_ms: int, missing: set[str], world: World) -> str:
    """Why the last message of each object before `position` may not be there any more; "" if all are.

    missing: subjects of which earlier messages may be gone. began_ms: when the term made its first decision. world: by
    the ledger, before that. See docs/audit.md.
    """
    if kept.last_sequence < position:
        return f"{STATE_STREAM} ends at {kept.last_sequence}, and it had seen message {position}"
    gone = f"inputs expired before message {kept.first_sequence} of {STATE_STREAM}"
    if kept.first_sequence > position + 1:
        return gone
    if missing:
        return f"inputs expired: of {len(missing)} objects messages are missing, such as {min(missing)}"
    if kept.first_sequence == 1:
        return ""
    if began_ms - kept.first_time_ms < kept.age_ms / BELIEVED_AGE:
        return gone
    for cluster in world.clusters.values():
        if cluster.is_heard and (cluster.liveness != "Live" or cluster.liveness_since_ms > kept.first_time_ms):
            return gone
    return ""


class AuditFound(msgspec.Struct):
    """What an audit found. anchors: those through which the ledger was seen to go."""

    check: LedgerCheck
    replayed: Replayed | None
    anchors: list[Anchor]
    bad: BadEntry | None


async def audit(
    ledger: Ledger,
    within: Range,
    replayer: Replayer | None,
    anchors: Sequence[Anchor],
    progress: Callable[[int, str], None],
) -> AuditFound:
    """Read and check all entries of the range, from the beginning of its first segment.

    Raises: BusError; ArchiveError.
    """
    check = LedgerCheck(ledger.shard)
    watch = _AnchorWatch(anchors, ledger.shard)
    for segment in await segments_from(ledger, within):
        check.begin(segment)
        is_over = in_batch = False
        async with aclosing(ledger.entries(segment)) as batches:
            async for batch in batches:
                for stored in batch:
                    # Its headers are looked at again and again.
                    message = msgspec.structs.replace(stored, headers=dict(stored.headers))
                    # A batch that has begun in the range is read to its end: what it says holds only as a whole.
                    if within.is_over(message) and not in_batch:
                        is_over = True
                        break
                    entry = _entry(message)
                    in_batch = entry is not None and not isinstance(entry, LeaderElected) and inputs_of(entry) is None
                    found = check.segments[-1]
                    counts = not found.abandoned  # what follows such an end is not looked at
                    if replayer is not None and entry is not None and counts and check.bad is None and not replayer.bad:
                        await replayer.add(message, entry, segment, check.world)
                    check.add([message])
                    if counts and found.bad is None:
                        watch.add(message, segment)
                progress(len(batch), f"of segment {segment}")
                if is_over:
                    break
        check.end()
        if is_over:
            break
    if replayer is not None:
        replayer.end()
    bad = [each for each in (check.bad, replayer.bad if replayer is not None else None, watch.bad()) if each]
    first = min(bad, key=lambda each: (each.segment, each.sequence), default=None)
    return AuditFound(check, replayer.found if replayer is not None else None, watch.met, first)


class _AnchorWatch:
    """Does the ledger go through what was anchored?"""

    def __init__(self, anchors: Sequence[Anchor], shard: str) -> None:
        self._anchors: dict[int, list[Anchor]] = {}
        for each in sorted(anchors, key=lambda each: each.ledger_sequence):
            self._anchors.setdefault(each.ledger_sequence, []).append(each)
        self._shard = shard
        self._bad: BadEntry | None = None
        self._first = self._last = 0
        self.met: list[Anchor] = []

    def add(self, message: StoredMessage, segment: int) -> None:
        """An entry of which the chain was found to be right: its header alone says nothing."""
        self._first, self._last = self._first or message.stream_sequence, message.stream_sequence
        for anchor in self._anchors.get(message.stream_sequence, ()):
            problem = self._problem(message, segment, anchor)
            if not problem:
                self.met.append(anchor)
            elif self._bad is None:
                self._bad = BadEntry(segment, message.stream_sequence, message.subject, problem)

    def _problem(self, message: StoredMessage, segment: int, anchor: Anchor) -> str:
        if (self._shard, segment) != (anchor.shard, anchor.segment):
            here, there = f"segment {segment} of {self._shard}", f"segment {anchor.segment} of {anchor.shard}"
            return f"it stands in {here}, and an entry in {there} was anchored at {anchor.time}"
        found = chain_of(message)
        if not found or found != anchor.chain:
            return (
                f"its chain is {found[:16] or 'none'}..., and {anchor.chain[:16]}... was anchored at {anchor.time}: the"
                " ledger was written anew before it"
            )
        return ""

    def bad(self) -> BadEntry | None:
        """The first anchor through which the ledger does not go."""
        if self._bad is not None:
            return self._bad
        for anchor in (each for same in self._anchors.values() for each in same):
            if anchor not in self.met:
                text = (
                    f"an entry was anchored there at {anchor.time}, and what was read, and is as it must be, is"
                    f" {self._first} to {self._last}"
                )
                return BadEntry(anchor.segment, anchor.ledger_sequence, "", text)
        return None


def _entry(message: StoredMessage) -> AnyEntry | None:
    try:
        return decode_entry(message.payload)
    except WireError:
        return None  # which the check says
