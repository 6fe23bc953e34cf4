"""The short run, a quarter of a minute on each topology; `python -m tests.chaos --minutes 10` is the long one."""

from pathlib import Path

import anyio
import pytest

from tests.chaos.run import run
from tests.chaos.schedule import faults

SECONDS = 16.0  # the seeds have a fault of every kind in them


@pytest.mark.processes
@pytest.mark.parametrize(
    ("servers", "seed"), [pytest.param(1, 395, id="one nats-server"), pytest.param(3, 227, id="three")]
)
def test_nothing_is_lost_and_nothing_granted_twice(tmp_path: Path, servers: int, seed: int) -> None:
    report = anyio.run(run, tmp_path, servers, SECONDS, seed, print)
    print(report.text())
    again = f"python -m tests.chaos --servers {servers} --minutes {SECONDS / 60:g} --seed {seed}"
    assert not report.violations, f"{report.violations[:5]}; logs and stores are in {tmp_path}; again: {again}"
    assert report.kills >= 4
    assert report.decisions >= 20


def test_a_seed_is_one_schedule() -> None:
    first, again, other = faults(1, 600), faults(1, 600), faults(2, 600)
    assert first == again != other
    assert sum(fault.kind == "kill" for fault in first) >= 150
    assert {(fault.kind, fault.victim) for fault in first} >= {
        (kind, victim) for kind in ("kill", "stop") for victim in ("leader", "standby", "agent", "nats")
    }
    assert max(fault.lasts_s for fault in first if fault.victim == "leader") == 30.0
