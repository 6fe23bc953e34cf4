"""Events under a durable name: a consumer in NATS keeps the place, and shares the events among the runs of one name.

An event is acknowledged when the next one is asked for. One that was not is delivered again: to the next run at once
if this one ended in good order, else, also to another one, `ACK_WAIT_S` after it was delivered.
"""

import logging
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterable

import anyio

from schemas.client.connection import CLOSE_GRACE_S, Connection
from schemas.client.errors import BusError, BusRefusedError, BusUnavailableError
from schemas.client.follow import Delivered, Pull, create_consumer
from schemas.client.since import Since
from schemas.wire.bus import StoredMessage
from schemas.wire.subjects import EVENTS_STREAM, PREFIX, durable_consumer

_log = logging.getLogger(__name__)

ACK_WAIT_S = 60.0
WINDOW = 50  # events that one run asks for: what it has, the others of its name do not get
UNDONE_MAX = 1000  # delivered to all runs of a name and not acknowledged
RETRY_S = 0.5
ABSENT_S = 15.0  # so long a consumer is waited for that we cannot make
NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CONSUMER_EXISTS = 10148
_CONSUMER_NOT_FOUND = 10014
_ACK, _AGAIN, _IN_PROGRESS = b"+ACK", b"-NAK", b"+WPI"


async def make_durable(
    connection: Connection, name: str, since: Since, *, ack_wait_s: float = ACK_WAIT_S, after: int = 0
) -> bool:
    """Make the place of a durable name, where there is none yet; whether it was made.

    after: begin after this stream sequence instead of at `since`.
    Raises: ValueError; BusUnavailableError; BusRefusedError.
    """
    _check_name(name)
    start: dict[str, object] = {"deliver_policy": "by_start_sequence", "opt_start_seq": max(since.sequence, after) + 1}
    if not after and since.is_new:
        start = {"deliver_policy": "new"}
    elif not after and since.time is not None:
        start = {"deliver_policy": "by_start_time", "opt_start_time": since.time_text}
    consumer = durable_consumer(name)
    config = {
        "durable_name": consumer,
        "ack_policy": "explicit",
        "ack_wait": int(ack_wait_s * 1e9),
        "max_ack_pending": UNDONE_MAX,
        "max_deliver": -1,
        **start,
    }
    try:
        await create_consumer(connection, EVENTS_STREAM, consumer, config, [f"{PREFIX}.events.>"], action="create")
    except BusRefusedError as error:
        if error.err_code == _CONSUMER_EXISTS:
            return False
        raise
    return True


async def remove_durable(connection: Connection, name: str) -> bool:
    """Forget the place of a durable name; whether there was one. A run that still uses it makes it anew, if it may.

    Raises: ValueError; BusUnavailableError; BusRefusedError.
    """
    _check_name(name)
    try:
        await connection.api(f"CONSUMER.DELETE.{EVENTS_STREAM}.{durable_consumer(name)}")
    except BusRefusedError as error:
        if error.err_code == _CONSUMER_NOT_FOUND:
            return False
        raise
    return True


async def durable_messages(
    connection: Connection, name: str, since: Since, *, follow: bool
) -> AsyncGenerator[StoredMessage, None]:
    """What is left for this name, and with `follow` what comes. Raises: as `subscribe`."""
    _check_name(name)
    last = 0
    absent_since: float | None = None
    while True:
        place = _Place(connection, name, waits=follow)
        pull = place.pull
        try:
            try:
                async with pull.opened():
                    while await place.fetch():
                        while place.undone:
                            await place.keep_undone()
                            yield place.undone[0].message
                            last = max(last, place.undone[0].message.stream_sequence)
                            await place.acknowledge()
            finally:
                # No earlier, or what we have asked for brings them to us again.
                await place.give_back()
        except BusUnavailableError as error:
            _log.debug("reading events as %s: %s", name, error)
            if not follow:
                raise
        if pull.is_empty:
            return
        if not pull.is_absent:
            absent_since = None
            if not follow:
                raise BusUnavailableError(f"reading events as {name}: NATS ({connection.places}) does not answer")
        else:
            absent_since = absent_since or time.monotonic()
            try:
                if await make_durable(connection, name, since, after=last):
                    continue
            except BusError as error:  # no answer: a server tells beside the answers what we may not
                if isinstance(error, BusRefusedError) and error.code == 400:
                    raise
                if time.monotonic() > absent_since + ABSENT_S:
                    raise _absent(name) from error
        await anyio.sleep(RETRY_S)


class _Place:
    """Events that were delivered to this run.

    undone: not acknowledged yet, the one that is being handled first.
    """

    def __init__(self, connection: Connection, name: str, *, waits: bool) -> None:
        self.undone: deque[Delivered] = deque()
        self.pull = Pull(connection, EVENTS_STREAM, durable_consumer(name), window=WINDOW, waits=waits)
        self._connection = connection
        self._fresh_until = 0.0

    async def fetch(self) -> bool:
        """Wait for events. False: there are none, or the consumer is lost."""
        self.undone.extend(await self.pull.take(WINDOW))
        self._fresh_until = time.monotonic() + ACK_WAIT_S / 4
        return bool(self.undone)

    async def keep_undone(self) -> None:
        """Ask for more time where those before took long: else they are delivered to another run meanwhile."""
        if time.monotonic() > self._fresh_until:
            await self._say(_IN_PROGRESS, self.undone)
            self._fresh_until = time.monotonic() + ACK_WAIT_S / 4

    async def acknowledge(self) -> None:
        """The first one is done with."""
        await self._say(_ACK, [self.undone.popleft()])

    async def give_back(self) -> None:
        """Those that are undone go to another run, or to the next one, at once."""
        self.undone.extend(self.pull.left())
        with anyio.move_on_after(CLOSE_GRACE_S, shield=True):
            await self._say(_AGAIN, self.undone)
            await self._connection.flush(CLOSE_GRACE_S)

    async def _say(self, what: bytes, of: Iterable[Delivered]) -> None:
        for each in of:
            try:
                await self._connection.publish(each.ack_subject, what)
            except BusUnavailableError as error:  # it comes again, and is known then
                _log.debug("%s of event %d: %s", what.decode(), each.message.stream_sequence, error)


def _absent(name: str) -> BusRefusedError:
    consumer = durable_consumer(name)
    why = f"there is no consumer {consumer}, and we may not make it: `dragoman nats-setup --subscriber {name}` does"
    return BusRefusedError(f"CONSUMER.MSG.NEXT.{EVENTS_STREAM}.{consumer}", 404, 0, why)


def _check_name(name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError(f"{name!r} is no durable name: letters, digits, '-' and '_', at most 64")
