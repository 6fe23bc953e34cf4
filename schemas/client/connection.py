"""One connection to NATS: connect, ask and wait, publish, listen.

What is not sent at once is not sent at all: nats-py keeps publishes of a lost connection and sends them after the next
one, perhaps minutes later, when nobody remembers why. And a request whose connection is lost fails at once, not at its
deadline. Streams are read in `reader` and `follow`.
"""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import anyio
import msgspec
import nats.errors
from anyio.lowlevel import checkpoint_if_cancelled
from anyio.streams.memory import MemoryObjectReceiveStream
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from schemas.client.client import TELL_EACH_S, BusClient, NothingSentError, Sink, headers_of
from schemas.client.errors import BusRefusedError, BusUnavailableError, MessageTooLargeError
from schemas.client.options import BusOptions
from schemas.errors import UNREADABLE
from schemas.wire.bus import ReceivedMessage, header_block, one_line, status_of

__all__ = ["BusOptions", "Connection", "connect", "raise_api_error", "read_answer"]

_log = logging.getLogger(__name__)
T = TypeVar("T")

CONNECT_DEADLINE_S = 10.0
REQUEST_DEADLINE_S = 5.0
CLOSE_GRACE_S = 2.0


class Connection:
    """A connection that comes back by itself. Made by `connect`; used by any number of tasks at once."""

    def __init__(self, client: BusClient, places: str) -> None:
        self.client = client
        self.places = places
        self.losses = 0  # how often the connection was lost: who keeps state at the server compares it
        self._up = anyio.Event()
        self._waiting: set[anyio.CancelScope] = set()  # waits that a lost connection ends

    @property
    def is_up(self) -> bool:
        """Whether the server was there when we last heard of it."""
        return self.client.is_connected

    @property
    def payload_bytes_max(self) -> int:
        """What the server takes as one message, headers included."""
        return self.client.max_payload

    @property
    def server_version(self) -> tuple[int, int, int]:
        """Of the server that we are connected to."""
        version = self.client.connected_server_version
        return version.major, version.minor, version.patch

    @property
    def is_clustered(self) -> bool:
        """Whether that server is one of a cluster."""
        return bool(self.client._server_info.get("cluster"))  # nats-py keeps it and has no name for it

    @contextmanager
    def wait_scope(self, deadline_s: float) -> Iterator[anyio.CancelScope]:
        """A block that ends at its deadline, and at once when the connection is lost (`cancelled_caught` tells)."""
        with anyio.move_on_after(deadline_s) as scope:
            self._waiting.add(scope)
            try:
                yield scope
            finally:
                self._waiting.discard(scope)

    async def wait_until_up(self) -> None:
        """Return when connected; bounded by the caller's own deadline."""
        while not self.is_up:
            await self._up.wait()
            if not self.is_up:  # lost again before its callback said so
                await anyio.sleep(0.01)

    async def request(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, *, deadline_s: float
    ) -> ReceivedMessage:
        """Ask and return the answer.

        Raises: BusUnavailableError when no answer came, so that nobody knows whether the request took effect;
            MessageTooLargeError before anything is sent.
        """
        block = header_block(one_line(headers)) if headers else b""
        self.check_bytes(subject, len(block) + len(payload))
        began = time.monotonic()
        if not self.is_up:
            with anyio.move_on_after(deadline_s):
                await self.wait_until_up()
        answer, its_block = b"", b""
        with self.wait_scope(deadline_s - (time.monotonic() - began)) as scope:
            try:
                answer, its_block = await self.client.ask(subject, payload, block)
            except (nats.errors.Error, OSError) as error:
                await checkpoint_if_cancelled()
                raise BusUnavailableError(f"no answer to {subject} from NATS ({self.places}): {error}") from error
        if scope.cancelled_caught:
            await checkpoint_if_cancelled()
            why = f"nothing came within {deadline_s:g} s" if self.is_up else "the connection was lost"
            raise BusUnavailableError(f"no answer to {subject} from NATS ({self.places}): {why}")
        if not answer and status_of(its_block)[0] == "503":
            raise BusUnavailableError(f"nobody answers {subject} at NATS ({self.places})")
        return ReceivedMessage(subject, answer, headers_of(its_block))

    async def api(
        self, request: str, body: dict[str, Any] | None = None, *, deadline_s: float = REQUEST_DEADLINE_S
    ) -> msgspec.Raw:
        """Ask JetStream's API (`$JS.API.<request>`) and return its JSON answer.

        Raises: BusUnavailableError; BusRefusedError when the answer is an error.
        """
        payload = b"" if body is None else msgspec.json.encode(body)
        reply = await self.request(f"$JS.API.{request}", payload, deadline_s=deadline_s)
        raise_api_error(request, reply.payload)
        return msgspec.Raw(reply.payload)

    async def publish(
        self, subject: str, payload: bytes, headers: dict[str, str] | None = None, *, reply: str = ""
    ) -> None:
        """Send without waiting for anybody.

        Raises: BusUnavailableError without a connection (nothing is kept for later); MessageTooLargeError.
        """
        self.check_size(subject, payload, headers)
        if not self.is_up:
            raise BusUnavailableError(f"cannot publish to {subject}: not connected to NATS ({self.places})")
        try:
            await self.client.publish(subject, payload, reply=reply, headers=headers)
        except (nats.errors.Error, OSError) as error:
            await checkpoint_if_cancelled()
            raise BusUnavailableError(f"cannot publish to {subject} at NATS ({self.places}): {error}") from error

    async def publish_all(self, messages: bytes, first_subject: str) -> None:
        """Send messages that are ready (`as_published`, one after the other) without waiting for anybody.

        Raises: BusUnavailableError without a connection.
        """
        if not self.is_up:
            raise BusUnavailableError(f"cannot publish to {first_subject}: not connected to NATS ({self.places})")
        try:
            await self.client.send(messages)
        except (nats.errors.Error, OSError) as error:
            await checkpoint_if_cancelled()
            raise BusUnavailableError(f"cannot publish to {first_subject} at NATS ({self.places}): {error}") from error

    def unique_name(self) -> str:
        """A name that nobody else has, of letters and digits."""
        return self.client.new_inbox().rpartition(".")[2]

    async def flush(self, deadline_s: float = REQUEST_DEADLINE_S) -> None:
        """Return when the server has read all that was sent before, or the connection is lost."""
        with self.wait_scope(deadline_s):
            try:
                await self.client.flush(timeout=int(deadline_s) + 60)  # our scope ends it
            except (nats.errors.Error, OSError) as error:
                await checkpoint_if_cancelled()
                _log.debug("flushing the connection to NATS (%s): %s", self.places, error)

    @asynccontextmanager
    async def listen(
        self, subject: str, messages_max: int = 1000
    ) -> AsyncIterator[MemoryObjectReceiveStream[ReceivedMessage]]:
        """Receive what is published on `subject` from now on, also after the connection was lost and came back.

        messages_max: when so many wait to be read, new ones are dropped. Use it for what is repeated until it is heard.
        """
        send, receive = anyio.create_memory_object_stream[ReceivedMessage](messages_max)

        async def keep(message: Msg) -> None:
            try:
                send.send_nowait(ReceivedMessage(message.subject, message.data, message.headers or {}))
            except anyio.WouldBlock:
                _log.warning("%d messages on %s wait to be read: dropping a new one", messages_max, subject)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # the listener has gone

        async with self._subscribed(subject, self.client.subscribe(subject, cb=keep)):
            with send, receive:
                yield receive

    @asynccontextmanager
    async def inbox(self, sink: Sink) -> AsyncIterator[str]:
        """A new inbox, whose name is yielded: `sink` is called at once for every message that is read there."""
        subject = self.client.new_inbox()
        async with self._subscribed(subject, self.client.subscribe_sink(subject, sink)):
            yield subject

    @asynccontextmanager
    async def hear(self, subject: str, sink: Sink) -> AsyncIterator[None]:
        """`sink` is called at once for every message on `subject`, wildcards allowed, until the block ends."""
        async with self._subscribed(subject, self.client.subscribe_sink(subject, sink)):
            yield

    @asynccontextmanager
    async def _subscribed(self, subject: str, subscribe: Awaitable[Subscription]) -> AsyncIterator[None]:
        try:
            subscription = await subscribe
        except (nats.errors.Error, OSError) as error:
            await checkpoint_if_cancelled()
            raise BusUnavailableError(f"cannot listen on {subject} at NATS ({self.places}): {error}") from error
        try:
            await self.flush()
            yield
        finally:
            with anyio.move_on_after(CLOSE_GRACE_S, shield=True):
                try:
                    await subscription.unsubscribe()
                except (nats.errors.Error, OSError) as error:
                    _log.debug("ending the subscription to %s: %s", subject, error)

    def check_size(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> None:
        """Raises: MessageTooLargeError."""
        size = len(payload)
        if headers:
            size += len("NATS/1.0\r\n\r\n")
            size += sum(len(name.encode()) + len(value.encode()) + len(": \r\n") for name, value in headers.items())
        self.check_bytes(subject, size)

    def check_bytes(self, subject: str, size: int) -> None:
        """size: of payload and header block together. Raises: MessageTooLargeError."""
        if size > self.payload_bytes_max > 0:
            raise MessageTooLargeError(subject, size, self.payload_bytes_max)

    async def _on_lost(self) -> None:
        """Ends every wait."""
        self.losses += 1
        self._up = anyio.Event()
        for scope in list(self._waiting):
            scope.cancel()

    async def _on_up(self) -> None:
        self._up.set()


@asynccontextmanager
async def connect(options: BusOptions, deadline_s: float = CONNECT_DEADLINE_S) -> AsyncIterator[Connection]:
    """Connect to NATS; afterwards the connection comes back by itself, for ever.

    deadline_s: for the first connection only.
    Raises: BusUnavailableError, saying what was tried and what to do; BusOptionsError, nothing was.
    """
    options.check()
    client = BusClient(options)
    connection = Connection(client, options.places())
    last_error = "no server answered"
    is_refused = False
    nothing_sent: NothingSentError | None = None
    told_at_s = -TELL_EACH_S

    async def on_error(error: Exception) -> None:
        nonlocal last_error, is_refused, nothing_sent, told_at_s
        last_error = str(error) or type(error).__name__
        if isinstance(error, NothingSentError):
            nothing_sent = error
            if connection.losses and time.monotonic() - told_at_s >= TELL_EACH_S:  # else it is raised
                told_at_s = time.monotonic()
                _log.warning("not connected to NATS, trying again: %s", error)
        is_refused = is_refused or "authorization violation" in last_error.lower()
        is_forbidden = "permissions violation" in last_error.lower()
        _log.log(logging.WARNING if is_forbidden else logging.DEBUG, "NATS (%s): %s", connection.places, last_error)

    async def on_lost() -> None:
        await connection._on_lost()
        if not client.is_closed:
            _log.warning("lost the connection to NATS (%s); trying again until it is back", connection.places)

    async def on_reconnected() -> None:
        _log.warning("connected to NATS again (%s)", connection.places)
        await connection._on_up()

    identity: dict[str, Any] = {}
    if options.credentials_file:
        identity["user_credentials"] = options.credentials_file
    elif options.nkey_file:
        identity["nkeys_seed"] = options.nkey_file
    elif options.user:
        identity.update(user=options.user, password=options.password)
    try:
        with anyio.move_on_after(deadline_s):
            try:
                await client.connect(
                    servers=list(options.servers),
                    name=options.name,
                    inbox_prefix=options.inbox,
                    error_cb=on_error,
                    disconnected_cb=on_lost,
                    reconnected_cb=on_reconnected,
                    connect_timeout=2,
                    max_reconnect_attempts=-1,
                    # nats-py says int and only ever sleeps it; a server that restarts is back in 0.1 s.
                    reconnect_time_wait=0.2,  # type: ignore[arg-type]
                    ping_interval=5,  # a dead server that closes nothing is noticed after three of them
                    max_outstanding_pings=2,
                    tls=options.tls_context(),
                    **identity,
                )
            except (nats.errors.Error, OSError, ValueError) as error:
                await checkpoint_if_cancelled()
                last_error = str(error) or type(error).__name__
        if nothing_sent is not None and not client.is_connected:
            raise BusUnavailableError(f"cannot connect to NATS: {nothing_sent}")
        if is_refused and not client.is_connected:
            raise BusUnavailableError(
                f"NATS at {connection.places} does not know us (Authorization Violation):"
                " give the key or credentials of this role with --nkey or --creds"
            )
        if not client.is_connected:
            raise BusUnavailableError(
                f"cannot connect to NATS at {connection.places} within {deadline_s:g} s: {last_error};"
                " start nats-server (with JetStream) there, or give the right address with --nats"
            )
        await connection._on_up()
        yield connection
    finally:
        # Not drain(): after a server restart it waits 30 s for answers that never come. Everything of ours that must
        # arrive was waited for.
        with anyio.move_on_after(CLOSE_GRACE_S, shield=True):
            await client.close()


def raise_api_error(request: str, answer: bytes) -> None:
    """Raises: BusRefusedError if JetStream's JSON answer is an error; BusUnavailableError if it is no such answer."""
    try:
        error = msgspec.json.decode(answer, type=_ApiAnswer).error
    except UNREADABLE as broken:
        raise BusUnavailableError(f"NATS' answer to {request} cannot be read: {broken}") from broken
    if error is not None:
        raise BusRefusedError(request, error.code, error.err_code, error.description)


def read_answer(request: str, answer: bytes, shape: type[T]) -> T:
    """Raises: BusUnavailableError if the answer has another shape: it is none of the JetStream that we know."""
    try:
        return msgspec.json.decode(answer, type=shape)
    except UNREADABLE as error:
        raise BusUnavailableError(f"NATS' answer to {request} cannot be read: {error}") from error


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _ApiAnswer(msgspec.Struct):
    error: _ApiError | None = None
