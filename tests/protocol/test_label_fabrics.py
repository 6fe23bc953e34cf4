"""Fabrics that a label on a ResourceSlice declares: whatever else is published, no device is given to two claims."""

from collections.abc import Sequence
from typing import Any

import pytest

from broker.world.federation import FABRIC_LABEL, Federation
from broker.world.keys import ClusterId
from tests.protocol.harness import POOL, Stage
from tests.simulation.cluster import a_claim as a_claim_object
from tests.simulation.cluster import a_class, a_slice, an_allocation

EAST, WEST = ClusterId("east"), ClusterId("west")


def a_stage() -> Stage:
    """East and west, each with the class; nobody was heard yet."""
    stage = Stage(federation=Federation(clusters=[EAST, WEST], believe_labels=True))
    for cluster in stage.clusters.values():
        cluster.create("class", a_class())
    return stage


def a_labelled_slice(
    label: str, name: str = "s", devices: Sequence[str] = ("d0", "d1"), *, generation: int = 1, count: int = 1
) -> dict[str, Any]:
    """A slice of the pool that is on the fabric `label`; "" for a slice without label."""
    made = a_slice(name, POOL, devices, generation=generation, count=count)
    if label:
        made["metadata"]["labels"] = {FABRIC_LABEL: label}
    return made


def claims_everywhere(stage: Stage) -> None:
    """Four claims in each cluster, for a pool of two devices."""
    for cluster in ("east", "west"):
        for index in range(4):
            stage.claim(cluster, f"c{index}")


def devices(stage: Stage) -> list[str]:
    return sorted(device for held in stage.allocated().values() for device in held)


@pytest.mark.parametrize("late", [False, True], ids=["from the start", "while the devices are held"])
@pytest.mark.parametrize(
    ("cluster", "other"),
    [
        pytest.param("west", a_labelled_slice(""), id="an unlabelled slice of the same pool in the other cluster"),
        pytest.param("west", a_labelled_slice("g"), id="the same pool on another fabric"),
        pytest.param("west", a_labelled_slice("f"), id="the same fabric, from a second cluster"),
        pytest.param("east", a_labelled_slice("g", "t"), id="a second label of the same cluster"),
        pytest.param("east", a_labelled_slice("", "t"), id="a second slice of the source, without label"),
        pytest.param("east", a_labelled_slice("g", "a"), id="a second label, whose slice is listed first"),
        pytest.param("east", a_labelled_slice("", "a"), id="no label, whose slice is listed first"),
    ],
)
def test_a_pool_has_one_scope(cluster: str, other: dict[str, Any], late: bool) -> None:
    stage = a_stage()
    stage.clusters["east"].create("slice", a_labelled_slice("f"))
    if not late:
        stage.clusters[cluster].create("slice", other)
    claims_everywhere(stage)
    stage.rest()
    if late:
        stage.clusters[cluster].create("slice", other)
    stage.rest()
    assert devices(stage) == ["d0", "d1"]
    assert "NotTheSource" in {letter.reason for letter in stage.dead_letters} or not late


@pytest.mark.parametrize("restart", [False, True], ids=["", "and the broker starts again"])
@pytest.mark.parametrize(
    ("first", "then"),
    [
        pytest.param("f", "g", id="another label"),
        pytest.param("f", "", id="no label any more"),
        pytest.param("", "f", id="a label for a local pool"),
    ],
)
def test_a_slice_that_changes_its_label_does_not_free_what_is_held(first: str, then: str, restart: bool) -> None:
    stage = a_stage()
    stage.clusters["east"].create("slice", a_labelled_slice(first))
    claims_everywhere(stage)
    stage.rest()
    stage.clusters["east"].change("slice", a_labelled_slice(then))
    stage.tell("east")
    if restart:
        stage.start_broker()
    stage.rest()
    assert devices(stage) == ["d0", "d1"]
    assert {letter.reason for letter in stage.dead_letters} == {"PoolInUse"}
    before = stage.allocated()
    for holder in before:
        stage.delete(*holder.split("/"))
    stage.rest()  # nobody has them any more: now the new label holds
    assert devices(stage) == ["d0", "d1"]
    assert not before.keys() & stage.allocated().keys()


def test_a_slice_that_comes_back_with_another_label_does_not_free_what_is_held() -> None:
    stage = a_stage()
    stage.clusters["east"].create("slice", a_labelled_slice("f"))
    claims_everywhere(stage)
    stage.rest()
    stage.clusters["east"].delete("slice", "s")
    stage.rest()
    stage.clusters["west"].create("slice", a_labelled_slice("g"))
    stage.rest()
    assert devices(stage) == ["d0", "d1"]


def test_an_allocation_that_is_there_waits_for_the_second_cluster_without_spinning() -> None:
    stage = a_stage()
    stage.clusters["west"].create("slice", a_labelled_slice("f"))
    found = a_claim_object("found", allocation=an_allocation([(POOL, "d0")]))
    uid = stage.clusters["east"].create("claim", found, author="initial")
    stage.start_broker()
    stage.agent("east")
    stage.tell("east")  # ends, although the allocation cannot be adopted yet
    assert stage.believed("east", uid).grants == []
    stage.claim("east", "waits")
    stage.tell("east")
    stage.agent("west")
    stage.tell("west")
    assert [str(device) for grant in stage.believed("east", uid).grants for device in grant.devices] == [
        "fabric/f/gpu.example.com/rack7/d0"
    ]
    stage.rest()
    assert stage.allocated() == {"east/found": ["d0"], "east/waits": ["d1"]}


def test_a_fabric_that_is_declared_later_wakes_who_waits() -> None:
    stage = a_stage()
    stage.claim("east", "c")
    stage.claim("west", "c")
    stage.rest()
    assert stage.allocated() == {}
    stage.clusters["east"].create("slice", a_labelled_slice("f"))
    stage.rest()
    assert sorted(stage.allocated()) == ["east/c", "west/c"]
    assert devices(stage) == ["d0", "d1"]
