"""What an API server refuses; compared with the validation of Kubernetes 1.37.2 itself, on this table and at random."""

from collections.abc import Callable
from typing import Any

import pytest

from schemas.errors import FieldError
from schemas.resource import DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice
from schemas.resource.decode import decode_object
from schemas.resource.validate import (
    validate_claim,
    validate_class,
    validate_slice,
    validate_status,
    validate_taint_rule,
    validate_template,
)
from tests.schemas.raw import ABSENT, a_raw, put

_OBJECTS = ["claim", "template", "class", "rule", "slice", "counter slice"]


def _errors(raw: dict[str, Any]) -> list[FieldError]:
    match decode_object(raw):
        case ResourceClaim() as claim:
            return validate_claim(claim) + validate_status(claim)
        case ResourceClaimTemplate() as template:
            return validate_template(template)
        case DeviceClass() as device_class:
            return validate_class(device_class)
        case ResourceSlice() as resource_slice:
            return validate_slice(resource_slice)
        case DeviceTaintRule() as rule:
            return validate_taint_rule(rule)
    raise AssertionError(raw["kind"])


def _changed(name: str, *changes: tuple[str, Any]) -> list[FieldError]:
    raw = a_raw(name)
    for path, value in changes:
        put(raw, path, value)
    return _errors(raw)


@pytest.mark.parametrize("name", _OBJECTS)
def test_valid_objects_have_no_errors(name: str) -> None:
    assert _errors(a_raw(name)) == []


_REQUEST = "spec.devices.requests[0].exactly"
_DEVICE = "spec.devices[0]"
_MEMORY = "spec.devices[0].capacity[memory].requestPolicy"
_ENGINES = "spec.devices[0].capacity[engines].requestPolicy"
_NODE = "spec.devices[0].nodeAllocatableResources"
_SELECTOR = "spec.nodeSelector.nodeSelectorTerms[0]"
_RESULT = "status.allocation.devices.results[0]"
_STATUS = "status.devices[0]"

# The object, the field that is changed, its new value, a part of the message, and where else the error is, if it is.
_REFUSED: list[tuple[Any, ...]] = [
    # names and metadata
    ("claim", "metadata.name", "", "must be set"),
    ("claim", "metadata.name", "Training", 'found "Training"'),
    ("claim", "metadata.name", "a" * 254, "at most 253"),
    ("claim", "metadata.namespace", "m.l", "DNS label"),
    ("claim", "metadata.labels[a/b/c]", "x", "domain"),
    ("claim", "metadata.labels[zone]", "-a", "beginning and ending"),
    ("claim", "metadata.annotations[a b]", "x", 'found "a b"'),
    ("template", "spec.metadata.labels[team]", "a b", 'found "a b"'),
    ("rule", "metadata.name", "a_b", 'found "a_b"'),
    # requests
    ("claim", "spec.devices.requests[0].name", "", "must be set"),
    ("claim", "spec.devices.requests[0].name", "gpu.a", "DNS label"),
    ("claim", _REQUEST, ABSENT, "found neither", "spec.devices.requests[0]"),
    ("claim", "spec.devices.requests[1].exactly", {"deviceClassName": "a"}, "found both", "spec.devices.requests[1]"),
    ("claim", "spec.devices.requests[1].firstAvailable", [], "found neither", "spec.devices.requests[1]"),
    ("claim", f"{_REQUEST}.deviceClassName", "", "must be set"),
    ("claim", f"{_REQUEST}.deviceClassName", "A", 'found "A"'),
    ("claim", f"{_REQUEST}.allocationMode", "Most", 'found "Most"'),
    ("claim", f"{_REQUEST}.allocationMode", "All", "allocationMode All", f"{_REQUEST}.count"),
    ("claim", f"{_REQUEST}.count", -1, "greater than 0"),
    ("claim", f"{_REQUEST}.selectors[0].cel", ABSENT, "must be set"),
    ("claim", f"{_REQUEST}.selectors[0].cel.expression", "", "must be set"),
    ("class", "spec.selectors[0].cel.expression", "true||" * 1706 + "false", "at most 10240 bytes, found 10241"),
    ("claim", f"{_REQUEST}.tolerations[0].value", "x", "Exists"),
    ("claim", f"{_REQUEST}.tolerations[0].operator", "In", '"In"'),
    ("claim", f"{_REQUEST}.tolerations[0].effect", "NoRun", "NoRun"),
    ("claim", f"{_REQUEST}.tolerations[0].key", "a b", 'found "a b"'),
    ("claim", f"{_REQUEST}.tolerations[1].value", "a b", "a b"),
    ("claim", f"{_REQUEST}.capacity.requests[memory]", "10GB", "10GB"),
    ("claim", f"{_REQUEST}.derivedAttributes[0].name", "half", "domain/name"),
    ("claim", f"{_REQUEST}.derivedAttributes[0].name", "gpu.example.com/third", "must be named by"),
    ("claim", f"{_REQUEST}.derivedAttributes[0].expression", "", "must be set"),
    (
        "claim",
        "spec.devices.requests[1].firstAvailable[1].name",
        "fast",
        'must not repeat "fast"',
        "spec.devices.requests[1].firstAvailable[1]",
    ),
    ("claim", "spec.devices.requests[1].name", "gpu", 'must not repeat "gpu"', "spec.devices.requests[1]"),
    # constraints and configuration
    ("claim", "spec.devices.constraints[0].requests[0]", "tpu", "gpu, nic"),
    ("claim", "spec.devices.constraints[0].requests[0]", "gpu/fast", "gpu/fast"),
    (
        "claim",
        "spec.devices.constraints[0].requests[0]",
        "nic/fast",
        "repeat",
        "spec.devices.constraints[0].requests[1]",
    ),
    ("claim", "spec.devices.constraints[0].matchAttribute", ABSENT, "found neither", "spec.devices.constraints[0]"),
    ("claim", "spec.devices.constraints[0].matchAttribute", "numa", "domain/name"),
    ("claim", "spec.devices.constraints[0].matchAttribute", "a.b/", "a.b/"),
    ("claim", "spec.devices.config[0].requests[0]", "tpu", "tpu"),
    ("claim", "spec.devices.config[0].opaque", ABSENT, "must be set"),
    ("class", "spec.config[0].opaque.driver", "", "must be set"),
    ("class", "spec.config[0].opaque.driver", "a" * 64, "at most 63"),
    ("class", "spec.config[0].opaque.parameters", None, "must be set"),
    ("class", "spec.config[0].opaque.parameters", [1], "must be an object"),
    ("class", "spec.config[0].opaque.parameters", {"a": "x" * 10240}, "10240 bytes"),
    ("class", "spec.extendedResourceName", "gpu", "domain/name"),
    ("class", "spec.extendedResourceName", "kubernetes.io/gpu", "outside of kubernetes.io"),
    ("class", "spec.extendedResourceName", "requests.a.b/gpu", "requests."),
    # taint rules
    ("rule", "spec.taint.key", "", "must be set"),
    ("rule", "spec.taint.effect", "", "must be one of None, NoSchedule, NoExecute"),
    ("rule", "spec.taint.effect", "NoRun", 'found "NoRun"'),
    ("rule", "spec.taint.value", "a b", 'found "a b"'),
    ("rule", "spec.deviceSelector.driver", "a_b", 'found "a_b"'),
    ("rule", "spec.deviceSelector.pool", "a//b", "DNS labels"),
    ("rule", "spec.deviceSelector.device", "a.b", "DNS label"),
    # slices
    ("slice", "spec.driver", "", "must be set"),
    ("slice", "spec.driver", "a" * 64, "at most 63"),
    ("slice", "spec.pool.name", "", "must be set"),
    ("slice", "spec.pool.name", "/a", "DNS labels"),
    ("slice", "spec.pool.name", "a/" * 127, "at most 253"),
    ("slice", "spec.pool.generation", -1, "must not be negative"),
    ("slice", "spec.pool.resourceSliceCount", 0, "greater than 0"),
    ("slice", "spec.allNodes", True, "found allNodes and perDeviceNodeSelection", "spec"),
    ("slice", "spec.allNodes", False, "must be true or absent"),
    ("slice", "spec.nodeName", "", "must be set"),
    ("counter slice", "spec.nodeSelector", ABSENT, "found none", "spec"),
    ("counter slice", "spec.nodeSelector.nodeSelectorTerms", [], "at least one"),
    ("counter slice", "spec.nodeSelector.nodeSelectorTerms", [{}, {}], "exactly one"),
    ("counter slice", "spec.devices", [{"name": "gpu-0"}], "use two slices", "spec"),
    ("counter slice", "spec.sharedCounters[0].name", "", "must be set"),
    ("counter slice", "spec.sharedCounters[0].counters", {}, "must be set"),
    ("counter slice", "spec.sharedCounters[0].counters[memory].value", "", "quantity"),
    ("counter slice", "spec.sharedCounters[0].counters[a.b]", {"value": "1"}, "DNS label"),
    ("slice", "spec.skipNodeOperations", ["NodePrepareResources"], "NodeUnprepareResources"),
    ("slice", "spec.skipNodeOperations", ["Prepare"], 'found "Prepare"', "spec.skipNodeOperations[0]"),
    ("slice", "spec.skipNodeOperations", ["*", "*"], "must not repeat", "spec.skipNodeOperations[1]"),
    ("slice", "spec.partitionTypeAttribute", "model", "domain/name"),
    (
        "slice",
        "spec.partitionTypeAttribute",
        "gpu.example.com/index",
        "must be set to a string",
        f"{_DEVICE}.attributes[gpu.example.com/index]",
    ),
    ("slice", f"{_DEVICE}.consumesCounters", [], "devices that consume counters", "spec.partitionTypeAttribute"),
    # devices
    ("slice", f"{_DEVICE}.name", "gpu_0", 'found "gpu_0"'),
    ("slice", f"{_DEVICE}.nodeSelector", ABSENT, "found none", _DEVICE),
    ("slice", f"{_DEVICE}.nodeName", "node-1", "found nodeName and nodeSelector", _DEVICE),
    ("slice", "spec.perDeviceNodeSelection", ABSENT, "perDeviceNodeSelection: true", _DEVICE),
    ("slice", f"{_DEVICE}.attributes[model]", {}, "found none"),
    ("slice", f"{_DEVICE}.attributes[model].int", 1, "found int and string", f"{_DEVICE}.attributes[model]"),
    ("slice", f"{_DEVICE}.attributes[model].string", "x" * 65, "found 65"),
    ("slice", f"{_DEVICE}.attributes[model].string", "ü" * 33, "found 66"),
    ("slice", f"{_DEVICE}.attributes[driverVersion].version", "v1.2.3", "v1.2.3"),
    ("slice", f"{_DEVICE}.attributes[links].strings", [], "empty list"),
    ("slice", f"{_DEVICE}.attributes[links].strings[1]", "x" * 65, "found 65"),
    ("slice", f"{_DEVICE}.attributes[firmwares].versions[1]", "1", '"1"'),
    ("slice", f"{_DEVICE}.attributes[1st]", {"int": 1}, "begin with a digit"),
    ("slice", f"{_DEVICE}.attributes[xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx]", {"int": 1}, "at most 32"),
    ("slice", f"{_DEVICE}.attributes[a_b/c]", {"int": 1}, "the domain"),
    ("slice", f"{_DEVICE}.capacity[a-b]", {"value": "1"}, "digits"),
    ("slice", f"{_DEVICE}.capacity[cores].value", "many", 'found "many"'),
    ("slice", f"{_DEVICE}.taints[0].effect", "Evict", 'found "Evict"'),
    ("slice", f"{_DEVICE}.bindingFailureConditions", [], "must be set where"),
    ("slice", f"{_DEVICE}.bindingConditions", [], "must be set where"),
    ("slice", f"{_DEVICE}.bindingFailureConditions[0]", "Attached", "at the same time"),
    ("slice", f"{_DEVICE}.bindingConditions", ["a", "a"], "must not repeat", f"{_DEVICE}.bindingConditions[1]"),
    ("slice", f"{_DEVICE}.consumesCounters[0].counterSet", "", "must be set"),
    ("slice", f"{_DEVICE}.consumesCounters[0].counters", {}, "must be set"),
    ("slice", f"{_DEVICE}.consumesCounters[0].compatibilityGroups", ["a", "b", "c"], "at most 2"),
    # how much of a shared device can be requested
    ("slice", f"{_DEVICE}.allowMultipleAllocations", False, "allowMultiple", _MEMORY),
    ("slice", f"{_MEMORY}.validValues", ["1"], "found both", _MEMORY),
    ("slice", f"{_MEMORY}.default", ABSENT, "must be set"),
    ("slice", f"{_MEMORY}.default", "5Gi", "less than"),
    ("slice", f"{_MEMORY}.default", "50Gi", "more than"),
    ("slice", f"{_MEMORY}.default", "15Gi", "multiple"),
    ("slice", f"{_MEMORY}.default", "lots", "lots"),
    ("slice", f"{_MEMORY}.validRange.min", ABSENT, "must be set"),
    ("slice", f"{_MEMORY}.validRange.max", "90Gi", "capacity 80Gi"),
    ("slice", f"{_MEMORY}.validRange.step", "0", "greater than 0"),
    ("slice", f"{_MEMORY}.validRange.step", "80Gi", "above the capacity"),
    ("slice", f"{_ENGINES}.default", "3", "one of validValues"),
    ("slice", f"{_ENGINES}.validValues", ["2", "1"], "less than the value before", f"{_ENGINES}.validValues[1]"),
    ("slice", f"{_ENGINES}.validValues", ["1", "1"], "must not repeat", f"{_ENGINES}.validValues[1]"),
    ("slice", f"{_ENGINES}.validValues", ["1", "9"], "capacity 8", f"{_ENGINES}.validValues[1]"),
    # resources of the node
    ("slice", f"{_NODE}[disk]", {"overhead": {"perPod": "1"}}, "cpu, memory"),
    ("slice", f"{_NODE}[cpu]", {}, "`mapping` or `overhead`"),
    ("slice", f"{_NODE}[cpu].mapping.capacityKey", "x", "capacity of the device"),
    ("slice", f"{_NODE}[cpu].mapping.capacityMultiplier", ABSENT, "must be set"),
    ("slice", f"{_NODE}[cpu].mapping.deviceMultiplier", "1", "found both", f"{_NODE}[cpu].mapping"),
    ("slice", f"{_NODE}[memory].mapping.deviceMultiplier", "0", "greater than 0"),
    ("slice", f"{_NODE}[cpu].overhead.perPod", "-1", "not be negative"),
    ("slice", f"{_NODE}[cpu].overhead", {}, "`perPod` or"),
    # node selectors
    ("counter slice", f"{_SELECTOR}.matchExpressions[0].operator", "Like", "Like"),
    (
        "counter slice",
        f"{_SELECTOR}.matchExpressions[0].operator",
        "Exists",
        "must be empty",
        f"{_SELECTOR}.matchExpressions[0].values",
    ),
    (
        "counter slice",
        f"{_SELECTOR}.matchExpressions[0].operator",
        "Gt",
        "one value",
        f"{_SELECTOR}.matchExpressions[0].values",
    ),
    ("counter slice", f"{_SELECTOR}.matchExpressions[0].values", [], "must be set"),
    ("counter slice", f"{_SELECTOR}.matchFields[0].key", "name", "metadata.name"),
    ("counter slice", f"{_SELECTOR}.matchFields[0].values", [], "one value"),
    # status
    ("claim", f"{_RESULT}.request", "tpu", "tpu"),
    ("claim", f"{_RESULT}.request", "nic/slow", "nic/slow"),
    ("claim", f"{_RESULT}.pool", "", "must be set"),
    ("claim", f"{_RESULT}.device", "", "must be set"),
    ("claim", f"{_RESULT}.shareID", "ABC", "UUID"),
    ("claim", f"{_RESULT}.skipNodeOperations", ["NodePrepareResources"], "Unprepare"),
    ("claim", f"{_RESULT}.consumedCapacity[memory]", "x", '"x"'),
    ("claim", "status.allocation.devices.config[0].source", "FromPod", "FromPod"),
    ("claim", "status.allocation.nodeSelector.nodeSelectorTerms", [], "at least one"),
    ("claim", "status.allocation", ABSENT, "without an allocation", "status.reservedFor"),
    ("claim", "status.reservedFor[0].uid", "", "must be set"),
    ("claim", f"{_STATUS}.device", "gpu-9", "allocated to the claim", _STATUS),
    ("claim", f"{_STATUS}.conditions[0].status", "Maybe", "Maybe"),
    ("claim", f"{_STATUS}.conditions[0].reason", "not a reason", "word"),
    ("claim", f"{_STATUS}.conditions[0].lastTransitionTime", ABSENT, "must be set"),
    ("claim", f"{_STATUS}.data", [1], "must be an object"),
    ("claim", f"{_STATUS}.networkData.ips[0]", "10.0.0.7", "canonical"),
    ("claim", f"{_STATUS}.networkData.ips[0]", "host", "10.9.8.7/24"),
    ("claim", f"{_STATUS}.networkData.interfaceName", "x" * 257, "256"),
]


@pytest.mark.parametrize("case", _REFUSED, ids=lambda case: f"{case[0]} with {case[1]} {case[2]!r:.40}")
def test_refuses(case: tuple[Any, ...]) -> None:
    name, changed, value, message, *elsewhere = case
    path = elsewhere[0] if elsewhere else changed
    found = _changed(name, (changed, value))
    assert [error for error in found if error.path == path and message in error.message], found


@pytest.mark.parametrize(
    ("name", "path", "maximum", "entry"),
    [
        ("claim", "spec.devices.requests", 32, lambda i: {"name": f"r{i}", "exactly": {"deviceClassName": "a"}}),
        ("claim", f"{_REQUEST}.selectors", 32, lambda _: {"cel": {"expression": "true"}}),
        ("claim", "spec.devices.requests[1].firstAvailable", 8, lambda i: {"name": f"s{i}", "deviceClassName": "a"}),
        ("claim", "spec.devices.constraints", 32, lambda _: {"matchAttribute": "a.b/c"}),
        ("claim", "spec.devices.config", 32, lambda _: {"opaque": {"driver": "a", "parameters": {}}}),
        ("claim", "status.reservedFor", 256, lambda i: {"resource": "pods", "name": "p", "uid": f"u{i}"}),
        (
            "claim",
            "status.allocation.devices.results",
            32,
            lambda i: {"request": "gpu", "driver": "a", "pool": "p", "device": f"d{i}"},
        ),
        (
            "claim",
            "status.allocation.devices.config",
            64,
            lambda _: {"source": "FromClass", "opaque": {"driver": "a", "parameters": {}}},
        ),
        ("claim", "status.devices[0].networkData.ips", 16, lambda i: f"10.0.0.{i}/24"),
        ("class", "spec.selectors", 32, lambda _: {"cel": {"expression": "true"}}),
        ("slice", f"{_DEVICE}.taints", 16, lambda i: {"key": f"k{i}", "effect": "NoSchedule"}),
        ("slice", f"{_DEVICE}.bindingConditions", 4, lambda i: f"c{i}"),
        (
            "slice",
            f"{_DEVICE}.consumesCounters",
            2,
            lambda i: {"counterSet": f"s{i}", "counters": {"a": {"value": "1"}}},
        ),
        ("counter slice", "spec.sharedCounters", 8, lambda i: {"name": f"s{i}", "counters": {"a": {"value": "1"}}}),
    ],
)
def test_lists_have_limits(name: str, path: str, maximum: int, entry: Callable[[int], Any]) -> None:
    just, beyond = [entry(i) for i in range(maximum)], [entry(i) for i in range(maximum + 1)]
    too_many = FieldError(path, f"must have at most {maximum} entries, found {maximum + 1}", maximum + 1)
    assert too_many in _changed(name, (path, beyond))
    assert not [error for error in _changed(name, (path, just)) if "at most" in error.message]


@pytest.mark.parametrize(
    ("extra", "maximum"),
    [
        pytest.param({}, 128, id="plain devices"),
        pytest.param({"taints": [{"key": "a", "effect": "None"}]}, 64, id="a taint"),
        pytest.param({"consumesCounters": [{"counterSet": "a", "counters": {"a": {"value": "1"}}}]}, 64, id="counters"),
        pytest.param({"attributes": {"numa": {"ints": [1]}}}, 64, id="a list attribute"),
        pytest.param(
            {"attributes": {"numa": {"int": 1}}, "capacity": {"memory": {"value": "1"}}}, 128, id="plain values"
        ),
    ],
)
def test_a_slice_holds_fewer_devices_with_advanced_features(extra: dict[str, Any], maximum: int) -> None:
    changes: list[tuple[str, Any]] = [
        ("spec.partitionTypeAttribute", ABSENT),
        ("spec.perDeviceNodeSelection", ABSENT),
        ("spec.allNodes", True),
    ]
    plain = [{"name": f"gpu-{index}"} for index in range(maximum)]
    just: list[dict[str, Any]] = [*plain[1:], {"name": "special", **extra}]
    assert _changed("slice", *changes, ("spec.devices", just)) == []
    (error,) = _changed("slice", *changes, ("spec.devices", [*just, {"name": "one-more"}]))
    assert (error.path, error.value) == ("spec.devices", maximum + 1)


def test_a_slice_does_not_hold_a_device_twice() -> None:
    device = a_raw("slice")["spec"]["devices"][0]
    assert _changed("slice", ("spec.devices", [device, device])) == [
        FieldError("spec.devices[1]", 'must not repeat "gpu-0"', "gpu-0")
    ]


def test_a_device_has_at_most_32_attributes_and_capacities_and_48_values() -> None:
    def errors(attributes: int, values: int, capacities: int) -> list[str]:
        listed = {"listed": {"ints": list(range(values))}} if values else {}
        found = _changed(
            "slice",
            (f"{_DEVICE}.attributes", {**{f"a{i}": {"int": i} for i in range(attributes)}, **listed}),
            (f"{_DEVICE}.capacity", {f"c{i}": {"value": "1"} for i in range(capacities)}),
            (f"{_DEVICE}.nodeAllocatableResources", {}),
            ("spec.partitionTypeAttribute", ABSENT),
        )
        return [f"{error.path}: {error.message}" for error in found]

    assert errors(20, 0, 12) == []
    assert errors(20, 0, 13) == [
        "spec.devices[0]: must have at most 32 attributes and capacities together, found 33",
    ]
    assert errors(20, 28, 0) == []
    assert errors(20, 29, 0) == ["spec.devices[0]: must have at most 48 attribute values, found 49"]


def test_names_may_be_left_to_the_server() -> None:
    assert _changed("claim", ("metadata.name", ABSENT), ("metadata.generateName", "training-")) == []


def test_upper_case_is_allowed_in_drivers_only() -> None:
    assert _changed("rule", ("spec.deviceSelector.driver", "GPU.example.com")) == []
    assert _changed("rule", ("spec.deviceSelector.pool", "Rack7"))


def test_amounts_in_steps_are_rounded_up_to_whole_ones_as_without_fractional_ranges() -> None:
    policy = f"{_DEVICE}.capacity[cores].requestPolicy"
    assert _changed("slice", (policy, {"default": "1500m", "validRange": {"min": "500m", "step": "1"}})) == []
    assert _changed("slice", (policy, {"default": "1", "validValues": ["1", "500m"]}))[0].message.startswith(
        "must not be less"
    )
    assert "must not repeat" in _changed("slice", (policy, {"default": "1", "validValues": ["500m", "1"]}))[0].message


def test_an_allocation_does_not_make_a_claim_invalid() -> None:
    raw = a_raw("claim")
    put(raw, f"{_RESULT}.device", "")
    claim = decode_object(raw)
    assert isinstance(claim, ResourceClaim)
    assert validate_claim(claim) == []


def test_all_errors_are_found_at_once() -> None:
    found = _changed(
        "claim",
        ("metadata.name", "A"),
        (f"{_REQUEST}.count", -1),
        ("spec.devices.constraints[1].distinctAttribute", "x"),
    )
    assert {error.path for error in found} >= {
        "metadata.name",
        "spec.devices.requests[0].exactly.count",
        "spec.devices.constraints[1].distinctAttribute",
    }
