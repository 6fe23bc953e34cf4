"""A start: the world from the ledger, and what clusters said up to where it stands; or without that, if it expired."""

from collections.abc import Iterable

import msgspec
import pytest

from broker.errors import InvariantError, UnreadableEntryError
from broker.machine import Machine, recovery
from broker.machine.syncs import on_beat
from broker.world.check import check
from broker.world.world import World
from schemas.wire.bus import StoredMessage
from schemas.wire.calls import Ask, Beat
from schemas.wire.codec import encode
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    GrantEnded,
    Inputs,
    OutcomeRecorded,
    Release,
    SegmentClosed,
    SegmentOpened,
    inputs_of,
)
from schemas.wire.state import ClaimState, ObjectName, Rejected
from schemas.wire.subjects import state_subject
from tests.believing import believe_again, fold_ledger
from tests.builders import a_claim, a_request, a_slice, some_devices
from tests.machine.driven import (
    EAST,
    IDENTITY,
    WEST,
    Driven,
    a_brokered_class,
    a_pod,
    an_allocation,
    an_immediate_claim,
    everyone_heard,
    facts,
    granted,
    key_of,
    raw,
    settled,
)


def run(machine: Machine, now_ms: int) -> list[AnyEntry]:
    """Step until nothing is left to do."""
    entries: list[AnyEntry] = []
    while machine.has_work(now_ms):
        entries += machine.step(now_ms).entries
        check(machine.world)
    return entries


def a_busy_day(machine: Driven) -> None:
    """A bit of everything, so that the fixture compares it all: replayed, and started from its ledger."""
    east, west = everyone_heard(machine, devices=4)
    failing, served, rejected, waiting = (a_claim(name=name) for name in ("failing", "served", "rejected", "waiting"))
    pod = a_pod()
    east.tells(failing, None, pod)
    machine.run()
    east.tells(failing, None, pod, decision=settled(machine.last(Allocate)[0], "Failed", "disk full"))
    sequence = granted(machine, east, served, pod)
    east.tells(served, None, pod, decision=settled(sequence))
    sequence = granted(machine, west, rejected, pod)
    west.tells(
        rejected,
        machine.last(Allocate)[1].allocation,
        pod,
        decision=settled(sequence),
        rejected=Rejected(sequence, "Unschedulable"),
    )
    west.tells(a_claim(name="found"), an_allocation("gpu-3"))
    east.tells(a_claim(name="intruder"), an_allocation("gpu-3"))
    east.tells(waiting, None, pod)
    east.tells(an_immediate_claim("too-big", a_request(count=9)))
    machine.run()
    west.starts()
    west.syncs()
    machine.run(after_ms=500)


def test_a_start_gives_the_world_that_was_left(machine: Driven) -> None:
    a_busy_day(machine)
    assert facts(machine.restart().world) == facts(machine.world)


def test_a_start_in_the_middle_of_each_batch_goes_on_to_the_same_ledger(machine: Driven) -> None:
    a_busy_day(machine)
    begins = 2  # how many entries there are before the batch: the election
    for ends, inputs in machine.recorded(Inputs).items():
        again = Machine(World(machine.federation), machine.index, IDENTITY)
        fold_ledger(again, machine.ledger[:begins])
        position = again.world.position
        believe_again(again, machine.log[:position])
        recovery.resume(again)
        made: list[bytes] = []
        for step in inputs.steps:
            again.feed(machine.log[position : step.position])
            position = step.position
            made += [encode(entry) for entry in again.step(step.now_ms).entries]
        assert made == [message.payload for message in machine.ledger[begins:ends]]
        begins = ends


def test_a_start_leaves_what_waits_for_an_outcome_alone(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    again = machine.restart()
    assert run(again, machine.now_ms) == []
    assert again.world.claims[key_of(EAST, claim)].unsettled is not None


def test_a_claim_without_messages_any_more_keeps_its_grant_until_a_sync(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    granted(machine, east, claim)
    again = machine.only_the_ledger()
    about = state_subject(EAST, "claim", claim.metadata.uid)
    believe_again(again, [message for message in machine.log if message.subject != about])
    recovery.resume(again)
    assert run(again, machine.now_ms) == []
    assert len(again.world.claims[key_of(EAST, claim)].grants) == 1
    cluster = again.world.cluster(EAST)
    agrees = Beat(agent_epoch=east.epoch, digest=format(cluster.digest, "x"), last_sequence=cluster.last_sequence)
    assert on_beat(again.core, EAST, agrees) == Ask(), "its message may have said that it is gone"
    east.living.discard(ObjectName("claim", claim.metadata.uid))
    position = len(machine.log)
    east.syncs()
    again.feed(machine.log[position:])
    assert [type(entry) for entry in run(again, machine.now_ms)] == [GrantEnded, Inputs]


def test_a_claim_without_messages_any_more_keeps_its_place_in_the_queue(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    granted(machine, west, an_immediate_claim("holder"))
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    again = machine.only_the_ledger()
    about = state_subject(EAST, "claim", claim.metadata.uid)
    believe_again(again, [message for message in machine.log if message.subject != about])
    recovery.resume(again)
    before = machine.claim(EAST, claim).waiting
    assert before is not None
    position = len(machine.log)
    east.tells(claim)
    again.feed(machine.log[position:])
    run(again, machine.now_ms)
    after = again.world.claims[key_of(EAST, claim)].waiting
    assert after is not None
    assert (after.order, after.since_ms) == (before.order, before.since_ms)


# --- which messages were believed


def believed(machine: Driven, messages: Iterable[StoredMessage]) -> set[str]:
    """Names of the claims that a start believes."""
    again = machine.only_the_ledger()
    believe_again(again, messages)
    return {claim.name for claim in again.world.claims.values() if claim.state_sequence}


def test_what_an_older_run_said_before_a_newer_one_began_was_believed(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    older = east.epoch
    east.tells(a_claim(name="early"))
    east.starts()
    east.tells(a_claim(name="late"), epoch=older)
    east.tells(a_claim(name="new"))
    machine.run()
    assert believed(machine, machine.log) == {claim.name for claim in machine.world.claims.values()} == {"early", "new"}


def test_between_two_runs_that_are_over_one_may_have_spoken_out_of_turn(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    first = east.epoch
    east.starts()
    east.tells(a_claim(name="out-of-turn"), epoch=first)
    east.starts()
    machine.run()
    assert believed(machine, machine.log) == set()


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(b"{}", id="no type and no epoch"),
        pytest.param(b'{"type":"dev.dragoman.state.claim.v9"}', id="a type of tomorrow"),
        pytest.param(b'{"type":"dev.dragoman.state.claim.v1","agent_epoch":9,"consumers":3}', id="half a message"),
    ],
)
def test_what_could_not_be_read_ends_no_run(machine: Driven, payload: bytes) -> None:
    east, _ = everyone_heard(machine)
    east.tells(an_immediate_claim("before"))
    for _ in range(3):
        machine.put(state_subject(EAST, "claim", "odd"), payload)
    machine.put("dra.v1.state.east.agent.run", b"{}")
    east.tells(an_immediate_claim("after"))
    machine.run()
    assert believed(machine, machine.log) == {"before", "after", ""}
    assert machine.world.cluster(EAST).epoch == east.epoch


@pytest.mark.parametrize(
    ("body", "name"),
    [
        pytest.param({}, "", id="nothing"),
        pytest.param({"metadata": 7}, "", id="what is no metadata"),
        pytest.param({"metadata": {"name": "third"}}, "third", id="another name"),
    ],
)
def test_an_unreadable_claim_is_called_as_its_last_message_says(
    machine: Driven, body: dict[str, object], name: str
) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim("first")
    sequence = granted(machine, east, claim)
    metadata = msgspec.structs.replace(claim.metadata, name="second")
    allocation = machine.last(Allocate)[1].allocation
    east.tells(msgspec.structs.replace(claim, metadata=metadata), allocation, decision=settled(sequence))
    message = ClaimState(agent_epoch=east.epoch, claim=raw(body), resource_version="9", error="made by hand")
    machine.put(state_subject(EAST, "claim", claim.metadata.uid), encode(message))
    machine.run()
    assert machine.claim(EAST, claim).name == name


def test_up_to_where_an_epoch_was_named_that_no_run_began_with_a_lower_one_was_believed(machine: Driven) -> None:
    """An agent can say so, or the message with which its run began was lost before anybody read it."""
    east, _ = everyone_heard(machine)
    made_up = len(machine.log) + 1
    for name in ("a", "b"):
        east.tells(an_immediate_claim(name))
    machine.run()
    named_at = east.tells(an_immediate_claim("c"), epoch=made_up)
    east.tells(an_immediate_claim("late"))
    machine.run()
    assert machine.last(Inputs)[1].epochs_from == {EAST: named_at}
    assert [letter.reason for letter in machine.letters] == ["LowerEpoch"]
    assert believed(machine, machine.log) == {"a", "b", "c"}
    machine.rotate()
    assert machine.world.cluster(EAST).epoch_from == named_at
    east.starts()
    machine.run()
    assert machine.world.cluster(EAST).epoch_from == 0


@pytest.mark.parametrize("is_deleted", [True, False])
def test_what_cannot_be_read_after_a_claim_was_gone_waits_after_a_start_too(machine: Driven, is_deleted: bool) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim("claim", a_request(count=9))
    east.tells(claim)
    machine.run()
    if is_deleted:
        east.deletes(claim)
    else:
        east.living.discard(ObjectName("claim", claim.metadata.uid))
        east.syncs()
    machine.run()
    machine.put(state_subject(EAST, "claim", claim.metadata.uid), b"{")
    machine.run()
    waiting = machine.claim(EAST, claim).waiting
    assert waiting is not None
    assert waiting.reason == "Unreadable"
    machine.put(state_subject(EAST, "claim", claim.metadata.uid), b"[")
    machine.run()


# --- the position has expired


def after_expiry(machine: Driven, first_kept: int) -> Machine:
    """A start where DRA_STATE begins at `first_kept`: of each subject there is only the last message."""
    again = machine.only_the_ledger()
    last = {message.subject: message for message in machine.log if message.stream_sequence >= first_kept}
    kept = sorted(last.values(), key=lambda each: each.stream_sequence)
    recovery.position_expired(again, kept, len(machine.log))
    recovery.resume(again)
    return again


def test_a_lost_position_is_told_and_every_cluster_must_sync_again(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=2)
    holder = an_immediate_claim("holder")
    granted(machine, east, holder)
    kept = len(machine.ledger)
    # What happens now nobody recorded, and the log lost where it began.
    east.starts()
    first_kept = east.publishes(a_slice(some_devices(2)))
    for agent in (east, west):
        agent.publishes(a_brokered_class())
    west.tells(an_immediate_claim("waiter"))
    assert len(machine.ledger) == kept
    again = after_expiry(machine, first_kept)
    effects = again.step(machine.now_ms)
    inputs = inputs_of(effects.entries[-1])
    assert inputs
    assert inputs.position_expired
    assert inputs.epochs == {EAST: east.epoch} or inputs.epochs == {}
    assert inputs.steps[-1].position == len(machine.log) == again.world.position
    assert sorted(effects.asks) == [(EAST, Ask()), (WEST, Ask())]
    assert [type(entry) for entry in effects.entries].count(Allocate) == 0
    assert len(again.world.claims[key_of(EAST, holder)].grants) == 1
    # When both have synced, the claim that is not there any more ends, and the other gets its turn.
    start = len(machine.log)
    east.living.discard(ObjectName("claim", holder.metadata.uid))
    east.syncs()
    west.syncs()
    again.feed(machine.log[start:])
    entries = run(again, machine.now_ms)
    assert [type(entry) for entry in entries] == [GrantEnded, Allocate, Inputs]


def test_epochs_come_first_where_the_position_was_lost(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    first, before = len(machine.log) + 1, east.epoch
    east.tells(a_claim(name="early"))
    east.starts()
    east.tells(a_claim(name="late"), epoch=before)
    again = after_expiry(machine, first)
    inputs = inputs_of(run(again, machine.now_ms)[-1])
    assert inputs
    assert inputs.epochs == {EAST: east.epoch}
    assert {claim.name for claim in again.world.claims.values()} == {"early"}


def test_a_crash_before_all_of_it_was_applied_begins_again_at_the_old_position(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    claims = [a_claim(name=f"c{number}") for number in range(1_200)]
    for number, claim in enumerate(claims):
        west.tells(claim, an_allocation(f"d{number}", pool="local"))
    machine.run()
    before = machine.world.position
    for claim in claims:
        west.tells(claim)
    again = after_expiry(machine, before + 2)
    first, second = (inputs_of(again.step(machine.now_ms).entries[-1]) for _ in range(2))
    assert first
    assert second
    assert [step.position for step in first.steps + second.steps] == [before, len(machine.log)]


# --- a ledger that cannot be


def test_a_ledger_entry_of_a_newer_broker_stops_the_start(machine: Driven) -> None:
    everyone_heard(machine)
    for before in (1, len(machine.ledger)):
        strange = StoredMessage("x", b'{"type":"dev.dragoman.ledger.tomorrow.v1"}', {}, before + 1, 0)
        again = Machine(World(machine.federation), machine.index, IDENTITY)
        with pytest.raises(UnreadableEntryError, match=rf"entry {before + 1} .*tomorrow"):
            fold_ledger(again, [*machine.ledger[:before], strange])


def an_allocate(**changed: object) -> Allocate:
    entry = Allocate(
        cluster="east",
        uid="u",
        namespace="default",
        name="train",
        resource_version="1",
        state_sequence=1,
        allocation={},
        holds=[],
        scopes=[],
    )
    return msgspec.structs.replace(entry, **changed)


def a_release() -> Release:
    return Release(cluster="east", uid="u", namespace="", name="", grant_sequence=1, holds=[], reason="")


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        pytest.param([an_allocate(), an_allocate()], "which still has", id="two grants for one claim"),
        pytest.param(
            [GrantEnded(cluster="east", uid="u", grant_sequence=7, cause="ClaimDeleted")],
            "is not there",
            id="the end of a grant that nobody made",
        ),
        pytest.param(
            [OutcomeRecorded(cluster="east", uid="u", decision_sequence=7, outcome="Applied")],
            "outcome of 7",
            id="the outcome of no decision",
        ),
        pytest.param(
            [
                an_allocate(),
                Release(cluster="east", uid="u", namespace="", name="", grant_sequence=1, holds=[], reason=""),
            ],
            "unsettled",
            id="a release before the outcome",
        ),
        pytest.param(
            [an_allocate(), SegmentOpened(shard="main", segment=1, covers=1)],
            "stands outside",
            id="a checkpoint in the middle of a segment",
        ),
        pytest.param(
            [SegmentClosed(next_segment=1), an_allocate()], "follows the SegmentClosed", id="anything after the end"
        ),
    ],
)
def test_entries_that_cannot_follow_stop_the_start(machine: Driven, entries: list[AnyEntry], says: str) -> None:
    again = Machine(World(machine.federation), machine.index, IDENTITY)
    with pytest.raises(InvariantError, match=says):
        recovery.fold_entries(again, entries, 1)


def test_a_ledger_behind_what_a_cluster_knows_grants_nothing_after_a_start_either(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=2)
    granted(machine, east, an_immediate_claim("old"))
    cut = Machine(World(machine.federation), machine.index, IDENTITY)
    fold_ledger(cut, machine.ledger[:3])
    believe_again(cut, machine.log[: cut.world.position])
    recovery.resume(cut)
    west.tells(an_immediate_claim("new"))
    cut.feed(machine.log[cut.world.position :])
    entries = run(cut, machine.now_ms)
    assert not any(isinstance(entry, Allocate) for entry in entries)
    assert cut.world.cluster(EAST).is_ahead
    # What is in use stays so.
    assert [entry.holds[0].device for entry in entries if isinstance(entry, Adopted)] == ["gpu-0"]
    assert not cut.world.cluster(WEST).is_ahead
