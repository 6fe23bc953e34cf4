"""Turns the ledger into the public events of `DRA_EVENTS`: each once, in order, none left out.

The leader runs it. How far the events are is told by the last of them alone, or, when all of them have expired, by when
that was stored; and a batch is appended only if it follows that one: whoever leads next goes on there, and one that was
overtaken notices.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

import anyio

from broker.adapters.errors import LedgerGoneError, LedgerTornError
from broker.adapters.ledger_store import BATCH_MESSAGES_MAX, Committed, LedgerStore
from broker.adapters.streams import STREAM_NOT_FOUND, ledger_segments, stream_end
from broker.machine.public_events import ProjectedEvent, Projection
from schemas.client.connection import Connection
from schemas.client.errors import BusError, BusRefusedError
from schemas.client.follow import follow
from schemas.client.reader import StreamReader
from schemas.events import SOURCE, event_key, event_subject
from schemas.wire.bus import OutgoingMessage, StoredMessage
from schemas.wire.codec import cloud_event_headers, decode_entry, encode
from schemas.wire.ledger import SegmentClosed
from schemas.wire.subjects import EVENTS_STREAM, ledger_stream

_log = logging.getLogger(__name__)

RETRY_S = 1.0  # and then less and less often
RETRY_MOST_S = 8.0
GATHER_S = 0.2
BATCH = min(500, BATCH_MESSAGES_MAX)
GONE = f"{EVENTS_STREAM} is gone: `dragoman nats-setup` makes it again, and then it is filled again; decisions go on"


class Projector:
    """until_calm: returns when the broker has nothing more urgent to do."""

    def __init__(self, connection: Connection, shard: str, until_calm: Callable[[], Awaitable[None]]) -> None:
        self._connection = connection
        self._shard = shard
        self._until_calm = until_calm
        self._events = LedgerStore(connection, EVENTS_STREAM)
        self._last_event = 0  # of the stream
        self._told = ""  # trouble that goes on is told once
        self._retry_s = RETRY_S
        self.projected = 0  # ledger sequence up to which all is told

    async def run(self) -> None:
        """Project until cancelled; begin again where the events are whenever something went wrong."""
        while True:
            try:
                await self._go_on()
            except (BusError, LedgerTornError, _NotReadyError, ValueError) as error:
                if str(error) != self._told:
                    self._told = str(error)
                    _log.warning("events are not projected, trying again: %s", error)
            await anyio.sleep(self._retry_s)
            self._retry_s = min(2 * self._retry_s, RETRY_MOST_S)

    async def _go_on(self) -> None:
        """From after the last event there is. Returns when the ledger goes on without us knowing where."""
        cursor = await self._cursor()
        segment: int | None = await self._segment_of(cursor)
        while segment is not None:
            segment = await self._project_segment(segment, cursor)

    async def _cursor(self) -> int:
        """The ledger sequence up to which all is told; also notes what the next event is to follow."""
        try:
            end = await stream_end(self._connection, EVENTS_STREAM)
            # Asked for after the end: an event that somebody stores in between is then in our way, and we look again.
            # The other way round we would take it for one that we know of.
            last = await StreamReader(self._connection, EVENTS_STREAM).last() if end.messages else None
        except BusRefusedError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise _NotReadyError(GONE) from error
            raise
        if not end.takes_batches:
            raise _NotReadyError(f"{EVENTS_STREAM} takes no atomic batches: `dragoman nats-setup` lets it")
        self._last_event = end.last_sequence
        if last is not None:
            return ledger_sequence_of(last)
        if end.messages:
            raise _NotReadyError(f"the last event of {EVENTS_STREAM} is not there any more")
        return await self._stored_until(end.over_ms) if end.last_sequence else 0

    async def _stored_until(self, time_ms: int) -> int:
        """The sequence of the last entry that the ledger had at this time; below its first one if it had none."""
        first = 1
        for segment in reversed(await ledger_segments(self._connection, self._shard)):
            reader = StreamReader(self._connection, ledger_stream(self._shard, segment))
            state = await reader.state()
            first = state.first_sequence
            if not state.messages or not await _is_stored_until(reader, first, time_ms):
                continue
            low, high = first, state.last_sequence + 1
            while high - low > 1:
                middle = (low + high) // 2
                if await _is_stored_until(reader, middle, time_ms):
                    low = middle
                else:
                    high = middle
            return low
        return first - 1

    async def _segment_of(self, cursor: int) -> int | None:
        """The last segment that begins at or before the entry after `cursor`, or the first that is still there."""
        segments = await ledger_segments(self._connection, self._shard)
        for segment in reversed(segments):
            state = await StreamReader(self._connection, ledger_stream(self._shard, segment)).state()
            if state.first_sequence <= cursor + 1 and state.messages:
                return segment
        return segments[0] if segments else None

    async def _project_segment(self, segment: int, cursor: int) -> int | None:
        """Tell what follows `cursor`; returns the next segment when this one is closed."""
        projection = Projection(self._shard)
        async with aclosing(self._entries(segment)) as batches:
            async for batch in batches:
                events = []
                for message in batch:
                    entry = decode_entry(message.payload)
                    found = projection.project(entry, message.stream_sequence)
                    if found is not None and found.event.ledger_sequence > cursor:
                        events.append(self._outgoing(found, message))
                    if isinstance(entry, SegmentClosed):
                        await self._append(events)
                        return entry.next_segment
                await self._append(events)
                self.projected = batch[-1].stream_sequence
        return None

    async def _entries(self, segment: int) -> AsyncGenerator[list[StoredMessage], None]:
        """All of a segment, and then what comes."""
        stream = ledger_stream(self._shard, segment)
        first = (await StreamReader(self._connection, stream).state()).first_sequence
        async with follow(self._connection, stream, first - 1) as follower:
            while True:
                # A batch costs the server much the same however small it is: what comes within a moment goes together.
                await anyio.sleep(GATHER_S)
                await self._until_calm()
                batch = await follower.next_batch(BATCH)
                assert isinstance(batch, list), "a segment does not expire"
                yield batch

    async def _append(self, events: Sequence[OutgoingMessage]) -> None:
        if not events:
            return
        # Once: another leader's projector makes the very same events, and of ours that may have stored some already. So
        # what is there says nothing of this batch, and whatever became of it the last event tells where to go on.
        try:
            result = await self._events.append(events, self._last_event)
        except LedgerGoneError as error:
            raise _NotReadyError(GONE) from error  # it is not the ledger that is gone
        if not isinstance(result, Committed):
            raise _NotReadyError(f"{EVENTS_STREAM} goes on without us, or nobody knows: {result}")
        self._last_event = result.last_sequence
        if self._told:
            _log.warning("events are projected again")
        self._told, self._retry_s = "", RETRY_S

    def _outgoing(self, found: ProjectedEvent, entry: StoredMessage) -> OutgoingMessage:
        """As the entry was stored then: whoever projects it, the bytes are the same."""
        event = found.event
        headers = cloud_event_headers(
            event,
            event_id=found.event_id,
            source=f"{SOURCE}/{self._shard}",
            subject=event_key(event),
            now_ms=entry.time_ms,
            trace=entry.headers.get("traceparent", ""),
        )
        headers["ce-sequence"] = f"{event.ledger_sequence:020}"  # in the order of text, as the extension has it
        headers["ce-correlationid"] = event_key(event)
        if found.cause:
            headers["ce-causationid"] = f"{self._shard}.{found.cause}"
        return OutgoingMessage(event_subject(event), encode(event), headers)


class _NotReadyError(Exception):
    """Events cannot be appended, or somebody else has appended some."""


async def _is_stored_until(ledger: StreamReader, sequence: int, time_ms: int) -> bool:
    entry = await ledger.at(sequence)
    if entry is None:
        raise _NotReadyError(f"{ledger.stream} has no entry {sequence}")
    return entry.time_ms <= time_ms


def ledger_sequence_of(event: StoredMessage) -> int:
    """Of the entry that it tells of. Raises: ValueError if it is no event of ours."""
    text = event.headers.get("ce-sequence", "")
    if not text.isdigit():
        raise ValueError(f"message {event.stream_sequence} of {EVENTS_STREAM} has no ce-sequence: it is not ours")
    return int(text)
