"""Which NATS to use: the arguments that several commands share."""

import argparse
import os

import shtab

from broker.adapters.durability import Durability
from broker.cli.errors import CommandError
from schemas.client.errors import BusOptionsError
from schemas.client.options import BusOptions
from schemas.wire.subjects import inbox_prefix

DEFAULT_URL = "nats://127.0.0.1:4222"


def add_nats_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --nats, who we are there, and whom to believe."""
    parser.add_argument(
        "--nats",
        action="append",
        metavar="URL",
        help=f"NATS server, may be given several times (default: $DRAGOMAN_NATS, else {DEFAULT_URL})",
    )
    for name, what in (
        ("--creds", "NATS credentials file"),
        ("--nkey", "seed of an NKey, such as `dragoman nats-config` writes"),
        ("--tls-ca", "who vouches for the servers (default: whom the system trusts)"),
        ("--tls-cert", "our certificate, where the servers ask for one"),
        ("--tls-key", "its key"),
    ):
        argument = parser.add_argument(name, default="", metavar="FILE", help=what)
        argument.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told


def add_monitor_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --nats-monitor."""
    parser.add_argument(
        "--nats-monitor",
        action="append",
        default=[],
        metavar="URL",
        help="monitoring of a server (http://HOST:8222), to verify that it syncs every write; give it for each server",
    )


def add_durability_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --nats-monitor and --allow-unsafe-durability."""
    add_monitor_argument(parser)
    parser.add_argument(
        "--allow-unsafe-durability",
        action="store_true",
        help="start although NATS may lose what it has acknowledged",
    )


def durability(options: argparse.Namespace) -> Durability:
    """What is to be checked of the servers."""
    return Durability(tuple(options.nats_monitor), allow_unsafe=options.allow_unsafe_durability)


def bus_options(options: argparse.Namespace, name: str, role: str) -> BusOptions:
    """Where NATS is. name: for those who look at the server's connections. role: as `nats-config` names its keys.

    Raises: CommandError if an address or file cannot be used.
    """
    servers = options.nats or [os.environ.get("DRAGOMAN_NATS") or DEFAULT_URL]
    given = BusOptions(
        tuple(servers),
        name=name,
        credentials_file=options.creds,
        nkey_file=options.nkey,
        inbox=inbox_prefix(role),
        ca_file=options.tls_ca,
        certificate_file=options.tls_cert,
        key_file=options.tls_key,
    )
    try:
        given.check()
    except BusOptionsError as error:
        raise CommandError(str(error)) from error
    return given
