"""`dragoman ledger archive`: closed segments as files; and, when they are safe there, streams sealed and deleted."""

import argparse
from contextlib import aclosing
from pathlib import Path

import msgspec
from rich.table import Table

from broker.adapters.errors import ArchiveError
from broker.adapters.ledger_archive import Archive, ArchiveHeader, ArchiveWriter
from broker.adapters.streams import ledger_segments
from broker.cli.bus import add_nats_arguments
from broker.cli.errors import CommandError
from broker.cli.ledger_bus import SHARD, entries_of, with_nats
from broker.cli.output import console, print_json
from broker.cli.progress import Progress
from broker.machine.ledger_check import LedgerCheck
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import SegmentClosed
from schemas.wire.subjects import ledger_stream

EPILOG = """\
A segment is closed when the ledger goes on in the next one. Its file has every byte of every entry, and a checksum;
`dragoman ledger verify FILE` reads it.

It takes the operator's key; --seal and --delete need the setup key. A stream is deleted only after its file was read
back and checked together with the checkpoint of the segment after it. The closed segment just before the open one is
never deleted: a start falls back on it, should the open one's checkpoint be damaged.

examples:
  dragoman ledger archive --segment 3 archive/
  dragoman ledger archive --all-closed archive/ --seal --delete --nkey nats/keys/setup.nk

exit code: 0 done; 1 something is wrong with the ledger, a file or NATS; 2 wrong arguments.
"""


class Archived(msgspec.Struct):
    """What was done about a segment."""

    segment: int
    entries: int
    file: str
    action: str  # written, or found: the file was there, and is the same
    stream: str  # kept, sealed or deleted


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `archive`."""
    parser = verbs.add_parser(
        "archive",
        help="write closed segments to files",
        description="Write closed segments to files, one each; seal and delete their streams if told to.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--segment", type=int, metavar="N", help="this one")
    which.add_argument("--all-closed", action="store_true", help="all that are closed")
    parser.add_argument("path", metavar="PATH", type=Path, help="a directory; for one segment also a file")
    parser.add_argument("--seal", action="store_true", help="nothing can be changed in the stream any more, for ever")
    parser.add_argument("--delete", action="store_true", help="then delete the stream; only with --seal")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_nats_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Archive, and say what was done."""
    if options.delete and not options.seal:
        raise CommandError("--delete goes with --seal: what is deleted must not change in between")
    if options.all_closed and not options.path.is_dir():
        raise CommandError(f"{options.path} is no directory: --all-closed writes a file for each segment")

    async def archive(connection: Connection) -> list[Archived]:
        return await _archive(connection, options)

    done = with_nats(options, "setup" if options.seal else "operator", archive)
    if options.output == "json":
        print_json(done)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("SEGMENT", "ENTRIES", "FILE", "ACTION", "STREAM"):
            table.add_column(name, justify="right" if name in ("SEGMENT", "ENTRIES") else "left")
        for each in done:
            table.add_row(str(each.segment), str(each.entries), each.file, each.action, each.stream)
        console().print(table)
    return 0


async def _archive(connection: Connection, options: argparse.Namespace) -> list[Archived]:
    segments = await ledger_segments(connection, SHARD)
    closed = [segment for segment in segments if segment + 1 in segments and await _is_closed(connection, segment)]
    if options.segment is not None and options.segment not in closed:
        text = "there is no such segment" if options.segment not in segments else "it is not closed"
        listed = ", ".join(map(str, closed)) or "none"
        raise CommandError(f"segment {options.segment}: {text} (closed: {listed})", exit_code=1)
    done = []
    for segment in closed if options.segment is None else [options.segment]:
        stream = ledger_stream(SHARD, segment)
        path = options.path / f"{stream}.jsonl.zst" if options.path.is_dir() else options.path
        found = await _write(connection, segment, path)
        done.append(found)
        if not options.seal:
            continue
        await _check(connection, segment, path)
        await _seal(connection, stream)
        found.stream = "sealed"
        if options.delete and segment < segments[-1] - 1:
            await connection.api(f"STREAM.DELETE.{stream}")
            found.stream = "deleted"
        elif options.delete and options.segment is not None:
            text = f"segment {segment} is the last closed one: a start falls back on it; it was sealed, not deleted"
            raise CommandError(text, exit_code=1)
    return done


async def _is_closed(connection: Connection, segment: int) -> bool:
    last = await StreamReader(connection, ledger_stream(SHARD, segment)).last()
    try:
        return last is not None and isinstance(decode_entry(last.payload), SegmentClosed)
    except WireError:
        return False


async def _write(connection: Connection, segment: int, path: Path) -> Archived:
    """Write the file, unless it is there and is the same. Raises: ArchiveError."""
    stream = ledger_stream(SHARD, segment)
    found = _entries_in(path)
    if found is not None:
        state = await StreamReader(connection, stream).state()
        if found != (state.first_sequence, state.last_sequence):
            raise ArchiveError(path, f"it is there already, and is not segment {segment} as it is now")
        return Archived(segment, found[1] - found[0] + 1, str(path), "found", "kept")
    header = ArchiveHeader(stream=stream, shard=SHARD, segment=segment)
    with Progress("entries archived") as progress, ArchiveWriter(path, header) as writer:
        async with aclosing(entries_of(connection, stream)) as batches:
            async for batch in batches:
                writer.add(batch)
                progress.add(len(batch), f"of segment {segment}")
    return Archived(segment, writer.count, str(path), "written", "kept")


def _entries_in(path: Path) -> tuple[int, int] | None:
    """The first and the last sequence in a file, which is read whole; None where there is no file."""
    if not path.exists():
        return None
    sequences = [message.stream_sequence for batch in Archive(path).batches() for message in batch]
    return (sequences[0], sequences[-1]) if sequences else (0, 0)


async def _check(connection: Connection, segment: int, path: Path) -> None:
    """The file is good, and the next segment goes on from it. Raises: CommandError; ArchiveError."""
    check = LedgerCheck(SHARD)
    check.begin(segment)
    for batch in Archive(path).batches():
        check.add(batch)
    check.end()
    check.begin(segment + 1)
    async with aclosing(entries_of(connection, ledger_stream(SHARD, segment + 1))) as read:
        async for batch in read:
            check.add(batch)
    check.end()
    if check.bad is not None or not check.segments[-1].opened:
        why = check.bad.problem if check.bad is not None else "the segment after it is not open yet"
        raise CommandError(f"segment {segment} stays as it is: {why}; see `dragoman ledger verify`", exit_code=1)


async def _seal(connection: Connection, stream: str) -> None:
    info = msgspec.json.decode(await connection.api(f"STREAM.INFO.{stream}"))
    if not info["config"].get("sealed"):
        await connection.api(f"STREAM.UPDATE.{stream}", {**info["config"], "sealed": True})
