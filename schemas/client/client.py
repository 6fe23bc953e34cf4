"""nats-py's client, mended where it fails us and with short ways where thousands of messages a second pass.

This module alone reaches into nats-py, whose version is pinned; tests/bus fail where another one is different.
"""

import asyncio
from collections.abc import Callable
from functools import lru_cache
from string import whitespace

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

# Subject, reply subject, payload and header block (b"" without one) as they came.
Sink = Callable[[bytes, bytes, bytes, bytes], None]


class BusClient(Client):
    """What a `Connection` is made of."""

    def __init__(self) -> None:
        super().__init__()
        self._sinks: dict[int, Sink] = {}  # by subscription

    async def subscribe_sink(self, subject: str, sink: Sink) -> Subscription:
        """Call `sink` as soon as a message is read: no headers parsed, no queue, no other task.

        Nothing bounds what it keeps: for what is asked for, so much at a time.
        """
        subscription = await self.subscribe(subject, cb=_never)
        self._sinks[subscription._id] = sink  # before the server has heard of it
        return subscription

    async def send(self, commands: bytes) -> None:
        """Send commands of the protocol as they are; see `as_published`."""
        await self._send_command(commands)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        sink = self._sinks.get(sid)
        if sink is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            sink(subject, reply, data, headers or b"")

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

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # It looks at each character of each header's name.
        headers = {}
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            before, colon, value = line.partition(":")
            if colon and (name := _header_name(before)) is not None:
                headers[name] = value.strip(whitespace)
        return headers


async def _never(message: Msg) -> None:
    raise AssertionError(f"a message on {message.subject} went past its sink")


def as_published(subject: str, headers: bytes, payload: bytes) -> bytes:
    """A message as the protocol has it. headers: a whole header block."""
    command = f"HPUB {subject} {len(headers)} {len(headers) + len(payload)}\r\n"
    return b"".join((command.encode(), headers, payload, b"\r\n"))


@lru_cache(maxsize=256)  # whoever writes to a stream chooses them
def _header_name(text: str) -> str | None:
    """None: no name of a header, the line is passed over."""
    name = text.strip(whitespace)
    return name if name.isascii() and not any(map(str.isspace, name)) else None
