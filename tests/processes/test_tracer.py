"""`dragoman tracer` between a federation that runs and a collector: every decision, each once, whatever happens."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from broker.cli.demo import CLUSTERS, HOLDER, write_manifests
from broker.tracing.facts import EntryFacts, StateFacts, entry_facts, state_facts
from schemas.client.connection import BusOptions, connect
from schemas.client.reader import StreamReader
from schemas.wire.codec import trace_id
from schemas.wire.ledger import Allocate, OutcomeRecorded, ReasonChanged, Release
from tests.cli.live import Live, live_up
from tests.nats_fixture import own_nats
from tests.processes.harness import Process
from tests.processes.test_permissions import a_nats, granted, running, write_clusters
from tests.tracing.collector import Collector, Got, a_collector

__all__ = ["own_nats"]

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

COVERED = 0.95


@asynccontextmanager
async def the_demo(root: Path) -> AsyncIterator[Live]:
    """Up to where one claim has what the other waits for."""
    write_manifests(root)
    async with live_up({cluster: root / cluster for cluster in CLUSTERS}) as live:
        await live.until_state("east/train-east", "Allocated")
        await live.until(
            "west waits", lambda live: live.rows.get("west/train-west", {}).get("reason") == "DevicesInUse"
        )
        yield live


async def goes_on(root: Path, live: Live) -> None:
    """The holder goes, and who waited gets what it had."""
    (root / "east" / HOLDER).unlink()
    await live.until_state("west/train-west", "Allocated")


@asynccontextmanager
async def a_tracer(root: Path, live: Live | None, collector: Collector, *arguments: str) -> AsyncIterator[Process]:
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.url
    try:
        nats = ["--nats", await live.url()] if live is not None else []
        process = Process("tracer", ["tracer", *nats, *arguments], root / "tracer.log")
        await process.start()
        try:
            yield process
        finally:
            if process.is_running:
                await process.kill()
    finally:
        del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"]


async def both_logs(live: Live) -> tuple[dict[int, StateFacts], list[EntryFacts]]:
    """What the logs say, read as the tracer does; nothing is wrong with any of it."""
    problems: list[Any] = []
    async with connect(BusOptions((await live.url(),))) as connection:
        states = {
            found[2].sequence: found[2]
            async for batch in StreamReader(connection, "DRA_STATE").read(0)
            for message in batch
            if (found := state_facts(message, problems.append)) is not None
        }
        entries = [
            facts
            async for batch in StreamReader(connection, "DRA_LEDGER_main_0").read(0)
            for message in batch
            if (facts := entry_facts(message, problems.append)) is not None
        ]
    assert problems == []
    return states, entries


def covered(spans: list[Got], start_us: int, end_us: int) -> float:
    """Which part of a time these spans cover."""
    at_us, total = start_us, 0
    for span in sorted(spans, key=lambda each: each.start_us):
        begin, end = max(at_us, span.start_us), min(end_us, span.end_us)
        if end > begin:
            total += end - begin
            at_us = end
    return total / (end_us - start_us)


def has(name: str) -> Any:
    """A span of this name came."""
    return lambda collector: any(span.name == name for span in collector.spans)


async def test_every_decision_of_the_demo_is_covered_from_the_watch_event_to_the_write(tmp_path: Path) -> None:
    async with a_collector() as collector, the_demo(tmp_path) as live:
        await goes_on(tmp_path, live)
        async with a_tracer(tmp_path, live, collector, "--from-start", f"--data={tmp_path}/data") as tracer:
            await collector.until("the last allocation", has("allocate ml/train-west"))
            await collector.until("the holder's end", has("end ml/train-east"))
            states, entries = await both_logs(live)
            assert await tracer.stop() == 0
        assert "Traceback" not in tracer.log.read_text()
    spans = {span.span_id: span for span in collector.spans}
    assert set(collector.times_came().values()) == {1}
    outcomes = {each.entry.decision_sequence: each for each in entries if isinstance(each.entry, OutcomeRecorded)}
    decisions = [each for each in entries if isinstance(each.entry, Allocate | Release | ReasonChanged)]
    assert {type(each.entry) for each in decisions} >= {Allocate, ReasonChanged}
    last_verdict: dict[str, int] = {}
    for decided in decisions:
        entry = decided.entry
        assert isinstance(entry, Allocate | Release | ReasonChanged)
        top = spans[decided.context.span_id]
        assert top.trace_id == trace_id(entry.cluster, entry.uid)
        # What waited was told of with its watch event before: from then on it waits.
        start_us = last_verdict.get(entry.uid) or states[decided.cause].times["seen"]
        if isinstance(entry, ReasonChanged):
            end_us = last_verdict[entry.uid] = decided.stored_us
        else:
            end_us = states[outcomes[decided.sequence].cause].times["written"]
        below = [span for span in collector.spans if span.parent_id == top.span_id]
        assert covered(below, start_us, end_us) >= COVERED, (top, below)
        assert all(span.trace_id == top.trace_id for span in below)
    assert {span.resource["service.name"] for span in collector.spans} == {"dragoman"}
    commits = [span for span in collector.spans if span.name == "commit"]
    batches = {(span.trace_id, span.span_id) for span in collector.spans if span.name == "batch" and not span.parent_id}
    assert all(len(span.links) == 1 and span.links[0] in batches for span in commits if span.parent_id)


async def test_killed_and_started_again_it_sends_every_span_once(tmp_path: Path) -> None:
    data = ("--from-start", f"--data={tmp_path}/data")
    async with a_collector() as collector, the_demo(tmp_path) as live:
        async with a_tracer(tmp_path, live, collector, *data) as tracer:
            await collector.until("the first allocation", has("allocate ml/train-east"))
            await until_kept(tmp_path, live)
            collector.refuses, asked = True, collector.requests
            await goes_on(tmp_path, live)
            await collector.until("a try", lambda collector: collector.requests > asked)
            await tracer.kill()  # with what it knows and could not tell
        collector.refuses = False
        async with a_tracer(tmp_path, live, collector, *data):
            await collector.until("the second allocation", has("allocate ml/train-west"))
            await collector.until("the holder's end", has("end ml/train-east"))
            await until_kept(tmp_path, live)
        async with a_collector() as other:
            async with a_tracer(tmp_path, live, other, "--from-start"):
                await other.until("the second allocation", has("allocate ml/train-west"))
                await other.until("as many", lambda other: len(other.spans) >= len(collector.spans))
            expected = {span.span_id: span for span in other.spans}
    assert set(collector.times_came().values()) == {1}
    assert {span.span_id for span in collector.spans} == expected.keys()
    # The resource says which process sent it; all else is made from the messages.
    found = [(replace(span, resource={}), replace(expected[span.span_id], resource={})) for span in collector.spans]
    assert [(ours, theirs) for ours, theirs in found if ours != theirs] == []


async def test_its_role_at_nats_lets_it_read_all_that_it_needs(tmp_path: Path) -> None:
    write_clusters(tmp_path)
    async with a_collector() as collector, a_nats(tmp_path) as nats, running(tmp_path, nats, {}) as processes:
        await granted(nats, 4, processes)
        async with a_tracer(tmp_path, None, collector, "--from-start", *nats.arguments("tracer")) as tracer:
            await collector.until("an allocation", has("allocate default/east-0"))
            assert await tracer.stop() == 0
        assert "ermissions" not in tracer.log.read_text()


async def test_a_ratio_of_nothing_still_keeps_what_is_unusual(tmp_path: Path) -> None:
    async with a_collector() as collector, the_demo(tmp_path) as live:
        arguments = ("--from-start", "--ratio=0", "--slow=3600", f"--data={tmp_path}/data")
        async with a_tracer(tmp_path, live, collector, *arguments):
            await collector.until("what was refused", has("refuse ml/typo"))
            await until_kept(tmp_path, live)
    assert {span.name for span in collector.spans if not span.parent_id} == {"refuse ml/typo"}


async def until_kept(root: Path, live: Live) -> None:
    """Return when the tracer has written down that it has come to the ledger's end."""
    progress = root / "data/tracer.json"
    async with connect(BusOptions((await live.url(),))) as connection:
        reader = StreamReader(connection, "DRA_LEDGER_main_0")
        with anyio.fail_after(30):
            while True:
                last = (await reader.state()).last_sequence
                if progress.exists() and f'"ledger":{last},' in progress.read_text():
                    return
                await anyio.sleep(0.05)
