"""Asking the broker that leads: what several commands share."""

import argparse
import getpass
from collections.abc import Awaitable, Callable

import anyio
import msgspec

from broker.adapters.api_service import ApiError, call_api
from broker.app.api import ListCall, Page
from broker.cli.bus import bus_options
from broker.cli.errors import CommandError
from broker.errors import flat
from schemas.client.connection import Connection, connect
from schemas.client.errors import BusError, BusUnavailableError

CONNECT_DEADLINE_S = 3.0
CALL_DEADLINE_S = 25.0  # longer than the broker's own, so that its reason arrives


def call(options: argparse.Namespace, verb: str, payload: bytes = b"") -> bytes:
    """The answer to `dra.v1.api.<verb>`, asked as an operator.

    Raises: CommandError with what the broker says, or with why nobody answers.
    """

    return _connected(options, lambda connection: _ask(connection, verb, payload))


def call_list(options: argparse.Namespace, verb: str, cluster: str | None = None) -> bytes:
    """All rows of a list (of one cluster, where they are claims) as one JSON array, asked for part by part.

    Raises: CommandError, as `call`.
    """

    async def ask(connection: Connection) -> bytes:
        rows: list[msgspec.Raw] = []
        wanted = ListCall(cluster)
        while True:
            answer = await _ask(connection, verb, msgspec.json.encode(wanted))
            part = msgspec.json.decode(answer, type=Page | list[msgspec.Raw])
            if isinstance(part, list):  # an older broker answers with all there is
                return answer
            rows += part.rows
            if not part.more_after:
                return msgspec.json.encode(rows)
            wanted = ListCall(cluster, part.more_after)

    return _connected(options, ask)


async def _ask(connection: Connection, verb: str, payload: bytes) -> bytes:
    try:
        return await call_api(connection, verb, payload, CALL_DEADLINE_S)
    except BusUnavailableError as error:
        text = f"no broker answers: {error}; start one there, or wait until one leads, and try again"
        raise CommandError(text, exit_code=1) from error


def _connected(options: argparse.Namespace, ask: Callable[[Connection], Awaitable[bytes]]) -> bytes:
    nats = bus_options(options, f"dragoman {options.command}", "operator")

    async def connect_and_ask() -> bytes:
        async with connect(nats, CONNECT_DEADLINE_S) as connection:
            return await ask(connection)

    try:
        return anyio.run(connect_and_ask)
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
