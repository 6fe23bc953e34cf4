"""A claim's life becomes spans: what they are, and what they are not when something is missing."""

import random
from collections.abc import Sequence

import msgspec
import pytest

from broker.tracing.spans import Link, Span
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import trace_id, trace_parent
from schemas.wire.ledger import CheckpointClaims, ClaimKept, Release, WaitingKept
from tests.tracing.messages import (
    APPLIED,
    ASKED,
    DECIDED,
    DELETED,
    ENDED,
    HOLD,
    LIFE,
    SCHEDULED,
    SETTLED,
    Told,
    a_reason,
    a_state,
    an_allocate,
    an_end,
    an_entry,
    an_input,
    an_outcome,
    stages,
    times,
    us,
)


def test_a_claim_s_life_is_an_allocation_a_pod_and_an_end() -> None:
    told = Told()
    allocate, schedule, end = told.tell(LIFE)
    assert [each.top.name for each in told.episodes] == ["allocate ml/train", "schedule ml/train", "end ml/train"]
    assert stages(allocate) == {
        "publish": (10, 12),
        "queue": (12, 14),
        "decide": (14, 16),
        "batch": (16, 18.5),
        "commit": (18.5, 20),
        "deliver": (20, 25),
        "apply": (25, 40),
        "report": (40, 50),
    }
    inner = {span.name: times(span) for span in allocate.spans if span.parent_id != allocate.top.span_id}
    assert inner == {"allocate ml/train": (10, 50), "filter": (14, 15), "search": (15, 16), "write": (27, 40)}
    assert times(schedule.top) == (40, 60)
    assert stages(end) == {
        "publish": (80, 82),
        "queue": (82, 83),
        "decide": (83, 84),
        "batch": (84, 85),
        "commit": (85, 86),
    }
    assert not told.problems
    assert [(each.ledger_sequence, each.state_sequence) for each in told.episodes] == [(6, 2), (6, 3), (7, 4)]


def test_all_spans_share_the_claim_s_trace_and_have_ids_of_their_own() -> None:
    told = Told()
    told.tell(LIFE)
    spans = [span for each in told.episodes for span in each.spans]
    assert {span.trace_id for span in spans} == {trace_id("east", "u")}
    assert len({span.span_id for span in spans}) == len(spans)
    decided = told.episodes[0].top
    assert trace_parent("east", "u", "b.5").split("-")[1:3] == [decided.trace_id, decided.span_id], (
        "whoever carries on with the entry's traceparent is below its span"
    )
    again = Told()
    again.tell(LIFE)
    assert again.episodes == told.episodes


def test_says_what_was_decided_in_words_that_others_use() -> None:
    (allocate, *_) = Told().tell(LIFE)
    said = allocate.top.attributes
    assert said["dra.devices"] == ["gpu.example.com/rack/gpu-0"]
    assert (said["dra.cluster"], said["k8s.namespace.name"], said["dra.claim.name"]) == ("east", "ml", "train")
    assert (said["dra.ledger.sequence"], said["dra.state.sequence"], said["dra.outcome"]) == (5, 1, "Applied")
    by_name = {span.name: span for span in allocate.spans}
    publish = by_name["publish"].attributes
    assert (publish["messaging.system"], publish["messaging.operation.type"]) == ("nats", "send")
    assert publish["messaging.message.id"] == "state-1"
    assert by_name["publish"].events == (("sent", us(10.5)), ("stored", us(11)))
    assert by_name["deliver"].attributes["messaging.consumer.group.name"] == "agent_east"
    assert by_name["deliver"].kind == "consumer"


@pytest.mark.parametrize("seed", range(20))
def test_which_log_is_ahead_does_not_matter(seed: int) -> None:
    """Any order in which a message is there before the entry that follows from it."""
    chance = random.Random(seed)
    states, entries = [ASKED, APPLIED, SCHEDULED, DELETED], [DECIDED, SETTLED, ENDED]
    needs = {5: 1, 6: 2, 7: 4}
    order: list[StoredMessage] = []
    while states or entries:
        may_tell = entries and all(needs[entries[0].stream_sequence] < each.stream_sequence for each in states)
        order.append(entries.pop(0) if may_tell and (not states or chance.random() < 0.5) else states.pop(0))
    told, expected = Told(), Told()
    told.tell(order)
    expected.tell(LIFE)
    assert sorted(told.episodes, key=lambda each: each.state_sequence) == expected.episodes


def test_what_comes_twice_is_told_once() -> None:
    told = Told()
    told.tell([each for message in LIFE for each in (message, message)])
    assert len(told.episodes) == 3
    assert told.tell(LIFE) == []


def test_a_claim_that_waited_says_how_long_and_who_freed_what_it_got() -> None:
    told = Told()
    told.tell([ASKED])
    waits = an_entry(a_reason(), 5, 20, {"stepped": 13, "deciding": 14, "decided": 16, "sent": 18}, cause=1)
    (pending,) = told.tell([waits])
    assert times(pending.top) == (10, 20)
    assert pending.top.attributes["dra.reason"] == "DevicesInUse"

    other = an_entry(an_end(3, uid="other", cluster="west"), 6, 120, {"stepped": 110, "sent": 115})
    again = {"stepped": 110, "received": 12, "deciding": 112, "decided": 113, "sent": 115}
    granted = an_entry(an_allocate(inputs=an_input()), 7, 120, again, cause=1)
    freed, batch = told.tell([other, granted])
    applied = a_state(9, 133, {"seen": 131, "delivered": 125, "written": 130, "sent": 132}, decision=7)
    (allocate,) = told.tell([applied, an_entry(an_outcome(7), 8, 140, cause=9)])
    assert stages(allocate)["wait"] == (20, 112)
    assert "publish" not in stages(allocate), "that was told with its waiting"
    assert (allocate.waited_us, allocate.worked_us) == (92_000, 28_000)
    assert allocate.top.links == (Link(freed.top.trace_id, freed.top.span_id, "freed by"),)
    assert batch.top.attributes["messaging.batch.message_count"] == 3, (
        "with the one that waits; nothing ended its batch"
    )
    commit = next(span for span in freed.spans if span.name == "commit")
    assert commit.links == (Link(batch.top.trace_id, batch.top.span_id, "stored with"),)


def test_a_refused_claim_is_unusual() -> None:
    told = Told()
    told.tell([ASKED])
    times_of = {"stepped": 13, "deciding": 14, "decided": 16, "sent": 18}
    (refuse,) = told.tell([an_entry(a_reason("InvalidSelector", "Invalid"), 5, 20, times_of, cause=1)])
    assert (refuse.top.name, refuse.unusual) == ("refuse ml/train", "refused")


def test_a_decision_that_failed_says_why() -> None:
    told = Told()
    told.tell([ASKED, DECIDED, APPLIED])
    (failed,) = told.tell([an_entry(an_outcome(5, outcome="Conflict", message="it has changed"), 6, 50, cause=2)])
    assert (failed.unusual, failed.top.error) == ("failed", "Conflict: it has changed")
    assert told.tell([SCHEDULED]) == [], "no pod waits for what was not applied"


def test_an_evicted_cluster_s_claims_are_unusual_and_their_open_decisions_end() -> None:
    told = Told()
    told.tell([ASKED, DECIDED])
    open_one, end = told.tell([an_entry(an_end(5, "ClusterEvicted"), 6, 90, {"stepped": 88, "sent": 89})])
    assert (open_one.top.name, open_one.unusual, open_one.top.error) == (
        "allocate ml/train",
        "failed",
        "ClusterEvicted",
    )
    assert (end.top.name, end.unusual) == ("end ml/train", "evicted")


def test_a_release_is_a_decision_too() -> None:
    told = Told()
    told.tell([ASKED, DECIDED, APPLIED, SETTLED])
    entry = Release(
        cluster="east", uid="u", namespace="ml", name="train", grant_sequence=5, holds=[HOLD], reason="Unschedulable"
    )
    rejected = a_state(3, 70, {"seen": 69, "sent": 69.5}, decision=5)
    release = an_entry(entry, 7, 75, {"stepped": 72, "ended": 73, "sent": 74, "received": 71}, cause=3)
    cleared = a_state(4, 83, {"seen": 81, "delivered": 77, "writing": 78, "written": 80, "sent": 82}, decision=7)
    told.tell([rejected, release, cleared])
    (found,) = told.tell([an_entry(an_outcome(7), 8, 90, cause=4)])
    assert found.top.name == "release ml/train"
    assert times(found.top) == (69, 90)
    assert stages(found)["apply"] == (77, 80)


# --- what is missing or wrong


def test_messages_of_before_there_were_times_still_tell_what_the_server_knows() -> None:
    bare = [msgspec.structs.replace(each, headers=_without_times(each)) for each in LIFE]
    told = Told()
    allocate, schedule, end = told.tell(bare)
    assert stages(allocate) == {"commit": (11, 20), "report": (20, 50)}
    assert times(schedule.top) == (50, 61)
    assert stages(end) == {"commit": (81, 86)}
    assert not told.problems


@pytest.mark.parametrize("stage", ["received", "deciding", "decided", "sent"])
def test_a_stage_that_nobody_noted_is_part_of_the_next(stage: str) -> None:
    known = {"stepped": 14.0, "ended": 18.0, "sent": 18.5, "received": 12.0, "deciding": 14.0, "decided": 16.0}
    del known[stage]
    told = Told()
    told.tell([ASKED, an_entry(an_allocate(), 5, 20, known, cause=1), APPLIED])
    (allocate,) = told.tell([SETTLED])
    assert covered_us(allocate.top, allocate.spans) == allocate.top.end_us - allocate.top.start_us
    assert times(allocate.top) == (10, 50)


def test_an_entry_whose_message_is_not_there_any_more_begins_where_the_broker_met_it() -> None:
    told = Told()
    told.tell([DECIDED])
    (allocate,) = told.tell([SETTLED])
    assert times(allocate.top) == (12, 50)
    assert stages(allocate)["report"] == (20, 50)


def test_clocks_that_disagree_turn_no_span_round() -> None:
    late = a_state(2, 43, {"seen": 9, "delivered": 5, "writing": 6, "written": 8, "sent": 10}, decision=5)
    told = Told()
    told.tell([ASKED, DECIDED, late])
    (allocate,) = told.tell([SETTLED])
    assert all(span.start_us <= span.end_us for span in allocate.spans)
    assert stages(allocate)["apply"] == (20, 20)
    assert stages(allocate)["report"] == (20, 50)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        pytest.param({"Dra-Times": "seen=soon"}, "MalformedTimes", id="times"),
        pytest.param({"traceparent": "00-zz-1-01"}, "MalformedContext", id="context"),
        pytest.param({"traceparent": f"00-{'0' * 32}-{'1' * 16}-01"}, "MalformedContext", id="a trace of zeros"),
        pytest.param({"Content-Encoding": "br"}, "MalformedMessage", id="encoding"),
    ],
)
def test_a_malformed_header_is_named_and_the_rest_goes_on(headers: dict[str, str], code: str) -> None:
    told = Told()
    told.tell([a_state(1, 11, {"seen": 10}, headers=headers), DECIDED, APPLIED, SETTLED])
    (problem,) = told.problems
    assert (problem.code, problem.place) == (code, "DRA_STATE 1")
    (allocate,) = told.episodes
    assert stages(allocate)["commit"] == (18.5, 20)


def test_a_state_message_that_is_not_utf_8_is_named() -> None:
    told = Told()
    state = a_state(1, 11, annotations={"a": "?"})
    told.tell([msgspec.structs.replace(state, payload=state.payload.replace(b'"?"', b'"\xff"')), DECIDED, APPLIED])
    assert [each.code for each in told.problems] == ["MalformedMessage"]
    assert len(told.tell([SETTLED])) == 1


def test_a_malformed_entry_is_named() -> None:
    told = Told()
    wrong = msgspec.structs.replace(DECIDED, payload=b'{"type":"dev.dragoman.ledger.tomorrow.v1"}')
    assert told.tell([wrong, an_entry(an_allocate("v"), 9, 20, cause=1, headers={"ce-causationid": "x.1"})]) == []
    assert [each.code for each in told.problems] == ["MalformedMessage", "MalformedCause"]


def test_who_asked_for_a_claim_is_linked_where_the_claim_says_so() -> None:
    context = f"00-{'a' * 32}-{'b' * 16}-01"
    told = Told()
    told.tell([a_state(1, 11, {"seen": 10}, annotations={"traceparent": context}), DECIDED, APPLIED])
    (allocate,) = told.tell([SETTLED])
    assert allocate.top.links == (Link("a" * 32, "b" * 16, "asked by"),)
    told = Told()
    told.tell([a_state(1, 11, annotations={"traceparent": "me"})])
    assert [each.code for each in told.problems] == ["MalformedAnnotation"]


def test_a_cluster_cannot_put_spans_into_another_s_trace() -> None:
    foreign = trace_parent("west", "victim", "state-1")
    told = Told()
    told.tell([a_state(1, 11, {"seen": 10}, headers={"traceparent": foreign}), DECIDED, APPLIED, SETTLED])
    assert {span.trace_id for each in told.episodes for span in each.spans} == {trace_id("east", "u")}


# --- what is remembered


def test_a_checkpoint_says_since_when_a_claim_waits_and_tells_nothing_again() -> None:
    kept = ClaimKept(
        cluster="east",
        uid="u",
        namespace="ml",
        name="train",
        waiting=WaitingKept("Pending", "DevicesInUse", "why", us(15) // 1_000, 1),
    )
    restated = an_entry(an_allocate("v", ledger_sequence=3), 101, 100)
    told = Told()
    assert told.tell([ASKED, an_entry(CheckpointClaims(claims=[kept]), 100, 100), restated]) == []
    again = {"stepped": 110, "received": 12, "deciding": 112, "decided": 113, "sent": 115}
    told.tell([an_entry(an_allocate(), 102, 120, again, cause=1), a_state(2, 133, decision=102)])
    (allocate,) = told.tell([an_entry(an_outcome(102), 103, 140, cause=2)])
    assert stages(allocate)["wait"] == (15, 112)
    assert allocate.top.attributes["dra.waited_for"] == "DevicesInUse"


def test_claims_that_are_gone_are_forgotten() -> None:
    told = Told()
    told.tell(LIFE[:-1])
    told.stories.forget_over()
    assert len(told.stories) == 1, "what it held has not ended yet"
    told.tell([ENDED])
    told.stories.forget_over()
    assert len(told.stories) == 0


def test_what_waits_to_be_told_is_bounded() -> None:
    told = Told()
    told.tell([a_state(sequence, 11) for sequence in range(1, 1_000)])
    (story,) = told.stories._stories.values()
    assert len(story.states) == 64


# --- what is kept


def test_a_ratio_keeps_whole_traces_and_what_is_unusual_or_slow_always() -> None:
    told = Told()
    allocate, *_ = told.tell(LIFE)
    assert allocate.worked_us == 40_000
    assert not allocate.is_kept(0.0, 40_001)
    assert allocate.is_kept(0.0, 40_000)
    assert allocate.is_kept(1.0, 40_001)
    assert msgspec.structs.replace(allocate, unusual="failed").is_kept(0.0, 40_001)
    kept = 0
    for number in range(1_000):
        top = msgspec.structs.replace(allocate.top, trace_id=trace_id("east", str(number)))
        kept += msgspec.structs.replace(allocate, spans=(top,)).is_kept(0.25, 40_001)
    assert 200 < kept < 300


def _without_times(message: StoredMessage) -> dict[str, str]:
    return {name: value for name, value in message.headers.items() if name != "Dra-Times"}


def covered_us(top: Span, spans: Sequence[Span]) -> int:
    """How much of a span's time the spans directly below it cover."""
    covered, reached = 0, top.start_us
    for start, end in sorted((span.start_us, span.end_us) for span in spans if span.parent_id == top.span_id):
        begin, stop = max(start, reached), min(end, top.end_us)
        if stop > begin:
            covered += stop - begin
            reached = stop
    return covered
