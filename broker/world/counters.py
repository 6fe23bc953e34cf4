"""Shared counters: what the devices of a pool draw from, and how much. Source: KEP-4815, KEP-5963.

A device that is held draws; one that is held in shares draws once, however many shares there are.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import msgspec

from schemas.quantity import Quantity, QuantityError
from schemas.resource import Device, DeviceCounterConsumption, ResourceSlice

CounterName = tuple[str, str]  # counter set, counter


class Draw(NamedTuple):
    """What a device takes from one counter set.

    amounts: in billionths, by counter, each at least 0.
    groups: its compatibility groups; a device without any goes only with others without any.
    """

    counter_set: str
    amounts: tuple[tuple[str, int], ...]
    groups: frozenset[str]


def draws_of(device: Device) -> tuple[Draw, ...]:
    """What the device takes from counters as long as it is held; of a valid pool (`why_counters_are_invalid`)."""
    return _draws(msgspec.json.encode(device.consumes_counters)) if device.consumes_counters else ()


@lru_cache(maxsize=65536)
def _draws(consumptions: bytes) -> tuple[Draw, ...]:
    # Devices of all pools draw alike, and reading quantities takes its time.
    return tuple(
        Draw(
            each.counter_set,
            tuple((name, Quantity.parse(counter.value).nanos) for name, counter in each.counters.items()),
            frozenset(each.compatibility_groups),
        )
        for each in msgspec.json.decode(consumptions, type=list[DeviceCounterConsumption])
    )


def totals_of(slices: Iterable[ResourceSlice]) -> dict[CounterName, int]:
    """All counters of a valid pool with what they amount to while no device is held."""
    return {
        (counter_set.name, name): Quantity.parse(counter.value).nanos
        for each in slices
        for counter_set in each.spec.shared_counters
        for name, counter in counter_set.counters.items()
    }


def why_counters_are_invalid(slices: Iterable[ResourceSlice]) -> str | None:
    """What keeps the devices of a complete pool from drawing on its counters, for people; None if nothing does.

    As upstream finds it (GatherPools). A quantity that is none is refused by every API server, so it only comes from
    somewhere else; here it spoils the pool.
    """
    counters_by_set: dict[str, set[str]] = {}
    every = list(slices)
    for each in every:
        if each.spec.shared_counters and each.spec.devices:
            return f"slice {each.metadata.name} has both counters and devices"
        for counter_set in each.spec.shared_counters:
            if counter_set.name in counters_by_set:
                return f"more than one counter set is named {counter_set.name}"
            counters_by_set[counter_set.name] = set(counter_set.counters)
            for name, counter in counter_set.counters.items():
                if (amount := _amount(counter.value)) is None or amount < 0:
                    return f"counter {name} of counter set {counter_set.name} is {counter.value!r}"
    for each in every:
        for device in each.spec.devices:
            for consumption in device.consumes_counters:
                known = counters_by_set.get(consumption.counter_set)
                if known is None:
                    return f"device {device.name} draws from counter set {consumption.counter_set}, which is not there"
                for name, counter in consumption.counters.items():
                    if name not in known:
                        of_set = f"counter {name} of counter set {consumption.counter_set}"
                        return f"device {device.name} draws from {of_set}, which is not there"
                    if (amount := _amount(counter.value)) is None or amount < 0:
                        return f"device {device.name} draws {counter.value!r} from counter {name}"
    return None


def _amount(text: str) -> int | None:
    try:
        return Quantity.parse(text).nanos
    except QuantityError:
        return None
