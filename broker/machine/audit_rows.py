"""The ledger as a table for auditors: one row for each decision, with what it was made from, and by whom."""

from collections.abc import Iterator
from typing import Any

import msgspec

from broker.machine.ledger_batches import BatchCheck
from schemas.wire.bus import StoredMessage
from schemas.wire.chain import chain_of, is_erased
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    ClusterCordoned,
    ClusterEvicted,
    ClusterExcluded,
    ClusterReadmitted,
    DeviceEntry,
    DeviceTainted,
    DeviceUntainted,
    Inputs,
    LeaderElected,
    OperatorEntry,
    ReasonChanged,
    Release,
    SegmentClosed,
    SegmentOpened,
    inputs_of,
)
from schemas.wire.stages import CAUSE
from schemas.wire.subjects import STATE_STREAM


class AuditRow(msgspec.Struct, frozen=True, kw_only=True):
    """A decision. What does not apply to it is "", 0 or empty.

    decision: Allocate, Release, Adopt (an allocation that was found), Pending, Refuse, or what an operator ordered.
    pods: that it was made for. devices: scope/driver/pool/device. grant: of a Release, the Allocate that it ends.
    resource_version, state_sequence: of the claim's message that it was made on, or that it follows from.
    state_position, state_digest: DRA_STATE up to where it was read, and the digest of what the batch was made from.
    leader: the broker process; "" where its election was not read. leader_epoch, build, algorithm, settings_digest: of
    that broker; 0 and "" where the ledger does not say what it was decided from, so that nobody knows by whom.
    chain: its Dra-Chain. erased: its names were.
    """

    ledger_sequence: int
    segment: int
    time: str
    decision: str
    cluster: str
    uid: str
    namespace: str
    name: str
    pods: list[str]
    operator: str
    reason: str
    message: str
    devices: list[str]
    grant: int
    explanation: dict[str, Any]
    resource_version: str
    state_sequence: int
    state_position: int
    state_digest: str
    leader: str
    leader_epoch: int
    build: str
    algorithm: int
    settings_digest: str
    trace_id: str
    chain: str
    erased: bool


Decided = tuple[StoredMessage, AuditRow]


class AuditRows:
    """Tell it of a ledger's entries in order, then `end`; rows come when the batch that they stand in is complete."""

    def __init__(self) -> None:
        self._leader = ""
        self._of_checkpoint = 0  # entries of it that are to come
        self._is_abandoned = False  # by a rebuild: what follows in the segment counts for nothing
        self._form = BatchCheck()
        self._inputs: Inputs | None = None  # of an older build's batch, which opens with them
        self._batch: list[tuple[StoredMessage, AnyEntry, int]] = []

    @property
    def is_complete(self) -> bool:
        """No row is still to come of what was told."""
        return not self._batch

    def add(self, message: StoredMessage, entry: AnyEntry, segment: int) -> Iterator[Decided]:
        """The next entry; gives entries with their rows. What a checkpoint states again is no decision."""
        if self._of_checkpoint and not isinstance(entry, SegmentOpened):
            self._of_checkpoint -= 1
            return
        if isinstance(entry, SegmentOpened):
            yield from self.end()
            self._of_checkpoint, self._is_abandoned = entry.entries, False
            self._form.begin(follows=True)
            self._form.opened()
            return
        if self._is_abandoned:
            return
        if isinstance(entry, LeaderElected):
            yield from self.end()
            self._leader = entry.instance
        self._is_abandoned = isinstance(entry, SegmentClosed) and entry.is_abandoned
        self._form.add(message, entry)
        self._batch.append((message, entry, segment))
        inputs = inputs_of(entry)
        if self._form.opens_with_inputs:
            self._inputs = inputs or self._inputs
            yield from self._rows(self._inputs)
        elif inputs is not None and inputs.steps:
            yield from self._rows(inputs)

    def end(self) -> Iterator[Decided]:
        """That was all: what is left stands in no batch, as nothing does that a leader has decided."""
        yield from self._rows(None)
        self._inputs = None

    def _rows(self, inputs: Inputs | None) -> Iterator[Decided]:
        batch, self._batch = self._batch, []
        for stored, each, of in batch:
            if facts := _facts(each):
                yield stored, _row(stored, of, facts, inputs, self._leader)


def _facts(entry: AnyEntry) -> dict[str, Any]:
    """What the entry itself says, by the row's fields; {} where it is no decision."""
    match entry:
        case Allocate():
            return {
                **_of_claim(entry),
                "decision": "Allocate",
                "pods": [pod.name for pod in entry.reserved_for],
                "resource_version": entry.resource_version,
                "state_sequence": entry.state_sequence,
            }
        case Release():
            why = {"reason": entry.reason, "message": entry.message}
            return {**_of_claim(entry), "decision": "Release", "grant": entry.grant_sequence, **why}
        case Adopted():
            return {**_of_claim(entry), "decision": "Adopt", "state_sequence": entry.state_sequence}
        case ReasonChanged():
            return {
                "cluster": entry.cluster,
                "uid": entry.uid,
                "namespace": entry.namespace,
                "name": entry.name,
                "decision": "Refuse" if entry.state == "Invalid" else "Pending",
                "reason": entry.reason,
                "message": entry.message,
                "explanation": entry.explanation,
            }
        case ClusterCordoned():
            return {**_ordered(entry), "decision": "Cordon" if entry.is_cordoned else "Uncordon"}
        case ClusterExcluded():
            return {**_ordered(entry), "decision": "Exclude" if entry.is_excluded else "Include"}
        case ClusterEvicted():
            return {**_ordered(entry), "decision": "Evict"}
        case ClusterReadmitted():
            return {**_ordered(entry), "decision": "Readmit"}
        case DeviceTainted():
            return {**_of_device(entry), "decision": "Taint"}
        case DeviceUntainted():
            return {**_of_device(entry), "decision": "Untaint"}
        case _:
            return {}


def _of_claim(entry: Allocate | Release | Adopted) -> dict[str, Any]:
    scopes = entry.scopes if not isinstance(entry, Release) else [""] * len(entry.holds)
    return {
        "cluster": entry.cluster,
        "uid": entry.uid,
        "namespace": entry.namespace,
        "name": entry.name,
        "devices": [
            "/".join(filter(None, (scope, hold.driver, hold.pool, hold.device)))
            for scope, hold in zip(scopes, entry.holds, strict=True)
        ],
    }


def _ordered(entry: OperatorEntry) -> dict[str, Any]:
    return {"cluster": entry.cluster, "operator": entry.operator, "reason": entry.reason}


def _of_device(entry: DeviceEntry) -> dict[str, Any]:
    devices = ["/".join((entry.scope, entry.driver, entry.pool, entry.device))]
    if entry.report is None:
        return {"devices": devices, "operator": entry.operator, "reason": entry.reason}
    by = entry.report
    return {
        "devices": devices,
        "cluster": by.cluster,
        "uid": by.uid,
        "namespace": by.namespace,
        "name": by.name,
        "reason": by.reason or by.condition,
        "message": by.message,
    }


_NOTHING: dict[str, Any] = {
    "cluster": "",
    "uid": "",
    "namespace": "",
    "name": "",
    "pods": [],
    "operator": "",
    "reason": "",
    "message": "",
    "devices": [],
    "grant": 0,
    "explanation": {},
    "resource_version": "",
    "state_sequence": 0,
}


def _row(message: StoredMessage, segment: int, facts: dict[str, Any], inputs: Inputs | None, leader: str) -> AuditRow:
    headers = message.headers
    by = inputs or Inputs(leader_epoch=0)
    said = {**_NOTHING, **facts}
    if not said["state_sequence"]:
        cause = headers.get(CAUSE, "").removeprefix(f"{STATE_STREAM}.")
        said["state_sequence"] = int(cause) if cause.isascii() and cause.isdigit() else 0
    return AuditRow(
        **said,
        ledger_sequence=message.stream_sequence,
        segment=segment,
        time=headers.get("ce-time", ""),
        state_position=by.steps[-1].position if by.steps else 0,
        state_digest=by.state_digest,
        leader=leader if inputs is not None else "",
        leader_epoch=by.leader_epoch,
        build=by.build,
        algorithm=by.algorithm,
        settings_digest=by.settings_digest,
        trace_id=headers.get("traceparent", "").split("-")[1] if "-" in headers.get("traceparent", "") else "",
        chain=chain_of(message),
        erased=is_erased(message),
    )
