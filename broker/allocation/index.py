"""What is known about devices beyond what their slices say, kept from one claim to the next.

Two things cost more than a claim may: to compile selectors and to evaluate them on every device. Both depend only on
the expression and on the slice, so their results stay here until the slice goes. Nothing here depends on who holds
what, and nothing here changes a decision: an empty DeviceIndex gives the same answers, later.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from broker.allocation.budget import Budget, evaluation_steps
from broker.allocation.capacity import CapacityAsk, Consumption, consumption_of, is_trivial
from broker.allocation.cel.engine import (
    BoundDevice,
    DerivedAttribute,
    Selector,
    SelectorCompileError,
    SelectorEngine,
    SelectorFailure,
)
from broker.allocation.constraints import Values, attribute_values, derived_values
from broker.allocation.nodes import EVERYWHERE, NodeGroup, Reach, reach_of
from broker.allocation.supplies import PoolSupply
from broker.allocation.taints import blocking_taints
from broker.allocation.unsupported import unsupported_in_device, unsupported_in_slice
from broker.world.keys import DeviceKey, PoolKey
from broker.world.pools import Pool
from schemas.resource import ResourceSlice

# Beyond this many the verdicts start over rather than grow: expressions come from tenants. A verdict is one reference
# to a device, 8 bytes and its share of a tuple, so what is kept stays below some 50 MB.
_VERDICTS_KEPT = 4_000_000
_DERIVED_KEPT = 1_000_000  # values of derived attributes
_CONSUMPTIONS_KEPT = 16  # for each device


class IndexedDevice:
    """A device with what every claim wants to know about it. Compared by identity."""

    __slots__ = (
        "_bound",
        "_consumptions",
        "_values",
        "derived",
        "device",
        "is_plain",
        "key",
        "pool_is_complete",
        "pool_problem",
        "reach",
        "slice",
        "taints",
        "unsupported",
    )

    def __init__(self, pool: Pool, slice_: ResourceSlice, index: int) -> None:
        spec = slice_.spec
        device = spec.devices[index]
        where = device if spec.per_device_node_selection else spec
        self.pool_problem = pool.problem
        self.pool_is_complete = pool.is_complete
        self.slice = slice_
        self.device = device
        self.key = DeviceKey(pool.key, device.name)
        self.reach: Reach = reach_of(where.node_name, where.all_nodes, where.node_selector)
        self.taints = blocking_taints(device)
        # The path of the field that we cannot honour, see broker.allocation.unsupported.
        self.unsupported = unsupported_in_slice(pool.key, slice_) or unsupported_in_device(pool.key, slice_, index)
        # Nothing but its holder can be in the way: the usual case, to be passed quickly.
        self.is_plain = (
            pool.problem is None
            and self.reach is EVERYWHERE
            and not self.taints
            and self.unsupported is None
            and not device.binds_to_node
            and not device.consumes_counters
            and is_trivial(device, ())
        )
        self._bound: BoundDevice | None = None
        self._values: dict[str, Values | None] = {}
        self._consumptions: dict[CapacityAsk, Consumption | str] | None = None
        self.derived: dict[str, Values | SelectorFailure | None] | None = None  # by expression; see DeviceIndex.derive

    def bound(self, engine: SelectorEngine) -> BoundDevice:
        """The device in the engine's own form."""
        if self._bound is None:
            self._bound = engine.bind(self.slice.spec.driver, self.device)
        return self._bound

    def values_of(self, attribute: str) -> Values | None:
        """The values of a fully qualified attribute; None if the device does not have it."""
        if attribute not in self._values:
            self._values[attribute] = attribute_values(self.device, self.slice.spec.driver, attribute)
        return self._values[attribute]

    def consumption(self, ask: CapacityAsk) -> Consumption | str:
        """What a request consumes of the device's capacities, or why it never can."""
        if self._consumptions is None or len(self._consumptions) >= _CONSUMPTIONS_KEPT:
            self._consumptions = {}  # amounts come from tenants too
        found = self._consumptions.get(ask)
        if found is None:
            found = self._consumptions[ask] = () if is_trivial(self.device, ask) else consumption_of(self.device, ask)
        return found


@dataclass(frozen=True, slots=True)
class FailedSelector:
    """A selector of a chain that could not be evaluated on a device."""

    position: int
    failure: SelectorFailure


@dataclass(frozen=True, slots=True)
class Matches:
    """What a chain of selectors says about the devices of one slice.

    possible: those on which no selector is false, in slice order.
    failures: those of them on which a selector failed; the selectors behind it were not asked.
    ruled_out: how many devices the selector at each position was the first to be false on.
    """

    possible: tuple[IndexedDevice, ...]
    failures: Mapping[IndexedDevice, FailedSelector]
    ruled_out: tuple[int, ...]


class IndexedSlice:
    """A slice of a pool with its devices, in order, and the verdicts of the selectors asked so far.

    reaches: of the slice, or of its devices where each says its own.
    """

    __slots__ = ("devices", "has_binding_conditions", "matches_by_chain", "reaches", "slice")

    def __init__(self, pool: Pool, slice_: ResourceSlice) -> None:
        spec = slice_.spec
        self.slice = slice_
        self.devices = tuple(IndexedDevice(pool, slice_, index) for index in range(len(slice_.spec.devices)))
        self.reaches = (
            tuple(dict.fromkeys(each.reach for each in self.devices))
            if spec.per_device_node_selection
            else (reach_of(spec.node_name, spec.all_nodes, spec.node_selector),)
        )
        self.has_binding_conditions = any(each.device.binding_conditions for each in self.devices)
        self.matches_by_chain: dict[tuple[str, ...], Matches] = {(): Matches(self.devices, {}, ())}

    def is_seen_by(self, group: NodeGroup) -> bool:
        """The nodes reach at least one of the slice's devices."""
        return any(group.sees(reach) for reach in self.reaches)


class IndexedPool:
    """A pool with its slices, in order.

    reaches: those of its slices that are not on all nodes, each once, in order.
    """

    __slots__ = ("_supply", "pool", "reaches", "slices")

    def __init__(self, pool: Pool, before: "IndexedPool | None") -> None:
        self.pool = pool
        # A slice that is the very same object keeps its verdicts, unless what it inherits from its pool has changed.
        inherits = before is not None and before.pool.problem == pool.problem
        known = {id(each.slice): each for each in before.slices} if before is not None and inherits else {}
        self.slices: tuple[IndexedSlice, ...] = tuple(
            known.get(id(each)) or IndexedSlice(pool, each) for each in pool.slices
        )
        self.reaches = tuple(
            dict.fromkeys(reach for each in self.slices for reach in each.reaches if reach is not EVERYWHERE)
        )
        self._supply: PoolSupply | None = None

    @property
    def supply(self) -> PoolSupply:
        """The pool's counters, read when they are first needed."""
        if self._supply is None:
            self._supply = PoolSupply(self.pool)
        return self._supply


class DeviceIndex:
    """Devices and selectors, indexed. One for the life of a broker; hand the same one to every allocation.

    engine: one that keeps what it compiled, as `default_engine()` does.
    """

    def __init__(self, engine: SelectorEngine) -> None:
        self._engine = engine
        self._pools: dict[PoolKey, IndexedPool] = {}
        self._verdicts_kept = 0
        self._derived_kept = 0

    def pool(self, pool: Pool) -> IndexedPool:
        """The pool with its devices indexed; only slices that are new since the last call cost anything."""
        known = self._pools.get(pool.key)
        if known is None or known.pool is not pool:
            known = self._pools[pool.key] = IndexedPool(pool, known)
        return known

    def keep_only(self, pools: Iterable[PoolKey]) -> None:
        """Forget all other pools."""
        kept = set(pools)
        self._pools = {key: pool for key, pool in self._pools.items() if key in kept}

    def compile(self, expression: str) -> Selector | SelectorCompileError:
        """The compiled selector, or why it does not compile."""
        try:
            return self._engine.compile(expression)
        except SelectorCompileError as error:
            return error

    def supply(self, pool: PoolKey) -> PoolSupply:
        """The counters of a pool that was indexed."""
        return self._pools[pool].supply

    def compile_attribute(self, expression: str) -> DerivedAttribute | SelectorCompileError:
        """The compiled expression of a derived attribute, or why it does not compile."""
        try:
            return self._engine.compile_attribute(expression)
        except SelectorCompileError as error:
            return error

    def derive(self, device: IndexedDevice, expression: str, budget: Budget) -> Values | SelectorFailure | None:
        """The values of a derived attribute, kept at the device. None: an empty list.

        expression: one that compiles.
        Raises: BudgetExceededError.
        """
        compiled = self.compile_attribute(expression)
        assert not isinstance(compiled, SelectorCompileError), f"{expression!r} was not compiled before its use"
        budget.spend_once((id(device), expression), evaluation_steps(expression, compiled.cost))
        if device.derived is None:
            device.derived = {}
        if expression not in device.derived:
            self._derived_kept += 1
            found = compiled.evaluate(device.bound(self._engine))
            device.derived[expression] = found if isinstance(found, SelectorFailure) else derived_values(found)
        return device.derived[expression]

    def forget_derived(self) -> None:
        """Forget derived attributes where there are too many; only between two allocations."""
        if self._derived_kept > _DERIVED_KEPT:
            self._derived_kept = 0
            for device in (device for pool in self._pools.values() for each in pool.slices for device in each.devices):
                device.derived = None

    def match(self, slice_: IndexedSlice, chain: tuple[str, ...], budget: Budget) -> Matches:
        """Ask a chain of selectors about the devices of a slice, each one only where those before it were true.

        chain: expressions that compile: those of the class and then those of the request.
        budget: charged for the evaluations, once for each claim, as if nothing was known.
        Raises: BudgetExceededError.
        """
        if not chain:
            return slice_.matches_by_chain[chain]
        before = self.match(slice_, chain[:-1], budget)
        steps = evaluation_steps(chain[-1], self._selector(chain[-1]).cost)
        # Before the evaluation: a slice of devices can be more than the budget has.
        budget.spend_once((id(slice_), chain), steps * (len(before.possible) - len(before.failures)))
        known = slice_.matches_by_chain.get(chain)
        if known is None:
            known = self._evaluate(before, chain)
            self._verdicts_kept += len(known.possible) + 1
            if self._verdicts_kept > _VERDICTS_KEPT:
                self._forget_verdicts()
            slice_.matches_by_chain[chain] = known
        return known

    def _evaluate(self, before: Matches, chain: Sequence[str]) -> Matches:
        selector = self._selector(chain[-1])
        possible: list[IndexedDevice] = []
        failures = dict(before.failures)
        for device in before.possible:
            if device not in failures:
                verdict = selector.evaluate(device.bound(self._engine))
                if verdict is False:
                    continue
                if isinstance(verdict, SelectorFailure):
                    failures[device] = FailedSelector(len(chain) - 1, verdict)
            possible.append(device)
        return Matches(tuple(possible), failures, (*before.ruled_out, len(before.possible) - len(possible)))

    def _selector(self, expression: str) -> Selector:
        selector = self.compile(expression)
        assert not isinstance(selector, SelectorCompileError), (
            f"selector {expression!r} was not compiled before its use"
        )
        return selector

    def _forget_verdicts(self) -> None:
        self._verdicts_kept = 0
        for pool in self._pools.values():
            for each in pool.slices:
                each.matches_by_chain = {(): each.matches_by_chain[()]}
