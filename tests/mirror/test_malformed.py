"""Objects that cannot be read, in every way in which a manifest can be wrong: told as they are; all else goes on."""

from typing import Any

import msgspec
import pytest

from cluster_agent.mirror.actions import ObjectGone, ObjectSeen
from cluster_agent.mirror.settling import advance
from cluster_agent.mirror.tracked import (
    HELD,
    Tracked,
    with_allocation,
    with_finalizers,
    with_void_mark,
    without_finalizers,
)
from schemas.wire.state import ObjectName
from tests.mirror.driven import Driven, a_manifest, an_allocate, seen

ODD: list[Any] = [None, "text", 7, ["text"], [{"a": 1}], {"a": ["b"]}, {"a": {"b": 1}}]
PATHS = [
    "spec",
    "status",
    "spec.devices",
    "spec.devices.requests",
    "spec.resourceClaims",
    "spec.nodeName",
    "status.allocation",
    "status.allocation.devices",
    "status.allocation.devices.results",
    "status.phase",
    "status.resourceClaimStatuses",
    "metadata.labels",
    "metadata.annotations",
    "metadata.finalizers",
    "metadata.ownerReferences",
    "metadata.deletionTimestamp",
]


def odd(path: str, value: Any) -> dict[str, Any]:
    """A claim, or a pod, that has something else where `path` leads."""
    obj: dict[str, Any] = {
        "metadata": {"uid": "uid-odd", "name": "odd", "namespace": "default", "resourceVersion": "101"}
    }
    place = obj
    *steps, last = path.split(".")
    for step in steps:
        place = place.setdefault(step, {})
    place[last] = value
    return obj


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["claim", "pod", "namespace", "class"])
@pytest.mark.parametrize("publishes_all", [True, False])
def test_an_object_that_makes_no_sense_disturbs_nothing(path: str, kind: str, publishes_all: bool) -> None:
    for value in ODD:
        driven = Driven(publishes_all=publishes_all)
        driven.started(seen(a_manifest(), 100), ObjectSeen(kind, odd(path, value), 101, "it is wrong"))
        driven.tell(ObjectGone(kind, odd(path, value), 102))
        driven.store_all()
        assert driven.mirror.is_idle


@pytest.mark.parametrize("path", PATHS)
def test_a_claim_that_makes_no_sense_can_still_be_written_and_let_go(path: str) -> None:
    for value in ODD:
        claim = odd(path, value)
        for written in (
            with_finalizers(claim),
            without_finalizers(claim),
            with_void_mark(claim, 3, 1),
            with_allocation(claim, an_allocate()),
        ):
            msgspec.json.encode(written)
        held = odd(path, value)
        held["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z", finalizers=[HELD])
        advance(Tracked(ObjectName("claim", "uid-odd"), object=held, view_version=101))


def test_labels_that_are_no_text_are_not_told() -> None:
    namespace = {"metadata": {"name": "default", "labels": {"team": "a", "floor": 3}}}
    driven = Driven().started(seen(a_manifest(), 100), ObjectSeen("namespace", namespace, 101))
    assert driven.said().namespace_labels == {"team": "a"}
