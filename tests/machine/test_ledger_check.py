"""What is wrong with a ledger is found, and the first bad entry named."""

from collections.abc import Callable

import msgspec
import pytest

from broker.errors import LedgerLostError
from broker.machine.ledger_check import LedgerCheck
from broker.machine.rebuild import world_to_begin_with
from broker.world.checkpoint import checkpoint
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import (
    Allocate,
    AnyEntry,
    CheckpointEnds,
    ClusterAhead,
    GrantEnded,
    Inputs,
    LeaderElected,
    LeaderElectedBefore,
    LedgerRebuilt,
    SegmentClosed,
    SegmentOpened,
    Step,
    checkpoint_checksum,
    entry_place,
    inputs_of,
)
from schemas.wire.subjects import ledger_subject
from tests.machine.driven import ONE_FABRIC, Driven, as_stored
from tests.machine.test_segments import Segment, a_ledger, entry_of, starts, tail_of, without_a_grant
from tests.upgrades.test_previous_bytes import segment as previous

Ledger = dict[int, Segment]


def checked(segments: Ledger) -> LedgerCheck:
    """As the streams would have them: each entry on the subject of its segment."""
    check = LedgerCheck("main")
    for segment, messages in segments.items():
        check.begin(segment)
        check.add(placed(segment, message) for message in messages)
        check.end()
    return check


def placed(segment: int, message: StoredMessage) -> StoredMessage:
    try:
        place = ledger_subject("main", segment, *entry_place(decode_entry(message.payload)))
    except ValueError:
        return message
    return msgspec.structs.replace(message, subject=place if message.subject == "ledger" else message.subject)


def test_a_ledger_of_three_segments_is_well(machine: Driven) -> None:
    check = checked(a_ledger(machine, 3))
    assert check.bad is None
    assert check.notes == []
    assert [(each.opened, each.closed, each.compared) for each in check.segments] == [
        (True, True, False),
        (True, True, True),
        (True, False, True),
    ]
    assert [each.last for each in check.segments[:2]] == [each.first - 1 for each in check.segments[1:]]


def test_a_segment_without_those_before_it_is_checked_by_its_checksum(machine: Driven) -> None:
    segments = a_ledger(machine, 3)
    check = checked({2: tail_of(segments[2])})
    assert check.bad is None
    assert check.notes == ["segments before 2 are not here: its checkpoint is believed by its checksum alone"]
    assert checked({2: without_a_grant(tail_of(segments[2]))}).bad is not None


def test_a_checkpoint_that_is_not_whole_is_opened_anew(machine: Driven) -> None:
    segments = a_ledger(machine)
    check = checked({0: segments[0], 1: segments[1][:3]})
    assert check.bad is None
    assert check.notes == ["segment 1 is not open yet: the next leader opens it anew"]
    begun = segments[1][:3]
    again = renumbered(segments[1], begun[-1].stream_sequence + 1)
    assert checked({0: segments[0], 1: begun + again}).bad is None
    damaged = without_a_grant(segments[1])
    again = renumbered(segments[1], damaged[-1].stream_sequence + 1)
    assert checked({0: segments[0], 1: damaged + again}).bad is None


def renumbered(segment: Segment, first: int) -> Segment:
    return [msgspec.structs.replace(each, stream_sequence=first + index) for index, each in enumerate(segment)]


def first_of(segment: Segment, kind: type[AnyEntry]) -> int:
    return next(index for index, each in enumerate(segment) if isinstance(entry_of(each), kind))


def at(segments: Ledger, segment: int, index: int, **changed: object) -> None:
    segments[segment][index] = msgspec.structs.replace(segments[segment][index], **changed)


def loses_an_entry(segments: Ledger) -> int:
    del segments[0][10]
    return segments[0][10].stream_sequence


def loses_the_end_of_a_segment(segments: Ledger) -> int:
    del segments[0][-1:]
    return segments[0][-1].stream_sequence


def has_garbage(segments: Ledger) -> int:
    at(segments, 0, 10, payload=b"\xff")
    return segments[0][10].stream_sequence


def is_of_a_newer_build(segments: Ledger) -> int:
    at(segments, 0, 10, payload=b'{"type":"dev.dragoman.ledger.later.v9"}')
    return segments[0][10].stream_sequence


def stands_on_anothers_subject(segments: Ledger) -> int:
    at(segments, 0, 10, subject="dra.v1.ledger.main.0.west.claim.other")
    return segments[0][10].stream_sequence


def has_a_wrong_checksum(segments: Ledger) -> int:
    segments[1] = without_a_grant(tail_of(segments[1]))
    return segments[1][0].stream_sequence


def is_not_what_the_segment_before_gives(segments: Ledger) -> int:
    """With a checksum of its own: whoever wrote it believed another world."""
    wrong = without_a_grant(segments[1])
    opened = entry_of(wrong[0])
    assert isinstance(opened, SegmentOpened)
    checksum = checkpoint_checksum(opened, [each.payload for each in wrong[1:]])
    segments[1] = wrong
    at(segments, 1, 0, payload=encode(msgspec.structs.replace(opened, checksum=checksum)))
    return segments[1][0].stream_sequence


def gives_a_device_to_a_second_claim(segments: Ledger) -> int:
    """Where one was given to somebody whose grant ends later, another claim gets it too."""
    found = segments[0]
    index = first_of(found, Allocate)
    first = entry_of(found[index])
    assert isinstance(first, Allocate)
    del segments[1]
    assert not any(isinstance(entry_of(each), GrantEnded) for each in found[:index])
    again = msgspec.structs.replace(first, uid="somebody-else")
    segments[0] = found[: index + 1]
    last = segments[0][-1].stream_sequence
    segments[0].append(msgspec.structs.replace(found[index], stream_sequence=last + 1, payload=encode(again)))
    return last + 1


def is_written_by_a_leader_that_was_replaced(segments: Ledger) -> int:
    index = max(index for index, each in enumerate(segments[0]) if inputs_of(entry_of(each)))
    entry = entry_of(segments[0][index])
    inputs = inputs_of(entry)
    assert inputs
    inputs = msgspec.structs.replace(inputs, leader_epoch=inputs.leader_epoch - 1)
    again = inputs if isinstance(entry, Inputs) else msgspec.structs.replace(entry, inputs=inputs)
    at(segments, 0, index, payload=encode(again))
    return segments[0][index].stream_sequence


def a_forged_grant(segments: Ledger, sequence: int) -> StoredMessage:
    """A device that nobody has, for a claim that nobody knows, decided by nobody."""
    found = segments[0]
    entry = entry_of(found[first_of(found, Allocate)])
    assert isinstance(entry, Allocate)
    holds = [msgspec.structs.replace(hold, device="gpu-none") for hold in entry.holds]
    forged = msgspec.structs.replace(entry, uid="somebody-else", holds=holds, inputs=None)
    return as_stored([forged], sequence)[0]


def put_in(segments: Ledger, segment: int, index: int) -> int:
    """A forged grant; what follows it has other numbers then."""
    sequence = segments[segment][index - 1].stream_sequence + 1
    forged = a_forged_grant(segments, sequence)
    rest = renumbered(segments[segment][index:], sequence + 1)
    segments[segment] = [*segments[segment][:index], forged, *rest]
    return sequence


def has_a_grant_without_inputs_at_its_end(segments: Ledger) -> int:
    segments[1] = tail_of(segments[1])
    return put_in(segments, 1, len(segments[1]))


def has_a_grant_without_inputs_before_an_election(segments: Ledger) -> int:
    segments[1] = tail_of(tail_of(segments[1]))
    return put_in(segments, 1, len(segments[1]) - 1)


def has_a_grant_between_a_checkpoint_and_its_end(segments: Ledger) -> int:
    last = segments[1][-1].stream_sequence
    inputs = Inputs(leader_epoch=2, steps=[Step(10_000, 0)])
    segments[1] = segments[1] + as_stored([CheckpointEnds(), inputs], last + 1)
    return put_in(segments, 1, len(segments[1]) - 2)


def closes_a_segment_without_inputs(segments: Ledger) -> int:
    closed = segments[0][-1]
    segments[0][-1] = as_stored([SegmentClosed(next_segment=1)], closed.stream_sequence)[0]
    return closed.stream_sequence


def has_a_batch_that_was_decided_in_no_step(segments: Ledger) -> int:
    """Which says nothing of what it was decided from."""
    segments[1] = tail_of(segments[1])
    epoch = segments[1][-1].stream_sequence
    forged = entry_of(a_forged_grant(segments, epoch + 1))
    segments[1] += as_stored([msgspec.structs.replace(forged, inputs=Inputs(leader_epoch=epoch))], epoch + 1)
    return epoch + 1


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        pytest.param(loses_an_entry, "are missing", id="an entry is missing"),
        pytest.param(loses_the_end_of_a_segment, "ends without a SegmentClosed", id="its end is missing"),
        pytest.param(has_garbage, "cannot be read", id="garbage"),
        pytest.param(is_of_a_newer_build, "later.v9", id="an entry of a newer build"),
        pytest.param(stands_on_anothers_subject, "stands there", id="on the subject of another claim"),
        pytest.param(has_a_wrong_checksum, "its checksum is wrong", id="a checkpoint that was damaged"),
        pytest.param(is_not_what_the_segment_before_gives, "give another world", id="a checkpoint of another world"),
        pytest.param(gives_a_device_to_a_second_claim, "is granted to", id="a device given twice"),
        pytest.param(is_written_by_a_leader_that_was_replaced, "was elected last", id="a leader that was replaced"),
        pytest.param(has_a_grant_without_inputs_at_its_end, "nothing follows", id="a grant without inputs at the end"),
        pytest.param(
            has_a_grant_without_inputs_before_an_election,
            "an election follows",
            id="a grant without inputs before others",
        ),
        pytest.param(
            has_a_grant_between_a_checkpoint_and_its_end, "nor CheckpointEnds", id="a grant that a checkpoint hides"
        ),
        pytest.param(closes_a_segment_without_inputs, "has no end", id="a close that nobody decided"),
        pytest.param(has_a_batch_that_was_decided_in_no_step, "in no step", id="inputs that say nothing"),
    ],
)
def test_names_the_first_bad_entry(machine: Driven, harm: Callable[[Ledger], int], says: str) -> None:
    segments = a_ledger(machine)
    sequence = harm(segments)
    bad = checked(segments).bad
    assert bad is not None
    assert bad.sequence == sequence
    assert says in bad.problem


def test_goes_on_with_the_next_segment_after_a_bad_one(machine: Driven) -> None:
    segments = a_ledger(machine, 3)
    has_garbage(segments)
    check = checked(segments)
    assert [each.bad is None for each in check.segments] == [False, True, True]
    assert not check.segments[1].compared
    assert check.segments[2].compared


def test_a_rebuilt_segment_stands_for_itself(machine: Driven) -> None:
    segments = a_ledger(machine)
    last = segments[0][-1].stream_sequence
    begun = segments[1][:2]  # of what was lost nobody knows the end
    at_end = begun[-1].stream_sequence + 1
    said = LedgerRebuilt(operator="ada", reason="disk", at_ms=7, highest_seen=last, state_sequence=9)
    world = world_to_begin_with(ONE_FABRIC, machine.world, [], 1_000_000, 9)
    found = {
        0: segments[0],
        1: begun + as_stored([SegmentClosed(next_segment=2, is_abandoned=True)], at_end),
        2: tail_of(as_stored(checkpoint(world, "main", 2, said), 1_000_000)),
    }
    check = checked(found)
    assert check.bad is None
    assert check.notes == [
        "segment 1 was abandoned by a rebuild: the next one stands for itself",
        "segment 2 was rebuilt by ada: disk",
    ]
    assert [each.closed for each in check.segments] == [True, True, False]
    with pytest.raises(LedgerLostError, match="abandoned after segment 0"):
        starts({0: [*segments[0][:-1], *as_stored([SegmentClosed(next_segment=1, is_abandoned=True)], last)], 1: []})
    over = SegmentClosed(next_segment=1, is_abandoned=True)
    late = LeaderElected(instance="late", build="", state_sequence=9)  # who had read what was there before
    for more in ([over], [late, over]):
        with pytest.raises(LedgerLostError, match="abandoned after segment 0"):
            starts({0: [*segments[0][:-1], *as_stored([over, *more], last)]})


def test_a_batch_that_was_cut_off_before_a_rebuild_is_said(machine: Driven) -> None:
    """What was lost may have begun in the middle of it: that is no fault of what is left."""
    segments = a_ledger(machine)
    sequence = put_in(segments, 0, len(segments[0]) - 1)
    over = as_stored([SegmentClosed(next_segment=1, is_abandoned=True)], sequence + 1)
    check = checked({0: segments[0][:-1] + over})
    assert check.bad is None
    assert check.notes[0].startswith(f"entries {sequence} to {sequence} are a batch whose end was lost")


def test_what_was_known_at_an_election_is_part_of_it(machine: Driven) -> None:
    segments = a_ledger(machine)
    segments[1] = tail_of(segments[1])
    last = segments[1][-1].stream_sequence
    ahead = as_stored(
        [ClusterAhead(cluster="east", message="more"), ClusterAhead(cluster="west", message="")], last + 1
    )
    assert checked({**segments, 1: segments[1] + ahead}).bad is None
    assert checked({**segments, 1: tail_of(segments[1] + ahead)}).bad is None


def test_a_ledger_of_an_older_build_is_well() -> None:
    """Its batches open with their inputs, so nobody can tell where the last one ends."""
    for found in ({0: previous(0)}, {1: previous(1)}, {1: previous(1)[:-3]}, {1: tail_of(previous(1))}):
        assert checked(found).bad is None


def test_an_older_builds_leader_says_first_what_it_decides_from(machine: Driven) -> None:
    segments = a_ledger(machine)
    last = segments[1][-1].stream_sequence
    segments[1] += as_stored([LeaderElectedBefore(instance="b", build="")], last + 1)
    put_in(segments, 1, len(segments[1]))
    bad = checked(segments).bad
    assert bad is not None
    assert (bad.sequence, "no inputs come before it" in bad.problem) == (last + 2, True)


def test_a_damaged_checkpoint_of_a_rebuilt_segment_gives_no_older_world(machine: Driven) -> None:
    """What was before it has forgotten who holds what: that is why it was rebuilt."""
    a_busy = a_ledger(machine)[0]
    last = a_busy[-1].stream_sequence
    abandoned = [*a_busy[:-1], *as_stored([SegmentClosed(next_segment=1, is_abandoned=True)], last)]
    said = LedgerRebuilt(operator="ada", reason="disk", at_ms=7, highest_seen=last, state_sequence=9)
    world = world_to_begin_with(ONE_FABRIC, machine.world, [], 1_000_000, 9)
    rebuilt = tail_of(as_stored(checkpoint(world, "main", 1, said), 1_000_000))
    assert starts({0: abandoned, 1: rebuilt}).machine.world.claims == {}
    rebuilt[1] = msgspec.structs.replace(rebuilt[1], payload=rebuilt[1].payload.replace(b"disk", b"disc"))
    with pytest.raises(LedgerLostError, match="dragoman ledger rebuild"):
        starts({0: abandoned, 1: rebuilt})
