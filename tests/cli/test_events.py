"""`dragoman events` against a broker that runs: what was, what comes, and what one asks for."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from broker.cli.main import main
from schemas.client.connection import BusOptions, connect
from schemas.client.since import Since
from schemas.client.subscribe import Received, subscribe
from schemas.events import ClaimAllocated, ClaimGranted, ClaimPending
from tests.cli.live import Live, live_up
from tests.manifests import claim_manifest, class_manifest, slice_manifest, write_manifests
from tests.nats_fixture import own_nats

__all__ = ["own_nats"]

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

DEADLINE_S = 30.0


@pytest.fixture
def directories(tmp_path: Path) -> dict[str, Path]:
    """Two clusters and one device."""
    found = {name: tmp_path / name for name in ("east", "west")}
    write_manifests(found["east"] / "all.yaml", class_manifest(), slice_manifest(["gpu-0"], fabric="rack"))
    write_manifests(found["west"] / "all.yaml", class_manifest())
    return found


async def shown(live: Live, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    url = await live.url()
    assert await to_thread.run_sync(lambda: main(["events", *arguments, "--nats", url])) == 0
    return capsys.readouterr().out


async def until_there(live: Live, capsys: pytest.CaptureFixture[str], what: str) -> str:
    """All events, once there is one of that kind."""
    with anyio.fail_after(DEADLINE_S):
        while what not in (out := await shown(live, capsys)):  # noqa: ASYNC110  # a command is asked
            await anyio.sleep(0.1)
    return out


async def test_shows_what_is_kept_and_only_what_is_asked_for(
    directories: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    async with live_up(directories) as live:
        write_manifests(directories["east"] / "claims.yaml", claim_manifest("a"))
        await live.until_state("east/a", "Allocated")
        write_manifests(directories["west"] / "claims.yaml", claim_manifest("b"))
        await live.until_state("west/b", "Pending")
        (directories["east"] / "claims.yaml").unlink()
        await live.until_state("west/b", "Allocated")
        await until_there(live, capsys, "claim.allocated            west")
        lines = [line.split() for line in (await shown(live, capsys)).splitlines()]
        while lines[0][1] == "claim.pending":  # the cluster was heard only then
            lines.pop(0)
        assert [(what, about) for _, what, about, *_ in lines] == [
            ("claim.granted", "east/default/a"),
            ("claim.allocated", "east/default/a"),
            ("claim.pending", "west/default/b"),
            ("claim.released", "east/default/a"),
            ("claim.granted", "west/default/b"),
            ("claim.allocated", "west/default/b"),
        ]
        assert lines[0][3:] == ["gpu=rack/gpu-0"]
        assert lines[2][3:] == ["DevicesInUse"]
        assert lines[3][3] == "gpu=rack/gpu-0"

        async def ids(*chosen: str) -> list[dict[str, Any]]:
            out = await shown(live, capsys, "-o", "json", *chosen)
            return [json.loads(line) for line in out.splitlines()]

        everything = (await ids())[-6:]
        assert [each["event"]["type"] for each in everything] == [each["type"] for each in everything]
        assert len({each["id"] for each in everything}) == 6
        assert await ids("--since", str(everything[3]["stream_sequence"])) == everything[4:]
        assert (await ids("--since", "1h"))[-6:] == everything
        assert await ids("--since", (datetime.now(UTC) + timedelta(hours=1)).isoformat()) == []
        assert await ids("--cluster", "west") == [everything[2], *everything[4:]]
        assert (await ids("--type", "claim.pending", "--type", "claim.released"))[-2:] == everything[2:4]
        after = ("--durable", "billing", "--since", str(everything[1]["stream_sequence"]))
        assert await ids(*after) == everything[2:]
        assert await ids(*after) == []


async def test_a_subscriber_goes_on_where_it_was(directories: dict[str, Path]) -> None:
    async with live_up(directories) as live:
        url = await live.url()
        async with connect(BusOptions((url,))) as connection:
            write_manifests(directories["east"] / "claims.yaml", claim_manifest("a"))
            first = await some(subscribe(connection, since=Since.beginning()), 2)
            assert isinstance(first[0].event, ClaimGranted)
            assert isinstance(first[1].event, ClaimAllocated)
            position = Since.after(first[0].stream_sequence)
            assert await some(subscribe(connection, since=position), 1) == first[1:]

            waits = subscribe(connection, types=[ClaimPending], cluster="west")
            heard: list[Received] = []

            async def hear() -> None:
                heard.extend(await some(waits, 1))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hear)
                await anyio.wait_all_tasks_blocked()
                write_manifests(directories["west"] / "claims.yaml", claim_manifest("b"))
            [pending] = heard
            assert isinstance(pending.event, ClaimPending)
            assert (pending.event.claim.name, pending.event.reason) == ("b", "DevicesInUse")
            assert pending.headers["ce-correlationid"] == f"claim/west/{pending.event.claim.uid}"


async def some(events: Any, count: int) -> list[Received]:
    """So many of them."""
    found: list[Received] = []
    with anyio.fail_after(DEADLINE_S):
        async for each in events:
            found.append(each)
            if len(found) == count:
                break
    await events.aclose()
    return found


def test_a_durable_name_that_is_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["events", "--durable", "a.b"])
    assert ended.value.code == 2
    assert "--durable: 'a.b' is no durable name" in capsys.readouterr().err


@pytest.mark.parametrize("since", ["yesterday", "1y", "2026-01-31T12:00"])
def test_a_time_that_is_none_is_named(since: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["events", "--since", since])
    assert ended.value.code == 2
    assert f"'{since}' is no time span" in capsys.readouterr().err
