"""What has to be written so that a member has the broker's DeviceTaintRules as it should."""

from typing import Any

import msgspec
import pytest

from cluster_agent.mirror.projected import Create, Delete, Foreign, Update
from cluster_agent.mirror.taint_rules import project_rule
from cluster_agent.ports import ApiObject
from schemas.resource import DeviceTaintRule
from schemas.resource.validate import validate_taint_rule
from schemas.wire.ledger import TaintRule

NAME = "dragoman-gpu-0-5c"
RULE = TaintRule(NAME, "gpu.example.com", "rack7", "gpu-0", "dragoman.dev/maintenance", reason="ada: smoke")
TIME = "2026-11-30T02:30:00Z"


def written(rule: TaintRule = RULE) -> ApiObject:
    """As the cluster has it once it was written."""
    step = project_rule(NAME, rule, None)
    assert isinstance(step, Create)
    metadata = {**step.object["metadata"], "uid": "u", "resourceVersion": "7"}
    spec = {**step.object["spec"], "taint": {**step.object["spec"]["taint"], "timeAdded": TIME}}
    return {**step.object, "metadata": metadata, "spec": spec}


def test_a_rule_names_one_device_and_says_why() -> None:
    step = project_rule(NAME, RULE, None)
    assert isinstance(step, Create)
    assert step.object == {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceTaintRule",
        "metadata": {
            "name": NAME,
            "labels": {"dragoman.dev/projected": "true"},
            "annotations": {"dragoman.dev/reason": "ada: smoke"},
        },
        "spec": {
            "deviceSelector": {"driver": "gpu.example.com", "pool": "rack7", "device": "gpu-0"},
            "taint": {"key": "dragoman.dev/maintenance", "effect": "NoExecute"},
        },
    }
    assert validate_taint_rule(msgspec.convert(step.object, DeviceTaintRule)) == []


def test_a_rule_for_a_pool_names_no_device() -> None:
    step = project_rule(NAME, msgspec.structs.replace(RULE, device="", value="yes"), None)
    assert isinstance(step, Create)
    assert step.object["spec"]["deviceSelector"] == {"driver": "gpu.example.com", "pool": "rack7"}
    assert step.object["spec"]["taint"]["value"] == "yes"


def test_what_is_as_it_should_be_is_not_written() -> None:
    assert project_rule(NAME, RULE, written()) is None
    assert project_rule(NAME, RULE, {**written(), "status": {"conditions": []}}) is None
    assert project_rule(NAME, None, None) is None


@pytest.mark.parametrize(
    "drift",
    [
        pytest.param({"spec": {"deviceSelector": {}}}, id="it selects every device"),
        pytest.param({"spec": {"taint": {"key": "dragoman.dev/maintenance", "effect": "None"}}}, id="it does nothing"),
        pytest.param({"metadata": {"annotations": {}}}, id="nobody knows why"),
    ],
)
def test_what_others_change_in_it_is_changed_back(drift: dict[str, dict[str, Any]]) -> None:
    found = written()
    for part, changed in drift.items():
        found[part] = {**found[part], **changed}
    step = project_rule(NAME, RULE, found)
    assert isinstance(step, Update)
    assert step.object["metadata"] == written()["metadata"]
    step.object["spec"]["taint"].pop("timeAdded", None)
    assert step.object["spec"] == project_rule(NAME, RULE, None).object["spec"]  # type: ignore[union-attr]


def test_what_others_add_to_it_and_the_time_of_the_taint_stay() -> None:
    found = written()
    found["metadata"] = {**found["metadata"], "annotations": {"a": "b"}, "finalizers": ["f"]}
    step = project_rule(NAME, RULE, found)
    assert isinstance(step, Update)
    assert step.object["metadata"] == {
        **found["metadata"],
        "annotations": {"a": "b", "dragoman.dev/reason": "ada: smoke"},
    }
    assert step.object["spec"]["taint"]["timeAdded"] == TIME


def test_one_that_is_not_wanted_any_more_goes() -> None:
    assert project_rule(NAME, None, written()) == Delete(written())


def test_somebody_elses_is_left_alone() -> None:
    theirs = written()
    theirs["metadata"] = {**theirs["metadata"], "labels": {}}
    assert project_rule(NAME, RULE, theirs) == Foreign(NAME)
    assert project_rule(NAME, None, theirs) is None


def test_one_that_is_being_deleted_is_made_anew_when_it_is_gone() -> None:
    found = written()
    found["metadata"] = {**found["metadata"], "deletionTimestamp": TIME}
    assert project_rule(NAME, RULE, found) is None
    assert project_rule(NAME, None, found) is None
