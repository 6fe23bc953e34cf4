"""Fixtures around a real nats-server; a test module that wants them says `from tests.nats_fixture import nats_url`.

`nats_server` starts once per process. `nats_url` empties it before the test, `own_nats` is one that the test may kill.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest

from broker.adapters.embedded_nats import EmbeddedNats, embedded_nats
from schemas.client.connection import BusOptions, Connection, connect


@pytest.fixture(scope="session")
async def nats_server(anyio_backend: str) -> AsyncIterator[EmbeddedNats]:
    """One nats-server for all tests of the session."""
    async with embedded_nats() as server:
        yield server


@pytest.fixture
async def nats_url(nats_server: EmbeddedNats) -> str:
    """The URL of a nats-server without any stream."""
    async with connect_to(nats_server) as connection:
        for name in msgspec.json.decode(await connection.api("STREAM.NAMES"))["streams"] or []:
            await connection.api(f"STREAM.DELETE.{name}")
    return nats_server.url


@pytest.fixture
async def own_nats(tmp_path: Path, anyio_backend: str) -> AsyncIterator[EmbeddedNats]:
    """A nats-server of this test alone."""
    async with embedded_nats(tmp_path / "nats") as server:
        yield server


def connect_to(server: EmbeddedNats | str) -> AbstractAsyncContextManager[Connection]:
    """A connection to `server`."""
    url = server if isinstance(server, str) else server.url
    return connect(BusOptions(servers=[url], name="test"))
