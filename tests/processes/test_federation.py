"""Agents and brokers as separate processes on a real nats-server: 400 claims of two clusters on 150 shared devices.

Whatever is killed at whatever moment and started again, the end is the same: 150 claims have a device each, no device
has two, the rest wait with a reason; when 50 holders go, 50 that waited get theirs.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from tests.manifests import DRIVER, claim_manifest, class_manifest, slice_manifest
from tests.processes.harness import Federation, Row, a_federation, states
from tests.processes.ledger_view import LedgerView

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

DEVICES = 150
CLAIMS = 200  # in each of two clusters
LET_GO = 50
WAITING = 2 * CLAIMS - DEVICES


def write_inventory(federation: Federation) -> None:
    """The class, and a pool of 150 devices in two slices, in the source's directory."""
    source = federation.clusters[0]
    for cluster in federation.clusters if source != "hub" else ["hub"]:
        federation.write(cluster, "class", class_manifest())
    slices = [
        slice_manifest([f"gpu-{index}" for index in range(first, first + 75)], name=f"rack-{first}", slices=2)
        for first in (0, 75)
    ]
    federation.write(source, "slices", *slices)


def write_claims(federation: Federation, *clusters: str) -> None:
    """200 claims in each of these clusters, a file for each."""
    for cluster in clusters:
        for number in range(CLAIMS):
            federation.write(cluster, f"claim-{number}", claim_manifest(f"claim-{number}"))


def is_settled(view: LedgerView) -> bool:
    return len(view.allocated) == DEVICES and len(view.waiting) == WAITING and not view.unsettled


def is_settled_again(view: LedgerView) -> bool:
    return len(view.allocated) == DEVICES and len(view.waiting) == WAITING - LET_GO and not view.unsettled


async def start_and_wait(federation: Federation) -> None:
    """All processes run, and each cluster was heard."""
    write_inventory(federation)
    await federation.start(*federation.clusters, "broker")
    await federation.until("all clusters heard", lambda view: view.synced == set(federation.clusters))


async def check_end(federation: Federation, claims: int) -> list[Row]:
    """Everybody says the same: 150 claims have a device of their own, the rest wait and say why."""
    rows = await federation.rows(claims)
    assert states(rows) == {"Allocated": DEVICES, "Pending": claims - DEVICES}
    held = [(each["driver"], each["pool"], each["device"]) for row in rows for each in row.results]
    assert sorted(held) == sorted((DRIVER, "rack", f"gpu-{index}") for index in range(DEVICES))
    for row in rows:
        if row.state == "Pending":
            assert (row.results, row.reason) == ([], "DevicesInUse")
            assert "150 in use" in row.message
    by_ledger = {uid: [device[1:] for device in devices] for (_, uid), devices in federation.view.allocated.items()}
    by_api = {
        row.uid: [(each["driver"], each["pool"], each["device"]) for each in row.results] for row in rows if row.results
    }
    assert by_ledger == by_api
    return rows


async def let_holders_go(federation: Federation, rows: Sequence[Row]) -> list[Row]:
    """Delete 50 holders; exactly 50 claims that waited get their devices. Returns the end."""
    holders = [row for row in rows if row.state == "Allocated"][:: DEVICES // LET_GO]
    assert len(holders) == LET_GO
    before = {row.uid: row for row in rows}
    for row in holders:
        federation.remove(row.cluster, row.name)
    await federation.until("50 holders gone, 50 others in their place", is_settled_again)
    after = {row.uid: row for row in await check_end(federation, 2 * CLAIMS - LET_GO)}
    assert before.keys() - after.keys() == {row.uid for row in holders}
    lucky = [uid for uid, row in after.items() if row.results and not before[uid].results]
    assert len(lucky) == LET_GO
    unmoved = [uid for uid, row in after.items() if before[uid].results and row.results != before[uid].results]
    assert unmoved == []
    return list(after.values())


async def check_agents(federation: Federation, rows: Sequence[Row]) -> None:
    """What the clusters themselves keep is what the broker says of them."""
    for cluster in federation.members:
        agent = federation.processes[cluster]
        await agent.until_it_says("runs with epoch")
        assert await agent.stop() == 0
        expected = {
            row.uid: [(each["driver"], each["pool"], each["device"]) for each in row.results]
            for row in rows
            if row.cluster == cluster
        }
        assert await federation.kept_allocations(cluster) == expected
    for process in federation.processes.values():
        assert "Traceback" not in process.tail()


@pytest.mark.parametrize("has_hub", [pytest.param(False, id="east is the source"), pytest.param(True, id="with a hub")])
async def test_shares_150_devices_among_400_claims(tmp_path: Path, has_hub: bool) -> None:
    async with a_federation(tmp_path, has_hub=has_hub) as federation:
        write_inventory(federation)
        write_claims(federation, *federation.members)
        await federation.start(*federation.clusters, "broker")
        await federation.until("150 of 400 claims allocated", is_settled)
        rows = await check_end(federation, 2 * CLAIMS)
        for row in (rows[0], next(row for row in rows if row.state == "Pending")):
            call = msgspec.json.encode({"namespace": row.namespace, "name": row.name, "cluster": row.cluster})
            (explained,) = msgspec.json.decode(await federation.call("explain", call))
            assert explained["claim"] == msgspec.to_builtins(row)
        await check_agents(federation, await let_holders_go(federation, rows))
        assert len(federation.view.leaders) == 1
        assert federation.view.collisions == 0
        assert await federation.dead_letters() == 0


@pytest.mark.parametrize("victim", ["broker", "east", "west"])
async def test_ends_the_same_however_often_a_process_is_killed(tmp_path: Path, victim: str) -> None:
    async with a_federation(tmp_path) as federation:
        await start_and_wait(federation)
        federation.say(f"{victim} is killed before there is any claim, and started when there are")
        await federation.processes[victim].kill()
        # An agent is killed while the devices go to its own claims: the others come when all of them are given.
        first = [victim] if victim in federation.members else federation.members
        write_claims(federation, *first)
        await federation.start(victim)
        for allocates in (1, 100):
            await federation.until(f"{allocates} Allocates", lambda view: view.allocates >= allocates)  # noqa: B023
            await federation.restart(victim)
        await federation.until("60 outcomes", lambda view: view.outcomes >= 60)
        await federation.restart(victim)
        write_claims(federation, *(name for name in federation.members if name not in first))
        await federation.until("150 of 400 claims allocated", is_settled)
        rows = await check_end(federation, 2 * CLAIMS)
        await federation.restart(victim)
        await check_agents(federation, await let_holders_go(federation, rows))
        assert federation.view.collisions == 0


async def test_takes_any_of_them_being_killed_all_the_time(tmp_path: Path) -> None:
    async with a_federation(tmp_path) as federation:
        await start_and_wait(federation)
        write_claims(federation, *federation.members)
        for entries, victims in ((20, ["east"]), (60, ["west", "broker"]), (200, ["broker"]), (300, ["west", "east"])):
            await federation.until(f"{entries} entries", lambda view: view.last >= entries)  # noqa: B023
            await federation.restart(*victims)
        await federation.until("150 of 400 claims allocated", is_settled)
        await federation.restart("broker", "east", "west")
        rows = await check_end(federation, 2 * CLAIMS)
        await check_agents(federation, await let_holders_go(federation, rows))


async def test_of_two_brokers_one_leads_and_the_other_takes_over(tmp_path: Path) -> None:
    async with a_federation(tmp_path) as federation:
        write_inventory(federation)
        write_claims(federation, *federation.members)
        await federation.start("broker", "broker-2", *federation.clusters)
        await federation.until("60 Allocates", lambda view: view.allocates >= 60)
        first = await federation.leader()
        elected = len(federation.view.leaders)
        assert elected <= 2, "they depose each other"  # two, if both found nobody leading in the same moment
        federation.say(f"{first} leads and is killed")
        killed = time.monotonic()
        await federation.processes[first].kill()
        await federation.until("another leader", lambda view: len(view.leaders) > elected)
        took_s = time.monotonic() - killed
        assert await federation.leader() != first
        federation.say(f"{await federation.leader()} took over, elected {took_s:.2f} s after the kill")
        await federation.start(first)
        await federation.until("150 of 400 claims allocated", is_settled)
        rows = await check_end(federation, 2 * CLAIMS)
        await check_agents(federation, await let_holders_go(federation, rows))
        assert len(federation.view.leaders) == elected + 1, "the one that came back leads again"
        for name in ("broker", "broker-2"):
            assert await federation.processes[name].stop() == 0


async def test_goes_on_after_nats_server_was_killed(tmp_path: Path) -> None:
    async with a_federation(tmp_path) as federation:
        await start_and_wait(federation)
        write_claims(federation, *federation.members)
        for entries in (40, 300):
            await federation.until(f"{entries} entries", lambda view: view.last >= entries)  # noqa: B023
            await federation.nats.kill()
            await federation.nats.start()
        await federation.until("150 of 400 claims allocated", is_settled)
        rows = await check_end(federation, 2 * CLAIMS)
        await check_agents(federation, await let_holders_go(federation, rows))
