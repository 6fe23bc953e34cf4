"""`dragoman allocate`, as a user runs it: files in, a JSON document, an exit code and sentences out."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from broker.cli.main import main
from schemas.resource import CapacityRequirements, DeviceTaintRule, Namespace, Node, ObjectMeta, Resource
from schemas.resource.decode import to_builtins
from tests.builders import (
    a_claim,
    a_class,
    a_device,
    a_node_selector,
    a_request,
    a_slice,
    some_devices,
)

FABRIC = {"dragoman.dev/fabric": "rack"}

WALK_THROUGH = """\
apiVersion: resource.k8s.io/v1beta1
kind: DeviceClass
metadata:
  name: gpu.example.com
spec:
  selectors:
  - cel:
      expression: device.driver == "gpu-driver.example.com"
---
apiVersion: resource.k8s.io/v1beta1
kind: ResourceClaimTemplate
metadata:
  name: gpu-claim-template
spec:
  spec:
    devices:
      requests:
      - name: gpu-req
        deviceClassName: gpu.example.com
        selectors:
        - cel:
            expression: device.attributes["gpu-driver.example.com"].memory >= "16Gi"
---
apiVersion: v1
kind: Pod
metadata:
  name: stock-prediction-pod
spec:
  containers:
  - name: predict
    image: predict:1
    resources:
      claims:
      - name: gpu-req
  resourceClaims:
  - name: gpu-req
    resourceClaimTemplateName: gpu-claim-template
---
apiVersion: resource.k8s.io/v1beta1
kind: ResourceSlice
metadata:
  name: rack7-gpus
  labels:
    dragoman.dev/fabric: rack
spec:
  driver: gpu-driver.example.com
  allNodes: true
  pool:
    name: rack7
    generation: 1
    resourceSliceCount: 1
  devices:
  - name: with-10gi
    basic:
      attributes:
        memory:
          string: 10Gi
  - name: with-8gi
    basic:
      attributes:
        memory:
          string: 8Gi
"""


class Run(msgspec.Struct):
    """exit_code, the results as printed, and stderr."""

    exit_code: int
    results: list[dict[str, Any]]
    err: str

    @property
    def devices(self) -> list[list[str]]:
        """Of each result."""
        return [
            [row["device"] for row in each["allocation"]["devices"]["results"]] if each["allocation"] else []
            for each in self.results
        ]

    @property
    def reasons(self) -> list[str]:
        """Of each result."""
        return [each["reason"] for each in self.results]


Allocate = Callable[..., Run]


@pytest.fixture
def allocate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Allocate:
    """Run the command on objects, or on text as it is written, all in one file `input.yaml`."""

    def run(*documents: Resource | dict[str, Any] | str, options: tuple[str, ...] = ()) -> Run:
        texts = [
            each if isinstance(each, str) else yaml.safe_dump(each if isinstance(each, dict) else to_builtins(each))
            for each in documents
        ]
        file = tmp_path / "input.yaml"
        file.write_text("---\n".join(text if text.endswith("\n") else f"{text}\n" for text in texts))
        exit_code = main(["allocate", "-o", "json", "-f", str(file), *options])
        printed = capsys.readouterr()
        return Run(exit_code, json.loads(printed.out)["results"] if printed.out else [], printed.err)

    return run


def holding(claim: Resource, *devices: str, pool: str = "rack7") -> dict[str, Any]:
    """The claim as a manifest, with an allocation of these devices."""
    results = [{"request": "gpu", "driver": "gpu.example.com", "pool": pool, "device": each} for each in devices]
    return {**to_builtins(claim), "status": {"allocation": {"devices": {"results": results}}}}


def a_pod(name: str = "web", *, template: str = "gpu-template", **more: Any) -> dict[str, Any]:
    """A pod with one claim, `gpu`, made from a template."""
    claims = [{"name": "gpu", "resourceClaimTemplateName": template}]
    spec = {"containers": [{"name": "main"}], "resourceClaims": claims}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec, **more}


def a_template(name: str = "gpu-template", **exactly: Any) -> dict[str, Any]:
    """A template for claims of one device, unless `exactly` says otherwise."""
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com", **exactly}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name},
        "spec": {"spec": {"devices": {"requests": [request]}}},
    }


def a_node(name: str, **labels: str) -> Node:
    return Node(metadata=ObjectMeta(name=name, labels=labels))


# --- What is printed


def test_the_published_example_gets_what_cel_says(allocate: Allocate) -> None:
    """Its selector compares text, so that "8Gi" is more than "16Gi", and "10Gi" is less."""
    run = allocate(WALK_THROUGH)

    (result,) = run.results
    assert result["name"].startswith("stock-prediction-pod-gpu-req-")
    assert result == {
        "namespace": "default",
        "name": result["name"],
        "allocation": {
            "devices": {
                "results": [
                    {"request": "gpu-req", "driver": "gpu-driver.example.com", "pool": "rack7", "device": "with-8gi"}
                ]
            }
        },
        "reason": "",
        "message": "",
    }
    assert (run.exit_code, run.err) == (0, "")


def test_tables_say_who_got_what_and_what_ruled_the_devices_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items: list[Resource] = [
        a_class(),
        a_slice(),
        a_claim(name="first"),
        a_claim(name="second"),
        a_claim(a_request(admin_access=True), name="third"),
    ]
    file = tmp_path / "input.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(map(to_builtins, items))}))

    assert main(["allocate", "-f", str(file)]) == 1

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "default/first gpu: gpu.example.com/rack7/gpu-0" in lines
    assert any(line.startswith("default/second - DevicesInUse: request gpu: 0 of 1 device") for line in lines)
    assert any("AdminAccessNotAllowed: request gpu asks for admin access" in line for line in lines)
    assert "default/second gpu gpu.example.com 1 0 1 1 in use (local/default/first)" in lines


def test_claims_are_allocated_in_the_order_of_the_input(allocate: Allocate) -> None:
    run = allocate(
        a_claim(name="zebra"), a_pod("middle"), a_claim(name="ant"), a_class(), a_slice(some_devices(2)), a_template()
    )

    assert [each["name"][:6] for each in run.results] == ["zebra", "middle", "ant"]
    assert run.devices == [["gpu-0"], ["gpu-1"], []]
    assert run.reasons == ["", "", "DevicesInUse"]
    assert run.exit_code == 1


def test_reads_manifests_from_stdin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(WALK_THROUGH))

    assert main(["allocate", "-f", "-", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["allocation"]


def test_reads_several_files_and_directories_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files: dict[str, list[Resource]] = {
        "fleet/slice.yaml": [a_slice(some_devices(3))],
        "fleet/deep/class.yaml": [a_class()],
        "b.yaml": [a_claim(name="b")],
        "a.yaml": [a_claim(name="a")],
    }
    for name, objects in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(yaml.safe_dump_all(map(to_builtins, objects)))

    options = ["-f", str(tmp_path / "b.yaml"), str(tmp_path / "fleet"), "-f", str(tmp_path / "a.yaml")]
    assert main(["allocate", *options, "-o", "json"]) == 0

    assert [each["name"] for each in json.loads(capsys.readouterr().out)["results"]] == ["b", "a"]


# --- Holders


def test_claims_with_an_allocation_hold_it_and_are_not_asked_for(allocate: Allocate) -> None:
    holder = holding(a_claim(a_request(of="no-such-class"), name="holder"), "gpu-0")

    run = allocate(a_claim(), a_class(), a_slice(some_devices(2)), holder)

    assert (run.exit_code, run.devices) == (0, [["gpu-1"]])


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"devices": {"requests": "many"}}, id="of a wrong type"),
        pytest.param({"devices": {"requests": [{"name": "gpu"}]}}, id="that an API server would refuse"),
    ],
)
def test_a_claim_holds_its_devices_although_its_spec_is_wrong(allocate: Allocate, spec: dict[str, Any]) -> None:
    holder = {**holding(a_claim(name="holder"), "gpu-0"), "spec": spec}

    run = allocate(a_class(), a_slice(some_devices(2)), holder, a_claim())

    assert run.devices == [["gpu-1"]]


def test_a_holder_of_a_device_that_is_not_there_is_in_nobodys_way(allocate: Allocate) -> None:
    run = allocate(a_class(), a_slice(), holding(a_claim(name="holder"), "gpu-0", pool="elsewhere"), a_claim())

    assert (run.exit_code, run.devices) == (0, [["gpu-0"]])


def test_a_holder_is_found_on_a_fabric_that_only_a_label_declares(allocate: Allocate) -> None:
    run = allocate(holding(a_claim(name="holder"), "gpu-0"), a_class(), a_slice(labels=FABRIC), a_claim())

    assert (run.exit_code, run.reasons) == (1, ["DevicesInUse"])
    assert "local/default/holder" in run.results[0]["message"]


# --- --claim


def test_claim_chooses_one_and_the_others_still_hold(allocate: Allocate) -> None:
    documents = [a_class(), a_slice(some_devices(2)), holding(a_claim(name="holder"), "gpu-0")]
    claims = [a_claim(name="first"), a_claim(name="second")]

    run = allocate(*documents, *claims, options=("--claim", "default/second"))

    assert [each["name"] for each in run.results] == ["second"]
    assert (run.exit_code, run.devices) == (0, [["gpu-1"]])


def test_claim_shows_an_allocation_that_is_there_already(allocate: Allocate) -> None:
    run = allocate(holding(a_claim(name="holder"), "gpu-7"), options=("--claim", "default/holder"))

    assert (run.exit_code, run.devices, run.reasons) == (0, [["gpu-7"]], ["AlreadyAllocated"])


def test_claim_must_be_in_the_input(allocate: Allocate) -> None:
    run = allocate(a_class(), a_slice(), a_claim(name="first"), options=("--claim", "frist"))

    assert (run.exit_code, run.results) == (2, [])
    assert "--claim default/frist: there is no such claim" in run.err
    assert "default/first" in run.err


# --- --together


def test_together_allocates_all(allocate: Allocate) -> None:
    claims = [a_claim(name="first"), a_claim(name="second")]

    run = allocate(a_class(), a_slice(some_devices(2)), *claims, options=("--together",))

    assert (run.exit_code, run.devices) == (0, [["gpu-0"], ["gpu-1"]])


def test_together_allocates_none_where_not_all_fit(allocate: Allocate) -> None:
    documents = [a_class(), a_slice(some_devices(2)), holding(a_claim(name="holder"), "gpu-0")]
    claims = [a_claim(name="first"), a_claim(name="second")]

    alone = allocate(*documents, *claims)
    run = allocate(*documents, *claims, options=("--together",))

    assert (alone.exit_code, alone.devices) == (1, [["gpu-1"], []])
    assert (run.exit_code, run.devices) == (1, [[], []])
    assert run.reasons == ["DevicesInUse", "DevicesInUse"]
    assert all(each["message"] for each in run.results)


def test_earlier_claims_hold_their_shares(allocate: Allocate) -> None:
    device = msgspec.structs.replace(a_device("s", capacity={"memory": "8"}), allow_multiple_allocations=True)
    claims = [
        a_claim(a_request(capacity=CapacityRequirements(requests={"memory": "3"})), name=name)
        for name in ("a", "b", "c")
    ]

    run = allocate(a_class(), a_slice([device]), *claims)
    again = allocate(a_class(), a_slice([device]), *claims)

    assert (run.devices, run.reasons) == ([["s"], ["s"], []], ["", "", "DevicesInUse"])
    shares = [each["allocation"]["devices"]["results"][0] for each in run.results[:2]]
    assert [each["consumedCapacity"] for each in shares] == [{"memory": "3"}] * 2
    assert shares[0]["shareID"] != shares[1]["shareID"]
    assert again.results == run.results


@pytest.mark.parametrize("is_allowed", [True, False])
def test_admin_access_takes_what_is_held_where_the_namespace_allows_it(allocate: Allocate, is_allowed: bool) -> None:
    labels = {"resource.kubernetes.io/admin-access": "true"} if is_allowed else {}
    namespace = Namespace(metadata=ObjectMeta(name="default", labels=labels))

    run = allocate(a_class(), a_slice(), namespace, a_claim(), a_claim(a_request(admin_access=True), name="admin"))

    assert run.reasons == ["", "" if is_allowed else "AdminAccessNotAllowed"]
    assert run.devices == [["gpu-0"], ["gpu-0"] if is_allowed else []]


def test_together_needs_one_node_for_all(allocate: Allocate) -> None:
    slices = [a_slice([a_device(node)], name=node, pool=node, node_name=node) for node in ("node-a", "node-b")]
    claims = [a_claim(name="first"), a_claim(name="second")]

    alone = allocate(a_class(), *slices, *claims)
    run = allocate(a_class(), *slices, *claims, options=("--together",))

    assert alone.devices == [["node-a"], ["node-b"]]
    assert (run.exit_code, run.devices) == (1, [[], []])


def test_together_fails_all_for_one_that_cannot_be_tried(allocate: Allocate) -> None:
    bad = {**to_builtins(a_claim(name="bad")), "spec": {"devices": {"requests": 7}}}

    run = allocate(a_class(), a_slice(some_devices(2)), a_claim(name="good"), bad, options=("--together",))

    assert (run.exit_code, run.devices, run.reasons) == (2, [[], []], ["Unreadable", "Unreadable"])
    assert run.results[0]["message"].startswith("claim default/bad: ")


# --- --node


def test_node_allows_no_other(allocate: Allocate) -> None:
    slices = [a_slice([a_device(node)], name=node, pool=node, node_name=node) for node in ("node-a", "node-b")]

    anywhere = allocate(a_class(), *slices, a_claim())
    run = allocate(a_class(), *slices, a_claim(), options=("--node", "node-b"))
    elsewhere = allocate(a_class(), *slices, a_claim(), options=("--node", "node-c"))

    assert anywhere.devices == [["node-a"]]
    assert run.devices == [["node-b"]]
    (term,) = run.results[0]["allocation"]["nodeSelector"]["nodeSelectorTerms"]
    assert term["matchFields"] == [{"key": "metadata.name", "operator": "In", "values": ["node-b"]}]
    assert (elsewhere.exit_code, elsewhere.reasons) == (1, ["NoMatchingNode"])


def test_nodes_in_the_input_give_their_labels(allocate: Allocate) -> None:
    documents = [
        a_class(),
        a_slice(node_selector=a_node_selector(rack="r7")),
        a_claim(),
        a_node("near", rack="r7"),
        a_node("far", rack="r8"),
    ]

    assert allocate(*documents, options=("--node", "near")).devices == [["gpu-0"]]
    assert allocate(*documents, options=("--node", "far")).reasons == ["NoMatchingNode"]
    assert allocate(*documents).devices == [["gpu-0"]]


def test_warns_of_a_node_that_is_not_among_those_in_the_input(allocate: Allocate) -> None:
    run = allocate(a_class(), a_slice(), a_claim(), a_node("near"), options=("--node", "naer"))

    assert (run.exit_code, run.devices) == (0, [["gpu-0"]])
    assert "node naer is not in the input (near)" in run.err


# --- Not allocated: exit code 1


@pytest.mark.parametrize(
    ("reason", "message", "documents"),
    [
        pytest.param("UnknownDeviceClass", "gpu.example.com", [a_slice()], id="a class that is not there"),
        pytest.param(
            "NoMatchingDevice", "gpu.example.com", [a_class(), a_slice(driver="other.example.com")], id="no such device"
        ),
        pytest.param(
            "InvalidDeviceClass",
            "spec.selectors[0].cel.expression",
            [a_class("gpu.example.com", "device.nonsense"), a_slice()],
            id="a class whose selector does not compile",
        ),
        pytest.param(
            "SelectorFailed",
            "DeviceClass gpu.example.com",
            [a_class("gpu.example.com", 'device.attributes["gpu.example.com"].model == "A"'), a_slice()],
            id="a selector that fails on a device",
        ),
        pytest.param(
            "PoolIncomplete", "1 of 2 slices", [a_class(), a_slice(slice_count=2)], id="a pool that is not complete"
        ),
        pytest.param(
            "PoolInvalid",
            "more than one device is named gpu-0",
            [a_class(), a_slice(name="a", slice_count=2), a_slice(name="b", slice_count=2)],
            id="a device name that two slices share",
        ),
        pytest.param(
            "UnsupportedFeature",
            "spec.nodeName",
            [a_class(), a_slice(labels=FABRIC, node_name="node-a")],
            id="a device of a fabric that belongs to a node",
        ),
    ],
)
def test_says_why_a_claim_does_not_fit(
    allocate: Allocate, reason: str, message: str, documents: list[Resource]
) -> None:
    run = allocate(*documents, a_claim())

    assert (run.exit_code, run.reasons) == (1, [reason])
    assert message in run.results[0]["message"]


def test_a_selector_that_does_not_compile_spoils_its_claim_alone(allocate: Allocate) -> None:
    broken = a_claim(a_request("gpu", 'device.attributes["gpu.example.com"].memory >='), name="broken")

    run = allocate(a_class(), a_slice(), broken, a_claim())

    assert (run.exit_code, run.devices, run.reasons) == (1, [[], ["gpu-0"]], ["InvalidSelector", ""])
    assert "spec.devices.requests[0].exactly.selectors[0].cel.expression" in run.results[0]["message"]


def test_warns_of_pools_and_slices_that_are_not_used(allocate: Allocate) -> None:
    old = a_slice(some_devices(5), name="old", generation=1)

    run = allocate(a_class(), old, a_slice(name="new", generation=2), a_slice(name="part", pool="rack8", slice_count=2))

    assert run.exit_code == 0
    assert "ResourceSlice old of pool cluster/local/gpu.example.com/rack7 is older than generation 2" in run.err
    assert "pool cluster/local/gpu.example.com/rack8 is not used: 1 of 2 slices" in run.err


def test_a_taint_rule_taints_the_devices_it_selects(allocate: Allocate) -> None:
    rule = to_builtins(DeviceTaintRule(metadata=ObjectMeta(name="broken-driver")))
    rule["spec"] = {
        "deviceSelector": {"device": "gpu-0"},
        "taint": {"key": "example.com/broken", "effect": "NoSchedule"},
    }

    run = allocate(a_class(), a_slice(), a_claim(), rule)

    assert (run.exit_code, run.results[0]["reason"]) == (1, "DevicesTainted")
    assert "example.com/broken:NoSchedule" in run.results[0]["message"]


def test_an_extended_resource_is_refused_for_the_claim_that_a_scheduler_would_make(allocate: Allocate) -> None:
    pod = a_pod()
    limits = {"cpu": 1, "deviceclass.resource.kubernetes.io/gpu.example.com": 1}
    pod["spec"] = {"containers": [{"name": "main", "resources": {"limits": limits}}]}

    run = allocate(a_class(), a_slice(), pod)

    assert (run.exit_code, run.reasons) == (1, ["UnsupportedFeature"])
    assert run.results[0]["name"].startswith("web-extended-resources-")
    assert run.results[0]["message"].startswith(
        "spec.containers[0].resources.limits[deviceclass.resource.kubernetes.io/gpu.example.com] of pod default/web"
    )


def test_pod_groups_are_refused(allocate: Allocate) -> None:
    group = {"apiVersion": "scheduling.k8s.io/v1alpha2", "kind": "PodGroup", "metadata": {"name": "gang"}}

    run = allocate(a_class(), a_slice(), group)

    assert (run.exit_code, run.results) == (1, [])
    assert "UnsupportedFeature: 1 PodGroup" in run.err


def test_says_when_there_is_nothing_to_allocate(allocate: Allocate) -> None:
    run = allocate(a_class(), {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}})

    assert (run.exit_code, run.results) == (0, [])
    assert "no ResourceClaim and no Pod that needs one; passed over: 1 Deployment" in run.err


# --- Claims of pods


def test_a_claim_that_was_made_for_the_pod_already_is_not_made_again(allocate: Allocate) -> None:
    made = to_builtins(a_claim(name="web-gpu-x7k2p", annotations={"resource.kubernetes.io/pod-claim-name": "gpu"}))
    made["metadata"]["ownerReferences"] = [
        {"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "1", "controller": True}
    ]

    run = allocate(a_class(), a_slice(some_devices(2)), a_template(), a_pod(), made)

    assert [each["name"] for each in run.results] == ["web-gpu-x7k2p"]


def test_no_claim_is_made_for_a_pod_that_is_done(allocate: Allocate) -> None:
    run = allocate(a_class(), a_slice(), a_template(), a_pod(status={"phase": "Succeeded"}))

    assert run.results == []


def test_a_pod_whose_template_is_missing_gets_nothing(allocate: Allocate) -> None:
    run = allocate(a_class(), a_slice(), a_pod(template="gone"), a_pod("fine"), a_template())

    assert (run.exit_code, run.reasons) == (1, ["UnknownClaimTemplate", ""])
    assert "pod default/web" in run.results[0]["message"]
    assert "ResourceClaimTemplate gone" in run.results[0]["message"]


def test_a_template_that_is_refused_names_its_own_place(allocate: Allocate) -> None:
    run = allocate(a_class(), a_slice(), a_pod(), a_template(count=-1))

    assert (run.exit_code, run.reasons) == (2, ["InvalidClaim"])
    assert "(document 4): spec.spec.devices.requests[0].exactly.count" in run.results[0]["message"]


def test_warns_of_a_pod_whose_claim_is_missing(allocate: Allocate) -> None:
    pod = a_pod()
    pod["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimName": "shared"}]

    assert "pod default/web uses ResourceClaim shared, which is not in the input" in allocate(pod).err


# --- Bad input: exit code 2, and everything else goes on


def test_broken_yaml_spoils_its_document_alone(allocate: Allocate) -> None:
    run = allocate(a_class(), "kind: [\n", a_slice(), a_claim())

    assert (run.exit_code, run.devices) == (2, [["gpu-0"]])
    assert "input.yaml:" in run.err
    assert "(document 2): not YAML" in run.err


def test_a_wrong_type_is_named_with_file_document_and_field_in_the_words_of_its_version(allocate: Allocate) -> None:
    run = allocate(a_claim(), WALK_THROUGH.replace("name: gpu-req\n        device", "name: [gpu-req]\n        device"))

    assert run.exit_code == 2
    assert "input.yaml:" in run.err
    assert "(document 3): spec.spec.devices.requests[0].name: expected text, found a list" in run.err
    assert run.reasons == ["", "InvalidClaim"]


@pytest.mark.parametrize(
    ("document", "error"),
    [
        pytest.param(
            a_slice([a_device("gpu-0"), a_device("gpu-0")], name="twice", pool="rack8"),
            'spec.devices[1]: must not repeat "gpu-0"',
            id="a device name that occurs twice in a slice",
        ),
        pytest.param(
            a_claim(a_request(allocation_mode="Some"), name="bad"),
            "spec.devices.requests[0].exactly.allocationMode: must be one of",
            id="an unknown value of a field",
        ),
        pytest.param(a_class("Bad_Name"), "metadata.name: must be DNS labels", id="a class that is refused"),
        pytest.param({"kind": "Pod", "metadata": {"name": "web"}}, "apiVersion: expected text", id="no apiVersion"),
        pytest.param({**a_pod(), "metadata": {}}, "metadata.name: every object needs a name", id="no name"),
        pytest.param(
            {**a_template(), "spec": 7}, "spec: expected an object, found the number 7", id="a template of a wrong type"
        ),
    ],
)
def test_what_an_api_server_would_refuse_is_bad_input(
    allocate: Allocate, document: Resource | dict[str, Any], error: str
) -> None:
    run = allocate(document, a_class(), a_slice(), a_claim(name="good"))

    assert run.exit_code == 2
    assert "input.yaml:" in run.err
    assert f"(document 1): {error}" in run.err
    assert run.devices[-1] == ["gpu-0"]


def test_a_refused_claim_is_among_the_results(allocate: Allocate) -> None:
    invalid = a_claim(a_request(count=-1), name="invalid")
    unreadable = {**to_builtins(a_claim(name="unreadable")), "spec": []}

    run = allocate(a_class(), a_slice(), invalid, unreadable)

    assert [(each["name"], each["reason"]) for each in run.results] == [
        ("invalid", "InvalidClaim"),
        ("unreadable", "Unreadable"),
    ]
    assert all(each["message"] in run.err for each in run.results)


def test_two_different_objects_of_one_name_are_bad_input(allocate: Allocate) -> None:
    run = allocate(a_class(), a_slice(some_devices(3)), a_claim(), a_claim(a_request(count=2)), a_claim())

    assert (run.exit_code, run.devices) == (2, [["gpu-0"]])
    assert "(document 4): metadata.name: this ResourceClaim is in" in run.err
    assert "(document 5)" not in run.err


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["allocate", "-f", str(tmp_path / "gone.yaml")]) == 2
    assert "gone.yaml: cannot be read: No such file or directory" in capsys.readouterr().err


def test_files_are_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["allocate"])

    assert ended.value.code == 2
    assert "-f" in capsys.readouterr().err


# --- Fabrics by config

CONFIG = """\
clusters: [hub, east, west]
hub: hub
fabrics:
- {name: near, source: hub, clusters: [east, west], pools: [{pool: near*}]}
- {name: far, source: hub, clusters: [west], pools: [{pool: far*}]}
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "federation.yaml"
    file.write_text(CONFIG)
    return str(file)


def test_a_config_says_which_fabrics_a_cluster_reaches(allocate: Allocate, config: str) -> None:
    pools = [a_slice([a_device(pool)], name=pool, pool=pool) for pool in ("far-1", "near-1")]
    documents = [a_class(), *pools, a_claim(name="first"), a_claim(name="second")]

    east = allocate(*documents, options=("--config", config, "--cluster", "east"))
    west = allocate(*documents, options=("--config", config, "--cluster", "west"))

    assert east.devices == [["near-1"], []]
    assert west.devices == [["far-1"], ["near-1"]]


@pytest.mark.parametrize(
    ("cluster", "error"),
    [
        pytest.param("south", "there is no cluster south; say with --cluster whose claims these are", id="unknown"),
        pytest.param("South!", "there is no cluster South!", id="not a name"),
    ],
)
def test_a_cluster_must_be_in_the_config(allocate: Allocate, config: str, cluster: str, error: str) -> None:
    run = allocate(a_claim(), options=("--config", config, "--cluster", cluster))

    assert (run.exit_code, run.results) == (2, [])
    assert error in run.err


def test_a_cluster_needs_a_name_that_can_be_one(allocate: Allocate) -> None:
    run = allocate(a_claim(), options=("--cluster", "South!"))

    assert run.exit_code == 2
    assert "--cluster South!" in run.err


def test_a_wrong_config_is_named_with_its_field(allocate: Allocate, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("fabrics: 7\n")

    run = allocate(a_claim(), options=("--config", str(file)))

    assert run.exit_code == 2
    assert "wrong.yaml: fabrics: " in run.err
