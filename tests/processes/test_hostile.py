"""An agent that says what no agent says, byte for byte: nobody who reads it ends, and the others go on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio import to_thread

from broker.adapters.dead_letters import DeadLetters
from broker.cli.demo import CLUSTERS, write_manifests
from broker.cli.main import main
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from schemas.wire.calls import Beat
from schemas.wire.codec import encode
from schemas.wire.subjects import STATE_STREAM
from tests.cli.live import Live, live_up
from tests.hostile import published, published_with, say
from tests.manifests import claim_manifest
from tests.manifests import write_manifests as write_more
from tests.nats_fixture import connect_to

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

KEYS = (
    b"claim.\xff",
    b"claim.\xf0\x9f\x98",
    b"\xff.a",
    b"claim.a\x00b",
    b"agent.\xff",
    b"claim." + b"a" * 3_000,
    b"claim.a\x0bb",
    b"claim.a\x0c7",
    b"claim.a\x7fb",
)
HEADERS = {
    "bytes": b"Dra-Times: \xff\xfe\r\ntraceparent: \xff",
    "no names": b"\x00\xff\r\n:::\r\n: x",
    "half a line": b"traceparent: 00-a\nDra-Times: sent=1\rx",
    "many": b"\r\n".join(b"A%d: b" % number for number in range(2_000)),
}
STATUSES = (b"NATS/1.0 200 \xff\r\n\r\n", b"NATS/1.0 \xff\xff\xff\r\n\r\n", b"NATS/1.0", b"N", b"\xff\r\n\r\n")


def frames(honest: list[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """What is published, as NATS' protocol has it; the bodies are honest ones with something else in one place."""
    prefix = b"dra.v1.state.west."
    for key in KEYS:
        yield published(prefix + key, b"{}")
    for number, block in enumerate(HEADERS.values()):
        yield published_with(b"%sclaim.headers-%d" % (prefix, number), b"NATS/1.0\r\n" + block + b"\r\n\r\n", b"{}")
    for subject, body in honest:
        yield published(subject, body[: len(body) // 2])
        yield published(subject, b"[" * 100_000)
        # Each text in turn is not UTF-8 any more.
        at = body.find(b':"')
        while at >= 0:
            yield published(subject, body[: at + 2] + b"\xff" + body[at + 2 :])
            at = body.find(b':"', at + 1)


def calls() -> Iterator[bytes]:
    """What is published to those who hear it at once, and where no stream keeps it."""
    for subject in (b"dra.v1.beat.west", b"dra.v1.api.join.west", b"dra.v1.api.explain"):
        for block in STATUSES:
            yield published_with(subject, block, b"")
            yield published_with(subject, block, b"{}")
        for word in (b"\xff", b"\x0b", b"\x0c7", b"\x00\x7f"):
            yield published(subject + b" " + word, b"{}")
    honest = encode(Beat(agent_epoch=1, digest="00", last_sequence=1))
    odd = [encode(Beat(number, "\ud7ff\x00", number)) for number in (-1, -(2**63), 2**63, 2**64 - 1)]
    for body in (b"", b"{}", b"\xff", b"[" * 100_000, honest[:-1], honest.replace(b"00", b"\xff"), *odd):
        yield published(b"dra.v1.beat.west", body)
        yield published(b"dra.v1.beat.\xff", body)
        yield published(b"dra.v1.beat.nobody", body)


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
            await say(url, calls())
            await still_decides(live, "after-calls")
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
