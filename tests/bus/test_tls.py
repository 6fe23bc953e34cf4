"""Who asks for TLS tells nothing to a server that speaks none, whoever sits between us and the right one.

And who cannot say who it is, tells nothing and tries again.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import msgspec
import pytest
from anyio.lowlevel import checkpoint
from nats.aio.transport import TcpTransport

from broker.cli.main import main
from schemas.client.connection import BusOptions, connect
from schemas.client.errors import BusUnavailableError
from tests.nats_fixture import BESIDE, free_port, servers

pytestmark = pytest.mark.anyio


class Plain:
    """A server without TLS that asks for a signed nonce, and answers whoever connects."""

    def __init__(self, port: int = 0, **info: object) -> None:
        self.port = port or free_port()
        self.calls = 0
        self.heard = b""
        self.info = {"version": "2.14.0", "max_payload": 1 << 20, "auth_required": True, "nonce": "n0nce", **info}

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port)
        async with listener, anyio.create_task_group() as tasks:
            tasks.start_soon(listener.serve, self._serve)
            yield
            tasks.cancel_scope.cancel()

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        async with stream:
            self.calls += 1
            await stream.send(b"INFO " + msgspec.json.encode(self.info) + b"\r\n")
            async for data in stream:
                self.heard += data
                await stream.send(b"PONG\r\n")


class Secure:
    """A directory that `nats-config` wrote for one server with TLS."""

    def __init__(self, root: Path) -> None:
        self.port = free_port(beside=BESIDE)
        self.config = root / "nats/n1.conf"
        made = ["nats-config", f"--dir={root}/nats", "--cluster=east", "--dev-ca", f"--store-dir={root}/store"]
        assert main([*made, f"--port={self.port}"]) == 0
        self.ca = str(root / "nats/tls/ca.crt")
        self.key = str(root / "nats/keys/operator.nk")

    def options(self, scheme: str = "tls") -> BusOptions:
        inbox = "_INBOX.operator"
        return BusOptions((f"{scheme}://127.0.0.1:{self.port}",), nkey_file=self.key, ca_file=self.ca, inbox=inbox)


@pytest.fixture
def secure(tmp_path: Path) -> Secure:
    return Secure(tmp_path)


@pytest.mark.parametrize(
    ("scheme", "files"),
    [
        pytest.param("tls", (), id="by the address"),
        pytest.param("nats", ("ca_file",), id="by a CA"),
        pytest.param("nats", ("certificate_file", "key_file"), id="by a certificate"),
    ],
)
async def test_nothing_is_sent_to_a_server_without_tls(secure: Secure, scheme: str, files: tuple[str, ...]) -> None:
    tls = secure.config.parent / "tls"
    given = {"ca_file": secure.ca, "certificate_file": str(tls / "n1.crt"), "key_file": str(tls / "n1.key")}
    plain = Plain()
    options = BusOptions((f"{scheme}://{plain.place}",), nkey_file=secure.key, **{name: given[name] for name in files})
    async with plain.serving():
        with pytest.raises(BusUnavailableError) as refused:
            async with connect(options, deadline_s=1):
                pass
    assert plain.calls > 1, "it may be another one, once it is tried again"
    assert plain.heard == b""
    assert f"the server at {plain.place} speaks no TLS" in str(refused.value)
    assert "--nats" in str(refused.value)
    assert "leave --tls-ca" in str(refused.value)
    assert "start nats-server" not in str(refused.value)


async def test_one_address_with_tls_asks_it_of_all(secure: Secure) -> None:
    plain = Plain()
    options = BusOptions((f"nats://{plain.place}", f"tls://127.0.0.1:{free_port()}"), nkey_file=secure.key)
    async with plain.serving():
        with pytest.raises(BusUnavailableError, match="speaks no TLS"):
            async with connect(options, deadline_s=1):
                pass
    assert plain.heard == b""


async def test_tls_is_spoken_where_the_server_leaves_the_choice(secure: Secure) -> None:
    secure.config.write_text(secure.config.read_text() + "\nallow_non_tls: true\n")
    async with servers(secure.config):
        for scheme in ("tls", "nats"):
            async with connect(secure.options(scheme)) as connection:
                await connection.api("INFO")
                transport = connection.client._transport
                assert isinstance(transport, TcpTransport)
                assert transport._io_writer is not None
                assert transport._io_writer.get_extra_info("ssl_object") is not None


async def test_a_server_without_tls_is_told_nothing_when_the_connection_comes_back(
    secure: Secure, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither one at the place of the right one, nor one of which that has told."""
    there, told_of = Plain(secure.port), Plain()
    async with servers(secure.config) as processes, connect(secure.options()) as connection:
        await connection.api("INFO")
        await connection.client._process_info({"connect_urls": [told_of.place]})
        processes[0].kill()
        await processes[0].wait()
        with caplog.at_level(logging.WARNING, "schemas.client.connection"), anyio.fail_after(15):
            async with there.serving(), told_of.serving():
                while there.calls < 2 or told_of.calls < 2:
                    await checkpoint()
        assert not connection.is_up
        assert there.heard == told_of.heard == b""
        said = [record.getMessage() for record in caplog.records if "speaks no TLS" in record.getMessage()]
        assert len(said) == 1, "not at each attempt"
        async with servers(secure.config):
            with anyio.fail_after(15):
                await connection.wait_until_up()
            await connection.api("INFO")


async def test_a_key_that_is_broken_for_a_while_ends_no_connection(
    secure: Secure, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read again at each attempt."""
    key = anyio.Path(secure.key)
    seed = await key.read_text()
    async with servers(secure.config) as processes, connect(secure.options()) as connection:
        await key.write_text("")
        processes[0].kill()
        await processes[0].wait()
        async with servers(secure.config):
            with caplog.at_level(logging.WARNING, "schemas.client.connection"), anyio.fail_after(15):
                while f"--nkey {key}: there is no seed" not in caplog.text:
                    await checkpoint()
            await key.write_text(seed)
            with anyio.fail_after(15):
                await connection.wait_until_up()
            await connection.api("INFO")
