"""Which clusters are silent. Heartbeats and the clock meet here, outside of what is replayed.

What it finds reaches the core as marks, which are inputs in the ledger like everything else that the core sees. A new
leader has heard nobody yet: it counts silence from its own beginning.
"""

from broker.world.keys import ClusterId
from broker.world.records import Cluster
from broker.world.world import World
from schemas.wire.ledger import Liveness, LivenessMark

DEAF_AFTER_MS = 3_000  # between two looks: then it was we who heard nothing


def next_liveness(record: Cluster, mark: LivenessMark) -> Liveness:
    """What the cluster is once the mark is taken in.

    A cluster that was lost comes back by a full sync only: messages of its may have expired meanwhile. Nothing is said
    of one that was not heard in this ledger's life, or is evicted: it is granted nothing anyway.
    """
    if not record.synced_sequence or record.eviction is not None:
        return record.liveness
    if record.liveness in ("Lost", "Returning"):
        return "Returning" if mark.state == "Live" else "Lost"
    return mark.state


class Silence:
    """When each cluster was heard last, by one leader's clock."""

    def __init__(self, now_ms: int) -> None:
        self.heard_ms: dict[ClusterId, int] = {}
        self._began_ms = now_ms
        self._looked_ms = now_ms
        self._last_sequences: dict[ClusterId, int] = {}

    def hear(self, world: World, cluster: ClusterId, agent_epoch: int, now_ms: int) -> None:
        """A heartbeat came. One of a run that was replaced, or of a cluster that does not take part, is none."""
        record = world.clusters.get(cluster)
        if record is not None and agent_epoch >= record.epoch:
            self.heard_ms[cluster] = now_ms

    def marks(self, world: World, now_ms: int) -> list[LivenessMark]:
        """What is not in the ledger yet, by cluster. To be called every second or so, and only while we hear the bus.

        Time in which we ourselves were cut off, or asleep, counts for nobody.
        """
        gap_ms = now_ms - self._looked_ms
        self._looked_ms = now_ms
        if gap_ms > DEAF_AFTER_MS:
            self._began_ms += gap_ms
            self.heard_ms = {name: min(heard + gap_ms, now_ms) for name, heard in self.heard_ms.items()}
        found = []
        for name, record in sorted(world.clusters.items()):
            before = self._last_sequences.get(name)
            self._last_sequences[name] = record.last_sequence
            if before is not None and before != record.last_sequence:  # a start publishes for long before it beats
                self.heard_ms[name] = now_ms
            mark = self._mark(world, record, now_ms)
            if mark is not None:
                found.append(mark)
        return found

    def _mark(self, world: World, record: Cluster, now_ms: int) -> LivenessMark | None:
        heard_ms = self.heard_ms.get(record.name)
        silent_ms = now_ms - (self._began_ms if heard_ms is None else heard_ms)
        if silent_ms >= world.federation.lost_after_s * 1000:
            mark = LivenessMark(record.name, "Lost", heard_ms or 0)
        elif silent_ms >= world.federation.stale_after_s * 1000:
            mark = LivenessMark(record.name, "Stale", heard_ms or 0)
        elif heard_ms is not None:
            mark = LivenessMark(record.name, "Live", heard_ms)
        else:
            return None
        return mark if next_liveness(record, mark) != record.liveness else None
