"""`dragoman bench allocate`: every scenario runs, and prints all figures."""

import json

import pytest

from broker.cli.bench_scenarios import SCENARIOS
from broker.cli.main import main

FIGURES = [
    "scenario",
    "devices",
    "claims",
    "placed",
    "median_us",
    "p99_us",
    "total_s",
    "build_s",
    "slice_update_ms",
    "peak_rss_mib",
]


@pytest.mark.parametrize(
    ("scenario", "placed"),
    [("one", 12), ("cel", 12), ("gang8", 2), ("gang17", 0), ("fill", 12), ("share", 12), ("mig", 12)],
)
def test_every_scenario_runs(scenario: str, placed: int, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--devices", "200", "--claims", "12", "--scenario", scenario, "-o", "json"]
    assert main(["bench", "allocate", *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == FIGURES
    assert (found["scenario"], found["devices"], found["claims"], found["placed"]) == (scenario, 200, 12, placed)
    assert all(found[name] > 0 for name in FIGURES[4:])


def test_fills_90_percent_of_the_fleet_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "allocate", "--devices", "50", "--scenario", "fill"]) == 0
    assert "45" in capsys.readouterr().out.split()


def test_wrong_numbers_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "allocate", "--devices", "0"]) == 2
    assert "--devices 0: must be at least 1" in capsys.readouterr().err


def test_a_fleet_has_as_many_devices_as_asked_for() -> None:
    for name, scenario in SCENARIOS.items():
        for count in (1, 64, 300):
            slices = list(scenario.fleet(count))
            assert sum(len(each.spec.devices) for each in slices) == count, name
            by_pool = {each.spec.pool.name: each.spec.pool.resource_slice_count for each in slices}
            assert sum(by_pool.values()) == len(slices), name
