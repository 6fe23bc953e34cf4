"""The ledger goes on in new segments while claims come and go, and whoever opens one may be killed at it."""

import json
import sys
from pathlib import Path

import anyio
import pytest

from broker.adapters.streams import ledger_segments
from schemas.client.reader import StreamReader
from schemas.wire.subjects import ledger_stream
from tests.manifests import claim_manifest
from tests.processes.harness import DEADLINE_S, Federation, a_federation
from tests.processes.ledger_view import LedgerView
from tests.processes.test_federation import (
    check_agents,
    check_end,
    is_settled,
    let_holders_go,
    start_and_wait,
    write_claims,
)

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

SEGMENT_ENTRIES = 100
KILLS_TRIED = 20
CLAIM_LIVES_S = 1.0


async def test_goes_on_in_new_segments_under_load(tmp_path: Path) -> None:
    async with a_federation(tmp_path, segment_entries=SEGMENT_ENTRIES) as federation:
        await start_and_wait(federation)
        write_claims(federation, *federation.members)
        await federation.until("150 of 400 claims allocated", is_settled)
        rows = await let_holders_go(federation, await check_end(federation, 400))
        await federation.until("two segments more", lambda view: view.segments >= 3)
        assert len(federation.view.leaders) == 1
        await federation.restart("broker")
        await federation.until("another leader", lambda view: len(view.leaders) == 2)
        await federation.processes["broker"].until_it_says("checkpoint at")
        said = federation.processes["broker"].tail().rpartition("checkpoint at ")[2]
        assert int(said.split(",")[0]) > SEGMENT_ENTRIES
        assert await check_end(federation, len(rows)) == rows
        await check_agents(federation, rows)
        assert federation.view.collisions == 0
        assert await federation.dead_letters() == 0
        await check_audit(federation)


async def test_what_one_leader_was_killed_at_the_next_one_finishes(tmp_path: Path) -> None:
    async with a_federation(tmp_path, segment_entries=SEGMENT_ENTRIES) as federation:
        await start_and_wait(federation)
        write_claims(federation, *federation.members)
        leader, other, hits = "broker", "broker-2", 0
        for attempt in range(KILLS_TRIED):
            async with anyio.create_task_group() as tg:
                tg.start_soon(come_and_go, federation, f"churn-{attempt}")
                hits += await is_killed_in_the_middle(federation, leader)
                await federation.start(other)
                tg.cancel_scope.cancel()
            leader, other = other, leader
            if hits == 2:
                break
        assert hits == 2, "no leader was killed in the middle"
        await federation.until("the last segment open", lambda view: not view.is_between)
        await federation.until("150 claims allocated", holds_150)
        rows = await check_end(federation, 400)
        assert federation.view.segments >= 3
        assert federation.view.collisions == 0
        await check_agents(federation, rows)
        await check_audit(federation)


async def check_audit(federation: Federation) -> None:
    """One chain goes through all segments and leaders, and each decision comes out the same when it is made again."""
    config, url = str(federation.root / "config.yaml"), federation.nats.url
    command = [sys.executable, "-m", "broker.cli.main", "audit", "verify", "--config", config, "--nats", url]
    ran = await anyio.run_process([*command, "-o", "json"], check=False)
    found = json.loads(ran.stdout)
    assert (found["bad"], found["ok"], found["notes"], found["replay"]["left_out"]) == (None, True, [], [])
    assert found["chain"]["entries"] == sum(each["entries"] for each in found["segments"])
    assert 1 <= found["replay"]["terms"] <= len(federation.view.leaders)
    assert found["replay"]["decisions"] == federation.view.decisions > 400


async def come_and_go(federation: Federation, name: str) -> None:
    """Claims that live for a moment, again and again."""
    names = [f"{name}-{number}" for number in range(60)]
    written: set[str] = set()
    try:
        while True:
            for each in names:
                federation.write("east", each, claim_manifest(each))
                written.add(each)
            await anyio.sleep(CLAIM_LIVES_S)
            while written:
                federation.remove("east", written.pop())
            await anyio.sleep(CLAIM_LIVES_S)
    finally:
        for each in written:
            federation.remove("east", each)


async def is_killed_in_the_middle(federation: Federation, leader: str) -> bool:
    """Kill the leader in the moment in which it closes a segment; says whether none is open then."""
    async with federation.connection.listen("dra.v1.ledger.main.*._.leader.closed") as heard:
        with anyio.fail_after(DEADLINE_S):
            await heard.receive()
        await federation.processes[leader].kill()
    last = await StreamReader(federation.connection, ledger_stream("main", await last_segment(federation))).state()
    await federation.until("all of that is read", lambda view: view.last >= last.last_sequence)
    federation.say(f"{leader} was killed {'in the middle' if federation.view.is_between else 'too late'}")
    return federation.view.is_between


async def last_segment(federation: Federation) -> int:
    return (await ledger_segments(federation.connection, "main"))[-1]


def holds_150(view: LedgerView) -> bool:
    """By claims that stay."""
    return len(view.allocated) == 150 and not any("churn" in view.names[claim] for claim in view.allocated)
