"""Two slow and obvious readings of what an allocation must be, written without the core's code.

`faults` checks any allocation against claims, fleet and holders. `brute_force` tries every combination in
kube-scheduler's order and returns the first that `faults` nothing, so it says both whether there is a solution and
which one comes first. Use it for a handful of devices only.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

from broker.allocation.cel.engine import SelectorEngine
from broker.allocation.nodes import NodeView
from broker.allocation.snapshot import Snapshot
from broker.world.keys import DeviceKey
from broker.world.pools import Pool
from schemas.resource import (
    AllocationResult,
    Device,
    DeviceAttribute,
    DeviceConstraint,
    DeviceSelector,
    DeviceSubRequest,
    DeviceTaint,
    DeviceToleration,
    ExactDeviceRequest,
    NodeSelector,
    ResourceClaim,
    ResourceSlice,
)

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
    return not (
        device.consumes_counters
        or device.allow_multiple_allocations
        or device.node_allocatable_resources
        or spec.skip_node_operations
        or (on_fabric and (spec.node_name or (spec.per_device_node_selection and device.node_name)))
    )


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


def is_free(request: RequestSpec, placed: Placed, snapshot: Snapshot) -> bool:
    """Nothing but the node and the other devices of the claims is in the way."""
    return (
        placed.pool.is_usable
        and is_supported(placed)
        and not is_tainted(placed.device, request.tolerations)
        and placed.key not in snapshot.in_use
        and placed.key not in snapshot.avoid
    )


def values(placed: Placed, attribute: str) -> set[object] | None:
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


# --- facts about claims


def alternatives(claim: ResourceClaim) -> list[list[tuple[str, RequestSpec]]]:
    """For each request the ways to satisfy it, by the name that a result carries."""
    return [
        [(request.name, request.exactly)]
        if request.exactly is not None
        else [(f"{request.name}/{each.name}", each) for each in request.first_available]
        for request in claim.spec.devices.requests
    ]


def violates(constraint: DeviceConstraint, given: Sequence[Given]) -> bool:
    bound = [
        each.placed
        for each in given
        if not constraint.requests or {each.request, each.request.split("/")[0]} & set(constraint.requests)
    ]
    attribute = constraint.match_attribute or constraint.distinct_attribute or ""
    sets = [values(placed, attribute) for placed in bound]
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
    given: list[Given] = []
    found: list[str] = []
    for index, allocation in enumerate(allocations):
        for result in allocation.devices.results:
            placed = by_name.get((result.driver, result.pool, result.device))
            if placed is None:
                found.append(f"{result.device} does not exist")
            else:
                given.append(Given(index, result.request, placed))
    keys = [each.placed.key for each in given]
    found += [f"{key} was given twice" for key in set(keys) if keys.count(key) > 1]
    for index, (claim, allocation) in enumerate(zip(claims, allocations, strict=True)):
        found += _claim_faults(claim, index, given, snapshot, node, engine)
        found += _selector_faults(allocation, [each.placed for each in given if each.claim_index == index], node)
    return found


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
            if not is_free(spec, placed, snapshot):
                yield f"{placed.key} may not be used for {name}"
            if not reaches(placed, node):
                yield f"{placed.key} is not reached from {node.name}"
        if spec.allocation_mode == "All":
            every = [p for p in fleet(snapshot) if reaches(p, node) and is_wanted(spec, p, snapshot, engine)]
            if {p.key for p in every} != {p.key for p in mine}:
                yield f"{name} did not get all devices"
        elif len(mine) != spec.count:
            yield f"{name} got {len(mine)} devices instead of {spec.count}"
    for constraint in claim.spec.devices.constraints:
        if violates(constraint, given):
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
    """The first solution on the first node that has one: for each claim (request, device) in order."""
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
            [Given(index, name, placed) for placed in chosen]
            for name, spec in choice
            for chosen in _sets_for(spec, ordered, snapshot, engine)
            if spec.allocation_mode != "All" or not sees_a_spoilt_pool(snapshot, node)
        ]
        ways.append(sets)
    for combination in product(*ways):
        given = [each for part in combination for each in part]
        keys = [each.placed.key for each in given]
        if len(set(keys)) == len(keys) and all(
            not violates(constraint, [each for each in given if each.claim_index == index])
            for index, claim in enumerate(claims)
            for constraint in claim.spec.devices.constraints
        ):
            yield given


def _waiting_pools_last(seen: Sequence[Placed]) -> list[Placed]:
    """A slice counts with all its devices, even those that this node does not reach."""
    waiting = {p.pool.key for p in seen if any(device.binding_conditions for device in p.slice.spec.devices)}
    return [p for p in seen if p.pool.key not in waiting] + [p for p in seen if p.pool.key in waiting]


def _sets_for(
    spec: RequestSpec, seen: Sequence[Placed], snapshot: Snapshot, engine: SelectorEngine
) -> Iterator[Sequence[Placed]]:
    wanted = [placed for placed in seen if is_wanted(spec, placed, snapshot, engine)]
    free = [placed for placed in wanted if is_free(spec, placed, snapshot)]
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
