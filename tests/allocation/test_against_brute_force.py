"""Random small fleets and claims: the core finds a solution exactly when trying everything does, and the same one."""

from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.allocation.allocate import allocate
from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.allocation.nodes import NodeView
from broker.allocation.reasons import NoFit, Reason
from broker.allocation.snapshot import Snapshot
from broker.world.keys import PoolKey
from broker.world.pools import assemble_pool, in_allocation_order
from broker.world.usage import InUse, Use
from schemas.resource import (
    Device,
    DeviceConstraint,
    DeviceRequest,
    DeviceSubRequest,
    ExactDeviceRequest,
    ResourceClaim,
    ResourceSlice,
)
from tests.allocation.validator import as_names, brute_force, faults, fleet
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
EXPRESSIONS = [f'device.attributes["{DRIVER}"].model == "a"', f'device.attributes["{DRIVER}"].model != "a"', "true"]
VALUES: list[AttributeValue] = [0, 1, 2, [0, 1], [1, 2], [0, 3]]
NODES = [NodeView("n1", {"zone": "a"}), NodeView("n2", {"zone": "b"}), NodeView("n3", {"zone": "b"}), NodeView("n4")]


T = TypeVar("T")


def rarely(value: T, otherwise: T) -> st.SearchStrategy[T]:
    return st.sampled_from([otherwise] * 5 + [value])


@st.composite
def devices(draw: st.DrawFn, name: str) -> Device:
    attributes: dict[str, AttributeValue] = {
        "model": draw(st.sampled_from(["a", "b"])),
        "size": draw(st.integers(1, 2)),
        "rack": draw(st.one_of(st.integers(0, 1), st.lists(st.integers(0, 3), min_size=1, max_size=2, unique=True))),
    }
    if draw(st.booleans()):
        attributes["fabric"] = draw(st.sampled_from(["x", "y"]))
    return msgspec.structs.replace(
        a_device(name, capacity=None, **attributes),
        taints=draw(
            st.sampled_from([[], [], [], [a_taint()], [a_taint(effect="None")], [a_taint(effect="NoExecute")]])
        ),
        binding_conditions=draw(rarely(["Attached"], [])),
        allow_multiple_allocations=draw(rarely(True, False)),
    )


@st.composite
def slices(draw: st.DrawFn, pool: str, index: int, count: int, is_fabric: bool) -> ResourceSlice:
    names = [f"d{index}{number}" for number in range(draw(st.sampled_from([3, 2, 4, 1, 0])))]
    places: list[dict[str, Any]] = [
        {"all_nodes": True},
        {"all_nodes": True},
        {"node_selector": a_node_selector(zone="a")},
    ]
    places += [{"node_selector": a_node_selector(zone=["a", "b"])}]
    if not is_fabric:
        places.append({"node_name": "n2"})
    found = [draw(devices(name)) for name in names]
    if draw(rarely(True, False)):
        return a_slice(
            [msgspec.structs.replace(each, **draw(st.sampled_from(places))) for each in found],
            name=f"{pool}-{index}",
            pool=pool,
            slice_count=count,
            per_device_node_selection=True,
        )
    place = draw(st.sampled_from(places))
    return a_slice(found, name=f"{pool}-{index}", pool=pool, slice_count=count, **place)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    pools = []
    for pool in draw(st.sampled_from([["p1"], ["p2", "p1"], ["p1", "p2", "p3"]])):
        is_fabric = draw(st.booleans())
        count = draw(st.integers(1, 2))
        claimed = draw(rarely(count + 1, count))
        published = [draw(slices(pool, index, claimed, is_fabric)) for index in range(count)]
        key = PoolKey("fabric/f" if is_fabric else "cluster/east", DRIVER, pool)
        pools.append(assemble_pool(key, published))
    nodes = draw(st.permutations(NODES))[: draw(st.integers(1, len(NODES)))]
    snapshot = Snapshot(in_allocation_order(pools), CLASSES, nodes)
    keys = [each.key for each in fleet(snapshot)]
    held = draw(st.lists(st.sampled_from(keys), max_size=2, unique=True)) if keys else []
    avoided = draw(st.lists(st.sampled_from(keys), max_size=1)) if keys else []
    return msgspec.structs.replace(
        snapshot, in_use=InUse(dict.fromkeys(held, Use(("west/a/b",)))), avoid=frozenset(avoided)
    )


@st.composite
def requests(draw: st.DrawFn, name: str) -> DeviceRequest:
    def fields() -> dict[str, Any]:
        takes_all = draw(rarely(True, False))
        return {
            "device_class_name": draw(st.sampled_from(["any", "any", "big"])),
            "selectors": [a_selector(each) for each in draw(st.lists(st.sampled_from(EXPRESSIONS), max_size=1))],
            "allocation_mode": "All" if takes_all else "ExactCount",
            "count": 0 if takes_all else draw(st.sampled_from([1, 1, 2, 2, 3])),
            "tolerations": draw(st.sampled_from([[], [], [a_toleration()], [a_toleration(effect="NoSchedule")]])),
        }

    if draw(rarely(True, False)):
        subs = [DeviceSubRequest(name=f"s{i}", **fields()) for i in range(draw(st.integers(1, 3)))]
        return DeviceRequest(name=name, first_available=subs)
    return DeviceRequest(name=name, exactly=ExactDeviceRequest(**fields()))


@st.composite
def constraints(draw: st.DrawFn, names: Sequence[str]) -> DeviceConstraint:
    kind = draw(st.sampled_from([a_match, a_match, a_distinct]))
    attribute = draw(st.sampled_from(["model", "model", "rack", "rack", "fabric"]))
    scope = draw(st.lists(st.sampled_from(names), unique=True))
    return kind(f"{DRIVER}/{attribute}", *scope)


@st.composite
def claims(draw: st.DrawFn, name: str) -> ResourceClaim:
    drawn = [draw(requests(f"r{index}")) for index in range(draw(st.sampled_from([1, 1, 2, 3])))]
    names = [each.name for each in drawn]
    names += [f"{each.name}/{sub.name}" for each in drawn for sub in each.first_available]
    return a_claim(*drawn, name=name, constraints=draw(st.lists(constraints(names), max_size=2)))


@settings(max_examples=400, deadline=None)
@given(snapshot=snapshots(), wanted=st.one_of(st.tuples(claims("one")), st.tuples(claims("one"), claims("two"))))
def test_finds_what_trying_everything_finds(snapshot: Snapshot, wanted: tuple[ResourceClaim, ...]) -> None:
    nodes = snapshot.nodes or []
    expected = brute_force(wanted, snapshot, nodes, ENGINE)
    found = allocate(wanted, snapshot, INDEX)
    if isinstance(found, NoFit):
        assert expected is None, found.message
        assert found.message
        assert found.reason not in (Reason.SELECTOR_FAILED, Reason.SEARCH_BUDGET_EXCEEDED)
    else:
        by_id = {(pool.key.driver, pool.key.pool): pool for pool in snapshot.pools}
        assert as_names(found, by_id) == expected
        assert any(not faults(wanted, found, snapshot, node, ENGINE) for node in nodes)


@st.composite
def puzzles(draw: st.DrawFn) -> tuple[Snapshot, ResourceClaim]:
    """Nothing in the way but constraints: every device is free, reached from everywhere, and of the class."""
    values = st.sampled_from(VALUES)
    fleet = [
        a_device(f"d{number}", model=draw(st.sampled_from(["a", "b"])), rack=draw(values), side=draw(values))
        for number in range(draw(st.integers(3, 6)))
    ]
    drawn = [
        a_request(
            name, *draw(st.lists(st.sampled_from(EXPRESSIONS), max_size=1)), of="any", count=draw(st.integers(1, 2))
        )
        for name in draw(st.sampled_from([["r0", "r1"], ["r0", "r1", "r2"]]))
    ]
    names = st.lists(st.sampled_from([each.name for each in drawn]), unique=True)
    bound = [
        kind(f"{DRIVER}/{draw(st.sampled_from(['rack', 'side']))}", *draw(names))
        for kind in draw(st.lists(st.sampled_from([a_match, a_distinct, a_distinct]), min_size=1, max_size=3))
    ]
    pool = assemble_pool(PoolKey("fabric/f", DRIVER, "p"), [a_slice(fleet, pool="p")])
    return Snapshot([pool], CLASSES, NODES[:1]), a_claim(*drawn, constraints=bound)


@settings(max_examples=400, deadline=None)
@given(puzzle=puzzles())
def test_solves_what_constraints_allow(puzzle: tuple[Snapshot, ResourceClaim]) -> None:
    snapshot, wanted = puzzle
    expected = brute_force([wanted], snapshot, NODES[:1], ENGINE)
    found = allocate([wanted], snapshot, INDEX)
    if isinstance(found, NoFit):
        assert expected is None, found.message
        assert found.reason in (Reason.CONSTRAINT_UNSATISFIABLE, Reason.NO_MATCHING_DEVICE)
    else:
        assert as_names(found, {(DRIVER, "p"): snapshot.pools[0]}) == expected
        assert faults([wanted], found, snapshot, NODES[0], ENGINE) == []


@settings(max_examples=200, deadline=None)
@given(snapshot=snapshots(), wanted=claims("one"))
def test_in_use_is_the_reason_exactly_when_free_devices_would_do(snapshot: Snapshot, wanted: ResourceClaim) -> None:
    found = allocate([wanted], snapshot, INDEX)
    if not isinstance(found, NoFit):
        return
    unavoided = msgspec.structs.replace(snapshot, avoid=frozenset())
    free = msgspec.structs.replace(unavoided, in_use=InUse())
    fits_unavoided = brute_force([wanted], unavoided, snapshot.nodes or [], ENGINE) is not None
    fits_free = brute_force([wanted], free, snapshot.nodes or [], ENGINE) is not None
    assert (found.reason is Reason.DEVICES_AVOIDED) == fits_unavoided
    assert (found.reason is Reason.DEVICES_IN_USE) == (fits_free and not fits_unavoided)
    if found.reason is Reason.DEVICES_IN_USE:
        assert found.waits_on.pools


@settings(max_examples=200, deadline=None)
@given(snapshot=snapshots(), wanted=claims("one"))
def test_counts_every_device_once_for_each_request(snapshot: Snapshot, wanted: ResourceClaim) -> None:
    found = allocate([wanted], snapshot, INDEX)
    if isinstance(found, NoFit):
        for report in found.requests:
            assert (
                report.usable + sum(each.count for each in report.ruled_out) == report.devices == len(fleet(snapshot))
            )
