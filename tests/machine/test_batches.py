"""Batches: at most 1,000 messages, opened by all that the core saw, and none lost where there is more to say."""

from collections import Counter

from broker.machine.core import MAX_BATCH, ROOM_FOR_MESSAGE, STEPS_WITHOUT_BATCH
from broker.machine.effects import ALGORITHM
from schemas.wire.codec import decode_entry
from schemas.wire.ledger import (
    PLAIN_STEPS,
    Adopted,
    Allocate,
    ClassBrokered,
    GrantEnded,
    Inputs,
    OutcomeRecorded,
    ReasonChanged,
    StateDigest,
    Step,
    inputs_of,
)
from schemas.wire.state import ObjectName
from tests.builders import a_claim, a_slice, some_devices
from tests.machine.driven import (
    EAST,
    HUB,
    WEST,
    Agent,
    Driven,
    a_brokered_class,
    a_pod,
    an_allocation,
    an_immediate_claim,
    everyone_heard,
    settled,
)

MANY = 2_500


def sizes(machine: Driven) -> list[int]:
    """Entries in each batch so far, the election apart."""
    found = [0]
    for message in machine.ledger[2:]:
        found[-1] += 1
        if inputs_of(decode_entry(message.payload)):
            found.append(0)
    return found[:-1]


def test_thousands_of_claims_are_decided_in_several_batches_each_once(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    east.publishes(*[a_slice(some_devices(100, first=100 * n), name=f"s{n}", pool=f"p{n}") for n in range(15)])
    claims = [an_immediate_claim(f"c{number}") for number in range(MANY)]
    for claim in claims:
        east.tells(claim)
    before = len(machine.ledger)
    machine.run()
    told = Counter(type(decode_entry(message.payload)) for message in machine.ledger[before:])
    assert told == {Allocate: 1_501, ReasonChanged: 999}
    uids = [entry.uid for entry in machine.recorded(Allocate).values()]
    uids += [entry.uid for entry in machine.recorded(ReasonChanged).values()]
    assert Counter(uids) == Counter(claim.metadata.uid for claim in claims)
    assert max(sizes(machine)) >= MAX_BATCH - ROOM_FOR_MESSAGE
    # In the order in which they came, across batches too.
    assert [entry.name for entry in machine.recorded(Allocate).values()] == [f"c{number}" for number in range(1_501)]


def test_messages_wait_in_the_inbox_while_the_batch_is_full(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    for number in range(MANY):
        east.tells(a_claim(name=f"c{number}"), an_allocation(f"d{number}", pool="local"))
    machine.run()
    for number in range(MANY):
        east.tells(a_claim(name=f"c{number}"))
    effects = machine.step()
    inputs = inputs_of(effects.entries[-1])
    assert inputs
    assert inputs.steps[-1].position == machine.world.position < len(machine.log)
    machine.run()
    assert machine.world.position == len(machine.log)
    assert len(machine.recorded(Adopted)) == len(machine.recorded(GrantEnded)) == MANY
    assert machine.world.granted == {}


def test_thousands_of_missing_claims_end_before_the_sync_counts(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    claims = [a_claim(name=f"c{number}") for number in range(MANY)]
    for number, claim in enumerate(claims):
        west.tells(claim, an_allocation(f"d{number}", pool="local"))
    machine.run()
    before = machine.world.cluster(WEST).synced_sequence
    west.living -= {ObjectName("claim", claim.metadata.uid) for claim in claims}
    sequence = west.syncs()
    east.tells(an_immediate_claim())
    first = machine.step()
    assert len(first.entries) >= MAX_BATCH - ROOM_FOR_MESSAGE
    # A crash now would have to hear the cluster again: what was ended is in the ledger, the rest is not.
    assert machine.world.cluster(WEST).synced_sequence == 0 != before
    inputs = inputs_of(first.entries[-1])
    assert inputs
    assert inputs.synced == {WEST: 0}
    assert machine.recorded(Allocate) == {}
    machine.run()
    assert machine.world.cluster(WEST).synced_sequence == sequence
    assert len(machine.recorded(GrantEnded)) == MANY
    assert len(machine.recorded(Allocate)) == 1


def test_a_crash_in_the_middle_of_such_a_sync_loses_nothing(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    for number in range(MANY):
        west.tells(a_claim(name=f"c{number}"), an_allocation(f"d{number}", pool="local"))
    machine.run()
    west.living = {name for name in west.living if name.kind != "claim"}
    west.syncs()
    machine.step()
    again = machine.restart()
    assert not again.world.cluster(WEST).is_heard
    ended = len(machine.recorded(GrantEnded))
    assert 0 < ended < MANY
    assert len(again.world.granted) == MANY - ended


def test_a_crash_before_all_were_adopted_loses_none(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    for number in range(1_200):
        west.tells(a_claim(name=f"c{number}"), an_allocation(f"d{number}", pool="local"))
    machine.step()
    assert machine.world.position == len(machine.log)
    again = machine.restart()
    adopted = len(machine.recorded(Adopted))
    assert 0 < adopted < 1_200
    entries = again.step(machine.now_ms).entries
    assert len([entry for entry in entries if isinstance(entry, Adopted)]) == 1_200 - adopted


def test_thousands_of_classes_for_members_are_told_in_several_batches(hub_machine: Driven) -> None:
    hub = Agent(hub_machine, HUB)
    hub.publishes(*[a_brokered_class(f"class-{number}") for number in range(600)])
    hub_machine.step()
    for agent in (hub, Agent(hub_machine, EAST), Agent(hub_machine, WEST)):
        agent.syncs()
    hub_machine.run()
    told = [(each.cluster, each.name) for each in hub_machine.recorded(ClassBrokered).values()]
    assert len(told) == len(set(told)) == 1_200


# --- Inputs


def test_inputs_say_what_was_seen_in_each_step_since_the_last_batch(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    everybody = machine.last(Inputs)[1]
    assert (everybody.epochs, set(everybody.synced)) == ({EAST: 1, WEST: 2}, {EAST, WEST})
    start = len(machine.log)
    for _ in range(3):
        east.publishes(a_slice(some_devices(2)))
        machine.now_ms += 10
        assert machine.step().entries == []
    machine.now_ms -= 1_000  # a clock that goes back stands still
    east.tells(an_immediate_claim())
    machine.run()
    inputs = machine.last(Inputs)[1]
    assert inputs.steps == [
        Step(start + 1, 1_000_010),
        Step(start + 2, 1_000_020),
        Step(start + 3, 1_000_030),
        Step(start + 4, 1_000_030),
    ]
    assert (inputs.epochs, inputs.synced, inputs.position_expired) == ({}, {}, False)
    assert (inputs.leader_epoch, inputs.settings_digest, inputs.build, inputs.algorithm) == (
        2,
        "settings",
        "test",
        ALGORITHM,
    )
    digest = StateDigest()
    for message in machine.log[start : inputs.steps[-1].position]:
        digest.add(message)
    assert inputs.state_digest == digest.take() != ""


def test_one_decision_is_one_entry(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    east.tells(an_immediate_claim())
    (entry,) = machine.step().entries
    assert isinstance(entry, Allocate)
    assert entry.inputs == machine.last(Inputs)[1]


def test_no_cluster_is_told_of_another_one_in_what_it_reads(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    east.tells(an_immediate_claim())
    west.syncs()
    first, second = machine.step().entries
    assert isinstance(first, Allocate)
    assert isinstance(second, Inputs)
    assert (first.inputs, second.synced) == (None, {WEST: len(machine.log)})


def test_many_steps_make_no_decision_long(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    for _ in range(PLAIN_STEPS):
        east.publishes(a_slice(some_devices(1)))
        machine.step()
    east.tells(an_immediate_claim())
    assert [type(entry) for entry in machine.step().entries] == [Allocate, Inputs]


def test_the_position_is_recorded_even_when_nothing_happens(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    before = len(machine.ledger)
    for _ in range(STEPS_WITHOUT_BATCH - 1):
        east.publishes(a_slice())
        machine.step()
    assert len(machine.ledger) == before
    east.publishes(a_slice())
    machine.step()
    (inputs,) = machine.recorded(Inputs).keys() - range(before + 1)
    entry = machine.recorded(Inputs)[inputs]
    assert len(entry.steps) == STEPS_WITHOUT_BATCH
    assert entry.steps[-1].position == len(machine.log)


def test_an_epoch_alone_is_recorded_at_once(machine: Driven) -> None:
    east = Agent(machine, EAST)
    machine.step()
    assert machine.last(Inputs)[1].epochs == {EAST: east.epoch}


def test_sequences_go_on_from_batch_to_batch(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=3)
    for name in ("a", "b"):
        east.tells(a_claim(name=name), None, a_pod())
        effects = machine.step()
        assert effects.first_sequence + len(effects.entries) - 1 == machine.world.ledger_last == len(machine.ledger)
    # Every grant is known by the sequence at which its decision stands.
    for sequence, entry in machine.recorded(Allocate).items():
        east.tells(a_claim(name=entry.name), entry.allocation, a_pod(), decision=settled(sequence))
        machine.run()
        assert machine.last(OutcomeRecorded)[1].decision_sequence == sequence
