"""An agent that says what no agent says, byte for byte: nobody who reads it ends, and the others go on."""

from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from broker.adapters.dead_letters import DeadLetters
from broker.cli.demo import CLUSTERS, write_manifests
from broker.cli.main import main
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from schemas.wire.subjects import STATE_STREAM
from tests.cli.live import Live, live_up
from tests.manifests import claim_manifest
from tests.manifests import write_manifests as write_more
from tests.nats_fixture import connect_to

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

CONNECT = b'CONNECT {"verbose":false,"headers":true,"lang":"test","version":"1"}\r\n'
KEYS = (b"claim.\xff", b"claim.\xf0\x9f\x98", b"\xff.a", b"claim.a\x00b", b"agent.\xff", b"claim." + b"a" * 3_000)
HEADERS = {
    "bytes": b"Dra-Times: \xff\xfe\r\ntraceparent: \xff",
    "no names": b"\x00\xff\r\n:::\r\n: x",
    "half a line": b"traceparent: 00-a\nDra-Times: sent=1\rx",
    "many": b"\r\n".join(b"A%d: b" % number for number in range(2_000)),
}


def frames(honest: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """What is published, as NATS' protocol has it; the bodies are honest ones with something else in one place."""
    prefix = b"dra.v1.state.west."
    for key in (
        b"claim.\xff",
        b"claim.\xf0\x9f\x98",
        b"\xff.a",
        b"claim.a\x00b",
        b"agent.\xff",
        b"claim." + b"a" * 3_000,
    ):
        yield _pub(prefix + key, b"{}")
    for number, block in enumerate(HEADERS.values()):
        yield _hpub(b"%sclaim.headers-%d" % (prefix, number), block, b"{}")
    for subject, body in honest:
        yield _pub(subject, body[: len(body) // 2])
        yield _pub(subject, b"[" * 100_000)
        # Each text in turn is not UTF-8 any more.
        at = body.find(b':"')
        while at >= 0:
            yield _pub(subject, body[: at + 2] + b"\xff" + body[at + 2 :])
            at = body.find(b':"', at + 1)


def _pub(subject: bytes, body: bytes) -> bytes:
    return b"PUB %s %d\r\n%s\r\n" % (subject, len(body), body)


def _hpub(subject: bytes, block: bytes, body: bytes) -> bytes:
    headers = b"NATS/1.0\r\n" + block + b"\r\n\r\n"
    return b"HPUB %s %d %d\r\n%s%s\r\n" % (subject, len(headers), len(headers) + len(body), headers, body)


async def say(url: str, said: Iterator[bytes]) -> None:
    """Returns when the server has taken all of it."""
    host, _, port = url.rpartition("/")[2].partition(":")
    async with await anyio.connect_tcp(host, int(port)) as stream:
        await stream.send(CONNECT + b"".join(said) + b"PING\r\n")
        answer = b""
        while b"PONG" not in answer:
            answer += await stream.receive()
        assert b"-ERR" not in answer, answer


async def honest_messages(connection: Connection) -> list[tuple[bytes, bytes]]:
    """Subject and body of one object of each kind, as west would tell of it; its own where it has one."""
    found: dict[str, tuple[bytes, bytes]] = {}
    messages = await StreamReader(connection, STATE_STREAM).last_messages()
    for message in sorted(messages, key=lambda message: message.subject.startswith("dra.v1.state.west.")):
        *_, kind, key = message.subject.split(".", 5)
        if kind != "agent":  # there west's own agent would take it for another one, and end
            found[kind] = f"dra.v1.state.west.{kind}.{key}".encode(), message.payload
    return list(found.values())


async def test_nobody_ends_by_what_an_agent_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_manifests(tmp_path)
    directories = {cluster: tmp_path / cluster for cluster in CLUSTERS}
    options = ["--data", str(tmp_path / "data")]

    async def still_decides(live: Live, name: str) -> None:
        write_more(tmp_path / "east" / f"{name}.yaml", claim_manifest(name))
        await live.until(f"{name} is decided", lambda live: f"east/{name}" in live.rows)

    async with live_up(directories, options) as live:
        await live.until_state("east/train-east", "Allocated")
        url = await live.url()
        async with connect_to(url) as connection:
            honest = await honest_messages(connection)
            assert {subject.split(b".")[4] for subject, _ in honest} == {b"claim", b"class", b"slice"}
            said = list(frames(honest))
            assert len(said) > 50
            await say(url, iter(said))
            await still_decides(live, "later")
            kept = await DeadLetters(connection).all()
            assert len(kept) >= len(said) // 2
    async with live_up(directories, options) as live:  # what was said is still there
        await still_decides(live, "much-later")
        url = await live.url()
        [uid] = [subject.rpartition(b".")[2].decode() for subject, _ in honest if b".claim." in subject]
        for command in (
            f"trace --uid {uid} --cluster west",
            "trace ml/train-west",
            "trace ml/train-east",
            "events",
            "audit verify --no-replay",
        ):
            code = await to_thread.run_sync(lambda command=command: main([*command.split(), "--nats", url]))  # type: ignore[misc]
            assert code == 0, (command, capsys.readouterr().err)
