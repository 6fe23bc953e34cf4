"""What the drivers of the corpus publish, by profile: one DeviceClass and one complete fabric pool of eight devices.

The corpus is written for dra-example-driver. Its devices are rebuilt here from what its profiles are known to publish,
with one difference: they are on a fabric, usable on all nodes, instead of on one node each.
"""

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from schemas.resource import (
    CapacityRequestPolicy,
    CapacityRequestPolicyRange,
    Counter,
    CounterSet,
    Device,
    DeviceAttribute,
    DeviceCapacity,
    DeviceClass,
    DeviceCounterConsumption,
    NodeAllocatableMapping,
    NodeAllocatableResource,
    ResourceSlice,
)
from schemas.resource.decode import to_builtins
from tests.builders import a_class, a_device, a_slice

COUNT = 8
GPU, NET, CPU = "gpu.example.com", "net.example.com", "cpu.example.com"
_PARTITIONS = 4  # of each GPU, where GPUs are partitioned


def manifests(profile: str) -> list[dict[str, Any]]:
    """The class and the slices of a profile."""
    return [to_builtins(each) for each in _PROFILES[profile]()]


def _gpus() -> list[Device]:
    return [
        a_device(
            f"gpu-{index}",
            capacity={"memory": "80Gi"},
            index=index,
            uuid=f"gpu-00000000-0000-4000-8000-{index:012}",
            model="LATEST-GPU-MODEL",
            driverVersion=DeviceAttribute(version="1.0.0"),
        )
        for index in range(COUNT)
    ]


def _gpu(**each: Any) -> list[DeviceClass | ResourceSlice]:
    return _fabric(GPU, (msgspec.structs.replace(gpu, **each) for gpu in _gpus()))


def _gpu_with_extended_resource() -> list[DeviceClass | ResourceSlice]:
    device_class, *slices = _gpu()
    assert isinstance(device_class, DeviceClass)
    spec = msgspec.structs.replace(device_class.spec, extended_resource_name="example.com/gpu")
    return [msgspec.structs.replace(device_class, spec=spec), *slices]


def _gpu_with_binding_conditions() -> list[DeviceClass | ResourceSlice]:
    return _gpu(binding_conditions=["BindingConditions"], binding_failure_conditions=["BindingFailureConditions"])


def _shared(memory: str, compute: str) -> dict[str, Any]:
    """Many claims may have a part of the device."""
    return {
        "allow_multiple_allocations": True,
        "capacity": {"memory": _divisible(memory, "1Gi"), "compute": _divisible(compute, "1")},
    }


def _gpu_shared() -> list[DeviceClass | ResourceSlice]:
    return _gpu(**_shared("80Gi", "100"))


def _gpu_partitioned(**each: Any) -> list[DeviceClass | ResourceSlice]:
    """Two GPUs of four partitions each, which draw from the counters of their GPU."""
    quarter = {"memory": Counter(value="20Gi"), "compute": Counter(value="25")}
    whole = {"memory": Counter(value="80Gi"), "compute": Counter(value="100")}
    gpus = range(COUNT // _PARTITIONS)
    partitions = [
        msgspec.structs.replace(
            a_device(f"gpu-{gpu}-partition-{index}", capacity={"memory": "20Gi"}, model="LATEST-GPU-MODEL"),
            consumes_counters=[DeviceCounterConsumption(counter_set=f"gpu-{gpu}", counters=quarter)],
            **each,
        )
        for gpu in gpus
        for index in range(_PARTITIONS)
    ]
    counters = [CounterSet(name=f"gpu-{gpu}", counters=whole) for gpu in gpus]
    return _fabric(GPU, partitions, counters)


def _gpu_shared_and_partitioned() -> list[DeviceClass | ResourceSlice]:
    return _gpu_partitioned(**_shared("20Gi", "25"))


def _net() -> list[DeviceClass | ResourceSlice]:
    bandwidth = _divisible("100Gi", "100Mi", step="1Mi")
    one = DeviceCapacity(value="100", request_policy=CapacityRequestPolicy(default="1", valid_values=["1"]))
    nics = (
        msgspec.structs.replace(
            a_device(f"nic-{index}", index=index, model="LATEST-NET-MODEL"),
            allow_multiple_allocations=True,
            capacity={"vfs": one, "ingressBandwidth": bandwidth, "egressBandwidth": bandwidth},
        )
        for index in range(COUNT)
    )
    return _fabric(NET, nics)


def _cpu() -> list[DeviceClass | ResourceSlice]:
    """The devices are NUMA nodes, whose CPUs count as their node's own (KEP-5517)."""
    numa_nodes = (
        msgspec.structs.replace(
            a_device(f"numa-{index}", capacity={f"{CPU}/cpu": "2"}, numaNodeID=index),
            allow_multiple_allocations=True,
            node_allocatable_resources={
                "cpu": NodeAllocatableResource(
                    mapping=NodeAllocatableMapping(capacity_key=f"{CPU}/cpu", capacity_multiplier="1")
                )
            },
        )
        for index in range(COUNT)
    )
    return _fabric(CPU, numa_nodes)


def _divisible(value: str, least: str, step: str | None = None) -> DeviceCapacity:
    amounts = CapacityRequestPolicyRange(min_=least, max_=value, step=step)
    return DeviceCapacity(value=value, request_policy=CapacityRequestPolicy(default=least, valid_range=amounts))


def _fabric(
    driver: str, devices: Iterable[Device], counters: list[CounterSet] | None = None
) -> list[DeviceClass | ResourceSlice]:
    pool: dict[str, Any] = {
        "driver": driver,
        "labels": {"dragoman.dev/fabric": "rack7"},
        "slice_count": 2 if counters else 1,
    }
    slices = [a_slice(devices, name="devices", **pool)]
    if counters:
        slices.append(a_slice([], name="counters", shared_counters=counters, **pool))
    return [a_class(driver, f'device.driver == "{driver}"'), *slices]


_PROFILES: dict[str, Callable[[], list[DeviceClass | ResourceSlice]]] = {
    "gpu": _gpu,
    "gpu-with-extended-resource": _gpu_with_extended_resource,
    "gpu-with-binding-conditions": _gpu_with_binding_conditions,
    "gpu-shared": _gpu_shared,
    "gpu-partitioned": _gpu_partitioned,
    "gpu-shared-and-partitioned": _gpu_shared_and_partitioned,
    "net": _net,
    "cpu": _cpu,
}
