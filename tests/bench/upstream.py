"""The allocation core beside kube-scheduler's allocator: the same claims on the same fleets."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.bench.measure import Table, count, growth, ms, progress, ratio, us
from tests.oracle.build import build

CLAIM_TIMEOUT_S = 10


class Run(NamedTuple):
    """What to run on both sides.

    claims: None for as many as the scenario has by itself.
    at_most: what ours may take of upstream's time, by the targets that we set ourselves.
    """

    scenario: str
    devices: int
    claims: int | None
    at_most: str
    upstream_claims: int | None = None  # where fewer must do, as upstream takes long


RUNS = (
    Run("one", 1_024, 100, "as long"),
    Run("cel", 1_024, 100, "as long"),
    Run("one", 102_400, 100, "1/50", 30),
    Run("cel", 102_400, 100, "1/50", 30),
    Run("gang8", 102_400, 100, "1/50", 30),
    Run("fill", 10_240, None, "1/10"),
    Run("share", 10_240, 100, "1/10"),
    Run("mig", 10_240, 100, "1/10"),
    Run("gang17", 64, 100, "5 ms", 1),
    Run("gang17", 102_400, 100, "50 ms", 1),
)
SIZES = (1_024, 10_240, 102_400, 1_048_576)


class Figures(msgspec.Struct):
    """What both print; see `dragoman bench allocate --help`."""

    placed: int
    median_us: float
    p99_us: float
    total_s: float
    build_s: float
    peak_rss_mib: float
    slice_update_ms: float = 0.0
    timed_out: int = 0


def measure(runs: Sequence[Run] = RUNS, sizes: Sequence[int] = SIZES) -> list[Table]:
    """Both sides take turns; then ours alone on ever larger fleets."""
    rows = []
    for each in runs:
        progress(f"upstream: {each.scenario}, {count(each.devices)} devices")
        ours = _ours(each.scenario, each.devices, each.claims)
        other = _upstream(each.scenario, each.devices, each.upstream_claims or each.claims)
        claims_of_both = each.upstream_claims is None
        assert not claims_of_both or other.timed_out or ours.placed == other.placed, f"{each}: {ours}, {other}"
        # Of `fill` the whole counts: what one claim costs grows with what is taken already.
        of_all = each.scenario == "fill"
        mine = ours.total_s if of_all else ours.median_us / 1e6
        theirs = other.total_s if of_all else other.median_us / 1e6
        rows.append(
            [
                each.scenario,
                count(each.devices),
                ms(mine),
                ms(ours.p99_us / 1e6),
                ("over " if other.timed_out else "") + ms(theirs),
                ratio(mine, theirs),
                f"{theirs / mine:,.0f}" if theirs > 2 * mine else f"{theirs / mine:.1f}",
                each.at_most,
                count(ours.placed),
            ]
        )
    grown = []
    for scenario in ("one", "cel"):
        before: tuple[int, float] | None = None
        for devices in sizes:
            progress(f"upstream: {scenario}, {count(devices)} devices, ours alone")
            found = _ours(scenario, devices, 100)
            seconds = found.median_us / 1e6
            exponent, before = growth(before, devices, seconds), (devices, seconds)
            grown.append(
                [
                    scenario,
                    count(devices),
                    us(seconds),
                    exponent,
                    ms(found.p99_us / 1e6),
                    f"{found.build_s:.2f}",
                    f"{found.slice_update_ms:.2f}",
                    count(found.peak_rss_mib),
                ]
            )
    return [
        Table(
            "upstream: the same claims on the same fleets",
            [
                "scenario",
                "devices",
                "ours ms",
                "p99 ms",
                "upstream ms",
                "ours to upstream",
                "times as fast",
                "target",
                "placed",
            ],
            rows,
            [
                "The median of the claims; of `fill`, all together. Target: how much of upstream's time it may be,",
                "or how much at all. Upstream is kube-scheduler's allocator (Go) with all features on.",
                f"It gives up after {CLAIM_TIMEOUT_S} s. p99: the slowest, often the first, which finds out for all.",
            ],
        ),
        Table(
            "upstream: ours on ever larger fleets",
            ["scenario", "devices", "median us", "growth", "first claim ms", "build s", "slice update ms", "RSS MiB"],
            grown,
            [
                "Five attributes and one capacity a device. Build: from ResourceSlices to an index that is ready.",
                "RSS: of the whole process, with the ResourceSlices and all claims.",
            ],
        ),
    ]


def _ours(scenario: str, devices: int, claims: int | None) -> Figures:
    return _run([str(Path(sys.executable).parent / "dragoman"), "bench", "allocate"], scenario, devices, claims)


def _upstream(scenario: str, devices: int, claims: int | None) -> Figures:
    return _run([str(build()), "bench"], scenario, devices, claims, "--claim-timeout", f"{CLAIM_TIMEOUT_S}s")


def _run(command: list[str], scenario: str, devices: int, claims: int | None, *more: str) -> Figures:
    wanted = ["--scenario", scenario, "--devices", str(devices), "-o", "json", *more]
    wanted += [] if claims is None else ["--claims", str(claims)]
    done = subprocess.run([*command, *wanted], capture_output=True, check=True)
    return msgspec.json.decode(done.stdout, type=Figures)
