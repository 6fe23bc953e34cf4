"""Follow a stream in order, through lost connections and restarted servers.

Not nats-py's ordered consumer: it is silent for up to 20 s after a restart, loses messages when its queue is full, and
cannot say that the position has expired. Here messages are pulled in windows (a slow reader holds the server back), a
heartbeat every second proves that the server still knows us, and any doubt ends in a new consumer after the last
message that was handed out.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import msgspec

from schemas.client.connection import REQUEST_DEADLINE_S, Connection, read_answer
from schemas.client.errors import BusError, BusRefusedError, BusUnavailableError, StreamLostError
from schemas.wire.bus import Delivery, HeaderBlock, StoredMessage, parse_delivery, status_of

_log = logging.getLogger(__name__)

WINDOW = 1000  # messages asked for at a time
WINDOW_BYTES = 32 * 1024 * 1024
PULL_LIFE_S = 60.0
HEARTBEAT_S = 1.0
SILENCE_S = 2.5  # without message or heartbeat: the server does not know us any more
RETRY_S = 0.5  # between two attempts to make a consumer
ATTEMPT_DEADLINE_S = 2.0  # while servers elect a leader a request stays unanswered: ask again rather than wait
CONSUMER_LIFE_S = 60.0  # the server forgets a consumer that nobody pulls from


class PositionExpired(msgspec.Struct, frozen=True):
    """Messages after the position were dropped by the stream: it now begins at `first_sequence`."""

    first_sequence: int


class StreamState(msgspec.Struct, frozen=True):
    """first_sequence is last_sequence + 1 when the stream is empty."""

    first_sequence: int
    last_sequence: int
    messages: int


class _Info(msgspec.Struct):
    class State(msgspec.Struct):
        messages: int
        first_seq: int
        last_seq: int

    state: State


async def stream_state(connection: Connection, stream: str, deadline_s: float = REQUEST_DEADLINE_S) -> StreamState:
    """What the stream's leader says of it. Raises: BusUnavailableError, BusRefusedError."""
    request = f"STREAM.INFO.{stream}"
    state = read_answer(request, await connection.api(request, deadline_s=deadline_s), _Info).state
    # Of a stream that never had a message the server says that it begins at 0.
    first = max(state.first_seq, 1) if state.messages else state.last_seq + 1
    return StreamState(first, state.last_seq, state.messages)


class Delivered(msgspec.Struct, frozen=True):
    """A message of a consumer; `ack_subject` is where its acknowledgement goes."""

    message: StoredMessage
    delivery: Delivery
    ack_subject: str


class Pull:
    """Messages of one consumer, asked for one window after the other.

    window: messages asked for at a time. waits: for messages that come; else `is_empty` says that none is left.
    Invariant: at most one request is open; `_open` is what the server may still send for it.
    """

    def __init__(
        self, connection: Connection, stream: str, consumer: str, *, window: int = WINDOW, waits: bool = True
    ) -> None:
        self._connection = connection
        self._born = connection.losses
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._window = window
        self._waits = waits
        self.is_empty = False
        self.is_absent = False  # nobody answers for this consumer: there is none, or no server leads it just now
        self._inbox = ""
        self._arrived: deque[tuple[bytes, bytes, bytes, bytes]] = deque()  # as `keep` gets them
        self._news = anyio.Event()
        self._open = 0
        self._is_lost = False

    async def take(self, messages_max: int) -> list[Delivered]:
        """Up to `messages_max` messages: those that are there, at once; else wait for one. []: the consumer is lost."""
        while not self._arrived:
            if self._is_lost or self.is_empty or self._connection.losses != self._born:
                return []
            self._news = anyio.Event()  # before asking: the answer may come while we ask
            await self._ask_for_more()
            with self._connection.wait_scope(SILENCE_S) as scope:
                await self._news.wait()
            if scope.cancelled_caught:
                return []
        if len(self._arrived) <= messages_max:
            await self._ask_for_more()  # so that the next window travels while the caller works on this one
        # Nothing is awaited from here on: a cancelled caller loses no message.
        return [_delivered(*self._arrived.popleft()) for _ in range(min(messages_max, len(self._arrived)))]

    def left(self) -> list[Delivered]:
        """What has come and was not taken."""
        found = [_delivered(*each) for each in self._arrived]
        self._arrived.clear()
        return found

    async def _ask_for_more(self) -> None:
        if self._open or self.is_empty:
            return
        self._open = self._window
        request: dict[str, Any] = {"batch": self._window, "max_bytes": WINDOW_BYTES}
        if self._waits:
            request |= {"expires": _ns(PULL_LIFE_S), "idle_heartbeat": _ns(HEARTBEAT_S)}
        else:
            request["no_wait"] = True
        try:
            await self._connection.publish(self._next, msgspec.json.encode(request), reply=self._inbox)
        except BusUnavailableError:
            self._is_lost = True

    def keep(self, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> None:
        """The inbox's sink."""
        # A stored message may carry any header, and no payload; what the server itself says has no ack subject.
        is_stored = reply.startswith(b"$JS.ACK.")
        status, text = ("", "") if is_stored or payload else status_of(headers)
        if not status:
            self._open = max(0, self._open - 1)
            self._arrived.append((subject, reply, payload, headers))
        elif status in ("404", "408") and not self._waits:
            self._open, self.is_empty = 0, True
        elif status != "100":
            self._open = 0
            self.is_absent = status == "503"
            # 408: the request's time is over. 409 with these words: its bytes are used up. Anything else: the consumer
            # is gone, its leader has moved, the server shuts down.
            if status != "408" and not (
                status == "409" and text in ("Batch Completed", "Message Size Exceeds MaxBytes")
            ):
                _log.debug("%s ended: %s %s", self._next, status, text)
                self._is_lost = True
        self._news.set()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Pull"]:
        """Listen on an inbox of its own: messages of an earlier consumer never mix with ours."""
        async with self._connection.inbox(self.keep) as inbox:
            self._inbox = inbox
            yield self


class Follower:
    """Hands out the messages of a stream in order, each once, from a position on. Made by `follow`.

    position: the sequence of the last message handed out; where it goes on after any trouble.
    """

    def __init__(
        self, connection: Connection, stream: str, after: int, filters: Sequence[str], *, from_last: bool, whole: bool
    ) -> None:
        self.position = after
        self._connection = connection
        self._stream = stream
        self._filters = tuple(filters)
        self._from_last = from_last
        self._whole = whole
        self._pull: Pull | None = None
        self._consumer_sequence = 0
        self._is_broken = False
        self._held = AsyncExitStack()

    async def next_batch(self, messages_max: int = WINDOW) -> list[StoredMessage] | PositionExpired:
        """The next messages: those that are there, at once; else wait until there is one. Never empty.

        It may be cancelled, by a deadline for instance, and called again: no message is lost.
        Returns: PositionExpired, every time it is asked, when the stream has dropped messages after the position (only
            for a follower of the whole stream: who reads a filter wants the last message of each subject).
        Raises: StreamLostError; BusRefusedError when such a consumer cannot be. It waits for a stream that is absent.
        """
        while True:
            if self._is_broken:
                await self.close()
            if self._pull is None and (expired := await self._start()):
                return expired
            assert self._pull is not None
            delivered = await self._pull.take(messages_max)
            messages = []
            for one in delivered:
                if one.delivery.consumer_sequence != self._consumer_sequence + 1:
                    break  # something fell out of a queue between the server and us
                self._consumer_sequence += 1
                self.position = one.message.stream_sequence
                self._from_last = False
                messages.append(one.message)
            self._is_broken = not messages or len(messages) < len(delivered)
            if messages:
                return messages

    async def _start(self) -> PositionExpired | None:
        """Make a consumer after the position; try until it is there."""
        told = ""
        while True:
            try:
                name = await self._create()
                # After the consumer was made: what was still there then, it delivers.
                state = await stream_state(self._connection, self._stream, ATTEMPT_DEADLINE_S)
            except BusError as error:
                if isinstance(error, BusRefusedError) and error.code == 400:
                    raise  # what we ask for is wrong, and will be
                why = error.description if isinstance(error, BusRefusedError) else str(error)
                if why != told:
                    told = why
                    _log.warning("cannot follow stream %s yet, trying again: %s", self._stream, why)
                await anyio.sleep(RETRY_S)
                continue
            if state.last_sequence < self.position:
                raise StreamLostError(self._stream, self.position, state.last_sequence)
            if self._whole and state.first_sequence > self.position + 1:
                return PositionExpired(state.first_sequence)
            try:
                pull = Pull(self._connection, self._stream, name)
                await self._held.enter_async_context(pull.opened())
            except BusUnavailableError:
                continue
            self._pull, self._consumer_sequence = pull, 0
            return None

    async def _create(self) -> str:
        filters = self._filters
        name = f"follow_{self._connection.unique_name()}"
        config: dict[str, Any] = {
            "name": name,
            "ack_policy": "none",
            "max_deliver": 1,
            "num_replicas": 1,
            "mem_storage": True,
            "inactive_threshold": _ns(CONSUMER_LIFE_S),
        }
        if self._from_last:
            config["deliver_policy"] = "last_per_subject"
            filters = filters or (">",)  # this policy wants one
        else:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": self.position + 1}
        await create_consumer(self._connection, self._stream, name, config, filters)
        return name

    async def close(self) -> None:
        """Stop listening; the server forgets the consumer by itself."""
        self._pull, self._is_broken = None, False
        held, self._held = self._held, AsyncExitStack()
        await held.aclose()


@asynccontextmanager
async def follow(
    connection: Connection,
    stream: str,
    after: int = 0,
    filters: Sequence[str] = (),
    *,
    from_last: bool = False,
    whole: bool = False,
) -> AsyncIterator[Follower]:
    """Follow `stream` after the sequence `after`.

    filters: subjects, wildcards allowed, none of which matches what another does; () is the whole stream.
    from_last: begin with the last message of each subject (in ascending sequence) instead of after `after`.
    whole: say so when messages after the position have expired.
    """
    follower = Follower(connection, stream, after, filters, from_last=from_last, whole=whole)
    try:
        yield follower
    finally:
        await follower.close()


async def create_consumer(
    connection: Connection, stream: str, name: str, config: dict[str, Any], filters: Sequence[str], action: str = ""
) -> None:
    """Make a pull consumer. action: "create" leaves one that is there as it is.

    Raises: BusUnavailableError, BusRefusedError.
    """
    request = f"CONSUMER.CREATE.{stream}.{name}"
    if len(filters) == 1:
        # In the subject too, where a permission can be given for it; the server refuses a body that differs.
        request += f".{filters[0]}"
        config = {**config, "filter_subject": filters[0]}
    elif filters:
        config = {**config, "filter_subjects": list(filters)}
    body = {"stream_name": stream, "config": config, "action": action}
    await connection.api(request, body, deadline_s=ATTEMPT_DEADLINE_S)


def _delivered(subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> Delivered:
    ack_subject = reply.decode()
    delivery = parse_delivery(ack_subject)
    # Who may publish may have put any bytes into the subject; with U+FFFD it is none of ours.
    text = subject.decode(errors="replace")
    stored = StoredMessage(text, payload, HeaderBlock(headers), delivery.stream_sequence, delivery.time_ms)
    return Delivered(stored, delivery, ack_subject)


def _ns(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
