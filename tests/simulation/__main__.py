"""`python -m tests.simulation`: run histories, and show the one that goes wrong."""

import argparse
import json
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

from tests.simulation.pool import Total, run_seeds
from tests.simulation.rules import RULES, doubles_without
from tests.simulation.run import STEPS, run_seed

TELL_EVERY_S = 10.0


def main() -> int:
    """0: every history is as it must be; 1: one is not."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many histories (default 200)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first one; each further seed is one higher")
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"events in each, before it drains (default and least: {STEPS})"
    )
    parser.add_argument("--minutes", type=float, help="begin no further history after so long")
    parser.add_argument(
        "--verbose", action="store_true", help="print the whole history of the first seed, and no other"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="append what they were, as one line: parts can be summed"
    )
    parser.add_argument("--without", choices=sorted(RULES), metavar="RULE", help="switch a rule of the protocol off")
    parser.add_argument("--list-rules", action="store_true", help="print the rules that can be switched off")
    options = parser.parse_args()
    if options.list_rules:
        for name, rule in sorted(RULES.items()):
            print(f"{name:36} {rule.what}")
        return 0
    if options.verbose:
        with doubles_without(options.without) as doubles:
            one = run_seed(options.first_seed, options.steps, doubles, whole=True)
        print("\n".join(one.last_events))
        print(one.violation or "all is as it must be")
        return bool(one.violation)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    total = Total()
    began = told = time.monotonic()
    with closing(run_seeds(options.first_seed, options.seeds, options.steps, options.without)) as seeds:
        for ran in seeds:
            total.add(ran)
            if total.failures:
                print(ran.text(_commit(), options.steps, options.without))
                break
            now = time.monotonic()
            if now - told > TELL_EVERY_S:
                told = now
                left_s = (options.seeds - total.seeds) * (now - began) / total.seeds
                print(f"{total.seeds:,} of {options.seeds:,} seeds, {left_s / 60:.0f} min to go", file=sys.stderr)
            if options.minutes is not None and now - began > 60 * options.minutes:
                break
    took = time.monotonic() - began
    if options.json:
        with options.json.open("a") as parts:
            print(json.dumps({"first_seed": options.first_seed} | total.as_dict()), file=parts)
    print(f"{took:.0f} s, {took / total.seeds:.3f} s a seed")
    print(total)
    return bool(total.failures)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
