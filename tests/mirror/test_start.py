"""A start: what was told before, what there is, and the difference between them, tombstones included."""

import msgspec
import pytest

from cluster_agent.mirror.actions import Exit, Publish, ReadClaim, RunTaken, WriteAllocation, WriteFinalizers
from schemas.wire.state import NO_OBJECT, ClaimState, ObjectName, ObjectState, Rejected, Settled, SyncFinished
from tests.builders import a_claim
from tests.mirror.driven import (
    EPOCH,
    TRAIN,
    Driven,
    a_manifest,
    a_release,
    a_state,
    allocated,
    an_allocate,
    an_object,
    decides,
    gone,
    protected,
    seen,
    told,
)

SLICE = ObjectName("slice", "s1")


def test_publishes_all_that_there_is_and_then_that_the_sync_is_finished() -> None:
    driven = Driven()
    driven.starts(seen(a_manifest(), 100), seen(an_object("ResourceSlice", "s1"), 101, "slice"))
    first, second = driven.all(Publish)
    assert {first.name, second.name} == {TRAIN, SLICE}
    assert (first.expected_sequence, second.expected_sequence) == (0, 0)
    driven.store(first)
    (sync,) = driven.store(second)
    assert isinstance(sync, Publish)
    assert sync.name == ObjectName("agent", "run")
    assert sync.message == SyncFinished(EPOCH, 1, 0, [TRAIN, SLICE])
    assert sync.expected_sequence == EPOCH
    assert driven.mirror.beat() is None
    driven.store(sync)
    assert driven.mirror.has_synced
    assert driven.mirror.is_idle


def test_says_all_that_is_known_of_a_claim() -> None:
    driven = Driven().started(seen(a_manifest(), 100))
    message = driven.said()
    assert (message.agent_epoch, message.resource_version) == (EPOCH, "100")
    assert driven.claim()["metadata"] == {
        "name": "train",
        "namespace": "default",
        "uid": TRAIN.key,
        "resourceVersion": "100",
    }
    assert (message.consumers, message.decision, message.rejected, message.error) == ([], None, None, "")


def test_publishes_only_the_difference_to_what_an_agent_before_it_told() -> None:
    same, changed, gone_, new = (a_claim(name=name) for name in ("same", "changed", "gone", "new"))
    before = [
        told(a_state(a_manifest(claim), 100), 5 + number, ObjectName("claim", claim.metadata.uid))
        for number, claim in enumerate((same, changed, gone_))
    ]
    driven = Driven()
    driven.starts(
        seen(a_manifest(same), 100),
        seen(a_manifest(changed), 105),
        seen(a_manifest(new), 106),
        told=before,
    )
    published = {each.name.key: each for each in driven.all(Publish)}
    assert set(published) == {"uid-default-changed", "uid-default-gone", "uid-default-new"}
    tombstone = published["uid-default-gone"]
    assert isinstance(tombstone.message, ClaimState)
    assert tombstone.message.is_tombstone
    assert tombstone.expected_sequence == 7
    driven.store_all()
    assert driven.syncs == [sorted(ObjectName("claim", each.metadata.uid) for each in (same, changed, new))]


def test_a_tombstone_that_was_told_is_not_told_again_and_not_in_the_sync() -> None:
    driven = Driven()
    (sync,) = driven.starts(told=[told(a_state(None), 7)])
    assert isinstance(sync, Publish)
    assert sync.message == SyncFinished(EPOCH, 1, 0, [])


def test_an_object_other_than_a_claim_gets_its_tombstone_too() -> None:
    driven = Driven().started(told=[told(ObjectState(agent_epoch=5, object=msgspec.Raw(b"{}")), 7, SLICE)])
    assert driven.said(SLICE) == ObjectState(agent_epoch=EPOCH, object=NO_OBJECT, resource_version="1")
    assert driven.syncs == [[]]


def test_what_the_agent_before_said_after_our_run_began_nobody_believes_so_it_is_said_again() -> None:
    driven = Driven()
    driven.starts(seen(a_manifest(), 100), told=[told(a_state(a_manifest(), 100), EPOCH + 3)])
    (publish,) = driven.all(Publish)
    assert (publish.name, publish.expected_sequence) == (TRAIN, EPOCH + 3)


def test_exits_when_another_agent_has_taken_over_already() -> None:
    driven = Driven()
    (action,) = driven.starts(seen(a_manifest(), 100), run_sequence=EPOCH + 1)
    assert isinstance(action, Exit)
    assert "another agent serves cluster east" in action.reason


def test_exits_when_another_agent_takes_over() -> None:
    driven = Driven().started()
    assert driven.tell(RunTaken(EPOCH)) == []  # a replica lags
    # Our last message there was lost with the log's end, and the other's first has got its sequence.
    (action,) = driven.tell(RunTaken(driven.last_sequence))
    assert isinstance(action, Exit)


# --- decisions of before


def test_a_decision_that_was_settled_and_told_is_done() -> None:
    before = a_state(a_manifest(), 100, decision=Settled(50, "Conflict"))
    driven = Driven().started(seen(a_manifest(), 100), told=[told(before, 7)], decisions=[(50, an_allocate())])
    assert driven.pending == []
    assert driven.mirror.has_published_outcome(TRAIN.key, 50)
    assert driven.tell(decides(an_allocate(), 50)) == []


@pytest.mark.parametrize("sequence", [pytest.param(None, id="none told"), pytest.param(40, id="an earlier one told")])
def test_a_decision_that_was_not_settled_is_carried_out(sequence: int | None) -> None:
    decision = Settled(sequence, "Conflict") if sequence else None
    driven = Driven()
    driven.starts(
        seen(a_manifest(), 100),
        told=[told(a_state(a_manifest(), 100, decision=decision), 7)],
        decisions=[(50, an_allocate())],
    )
    assert driven.only(WriteFinalizers).ledger_sequence == 50
    assert not driven.mirror.has_published_outcome(TRAIN.key, 50)


def test_a_decision_for_a_claim_whose_messages_expired_is_looked_into_before_anything_is_written() -> None:
    driven = Driven()
    driven.starts(seen(protected(), 100), decisions=[(50, an_allocate())])
    assert driven.only(ReadClaim).ledger_sequence == 50
    assert driven.all(WriteAllocation) == []


def test_a_decision_for_a_claim_that_is_not_there_is_nothing_to_settle() -> None:
    driven = Driven().started(decisions=[(50, an_allocate())])
    assert driven.syncs == [[]]
    assert driven.mirror.has_published_outcome(TRAIN.key, 50)
    assert driven.tell(decides(a_release(), 60)) == []


def test_a_decision_for_a_claim_that_went_meanwhile_is_gone() -> None:
    driven = Driven().started(told=[told(a_state(a_manifest(), 100), 7)], decisions=[(50, an_allocate())])
    message = driven.said()
    assert message.is_tombstone
    assert message.decision == Settled(50, "Gone", "the claim was deleted")


def test_a_rejection_that_was_told_is_not_forgotten() -> None:
    rejected = Rejected(50, "Unschedulable")
    before = a_state(allocated(protected()), 100, decision=Settled(50, "Applied"), rejected=rejected)
    driven = Driven().started(seen(allocated(protected(), "gpu-0"), 101), told=[told(before, 7)])
    assert driven.said().rejected == rejected
    driven.tell(gone(a_manifest(), 102))
    driven.store_all()
    assert driven.said().is_tombstone
