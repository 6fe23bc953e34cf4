"""`python -m tests.upgrades.record`: run the older build, and keep what it wrote as `previous/*.jsonl`."""

import sys
import tempfile
from contextlib import aclosing
from pathlib import Path

import anyio
import msgspec

from broker.adapters.streams import ledger_segments
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from schemas.wire.subjects import STATE_STREAM, ledger_stream
from tests.manifests import claim_manifest, class_manifest, slice_manifest
from tests.processes.harness import Federation, a_federation
from tests.processes.ledger_view import LedgerView
from tests.upgrades import OLDER, RECORDED, source_of

SEGMENT_ENTRIES = 100
DEVICES = 12
CLAIMS = 36  # in each cluster


class Line(msgspec.Struct):
    """A stored message; payload: as it is, if it is JSON."""

    stream: str
    sequence: int
    subject: str
    payload: msgspec.Raw


async def main() -> None:
    """Claims come, some go, an operator orders something, and the ledger goes on in its second segment."""
    with tempfile.TemporaryDirectory(prefix="dragoman-record-") as directory:
        source = source_of(OLDER, Path(directory, "source"))
        if source is None:
            sys.exit("git does not have the older build here")
        async with a_federation(_made(Path(directory, "run")), segment_entries=SEGMENT_ENTRIES) as federation:
            for process in federation.processes.values():
                process.source = source
            await _run(federation)
            lines = await _lines(federation.connection)
            rows = await federation.call("claims")
    RECORDED.mkdir(exist_ok=True)
    for name in ("state", "ledger"):
        chosen = [msgspec.json.encode(line) for line in lines if (line.stream == STATE_STREAM) == (name == "state")]
        (RECORDED / f"{name}.jsonl").write_bytes(b"\n".join(chosen) + b"\n")
    (RECORDED / "claims.json").write_bytes(msgspec.json.format(rows, indent=1) + b"\n")
    print(f"{len(lines)} messages are kept in {RECORDED}")


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


async def _run(federation: Federation) -> None:
    devices = [f"gpu-{index}" for index in range(DEVICES)]
    for cluster in federation.clusters:
        federation.write(cluster, "class", class_manifest())
    federation.write("east", "slices", slice_manifest(devices))
    await federation.start(*federation.clusters, "broker")
    await federation.until("all heard", lambda view: view.synced == set(federation.clusters))
    for cluster in federation.clusters:
        for number in range(CLAIMS):
            federation.write(cluster, f"claim-{number}", claim_manifest(f"claim-{number}"))
    await federation.until("all devices given", lambda view: len(view.allocated) == DEVICES and not view.unsettled)
    order = {"verb": "cordon", "cluster": "west", "operator": "ada", "reason": "fire"}
    await federation.call("cluster", msgspec.json.encode(order))
    for number in range(CLAIMS // 2):
        federation.remove("east", f"claim-{number}")
    gone = {f"claim-{number}" for number in range(CLAIMS // 2)}

    def has_moved_on(view: LedgerView) -> bool:
        left = {claim for claim, name in view.names.items() if claim[0] == "east" and name[8:] in gone}
        return (
            view.segments == 2
            and len(view.allocated) == DEVICES
            and not view.unsettled
            and not left & view.allocated.keys()
        )

    await federation.until("others have them, in a second segment", has_moved_on)
    for cluster in federation.clusters:
        await federation.processes[cluster].stop()


async def _lines(connection: Connection) -> list[Line]:
    segments = [ledger_stream("main", segment) for segment in await ledger_segments(connection, "main")]
    lines = []
    for stream in [STATE_STREAM, *segments]:
        async with aclosing(StreamReader(connection, stream).read(0)) as batches:
            async for batch in batches:
                for message in batch:
                    payload = msgspec.Raw(message.body())
                    lines.append(Line(stream, message.stream_sequence, message.subject, payload))
    return lines


if __name__ == "__main__":
    anyio.run(main)
