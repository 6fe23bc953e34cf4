"""An upgrade and a step back in the order of docs/upgrades.md, and what an older build must not pass over."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from broker.adapters.ledger_store import Committed, LedgerStore
from broker.machine.effects import ALGORITHM
from schemas.wire.bus import MESSAGE_ID, OutgoingMessage
from schemas.wire.subjects import ledger_stream, ledger_subject
from tests.processes.harness import DEADLINE_S, Federation, a_federation
from tests.processes.test_federation import (
    CLAIMS,
    check_agents,
    check_end,
    is_settled,
    let_holders_go,
    start_and_wait,
    write_claims,
)
from tests.upgrades import PREVIOUS, source_of

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

OF_TOMORROW = b'{"type":"dev.dragoman.ledger.lend.v1","cluster":"east","uid":"u1"}'


SEGMENT_ENTRIES = 150  # so that each build reads a checkpoint of the other's


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The code of the previous build."""
    source = source_of(PREVIOUS, tmp_path / "previous")
    if source is None:
        pytest.skip(f"git does not have {PREVIOUS[:7]} here (a source archive, or a shallow clone)")
    # As a process is started there: none of our own code must come first.
    where = [
        sys.executable,
        "-c",
        "import broker.cli, cluster_agent, schemas; print(broker.__file__, schemas.__file__)",
    ]
    found = subprocess.run(where, cwd=source, check=True, capture_output=True, text=True).stdout.split()
    assert [Path(each).is_relative_to(source) for each in found] == [True, True]
    return source


@pytest.fixture
async def mixed(tmp_path: Path, previous: Path) -> AsyncIterator[Federation]:
    """A federation of the previous build, at work."""
    async with a_federation(tmp_path, segment_entries=SEGMENT_ENTRIES) as federation:
        for process in federation.processes.values():
            process.source = previous
        await start_and_wait(federation)
        await federation.start("broker-2")
        yield federation


async def replace(federation: Federation, name: str, source: Path | None) -> None:
    """Another build of the process, in good order."""
    process = federation.processes[name]
    assert await process.stop() == 0
    process.source = source
    await process.start()
    await process.until_it_says("runs with epoch" if name in federation.clusters else "unverified")


async def replace_broker(federation: Federation, source: Path | None) -> None:
    """The one that stands by, then the leader: so that one of them always leads or can."""
    leader = await federation.leader()
    standby = "broker-2" if leader == "broker" else "broker"
    await replace(federation, standby, source)
    elected = len(federation.view.leaders)
    await replace(federation, leader, source)
    await federation.until("the other one leads", lambda view: len(view.leaders) > elected)
    assert await federation.leader() == standby


async def test_agents_first_then_brokers_and_back(mixed: Federation, previous: Path) -> None:
    write_claims(mixed, "east")
    await mixed.until("60 Allocates", lambda view: view.allocates >= 60)
    for name in mixed.clusters:
        await replace(mixed, name, None)
    mixed.say("agents of this build, brokers of the previous one")
    await mixed.until("150 Allocates", lambda view: view.allocates >= 150)

    await replace_broker(mixed, None)
    mixed.say("all of this build")
    write_claims(mixed, "west")
    await mixed.until("150 of 400 claims allocated", is_settled)
    rows = await let_holders_go(mixed, await check_end(mixed, 2 * CLAIMS))

    await replace_broker(mixed, previous)
    mixed.say("brokers of the previous build again")
    assert await check_end(mixed, len(rows)) == rows
    for name in mixed.clusters:
        await replace(mixed, name, previous)
    assert await check_end(mixed, len(rows)) == rows
    freed = [row for row in rows if row.state == "Allocated"][:20]
    for row in freed:
        mixed.remove(row.cluster, row.name)
    await mixed.until(
        "20 others have their devices",
        lambda view: len(view.allocated) == 150 and not view.unsettled and view.allocates >= 150 + 50 + 20,
    )
    await check_agents(mixed, await check_end(mixed, len(rows) - 20))
    assert mixed.view.segments >= 3
    assert mixed.view.collisions == 0
    assert mixed.view.algorithms == {1, ALGORITHM}, "that of the previous build, and ours"
    assert await mixed.dead_letters() == 0
    await check_audit(mixed)


async def check_audit(federation: Federation) -> None:
    """One chain goes through what both builds have written."""
    command = [sys.executable, "-m", "broker.cli.main", "audit", "verify", "--no-replay", "-o", "json"]
    ran = await anyio.run_process([*command, "--nats", federation.nats.url], check=False)
    found = json.loads(ran.stdout)
    assert (found["bad"], found["ok"]) == (None, True)
    assert found["chain"]["unchained"] == []
    assert found["chain"]["entries"] > 300


async def append(federation: Federation, kind: str) -> None:
    """As a broker of tomorrow does; the one that leads has nothing to say at the time."""
    store = LedgerStore(federation.connection, ledger_stream("main", 0))
    subject = ledger_subject("main", 0, "east", kind, "u1")
    last = await store.last_sequence()
    message = OutgoingMessage(subject, OF_TOMORROW, {MESSAGE_ID: f"tomorrow-{kind}"})
    assert isinstance(await store.append([message], last), Committed)


async def ends(federation: Federation, name: str) -> str:
    """What the process says at its end, which is not by a signal."""
    process = federation.processes[name]
    with anyio.fail_after(DEADLINE_S):
        while process.is_running:  # noqa: ASYNC110  # nobody tells
            await anyio.sleep(0.02)
    assert process.returncode == 1, process.tail()
    said = process.said()
    assert "Traceback" not in said
    return said


async def test_who_cannot_read_an_entry_stops_and_says_so(tmp_path: Path) -> None:
    async with a_federation(tmp_path) as federation:
        await start_and_wait(federation)
        await federation.start("broker-2")
        await federation.processes["broker-2"].until_it_says("stands by")
        write_claims(federation, "east")
        await federation.until("150 claims allocated", lambda view: len(view.allocated) == 150 and not view.unsettled)
        federation.stop_following()  # the view is as old as the others

        await append(federation, "record")
        await append(federation, "claim")
        sequence = federation.view.last + 2
        said = await ends(federation, "east")
        assert f"ledger entry {sequence}" in said  # not the record before it, which is nothing to an agent
        assert "'dev.dragoman.ledger.lend.v1'" in said
        assert "docs/upgrades.md" in said
        assert federation.processes["west"].is_running, "it is nothing to west"

        write_claims(federation, "west")  # so that the leader finds out that somebody else has written
        for name in ("broker", "broker-2"):
            said = await ends(federation, name)
            assert f"ledger entry {sequence - 1}" in said
            assert "docs/upgrades.md" in said
        await federation.start("broker")
        assert f"ledger entry {sequence - 1}" in await ends(federation, "broker")
