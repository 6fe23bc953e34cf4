"""`dragoman audit`: prove what the ledger says. Verify it, anchor it outside, export it, erase names from copies."""

import argparse
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import shtab
from rich.console import Group
from rich.text import Text

from broker.adapters.anchor_keys import is_public_key, read_anchor, read_public_key, sign, write_key
from broker.adapters.errors import AnchorError
from broker.adapters.state_history import StateHistory
from broker.allocation.cel.engine import default_engine
from broker.app.audit import AuditFound, Ledger, Replayed, Replayer, audit
from broker.app.warm_world import collector_paused
from broker.cli import audit_export
from broker.cli.bus import add_nats_arguments
from broker.cli.errors import CommandError
from broker.cli.federation import read_federation
from broker.cli.ledger import as_json, segment_table
from broker.cli.ledger_bus import SHARD, run_async, with_nats
from broker.cli.ledger_source import LedgerAtNats, LedgerInFiles
from broker.cli.local import settings_digest
from broker.cli.moments import add_range_arguments, range_of
from broker.cli.output import console, print_json
from broker.cli.progress import Progress
from broker.cli.up import make_federation
from broker.world.federation import Federation
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from schemas.wire.anchor import Anchor
from schemas.wire.chain import chain_of
from schemas.wire.subjects import ledger_stream

EPILOG = """\
examples:
  dragoman audit verify --config federation.yaml --nkey nats/keys/operator.nk
  dragoman audit key anchor.nk
  dragoman audit anchor --key anchor.nk --file anchors/$(date +%F).json
  dragoman audit verify --anchor anchors/2026-11-30.json --trust UA7Q...
  dragoman audit export --since 30d --format csv --file decisions.csv

docs/audit.md says what each of them proves, and what it does not.
"""
EPILOG_VERIFY = """\
Reads only. Without files it reads what is in NATS, with the operator's key.

checked: all that `dragoman ledger verify` checks, the hash chain among it; that each decision comes out the same, byte
for byte, when it is made again from the messages of DRA_STATE on which it was made; that the ledger goes through each
anchor. What cannot be made again is listed with the reason: inputs that have expired, another algorithm, settings that
were not given. With --replay that is a fault; without, it is none.

A range is read from the beginning of the segment that it begins in. Decisions of a leader who was elected before that
are not made again.

examples:
  dragoman audit verify --config federation.yaml
  dragoman audit verify --since 1h --config now.yaml --config before.yaml --replay
  dragoman audit verify --cluster east --cluster west     # what `dragoman up` with these clusters has decided
  dragoman audit verify archive/*.jsonl.zst --anchor anchor.json --trust UA7Q... -o json

exit code: 0 all is well; 1 something is wrong, or there is no ledger, or no NATS; 2 wrong arguments.
"""
EPILOG_ANCHOR = """\
Signs where the ledger's hash chain is now. Keep the file where nobody who can write to NATS can: whoever may write all
of the ledger can write another chain, and only an anchor shows that. `dragoman audit verify --anchor FILE` proves that
the ledger still goes through it, so that nothing before it was changed since.

examples:
  dragoman audit key anchor.nk                              # once; prints the public key: keep that with the anchors
  dragoman audit anchor --key anchor.nk --file anchors/2026-11-30.json
  dragoman audit anchor --check anchors/2026-11-30.json --trust UA7Q...

exit code: 0 done; 1 there is no ledger or no chain, or a signature is wrong; 2 wrong arguments.
"""
EPILOG_KEY = """\
An NKey (Ed25519), as NATS' own tools make it; any other user NKey's seed does as well. It signs anchors, and need not
be known to NATS.

example:
  dragoman audit key anchor.nk

exit code: 0; 1 the file cannot be written, or is there already.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `audit` and its verbs."""
    parser = commands.add_parser(
        "audit",
        help="prove what the ledger says: verify, anchor, export, erase names",
        description="Prove what the ledger says: the record of who was given what, and why.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    _add_verify(verbs)
    _add_anchor(verbs)
    audit_export.add_verbs(verbs)


def _add_verify(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verify = verbs.add_parser(
        "verify",
        help="is it unchanged, and do its decisions come out the same?",
        description="Check the hash chain and every entry, and make decisions again; name the first that is wrong.",
        epilog=EPILOG_VERIFY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files = verify.add_argument("files", nargs="*", metavar="FILE", type=Path, help="archived segments, not NATS")
    add_range_arguments(verify)
    replay = verify.add_mutually_exclusive_group()
    replay.add_argument(
        "--replay", action="store_true", default=None, help="a decision that cannot be made again is a fault"
    )
    replay.add_argument("--no-replay", action="store_false", dest="replay", help="make no decision again")
    config = verify.add_argument(
        "--config",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="the brokers' config file; give each that was in force",
    )
    verify.add_argument(
        "--cluster", action="append", default=[], metavar="NAME", help="as `dragoman up` had them, in its order"
    )
    anchor = verify.add_argument(
        "--anchor", action="append", default=[], type=Path, metavar="FILE", help="the ledger must go through it"
    )
    verify.add_argument("--trust", default="", metavar="KEY", help="public key that must have signed the anchors")
    for each in (files, config, anchor):
        each.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    verify.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_nats_arguments(verify)
    verify.set_defaults(run=run_verify)


def run_verify(options: argparse.Namespace) -> int:
    """Check, and say what was found."""
    if options.trust and not options.anchor:
        raise CommandError("--trust goes with --anchor: it says who must have signed that")
    _must_be_a_key(options.trust)
    try:
        anchors = [read_anchor(path, options.trust) for path in options.anchor]
    except AnchorError as error:
        raise CommandError(str(error), exit_code=1) from None
    federations = _federations(options.config, options.cluster)
    if options.files and not options.replay:
        found, why_not = run_async(lambda: _verify_files(options, anchors)), "files have no inputs: give --replay"
    else:
        found, why_not = with_nats(options, "operator", lambda nats: _verify(nats, options, anchors, federations)), ""
    if options.replay is False:
        why_not = "--no-replay"
    left_out = found.replayed.left_out if found.replayed is not None else []
    is_ok = found.bad is None and not (options.replay and left_out)
    if options.output == "json":
        print_json(
            {
                **as_json(found.check),
                "ok": is_ok,
                "replay": found.replayed,
                "not_replayed": why_not,
                "anchors": found.anchors,
                "bad": found.bad,
            }
        )
    else:
        console().print(_report(found, why_not, is_ok=is_ok))
    return 0 if is_ok else 1


def _must_be_a_key(trusted: str) -> None:
    if trusted and not is_public_key(trusted):
        raise CommandError(f"--trust {trusted}: that is no public NKey of a user")


def _federations(configs: Sequence[Path], clusters: list[str]) -> dict[str, Federation]:
    """By digest, as brokers with these settings name them."""
    found = [read_federation(path) for path in configs]
    if clusters:
        found += [make_federation(clusters, path) for path in configs] or [make_federation(clusters, None)]
    return {settings_digest(each): each for each in found}


async def _verify_files(options: argparse.Namespace, anchors: Sequence[Anchor]) -> AuditFound:
    ledger = LedgerInFiles(options.files)
    with Progress("entries checked") as progress, collector_paused():
        return await audit(ledger, range_of(options), None, anchors, progress.add)


async def _verify(
    connection: Connection, options: argparse.Namespace, anchors: Sequence[Anchor], federations: dict[str, Federation]
) -> AuditFound:
    ledger: Ledger = LedgerInFiles(options.files) if options.files else LedgerAtNats(connection)
    with Progress("entries checked") as progress, collector_paused():
        if options.replay is False:
            return await audit(ledger, range_of(options), None, anchors, progress.add)
        async with StateHistory(connection) as history:
            replayer = Replayer(history, default_engine(), federations)
            return await audit(ledger, range_of(options), replayer, anchors, progress.add)


def _report(found: AuditFound, why_not: str, *, is_ok: bool) -> Group:
    chain = found.check.chain
    lines = []
    if chain.head is not None:
        lines.append(
            Text(
                f"chain: {chain.entries} entries, up to {chain.head.ledger_sequence} at {chain.head.time}: "
                f"{chain.head.chain}"
            )
        )
    else:
        lines.append(Text("chain: no entry is chained", "yellow"))
    lines += [
        Text(f"anchor: the ledger goes through {each.ledger_sequence}, as {each.public_key} signed at {each.signed_at}")
        for each in found.anchors
    ]
    if found.replayed is None:
        lines.append(Text(f"decisions were not made again ({why_not})", "yellow"))
    else:
        lines += _replayed(found.replayed)
    lines += [Text(f"note: {note}") for note in [*found.check.notes, *chain.notes()]]
    if found.bad is not None:
        bad = found.bad
        place = f"segment {bad.segment}, sequence {bad.sequence}, {bad.subject or 'no one entry'}"
        lines.append(Text(f"bad: {place}: {bad.problem}", "red"))
    elif is_ok:
        lines.append(Text("nothing is wrong", "green"))
    else:
        lines.append(Text("not all decisions could be made again, and --replay asks for that", "red"))
    return Group(segment_table(found.check), Text(), *lines)


def _replayed(replayed: Replayed) -> list[Text]:
    lines = [
        Text(
            f"replay: {replayed.decisions} decisions in {replayed.batches} batches of {replayed.terms} leaders"
            " were made again: the same bytes"
        )
    ]
    lines += [
        Text(f"not made again: {each.decisions} decisions, entries {each.first} to {each.last}: {each.why}", "yellow")
        for each in replayed.left_out
    ]
    return lines


# --- anchors


def _add_anchor(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    anchor = verbs.add_parser(
        "anchor",
        help="sign where the chain is now, to be kept elsewhere",
        description="Sign where the ledger's hash chain is now; or check the signature of such an anchor.",
        epilog=EPILOG_ANCHOR,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = anchor.add_mutually_exclusive_group(required=True)
    key = what.add_argument("--key", type=Path, metavar="FILE", help="sign with this key; see `dragoman audit key`")
    check = what.add_argument("--check", type=Path, metavar="FILE", help="check this anchor's signature, nothing else")
    file = anchor.add_argument("--file", type=Path, metavar="FILE", help="write it here (default: stdout)")
    for each in (key, check, file):
        each.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    anchor.add_argument("--trust", default="", metavar="KEY", help="with --check: public key that must have signed it")
    add_nats_arguments(anchor)
    anchor.set_defaults(run=run_anchor)
    new = verbs.add_parser(
        "key",
        help="make a key for anchors",
        description="Make a key that signs anchors, and print its public part.",
        epilog=EPILOG_KEY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    path = new.add_argument("path", type=Path, metavar="FILE", help="where; it must not be there yet")
    path.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    new.set_defaults(run=run_key)


def run_key(options: argparse.Namespace) -> int:
    """Write it, and print the public part."""
    try:
        print(write_key(options.path))
    except AnchorError as error:
        raise CommandError(str(error), exit_code=1) from None
    return 0


def run_anchor(options: argparse.Namespace) -> int:
    """Sign, or check."""
    if options.trust and not options.check:
        raise CommandError("--trust goes with --check: it says who must have signed that")
    _must_be_a_key(options.trust)
    try:
        if options.check:
            anchor = read_anchor(options.check, options.trust)
            print(f"entry {anchor.ledger_sequence} of {anchor.time}, signed by {anchor.public_key}: {anchor.chain}")
            return 0
        read_public_key(options.key)  # before anything is asked
        if options.file is not None and options.file.exists():
            raise CommandError(f"{options.file} is there already: an anchor is never written over")
        anchor = sign(with_nats(options, "operator", _head), options.key)
        text = msgspec.json.format(msgspec.json.encode(anchor), indent=2) + b"\n"
        if options.file is None:
            print(text.decode(), end="")
        else:
            _write(options.file, text)
    except AnchorError as error:
        raise CommandError(str(error), exit_code=1) from None
    return 0


def _write(file: Path, text: bytes) -> None:
    """Raises: CommandError."""
    try:
        file.write_bytes(text)
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror}", exit_code=1) from error


async def _head(connection: Connection) -> Anchor:
    """Where the chain is now, not signed yet. Raises: CommandError; BusError."""
    for segment in reversed(await LedgerAtNats(connection).segments()):
        last = await StreamReader(connection, ledger_stream(SHARD, segment)).last()
        if last is None:
            continue  # not open yet: the one before it is where the ledger ends
        if not chain_of(last):
            raise CommandError(
                f"ledger entry {last.stream_sequence} is not chained: a build before the hash chain wrote it; its"
                " chain begins with the next broker of this build that leads",
                exit_code=1,
            )
        return Anchor(
            shard=SHARD,
            segment=segment,
            ledger_sequence=last.stream_sequence,
            chain=chain_of(last),
            time=last.headers.get("ce-time", ""),
            signed_at=datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            public_key="",
        )
    raise CommandError("the ledger has no entries yet", exit_code=1)
