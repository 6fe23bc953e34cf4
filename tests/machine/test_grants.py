"""What makes a grant and what ends it: the rules that free a device, and nothing else."""

import msgspec
import pytest

from broker.machine.claims import BACK_OFF_MOST_MS, back_off_ms
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    CollisionFound,
    GrantEnded,
    OutcomeRecorded,
    Release,
)
from schemas.wire.state import Outcome, Rejected
from tests.builders import a_claim, a_request
from tests.machine.driven import (
    EAST,
    WEST,
    Driven,
    a_pod,
    an_allocation,
    an_immediate_claim,
    devices_of,
    everyone_heard,
    granted,
    reason,
    reasons,
    settled,
)


def test_allocates_for_a_claim_and_says_all_that_its_agent_needs(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    sequence = east.tells(claim, None, a_pod("b"), a_pod("a"), a_pod("done", terminal=True))
    (entry,) = machine.run()
    assert isinstance(entry, Allocate)
    assert (entry.cluster, entry.uid, entry.namespace, entry.name) == (EAST, claim.metadata.uid, "default", "train")
    assert (entry.state_sequence, entry.resource_version) == (sequence, machine.claim(EAST, claim).resource_version)
    assert [pod.name for pod in entry.reserved_for] == ["a", "b"]
    assert entry.unscheduled == ["uid-a", "uid-b"]
    assert (devices_of(entry), entry.scopes) == (["gpu-0"], ["fabric/f"])
    assert entry.allocation["allocationTimestamp"] == "1970-01-01T00:16:40Z"


def test_gives_no_device_twice_across_clusters(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    first, second = an_immediate_claim("a"), an_immediate_claim("b")
    east.tells(first)
    west.tells(second)
    machine.run()
    assert [entry.uid for entry in machine.recorded(Allocate).values()] == [first.metadata.uid]
    assert reason(machine, west, second) == "DevicesInUse"


# --- adoption and collisions


def test_adopts_an_allocation_that_nobody_here_decided(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=2)
    found = a_claim()
    sequence = west.tells(found, an_allocation("gpu-0"))
    (entry,) = machine.run()
    assert isinstance(entry, Adopted)
    assert (entry.cluster, entry.uid, entry.state_sequence, entry.scopes) == (
        WEST,
        found.metadata.uid,
        sequence,
        ["fabric/f"],
    )
    east.tells(an_immediate_claim())
    machine.run()
    assert devices_of(machine.last(Allocate)[1]) == ["gpu-1"]


def test_adopts_before_it_grants_anything_in_the_same_step(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    east.tells(an_immediate_claim())
    west.tells(a_claim(), an_allocation("gpu-0"))
    assert isinstance(machine.step().entries[0], Adopted)
    assert machine.recorded(Allocate) == {}


def test_an_adopted_grant_ends_without_a_settled_decision(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    found = a_claim()
    west.tells(found, an_allocation("gpu-0"))
    machine.run()
    sequence, _ = machine.last(Adopted)
    west.tells(found)
    machine.run()
    assert machine.last(GrantEnded)[1] == GrantEnded(
        cluster=WEST, uid=found.metadata.uid, grant_sequence=sequence, cause="AllocationCleared"
    )
    assert not machine.is_in_use("gpu-0")


def test_a_collision_is_reported_once_and_adopted_when_the_other_grant_ends(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    holder, intruder, waiter = an_immediate_claim("holder"), a_claim(name="intruder"), an_immediate_claim("waiter")
    sequence = granted(machine, east, holder)
    west.tells(intruder, an_allocation("gpu-0"))
    (found,) = machine.run()
    assert isinstance(found, CollisionFound)
    assert (found.uid, found.held_by) == (intruder.metadata.uid, [f"east/default/holder (grant {sequence})"])
    assert [(each.code, each.level) for each in machine.notices] == [("DeviceHeldTwice", "error")]
    west.tells(intruder, an_allocation("gpu-0"), a_pod())
    east.tells(waiter)
    machine.run()
    assert len(machine.recorded(CollisionFound)) == 1
    east.deletes(holder)
    ended, adopted = machine.run()
    assert isinstance(ended, GrantEnded)
    assert isinstance(adopted, Adopted)
    assert adopted.uid == intruder.metadata.uid
    assert reason(machine, east, waiter) == "DevicesInUse"


def test_a_collision_that_its_cluster_clears_is_nothing(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    granted(machine, east, an_immediate_claim("holder"))
    west.tells(a_claim(name="intruder"), an_allocation("gpu-0"))
    machine.run()
    west.tells(a_claim(name="intruder"))
    machine.run()
    assert not machine.recorded(GrantEnded)
    assert not machine.recorded(Adopted)
    assert machine.is_in_use("gpu-0")


@pytest.mark.parametrize(
    ("theirs", "collides"),
    [
        pytest.param(an_allocation("gpu-0"), True, id="the whole device"),
        pytest.param(an_allocation("gpu-0", shareID="b"), False, id="another share of it"),
        pytest.param(an_allocation("gpu-0", adminAccess=True), False, id="administrators take nothing from anybody"),
        pytest.param(an_allocation("gpu-1"), False, id="another device"),
        pytest.param(an_allocation("gpu-0", pool="rack8"), False, id="a device of that name in a pool of their own"),
    ],
)
def test_collides_only_where_both_cannot_have_it(machine: Driven, theirs: dict[str, object], collides: bool) -> None:
    east, west = everyone_heard(machine, devices=2)
    east.tells(a_claim(name="first"), an_allocation("gpu-0", shareID="a"))
    machine.run()
    west.tells(a_claim(name="second"), theirs)
    machine.run()
    assert len(machine.recorded(CollisionFound)) == collides
    assert len(machine.recorded(Adopted)) == 2 - collides


def test_an_allocation_that_another_replaced_ends_the_grant_and_is_adopted(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=2)
    claim = an_immediate_claim()
    sequence = granted(machine, east, claim)
    east.tells(claim, an_allocation("gpu-1"), decision=settled(sequence))
    ended, adopted = machine.run()
    assert isinstance(ended, GrantEnded)
    assert ended.cause == "AllocationReplaced"
    assert isinstance(adopted, Adopted)
    assert (machine.is_in_use("gpu-0"), machine.is_in_use("gpu-1")) == (False, True)


# --- what frees a device


def test_a_message_that_has_not_settled_the_decision_frees_nothing(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    east.tells(claim)  # its finalizers were written
    assert machine.run() == []
    assert machine.is_in_use("gpu-0")
    assert machine.claim(EAST, claim).unsettled is not None


def test_the_decision_of_another_claim_settles_nothing(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=2)
    first, second = an_immediate_claim("first"), an_immediate_claim("second")
    earlier = granted(machine, east, first)
    east.tells(second, decision=settled(earlier))
    machine.run()
    later = machine.last(Allocate)[0]
    east.tells(second, decision=settled(earlier))
    machine.run()
    assert machine.claim(EAST, second).grants[0].ledger_sequence == later


def test_an_applied_grant_ends_when_its_allocation_is_cleared(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    sequence = granted(machine, east, claim)
    east.tells(claim, decision=settled(sequence))
    machine.run()
    assert [(end.grant_sequence, end.cause) for end in machine.recorded(GrantEnded).values()] == [
        (sequence, "AllocationCleared")
    ]


def test_a_deleted_claim_frees_its_devices_for_who_waits(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    holder, waiter = an_immediate_claim("holder"), an_immediate_claim("waiter")
    granted(machine, east, holder)
    west.tells(waiter)
    machine.run()
    east.deletes(holder)
    ended, allocated = machine.run()
    assert isinstance(ended, GrantEnded)
    assert ended.cause == "ClaimDeleted"
    assert isinstance(allocated, Allocate)
    assert allocated.uid == waiter.metadata.uid
    assert holder.metadata.uid not in {key.uid for key in machine.world.claims}


def test_a_deleted_claim_settles_its_decision_as_gone(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    sequence = machine.last(Allocate)[0]
    east.deletes(claim)
    outcome, ended = machine.run()
    assert outcome == OutcomeRecorded(cluster=EAST, uid=claim.metadata.uid, decision_sequence=sequence, outcome="Gone")
    assert isinstance(ended, GrantEnded)


def test_a_tombstone_of_an_unknown_claim_is_nothing(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    east.removes("claim", "never-met")
    assert machine.run() == []
    assert machine.letters == []


def test_a_claim_of_the_same_name_with_another_uid_is_another_claim(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    first = an_immediate_claim()
    granted(machine, east, first)
    second = msgspec.structs.replace(first, metadata=msgspec.structs.replace(first.metadata, uid="uid-second"))
    east.tells(second)
    machine.run()
    assert reason(machine, east, second) == "DevicesInUse"
    assert len(machine.claim(EAST, first).grants) == 1


# --- outcomes


@pytest.mark.parametrize(
    ("outcome", "cause", "decided_again"),
    [
        pytest.param("Conflict", "AllocationCleared", True, id="a conflict is decided again at once"),
        pytest.param("Gone", "AllocationCleared", True, id="a claim that is there after all"),
        pytest.param("Failed", "AllocationCleared", False, id="a failure waits"),
    ],
)
def test_an_outcome_without_allocation_frees_the_device(
    machine: Driven, outcome: Outcome, cause: str, decided_again: bool
) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    sequence = machine.last(Allocate)[0]
    east.tells(claim, decision=settled(sequence, outcome, "because"))
    said, ended, *rest = machine.run()
    assert isinstance(said, OutcomeRecorded)
    assert (said.decision_sequence, said.outcome, said.message) == (sequence, outcome, "because")
    assert isinstance(ended, GrantEnded)
    assert (ended.grant_sequence, ended.cause) == (sequence, cause)
    assert [type(entry) is Allocate for entry in rest] == [decided_again]


def test_an_applied_outcome_with_its_allocation_is_recorded_and_nothing_more(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    sequence = granted(machine, east, claim)
    assert machine.last(OutcomeRecorded)[1].outcome == "Applied"
    east.tells(claim, machine.last(Allocate)[1].allocation, decision=settled(sequence))
    assert machine.run() == []


def test_a_failure_is_tried_again_after_a_time_that_doubles(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    for failures in (1, 2, 3):
        sequence = machine.last(Allocate)[0]
        east.tells(claim, decision=settled(sequence, "Failed", "disk full"))
        machine.run()
        outcome = machine.last(OutcomeRecorded)[1]
        assert (outcome.failures, outcome.retry_at_ms) == (failures, machine.now_ms + back_off_ms(failures))
        assert reason(machine, east, claim) == "BackingOff"
        assert machine.machine.wake_at_ms() == outcome.retry_at_ms
        assert machine.run(after_ms=back_off_ms(failures) - 1) == []
        machine.run(after_ms=1)
        assert machine.last(Allocate)[0] > sequence
    sequence = machine.last(Allocate)[0]
    east.tells(claim, decision=settled(sequence, "Conflict"))
    machine.run()
    assert machine.claim(EAST, claim).failures == 0


def test_a_device_whose_allocation_failed_goes_to_who_waits_for_it(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    first, second = an_immediate_claim("first"), an_immediate_claim("second")
    east.tells(first)
    west.tells(second)
    machine.run()
    east.tells(first, decision=settled(machine.last(Allocate)[0], "Failed"))
    machine.run()
    assert machine.last(Allocate)[1].name == "second"


def test_the_time_between_tries_has_an_end() -> None:
    assert [back_off_ms(failures) for failures in (1, 2, 3)] == [1_000, 2_000, 4_000]
    assert back_off_ms(10_000) == BACK_OFF_MOST_MS


def test_a_message_that_settles_more_than_the_ledger_knows_stops_every_grant_of_its_fabrics(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    west.tells(a_claim(name="witness"), decision=settled(10_000))
    east.tells(an_immediate_claim())
    machine.run()
    assert [(each.code, each.place) for each in machine.notices if each.level == "error"] == [("LedgerLost", WEST)]
    assert machine.recorded(Allocate) == {}
    assert reason(machine, east, an_immediate_claim()) == "WaitingForCluster"


def test_an_allocation_by_a_decision_that_the_ledger_does_not_have_stops_them_too(machine: Driven) -> None:
    """The number alone tells nothing: the ledger has grown beyond it since it was lost."""
    east, west = everyone_heard(machine)
    granted(machine, east, an_immediate_claim("first"))
    forgotten = machine.last(Allocate)[0]
    assert forgotten < machine.world.ledger_last
    west.tells(a_claim(name="witness"), an_allocation("gpu-1"), decision=settled(forgotten))
    east.tells(an_immediate_claim())
    machine.run()
    assert [each.place for each in machine.notices if each.code == "LedgerLost"] == [WEST]
    assert reason(machine, east, an_immediate_claim()) == "WaitingForCluster"


# --- consumers that an allocation has served


def test_an_allocation_is_not_repeated_for_the_consumers_that_it_served(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim, pod, other = a_claim(), a_pod("first"), a_pod("second")
    sequence = granted(machine, east, claim, pod)
    # kube-controller-manager clears what a pod has used; then its watch of pods begins again from an older list.
    east.tells(claim, None, a_pod("first", scheduled=True, terminal=True), decision=settled(sequence))
    east.tells(claim, None, pod, decision=settled(sequence))
    machine.run()
    assert reason(machine, east, claim) == "WaitingForConsumer"
    assert len(machine.recorded(Allocate)) == 1
    east.tells(claim, None, pod, other, decision=settled(sequence))
    machine.run()
    assert machine.last(Allocate)[1].unscheduled == ["uid-first", "uid-second"]


def test_an_immediate_claim_without_consumers_is_allocated_once(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    sequence = granted(machine, east, claim)
    east.tells(claim, decision=settled(sequence))
    machine.run()
    assert reason(machine, east, claim) == "WaitingForConsumer"
    east.tells(claim, None, a_pod(), decision=settled(sequence))
    machine.run()
    assert len(machine.recorded(Allocate)) == 2


def test_an_allocation_that_was_never_applied_serves_nobody(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim, pod = a_claim(), a_pod()
    east.tells(claim, None, pod)
    machine.run()
    east.tells(claim, None, pod, decision=settled(machine.last(Allocate)[0], "Conflict"))
    machine.run()
    assert len(machine.recorded(Allocate)) == 2


# --- rejections


def test_a_rejected_allocation_is_asked_back_and_the_devices_are_avoided(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=2)
    claim, pod = a_claim(), a_pod()
    sequence = granted(machine, east, claim, pod)
    allocation = machine.last(Allocate)[1].allocation
    east.tells(
        claim, allocation, pod, decision=settled(sequence), rejected=Rejected(sequence, "Unschedulable", "no node")
    )
    (release,) = machine.run()
    assert release == Release(
        cluster=EAST,
        uid=claim.metadata.uid,
        namespace="default",
        name="train",
        grant_sequence=sequence,
        resource_version=machine.claim(EAST, claim).resource_version,
        holds=machine.last(Allocate)[1].holds,
        reason="Unschedulable",
        message="no node",
        rejections=1,
        retry_at_ms=machine.now_ms + back_off_ms(1),
    )
    assert machine.is_in_use("gpu-0")
    east.tells(claim, None, pod, decision=settled(machine.last(Release)[0]))
    machine.run()
    assert reasons(machine, claim)[-1] == "BackingOff"
    machine.run(after_ms=back_off_ms(1))
    assert devices_of(machine.last(Allocate)[1]) == ["gpu-1"]


def test_an_allocation_that_the_scheduler_takes_away_from_a_waiting_pod_is_rejected(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=3)
    claim, pod = a_claim(), a_pod()
    given = []
    for rejections in (1, 2, 3):
        sequence = granted(machine, east, claim, pod)
        given += devices_of(machine.last(Allocate)[1])
        east.tells(claim, None, pod, decision=settled(sequence))
        machine.run()
        assert machine.last(GrantEnded)[1] == GrantEnded(
            cluster=EAST,
            uid=claim.metadata.uid,
            grant_sequence=sequence,
            cause="AllocationRejected",
            rejections=rejections,
            retry_at_ms=machine.now_ms + back_off_ms(rejections),
        )
        assert not machine.world.in_use
        assert reason(machine, east, claim) == "BackingOff"
        machine.run(after_ms=back_off_ms(rejections))
    assert given == ["gpu-0", "gpu-1", "gpu-2"]


def test_an_allocation_that_is_cleared_when_its_pod_has_a_node_is_not_rejected(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    sequence = granted(machine, east, claim, a_pod())
    east.tells(claim, None, a_pod(scheduled=True), a_pod("later"), decision=settled(sequence))
    machine.run()
    assert machine.last(GrantEnded)[1].cause == "AllocationCleared"
    assert machine.last(Allocate)[1].unscheduled == ["uid-later"]


def test_a_rejected_device_is_taken_after_all_where_there_is_no_other(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=1)
    claim, pod = a_claim(), a_pod()
    sequence = granted(machine, east, claim, pod)
    rejected = Rejected(sequence, "Unschedulable")
    east.tells(claim, machine.last(Allocate)[1].allocation, pod, decision=settled(sequence), rejected=rejected)
    machine.run()
    east.tells(claim, None, pod, decision=settled(machine.last(Release)[0]))
    machine.run()
    machine.run(after_ms=back_off_ms(1))
    assert len(machine.recorded(Allocate)) == 2


def test_a_rejection_of_another_grant_or_with_a_running_pod_is_nothing(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim, pod = a_claim(), a_pod()
    sequence = granted(machine, east, claim, pod)
    allocation = machine.last(Allocate)[1].allocation
    east.tells(claim, allocation, pod, decision=settled(sequence), rejected=Rejected(sequence - 1, "Unschedulable"))
    for running in (a_pod(scheduled=True), a_pod(scheduled=True, deleting=True)):
        east.tells(claim, allocation, running, decision=settled(sequence), rejected=Rejected(sequence, "Unschedulable"))
        assert machine.run() == []


def test_a_release_that_failed_is_asked_for_again_later(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim, pod = a_claim(), a_pod()
    sequence = granted(machine, east, claim, pod)
    allocation = machine.last(Allocate)[1].allocation
    rejected = Rejected(sequence, "Unschedulable")
    east.tells(claim, allocation, pod, decision=settled(sequence), rejected=rejected)
    machine.run()
    first = machine.last(Release)[0]
    east.tells(claim, allocation, pod, decision=settled(first, "Failed", "refused"), rejected=rejected)
    machine.run()
    assert machine.last(Release)[0] == first
    machine.run(after_ms=back_off_ms(1))
    again, release = machine.last(Release)
    assert again > first
    assert release.rejections == 2
    assert machine.is_in_use("gpu-0")


def test_two_results_of_one_claim_are_granted_together(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=3)
    east.tells(an_immediate_claim("both", a_request("gpu", count=2)))
    west.tells(an_immediate_claim("many", a_request("gpu", count=2)))
    machine.run()
    assert devices_of(machine.last(Allocate)[1]) == ["gpu-0", "gpu-1"]
    assert not machine.is_in_use("gpu-2")
