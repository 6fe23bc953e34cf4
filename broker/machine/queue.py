"""Who waits, and for what. Claims are tried again when something that they wait for changes, never by polling.

Topics: "scope:SCOPE" (devices, slices or taints of a scope's pools), "taken:SCOPE" (devices of its pools were given to
a claim; to most that is no news), "class:CLUSTER/NAME", "nodes:CLUSTER", "heard" (a
cluster finished its first full sync, or nobody waits for it any more), "cluster:CLUSTER" (how a cluster stands),
"labels" (a slice may have declared a fabric), "asked:DIGEST" (a claim like it has asked its selectors about all
devices). A claim's own message always makes it due.
"""

import heapq
from collections.abc import Iterable

from broker.world.keys import ClaimKey


class PendingQueue:
    """Claims that are due to be tried, and those that wait for topics or for a time."""

    def __init__(self) -> None:
        self._due: set[ClaimKey] = set()
        self._topics: dict[ClaimKey, frozenset[str]] = {}  # of each claim that waits
        self._waiters: dict[str, set[ClaimKey]] = {}  # the same by topic
        self._timers: list[tuple[int, ClaimKey]] = []  # heap
        self._wake_ms: dict[ClaimKey, int] = {}  # the valid timer of a claim; others in the heap are outdated

    def make_due(self, key: ClaimKey) -> None:
        """Try this claim in the next round of decisions."""
        self.remove(key)
        self._due.add(key)

    def wait(self, key: ClaimKey, topics: Iterable[str], until_ms: int | None = None) -> None:
        """Try this claim again when a topic changes, or when the time has come."""
        self.remove(key)
        self._topics[key] = frozenset(topics)
        for topic in self._topics[key]:
            self._waiters.setdefault(topic, set()).add(key)
        if until_ms is not None:
            self._wake_ms[key] = until_ms
            heapq.heappush(self._timers, (until_ms, key))

    def remove(self, key: ClaimKey) -> None:
        """The claim waits for nothing any more."""
        self._due.discard(key)
        self._wake_ms.pop(key, None)
        for topic in self._topics.pop(key, ()):
            self._waiters[topic].discard(key)
            if not self._waiters[topic]:
                del self._waiters[topic]

    def wake(self, topics: Iterable[str]) -> None:
        """These topics changed: whoever waits for one of them is due."""
        for topic in topics:
            for key in list(self._waiters.get(topic, ())):
                self.make_due(key)

    def has_due(self, now_ms: int) -> bool:
        """Whether any claim is to be tried."""
        next_ms = self.next_due_ms()
        return bool(self._due) or (next_ms is not None and next_ms <= now_ms)

    def next_due_ms(self) -> int | None:
        """When the first timer runs out; None if there is none."""
        while self._timers and self._wake_ms.get(self._timers[0][1]) != self._timers[0][0]:
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def due(self, now_ms: int) -> set[ClaimKey]:
        """The claims to be tried now, which stay due until they wait or are removed. In no order: sort before use."""
        while (next_ms := self.next_due_ms()) is not None and next_ms <= now_ms:
            self.make_due(self._timers[0][1])
        return set(self._due)
