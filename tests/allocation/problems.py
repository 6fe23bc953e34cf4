"""Hypothesis strategies: random small fleets with holders, and claims on them, with everything that DRA has.

Small, so that every combination can be tried, and crowded, so that much of it stands in the way of the rest.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st
from msgspec.structs import replace

from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.allocation.nodes import NodeView
from broker.allocation.snapshot import Snapshot
from broker.world.keys import PoolKey
from broker.world.pools import Pool, assemble_pool, in_allocation_order
from broker.world.usage import InUse, Use
from schemas.resource import (
    CapacityRequestPolicy,
    CapacityRequestPolicyRange,
    CapacityRequirements,
    Counter,
    CounterSet,
    Device,
    DeviceCapacity,
    DeviceConstraint,
    DeviceCounterConsumption,
    DeviceDerivedAttribute,
    DeviceRequest,
    DeviceSubRequest,
    ExactDeviceRequest,
    ResourceClaim,
    ResourceSlice,
)
from tests.allocation.validator import Placed, fleet
from tests.builders import (
    DRIVER,
    AttributeValue,
    a_claim,
    a_class,
    a_device,
    a_distinct,
    a_match,
    a_node_selector,
    a_request,
    a_selector,
    a_slice,
    a_taint,
    a_toleration,
)

ENGINE = default_engine()
INDEX = DeviceIndex(ENGINE)  # one for all examples, as a broker has one for all claims
CLASSES = {
    "any": a_class("any"),
    "big": a_class("big", f'device.driver == "{DRIVER}"', f'device.attributes["{DRIVER}"].size >= 2'),
}
_ATTRIBUTES = f'device.attributes["{DRIVER}"]'
EXPRESSIONS = [f'{_ATTRIBUTES}.model == "a"', f'{_ATTRIBUTES}.model != "a"', "true", "device.allowMultipleAllocations"]
DERIVED = f"{DRIVER}/derived"
DERIVATIONS = [
    f'{_ATTRIBUTES}.model + "x"',
    f"{_ATTRIBUTES}.size",
    f"{_ATTRIBUTES}.rack",
    f"{_ATTRIBUTES}.fabric",
    "[]",
]
VALUES: list[AttributeValue] = [0, 1, 2, [0, 1], [1, 2], [0, 3]]
NODES = [
    NodeView("n1", {"zone": "a"}),
    NodeView("n2", {"zone": "b"}),
    NodeView("n3", {"zone": "b"}, skips_operations=False),
    NodeView("n4", skips_operations=False),
]
# Counters of three sets. The last one is usually not there.
COUNTERS = {"gpu-0": ["slices", "memory"], "gpu-1": ["slices"], "gpu-2": ["slices"]}
POLICIES = [
    None,
    CapacityRequestPolicy(default="1"),
    CapacityRequestPolicy(default="2", valid_values=["1", "2", "4"]),
    CapacityRequestPolicy(default="1", valid_range=CapacityRequestPolicyRange(min_="1", max_="4")),
    CapacityRequestPolicy(default="1", valid_range=CapacityRequestPolicyRange(min_="1", step="2")),
    CapacityRequestPolicy(default="500m", valid_range=CapacityRequestPolicyRange(min_="500m", step="750m")),
]

T = TypeVar("T")


def rarely(value: T, otherwise: T) -> st.SearchStrategy[T]:
    return st.sampled_from([otherwise] * 5 + [value])


@st.composite
def devices(draw: st.DrawFn, name: str, counter_sets: Sequence[str]) -> Device:
    attributes: dict[str, AttributeValue] = {
        "model": draw(st.sampled_from(["a", "b"])),
        "size": draw(st.integers(1, 2)),
        "rack": draw(st.one_of(st.integers(0, 1), st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True))),
    }
    if draw(st.booleans()):
        attributes["fabric"] = draw(st.sampled_from(["x", "y"]))
    is_shared = draw(st.sampled_from([False, False, True]))
    capacity = {
        name: DeviceCapacity(
            value=draw(st.sampled_from(["4", "3", "8"])),
            request_policy=draw(st.sampled_from(POLICIES)) if is_shared else None,
        )
        for name in draw(st.sampled_from([[], ["memory"], ["memory", "compute"]]))
    }
    return replace(
        a_device(name, capacity=None, **attributes),
        taints=draw(
            st.sampled_from([[], [], [], [a_taint()], [a_taint(effect="None")], [a_taint(effect="NoExecute")]])
        ),
        binding_conditions=draw(rarely(["Attached"], [])),
        allow_multiple_allocations=is_shared or None,
        capacity=capacity,
        consumes_counters=draw(consumptions(counter_sets)),
    )


@st.composite
def consumptions(draw: st.DrawFn, counter_sets: Sequence[str]) -> list[DeviceCounterConsumption]:
    if not counter_sets or draw(rarely(True, False)):
        return []
    return [
        DeviceCounterConsumption(
            counter_set=name,
            counters={counter: Counter(value=draw(st.sampled_from(["1", "2"]))) for counter in COUNTERS[name]},
            compatibility_groups=draw(st.sampled_from([[], [], [], ["g"], ["g", "h"]])),
        )
        for name in draw(st.lists(st.sampled_from(counter_sets), min_size=1, max_size=2, unique=True))
    ]


@st.composite
def slices(
    draw: st.DrawFn, pool: str, index: int, count: int, is_fabric: bool, counter_sets: Sequence[str]
) -> ResourceSlice:
    names = [f"d{index}{number}" for number in range(draw(st.sampled_from([3, 2, 4, 1, 0])))]
    places: list[dict[str, Any]] = [
        {"all_nodes": True},
        {"all_nodes": True},
        {"node_selector": a_node_selector(zone="a")},
    ]
    places += [{"node_selector": a_node_selector(zone=["a", "b"])}]
    if not is_fabric:
        places.append({"node_name": "n2"})
    found = [draw(devices(name, counter_sets)) for name in names]
    spec: dict[str, Any] = {"name": f"{pool}-{index}", "pool": pool, "slice_count": count}
    if draw(rarely(True, False)):
        found = [replace(each, **draw(st.sampled_from(places))) for each in found]
        return a_slice(found, per_device_node_selection=True, **spec)
    skipped: list[str] = draw(rarely(["*"], []))
    return a_slice(found, skip_node_operations=skipped, **spec, **draw(st.sampled_from(places)))


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    pools = []
    for pool in draw(st.sampled_from([["p1"], ["p2", "p1"], ["p1", "p2", "p3"]])):
        is_fabric = draw(st.booleans())
        count = draw(st.integers(1, 2))
        published = draw(st.sampled_from([[], ["gpu-0"], ["gpu-0", "gpu-1"]]))
        claimed = draw(rarely(count + 1, count)) + bool(published)
        drawn = [*published, *draw(rarely(["gpu-2"], []))] if published else []
        members = [draw(slices(pool, index, claimed, is_fabric, drawn)) for index in range(count)]
        if published:
            sets = [
                CounterSet(
                    name=name,
                    counters={each: Counter(value=draw(st.sampled_from(["2", "3", "4"]))) for each in COUNTERS[name]},
                )
                for name in published
            ]
            members.append(a_slice([], name=f"{pool}-counters", pool=pool, slice_count=claimed, shared_counters=sets))
        key = PoolKey("fabric/f" if is_fabric else "cluster/east", DRIVER, pool)
        pools.append(assemble_pool(key, members))
    return draw(with_holders(in_allocation_order(pools), draw(st.permutations(NODES))[: draw(st.integers(1, 4))]))


@st.composite
def with_holders(draw: st.DrawFn, pools: Sequence[Pool], nodes: Sequence[NodeView]) -> Snapshot:
    snapshot = Snapshot(pools, CLASSES, nodes, allows_admin_access=True)
    every = fleet(snapshot)
    held = draw(st.lists(st.sampled_from(every), max_size=2, unique_by=lambda each: each.key)) if every else []
    avoided = draw(st.lists(st.sampled_from(every), max_size=1)) if every else []
    return replace(
        snapshot,
        in_use=InUse({each.key: draw(uses(each)) for each in held}),
        avoid=frozenset(each.key for each in avoided if draw(st.booleans())),
    )


@st.composite
def uses(draw: st.DrawFn, placed: Placed) -> Use:
    if not placed.device.allow_multiple_allocations or draw(rarely(True, False)):
        return Use(("west/a/b",))
    consumed = {name: draw(st.sampled_from([0, 10**9, 3 * 10**9])) for name in placed.device.capacity}
    return Use(("west/a/b", "west/a/c"), is_whole=False, is_shared=True, consumed=consumed)


@st.composite
def requests(draw: st.DrawFn, name: str) -> DeviceRequest:
    def fields() -> dict[str, Any]:
        takes_all = draw(rarely(True, False))
        asked = draw(st.lists(st.sampled_from(["memory", "compute"]), max_size=1))
        return {
            "device_class_name": draw(st.sampled_from(["any", "any", "big"])),
            "selectors": [a_selector(each) for each in draw(st.lists(st.sampled_from(EXPRESSIONS), max_size=1))],
            "allocation_mode": "All" if takes_all else "ExactCount",
            "count": 0 if takes_all else draw(st.sampled_from([1, 1, 2, 2, 3])),
            "tolerations": draw(st.sampled_from([[], [], [a_toleration()], [a_toleration(effect="NoSchedule")]])),
            "capacity": CapacityRequirements(
                requests={each: draw(st.sampled_from(["1", "3", "1250m"])) for each in asked}
            )
            if draw(rarely(True, False))
            else None,
        }

    if draw(rarely(True, False)):
        subs = [DeviceSubRequest(name=f"s{i}", **fields()) for i in range(draw(st.integers(1, 3)))]
        return DeviceRequest(name=name, first_available=subs)
    return DeviceRequest(name=name, exactly=ExactDeviceRequest(admin_access=draw(rarely(True, None)), **fields()))


@st.composite
def constraints(draw: st.DrawFn, names: Sequence[str]) -> DeviceConstraint:
    kind = draw(st.sampled_from([a_match, a_match, a_distinct]))
    attribute = draw(st.sampled_from(["model", "model", "rack", "rack", "fabric", "derived"]))
    scope = draw(st.lists(st.sampled_from(names), unique=True))
    return kind(f"{DRIVER}/{attribute}", *scope)


@st.composite
def claims(draw: st.DrawFn, name: str) -> ResourceClaim:
    drawn = [draw(requests(f"r{index}")) for index in range(draw(st.sampled_from([1, 1, 2, 3])))]
    names = [each.name for each in drawn]
    names += [f"{each.name}/{sub.name}" for each in drawn for sub in each.first_available]
    bound = draw(st.lists(constraints(names), max_size=2))
    if any(DERIVED in (each.match_attribute, each.distinct_attribute) for each in bound):
        drawn = [draw(deriving(each)) for each in drawn]
    return a_claim(*drawn, name=name, constraints=bound)


@st.composite
def deriving(draw: st.DrawFn, request: DeviceRequest) -> DeviceRequest:
    def derived() -> list[DeviceDerivedAttribute]:
        return [DeviceDerivedAttribute(name=DERIVED, expression=draw(st.sampled_from(DERIVATIONS)))]

    if request.exactly is not None:
        return replace(request, exactly=replace(request.exactly, derived_attributes=derived()))
    return replace(
        request, first_available=[replace(each, derived_attributes=derived()) for each in request.first_available]
    )


@st.composite
def puzzles(draw: st.DrawFn) -> tuple[Snapshot, ResourceClaim]:
    """Nothing in the way but constraints: every device is free, reached from everywhere, and of the class."""
    values = st.sampled_from(VALUES)
    found = [
        a_device(f"d{number}", model=draw(st.sampled_from(["a", "b"])), rack=draw(values), side=draw(values))
        for number in range(draw(st.integers(3, 6)))
    ]
    drawn = [
        a_request(
            name, *draw(st.lists(st.sampled_from(EXPRESSIONS[:2]), max_size=1)), of="any", count=draw(st.integers(1, 2))
        )
        for name in draw(st.sampled_from([["r0", "r1"], ["r0", "r1", "r2"]]))
    ]
    names = st.lists(st.sampled_from([each.name for each in drawn]), unique=True)
    bound = [
        kind(f"{DRIVER}/{draw(st.sampled_from(['rack', 'side']))}", *draw(names))
        for kind in draw(st.lists(st.sampled_from([a_match, a_distinct, a_distinct]), min_size=1, max_size=3))
    ]
    pool = assemble_pool(PoolKey("fabric/f", DRIVER, "p"), [a_slice(found, pool="p")])
    return Snapshot([pool], CLASSES, NODES[:1]), a_claim(*drawn, constraints=bound)


@st.composite
def partitions(draw: st.DrawFn) -> tuple[Snapshot, tuple[ResourceClaim, ...]]:
    """Nothing in the way but counters and capacities: GPUs in partitions of several sizes, some of them shared."""
    gpus = range(draw(st.integers(1, 2)))
    has_groups = draw(st.booleans())
    found: list[Device] = []
    for gpu, size in ((gpu, size) for gpu in gpus for size in draw(st.sampled_from([[4, 2, 2, 1], [2, 2, 1, 1]]))):
        is_shared = draw(rarely(True, False))
        groups: list[str] = draw(st.sampled_from([["mig"], ["vgpu"], ["mig", "vgpu"]])) if has_groups else []
        taken = DeviceCounterConsumption(
            counter_set=f"gpu-{gpu}", counters={"slices": Counter(value=str(size))}, compatibility_groups=groups
        )
        found.append(
            replace(
                a_device(f"d{len(found)}", size=size, model=draw(st.sampled_from(["a", "a", "b"])), rack=gpu),
                consumes_counters=[taken],
                allow_multiple_allocations=is_shared or None,
                capacity={"memory": DeviceCapacity(value="2")} if is_shared else {},
            )
        )
    sets = [CounterSet(name=f"gpu-{gpu}", counters={"slices": Counter(value="4")}) for gpu in gpus]
    pool = assemble_pool(
        PoolKey("fabric/f", DRIVER, "p"),
        [
            a_slice(found, name="devices", pool="p", slice_count=2),
            a_slice([], name="counters", pool="p", slice_count=2, shared_counters=sets),
        ],
    )
    wanted = []
    for name in draw(st.sampled_from([["one"], ["one", "two"]])):
        sizes = draw(st.lists(st.sampled_from([1, 2, 2, 4]), min_size=1, max_size=3))
        asked = CapacityRequirements(requests={"memory": "1"}) if draw(rarely(True, False)) else None
        drawn = [
            a_request(
                f"r{i}",
                f"{_ATTRIBUTES}.size == {size}",
                of="any",
                count=draw(st.sampled_from([1, 1, 2])),
                capacity=asked,
            )
            for i, size in enumerate(sizes)
        ]
        bound = draw(st.lists(st.sampled_from([a_match(f"{DRIVER}/rack"), a_distinct(f"{DRIVER}/rack")]), max_size=1))
        wanted.append(a_claim(*drawn, name=name, constraints=draw(rarely(bound, []))))
    return draw(with_holders([pool], NODES[:1])), tuple(wanted)
