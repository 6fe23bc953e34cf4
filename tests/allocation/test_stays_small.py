"""Claims that the search must answer within few steps; without its rules, each takes millions."""

import pytest
from msgspec.structs import replace

from broker.allocation.allocate import allocate_claim
from broker.allocation.index import DeviceIndex
from broker.allocation.snapshot import Snapshot
from broker.world.keys import DeviceKey
from broker.world.usage import InUse, Use
from schemas.resource import (
    AllocationResult,
    CapacityRequirements,
    Counter,
    CounterSet,
    Device,
    DeviceConstraint,
    DeviceCounterConsumption,
    DeviceRequest,
)
from tests.allocation.test_allocate import a_snapshot, devices
from tests.builders import (
    DRIVER,
    a_choice,
    a_claim,
    a_device,
    a_distinct,
    a_match,
    a_pool,
    a_request,
    a_request_for_all,
    a_slice,
    a_sub_request,
)

OF = f'device.attributes["{DRIVER}"]'
SIZE_1 = f"{OF}.size == 1"


def of_devices(fleet: list[Device]) -> Snapshot:
    starts = range(0, len(fleet), 128)
    slices = [a_slice(fleet[n : n + 128], name=f"s{n:05}", slice_count=len(starts)) for n in starts]
    return a_snapshot(a_pool(*slices))


def take(
    device_index: DeviceIndex,
    snapshot: Snapshot,
    *requests: DeviceRequest,
    constraints: list[DeviceConstraint],
    steps: int,
) -> list[str]:
    claim = a_claim(*requests, constraints=constraints)
    found = allocate_claim(claim, snapshot, device_index, step_budget=steps)
    assert isinstance(found, AllocationResult), found.message
    return devices(found)


# --- what a later request needs


@pytest.mark.parametrize(
    ("few", "count", "expected"),
    [
        pytest.param([a_request_for_all("few", SIZE_1)], 8, range(16, 24), id="all of 16"),
        pytest.param([a_request("few", SIZE_1, count=16)], 8, range(16, 24), id="exactly 16 of 16"),
        pytest.param([a_request("few", SIZE_1, count=14)], 8, [0, 1, *range(16, 22)], id="14 of 16"),
        pytest.param(
            [a_request("few", SIZE_1, count=9), a_request("rest", f"{SIZE_1} && true", count=6)],
            8,
            [0, *range(16, 23)],
            id="9 and 6 of 16",
        ),
    ],
)
def test_leaves_a_later_request_the_devices_that_it_needs(
    device_index: DeviceIndex, few: list[DeviceRequest], count: int, expected: list[int]
) -> None:
    fleet = [a_device(f"d{n:02}", size=1 if n < 16 else 2, uuid=f"u{n}") for n in range(32)]
    distinct = [a_distinct(f"{DRIVER}/uuid", "some")]
    found = take(
        device_index, of_devices(fleet), a_request("some", count=count), *few, constraints=distinct, steps=2_000
    )
    assert found[:count] == [f"d{n:02}" for n in expected]


# --- what the devices with one value can do together


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([(8, 4), (2, 1)], id="two requests with alternatives"),
        pytest.param([(2, 1)] * 4 + [(2, 1)], id="several before the one that is hard to serve"),
    ],
)
def test_leaves_out_values_that_no_alternative_of_another_request_has(
    device_index: DeviceIndex, requests: list[tuple[int, int]]
) -> None:
    fleet = [a_device(f"a{n:04}", fabric=f"f{n // 8}", model="a") for n in range(1024)]
    fleet += [a_device(f"b{n}", fabric=f"f{n}", model="b") for n in range(120, 128)]
    models = ["a"] * (len(requests) - 1) + ["b"]
    choices = [
        a_choice(f"r{n}", *(a_sub_request(f"s{m}", f'{OF}.model == "{model}"', count=m) for m in counts))
        for n, (model, counts) in enumerate(zip(models, requests, strict=True))
    ]
    found = take(device_index, of_devices(fleet), *choices, constraints=[a_match(f"{DRIVER}/fabric")], steps=5_000)
    assert found[-1] == "b120"


@pytest.mark.parametrize(
    ("gpus", "sizes"),
    [
        pytest.param(128, [(4, 2)], id="4 and 4 of one of 128"),
        pytest.param(64, [(4, 1), (2, 2)], id="4, 2 and 2 of one of 64"),
        pytest.param(64, [(2, 4)], id="four times 2 of one of 64"),
        pytest.param(256, [(4, 1), (2, 2)], id="4, 2 and 2 of one of 256"),
    ],
)
def test_leaves_out_gpus_with_too_little_left_in_their_counters(
    device_index: DeviceIndex, gpus: int, sizes: list[tuple[int, int]]
) -> None:
    partitions = [(size, n) for size in (8, 4, 2, 1) for n in range(8 // size)]
    members = [
        replace(
            a_device(f"g{gpu:03}-{size}-{n}", size=size, gpu=gpu),
            consumes_counters=[
                DeviceCounterConsumption(counter_set=f"gpu-{gpu}", counters={"slices": Counter(value=str(size))})
            ],
        )
        for gpu in range(gpus)
        for size, n in partitions
    ]
    sets = [CounterSet(name=f"gpu-{gpu}", counters={"slices": Counter(value="8")}) for gpu in range(gpus)]
    starts, of_sets = range(0, len(members), 60), range(0, gpus, 8)
    total = len(starts) + len(of_sets)
    pool = a_pool(
        *(a_slice(members[n : n + 60], name=f"d{n:04}", slice_count=total) for n in starts),
        *(a_slice([], name=f"c{n:03}", slice_count=total, shared_counters=sets[n : n + 8]) for n in of_sets),
    )
    # One slice is held on every GPU but the last.
    held = InUse({DeviceKey(pool.key, f"g{gpu:03}-1-0"): Use(("holder",)) for gpu in range(gpus - 1)})
    requests = [a_request(f"r{n}", f"{OF}.size == {size}", count=count) for n, (size, count) in enumerate(sizes)]
    same = [a_match(f"{DRIVER}/gpu")]
    found = take(device_index, a_snapshot(pool, in_use=held), *requests, constraints=same, steps=15_000)
    expected = [f"g{gpus - 1:03}-{size}-{n}" for size, count in sizes for n in range(count)]
    assert found == expected


@pytest.mark.parametrize(
    "amounts", [pytest.param(["40Gi", "35Gi"], id="unlike"), pytest.param(["40Gi"] * 2, id="alike")]
)
def test_leaves_out_gpus_with_too_little_capacity_left(device_index: DeviceIndex, amounts: list[str]) -> None:
    fleet = [
        replace(a_device(f"d{n:03}", gpu=n, capacity={"memory": "80Gi"}), allow_multiple_allocations=True)
        for n in range(256)
    ]
    snapshot = of_devices(fleet)
    taken = Use(("holder",), is_whole=False, is_shared=True, consumed={"memory": 10 * 2**30 * 10**9})
    held = InUse({DeviceKey(snapshot.pools[0].key, f"d{n:03}"): taken for n in range(255)})
    requests = [
        a_request(f"r{n}", capacity=CapacityRequirements(requests={"memory": amount}))
        for n, amount in enumerate(amounts)
    ]
    snapshot = replace(snapshot, in_use=held)
    same = [a_match(f"{DRIVER}/gpu")]
    assert take(device_index, snapshot, *requests, constraints=same, steps=10_000) == ["d255", "d255"]


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([a_request("a", count=4)], id="one request"),
        pytest.param([a_request("a", count=2), a_request("b", f"{OF}.numa > 0", count=2)], id="two requests"),
    ],
)
def test_leaves_out_values_with_too_few_distinct_values(
    device_index: DeviceIndex, requests: list[DeviceRequest]
) -> None:
    # All fabrics but the last have only three NUMA nodes.
    fleet = [a_device(f"d{n:04}", fabric=n // 8, numa=n % 8 % (4 if n >= 4088 else 3)) for n in range(4096)]
    constraints = [a_match(f"{DRIVER}/fabric"), a_distinct(f"{DRIVER}/numa")]
    found = take(device_index, of_devices(fleet), *requests, constraints=constraints, steps=10_000)
    assert found == ["d4088", "d4089", "d4090", "d4091"]


# --- claims made to be slow


def test_constraints_that_say_the_same_are_looked_at_once(device_index: DeviceIndex) -> None:
    fleet = [a_device(f"d{n}", model="a") for n in range(8)]
    choices = [a_choice(f"r{n}", *(a_sub_request(f"s{m}") for m in range(8))) for n in range(8)]
    same = [a_match(f"{DRIVER}/model")] * 32
    found = take(device_index, of_devices(fleet), *choices, constraints=same, steps=2_500)
    assert found == [f"d{n}" for n in range(8)]
