"""DRA_STATE for the broker: each message in stream order from a position, ranges, and what was believed at one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from schemas.client.connection import Connection
from schemas.client.follow import WINDOW, Follower, PositionExpired, follow
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.subjects import STATE_STREAM

__all__ = ["PositionExpired", "StateReader", "read_state"]


class StateReader:
    """Reads DRA_STATE after a position; made by `read_state`. One task at a time calls `next_batch`."""

    def __init__(self, connection: Connection, follower: Follower, stream: str) -> None:
        self._follower = follower
        self._reader = StreamReader(connection, stream)

    @property
    def position(self) -> int:
        """The stream sequence of the last message handed out."""
        return self._follower.position

    async def next_batch(self, messages_max: int = WINDOW) -> list[StoredMessage] | PositionExpired:
        """The next messages in stream order: those that are there, at once; else wait until there is one. Never empty.

        Returns: PositionExpired when messages after the position were dropped: start again with `last_messages`.
        Raises: StreamLostError when the stream ends before the position.
        """
        return await self._follower.next_batch(messages_max)

    async def last_sequence(self) -> int:
        """Of the stream, as its leader has it. Raises: BusUnavailableError, BusRefusedError."""
        return (await self._reader.state()).last_sequence

    async def last_messages(self, subject_filter: str = "", up_to: int | None = None) -> list[StoredMessage]:
        """The last message of each subject that matches, at or below the sequence `up_to`; ascending by sequence.

        Raises: BusUnavailableError, BusRefusedError.
        """
        return await self._reader.last_messages((subject_filter,) if subject_filter else (), up_to)


@asynccontextmanager
async def read_state(
    connection: Connection, start_after: int, stream: str = STATE_STREAM
) -> AsyncIterator[StateReader]:
    """Follow DRA_STATE after the stream sequence `start_after`, through lost connections and restarted servers."""
    async with follow(connection, stream, start_after, whole=True) as follower:
        yield StateReader(connection, follower, stream)
