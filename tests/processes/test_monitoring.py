"""What probes and Prometheus hear of real brokers, leading and standing by, with and without NATS."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread
from anyio.abc import SocketAttribute
from prometheus_client.parser import text_string_to_metric_families

from broker.cli.main import main
from tests.processes.harness import DEADLINE_S, Federation, Process, a_federation
from tests.processes.test_federation import check_end, is_settled, start_and_wait, write_claims

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

Samples = dict[tuple[str, ...], float]  # by name and label values


async def test_a_leader_tells_of_the_world_and_a_standby_of_itself(tmp_path: Path) -> None:
    async with a_federation(tmp_path) as federation, aiohttp.ClientSession() as client:
        await start_and_wait(federation)
        leader, standby = federation.processes["broker"], federation.processes["broker-2"]
        await standby.start()
        write_claims(federation, *federation.members)
        await federation.until("150 of 400 claims allocated", is_settled)
        await check_end(federation, 400)
        found = await scrape(client, leader)
        assert found["dragoman_leader",] == 1
        assert found["dragoman_terms_total",] == 1
        assert found["dragoman_claims", "Allocated"] == 150
        assert found["dragoman_claims", "Pending"] == 250 == found["dragoman_pending_claims", "DevicesInUse"]
        assert found["dragoman_devices", "fabric/rack", "held"] == 150
        assert found["dragoman_devices", "fabric/rack", "free"] == 0
        assert found["dragoman_clusters", "east", "Ready"] == 1
        assert found["dragoman_clusters", "east", "Lost"] == 0
        assert 0 <= found["dragoman_agent_lag_seconds", "east"] < DEADLINE_S
        assert found["dragoman_ledger_entries_total", "Allocate"] == federation.view.allocates
        assert found["dragoman_ledger_sequence",] >= found["dragoman_append_duration_seconds_count",] > 0
        assert found["dragoman_step_duration_seconds_count",] > 0

        agent = await scrape(client, federation.processes["east"])
        assert agent["dragoman_agent_synced",] == 1
        assert agent["dragoman_agent_epoch",] > 0
        assert agent["dragoman_agent_objects", "claim"] == 200
        assert agent["dragoman_agent_watch_events_total", "claim"] >= 200
        # Each of its claims that was allocated took a write of finalizers and one of the status.
        written = agent["dragoman_agent_api_call_duration_seconds_count", "update claim status", "ok"]
        assert 0 < written <= 150
        assert agent["dragoman_agent_api_call_duration_seconds_count", "list claim", "ok"] == 1
        assert await until(client, federation.processes["east"], "/readyz", 200) == "ok\n"

        await until(client, standby, "/readyz", 200)
        other = await scrape(client, standby)
        assert other["dragoman_leader",] == 0
        assert not [name for name, *labels in other if name in ("dragoman_claims", "dragoman_devices")]

        await leader.kill()
        await until_led_by(client, standby)


async def test_an_agent_whose_cluster_is_evicted_is_not_ready_until_it_has_told_all_again(tmp_path: Path) -> None:
    async with a_federation(tmp_path, follows_ledger=False) as federation, aiohttp.ClientSession() as client:
        await federation.start("broker", "east", "west")
        east = federation.processes["east"]
        await until(client, east, "/readyz", 200)
        await order(federation, "evict", "east", "--yes")
        assert "not all that its cluster has is told" in await until(client, east, "/readyz", 503)
        assert (await scrape(client, east))["dragoman_agent_synced",] == 0
        await order(federation, "readmit", "east")
        await until(client, east, "/readyz", 200)
        assert (await scrape(client, east))["dragoman_agent_synced",] == 1


async def order(federation: Federation, *arguments: str) -> None:
    """`dragoman cluster ...`, as a person types it."""
    more = ["--reason", "smoke", "--operator", "ada", "--nats", federation.nats.url]
    assert await to_thread.run_sync(lambda: main(["cluster", *arguments, *more])) == 0


async def test_is_not_ready_while_nats_is_away(tmp_path: Path) -> None:
    async with a_federation(tmp_path, follows_ledger=False) as federation, aiohttp.ClientSession() as client:
        await federation.start("broker")
        broker = federation.processes["broker"]
        await until(client, broker, "/readyz", 200)
        await federation.nats.kill()
        assert "not connected to NATS" in await until(client, broker, "/readyz", 503)
        assert await until(client, broker, "/livez", 200) == "ok\n"
        await federation.nats.start()
        await until(client, broker, "/readyz", 200)


async def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    async with a_federation(tmp_path, follows_ledger=False) as federation, anyio.create_task_group() as tasks:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        tasks.start_soon(listener.serve, lambda _: anyio.lowlevel.checkpoint())
        port = listener.extra(SocketAttribute.local_port)
        arguments = ["broker", "--config", str(tmp_path / "config.yaml"), "--nats", federation.nats.url]
        taken = Process("taken", [*arguments, "--http", f"127.0.0.1:{port}"], tmp_path / "taken.log")
        await taken.start()
        assert await taken.ends() == 1
        assert f"cannot listen on 127.0.0.1:{port}" in taken.said()
        tasks.cancel_scope.cancel()


async def scrape(client: aiohttp.ClientSession, process: Process) -> Samples:
    """All that /metrics says."""
    async with client.get(f"{await process.http()}/metrics") as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        families = list(text_string_to_metric_families(await answer.text()))
    assert all(family.documentation for family in families)
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


async def until(client: aiohttp.ClientSession, process: Process, path: str, status: int) -> str:
    """What the path says once it answers with that status."""
    said = ""

    async def is_so() -> bool:
        nonlocal said
        async with client.get(f"{await process.http()}{path}") as answer:
            said = await answer.text()
            return answer.status == status

    await _until(is_so)
    return said


async def until_led_by(client: aiohttp.ClientSession, process: Process) -> None:
    """Return when it says that it leads, and how the world stands."""

    async def is_so() -> bool:
        found = await scrape(client, process)
        return found["dragoman_leader",] == 1 and found.get(("dragoman_claims", "Allocated")) == 150

    await _until(is_so)


async def _until(is_so: Callable[[], Awaitable[bool]]) -> None:
    with anyio.fail_after(DEADLINE_S):
        while not await is_so():  # noqa: ASYNC110  # HTTP tells nobody
            await anyio.sleep(0.05)
