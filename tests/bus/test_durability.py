"""What a start finds out about the servers: version, and whether they sync what they acknowledge."""

from pathlib import Path

import pytest

from broker.adapters.durability import Durability, server_problems
from broker.adapters.errors import StreamSettingsError
from broker.adapters.streams import StreamSettings, ensure_streams
from tests.nats_fixture import connect_to, free_port, servers

pytestmark = pytest.mark.anyio


def a_config(root: Path, jetstream: str = "sync_interval: always") -> tuple[Path, str, str]:
    """Configuration of a server, its address and that of its monitoring."""
    port = free_port(2)
    config = root / "server.conf"
    store = f'store_dir: "{root}/store", ' if jetstream else ""
    config.write_text(
        f"server_name: n1\nlisten: 127.0.0.1:{port}\nhttp: 127.0.0.1:{port + 1}\n"
        + (f"jetstream {{ {store}{jetstream} }}\n" if jetstream else "")
    )
    return config, f"nats://127.0.0.1:{port}", f"http://127.0.0.1:{port + 1}"


async def test_a_server_that_syncs_every_write_is_safe(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, url, monitor = a_config(tmp_path)
    async with servers(config), connect_to(url) as connection:
        await ensure_streams(connection, StreamSettings(), durability=Durability((monitor,)))
        assert "unverified" not in caplog.text
        assert await server_problems(connection, Durability()) == []
        assert "sync_interval of nats-server is unverified: give --nats-monitor" in caplog.text


async def test_a_server_that_syncs_now_and_then_stops_the_start(tmp_path: Path) -> None:
    config, url, monitor = a_config(tmp_path, 'sync_interval: "2m"')
    async with servers(config), connect_to(url) as connection:
        with pytest.raises(StreamSettingsError, match="--allow-unsafe-durability starts all the same") as error:
            await ensure_streams(connection, StreamSettings(), durability=Durability((monitor,)))
        assert error.value.differences == (
            f"nats-server n1 ({monitor}): sync_interval is 120s: set `jetstream {{ sync_interval: always }}` there",
        )
        await ensure_streams(connection, StreamSettings(), durability=Durability((monitor,), allow_unsafe=True))


async def test_monitoring_that_cannot_be_read_is_a_problem_of_its_own(nats_url: str, tmp_path: Path) -> None:
    config, _, monitor = a_config(tmp_path, "")
    nobody = f"http://127.0.0.1:{free_port()}"
    async with servers(config), connect_to(nats_url) as connection:
        problems = await server_problems(connection, Durability((monitor, nobody, "file:///etc/passwd")))
    assert [problem.partition(": ")[2].partition(":")[0] for problem in problems] == [
        "JetStream is off",
        problems[1].partition(": ")[2].partition(":")[0],
        "it is not the http",
    ]
    assert "/varz cannot be read" in problems[1]


@pytest.mark.parametrize("url", ["http://[::1", "http://127.0.0.1:port", "http://127.0.0.1/ a"])
async def test_an_address_of_monitoring_that_is_none_is_a_problem_too(nats_url: str, url: str) -> None:
    async with connect_to(nats_url) as connection:
        (problem,) = await server_problems(connection, Durability((url,)))
    assert problem.startswith(f"--nats-monitor {url}: ")


async def test_an_old_server_is_named_with_what_is_needed(nats_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.adapters.durability.SERVER_VERSION_MIN", (99, 0, 0))
    async with connect_to(nats_url) as connection:
        (problem,) = await server_problems(connection, Durability(is_embedded=True))
    assert problem.endswith("99.0.0 or later is needed: install it")


async def test_a_server_that_takes_too_small_messages_stops_the_start(tmp_path: Path) -> None:
    config, url, monitor = a_config(tmp_path)
    config.write_text(config.read_text() + "max_payload: 512KB\n")
    async with servers(config), connect_to(url) as connection:
        with pytest.raises(StreamSettingsError, match="max_payload is 524288 bytes: set `max_payload: 1MB` there"):
            await ensure_streams(connection, StreamSettings(), durability=Durability((monitor,)))
