"""`dragoman nats-setup`: make the streams, and change those of ours that should be otherwise."""

import argparse
import re

import anyio
from rich.table import Table

from broker.adapters.durability import Durability, server_problems
from broker.adapters.errors import StreamSettingsError
from broker.adapters.streams import HOUR_S, StreamDone, StreamSettings, set_up_streams
from broker.cli.bus import add_monitor_argument, add_nats_arguments, bus_options
from broker.cli.errors import CommandError
from broker.cli.output import console, print_json
from broker.errors import flat
from schemas.client.connection import connect
from schemas.client.durable import NAME_PATTERN, make_durable, remove_durable
from schemas.client.errors import BusError
from schemas.client.since import Since

_AGE = re.compile(r"([1-9][0-9]{0,5})([hd])")
_SECONDS = {"h": HOUR_S, "d": 24 * HOUR_S}
AGE_S_MOST = 106_751 * _SECONDS["d"]  # NATS counts nanoseconds in 63 bits

EPILOG = """\
It is safe to repeat. A stream that Dragoman did not make, and one that would promise less than it does, is changed only
if you say so; until then nothing is changed at all.

examples:
  dragoman nats-setup --nats tls://n1:4222 --nkey nats/keys/setup.nk --tls-ca nats/tls/ca.crt
  dragoman nats-setup --nkey nats/keys/setup.nk --tls-ca nats/tls/ca.crt --subscriber billing
  dragoman nats-setup --nkey nats/keys/setup.nk --tls-ca nats/tls/ca.crt --forget-subscriber billing
  dragoman nats-setup --nkey setup.nk --replicas 3 --state-age 7d -o json
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `nats-setup`."""
    parser = commands.add_parser(
        "nats-setup",
        help="make the streams in NATS",
        description="Make the streams of a federation in NATS, and update them; with a credential of its own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_nats_arguments(parser)
    add_monitor_argument(parser)
    parser.add_argument(
        "--replicas", type=int, choices=(1, 3, 5), help="of every stream (default: 3 in a cluster of servers, else 1)"
    )
    for name, default, what in (
        ("state", "72h", "what clusters show"),
        ("events", "30d", "public events"),
        ("dead-letters", "30d", "messages that could not be applied"),
    ):
        parser.add_argument(
            f"--{name}-age",
            type=_age,
            metavar="AGE",
            help=f"{what} (default: {default} for a new stream, else as it is)",
        )
    parser.add_argument(
        "--subscriber",
        action="append",
        default=[],
        metavar="NAME",
        help="this one of `nats-config --subscriber` reads events under a durable name: its place begins with all"
        " that is kept",
    )
    parser.add_argument(
        "--forget-subscriber",
        action="append",
        default=[],
        metavar="NAME",
        help="nobody reads events under this durable name any more: its place is forgotten",
    )
    parser.add_argument("--adopt", action="store_true", help="change streams that Dragoman did not make")
    parser.add_argument("--loosen", action="store_true", help="change streams that then promise less")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Make the streams and say what was done."""
    for argument, names in (("--subscriber", options.subscriber), ("--forget-subscriber", options.forget_subscriber)):
        for name in names:
            if not NAME_PATTERN.fullmatch(name):
                raise CommandError(f"{argument}: {name!r} is no name of a subscriber")
    if both := sorted({*options.subscriber} & {*options.forget_subscriber}):
        raise CommandError(
            f"{both[0]!r}: a place is made by --subscriber or forgotten by --forget-subscriber, not both"
        )
    settings = StreamSettings(
        replicas=options.replicas,
        state_age_s=options.state_age,
        events_age_s=options.events_age,
        dead_letters_age_s=options.dead_letters_age,
    )
    nats = bus_options(options, "dragoman nats-setup", "setup")

    async def set_up() -> tuple[list[StreamDone], dict[str, str], list[str]]:
        async with connect(nats) as connection:
            problems = await server_problems(connection, Durability(tuple(options.nats_monitor)))
            done = await set_up_streams(connection, settings, adopt=options.adopt, loosen=options.loosen)
            places: dict[str, str] = {}
            for name in options.subscriber:
                places[name] = "made" if await make_durable(connection, name, Since.beginning()) else "found"
            for name in options.forget_subscriber:
                places[name] = "forgotten" if await remove_durable(connection, name) else "absent"
            return done, places, problems

    try:
        done, places, problems = anyio.run(set_up)
    except* (BusError, StreamSettingsError) as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None
    if options.output == "json":
        print_json({"streams": done, "subscribers": places, "problems": problems})
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("STREAM", "ACTION", "REPLICAS", "CHANGES"):
            table.add_column(name, no_wrap=name != "CHANGES")
        for each in done:
            table.add_row(each.stream, each.action, str(each.replicas), "\n".join(each.changes))
        console().print(table)
        for name, action in places.items():
            console().print(f"place of subscriber {name}: {action}", markup=False)
        for problem in problems:
            console().print(f"not safe: {problem}", markup=False)
    return 1 if problems else 0


def _age(text: str) -> int:
    found = _AGE.fullmatch(text)
    age_s = int(found[1]) * _SECONDS[found[2]] if found is not None else 0
    if not 0 < age_s <= AGE_S_MOST:
        most = f"{AGE_S_MOST // _SECONDS['d']}d"
        raise argparse.ArgumentTypeError(f"{text!r} is no age such as 72h or 30d, at most {most}")
    return age_s
