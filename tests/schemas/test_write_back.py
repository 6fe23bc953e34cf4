from copy import deepcopy
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.resource import Device, Pod, ResourceClaim, ResourceSlice
from schemas.resource.decode import decode_object, to_builtins
from schemas.resource.write_back import write_back
from tests.schemas.raw import NAMES, a_raw, as_v1beta1

replace = msgspec.structs.replace


def _a_claim() -> tuple[dict[str, Any], ResourceClaim]:
    raw = a_raw("claim")
    claim = decode_object(raw)
    assert isinstance(claim, ResourceClaim)
    return raw, claim


@pytest.mark.parametrize("name", NAMES)
def test_what_was_not_changed_is_written_as_it_was_read(name: str) -> None:
    raw = a_raw(name)
    raw["metadata"]["managedFields"] = [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]
    raw["metadata"]["selfLink"] = None
    before = deepcopy(raw)
    assert write_back(raw, decode_object(raw)) == before
    assert raw == before


def test_a_claim_whose_status_changes_loses_nothing() -> None:
    raw, claim = _a_claim()
    raw["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    raw["spec"]["devices"]["futureSpec"] = 1
    raw["status"]["futureStatus"] = {"a": 1}
    raw["status"]["allocation"]["futureAllocation"] = 2
    raw["status"]["reservedFor"][0]["futureReference"] = 3
    before = deepcopy(raw)
    consumer = replace(claim.status.reserved_for[0], name="train-1", uid="u-2")
    status = replace(claim.status, reserved_for=[consumer, *claim.status.reserved_for])
    written = write_back(raw, replace(claim, status=status))
    before["status"]["reservedFor"].insert(0, {"resource": "pods", "name": "train-1", "uid": "u-2"})
    assert written == before


def test_a_changed_entry_keeps_the_fields_of_the_entry_with_its_identity_wherever_it_went() -> None:
    raw = a_raw("slice")
    raw["spec"]["devices"] = [{"name": name, "future": name, "taints": [{"key": "a"}]} for name in ("x", "y", "z")]
    decoded = decode_object(raw)
    assert isinstance(decoded, ResourceSlice)
    x, y, z = decoded.spec.devices
    devices = [z, replace(y, taints=[]), Device(name="new"), replace(x, all_nodes=True)]
    written = write_back(raw, replace(decoded, spec=replace(decoded.spec, devices=devices)))
    assert written["spec"]["devices"] == [
        {"name": "z", "future": "z", "taints": [{"key": "a"}]},
        {"name": "y", "future": "y"},
        {"name": "new"},
        {"name": "x", "future": "x", "taints": [{"key": "a"}], "allNodes": True},
    ]


def test_entries_without_identity_keep_their_fields_if_they_are_equal() -> None:
    raw = a_raw("slice")
    raw["spec"]["devices"][0]["taints"] = [{"key": "a", "future": 1}, {"key": "b", "future": 2}]
    decoded = decode_object(raw)
    assert isinstance(decoded, ResourceSlice)
    device = decoded.spec.devices[0]
    a, b = device.taints
    changed = replace(device, taints=[replace(a, effect="NoExecute"), b])
    written = write_back(raw, replace(decoded, spec=replace(decoded.spec, devices=[changed])))
    assert written["spec"]["devices"][0]["taints"] == [{"key": "a", "effect": "NoExecute"}, {"key": "b", "future": 2}]


def test_what_was_cleared_is_gone_with_all_that_was_in_it() -> None:
    raw, claim = _a_claim()
    raw["status"]["allocation"]["future"] = 1
    status = replace(claim.status, allocation=None, reserved_for=[], devices=[])
    assert write_back(raw, replace(claim, status=status))["status"] == {}


def test_labels_and_annotations_are_added_and_removed_one_by_one() -> None:
    raw = a_raw("claim")
    raw["metadata"]["annotations"] = {"keep": "1", "drop": "2"}
    claim = decode_object(raw)
    assert isinstance(claim, ResourceClaim)
    metadata = replace(claim.metadata, annotations={"keep": "1", "add": "3"}, labels={})
    written = write_back(raw, replace(claim, metadata=metadata))["metadata"]
    assert written["annotations"] == {"keep": "1", "add": "3"}
    assert "labels" not in written


def test_numbers_and_nulls_stay_as_they_were_written_where_nothing_changed() -> None:
    raw = a_raw("slice")
    raw["spec"]["devices"][0]["capacity"]["cores"]["value"] = 64
    raw["spec"]["nodeName"] = None
    decoded = decode_object(raw)
    assert isinstance(decoded, ResourceSlice)
    written = write_back(raw, replace(decoded, metadata=replace(decoded.metadata, labels={})))
    assert written["spec"] == raw["spec"]


def test_a_pod_keeps_what_we_never_read_of_it() -> None:
    raw = a_raw("pod")
    raw["spec"]["containers"][0]["env"] = [{"name": "A", "value": "B"}]
    pod = decode_object(raw)
    assert isinstance(pod, Pod)
    written = write_back(raw, replace(pod, spec=replace(pod.spec, scheduling_gates=[])))
    assert written["spec"]["containers"] == raw["spec"]["containers"]
    assert "schedulingGates" not in written["spec"]


def test_an_older_version_is_written_back_as_v1_with_its_unknown_fields() -> None:
    old = as_v1beta1(a_raw("claim"))
    old["metadata"]["managedFields"] = []
    claim = decode_object(old)
    expected = a_raw("claim")
    expected["metadata"]["managedFields"] = []
    assert write_back(old, claim) == expected


@pytest.mark.parametrize(("name", "other"), [("slice", "counter slice"), ("counter slice", "slice")])
def test_an_object_may_become_quite_another(name: str, other: str) -> None:
    written = write_back({**a_raw(name), "future": 1}, decode_object(a_raw(other)))
    assert written == {**a_raw(other), "future": 1}


@given(st.data())
def test_any_mix_of_old_and_new_parts_is_written_and_nothing_unknown_is_lost_beside_them(data: st.DataObject) -> None:
    raw = a_raw("claim")
    for part in (raw, raw["metadata"], raw["spec"]["devices"], raw["status"], raw["status"]["allocation"]):
        part["future"] = 1
    old = decode_object(raw)
    assert isinstance(old, ResourceClaim)
    assert old.status.allocation is not None
    allocation = old.status.allocation
    results = data.draw(st.permutations(allocation.devices.results * 2))[: data.draw(st.integers(0, 4))]
    devices = replace(
        allocation.devices, results=results, config=data.draw(st.sampled_from([[], allocation.devices.config]))
    )
    status = replace(
        old.status,
        allocation=replace(allocation, devices=devices),
        reserved_for=data.draw(st.sampled_from([[], old.status.reserved_for])),
    )
    new = replace(old, status=status)
    written = write_back(raw, new)
    assert decode_object(written) == new
    assert written["future"] == written["metadata"]["future"] == written["status"]["future"] == 1
    assert written["status"]["allocation"]["future"] == written["spec"]["devices"]["future"] == 1
    assert to_builtins(new)["status"]["allocation"]["devices"] == written["status"]["allocation"]["devices"]
