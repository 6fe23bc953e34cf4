"""`dragoman audit verify` of 100,000 decisions: all of them made again; and with one byte changed."""

import json
import resource
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import anyio
import msgspec

from broker.adapters.ledger_archive import ArchiveHeader, ArchiveWriter
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import decode_entry
from schemas.wire.ledger import Allocate
from tests.bench.measure import Table, count, progress
from tests.bench.throughput import ALL_MODELS, LEDGER, Load, a_federation

DECISIONS = 100_000


def measure(decisions: int = DECISIONS) -> list[Table]:
    """A broker decides as many claims; then the ledger is audited where it is, and as a file that was changed."""
    return [anyio.run(_measure, decisions)]


async def _measure(decisions: int) -> Table:
    progress(f"audit: {count(decisions)} decisions are made")
    async with a_federation(decisions + decisions // 10 + ALL_MODELS) as load:
        await load.all_at_once(decisions)
        url = load.connection.places
        progress("audit: all of them are made again")
        whole, whole_s, whole_cpu = await _verify("--config", str(load.config), "--replay", "--nats", url)
        assert whole["ok"], whole
        with TemporaryDirectory(prefix="dragoman-bench-") as directory:
            path = Path(directory) / "changed.jsonl.zst"
            at = await _archive_changed(load, path)
            progress("audit: a copy in which one byte was changed")
            changed, changed_s, changed_cpu = await _verify(str(path))
            assert changed["bad"]["sequence"] == at, changed["bad"]
    made = count(whole["replay"]["decisions"])
    return Table(
        "audit: dragoman audit verify",
        ["ledger", "made again", "entries read", "seconds", "CPU seconds", "found"],
        [
            ["in NATS", made, count(whole["chain"]["entries"]), f"{whole_s:.1f}", f"{whole_cpu:.1f}", "all is well"],
            [
                "a file, one byte changed",
                "-",
                count(changed["chain"]["entries"]),
                f"{changed_s:.1f}",
                f"{changed_cpu:.1f}",
                f"entry {count(at)} is named",
            ],
        ],
        [
            "From exec to exit, nats-server and an idle broker beside it. In NATS: the chain, every entry, and that",
            "each decision comes out the same from the messages of DRA_STATE. The aim is 120 s for 100,000 decisions.",
        ],
    )


async def _verify(*arguments: str) -> tuple[dict[str, Any], float, float]:
    """What it found, and the seconds and CPU seconds that it took."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "broker.cli.main", "audit", "verify", *arguments, "-o", "json"]
    ran = await anyio.run_process(command, check=False, stderr=None)
    took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return json.loads(ran.stdout), took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


async def _archive_changed(load: Load, path: Path) -> int:
    """The ledger as a file in which another device of the last Allocate is named; returns that entry's sequence."""
    reader = StreamReader(load.connection, LEDGER)
    messages = [message async for batch in reader.read(0) for message in batch]
    place = max(at for at, each in enumerate(messages) if isinstance(decode_entry(each.payload), Allocate))
    messages[place] = _changed(messages[place])
    with ArchiveWriter(path, ArchiveHeader(stream=LEDGER, shard="main", segment=0)) as writer:
        writer.add(messages)
    return messages[place].stream_sequence


def _changed(message: StoredMessage) -> StoredMessage:
    at = message.payload.index(b'"device":"') + len(b'"device":"')
    payload = message.payload[:at] + bytes([message.payload[at] ^ 1]) + message.payload[at + 1 :]
    return msgspec.structs.replace(message, payload=payload)
