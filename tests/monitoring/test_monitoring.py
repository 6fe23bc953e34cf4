"""Dashboard and alerts ask for metrics that there are, with the labels that they have; every runbook is there."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import pytest
import yaml
from promql_parser import AggregateExpr, Expr

from broker.app.metrics import BrokerMetrics
from broker.app.tracer import TracerMetrics
from broker.machine.cluster_report import CLUSTER_STATES
from cluster_agent.app.claim_events import RESULTS
from cluster_agent.app.metrics import AgentMetrics

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy/helm/broker/monitoring"
HISTORIES = Path(__file__).parent / "alerts_test.yaml"
OF_THE_TARGET = {"instance", "job"}  # what Prometheus adds
SEVERITIES = {"critical", "warning", "info"}
INTERVAL = ("$__rate_interval", "1m")  # what Grafana puts in place of it
# Values that a metric's label can have, where that is a closed list.
VALUES = {
    ("dragoman_clusters", "state"): set(CLUSTER_STATES),
    ("dragoman_devices", "state"): {"free", "held", "unusable"},
    ("dragoman_tainted_devices", "by"): {"report", "operator"},
    ("dragoman_agent_claim_events_total", "result"): set(RESULTS),
    ("dragoman_pending_claims", "reason"): set(
        re.findall(r"`([A-Z][A-Za-z]+)`", (ROOT / "docs/reasons.md").read_text())
    ),
}
# Which build this is, which run, and what has gone well: neither panel nor alert needs it.
UNSEEN = {
    "dragoman_build_info",
    "dragoman_agent_epoch",
    "dragoman_agent_idle",
    "dragoman_agent_classes_projected",
    "dragoman_agent_taint_rules_projected",
    "dragoman_agent_watches_total",
}


class Query(NamedTuple):
    """place: where it stands, for people."""

    place: str
    text: str


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    return found


def queries() -> list[Query]:
    of_panels = [Query(panel["title"], each["expr"]) for panel in panels() for each in panel.get("targets", [])]
    return [*(Query(rule["alert"], rule["expr"]) for rule in rules()), *of_panels]


def series() -> dict[str, set[str]]:
    """Labels by name, of all that broker, agent and tracer may be scraped for."""
    found: dict[str, set[str]] = {}
    for registry in (BrokerMetrics().registry, AgentMetrics().registry, TracerMetrics().registry):
        for metric in set(registry._names_to_collectors.values()):  # what has no value yet is not collected
            name, labels = str(metric._name), set(metric._labelnames)  # type: ignore[attr-defined]
            match metric._type:  # type: ignore[attr-defined]
                case "counter":
                    found[f"{name}_total"] = labels
                case "info":
                    found[f"{name}_info"] = labels | {"build"}
                case "histogram":
                    found |= {f"{name}_{end}": labels for end in ("count", "sum")}
                    found[f"{name}_bucket"] = labels | {"le"}
                case _:
                    found[name] = labels
    return found


SERIES = series()


def parsed(text: str) -> Any:
    """Raises: ValueError."""
    return promql_parser.parse(text.replace(*INTERVAL))


def names(expression: Any) -> set[str]:
    """Of the series that it asks for."""
    return set(re.findall(r"\bdragoman_[a-z_]+", expression.prettify()))


def groupings(expression: Any) -> Iterator[list[str]]:
    """The labels of each aggregation, the outermost first."""
    found: list[Expr] = []
    promql_parser.walk(expression, found.append)
    for node in found:
        if isinstance(node, AggregateExpr) and node.modifier is not None:
            yield node.modifier.labels


def problems(text: str) -> list[str]:
    """What it asks for and will never get."""
    expression = parsed(text)
    asked = names(expression)
    found = [f"{name}: no such metric" for name in sorted(asked - SERIES.keys())]
    for name, matchers in re.findall(r"(dragoman_[a-z_]+)\{(.*?)\}", expression.prettify()):
        for label, operator, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"(.*?)"', matchers):
            if label not in SERIES.get(name, set()) | OF_THE_TARGET:
                found.append(f"{name}: no label {label}")
            allowed = VALUES.get((name, label))
            given = value.split("|") if "~" in operator else [value]
            found += [f"{name}: {label} is never {each}" for each in given if allowed and each not in allowed]
    has = OF_THE_TARGET.union(*(SERIES.get(name, set()) for name in asked))
    return found + [
        f"no label {label} to group by" for each in groupings(expression) for label in each if label not in has
    ]


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.place)
def test_a_query_asks_for_what_there_is(query: Query) -> None:
    assert names(parsed(query.text))
    assert problems(query.text) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dragoman_leaders", "dragoman_leaders: no such metric"),
        ("rate(dragoman_terms[5m])", "dragoman_terms: no such metric"),
        ('dragoman_clusters{status="Stale"}', "dragoman_clusters: no label status"),
        ('dragoman_clusters{state="stale"}', "dragoman_clusters: state is never stale"),
        ('dragoman_pending_claims{reason=~"ClusterStale|Bored"}', "dragoman_pending_claims: reason is never Bored"),
        ("sum by (uid) (dragoman_claims)", "no label uid to group by"),
        (
            'sum(rate(dragoman_step_duration_seconds_bucket{call="x"}[5m]))',
            "dragoman_step_duration_seconds_bucket: no label call",
        ),
    ],
)
def test_what_there_is_not_is_named(text: str, said: str) -> None:
    assert problems(text) == [said]


def test_what_is_no_query_is_refused() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        parsed("sum by (state dragoman_claims")


def test_an_alert_says_what_happened_what_it_means_and_where_to_look() -> None:
    named = [rule["alert"] for rule in rules()]
    assert len(set(named)) == len(named) >= 15
    for rule in rules():
        assert rule["labels"]["severity"] in SEVERITIES
        assert {"summary", "description", "runbook"} == rule["annotations"].keys(), rule["alert"]
        said = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", said)) <= labels_of(rule["expr"]), rule["alert"]


def labels_of(text: str) -> set[str]:
    """What an alert's series have left: what the outermost aggregation keeps, else all."""
    kept = next(groupings(parsed(text)), None)
    return set(kept) if kept is not None else OF_THE_TARGET.union(*(SERIES[name] for name in names(parsed(text))))


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_a_runbook_is_there(rule: dict[str, Any]) -> None:
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {anchor_of(heading) for heading in headings}


def anchor_of(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_panels_do_not_lie_upon_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = {(column, line) for column in columns for line in lines}
        assert not cells & taken, panel["title"]
        assert columns.stop <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_every_metric_is_looked_at() -> None:
    looked_at = {_without_end(name) for query in queries() for name in names(parsed(query.text))}
    assert {name for name in SERIES if _without_end(name) not in looked_at} == UNSEEN


def _without_end(name: str) -> str:
    return re.sub(r"_(count|sum|bucket)$", "", name)


def test_each_alert_has_a_history_that_raises_it_and_one_that_does_not() -> None:
    tests = yaml.safe_load(HISTORIES.read_text())["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    raised = {check["alertname"] for check in checks if check["exp_alerts"]}
    silent = {check["alertname"] for check in checks if not check["exp_alerts"]}
    assert raised == silent == {rule["alert"] for rule in rules()}


def test_promtool_takes_the_rules_and_their_histories() -> None:
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not in PATH, nor is PROMTOOL set: the histories of the alerts are not tried")
    for command in (["check", "rules", str(MONITORING / "alerts.yaml")], ["test", "rules", str(HISTORIES)]):
        done = subprocess.run([program, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
