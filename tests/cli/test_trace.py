"""`dragoman trace` on a federation that runs: every decision, with all of its time; and claims that are gone."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

from broker.adapters.embedded_nats import EmbeddedNats
from broker.adapters.streams import StreamSettings, ensure_streams
from broker.cli.demo import CLUSTERS, HOLDER, write_manifests
from broker.cli.main import main
from broker.cli.trace import trace_of
from schemas.wire.subjects import ledger_subject
from tests.cli.live import Live, live_up
from tests.nats_fixture import connect_to, own_nats

__all__ = ["own_nats"]

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

DEADLINE_S = 30.0


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    """The demo, to its end: the holder of a device is deleted, and who waited gets it."""
    write_manifests(tmp_path)
    async with live_up({cluster: tmp_path / cluster for cluster in CLUSTERS}) as live:
        await live.until_state("east/train-east", "Allocated")
        await live.until(
            "west waits", lambda live: live.rows.get("west/train-west", {}).get("reason") == "DevicesInUse"
        )
        (tmp_path / "east" / HOLDER).unlink()
        await live.until_state("west/train-west", "Allocated")
        yield live


async def traced(live: Live, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What `dragoman trace` prints."""
    url = await live.url()
    assert await to_thread.run_sync(lambda: main(["trace", *arguments, "--nats", url])) == 0
    return capsys.readouterr().out


async def until_told(live: Live, capsys: pytest.CaptureFixture[str], claim: str, what: str) -> list[dict[str, Any]]:
    """The claim's spans, once there is one of that name."""
    with anyio.fail_after(DEADLINE_S):
        while True:
            (found,) = json.loads(await traced(live, capsys, claim, "-o", "json"))
            if any(span["name"].startswith(f"{what} ") for span in found["spans"]):
                spans: list[dict[str, Any]] = found["spans"]
                return spans
            await anyio.sleep(0.1)


async def test_shows_the_life_of_a_claim_that_is_gone(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    await until_told(live, capsys, "ml/train-east", "end")
    out = await traced(live, capsys, "ml/train-east")
    lines = [line.split()[0] for line in out.splitlines()]
    assert out.startswith("east/")
    for stage in ("publish", "queue", "decide", "filter", "search", "commit", "deliver", "apply", "write", "report"):
        assert stage in lines, out
    (allocate,) = [line for line in out.splitlines() if line.startswith("allocate ml/train-east")]
    assert "gpu-driver.example.com/rack7/gpu-3" in allocate
    assert "Applied" in allocate


async def test_spans_cover_an_allocation_from_the_watch_event_to_the_write(
    live: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    spans = await until_told(live, capsys, "ml/train-west", "allocate")
    (top,) = [span for span in spans if span["name"] == "allocate ml/train-west"]
    below = [span for span in spans if span.get("parent_id") == top["span_id"]]
    assert [span["name"] for span in below] == ["wait", "decide", "batch", "commit", "deliver", "apply", "report"]
    assert sum(span["duration_us"] for span in below) >= 0.95 * top["duration_us"]
    assert all(span["trace_id"] == top["trace_id"] for span in spans)


async def test_says_whose_end_freed_what_was_waited_for(live: Live, capsys: pytest.CaptureFixture[str]) -> None:
    spans = await until_told(live, capsys, "ml/train-west", "allocate")
    (end,) = [
        span for span in await until_told(live, capsys, "ml/train-east", "end") if span["name"].startswith("end ")
    ]
    (top,) = [span for span in spans if span["name"] == "allocate ml/train-west"]
    freed = [link for link in top["links"] if link["why"] == "freed by"]
    assert freed == [{"trace_id": end["trace_id"], "span_id": end["span_id"], "why": "freed by"}]
    said = " ".join((await traced(live, capsys, "ml/train-west")).split())
    assert "waited for DevicesInUse freed by east/ml/train-east" in said


async def test_finds_a_claim_by_its_uid_and_says_where_there_is_none(
    live: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = live.rows["east/typo"]["uid"]
    out = await traced(live, capsys, "--uid", uid, "--cluster", "east")
    assert "refuse ml/typo" in out
    assert "InvalidSelector" in out
    url = await live.url()
    assert await to_thread.run_sync(lambda: main(["trace", "ml/nobody", "--cluster", "west", "--nats", url])) == 1
    assert "nothing is known of claim ml/nobody in west" in capsys.readouterr().err


async def test_an_entry_of_a_newer_broker_is_passed_over_with_a_sentence(
    own_nats: EmbeddedNats, caplog: pytest.LogCaptureFixture
) -> None:
    async with connect_to(own_nats) as connection:
        await ensure_streams(connection, StreamSettings(), "main", 0)
        subject = ledger_subject("main", 0, "west", "claim", "u1")
        parent = f"00-{'a' * 32}-{'b' * 16}-01"
        of_tomorrow = b'{"type":"dev.dragoman.ledger.tomorrow.v1"}'
        await connection.request(subject, of_tomorrow, {"traceparent": parent}, deadline_s=5)
        assert (await trace_of(connection, [0], "west", "u1")).episodes == []
    assert "MalformedMessage: ledger entry 1" in caplog.text
