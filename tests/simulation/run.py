"""Run one seed: its events, then the drain; and tell what went wrong so that it can be repeated."""

import traceback
from dataclasses import dataclass

from broker.errors import InvariantError
from tests.simulation.drain import calm, drain
from tests.simulation.oracle import Violation
from tests.simulation.schedule import Doubles, Simulation

STEPS = 500
LAST_EVENTS = 60


@dataclass
class Passed:
    """All was as it must be. digest: of the history and the ledger; equal for equal seeds."""

    seed: int
    events: int
    history: list[str]
    digest: str


@dataclass
class Failure:
    """Something was not."""

    seed: int
    events: int
    history: list[str]
    what: str

    def text(self, commit: str, steps: int, without: str | None) -> str:
        """For people: what, after which events, and how to see it again."""
        rule = f" --without {without}" if without else ""
        command = f"python -m tests.simulation --seeds 1 --first-seed {self.seed} --steps {steps}{rule}"
        last = "\n".join(self.history[-LAST_EVENTS:])
        return f"{last}\n\nseed {self.seed}, commit {commit}: {self.what}\nrepeat: {command}"


def run_seed(seed: int, steps: int = STEPS, doubles: Doubles | None = None) -> Passed | Failure:
    """One history."""
    sim = Simulation(seed, doubles or Doubles())
    try:
        if sim.plan.warm:
            calm(sim)
        sim.run(steps)
        drain(sim)
    except (Violation, InvariantError) as found:
        return Failure(seed, steps, sim.history, str(found))
    except Exception:  # the code under test fell over: that is a finding too
        return Failure(seed, steps, sim.history, traceback.format_exc())
    return Passed(seed, steps, sim.history, sim.digest())
