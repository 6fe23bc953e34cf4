"""Fixtures of the bus tests: connections to a real nats-server with the protocol's streams."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from broker.adapters.embedded_nats import EmbeddedNats
from broker.adapters.ledger_store import LedgerStore
from broker.adapters.streams import StreamSettings, ensure_streams
from schemas.client.connection import Connection
from tests.nats_fixture import connect_to, nats_server, nats_url, own_nats

__all__ = ["nats_server", "nats_url", "own_nats"]

LEDGER = "DRA_LEDGER_main_0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.bus)


@pytest.fixture
async def connection(nats_url: str) -> AsyncIterator[Connection]:
    """A connection to a nats-server with fresh streams."""
    async with connect_to(nats_url) as connection:
        await ensure_streams(connection, StreamSettings())
        yield connection


@pytest.fixture
def ledger(connection: Connection) -> LedgerStore:
    """The empty ledger."""
    return LedgerStore(connection, LEDGER)


@pytest.fixture
async def own_connection(own_nats: EmbeddedNats) -> AsyncIterator[Connection]:
    """A connection to the nats-server that the test may kill, with fresh streams."""
    async with connect_to(own_nats) as connection:
        await ensure_streams(connection, StreamSettings())
        yield connection
