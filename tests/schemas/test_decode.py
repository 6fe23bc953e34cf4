import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DecodeError
from schemas.resource import (
    Device,
    DeviceCapacity,
    DeviceSubRequest,
    DeviceToleration,
    ExactDeviceRequest,
    Pod,
    ResourceClaim,
    ResourceSlice,
)
from schemas.resource.decode import decode_json, decode_object, is_read, to_builtins
from schemas.resource.versions import path_as_written
from tests.schemas.raw import ABSENT, NAMES, a_raw, as_v1beta1, put, steps

_OLD = ["claim", "template", "class", "slice", "counter slice"]


def _a_claim_with(request: dict[str, Any], api_version: str = "resource.k8s.io/v1") -> dict[str, Any]:
    return {
        "apiVersion": api_version,
        "kind": "ResourceClaim",
        "metadata": {"name": "one", "namespace": "default"},
        "spec": {"devices": {"requests": [request]}},
    }


def _the_request(raw: dict[str, Any]) -> ExactDeviceRequest:
    claim = decode_object(raw)
    assert isinstance(claim, ResourceClaim)
    request = claim.spec.devices.requests[0].exactly
    assert request is not None
    return request


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost_between_reading_and_writing(name: str) -> None:
    raw = a_raw(name)
    written = to_builtins(decode_object(raw))
    if name == "pod":
        del raw["spec"]["containers"][0]["image"]  # a field that we do not read
        raw["spec"]["initContainers"][0]["resources"] = {}
    if name == "rule":
        assert written["status"] == raw["status"]
    assert written == raw


@pytest.mark.parametrize("name", NAMES)
def test_json_reads_as_the_same_object(name: str) -> None:
    raw = a_raw(name)
    assert decode_json(json.dumps(raw).encode()) == decode_object(raw)


@pytest.mark.parametrize("name", _OLD)
def test_v1beta1_reads_as_v1(name: str) -> None:
    old = as_v1beta1(a_raw(name))
    before = deepcopy(old)
    assert decode_object(old) == decode_object(a_raw(name))
    assert decode_json(json.dumps(old).encode()) == decode_object(a_raw(name))
    assert old == before


@pytest.mark.parametrize("name", [*_OLD, "rule"])
def test_v1beta2_reads_as_v1(name: str) -> None:
    old = {**a_raw(name), "apiVersion": "resource.k8s.io/v1beta2"}
    assert decode_object(old) == decode_object(a_raw(name))


def test_a_taint_rule_of_v1alpha3_reads_as_v1() -> None:
    old = {**a_raw("rule"), "apiVersion": "resource.k8s.io/v1alpha3"}
    assert decode_object(old) == decode_object(a_raw("rule"))


def test_a_capacity_of_v1beta1_may_be_the_bare_quantity() -> None:
    old = as_v1beta1(a_raw("slice"))
    old["spec"]["devices"][0]["basic"]["capacity"] = {"memory": "80Gi", "cores": 64, "engines": {"value": "8"}}
    decoded = decode_object(old)
    assert isinstance(decoded, ResourceSlice)
    assert {key: capacity.value for key, capacity in decoded.spec.devices[0].capacity.items()} == {
        "memory": "80Gi",
        "cores": "64",
        "engines": "8",
    }


def test_empty_and_false_placement_of_v1beta1_is_absent() -> None:
    old = as_v1beta1(a_raw("slice"))
    old["spec"] |= {"nodeName": "", "allNodes": False}
    assert decode_object(old) == decode_object(a_raw("slice"))


@pytest.mark.parametrize("request_", ["exactly", "flat"])
def test_defaults_are_those_of_the_api(request_: str) -> None:
    body: dict[str, Any] = {"deviceClassName": "gpu", "tolerations": [{"key": "a"}]}
    if request_ == "flat":
        request = _the_request(_a_claim_with({"name": "r", **body}, "resource.k8s.io/v1beta1"))
    else:
        request = _the_request(_a_claim_with({"name": "r", "exactly": body}))
    assert (request.allocation_mode, request.count) == ("ExactCount", 1)
    assert request.tolerations == [DeviceToleration(key="a", operator="Equal")]


def test_defaults_hold_for_alternatives_and_results() -> None:
    assert DeviceSubRequest(name="s", device_class_name="gpu").count == 1
    raw = a_raw("claim")
    del raw["status"]["allocation"]["devices"]["results"][0]["tolerations"][0]["operator"]
    claim = decode_object(raw)
    assert isinstance(claim, ResourceClaim)
    assert claim.status.allocation is not None
    assert claim.status.allocation.devices.results[0].tolerations[0].operator == "Equal"


def test_all_devices_have_no_count() -> None:
    request = _the_request(_a_claim_with({"name": "r", "exactly": {"allocationMode": "All"}}))
    assert (request.allocation_mode, request.count) == ("All", 0)


def test_an_unknown_mode_is_left_to_validation() -> None:
    request = _the_request(_a_claim_with({"name": "r", "exactly": {"allocationMode": "Most"}}))
    assert (request.allocation_mode, request.count) == ("Most", 0)


def test_the_time_of_a_taint_is_left_alone() -> None:
    raw = a_raw("rule")
    del raw["spec"]["taint"]["timeAdded"]
    assert "timeAdded" not in to_builtins(decode_object(raw))["spec"]["taint"]


def test_an_amount_that_is_absent_is_zero() -> None:
    assert msgspec.convert({}, DeviceCapacity).value == "0"


@pytest.mark.parametrize(
    "path",
    [
        "metadata.labels",
        "spec.nodeName",
        "spec.allNodes",
        "spec.devices[0].attributes[model].int",
        "spec.devices[0].attributes[gone]",
        "spec.devices[0].capacity[cores].requestPolicy",
        "spec.devices[0].nodeName",
        "spec.sharedCounters",
        "spec.pool.unknown",
        "unknown",
    ],
)
def test_null_is_absent(path: str) -> None:
    raw, without = a_raw("slice"), a_raw("slice")
    put(raw, path, None)
    if path == "metadata.labels":
        put(without, path, ABSENT)
    assert decode_object(raw) == decode_object(without)
    assert decode_json(json.dumps(raw).encode()) == decode_object(without)


def test_null_instead_of_parameters_is_absent_and_inside_of_them_it_stays() -> None:
    raw = a_raw("class")
    raw["spec"]["config"][0]["opaque"]["parameters"] = {"a": None, "b": [None]}
    assert to_builtins(decode_object(raw)) == raw
    raw["spec"]["config"][0]["opaque"]["parameters"] = None
    assert "parameters" not in to_builtins(decode_object(raw))["spec"]["config"][0]["opaque"]


@pytest.mark.parametrize(
    ("path", "number", "text"),
    [
        pytest.param("spec.devices[0].capacity[memory].value", 80, "80", id="a capacity"),
        pytest.param("spec.devices[0].capacity[memory].value", 0.5, "0.5", id="a fraction"),
        pytest.param("spec.devices[0].consumesCounters[0].counters[memory].value", 7, "7", id="a counter"),
        pytest.param("spec.devices[0].capacity[memory].requestPolicy.default", 7, "7", id="a default"),
        pytest.param("spec.devices[0].capacity[memory].requestPolicy.validRange.step", 7, "7", id="a step"),
        pytest.param("spec.devices[0].capacity[engines].requestPolicy.validValues[1]", 2, "2", id="a valid value"),
        pytest.param(
            "spec.devices[0].nodeAllocatableResources[memory].mapping.deviceMultiplier", 2, "2", id="a multiplier"
        ),
    ],
)
def test_a_quantity_may_be_a_bare_number(path: str, number: float, text: str) -> None:
    raw, expected = a_raw("slice"), a_raw("slice")
    put(raw, path, number)
    put(expected, path, text)
    assert decode_object(raw) == decode_object(expected)
    assert decode_json(json.dumps(raw).encode()) == decode_object(expected)


def test_amounts_of_claims_and_pods_may_be_bare_numbers() -> None:
    request = _the_request(_a_claim_with({"name": "r", "exactly": {"capacity": {"requests": {"memory": 5}}}}))
    assert request.capacity is not None
    assert request.capacity.requests == {"memory": "5"}
    pod = a_raw("pod")
    pod["spec"]["containers"][0]["resources"]["requests"] = {"cpu": 1, "memory": 1.5}
    decoded = decode_object(pod)
    assert isinstance(decoded, Pod)
    assert decoded.spec.containers[0].resources.requests == {"cpu": "1", "memory": "1.5"}


def test_an_integer_may_be_written_as_a_whole_float() -> None:
    assert _the_request(_a_claim_with({"name": "r", "exactly": {"count": 2.0}})).count == 2


def test_unknown_fields_are_passed_over_and_keys_have_one_case() -> None:
    raw = a_raw("class")
    raw["spec"]["Selectors"] = raw["spec"].pop("selectors")
    raw["spec"]["futureField"] = {"a": 1}
    assert to_builtins(decode_object(raw))["spec"].keys() == {"config", "extendedResourceName"}


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        pytest.param(
            "claim",
            "spec.devices.requests[0].exactly.count",
            "two",
            'spec.devices.requests[0].exactly.count: expected an integer of 64 bits, found the text "two"',
            id="text for a number",
        ),
        pytest.param(
            "claim",
            "spec.devices.requests[0].exactly.count",
            2**63,
            f"spec.devices.requests[0].exactly.count: expected an integer of 64 bits, found the number {2**63}",
            id="a number beyond 64 bits",
        ),
        pytest.param(
            "claim",
            "spec.devices.requests[0].exactly.count",
            1.5,
            "spec.devices.requests[0].exactly.count: expected an integer of 64 bits, found the number 1.5",
            id="a fraction for an integer",
        ),
        pytest.param(
            "claim",
            "spec.devices.requests[0].exactly.adminAccess",
            "true",
            'spec.devices.requests[0].exactly.adminAccess: expected true or false, found the text "true"',
            id="text for a boolean",
        ),
        pytest.param(
            "template",
            "spec.spec.devices.requests[0].exactly.selectors",
            {"cel": {}},
            "spec.spec.devices.requests[0].exactly.selectors: expected a list, found an object",
            id="an object for a list",
        ),
        pytest.param(
            "claim",
            "spec.devices.requests[0].exactly.tolerations[1]",
            None,
            "spec.devices.requests[0].exactly.tolerations[1]: expected an object, found nothing",
            id="an empty entry of a list",
        ),
        pytest.param(
            "slice",
            "spec.devices[0].attributes[model]",
            "H100",
            'spec.devices[0].attributes[model]: expected an object, found the text "H100"',
            id="an attribute without its type",
        ),
        pytest.param(
            "slice",
            "spec.devices[0].attributes[resource.kubernetes.io/numaNode].ints[1]",
            "1",
            "spec.devices[0].attributes[resource.kubernetes.io/numaNode].ints[1]: expected an integer of 64 bits, "
            'found the text "1"',
            id="a key with dots and a slash",
        ),
        pytest.param(
            "slice",
            "spec.devices[0].capacity[memory].value",
            ["80Gi"],
            'spec.devices[0].capacity[memory].value: expected a quantity like "16Gi", found a list',
            id="a list for a quantity",
        ),
        pytest.param(
            "slice",
            "spec.devices[0].capacity[memory].value",
            float("inf"),
            "spec.devices[0].capacity[memory].value: expected a quantity, found inf",
            id="infinity for a quantity",
        ),
        pytest.param(
            "slice",
            "metadata.labels[zone]",
            True,
            "metadata.labels[zone]: expected text, found the boolean true; YAML reads an unquoted yes, no, on, off, y "
            "or n as a boolean: put quotes around text",
            id="YAML's yes for text",
        ),
        pytest.param(
            "slice",
            "spec.devices[0].attributes[driverVersion].version",
            1.2,
            "spec.devices[0].attributes[driverVersion].version: expected text, found the number 1.2; "
            "put quotes around it to make it text",
            id="a number for text",
        ),
        pytest.param("slice", "spec.devices[0].attributes[1].x", 1, "", id="a key that is no text"),
        pytest.param("slice", "spec", [], "spec: expected an object, found a list", id="a list for the spec"),
        pytest.param("slice", "kind", "Slice", "kind: expected one of ResourceSlice,", id="an unknown kind"),
        pytest.param("slice", "kind", ABSENT, 'kind: expected text like "ResourceClaim", found nothing', id="no kind"),
        pytest.param(
            "slice",
            "apiVersion",
            "resource.k8s.io/v1alpha2",
            "apiVersion: expected resource.k8s.io/v1 or resource.k8s.io/v1beta2 or resource.k8s.io/v1beta1 for a "
            'ResourceSlice, found "resource.k8s.io/v1alpha2"',
            id="a version that is no more",
        ),
        pytest.param(
            "pod", "apiVersion", "v2", 'apiVersion: expected v1 for a Pod, found "v2"', id="an unknown version"
        ),
    ],
)
def test_an_error_says_where_and_what(name: str, path: str, value: Any, message: str) -> None:
    raw = a_raw(name)
    if not message:
        raw["spec"]["devices"][0]["attributes"][1] = {"int": 1}
        message = "spec.devices[0].attributes: expected text as key, found the number 1"
    else:
        put(raw, path, value)
    with pytest.raises(DecodeError) as caught:
        decode_object(raw)
    assert str(caught.value.error).startswith(message)


@pytest.mark.parametrize(
    ("name", "path", "value", "field"),
    [
        ("claim", "spec.devices.requests[0].count", "two", "spec.devices.requests[0].count"),
        ("template", "spec.spec.devices.requests[0].count", "two", "spec.spec.devices.requests[0].count"),
        (
            "claim",
            "spec.devices.requests[1].firstAvailable[0].count",
            "x",
            "spec.devices.requests[1].firstAvailable[0].count",
        ),
        ("slice", "spec.devices[0].name", 5, "spec.devices[0].name"),
        ("slice", "spec.devices[0].basic", 5, "spec.devices[0].basic"),
        ("slice", "spec.devices[0].basic.taints", {}, "spec.devices[0].basic.taints"),
        ("slice", "spec.devices[0].basic.capacity[cores]", [], "spec.devices[0].basic.capacity[cores]"),
        (
            "slice",
            "spec.devices[0].basic.capacity[cores]",
            {"value": []},
            "spec.devices[0].basic.capacity[cores].value",
        ),
    ],
)
def test_paths_are_in_the_words_of_v1beta1(name: str, path: str, value: Any, field: str) -> None:
    raw = as_v1beta1(a_raw(name))
    put(raw, path, value)
    with pytest.raises(DecodeError) as caught:
        decode_object(raw)
    assert caught.value.error.path == field


def test_paths_of_the_decoded_object_can_be_brought_to_the_words_of_v1beta1() -> None:
    claim, published = as_v1beta1(a_raw("claim")), as_v1beta1(a_raw("slice"))
    assert path_as_written(claim, "spec.devices.requests[0].exactly.count") == "spec.devices.requests[0].count"
    assert path_as_written(claim, "spec.devices.requests[0].exactly") == "spec.devices.requests[0]"
    assert path_as_written(published, "spec.devices[0].taints[0].key") == "spec.devices[0].basic.taints[0].key"
    assert path_as_written(published, "spec.devices[0].name") == "spec.devices[0].name"
    path = "spec.devices.requests[0].exactly.count"
    assert path_as_written(a_raw("claim"), path) == path


@pytest.mark.parametrize(
    ("raw", "path", "place"),
    [
        pytest.param(
            _a_claim_with({"name": "r", "deviceClassName": "gpu"}),
            "spec.devices.requests[0].deviceClassName",
            "under `exactly`",
            id="a flat request in v1",
        ),
        pytest.param(
            _a_claim_with({"name": "r", "exactly": {"deviceClassName": "gpu"}}, "resource.k8s.io/v1beta1"),
            "spec.devices.requests[0].exactly",
            "without `exactly`",
            id="a nested request in v1beta1",
        ),
        pytest.param(
            {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "spec": {"devices": [{"basic": {}}]}},
            "spec.devices[0].basic",
            "without `basic`",
            id="a nested device in v1",
        ),
        pytest.param(
            {
                "apiVersion": "resource.k8s.io/v1beta1",
                "kind": "ResourceSlice",
                "spec": {"devices": [{"name": "gpu-0", "attributes": {"index": {"int": 1}}}]},
            },
            "spec.devices[0].attributes",
            "under `basic`",
            id="a flat device in v1beta1",
        ),
    ],
)
def test_the_form_of_another_version_is_named_as_such(raw: dict[str, Any], path: str, place: str) -> None:
    with pytest.raises(DecodeError) as caught:
        decode_object(raw)
    assert caught.value.error.path == path
    assert place in caught.value.error.message


def test_an_error_names_the_object() -> None:
    raw = a_raw("claim")
    raw["spec"] = "x"
    with pytest.raises(DecodeError) as caught:
        decode_object(raw)
    error = caught.value
    assert (error.kind, error.namespace, error.name) == ("ResourceClaim", "ml", "training")
    assert str(error) == 'ResourceClaim ml/training: spec: expected an object, found the text "x"'


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"null", b'"x"', b"{}", b"\xff", b'{"apiVersion": 1}'])
def test_json_that_is_no_object_is_an_error_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(DecodeError, match="expected"):
        decode_json(data)


def test_nesting_without_end_is_an_error_and_nothing_worse() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    raw = a_raw("class")
    nested = b'{"a":' * 5000 + b"{}" + b"}" * 5000
    parameters = json.dumps(raw["spec"]["config"][0]["opaque"]["parameters"]).encode()
    with pytest.raises(DecodeError, match="nested"):
        decode_json(json.dumps(raw).encode().replace(parameters, nested))
    raw["metadata"]["labels"] = deep
    with pytest.raises(DecodeError, match="expected text"):
        decode_object(raw)


def test_knows_which_kinds_concern_us() -> None:
    assert is_read("resource.k8s.io/v1", "ResourceClaim")
    assert is_read("resource.k8s.io/v1alpha2", "ResourceClaim"), "decoding then names the versions that it expects"
    assert is_read("v1", "Pod")
    assert not is_read("example.com/v1", "ResourceClaim")
    assert not is_read("apps/v1", "Deployment")
    assert not is_read("resource.k8s.io/v1alpha3", "ResourcePoolStatusRequest")


def test_what_is_not_set_is_not_written() -> None:
    assert msgspec.to_builtins(Device(name="gpu-0")) == {"name": "gpu-0"}
    empty = ResourceClaim()
    assert to_builtins(empty).keys() == {"apiVersion", "kind", "metadata", "spec", "status"}


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)


def _paths(raw: Any, path: str = "") -> Iterator[str]:
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, value in items:
        place = f"{path}[{key}]" if isinstance(raw, list) or "/" in str(key) else f"{path}.{key}".lstrip(".")
        yield place
        yield from _paths(value, place)


@given(st.sampled_from(NAMES), st.booleans(), st.data())
def test_any_value_anywhere_is_read_or_refused_with_its_place(name: str, is_old: bool, data: st.DataObject) -> None:
    raw = as_v1beta1(a_raw(name)) if is_old and name in _OLD else a_raw(name)
    path = data.draw(st.sampled_from(list(_paths(raw))))
    put(raw, path, data.draw(_values))
    refused = None
    try:
        decoded = decode_object(raw)
    except DecodeError as error:
        refused = error.error
    if refused is None:
        assert decode_object(to_builtins(decoded)) == decoded
    elif not path.endswith(("apiVersion", "kind")):
        assert steps(refused.path)[: len(steps(path))] == steps(path)
