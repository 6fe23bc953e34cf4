"""Messages and a bad network for the bus tests."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import anyio
from anyio.abc import ByteStream, SocketAttribute

from schemas.client.connection import Connection
from schemas.wire.bus import MESSAGE_ID, OutgoingMessage


def an_entry(text: str, claim: str = "u1", message_id: str | None = None, segment: int = 0) -> OutgoingMessage:
    """A ledger entry about `claim` in east, which says `text`."""
    headers = {MESSAGE_ID: text if message_id is None else message_id}
    return OutgoingMessage(f"dra.v1.ledger.main.{segment}.east.claim.{claim}", text.encode(), headers)


def a_batch(name: str, count: int) -> list[OutgoingMessage]:
    """`count` different entries of one batch."""
    return [an_entry(f"{name}-{index}", claim=f"u{index}") for index in range(count)]


def a_state(text: str, key: str = "u1", cluster: str = "east", message_id: str = "") -> OutgoingMessage:
    """A state message about the claim `key`, which says `text`."""
    headers = {MESSAGE_ID: message_id} if message_id else {}
    return OutgoingMessage(f"dra.v1.state.{cluster}.claim.{key}", text.encode(), headers)


async def store(connection: Connection, *messages: OutgoingMessage) -> int:
    """Store messages with plain publishes; returns the last one's stream sequence."""
    sequence = 0
    for message in messages:
        reply = await connection.request(message.subject, message.payload, message.headers, deadline_s=5)
        assert b'"seq":' in reply.payload, reply.payload
        sequence = int(reply.payload.partition(b'"seq":')[2].split(b",")[0].split(b"}")[0])
    return sequence


class Cut(NamedTuple):
    """Where a connection is cut.

    passing: how many of the bytes that the client has sent may pass before.
    after_answer: if not empty, cut only when the server has answered with these bytes; the client never sees them.
    """

    passing: int
    after_answer: bytes = b""


class Proxy:
    """A TCP proxy in front of a nats-server that cuts a connection at a chosen place of what the client sends.

    cut_at: given all that a client has sent on one connection, where to cut it; None as long as it lives. It is
        forgotten after one cut.
    """

    def __init__(self) -> None:
        self.url = ""
        self.cut_at: Callable[[bytes], Cut | None] = lambda sent: None
        self.cuts = 0

    async def handle(self, client: ByteStream, server_port: int) -> None:
        cut: Cut | None = None
        answered = anyio.Event()

        async def answers() -> None:
            held = b""
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                while True:
                    answer = await server.receive()
                    if cut is None:
                        await client.send(answer)
                        continue
                    held += answer
                    if cut.after_answer in held:
                        answered.set()
            tg.cancel_scope.cancel()

        async with client, await anyio.connect_tcp("127.0.0.1", server_port) as server:
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                async with anyio.create_task_group() as tg:
                    tg.start_soon(answers)
                    sent, passed = b"", 0
                    while cut is None:
                        try:
                            sent += await client.receive()
                        except anyio.EndOfStream:
                            break
                        cut = self.cut_at(sent)
                        await server.send(sent[passed : cut.passing if cut else None])
                        passed = len(sent)
                    if cut is not None:
                        self.cuts += 1
                        self.cut_at = lambda sent: None
                        if cut.after_answer:
                            await answered.wait()
                    tg.cancel_scope.cancel()


@asynccontextmanager
async def a_proxy(server_port: int) -> AsyncIterator[Proxy]:
    """A proxy on a port of its own."""
    proxy = Proxy()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    proxy.url = f"nats://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
    async with anyio.create_task_group() as tg:
        tg.start_soon(listener.serve, lambda client: proxy.handle(client, server_port))
        yield proxy
        tg.cancel_scope.cancel()
