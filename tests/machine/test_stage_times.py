"""What ledger entries say in their headers of when things happened."""

from broker.app.envelopes import Envelopes
from broker.app.stage_times import ARRIVALS_MAX, StageTimes
from schemas.wire.bus import StoredMessage
from schemas.wire.ledger import Allocate
from schemas.wire.stages import CAUSE, TIMES, read_times
from tests.machine.driven import EAST, Agent, Driven, an_immediate_claim, everyone_heard


def test_entries_tell_when_they_came_and_when_they_were_decided(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    stages = machine.machine.core.observer = StageTimes()
    sequence = east.tells(an_immediate_claim())
    stages.arrived(machine.log[sequence - 1 :])
    stages.step_begins()
    effects = machine.step()
    stages.step_ended()
    batch = Envelopes("main", 0, "test").batch(
        effects.entries, effects.first_sequence, 0, None, stages.headers(effects)
    )
    (allocate,) = (message.headers for message in batch)
    assert isinstance(effects.entries[0], Allocate)
    assert allocate[CAUSE] == f"DRA_STATE.{sequence}"
    times = read_times(allocate[TIMES])
    in_order = ["received", "stepped", "deciding", "filtered", "decided", "ended", "sent"]
    assert sorted(times, key=lambda stage: (times[stage], in_order.index(stage))) == in_order
    assert "ce-type" in allocate, "beside what makes it a CloudEvent"


def test_inputs_alone_follow_from_no_message(machine: Driven) -> None:
    stages = machine.machine.core.observer = StageTimes()
    Agent(machine, EAST)
    stages.step_begins()
    effects = machine.step()
    stages.step_ended()
    (headers,) = stages.headers(effects)
    assert list(read_times(headers[TIMES])) == ["stepped", "ended", "sent"]
    assert CAUSE not in headers


def test_a_claim_of_which_no_search_was_needed_has_no_time_of_filtering(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=1)
    stages = machine.machine.core.observer = StageTimes()
    for claim in (an_immediate_claim("a"), an_immediate_claim("b"), an_immediate_claim("c")):
        east.tells(claim)
    stages.step_begins()
    effects = machine.step()
    stages.step_ended()
    found = [read_times(each[TIMES]) for each in stages.headers(effects)]
    assert [("filtered" in times) for times in found] == [True, True, False], "the last is like the one before it"
    assert all("deciding" in times for times in found)
    assert all("received" not in times for times in found), "nobody noted when they came"


def test_a_message_s_arrival_is_known_by_the_delivery_that_it_came_with(machine: Driven) -> None:
    everyone_heard(machine)
    stages = StageTimes()
    stages.arrived(machine.log[2:4])
    stages.arrived(machine.log[4:5])
    assert [bool(stages.arrived_us(sequence)) for sequence in range(1, 7)] == [False, False, True, True, True, False]
    assert stages.arrived_us(3) == stages.arrived_us(4) <= stages.arrived_us(5)
    stages.arrived(machine.log[3:4])
    assert not stages.arrived_us(5), "another term reads again, and this may not be the same message"


def test_arrivals_are_forgotten_before_they_are_too_many() -> None:
    stages = StageTimes()
    for sequence in range(1, 3 * ARRIVALS_MAX):
        stages.arrived([StoredMessage("dra.v1.state.east.claim.u", b"", {}, sequence, 0)])
    known = [sequence for sequence in range(1, 3 * ARRIVALS_MAX) if stages.arrived_us(sequence)]
    assert ARRIVALS_MAX // 2 <= len(known) <= ARRIVALS_MAX
    assert known[-1] == 3 * ARRIVALS_MAX - 1


def test_a_decision_takes_time_from_when_its_message_came(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    stages = machine.machine.core.observer = StageTimes()
    holder, waiter = an_immediate_claim("a"), an_immediate_claim("b")

    def decided() -> list[tuple[str, str, int]]:
        stages.step_begins()
        effects = machine.step()
        stages.step_ended()
        return [(each.uid, each.result, each.since_us) for each in stages.decisions(effects)]

    sequence = east.tells(holder)
    stages.arrived(machine.log[sequence - 1 :])
    west.tells(waiter)
    (first, granted, came_us), (second, waits, began_us) = decided()
    assert (first, granted, second, waits) == (holder.metadata.uid, "allocated", waiter.metadata.uid, "pending")
    assert came_us == stages.arrived_us(sequence) < began_us, "nobody noted when the other one came"
    east.deletes(holder)
    ((again, granted, retried_us),) = decided()
    assert (again, granted) == (waiter.metadata.uid, "allocated")
    assert retried_us > began_us, "not since it was told of"
