"""Messages that no client library publishes, as NATS' protocol has them: byte for byte."""

from collections.abc import Iterable

import anyio

CONNECT = b'CONNECT {"verbose":false,"headers":true,"lang":"test","version":"1"}\r\n'


def published(subject: bytes, body: bytes) -> bytes:
    """A message without headers."""
    return b"PUB %s %d\r\n%s\r\n" % (subject, len(body), body)


def published_with(subject: bytes, block: bytes, body: bytes) -> bytes:
    """A message with a whole header block, or what stands in its place."""
    return b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(block), len(block) + len(body), block, body)


async def say(url: str, said: Iterable[bytes]) -> None:
    """Returns when the server has taken all of it."""
    host, _, port = url.rpartition("/")[2].partition(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        await stream.send(CONNECT + b"".join(said) + b"PING\r\n")
        answer = b""
        while b"PONG" not in answer:
            answer += await stream.receive()
        assert b"-ERR" not in answer, answer
