"""DRA_DEADLETTER: messages that could not be applied are kept, so that nothing is lost without a trace."""

import msgspec

from schemas.client.connection import REQUEST_DEADLINE_S, Connection, raise_api_error, read_answer
from schemas.client.reader import StreamReader
from schemas.wire.bus import OutgoingMessage, StoredMessage
from schemas.wire.subjects import DEAD_LETTER_STREAM, PREFIX


class _PubAck(msgspec.Struct):
    seq: int


class DeadLetters:
    """Keeps and lists dead letters."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._reader = StreamReader(connection, DEAD_LETTER_STREAM)

    async def keep(self, message: OutgoingMessage, deadline_s: float = REQUEST_DEADLINE_S) -> int:
        """Store `message`; returns its stream sequence, that of the first time if its id was kept a moment ago.

        Raises: BusUnavailableError (keep it again, by its id it is stored once); BusRefusedError; MessageTooLargeError.
        """
        assert message.subject.startswith(f"{PREFIX}.deadletter."), message.subject
        reply = await self._connection.request(message.subject, message.payload, message.headers, deadline_s=deadline_s)
        what = f"a dead letter on {message.subject}"
        raise_api_error(what, reply.payload)
        return read_answer(what, reply.payload, _PubAck).seq

    async def all(self, cluster: str = "*") -> list[StoredMessage]:
        """What is kept (of one cluster), oldest first. Raises: BusUnavailableError, BusRefusedError."""
        kept: list[StoredMessage] = []
        async for batch in self._reader.read(0, filters=[f"{PREFIX}.deadletter.{cluster}"]):
            kept += batch
        return kept
