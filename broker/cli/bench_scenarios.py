"""The fleets and claims of `dragoman bench allocate`; tests/oracle makes the very same ones for upstream."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

from schemas.resource import (
    CapacityRequirements,
    CELDeviceSelector,
    Counter,
    CounterSet,
    Device,
    DeviceAttribute,
    DeviceCapacity,
    DeviceClaim,
    DeviceClass,
    DeviceClassSpec,
    DeviceConstraint,
    DeviceCounterConsumption,
    DeviceRequest,
    DeviceSelector,
    ExactDeviceRequest,
    ObjectMeta,
    ResourceClaim,
    ResourceClaimSpec,
    ResourcePool,
    ResourceSlice,
    ResourceSliceSpec,
)

DRIVER = "gpu.example.com"
_MODELS = 10
_DEVICES_IN_FABRIC = 16
_DEVICES_IN_SLICE = 128
_SLICES_IN_POOL = 8

_GPUS_IN_POOL = 8
_PARTITIONS_OF_GPU = 15
_GPUS_IN_SLICE = 4
_SIZES = (1, 1, 2, 1, 4, 2, 1, 8)  # that claims ask for in turn

_MODEL_AND_MEMORY = (
    f'device.attributes["{DRIVER}"].model == "model-3" && '
    f'device.capacity["{DRIVER}"].memory.compareTo(quantity("16Gi")) >= 0'
)


class Scenario(NamedTuple):
    """What to measure.

    fleet: the slices of so many devices.
    claim: the k-th claim, from 0.
    """

    fleet: Callable[[int], Iterator[ResourceSlice]]
    claim: Callable[[int], ResourceClaim]


def driver_class() -> DeviceClass:
    """Every device of the driver."""
    return DeviceClass(
        metadata=ObjectMeta(name=DRIVER),
        spec=DeviceClassSpec(selectors=_selectors(f'device.driver == "{DRIVER}"')),
    )


def default_claims(name: str, devices: int) -> int:
    """How many claims a scenario has unless one says so."""
    return max(1, devices * 9 // 10) if name == "fill" else 100


# --- claims


def _claim(k: int, request: ExactDeviceRequest, in_one_fabric: bool = False) -> ResourceClaim:
    constraints = [DeviceConstraint(match_attribute=f"{DRIVER}/fabric")] if in_one_fabric else []
    return ResourceClaim(
        metadata=ObjectMeta(namespace="default", name=f"claim-{k:06}", uid=f"uid-{k:06}"),
        spec=ResourceClaimSpec(
            devices=DeviceClaim(requests=[DeviceRequest(name="gpu", exactly=request)], constraints=constraints)
        ),
    )


def _request(count: int, *expressions: str, capacity: CapacityRequirements | None = None) -> ExactDeviceRequest:
    return ExactDeviceRequest(
        device_class_name=DRIVER,
        allocation_mode="ExactCount",
        count=count,
        selectors=_selectors(*expressions),
        capacity=capacity,
    )


def _selectors(*expressions: str) -> list[DeviceSelector]:
    return [DeviceSelector(cel=CELDeviceSelector(expression=each)) for each in expressions]


def _model(model: int) -> str:
    return f'device.attributes["{DRIVER}"].model == "model-{model}"'


def _share(k: int) -> ResourceClaim:
    model = k % _MODELS
    eighth = CapacityRequirements(requests={"memory": f"{model + 1}Gi"})
    return _claim(k, _request(1, _model(model), capacity=eighth))


def _partition(k: int) -> ResourceClaim:
    return _claim(k, _request(1, f'device.attributes["{DRIVER}"].size == {_SIZES[k % len(_SIZES)]}'))


# --- fleets


def _plain_fleet(devices: int, shared: bool | None = None) -> Iterator[ResourceSlice]:
    count = -(-devices // _DEVICES_IN_SLICE)
    for index in range(count):
        pool = index // _SLICES_IN_POOL
        first = index * _DEVICES_IN_SLICE
        made = [_plain_device(i, shared) for i in range(first, min(first + _DEVICES_IN_SLICE, devices))]
        yield _slice(f"slice-{index:04}", pool, min(_SLICES_IN_POOL, count - pool * _SLICES_IN_POOL), made)


def _plain_device(i: int, shared: bool | None) -> Device:
    model = i // _DEVICES_IN_FABRIC % _MODELS
    return Device(
        name=f"gpu-{i:07}",
        attributes={
            "model": _text(f"model-{model}"),
            "uuid": DeviceAttribute(string=f"uuid-{i:07}"),
            "index": _number(i % 8),
            "fabric": _text(f"fab-{i // _DEVICES_IN_FABRIC}"),
            "driverVersion": _DRIVER_VERSION,
        },
        capacity={"memory": _memory(model)},
        allow_multiple_allocations=shared,
    )


_DRIVER_VERSION = DeviceAttribute(version="550.54.15")
_text = cache(lambda text: DeviceAttribute(string=text))
_number = cache(lambda number: DeviceAttribute(int_=number))
_memory = cache(lambda model: DeviceCapacity(value=f"{(model + 1) * 8}Gi"))


def _partitions(devices: int) -> Iterator[ResourceSlice]:
    """Pools of 8 GPUs: a slice with their counters, and two with the 60 partitions of 4 GPUs each."""
    in_slice, in_pool = _GPUS_IN_SLICE * _PARTITIONS_OF_GPU, _GPUS_IN_POOL * _PARTITIONS_OF_GPU
    for pool, first in enumerate(range(0, devices, in_pool)):
        left = min(devices - first, in_pool)
        slices = -(-left // in_slice)
        counters = [CounterSet(name=f"gpu-{gpu}", counters=_counters(8)) for gpu in range(_GPUS_IN_POOL)]
        yield _slice(f"slice-{pool:04}-counters", pool, 1 + slices, [], counters)
        for index in range(slices):
            numbers = range(index * in_slice, min((index + 1) * in_slice, left))
            made = [_partition_device(*divmod(i, _PARTITIONS_OF_GPU)) for i in numbers]
            yield _slice(f"slice-{pool:04}-devices-{index}", pool, 1 + slices, made)


def _partition_device(gpu: int, j: int) -> Device:
    # One of 8, two of 4, four of 2, eight of 1: partition j is a node of a binary tree, in breadth-first order.
    size = 8 >> (j + 1).bit_length() - 1
    return Device(
        name=f"gpu-{gpu}-p{j}",
        attributes={"size": _number(size)},
        consumes_counters=[DeviceCounterConsumption(counter_set=f"gpu-{gpu}", counters=_counters(size))],
    )


def _counters(value: int) -> dict[str, Counter]:
    return {"slices": Counter(value=str(value))}


def _slice(
    name: str, pool: int, slices: int, devices: list[Device], counters: list[CounterSet] | None = None
) -> ResourceSlice:
    return ResourceSlice(
        metadata=ObjectMeta(name=name, uid=f"uid-{name}"),
        spec=ResourceSliceSpec(
            driver=DRIVER,
            pool=ResourcePool(name=f"rack-{pool:03}", generation=1, resource_slice_count=slices),
            all_nodes=True,
            devices=devices,
            shared_counters=counters or [],
        ),
    )


SCENARIOS = {
    "one": Scenario(_plain_fleet, lambda k: _claim(k, _request(1))),
    "cel": Scenario(_plain_fleet, lambda k: _claim(k, _request(1, _MODEL_AND_MEMORY))),
    "gang8": Scenario(_plain_fleet, lambda k: _claim(k, _request(8, _model(3)), in_one_fabric=True)),
    "gang17": Scenario(_plain_fleet, lambda k: _claim(k, _request(17), in_one_fabric=True)),
    "fill": Scenario(_plain_fleet, lambda k: _claim(k, _request(1))),
    "share": Scenario(lambda devices: _plain_fleet(devices, shared=True), _share),
    "mig": Scenario(_partitions, _partition),
}
