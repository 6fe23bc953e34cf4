"""What the broker says and hears outside of the streams: asks, heartbeats, the leader's beacon.

None of it is kept anywhere, and a lost one costs only time: each is repeated until its effect is seen elsewhere.
"""

from contextlib import AbstractAsyncContextManager

from anyio.streams.memory import MemoryObjectReceiveStream

from schemas.client.connection import Connection
from schemas.wire.bus import ReceivedMessage
from schemas.wire.subjects import ask_subject, beat_subject, lead_subject

Listening = AbstractAsyncContextManager[MemoryObjectReceiveStream[ReceivedMessage]]


class Asks:
    """The broker's unrecorded calls."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def ask(self, cluster: str, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Ask `cluster`'s agent to publish again. Nobody may be there. Raises: BusUnavailableError."""
        await self._connection.publish(ask_subject(cluster), payload, headers)

    async def lead(self, shard: str, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Say that the leader of `shard` lives. Raises: BusUnavailableError."""
        await self._connection.publish(lead_subject(shard), payload, headers)

    def follow_beats(self, messages_max: int = 1000) -> Listening:
        """Every cluster's heartbeats; while `messages_max` wait to be read, new ones are dropped."""
        return self._connection.listen(beat_subject("*"), messages_max)

    def follow_leader(self, shard: str, messages_max: int = 100) -> Listening:
        """The beacon of `shard`'s leader; while `messages_max` wait to be read, new ones are dropped."""
        return self._connection.listen(lead_subject(shard), messages_max)
