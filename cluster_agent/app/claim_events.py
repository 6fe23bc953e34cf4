"""Kubernetes Events on the claims of the cluster, so that `kubectl describe resourceclaim` says how they stand.

They follow from the ledger's entries and are written behind: one at a time, a few in a second, each a moment after it
was heard: of what a claim waits for, only the latest then. What cannot be written is counted and lost: the ledger
has it all. Nothing of the agent waits for them.
"""

import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import anyio
import msgspec
from anyio.lowlevel import checkpoint

from cluster_agent.mirror.tracked import holds_of
from cluster_agent.ports import ApiBusyError, ApiConflictError, ApiError, ApiNotFoundError, ApiObject, EventWriter
from schemas.wire import ledger
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import DeviceHold

_log = logging.getLogger(__name__)

CONTROLLER = "dragoman.dev/agent"
PENDING = "DragomanPending"
HELD_BACK_S = 0.5  # a claim that does not wait any longer after this time is not said to wait
BUSY_MOST_S = 10.0  # then an Event is written though there are decisions to write
LOOK_AGAIN_S = 0.2
PER_S = 10.0
BURST = 50
WAITING_MOST = 1_000  # Events that wait to be written
HEARD_MOST = 20_000  # entries that wait to be looked at
AT_ONCE = 50  # of them, before others have their turn
REMEMBERED_MOST = 2_000  # Events that were written last: said again, they are counted in their series
NOTE_MOST = 1_000  # characters; the API takes 1,024 bytes
TELL_AGAIN_S = 60.0

ClaimOf = Callable[[str], ApiObject | None]  # by UID, as the cluster has it
Count = Callable[[str], None]  # one of `RESULTS`
RESULTS = ("written", "repeated", "superseded", "dropped", "failed", "unreadable")


class ClaimNote(msgspec.Struct, frozen=True):
    """What is told of a claim. reason: a word for machines, such as DragomanPending."""

    uid: str
    namespace: str
    name: str
    reason: str
    note: str
    is_warning: bool = False


class ClaimEvents:
    """Fed with the ledger's messages about the cluster by `hear`, which never waits; written by `run`."""

    def __init__(self, writer: EventWriter, instance: str, count: Count, held_back_s: float = HELD_BACK_S) -> None:
        """instance: which agent writes them."""
        self._writer = writer
        self._instance = instance
        self._count = count
        self._held_back_s = held_back_s
        self._heard: deque[StoredMessage] = deque()
        # By UID and reason: since when, the entry's sequence, what is told.
        self._waiting: OrderedDict[tuple[str, str], tuple[float, int, ClaimNote]] = OrderedDict()
        self._written: OrderedDict[tuple[str, str, str], tuple[str, int]] = OrderedDict()  # name and how often
        self._news = anyio.Event()
        self._tokens, self._filled_at = float(BURST), time.monotonic()
        self._told_at = -TELL_AGAIN_S

    def hear(self, message: StoredMessage) -> None:
        """The ledger has this entry about the cluster."""
        if len(self._heard) >= HEARD_MOST:
            self._heard.popleft()
            self._count("dropped")
        self._heard.append(message)
        self._news.set()

    async def run(self, claim_of: ClaimOf, is_busy: Callable[[], bool] = lambda: False) -> None:
        """Write until cancelled. is_busy: the API server has more urgent writes of ours."""
        while True:
            self._news = anyio.Event()
            while self._heard:
                self._look_at_heard(claim_of)
                await checkpoint()
            if not self._waiting:
                await self._news.wait()
                continue
            since, sequence, note = next(iter(self._waiting.values()))
            now = time.monotonic()
            due_s = since + self._held_back_s - now
            if due_s <= 0 and now < since + BUSY_MOST_S and is_busy():
                due_s = LOOK_AGAIN_S
            if due_s > 0:
                await anyio.sleep(due_s)
                continue
            del self._waiting[note.uid, note.reason]
            await self._until_allowed()
            await self._write(sequence, note)

    def _look_at_heard(self, claim_of: ClaimOf) -> None:
        for _ in range(min(AT_ONCE, len(self._heard))):
            message = self._heard.popleft()
            try:
                entry = decode_entry(message.payload)
            except WireError:  # a newer broker's: nothing to an agent, see docs/adr/0014
                self._count("unreadable")
                continue
            note = note_of(entry, claim_of)
            if note is None:
                continue
            for reason in {note.reason, PENDING}:
                if self._waiting.pop((note.uid, reason), None) is not None:
                    self._count("superseded")
            if len(self._waiting) >= WAITING_MOST:
                self._waiting.popitem(last=False)
                self._count("dropped")
            self._waiting[note.uid, note.reason] = time.monotonic(), message.stream_sequence, note

    async def _until_allowed(self) -> None:
        now = time.monotonic()
        self._tokens = min(float(BURST), self._tokens + (now - self._filled_at) * PER_S)
        self._filled_at = now
        if self._tokens < 1:
            await anyio.sleep((1 - self._tokens) / PER_S)
        self._tokens -= 1

    async def _write(self, sequence: int, note: ClaimNote) -> None:
        key = (note.uid, note.reason, note.note)
        try:
            name, times = self._written.pop(key, ("", 0))
            if name and await self._repeat(note.namespace, name, times + 1):
                times += 1
                self._count("repeated")
            else:
                name, times = f"{note.name[:220]}.{sequence:x}", 1
                await self._create(name, note)
                self._count("written")
        except ApiError as error:
            self._count("failed")
            if time.monotonic() - self._told_at > TELL_AGAIN_S:
                self._told_at = time.monotonic()
                _log.warning("an Event is not written, nor are others perhaps: %s", error)
            if isinstance(error, ApiBusyError):
                await anyio.sleep(error.retry_after_s)
            return
        self._written[key] = name, times
        if len(self._written) > REMEMBERED_MOST:
            self._written.popitem(last=False)

    async def _create(self, name: str, note: ClaimNote) -> None:
        with suppress(ApiConflictError):  # this very entry was told already, by an agent before us
            await self._writer.create_event(event_object(name, note, self._instance, _now()))

    async def _repeat(self, namespace: str, name: str, times: int) -> bool:
        """False: the Event is gone; after an hour the API server forgets it."""
        series = {"count": times, "lastObservedTime": _now()}
        try:
            await self._writer.patch_event(namespace, name, {"series": series})
        except ApiNotFoundError:
            return False
        return True


def note_of(entry: ledger.AnyEntry, claim_of: ClaimOf) -> ClaimNote | None:
    """What is told of the claim that the entry is about; None: nothing, or the claim is not there any more."""
    uid = getattr(entry, "uid", "")
    claim = claim_of(uid) if uid else None
    if claim is None:
        return None
    metadata = claim["metadata"]
    said = _said(entry, claim)
    if said is None:
        return None
    reason, text, is_warning = said
    return ClaimNote(uid, metadata["namespace"], metadata["name"], reason, _cut(text), is_warning)


def _said(entry: ledger.AnyEntry, claim: ApiObject) -> tuple[str, str, bool] | None:
    """Reason, text, and whether it is a warning."""
    match entry:
        case ledger.ReasonChanged(state="Invalid"):
            return "DragomanRefused", f"{entry.reason}: {entry.message}", True
        case ledger.ReasonChanged():
            return PENDING, f"{entry.reason}: {entry.message}", entry.reason != "WaitingForConsumer"
        case ledger.OutcomeRecorded(outcome="Applied"):
            holds = holds_of(claim)  # None: it was a Release, or the allocation has ended since
            return ("DragomanAllocated", _devices(holds), False) if holds is not None else None
        case ledger.OutcomeRecorded(outcome="Conflict" | "Failed"):
            return "DragomanNotApplied", f"{entry.outcome}: {entry.message or 'the claim had changed'}", True
        case ledger.GrantEnded(cause="AllocationRejected"):
            return "DragomanRejected", "its pod could not use the devices: they are free, others are looked for", True
        case ledger.GrantEnded(cause="AllocationCleared"):
            return "DragomanReleased", "its devices are free", False
        case ledger.Adopted():
            return "DragomanAdopted", f"it keeps what it had without the broker: {_devices(entry.holds)}", False
        case ledger.CollisionFound():
            return "DragomanCollision", f"others hold what it shows as its own: {_devices(entry.holds)}", True
    return None


def _devices(holds: list[DeviceHold]) -> str:
    return ", ".join(f"{each.request}: {each.pool}/{each.device} ({each.driver})" for each in holds)


def event_object(name: str, note: ClaimNote, instance: str, now: str) -> ApiObject:
    """The Event as events.k8s.io/v1 has it."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": note.namespace},
        "eventTime": now,
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128],
        "action": "Decide",
        "reason": note.reason,
        "regarding": {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "namespace": note.namespace,
            "name": note.name,
            "uid": note.uid,
        },
        "note": note.note,
        "type": "Warning" if note.is_warning else "Normal",
    }


def _cut(text: str) -> str:
    data = text.encode()
    return text if len(data) <= NOTE_MOST else data[: NOTE_MOST - 3].decode(errors="ignore") + "…"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
