"""nats-py's client, mended where it fails us and with short ways where thousands of messages a second pass.

This module alone reaches into nats-py, whose version is pinned; tests/bus fail where another one is different.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import nats.errors
import nats.protocol.parser
from nats.aio.client import Client, _validate_subject
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from schemas.client.errors import BusOptionsError
from schemas.client.options import BusOptions
from schemas.wire.bus import parse_headers, status_of

_log = logging.getLogger(__name__)

TELL_EACH_S = 60.0
# Subject, reply subject, payload and header block (b"" without one) as they came.
Sink = Callable[[bytes, bytes, bytes, bytes], None]

# It ends a word at a vertical tab and at a form feed too, which servers take for a part of a subject: it would give the
# connection up at such a message, and, where a stream keeps it, again at each attempt to read on.
_SUBJECT_AND_REPLY = rb"([^ \t\r\n]+) (\d+) (([^ \t\r\n]+) )?"
nats.protocol.parser.MSG_RE = re.compile(rb"\AMSG " + _SUBJECT_AND_REPLY + rb"(\d+)\r\n")
nats.protocol.parser.HMSG_RE = re.compile(rb"\AHMSG " + _SUBJECT_AND_REPLY + rb"(\d+) (\d+)\r\n")


class NothingSentError(nats.errors.Error):
    """We do not say who we are. The text says why and what to do."""


class BusClient(Client):
    """What a `Connection` is made of."""

    def __init__(self, options: BusOptions) -> None:
        super().__init__()
        self._given = options
        self.dropped = 0  # messages that could not be processed
        self._told = 0  # of them
        self._told_at_s = -TELL_EACH_S
        self._sinks: dict[int, Sink] = {}  # by subscription
        self._answers = ""  # the inbox of all answers; "" before the first question
        self._asked = 0
        self._waiting: dict[bytes, asyncio.Future[tuple[bytes, bytes]]] = {}  # by the question's number

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # It goes over to TLS only if the server's first words, which nobody has signed, say that it must: whoever sits
        # in between leaves that out, and has our password or what we sign. This is called before it looks at them.
        assert self._current_server is not None
        if initial_connection and self._given.asks_for_tls and self._current_server.uri.scheme != "wss":
            speaks = info.get("tls_required") or info.get("tls_available")
            if not speaks or self._current_server.uri.scheme == "ws":
                assert self._transport is not None
                # It would only be forgotten, and is tried again five times a second.
                self._transport.close()  # type: ignore[no-untyped-call]
                place = self._current_server.uri.netloc.rpartition("@")[2]
                raise NothingSentError(
                    f"the server at {place} speaks no TLS, so nothing was sent to it: check --nats, or, if it is meant"
                    " to be so, give nats:// and leave --tls-ca and --tls-cert out"
                )
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    def _connect_command(self) -> bytes:
        # Key and credentials are read again each time. What is wrong in them would end its reconnecting for good, or
        # keep it looking for a JWT, and everything else waiting, for ever.
        try:
            self._given.check_identity()
        except BusOptionsError as error:
            raise NothingSentError(str(error)) from error
        return super()._connect_command()

    async def close(self) -> None:
        # It fails an assertion where it was refused its options, and hides by that why.
        if self._flush_queue is not None:
            await super().close()

    async def subscribe_sink(self, subject: str, sink: Sink) -> Subscription:
        """Call `sink` as soon as a message is read: no headers parsed, no queue, no other task.

        Nothing bounds what it keeps: for what is asked for, so much at a time.
        """
        subscription = await self.subscribe(subject, cb=_never)
        self._sinks[subscription._id] = sink  # before the server has heard of it
        return subscription

    async def ask(self, subject: str, payload: bytes, headers: bytes) -> tuple[bytes, bytes]:
        """Payload and header block of the first answer; waits until it is cancelled.

        headers: a whole header block, b"" for none.
        Raises: nats.errors.Error, nothing was sent.
        """
        _validate_subject(subject)
        if not self._answers:
            answers = self.new_inbox()
            await self.subscribe_sink(f"{answers}.*", self._answer)
            self._answers = answers
        if not self.is_connected:
            raise nats.errors.ConnectionClosedError
        self._asked += 1
        number = b"%d" % self._asked
        answer: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self.send(as_published(subject, headers, payload, f"{self._answers}.{self._asked}"))
            return await answer
        finally:
            del self._waiting[number]

    def _answer(self, subject: bytes, _reply: bytes, payload: bytes, headers: bytes) -> None:
        answer = self._waiting.get(subject.rpartition(b".")[2])
        if answer is not None and not answer.done():
            answer.set_result((payload, headers))

    async def send(self, commands: bytes) -> None:
        """Send commands of the protocol as they are; see `as_published`."""
        await self._send_command(commands)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # Whoever may publish chooses every byte. An error would end its read loop: nothing is heard until pings fail.
        try:
            sink = self._sinks.get(sid)
            if sink is None:
                await super()._process_msg(sid, subject, reply, data, headers)
            else:
                sink(subject, reply, data, headers or b"")
        except Exception as error:
            self._drop(subject, error)

    def _drop(self, subject: bytes, error: Exception) -> None:
        self.dropped += 1
        now_s = time.monotonic()
        if now_s - self._told_at_s >= TELL_EACH_S:
            count, self._told, self._told_at_s = self.dropped - self._told, self.dropped, now_s
            _log.warning("dropped messages that cannot be read: %d; the last, on %r: %r", count, subject, error)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._sinks.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # It writes the ping at once, before what waits to be written: a flush would end before that is sent.
        if self._pending and self._transport is not None:
            self._transport.writelines(self._pending)
            self._pending, self._pending_data_size = [], 0
        await super()._send_ping(future)

    async def _process_pong(self) -> None:
        # It keeps waiting for the answer to a flush that was given up (its own, when a subscription is drained, too),
        # and when that comes its read loop ends with an InvalidStateError: nothing is heard until the pings fail.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.Future()
        await super()._process_pong()

    async def _process_err(self, err_msg: str) -> None:
        # It closes itself for good at whatever a server says but for two things, as at "maximum connections exceeded"
        # of one that is restarted: then nobody would ever connect again.
        if self.is_connected and "permissions violation" not in err_msg.lower():
            await self._process_op_err(nats.errors.Error(f"nats: {err_msg.strip()}"))
            return
        await super()._process_err(err_msg)

    async def _process_headers(self, headers: bytes | None) -> dict[str, str] | None:
        # It fails at a status that is not UTF-8, and at a block that is shorter than its first line.
        return headers_of(headers or b"") or None


def headers_of(block: bytes) -> dict[str, str]:
    """A header block as nats-py has it: with what the server says in the first line as Status and Description."""
    if not block:
        return {}
    code, text = status_of(block)
    status = {"Status": code, "Description": text} if text else {"Status": code}
    return {**(status if code else {}), **parse_headers(block)}


async def _never(message: Msg) -> None:
    raise AssertionError(f"a message on {message.subject} went past its sink")


def as_published(subject: str, headers: bytes, payload: bytes, reply: str = "") -> bytes:
    """A message as the protocol has it. headers: a whole header block, b"" for none."""
    place = f"{subject} {reply}" if reply else subject
    if not headers:
        return b"".join((f"PUB {place} {len(payload)}\r\n".encode(), payload, b"\r\n"))
    command = f"HPUB {place} {len(headers)} {len(headers) + len(payload)}\r\n"
    return b"".join((command.encode(), headers, payload, b"\r\n"))
