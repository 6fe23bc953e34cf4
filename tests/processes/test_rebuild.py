"""The logs in NATS are lost under running processes, and a federation goes on from what its clusters have."""

import json
import os
import shutil
import signal
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from broker.cli.main import main
from schemas.client.reader import StreamReader
from schemas.wire.subjects import DEAD_LETTER_STREAM, STATE_STREAM
from tests.manifests import claim_manifest, class_manifest, slice_manifest
from tests.processes.harness import DEADLINE_S, Federation, a_federation

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

DEVICES = 60
CLAIMS = 40  # in each of two clusters


async def start(federation: Federation) -> dict[str, list[dict[str, str]]]:
    """All processes run, and 60 of 80 claims have a device; which."""
    for cluster in federation.members:
        federation.write(cluster, "class", class_manifest())
        for number in range(CLAIMS):
            federation.write(cluster, f"claim-{number}", claim_manifest(f"claim-{number}"))
    federation.write("east", "slices", slice_manifest([f"gpu-{index}" for index in range(DEVICES)]))
    await federation.start("east", "west", "broker")
    return await until_allocated(federation, DEVICES)


async def goes_on(federation: Federation, before: dict[str, list[dict[str, str]]]) -> None:
    """Everybody has kept what they had; and who waits gets what others let go."""
    await until_states(federation, {"Ready"})
    after = await until_allocated(federation, DEVICES)
    assert {name: after.get(name) for name in before} == before
    gone = sorted(before)[:10]
    for name in gone:
        cluster, _, claim = name.partition("/")
        federation.remove(cluster, claim)
    with anyio.fail_after(DEADLINE_S):
        while after.keys() & set(gone) or len(after) < DEVICES:
            await anyio.sleep(0.2)
            after = await allocations(federation)
    assert len(set(devices(after))) == len(devices(after)) == DEVICES
    await check_clusters(federation)


async def check_clusters(federation: Federation) -> None:
    """What the clusters themselves keep: no device twice."""
    held = []
    for cluster in federation.members:
        assert await federation.processes[cluster].stop() == 0
        held += [device for found in (await federation.kept_allocations(cluster)).values() for device in found]
    assert len(set(held)) == len(held) == DEVICES
    for process in federation.processes.values():
        assert "Traceback" not in process.tail()


async def rebuild(federation: Federation, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """An operator does it while no broker runs; then the ledger is followed from there."""
    capsys.readouterr()
    config = str(federation.root / "config.yaml")
    arguments = ["ledger", "rebuild", "--config", config, "--reason", "lost", "--operator", "ada", "--yes"]
    code = await to_thread.run_sync(lambda: main([*arguments, "-o", "json", "--nats", federation.nats.url]))
    printed = capsys.readouterr()
    assert code == 0, printed.err
    done: dict[str, object] = json.loads(printed.out)
    return done


async def verified(federation: Federation, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    code = await to_thread.run_sync(lambda: main(["ledger", "verify", "--nats", federation.nats.url]))
    printed = capsys.readouterr()
    assert code == 0, printed.out
    return printed.out


async def states(federation: Federation) -> dict[str, str]:
    rows = json.loads(await federation.call("clusters"))
    return {row["cluster"]: row["state"] for row in rows}


async def until_states(federation: Federation, wanted: set[str]) -> None:
    """Return when all clusters stand so."""
    with anyio.fail_after(DEADLINE_S):
        while set((await states(federation)).values()) != wanted:  # noqa: ASYNC110  # the API tells nobody
            await anyio.sleep(0.1)


async def allocations(federation: Federation) -> dict[str, list[dict[str, str]]]:
    """Of every claim that has one, as the broker knows it."""
    rows = json.loads(await federation.call("claims"))
    return {f"{row['cluster']}/{row['name']}": row["results"] for row in rows if row["state"] == "Allocated"}


async def until_allocated(federation: Federation, count: int) -> dict[str, list[dict[str, str]]]:
    with anyio.fail_after(DEADLINE_S):
        while True:
            found = await allocations(federation)
            if len(found) >= count:
                return found
            await anyio.sleep(0.2)


async def is_told(federation: Federation, process: str, text: str) -> None:
    with anyio.fail_after(DEADLINE_S):
        await federation.processes[process].until_it_says(text)


def devices(found: dict[str, list[dict[str, str]]]) -> list[tuple[str, str]]:
    return sorted((each["pool"], each["device"]) for results in found.values() for each in results)


async def test_a_ledger_that_was_lost_is_rebuilt_under_running_agents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with a_federation(tmp_path, follows_ledger=False) as federation:
        before = await start(federation)
        await federation.connection.api("STREAM.DELETE.DRA_LEDGER_main_0")
        federation.write("east", "one-more", claim_manifest("one-more"))
        # The leader finds no place to write to, and ends; the next one finds that clusters know more than it does.
        assert await federation.processes["broker"].ends() == 1
        assert "DRA_LEDGER_main_0 is gone while it was written to" in federation.processes["broker"].tail()
        await federation.start("broker")
        await until_states(federation, {"Ahead"})
        await is_told(federation, "broker", "LedgerLost")
        await federation.processes["broker"].kill()
        done = await rebuild(federation, capsys)
        assert (done["segment"], done["left"]) == (1, [0])
        await federation.start("broker")
        await goes_on(federation, before)
        assert "was rebuilt by ada: lost" in await verified(federation, capsys)


@pytest.mark.parametrize("leads_on", [True, False], ids=["under a leader", "while no broker runs"])
async def test_backup_and_restore(tmp_path: Path, capsys: pytest.CaptureFixture[str], leads_on: bool) -> None:
    """The drill: a backup of all of NATS, taken while everything runs, is put in place of what was lost later."""
    async with a_federation(tmp_path, follows_ledger=False) as federation:
        await start(federation)
        copy_of_nats(federation, tmp_path / "backup")
        # What comes after the backup: ten claims go, and ten that waited get their devices.
        went = sorted(await allocations(federation))[:10]
        for name in went:
            federation.remove(*name.split("/"))
        before = await allocations(federation)
        with anyio.fail_after(DEADLINE_S):
            while before.keys() & set(went) or len(before) < DEVICES:
                await anyio.sleep(0.2)
                before = await allocations(federation)
        broker = federation.processes["broker"]
        if not leads_on:
            await broker.kill()
        await federation.nats.kill()
        put_back(federation, tmp_path / "backup")
        await federation.nats.start()
        if leads_on:
            # The leader knows that entries are gone, ends, and has seen to it that no other goes on from there.
            assert await broker.ends() == 1
            assert "an older copy was put in its place" in broker.tail()
            await federation.start("broker")
            assert await broker.ends() == 1
            assert "dragoman ledger rebuild" in broker.tail()
        else:
            # Who starts now reads what there is, and hears of more than that from the agents.
            await federation.start("broker")
            await is_told(federation, "broker", "LedgerLost")
            await broker.kill()
        federation.write("west", "late", claim_manifest("late"))
        done = await rebuild(federation, capsys)
        assert (done["segment"], done["left"]) == (1, [0])
        await federation.start("broker")
        await goes_on(federation, before)
        await verified(federation, capsys)


async def test_all_of_nats_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with a_federation(tmp_path, follows_ledger=False) as federation:
        before = await start(federation)
        await federation.processes["broker"].kill()
        await federation.nats.kill()
        shutil.rmtree(store_of(federation))
        await federation.nats.start()
        await federation.start("broker")
        # Only the claims themselves tell that something was decided before.
        await is_told(federation, "broker", "LedgerLost")
        await until_states(federation, {"Ahead"})
        await federation.processes["broker"].kill()
        await rebuild(federation, capsys)
        await federation.start("broker")
        await goes_on(federation, before)
        await verified(federation, capsys)


async def test_what_clusters_have_said_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The ledger alone is left: every cluster says it all again, and no operator is needed but to start the broker."""
    async with a_federation(tmp_path, follows_ledger=False) as federation:
        before = await start(federation)
        last = (await StreamReader(federation.connection, STATE_STREAM).state()).last_sequence
        await federation.connection.api(f"STREAM.DELETE.{STATE_STREAM}")
        await federation.restart("broker")
        await is_told(federation, "broker", "DRA_STATE is gone: made anew, beginning at")
        await goes_on(federation, before)
        assert (await StreamReader(federation.connection, STATE_STREAM).state()).first_sequence > last
        await verified(federation, capsys)


async def test_dead_letters_are_lost_and_the_leader_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The stream is made again by the next dead letter, and given its age again by `nats-setup`."""
    async with a_federation(tmp_path, follows_ledger=False) as federation:
        before = await start(federation)
        await federation.connection.api(f"STREAM.DELETE.{DEAD_LETTER_STREAM}")
        await federation.connection.publish("dra.v1.state.east.claim.none", b"{")
        await is_told(federation, "broker", "DRA_DEADLETTER was gone, with all that it had: made anew")
        await goes_on(federation, before)
        kept = await StreamReader(federation.connection, DEAD_LETTER_STREAM).state()
        assert (kept.messages, await federation.dead_letters()) == (1, 1)
        setup = ["nats-setup", "--nats", federation.nats.url, "--dead-letters-age", "90d"]
        assert await to_thread.run_sync(main, setup) == 0
        assert "DRA_DEADLETTER" in capsys.readouterr().out
        told = federation.processes["broker"].said().count("DRA_DEADLETTER was gone")
        assert told == 1


def store_of(federation: Federation) -> Path:
    return federation.nats.data_dir / "jetstream"


def copy_of_nats(federation: Federation, to: Path) -> None:
    """As a snapshot of the file system would: nothing is written meanwhile."""
    os.kill(federation.nats.pid, signal.SIGSTOP)
    try:
        shutil.copytree(store_of(federation), to)
    finally:
        os.kill(federation.nats.pid, signal.SIGCONT)


def put_back(federation: Federation, copy: Path) -> None:
    shutil.rmtree(store_of(federation))
    shutil.copytree(copy, store_of(federation))
