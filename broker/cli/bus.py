"""Which NATS to use: the arguments that several commands share."""

import argparse
import os

import shtab

from schemas.client.connection import BusOptions

DEFAULT_URL = "nats://127.0.0.1:4222"


def add_nats_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --nats and --creds."""
    parser.add_argument(
        "--nats",
        action="append",
        metavar="URL",
        help=f"NATS server, may be given several times (default: $DRAGOMAN_NATS, else {DEFAULT_URL})",
    )
    creds = parser.add_argument("--creds", default="", metavar="FILE", help="NATS credentials file")
    creds.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told


def bus_options(options: argparse.Namespace, name: str) -> BusOptions:
    """Where NATS is. name: for those who look at the server's connections."""
    servers = options.nats or [os.environ.get("DRAGOMAN_NATS") or DEFAULT_URL]
    return BusOptions(tuple(servers), name=name, credentials_file=options.creds)
