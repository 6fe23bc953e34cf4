"""The world as numbers: they add up to what `report` says claim by claim and pool by pool."""

from broker.machine.totals import totals
from schemas.wire.ledger import Allocate
from tests.builders import DRIVER, a_claim, a_slice, some_devices
from tests.machine.driven import EAST, RACK, Driven, an_immediate_claim, everyone_heard, granted, settled


def test_of_an_empty_world_names_the_clusters(machine: Driven) -> None:
    found = totals(machine.world)
    assert found.claims == found.devices == {}
    assert set(found.clusters.values()) == {"Waiting"}
    assert EAST in found.clusters


def test_counts_claims_by_reason_and_devices_by_use(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=2)
    before = totals(machine.world)
    assert {use: number for (_, use), number in before.devices.items() if number} == {"free": 2}
    granted(machine, east, an_immediate_claim("one"))
    east.tells(a_claim(name="two", uid="uid-two"))
    machine.run()
    after = totals(machine.world)
    assert after.claims == {("Allocated", ""): 1, ("Pending", "WaitingForConsumer"): 1}
    assert {use: number for (_, use), number in after.devices.items() if number} == {"free": 1, "held": 1}
    assert after.clusters[EAST] == "Ready"
    assert after.ledger_sequence == machine.world.ledger_last > before.ledger_sequence
    assert after.state_sequence == machine.world.position > before.state_sequence


def test_counts_tainted_devices_by_who_said_so(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=2)
    sequence = granted(machine, east, an_immediate_claim("one"))
    allocation = machine.last(Allocate)[1].allocation
    broken = {"driver": DRIVER, "pool": RACK, "device": "gpu-0", "conditions": [{"type": "Healthy", "status": "False"}]}
    east.tells(an_immediate_claim("one"), allocation, decision=settled(sequence), devices=[broken])
    machine.run()
    for device in ("gpu-0", "gpu-1"):
        assert machine.device_command("taint", device) == ""
    assert totals(machine.world).tainted == {("fabric/f", "report"): 1, ("fabric/f", "operator"): 2}


def test_devices_of_a_pool_that_is_not_whole_are_not_free(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=2)
    east.publishes(a_slice(some_devices(2), slice_count=2))
    machine.run()
    found = totals(machine.world)
    assert {use: number for (_, use), number in found.devices.items() if number} == {"unusable": 2}
