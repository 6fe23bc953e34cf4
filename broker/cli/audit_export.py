"""`dragoman audit export` and `erase`: the record as a table; names out of copies of it."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack, aclosing
from pathlib import Path
from typing import BinaryIO, get_origin, get_type_hints

import msgspec
import shtab

from broker.adapters.audit_files import FORMATS, new_file, row_writer
from broker.adapters.errors import ExportError
from broker.adapters.ledger_archive import Archive, ArchiveHeader, ArchiveWriter
from broker.app.audit import Ledger, Range, segments_from
from broker.cli.bus import add_nats_arguments
from broker.cli.errors import CommandError
from broker.cli.ledger_bus import run_async, with_nats
from broker.cli.ledger_source import LedgerAtNats, LedgerInFiles
from broker.cli.moments import add_range_arguments, range_of
from broker.cli.output import print_json
from broker.cli.progress import Progress
from broker.machine.audit_rows import AuditRow, AuditRows
from schemas.wire.bus import StoredMessage
from schemas.wire.chain import NAMES, erase, names_of
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import AnyEntry, names_in
from schemas.wire.subjects import ledger_stream

EPILOG_EXPORT = """\
One row for each decision: who asked, what was seen, what was decided and why, by which broker and settings, and its
trace id. docs/audit.md has the columns. A segment is read from its beginning; rows are those of the range.

examples:
  dragoman audit export --since 30d --format csv --file decisions.csv
  dragoman audit export --since 1h | jq 'select(.decision == "Refuse")'
  dragoman audit export archive/*.jsonl.zst --format parquet --file 2026.parquet    # needs dragoman[parquet]

exit code: 0; 1 an entry cannot be read, or there is no ledger or no NATS, and then there is no file; 2 wrong arguments.
"""
EPILOG_ERASE = """\
Writes a copy of a segment in which entries have no names any more: those that name TEXT anywhere, or all.
An entry loses all of its names and words (claim, namespace, pods, operator, reasons in words), or none. The hash chain
stays whole: `dragoman audit verify` checks the copy as it does the original, which you then remove.

Entries that still have TEXT elsewhere, because a build before the hash chain wrote them or because a driver's
configuration has it, are named, and the exit code is 1. In NATS nothing can be erased: archive closed segments and
delete them there (dragoman ledger archive --seal --delete).

examples:
  dragoman audit erase archive/DRA_LEDGER_main_3.jsonl.zst erased/DRA_LEDGER_main_3.jsonl.zst --naming train-alice
  dragoman audit erase 0 handed-on.jsonl.zst --all      # segment 0, as it is in NATS

exit code: 0 done; 1 something of it is left, or a file cannot be read or written; 2 wrong arguments.
"""
COLUMNS: dict[str, type] = {
    name: get_origin(hint) or hint for name, hint in get_type_hints(AuditRow).items() if not name.startswith("_")
}


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `export` and `erase`."""
    export = verbs.add_parser(
        "export",
        help="decisions as JSON lines, CSV or Parquet",
        description="Write one row for each decision.",
        epilog=EPILOG_EXPORT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files = export.add_argument("files", nargs="*", metavar="FILE", type=Path, help="archived segments, not NATS")
    add_range_arguments(export)
    export.add_argument("--format", choices=FORMATS, default="jsonl")
    file = export.add_argument("--file", type=Path, metavar="FILE", help="write it here (default: stdout)")
    add_nats_arguments(export)
    export.set_defaults(run=run_export)
    erasing = verbs.add_parser(
        "erase",
        help="a copy of a segment without names",
        description="Write a copy of a segment without names; its hash chain stays whole.",
        epilog=EPILOG_ERASE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = erasing.add_argument("source", metavar="FILE", help="the archived segment, or the number of one in NATS")
    target = erasing.add_argument("target", type=Path, metavar="COPY", help="where; it must not be there yet")
    for each in (files, file, source, target):
        each.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    which = erasing.add_mutually_exclusive_group(required=True)
    which.add_argument("--naming", action="append", metavar="TEXT", help="entries that name it; may be repeated")
    which.add_argument("--all", action="store_true", help="all entries")
    erasing.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_nats_arguments(erasing)
    erasing.set_defaults(run=run_erase)


def run_export(options: argparse.Namespace) -> int:
    """Write the rows."""
    if options.format == "parquet" and options.file is None:
        raise CommandError("--format parquet: give --file, it is not for a terminal")
    try:
        with ExitStack() as stack:
            to = stack.enter_context(new_file(options.file)) if options.file is not None else sys.stdout.buffer
            if options.files:
                count = run_async(lambda: _export(LedgerInFiles(options.files), range_of(options), options.format, to))
            else:
                count = with_nats(
                    options, "operator", lambda nats: _export(LedgerAtNats(nats), range_of(options), options.format, to)
                )
            to.flush()
    except ExportError as error:
        raise CommandError(str(error), exit_code=1) from None
    if options.file is not None:
        print(f"{count} decisions written to {options.file}")
    return 0


async def _export(ledger: Ledger, within: Range, form: str, to: BinaryIO) -> int:
    rows, count = AuditRows(), 0
    with Progress("entries read") as progress, row_writer(form, to, COLUMNS) as writer:
        is_over = False
        for segment in await segments_from(ledger, within):
            async with aclosing(ledger.entries(segment)) as batches:
                async for batch in batches:
                    chosen: list[dict[str, object]] = []
                    for message in batch:
                        found = rows.add(message, _read(message), segment)
                        chosen += [msgspec.structs.asdict(row) for at, row in found if within.has(at)]
                    writer.add(chosen)
                    count += len(chosen)
                    progress.add(len(batch), f"of segment {segment}")
                    is_over = within.is_over(batch[0]) and rows.is_complete
                    if is_over:
                        break
            if is_over:
                break
        left = [msgspec.structs.asdict(row) for at, row in rows.end() if within.has(at)]
        writer.add(left)
    return count + len(left)


def _read(message: StoredMessage) -> AnyEntry:
    try:
        return decode_entry(message.payload)
    except WireError as error:
        text = f"ledger entry {message.stream_sequence} on {message.subject} cannot be read: {error}"
        raise CommandError(text, exit_code=1) from None


class Erased(msgspec.Struct):
    """What was done. left: sequences of entries that still have the text, where it cannot be erased."""

    entries: int
    erased: int
    left: list[int]


def run_erase(options: argparse.Namespace) -> int:
    """Write the copy."""
    texts, target = options.naming or [], options.target
    if "" in texts:
        raise CommandError("--naming: an empty text is in every entry; --all erases all names")
    if options.source.isascii() and options.source.isdigit():
        segment = int(options.source)
        done = with_nats(options, "operator", lambda nats: _erase(LedgerAtNats(nats), segment, target, texts))
    else:
        path = Path(options.source)

        async def from_file() -> Erased:
            return await _erase(LedgerInFiles([path]), Archive(path).header.segment, target, texts)

        done = run_async(from_file)
    if options.output == "json":
        print_json(done)
    else:
        print(f"{done.erased} of {done.entries} entries have no names any more")
        if done.left:
            print(f"still there, where it cannot be erased, in entries {', '.join(map(str, done.left))}")
    return 1 if done.left else 0


async def _erase(ledger: Ledger, segment: int, target: Path, texts: Sequence[str]) -> Erased:
    """texts: what entries must name; [] erases all of them. Raises: CommandError; ArchiveError; BusError."""
    if segment not in await ledger.segments():
        raise CommandError(f"there is no segment {segment}", exit_code=1)
    wanted = [msgspec.json.encode(text)[1:-1] for text in texts]
    done = Erased(0, 0, [])
    header = ArchiveHeader(stream=ledger_stream(ledger.shard, segment), shard=ledger.shard, segment=segment)
    with Progress("entries copied") as progress, ArchiveWriter(target, header) as writer:
        async with aclosing(ledger.entries(segment)) as batches:
            async for batch in batches:
                copies = []
                for message in batch:
                    is_named = not wanted or any(text in name for name in names_of(message) for text in wanted)
                    copy = erase(message) if is_named else message
                    done.erased += copy is not message
                    if _has(copy, wanted):
                        done.left.append(message.stream_sequence)
                    copies.append(copy)
                done.entries += len(copies)
                writer.add(copies)
                progress.add(len(copies), f"of segment {segment}")
    return done


def _has(message: StoredMessage, texts: Sequence[bytes]) -> bool:
    """Whether an entry has any of the texts; without texts, whether it has names that the chain does not cover."""
    if texts:
        return any(text in message.payload or text in message.subject.encode() for text in texts)
    return NAMES not in message.headers and bool(names_in(_read(message)))
