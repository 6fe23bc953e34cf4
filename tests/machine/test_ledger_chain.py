"""The hash chain: what was changed in a ledger is found, and the first bad entry named; names can be erased."""

from collections.abc import Callable

import msgspec
import pytest

from broker.app.envelopes import Envelopes
from broker.machine.ledger_chain import Unchained
from broker.machine.ledger_check import LedgerCheck
from broker.world import checkpoint
from schemas.wire.bus import OutgoingMessage, StoredMessage
from schemas.wire.chain import CHAIN, CHAIN_BEFORE, ERASED, NAMES, SALT, chain_of, erase, link
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import (
    Allocate,
    AnyEntry,
    CollisionFound,
    LeaderElected,
    LedgerRebuilt,
    SegmentClosed,
)
from tests.machine.driven import Driven
from tests.machine.test_segments import Segment, a_ledger, starts

Ledger = dict[int, Segment]


def stored(entries: list[AnyEntry], segment: int, first: int, before: StoredMessage | None) -> Segment:
    """As a leader of this build appends them."""
    batch = Envelopes("main", segment, "b").batch(entries, first, 1_000, before)
    return [as_stored(message, first + index) for index, message in enumerate(batch)]


def as_stored(message: OutgoingMessage, sequence: int) -> StoredMessage:
    return StoredMessage(message.subject, message.payload, dict(message.headers), sequence, 1_000)


def chained(segments: Ledger) -> Ledger:
    """The same ledger by leaders that keep the chain."""
    found: Ledger = {}
    before: StoredMessage | None = None
    for segment, messages in segments.items():
        entries = [decode_entry(message.payload) for message in messages]
        found[segment] = stored(entries, segment, messages[0].stream_sequence, before)
        before = found[segment][-1]
    return found


def checked(segments: Ledger) -> LedgerCheck:
    check = LedgerCheck("main")
    for segment, messages in segments.items():
        check.begin(segment)
        check.add(messages)
        check.end()
    return check


@pytest.fixture
def ledger(machine: Driven) -> Ledger:
    """Three segments."""
    return chained(a_ledger(machine, 3))


def test_the_chain_goes_through_all_segments(ledger: Ledger) -> None:
    check = checked(ledger)
    assert check.bad is None
    assert (check.notes, check.chain.notes()) == ([], [])
    last = ledger[2][-1]
    assert check.chain.entries == sum(map(len, ledger.values()))
    head = check.chain.head
    assert head is not None
    assert (head.segment, head.ledger_sequence, head.chain) == (2, last.stream_sequence, chain_of(last))
    assert ledger[1][0].headers[CHAIN_BEFORE] == chain_of(ledger[0][-1])


def with_entry(segment: Segment, at: int, entry: StoredMessage) -> Segment:
    return [*segment[:at], entry, *segment[at + 1 :]]


def a_header(name: str, value: str) -> Callable[[StoredMessage], StoredMessage]:
    return lambda message: msgspec.structs.replace(message, headers={**message.headers, name: value})


def a_digit(message: StoredMessage) -> StoredMessage:
    """One byte, and the entry still says something that can be."""
    changed = message.payload.replace(b'"resource_version":"1', b'"resource_version":"2')
    assert changed != message.payload
    return msgspec.structs.replace(message, payload=changed)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(a_digit, id="payload"),
        pytest.param(lambda each: msgspec.structs.replace(each, subject=each.subject + "x"), id="subject"),
        pytest.param(a_header("ce-time", "2026-01-01T00:00:00.000Z"), id="its time"),
        pytest.param(a_header("Nats-Msg-Id", "other.1"), id="its id"),
        pytest.param(a_header("ce-more", "x"), id="a header more"),
        pytest.param(a_header(CHAIN, "0" * 64), id="its chain"),
        pytest.param(a_header(SALT, "0" * 32), id="its salt"),
        pytest.param(a_header(NAMES, "name"), id="which of its texts are names"),
    ],
)
def test_one_change_is_found_where_it_is(ledger: Ledger, change: Callable[[StoredMessage], StoredMessage]) -> None:
    at = next(index for index, each in enumerate(ledger[0]) if isinstance(decode_entry(each.payload), Allocate))
    changed = change(ledger[0][at])
    bad = checked({**ledger, 0: with_entry(ledger[0], at, changed)}).bad
    assert bad is not None
    assert (bad.segment, bad.sequence) == (0, changed.stream_sequence)


def test_every_byte_of_every_entry_counts(ledger: Ledger) -> None:
    for at, message in enumerate(ledger[0]):
        for place in range(0, len(message.payload), 37):
            payload = bytearray(message.payload)
            payload[place] ^= 1
            changed = msgspec.structs.replace(message, payload=bytes(payload))
            assert link(chain_of(ledger[0][at - 1]) if at else "", changed) != chain_of(message)


def test_an_entry_that_was_written_anew_is_found_at_the_one_after_it(ledger: Ledger) -> None:
    """Who can write the ledger can make a header that fits its own entry; it is the next one that does not."""
    at = next(index for index, each in enumerate(ledger[0]) if isinstance(decode_entry(each.payload), Allocate))
    changed = a_digit(ledger[0][at])
    fits = a_header(CHAIN, link(chain_of(ledger[0][at - 1]), changed))(changed)
    bad = checked({**ledger, 0: with_entry(ledger[0], at, fits)}).bad
    assert bad is not None
    assert bad.sequence == changed.stream_sequence + 1
    assert "the entry before it was changed" in bad.problem


def renumbered(segment: Segment) -> Segment:
    first = segment[0].stream_sequence
    return [msgspec.structs.replace(each, stream_sequence=first + index) for index, each in enumerate(segment)]


def test_entries_that_are_missing_or_in_another_order_are_found(ledger: Ledger) -> None:
    segment = ledger[0]
    left_out = renumbered(segment[:5] + segment[6:])
    bad = checked({0: left_out}).bad
    assert bad is not None
    assert bad.sequence == left_out[5].stream_sequence
    moved = renumbered([*segment[:5], segment[6], segment[5], *segment[7:]])
    bad = checked({0: moved}).bad
    assert bad is not None
    assert bad.sequence == moved[5].stream_sequence


def test_a_segment_alone_is_checked_from_its_first_entry_on(ledger: Ledger) -> None:
    assert checked({2: ledger[2]}).bad is None
    first = ledger[2][0]
    changed = msgspec.structs.replace(first, payload=first.payload.replace(b'"covers":', b'"covers":1'))
    bad = checked({2: with_entry(ledger[2], 0, changed)}).bad
    assert bad is not None
    assert bad.sequence == first.stream_sequence


def test_a_segment_of_another_ledger_does_not_go_on_from_this_one(ledger: Ledger) -> None:
    entries = [decode_entry(each.payload) for each in ledger[1]]
    other = {**ledger, 1: stored(entries, 1, ledger[1][0].stream_sequence, None)}
    bad = checked(other).bad
    assert bad is not None
    assert (bad.segment, bad.sequence) == (1, ledger[1][0].stream_sequence)
    assert "it goes on from nothing" in bad.problem


def test_another_leader_goes_on_with_the_chain(ledger: Ledger) -> None:
    last = ledger[2][-1]
    elected: AnyEntry = LeaderElected(instance="c", build="2")
    more = stored([elected], 2, last.stream_sequence + 1, last)
    assert checked({**ledger, 2: ledger[2] + more}).bad is None


def unchained(segment: Segment) -> Segment:
    """By a build that knew no chain."""
    ours = (CHAIN, CHAIN_BEFORE, NAMES, SALT)
    return [
        msgspec.structs.replace(each, headers={name: has for name, has in each.headers.items() if name not in ours})
        for each in segment
    ]


def test_a_ledger_of_an_older_build_is_said_not_to_be_chained(ledger: Ledger) -> None:
    old = unchained(ledger[0])
    first = ledger[1][0].stream_sequence
    entries = [decode_entry(each.payload) for each in ledger[1]]
    check = checked({0: old, 1: stored(entries, 1, first, old[-1])})
    assert check.bad is None
    assert check.chain.unchained == [Unchained(1, first - 1)]
    assert check.chain.notes() == [
        f"entries 1 to {first - 1} are not chained: a build before the hash chain wrote them"
    ]


def test_an_upgrade_that_was_taken_back_and_made_again(ledger: Ledger) -> None:
    last = ledger[2][-1]
    at = last.stream_sequence
    old = unchained(stored([LeaderElected(instance="c", build="0")], 2, at + 1, last))
    new = stored([LeaderElected(instance="d", build="1")], 2, at + 2, old[-1])
    check = checked({**ledger, 2: ledger[2] + old + new})
    assert check.bad is None
    assert check.chain.unchained == [Unchained(at + 1, at + 1)]


def test_headers_cannot_be_taken_away(ledger: Ledger) -> None:
    at = next(index for index, each in enumerate(ledger[0]) if isinstance(decode_entry(each.payload), Allocate))
    bad = checked({**ledger, 0: ledger[0][:at] + unchained(ledger[0][at:])}).bad
    assert bad is not None
    assert (bad.sequence, bad.problem) == (
        ledger[0][at].stream_sequence,
        "it has no Dra-Chain, and the entry before it has one",
    )


def test_a_rebuild_goes_on_from_the_last_entry_that_is_left(ledger: Ledger) -> None:
    left = ledger[2][:-1]
    closed: AnyEntry = SegmentClosed(next_segment=3, is_abandoned=True)
    late: AnyEntry = LeaderElected(instance="late", build="")
    end = left[-1].stream_sequence
    over = stored([closed], 2, end + 1, left[-1])
    over += stored([late], 2, end + 2, None)  # by a broker that had not read that it is over
    over += stored([closed], 2, end + 3, over[-1])
    world = starts({0: ledger[0]}).machine.world
    said = LedgerRebuilt(operator="ada", reason="disk", at_ms=0, highest_seen=end, state_sequence=0)
    world.ledger_last = 2_000_000
    again = stored(checkpoint.checkpoint(world, "main", 3, said), 3, 2_000_001, over[-1])
    check = checked({**ledger, 2: left + over, 3: again})
    assert check.bad is None
    assert check.chain.head is not None
    assert check.chain.head.chain == chain_of(again[-1])
    says = f"entry {end + 2}, which counts for nothing, does not go on from the one before it"
    assert [note.partition(":")[0] for note in check.chain.notes()] == [says]
    assert checked({3: again}).bad is None
    bad = checked({**ledger, 2: left + over[:1], 3: again}).bad
    assert bad is not None
    assert bad.segment == 3


def test_a_chain_through_what_counts_for_nothing_is_whole_too(ledger: Ledger) -> None:
    """Else who writes all anew that is before a rebuild could put an entry there from which the rest goes on."""
    end = ledger[2][-1].stream_sequence
    closed: AnyEntry = SegmentClosed(next_segment=3, is_abandoned=True)
    over = stored([closed, LeaderElected(instance="late", build=""), closed], 2, end + 1, ledger[2][-1])
    assert checked({**ledger, 2: ledger[2] + over}).chain.notes() == []
    other = msgspec.structs.replace(over[-1], payload=b"junk")
    notes = checked({**ledger, 2: [*ledger[2], *over[:-1], other]}).chain.notes()
    assert [note.partition(",")[0] for note in notes] == [f"entry {end + 3}"]
    assert checked({2: unchained(ledger[2] + over)}).chain.notes()[1:] == []


# --- names


def test_names_are_erased_and_the_chain_stays(ledger: Ledger) -> None:
    erased = {segment: [erase(message) for message in messages] for segment, messages in ledger.items()}
    before = ""
    for messages in erased.values():
        for message in messages:
            assert link(before, message) == chain_of(message)
            before = chain_of(message)
    texts = b"".join(message.payload for message in erased[0])
    as_they_were = b"".join(message.payload for message in ledger[0])
    for name in (b'"served"', b'"default"', b'"worker"', b"east/default/"):
        assert name in as_they_were
        assert name not in texts


def test_what_was_erased_cannot_be_put_back_otherwise(ledger: Ledger) -> None:
    at = next(index for index, each in enumerate(ledger[0]) if isinstance(decode_entry(each.payload), Allocate))
    before, erased = chain_of(ledger[0][at - 1]), erase(ledger[0][at])
    assert link(before, erased) == chain_of(erased)
    forged = msgspec.structs.replace(erased, payload=erased.payload.replace(b'"name":"~"', b'"name":"eve"'))
    assert link(before, forged) != chain_of(erased)
    other = a_header(ERASED, "0" * 64)(erased)
    assert link(before, other) != chain_of(erased)
    salted = a_header(SALT, "0" * 32)(erased)
    assert link(before, salted) != chain_of(erased)


def test_every_kind_of_text_is_found() -> None:
    awkward = ['east/ml/"quoted"\\', "brackets ] [ ,", ""]
    entry: AnyEntry = CollisionFound(cluster="east", uid="u", namespace='n"s\\', name="näme", holds=[], held_by=awkward)
    [message] = stored([entry], 0, 1, None)
    erased = erase(message)
    assert decode_entry(erased.payload) == CollisionFound(
        cluster="east", uid="u", namespace="~", name="~", holds=[], held_by=["~"]
    )
    assert link("", erased) == link("", message) == chain_of(message)
    assert len(encode(entry)) == len(message.payload)


def test_the_same_name_has_another_digest_in_another_entry(ledger: Ledger) -> None:
    """So that nobody who has erased entries can tell that two of them are about one name."""
    found = [erase(message).headers.get(ERASED) for message in ledger[0]]
    digests = [digest for digest in found if digest]
    assert len(digests) == len(set(digests)) > 2
