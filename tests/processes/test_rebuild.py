"""The logs in NATS are lost under running processes, and a federation goes on from what its clusters have."""

import json
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from broker.cli.main import main
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
