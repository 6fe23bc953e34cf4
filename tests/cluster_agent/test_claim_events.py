"""Events on claims: what is told, how often, and that nothing is waited for."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from cluster_agent.app import claim_events
from cluster_agent.app.claim_events import HEARD_MOST, WAITING_MOST, ClaimEvents, event_object, note_of
from cluster_agent.ports import ApiConflictError, ApiDeniedError, ApiNotFoundError, ApiObject
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import encode
from schemas.wire.ledger import AnyEntry, EndCause, GrantEnded, OutcomeRecorded, ReasonChanged
from schemas.wire.state import Outcome
from tests.manifests import claim_manifest

pytestmark = pytest.mark.anyio

DEADLINE_S = 10.0


class FakeApi:
    """Keeps Events as an API server does; `error` is raised instead while it is set."""

    def __init__(self) -> None:
        self.events: dict[str, ApiObject] = {}
        self.error: Exception | None = None
        self.calls = 0
        self.changed = anyio.Event()

    async def create_event(self, obj: ApiObject) -> None:
        self._called()
        if obj["metadata"]["name"] in self.events:
            raise ApiConflictError("it is there")
        self.events[obj["metadata"]["name"]] = obj

    async def patch_event(self, namespace: str, name: str, patch: ApiObject) -> None:
        self._called()
        if name not in self.events:
            raise ApiNotFoundError("it is gone")
        self.events[name] |= patch

    def _called(self) -> None:
        self.calls += 1
        self.changed.set()
        if self.error is not None:
            raise self.error

    async def until_called(self, times: int) -> None:
        with anyio.fail_after(DEADLINE_S):
            while self.calls < times:
                self.changed = anyio.Event()
                await self.changed.wait()
        await anyio.wait_all_tasks_blocked()


class Told:
    """A writer that runs, what it wrote, and what it counted."""

    def __init__(self, held_back_s: float) -> None:
        self.api = FakeApi()
        self.counted = Counter[str]()
        self.events = ClaimEvents(self.api, "east-1", lambda result: self.counted.update([result]), held_back_s)
        self.sequence = 0
        self.is_busy = False

    def hear(self, entry: AnyEntry | bytes) -> None:
        self.sequence += 1
        payload = entry if isinstance(entry, bytes) else encode(entry)
        self.events.hear(StoredMessage("dra.v1.ledger.main.0.east.record.x", payload, {}, self.sequence, 0))


@asynccontextmanager
async def telling(held_back_s: float = 0.0) -> AsyncIterator[Told]:
    told = Told(held_back_s)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(told.events.run, a_claim, lambda: told.is_busy)
        yield told
        tasks.cancel_scope.cancel()


def a_claim(uid: str) -> ApiObject:
    claim = claim_manifest(f"c-{uid}")
    claim["metadata"] |= {"uid": uid, "namespace": "ml"}
    return claim


def waits(uid: str = "u1", reason: str = "DevicesInUse", message: str = "all in use") -> ReasonChanged:
    return ReasonChanged(
        cluster="east",
        uid=uid,
        namespace="ml",
        name=f"c-{uid}",
        state="Pending",
        reason=reason,
        message=message,
        since_ms=0,
        order=1,
    )


async def test_what_is_told_again_is_counted_in_the_series_of_its_event() -> None:
    async with telling() as told:
        for times in range(1, 4):
            told.hear(waits())
            await told.api.until_called(times)
        (event,) = told.api.events.values()
        assert event["reason"] == "DragomanPending"
        assert event["note"] == "DevicesInUse: all in use"
        assert event["series"]["count"] == 3
        told.api.events.clear()  # the API server forgets them after an hour
        told.hear(waits())
        await told.api.until_called(5)
        (event,) = told.api.events.values()
        assert "series" not in event
    assert told.counted == {"written": 2, "repeated": 2}


async def test_events_wait_while_decisions_are_written_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_events, "LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(claim_events, "BUSY_MOST_S", 60.0)
    async with telling() as told:
        told.is_busy = True
        told.hear(waits())
        await anyio.sleep(0.1)
        assert told.api.calls == 0
        told.is_busy = False
        await told.api.until_called(1)
        told.is_busy = True
        monkeypatch.setattr(claim_events, "BUSY_MOST_S", 0.1)
        told.hear(waits("u2"))
        await told.api.until_called(2)


async def test_what_follows_in_a_moment_is_told_instead() -> None:
    async with telling(held_back_s=0.2) as told:
        told.hear(waits())
        told.hear(waits(reason="QuotaExceeded"))
        told.hear(waits("u2"))
        told.hear(ended("AllocationCleared", "u3"))
        told.hear(waits("u3"))
        await told.api.until_called(4)
        assert [event["reason"] for event in told.api.events.values() if event["regarding"]["uid"] == "u3"] == [
            "DragomanReleased",
            "DragomanPending",
        ]
        told.api.events = {name: each for name, each in told.api.events.items() if each["regarding"]["uid"] != "u3"}
        notes = {event["regarding"]["uid"]: event["note"] for event in told.api.events.values()}
    assert notes == {"u1": "QuotaExceeded: all in use", "u2": "DevicesInUse: all in use"}
    assert told.counted == {"written": 4, "superseded": 1}


async def test_errors_and_unknown_entries_are_counted_and_the_next_is_written() -> None:
    async with telling() as told:
        told.api.error = ApiDeniedError("no")
        told.hear(b'{"type":"dev.dragoman.ledger.later.v9"}')
        told.hear(b"no JSON")
        told.hear(waits("u1"))
        await told.api.until_called(1)
        told.api.error = None
        told.hear(waits("u2"))
        await told.api.until_called(2)
        assert [event["regarding"]["uid"] for event in told.api.events.values()] == ["u2"]
    assert told.counted == {"unreadable": 2, "failed": 1, "written": 1}


async def test_an_entry_that_an_agent_before_us_told_is_no_error() -> None:
    async with telling() as told:
        told.hear(waits())
        await told.api.until_called(1)
        told.sequence = 0
        told.events._written.clear()  # as after a restart
        told.hear(waits())
        await told.api.until_called(2)
        assert len(told.api.events) == 1
    assert told.counted == {"written": 2}


async def test_a_flood_is_bounded_and_written_slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim_events, "BURST", 3)
    monkeypatch.setattr(claim_events, "PER_S", 0.001)
    told = Told(0.0)
    told.events._tokens = 3.0
    for number in range(HEARD_MOST + 5):
        told.hear(waits(f"u{number}"))
    assert told.counted == {"dropped": 5}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(told.events.run, a_claim)
        await told.api.until_called(3)
        tasks.cancel_scope.cancel()
    assert len(told.api.events) == 3
    assert told.counted["dropped"] == HEARD_MOST + 5 - WAITING_MOST


def ended(cause: EndCause, uid: str = "u1") -> GrantEnded:
    return GrantEnded(cluster="east", uid=uid, grant_sequence=1, cause=cause)


def became(outcome: Outcome) -> OutcomeRecorded:
    return OutcomeRecorded(cluster="east", uid="u1", decision_sequence=1, outcome=outcome)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (waits(reason="WaitingForConsumer"), ("DragomanPending", False)),
        (waits(), ("DragomanPending", True)),
        (
            ended("AllocationCleared"),
            ("DragomanReleased", False),
        ),
        (
            ended("AllocationRejected"),
            ("DragomanRejected", True),
        ),
        (ended("ClaimDeleted"), None),
        (became("Applied"), None),  # of a Release
        (
            became("Failed"),
            ("DragomanNotApplied", True),
        ),
    ],
)
def test_what_is_told(entry: AnyEntry, said: Any) -> None:
    note = note_of(entry, a_claim)
    assert (note and (note.reason, note.is_warning)) == said


def test_nothing_is_told_of_a_claim_that_is_not_there() -> None:
    assert note_of(waits(), lambda uid: None) is None


def test_a_long_text_is_cut_to_what_the_api_takes() -> None:
    note = note_of(waits(message="ü" * 2000), a_claim)
    assert note is not None
    event = event_object("n", note, "i" * 300, "now")
    assert len(event["note"].encode()) <= 1024
    assert len(event["reportingInstance"]) <= 128
