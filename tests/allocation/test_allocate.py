"""What is allocated: the devices that kube-scheduler would choose, and what the allocation says about them."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from broker.allocation.allocate import allocate, allocate_claim
from broker.allocation.index import DeviceIndex
from broker.allocation.nodes import NodeView
from broker.allocation.reasons import NoFit, Reason
from broker.allocation.result import with_share_ids
from broker.allocation.snapshot import Snapshot
from broker.world.keys import DeviceKey
from broker.world.pools import Pool, in_allocation_order
from broker.world.usage import InUse, Use
from schemas.resource import (
    AllocationResult,
    CapacityRequirements,
    Counter,
    CounterSet,
    Device,
    DeviceAllocationConfiguration,
    DeviceCapacity,
    DeviceClass,
    DeviceConstraint,
    DeviceCounterConsumption,
    DeviceDerivedAttribute,
    DeviceRequest,
    DeviceTaint,
    DeviceToleration,
    NodeSelector,
    NodeSelectorRequirement,
    NodeSelectorTerm,
    ResourceClaim,
)
from schemas.share_id import share_id
from tests.builders import (
    CLASS,
    DRIVER,
    AttributeValue,
    a_choice,
    a_claim,
    a_claim_config,
    a_class,
    a_config,
    a_device,
    a_distinct,
    a_match,
    a_node_selector,
    a_pool,
    a_request,
    a_request_for_all,
    a_slice,
    a_sub_request,
    a_taint,
    a_toleration,
    an_attribute,
    some_devices,
)

MODEL_B = f'device.attributes["{DRIVER}"].model == "b"'


def a_snapshot(*pools: Pool, classes: Sequence[DeviceClass] = (), **fields: Any) -> Snapshot:
    every = {each.metadata.name: each for each in (a_class(), *classes)}
    return Snapshot(in_allocation_order(pools), every, **fields)


def chosen(found: AllocationResult | NoFit) -> list[tuple[str, str]]:
    assert isinstance(found, AllocationResult), found.message
    return [(each.request, each.device) for each in found.devices.results]


def devices(found: AllocationResult | NoFit) -> list[str]:
    return [device for _, device in chosen(found)]


# --- which devices


def test_takes_the_first_free_device_in_order_of_pool_slice_and_device(device_index: DeviceIndex) -> None:
    late = a_pool(a_slice([a_device("late")], pool="b"))
    early = a_pool(
        a_slice([a_device("third")], name="s2", pool="a", slice_count=2),
        a_slice([a_device("held"), a_device("avoided"), a_device("first")], name="s1", pool="a", slice_count=2),
    )
    snapshot = a_snapshot(
        late,
        early,
        in_use=InUse({DeviceKey(early.key, "held"): Use(("west/default/train",))}),
        avoid=frozenset([DeviceKey(early.key, "avoided")]),
    )
    found = allocate_claim(a_claim(a_request(count=3)), snapshot, device_index)
    assert devices(found) == ["first", "third", "late"]


def test_pools_whose_devices_must_be_attached_first_come_last(device_index: DeviceIndex) -> None:
    attached = msgspec.structs.replace(
        a_device("attach"), binding_conditions=["Ready"], binding_failure_conditions=["Broken"]
    )
    snapshot = a_snapshot(a_pool(a_slice([attached], pool="a")), a_pool(a_slice([a_device("plain")], pool="b")))
    found = allocate_claim(a_claim(a_request(count=2)), snapshot, device_index)
    assert devices(found) == ["plain", "attach"]
    assert isinstance(found, AllocationResult)
    assert found.devices.results[1].binding_conditions == ["Ready"]
    assert found.devices.results[1].binding_failure_conditions == ["Broken"]


@pytest.mark.parametrize(
    ("taint", "toleration", "is_usable"),
    [
        pytest.param(a_taint(), None, False, id="NoSchedule keeps claims off"),
        pytest.param(a_taint(effect="NoExecute"), None, False, id="NoExecute keeps claims off"),
        pytest.param(a_taint(effect="None"), None, True, id="None keeps nobody off"),
        pytest.param(a_taint(effect="PreferNot"), None, True, id="an unknown effect keeps nobody off"),
        pytest.param(a_taint(), a_toleration(), True, id="tolerated by key"),
        pytest.param(a_taint(), a_toleration(effect="NoExecute"), False, id="another effect is tolerated"),
        pytest.param(a_taint(), a_toleration("other"), False, id="another key is tolerated"),
        pytest.param(a_taint(), a_toleration(""), True, id="everything is tolerated"),
        pytest.param(a_taint(value="a"), a_toleration(operator="Equal", value="a"), True, id="the value is tolerated"),
        pytest.param(a_taint(value="a"), a_toleration(operator="Equal", value="b"), False, id="another value is"),
        pytest.param(a_taint(), a_toleration(operator="Some"), False, id="an unknown operator tolerates nothing"),
    ],
)
def test_taints(
    device_index: DeviceIndex, taint: DeviceTaint, toleration: DeviceToleration | None, is_usable: bool
) -> None:
    device = msgspec.structs.replace(a_device(), taints=[taint])
    request = a_request(tolerations=[toleration] if toleration else [])
    found = allocate_claim(a_claim(request), a_snapshot(a_pool(a_slice([device]))), device_index)
    if is_usable:
        assert isinstance(found, AllocationResult), found.message
        assert found.devices.results[0].tolerations == ([toleration] if toleration else [])
    else:
        assert isinstance(found, NoFit)
        assert found.reason is Reason.DEVICES_TAINTED


def test_the_first_alternative_that_fits_is_taken(device_index: DeviceIndex) -> None:
    request = a_choice("gpu", a_sub_request("many", count=3), a_sub_request("few", count=2), a_sub_request("one"))
    found = allocate_claim(a_claim(request), a_snapshot(a_pool(a_slice(some_devices(2)))), device_index)
    assert chosen(found) == [("gpu/few", "gpu-0"), ("gpu/few", "gpu-1")]


def test_a_later_request_can_push_an_earlier_one_to_its_next_alternative(device_index: DeviceIndex) -> None:
    claim = a_claim(a_choice("any", a_sub_request("two", count=2), a_sub_request("one")), a_request("b", MODEL_B))
    fleet = [a_device("a", model="a"), a_device("b", model="b")]
    found = allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index)
    assert chosen(found) == [("any/one", "a"), ("b", "b")]


def test_gives_back_what_a_later_request_needs(device_index: DeviceIndex) -> None:
    claim = a_claim(a_request("any"), a_request("b", MODEL_B))
    fleet = [a_device("b", model="b"), a_device("a", model="a")]
    found = allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index)
    assert chosen(found) == [("any", "a"), ("b", "b")]


def test_all_takes_every_matching_device(device_index: DeviceIndex) -> None:
    fleet = [a_device("b0", model="b"), a_device("a", model="a"), a_device("b1", model="b")]
    claim = a_claim(a_request_for_all("gpu", MODEL_B))
    assert devices(allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index)) == ["b0", "b1"]


def test_a_claim_without_requests_gets_an_empty_allocation(device_index: DeviceIndex) -> None:
    empty = msgspec.structs.replace(a_claim(), spec=msgspec.structs.replace(a_claim().spec, devices=_no_requests()))
    assert allocate_claim(empty, a_snapshot(), device_index) == AllocationResult()


def _no_requests() -> Any:
    return msgspec.structs.replace(a_claim().spec.devices, requests=[])


@pytest.mark.parametrize(
    ("values", "constraint", "expected"),
    [
        pytest.param(["x", "y", "y"], a_match(f"{DRIVER}/rack"), ["d1", "d2"], id="match a string"),
        pytest.param([1, "1", True, 1], a_match(f"{DRIVER}/rack"), ["d0", "d3"], id="values of other types differ"),
        pytest.param([[1, 2], [3], [2, 4]], a_match(f"{DRIVER}/rack"), ["d0", "d2"], id="lists match by one value"),
        pytest.param([[1], 2, [2, 3]], a_match(f"{DRIVER}/rack"), ["d1", "d2"], id="a list matches a single value"),
        pytest.param(["x", "x", "y"], a_distinct(f"{DRIVER}/rack"), ["d0", "d2"], id="distinct strings"),
        pytest.param([[1, 2], [2, 3], [3]], a_distinct(f"{DRIVER}/rack"), ["d0", "d2"], id="distinct lists"),
        pytest.param(
            ["x", "x"], a_match("other.example.com/rack"), None, id="an attribute without domain is the driver's"
        ),
        pytest.param(["x", "y"], a_match(f"{DRIVER}/rack", "other"), ["d0", "d1"], id="another request is constrained"),
    ],
)
def test_constraints(
    device_index: DeviceIndex, values: list[AttributeValue], constraint: DeviceConstraint, expected: list[str] | None
) -> None:
    fleet = [a_device(f"d{index}", rack=value) for index, value in enumerate(values)]
    claim = a_claim(a_request(count=2), constraints=[constraint])
    found = allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index)
    if expected is None:
        assert isinstance(found, NoFit)
        assert found.reason is Reason.CONSTRAINT_UNSATISFIABLE
    else:
        assert devices(found) == expected


def test_a_device_without_the_attribute_satisfies_no_constraint_on_it(device_index: DeviceIndex) -> None:
    fleet = [a_device("none"), a_device("some", rack=1)]
    for constraint in (a_match(f"{DRIVER}/rack"), a_distinct(f"{DRIVER}/rack")):
        claim = a_claim(constraints=[constraint])
        assert devices(allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index)) == ["some"]


def test_a_qualified_attribute_goes_before_the_drivers_own(device_index: DeviceIndex) -> None:
    def device(name: str, qualified: int, own: int) -> Device:
        attributes = {f"{DRIVER}/rack": an_attribute(qualified), "rack": an_attribute(own)}
        return msgspec.structs.replace(a_device(name), attributes=attributes)

    fleet = [device("d0", 1, 9), device("d1", 2, 9), device("d2", 1, 8)]
    claim = a_claim(a_request(count=2), constraints=[a_match(f"{DRIVER}/rack")])
    assert devices(allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index)) == ["d0", "d2"]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        pytest.param("any", ["x0", "x1"], id="the request with all its alternatives"),
        pytest.param("any/two", ["x0", "x1"], id="the chosen alternative"),
        pytest.param("any/other", ["y", "x0"], id="an alternative that was not chosen"),
    ],
)
def test_a_constraint_names_a_request_or_an_alternative(
    device_index: DeviceIndex, scope: str, expected: list[str]
) -> None:
    fleet = [a_device("y", rack="y"), a_device("x0", rack="x"), a_device("x1", rack="x")]
    request = a_choice("any", a_sub_request("two", count=2), a_sub_request("other", count=2))
    claim = a_claim(request, constraints=[a_match(f"{DRIVER}/rack", scope)])
    assert devices(allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index)) == expected


# --- several claims


def test_claims_of_one_pod_are_allocated_together_or_not_at_all(device_index: DeviceIndex) -> None:
    claims = [a_claim(name="one"), a_claim(a_request(count=2), name="two")]
    found = allocate(claims, a_snapshot(a_pool(a_slice(some_devices(3)))), device_index)
    assert isinstance(found, list)
    assert [devices(each) for each in found] == [["gpu-0"], ["gpu-1", "gpu-2"]]
    too_few = allocate(claims, a_snapshot(a_pool(a_slice(some_devices(2)))), device_index)
    assert isinstance(too_few, NoFit)


def test_claims_of_one_pod_get_devices_that_one_node_reaches(device_index: DeviceIndex) -> None:
    pools = [
        a_pool(a_slice([a_device(f"on-{node}")], pool=f"{index}-{node}", node_name=node), scope="cluster/east")
        for index, node in enumerate(["n1", "n2", "n2"])
    ]
    snapshot = a_snapshot(*pools, nodes=[NodeView("n1"), NodeView("n2")])
    found = allocate([a_claim(name="one"), a_claim(name="two")], snapshot, device_index)
    assert isinstance(found, list)
    assert [devices(each) for each in found] == [["on-n2"], ["on-n2"]]


# --- nodes


def _at(*names: str) -> NodeSelector:
    requirement = NodeSelectorRequirement(key="metadata.name", operator="In", values=list(names))
    return NodeSelector(node_selector_terms=[NodeSelectorTerm(match_fields=[requirement])])


LOCAL = a_pool(a_slice([a_device("local")], pool="a", node_name="n2"), scope="cluster/east")
ZONED = a_pool(a_slice([a_device("zoned")], pool="b", node_selector=a_node_selector(zone="z1")))
SHARED = a_pool(a_slice([a_device("shared")], pool="c"))
NODES = [NodeView("n1", {"zone": "z1"}), NodeView("n2", {"zone": "z2"})]


@pytest.mark.parametrize(
    ("pools", "fields", "expected", "selector"),
    [
        pytest.param([SHARED], {"nodes": NODES}, ["shared"], None, id="on all nodes: no selector"),
        pytest.param(
            [LOCAL, ZONED, SHARED], {"nodes": NODES}, ["zoned"], a_node_selector(zone="z1"), id="first node first"
        ),
        pytest.param([LOCAL, ZONED, SHARED], {"nodes": NODES[::-1]}, ["local"], _at("n2"), id="the other node first"),
        pytest.param([LOCAL, ZONED, SHARED], {"nodes": NODES, "node": "n2"}, ["local"], _at("n2"), id="the given node"),
        pytest.param([LOCAL, ZONED, SHARED], {"node": "n9"}, ["shared"], None, id="a node that nobody has seen"),
        pytest.param([ZONED, SHARED], {"nodes": []}, ["shared"], None, id="a cluster without nodes"),
        pytest.param([LOCAL, ZONED], {}, ["local"], _at("n2"), id="no node known: the slice's node is supposed"),
        pytest.param(
            [ZONED], {}, ["zoned"], a_node_selector(zone="z1"), id="no node known: one that the selector matches"
        ),
    ],
)
def test_nodes(
    device_index: DeviceIndex,
    pools: list[Pool],
    fields: dict[str, Any],
    expected: list[str],
    selector: NodeSelector | None,
) -> None:
    found = allocate_claim(a_claim(), a_snapshot(*pools, **fields), device_index)
    assert devices(found) == expected
    assert isinstance(found, AllocationResult)
    assert found.node_selector == selector


def test_the_selectors_of_all_devices_are_merged_each_requirement_once(device_index: DeviceIndex) -> None:
    pools = [
        a_pool(a_slice([a_device("a")], pool="a", node_selector=a_node_selector(zone=["z1", "z2"]))),
        a_pool(a_slice([a_device("b")], pool="b", node_selector=a_node_selector(zone=["z2", "z1"], rack="r1"))),
        a_pool(a_slice([a_device("c")], pool="c", node_selector=_at("n1"))),
    ]
    nodes = [NodeView("n1", {"zone": "z1", "rack": "r1"})]
    found = allocate_claim(a_claim(a_request(count=3)), a_snapshot(*pools, nodes=nodes), device_index)
    assert isinstance(found, AllocationResult)
    labels = a_node_selector(zone=["z1", "z2"], rack="r1").node_selector_terms[0].match_expressions
    fields = _at("n1").node_selector_terms[0].match_fields
    assert found.node_selector == NodeSelector(
        node_selector_terms=[NodeSelectorTerm(match_fields=fields, match_expressions=labels)]
    )


def test_each_device_can_say_where_it_is(device_index: DeviceIndex) -> None:
    here = msgspec.structs.replace(a_device("here"), node_name="n2")
    zoned = msgspec.structs.replace(a_device("zoned"), node_selector=a_node_selector(zone="z1"))
    everywhere = msgspec.structs.replace(a_device("everywhere"), all_nodes=True)
    pool = a_pool(a_slice([here, zoned, everywhere], per_device_node_selection=True), scope="cluster/east")
    for node, expected in (("n1", ["zoned", "everywhere"]), ("n2", ["here", "everywhere"])):
        snapshot = a_snapshot(pool, nodes=NODES, node=node)
        assert devices(allocate_claim(a_claim(a_request_for_all()), snapshot, device_index)) == expected


def test_a_device_that_binds_to_its_node_pins_the_allocation(device_index: DeviceIndex) -> None:
    pool = a_pool(a_slice([msgspec.structs.replace(a_device(), binds_to_node=True)]))
    found = allocate_claim(a_claim(), a_snapshot(pool, nodes=NODES), device_index)
    assert isinstance(found, AllocationResult)
    assert found.node_selector == _at("n1")
    nowhere_to_bind = allocate_claim(a_claim(), a_snapshot(pool), device_index)
    assert isinstance(nowhere_to_bind, NoFit)
    assert nowhere_to_bind.reason is Reason.NO_MATCHING_NODE


@pytest.mark.parametrize(
    ("operator", "values", "labels", "is_matched"),
    [
        pytest.param("In", ["a", "b"], {"k": "b"}, True, id="In"),
        pytest.param("In", ["a"], {}, False, id="In without the label"),
        pytest.param("NotIn", ["a"], {"k": "b"}, True, id="NotIn"),
        pytest.param("NotIn", ["a"], {}, True, id="NotIn without the label"),
        pytest.param("Exists", [], {"k": ""}, True, id="Exists"),
        pytest.param("DoesNotExist", [], {"k": ""}, False, id="DoesNotExist"),
        pytest.param("Gt", ["3"], {"k": "4"}, True, id="Gt"),
        pytest.param("Gt", ["3"], {"k": "3"}, False, id="Gt of the same"),
        pytest.param("Lt", ["3"], {"k": "x"}, False, id="Lt of no number"),
        pytest.param("Lt", ["3"], {"k": "-1"}, True, id="Lt"),
        pytest.param("Near", ["3"], {"k": "3"}, False, id="an unknown operator"),
    ],
)
def test_node_selector_operators(
    device_index: DeviceIndex, operator: str, values: list[str], labels: dict[str, str], is_matched: bool
) -> None:
    requirement = NodeSelectorRequirement(key="k", operator=operator, values=values)
    selector = NodeSelector(node_selector_terms=[NodeSelectorTerm(match_expressions=[requirement])])
    snapshot = a_snapshot(a_pool(a_slice(node_selector=selector)), nodes=[NodeView("n1", labels)])
    found = allocate_claim(a_claim(), snapshot, device_index)
    assert isinstance(found, AllocationResult) == is_matched
    if isinstance(found, NoFit):
        assert found.reason is Reason.NO_MATCHING_NODE


# --- shares, partitions, admin access


def a_shared_device(name: str, memory: str = "8", **fields: Any) -> Device:
    found = a_device(name, capacity={"memory": memory})
    return msgspec.structs.replace(found, allow_multiple_allocations=True, **fields)


def a_partition(name: str, slices: int, *, of: str = "gpu-0", groups: Sequence[str] = (), **fields: Any) -> Device:
    drawn = DeviceCounterConsumption(
        counter_set=of, counters={"slices": Counter(value=str(slices))}, compatibility_groups=list(groups)
    )
    return msgspec.structs.replace(a_device(name, size=slices), consumes_counters=[drawn], **fields)


def partitioned(*devices: Device, gpus: int = 1, slices: int = 4, **spec: Any) -> Pool:
    sets = [CounterSet(name=f"gpu-{n}", counters={"slices": Counter(value=str(slices))}) for n in range(gpus)]
    return a_pool(
        a_slice(devices, name="devices", slice_count=2, **spec),
        a_slice([], name="counters", slice_count=2, shared_counters=sets),
    )


def asking(**amounts: str) -> CapacityRequirements:
    return CapacityRequirements(requests=amounts)


def test_requests_share_a_device_as_far_as_its_capacity_goes(device_index: DeviceIndex) -> None:
    pool = a_pool(a_slice([a_shared_device("s0"), a_shared_device("s1")]))
    claim = a_claim(*(a_request(name, capacity=asking(memory="3")) for name in ("a", "b", "c")))
    found = allocate_claim(claim, a_snapshot(pool), device_index)
    assert chosen(found) == [("a", "s0"), ("b", "s0"), ("c", "s1")]
    assert isinstance(found, AllocationResult)
    assert [each.consumed_capacity for each in found.devices.results] == [{"memory": "3"}] * 3


def test_one_request_gets_each_device_once(device_index: DeviceIndex) -> None:
    pool = a_pool(a_slice([a_shared_device("s0"), a_shared_device("s1")]))
    claim = a_claim(a_request(count=2, capacity=asking(memory="1")))
    assert devices(allocate_claim(claim, a_snapshot(pool), device_index)) == ["s0", "s1"]


def test_distinct_keeps_shares_of_one_device_apart(device_index: DeviceIndex) -> None:
    fleet = [msgspec.structs.replace(a_shared_device(f"s{n}"), attributes={"id": an_attribute(n)}) for n in range(2)]
    claim = a_claim(
        a_request("a", capacity=asking(memory="1")),
        a_request("b", capacity=asking(memory="1")),
        constraints=[a_distinct(f"{DRIVER}/id")],
    )
    assert devices(allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index)) == ["s0", "s1"]


def test_what_holders_consume_is_not_given_again(device_index: DeviceIndex) -> None:
    pool = a_pool(a_slice([a_shared_device("s0"), a_shared_device("s1"), a_shared_device("s2")]))
    in_use = InUse(
        {
            DeviceKey(pool.key, "s0"): Use(("a",)),
            DeviceKey(pool.key, "s1"): Use(("b",), is_whole=False, is_shared=True, consumed={"memory": 6 * 10**9}),
        }
    )
    for amount, expected in (("2", "s1"), ("3", "s2")):
        claim = a_claim(a_request(capacity=asking(memory=amount)))
        assert devices(allocate_claim(claim, a_snapshot(pool, in_use=in_use), device_index)) == [expected]


def test_a_device_that_is_not_shared_any_more_is_not_given_beside_its_shares(device_index: DeviceIndex) -> None:
    """Upstream gives it, where the request names so little capacity that it would fit."""
    pool = a_pool(a_slice([a_device("d", capacity={"memory": "8"})]))
    use = Use(("a",), is_whole=False, is_shared=True, consumed={"memory": 10**9})
    snapshot = a_snapshot(pool, in_use=InUse({DeviceKey(pool.key, "d"): use}))
    found = allocate_claim(a_claim(a_request(capacity=asking(memory="1"))), snapshot, device_index)
    assert isinstance(found, NoFit)
    assert found.reason is Reason.DEVICES_IN_USE


def test_shares_are_named_by_the_decision_that_gives_them(device_index: DeviceIndex) -> None:
    pool = a_pool(a_slice([a_shared_device("s0"), a_device("whole", capacity={"memory": "8"})]))
    claim = a_claim(*(a_request(name, capacity=asking(memory="4")) for name in ("a", "b", "c")))
    found = allocate_claim(claim, a_snapshot(pool), device_index)
    assert isinstance(found, AllocationResult)
    named = [each.share_id for each in with_share_ids(found, "uid", 7).devices.results]
    assert named == [share_id("uid", 7, 0), share_id("uid", 7, 1), None]
    assert named[0] != named[1] != share_id("uid", 8, 1)


def test_partitions_of_one_gpu_compete_for_its_counters(device_index: DeviceIndex) -> None:
    pool = partitioned(
        *(
            a_partition(f"g{gpu}-{size}-{n}", size, of=f"gpu-{gpu}")
            for gpu in range(2)
            for n, size in enumerate((4, 2, 2))
        ),
        gpus=2,
    )
    size = f'device.attributes["{DRIVER}"].size'
    claim = a_claim(
        a_request("small", f"{size} == 2"), a_request("big", f"{size} == 4"), a_request("more", f"{size} == 2")
    )
    found = allocate_claim(claim, a_snapshot(pool), device_index)
    assert chosen(found) == [("small", "g0-2-1"), ("big", "g1-4-0"), ("more", "g0-2-2")]
    held = InUse({DeviceKey(pool.key, "g0-2-2"): Use(("a",))})
    found = allocate_claim(a_claim(a_request("big", f"{size} == 4")), a_snapshot(pool, in_use=held), device_index)
    assert devices(found) == ["g1-4-0"]


def test_partitions_go_together_only_with_a_compatibility_group_in_common(device_index: DeviceIndex) -> None:
    pool = partitioned(
        a_partition("mig", 1, groups=["mig"]),
        a_partition("vgpu", 1, groups=["vgpu"]),
        a_partition("none", 1),
        a_partition("both", 1, groups=["mig", "vgpu"]),
    )
    assert devices(allocate_claim(a_claim(a_request(count=2)), a_snapshot(pool), device_index)) == ["mig", "both"]
    alone = InUse({DeviceKey(pool.key, "none"): Use(("a",))})
    assert isinstance(allocate_claim(a_claim(), a_snapshot(pool, in_use=alone), device_index), NoFit)


def test_shares_of_a_partition_draw_once(device_index: DeviceIndex) -> None:
    shared: dict[str, Any] = {"allow_multiple_allocations": True, "capacity": {"memory": DeviceCapacity(value="4")}}
    pool = partitioned(a_partition("p0", 3, **shared), a_partition("p1", 3, **shared))
    claim = a_claim(*(a_request(name, capacity=asking(memory="2")) for name in ("a", "b")))
    assert devices(allocate_claim(claim, a_snapshot(pool), device_index)) == ["p0", "p0"]
    use = Use(("a",), is_whole=False, is_shared=True, consumed={"memory": 2 * 10**9})
    held = InUse({DeviceKey(pool.key, "p1"): use})
    one = a_claim(a_request(capacity=asking(memory="2")))
    assert devices(allocate_claim(one, a_snapshot(pool, in_use=held), device_index)) == ["p1"]
    shrunk = partitioned(a_partition("p0", 3, **shared), a_partition("p1", 3, **shared), slices=2)
    assert devices(allocate_claim(one, a_snapshot(shrunk, in_use=held), device_index)) == ["p1"]
    assert isinstance(allocate_claim(one, a_snapshot(shrunk), device_index), NoFit)


def test_a_pool_that_is_overdrawn_gives_nothing_that_draws(device_index: DeviceIndex) -> None:
    """As upstream: whatever a driver took away, the rest of the pool waits until it is paid back."""
    pool = partitioned(a_partition("a", 3), a_partition("b", 1, of="gpu-1"), a_device("c"), gpus=2, slices=2)
    held = InUse({DeviceKey(pool.key, "a"): Use(("a",))})
    assert devices(allocate_claim(a_claim(), a_snapshot(pool, in_use=held), device_index)) == ["c"]


def test_admin_access_takes_what_others_hold_and_keeps_nothing_from_them(device_index: DeviceIndex) -> None:
    pool = a_pool(a_slice(some_devices(2)))
    in_use = InUse({DeviceKey(pool.key, f"gpu-{n}"): Use(("a",)) for n in range(2)})
    claim = a_claim(a_request_for_all(admin_access=True))
    found = allocate_claim(claim, a_snapshot(pool, in_use=in_use, allows_admin_access=True), device_index)
    assert devices(found) == ["gpu-0", "gpu-1"]
    assert isinstance(found, AllocationResult)
    assert all(each.admin_access for each in found.devices.results)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param(True, True, ["gpu-0", "gpu-1"], id="twice in one claim"),
        pytest.param(False, True, ["gpu-0", "gpu-1"], id="and an ordinary request in one claim"),
        pytest.param(True, False, ["gpu-0", "gpu-1"], id="before an ordinary request in one claim"),
    ],
)
def test_admin_access_within_one_claim(
    device_index: DeviceIndex, first: bool, second: bool, expected: list[str]
) -> None:
    claim = a_claim(a_request("a", admin_access=first), a_request("b", admin_access=second))
    snapshot = a_snapshot(a_pool(a_slice(some_devices(2))), allows_admin_access=True)
    assert devices(allocate_claim(claim, snapshot, device_index)) == expected


def test_admin_access_of_another_claim_of_the_pod_takes_the_same_device(device_index: DeviceIndex) -> None:
    claims = [a_claim(name="one"), a_claim(a_request(admin_access=True), name="two")]
    found = allocate(claims, a_snapshot(a_pool(), allows_admin_access=True), device_index)
    assert isinstance(found, list)
    assert [devices(each) for each in found] == [["gpu-0"], ["gpu-0"]]


def test_all_passes_over_devices_without_the_capacity(device_index: DeviceIndex) -> None:
    fleet = [a_shared_device("small", "2"), a_shared_device("big"), a_device("none")]
    claim = a_claim(a_request_for_all(capacity=asking(memory="3")))
    snapshot = a_snapshot(a_pool(a_slice(fleet)))
    assert devices(allocate_claim(claim, snapshot, device_index)) == ["big"]


def test_what_nodes_need_not_do_is_copied(device_index: DeviceIndex) -> None:
    found = allocate_claim(a_claim(), a_snapshot(a_pool(a_slice(skip_node_operations=["*"]))), device_index)
    assert isinstance(found, AllocationResult)
    assert found.devices.results[0].skip_node_operations == ["*"]


def test_devices_with_skipped_operations_are_for_nodes_that_can_skip_them(device_index: DeviceIndex) -> None:
    fleet = a_pool(a_slice([a_device("skipping")], pool="a", skip_node_operations=["*"]))
    old, new = NodeView("old", skips_operations=False), NodeView("new")
    assert isinstance(allocate_claim(a_claim(), a_snapshot(fleet, nodes=[old]), device_index), NoFit)
    assert devices(allocate_claim(a_claim(), a_snapshot(fleet, nodes=[old, new]), device_index)) == ["skipping"]
    both = a_snapshot(fleet, a_pool(a_slice([a_device("plain")], pool="b")), nodes=[old])
    assert devices(allocate_claim(a_claim(), both, device_index)) == ["plain"]
    # All means all that match, wherever they can be used.
    assert isinstance(allocate_claim(a_claim(a_request_for_all()), both, device_index), NoFit)


def test_derived_attributes_make_different_devices_comparable(device_index: DeviceIndex) -> None:
    def derived(expression: str) -> list[DeviceDerivedAttribute]:
        return [DeviceDerivedAttribute(name="a.com/numa", expression=expression)]

    of = f'device.attributes["{DRIVER}"]'
    fleet = [a_device("gpu-n0", numa=0), a_device("gpu-n1", numa=1), a_device("nic", place="node1", nic=True)]
    claim = a_claim(
        a_request("gpu", f"!has({of}.nic)", derived_attributes=derived(f"{of}.numa")),
        a_request("nic", f"has({of}.nic)", derived_attributes=derived(f"int({of}.place.substring(4))")),
        constraints=[a_match("a.com/numa")],
    )
    found = allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index)
    assert chosen(found) == [("gpu", "gpu-n1"), ("nic", "nic")]


# --- configuration


BIG = a_class("big", config=[a_config(size="big"), a_config(more=1)])
PLAIN = a_class(config=[a_config(size="plain")])


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        pytest.param(
            a_claim(a_request("a", of="big")),
            [("FromClass", [], {"size": "big"}), ("FromClass", [], {"more": 1})],
            id="the class's, for the only request",
        ),
        pytest.param(
            a_claim(a_request("a"), a_request("b", of="big"), a_request("c")),
            [
                ("FromClass", ["a", "c"], {"size": "plain"}),
                ("FromClass", ["b"], {"size": "big"}),
                ("FromClass", ["b"], {"more": 1}),
            ],
            id="each class once, in the order of the requests",
        ),
        pytest.param(
            a_claim(
                a_request("a"),
                a_request("b"),
                config=[
                    a_claim_config(a_config(x=1), "b"),
                    a_claim_config(a_config(x=2)),
                    a_claim_config(a_config(x=3), "a", "b"),
                ],
            ),
            [
                ("FromClass", [], {"size": "plain"}),
                ("FromClaim", ["b"], {"x": 1}),
                ("FromClaim", [], {"x": 2}),
                ("FromClaim", [], {"x": 3}),
            ],
            id="the claim's after the class's, without names where it applies to all",
        ),
        pytest.param(
            a_claim(
                a_choice("a", a_sub_request("x", count=9), a_sub_request("y", of="big")),
                a_request("b"),
                config=[
                    a_claim_config(a_config(x=1), "a/x"),
                    a_claim_config(a_config(x=2), "a/y"),
                    a_claim_config(a_config(x=3), "a"),
                    a_claim_config(a_config(x=4), "a/y", "b"),
                ],
            ),
            [
                ("FromClass", ["a/y"], {"size": "big"}),
                ("FromClass", ["a/y"], {"more": 1}),
                ("FromClass", ["b"], {"size": "plain"}),
                ("FromClaim", ["a/y"], {"x": 2}),
                ("FromClaim", ["a"], {"x": 3}),
                ("FromClaim", [], {"x": 4}),
            ],
            id="of alternatives only what the chosen one has",
        ),
    ],
)
def test_configuration_is_copied(
    device_index: DeviceIndex, claim: ResourceClaim, expected: list[tuple[str, list[str], dict[str, Any]]]
) -> None:
    snapshot = a_snapshot(a_pool(a_slice(some_devices(4))), classes=[BIG, PLAIN])
    found = allocate_claim(claim, snapshot, device_index)
    assert isinstance(found, AllocationResult), found.message
    assert found.devices.config == [
        DeviceAllocationConfiguration(source=source, requests=requests, opaque=a_config(**parameters))
        for source, requests, parameters in expected
    ]


# --- no explosion


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([a_request("a", count=17)], id="17 of one fabric"),
        pytest.param([a_request("a", count=9), a_request("b", count=8)], id="9 and 8 of one fabric"),
        pytest.param(
            [a_request("a", count=9), a_choice("b", a_sub_request("c", count=8), a_sub_request("d", count=9))],
            id="9 and one of two alternatives of one fabric",
        ),
    ],
)
def test_a_hopeless_gang_ends_within_few_steps(device_index: DeviceIndex, requests: list[DeviceRequest]) -> None:
    slices = [
        a_slice(
            [a_device(f"d{i}", fabric=f"f{i // 16}") for i in range(start, start + 128)],
            name=f"s{start}",
            slice_count=8,
        )
        for start in range(0, 1024, 128)
    ]
    claim = a_claim(*requests, constraints=[a_match(f"{DRIVER}/fabric")])
    found = allocate_claim(claim, a_snapshot(a_pool(*slices)), device_index, step_budget=20_000)
    assert isinstance(found, NoFit)
    assert found.reason is Reason.CONSTRAINT_UNSATISFIABLE


def test_equal_devices_are_tried_once_after_a_failure(device_index: DeviceIndex) -> None:
    # Each request has enough candidates, and all of them together too; only the search finds that "b" cannot be served.
    fleet = [a_device(f"a{i}", model="a", rack=i % 2) for i in range(30)]
    fleet += [a_device(f"b{i}", model="b", rack=2 + i) for i in range(2)]
    claim = a_claim(
        a_request("any", count=10),
        a_request("b", MODEL_B, count=2),
        constraints=[a_match(f"{DRIVER}/rack", "any"), a_match(f"{DRIVER}/model", "b"), a_match(f"{DRIVER}/rack", "b")],
    )
    found = allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index, step_budget=2_000)
    assert isinstance(found, NoFit)
    assert found.reason is Reason.CONSTRAINT_UNSATISFIABLE


def test_the_class_is_looked_up_by_its_name(device_index: DeviceIndex) -> None:
    other = a_class("other", 'device.driver == "other.example.com"')
    snapshot = a_snapshot(a_pool(), classes=[other])
    assert devices(allocate_claim(a_claim(a_request(of=CLASS)), snapshot, device_index)) == ["gpu-0"]
    assert isinstance(allocate_claim(a_claim(a_request(of="other")), snapshot, device_index), NoFit)


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([(8, 10), (4, 13)], id="counted"),
        pytest.param([(4, 8), (2, 13), (8, 9)], id="the large ones last"),
        pytest.param([(8, 1)] * 10 + [(4, 1)] * 13, id="one by one"),
    ],
)
def test_partitions_that_cannot_fit_are_found_out_within_few_steps(
    device_index: DeviceIndex, requests: list[tuple[int, int]]
) -> None:
    sizes = [8, 4, 4, 2, 2, 2, 2, *[1] * 8]
    gpus = [[a_partition(f"g{gpu}-{n}", size, of=f"gpu-{gpu}") for n, size in enumerate(sizes)] for gpu in range(16)]
    sets = [CounterSet(name=f"gpu-{gpu}", counters={"slices": Counter(value="8")}) for gpu in range(16)]
    pool = a_pool(
        *(a_slice(gpus[n] + gpus[n + 1], name=f"d{n}", slice_count=10) for n in range(0, 16, 2)),
        *(a_slice([], name=f"c{n}", slice_count=10, shared_counters=sets[n : n + 8]) for n in (0, 8)),
    )
    claim = a_claim(
        *(
            a_request(f"r{n}", f'device.attributes["{DRIVER}"].size == {size}', count=count)
            for n, (size, count) in enumerate(requests)
        )
    )
    found = allocate_claim(claim, a_snapshot(pool), device_index, step_budget=25_000)
    assert isinstance(found, NoFit)
    assert found.reason is Reason.NO_MATCHING_DEVICE


def test_states_that_failed_are_not_searched_again(device_index: DeviceIndex) -> None:
    # 9 requests with different selectors want one device each of the same 8: 9! orders, but only 2^8 sets.
    fleet = [a_device(f"d{n}", side=n) for n in range(8)] + [a_device("far", side=9, far=True)]
    of = f'device.attributes["{DRIVER}"]'
    requests = [a_request(f"r{n}", f"!has({of}.far) || {of}.side > {n}") for n in range(8)]
    claim = a_claim(
        *requests,
        a_request("last", f"!has({of}.far)"),
        constraints=[a_distinct(f"{DRIVER}/side"), a_match(f"{DRIVER}/far", "r0")],
    )
    assert isinstance(allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index), AllocationResult)
    claim = a_claim(*requests, *(a_request(f"l{n}", f"!has({of}.far)") for n in range(2)))
    found = allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index, step_budget=10_000)
    assert isinstance(found, NoFit)
    assert found.reason is Reason.NO_MATCHING_DEVICE
