"""The world for people: where each claim is and why, what is free, and whether anything is under way."""

from collections.abc import Callable

import msgspec
import pytest

from broker.machine import report
from broker.machine.report import ClaimRow, PoolRow, ResultRow
from schemas.resource import ResourceClaim
from schemas.wire.ledger import Allocate, Release
from schemas.wire.state import Rejected
from schemas.wire.subjects import state_subject
from tests.builders import CLASS, DRIVER, a_choice, a_claim, a_request, a_slice, a_sub_request, a_taint, some_devices
from tests.machine.driven import (
    EAST,
    WEST,
    Agent,
    Driven,
    a_brokered_class,
    a_pod,
    an_allocation,
    an_immediate_claim,
    everyone_heard,
    granted,
    settled,
)


def an_allocated_claim(machine: Driven, east: Agent) -> ResourceClaim:
    granted(machine, east, an_immediate_claim())
    return an_immediate_claim()


def an_undecided_claim(machine: Driven, east: Agent) -> ResourceClaim:
    east.tells(an_immediate_claim())
    machine.run()
    return an_immediate_claim()


def a_claim_whose_allocation_is_asked_back(machine: Driven, east: Agent) -> ResourceClaim:
    sequence = granted(machine, east, a_claim(), a_pod())
    allocation = machine.last(Allocate)[1].allocation
    rejected = Rejected(sequence, "Unschedulable")
    east.tells(a_claim(), allocation, a_pod(), decision=settled(sequence), rejected=rejected)
    machine.run()
    east.tells(a_claim(), None, a_pod(), decision=settled(sequence - 1))
    machine.run()
    assert machine.recorded(Release)
    return a_claim()


def a_claim_that_is_applied_but_not_shown(machine: Driven, east: Agent) -> ResourceClaim:
    sequence = granted(machine, east, a_claim(), a_pod())
    machine.run()
    east.tells(a_claim(), None, a_pod(), decision=settled(sequence - 1))
    machine.run()
    return a_claim()


def a_waiting_claim(machine: Driven, east: Agent) -> ResourceClaim:
    east.tells(a_claim())
    machine.run()
    return a_claim()


def an_unreadable_claim(machine: Driven, east: Agent) -> ResourceClaim:
    east.tells(a_claim())
    machine.put(state_subject(EAST, "claim", a_claim().metadata.uid), b"{")
    machine.run()
    return a_claim()


def an_invalid_claim(machine: Driven, east: Agent) -> ResourceClaim:
    claim = a_claim(a_request("gpu"), a_request("gpu"))
    east.tells(claim)
    machine.run()
    return claim


def a_colliding_claim(machine: Driven, east: Agent) -> ResourceClaim:
    granted(machine, east, an_immediate_claim("holder"))
    east.tells(a_claim(), an_allocation("gpu-0"))
    machine.run()
    return a_claim()


def a_claim_being_deleted(machine: Driven, east: Agent) -> ResourceClaim:
    claim = an_immediate_claim()
    metadata = msgspec.structs.replace(claim.metadata, deletion_timestamp="2026-01-01T00:00:00Z")
    east.tells(msgspec.structs.replace(claim, metadata=metadata))
    machine.run()
    return claim


@pytest.mark.parametrize(
    ("happens", "state", "reason", "says", "devices"),
    [
        pytest.param(an_allocated_claim, "Allocated", "", "", ["gpu-0"], id="allocated"),
        pytest.param(an_undecided_claim, "Pending", "Allocating", "(Allocate) was given", [], id="decided"),
        pytest.param(
            a_claim_whose_allocation_is_asked_back, "Pending", "Releasing", "(Release) was given", [], id="asked back"
        ),
        pytest.param(
            a_claim_that_is_applied_but_not_shown, "Pending", "Allocating", "does not show it yet", [], id="not shown"
        ),
        pytest.param(a_waiting_claim, "Pending", "WaitingForConsumer", "no pod", [], id="waiting"),
        pytest.param(an_unreadable_claim, "Invalid", "Unreadable", "not JSON", [], id="unreadable"),
        pytest.param(an_invalid_claim, "Invalid", "InvalidClaim", "spec.devices.requests", [], id="invalid"),
        pytest.param(a_colliding_claim, "Allocated", "DeviceHeldTwice", "another claim", ["gpu-0"], id="colliding"),
        pytest.param(a_claim_being_deleted, "Pending", "BeingDeleted", "being deleted", [], id="being deleted"),
    ],
)
def test_says_where_a_claim_is(
    machine: Driven,
    happens: Callable[[Driven, Agent], ResourceClaim],
    state: str,
    reason: str,
    says: str,
    devices: list[str],
) -> None:
    east, _ = everyone_heard(machine)
    claim = happens(machine, east)
    row = report.claim_row(machine.claim(EAST, claim))
    assert (row.state, row.reason) == (state, reason)
    assert says in row.message
    assert (row.cluster, row.uid) == (EAST, claim.metadata.uid)
    assert [each.device for each in row.results] == devices


def test_every_claim_that_is_not_allocated_has_a_reason(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    for happens in (an_undecided_claim, a_waiting_claim, an_invalid_claim, a_claim_being_deleted):
        happens(machine, east)
        assert all(row.reason and row.message for row in report.claim_rows(machine.world) if row.state != "Allocated")


def test_lists_claims_by_cluster_namespace_and_name(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    west.tells(a_claim(name="a"))
    east.tells(a_claim(name="b", namespace="z"))
    east.tells(a_claim(name="c", namespace="a"))
    east.tells(a_claim(name="a", namespace="z"))
    machine.run()
    rows = [(row.cluster, row.namespace, row.name) for row in report.claim_rows(machine.world)]
    assert rows == [("east", "a", "c"), ("east", "z", "a"), ("east", "z", "b"), ("west", "default", "a")]
    waiting = report.claim_rows(machine.world)[0]
    assert waiting == ClaimRow("east", "a", "c", "uid-a-c", "Pending", [], "WaitingForConsumer", waiting.message)


def test_shows_each_device_of_an_allocation(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=2)
    claim = an_immediate_claim("both", a_request("gpu", count=2))
    granted(machine, east, claim)
    (row,) = report.claim_rows(machine.world)
    assert row.results == [ResultRow("gpu", DRIVER, "rack7", f"gpu-{number}") for number in range(2)]


def test_finds_claims_by_name_in_one_cluster_or_in_all(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    for agent in (west, east):
        agent.tells(a_claim())
    machine.run()
    find = report.find_claim
    assert [claim.key.cluster for claim in find(machine.world, "default", "train")] == [EAST, WEST]
    assert [claim.key.cluster for claim in find(machine.world, "default", "train", WEST)] == [WEST]
    assert find(machine.world, "kube-system", "train") == []


def test_a_claim_of_which_only_the_ledger_knows_is_not_shown(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    east.tells(an_immediate_claim("waits", a_request(count=5)))
    machine.run()
    world = machine.only_the_ledger().world
    assert [claim.name for claim in world.claims.values()] == ["waits"]
    assert report.claim_rows(world) == []
    assert report.find_claim(world, "default", "waits") == []


def test_lists_pools_with_what_is_free_and_what_is_wrong(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=3)
    west.publishes(a_slice(some_devices(2), name="half", pool="local", generation=4, slice_count=2))
    tainted = [msgspec.structs.replace(each, taints=[a_taint()]) for each in some_devices(2)]
    west.publishes(a_slice([*tainted, *some_devices(1, first=2)], name="drained", pool="drained"))
    granted(machine, east, an_immediate_claim())
    half = "1 of 2 slices of generation 4"
    assert report.pool_rows(machine.world) == [
        PoolRow("cluster/west", DRIVER, "drained", 1, devices=3, free=3, tainted=2, problem=""),
        PoolRow("cluster/west", DRIVER, "local", 4, devices=2, free=0, tainted=0, problem=half),
        PoolRow("fabric/f", DRIVER, "rack7", 1, devices=3, free=2, tainted=0, problem=""),
    ]


def test_explains_why_a_claim_waits(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=1)
    east.publishes(a_brokered_class("fast", "device.driver == 'gpu.example.com'", "device.attributes['x'].y == 'z'"))
    claim = an_immediate_claim("big", a_choice("any", a_sub_request("two", count=2), a_sub_request("fast", of="fast")))
    east.tells(claim)
    machine.run()
    found = report.explain(machine.world, machine.claim(EAST, claim))
    assert (found.claim.state, found.classes) == ("Pending", [CLASS, "fast"])
    assert found.resource_version == machine.claim(EAST, claim).resource_version
    assert (found.grants, found.unsettled, found.waiting_since_ms) == ([], "", machine.now_ms)
    assert [each["request"] for each in found.requests] == ["any/two", "any/fast"]
    assert found.requests[0]["needed"] == 2
    assert msgspec.json.decode(msgspec.json.encode(found))["claim"]["name"] == "big"


def test_explains_what_is_under_way(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=1)
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    sequence = machine.last(Allocate)[0]
    found = report.explain(machine.world, machine.claim(EAST, claim))
    assert (found.grants, found.unsettled, found.waiting_since_ms) == ([sequence], f"Allocate {sequence}", None)


def test_advises_on_selectors_that_do_not_mean_what_they_seem_to(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    as_text = f'device.attributes["{DRIVER}"].memory >= "16Gi"'
    east.publishes(a_slice(some_devices(1, memory="8Gi")), a_brokered_class("large", as_text))
    claim = an_immediate_claim("typo", a_choice("any", a_sub_request("a", as_text), a_sub_request("b", of="large")))
    east.tells(claim)
    machine.run()
    advice = report.explain(machine.world, machine.claim(EAST, claim)).advice
    assert [each.place for each in advice] == ["DeviceClass large, selector 0", "request any/a, selector 0"]
    assert {each.expression for each in advice} == {as_text}
    assert "compares text" in advice[0].message
    assert advice[0].suggestion.startswith("quantity(")


# --- is anything under way


def test_is_settled_when_every_cluster_was_heard_and_every_decision_shows(machine: Driven) -> None:
    def is_settled() -> bool:
        machine.run()
        return report.is_settled(machine.world, clusters=[EAST, WEST])

    east, west = Agent(machine, EAST), Agent(machine, WEST)
    east.publishes(a_slice(), a_brokered_class())
    east.syncs()
    assert not is_settled()
    west.syncs()
    assert is_settled()
    claim = an_immediate_claim()
    east.tells(claim)
    assert not is_settled()
    sequence, entry = machine.last(Allocate)
    east.tells(claim, entry.allocation)  # the status was written; that it is settled is not said yet
    assert not is_settled()
    east.tells(claim, entry.allocation, decision=settled(sequence))
    assert is_settled()
    west.living.add(next(iter(east.living)))
    west.syncs()  # incomplete: everything was asked for
    assert not is_settled()
