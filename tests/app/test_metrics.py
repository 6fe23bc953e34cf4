"""What `docs/monitoring.md` says of metrics is what there is."""

from pathlib import Path

from prometheus_client.openmetrics.exposition import generate_latest

from broker.app.metrics import BrokerMetrics
from broker.app.stage_times import Decided
from broker.app.tracer import TracerMetrics
from cluster_agent.app.metrics import AgentMetrics
from schemas.wire.codec import trace_id

DOCS = Path(__file__).parents[2] / "docs/monitoring.md"


def test_each_metric_stands_in_the_docs_and_no_other() -> None:
    metrics = BrokerMetrics()
    metrics.is_build("build", "instance")
    there = set()
    others = (AgentMetrics().registry, TracerMetrics().registry)
    for family in [each for registry in (metrics.registry, *others) for each in registry.collect()]:
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        there.add(family.name + suffix)
    rows = [line.split("|")[1].strip(" `") for line in DOCS.read_text().splitlines() if line.startswith("| `dragoman_")]
    assert sorted(rows) == sorted(there)


def test_the_slowest_decision_of_a_batch_is_an_exemplar_with_its_claim_s_trace() -> None:
    metrics = BrokerMetrics()
    took = (("a", 0.3), ("b", 0.4), ("c", 0.02))
    now_us = 1_790_000_000_000_000
    decided = [Decided("east", uid, "allocated", now_us - round(seconds * 1e6)) for uid, seconds in took]
    metrics.decided([*decided, Decided("west", "d", "pending", now_us - 300_000)], now_us)
    text = generate_latest(metrics.registry).decode()  # type: ignore[no-untyped-call]
    lines = [line for line in text.splitlines() if "decision_duration_seconds" in line]
    (example,) = [line for line in lines if trace_id("east", "b") in line]
    assert example.startswith('dragoman_decision_duration_seconds_bucket{le="0.5",result="allocated"} 3.0 #')
    assert sum("trace_id" in line for line in lines) == 2
    assert 'dragoman_decision_duration_seconds_count{result="allocated"} 3.0' in lines
    assert 'dragoman_decision_duration_seconds_count{result="pending"} 1.0' in lines
