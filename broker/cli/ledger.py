"""`dragoman ledger`: look after the ledger. Verify it, archive closed segments, rebuild a lost one."""

import argparse
from contextlib import aclosing
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from broker.cli import ledger_archive, ledger_rebuild
from broker.cli.bus import add_nats_arguments
from broker.cli.ledger_bus import run_async, with_nats
from broker.cli.ledger_source import LedgerAtNats, LedgerInFiles
from broker.cli.output import console, print_json
from broker.cli.progress import Progress
from broker.machine.ledger_check import LedgerCheck

EPILOG = """\
examples:
  dragoman ledger verify --nkey nats/keys/operator.nk
  dragoman ledger verify archive/*.jsonl.zst -o json
  dragoman ledger archive --all-closed archive/

docs/reliability.md says what to do when something is wrong.
"""
EPILOG_VERIFY = """\
Reads only. Without files it reads what is in NATS, with the operator's key.

checked: the hash chain; numbers without holes, in segments and from one to the next; SegmentClosed and SegmentOpened
in pairs; each checkpoint's checksum, and that it is what the segments before it give; every entry can be read and
follows from those before it; each batch says what it was decided from, and at its end nobody holds a device that
somebody else holds. How much of a device its shares may take is not in the ledger.

exit code: 0 all is well; 1 something is wrong, or there is no ledger, or no NATS; 2 wrong arguments.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `ledger` and its verbs."""
    parser = commands.add_parser(
        "ledger",
        help="verify the ledger, archive closed segments, begin a lost one anew",
        description="Look after the ledger: the log of all decisions, in segments.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    verify = verbs.add_parser(
        "verify",
        help="is it whole, and does it say nothing that cannot be?",
        description="Read every segment and check it; name the first entry that is wrong.",
        epilog=EPILOG_VERIFY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.add_argument("files", nargs="*", metavar="FILE", type=Path, help="archived segments, instead of NATS")
    verify.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_nats_arguments(verify)
    verify.set_defaults(run=run_verify)
    ledger_archive.add_verb(verbs)
    ledger_rebuild.add_verb(verbs)


def run_verify(options: argparse.Namespace) -> int:
    """Check, and say what was found."""
    if options.files:
        check = run_async(lambda: check_all(LedgerInFiles(options.files)))
    else:
        check = with_nats(options, "operator", lambda connection: check_all(LedgerAtNats(connection)))
    stuck = "" if options.files else stuck_rebuild(check)
    if options.output == "json":
        found = as_json(check)
        print_json({**found, "ok": found["ok"] and not stuck, "stuck": stuck})
    else:
        console().print(_table(check, stuck))
    return 0 if check.bad is None and not stuck else 1


def as_json(check: LedgerCheck) -> dict[str, object]:
    """What was found, for machines."""
    return {
        "shard": check.shard,
        "ok": check.bad is None,
        "segments": check.segments,
        "chain": check.chain.found(),
        "notes": [*check.notes, *check.chain.notes()],
    }


def stuck_rebuild(check: LedgerCheck) -> str:
    """Of a whole ledger: why no broker can go on with it though nothing in it is wrong; "" if one can."""
    left = next((each for each in reversed(check.segments) if each.opened or each.abandoned), None)
    if left is None or not left.abandoned:
        return ""
    return (
        f"segment {left.segment} was closed by a rebuild, and none was opened after it: nothing is granted before"
        " `dragoman ledger rebuild` has been run to its end"
    )


async def check_all(ledger: LedgerAtNats | LedgerInFiles) -> LedgerCheck:
    """Check all segments that there are. Raises: CommandError if there is no ledger; BusError; ArchiveError."""
    check = LedgerCheck(ledger.shard)
    with Progress("entries checked") as progress:
        for segment in await ledger.segments():
            check.begin(segment)
            async with aclosing(ledger.entries(segment)) as batches:
                async for batch in batches:
                    check.add(batch)
                    progress.add(len(batch), f"of segment {segment}")
            check.end()
    return check


def segment_table(check: LedgerCheck) -> Table:
    """A line for each segment."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SEGMENT", "FIRST", "LAST", "ENTRIES", "CHECKPOINT", "COMPARED", "CLOSED", "STATE"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("COMPARED", "CLOSED", "STATE") else "right")
    for each in check.segments:
        state = Text("bad", "red") if each.bad else Text("ok", "green") if each.opened else Text("not open", "yellow")
        table.add_row(
            str(each.segment),
            str(each.first),
            str(each.last),
            str(each.entries),
            str(each.checkpoint),
            "yes" if each.compared else "-",
            "yes" if each.closed else "no",
            state,
        )
    return table


def _table(check: LedgerCheck, stuck: str) -> Group:
    notes = [Text(f"note: {note}") for note in [*check.notes, *check.chain.notes()]]
    bad = [
        Text(f"segment {found.segment}, sequence {found.sequence}, {found.subject or 'no one entry'}: {found.problem}")
        for each in check.segments
        if (found := each.bad) is not None
    ]
    if stuck:
        bad.append(Text(stuck))
    if not bad:
        entries = sum(each.entries for each in check.segments)
        bad = [Text(f"{entries} entries in {len(check.segments)} segments: nothing is wrong", "green")]
    return Group(segment_table(check), Text(), *notes, *bad)
