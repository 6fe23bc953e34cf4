"""The public events that follow from the ledger's entries; nothing else makes any. The same entries, the same events.

Most entries say all themselves. Who a claim is and what a grant holds is remembered from earlier ones, which a segment
states again in its checkpoint: those make no event a second time.
"""

import msgspec

from schemas import events
from schemas.events import AnyEvent, ClaimRef, DeviceRef
from schemas.wire import ledger
from schemas.wire.ledger import AnyEntry, DeviceHold, own_sequence

ClaimId = tuple[str, str]  # cluster, UID


class ProjectedEvent(msgspec.Struct, frozen=True):
    """event_id: of the CloudEvent; made from the ledger sequence, so that whoever projects gives it the same.

    cause: the event_id's ledger sequence that this one follows from, 0 if it is a beginning.
    """

    event_id: str
    event: AnyEvent
    cause: int = 0


class Projection:
    """Fed with all entries of the ledger in their order, from the beginning of a segment on."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._names: dict[ClaimId, tuple[str, str]] = {}
        self._grants: dict[ClaimId, dict[int, list[DeviceHold]]] = {}
        self._checkpoint_left = 0  # entries

    def project(self, entry: AnyEntry, stream_sequence: int) -> ProjectedEvent | None:
        """The event of one entry, if it has one. stream_sequence: where the entry stands in the ledger."""
        if isinstance(entry, ledger.SegmentOpened):
            self._names, self._grants, self._checkpoint_left = {}, {}, entry.entries
            return None
        sequence = own_sequence(entry, stream_sequence)
        found = self._event(entry, sequence)
        if self._checkpoint_left:
            self._checkpoint_left -= 1
            return None
        if found is None:
            return None
        event, cause = found
        return ProjectedEvent(f"{self._shard}.{sequence}", event, cause)

    def _event(self, entry: AnyEntry, sequence: int) -> tuple[AnyEvent, int] | None:
        """What the entry says, and the sequence of the entry that it follows from. Remembers what is needed later."""
        match entry:
            case ledger.CheckpointClaims():
                for kept in entry.claims:
                    self._names[kept.cluster, kept.uid] = kept.namespace, kept.name
            case ledger.Allocate() | ledger.Adopted() | ledger.Release() | ledger.CollisionFound():
                self._names[entry.cluster, entry.uid] = entry.namespace, entry.name
                return self._of_devices(entry, sequence)
            case ledger.ReasonChanged():
                self._names[entry.cluster, entry.uid] = entry.namespace, entry.name
                return self._waits(entry, sequence), 0
            case ledger.OutcomeRecorded():
                return self._outcome(entry, sequence)
            case ledger.GrantEnded():
                return self._ended(entry, sequence), entry.grant_sequence
            case ledger.ClaimForgotten():
                self._names.pop((entry.cluster, entry.uid), None)
            case ledger.DeviceTainted() | ledger.DeviceUntainted():
                return _of_taint(entry, sequence), 0
            case ledger.ClusterEntry():
                return (event, 0) if (event := _of_cluster(entry, sequence)) is not None else None
        return None

    def _ref(self, cluster: str, uid: str) -> ClaimRef:
        namespace, name = self._names.get((cluster, uid), ("", ""))
        return ClaimRef(cluster, uid, namespace, name)

    def _of_devices(
        self, entry: ledger.Allocate | ledger.Adopted | ledger.Release | ledger.CollisionFound, sequence: int
    ) -> tuple[AnyEvent, int]:
        claim = self._ref(entry.cluster, entry.uid)
        match entry:
            case ledger.Allocate():
                self._hold(entry, sequence)
                pods = [pod.uid for pod in entry.reserved_for]
                return events.ClaimGranted(ledger_sequence=sequence, claim=claim, devices=entry.holds, pods=pods), 0
            case ledger.Adopted():
                self._hold(entry, sequence)
                return events.ClaimAdopted(ledger_sequence=sequence, claim=claim, devices=entry.holds), 0
            case ledger.Release():
                event = events.ClaimReleasing(
                    ledger_sequence=sequence,
                    claim=claim,
                    grant=entry.grant_sequence,
                    devices=entry.holds,
                    reason=entry.reason,
                    message=entry.message,
                )
                return event, entry.grant_sequence
            case ledger.CollisionFound():
                return events.ClaimCollided(
                    ledger_sequence=sequence, claim=claim, devices=entry.holds, held_by=entry.held_by
                ), 0

    def _hold(self, entry: ledger.Allocate | ledger.Adopted, sequence: int) -> None:
        self._grants.setdefault((entry.cluster, entry.uid), {})[sequence] = entry.holds

    def _waits(self, entry: ledger.ReasonChanged, sequence: int) -> AnyEvent:
        claim = self._ref(entry.cluster, entry.uid)
        if entry.state == "Invalid":
            return events.ClaimRefused(
                ledger_sequence=sequence, claim=claim, reason=entry.reason, message=entry.message
            )
        return events.ClaimPending(
            ledger_sequence=sequence,
            claim=claim,
            reason=entry.reason,
            message=entry.message,
            since_ms=entry.since_ms,
            explanation=entry.explanation,
        )

    def _outcome(self, entry: ledger.OutcomeRecorded, sequence: int) -> tuple[AnyEvent, int] | None:
        """Of an Allocate; what became of a Release shows when the grant ends."""
        devices = self._grants.get((entry.cluster, entry.uid), {}).get(entry.decision_sequence)
        if devices is None:
            return None
        claim, grant = self._ref(entry.cluster, entry.uid), entry.decision_sequence
        if entry.outcome == "Applied":
            return events.ClaimAllocated(ledger_sequence=sequence, claim=claim, devices=devices, grant=grant), grant
        event = events.ClaimAllocationFailed(
            ledger_sequence=sequence,
            claim=claim,
            grant=grant,
            outcome=entry.outcome,
            message=entry.message,
            retry_at_ms=entry.retry_at_ms,
        )
        return event, grant

    def _ended(self, entry: ledger.GrantEnded, sequence: int) -> AnyEvent:
        grants = self._grants.get((entry.cluster, entry.uid), {})
        devices = grants.pop(entry.grant_sequence, [])
        claim, grant = self._ref(entry.cluster, entry.uid), entry.grant_sequence
        if not grants:
            self._grants.pop((entry.cluster, entry.uid), None)
            if entry.cause in ("ClaimDeleted", "ClaimMissing"):
                self._names.pop((entry.cluster, entry.uid), None)
        if entry.cause == "ClusterEvicted":
            return events.ClaimEvicted(ledger_sequence=sequence, claim=claim, grant=grant, devices=devices)
        return events.ClaimReleased(
            ledger_sequence=sequence, claim=claim, grant=grant, devices=devices, cause=entry.cause
        )


def _of_taint(entry: ledger.DeviceTainted | ledger.DeviceUntainted, sequence: int) -> AnyEvent:
    device = DeviceRef(entry.scope, entry.driver, entry.pool, entry.device)
    report = entry.report
    reporter = ClaimRef(report.cluster, report.uid, report.namespace, report.name) if report is not None else None
    if isinstance(entry, ledger.DeviceTainted):
        return events.DeviceTainted(
            ledger_sequence=sequence,
            device=device,
            key=entry.key,
            effect=entry.effect,
            operator=entry.operator,
            reason=entry.reason,
            reported_by=reporter,
        )
    return events.DeviceUntainted(
        ledger_sequence=sequence,
        device=device,
        key=entry.key,
        operator=entry.operator,
        reason=entry.reason,
        reported_by=reporter,
    )


def _of_cluster(entry: ledger.ClusterEntry, sequence: int) -> AnyEvent | None:
    cluster = entry.cluster
    match entry:
        case ledger.LivenessChanged(state="Stale"):
            return events.ClusterStale(ledger_sequence=sequence, cluster=cluster, heard_ms=entry.heard_ms)
        case ledger.LivenessChanged(state="Lost"):
            return events.ClusterLost(ledger_sequence=sequence, cluster=cluster, heard_ms=entry.heard_ms)
        case ledger.LivenessChanged(state="Returning"):
            return events.ClusterReturning(ledger_sequence=sequence, cluster=cluster)
        case ledger.LivenessChanged():
            return events.ClusterLive(ledger_sequence=sequence, cluster=cluster)
        case ledger.ClusterAhead():
            return events.ClusterAhead(ledger_sequence=sequence, cluster=cluster, message=entry.message)
        case ledger.FenceLifted():
            return events.ClusterBack(ledger_sequence=sequence, cluster=cluster)
        case ledger.OperatorEntry():
            return _of_order(entry, sequence)
    return None


def _of_order(entry: ledger.OperatorEntry, sequence: int) -> AnyEvent | None:
    kind: type[events.OperatorEvent]
    match entry:
        case ledger.ClusterEvicted():
            return events.ClusterEvicted(
                ledger_sequence=sequence,
                cluster=entry.cluster,
                operator=entry.operator,
                reason=entry.reason,
                is_fenced=entry.is_fenced,
            )
        case ledger.ClusterCordoned():
            kind = events.ClusterCordoned if entry.is_cordoned else events.ClusterUncordoned
        case ledger.ClusterExcluded():
            kind = events.ClusterExcluded if entry.is_excluded else events.ClusterIncluded
        case ledger.ClusterReadmitted():
            kind = events.ClusterReadmitted
        case _:
            return None
    found = kind(ledger_sequence=sequence, cluster=entry.cluster, operator=entry.operator, reason=entry.reason)
    assert isinstance(found, AnyEvent)
    return found
