"""`dragoman cluster`: how clusters stand, and what an operator can order about them."""

import argparse
import sys
import time

import msgspec

from broker.app.api import ClusterCall
from broker.cli import membership
from broker.cli.bus import add_nats_arguments
from broker.cli.calls import call, login
from broker.cli.errors import CommandError
from broker.cli.output import cluster_table, console, print_json
from broker.machine.cluster_report import ClusterRow
from schemas.wire.ledger import Verb

EPILOG = """\
Whatever is ordered is in the ledger with your name and the reason. docs/clusters.md says what each order promises, and
what it does not.

examples:
  dragoman cluster list
  dragoman cluster list -o json | jq '.[] | select(.state != "Ready")'
  dragoman cluster cordon west --reason "kernel update"
  dragoman cluster uncordon west
  dragoman cluster exclude north --reason "not built yet"
  dragoman cluster evict west --reason "flooded" --fenced
  dragoman cluster readmit west --reason "dry again"
  dragoman cluster join east --context east --class gpu.example.com
  dragoman cluster leave east --context east --reason "back to one cluster"

exit code: 0; 1 if the broker refuses or does not answer; 2 for wrong arguments.
"""
_VERBS: dict[Verb, tuple[str, str, str]] = {  # help, description, what is true afterwards
    "cordon": (
        "grant nothing new to a cluster",
        "Its claims keep what they have and get nothing new; others go on using fabrics that it is the source of.",
        "is cordoned: its claims keep what they have, and get nothing new",
    ),
    "uncordon": ("end a cordon", "Its claims get devices again.", "is not cordoned any more"),
    "exclude": (
        "do not wait for a cluster that was never heard",
        "You vouch that it holds nothing of its fabrics. It takes part as soon as it has finished a full sync.",
        "is excluded: nobody waits for it, and it gets nothing before it has finished a full sync",
    ),
    "evict": (
        "do not believe a cluster any more",
        "Revoke its agent's NATS credential first. What it holds stays held (quarantine), unless --fenced.",
        "is evicted",
    ),
    "readmit": (
        "let an evicted cluster come back",
        "Give its agent a new NATS credential and start it; after --fenced it clears every allocation of before.",
        "may come back: it gets something again when its agent has cleaned up and finished a full sync",
    ),
}


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `cluster` and its verbs."""
    parser = commands.add_parser(
        "cluster",
        help="how clusters stand; cordon, exclude, evict, readmit; join, leave",
        description="Show how clusters stand, or order something about one.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="how each cluster stands", epilog="example: dragoman cluster list -o json")
    listing.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_nats_arguments(listing)
    listing.set_defaults(run=run_list)
    membership.add_verbs(verbs)
    for verb, (short, description, _) in _VERBS.items():
        options = "" if verb == "uncordon" else ' --reason "..."'
        order = verbs.add_parser(
            verb, help=short, description=description, epilog=f"example: dragoman cluster {verb} west{options}"
        )
        order.add_argument("cluster", metavar="CLUSTER", help="the cluster's name in the federation")
        needs = verb != "uncordon"
        order.add_argument("--reason", required=needs, default="", help="why, for those who read the ledger later")
        order.add_argument("--operator", help="who orders it (default: your login name)")
        if verb == "evict":
            order.add_argument(
                "--fenced", action="store_true", help="you vouch that it is cut off from them: free its devices"
            )
            order.add_argument("--yes", action="store_true", help="do not ask for confirmation")
        add_nats_arguments(order)
        order.set_defaults(run=run_order, fenced=False)


def run_list(options: argparse.Namespace) -> int:
    """Ask and print."""
    answer = call(options, "clusters")
    if options.output == "json":
        print_json(msgspec.Raw(answer))
    else:
        rows = msgspec.json.decode(answer, type=list[ClusterRow])
        console().print(cluster_table(rows, time.time_ns() // 1_000_000))
    return 0


def run_order(options: argparse.Namespace) -> int:
    """Confirm, order, and say what is true now."""
    order = ClusterCall(options.verb, options.cluster, options.operator or login(), options.reason, options.fenced)
    if order.verb == "evict" and not options.yes:
        _confirm(order)
    call(options, "cluster", msgspec.json.encode(order))
    after = _VERBS[order.verb][2]
    if order.verb == "evict":
        after += ": others get its devices" if order.fenced else ", and what it holds stays held"
        after += f". It comes back with `dragoman cluster readmit {order.cluster}`"
    print(f"cluster {order.cluster} {after}")
    return 0


def _confirm(order: ClusterCall) -> None:
    if not sys.stdin.isatty():
        raise CommandError("evict asks for confirmation, and nobody can be asked here: give --yes")
    what = "give its devices to others: you vouch that it is cut off from them" if order.fenced else "quarantine it"
    print(f"Evict cluster {order.cluster}, and {what}? Type its name to go on: ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip() != order.cluster:
        raise CommandError("nothing was done", exit_code=1)
