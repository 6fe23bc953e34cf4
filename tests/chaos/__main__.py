"""`python -m tests.chaos`: kill, stop and cut off real processes at random while claims come and go, and compare."""

import argparse
import logging
import random
import shutil
import sys
import tempfile
from pathlib import Path

import anyio

from tests.chaos.run import Report, run


def main() -> int:
    """0: nothing was lost, nothing granted twice; 1: see the lines above the last, and the directory that is named."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="of faults, shared among the topologies (default 1)")
    parser.add_argument("--seed", type=int, help="of faults and load (default: a random one)")
    parser.add_argument("--servers", type=int, choices=(1, 3), help="nats-servers (default: first one, then three)")
    parser.add_argument("--keep", action="store_true", help="keep logs and stores of a run without violations too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # that our own connection is lost and comes back
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    topologies = (options.servers,) if options.servers else (1, 3)
    reports = []
    for servers in topologies:
        root = Path(tempfile.mkdtemp(prefix=f"dragoman-chaos-{servers}-"))
        seconds = options.minutes * 60 / len(topologies)
        report = anyio.run(run, root, servers, seconds, seed, lambda text: print(text, file=sys.stderr, flush=True))
        reports.append(report)
        print(report.text(), flush=True)
        for violation in report.violations[:10]:
            print(f"VIOLATION {violation}")
        if report.violations:
            print(f"logs and stores are kept in {root}; again with\n  {_command(servers, seconds / 60, seed)}")
        elif not options.keep:
            shutil.rmtree(root)
    print(_sum(seed, reports))
    return 1 if any(report.violations for report in reports) else 0


def _command(servers: int, minutes: float, seed: int) -> str:
    return f"python -m tests.chaos --servers {servers} --minutes {minutes:g} --seed {seed}"


def _sum(seed: int, reports: list[Report]) -> str:
    kinds = ("leader", "standby", "agent", "nats")
    kills = {kind: sum(report.faults[f"kill {kind}"] for report in reports) for kind in kinds}
    return (
        f"seed {seed}: {sum(kills.values())} kills ({', '.join(f'{kind} {number}' for kind, number in kills.items())}),"
        f" {sum(report.claims for report in reports):,} claims,"
        f" {sum(report.decisions for report in reports):,} decisions,"
        f" {sum(len(report.violations) for report in reports)} violations"
    )


if __name__ == "__main__":
    sys.exit(main())
