"""Dead letters on their way into DRA_DEADLETTER, for which no decision waits longer than a few seconds.

A stream that is gone is made again. What cannot be kept is told of once, waits for a better time, and is named in the
log like every dead letter; beyond so many that wait only the log has it.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable

import anyio
from msgspec.structs import replace

from broker.adapters.dead_letters import DeadLetters
from broker.adapters.streams import StreamSettings, ensure_dead_letters
from schemas.client.connection import Connection
from schemas.client.errors import BusRefusedError, BusUnavailableError, MessageTooLargeError
from schemas.wire.bus import OutgoingMessage
from schemas.wire.calls import DeadLetter
from schemas.wire.codec import decode_call, encode
from schemas.wire.subjects import DEAD_LETTER_STREAM

_log = logging.getLogger(__name__)

PATIENCE_S = 3.0  # the first time; after that it is only looked
LOOK_EVERY_S = 2.0
LOOK_S = 0.5
RETRY_S = 0.5
WAITING_MAX = 32  # each may have 1 MiB


class Letters:
    """Keeps dead letters, in their order."""

    def __init__(self, connection: Connection, settings: StreamSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._stream = DeadLetters(connection)
        self._waiting: deque[OutgoingMessage] = deque()
        self._lost = 0  # that only the log has, since letters could not be kept
        self._looked_at: float | None = None  # when they could not be kept; None: they can

    @property
    def are_kept(self) -> bool:
        """Nothing waits."""
        return self._looked_at is None

    async def keep(self, letters: Iterable[OutgoingMessage]) -> None:
        """Keep these, and what waits; returns in a few seconds also where that cannot be done."""
        self._waiting.extend(letters)
        if not self._waiting or (self._looked_at is not None and time.monotonic() - self._looked_at < LOOK_EVERY_S):
            self._drop_what_is_too_much()
            return
        patience_s = PATIENCE_S if self._looked_at is None else LOOK_S
        while self._waiting:
            problem = await self._keep_one(self._waiting[0], patience_s)
            if problem:
                self._cannot(problem)
                return
            self._waiting.popleft()
        if self._looked_at is not None:
            _log.warning("dead letters are kept again; %d of them are in the log alone", self._lost)
        self._looked_at, self._lost = None, 0

    async def _keep_one(self, letter: OutgoingMessage, patience_s: float) -> str:
        """Returns why it is not kept."""
        problem = f"nothing came within {patience_s:g} s"
        with anyio.move_on_after(patience_s):
            while True:
                try:
                    await self._stream.keep(letter, patience_s)
                    return ""
                except MessageTooLargeError as error:
                    problem = str(error)
                    if (bare := _without_payload(letter, problem)) != letter:
                        letter = bare
                        continue
                except (BusUnavailableError, BusRefusedError) as error:
                    problem = str(error)
                try:
                    if await ensure_dead_letters(self._connection, self._settings):
                        _log.error(
                            "%s was gone, with all that it had: made anew; where its age or its replicas are to be"
                            " others than the default, run `dragoman nats-setup`",
                            DEAD_LETTER_STREAM,
                        )
                        continue
                except (BusUnavailableError, BusRefusedError) as error:
                    problem = str(error)
                await anyio.sleep(RETRY_S)
        return problem

    def _cannot(self, problem: str) -> None:
        if self._looked_at is None:
            _log.warning("dead letters cannot be kept, decisions go on, this log names each of them: %s", problem)
        self._looked_at = time.monotonic()
        self._drop_what_is_too_much()

    def _drop_what_is_too_much(self) -> None:
        while len(self._waiting) > WAITING_MAX:
            self._waiting.pop()
            self._lost += 1


def _without_payload(message: OutgoingMessage, why: str) -> OutgoingMessage:
    """The same letter, which says what it lacks: DRA_STATE has the payload; itself where it has none."""
    letter = decode_call(message.payload)
    if not isinstance(letter, DeadLetter) or not letter.payload:
        return message
    text = f"{letter.message} (kept without its payload of {len(letter.payload)} bytes: {why})"
    return OutgoingMessage(message.subject, encode(replace(letter, message=text, payload=b"")), message.headers)
