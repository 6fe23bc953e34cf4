"""`python -m tests.simulation`: run histories, and show the one that goes wrong."""

import argparse
import subprocess
import sys
import time

from tests.simulation.rules import RULES, doubles_without
from tests.simulation.run import STEPS, Failure, run_seed


def main() -> int:
    """0: every history is as it must be; 1: one is not."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many histories (default 200)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first one; each further seed is one higher")
    parser.add_argument("--steps", type=int, help=f"events in each, before it drains (default {STEPS})")
    parser.add_argument("--verbose", action="store_true", help="print the history of each seed")
    parser.add_argument("--without", choices=sorted(RULES), metavar="RULE", help="switch a rule of the protocol off")
    parser.add_argument("--list-rules", action="store_true", help="print the rules that can be switched off")
    options = parser.parse_args()
    if options.list_rules:
        for name, rule in sorted(RULES.items()):
            print(f"{name:28} {rule.what}")
        return 0
    steps = options.steps or STEPS
    began = time.monotonic()
    told = began
    events = 0
    with doubles_without(options.without) as doubles:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            found = run_seed(seed, steps, doubles)
            events += found.events
            if options.verbose:
                print("\n".join(found.history))
            if isinstance(found, Failure):
                print(found.text(_commit(), steps, options.without))
                return 1
            if time.monotonic() - told > 2:
                told = time.monotonic()
                print(f"seed {seed}: all is well so far, {told - began:.0f} s", file=sys.stderr)
    took = time.monotonic() - began
    print(f"{options.seeds} seeds from {options.first_seed}, {events} events: all is well ({took:.1f} s)")
    return 0


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
