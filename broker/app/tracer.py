"""Follows both logs and sends what was done for claims to a collector, as spans. It writes nothing to NATS.

It is safe to kill: how far it has come is kept after the collector has taken the spans, and what a run before this one
has sent is known by the messages that it was made from. Spans of the last moment before a kill may be sent again: their
ids are the same, so they are the same spans. The claims' lives up to there are read again at a start, from the ledger's
segment and from what DRA_STATE has.
"""

import logging
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import anyio
import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge

from broker.adapters.log_reader import WINDOW, LogReader
from broker.adapters.streams import ledger_segments
from broker.tracing import EntryFacts, Episode, Span, Stories, TraceProblem
from broker.tracing.facts import entry_facts
from schemas.client.connection import Connection
from schemas.client.errors import BusRefusedError, BusUnavailableError, StreamLostError
from schemas.client.reader import StreamReader
from schemas.errors import UNREADABLE
from schemas.wire.ledger import SegmentClosed
from schemas.wire.subjects import PREFIX, STATE_STREAM, ledger_stream

_log = logging.getLogger(__name__)

CLAIMS = f"{PREFIX}.state.*.claim.>"
GATHER_S = 0.5  # from one look for news of the ledger to the next
WAIT_S = 0.05  # for a message of DRA_STATE that is there, as an entry says
RETRY_FIRST_S, RETRY_MOST_S = 1.0, 30.0
SPANS_AT_ONCE = 512  # as the SDK's own processors send them
STATE_DEADLINE_S = 30.0


class Progress(msgspec.Struct, frozen=True):
    """All that is made from messages up to these sequences has been sent."""

    ledger: int = 0
    state: int = 0

    def covers(self, episode: Episode) -> bool:
        """Whether a run before this one has sent it."""
        return episode.ledger_sequence <= self.ledger and episode.state_sequence <= self.state


class ProgressFile:
    """Keeps the progress in a file of a directory, whole or as it was before."""

    def __init__(self, directory: Path | None) -> None:
        """directory: None keeps nothing."""
        self._path = directory / "tracer.json" if directory is not None else None

    def prepare(self) -> None:
        """Make the directory and write to it, so that who cannot learns it at once. Raises: OSError."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._path.parent) as file:
            file.write(b"{}")

    def read(self) -> Progress | None:
        """None where nothing was kept. Raises: OSError; ValueError if the file is not ours."""
        if self._path is None or not self._path.exists():
            return None
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Progress)
        except UNREADABLE as error:
            raise ValueError(f"{self._path} does not say how far a tracer has come: {error}") from error

    def write(self, progress: Progress) -> None:
        """Raises: OSError."""
        if self._path is None:
            return
        beside = self._path.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(msgspec.json.encode(progress))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._path)


class TracerSettings(msgspec.Struct, frozen=True):
    """ratio: of traces to keep, 0 to 1; what is unusual, or took `slow_us`, is kept in any case.

    from_start: where nothing is known of a run before, begin with all that is kept instead of with what comes.
    """

    shard: str
    ratio: float = 1.0
    slow_us: int = 1_000_000
    from_start: bool = False


class TracerMetrics:
    """Of one tracer, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.spans = Counter("dragoman_tracer_spans", "Spans that the collector took.", registry=self.registry)
        self.dropped = Counter(
            "dragoman_tracer_dropped", "Spans that were not kept, by the ratio.", registry=self.registry
        )
        self.failures = Counter(
            "dragoman_tracer_export_failures", "Times that the collector did not take spans.", registry=self.registry
        )
        self.problems = Counter(
            "dragoman_tracer_problems", "Parts of messages that cannot be used.", ["code"], registry=self.registry
        )
        self.ledger = Gauge(
            "dragoman_tracer_ledger_sequence", "The last entry of which all is sent.", registry=self.registry
        )


class Tracer:
    """export: takes spans, or says that it did not."""

    def __init__(
        self,
        connection: Connection,
        export: Callable[[Sequence[Span]], Awaitable[bool]],
        progress: ProgressFile,
        settings: TracerSettings,
    ) -> None:
        self._connection = connection
        self._export = export
        self._file = progress
        self._settings = settings
        self.metrics = TracerMetrics()
        self._done = Progress()
        self._told: dict[str, str] = {}  # the last problem of each code, told once
        self.is_exporting = True  # the last try went well

    async def run(self) -> None:
        """Until cancelled. Raises: OSError or ValueError where the progress cannot be kept or read."""
        found = self._file.read()
        if found is not None:
            self._done = found
        elif not self._settings.from_start:
            self._done = await self._until_available(self._now)
        _log.info("spans are sent of what comes after ledger entry %d", self._done.ledger)
        while True:
            try:
                await self._go_on()
            except (BusUnavailableError, BusRefusedError, StreamLostError) as error:
                _log.warning("reading again what claims have gone through: %s", error)
            await anyio.sleep(RETRY_FIRST_S)

    async def _now(self) -> Progress:
        segments = await ledger_segments(self._connection, self._settings.shard)
        last = 0
        if segments:
            last = (
                await StreamReader(self._connection, ledger_stream(self._settings.shard, segments[-1])).state()
            ).last_sequence
        return Progress(last, (await StreamReader(self._connection, STATE_STREAM).state()).last_sequence)

    async def _go_on(self) -> None:
        """Read all lives again up to where we are, and go on. Returns when no segment is there to follow."""
        segment: int | None = await self._segment_of(self._done.ledger)
        stories = Stories(self._tell)
        states = LogReader(self._connection, STATE_STREAM, CLAIMS)
        while segment is not None:
            segment = await self._follow_segment(segment, stories, states)

    async def _segment_of(self, cursor: int) -> int | None:
        """The last segment that begins at or before the entry after `cursor`, or the first that is still there."""
        segments = await ledger_segments(self._connection, self._settings.shard)
        for segment in reversed(segments):
            state = await StreamReader(self._connection, ledger_stream(self._settings.shard, segment)).state()
            if state.first_sequence <= cursor + 1 and state.messages:
                return segment
        return segments[0] if segments else None

    async def _follow_segment(self, segment: int, stories: Stories, states: LogReader) -> int:
        """Send what its entries tell; returns the next segment when this one is closed."""
        stream = ledger_stream(self._settings.shard, segment)
        first = (await StreamReader(self._connection, stream).state()).first_sequence
        entries = LogReader(self._connection, stream, f"{PREFIX}.ledger.{self._settings.shard}.{segment}.>", first - 1)
        while True:
            found = await entries.take()
            facts = [each for message in found if (each := entry_facts(message, self._tell)) is not None]
            episodes = await self._read_states(stories, states, facts, has_more=len(found) == WINDOW)
            for each in facts:
                episodes += stories.told(each)
            if len(found) < WINDOW:
                stories.forget_over()
            causes = [each.cause for each in facts]
            await self._send(episodes)
            self._note(Progress(entries.position, max(states.position, *causes, 0)))
            for each in facts:
                if isinstance(each.entry, SegmentClosed):
                    return each.entry.next_segment
            if len(found) < WINDOW:
                await anyio.sleep(GATHER_S)

    async def _read_states(
        self, stories: Stories, states: LogReader, facts: Sequence[EntryFacts], *, has_more: bool
    ) -> list[Episode]:
        """What claims said: all that these entries follow from, and where they are the last also what came since."""
        episodes: list[Episode] = []
        needed = max((each.cause for each in facts), default=0)
        if needed > states.position:
            # The last one of a claim, should the message itself be about something else, or have expired.
            last = await StreamReader(self._connection, STATE_STREAM).last(CLAIMS)
            needed = min(needed, last.stream_sequence if last is not None else 0)
            with anyio.move_on_after(STATE_DEADLINE_S):
                while states.position < needed:
                    came = await states.take()
                    episodes += [each for message in came for each in stories.state(message)]
                    if not came:
                        await anyio.sleep(WAIT_S)
            if states.position < needed:
                _log.warning("message %d of %s does not come: spans are made without it", needed, STATE_STREAM)
        while not has_more and (came := await states.take()):
            episodes += [each for message in came for each in stories.state(message)]
        return episodes

    async def _send(self, episodes: Sequence[Episode]) -> None:
        """Return when the collector has all of it."""
        settings = self._settings
        new = [each for each in episodes if not self._done.covers(each)]
        kept = [each for each in new if each.is_kept(settings.ratio, settings.slow_us)]
        spans = [span for each in kept for span in each.spans]
        self.metrics.dropped.inc(sum(len(each.spans) for each in new) - len(spans))
        for begin in range(0, len(spans), SPANS_AT_ONCE):
            part = spans[begin : begin + SPANS_AT_ONCE]
            delay_s = RETRY_FIRST_S
            while not await self._export(part):
                self.metrics.failures.inc()
                if self.is_exporting:
                    _log.warning("the collector does not take spans, trying again until it does")
                self.is_exporting = False
                await anyio.sleep(delay_s)
                delay_s = min(2 * delay_s, RETRY_MOST_S)
            self.is_exporting = True
            self.metrics.spans.inc(len(part))

    def _note(self, reached: Progress) -> None:
        if reached.ledger < self._done.ledger:
            return  # lives are read again: what follows from later entries and from these messages is still to come
        done = Progress(reached.ledger, max(self._done.state, reached.state))
        if done != self._done:
            self._file.write(done)
            self._done = done
        self.metrics.ledger.set(done.ledger)

    def _tell(self, problem: TraceProblem) -> None:
        self.metrics.problems.labels(problem.code).inc()
        if self._told.get(problem.code) != problem.place:
            self._told[problem.code] = problem.place
            _log.warning("%s: %s: %s", problem.code, problem.place, problem.message)

    async def _until_available(self, ask: Callable[[], Awaitable[Progress]]) -> Progress:
        while True:
            try:
                return await ask()
            except (BusUnavailableError, BusRefusedError) as error:
                _log.warning("trying again: %s", error)
            await anyio.sleep(RETRY_FIRST_S)
