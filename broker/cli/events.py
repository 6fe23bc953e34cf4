"""`dragoman events`: what happened, and what happens."""

import argparse
from collections.abc import Callable
from contextlib import aclosing, nullcontext
from datetime import datetime
from typing import get_args

import anyio
import msgspec
from rich.console import Console
from rich.text import Text

from broker.cli.bus import add_nats_arguments, bus_options
from broker.cli.errors import CommandError
from broker.cli.moments import sequence_or_time
from broker.cli.output import console
from broker.cli.signals import until_told_to_stop
from broker.errors import flat
from schemas.client.connection import connect
from schemas.client.durable import NAME_PATTERN
from schemas.client.errors import BusError
from schemas.client.since import Since
from schemas.client.subscribe import Received, subscribe
from schemas.events import AnyEvent, event_type

CONNECT_DEADLINE_S = 3.0
YEAR_MOST = 2261  # NATS counts nanoseconds in 63 bits: what is later it takes for a time long ago
TYPES = {
    event_type(each).removeprefix("dev.dragoman.").removesuffix(".v1"): event_type(each) for each in get_args(AnyEvent)
}

EPILOG = f"""\
types: {", ".join(sorted(TYPES))}

examples:
  dragoman events --since 1h
  dragoman events --follow --type claim.allocated --type claim.released --cluster east
  dragoman events --follow --durable billing --since 30d --type claim.released -o json
  dragoman events --follow --since 4711 -o json | jq -r 'select(.event.reason == "DevicesInUse") | .event.claim.name'

With -o json each line is one event: id, type, time, stream_sequence (to go on with --since), and the event itself.
docs/events.md says what each of them means. exit code: 0; 1 if NATS does not answer or does not let you.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `events`."""
    parser = commands.add_parser(
        "events",
        help="what happened, and what happens: the public events",
        description="Show the events that are kept, and with --follow those that come.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    parser.add_argument(
        "--since",
        type=_since,
        metavar="WHEN",
        help="30m, 1h, 2d; a time as 2026-01-31T12:00Z; or after the event with this stream_sequence"
        " (default: all that is kept; with --follow what comes)",
    )
    parser.add_argument("--type", action="append", choices=sorted(TYPES), default=[], metavar="TYPE", help="see below")
    parser.add_argument("--cluster", type=_name_of("name of a cluster"), metavar="NAME", help="of this cluster only")
    parser.add_argument(
        "--durable",
        type=_name_of("durable name"),
        metavar="NAME",
        help="go on where the last run with this name was, and share the events with others that run with it;"
        " --since is where a new name begins. A --subscriber has its own name for it",
    )
    parser.add_argument(
        "--subscriber",
        type=_name_of("name of a subscriber"),
        metavar="NAME",
        help="who we are at NATS, with that role's --nkey (default: an operator)",
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_nats_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print until there is nothing more, or until told to stop."""
    to = console()
    since = options.since or (Since.new() if options.follow else Since.beginning())
    types = [TYPES[each] for each in options.type]
    role = f"subscriber-{options.subscriber}" if options.subscriber else "operator"
    nats = bus_options(options, "dragoman events", role)

    async def show() -> None:
        until_stopped = until_told_to_stop() if options.follow else nullcontext()
        async with until_stopped, connect(nats, CONNECT_DEADLINE_S) as connection:
            found = subscribe(
                connection,
                types=types,
                cluster=options.cluster or "",
                since=since,
                follow=options.follow,
                durable=options.durable or "",
            )
            async with aclosing(found):
                async for received in found:
                    if options.output == "json":
                        print(msgspec.json.encode(_as_json(received)).decode(), flush=True)
                    else:
                        _show(to, received)

    try:
        anyio.run(show)
    except* BusError as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None
    return 0


def _as_json(received: Received) -> dict[str, object]:
    return {
        "id": received.id,
        "type": received.type,
        "time": received.time,
        "stream_sequence": received.stream_sequence,
        "event": msgspec.Raw(received.payload),
    }


def _show(to: Console, received: Received) -> None:
    """A line for people."""
    event = msgspec.to_builtins(received.event) if received.event is not None else {}
    claim, device = event.get("claim"), event.get("device")
    if claim:
        about = f"{claim['cluster']}/{claim.get('namespace', '')}/{claim.get('name', '') or claim['uid']}"
    elif device:
        about = f"{device['pool']}/{device['device']}"
    else:
        about = event.get("cluster", received.subject)
    holds = ", ".join(f"{each['request']}={each['pool']}/{each['device']}" for each in event.get("devices", []))
    words = [
        holds,
        *(str(event[name]) for name in ("reason", "cause", "outcome", "key", "operator") if event.get(name)),
    ]
    what = received.type.removeprefix("dev.dragoman.").removesuffix(".v1")
    to.print(Text(f"{received.time}  {what:26} {about}  {'  '.join(filter(None, words))}".rstrip()), soft_wrap=True)


def _name_of(what: str) -> Callable[[str], str]:
    def name(text: str) -> str:
        if not NAME_PATTERN.fullmatch(text):
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}: letters, digits, '-' and '_', at most 64")
        return text

    return name


def _since(text: str) -> Since:
    found = sequence_or_time(text, "stream")
    if isinstance(found, datetime) and found.year > YEAR_MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is after the year {YEAR_MOST}: NATS has no such time")
    return Since.after(found) if isinstance(found, int) else Since.at(found)
