"""The world as numbers: they add up to what `report` says claim by claim and pool by pool."""

from broker.machine.totals import totals
from tests.builders import a_claim
from tests.machine.driven import EAST, Driven, an_immediate_claim, everyone_heard, granted


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
