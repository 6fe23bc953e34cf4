"""What changed, for readers who come back now and then to keep something of their own in step."""

from collections.abc import Sequence
from typing import Generic, TypeVar

K = TypeVar("K")

_KEPT = 100_000  # a reader that is further behind than this looks at everything again


class Changes(Generic[K]):
    """The keys that changed, in order. A reader remembers `end`, and asks later what came `since`."""

    __slots__ = ("_keys", "_start")

    def __init__(self) -> None:
        self._keys: list[K] = []
        self._start = 0  # how many were dropped

    @property
    def end(self) -> int:
        """Where the next change will be."""
        return self._start + len(self._keys)

    def note(self, key: K) -> None:
        """The key changed: it is new, gone, or has another value."""
        if len(self._keys) >= _KEPT:
            dropped = _KEPT // 2
            del self._keys[:dropped]
            self._start += dropped
        self._keys.append(key)

    def since(self, position: int) -> Sequence[K] | None:
        """What changed since `end` was `position`; None if that is too long ago to tell."""
        if position < self._start:
            return None
        return self._keys[position - self._start :]
