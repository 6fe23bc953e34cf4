"""Admin access (KEP-5018): where the namespace allows it, and never counted as use."""

import msgspec
import pytest

from broker.machine import report
from broker.machine.totals import totals
from schemas.resource import Counter, CounterSet, DeviceCounterConsumption, ResourceClaim
from schemas.wire.ledger import Adopted, Allocate, CollisionFound, GrantEnded, Release
from tests.builders import a_claim, a_device, a_request, a_slice
from tests.machine.driven import (
    EAST,
    Agent,
    Driven,
    a_brokered_class,
    a_pod,
    an_allocation,
    an_immediate_claim,
    devices_of,
    everyone_heard,
    granted,
    reason,
    settled,
)

LABEL = "resource.kubernetes.io/admin-access"
ALLOWED = {LABEL: "true"}


def an_admin(name: str = "admin", count: int = 1) -> ResourceClaim:
    """A claim of somebody who looks after devices."""
    return a_claim(a_request(admin_access=True, count=count), name=name)


def numbers(driven: Driven) -> tuple[int, int, int]:
    """Free devices by `pools`, free and held ones by the metrics."""
    (pool,) = report.pool_rows(driven.world)
    found = totals(driven.world).devices
    return pool.free, found["fabric/f", "free"], found["fabric/f", "held"]


def test_is_counted_as_use_nowhere(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=2)
    granted(machine, east, an_admin(count=2), a_pod(), namespace_labels=ALLOWED)
    granted(machine, west, an_admin("other", count=2), a_pod(), namespace_labels=ALLOWED)
    assert numbers(machine) == (2, 2, 0)
    assert [dict(each) for each in (machine.world.in_use, machine.world.granted, machine.world.shown)] == [{}, {}, {}]
    machine.rotate()
    assert machine.only_the_ledger().world.in_use == {}, "a checkpoint makes a use of it"
    assert machine.restart().world.in_use == {}
    for name, device in (("one", "gpu-0"), ("two", "gpu-1")):
        granted(machine, east, an_immediate_claim(name))
        assert devices_of(machine.last(Allocate)[1]) == [device]
    assert numbers(machine) == (0, 0, 2)
    waiting = an_immediate_claim("three")
    west.tells(waiting)
    machine.run()
    found = report.explain(machine.world, machine.claim("west", waiting))
    assert found.claim.reason == "DevicesInUse"
    assert "admin" not in found.claim.message
    assert [row.device for row in report.explain(machine.world, machine.claim(EAST, an_admin())).claim.results] == [
        "gpu-0",
        "gpu-1",
    ]


def test_gets_what_others_hold_and_leaves_it_to_them(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    holder = granted(machine, east, an_immediate_claim("holder"))
    granted(machine, west, an_admin(), a_pod(), namespace_labels=ALLOWED)
    west.deletes(an_admin())
    machine.run()
    assert machine.is_in_use("gpu-0")
    assert [grant.ledger_sequence for (grant,) in machine.world.granted.values()] == [holder]
    assert machine.recorded(Release) == {}


def test_draws_no_counters(machine: Driven) -> None:
    east, west = Agent(machine, "east"), Agent(machine, "west")
    counters = CounterSet(name="gpu", counters={"slices": Counter(value="1")})
    draw = DeviceCounterConsumption(counter_set="gpu", counters={"slices": Counter(value="1")})
    partitions = [msgspec.structs.replace(a_device(name), consumes_counters=[draw]) for name in ("p0", "p1")]
    east.publishes(
        a_slice([], name="counters", slice_count=2, shared_counters=[counters]),
        a_slice(partitions, name="gpus", slice_count=2),
    )
    for agent in (east, west):
        agent.publishes(a_brokered_class())
        agent.syncs()
    machine.run()
    granted(machine, west, an_admin(), a_pod(), namespace_labels=ALLOWED)
    granted(machine, east, an_immediate_claim("one"))
    west.tells(an_immediate_claim("two"))
    machine.run()
    assert reason(machine, west, an_immediate_claim("two")) == "DevicesInUse"
    assert len(machine.recorded(Allocate)) == 2


@pytest.mark.parametrize("found", ["before", "after"])
def test_that_is_found_beside_a_holder_is_adopted_and_no_collision(machine: Driven, found: str) -> None:
    east, west = everyone_heard(machine)
    allocation = an_allocation("gpu-0", adminAccess=True)
    if found == "before":
        west.tells(an_admin(), allocation)
        machine.run()
    granted(machine, east, an_immediate_claim("holder"))
    west.tells(an_admin(), allocation)
    machine.run()
    assert machine.recorded(CollisionFound) == {}
    (adopted,) = machine.recorded(Adopted).values()
    assert adopted.holds[0].admin_access
    assert machine.claim(EAST, an_immediate_claim("holder")).grants


# --- the namespace's label


@pytest.mark.parametrize("labels", [{}, {LABEL: "True"}, {LABEL: ""}, {"admin-access": "true"}])
def test_waits_for_the_label_and_is_decided_when_it_comes(machine: Driven, labels: dict[str, str]) -> None:
    east, _ = everyone_heard(machine)
    east.tells(an_admin(), None, a_pod(), namespace_labels=labels)
    machine.run()
    assert reason(machine, east, an_admin()) == "AdminAccessNotAllowed"
    east.tells(an_admin(), None, a_pod(), namespace_labels=ALLOWED)
    machine.run()
    (entry,) = machine.recorded(Allocate).values()
    assert entry.allocation["devices"]["results"][0]["adminAccess"] is True


def test_a_namespace_that_loses_its_label_keeps_what_was_allocated_and_gets_nothing_new(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    sequence = granted(machine, east, an_admin(), a_pod(), namespace_labels=ALLOWED)
    allocation = machine.last(Allocate)[1].allocation
    east.tells(an_admin(), allocation, a_pod(), decision=settled(sequence), namespace_labels={})
    east.tells(an_admin("later"), None, a_pod(), namespace_labels={})
    machine.run()
    machine.rotate()
    assert (machine.recorded(Release), machine.recorded(GrantEnded)) == ({}, {})
    (grant,) = machine.claim(EAST, an_admin()).grants
    assert grant.ledger_sequence == sequence
    assert report.claim_row(machine.claim(EAST, an_admin())).state == "Allocated"
    assert reason(machine, east, an_admin("later")) == "AdminAccessNotAllowed"


def test_a_claim_that_does_not_ask_for_it_is_the_same_in_a_namespace_with_the_label(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    granted(machine, east, an_immediate_claim("holder"))
    west.tells(an_immediate_claim("plain"), namespace_labels=ALLOWED)
    machine.run()
    assert reason(machine, west, an_immediate_claim("plain")) == "DevicesInUse"
