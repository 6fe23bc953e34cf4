"""A full sync: nothing comes between its list and its last message, and the list is what was published before it."""

from cluster_agent.mirror.actions import Asked, Exit, LastMessage, Publish, PublishRefused, Tick
from schemas.wire.state import NAMES_IN_PART, ObjectName, ObjectState, SyncFinished, SyncPart
from tests.mirror.driven import EPOCH, TRAIN, Driven, a_manifest, a_state, an_object, gone, raw_of, seen, told

SLICE = ObjectName("slice", "s1")
LATER = EPOCH + 77
MANY = 2 * NAMES_IN_PART + 500


def with_slices(count: int) -> Driven:
    """A mirror at whose start that many slices are there, all of them told of before."""
    slices = [an_object("ResourceSlice", f"s{number:05}") for number in range(count)]
    before = [
        told(
            ObjectState(agent_epoch=5, object=raw_of(each, 100), resource_version="100"),
            number,
            ObjectName("slice", each["metadata"]["name"]),
        )
        for number, each in enumerate(slices, start=1)
    ]
    driven = Driven()
    driven.starts(*(seen(each, 100, "slice") for each in slices), told=before)
    return driven


def syncing(driven: Driven) -> Publish:
    """The publish of a sync that is in flight."""
    (publish,) = [each for each in driven.all(Publish) if each.name.kind == "agent"]
    return publish


def store_objects(driven: Driven) -> None:
    """All publishes of objects in flight are stored."""
    for publish in [each for each in driven.all(Publish) if each.name.kind != "agent"]:
        driven.store(publish)


def test_an_empty_cluster_syncs_too() -> None:
    driven = Driven()
    (publish,) = driven.starts()
    assert isinstance(publish, Publish)
    assert publish.message == SyncFinished(EPOCH, 1, 0, [])


def test_a_long_list_goes_in_parts_one_after_the_other() -> None:
    driven = with_slices(MANY)
    parts = []
    for number in (1, 2):
        part = driven.only(Publish)
        assert part.name == ObjectName("agent", f"sync-{number}")
        assert isinstance(part.message, SyncPart)
        assert (part.message.sync, part.message.part, part.expected_sequence) == (1, number, 0)
        parts.append(part.message.objects)
        driven.store(part)
    finished = driven.only(Publish).message
    assert isinstance(finished, SyncFinished)
    assert finished.parts == 2
    assert [len(each) for each in (*parts, finished.objects)] == [NAMES_IN_PART, NAMES_IN_PART, 500]
    driven.store()
    assert driven.syncs == [sorted(driven.stored)]


def test_a_second_sync_expects_the_last_messages_of_the_first() -> None:
    driven = with_slices(NAMES_IN_PART + 1)
    driven.store()
    part = driven.last_sequence
    driven.store()
    finished = driven.last_sequence
    driven.tell(Asked([]))
    store_objects(driven)
    assert driven.only(Publish).expected_sequence == part
    driven.store()
    again = driven.only(Publish)
    assert isinstance(again.message, SyncFinished)
    assert (again.expected_sequence, again.message.sync) == (finished, 2)


def test_a_list_that_just_fits_needs_no_parts() -> None:
    driven = with_slices(NAMES_IN_PART)
    message = driven.only(Publish).message
    assert isinstance(message, SyncFinished)
    assert (message.parts, len(message.objects)) == (0, NAMES_IN_PART)


def test_holds_back_what_happens_until_the_sync_is_stored() -> None:
    driven = Driven()
    driven.starts(seen(an_object("ResourceSlice", "s1"), 100, "slice"))
    store_objects(driven)
    sync = syncing(driven)
    assert driven.tell(seen(a_manifest(), 101)) == []
    assert driven.tell(gone(an_object("ResourceSlice", "s1"), 102, "slice")) == []
    assert driven.tell(Asked([SLICE])) == []
    driven.store(sync)
    assert driven.syncs == [[SLICE]]
    assert {each.name for each in driven.all(Publish)} == {TRAIN, SLICE}
    driven.store_all()
    assert driven.said(SLICE).is_tombstone
    assert len(driven.syncs) == 1


def test_holds_back_between_parts_too() -> None:
    driven = with_slices(MANY)
    driven.tell(seen(a_manifest(), 9_000))
    for _ in range(2):
        driven.store()
        assert [each.name.kind for each in driven.all(Publish)] == ["agent"]
    driven.store()
    assert driven.only(Publish).name == TRAIN


def test_a_sync_waits_for_every_publish_that_is_in_flight() -> None:
    driven = Driven()
    driven.starts(seen(a_manifest(), 100), seen(an_object("ResourceSlice", "s1"), 101, "slice"))
    first, second = driven.all(Publish)
    driven.store(first)
    assert driven.all(Publish) == [second]
    # What happens now does not keep the sync from ever coming.
    driven.tell(seen(a_manifest(labels={"a": "1"}), 102))
    driven.store_all()
    assert driven.syncs == [[TRAIN, SLICE]]
    assert driven.claim()["metadata"]["labels"] == {"a": "1"}


def test_a_sync_waits_for_an_object_of_which_its_subject_knows_more_than_the_watch_has_shown() -> None:
    driven = Driven()
    driven.starts(seen(a_manifest(), 100))
    refused = driven.take(Publish)
    driven.last_sequence = LATER
    actions = driven.tell(PublishRefused(refused, told(a_state(a_manifest(), 105), LATER), 5, is_ours=False))
    assert actions == [], "neither the older view nor a sync without it"
    driven.tell(seen(a_manifest(), 105))
    driven.store_all()
    assert driven.syncs == [[TRAIN]]


def test_asked_for_everything_during_a_sync_it_publishes_all_and_syncs_again() -> None:
    driven = Driven()
    driven.starts(seen(a_manifest(), 100))
    store_objects(driven)
    sync = syncing(driven)
    driven.tell(Asked([]))
    driven.store(sync)
    driven.store_all()
    assert len(driven.syncs) == 2
    assert driven.syncs[-1] == [TRAIN]
    assert driven.stored[TRAIN][0] > EPOCH + 2  # published between the two
    assert driven.mirror.is_idle


def test_a_sync_that_was_refused_for_an_old_message_of_ours_is_tried_again_after_it() -> None:
    driven = Driven()
    driven.starts(seen(a_manifest(), 100))
    store_objects(driven)
    sync = driven.take(Publish)
    last = LastMessage(sync.name, None, LATER, 0)
    driven.last_sequence = LATER
    (again,) = driven.tell(PublishRefused(sync, last, EPOCH, is_ours=False))
    assert isinstance(again, Publish)
    assert (again.name, again.message, again.expected_sequence) == (sync.name, sync.message, LATER)
    assert again.attempt != sync.attempt
    driven.store(again)
    assert driven.mirror.has_synced


def test_a_sync_that_was_stored_after_all_counts() -> None:
    driven = Driven()
    driven.starts()
    sync = driven.take(Publish)
    driven.last_sequence = LATER
    assert driven.tell(PublishRefused(sync, LastMessage(sync.name, None, LATER, 0), EPOCH, is_ours=True)) == []
    assert driven.mirror.has_synced


def test_a_sync_that_a_later_agent_refuses_ends_this_one() -> None:
    driven = Driven()
    driven.starts()
    sync = driven.take(Publish)
    (action,) = driven.tell(PublishRefused(sync, LastMessage(sync.name, None, LATER, 0), LATER, is_ours=False))
    assert isinstance(action, Exit)


def test_no_sync_speaks_while_a_refused_message_of_ours_may_still_land() -> None:
    driven = Driven()
    driven.starts(seen(a_manifest(), 100))
    publish = driven.take(Publish)
    (again,) = driven.tell(PublishRefused(publish, LastMessage(TRAIN, None, 0, 0), 0, is_ours=False))
    assert isinstance(again, Publish)
    assert again.name == TRAIN
    assert driven.all(Publish) == [again]
    driven.tell(gone(a_manifest(), 101))
    driven.store(again)
    driven.store_all()
    # As published up to the sync's last message; the tombstone comes after it.
    assert driven.syncs == [[TRAIN]]
    assert driven.said().is_tombstone


def test_a_refused_publish_of_what_went_meanwhile_leaves_a_tombstone_before_the_sync() -> None:
    driven = Driven()
    driven.starts(seen(a_manifest(), 100))
    publish = driven.take(Publish)
    driven.tell(gone(a_manifest(), 101))
    (again,) = driven.tell(PublishRefused(publish, LastMessage(TRAIN, None, 0, 0), 0, is_ours=False))
    assert isinstance(again, Publish)
    driven.store_all()
    assert driven.said().is_tombstone
    assert driven.syncs == [[]]


def test_no_second_sync_begins_before_the_first_is_stored() -> None:
    driven = Driven(refresh_ms=1_000)
    driven.starts()
    driven.tell(Tick(100_000))
    assert len(driven.all(Publish)) == 1
    driven.store()
    assert driven.all(Publish) == []
