"""`dragoman device`: devices that are kept from new claims, by reports of their holders or by an operator."""

import argparse
from typing import get_args

import msgspec

from broker.app.api import DeviceCall
from broker.cli.bus import add_nats_arguments
from broker.cli.calls import call, call_list, login
from broker.cli.errors import CommandError
from broker.cli.output import console, device_table, print_json
from broker.machine.device_report import DeviceRow
from broker.machine.device_taints import MAINTENANCE, UNHEALTHY
from schemas.wire.ledger import TaintEffect

EPILOG = f"""\
A taint keeps claims off a device that do not tolerate it, and takes nothing from whoever has it; only NoExecute ends
pods that have it, in the clusters where agents write DeviceTaintRules. The broker taints what its holder reports
unhealthy with {UNHEALTHY}; what you taint has {MAINTENANCE} if you name no other key.
Your name and the reason are in the ledger. docs/devices.md says how a taint ends.

examples:
  dragoman device list
  dragoman device list -o json | jq '.[] | select(.holders == [])'
  dragoman device taint gpu.example.com/rack7/gpu-3 --reason "fan is loud"
  dragoman device taint gpu.example.com/rack7/gpu-3 --effect NoExecute --reason "smoke"
  dragoman device untaint gpu.example.com/rack7/gpu-3 --reason "new fan"
  dragoman device untaint gpu.example.com/rack7/gpu-3 --key {UNHEALTHY} --reason "replaced"

exit code: 0; 1 if the broker refuses or does not answer; 2 for wrong arguments.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `device` and its verbs."""
    parser = commands.add_parser(
        "device",
        help="devices that are broken or drained; taint, untaint",
        description="Show which devices the broker keeps from new claims, or order something about one.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    listing = verbs.add_parser(
        "list", help="devices that the broker has tainted", epilog="example: dragoman device list"
    )
    listing.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_nats_arguments(listing)
    listing.set_defaults(run=run_list)
    for verb, short, description in (
        ("taint", "give a device to nobody any more", "Who has it keeps it; give it back with untaint."),
        ("untaint", "take a taint off", "Ends a taint that an operator set, or that a holder's report led to."),
    ):
        order = verbs.add_parser(
            verb,
            help=short,
            description=description,
            epilog=f'example: dragoman device {verb} D/P/DEVICE --reason "..."',
        )
        order.add_argument("device", metavar="DRIVER/POOL/DEVICE", help="as `dragoman explain` names it")
        order.add_argument("--reason", required=True, help="why, for those who read the ledger later")
        order.add_argument("--operator", help="who orders it (default: your login name)")
        order.add_argument("--scope", default="", help="fabric/NAME or cluster/NAME, where several have that pool")
        order.add_argument("--key", default="", help="of the taint")
        if verb == "taint":
            order.add_argument(
                "--effect",
                choices=get_args(TaintEffect),
                default="NoSchedule",
                help="NoExecute: pods that have it end, where the broker's config says so (default: %(default)s)",
            )
        add_nats_arguments(order)
        order.set_defaults(run=run_order)


def run_list(options: argparse.Namespace) -> int:
    """Ask and print."""
    answer = call_list(options, "devices")
    if options.output == "json":
        print_json(msgspec.Raw(answer))
    else:
        console().print(device_table(msgspec.json.decode(answer, type=list[DeviceRow])))
    return 0


def run_order(options: argparse.Namespace) -> int:
    """Order, and say what is true now."""
    driver, _, rest = options.device.partition("/")
    pool, _, device = rest.rpartition("/")
    if not (driver and pool and device):
        raise CommandError(f"{options.device!r} is not DRIVER/POOL/DEVICE")
    ordered = DeviceCall(
        options.verb,
        driver,
        pool,
        device,
        options.operator or login(),
        options.reason,
        options.scope,
        options.key,
        options.effect if options.verb == "taint" else "NoSchedule",
    )
    call(options, "device", msgspec.json.encode(ordered))
    after = "has one taint less, see dragoman device list"
    if ordered.verb == "taint":
        kept = (
            "who has it keeps it" if ordered.effect == "NoSchedule" else "pods that have it end where rules are written"
        )
        after = f"is tainted: {kept}, and nobody else gets it who does not tolerate that"
    print(f"device {options.device} {after}")
    return 0
