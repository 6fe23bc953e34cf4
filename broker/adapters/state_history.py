"""DRA_STATE as it was: what is still there of it, and whether that is all that there was."""

from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Sequence
from types import TracebackType

import msgspec

from broker.adapters.streams import PER_SUBJECT
from schemas.client.connection import Connection, read_answer
from schemas.client.follow import stream_state
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.subjects import STATE_STREAM

PAGE_S = 30.0  # for the answer with the counts of some 100,000 subjects


class InputsExpiredError(Exception):
    """Messages are not there any more. before: the stream has nothing before this sequence, or lacks some there."""

    def __init__(self, before: int) -> None:
        super().__init__(f"inputs expired before message {before} of {STATE_STREAM}")
        self.before = before


class _Config(msgspec.Struct):
    max_age: int = 0


class _State(msgspec.Struct):
    subjects: dict[str, int] | None = None


class _Page(msgspec.Struct):
    config: _Config
    state: _State
    total: int = 0


class Kept(msgspec.Struct, frozen=True):
    """What DRA_STATE holds at some moment.

    first_time_ms: when the first message was stored. age_ms: how old one may become.
    """

    first_sequence: int
    last_sequence: int
    first_time_ms: int
    age_ms: int


class StateHistory:
    """Reads the log once through after `begin_at`, as often as one likes, while it grows and expires. A context.

    kept: as it was at the end of `up_to`, or at the last `begin_at`.
    """

    kept: Kept

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reader = StreamReader(connection, STATE_STREAM)
        self._batches: AsyncGenerator[list[StoredMessage], None] | None = None
        self._there: list[StoredMessage] = []
        self._position = 0
        self._full: tuple[int, frozenset[str]] | None = None  # when the stream ended there
        self._age_ms = 0

    async def __aenter__(self) -> "StateHistory":
        """Raises: BusUnavailableError, BusRefusedError."""
        self._age_ms = (await self._page("", 0)).config.max_age // 1_000_000
        self.kept = await self._look()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def up_to(self, position: int, tell: Callable[[Sequence[StoredMessage]], None]) -> set[str]:
        """Tell of all that is there up to `position`; returns those subjects of which messages before may be missing.

        Raises: BusUnavailableError, BusRefusedError, StreamLostError.
        """
        subjects: set[str] = set()
        count = 0
        await self.begin_at(0)
        while self._position < position:
            batch = await self._some(position)
            if not batch:
                break
            subjects.update([message.subject for message in batch])
            count += len(batch)
            tell(batch)
        if count == position - self.kept.first_sequence + 1:
            return set()
        self.kept = await self._look()  # what has expired meanwhile was perhaps not told
        # A subject keeps its last messages: one that has as many as it may, all of them later, may have had others.
        return set(await self._full_subjects()) - subjects

    async def begin_at(self, position: int) -> None:
        """`after` goes on from here."""
        await self._close()
        self.kept = await self._look()
        self._there, self._position = [], position
        self._batches = self._reader.read(position)

    async def after(self, until: int) -> list[StoredMessage]:
        """All messages since the last that was given, up to `until`.

        Raises: InputsExpiredError if one is missing; BusUnavailableError, BusRefusedError, StreamLostError.
        """
        found: list[StoredMessage] = []
        position, is_new = self._position, False
        while position < until:
            batch = await self._some(until)
            if not batch and not is_new:  # a read ends where the log ended when it began
                await self.begin_at(position)
                is_new = True
                continue
            is_new = False
            expected = position + 1
            for message in batch:
                if message.stream_sequence != expected:
                    raise InputsExpiredError(message.stream_sequence)
                expected += 1
            if not batch:
                raise InputsExpiredError(max(until + 1, self.kept.first_sequence))
            found += batch
            position = batch[-1].stream_sequence
        return found

    async def _some(self, until: int) -> list[StoredMessage]:
        """The next messages up to `until`; [] if there is none."""
        assert self._batches is not None
        if not self._there:
            try:
                self._there = await anext(self._batches)
            except StopAsyncIteration:
                return []
        count = bisect_right(self._there, until, key=lambda message: message.stream_sequence)
        batch, self._there = self._there[:count], self._there[count:]
        self._position = batch[-1].stream_sequence if batch else until
        return batch

    async def _full_subjects(self) -> frozenset[str]:
        if self._full is None or self._full[0] != self.kept.last_sequence:
            full: list[str] = []
            at, total = 0, 1
            while at < total:
                page = await self._page(">", at)
                counts = page.state.subjects or {}
                full += [subject for subject, count in counts.items() if count >= PER_SUBJECT]
                at, total = at + max(len(counts), 1), page.total
            self._full = self.kept.last_sequence, frozenset(full)
        return self._full[1]

    async def _look(self) -> Kept:
        first: StoredMessage | None = None
        while first is None:
            state = await stream_state(self._connection, STATE_STREAM)
            if not state.messages:
                return Kept(state.first_sequence, state.last_sequence, 0, self._age_ms)
            first = await self._reader.at(state.first_sequence)  # None: it has expired just now
        return Kept(state.first_sequence, state.last_sequence, first.time_ms, self._age_ms)

    async def _page(self, subjects: str, offset: int) -> _Page:
        asked = {"subjects_filter": subjects, "offset": offset} if subjects else {}
        request = f"STREAM.INFO.{STATE_STREAM}"
        return read_answer(request, await self._connection.api(request, asked, deadline_s=PAGE_S), _Page)

    async def _close(self) -> None:
        if self._batches is not None:
            await self._batches.aclose()
            self._batches = None
