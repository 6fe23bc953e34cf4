"""No entry is larger than a message may be, whatever clusters and operators say: it would end each broker in turn.

`Driven` looks at the size of every entry that it stores; here are the largest of each kind.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from broker.machine import intake
from broker.machine.claims import HOLDERS_TOLD
from broker.machine.core import ENTRY_BYTES_MAX
from broker.world.federation import Federation, TaintRuleSettings
from schemas.resource import DeviceToleration, ResourceClaim, limits
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    ClassBrokered,
    ClusterAhead,
    ClusterCordoned,
    CollisionFound,
    DeviceCommand,
    DeviceTainted,
    Inputs,
    OperatorCommand,
    OutcomeRecorded,
    ReasonChanged,
    Release,
    TaintRulesChanged,
    inputs_of,
)
from schemas.wire.state import Rejected
from tests.builders import DRIVER, a_config, a_request, a_slice, a_toleration, some_devices
from tests.machine.conftest import Starter
from tests.machine.driven import (
    EAST,
    HUB,
    ONE_FABRIC,
    WEST,
    Agent,
    Driven,
    a_brokered_class,
    an_allocation,
    an_immediate_claim,
    everyone_heard,
    granted,
    reason,
    settled,
)

LONGEST = intake.NAME_LENGTH_MAX
QUOTES = '"' * (LONGEST // 2)  # in JSON as long as the longest name
CONTROL = "\x01"  # six bytes in JSON


def long_name(number: int, length: int = LONGEST) -> str:
    return f"{number:05}{'x' * (length - 5)}"


def with_long_names(name: str = "claim", number: int = 0) -> ResourceClaim:
    claim = an_immediate_claim(name)
    metadata = msgspec.structs.replace(
        claim.metadata, name=long_name(number), namespace=QUOTES, uid=long_name(number, 200)
    )
    return msgspec.structs.replace(claim, metadata=metadata)


def largest_allocation(devices: int = intake.RESULTS_MAX) -> dict[str, Any]:
    """As large as an allocation may be that a cluster shows."""
    amounts = {long_name(each): QUOTES for each in range(intake.AMOUNTS_MAX)}
    results = [
        {"request": QUOTES, "driver": QUOTES, "pool": QUOTES, "device": long_name(each), "shareID": QUOTES}
        | {"consumedCapacity": amounts}
        for each in range(devices)
    ]
    return {"devices": {"results": results}}


def tolerating(count: int, devices: int) -> ResourceClaim:
    tolerations = [a_toleration(f"example.com/k{number}") for number in range(count)]
    return an_immediate_claim("tolerant", a_request(count=devices, tolerations=tolerations))


# --- decisions


def test_an_allocation_that_no_message_takes_is_not_made_and_says_why(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=33)
    claim = tolerating(5_000, 32)
    west.tells(claim)
    east.tells(an_immediate_claim("small"))
    machine.run()
    assert (reason(machine, west, claim), machine.letters) == ("AllocationTooLarge", [])
    assert [entry.name for entry in machine.recorded(Allocate).values()] == ["small"]


def test_what_just_fits_is_given(machine: Driven) -> None:
    _, west = everyone_heard(machine, devices=32)
    each = len(encode(DeviceToleration(key="example.com/k100", operator="Exists"))) + 1
    claim = tolerating((ENTRY_BYTES_MAX - 64 * 1024) // each // 32, 32)
    west.tells(claim)
    machine.run()
    assert ENTRY_BYTES_MAX * 0.8 < len(encode(machine.last(Allocate)[1])) <= ENTRY_BYTES_MAX


def test_such_a_claim_is_tried_again_when_its_classes_ask_for_less(machine: Driven) -> None:
    _, west = everyone_heard(machine, devices=3)
    configs = [a_config(number=each) for each in range(limits.CONFIG_MAX)]
    names = ["a", "b", "c"]
    loaded = [a_brokered_class(f"{name}.example.com", config=configs) for name in names]
    west.publishes(*loaded)
    claim = an_immediate_claim("loaded", *(a_request(name, of=f"{name}.example.com") for name in names))
    west.tells(claim)
    machine.run()
    assert reason(machine, west, claim) == "AllocationTooLarge", "an API server takes 64 configurations, not 96"
    west.publishes(a_brokered_class("a.example.com"))
    machine.run()
    assert len(machine.last(Allocate)[1].allocation["devices"]["config"]) == limits.ALLOCATION_CONFIG_MAX


def test_the_longest_outcome_and_the_longest_release(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    claim = an_immediate_claim()
    sequence = granted(machine, west, claim)
    allocation = machine.last(Allocate)[1].allocation
    why = CONTROL * 20_000
    west.tells(claim, allocation, decision=settled(sequence), rejected=Rejected(sequence, why, why))
    machine.run()
    release, entry = machine.last(Release)
    assert len(encode(entry)) > 10_000
    west.tells(claim, allocation, decision=settled(release, "Failed", why))
    machine.run()
    assert machine.last(OutcomeRecorded)[1].decision_sequence == release


# --- what clusters show


def test_the_largest_allocation_that_a_cluster_shows_is_adopted_and_found_to_collide(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    for number in range(2):
        west.tells(with_long_names(number=number), largest_allocation())
        machine.run()
    assert machine.letters == []
    for kind in (Adopted, CollisionFound):
        assert len(encode(machine.last(kind)[1])) > ENTRY_BYTES_MAX / 2


@pytest.mark.parametrize(
    "amounts",
    [
        pytest.param({f"example.com/k{each}": "1" for each in range(60_000)}, id="very many amounts"),
        pytest.param({"memory": "1" * 1_000_000}, id="a very long amount"),
        pytest.param({"k" * 1_000_000: "1"}, id="a very long name of an amount"),
    ],
)
def test_an_allocation_that_no_message_takes_is_not_adopted_and_holds_its_device(
    machine: Driven, amounts: Mapping[str, str]
) -> None:
    east, west = everyone_heard(machine)
    claim = an_immediate_claim()
    west.tells(claim, an_allocation("gpu-0", shareID="s", consumedCapacity=amounts))
    east.tells(an_immediate_claim("other"))
    machine.run()
    assert reason(machine, west, claim) == "Unreadable"
    assert [letter.reason for letter in machine.letters] == ["Unreadable"]
    assert (machine.recorded(Adopted), machine.recorded(Allocate)) == ({}, {})
    assert machine.is_in_use("gpu-0")


def test_of_very_many_holders_the_first_are_named(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    for number in range(60):
        west.tells(with_long_names(number=number), an_allocation("gpu-0", shareID=f"s{number}"))
    machine.run()
    whole = an_immediate_claim("whole")
    west.tells(whole, an_allocation("gpu-0"))
    machine.run()
    *first, more = machine.last(CollisionFound)[1].held_by
    assert (len(first), more) == (HOLDERS_TOLD, f"{60 - HOLDERS_TOLD} more")


def test_the_longest_reasons(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    claim = an_immediate_claim("broken")
    west.tells(claim, error=CONTROL * 100_000)
    machine.run()
    assert len(encode(machine.last(ReasonChanged)[1])) > 20_000
    selectors = [f"device.attributes['{CONTROL * 9_000}'].x == {number}" for number in range(32)]
    west.tells(an_immediate_claim("failing", a_request("gpu", *selectors)))
    machine.run()


def test_a_cluster_that_knows_too_much_is_told_shortly(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    west.tells(with_long_names(), decision=settled(10**15))
    machine.run()
    assert machine.last(ClusterAhead)[1].cluster == WEST


# --- what operators order, and the hub


def test_many_orders_go_into_several_batches(machine: Driven) -> None:
    everyone_heard(machine)
    before = len(machine.ledger)
    for number in range(300):
        machine.machine.order(
            OperatorCommand("cordon" if number % 2 else "uncordon", EAST, CONTROL * 253, CONTROL * 1_000)
        )
    machine.run()
    assert len(machine.answers) == 300
    assert len(machine.recorded(ClusterCordoned)) == 299, "the first one had nothing to undo"
    batches = [inputs for each in machine.ledger[before:] if (inputs := inputs_of(decode_entry(each.payload)))]
    assert len(batches) > 10
    assert sum(len(step.orders) for inputs in batches for step in inputs.steps) == 300


def test_orders_that_lead_to_nothing_do_not_gather(machine: Driven) -> None:
    everyone_heard(machine)
    for _ in range(100):
        machine.machine.order(OperatorCommand("uncordon", EAST, CONTROL * 253, CONTROL * 1_000))
        machine.step()
    machine.run()
    assert len(machine.answers) == 100
    assert len([each for each in machine.recorded(Inputs).values() if each.steps[0].orders]) > 3


def test_a_class_that_no_message_takes_is_not_told_to_members(hub_machine: Driven) -> None:
    hub = Agent(hub_machine, HUB)
    big = a_brokered_class("big.example.com", *[f"'{CONTROL * 9_000}' == ''" for _ in range(32)])
    hub.publishes(big, a_brokered_class())
    for agent in (hub, Agent(hub_machine, EAST), Agent(hub_machine, WEST)):
        agent.syncs()
    hub_machine.run()
    assert {entry.name for entry in hub_machine.recorded(ClassBrokered).values()} == {"gpu.example.com"}
    assert [each.code for each in hub_machine.notices].count("ClassTooLarge") == 2
    hub.publishes(a_brokered_class("big.example.com"))
    hub_machine.run()
    assert hub_machine.last(ClassBrokered)[1].spec is not None
    hub.publishes(big)
    hub_machine.run()
    assert hub_machine.last(ClassBrokered)[1].spec is None, "what they were told is not true any more"


def test_rules_with_long_texts_are_as_many_as_fit(start: Starter) -> None:
    driven = start(msgspec.structs.replace(ONE_FABRIC, device_taint_rules=TaintRuleSettings([EAST])))
    east, _ = everyone_heard(driven)
    label = "k" * 63
    pool = ".".join([label] * 3)
    for first in range(0, 500, 100):
        east.publishes(a_slice(some_devices(100, first=first), name=f"s{first}", pool=pool, slice_count=5))
    driven.run()  # orders come before messages
    for number in range(500):
        device = DeviceCommand("taint", DRIVER, pool, f"gpu-{number}", "ada", CONTROL * 1_000, effect="NoExecute")
        driven.machine.order(msgspec.structs.replace(device, key=f"{pool}/{label}"))
    driven.run()
    assert len(driven.recorded(DeviceTainted)) == 500
    assert len(driven.last(TaintRulesChanged)[1].rules) < 500
    assert driven.notices[-1].code == "TooManyTaintRules"


def test_a_checkpoint_of_very_many_clusters(start: Starter) -> None:
    driven = start(Federation())
    for number in range(200):
        agent = Agent(driven, f"c{number}")
        agent.syncs()
        driven.machine.order(OperatorCommand("cordon", agent.name, CONTROL * 253, CONTROL * 1_000))
    driven.run()
    driven.rotate()
    driven.rotate()
