"""Asking the broker that leads: what several commands share."""

import argparse
import getpass

import anyio

from broker.adapters.api_service import ApiError, call_api
from broker.cli.bus import bus_options
from broker.cli.errors import CommandError
from broker.errors import flat
from schemas.client.connection import connect
from schemas.client.errors import BusError, BusUnavailableError

CONNECT_DEADLINE_S = 3.0
CALL_DEADLINE_S = 25.0  # longer than the broker's own, so that its reason arrives


def call(options: argparse.Namespace, verb: str, payload: bytes = b"") -> bytes:
    """The answer to `dra.v1.api.<verb>`, asked as an operator.

    Raises: CommandError with what the broker says, or with why nobody answers.
    """

    async def ask() -> bytes:
        name = f"dragoman {options.command}"
        async with connect(bus_options(options, name, "operator"), CONNECT_DEADLINE_S) as connection:
            try:
                return await call_api(connection, verb, payload, CALL_DEADLINE_S)
            except BusUnavailableError as error:
                text = f"no broker answers: {error}; start one there, or wait until one leads, and try again"
                raise CommandError(text, exit_code=1) from error

    try:
        return anyio.run(ask)
    except* (ApiError, BusError) as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None


def login() -> str:
    """Who is at the terminal. Raises: CommandError if nobody knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError) as error:
        raise CommandError(
            "the ledger keeps who ordered it, and you have no login name here: give --operator"
        ) from error
