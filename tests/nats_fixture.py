"""Fixtures around a real nats-server; a test module that wants them says `from tests.nats_fixture import nats_url`.

`nats_server` starts once per process. `nats_url` empties it before the test, `own_nats` is one that the test may kill.
"""

import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import msgspec
import pytest

from broker.adapters.embedded_nats import EmbeddedNats, embedded_nats, find_binary
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
        while names := msgspec.json.decode(await connection.api("STREAM.NAMES"))["streams"]:  # the first 1,024
            for name in names:
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


BESIDE = (2_000, 4_000)  # the ports of a server for other servers and for monitoring, as `nats-config` puts them


def free_port(count: int = 1, *, beside: Sequence[int] = ()) -> int:
    """A port that nobody uses, with `count - 1` free ones after it; so too at these distances from it."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
        if port > 60000:
            continue  # more than `nats-config` takes: it adds up to 4,000 for other ports
        with suppress(OSError), ExitStack() as held:
            for number in (first + at for first in (port, *(port + far for far in beside)) for at in range(count)):
                held.enter_context(socket.socket()).bind(("", number))
            return port


@asynccontextmanager
async def servers(*configs: Path) -> AsyncIterator[list[anyio.abc.Process]]:
    """A nats-server for each configuration, run in its directory, ready for clients; killed at the end."""
    async with AsyncExitStack() as stack:
        processes = []
        for config in configs:
            command = [str(find_binary()), "-c", config.name, "-l", f"{config.stem}.log"]
            process = await anyio.open_process(command, cwd=config.parent, stdout=subprocess.DEVNULL, stderr=None)
            stack.push_async_callback(process.aclose)
            stack.callback(_kill, process)
            processes.append(process)
        for config, process in zip(configs, processes, strict=True):
            log = config.parent / f"{config.stem}.log"
            with anyio.fail_after(15):
                while not (log.exists() and "Server is ready" in log.read_text()):  # files tell nobody
                    assert process.returncode is None, log.read_text() if log.exists() else "it ended at once"
                    await anyio.sleep(0.01)
        yield processes


def _kill(process: anyio.abc.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
