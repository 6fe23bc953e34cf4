"""`python -m tests.bench`: measure, and print the tables of docs/benchmarks.md."""

import argparse
import sys
import time
from collections.abc import Callable

from tests.bench import (
    allocation,
    audit,
    cel,
    cold_start,
    decode,
    end_to_end,
    failover,
    kubernetes,
    machine,
    start,
    throughput,
    tracing,
    upstream,
)
from tests.bench.measure import Table, progress

BENCHMARKS: dict[str, Callable[[], list[Table]]] = {
    "upstream": upstream.measure,
    "allocation": allocation.measure,
    "machine": machine.measure,
    "start": lambda: start.measure() + start.measure_checkpoints(),
    "cold_start": cold_start.measure,
    "decode": decode.measure,
    "cel": cel.measure,
    "end_to_end": end_to_end.measure,
    "throughput": throughput.measure,
    "audit": audit.measure,
    "tracing": tracing.measure,
    "failover": failover.measure,
    "kubernetes": kubernetes.measure,
}


def main() -> int:
    """0: all were measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=sorted(BENCHMARKS), metavar="NAME", help="may be repeated")
    parser.add_argument("--list", action="store_true", help="print the names and what each one measures")
    options = parser.parse_args()
    chosen = {name: run for name, run in BENCHMARKS.items() if not options.only or name in options.only}
    if options.list:
        for name, run in chosen.items():
            what = (sys.modules[run.__module__].__doc__ or "").partition("\n")[0]
            print(f"{name:12} {what}")
        return 0
    began = time.monotonic()
    for run in chosen.values():
        for table in run():
            print(table.text(), flush=True)
    progress(f"measured in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
