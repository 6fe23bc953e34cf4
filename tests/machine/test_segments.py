"""A checkpoint is the world, exactly; and which checkpoint a start believes."""

from collections.abc import Iterable
from functools import cache
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.errors import InvariantError, LedgerLostError
from broker.machine import Machine
from broker.machine.segments import LedgerStart, SegmentFold
from broker.world.check import check
from broker.world.checkpoint import PART_BYTES, checkpoint
from broker.world.keys import ClaimKey, ClaimUid
from broker.world.world import World
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import (
    EVICTION_KEY,
    Allocate,
    AnyEntry,
    CheckpointClaims,
    CheckpointEnds,
    ClaimKept,
    ClusterCordoned,
    ClusterEvicted,
    ClusterReadmitted,
    Inputs,
    LeaderElected,
    OutcomeRecorded,
    Release,
    SegmentClosed,
    Step,
    entry_place,
)
from tests.builders import a_claim
from tests.machine.driven import (
    EAST,
    IDENTITY,
    ONE_FABRIC,
    WEST,
    Agent,
    Driven,
    an_immediate_claim,
    as_stored,
    everyone_heard,
    fabric_device,
    facts,
    granted,
    settled,
)
from tests.machine.test_recovery import a_busy_day

Segment = list[StoredMessage]
Orders = ClusterCordoned | ClusterEvicted | ClusterReadmitted


def folded(ledger: Iterable[StoredMessage], world: World | None = None, segment: int = 0) -> World:
    """What one segment gives."""
    world = world or World(ONE_FABRIC)
    whole = SegmentFold(world, segment)
    whole.add(ledger)
    assert whole.finish()
    return world


def closed(ledger: Segment, segment: int = 0) -> Segment:
    """The segment, with its leader's last batch."""
    world = starts({segment: ledger}).machine.world
    inputs = Inputs(leader_epoch=2, steps=[Step(world.position, 0)])
    first: list[AnyEntry] = [CheckpointEnds()] if world.ledger_last == world.checkpoint_last else []
    batch = [*first, SegmentClosed(next_segment=segment + 1, inputs=inputs)]
    return ledger + as_stored(batch, world.ledger_last + 1)


def opened(before: World, segment: int) -> Segment:
    """A segment with nothing but the checkpoint of the world that the one before has left."""
    return as_stored(checkpoint(before, "main", segment), before.ledger_last + 1)


def starts(segments: dict[int, Segment]) -> LedgerStart:
    """What a start makes of these segments."""
    index = DeviceIndex(default_engine())
    start = LedgerStart(sorted(segments), lambda: Machine(World(ONE_FABRIC), index, IDENTITY))
    while start.wanted is not None:
        for message in segments[start.wanted]:
            start.add([message])
        start.end()
    return start


def a_ledger(machine: Driven, segments: int = 2) -> dict[int, Segment]:
    """A busy day in the first of some segments, each closed but the last, which are otherwise empty."""
    a_busy_day(machine)
    found = {0: closed(machine.ledger)}
    for segment in range(1, segments):
        world = starts(found).machine.world
        found[segment] = opened(world, segment)
        if segment < segments - 1:
            found[segment] = closed(found[segment], segment)
    return found


def tail_of(segment: Segment) -> Segment:
    """A segment goes on: with an election."""
    return segment + as_stored([LeaderElected(instance="b", build="")], segment[-1].stream_sequence + 1)


# --- the world and back


def test_a_checkpoint_anywhere_and_the_entries_after_it_give_the_same_world(machine: Driven) -> None:
    a_busy_day(machine)
    everything = facts(folded(machine.ledger))
    for end in machine.recorded(Inputs):
        before = folded(machine.ledger[:end])
        # In a real segment the numbers go on; here the tail keeps its own, which its entries name.
        opened = [*checkpoint(before, "main", 1), CheckpointEnds()]
        segment = as_stored(opened, 0) + machine.ledger[end:]
        world = folded(segment, segment=1)
        check(world)
        assert facts(world) == everything


def test_a_checkpoint_of_a_checkpoint_has_the_same_bytes(machine: Driven) -> None:
    a_busy_day(machine)
    once = checkpoint(machine.world, "main", 1)
    world = folded(as_stored(once, machine.world.ledger_last + 1), segment=1)
    again = checkpoint(world, "main", 1)
    assert [encode(entry) for entry in again[1:]] == [encode(entry) for entry in once[1:]]


def test_grants_keep_the_order_in_which_they_were_made(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=3)
    for name in ("zebra", "ape", "lion"):
        granted(machine, west if name == "ape" else east, an_immediate_claim(name))
    stated = [entry for entry in checkpoint(machine.world, "main", 1) if isinstance(entry, Allocate)]
    assert [entry.name for entry in stated] == ["zebra", "ape", "lion"]
    assert [entry.ledger_sequence for entry in stated] == sorted(machine.recorded(Allocate))


def test_an_unsettled_decision_is_the_last_message_of_its_claims_subject(machine: Driven) -> None:
    a_busy_day(machine)
    entries = checkpoint(machine.world, "main", 1)
    found = set()
    for claim in machine.world.claims.values():
        if claim.unsettled is not None:
            stated = [each for each in entries if isinstance(each, Allocate | Release) and each.uid == claim.key.uid]
            assert stated[-1].ledger_sequence == claim.unsettled.ledger_sequence
            found.add(tuple(type(each).__name__ for each in stated))
    assert found == {("Allocate",), ("Allocate", "Release")}


def test_what_operators_ordered_is_stated_again_for_agents(machine: Driven) -> None:
    everyone_heard(machine)
    machine.command("cordon", EAST)
    machine.command("evict", WEST, fenced=True)
    evicted = [entry for entry in checkpoint(machine.world, "main", 1) if isinstance(entry, Orders)]
    machine.command("readmit", WEST)
    readmitted = [entry for entry in checkpoint(machine.world, "main", 1) if isinstance(entry, Orders)]
    everything = {message.stream_sequence: entry_of(message) for message in machine.ledger}
    recorded = {sequence: entry for sequence, entry in everything.items() if isinstance(entry, Orders)}
    said = {
        entry_place(entry): msgspec.structs.replace(entry, ledger_sequence=sequence)
        for sequence, entry in sorted(recorded.items())
    }
    assert readmitted == [said[EAST, "cluster", "cordon"], said[WEST, "cluster", EVICTION_KEY]]
    [(sequence, eviction)] = machine.recorded(ClusterEvicted).items()
    # Of a cluster that is cut off nothing counts, up to no position.
    assert evicted[1] == msgspec.structs.replace(eviction, ledger_sequence=sequence, position=0)


def test_a_large_world_takes_several_entries_of_bounded_size(machine: Driven) -> None:
    """Also one claim with more to keep than fits into one message."""
    world = World(machine.federation)
    for number in range(2_000):
        claim = world.claim(ClaimKey(EAST, ClaimUid(f"u{number}")))
        claim.namespace, claim.name, claim.last_decision = "default", f"c{number}", number + 1
    greedy = world.claim(ClaimKey(EAST, ClaimUid("u7")))
    greedy.avoid = {fabric_device(f"gpu-{number}") for number in range(20_000)}
    greedy.spent = {frozenset(f"{number}-{pod}" for pod in range(2_000)) for number in range(40)}
    entries = checkpoint(world, "main", 1)
    sizes = [len(encode(entry)) for entry in entries]
    assert len(sizes) > 10
    assert max(sizes) < 2 * PART_BYTES
    assert facts(folded(as_stored(entries, 1), segment=1)) == facts(world)


def test_an_empty_world_has_a_checkpoint_too() -> None:
    world = folded(as_stored(checkpoint(World(ONE_FABRIC), "main", 1), 1), segment=1)
    assert facts(world) == facts(World(ONE_FABRIC))


# --- which checkpoint a start believes


def test_a_start_reads_the_last_segment_alone(machine: Driven) -> None:
    segments = a_ledger(machine, 3)
    start = starts({2: tail_of(segments[2])})
    assert facts(start.machine.world) == facts(folded(segments[0]))
    assert (start.machine.world.segment, start.machine.world.is_closed) == (2, False)
    assert start.machine.world.checkpoint_last == segments[2][-1].stream_sequence
    assert start.machine.world.ledger_last == segments[2][-1].stream_sequence + 1


@pytest.mark.parametrize("entries", [0, 1, 3], ids=["nothing", "its first entry", "a part of its checkpoint"])
def test_a_segment_without_a_whole_checkpoint_is_not_open_yet(machine: Driven, entries: int) -> None:
    segments = a_ledger(machine)
    start = starts({0: segments[0], 1: segments[1][:entries]})
    world = start.machine.world
    assert facts(world) == facts(folded(segments[0]))
    assert (world.segment, world.is_closed, start.damaged) == (0, True, [])
    assert start.last_sequence == len(segments[0]) + entries


def test_whoever_opens_a_segment_begins_anew(machine: Driven) -> None:
    """What another leader has left of a checkpoint is passed over."""
    segments = a_ledger(machine)
    begun = segments[1][:3]
    again = as_stored(map(entry_of, segments[1]), begun[-1].stream_sequence + 1)
    start = starts({0: segments[0], 1: begun + again})
    assert start.machine.world.segment == 1
    assert facts(start.machine.world) == facts(folded(segments[0]))


def entry_of(message: StoredMessage) -> AnyEntry:
    return decode_entry(message.payload)


def damaged(segment: Segment, index: int, payload: bytes) -> Segment:
    """The segment with other bytes in one entry."""
    return [*segment[:index], msgspec.structs.replace(segment[index], payload=payload), *segment[index + 1 :]]


def without_a_grant(segment: Segment) -> Segment:
    """The same checkpoint, but that one claim has no grant: a device would look free."""
    for index, message in enumerate(segment):
        entry = entry_of(message)
        if isinstance(entry, CheckpointClaims):
            at = next(number for number, claim in enumerate(entry.claims) if claim.grants and not claim.unsettled)
            found: list[ClaimKept] = [*entry.claims]
            found[at] = msgspec.structs.replace(found[at], grants=[])
            return damaged(segment, index, encode(msgspec.structs.replace(entry, claims=found)))
    raise AssertionError("no claim has a grant")


@pytest.mark.parametrize("with_tail", [True, False], ids=["with a tail", "alone"])
def test_a_checkpoint_with_a_wrong_checksum_is_not_believed(machine: Driven, with_tail: bool) -> None:
    segments = a_ledger(machine)
    wrong = without_a_grant(tail_of(segments[1]) if with_tail else segments[1])
    start = starts({0: segments[0], 1: wrong})
    world = start.machine.world
    assert ["its checksum is wrong" in str(error) for error in start.damaged] == [True]
    assert facts(world) == facts(folded(segments[0]))
    # Who began to lead after it has believed it whole; else it is opened anew.
    assert (world.segment, world.is_closed) == ((1, False) if with_tail else (0, True))
    assert start.last_sequence == wrong[-1].stream_sequence


def test_two_damaged_checkpoints_in_a_row_are_passed_over(machine: Driven) -> None:
    segments = a_ledger(machine, 3)
    segments[1] = without_a_grant(segments[1])
    segments[2] = without_a_grant(tail_of(segments[2]))
    start = starts(segments)
    assert len(start.damaged) == 2
    assert facts(start.machine.world) == facts(folded(segments[0]))
    assert start.machine.world.segment == 2


@given(st.randoms(use_true_random=False))
def test_no_damage_gives_another_world(random: Random) -> None:
    """Bytes changed, entries lost or told twice, anywhere in the checkpoint of a segment that goes on."""
    segments = _some_ledger()
    start = starts({0: segments[0], 1: _harmed(tail_of(segments[1]), random)})
    assert facts(start.machine.world) == facts(folded(segments[0]))
    assert start.machine.world.segment == 1


@cache
def _some_ledger() -> dict[int, Segment]:
    return a_ledger(Driven(ONE_FABRIC, default_engine()))


def _harmed(segment: Segment, random: Random) -> Segment:
    index = random.randrange(len(segment) - 1)
    payload = segment[index].payload
    match random.randrange(4):
        case 0:
            return segment[:index] + segment[index + 1 :]
        case 1:
            return segment[:index] + segment[index:][:1] + segment[index:]
        case 2:
            return damaged(segment, index, payload[: random.randrange(len(payload))])
        case _:
            at = random.randrange(len(payload))
            return damaged(segment, index, payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :])


def test_a_ledger_that_nobody_has_begun_gives_an_empty_world() -> None:
    start = starts({0: []})
    assert (start.machine.world.ledger_last, start.machine.world.is_closed) == (0, False)


def test_a_closed_segment_without_a_next_one_waits_to_be_gone_on_with(machine: Driven) -> None:
    segments = a_ledger(machine)
    world = starts({0: segments[0]}).machine.world
    assert (world.segment, world.is_closed) == (0, True)
    with pytest.raises(InvariantError, match="follows the SegmentClosed"):
        folded(tail_of(segments[0]))


def test_what_cannot_be_started_from_says_what_to_do(machine: Driven) -> None:
    segments = a_ledger(machine)
    lost = {
        "before it was never closed": {0: machine.ledger, 1: []},
        "no whole checkpoint, and there is no segment 0": {1: segments[1][:2]},
        "its checksum is wrong, and there is no segment 0": {1: without_a_grant(tail_of(segments[1]))},
        "there is no segment 1": {0: segments[0], 2: []},
    }
    for says, found in lost.items():
        with pytest.raises(LedgerLostError, match=f"{says}.*dragoman ledger rebuild"):
            starts(found)


# --- a ledger that goes on (what is true at the end of every test holds for its last segment, too)


def test_goes_on_in_the_next_segment_with_nothing_lost(machine: Driven) -> None:
    a_busy_day(machine)
    machine.rotate()
    east, _ = Agent(machine, EAST), Agent(machine, WEST)
    claim = an_immediate_claim("next")
    east.tells(claim)
    machine.run()
    machine.rotate()
    machine.rotate()
    assert machine.world.segment == 3
    assert machine.world.ledger_last == machine.world.checkpoint_last == len(machine.ledger)


def test_what_was_seen_since_the_last_batch_is_recorded_when_a_segment_is_closed(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    east.tells(a_claim())
    machine.run()
    east.tells(a_claim())  # nothing new follows from it
    machine.run()
    machine.rotate()
    assert machine.only_the_ledger().world.position == len(machine.log)


def test_a_decision_that_waits_for_its_outcome_is_settled_in_a_later_segment(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    sequence, entry = machine.last(Allocate)
    machine.rotate()
    east.tells(claim, entry.allocation, decision=settled(sequence))
    [outcome] = machine.run()
    assert isinstance(outcome, OutcomeRecorded)
    assert outcome.decision_sequence == sequence
