"""State messages on their way to NATS: one by one, and many at once where many wait.

A server that syncs always writes each message to its disk before the next one is stored, which takes milliseconds; a
batch takes some tens, however many messages it has. So few are stored sooner one by one, and a cluster's thousands of
objects in batches.
"""

import re
import time
from collections import deque
from collections.abc import Sequence
from typing import TypeAlias

import anyio
import msgspec

from schemas.client.batch import as_batch, send_in_order
from schemas.client.connection import Connection
from schemas.client.errors import BusRefusedError, BusUnavailableError
from schemas.wire.bus import OutgoingMessage, one_line, pack
from schemas.wire.subjects import STATE_STREAM

WRONG_LAST_SEQUENCE = 10071
WRONG_LAST_SEQUENCES = (WRONG_LAST_SEQUENCE, 10164)  # the latter of a replicated stream, without the right one
NO_BATCHES = 10174  # the stream takes none
ONE_BY_ONE_MOST = 16  # under way at once
BATCH_FROM = 32  # messages that wait
BATCH_MOST = 200
BATCH_BYTES = 4 * 1024 * 1024
WITHOUT_BATCHES_S = 60.0  # where the stream takes none
BATCH_AGAIN_S = 1.0  # after one was refused for another reason than what it says, as when others have 50 under way
WITHOUT_BATCHES_MOST = 64  # one by one, then


# What a batch adds to the headers of a message, at most.
_LONGEST = {"Nats-Batch-Id": "x" * 22, "Nats-Batch-Sequence": "200", "Nats-Batch-Commit": "1"}


class Published(msgspec.Struct, frozen=True):
    """The message is stored.

    is_duplicate: a message of this id was there already and nothing new was stored: right for a publish that was tried
    again, the trap for a new one that repeats an id.
    """

    stream_sequence: int
    is_duplicate: bool = False


class RefusedBySubject(msgspec.Struct, frozen=True):
    """The subject's last message is another one than expected, of `last_sequence` or later. Read it again."""

    last_sequence: int


class Uncertain(msgspec.Struct, frozen=True):
    """The message may be stored, now or later. Read the subject again."""

    reason: str


Result: TypeAlias = Published | RefusedBySubject | Uncertain


class _Waiting:
    """A message that is to be stored.

    turn: it may be sent now, or has its result. batch: those that are to be sent together with it, by it.
    is_known: it has the result of its batch.
    """

    __slots__ = ("batch", "is_known", "is_single", "message", "result", "turn")

    def __init__(self, message: OutgoingMessage) -> None:
        self.message = message
        self.turn = anyio.Event()
        self.batch: list[_Waiting] = []
        self.is_known = False
        self.is_single = False
        self.result: Result | None = None


class StatePublisher:
    """Stores messages in DRA_STATE, each if its subject's last message is the one that is expected.

    Whoever publishes sends, so that nothing runs when nothing is published: his own message, or as the first of a
    batch those of the others, too.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._waiting: deque[_Waiting] = deque()
        self._singles = 0  # under way
        self._has_batch = False  # under way
        self._untold = 0  # results of batches that are known
        self._batches_from = 0.0  # time.monotonic() from which they may be tried
        self.batches = 0  # stored

    async def publish(self, message: OutgoingMessage, expected_last_subject_sequence: int, deadline_s: float) -> Result:
        """See AgentBus.publish_state."""
        packed = pack(message)
        expected = {"Nats-Expected-Last-Subject-Sequence": str(expected_last_subject_sequence)}
        headers = one_line({**packed.headers, **expected})
        self._connection.check_size(packed.subject, packed.payload, headers | _LONGEST)
        this = _Waiting(msgspec.structs.replace(packed, headers=headers))
        self._waiting.append(this)
        self._go_on()
        try:
            if not this.turn.is_set():
                await this.turn.wait()
            if this.batch:
                batch, this.batch = this.batch, []
                await self._store_batch(batch, deadline_s)
            if this.result is None:
                this.result = await self._store(this, deadline_s)
            return this.result
        finally:
            self._leave(this)

    @property
    def is_telling(self) -> bool:
        """Some have heard of a batch, and others of what was stored after it perhaps, but not yet all of the batch."""
        return self._untold > 0

    def _go_on(self) -> None:
        """Let those go whose turn it is."""
        takes_batches = time.monotonic() >= self._batches_from
        if takes_batches and len(self._waiting) >= BATCH_FROM:
            if not self._has_batch:
                self._has_batch = True
                batch = self._next_batch()
                batch[0].batch = batch
                batch[0].turn.set()
            return
        most = ONE_BY_ONE_MOST if takes_batches else WITHOUT_BATCHES_MOST
        while self._waiting and self._singles < most:
            this = self._waiting.popleft()
            self._singles += 1
            this.is_single = True
            this.turn.set()

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < BATCH_MOST and size < BATCH_BYTES:
            this = self._waiting.popleft()
            batch.append(this)
            size += len(this.message.payload)
        return batch

    def _leave(self, this: _Waiting) -> None:
        """It is done, or was given up."""
        self._untold -= this.is_known
        if not this.turn.is_set():
            if this in self._waiting:
                self._waiting.remove(this)
        elif this.batch:
            self._end_batch(this.batch)
        elif this.is_single:
            self._singles -= 1
        self._go_on()

    def _end_batch(self, batch: Sequence[_Waiting]) -> None:
        """Who has no result sends itself; if it was stored after all, the server knows its id."""
        self._has_batch = False
        for each in batch:
            each.is_known = each.result is not None
            self._untold += each.is_known
            each.turn.set()
        self._go_on()

    async def _store(self, this: _Waiting, deadline_s: float) -> Result:
        try:
            ack = await send_in_order(self._connection, [this.message], f"state on {this.message.subject}", deadline_s)
        except BusRefusedError as error:
            if error.err_code != WRONG_LAST_SEQUENCE:
                return Uncertain(str(error))
            found = re.search(r"\d+$", error.description)  # "wrong last sequence: 5"
            return RefusedBySubject(int(found[0]) if found else 0)
        except BusUnavailableError as error:
            return Uncertain(str(error))
        if ack.stream != STATE_STREAM or not ack.seq:
            return Uncertain(f"the server's ack does not fit: {ack}")
        return Published(ack.seq, ack.duplicate)

    async def _store_batch(self, batch: Sequence[_Waiting], deadline_s: float) -> None:
        """All of them or none. Where they were refused they have no result afterwards."""
        try:
            await self._try_batch(batch, deadline_s)
        finally:
            self._end_batch(batch)

    async def _try_batch(self, batch: Sequence[_Waiting], deadline_s: float) -> None:
        messages = as_batch([each.message for each in batch], self._connection.unique_name())
        result: Uncertain
        with anyio.move_on_after(deadline_s):
            await self._connection.wait_until_up()
        losses = self._connection.losses
        try:
            ack = await send_in_order(self._connection, messages, f"state of {len(batch)} objects", deadline_s)
        except BusRefusedError as error:
            if losses == self._connection.losses and error.err_code not in WRONG_LAST_SEQUENCES:
                again_s = WITHOUT_BATCHES_S if error.err_code == NO_BATCHES else BATCH_AGAIN_S
                self._batches_from = time.monotonic() + again_s
            return
        except BusUnavailableError as error:
            result = Uncertain(str(error))
        else:
            if ack.stream == STATE_STREAM and ack.count == len(batch) <= ack.seq:
                self.batches += 1
                for each, sequence in zip(batch, range(ack.seq - len(batch) + 1, ack.seq + 1), strict=True):
                    each.result = Published(sequence)
                return
            result = Uncertain(f"the server's ack does not fit a batch of {len(batch)}: {ack}")
        for each in batch:
            each.result = result
