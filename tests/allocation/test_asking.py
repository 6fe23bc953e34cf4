"""Selectors are asked about a fleet a piece at a time, however large it is; what is asked once is asked for all."""

import gc
from collections.abc import Sequence

import pytest

from broker.allocation.allocate import MoreToAskError, allocate_claim
from broker.allocation.budget import Budget
from broker.allocation.cel.engine import SelectorEngine
from broker.allocation.index import DeviceIndex
from broker.allocation.matching import Asking
from broker.allocation.reasons import NoFit, Reason
from broker.allocation.snapshot import Snapshot
from schemas.resource import AllocationResult, DeviceDerivedAttribute, ResourceClaim, ResourceSlice
from tests.allocation.test_allocate import a_snapshot, devices
from tests.allocation.test_index import CountingEngine
from tests.builders import DRIVER, a_claim, a_device, a_match, a_pool, a_request, a_slice

UUID = f'device.attributes["{DRIVER}"].uuid'
STEPS = 1_000
# An evaluation counts for 15 steps and more; the last one may begin with one step left.
MOST_IN_A_PIECE = STEPS // 15 + 1


def slices_of_different_devices(count: int) -> list[ResourceSlice]:
    return [
        a_slice(
            [a_device(f"d{n}", uuid=f"u{n}", model="a") for n in range(first, min(count, first + 128))],
            name=f"s{first:06}",
            slice_count=-(-count // 128),
        )
        for first in range(0, count, 128)
    ]


def in_pieces(claim: ResourceClaim, snapshot: Snapshot, index: DeviceIndex, asked: Sequence[object]) -> list[int]:
    """How much was asked in each piece, until the claim could be decided; the last piece decided it."""
    pieces = []
    while True:
        before = len(asked)
        try:
            allocate_claim(claim, snapshot, index, step_budget=25_000, allowance=Budget(STEPS))
        except MoreToAskError:
            pieces.append(len(asked) - before)
        else:
            return [*pieces, len(asked) - before]


@pytest.mark.parametrize(
    "condition", [f'{UUID} != "u0"', f'{UUID}.startsWith("u69")', f'{UUID} == "nobody has it" || false']
)
def test_a_fleet_of_any_size_is_asked_in_pieces(engine: SelectorEngine, condition: str) -> None:
    counting = CountingEngine(engine)
    index, snapshot = DeviceIndex(counting), a_snapshot(a_pool(*slices_of_different_devices(7_000)))
    claim = a_claim(a_request("gpu", condition))
    pieces = in_pieces(claim, snapshot, index, counting.asked)
    assert len(pieces) > 50
    assert max(pieces) <= MOST_IN_A_PIECE
    assert counting.asked.count(condition) == 7_000  # each device once
    whole = allocate_claim(claim, snapshot, DeviceIndex(engine), step_budget=25_000)
    assert allocate_claim(claim, snapshot, index, step_budget=25_000) == whole
    assert isinstance(whole, AllocationResult) == ("nobody" not in condition)


def test_who_asks_the_same_afterwards_finds_it_answered(engine: SelectorEngine) -> None:
    counting = CountingEngine(engine)
    index, snapshot = DeviceIndex(counting), a_snapshot(a_pool(*slices_of_different_devices(500)))
    for name in ("one", "two"):
        pieces = in_pieces(a_claim(a_request("gpu", f'{UUID} != "u0"'), name=name), snapshot, index, counting.asked)
    assert pieces == [0]


def test_only_a_changed_slice_is_asked_about_again(engine: SelectorEngine) -> None:
    counting = CountingEngine(engine)
    index, slices = DeviceIndex(counting), slices_of_different_devices(500)
    claim = a_claim(a_request("gpu", f'{UUID} != "u0"'))
    in_pieces(claim, a_snapshot(a_pool(*slices)), index, counting.asked)
    renewed = a_slice([a_device("new", uuid="new")], name=slices[-1].metadata.name, slice_count=4)
    pieces = in_pieces(claim, a_snapshot(a_pool(*slices[:-1], renewed)), index, counting.asked)
    assert sum(pieces) == 1


def test_pools_that_go_while_a_claim_asks_are_not_asked(
    engine: SelectorEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.world.changes._KEPT", 4)  # nobody knows any more what has changed
    index, claim = DeviceIndex(engine), a_claim(a_request("gpu", f'{UUID} != "u0"'))
    going = [a_pool(a_slice([a_device(name, uuid=name)], pool=name)) for name in ("p1", "p2")]
    with pytest.raises(MoreToAskError):
        allocate_claim(claim, a_snapshot(*going), index, allowance=Budget(1))
    for count in (1, 2, 1, 2, 1):
        coming = a_pool(a_slice([a_device(f"d{n}", uuid=f"d{n}") for n in range(count)], pool="p3"))
        allocate_claim(a_claim(), a_snapshot(coming), index)
    assert devices(allocate_claim(claim, a_snapshot(coming), index, allowance=Budget(STEPS))) == ["d0"]


def test_what_was_asked_by_halves_does_not_keep_what_was_forgotten(
    engine: SelectorEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.allocation.matching._COMBINATIONS_KEPT", 500)
    index, snapshot = DeviceIndex(engine), a_snapshot(a_pool(*slices_of_different_devices(100)))
    for number in range(150):
        claim = a_claim(a_request("gpu", f'{UUID} != "nobody-{number}"'))
        allocate_claim(claim, snapshot, index, allowance=Budget(100_000))
    gc.collect()
    alive = [each for each in gc.get_objects() if isinstance(each, Asking)]
    assert len({id(each) for each in alive if not each.is_valid}) <= 64  # those since the last time that it tidied


def test_derived_attributes_are_computed_in_pieces(engine: SelectorEngine) -> None:
    computed = DeviceDerivedAttribute(name="example.com/x", expression=f'{UUID} + "x"')
    claim = a_claim(a_request(count=2, derived_attributes=[computed]), constraints=[a_match("example.com/x")])
    index, snapshot = DeviceIndex(engine), a_snapshot(a_pool(*slices_of_different_devices(600)))
    assert len(in_pieces(claim, snapshot, index, [])) > 8
    found = allocate_claim(claim, snapshot, index, step_budget=25_000)
    assert isinstance(found, NoFit)
    assert found.reason is Reason.CONSTRAINT_UNSATISFIABLE
    assert found == allocate_claim(claim, snapshot, DeviceIndex(engine), step_budget=25_000)


def test_derived_attributes_are_computed_once_for_devices_that_agree_in_what_they_read(engine: SelectorEngine) -> None:
    computed = DeviceDerivedAttribute(name="example.com/x", expression=f'device.attributes["{DRIVER}"].model + "x"')
    claim = a_claim(a_request(count=2, derived_attributes=[computed]), constraints=[a_match("example.com/x")])
    counting = CountingEngine(engine)
    snapshot = a_snapshot(a_pool(*slices_of_different_devices(100)))
    assert devices(allocate_claim(claim, snapshot, DeviceIndex(counting))) == ["d0", "d1"]
    assert len(counting.bound) == 1 + 1  # one for the class's selector
