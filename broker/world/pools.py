"""Resource pools, put together from the ResourceSlices that a driver published.

Whether a pool may be used is decided here, once per change of a slice; which of its devices a claim gets is the
business of `broker.allocation`. Which slices belong to a pool's scope was decided before (a fabric has one source).
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import msgspec

from broker.world.counters import why_counters_are_invalid
from broker.world.keys import PoolKey
from schemas.resource import Device, ResourceSlice


class Pool(msgspec.Struct, frozen=True, eq=False):
    """The newest generation of one pool.

    generation: the highest one published; a driver replaces a pool by publishing a higher one.
    slices: those of this generation, in name order: devices are chosen in the order of the slices.
    obsolete: names of the slices of older generations, which count for nothing.
    is_complete: all slices that the generation says it has are there.
    problem: why no device of the pool may be allocated, for people; None if they may.
    """

    key: PoolKey
    generation: int
    slices: tuple[ResourceSlice, ...]
    obsolete: tuple[str, ...]
    is_complete: bool
    problem: str | None

    @property
    def is_usable(self) -> bool:
        """Devices of the pool may be allocated."""
        return self.problem is None

    def __iter__(self) -> Iterator[tuple[ResourceSlice, Device]]:
        for slice_ in self.slices:
            for device in slice_.spec.devices:
                yield slice_, device


def assemble_pool(key: PoolKey, slices: Iterable[ResourceSlice]) -> Pool:
    """Put together the slices of one pool, all generations, in any order.

    As upstream does it (GatherPools), with two differences. Slices that disagree on resourceSliceCount make the pool
    incomplete, where upstream believes whichever it meets first. And a name that two devices share spoils the pool
    even where no node sees both of them: an allocation names a device by pool and name only, so nobody could tell
    which of them is held.
    """
    by_name = sorted(slices, key=lambda each: each.metadata.name)
    assert by_name, f"pool {key} has no slice"
    generation = max(each.spec.pool.generation for each in by_name)
    current = tuple(each for each in by_name if each.spec.pool.generation == generation)
    incomplete = _why_incomplete(generation, current)
    return Pool(
        key=key,
        generation=generation,
        slices=current,
        obsolete=tuple(each.metadata.name for each in by_name if each.spec.pool.generation != generation),
        is_complete=incomplete is None,
        problem=incomplete or _why_invalid(current),
    )


def _why_incomplete(generation: int, slices: tuple[ResourceSlice, ...]) -> str | None:
    expected = {each.metadata.name: each.spec.pool.resource_slice_count for each in slices}
    if len(set(expected.values())) > 1:
        said = ", ".join(f"{name} says {count}" for name, count in expected.items())
        return f"the slices of generation {generation} disagree on resourceSliceCount: {said}"
    count = slices[0].spec.pool.resource_slice_count
    if len(slices) < count:
        return f"{len(slices)} of {count} slices of generation {generation}"
    if len(slices) > count:
        return f"{len(slices)} slices of generation {generation}, which says that it has {count}"
    return None


def _why_invalid(slices: tuple[ResourceSlice, ...]) -> str | None:
    count_by_name = Counter(device.name for each in slices for device in each.spec.devices)
    duplicates = sorted(name for name, count in count_by_name.items() if count > 1)
    if duplicates:
        return f"more than one device is named {', '.join(duplicates)}"
    return why_counters_are_invalid(slices)


def in_allocation_order(pools: Iterable[Pool]) -> list[Pool]:
    """By driver, then pool name, as kube-scheduler tries them; then by scope, which it does not know."""
    return sorted(pools, key=lambda pool: allocation_order(pool.key))


def allocation_order(key: PoolKey) -> tuple[str, str, str]:
    """What pools are sorted by, see `in_allocation_order`."""
    return key.driver, key.pool, key.scope
