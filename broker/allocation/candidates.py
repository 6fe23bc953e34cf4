"""Which devices a request may use, seen from one group of nodes.

What a device may be ruled out by, and in which order, is decided here and nowhere else; see `reasons.Cause`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from broker.allocation.index import DeviceIndex, FailedSelector, IndexedDevice, IndexedPool, IndexedSlice
from broker.allocation.nodes import NodeGroup
from broker.allocation.reasons import Cause
from broker.allocation.requests import Alternative, Asks
from broker.allocation.snapshot import Snapshot
from broker.allocation.taints import untolerated
from broker.world.keys import DeviceKey


@dataclass(frozen=True, slots=True)
class Candidates:
    """The devices that one alternative may use, in the order in which to try them.

    failures: those of them on which a selector failed; the search must stop when it gets to one.
    count: how many are needed. More than there are devices if the alternative cannot be satisfied.
    """

    devices: Sequence[IndexedDevice]
    failures: Mapping[IndexedDevice, FailedSelector]
    count: int


_Gathered = tuple[list[IndexedDevice], dict[IndexedDevice, FailedSelector], bool]  # the last: All cannot be satisfied


class View:
    """The pools of a snapshot as one group of nodes sees them.

    ignored: causes to look away from, to find out whether they are what stands in the way.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        pools: Sequence[IndexedPool],
        device_index: DeviceIndex,
        group: NodeGroup,
        ignored: frozenset[Cause] = frozenset(),
    ) -> None:
        self.group = group
        self._index = device_index
        self._ignored = ignored
        self._in_use: Collection[DeviceKey] = () if Cause.IN_USE in ignored else snapshot.in_use
        self._avoid: Collection[DeviceKey] = () if Cause.AVOIDED in ignored else snapshot.avoid
        self._gathered: dict[Asks, _Gathered] = {}  # requests that ask for the same share the answer
        self._slices_by_pool = self._in_order(pools)

    def _in_order(self, pools: Sequence[IndexedPool]) -> list[tuple[IndexedPool, list[IndexedSlice]]]:
        """Pools with binding conditions come last: the pod would have to wait for them (KEP-5007).

        As upstream, slices that the nodes do not see have no say in that, nor has an incomplete pool.
        """
        first: list[tuple[IndexedPool, list[IndexedSlice]]] = []
        last: list[tuple[IndexedPool, list[IndexedSlice]]] = []
        for pool in pools:
            seen = [each for each in pool.slices if each.is_seen_by(self.group)] if pool.reaches else list(pool.slices)
            if seen:
                waits = pool.pool.is_usable and any(each.has_binding_conditions for each in seen)
                (last if waits else first).append((pool, seen))
        return first + last

    def candidates(self, alternative: Alternative) -> Candidates:
        """The devices for one alternative; All needs every matching device, so one that is ruled out spoils it."""
        gathered = self._gathered.get(alternative.asks)
        if gathered is None:
            gathered = self._gathered[alternative.asks] = self._gather(alternative)
        devices, failures, is_spoiled = gathered
        if alternative.takes_all:
            return Candidates(devices, failures, len(devices) + is_spoiled)
        return Candidates(devices, failures, alternative.count)

    def _gather(self, alternative: Alternative) -> _Gathered:
        devices: list[IndexedDevice] = []
        failures: dict[IndexedDevice, FailedSelector] = {}
        is_spoiled = False
        for pool, slices in self._slices_by_pool:
            if pool.pool.problem is not None and _problem_of(pool.pool.is_complete) not in self._ignored:
                # Nobody knows how many "all" are before the pool is whole again, whatever its devices look like.
                is_spoiled = True
                continue
            for slice_ in slices:
                matches = self._index.match(slice_, alternative.chain)
                for device in matches.possible:
                    if self.cause(device, alternative) is None:
                        devices.append(device)
                    elif self.group.sees(device.reach):
                        is_spoiled = True
                if matches.failures:
                    failures.update(matches.failures)
        return devices, failures, is_spoiled or not devices

    def cause(self, device: IndexedDevice, alternative: Alternative) -> Cause | None:
        """What rules the device out, apart from selectors; the first that applies."""
        cause = None if device.is_plain else self._standing_cause(device, alternative)
        if cause is not None:
            return cause
        if device.key in self._in_use:
            return Cause.IN_USE
        if device.key in self._avoid:
            return Cause.AVOIDED
        return None

    def _standing_cause(self, device: IndexedDevice, alternative: Alternative) -> Cause | None:
        return next((cause for cause in self._standing_causes(device, alternative) if cause not in self._ignored), None)

    def _standing_causes(self, device: IndexedDevice, alternative: Alternative) -> Iterator[Cause]:
        if device.unsupported is not None:
            yield Cause.UNSUPPORTED
        if not self.group.sees(device.reach) or (device.device.binds_to_node and not self.group.node.name):
            yield Cause.NODE
        if device.pool_problem is not None:
            yield _problem_of(device.pool_is_complete)
        if device.taints and untolerated(device.taints, alternative.tolerations):
            yield Cause.TAINT


def _problem_of(is_complete: bool) -> Cause:
    return Cause.POOL_INVALID if is_complete else Cause.POOL_INCOMPLETE
