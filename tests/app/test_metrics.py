"""What `docs/monitoring.md` says of metrics is what there is."""

from pathlib import Path

from broker.app.metrics import BrokerMetrics
from cluster_agent.app.metrics import AgentMetrics

DOCS = Path(__file__).parents[2] / "docs/monitoring.md"


def test_each_metric_stands_in_the_docs_and_no_other() -> None:
    metrics = BrokerMetrics()
    metrics.is_build("build", "instance")
    there = set()
    for family in [*metrics.registry.collect(), *AgentMetrics().registry.collect()]:
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        there.add(family.name + suffix)
    rows = [line.split("|")[1].strip(" `") for line in DOCS.read_text().splitlines() if line.startswith("| `dragoman_")]
    assert sorted(rows) == sorted(there)
