"""What has to be written so that a member has the hub's classes as it should."""

from typing import Any

import pytest

from cluster_agent.mirror.classes import give_back, project, take_over
from cluster_agent.mirror.projected import Create, Delete, Foreign, Update
from cluster_agent.ports import ApiObject

SPEC: dict[str, Any] = {
    "selectors": [{"cel": {"expression": 'device.driver == "gpu.example.com"'}}, {"cel": {"expression": "true"}}],
    "config": [{"opaque": {"driver": "gpu.example.com", "parameters": {"a": 1}}}],
    "extendedResourceName": "example.com/gpu",
}
CLOSED = {"selectors": [{"cel": {"expression": "false"}}], "config": SPEC["config"]}


def projected(spec: dict[str, Any] = SPEC) -> ApiObject:
    """As the cluster has it once it was written."""
    step = project("gpu", spec, None)
    assert isinstance(step, Create)
    return {**step.object, "metadata": {**step.object["metadata"], "uid": "u", "resourceVersion": "7"}}


def test_a_class_of_the_hub_selects_nothing_in_a_member_and_says_what_counts() -> None:
    step = project("gpu", SPEC, None)
    assert isinstance(step, Create)
    assert step.object["spec"] == CLOSED
    metadata = step.object["metadata"]
    assert metadata["name"] == "gpu"
    assert metadata["labels"] == {"dragoman.dev/brokered": "true", "dragoman.dev/projected": "true"}
    assert metadata["annotations"] == {"dragoman.dev/selectors": 'device.driver == "gpu.example.com"\ntrue'}


def test_what_is_as_it_should_be_is_not_written() -> None:
    assert project("gpu", SPEC, projected()) is None
    assert project("gpu", None, None) is None


@pytest.mark.parametrize(
    "drift",
    [
        pytest.param({"spec": {"selectors": []}}, id="a selector that lets the scheduler in"),
        pytest.param({"labels": {"dragoman.dev/projected": "true"}}, id="not brokered any more"),
        pytest.param({"annotations": {}}, id="nobody knows what counts"),
    ],
)
def test_what_others_change_in_it_is_changed_back(drift: dict[str, Any]) -> None:
    found = projected()
    spec = drift.pop("spec", found["spec"])
    found = {**found, "spec": spec, "metadata": {**found["metadata"], **drift}}
    assert project("gpu", SPEC, found) == Update(projected())


def test_what_others_add_to_its_metadata_stays() -> None:
    found = projected()
    metadata = {**found["metadata"], "labels": {**found["metadata"]["labels"], "team": "a"}, "finalizers": ["b/c"]}
    assert project("gpu", SPEC, {**found, "metadata": metadata}) is None
    step = project("gpu", {"selectors": []}, {**found, "metadata": metadata})
    assert isinstance(step, Update)
    assert step.object["metadata"]["labels"]["team"] == "a"
    assert step.object["metadata"]["finalizers"] == ["b/c"]
    assert (step.object["metadata"]["uid"], step.object["metadata"]["resourceVersion"]) == ("u", "7")
    assert step.object["spec"] == {"selectors": [{"cel": {"expression": "false"}}]}


def test_a_class_that_the_hub_has_no_more_goes() -> None:
    assert project("gpu", None, projected()) == Delete(projected())


def test_one_that_is_going_is_waited_for() -> None:
    found = projected()
    going = {**found, "metadata": {**found["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}
    assert project("gpu", SPEC, going) is None


@pytest.mark.parametrize("labels", [{}, {"dragoman.dev/brokered": "true"}])
def test_somebody_elses_class_of_that_name_is_left_alone(labels: dict[str, str]) -> None:
    theirs = {"metadata": {"name": "gpu", "labels": labels}, "spec": {"selectors": []}}
    assert project("gpu", SPEC, theirs) == Foreign("gpu")
    assert project("gpu", None, theirs) is None


def test_a_class_that_is_taken_over_is_closed_and_given_back_as_it_was() -> None:
    metadata = {"name": "gpu", "uid": "u", "resourceVersion": "3", "labels": {"team": "a"}}
    theirs = {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": metadata, "spec": SPEC}
    taken = take_over(theirs)
    assert taken["spec"] == CLOSED
    assert taken["metadata"]["labels"]["dragoman.dev/projected"] == "true"
    given_back = {**theirs, "metadata": {**metadata, "annotations": {}}}
    assert give_back(taken) == given_back
    # The hub's class goes into it, and when that is gone it is what it was.
    step = project("gpu", {"selectors": []}, taken)
    assert isinstance(step, Update)
    assert project("gpu", None, step.object) == Update(given_back)
    assert give_back(projected()) is None


def test_what_was_kept_of_a_class_and_cannot_be_read_is_not_made_up() -> None:
    taken = take_over({"metadata": {"name": "gpu", "uid": "u"}, "spec": SPEC})
    taken["metadata"]["annotations"]["dragoman.dev/original"] = "{"
    assert give_back(taken) is None
    assert project("gpu", None, taken) == Foreign("gpu")
