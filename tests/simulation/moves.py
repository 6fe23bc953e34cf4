"""What may happen next, each as likely as its weight says."""

import random
from collections.abc import Callable
from itertools import accumulate
from typing import Any


class Moves:
    """Moves that can be made now."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._weights: list[float] = []
        self._moves: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    def add(self, weight: float, act: Callable[..., None], *about: Any) -> None:
        """A move: `act` of the simulation and of what it is about."""
        if weight > 0:
            self._weights.append(weight)
            self._moves.append((act, about))

    def do_one(self, *first: Any) -> None:
        """Make one of them."""
        sums = list(accumulate(self._weights))
        (move,) = self._rng.choices(self._moves, cum_weights=sums)
        act, about = move
        act(*first, *about)
