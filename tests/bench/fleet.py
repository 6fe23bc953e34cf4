"""The fleet that the benchmarks share: slices of 128 devices, 8 slices a pool, ten models in runs of 16 devices."""

from collections.abc import Iterator, Sequence

from broker.world.pools import Pool
from schemas.resource import Device, DeviceAttribute, ResourceClaim, ResourceSlice
from tests.builders import DRIVER, a_claim, a_device, a_pool, a_request, a_slice

DEVICES_IN_SLICE = 128
SLICES_IN_POOL = 8
MODELS = 10
IMMEDIATE = {"dragoman.dev/allocate": "Immediate"}


def some_slices(devices: int) -> list[ResourceSlice]:
    """Slices with so many devices together; the pools that they belong to are complete."""
    starts = list(range(0, devices, DEVICES_IN_SLICE))
    slices = []
    for index, start in enumerate(starts):
        pool = index // SLICES_IN_POOL
        slices.append(
            a_slice(
                [_device(number) for number in range(start, min(start + DEVICES_IN_SLICE, devices))],
                name=f"slice-{index:04}",
                pool=f"rack-{pool:03}",
                slice_count=min(SLICES_IN_POOL, len(starts) - pool * SLICES_IN_POOL),
            )
        )
    return slices


def some_pools(devices: int, scope: str) -> list[Pool]:
    """The same as pools, in allocation order."""
    slices = some_slices(devices)
    return [
        a_pool(*slices[start : start + SLICES_IN_POOL], scope=scope) for start in range(0, len(slices), SLICES_IN_POOL)
    ]


def in_order(pools: Sequence[Pool]) -> Iterator[tuple[Pool, ResourceSlice, Device]]:
    """All devices in the order in which they are to be tried."""
    for pool in pools:
        for slice_, device in pool:
            yield pool, slice_, device


def a_claim_for(expression: str, index: int, namespace: str = "default") -> ResourceClaim:
    """A claim for one device that the expression selects."""
    return a_claim(a_request("gpu", expression), name=f"claim-{index:06}", namespace=namespace, annotations=IMMEDIATE)


def selects_model(model: int) -> str:
    """Selects one device in ten."""
    return f'device.attributes["{DRIVER}"].model == "model-{model % MODELS}"'


def selects_device(number: int) -> str:
    """Selects a single device."""
    return f'device.attributes["{DRIVER}"].uuid == "uuid-{number:07}"'


def _device(number: int) -> Device:
    model = number // 16 % MODELS
    return a_device(
        f"gpu-{number:07}",
        capacity={"memory": f"{8 * (model + 1)}Gi"},
        model=f"model-{model}",
        uuid=f"uuid-{number:07}",
        index=number % 8,
        fabric=f"fab-{number // 16}",
        driverVersion=DeviceAttribute(version="550.54.15"),
    )
