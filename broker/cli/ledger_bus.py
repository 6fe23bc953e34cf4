"""The ledger at NATS, for the commands that look after it."""

import argparse
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import anyio

from broker.adapters.errors import ArchiveError, StreamSettingsError
from broker.cli.bus import bus_options
from broker.cli.errors import CommandError
from broker.errors import flat
from schemas.client.connection import Connection, connect
from schemas.client.errors import BusError
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import inputs_of

T = TypeVar("T")

SHARD = "main"
CONNECT_DEADLINE_S = 3.0


def with_nats(options: argparse.Namespace, role: str, do: Callable[[Connection], Awaitable[T]]) -> T:
    """Do something at NATS. Raises: CommandError."""
    nats = bus_options(options, f"dragoman {options.command}", role)

    async def connected() -> T:
        async with connect(nats, CONNECT_DEADLINE_S) as connection:
            return await do(connection)

    return run_async(connected)


def run_async(do: Callable[[], Awaitable[T]]) -> T:
    """Do something that reads a ledger. Raises: CommandError."""
    try:
        return anyio.run(do)
    except* CommandError as group:
        raise flat(group)[0] from None
    except* (BusError, StreamSettingsError, ArchiveError) as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None


async def entries_of(connection: Connection, stream: str) -> AsyncGenerator[list[StoredMessage], None]:
    """A segment from its first entry to its last, holes and all. Close it where you stop before its end.

    Where that is in the middle of a batch, which may be on its way into the stream just then, what has come since is
    read too.
    """
    reader = StreamReader(connection, stream)
    after, may_go_on = max(0, (await reader.state()).first_sequence - 1), True
    while may_go_on:
        may_go_on = False
        async with aclosing(reader.read(after)) as batches:
            async for batch in batches:
                after, may_go_on = batch[-1].stream_sequence, not _ends_a_batch(batch[-1])
                yield batch


def _ends_a_batch(message: StoredMessage) -> bool:
    try:
        return inputs_of(decode_entry(message.payload)) is not None
    except WireError:
        return True  # what it is shall whoever reads it say
