"""Every state that a model can reach, and the shortest history of one that must not be.

A model has `begin()`, `moves(state)` (what may happen next, as pairs of a sentence and the state after it; faults among
them), `wrong(state)` (what must never be, or ""), and `calm(state)`: the state without any fault that may still come.
From each state the fault-free moves are followed to their end, in the order in which the model lists them; there
`unfinished(state)` says what was left undone. So one way to rest is looked at for each state, not all of them.
"""

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

State = TypeVar("State", bound=Hashable)
MOVES_TO_REST = 200  # more than any state needs


class Model(Protocol[State]):
    """What is searched."""

    def begin(self) -> State:
        """Before anything has happened."""

    def moves(self, state: State) -> Iterable[tuple[str, State]]:
        """What may happen next."""

    def wrong(self, state: State) -> str:
        """What must never be, "" if nothing of it is."""

    def calm(self, state: State) -> State:
        """The same, with no fault left that might come."""

    def unfinished(self, state: State) -> str:
        """What should have been done when nothing happens any more, "" if all is done."""


@dataclass(frozen=True)
class Found:
    """What a search came to. history: how to get to what is wrong. is_whole: all states were looked at."""

    states: int
    wrong: str = ""
    history: tuple[str, ...] = ()
    is_whole: bool = True

    def text(self) -> str:
        """For people."""
        steps = "".join(f"\n  {number:2d}. {step}" for number, step in enumerate(self.history, start=1))
        looked = f"{self.states:,} states{'' if self.is_whole else ', and there are more'}"
        return f"{self.wrong} ({looked}){steps}" if self.wrong else f"holds ({looked})"


def search(model: Model[State], states_max: int = 2_000_000) -> Found:
    """Breadth first, so that the first history that goes wrong is a shortest one."""
    first = model.begin()
    came_from: dict[State, tuple[State, str] | None] = {first: None}
    rests: set[State] = set()  # states from which all comes to a good end
    waiting = deque([first])
    while waiting:
        state = waiting.popleft()
        wrong, rest = _to_rest(model, state, rests)
        if wrong:
            return Found(len(came_from), wrong, (*_history(came_from, state), "(no fault comes any more)", *rest))
        for step, after in model.moves(state):
            if after in came_from:
                continue
            came_from[after] = state, step
            if wrong := model.wrong(after):
                return Found(len(came_from), wrong, _history(came_from, after))
            waiting.append(after)
        if len(came_from) > states_max:
            return Found(len(came_from), is_whole=False)
    return Found(len(came_from))


def _to_rest(model: Model[State], state: State, rests: set[State]) -> tuple[str, list[str]]:
    """Follow what happens without faults; what is wrong then, and the steps to it."""
    steps: list[str] = []
    passed: list[State] = []
    state = model.calm(state)
    while state not in rests:
        passed.append(state)
        step, after = next(iter(model.moves(state)), ("", state))
        if not step:
            if unfinished := model.unfinished(state):
                return unfinished, steps
            break
        steps.append(step)
        state = after
        if wrong := model.wrong(state):
            return wrong, steps
        if len(steps) > MOVES_TO_REST:
            return "it never comes to rest", steps[:20]
    rests.update(passed)
    return "", []


def _history(came_from: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    steps: list[str] = []
    while (before := came_from[state]) is not None:
        state, step = before
        steps.append(step)
    return tuple(reversed(steps))
