"""`dragoman up --once`, as a user runs it: directories in; a JSON document, logs and an exit code out."""

import fcntl
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from broker.cli.main import main
from tests.manifests import (
    Manifest,
    claim_manifest,
    class_manifest,
    holding,
    slice_manifest,
    write_manifests,
)

MEMORY = 'device.attributes["gpu.example.com"].memory'

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
  - name: stock-prediction
    image: stock-prediction:1
    resources:
      claims:
      - name: gpu-req
  resourceClaims:
  - name: gpu-req
    resourceClaimTemplateName: gpu-claim-template
"""


class Run(msgspec.Struct):
    """What came of it. claims: as printed; err: stderr."""

    exit_code: int
    claims: list[dict[str, Any]]
    err: str

    @property
    def devices(self) -> dict[str, str]:
        """Of each allocated claim, by cluster and name: pool/device of the first result."""
        return {
            f"{row['cluster']}/{row['name']}": f"{row['results'][0]['pool']}/{row['results'][0]['device']}"
            for row in self.claims
            if row["results"]
        }

    @property
    def reasons(self) -> dict[str, str]:
        """Of each claim that is not allocated, by cluster and name: state and reason."""
        return {
            f"{row['cluster']}/{row['name']}": f"{row['state']} {row['reason']}"
            for row in self.claims
            if not row["results"]
        }

    def message(self, claim: str) -> str:
        """Why this claim waits. claim: cluster/name."""
        (found,) = [row["message"] for row in self.claims if f"{row['cluster']}/{row['name']}" == claim]
        assert isinstance(found, str)
        return found


Up = Callable[..., Run]
Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write manifests into one file of a cluster: put("east", ...), put("east/more", ...)."""

    def write(place: str, *documents: Manifest | str) -> Path:
        cluster, _, name = place.partition("/")
        path = tmp_path / cluster / f"{name or 'manifests'}.yaml"
        write_manifests(path, *documents)
        return path

    return write


@pytest.fixture
def up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Up:
    """Run it once on clusters of these names, in this order. config: of the federation."""

    def run(*clusters: str, config: dict[str, Any] | None = None, options: tuple[str, ...] = ()) -> Run:
        arguments = ["up", "--once", "-o", "json", *options]
        for name in clusters:
            (tmp_path / name).mkdir(exist_ok=True)
            arguments += ["--cluster", f"{name}={tmp_path / name}"]
        if config is not None:
            (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
            arguments += ["--config", str(tmp_path / "config.yaml")]
        exit_code = main(arguments)
        printed = capsys.readouterr()
        document = json.loads(printed.out)
        assert list(document) == ["claims"]
        return Run(exit_code, document["claims"], printed.err)

    return run


def a_fabric(**fields: Any) -> dict[str, Any]:
    """A config with one fabric, `rack`, that east and west reach."""
    pools = [{"driver": "gpu.example.com", "pool": "rack"}]
    return {"fabrics": [{"name": "rack", "source": "east", "clusters": ["east", "west"], "pools": pools, **fields}]}


# --- What is printed


def test_prints_every_claim_in_one_document(put: Put, up: Up) -> None:
    put("east", class_manifest(), slice_manifest(["gpu-0"]), claim_manifest("first"), claim_manifest("second"))
    put("east/wrong", claim_manifest("wrong", allocationMode="Most"))
    run = up("east")

    assert run.exit_code == 1
    first, second, wrong = run.claims
    assert {key: first[key] for key in first if key != "uid"} == {
        "cluster": "east",
        "namespace": "default",
        "name": "first",
        "state": "Allocated",
        "results": [{"request": "gpu", "driver": "gpu.example.com", "pool": "rack", "device": "gpu-0"}],
        "reason": "",
        "message": "",
    }
    assert len({row["uid"] for row in run.claims}) == 3
    assert (second["state"], second["results"], second["reason"]) == ("Pending", [], "DevicesInUse")
    assert "held by east/default/first" in second["message"]
    assert (wrong["state"], wrong["results"]) == ("Invalid", [])
    assert wrong["reason"]
    assert 'must be one of ExactCount, All, found "Most"' in wrong["message"]


def test_exits_with_0_when_claims_only_wait(put: Put, up: Up) -> None:
    put("east", class_manifest(), claim_manifest("waits"))
    run = up("east")
    assert (run.exit_code, run.reasons) == (0, {"east/waits": "Pending NoMatchingDevice"})
    assert run.err == ""


def test_prints_an_empty_list_for_a_directory_without_claims(up: Up) -> None:
    run = up("east", "west")
    assert (run.exit_code, run.claims, run.err) == (0, [], "")


def test_prints_a_table_for_people(put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("east", class_manifest(), slice_manifest(["gpu-0"]), claim_manifest("first"), claim_manifest("second"))
    assert main(["up", "--once", "--cluster", f"east={tmp_path / 'east'}"]) == 0
    out = capsys.readouterr().out
    assert "default/first" in out
    assert "gpu: rack/gpu-0" in out
    assert "east/default/second: request gpu: 0 of 1 device of class gpu can be used: 1 in use" in out


def test_the_walk_through_gets_what_cel_says(put: Put, up: Up) -> None:
    """Its selector compares text: "8Gi" is more than "16Gi", and "10Gi" is less."""
    memories = [
        {"name": f"with-{memory}".lower(), "attributes": {"memory": {"string": memory}}} for memory in ("10Gi", "8Gi")
    ]
    inventory = slice_manifest(memories, driver="gpu-driver.example.com", fabric="rack")
    put("east", inventory, WALK_THROUGH)
    put("west", WALK_THROUGH)
    run = up("east", "west")

    assert run.exit_code == 0
    east, west = run.claims
    assert east["name"].startswith("stock-prediction-pod-gpu-req-")
    assert east["results"] == [
        {"request": "gpu-req", "driver": "gpu-driver.example.com", "pool": "rack", "device": "with-8gi"}
    ]
    assert (west["name"], west["state"], west["reason"]) == (east["name"], "Pending", "DevicesInUse")
    assert east["uid"] != west["uid"]


# --- Who shares what


def test_the_source_of_a_labelled_pool_is_the_first_cluster_that_has_it(put: Put, up: Up) -> None:
    put("east", class_manifest(), claim_manifest("a"))
    put("north", class_manifest(), slice_manifest(["of-north"], fabric="rack"))
    put("west", class_manifest(), slice_manifest(["of-west"], fabric="rack"), claim_manifest("a"))
    run = up("east", "west", "north")
    assert run.devices == {"east/a": "rack/of-west"}
    assert (
        "ResourceSlice rack of north is for pool gpu.example.com/rack of fabric rack, whose source is west" in run.err
    )
    run = up("east", "north", "west")
    assert run.devices == {"east/a": "rack/of-north"}
    assert run.reasons == {"west/a": "Pending DevicesInUse"}


def test_a_slice_without_label_belongs_to_its_cluster(put: Put, up: Up) -> None:
    for cluster in ("east", "west"):
        put(cluster, class_manifest(), slice_manifest(["gpu-0"]), claim_manifest("a"), claim_manifest("b"))
    run = up("east", "west")
    assert run.devices == {"east/a": "rack/gpu-0", "west/a": "rack/gpu-0"}
    assert run.reasons == {"east/b": "Pending DevicesInUse", "west/b": "Pending DevicesInUse"}


def test_shares_the_fabric_of_a_config(put: Put, up: Up) -> None:
    put("east", class_manifest(), slice_manifest(["gpu-0", "gpu-1"]), claim_manifest("a"))
    put("west", class_manifest(), slice_manifest(["gpu-9"]), claim_manifest("a"), claim_manifest("b"))
    put("north", class_manifest(), claim_manifest("a"))
    run = up("east", "west", "north", config=a_fabric())
    assert run.devices == {"east/a": "rack/gpu-0", "west/a": "rack/gpu-1"}
    assert run.reasons == {"north/a": "Pending NoMatchingDevice", "west/b": "Pending DevicesInUse"}
    assert "NotTheSource" in run.err
    assert "ResourceSlice rack of west is for pool gpu.example.com/rack of fabric rack, whose source is east" in run.err


def test_uses_the_classes_and_the_inventory_of_a_hub(put: Put, up: Up) -> None:
    put("hub", class_manifest(), slice_manifest(["gpu-0"]))
    put("east", claim_manifest("a"), claim_manifest("own", device_class="own"), class_manifest("own"))
    put("west", claim_manifest("a"), slice_manifest(["gpu-9"]))
    run = up("hub", "east", "west", config={"hub": "hub", **a_fabric(source="hub")})
    assert run.devices == {"east/a": "rack/gpu-0"}
    assert run.reasons == {"east/own": "Pending UnknownDeviceClass", "west/a": "Pending DevicesInUse"}
    assert "whose source is hub" in run.err


# --- Bad input: each is named with its place, and everything else goes on

GOOD = (class_manifest(), slice_manifest(["gpu-0"]), claim_manifest("good"))


@pytest.mark.parametrize(
    ("document", "place"),
    [
        pytest.param(
            "kind: Pod\nmetadata: {name: x\nspec: }\n", r"broken\.yaml:3:\d+ \(document 1\): not YAML", id="YAML"
        ),
        pytest.param("just text\n", r"broken\.yaml:1:1 \(document 1\): expected an object with apiVersion", id="text"),
        pytest.param({"kind": "Pod"}, r"broken\.yaml:1:\d+ \(document 1\): apiVersion: expected text", id="no version"),
    ],
)
def test_a_file_that_cannot_be_parsed_spoils_only_itself(
    put: Put, up: Up, document: Manifest | str, place: str
) -> None:
    put("east", *GOOD)
    put("east/broken", document, claim_manifest("in-the-same-file"))
    run = up("east")
    assert run.exit_code == 1
    assert run.devices == {"east/good": "rack/gpu-0"}
    assert run.reasons == {"east/in-the-same-file": "Pending DevicesInUse"}
    assert len(re.findall(place, run.err)) == 1


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        pytest.param(
            claim_manifest("bad", count="many"),
            r"exactly\.count: expected an integer of 64 bits, found the text \"many\"",
            id="a wrong type",
        ),
        pytest.param(
            claim_manifest("bad", allocationMode="Most"),
            r"exactly\.allocationMode: must be one of ExactCount, All, found \"Most\"",
            id="an unknown field value",
        ),
        pytest.param(claim_manifest("bad", count=-1), r"exactly\.count: must be", id="a value out of range"),
        pytest.param(
            claim_manifest("bad", f"{MEMORY} = 1"),
            r"spec\.devices\.requests\[0\]\.exactly\.selectors\[0\]\.cel\.expression does not compile: line 1",
            id="a selector that does not compile",
        ),
        pytest.param(
            claim_manifest("bad", '"text"'),
            r"exactly\.selectors\[0\]\.cel\.expression does not compile: .*bool",
            id="a selector that is not bool",
        ),
    ],
)
def test_a_claim_that_would_be_refused_is_invalid(put: Put, up: Up, claim: Manifest, message: str) -> None:
    put("east", *GOOD, claim)
    run = up("east")
    assert (run.exit_code, run.devices) == (1, {"east/good": "rack/gpu-0"})
    assert run.reasons["east/bad"].startswith("Invalid ")
    assert re.search(message, run.message("east/bad"))


@pytest.mark.parametrize(
    ("claim", "reason", "message"),
    [
        pytest.param(
            claim_manifest("bad", f"{MEMORY} > 16"),
            "SelectorFailed",
            r"request gpu: selectors\[0\]\.cel\.expression failed on device .*rack/gpu-[01]: no such key: memory",
            id="a selector that fails at run time",
        ),
        pytest.param(
            claim_manifest("bad", device_class="gpuu"),
            "UnknownDeviceClass",
            "there is no DeviceClass gpuu in east; create it, or name another",
            id="an unknown class",
        ),
    ],
)
def test_a_claim_that_could_be_helped_by_others_waits(
    put: Put, up: Up, claim: Manifest, reason: str, message: str
) -> None:
    put("east", class_manifest(), slice_manifest(["gpu-0", "gpu-1"]), claim_manifest("good"), claim)
    run = up("east")
    assert (run.exit_code, run.devices) == (0, {"east/good": "rack/gpu-0"})
    assert run.reasons == {"east/bad": f"Pending {reason}"}
    assert re.search(message, run.message("east/bad"))


@pytest.mark.parametrize(
    ("slices", "code", "message"),
    [
        pytest.param(
            [slice_manifest(["gpu-9"], name="other", pool="other", slices=2)],
            "PoolProblem",
            "not used: 1 of 2 slices of generation 1",
            id="an incomplete generation",
        ),
        pytest.param(
            [
                slice_manifest(["gpu-9"], name="old", pool="other", generation=1, slices=1),
                slice_manifest([], name="new", pool="other", generation=2, slices=1),
            ],
            "OldGeneration",
            "ResourceSlice old is of an older generation than 2 and is not used",
            id="an older generation",
        ),
        pytest.param(
            [slice_manifest(["gpu-9", "gpu-9"], name="other", pool="other")],
            "Unreadable",
            r'spec\.devices\[1\]: must not repeat "gpu-9"',
            id="the same name twice in a slice",
        ),
        pytest.param(
            [
                slice_manifest(["gpu-9"], name="one", pool="other", slices=2),
                slice_manifest(["gpu-9"], name="two", pool="other", slices=2),
            ],
            "PoolProblem",
            "not used: more than one device is named gpu-9",
            id="the same name in two slices",
        ),
        pytest.param(
            [slice_manifest([{"name": "gpu-9", "attributes": {"a": {"int": "many"}}}], name="other", pool="other")],
            "Unreadable",
            r"spec\.devices\[0\]\.attributes.*int: expected an integer",
            id="a wrong type in a slice",
        ),
    ],
)
def test_devices_that_cannot_be_trusted_are_not_used(
    put: Put, up: Up, slices: list[Manifest], code: str, message: str
) -> None:
    put("east", *GOOD, claim_manifest("second"))
    put("east/slices", *slices)
    run = up("east")
    assert (run.exit_code, run.devices) == (0, {"east/good": "rack/gpu-0"})
    assert list(run.reasons) == ["east/second"]
    assert re.search(f"{code}: .*{message}", run.err)


def test_an_object_of_an_unknown_kind_is_passed_over(put: Put, up: Up) -> None:
    put("east", {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}, *GOOD)
    run = up("east")
    assert (run.exit_code, run.devices, run.err) == (0, {"east/good": "rack/gpu-0"}, "")


# --- What is there already


def test_adopts_an_allocation_that_a_manifest_shows(put: Put, up: Up) -> None:
    put("east", class_manifest(), slice_manifest(["gpu-0", "gpu-1"], fabric="rack"), claim_manifest("new"))
    put("west", class_manifest(), holding(claim_manifest("old"), "gpu-0"))
    run = up("east", "west")
    assert run.exit_code == 0
    assert run.devices == {"east/new": "rack/gpu-1", "west/old": "rack/gpu-0"}


def test_reports_two_clusters_that_hold_the_same_device(put: Put, up: Up) -> None:
    put("east", class_manifest(), slice_manifest(["gpu-0", "gpu-1"], fabric="rack"))
    put("east/claims", holding(claim_manifest("mine"), "gpu-0"), claim_manifest("new"))
    put("west", class_manifest(), holding(claim_manifest("mine-too"), "gpu-0"))
    run = up("east", "west")
    assert run.devices == {"east/mine": "rack/gpu-0", "east/new": "rack/gpu-1", "west/mine-too": "rack/gpu-0"}
    assert "DeviceHeldTwice: claim west/default/mine-too" in run.err
    assert "held by east/default/mine (grant " in run.err
    collided = next(row for row in run.claims if row["name"] == "mine-too")
    assert (collided["state"], collided["reason"]) == ("Allocated", "DeviceHeldTwice")
    assert collided["message"]


def test_keeps_uids_and_allocations_in_its_data_directory(put: Put, up: Up, tmp_path: Path) -> None:
    data = ("--data", str(tmp_path / "data"))
    put("east", class_manifest(), slice_manifest(["gpu-0", "gpu-1"], fabric="rack"), claim_manifest("a"))
    put("west", class_manifest(), claim_manifest("b"))
    put("west/more", claim_manifest("c"))
    first = up("east", "west", options=data)
    assert first.devices == {"east/a": "rack/gpu-0", "west/b": "rack/gpu-1"}
    assert up("east", "west", options=data).claims == first.claims

    (tmp_path / "east" / "manifests.yaml").unlink()
    put("east", class_manifest(), slice_manifest(["gpu-0", "gpu-1"], fabric="rack"))
    third = up("east", "west", options=data)
    assert third.devices == {"west/b": "rack/gpu-1", "west/c": "rack/gpu-0"}
    assert [row["uid"] for row in third.claims] == [row["uid"] for row in first.claims if row["name"] != "a"]


def test_says_who_has_the_data_directory(put: Put, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put("east", *GOOD)
    data = tmp_path / "data"
    (data / "nats").mkdir(parents=True)
    with (data / "nats" / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code = main(["up", "--once", "--cluster", f"east={tmp_path / 'east'}", "--data", str(data)])
    assert code == 2
    assert "is in use by another nats-server" in capsys.readouterr().err


def test_never_writes_the_files(put: Put, up: Up, tmp_path: Path) -> None:
    put("east", *GOOD, claim_manifest("bad", count=-1), WALK_THROUGH)
    put("east/broken", "kind: [")
    put("west", class_manifest(), holding(claim_manifest("held"), "gpu-0"))

    def everything() -> dict[str, tuple[bytes, int]]:
        files = [Path(parent, name) for parent, _, names in os.walk(tmp_path) for name in names]
        return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    for file in tmp_path.rglob("*"):
        file.chmod(0o555 if file.is_dir() else 0o444)
    before = everything()
    up("east", "west")
    assert everything() == before


@pytest.mark.parametrize(
    "odd",
    [
        pytest.param({**claim_manifest("odd"), "status": {"allocation": {"devices": {"results": ["x"]}}}}, id="claim"),
        pytest.param({**claim_manifest("odd"), "status": "allocated"}, id="claim without a status to be read"),
        pytest.param({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "status": "running"}, id="pod"),
        pytest.param(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default", "labels": {"floor": 3}}},
            id="namespace",
        ),
    ],
)
def test_an_object_that_makes_no_sense_does_not_stop_the_others(put: Put, up: Up, odd: Manifest) -> None:
    put("east", class_manifest(), slice_manifest(["gpu-0"]), claim_manifest("good"), odd)
    run = up("east")
    assert run.devices == {"east/good": "rack/gpu-0"}
    assert "Traceback" not in run.err
