"""When an object is published, expecting which message before it, and what a refusal teaches."""

import pytest
from msgspec.structs import replace

from cluster_agent.mirror.actions import (
    Asked,
    Exit,
    LastMessage,
    Publish,
    PublishRefused,
    Relisted,
    Tick,
    Watched,
    WriteFinalizers,
)
from schemas.wire.calls import Beat
from schemas.wire.state import ClaimState, ObjectName, ObjectState, Rejected, Settled, SyncFinished
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
    wrote,
)

SLICE = ObjectName("slice", "s1")
LATER = EPOCH + 30


def refused(driven: Driven, last: ClaimState | ObjectState | None, sequence: int, **more: object) -> PublishRefused:
    """The only publish was refused, and that is the last message of its subject."""
    publish = driven.only(Publish)
    driven.pending.remove(publish)
    driven.last_sequence = max(driven.last_sequence, sequence)
    message = LastMessage(publish.name, last, sequence, 0)
    driven.keep(publish.name, last, sequence)
    fields = {"last": message, "last_epoch": last.agent_epoch if last else 0, "is_ours": False} | more
    return PublishRefused(publish, **fields)  # type: ignore[arg-type]


# --- one at a time, the newest last


def test_has_one_publish_in_flight_per_subject_and_then_says_what_is_newest() -> None:
    driven = Driven().started()
    driven.tell(seen(a_manifest(), 100))
    assert driven.tell(seen(a_manifest(labels={"a": "1"}), 101)) == []
    assert driven.tell(seen(a_manifest(labels={"a": "2"}), 102)) == []
    (second,) = driven.store()
    assert isinstance(second, Publish)
    assert second.expected_sequence == driven.last_sequence
    driven.store(second)
    assert driven.claim()["metadata"]["labels"] == {"a": "2"}
    assert driven.mirror.is_idle


def test_a_publish_knows_when_the_first_news_came_that_it_tells() -> None:
    driven = Driven().started()
    driven.tell(replace(seen(a_manifest(), 100), seen_us=7))
    assert driven.only(Publish).seen_us == 7
    driven.tell(replace(seen(a_manifest(labels={"a": "1"}), 101), seen_us=20))
    driven.tell(replace(seen(a_manifest(labels={"a": "2"}), 102), seen_us=30))
    (second,) = driven.store()
    assert isinstance(second, Publish)
    assert second.seen_us == 20
    driven.tell(refused(driven, a_state(a_manifest(), 100, EPOCH), LATER))
    assert driven.only(Publish).seen_us == 20, "what was refused is still to be told"
    driven.store()
    driven.tell(replace(seen(a_manifest(labels={"a": "2"}), 102), seen_us=40))
    driven.tell(replace(gone(a_manifest(), 103), seen_us=50))
    assert driven.only(Publish).seen_us == 50, "what changed nothing is no news"


def test_publishes_different_objects_beside_each_other() -> None:
    driven = Driven().started()
    driven.tell(seen(a_manifest(), 100))
    driven.tell(seen(an_object("ResourceSlice", "s1"), 101, "slice"))
    assert len(driven.all(Publish)) == 2


def test_says_nothing_twice() -> None:
    driven = Driven().started(seen(a_manifest(), 100))
    assert driven.tell(seen(a_manifest(), 100)) == []
    assert driven.tell(Watched("claim", 200)) == []


def test_the_view_never_goes_back() -> None:
    driven = Driven().started(seen(a_manifest(labels={"a": "2"}), 102))
    assert driven.tell(seen(a_manifest(labels={"a": "1"}), 101)) == []
    assert driven.tell(gone(a_manifest(), 101)) == []


def test_publishes_what_it_cannot_read_as_it_is_with_the_error() -> None:
    driven = Driven().started(seen({"metadata": {"uid": TRAIN.key, "name": 3}}, 100, error="metadata.name: text"))
    assert driven.said().error == "metadata.name: text"
    assert driven.claim()["metadata"]["name"] == 3


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param({"metadata": {"uid": TRAIN.key}, "spec": 3}, id="a number for a spec"),
        pytest.param({"metadata": {"uid": TRAIN.key}, "spec": {"devices": {"requests": [3]}}}, id="a number in a list"),
        pytest.param({"metadata": {"uid": TRAIN.key, "ownerReferences": ["x"]}}, id="an owner that is text"),
    ],
)
@pytest.mark.parametrize("publishes_all", [True, False])
def test_an_object_of_any_shape_hurts_nobody(manifest: dict[str, object], publishes_all: bool) -> None:
    driven = Driven(publishes_all=publishes_all).started(seen(manifest, 100))
    assert (TRAIN in driven.stored) == publishes_all


# --- gone


def test_a_claim_that_goes_gets_a_tombstone_and_is_forgotten() -> None:
    driven = Driven().started(seen(a_manifest(), 100))
    driven.tell(gone(a_manifest(), 105))
    driven.store_all()
    assert driven.said() == ClaimState(agent_epoch=EPOCH, resource_version="105")
    assert driven.mirror.tracked == {}
    driven.tell(seen(a_manifest(), 106))
    assert driven.only(Publish).expected_sequence == 0  # which the subject will refuse, and then it is known


def test_a_claim_that_goes_while_its_publish_is_in_flight_gets_its_tombstone_after_it() -> None:
    driven = Driven().started()
    driven.tell(seen(a_manifest(), 100))
    assert driven.tell(gone(a_manifest(), 101)) == []
    (tombstone,) = driven.store()
    driven.store(tombstone)  # type: ignore[arg-type]
    assert driven.said().is_tombstone
    assert driven.mirror.is_idle


def test_a_claim_that_was_never_told_of_goes_without_a_word() -> None:
    driven = Driven(publishes_all=False).started(seen(a_manifest(), 100))
    assert driven.tell(gone(a_manifest(), 101)) == []
    assert driven.mirror.tracked == {}


def test_a_new_list_is_all_there_is() -> None:
    kept, lost, new = (a_claim(name=name) for name in ("kept", "lost", "new"))
    driven = Driven().started(seen(a_manifest(kept), 100), seen(a_manifest(lost), 101))
    driven.tell(Relisted("claim", [seen(a_manifest(kept), 100), seen(a_manifest(new), 105)], 110))
    assert {each.name.key for each in driven.all(Publish)} == {"uid-default-lost", "uid-default-new"}
    driven.store_all()
    assert driven.said(ObjectName("claim", "uid-default-lost")) == ClaimState(agent_epoch=EPOCH, resource_version="110")


def test_a_new_list_of_one_kind_says_nothing_of_another() -> None:
    driven = Driven().started(seen(a_manifest(), 100))
    assert driven.tell(Relisted("slice", [], 110)) == []


# --- never older than what was written or told


def test_waits_until_the_watch_has_brought_its_own_write() -> None:
    driven = Driven().started(seen(a_manifest(), 100))
    driven.tell(decides(an_allocate(100)))
    driven.tell(wrote(driven.take(WriteFinalizers), 105))
    driven.tell(seen(a_manifest(labels={"a": "1"}), 103))  # between the two
    assert driven.all(Publish) == []
    driven.tell(seen(protected(labels={"a": "1"}), 106))
    driven.store()
    assert driven.said().resource_version == "106"


def test_waits_until_the_watch_has_brought_what_the_subject_tells_of() -> None:
    driven = Driven().started(seen(a_manifest(), 100), told=[told(a_state(a_manifest(), 120), 7)], listed_at={})
    assert driven.syncs == []
    assert driven.pending == []
    driven.tell(seen(a_manifest(), 120))
    driven.store_all()
    assert driven.syncs == [[TRAIN]]


# --- refused


def test_a_publish_that_was_stored_after_all_counts() -> None:
    driven = Driven().started()
    driven.tell(seen(a_manifest(), 100))
    message = driven.only(Publish).message
    assert isinstance(message, ClaimState)
    assert driven.tell(refused(driven, message, LATER, is_ours=True)) == []
    beat = driven.mirror.beat()
    assert beat == Beat(EPOCH, driven.digest(), LATER)
    driven.tell(gone(a_manifest(), 101))
    assert driven.only(Publish).expected_sequence == LATER


def test_a_refusal_by_a_later_agent_ends_this_one() -> None:
    driven = Driven().started()
    driven.tell(seen(a_manifest(), 100))
    (action,) = driven.tell(refused(driven, a_state(a_manifest(), 100, epoch=EPOCH + 5), LATER))
    assert isinstance(action, Exit)


def test_a_refusal_by_an_agent_before_is_read_and_then_published_over() -> None:
    driven = Driven().started()
    driven.tell(seen(a_manifest(), 100))
    (again,) = driven.tell(refused(driven, a_state(a_manifest(), 100), LATER))
    assert isinstance(again, Publish)
    assert again.expected_sequence == LATER
    driven.store(again)
    assert driven.said().agent_epoch == EPOCH


def test_a_subject_whose_messages_expired_is_published_to_from_the_start() -> None:
    driven = Driven().started(seen(a_manifest(), 100))
    driven.tell(seen(a_manifest(labels={"a": "1"}), 101))
    (again,) = driven.tell(refused(driven, None, 0))
    assert isinstance(again, Publish)
    assert again.expected_sequence == 0


def test_a_refused_message_that_may_still_land_is_taken_back_where_its_claim_went() -> None:
    driven = Driven().started()
    driven.tell(seen(a_manifest(), 100))
    driven.tell(gone(a_manifest(), 101))
    (tombstone,) = driven.tell(refused(driven, None, 0))
    assert isinstance(tombstone, Publish)
    driven.store(tombstone)
    assert driven.said().is_tombstone
    assert driven.mirror.tracked == {}


def test_takes_over_the_decision_that_an_agent_before_has_settled() -> None:
    driven = Driven().started(seen(a_manifest(), 100))
    driven.tell(decides(an_allocate(100), 50))
    job = driven.take(WriteFinalizers)
    driven.tell(seen(a_manifest(labels={"a": "1"}), 101))
    settled = Settled(50, "Conflict", "by the other")
    before = a_state(a_manifest(), 101, decision=settled, rejected=Rejected(40, "Unschedulable"))
    driven.tell(refused(driven, before, LATER))
    driven.store()
    assert driven.said().decision == settled
    assert driven.said().rejected == Rejected(40, "Unschedulable")
    # What is still under way for that decision leads to nothing more.
    assert driven.tell(wrote(job, 105)) == []
    assert driven.tell(decides(an_allocate(100), 50)) == []


def test_keeps_its_own_decision_where_the_agent_before_knew_an_earlier_one() -> None:
    driven = Driven().started(seen(protected(), 100))
    driven.tell(decides(a_release(), 60))
    before = a_state(protected(), 100, decision=Settled(50, "Applied"))
    driven.tell(refused(driven, before, LATER))
    driven.store()
    assert driven.said().decision.ledger_sequence == 60


def test_a_claim_that_only_the_agent_before_has_met_is_waited_for_or_declared_gone() -> None:
    driven = Driven().started()
    driven.tell(Asked([TRAIN]))
    tombstone = driven.only(Publish)
    assert isinstance(tombstone.message, ClaimState)
    assert tombstone.message.is_tombstone
    assert driven.tell(refused(driven, a_state(a_manifest(), 150), LATER)) == []  # our view has not come so far
    assert driven.tell(Watched("slice", 200)) == []
    assert driven.tell(Watched("claim", 149)) == []
    driven.tell(Watched("claim", 150))
    assert driven.only(Publish).expected_sequence == LATER
    driven.store()
    assert driven.said().is_tombstone


def test_a_claim_that_only_the_agent_before_has_met_may_come_after_all() -> None:
    driven = Driven().started()
    driven.tell(Asked([TRAIN]))
    driven.tell(refused(driven, a_state(a_manifest(), 150), LATER))
    driven.tell(seen(a_manifest(), 150))
    driven.store()
    assert not driven.said().is_tombstone


def test_a_decision_for_a_claim_that_it_has_declared_gone_is_done() -> None:
    driven = Driven().started()
    driven.tell(Asked([TRAIN]))
    driven.tell(decides(an_allocate()))
    driven.store()
    assert driven.said().is_tombstone
    assert driven.mirror.is_idle
    assert driven.mirror.has_published_outcome(TRAIN.key, 50)


# --- asked


def test_publishes_what_it_is_asked_for_again_with_a_new_id() -> None:
    driven = Driven().started(seen(a_manifest(), 100), seen(an_object("ResourceSlice", "s1"), 101, "slice"))
    driven.tell(Asked([TRAIN]))
    publish = driven.only(Publish)
    assert (publish.name, publish.expected_sequence) == (TRAIN, driven.stored[TRAIN][0])
    driven.store(publish)
    assert driven.mirror.is_idle
    assert len(driven.syncs) == 1


def test_answers_for_an_object_that_is_not_there_with_a_tombstone() -> None:
    driven = Driven().started()
    driven.tell(Asked([SLICE, ObjectName("secret", "x"), ObjectName("agent", "run")]))
    driven.store()
    assert driven.stored == {SLICE: (driven.last_sequence, ObjectState(agent_epoch=EPOCH, resource_version="0"))}
    assert driven.mirror.is_idle


def test_an_ask_while_that_object_is_in_flight_is_answered_by_it() -> None:
    driven = Driven().started()
    driven.tell(seen(a_manifest(), 100))
    assert driven.tell(Asked([TRAIN])) == []
    assert driven.store() == []
    assert driven.mirror.is_idle


def test_asked_for_everything_it_publishes_all_and_then_a_sync() -> None:
    driven = Driven().started(seen(a_manifest(), 100), seen(an_object("ResourceSlice", "s1"), 101, "slice"))
    driven.tell(Asked([]))
    assert {each.name for each in driven.all(Publish)} == {TRAIN, SLICE}
    assert driven.tell(Asked([])) == []  # an ask is repeated until it is answered
    for publish in driven.all(Publish):
        driven.store(publish)
    assert driven.tell(Asked([])) == []  # the sync is still to come
    driven.store_all()
    assert driven.syncs == [sorted([TRAIN, SLICE])] * 2
    driven.tell(Asked([]))
    assert len(driven.all(Publish)) == 2


# --- again before a third of the stream's age


def test_publishes_each_object_again_before_it_is_too_old_and_then_a_sync() -> None:
    driven = Driven(refresh_ms=1_000)
    driven.tell(Tick(50_000))
    driven.started(seen(a_manifest(), 100))
    driven.tell(Tick(50_500))
    driven.tell(seen(an_object("ResourceSlice", "s1"), 101, "slice"))
    driven.store_all()
    assert driven.tell(Tick(51_000)) == []
    driven.tell(Tick(51_001))
    assert driven.only(Publish).name == TRAIN
    driven.store_all()
    assert len(driven.syncs) == 2
    driven.tell(Tick(51_501))
    assert driven.only(Publish).name == SLICE


def test_what_an_agent_before_told_long_ago_is_told_again() -> None:
    driven = Driven(refresh_ms=1_000)
    driven.tell(Tick(50_000))
    driven.started(seen(a_manifest(), 100), told=[told(a_state(a_manifest(), 100), 7, stored_ms=1_000)])
    assert driven.said().agent_epoch == 5
    driven.tell(Tick(50_001))
    driven.store_all()
    assert driven.said().agent_epoch == EPOCH


def test_a_tombstone_is_not_told_again() -> None:
    driven = Driven(refresh_ms=1_000).started(told=[told(a_state(None), 7)])
    driven.tell(Tick(50_000))
    sync = driven.take(Publish)
    assert isinstance(sync.message, SyncFinished)


# --- heartbeats


def test_a_heartbeat_says_what_was_stored_and_nothing_in_flight() -> None:
    driven = Driven().started(seen(a_manifest(), 100))
    before = driven.mirror.beat()
    driven.tell(seen(allocated(a_manifest()), 105))
    assert driven.mirror.beat() == before
    driven.store()
    assert driven.mirror.beat() == Beat(EPOCH, driven.digest(), driven.last_sequence)
    assert driven.mirror.beat() != before
