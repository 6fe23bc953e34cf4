"""Processes that live on and hear nothing: a leader that is stopped, an agent that is cut off from NATS."""

import time
from pathlib import Path

import anyio
import pytest

from broker.app.broker import SILENT_AFTER_S
from tests.chaos.links import open_link
from tests.processes.harness import Process, a_federation
from tests.processes.ledger_view import LedgerView
from tests.processes.test_federation import (
    CLAIMS,
    DEVICES,
    check_agents,
    check_end,
    is_settled,
    let_holders_go,
    start_and_wait,
    write_claims,
)

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

STOPPED_S = 6.0  # longer than a takeover; `python -m tests.chaos --minutes 10` stops a leader for 30 s
CUT_OFF_S = 6.0


async def test_a_leader_that_was_stopped_appends_nothing_and_stands_by(tmp_path: Path) -> None:
    async with a_federation(tmp_path) as federation:
        await start_and_wait(federation)
        await federation.start("broker-2")
        write_claims(federation, "east")
        await federation.until("40 Allocates", lambda view: view.allocates >= 40)
        first = await federation.leader()
        stopped, other = federation.processes[first], "broker-2" if first == "broker" else "broker"
        elected = len(federation.view.leaders)

        federation.say(f"{first} leads and is stopped in the middle of its work")
        stopped.suspend()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, STOPPED_S)
            await federation.until("another leader", lambda view: len(view.leaders) > elected)
            write_claims(federation, "west")
            await federation.until("150 of 400 claims allocated", is_settled)
        assert await federation.leader() == other
        stopped.resume()

        # That an entry is by nobody but the last elected leader is checked of each as it is read.
        await stopped.until_it_says("stopped leading")
        assert "sub-exception" not in stopped.said(), "it does not say why"
        rows = await let_holders_go(federation, await check_end(federation, 2 * CLAIMS))
        assert len(federation.view.leaders) == elected + 1, "the stopped one was elected again while another led"

        federation.say(f"{other} is killed: {first} leads again")
        await federation.processes[other].kill()
        await federation.until("the first one leads again", lambda view: len(view.leaders) == elected + 2)
        assert await federation.leader() == first
        assert await check_end(federation, len(rows)) == rows
        await check_agents(federation, rows)
        assert federation.view.collisions == 0


async def test_a_cluster_that_is_cut_off_keeps_what_it_has_and_catches_up(tmp_path: Path) -> None:
    async with a_federation(tmp_path) as federation, anyio.create_task_group() as links:
        link = await open_link(federation.nats.port, links)
        arguments = ("--cluster", "east", "--manifests", str(tmp_path / "east"), "--data", str(federation.data("east")))
        url = f"nats://127.0.0.1:{link.port}"
        east = Process("east", ["agent", *arguments, "--nats", url], tmp_path / "east.log")
        federation.processes["east"] = east
        await start_and_wait(federation)
        write_claims(federation, "east")
        await federation.until("150 claims of east allocated", lambda view: len(view.allocated) == DEVICES)

        federation.say("east's agent is cut off")
        link.cut()
        await east.until_it_says("lost the connection to NATS")
        held = dict(federation.view.allocated)
        write_claims(federation, "west")
        removed = {f"claim-{number}" for number in range(CLAIMS // 2)}
        for name in removed:
            federation.remove("east", name)
        await federation.until("west's claims wait", lambda view: len(view.waiting) == 2 * CLAIMS - DEVICES)
        await anyio.sleep(CUT_OFF_S)
        assert east.is_running
        assert federation.view.allocated == held, "what a cluster has is its own as long as nobody hears of it"

        federation.say("east's agent is heard again")
        link.heal()

        def has_moved_on(view: LedgerView) -> bool:
            let_go = {claim for claim, name in view.names.items() if claim[0] == "east" and name[8:] in removed}
            return len(view.allocated) == DEVICES and not view.unsettled and not let_go & view.allocated.keys()

        await federation.until("what east let go is west's", has_moved_on)
        rows = await check_end(federation, CLAIMS // 2 + CLAIMS)
        for row in rows:
            if row.cluster == "east" and ("east", row.uid) in held:
                assert row.state == "Allocated", "a claim lost its devices while its cluster was cut off"
        assert federation.view.collisions == 0
        await check_agents(federation, rows)
        links.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["cut", "silent", "stopped"])
async def test_a_standby_that_hears_nothing_itself_leaves_the_leader_alone(tmp_path: Path, how: str) -> None:
    async with a_federation(tmp_path) as federation, anyio.create_task_group() as links:
        await start_and_wait(federation)
        link = await open_link(federation.nats.port, links)
        url = f"nats://127.0.0.1:{link.port}"
        standby = Process(
            "broker-2", ["broker", "--config", str(tmp_path / "config.yaml"), "--nats", url], tmp_path / "b2.log"
        )
        federation.processes["broker-2"] = standby
        await standby.start()
        await standby.until_it_says("stands by with a warm world")
        write_claims(federation, "east")
        await federation.until("150 claims of east allocated", lambda view: len(view.allocated) == DEVICES)

        {"cut": link.cut, "silent": link.silence, "stopped": standby.suspend}[how]()
        await anyio.sleep(SILENT_AFTER_S + 1.0)
        (standby.resume if how == "stopped" else link.heal)()
        await anyio.sleep(SILENT_AFTER_S + 1.0)
        assert len(federation.view.leaders) == 1, "the standby took its own deafness for the leader's end"

        federation.say("the leader is killed")
        began = time.monotonic()
        await federation.processes["broker"].kill()
        await federation.until("the standby leads", lambda view: len(view.leaders) == 2)
        assert time.monotonic() - began < 2 * SILENT_AFTER_S
        links.cancel_scope.cancel()
