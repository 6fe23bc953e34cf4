"""Many nodes with devices of their own: what each of them costs, and that none is given up for that."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from broker.allocation.allocate import allocate_claim
from broker.allocation.cel.engine import SelectorEngine
from broker.allocation.index import DeviceIndex
from broker.allocation.nodes import NodeView
from broker.allocation.reasons import NoFit, Reason
from broker.allocation.snapshot import Snapshot
from broker.world.federation import Federation
from broker.world.inventory import Inventory
from broker.world.keys import ClusterId, DeviceKey, cluster_scope
from broker.world.usage import InUse, Use
from schemas.resource import Device, DeviceConstraint, DeviceRequest, ResourceClaim, ResourceSlice
from tests.allocation.test_index import calls_of
from tests.builders import (
    CLASS,
    DRIVER,
    a_choice,
    a_claim,
    a_class,
    a_device,
    a_distinct,
    a_match,
    a_pool,
    a_request,
    a_request_for_all,
    a_slice,
    a_sub_request,
    a_toleration,
)

EAST = ClusterId("east")


def gpus(node: str, count: int = 8) -> list[ResourceSlice]:
    """GPUs of one node, half of them at each NUMA node; each has its own serial number."""
    devices = [a_device(f"d{n}", numa=n // 4, model="a", serial=f"{node}-{n}") for n in range(count)]
    return [a_slice(devices, name=node, pool=node, node_name=node)]


def beside_an_incomplete_pool(node: str, count: int = 8) -> list[ResourceSlice]:
    return [
        *gpus(node, count),
        a_slice([a_device("x")], name=f"bad-{node}", pool=f"bad-{node}", node_name=node, slice_count=2),
    ]


def attached_first(node: str, count: int = 8) -> list[ResourceSlice]:
    (slice_,) = gpus(node, count)
    devices = [replace(each, binding_conditions=["example.com/attached"]) for each in slice_.spec.devices]
    return [replace(slice_, spec=replace(slice_.spec, devices=devices))]


def beside_a_lost_node(node: str, count: int = 8) -> list[ResourceSlice]:
    lost = f"lost-{node}"
    return [*gpus(node, count), a_slice([a_device("x")], name=lost, pool=lost, node_name=lost)]


def nodes_with(slices: Callable[[str, int], Sequence[ResourceSlice]], nodes: int, last: int = 8) -> Snapshot:
    """last: how many devices the last node has."""
    inventory = Inventory(Federation(clusters=[EAST]))
    names = [f"n{number:04}" for number in range(nodes)]
    for name in names:
        for each in slices(name, last if name == names[-1] else 8):
            inventory.put((EAST, each.metadata.name), each)
    pools = inventory.pools_of_scopes([cluster_scope(EAST)])
    return Snapshot(pools, {CLASS: a_class()}, [NodeView(name) for name in names], in_use=InUse())


LOST = f'device.attributes["{DRIVER}"].model == "a"'  # fails on the devices of lost nodes, which have no model
THREE_AND_THREE_AT_ONE = a_claim(
    a_request("a", count=3), a_request("b", count=3), constraints=[a_match(f"{DRIVER}/numa")]
)
FIVE_AT_ONE = a_claim(a_request(count=5), constraints=[a_match(f"{DRIVER}/numa")])


@pytest.mark.parametrize(
    ("slices", "claim"),
    [
        pytest.param(gpus, FIVE_AT_ONE, id="a constraint"),
        pytest.param(gpus, THREE_AND_THREE_AT_ONE, id="a constraint that some of all devices satisfy"),
        pytest.param(beside_an_incomplete_pool, FIVE_AT_ONE, id="incomplete pools"),
        pytest.param(attached_first, FIVE_AT_ONE, id="binding conditions"),
        pytest.param(beside_an_incomplete_pool, a_claim(a_request_for_all()), id="all, and incomplete pools"),
        pytest.param(gpus, a_claim(a_request_for_all("a"), a_request("b")), id="all and one more"),
        pytest.param(beside_a_lost_node, a_claim(a_request("gpu", LOST, count=9)), id="a failing selector"),
    ],
)
def test_what_a_node_costs_does_not_depend_on_how_many_there_are(
    engine: SelectorEngine, slices: Callable[[str, int], Sequence[ResourceSlice]], claim: ResourceClaim
) -> None:
    calls = []
    for nodes in (40, 160):
        snapshot, index = nodes_with(slices, nodes), DeviceIndex(engine)
        first = allocate_claim(claim, snapshot, index)
        assert isinstance(first, NoFit)
        calls.append(calls_of(lambda: allocate_claim(claim, snapshot, index)))  # noqa: B023
    assert calls[1] <= calls[0] * 4


TWICE_FIVE = [a_request("a", count=5), a_request("b", count=5)]


@pytest.mark.parametrize(
    ("requests", "constraints"),
    [
        pytest.param(TWICE_FIVE, [], id="two requests"),
        pytest.param([a_request("a", count=5), a_request("b", tolerations=[a_toleration()], count=5)], [], id="unlike"),
        pytest.param(TWICE_FIVE, [a_match(f"{DRIVER}/model")], id="of one model"),
        pytest.param([a_request("a", count=9)], [a_distinct(f"{DRIVER}/serial")], id="distinct"),
        pytest.param(
            TWICE_FIVE, [a_match(f"{DRIVER}/model"), a_distinct(f"{DRIVER}/serial")], id="of one model and distinct"
        ),
        pytest.param(
            [a_choice(name, a_sub_request("x", count=6), a_sub_request("y", count=5)) for name in "ab"],
            [],
            id="alternatives",
        ),
        pytest.param(
            [a_request("a", count=8), a_request_for_all("b", f'device.attributes["{DRIVER}"].numa == 2')], [], id="all"
        ),
    ],
)
def test_many_nodes_that_cannot_do_are_passed_over_within_few_steps(
    engine: SelectorEngine, requests: Sequence[DeviceRequest], constraints: Sequence[DeviceConstraint]
) -> None:
    snapshot = nodes_with(gpus, 500, last=16)
    claim = a_claim(*requests, constraints=constraints)
    for index in (DeviceIndex(engine), DeviceIndex(engine)):
        found = allocate_claim(claim, snapshot, index, step_budget=2_500)
        assert not isinstance(found, NoFit), found.message
        assert {each.pool for each in found.devices.results} == {"n0499"}


def test_all_means_the_devices_of_one_node(device_index: DeviceIndex) -> None:
    snapshot = nodes_with(gpus, 5, last=40)
    wanted = a_claim(a_request_for_all("a"))
    held = {DeviceKey(each.key, "d0"): Use(("west/default/x",)) for each in snapshot.pools}
    found = allocate_claim(wanted, replace(snapshot, in_use=InUse(held)), device_index)
    assert isinstance(found, NoFit)
    assert found.reason is Reason.DEVICES_IN_USE
    assert found.message == (
        "request a asks for all 8 that match: 67 of 72 devices of class gpu.example.com can be used: 5 in use "
        "(held by west/default/x); at most 7 of the 8 needed reached from one node (n0000)"
    )
    (report,) = found.requests
    assert (report.needed, report.nearest) == (8, 7)


@pytest.mark.parametrize(
    ("nodes", "last", "reason"),
    [
        pytest.param(5, 8, Reason.NO_MATCHING_DEVICE, id="one too many of each node"),
        pytest.param(1, 33, Reason.TOO_MANY_DEVICES, id="more than a claim can have"),
    ],
)
def test_all_and_one_more(device_index: DeviceIndex, nodes: int, last: int, reason: Reason) -> None:
    claim = a_claim(a_request_for_all("a"), a_request("b"))
    found = allocate_claim(claim, nodes_with(gpus, nodes, last), device_index)
    assert isinstance(found, NoFit)
    assert found.reason is reason


def test_a_node_with_more_than_a_claim_can_have_is_not_the_nearest(device_index: DeviceIndex) -> None:
    snapshot = nodes_with(gpus, 2, last=40)
    (pool, _) = snapshot.pools
    held = InUse({DeviceKey(pool.key, f"d{n}"): Use(("west/default/x",)) for n in range(3)})
    found = allocate_claim(a_claim(a_request_for_all("a")), replace(snapshot, in_use=held), device_index)
    assert isinstance(found, NoFit)
    assert found.reason is Reason.DEVICES_IN_USE
    assert (found.requests[0].needed, found.requests[0].nearest) == (8, 5)


@pytest.mark.parametrize(
    ("racks_by_node", "everywhere"),
    [
        pytest.param([["r0", "r1"], ["r2", "r3"], ["r4", "r4"]], [], id="the same value twice"),
        pytest.param([["r0"], ["r1"], ["r2"]], ["r2"], id="the value of a device that all nodes reach"),
        pytest.param([["r0", "r1"], ["r2", "r3"], [["r4", "r5"], "r5"]], [], id="a list with a value of another"),
        pytest.param([["r0", None], [None, "r1"], ["r2", "r2"]], [], id="no value"),
    ],
)
def test_nodes_that_are_almost_alike_are_tried(
    device_index: DeviceIndex, racks_by_node: Sequence[Sequence[Any]], everywhere: Sequence[str]
) -> None:
    def devices(racks: Sequence[Any]) -> list[Device]:
        return [a_device(f"d{n}", **({"rack": rack} if rack else {})) for n, rack in enumerate(racks)]

    names = [f"n{number}" for number in range(len(racks_by_node))]
    pools = [
        a_pool(a_slice(devices(racks), name=name, pool=name, node_name=name), scope=cluster_scope(EAST))
        for name, racks in zip(names, racks_by_node, strict=True)
    ]
    if everywhere:
        pools.append(
            a_pool(a_slice(devices(everywhere), name="rack", pool="rack", all_nodes=True), scope=cluster_scope(EAST))
        )
    nodes = [NodeView(name) for name in names]
    claim = a_claim(a_request(count=2), constraints=[a_match(f"{DRIVER}/rack")])
    found = allocate_claim(claim, Snapshot(pools, {CLASS: a_class()}, nodes), device_index)
    assert not isinstance(found, NoFit), found.message
    assert names[-1] in {each.pool for each in found.devices.results}
