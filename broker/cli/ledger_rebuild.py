"""`dragoman ledger rebuild`: the ledger was lost; begin it anew from what the clusters have."""

import argparse
import sys
import time
from pathlib import Path

import shtab

from broker.app.rebuild import SEQUENCE_MOST, RebuildRefusedError, Rebuilt, rebuild_ledger
from broker.cli.bus import add_nats_arguments
from broker.cli.calls import login
from broker.cli.errors import CommandError
from broker.cli.federation import read_federation
from broker.cli.ledger_bus import SHARD, with_nats
from broker.cli.output import print_json
from broker.errors import LedgerLostError
from schemas.client.connection import Connection

EPILOG = """\
When the broker says that the ledger was lost, cut, or is an older copy than the clusters know. Stop all brokers first;
agents may run on. With the broker's key.

It closes what is left of the ledger, and opens a segment far above every number that was seen anywhere. Start a broker
then. Each cluster's agent begins another run, makes sure that no write of a forgotten decision can land any more, and
publishes everything. What claims have allocated stays theirs; nothing new is granted before every cluster of a fabric
has come (`dragoman cluster list`: Waiting; `dragoman cluster exclude` for one that never will). Cordons and evictions
are taken over where the old ledger can still be read.

example:
  dragoman ledger rebuild --config federation.yaml --nkey nats/keys/broker.nk --reason "disk of n1 died"

exit code: 0 done; 1 it could not be done; 2 wrong arguments.
"""


def add_verb(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `rebuild`."""
    parser = verbs.add_parser(
        "rebuild",
        help="begin a lost ledger anew from what the clusters have",
        description="The ledger was lost: begin it anew from what the clusters have.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    config = parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="the brokers' config file: who takes part"
    )
    config.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    parser.add_argument("--reason", required=True, help="why, for those who read the ledger later")
    parser.add_argument("--operator", help="who orders it (default: your login name)")
    parser.add_argument(
        "--above", type=_sequence, default=0, metavar="N", help="a ledger sequence that you have seen, in a log perhaps"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask for confirmation")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_nats_arguments(parser)
    parser.set_defaults(run=run)


def _sequence(text: str) -> int:
    if not text.isdecimal() or len(text) > len(str(SEQUENCE_MOST)) or int(text) > SEQUENCE_MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is no ledger sequence: expected a number up to {SEQUENCE_MOST}")
    return int(text)


def run(options: argparse.Namespace) -> int:
    """Confirm, rebuild, and say what was done and what comes next."""
    federation = read_federation(options.config)
    if not options.reason.strip():
        raise CommandError("--reason: the ledger keeps why; it needs one")
    operator = options.operator or login()
    if not options.yes:
        _confirm()

    async def rebuild(connection: Connection) -> Rebuilt:
        now_ms = time.time_ns() // 1_000_000
        try:
            return await rebuild_ledger(connection, federation, SHARD, operator, options.reason, now_ms, options.above)
        except (RebuildRefusedError, LedgerLostError) as error:
            raise CommandError(str(error), exit_code=1) from error

    done = with_nats(options, "broker", rebuild)
    if options.output == "json":
        print_json(done)
    else:
        _tell(done)
    return 0


def _tell(done: Rebuilt) -> None:
    left = ", ".join(map(str, done.left)) or "none"
    print(f"segments that were left: {left}{f' ({done.problem})' if done.problem else ''}")
    print(f"highest ledger sequence seen anywhere: {done.highest_seen}")
    print(f"the ledger goes on in segment {done.segment} at {done.first_sequence}")
    if done.kept:
        print(f"taken over: {', '.join(done.kept)}")
    print(f"clusters that must come: {', '.join(done.clusters)}")
    print("now start a broker, and see `dragoman cluster list`")


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise CommandError("rebuild asks for confirmation, and nobody can be asked here: give --yes")
    text = "Begin the ledger anew? No decision that it has counts any more. Type rebuild to go on: "
    print(text, end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != "rebuild":
        raise CommandError("nothing was done", exit_code=1)
