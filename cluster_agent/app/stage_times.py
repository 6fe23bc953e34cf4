"""When a claim's decision reached its cluster and was written there: what the agent's messages say in their headers.

Times are Unix microseconds by this agent's clock.
"""

import time

from schemas.wire.stages import TIMES, write_times
from schemas.wire.state import ClaimState


class StageTimes:
    """Of one run of an agent. What is noted of a decision is kept until a message says what became of it."""

    def __init__(self) -> None:
        self._by_claim: dict[str, tuple[int, dict[str, int]]] = {}  # by UID: ledger sequence, and times by stage
        self._contexts: dict[str, str] = {}  # by UID: the traceparent of that decision

    def delivered(self, uid: str, ledger_sequence: int, trace_parent: str = "") -> None:
        """The ledger has a decision for the claim; it may come several times, and the first counts.

        trace_parent: of the entry.
        """
        self._of(uid, ledger_sequence).setdefault("delivered", now_us())
        if self._by_claim[uid][0] == ledger_sequence:
            self._contexts[uid] = trace_parent

    def writing(self, uid: str, ledger_sequence: int) -> None:
        """A write for the decision is sent; the first counts."""
        self._of(uid, ledger_sequence).setdefault("writing", now_us())

    def written(self, uid: str, ledger_sequence: int) -> None:
        """A write for it is answered; the last counts, unless what became of the decision was stored before."""
        if self.noted(uid) == ledger_sequence:
            self._of(uid, ledger_sequence)["written"] = now_us()

    def context(self, uid: str, ledger_sequence: int) -> str:
        """The traceparent of the decision that is carried out, "" where it is not known."""
        known, _ = self._by_claim.get(uid, (0, {}))
        return self._contexts.get(uid, "") if known == ledger_sequence else ""

    def _of(self, uid: str, ledger_sequence: int) -> dict[str, int]:
        known, times = self._by_claim.get(uid, (0, {}))
        if known < ledger_sequence:
            known, times = self._by_claim[uid] = ledger_sequence, {}
            self._contexts.pop(uid, None)
        return times if known == ledger_sequence else {}  # an older one is over

    def noted(self, uid: str) -> int:
        """The ledger sequence of the decision of which something is noted, 0 without one."""
        return self._by_claim.get(uid, (0, {}))[0]

    def forget(self, uid: str, ledger_sequence: int) -> None:
        """What became of the decision is stored."""
        if uid in self._by_claim and self._by_claim[uid][0] <= ledger_sequence:
            del self._by_claim[uid]
            self._contexts.pop(uid, None)

    def headers(self, uid: str, message: ClaimState, seen_us: int) -> dict[str, str]:
        """Of a claim's message that is about to be sent. seen_us: see Publish."""
        times = {"seen": seen_us} if seen_us else {}
        known, noted = self._by_claim.get(uid, (0, {}))
        if message.decision is not None and message.decision.ledger_sequence == known:
            times |= noted
        return {TIMES: write_times(times | {"sent": now_us()})}


def now_us() -> int:
    """The time, Unix microseconds."""
    return time.time_ns() // 1_000
