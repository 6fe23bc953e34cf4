"""What happens next: one move, drawn from all that may happen now.

Moves that go as they should are in `traffic`, what people and operators do in `people`, what goes wrong in `faults`.
"""

from tests.simulation import faults, people, traffic
from tests.simulation.moves import Moves
from tests.simulation.simulation import Simulation

CLAIMS = 40  # in each seed, at least
KINDS_OF_FAULT = 5  # the same
DRAWS = 100


def run(sim: Simulation, steps: int) -> None:
    """Let `steps` events happen, with as many claims and faults as a seed must have. Raises: Violation."""
    for left in range(steps, 0, -1):
        drawn = sim.rng.random() * left
        if drawn < CLAIMS - sim.claims:
            _claim_comes(sim)
        elif drawn < CLAIMS - sim.claims + KINDS_OF_FAULT - len(sim.faults):
            faults.happen(sim)
        else:
            happen(sim)
        sim.events += 1
        faults.end(sim)
    for _ in range(DRAWS):  # where so many claims came that there was no room
        if len(sim.faults) >= KINDS_OF_FAULT:
            break
        faults.happen(sim)
        happen(sim)
        sim.events += 1
        faults.end(sim)


def happen(sim: Simulation) -> None:
    """One event: turns are drawn until something comes of one. At rest, and without faults, that may be nothing."""
    told = len(sim.history)
    for _ in range(DRAWS):
        sim.pass_time(sim.rng.randint(1, 200))
        turns = Moves(sim.rng)
        traffic.offer_turns(sim, turns)
        people.offer_turns(sim, turns)
        faults.offer_turns(sim, turns)
        for _ in range(DRAWS):
            if turns.do_one(sim):
                break
        if len(sim.history) > told:
            break
    sim.bury()


def _claim_comes(sim: Simulation) -> None:
    """Somebody has something to do; where that is enough, something else is done with."""
    cluster = sim.clusters[sim.rng.choice(sim.plan.members)]
    if len(cluster.keys) >= sim.plan.live_claims:
        used = sim.plan.is_calm and sorted(cluster.keys.keys() & cluster.allocations.keys())
        people.delete(sim, cluster, sim.rng.choice(used or sorted(cluster.keys)))
    sim.create_claim(cluster)
