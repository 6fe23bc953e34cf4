"""Which devices a request may use, seen from one group of nodes.

What a device may be ruled out by, and in which order, is decided here and nowhere else; see `reasons.Cause`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from broker.allocation.budget import Budget
from broker.allocation.cel.engine import SelectorFailure
from broker.allocation.index import DeviceIndex, FailedSelector, IndexedDevice, IndexedPool, IndexedSlice
from broker.allocation.nodes import NodeGroup
from broker.allocation.reasons import Cause
from broker.allocation.requests import Alternative, Asks
from broker.allocation.snapshot import Snapshot
from broker.allocation.supplies import Supplies
from broker.allocation.taints import untolerated
from broker.world.keys import DeviceKey
from broker.world.usage import InUse

_NOBODY = InUse()  # holds nothing
_DEVICES_PER_STEP = 4  # plain devices are passed quickly


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
        self._in_use = _NOBODY if Cause.IN_USE in ignored else snapshot.in_use  # with IN_USE, all of HELD is ignored
        self.supplies = Supplies(self._in_use, device_index.supply)
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
            # A slice whose devices say where they are is nowhere as long as it has none.
            everywhere = not pool.reaches
            seen = [each for each in pool.slices if each.reaches and (everywhere or each.is_seen_by(self.group))]
            if seen:
                waits = pool.pool.is_usable and any(each.has_binding_conditions for each in seen)
                (last if waits else first).append((pool, seen))
        return first + last

    def candidates(self, alternative: Alternative, budget: Budget) -> Candidates:
        """The devices for one alternative; All needs every matching device, so one that is ruled out spoils it.

        Raises: BudgetExceededError.
        """
        gathered = self._gathered.get(alternative.asks)
        if gathered is None:
            gathered = self._gathered[alternative.asks] = self._gather(alternative, budget)
        devices, failures, is_spoiled = gathered
        if alternative.takes_all:
            return Candidates(devices, failures, len(devices) + is_spoiled)
        return Candidates(devices, failures, alternative.count)

    def _gather(self, alternative: Alternative, budget: Budget) -> _Gathered:
        devices: list[IndexedDevice] = []
        failures: dict[IndexedDevice, FailedSelector] = {}
        is_spoiled = False
        for pool, slices in self._slices_by_pool:
            if pool.pool.problem is not None and _problem_of(pool.pool.is_complete) not in self._ignored:
                # Nobody knows how many "all" are before the pool is whole again, whatever its devices look like.
                is_spoiled = True
                continue
            for slice_ in slices:
                matches = self._index.match(slice_, alternative.chain, budget)
                budget.spend(1 + len(matches.possible) // _DEVICES_PER_STEP)
                for device in matches.possible:
                    cause = self.cause(device, alternative, budget)
                    if cause is None:
                        devices.append(device)
                    elif cause is not Cause.CAPACITY and self.group.sees(device.reach):
                        is_spoiled = True
                if matches.failures:
                    failures.update(matches.failures)
        return devices, failures, is_spoiled or not devices

    def cause(self, device: IndexedDevice, alternative: Alternative, budget: Budget) -> Cause | None:
        """What rules the device out, apart from selectors; the first that applies.

        budget: for derived attributes.
        Raises: BudgetExceededError.
        """
        if device.is_plain and not alternative.capacity and not alternative.derived:
            if device.key in self._in_use and not alternative.admin_access:
                return Cause.IN_USE
            return Cause.AVOIDED if device.key in self._avoid else None
        causes = self._causes(device, alternative, budget)
        return next((cause for cause in causes if cause not in self._ignored), None)

    def _causes(self, device: IndexedDevice, alternative: Alternative, budget: Budget) -> Iterator[Cause]:
        consumption = device.consumption(alternative.capacity)
        if isinstance(consumption, str):
            yield Cause.CAPACITY
            return
        if any(
            isinstance(self._index.derive(device, each, budget), SelectorFailure)
            for each in alternative.derived.values()
        ):
            yield Cause.DERIVED_ATTRIBUTE
        if device.unsupported is not None:
            yield Cause.UNSUPPORTED
        if not self.group.sees(device.reach) or (device.device.binds_to_node and not self.group.node.name):
            yield Cause.NODE
        if device.pool_problem is not None:
            yield _problem_of(device.pool_is_complete)
        is_drawing = bool(device.device.consumes_counters)
        if is_drawing and self.supplies.never(device.key):
            yield Cause.COUNTERS
        if device.taints and untolerated(device.taints, alternative.tolerations):
            yield Cause.TAINT
        use = self._in_use.get(device.key)
        is_shared = bool(device.device.allow_multiple_allocations)
        if use is not None and not alternative.admin_access and (use.is_whole or not is_shared):
            yield Cause.IN_USE
        if is_shared and self.supplies.why_capacity_is_used(device.key, consumption):
            yield Cause.CAPACITY_IN_USE
        # Who has admin access draws beside the device's holder, as upstream; further shares draw nothing.
        must_draw = is_drawing and not (is_shared and self.supplies.has_shares(device.key))
        if must_draw and self.supplies.counters(device.key.pool).why_not(self.supplies.draws(device.key)):
            yield Cause.COUNTERS_IN_USE
        if device.key in self._avoid:
            yield Cause.AVOIDED


def _problem_of(is_complete: bool) -> Cause:
    return Cause.POOL_INVALID if is_complete else Cause.POOL_INCOMPLETE
