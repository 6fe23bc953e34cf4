"""Many seeds at once, one process for each core."""

import gc
import os
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from tests.simulation.rules import doubles_without
from tests.simulation.run import STEPS, Ran, run_seed


@dataclass
class Total:
    """What many seeds were."""

    seeds: int = 0
    events: int = 0
    decisions: int = 0
    allocates: int = 0  # a part of them
    faults: Counter[str] = field(default_factory=Counter)
    failures: list[Ran] = field(default_factory=list)

    def add(self, ran: Ran) -> None:
        """One more."""
        self.seeds += 1
        self.events += ran.events
        self.decisions += ran.decisions
        self.allocates += ran.allocates
        self.faults += ran.faults
        if ran.violation:
            self.failures.append(ran)

    def as_dict(self) -> dict[str, object]:
        """Its numbers."""
        return {
            "seeds": self.seeds,
            "events": self.events,
            "decisions": self.decisions,
            "allocates": self.allocates,
            "violations": len(self.failures),
            "faults": dict(self.faults.most_common()),
        }

    def __str__(self) -> str:
        faults = ", ".join(f"{kind} {count:,}" for kind, count in self.faults.most_common())
        return (
            f"{self.seeds:,} seeds, {self.events:,} events, {self.faults.total():,} faults ({faults}), "
            f"{self.decisions:,} decisions ({self.allocates:,} Allocates), {len(self.failures)} violations"
        )


def collect_seldom() -> None:
    """A seed makes much that stays until it ends: looking through it again and again took a tenth of the time."""
    gc.freeze()
    gc.set_threshold(200_000)


def run_seeds(first: int, count: int, steps: int = STEPS, without: str | None = None) -> Generator[Ran, None, None]:
    """Run `count` seeds from `first`, in their order; leave it to stop.

    without: a rule of the protocol that is switched off.
    """
    with ProcessPoolExecutor(os.cpu_count(), initializer=collect_seldom) as pool:
        seeds = iter(range(first, first + count))
        one = partial(_run_one, steps, without)
        running = [pool.submit(one, seed) for seed in islice(seeds, 8 * (os.cpu_count() or 1))]
        try:
            while running:
                ran = running.pop(0).result()
                running += [pool.submit(one, seed) for seed in islice(seeds, 1)]
                yield ran
        finally:
            pool.shutdown(cancel_futures=True)


def _run_one(steps: int, without: str | None, seed: int) -> Ran:
    with doubles_without(without) as doubles:
        return run_seed(seed, steps, doubles)
