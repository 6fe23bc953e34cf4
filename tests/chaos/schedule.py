"""What goes wrong when: the same for a seed, whatever the processes make of it."""

import random
from typing import Literal, NamedTuple

Kind = Literal["kill", "stop", "cut", "silence", "delay"]
Victim = Literal["leader", "standby", "agent", "nats"]

MEAN_PAUSE_S = 1.5  # between faults
KINDS: dict[Kind, int] = {"kill": 50, "stop": 20, "cut": 12, "silence": 10, "delay": 8}  # of a hundred
VICTIMS: dict[Victim, int] = {"leader": 25, "standby": 20, "agent": 30, "nats": 25}
LASTS_S: dict[Kind, tuple[float, float]] = {
    "kill": (0.0, 2.0),  # until it is started again
    "stop": (0.5, 6.0),
    "cut": (0.2, 5.0),
    "silence": (0.5, 8.0),
    "delay": (1.0, 8.0),
}
LONG_STOP_S = 30.0  # of a leader, once in a long run
LONG_RUN_S = 120.0


class Fault(NamedTuple):
    """at_s: after the start. which: chooses among equals. lasts_s: until it is undone."""

    at_s: float
    kind: Kind
    victim: Victim
    which: int
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.kind} {self.victim} ({self.which}) for {self.lasts_s:.1f} s"


def faults(seed: int, seconds: float) -> list[Fault]:
    """In the order of time."""
    chance = random.Random(f"faults {seed}")
    found: list[Fault] = []
    at_s = 1.0
    is_long = seconds >= LONG_RUN_S
    while at_s < seconds:
        kind = chance.choices(list(KINDS), list(KINDS.values()))[0]
        victim = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
        if kind not in ("kill", "stop") and victim == "nats":
            victim = "agent"  # a link is one process's; that it leads to any server is chosen by `which`
        fault = Fault(at_s, kind, victim, chance.randrange(1_000), chance.uniform(*LASTS_S[kind]))
        if is_long and at_s > seconds / 3:
            fault, is_long = fault._replace(kind="stop", victim="leader", lasts_s=LONG_STOP_S), False
        found.append(fault)
        at_s += chance.expovariate(1 / MEAN_PAUSE_S)
    return found
