"""What the API server sends becomes what the agent's port hands on; what it refuses becomes our errors."""

import msgspec
import pytest

from cluster_agent.adapters.kube_connection import Where, error_of
from cluster_agent.adapters.kube_objects import decoded, read_object
from cluster_agent.ports import (
    ApiBusyError,
    ApiConflictError,
    ApiDeniedError,
    ApiError,
    ApiInvalidError,
    ApiNotFoundError,
    ApiObject,
    ApiUncertainError,
    ExpiredError,
    Kind,
)
from schemas.resource.versions import V1, claim_as
from tests.cluster_agent.objects import a_raw_claim, a_raw_pod, a_raw_slice

V1BETA1 = "resource.k8s.io/v1beta1"


def read(kind: Kind, obj: ApiObject, api_version: str = V1) -> tuple[ApiObject, str]:
    found = read_object(kind, api_version, msgspec.json.encode(obj))
    assert found is not None
    return found


def plain(obj: ApiObject) -> ApiObject:
    decoded: ApiObject = msgspec.json.decode(msgspec.json.encode(obj))
    return decoded


def test_objects_of_a_list_get_the_names_that_it_does_not_repeat() -> None:
    obj = a_raw_slice(devices=2)
    without = {name: value for name, value in obj.items() if name not in ("apiVersion", "kind")}
    assert plain(read("slice", without)[0]) == obj


def test_a_claim_keeps_what_we_do_not_know_but_not_what_the_server_keeps_itself() -> None:
    claim = {**a_raw_claim(), "future": {"a": 1}}
    claim["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    found, problem = read("claim", claim)
    assert (found["future"], problem) == ({"a": 1}, "")
    assert "managedFields" not in found["metadata"]


@pytest.mark.parametrize("kind", ["slice", "class", "claim", "taintrule"])
def test_what_cannot_be_read_is_handed_on_with_the_reason(kind: Kind) -> None:
    names = {"slice": "ResourceSlice", "class": "DeviceClass", "claim": "ResourceClaim", "taintrule": "DeviceTaintRule"}
    garbage = {"apiVersion": V1, "kind": names[kind], "metadata": {"name": "a", "uid": "u"}, "spec": 7}
    found, problem = read(kind, garbage)
    assert plain(found) == garbage
    assert f"{names[kind]} a: spec: expected an object, found the number 7" in problem


def test_a_pod_of_which_a_field_has_another_type_is_handed_on_with_the_reason() -> None:
    pod = {**a_raw_pod(), "spec": {"nodeName": 7, "resourceClaims": []}}
    found, problem = read("pod", pod, "v1")
    assert found == pod
    assert "$.spec.nodeName" in problem


def nested(depth: int, inner: bytes = b"1") -> bytes:
    return b'{"":' * depth + inner + b"}" * depth


def with_parameters(parameters: bytes) -> bytes:
    """A claim with these parameters for a driver."""
    claim = a_raw_claim()
    claim["spec"]["devices"]["config"] = [{"opaque": {"driver": "gpu.example.com", "parameters": "HERE"}}]
    return msgspec.json.encode(claim).replace(b'"HERE"', parameters)


@pytest.mark.parametrize("depth", [120, 600, 2_000, 200_000])
def test_a_claim_that_is_nested_too_deeply_is_cut_and_says_so(depth: int) -> None:
    for parameters in (nested(depth), b'{"":' + b"[" * depth + b"]" * depth + b"}"):
        found = read_object("claim", V1, with_parameters(parameters))
        assert found is not None
        assert "ResourceClaim c: nested more than 100 deep" in found[1]
        assert found[0]["spec"]["devices"]["requests"] == a_raw_claim()["spec"]["devices"]["requests"]
        msgspec.json.encode(found[0])


def test_parameters_of_ordinary_depth_are_kept_and_braces_in_texts_are_no_depth() -> None:
    text = msgspec.json.encode('"{[' * 3_000)
    for parameters in (nested(80, text), nested(3, text)):
        found = read_object("claim", V1, with_parameters(parameters))
        assert found is not None
        assert found[1] == ""
        kept = found[0]["spec"]["devices"]["config"][0]["opaque"]["parameters"]
        assert msgspec.json.encode(kept) == parameters


def test_the_rest_of_an_answer_is_read_beside_what_is_nested_too_deeply() -> None:
    page = b'{"items":[' + nested(3_000) + b',{"a":"}{"},' + nested(5_000) + b',{"b":[1]}]}'
    (first, second, third, fourth) = decoded(msgspec.json.Decoder(Page), page).items
    assert (second, fourth) == ({"a": "}{"}, {"b": [1]})
    assert first
    assert third


class Page(msgspec.Struct):
    items: list[object]


def test_nothing_without_metadata_is_an_object() -> None:
    with pytest.raises(msgspec.DecodeError):
        read_object("claim", V1, b'{"metadata":[]}')


def test_pods_that_use_no_claims_are_passed_over_and_the_others_are_small() -> None:
    assert read_object("pod", "v1", msgspec.json.encode(a_raw_pod())) is None
    pod = a_raw_pod(template="t")
    pod["status"] = {"phase": "Pending", "podIPs": [{"ip": "10.0.0.1"}]}
    found, _ = read("pod", pod, "v1")
    assert found["spec"] == {"resourceClaims": pod["spec"]["resourceClaims"]}
    assert found["status"] == {"phase": "Pending"}


def test_of_a_node_there_are_labels_and_features() -> None:
    node = {
        "metadata": {"name": "n", "labels": {"zone": "a"}, "annotations": {"volumes": "attached"}},
        "spec": {"podCIDR": "10.0.0.0/24"},
        "status": {"declaredFeatures": ["F"], "images": [{"names": ["big"]}]},
    }
    found, _ = read("node", node, "v1")
    assert found == {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "n", "labels": {"zone": "a"}},
        "status": {"declaredFeatures": ["F"]},
    }


def test_a_claim_goes_to_an_older_version_and_back() -> None:
    claim = a_raw_claim()
    claim["spec"]["devices"]["requests"].append(
        {"name": "any", "firstAvailable": [{"name": "one", "deviceClassName": "gpu.example.com"}]}
    )
    older = claim_as(V1BETA1, claim)
    assert older["spec"]["devices"]["requests"][0] == {"name": "gpu", "deviceClassName": "gpu.example.com"}
    assert read("claim", older, V1BETA1) == (claim, "")


def test_a_slice_of_an_older_version_is_one_of_v1() -> None:
    older = a_raw_slice()
    older["apiVersion"] = V1BETA1
    older["spec"]["devices"] = [{"name": "gpu-0", "basic": {"capacity": {"memory": "1Gi"}}}]
    found, problem = read("slice", older, V1BETA1)
    assert problem == ""
    assert plain(found)["spec"]["devices"] == [{"name": "gpu-0", "capacity": {"memory": {"value": "1Gi"}}}]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (400, ApiInvalidError),
        (401, ApiDeniedError),
        (403, ApiDeniedError),
        (404, ApiNotFoundError),
        (409, ApiConflictError),
        (410, ExpiredError),
        (413, ApiInvalidError),
        (415, ApiInvalidError),
        (422, ApiInvalidError),
        (429, ApiBusyError),
        (500, ApiUncertainError),
        (503, ApiUncertainError),
        (504, ApiUncertainError),
        (302, ApiUncertainError),
    ],
)
def test_each_status_is_one_of_the_ports_errors(code: int, expected: type[ApiError]) -> None:
    details = {"name": "c", "group": "resource.k8s.io", "kind": "resourceclaims"}
    status = {"kind": "Status", "message": "because", "code": code, "reason": "Because", "details": details}
    body = msgspec.json.encode(status)
    error = error_of(code, body, Where("claim", "default", "c"))
    assert type(error) is expected
    assert "claim default/c: " in str(error)
    assert "because" in str(error)


def test_a_refusal_names_field_and_reason_of_its_first_cause() -> None:
    causes = [{"reason": "FieldValueInvalid", "message": "no", "field": "status.allocation"}]
    status = {"kind": "Status", "message": "no", "reason": "Invalid", "details": {"causes": causes}}
    error = error_of(422, msgspec.json.encode(status), Where("claim"))
    assert isinstance(error, ApiInvalidError)
    assert (error.field, error.reason) == ("status.allocation", "FieldValueInvalid")


def test_an_answer_of_a_proxy_is_not_taken_for_one_of_the_server() -> None:
    error = error_of(404, b"<html>not here</html>", Where("claim"))
    assert isinstance(error, ApiUncertainError)
    assert "<html>not here" in str(error)


def test_who_is_busy_says_for_how_long() -> None:
    status = {"kind": "Status", "details": {"retryAfterSeconds": 3}}
    for body, header, expected in ((status, None, 3), ({}, "5", 5), ({}, "soon", 1), ({}, None, 1)):
        error = error_of(429, msgspec.json.encode(body), Where(), header)
        assert isinstance(error, ApiBusyError)
        assert error.retry_after_s == expected
