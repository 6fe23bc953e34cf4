"""`dragoman claims` and `dragoman pools`: where all claims are, and what is free."""

import argparse

import msgspec

from broker.cli.bus import add_nats_arguments
from broker.cli.calls import call_list
from broker.cli.output import claim_table, console, pool_table, print_json
from broker.machine.report import ClaimRow, PoolRow

CLAIMS_EPILOG = """\
Why one claim is where it is: dragoman explain NAMESPACE/NAME.

examples:
  dragoman claims
  dragoman claims --cluster west --namespace ml --state Pending
  dragoman claims -o json | jq 'group_by(.reason) | map({reason: .[0].reason, claims: length})'
"""
POOLS_EPILOG = """\
examples:
  dragoman pools
  dragoman pools -o json | jq '.[] | select(.problem != "")'

TAINTED: so many of the free devices are for claims that tolerate their taints, for no others.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `claims` and `pools`."""
    claims = commands.add_parser(
        "claims",
        help="where all claims are: who has what, and why others wait",
        description="Show every claim that the broker knows of: its devices, or the reason why it waits.",
        epilog=CLAIMS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    claims.add_argument("--cluster", metavar="NAME", help="of this cluster only")
    claims.add_argument("-n", "--namespace", metavar="NAME", help="of this namespace only")
    claims.add_argument("--state", choices=("Allocated", "Pending", "Invalid"), help="in this state only")
    claims.set_defaults(run=run_claims)
    pools = commands.add_parser(
        "pools",
        help="the pools of devices, and how much of each is free",
        description="Show every pool: its devices, how many are free, and what is wrong with it.",
        epilog=POOLS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pools.set_defaults(run=run_pools)
    for parser in (claims, pools):
        parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
        add_nats_arguments(parser)


def run_claims(options: argparse.Namespace) -> int:
    """Ask, choose and print."""
    asked = (options.cluster, options.namespace, options.state)
    rows = [
        row
        for row in msgspec.json.decode(call_list(options, "claims", options.cluster), type=list[ClaimRow])
        if all(want in (None, is_) for want, is_ in zip(asked, (row.cluster, row.namespace, row.state), strict=True))
    ]
    if options.output == "json":
        print_json(rows)
    else:
        console().print(claim_table(rows))
    return 0


def run_pools(options: argparse.Namespace) -> int:
    """Ask and print."""
    answer = call_list(options, "pools")
    if options.output == "json":
        print_json(msgspec.Raw(answer))
    else:
        console().print(pool_table(msgspec.json.decode(answer, type=list[PoolRow])))
    return 0
