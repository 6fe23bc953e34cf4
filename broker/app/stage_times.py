"""When messages came, when claims were decided and when batches went out: what ledger entries say in their headers.

Taken at the edge: the machine reads no clock, and its entries are the same bytes whatever is noted here. It costs a
claim two readings of the clock and a line of text.
"""

import time
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from broker.machine.effects import Effects
from broker.machine.observer import Observer
from broker.world.keys import ClaimKey, ClaimUid, ClusterId
from schemas.wire.bus import StoredMessage
from schemas.wire.ledger import Allocate, AnyEntry, ReasonChanged
from schemas.wire.stages import CAUSE, TIMES
from schemas.wire.subjects import STATE_STREAM

ARRIVALS_MAX = 4_096  # of which the time is known; a claim that waited for longer was told of when it began to


class Arrival(NamedTuple):
    """Messages of DRA_STATE that came together, by their stream sequences."""

    last: int
    first: int
    at_us: int


class TriedClaim(NamedTuple):
    """When its turn began, when its devices were filtered (0: it needed no search) and when it was decided."""

    began_us: int
    filtered_us: int
    decided_us: int


class Decided(NamedTuple):
    """A decision about a claim. result: allocated, pending or invalid.

    since_us: when the message came that it follows from, or for a claim that had waited, when the step began in which
    it was tried again; Unix microseconds.
    """

    cluster: str
    uid: str
    result: str
    since_us: int


class StageTimes(Observer):
    """Of one broker process. Times are Unix microseconds."""

    def __init__(self) -> None:
        self._arrivals: list[Arrival] = []  # ascending
        self._began_us = self._ended_us = 0
        self._turn_us = self._filtered_us = 0
        self._decided_to = 0  # sequence of DRA_STATE: entries of batches before follow from messages up to there
        self._tried: dict[ClaimKey, TriedClaim] = {}  # in this step

    def arrived(self, messages: Sequence[StoredMessage]) -> None:
        """These messages of DRA_STATE came."""
        first, last = messages[0].stream_sequence, messages[-1].stream_sequence
        if self._arrivals and first <= self._arrivals[-1].last:
            self._arrivals.clear()  # another term reads them again
        if len(self._arrivals) >= ARRIVALS_MAX:
            del self._arrivals[: ARRIVALS_MAX // 2]
        self._arrivals.append(Arrival(last, first, _now_us()))

    def step_begins(self) -> None:
        """The machine is about to take a step."""
        self._tried.clear()
        self._began_us = _now_us()

    def step_ended(self) -> None:
        """It has."""
        self._ended_us = _now_us()

    # --- what the machine says, in the thread of the step

    def deciding(self) -> None:
        """See Observer."""
        self._turn_us = _now_us()

    def filtered(self) -> None:
        """See Observer."""
        self._filtered_us = _now_us()

    def decided(self, claim: ClaimKey) -> None:
        """See Observer."""
        now_us = _now_us()
        self._tried[claim] = TriedClaim(self._turn_us, self._filtered_us, now_us)
        self._turn_us, self._filtered_us = now_us, 0

    # --- what it makes of that

    def headers(self, effects: Effects) -> list[dict[str, str]]:
        """What each entry of the batch says of its stages. To be asked when the batch is about to be sent."""
        began_us = self._began_us
        of_batch = f"stepped={began_us},ended={self._ended_us - began_us:+d},sent={_now_us() - began_us:+d}"
        return [
            self._of_entry(entry, cause, of_batch) for entry, cause in zip(effects.entries, effects.causes, strict=True)
        ]

    def _of_entry(self, entry: AnyEntry, cause: int, of_batch: str) -> dict[str, str]:
        if not cause:
            return {TIMES: of_batch}
        began_us, times = self._began_us, of_batch
        arrived_us = self.arrived_us(cause)
        if arrived_us:
            times = f"{times},received={arrived_us - began_us:+d}"
        tried = self.tried(entry)
        if tried is not None:
            times = f"{times},deciding={tried.began_us - began_us:+d},decided={tried.decided_us - began_us:+d}"
            if tried.filtered_us:
                times = f"{times},filtered={tried.filtered_us - began_us:+d}"
        return {TIMES: times, CAUSE: f"{STATE_STREAM}.{cause}"}

    def tried(self, entry: AnyEntry) -> TriedClaim | None:
        """When the claim was tried of which this entry, of the last step, says what was decided."""
        if not isinstance(entry, Allocate | ReasonChanged):
            return None
        return self._tried.get(ClaimKey(ClusterId(entry.cluster), ClaimUid(entry.uid)))

    def decisions(self, effects: Effects) -> list[Decided]:
        """What this step has decided. To be asked once for each."""
        decided_to, found = self._decided_to, []
        for entry, cause in zip(effects.entries, effects.causes, strict=True):
            if isinstance(entry, Allocate | ReasonChanged):
                result = "allocated" if isinstance(entry, Allocate) else entry.state.lower()
                since_us = (self.arrived_us(cause) if cause > decided_to else 0) or self._began_us
                found.append(Decided(entry.cluster, entry.uid, result, since_us))
        self._decided_to = max(decided_to, *effects.causes) if effects.causes else decided_to
        return found

    def arrived_us(self, sequence: int) -> int:
        """When this message of DRA_STATE reached us; 0: nobody knows any more."""
        index = bisect_left(self._arrivals, (sequence,))
        if index == len(self._arrivals) or sequence < self._arrivals[index].first:
            return 0
        return self._arrivals[index].at_us


def _now_us() -> int:
    return time.time_ns() // 1_000
