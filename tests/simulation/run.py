"""Run one seed: its events, then the drain; and tell what went wrong so that it can be repeated."""

import traceback
from collections import Counter
from dataclasses import dataclass, field

from broker.errors import InvariantError
from tests.simulation import schedule
from tests.simulation.drain import calm, drain
from tests.simulation.oracle import Violation
from tests.simulation.schedule import CLAIMS, KINDS_OF_FAULT
from tests.simulation.simulation import Doubles, Simulation

STEPS = 500  # events of a seed, before it drains
CLUSTERS = 3  # in each seed, at least
LAST_EVENTS = 60


@dataclass
class Ran:
    """What a seed was. digest: of the history and the ledger; equal for equal seeds. violation: "" if there is none."""

    seed: int
    events: int
    faults: Counter[str]
    decisions: int
    allocates: int  # a part of them
    digest: str
    violation: str = ""
    last_events: list[str] = field(default_factory=list)

    def text(self, commit: str, steps: int, without: str | None) -> str:
        """For people: what is wrong, after which events, and how to see it again."""
        rule = f" --without {without}" if without else ""
        command = f"python -m tests.simulation --seeds 1 --first-seed {self.seed} --steps {steps}{rule}"
        last = "\n".join(self.last_events[-LAST_EVENTS:])
        return f"{last}\n\nseed {self.seed}, commit {commit}: {self.violation}\nrepeat: {command}"


def run_seed(seed: int, steps: int = STEPS, doubles: Doubles | None = None, *, whole: bool = False) -> Ran:
    """One history. whole: with all that was told, not only the end of one that is wrong."""
    sim = Simulation(seed, doubles or Doubles())
    violation = ""
    try:
        if sim.plan.warm:
            calm(sim)
        schedule.run(sim, steps)
        drain(sim)
        _has_all(sim)
    except (Violation, InvariantError) as found:
        violation = str(found) or type(found).__name__
    except Exception:  # the code under test fell over: that is a finding too
        violation = traceback.format_exc()
    told = sim.told() if whole else sim.told(LAST_EVENTS) if violation else []
    return Ran(seed, sim.events, sim.faults, sim.decisions, sim.allocates, sim.digest(), violation, told)


def _has_all(sim: Simulation) -> None:
    """A seed that has too little of something proves too little. Raises: Violation."""
    has = {"clusters": len(sim.clusters), "claims": sim.claims, "events": sim.events, "kinds of fault": len(sim.faults)}
    least = {"clusters": CLUSTERS, "claims": CLAIMS, "events": STEPS, "kinds of fault": KINDS_OF_FAULT}
    lacks = [f"{has[what]} {what} instead of {most}" for what, most in least.items() if has[what] < most]
    if lacks:
        raise Violation(f"the seed has too little: {', '.join(lacks)}")
