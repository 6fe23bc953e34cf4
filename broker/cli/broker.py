"""`dragoman broker`: the broker by itself, against a NATS that is there."""

import argparse
from functools import partial
from pathlib import Path

import anyio
import shtab

from broker.adapters.errors import ListenError, StreamSettingsError
from broker.allocation.cel.engine import default_engine
from broker.app.broker import Broker
from broker.cli.bus import add_durability_arguments, add_nats_arguments, bus_options, durability
from broker.cli.errors import CommandError
from broker.cli.federation import read_federation
from broker.cli.local import broker_settings
from broker.cli.monitoring import add_http_argument, monitoring
from broker.cli.signals import until_told_to_stop
from broker.cli.up import log_notice
from broker.errors import InvariantError, LedgerLostError, UnreadableEntryError, flat
from schemas.client.connection import connect
from schemas.client.errors import BusError

EPILOG = """\
Several brokers may run at once: one leads, the others stand by and take over. The ledger in NATS is the only state.

examples:
  dragoman broker --nats nats://nats:4222 --config federation.yaml
  dragoman -v broker --config federation.yaml --http :8080
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `broker`."""
    parser = commands.add_parser(
        "broker",
        help="run the broker",
        description="Run the broker: it decides, across all clusters, which claim gets which device.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_nats_arguments(parser)
    add_durability_arguments(parser)
    add_http_argument(parser)
    config = parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="clusters, fabrics and hub, see docs/config.md"
    )
    config.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until told to stop."""
    federation = read_federation(options.config)
    nats = bus_options(options, "dragoman broker", "broker")

    async def serve() -> None:
        async with connect(nats) as connection, until_told_to_stop():
            settings = broker_settings(federation, durability=durability(options))
            broker = Broker(connection, default_engine(), settings, log_notice)
            refresh = partial(broker.metrics.refresh, broker)
            async with monitoring(options.http, broker.metrics.registry, refresh, broker.why_not_ready):
                await broker.run()

    try:
        anyio.run(serve)
    except* (
        BusError,
        ListenError,
        StreamSettingsError,
        InvariantError,
        LedgerLostError,
        UnreadableEntryError,
    ) as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None
    return 0
