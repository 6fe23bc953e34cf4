"""Two slow and obvious readings of what an allocation must be, written without the core's code.

`faults` checks any allocation against claims, fleet and holders. `brute_force` tries every combination in
kube-scheduler's order and returns the first that `faults` nothing, so it says both whether there is a solution and
which one comes first. Use it for a handful of devices only.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, product
from typing import NamedTuple

from hypothesis import reject

from broker.allocation.cel.engine import SelectorEngine, SelectorFailure
from broker.allocation.nodes import NodeView
from broker.allocation.snapshot import Snapshot
from broker.world.keys import DeviceKey
from broker.world.pools import Pool
from schemas.quantity import Quantity
from schemas.resource import (
    AllocationResult,
    CapacityRequestPolicy,
    Device,
    DeviceAttribute,
    DeviceCapacity,
    DeviceConstraint,
    DeviceRequestAllocationResult,
    DeviceSelector,
    DeviceSubRequest,
    DeviceTaint,
    DeviceToleration,
    ExactDeviceRequest,
    NodeSelector,
    ResourceClaim,
    ResourceSlice,
)

_COMBINATIONS_MAX = 20_000

RequestSpec = ExactDeviceRequest | DeviceSubRequest


class Placed(NamedTuple):
    """One device with everything it belongs to."""

    pool: Pool
    slice: ResourceSlice
    device: Device

    @property
    def key(self) -> DeviceKey:
        return DeviceKey(self.pool.key, self.device.name)


class Given(NamedTuple):
    """One device given to one request of one claim."""

    claim_index: int
    request: str
    placed: Placed
    spec: RequestSpec

    @property
    def is_admin(self) -> bool:
        return isinstance(self.spec, ExactDeviceRequest) and bool(self.spec.admin_access)


# --- facts about one device


def fleet(snapshot: Snapshot) -> list[Placed]:
    return [Placed(pool, slice_, device) for pool in snapshot.pools for slice_, device in pool]


def reaches(placed: Placed, node: NodeView) -> bool:
    where = placed.device if placed.slice.spec.per_device_node_selection else placed.slice.spec
    if where.node_name:
        return node.name == where.node_name
    return bool(where.all_nodes) or selects(where.node_selector, node)


def sees_a_spoilt_pool(snapshot: Snapshot, node: NodeView) -> bool:
    """The node reaches a slice, with or without devices, of a pool that may not be used."""
    return any(
        not pool.is_usable
        and any(reaches(Placed(pool, slice_, device), node) for device in slice_.spec.devices or [Device()])
        for pool in snapshot.pools
        for slice_ in pool.slices
    )


def selects(selector: NodeSelector | None, node: NodeView) -> bool:
    """Only what the tests use: In, on labels and on the name."""
    return selector is not None and any(
        all(node.labels.get(each.key) in each.values for each in term.match_expressions)
        and all(node.name in each.values for each in term.match_fields)
        for term in selector.node_selector_terms
        if term.match_expressions or term.match_fields
    )


def is_supported(placed: Placed) -> bool:
    device, spec = placed.device, placed.slice.spec
    on_fabric = placed.pool.key.scope.startswith("fabric/")
    return not (on_fabric and (spec.node_name or (spec.per_device_node_selection and device.node_name)))


def tolerates(tolerations: Sequence[DeviceToleration], taint: DeviceTaint) -> bool:
    return any(
        each.effect in ("", taint.effect)
        and each.key in ("", taint.key)
        and (each.operator == "Exists" or each.value == taint.value)
        for each in tolerations
    )


def is_tainted(device: Device, tolerations: Sequence[DeviceToleration]) -> bool:
    return any(
        taint.effect in ("NoSchedule", "NoExecute") and not tolerates(tolerations, taint) for taint in device.taints
    )


def matches(selectors: Sequence[DeviceSelector], placed: Placed, engine: SelectorEngine) -> bool:
    bound = engine.bind(placed.slice.spec.driver, placed.device)
    return all(each.cel and engine.compile(each.cel.expression).evaluate(bound) is True for each in selectors)


def is_wanted(request: RequestSpec, placed: Placed, snapshot: Snapshot, engine: SelectorEngine) -> bool:
    """The selectors of class and request take the device."""
    of_class = snapshot.classes[request.device_class_name].spec.selectors
    return matches(of_class, placed, engine) and matches(request.selectors, placed, engine)


def is_free(request: RequestSpec, placed: Placed, snapshot: Snapshot, node: NodeView) -> bool:
    """Nothing but where it is, the other devices of the claims, and what devices have in common is in the way."""
    use = snapshot.in_use.get(placed.key)
    is_admin = isinstance(request, ExactDeviceRequest) and bool(request.admin_access)
    is_held = use is not None and (use.is_whole or not placed.device.allow_multiple_allocations)
    return (
        placed.pool.is_usable
        and is_supported(placed)
        and not is_tainted(placed.device, request.tolerations)
        and (node.skips_operations or not placed.slice.spec.skip_node_operations)
        and (is_admin or not is_held)
        and placed.key not in snapshot.avoid
        and amounts(request, placed.device) is not None
    )


# --- amounts


def amounts(request: RequestSpec, device: Device) -> dict[str, Fraction] | None:
    """What the request consumes of each capacity of the device; None if it can never have that."""
    asked = {name: number(text) for name, text in (request.capacity.requests if request.capacity else {}).items()}
    if not asked.keys() <= device.capacity.keys():
        return None
    found = {}
    for name, capacity in device.capacity.items():
        amount = consumed(asked.get(name), capacity)
        if amount is None or amount > number(capacity.value):
            return None
        found[name] = amount
    return found


def consumed(asked: Fraction | None, capacity: DeviceCapacity) -> Fraction | None:
    """The least amount that the policy allows and that is at least what is asked for."""
    policy = capacity.request_policy or CapacityRequestPolicy()
    if asked is None:
        return number(policy.default or capacity.value)
    if policy.valid_values:
        return min((number(each) for each in policy.valid_values if number(each) >= asked), default=None)
    valid = policy.valid_range
    if valid is None:
        return asked
    amount = number(valid.min_ or "0")
    if valid.step is None:
        amount = max(amount, asked)
    while amount < asked:
        amount += number(valid.step or "0")
    return amount if valid.max_ is None or amount <= number(valid.max_) else None


def number(text: str) -> Fraction:
    return Quantity.parse(text).value


def too_much(given: Sequence[Given], snapshot: Snapshot) -> Iterator[str]:
    """What cannot be given together, beside what holders have."""
    by_device: dict[DeviceKey, list[Given]] = {}
    for each in given:
        by_device.setdefault(each.placed.key, []).append(each)
    for key, takers in by_device.items():
        device = takers[0].placed.device
        if not device.allow_multiple_allocations:
            claims = [each.claim_index for each in takers]
            if len(set(claims)) < len(claims) or not all(each.is_admin for each in takers[1:]):
                yield f"{key} was given twice"
            continue
        use = snapshot.in_use.get(key)
        for name, capacity in device.capacity.items():
            total = Fraction(use.consumed.get(name, 0), 10**9) if use is not None else Fraction(0)
            total += sum((amounts(each.spec, device) or {}).get(name, Fraction(0)) for each in takers)
            if total > number(capacity.value):
                yield f"{total} of {name} of {key} are given away"
    for pool in snapshot.pools:
        yield from _too_much_drawn(pool, by_device, snapshot)


def _too_much_drawn(pool: Pool, by_device: Mapping[DeviceKey, Sequence[Given]], snapshot: Snapshot) -> Iterator[str]:
    held: list[Device] = []
    drawing: list[Device] = []
    for _, device in pool:
        use, takers = (
            snapshot.in_use.get(DeviceKey(pool.key, device.name)),
            by_device.get(DeviceKey(pool.key, device.name), []),
        )
        held += [device] if use is not None else []
        if device.allow_multiple_allocations:
            takers = [] if use is not None and use.is_shared else takers[:1]
        drawing += [device] * len(takers) if device.consumes_counters else []
    if not drawing:
        return
    for counter_set in (each for slice_ in pool.slices for each in slice_.spec.shared_counters):
        for name, counter in counter_set.counters.items():
            drawn = sum(
                number(consumption.counters[name].value)
                for device in held + drawing
                for consumption in device.consumes_counters
                if consumption.counter_set == counter_set.name and name in consumption.counters
            )
            if drawn > number(counter.value):
                yield f"{drawn} of {name} of {counter_set.name} are drawn"
        groups = [
            set(consumption.compatibility_groups)
            for device in held + drawing
            for consumption in device.consumes_counters
            if consumption.counter_set == counter_set.name
        ]
        is_new = any(c.counter_set == counter_set.name for device in drawing for c in device.consumes_counters)
        if is_new and any(groups) and not set.intersection(*groups):
            yield f"devices without a compatibility group in common draw from {counter_set.name}"


def values(given: Given, attribute: str, engine: SelectorEngine) -> set[object] | None:
    placed = given.placed
    for derived in given.spec.derived_attributes:
        if derived.name == attribute:
            return computed(derived.expression, placed, engine)
    domain, name = attribute.split("/")
    found: DeviceAttribute | None = placed.device.attributes.get(attribute)
    if found is None and domain == placed.slice.spec.driver:
        found = placed.device.attributes.get(name)
    if found is None:
        return None
    listed = [
        (kind, value)
        for kind, group in (
            ("int", found.ints or ([] if found.int_ is None else [found.int_])),
            ("bool", found.bools or ([] if found.bool_ is None else [found.bool_])),
            ("string", found.strings or ([] if found.string is None else [found.string])),
            ("version", found.versions or ([] if found.version is None else [found.version])),
        )
        for value in group
    ]
    return set(listed) or None


def computed(expression: str, placed: Placed, engine: SelectorEngine) -> set[object] | None:
    value = engine.compile_attribute(expression).evaluate(engine.bind(placed.slice.spec.driver, placed.device))
    if isinstance(value, SelectorFailure):
        return None
    names = {bool: "bool", int: "int", str: "string"}
    return {
        (names.get(type(each), "version"), each) for each in (value if isinstance(value, list) else [value])
    } or None


# --- facts about claims


def alternatives(claim: ResourceClaim) -> list[list[tuple[str, RequestSpec]]]:
    """For each request the ways to satisfy it, by the name that a result carries."""
    return [
        [(request.name, request.exactly)]
        if request.exactly is not None
        else [(f"{request.name}/{each.name}", each) for each in request.first_available]
        for request in claim.spec.devices.requests
    ]


def violates(constraint: DeviceConstraint, given: Sequence[Given], engine: SelectorEngine) -> bool:
    bound = [
        each
        for each in given
        if not constraint.requests or {each.request, each.request.split("/")[0]} & set(constraint.requests)
    ]
    attribute = constraint.match_attribute or constraint.distinct_attribute or ""
    sets = [values(each, attribute, engine) for each in bound]
    if any(each is None for each in sets):
        return True
    known = [each for each in sets if each is not None]
    if constraint.match_attribute is not None:
        return bool(known) and not set.intersection(*known)
    return any(one & other for one, other in combinations(known, 2))


def faults(
    claims: Sequence[ResourceClaim],
    allocations: Sequence[AllocationResult],
    snapshot: Snapshot,
    node: NodeView,
    engine: SelectorEngine,
) -> list[str]:
    """Everything that is wrong with allocations made together for `node`; an empty list if nothing is."""
    by_name = {(p.pool.key.driver, p.pool.key.pool, p.device.name): p for p in fleet(snapshot)}
    specs = [{name: spec for choice in alternatives(claim) for name, spec in choice} for claim in claims]
    given: list[Given] = []
    found: list[str] = []
    for index, allocation in enumerate(allocations):
        for result in allocation.devices.results:
            placed = by_name.get((result.driver, result.pool, result.device))
            if placed is None or result.request not in specs[index]:
                found.append(f"{result.device} or {result.request} does not exist")
                continue
            given.append(Given(index, result.request, placed, specs[index][result.request]))
            found += _result_faults(result, given[-1])
    found += too_much(given, snapshot)
    for index, (claim, allocation) in enumerate(zip(claims, allocations, strict=True)):
        found += _claim_faults(claim, index, given, snapshot, node, engine)
        found += _selector_faults(allocation, [each.placed for each in given if each.claim_index == index], node)
    return found


def _result_faults(result: DeviceRequestAllocationResult, given: Given) -> Iterator[str]:
    """What a result says besides who gets what."""
    device, is_shared = given.placed.device, bool(given.placed.device.allow_multiple_allocations)
    expected = (amounts(given.spec, device) or {}) if is_shared else {}
    if {name: number(text) for name, text in result.consumed_capacity.items()} != expected:
        yield f"{result.device} consumes {result.consumed_capacity} instead of {expected}"
    if (result.share_id is not None) != is_shared:
        yield f"{result.device} has share {result.share_id}"
    if bool(result.admin_access) != given.is_admin:
        yield f"{result.device} has admin access {result.admin_access}"
    if result.skip_node_operations != given.placed.slice.spec.skip_node_operations:
        yield f"{result.device} skips {result.skip_node_operations}"


def _claim_faults(
    claim: ResourceClaim,
    index: int,
    all_given: Sequence[Given],
    snapshot: Snapshot,
    node: NodeView,
    engine: SelectorEngine,
) -> Iterator[str]:
    given = [each for each in all_given if each.claim_index == index]
    if len(given) > 32:
        yield f"claim {claim.metadata.name} got {len(given)} devices"
    order = [each.request.split("/")[0] for each in given]
    names = [request.name for request in claim.spec.devices.requests]
    if order != sorted(order, key=names.index):
        yield f"results are not in the order of the requests: {order}"
    for choice in alternatives(claim):
        chosen = [(name, spec) for name, spec in choice if any(each.request == name for each in given)]
        if len(chosen) != 1:
            yield f"{len(chosen)} of the alternatives {[name for name, _ in choice]} were chosen"
            continue
        name, spec = chosen[0]
        mine = [each.placed for each in given if each.request == name]
        for placed in mine:
            if not is_wanted(spec, placed, snapshot, engine):
                yield f"{placed.key} does not match {name}"
            if not is_free(spec, placed, snapshot, node):
                yield f"{placed.key} may not be used for {name}"
            if not reaches(placed, node):
                yield f"{placed.key} is not reached from {node.name}"
        if spec.allocation_mode == "All":
            every = [
                p
                for p in fleet(snapshot)
                if reaches(p, node) and is_wanted(spec, p, snapshot, engine) and amounts(spec, p.device) is not None
            ]
            if {p.key for p in every} != {p.key for p in mine}:
                yield f"{name} did not get all devices"
        elif len(mine) != spec.count:
            yield f"{name} got {len(mine)} devices instead of {spec.count}"
    for constraint in claim.spec.devices.constraints:
        if violates(constraint, given, engine):
            yield f"{constraint} does not hold"


def _selector_faults(allocation: AllocationResult, placed: Sequence[Placed], node: NodeView) -> Iterator[str]:
    """Where the allocation claims to be usable, every device must be."""
    selector = allocation.node_selector
    everywhere = all(
        (p.device if p.slice.spec.per_device_node_selection else p.slice.spec).all_nodes and not p.device.binds_to_node
        for p in placed
    )
    if selector is None and not everywhere:
        yield "the allocation says that it can be used everywhere"
    if selector is not None and everywhere:
        yield "the allocation says that it cannot be used everywhere"
    if selector is not None and not selects(selector, node):
        yield f"the allocation's node selector does not match {node.name}"


# --- every combination


def brute_force(
    claims: Sequence[ResourceClaim], snapshot: Snapshot, nodes: Sequence[NodeView], engine: SelectorEngine
) -> list[list[tuple[str, str]]] | None:
    """The first solution on the first node that has one: for each claim (request, device) in order.

    Rejects the example of a Hypothesis test where that takes more than some seconds.
    """
    for node in nodes:
        for given in _solutions(claims, snapshot, node, engine):
            return [
                [(each.request, str(each.placed.key)) for each in given if each.claim_index == index]
                for index in range(len(claims))
            ]
    return None


def _solutions(
    claims: Sequence[ResourceClaim], snapshot: Snapshot, node: NodeView, engine: SelectorEngine
) -> Iterator[list[Given]]:
    seen = [placed for placed in fleet(snapshot) if reaches(placed, node)]
    ordered = _waiting_pools_last(seen)
    choices = [(index, choice) for index, claim in enumerate(claims) for choice in alternatives(claim)]
    ways: list[list[list[Given]]] = []
    for index, choice in choices:
        sets = [
            [Given(index, name, placed, spec) for placed in chosen]
            for name, spec in choice
            for chosen in _sets_for(spec, ordered, snapshot, node, engine)
            if spec.allocation_mode != "All" or not sees_a_spoilt_pool(snapshot, node)
        ]
        ways.append(sets)
    for number, combination in enumerate(product(*ways)):
        if number == _COMBINATIONS_MAX:
            reject()
        given = [each for part in combination for each in part]
        if next(too_much(given, snapshot), None) is None and all(
            not violates(constraint, [each for each in given if each.claim_index == index], engine)
            for index, claim in enumerate(claims)
            for constraint in claim.spec.devices.constraints
        ):
            yield given


def _waiting_pools_last(seen: Sequence[Placed]) -> list[Placed]:
    """A slice counts with all its devices, even those that this node does not reach."""
    waiting = {p.pool.key for p in seen if any(device.binding_conditions for device in p.slice.spec.devices)}
    return [p for p in seen if p.pool.key not in waiting] + [p for p in seen if p.pool.key in waiting]


def _sets_for(
    spec: RequestSpec, seen: Sequence[Placed], snapshot: Snapshot, node: NodeView, engine: SelectorEngine
) -> Iterator[Sequence[Placed]]:
    wanted = [
        placed
        for placed in seen
        if is_wanted(spec, placed, snapshot, engine) and amounts(spec, placed.device) is not None
    ]
    free = [placed for placed in wanted if is_free(spec, placed, snapshot, node)]
    if spec.allocation_mode != "All":
        yield from combinations(free, spec.count)
    elif wanted and wanted == free:
        yield wanted


def as_names(
    allocations: Sequence[AllocationResult], pools: Mapping[tuple[str, str], Pool]
) -> list[list[tuple[str, str]]]:
    """Allocations in the form of `brute_force`."""
    return [
        [
            (each.request, str(DeviceKey(pools[each.driver, each.pool].key, each.device)))
            for each in allocation.devices.results
        ]
        for allocation in allocations
    ]
