"""What may happen next, each as likely as its weight says."""

import random
from bisect import bisect
from collections.abc import Callable
from typing import Any

PASSED = object()  # what a move returns that has done nothing


class Moves:
    """Moves that can be made now."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._weight = 0.0
        self._sums: list[float] = []  # of the weights up to each
        self._moves: list[tuple[Callable[..., object], tuple[Any, ...]]] = []

    def add(self, weight: float, act: Callable[..., object], *about: Any) -> None:
        """A move: `act` of the simulation and of what it is about."""
        if weight > 0:
            self._weight += weight
            self._sums.append(self._weight)
            self._moves.append((act, about))

    def fill(self, weight: float) -> None:
        """Where they have less weight together, mostly nothing happens."""
        self.add(weight - self._weight, pass_by)

    def do_one(self, *first: Any) -> bool:
        """Make one of them, if there are any; returns whether anything may have happened."""
        if not self._moves:
            return False
        act, about = self._moves[bisect(self._sums, self._rng.random() * self._weight, 0, len(self._sums) - 1)]
        return act(*first, *about) is not PASSED


def pass_by(*_: Any) -> object:
    """A turn passes."""
    return PASSED
