"""Why nothing was allocated: the reason, the sentence, the counts, and what to wait for."""

from typing import Any

import msgspec
import pytest

from broker.allocation.allocate import allocate, allocate_claim
from broker.allocation.budget import Budget
from broker.allocation.cel.engine import SelectorEngine
from broker.allocation.index import DeviceIndex
from broker.allocation.nodes import NodeView
from broker.allocation.reasons import Cause, NoFit, Reason, RuledOut, WaitsOn
from broker.allocation.snapshot import Snapshot
from broker.allocation.validate_selectors import compile_claim
from broker.world.keys import DeviceKey, PoolKey
from broker.world.pools import Pool
from broker.world.usage import InUse, Use
from schemas.resource import (
    CapacityRequirements,
    Counter,
    CounterSet,
    Device,
    DeviceCounterConsumption,
    DeviceDerivedAttribute,
    DeviceRequest,
    ResourceClaim,
)
from tests.allocation.test_allocate import MODEL_B, a_snapshot
from tests.builders import (
    CLASS,
    DRIVER,
    a_choice,
    a_claim,
    a_class,
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
    some_devices,
)

RACK7 = PoolKey("fabric/f", DRIVER, "rack7")


def refused(found: object) -> NoFit:
    assert isinstance(found, NoFit), found
    return found


def held(pool: Pool, *names: str) -> InUse:
    return InUse({DeviceKey(pool.key, name): Use((f"east/default/{name}",)) for name in names})


def test_counts_every_cause_and_names_what_may_pass_first(device_index: DeviceIndex) -> None:
    tainted = [msgspec.structs.replace(a_device(f"t{n}", model="b"), taints=[a_taint(value="yes")]) for n in range(2)]
    other = a_pool(a_slice(some_devices(3), driver="other.example.com", pool="nics"))
    pool = a_pool(a_slice([*(a_device(f"h{n}", model="b") for n in range(5)), *tainted, a_device("a", model="a")]))
    snapshot = a_snapshot(pool, other, in_use=held(pool, *(f"h{n}" for n in range(5))))
    found = refused(allocate_claim(a_claim(a_request("gpu", MODEL_B)), snapshot, device_index))
    assert found.reason is Reason.DEVICES_IN_USE
    assert found.message == (
        "request gpu: 0 of 8 devices of class gpu.example.com can be used: 5 in use (held by east/default/h0, "
        "east/default/h1, east/default/h2 and 2 more), 2 tainted (example.com/broken=yes:NoSchedule), "
        "1 ruled out by selector 0 of the request"
    )
    (report,) = found.requests
    assert (report.devices, report.of_class, report.usable, report.needed) == (11, 8, 0, 1)
    assert [(each.cause, each.count) for each in report.ruled_out] == [
        (Cause.CLASS_SELECTOR, 3),
        (Cause.REQUEST_SELECTOR, 1),
        (Cause.TAINT, 2),
        (Cause.IN_USE, 5),
    ]
    assert found.waits_on.pools == (RACK7,)
    assert found.waits_on.classes == (CLASS,)
    assert found.waits_on.slices


TAINTED = msgspec.structs.replace(a_device(), taints=[a_taint()])
INCOMPLETE = a_pool(a_slice(slice_count=2))
INVALID = a_pool(a_slice([a_device(), a_device()]))


@pytest.mark.parametrize(
    ("snapshot", "requests", "reason", "message"),
    [
        pytest.param(
            a_snapshot(),
            [a_request()],
            Reason.NO_MATCHING_DEVICE,
            "request gpu: no devices are published where this cluster reaches them",
            id="no devices at all",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice(some_devices(2), driver="other.example.com"))),
            [a_request()],
            Reason.NO_MATCHING_DEVICE,
            "request gpu: none of 2 devices belongs to class gpu.example.com",
            id="none of the class",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice(some_devices(7)))),
            [a_request(count=8)],
            Reason.NO_MATCHING_DEVICE,
            "request gpu needs 8: 7 of 7 devices of class gpu.example.com can be used",
            id="one too few even on an empty fleet",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice([TAINTED]))),
            [a_request()],
            Reason.DEVICES_TAINTED,
            "request gpu: 0 of 1 device of class gpu.example.com can be used: "
            "1 tainted (example.com/broken:NoSchedule)",
            id="tainted",
        ),
        pytest.param(
            a_snapshot(INCOMPLETE),
            [a_request()],
            Reason.POOL_INCOMPLETE,
            "request gpu: 0 of 1 device of class gpu.example.com can be used: "
            "1 in an incomplete pool (rack7: 1 of 2 slices of generation 1)",
            id="the pool is incomplete",
        ),
        pytest.param(
            a_snapshot(INVALID),
            [a_request()],
            Reason.POOL_INVALID,
            "request gpu: 0 of 2 devices of class gpu.example.com can be used: "
            "2 in an invalid pool (rack7: more than one device is named gpu-0)",
            id="the pool is invalid",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice(pool="good")), a_pool(a_slice([], pool="bad", slice_count=2))),
            [a_request_for_all()],
            Reason.POOL_INCOMPLETE,
            "request gpu asks for all 1 that match: 1 of 1 device of class gpu.example.com can be used: "
            "what all are is unknown until the pool is complete (bad: 1 of 2 slices of generation 1)",
            id="an incomplete pool without matching devices holds up All",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice([a_device("a", model="a")]))),
            [a_request_for_all("gpu", MODEL_B)],
            Reason.NO_MATCHING_DEVICE,
            "request gpu asks for all 0 that match: 0 of 1 device of class gpu.example.com can be used: "
            "1 ruled out by selector 0 of the request",
            id="All of nothing",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice([a_device(), msgspec.structs.replace(TAINTED, name="t")]))),
            [a_request_for_all()],
            Reason.DEVICES_TAINTED,
            "request gpu asks for all 2 that match: 1 of 2 devices of class gpu.example.com can be used: "
            "1 tainted (example.com/broken:NoSchedule)",
            id="one tainted device holds up All",
        ),
        pytest.param(
            a_snapshot(
                a_pool(a_slice(node_selector=a_node_selector(zone="z1"))), nodes=[NodeView("n1"), NodeView("n2")]
            ),
            [a_request()],
            Reason.NO_MATCHING_NODE,
            "request gpu: 0 of 1 device of class gpu.example.com can be used: 1 not reached from any node",
            id="no node reaches it",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice(node_selector=a_node_selector(zone="z1"))), node="n1"),
            [a_request()],
            Reason.NO_MATCHING_NODE,
            "request gpu: 0 of 1 device of class gpu.example.com can be used: 1 not reached from node n1",
            id="the given node does not reach it",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice(skip_node_operations=["*"])), nodes=[NodeView("n1", skips_operations=False)]),
            [a_request()],
            Reason.NO_MATCHING_NODE,
            "request gpu: 0 of 1 device of class gpu.example.com can be used: "
            "1 not reached from any node (not every node declares DRAOptionalNodeOperations)",
            id="no node can skip operations",
        ),
        pytest.param(
            a_snapshot(
                *(a_pool(a_slice(pool=node, node_selector=a_node_selector(name=node))) for node in ("n1", "n2")),
                nodes=[NodeView(name, {"name": name}) for name in ("n1", "n2")],
            ),
            [a_request(count=2)],
            Reason.NO_MATCHING_NODE,
            "request gpu needs 2: 2 of 2 devices of class gpu.example.com can be used; "
            "at most 1 of the 2 needed reached from one node (n1)",
            id="no single node reaches enough",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice([a_device()]))),
            [a_request("a"), a_request("b")],
            Reason.NO_MATCHING_DEVICE,
            "what the requests can use does not fit together: "
            "request a: 1 of 1 device of class gpu.example.com can be used; "
            "request b: 1 of 1 device of class gpu.example.com can be used",
            id="two requests for one device",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice(some_devices(40)))),
            [a_request(count=33)],
            Reason.TOO_MANY_DEVICES,
            "claim default/train asks for 33 devices, and a claim can have at most 32",
            id="more devices than a claim can have",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice(some_devices(1)))),
            [a_choice("gpu", a_sub_request("two", count=2), a_sub_request("b", MODEL_B + " || false", count=3))],
            Reason.SELECTOR_FAILED,
            None,
            id="an alternative's selector fails",
        ),
    ],
)
def test_reasons(
    device_index: DeviceIndex, snapshot: Snapshot, requests: list[DeviceRequest], reason: Reason, message: str | None
) -> None:
    found = refused(allocate_claim(a_claim(*requests), snapshot, device_index))
    assert found.reason is reason
    if message is not None:
        assert found.message == message


def test_in_use_comes_before_constraints_when_waiting_helps(device_index: DeviceIndex) -> None:
    pool = a_pool(a_slice([a_device(f"d{n}", fabric=f"fab-{n // 8}") for n in range(16)]))
    claim = a_claim(a_request(count=8), constraints=[a_match(f"{DRIVER}/fabric")])
    found = refused(allocate_claim(claim, a_snapshot(pool, in_use=held(pool, "d1", "d2", "d9")), device_index))
    assert found.reason is Reason.DEVICES_IN_USE
    assert found.message.endswith("; at most 7 of the 8 needed with the same gpu.example.com/fabric (fab-1)")
    assert (found.requests[0].nearest, found.requests[0].needed) == (7, 8)


def test_a_constraint_that_no_free_device_could_satisfy(device_index: DeviceIndex) -> None:
    pool = a_pool(a_slice([a_device(f"d{n}", side=n % 2) for n in range(4)]))
    claim = a_claim(a_request(count=3), constraints=[a_distinct(f"{DRIVER}/side")])
    found = refused(allocate_claim(claim, a_snapshot(pool, in_use=held(pool, "d0")), device_index))
    assert found.reason is Reason.CONSTRAINT_UNSATISFIABLE
    assert "at most 2 of the 3 needed with different gpu.example.com/side" in found.message


def test_avoided_devices_are_a_reason_of_their_own(device_index: DeviceIndex) -> None:
    pool = a_pool()
    found = refused(
        allocate_claim(a_claim(), a_snapshot(pool, avoid=frozenset([DeviceKey(RACK7, "gpu-0")])), device_index)
    )
    assert found.reason is Reason.DEVICES_AVOIDED
    assert found.message.endswith("1 avoided because it was rejected there")


def test_several_claims_are_told_apart(device_index: DeviceIndex) -> None:
    claims = [a_claim(name="one"), a_claim(a_request(count=2), name="two")]
    found = refused(allocate(claims, a_snapshot(a_pool()), device_index))
    assert found.message.startswith("claim default/two: request gpu needs 2: 1 of 1 device")
    assert [report.claim for report in found.requests] == ["default/one", "default/two"]


def test_many_requests_do_not_make_an_endless_message(device_index: DeviceIndex) -> None:
    found = refused(allocate_claim(a_claim(*(a_request(f"r{n}") for n in range(20))), a_snapshot(), device_index))
    assert found.message.endswith("; and 12 more like these")
    assert len(found.requests) == 20


# --- classes and selectors


def test_an_unknown_class(device_index: DeviceIndex) -> None:
    found = refused(allocate_claim(a_claim(a_request(of="tpu")), a_snapshot(), device_index))
    assert found.reason is Reason.UNKNOWN_DEVICE_CLASS
    assert found.message == (
        "request gpu names the device class tpu, which does not exist; known classes: gpu.example.com"
    )
    assert found.waits_on.classes == ("tpu",)
    assert not found.waits_on.slices


def test_an_unknown_class_fails_the_claim_even_as_a_later_alternative(device_index: DeviceIndex) -> None:
    claim = a_claim(a_choice("gpu", a_sub_request("good"), a_sub_request("bad", of="tpu")))
    found = refused(allocate_claim(claim, a_snapshot(a_pool()), device_index))
    assert found.reason is Reason.UNKNOWN_DEVICE_CLASS


@pytest.mark.parametrize("expression", ["device.driver ==", "device.driver", ""])
def test_a_class_that_cannot_be_used(device_index: DeviceIndex, expression: str) -> None:
    broken = a_class("broken", "true", expression)
    found = refused(allocate_claim(a_claim(a_request(of="broken")), a_snapshot(classes=[broken]), device_index))
    assert found.reason is Reason.INVALID_DEVICE_CLASS
    assert "spec.selectors[1].cel.expression" in found.message
    assert found.waits_on.classes == ("broken",)


def test_a_selector_that_does_not_compile(device_index: DeviceIndex) -> None:
    claim = a_claim(a_choice("gpu", a_sub_request("a"), a_sub_request("b", "true", "device.driver =! 'x'")))
    (error,) = compile_claim(claim, device_index, Budget(1_000))
    assert error.path == "spec.devices.requests[0].firstAvailable[1].selectors[1].cel.expression"
    assert (error.line, error.column) == (1, 15)
    assert error.caret == "device.driver =! 'x'\n              ^"
    found = refused(allocate_claim(claim, a_snapshot(a_pool()), device_index))
    assert found.reason is Reason.INVALID_SELECTOR
    assert found.message.startswith(f"{error.path} does not compile: line 1, column 15: ")
    assert found.waits_on == WaitsOn()


NEEDS_MODEL = f'device.attributes["{DRIVER}"].model == "b"'


def test_a_selector_that_fails_on_a_device_stops_the_allocation(device_index: DeviceIndex) -> None:
    fleet = [a_device("a", model="a"), a_device("unknown"), a_device("b", model="b")]
    found = refused(
        allocate_claim(a_claim(a_request("gpu", "true", NEEDS_MODEL)), a_snapshot(a_pool(a_slice(fleet))), device_index)
    )
    assert found.reason is Reason.SELECTOR_FAILED
    assert found.message.startswith(
        "request gpu: selectors[1].cel.expression failed on device fabric/f/gpu.example.com/rack7/unknown: "
    )
    in_class = a_class("b", NEEDS_MODEL)
    found = refused(
        allocate_claim(a_claim(a_request(of="b")), a_snapshot(a_pool(a_slice(fleet)), classes=[in_class]), device_index)
    )
    assert found.message.startswith("DeviceClass b: selectors[0].cel.expression failed on device ")


def test_a_selector_that_would_fail_on_a_device_that_is_not_tried_does_no_harm(device_index: DeviceIndex) -> None:
    fleet = [a_device("held"), a_device("b", model="b"), a_device("later")]
    pool = a_pool(a_slice(fleet))
    found = allocate_claim(
        a_claim(a_request("gpu", NEEDS_MODEL)), a_snapshot(pool, in_use=held(pool, "held")), device_index
    )
    assert not isinstance(found, NoFit)
    assert [each.device for each in found.devices.results] == ["b"]


def test_all_needs_a_verdict_on_every_device(device_index: DeviceIndex) -> None:
    pool = a_pool(a_slice([a_device("held"), a_device("b", model="b")]))
    claim = a_claim(a_request_for_all("gpu", NEEDS_MODEL))
    found = refused(allocate_claim(claim, a_snapshot(pool, in_use=held(pool, "held")), device_index))
    assert found.reason is Reason.SELECTOR_FAILED


# --- capacity, counters, derived attributes, admin access

SHARED = msgspec.structs.replace(a_device("s", capacity={"memory": "8"}), allow_multiple_allocations=True)


def asking(**amounts: str) -> CapacityRequirements:
    return CapacityRequirements(requests=amounts)


def shared_by(*holders: str, memory: int) -> InUse:
    use = Use(holders, is_whole=False, is_shared=True, consumed={"memory": memory * 10**9})
    return InUse({DeviceKey(RACK7, "s"): use})


def a_partition(name: str, slices: str, counter_set: str = "gpu-0", **fields: Any) -> Device:
    drawn = DeviceCounterConsumption(counter_set=counter_set, counters={"slices": Counter(value=slices)}, **fields)
    return msgspec.structs.replace(a_device(name), consumes_counters=[drawn])


def a_partitioned_pool(*devices: Device, slices: str = "4") -> Pool:
    counters = CounterSet(name="gpu-0", counters={"slices": Counter(value=slices)})
    return a_pool(
        a_slice(devices, name="devices", slice_count=2),
        a_slice([], name="counters", slice_count=2, shared_counters=[counters]),
    )


@pytest.mark.parametrize(
    ("snapshot", "requests", "reason", "message"),
    [
        pytest.param(
            a_snapshot(a_pool(a_slice([SHARED, a_device("plain")]))),
            [a_request(capacity=asking(memory="9"))],
            Reason.NO_MATCHING_DEVICE,
            "request gpu: 0 of 2 devices of class gpu.example.com can be used: "
            "2 without the capacity (8 of memory instead of 9, no capacity memory)",
            id="no device has so much",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice([SHARED])), in_use=shared_by("east/a/x", "west/a/y", memory=6)),
            [a_request(capacity=asking(memory="3"))],
            Reason.DEVICES_IN_USE,
            "request gpu: 0 of 1 device of class gpu.example.com can be used: "
            "1 with too little capacity left (shared by east/a/x, west/a/y)",
            id="too little is left",
        ),
        pytest.param(
            a_snapshot(a_pool(a_slice([SHARED])), in_use=shared_by("east/a/x", memory=4)),
            [a_request("a", capacity=asking(memory="3")), a_request("b", capacity=asking(memory="3"))],
            Reason.DEVICES_IN_USE,
            "what the requests can use does not fit together: "
            "request a: 1 of 1 device of class gpu.example.com can be used; "
            "request b: 1 of 1 device of class gpu.example.com can be used",
            id="what is left is enough for each request, not for both",
        ),
        pytest.param(
            a_snapshot(
                a_partitioned_pool(a_partition("big", "4"), a_partition("small", "2")),
                in_use=InUse({DeviceKey(RACK7, "small"): Use(("east/a/x",))}),
            ),
            [a_request()],
            Reason.DEVICES_IN_USE,
            "request gpu: 0 of 2 devices of class gpu.example.com can be used: "
            "1 whose counters others have drawn (slices of gpu-0 of pool rack7), 1 in use (held by east/a/x)",
            id="others have drawn the counters",
        ),
        pytest.param(
            a_snapshot(a_partitioned_pool(a_partition("huge", "5"))),
            [a_request()],
            Reason.NO_MATCHING_DEVICE,
            "request gpu: 0 of 1 device of class gpu.example.com can be used: "
            "1 that draw more than their pool's counters have (slices of gpu-0)",
            id="more than the counters ever have",
        ),
        pytest.param(
            a_snapshot(a_partitioned_pool(a_partition("a", "3"), a_partition("b", "3"))),
            [a_request(count=2)],
            Reason.NO_MATCHING_DEVICE,
            "what the requests can use does not fit together: "
            "request gpu needs 2: 2 of 2 devices of class gpu.example.com can be used",
            id="either partition, not both",
        ),
        pytest.param(
            a_snapshot(
                a_partitioned_pool(
                    a_partition("a", "1", compatibility_groups=["mig"]),
                    a_partition("b", "1", compatibility_groups=["vgpu"]),
                ),
                in_use=InUse({DeviceKey(RACK7, "a"): Use(("east/a/x",))}),
            ),
            [a_request()],
            Reason.DEVICES_IN_USE,
            "request gpu: 0 of 2 devices of class gpu.example.com can be used: "
            "1 whose counters others have drawn (compatibility groups in gpu-0 of pool rack7), "
            "1 in use (held by east/a/x)",
            id="it does not go together with what is held",
        ),
        pytest.param(
            a_snapshot(a_partitioned_pool(a_partition("a", "1", counter_set="gpu-9"))),
            [a_request()],
            Reason.POOL_INVALID,
            "request gpu: 0 of 1 device of class gpu.example.com can be used: 1 in an invalid pool "
            "(rack7: device a draws from counter set gpu-9, which is not there)",
            id="counters that are not there",
        ),
    ],
)
def test_reasons_of_partitions_and_shares(
    device_index: DeviceIndex, snapshot: Snapshot, requests: list[DeviceRequest], reason: Reason, message: str
) -> None:
    found = refused(allocate_claim(a_claim(*requests), snapshot, device_index))
    assert (found.reason, found.message) == (reason, message)
    if reason is Reason.DEVICES_IN_USE:
        assert found.waits_on.pools == (RACK7,)


def test_a_derived_attribute_that_cannot_be_computed_rules_out_its_device_only(device_index: DeviceIndex) -> None:
    derived = DeviceDerivedAttribute(name="a.com/numa", expression=f'device.attributes["{DRIVER}"].numa')
    claim = a_claim(a_request(count=2, derived_attributes=[derived]), constraints=[a_match("a.com/numa")])
    fleet = [a_device("x"), a_device("y", numa=1), a_device("z", numa=1)]
    found = allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet))), device_index)
    assert not isinstance(found, NoFit)
    assert [each.device for each in found.devices.results] == ["y", "z"]
    none = refused(allocate_claim(claim, a_snapshot(a_pool(a_slice(fleet[:2]))), device_index))
    assert "1 for which a derived attribute cannot be computed (a.com/numa: no such key: numa)" in none.message


def test_a_derived_attribute_that_does_not_compile(device_index: DeviceIndex) -> None:
    derived = DeviceDerivedAttribute(name="a.com/numa", expression="1.5")
    claim = a_claim(a_request(derived_attributes=[derived]), constraints=[a_match("a.com/numa")])
    found = refused(allocate_claim(claim, a_snapshot(a_pool()), device_index))
    assert found.reason is Reason.INVALID_SELECTOR
    assert found.message.startswith("spec.devices.requests[0].exactly.derivedAttributes[0].expression does not compile")


def test_admin_access_needs_the_namespaces_consent(device_index: DeviceIndex) -> None:
    claim = a_claim(a_request(admin_access=True))
    found = refused(allocate_claim(claim, a_snapshot(a_pool()), device_index))
    assert found.reason is Reason.ADMIN_ACCESS_NOT_ALLOWED
    assert found.message == (
        "request gpu asks for admin access, for which the namespace default must be labelled "
        'resource.kubernetes.io/admin-access: "true"'
    )


# --- what is not supported


@pytest.mark.parametrize(
    ("claim", "path"),
    [
        pytest.param(
            a_claim(a_choice("a", a_sub_request("b", allocation_mode="Most"))),
            "requests[0].firstAvailable[0].allocationMode",
            id="an allocation mode of the future",
        ),
        pytest.param(a_claim(DeviceRequest(name="a")), "requests[0]", id="a request of the future"),
        pytest.param(
            a_claim(constraints=[msgspec.structs.replace(a_match("x/y"), match_attribute=None)]),
            "constraints[0]",
            id="a constraint of the future",
        ),
    ],
)
def test_a_claim_with_what_is_not_supported_is_refused(
    device_index: DeviceIndex, claim: ResourceClaim, path: str
) -> None:
    found = refused(allocate_claim(claim, a_snapshot(a_pool(a_slice(some_devices(2)))), device_index))
    assert found.reason is Reason.UNSUPPORTED_FEATURE
    assert found.message == f"spec.devices.{path} is not supported by this release"


def test_admin_access_that_is_not_asked_for_is_no_obstacle(device_index: DeviceIndex) -> None:
    assert not isinstance(
        allocate_claim(a_claim(a_request(admin_access=False)), a_snapshot(a_pool()), device_index), NoFit
    )


@pytest.mark.parametrize(
    ("device", "spec", "detail"),
    [
        pytest.param(
            {},
            {"node_name": "n1"},
            "spec.nodeName (a device of a fabric belongs to no node)",
            id="a node's slice in a fabric",
        ),
        pytest.param(
            {"node_name": "n1"},
            {"per_device_node_selection": True},
            "spec.devices[0].nodeName (a device of a fabric belongs to no node)",
            id="a node's device in a fabric",
        ),
    ],
)
def test_a_device_with_what_is_not_supported_is_ruled_out(
    device_index: DeviceIndex, device: dict[str, Any], spec: dict[str, Any], detail: str
) -> None:
    odd: Device = msgspec.structs.replace(a_device("odd"), **device)
    pool = a_pool(a_slice([odd], **spec))
    found = refused(allocate_claim(a_claim(), a_snapshot(pool), device_index))
    assert found.reason is Reason.UNSUPPORTED_FEATURE
    assert found.requests[0].ruled_out == (RuledOut(Cause.UNSUPPORTED, 1, f"{detail} of slice slice-0"),)
    plain = a_pool(a_slice([a_device("plain")], pool="plain"))
    assert not isinstance(allocate_claim(a_claim(), a_snapshot(pool, plain), device_index), NoFit)


# --- budget


def test_a_search_without_end_is_cut_off_after_the_same_number_of_steps(device_index: DeviceIndex) -> None:
    # 9 disjoint triples among 25 values: as hard a question as constraints can ask.
    edges = [[n % 25, (n * 7 + 3) % 25, (n * 11 + 5) % 25] for n in range(64)]
    pool = a_pool(a_slice([a_device(f"d{n}", edge=sorted(set(edge))) for n, edge in enumerate(edges)]))
    claim = a_claim(a_request(count=12), constraints=[a_distinct(f"{DRIVER}/edge")])
    found = refused(allocate_claim(claim, a_snapshot(pool), device_index, step_budget=3_000))
    assert found.reason is Reason.SEARCH_BUDGET_EXCEEDED
    assert found.message.startswith("the search ended after 3000 steps without an answer; ")
    assert found == allocate_claim(claim, a_snapshot(pool), device_index, step_budget=3_000)


LOOP = "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"
HOSTILE = [
    pytest.param(
        a_claim(a_request("x", f"{LOOP}.all(a, {LOOP}.all(b, {LOOP}.all(c, a + b + c > 0))) && false")),
        id="a nested comprehension",
    ),
    pytest.param(
        a_claim(
            *(a_request(f"r{n}", f'device.attributes["{DRIVER}"].index != {n}') for n in range(32)),
            constraints=[
                *(a_distinct(f"{DRIVER}/index", f"r{n}", f"r{31 - n}") for n in range(31)),
                a_match(f"{DRIVER}/nothing"),
            ],
        ),
        id="32 requests with 32 constraints",
    ),
    pytest.param(
        a_claim(a_request(count=32), constraints=[a_distinct(f"{DRIVER}/tags"), a_match(f"{DRIVER}/model")]),
        id="near-equal devices",
    ),
    pytest.param(
        a_claim(
            *(
                a_choice(
                    f"r{n}",
                    *(a_sub_request(f"s{m}", f'device.attributes["{DRIVER}"].index == {n * 8 + m}') for m in range(8)),
                )
                for n in range(32)
            )
        ),
        id="256 selectors",
    ),
]


@pytest.mark.parametrize("claim", HOSTILE)
def test_a_hostile_claim_is_cut_off_and_the_same_way_each_time(engine: SelectorEngine, claim: ResourceClaim) -> None:
    """However much an index remembers. The work is what counts: seconds would depend on the machine."""
    slices = [
        a_slice(
            [a_device(f"d{n}", index=n, model="a", tags=[n % 7, 7 + n % 11]) for n in range(start, start + 128)],
            name=f"s{start}",
            slice_count=8,
        )
        for start in range(0, 1024, 128)
    ]
    index, budget = DeviceIndex(engine), 25_000
    first = allocate_claim(claim, a_snapshot(a_pool(*slices)), DeviceIndex(engine), step_budget=budget)
    for _ in range(2):
        assert allocate_claim(claim, a_snapshot(a_pool(*slices)), index, step_budget=budget) == first


def test_selectors_that_are_too_long_together_are_not_compiled(device_index: DeviceIndex) -> None:
    requests = [a_request(f"r{n}", " || ".join(f"device.driver == '{n}-{m}'" for m in range(300))) for n in range(32)]
    found = refused(allocate_claim(a_claim(*requests), a_snapshot(a_pool()), device_index, step_budget=25_000))
    assert found.reason is Reason.SEARCH_BUDGET_EXCEEDED
    assert "too long to be compiled" in found.message


def edges(count: int, **fields: Any) -> list[Device]:
    """Devices with three of 25 values each. Whether nine of them have nothing in common is hard to tell."""
    values = [sorted({n % 25, (n * 7 + 3) % 25, (n * 11 + 5) % 25}) for n in range(count)]
    return [msgspec.structs.replace(a_device(f"d{n:02}", edge=each), **fields) for n, each in enumerate(values)]


NINE_APART = a_claim(a_request(count=9), constraints=[a_distinct(f"{DRIVER}/edge")])


@pytest.mark.parametrize(
    ("pool", "names", "avoid"),
    [
        pytest.param(a_pool(a_slice(edges(64))), [f"d{n:02}" for n in range(56)], [], id="in use"),
        pytest.param(a_pool(a_slice(edges(64))), [], [f"d{n:02}" for n in range(56)], id="avoided"),
        pytest.param(a_pool(a_slice(edges(64, taints=[a_taint()]))), [], [], id="tainted"),
    ],
)
def test_nothing_is_promised_that_was_not_found_out(
    device_index: DeviceIndex, pool: Pool, names: list[str], avoid: list[str]
) -> None:
    avoided = frozenset(DeviceKey(pool.key, name) for name in avoid)
    snapshot = a_snapshot(pool, in_use=held(pool, *names), avoid=avoided)
    found = refused(allocate_claim(NINE_APART, snapshot, device_index, step_budget=2_000))
    assert found.reason is Reason.SEARCH_BUDGET_EXCEEDED
    assert found.message.startswith("nothing fits, and the search for what stands in the way ended after 2000 steps; ")
    assert found.waits_on.pools == ((pool.key,) if names or avoid else ())
    assert found == allocate_claim(NINE_APART, snapshot, device_index, step_budget=2_000)


@pytest.mark.parametrize("is_held", [False, True])
def test_what_occurs_nowhere_is_no_reason_however_little_was_counted(device_index: DeviceIndex, is_held: bool) -> None:
    others = [a_pool(a_slice(driver="other.example.com", name=f"s{n}", pool=f"p{n}")) for n in range(300)]
    pool = a_pool(a_slice(edges(12)))
    wanted = a_claim(a_request(count=7), constraints=[a_distinct(f"{DRIVER}/edge")])
    in_use = InUse({DeviceKey(PoolKey("fabric/g", DRIVER, "far"), "x"): Use(("west/default/x",))} if is_held else {})
    reasons = {
        refused(
            allocate_claim(wanted, a_snapshot(pool, *others, in_use=in_use), device_index, step_budget=budget)
        ).reason
        for budget in range(100, 2_500, 100)
    }
    assert reasons == {Reason.SEARCH_BUDGET_EXCEEDED, Reason.CONSTRAINT_UNSATISFIABLE}
