"""Which keys of a mapping changed, for readers who come back now and then and keep something of their own in step."""

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

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


class LoggedMapping(MutableMapping[K, V]):
    """A dict that tells what changed in it."""

    __slots__ = ("_items", "changes")

    def __init__(self) -> None:
        self.changes: Changes[K] = Changes()
        self._items: dict[K, V] = {}

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __setitem__(self, key: K, value: V) -> None:
        self._items[key] = value
        self.changes.note(key)

    def __delitem__(self, key: K) -> None:
        del self._items[key]
        self.changes.note(key)

    def __contains__(self, key: object) -> bool:
        return key in self._items

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._items!r})"
