"""Hand out the messages of a log in order by direct gets, for who may make no consumers.

It asks again and again: for who has time, as a tracer.
"""

import logging
import time

from schemas.client.connection import Connection
from schemas.client.errors import BusRefusedError, BusUnavailableError, StreamLostError
from schemas.client.follow import stream_state
from schemas.client.kept import KeptMessages
from schemas.wire.bus import StoredMessage

_log = logging.getLogger(__name__)

WINDOW = 1_000  # messages asked for at a time
LOOK_EVERY_S = 5.0  # at the stream's state, while nothing comes


class LogReader:
    """position: the sequence of the last message handed out."""

    def __init__(
        self, connection: Connection, stream: str, pattern: str, after: int = 0, look_every_s: float = LOOK_EVERY_S
    ) -> None:
        self.position = after
        self._connection = connection
        self._stream = stream
        self._kept = KeptMessages(connection, stream, pattern, WINDOW)
        self._look_every_s = look_every_s
        self._looked_at_s = time.monotonic()
        self._told = ""

    async def take(self) -> list[StoredMessage]:
        """What comes next, in order; [] where nothing has come yet, or nobody answers. It may be cancelled.

        Raises: StreamLostError; BusRefusedError where there is no such stream any more.
        """
        try:
            messages = await self._kept.after(self.position)
            if not messages:
                await self._look()
        except (BusUnavailableError, BusRefusedError) as error:
            if isinstance(error, BusRefusedError) and error.code != 503:  # which says that nobody answers just now
                raise
            if str(error) != self._told:
                self._told = str(error)
                _log.warning("cannot read stream %s yet, trying again: %s", self._stream, error)
            return []
        if messages:
            self.position, self._told = messages[-1].stream_sequence, ""
        return messages

    async def _look(self) -> None:
        if time.monotonic() - self._looked_at_s < self._look_every_s:
            return
        self._looked_at_s = time.monotonic()
        last = (await stream_state(self._connection, self._stream)).last_sequence
        if last < self.position:
            raise StreamLostError(self._stream, self.position, last)
