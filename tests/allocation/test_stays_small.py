"""Claims that the search must answer within few steps; without its rules, each takes millions."""

import pytest

from broker.allocation.allocate import allocate_claim
from broker.allocation.index import DeviceIndex
from broker.allocation.snapshot import Snapshot
from schemas.resource import AllocationResult, Device, DeviceConstraint, DeviceRequest
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
