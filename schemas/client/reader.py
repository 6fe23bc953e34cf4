"""Read what a stream holds: one message, a range, the last message of each subject.

Single messages come from the stream's leader (STREAM.MSG.GET), never from a replica that may lag. Only `direct_last`
asks any replica (DIRECT.GET): that is what can be permitted subject by subject, and so all that agents may. Many
come through a consumer, whose replica may lag too: so they are read up to a sequence that the leader has named.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

import anyio
import msgspec

from schemas.client.connection import REQUEST_DEADLINE_S, Connection, read_answer
from schemas.client.errors import BusRefusedError, BusUnavailableError
from schemas.client.follow import PositionExpired, StreamState, follow, stream_state
from schemas.wire.bus import StoredMessage, stored_from_api, stored_from_direct_get
from schemas.wire.subjects import PREFIX

NO_MESSAGE_FOUND = 10037
PROGRESS_DEADLINE_S = 30.0  # a read of many messages ends when none came for so long
FILTERS_MAX = 200  # subjects in one consumer's filter


class _Got(msgspec.Struct):
    message: msgspec.Raw


class StreamReader:
    """Reads one stream; holds nothing, so any number of tasks may use it."""

    def __init__(self, connection: Connection, stream: str) -> None:
        self._connection = connection
        self.stream = stream

    async def state(self, deadline_s: float = REQUEST_DEADLINE_S) -> StreamState:
        """Where the stream begins and ends. Raises: BusUnavailableError, BusRefusedError."""
        return await stream_state(self._connection, self.stream, deadline_s)

    async def at(self, sequence: int, deadline_s: float = REQUEST_DEADLINE_S) -> StoredMessage | None:
        """The message at `sequence`, as the leader has it. Raises: BusUnavailableError, BusRefusedError."""
        return await self._get({"seq": sequence}, deadline_s)

    async def last(self, subject: str = ">", deadline_s: float = REQUEST_DEADLINE_S) -> StoredMessage | None:
        """The last message on `subject`, wildcards allowed, as the leader has it.

        Raises: BusUnavailableError, BusRefusedError.
        """
        return await self._get({"last_by_subj": subject}, deadline_s)

    async def _get(self, what: dict[str, Any], deadline_s: float) -> StoredMessage | None:
        request = f"STREAM.MSG.GET.{self.stream}"
        try:
            answer = await self._connection.api(request, what, deadline_s=deadline_s)
        except BusRefusedError as error:
            if error.err_code == NO_MESSAGE_FOUND:
                return None
            raise
        try:
            return stored_from_api(read_answer(request, answer, _Got).message)
        except ValueError as error:
            raise BusUnavailableError(f"NATS' answer to {request} cannot be read: {error}") from error

    async def read(
        self, after: int, until: int | None = None, filters: Sequence[str] = ()
    ) -> AsyncGenerator[list[StoredMessage], None]:
        """What the stream holds after `after`, up to and with `until` (None: what it holds now), in order, in batches.

        Close it (`contextlib.aclosing`) when you stop before its end.
        Raises: BusUnavailableError when nothing comes for 30 s; StreamLostError; BusRefusedError.
        """
        last = await self._last_of(filters)
        end = last if until is None else min(last, until)
        if after >= end:
            return
        async with follow(self._connection, self.stream, after, filters) as follower:
            position = after
            while position < end:
                batch = await _soon(follower.next_batch(), self.stream)
                position = batch[-1].stream_sequence
                if until is not None and position > until:
                    batch = [message for message in batch if message.stream_sequence <= until]
                if batch:
                    yield batch

    async def last_messages(self, filters: Sequence[str] = (), up_to: int | None = None) -> list[StoredMessage]:
        """The last message of each subject that matches `filters`, ascending by sequence.

        up_to: the last one at or below this sequence, where the stream still has it.
        Raises: as `read`.
        """
        # Never ">": for that the server names a message that it does not find again by its subject (one with 0x7f).
        filters = filters or (f"{PREFIX}.>",)
        last = await self._last_of(filters)
        by_subject: dict[str, StoredMessage] = {}
        if last == 0:
            return []
        async with follow(self._connection, self.stream, filters=filters, from_last=True) as follower:
            position = 0
            # In ascending sequence, so the others are there when the one that the leader named is, or a later one.
            while position < last:
                for message in await _soon(follower.next_batch(), self.stream):
                    by_subject[message.subject] = message
                    position = message.stream_sequence
        if up_to is not None:
            newer = {subject for subject, message in by_subject.items() if message.stream_sequence > up_to}
            for subject in newer:
                del by_subject[subject]
            # What they said before: asked for one by one while they are few, else by reading everything up to there.
            among = sorted(newer) if len(newer) <= FILTERS_MAX else filters
            if newer:
                async with aclosing(self.read(0, up_to, among)) as batches:
                    async for batch in batches:
                        by_subject.update({one.subject: one for one in batch if one.subject in newer})
        return sorted(by_subject.values(), key=lambda message: message.stream_sequence)

    async def direct_last(self, subject: str, deadline_s: float = REQUEST_DEADLINE_S) -> StoredMessage | None:
        """The last message on `subject`, no wildcards, as some replica has it: perhaps not the last any more.

        Raises: BusUnavailableError, BusRefusedError.
        """
        request = f"$JS.API.DIRECT.GET.{self.stream}.{subject}"
        reply = await self._connection.request(request, deadline_s=deadline_s)
        status = reply.headers.get("Status", "") if "Nats-Sequence" not in reply.headers else ""
        if status == "404":
            return None
        try:
            if status:
                raise BusRefusedError(request, int(status), 0, reply.headers.get("Description", "without a reason"))
            return stored_from_direct_get(reply)
        except ValueError as error:
            raise BusUnavailableError(f"NATS' answer to {request} cannot be read: {error}") from error

    async def _last_of(self, filters: Iterable[str]) -> int:
        """The sequence of the last message that matches, 0 without one."""
        found = [await self.last(subject) for subject in filters] if filters else [await self.last()]
        return max((message.stream_sequence for message in found if message is not None), default=0)


async def _soon(batch: Any, stream: str) -> list[StoredMessage]:
    with anyio.move_on_after(PROGRESS_DEADLINE_S):
        messages = await batch
        assert not isinstance(messages, PositionExpired)  # only said to those who ask for the whole stream
        return list(messages)
    raise BusUnavailableError(f"reading stream {stream}: nothing came for {PROGRESS_DEADLINE_S:g} s")
