"""Pools from slices: which generation counts, when a pool may be used, and what is said when not."""

import pytest
from msgspec.structs import replace

from broker.world.keys import PoolKey
from broker.world.pools import assemble_pool, in_allocation_order
from schemas.resource import Counter, CounterSet, Device, DeviceCounterConsumption, ResourceSlice
from tests.builders import a_device, a_pool, a_slice

KEY = PoolKey("fabric/f", "gpu.example.com", "rack7")


def test_orders_slices_by_name_and_devices_as_published() -> None:
    late = a_slice([a_device("z"), a_device("a")], name="s2", slice_count=2)
    early = a_slice([a_device("m")], name="s1", slice_count=2)
    pool = assemble_pool(KEY, [late, early])
    assert pool.is_usable
    assert [(each.metadata.name, device.name) for each, device in pool] == [("s1", "m"), ("s2", "z"), ("s2", "a")]


def test_believes_only_the_highest_generation() -> None:
    old = [a_slice([a_device(f"old-{n}")], name=f"old-{n}", generation=3, slice_count=2) for n in range(2)]
    pool = assemble_pool(KEY, [*old, a_slice([a_device("new")], name="new", generation=4)])
    assert (pool.generation, pool.is_complete) == (4, True)
    assert [device.name for _, device in pool] == ["new"]
    assert pool.obsolete == ("old-0", "old-1")


@pytest.mark.parametrize(
    ("slices", "is_complete", "problem"),
    [
        pytest.param(
            [a_slice(name="s1", generation=4, slice_count=3), a_slice([], name="s2", generation=4, slice_count=3)],
            False,
            "2 of 3 slices of generation 4",
            id="a slice is missing",
        ),
        pytest.param(
            [a_slice(name="s1"), a_slice([], name="s2")],
            False,
            "2 slices of generation 1, which says that it has 1",
            id="one slice too many",
        ),
        pytest.param(
            [a_slice(name="s1", slice_count=2), a_slice([], name="s2", slice_count=3)],
            False,
            "the slices of generation 1 disagree on resourceSliceCount: s1 says 2, s2 says 3",
            id="the slices disagree on their number",
        ),
        pytest.param(
            [
                a_slice([a_device("b"), a_device("a")], name="s1", slice_count=2),
                a_slice([a_device("a"), a_device("c"), a_device("b")], name="s2", slice_count=2),
            ],
            True,
            "more than one device is named a, b",
            id="two devices share a name",
        ),
        pytest.param(
            [
                a_slice([a_device("a")], name="s1", slice_count=2, node_name="n1"),
                a_slice([a_device("a")], name="s2", slice_count=2, node_name="n2"),
            ],
            True,
            "more than one device is named a",
            id="two devices of different nodes share a name",
        ),
    ],
)
def test_says_why_a_pool_may_not_be_used(slices: list[ResourceSlice], is_complete: bool, problem: str) -> None:
    pool = assemble_pool(KEY, slices)
    assert not pool.is_usable
    assert (pool.is_complete, pool.problem) == (is_complete, problem)


def test_an_old_generation_does_not_make_the_new_one_complete() -> None:
    pool = assemble_pool(KEY, [a_slice(name="old", slice_count=2), a_slice(name="new", generation=2, slice_count=2)])
    assert not pool.is_complete


def test_pools_are_tried_by_driver_and_name_whatever_their_scope() -> None:
    pools = [
        a_pool(a_slice(driver="b.example.com", pool="a"), scope="cluster/a"),
        a_pool(a_slice(driver="a.example.com", pool="b"), scope="fabric/f"),
        a_pool(a_slice(driver="a.example.com", pool="a"), scope="fabric/f"),
        a_pool(a_slice(driver="a.example.com", pool="a"), scope="cluster/a"),
    ]
    assert [str(pool.key) for pool in in_allocation_order(pools)] == [
        "cluster/a/a.example.com/a",
        "fabric/f/a.example.com/a",
        "fabric/f/a.example.com/b",
        "cluster/a/b.example.com/a",
    ]


def _counters(name: str = "gpu-0", **amounts: str) -> CounterSet:
    return CounterSet(name=name, counters={key: Counter(value=value) for key, value in amounts.items()})


def _drawing(counter_set: str = "gpu-0", **amounts: str) -> Device:
    drawn = DeviceCounterConsumption(
        counter_set=counter_set, counters={key: Counter(value=value) for key, value in amounts.items()}
    )
    return replace(a_device(), consumes_counters=[drawn])


@pytest.mark.parametrize(
    ("device", "sets", "problem"),
    [
        pytest.param(_drawing(a="1"), [_counters(a="2")], None, id="a counter that is there"),
        pytest.param(_drawing(a="3"), [_counters(a="2")], None, id="too little of it is the device's problem"),
        pytest.param(
            _drawing(a="1"), [], "device gpu-0 draws from counter set gpu-0, which is not there", id="no such set"
        ),
        pytest.param(
            _drawing(b="1"),
            [_counters(a="2")],
            "device gpu-0 draws from counter b of counter set gpu-0, which is not there",
            id="no such counter",
        ),
        pytest.param(
            a_device(), [_counters(a="1"), _counters(a="1")], "more than one counter set is named gpu-0", id="twice"
        ),
        pytest.param(_drawing(a="x"), [_counters(a="1")], "device gpu-0 draws 'x' from counter a", id="no quantity"),
        pytest.param(a_device(), [_counters(a="-1")], "counter a of counter set gpu-0 is '-1'", id="below zero"),
    ],
)
def test_counters_that_contradict_each_other_spoil_the_pool(
    device: Device, sets: list[CounterSet], problem: str | None
) -> None:
    slices = [a_slice([device], name="devices", slice_count=1 + len(sets))]
    slices += [
        a_slice([], name=f"counters-{index}", slice_count=1 + len(sets), shared_counters=[each])
        for index, each in enumerate(sets)
    ]
    assert assemble_pool(KEY, slices).problem == problem


def test_a_slice_has_either_devices_or_counters() -> None:
    pool = assemble_pool(KEY, [a_slice(name="s", shared_counters=[_counters(a="1")])])
    assert pool.problem == "slice s has both counters and devices"
