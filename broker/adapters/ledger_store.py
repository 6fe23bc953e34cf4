"""The ledger at the edge: read it, and append to it by compare-and-append.

Whether a batch is in the ledger is never concluded from an error: whatever came but a clean ack, the ledger's tail is
read, from the stream's leader. What the entries say is not known here.
"""

import logging
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from itertools import pairwise

import anyio
import msgspec

from broker.adapters.errors import BatchTooLargeError, LedgerGoneError, LedgerTornError
from broker.adapters.streams import STREAM_NOT_FOUND
from schemas.client.batch import PubAck, as_batch, send_in_order
from schemas.client.connection import REQUEST_DEADLINE_S, Connection
from schemas.client.errors import BusRefusedError, BusUnavailableError, StreamGapError
from schemas.client.reader import StreamReader
from schemas.wire.bus import OutgoingMessage, StoredMessage

_log = logging.getLogger(__name__)

BATCH_MESSAGES_MAX = 1000  # nats-server refuses a larger one (error 10199)
BATCH_BYTES = 8 * 1024 * 1024  # of those that we may cut as we like: sent well within the deadline
APPEND_DEADLINE_S = 5.0
RETRY_AFTER_S = 10.0  # nats-server drops an unfinished batch 10 s after its last message
LOOK_AGAIN_S = 0.5
LOOK_DEADLINE_S = 2.0  # while servers elect a leader a question stays unanswered: ask again rather than wait


class Committed(msgspec.Struct, frozen=True):
    """The batch is in the ledger, once, and ends at `last_sequence`."""

    last_sequence: int


class Refused(msgspec.Struct, frozen=True):
    """The batch is not in the ledger and never will be: something else follows the expected last entry.

    last_sequence: of the ledger; below the expected one if the ledger has lost entries.
    """

    last_sequence: int


class Uncertain(msgspec.Struct, frozen=True):
    """Nothing follows the expected last entry yet, or nobody answers: the batch may still land.

    visible: how many of its messages are there already; more than 0 for long means that the ledger is damaged.
    """

    reason: str
    visible: int = 0


AppendResult = Committed | Refused | Uncertain


class LedgerStore:
    """One segment of a ledger: an append-only stream with `allow_atomic`."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self._reader = StreamReader(connection, stream)
        self.stream = stream

    async def last_sequence(self, deadline_s: float = REQUEST_DEADLINE_S) -> int:
        """Of the last entry, as the stream's leader has it. Raises: BusUnavailableError, BusRefusedError."""
        return (await self._reader.state(deadline_s)).last_sequence

    async def read_all(self, after: int = 0) -> AsyncGenerator[list[StoredMessage], None]:
        """The segment from its first entry after `after` to its last; otherwise as `read`."""
        state = await self._reader.state()
        async with aclosing(self.read(max(after, state.first_sequence - 1))) as batches:
            async for batch in batches:
                yield batch

    async def read(self, after: int, until: int | None = None) -> AsyncGenerator[list[StoredMessage], None]:
        """The entries after `after`, up to and with `until` (None: the last one there is now), in batches.

        Close it (`contextlib.aclosing`) when you stop before its end.
        Raises: StreamGapError if one is missing; StreamLostError; BusUnavailableError; BusRefusedError.
        """
        position = after
        async with aclosing(self._reader.read(after, until)) as batches:
            async for batch in batches:
                for message in batch:
                    position += 1
                    if message.stream_sequence != position:
                        raise StreamGapError(self.stream, position, message.stream_sequence)
                yield batch

    async def at(self, sequence: int) -> StoredMessage | None:
        """The entry that stands there, as the stream's leader has it.

        Raises: LedgerGoneError; BusUnavailableError; BusRefusedError.
        """
        try:
            return await self._reader.at(sequence)
        except BusRefusedError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise LedgerGoneError(self.stream) from error
            raise

    async def has(self, sequence: int, message: StoredMessage | OutgoingMessage) -> bool:
        """Whether that entry stands there; otherwise as `at`."""
        stored = await self.at(sequence)
        return stored is not None and _is_same(stored, message)

    async def append(
        self, messages: Sequence[OutgoingMessage], expected_last: int, deadline_s: float = APPEND_DEADLINE_S
    ) -> AppendResult:
        """Append `messages` as one atomic batch, if the ledger ends at `expected_last`.

        messages: 1 to 1,000, in order; their ids (`Nats-Msg-Id`) differ. The batch says who wrote it: one of equal
            content by another leader could not be told apart.
        deadline_s: for the ack; then the tail is looked at.
        Returns: Uncertain when the batch may still land: append the very same again (`append_until_known`).
        Raises: BatchTooLargeError, MessageTooLargeError (nothing was sent); LedgerTornError.
        """
        reason = f"no ack within {deadline_s:g} s"
        with anyio.move_on_after(deadline_s):
            try:
                ack = await self._send(messages, expected_last, deadline_s)
                # A duplicate's ack names what is stored already: not for us to believe.
                if ack.stream == self.stream and ack.seq == expected_last + len(messages) and not ack.duplicate:
                    return Committed(ack.seq)
                reason = f"the server's ack does not fit: {ack}"
            except (BusUnavailableError, BusRefusedError) as error:
                reason = str(error)
        return await self.look(messages, expected_last, reason, min(deadline_s, LOOK_DEADLINE_S))

    async def append_until_known(
        self,
        messages: Sequence[OutgoingMessage],
        expected_last: int,
        deadline_s: float = APPEND_DEADLINE_S,
        retry_after_s: float = RETRY_AFTER_S,
    ) -> Committed | Refused:
        """Append the batch, the same one again and again, until it is known what became of it.

        It goes on for as long as NATS does not answer: cancel it to give up leading.
        retry_after_s: from a failed try to the next, so that the server has dropped the first; the tail is looked at
            meanwhile.
        Raises: BatchTooLargeError, MessageTooLargeError, LedgerTornError.
        """
        while True:
            result = await self.append(messages, expected_last, deadline_s)
            if not isinstance(result, Uncertain):
                return result
            reason = result.reason
            _log.warning("append to %s after %d is uncertain: %s", self.stream, expected_last, reason)
            with anyio.move_on_after(retry_after_s):
                while isinstance(result, Uncertain):
                    await anyio.sleep(min(LOOK_AGAIN_S, retry_after_s / 4))
                    result = await self.look(messages, expected_last, reason, LOOK_DEADLINE_S)
            if not isinstance(result, Uncertain):
                return result
            if result.visible:
                raise LedgerTornError(self.stream, expected_last + 1, result.visible, len(messages))

    @property
    def takes_rows(self) -> bool:
        """Whether `append_in_a_row` may be used, and is worth it.

        Not in a cluster of servers: each of them compares ids with what it remembers itself, and a batch is kept in
        memory there.
        """
        return not self._connection.is_clustered

    async def append_in_a_row(
        self, messages: Sequence[OutgoingMessage], expected_last: int, deadline_s: float = APPEND_DEADLINE_S
    ) -> bool:
        """Append each message as a batch by itself, without waiting in between; says whether all are in the ledger.

        Each expects the one before it, by its id: by its number alone it could follow another leader's. So the last
        one's ack is for all. False: nobody knows which of them are there or may land yet; ask that of one after the
        other (`append_until_known`).
        Only where `takes_rows`. Raises: MessageTooLargeError; nothing was sent.
        """
        row = [_expecting(messages[0], expected_last)]
        for before, message in pairwise(messages):
            row.append(_expecting(message, expected_last + len(row), before.message_id))
        try:
            ack = await send_in_order(self._connection, row, f"a row for {self.stream}", deadline_s)
            # A duplicate's ack names what is stored already: not for us to believe.
            return ack.stream == self.stream and ack.seq == expected_last + len(messages) and not ack.duplicate
        except (BusUnavailableError, BusRefusedError) as error:
            _log.debug("nobody knows which of %d entries after %d are stored: %s", len(messages), expected_last, error)
        return False

    async def look(
        self, messages: Sequence[OutgoingMessage], expected_last: int, reason: str, deadline_s: float
    ) -> AppendResult:
        """What the ledger's tail says of the batch, entry for entry.

        reason: why we have to look; what an Uncertain repeats.
        deadline_s: for each question to the stream's leader; a batch that is there is then read without a deadline,
            for as long as entries come.
        Raises: LedgerTornError, StreamGapError, StreamLostError: the ledger is damaged; LedgerGoneError.
        """
        end = expected_last + len(messages)
        try:
            first = await self._reader.at(expected_last + 1, deadline_s)
            last = await self.last_sequence(deadline_s)
            if first is None:
                # Below what we have read ourselves: entries are lost, and nothing can be appended after them.
                return Refused(last) if last < expected_last else Uncertain(reason)
            if not _is_same(first, messages[0]):
                return Refused(last)
            if last < end:
                return Uncertain(reason, visible=max(1, last - expected_last))
            async with aclosing(self.read(expected_last, end)) as batches:
                async for batch in batches:
                    for stored in batch:
                        index = stored.stream_sequence - expected_last - 1
                        if not _is_same(stored, messages[index]):
                            raise LedgerTornError(self.stream, expected_last + 1, index, len(messages))
            return Committed(end)
        except BusRefusedError as error:
            if error.err_code == STREAM_NOT_FOUND:
                raise LedgerGoneError(self.stream) from error
            return Uncertain(f"{reason}; then the tail could not be read: {error}")
        except BusUnavailableError as error:
            return Uncertain(f"{reason}; then the tail could not be read: {error}")

    async def _send(self, messages: Sequence[OutgoingMessage], expected_last: int, deadline_s: float) -> PubAck:
        """Send the batch and wait for its ack.

        One message is stored whole anyway, and as no batch it costs a server that keeps one replica a fifth: of a batch
        it makes a store on disk first.
        Raises: BatchTooLargeError, MessageTooLargeError before anything is sent.
        """
        assert messages, "a batch holds at least its inputs entry"
        if len(messages) > BATCH_MESSAGES_MAX:
            raise BatchTooLargeError(len(messages), BATCH_MESSAGES_MAX)
        ids = [message.message_id for message in messages if message.message_id]
        assert len(ids) == len(set(ids)), "a batch that repeats a message id is refused for ever"
        sent = [_expecting(messages[0], expected_last), *messages[1:]]
        if len(sent) > 1:
            sent = as_batch(sent, self._connection.unique_name())
        return await send_in_order(self._connection, sent, f"the batch for {self.stream}", deadline_s)


def _expecting(message: OutgoingMessage, last_sequence: int, last_id: str = "") -> OutgoingMessage:
    """The message, which is stored only if the ledger ends there, and with the message of that id."""
    headers = {**message.headers, "Nats-Expected-Last-Sequence": str(last_sequence)}
    if last_id:
        headers["Nats-Expected-Last-Msg-Id"] = last_id
    return msgspec.structs.replace(message, headers=headers)


def as_batches(messages: Sequence[OutgoingMessage]) -> Iterator[list[OutgoingMessage]]:
    """Messages that need not be stored at once, such as a checkpoint's, in batches that the server takes."""
    batch: list[OutgoingMessage] = []
    size = 0
    for message in messages:
        if batch and (len(batch) == BATCH_MESSAGES_MAX or size + len(message.payload) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += len(message.payload)
    if batch:
        yield batch


def _is_same(stored: StoredMessage, message: StoredMessage | OutgoingMessage) -> bool:
    # Its id is not enough: a leader whose last entries are lost writes others with the same numbers.
    return (
        stored.subject == message.subject
        and stored.payload == message.payload
        and stored.message_id == message.message_id
    )
