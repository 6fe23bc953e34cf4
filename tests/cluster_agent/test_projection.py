"""The projection of classes and rules while its API server does not do what it is asked."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import pytest

from cluster_agent.app.projection import ClassProjection, Projection, TaintRuleProjection
from cluster_agent.ports import ApiConflictError, ApiError, ApiObject, ApiUncertainError, Kind, WatchEvent
from schemas.wire.ledger import ClassBrokered, TaintRule

pytestmark = pytest.mark.anyio

P = TypeVar("P", bound=Projection)
GPU = ClassBrokered(cluster="east", name="gpu", spec={"selectors": []})
FOREIGN: ApiObject = {"metadata": {"name": "gpu"}, "spec": {}}


class Store:
    """Objects of a cluster. errors: raised by the next writes, in turn."""

    def __init__(self, *errors: ApiError) -> None:
        self.errors = list(errors)
        self.objects: dict[str, ApiObject] = {}
        self.writes = 0

    async def create_object(self, kind: Kind, obj: ApiObject) -> ApiObject:
        return self._write(obj)

    async def update_object(self, kind: Kind, obj: ApiObject) -> ApiObject:
        return self._write(obj)

    async def delete_object(self, kind: Kind, obj: ApiObject) -> None:
        self._write(obj)
        del self.objects[obj["metadata"]["name"]]

    def _write(self, obj: ApiObject) -> ApiObject:
        self.writes += 1
        if self.errors:
            raise self.errors.pop(0)
        self.objects[obj["metadata"]["name"]] = obj
        return obj


@asynccontextmanager
async def running(store: Store) -> AsyncIterator[ClassProjection]:
    async with run(ClassProjection("east", store, retry_first_s=0.001)) as projection:
        yield projection


@asynccontextmanager
async def run(projection: P) -> AsyncIterator[P]:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(projection.run)
        yield projection
        tasks.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():  # noqa: ASYNC110  # the store tells nobody
            await anyio.sleep(0.005)


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ApiUncertainError("no answer"), id="no answer"),
        pytest.param(ApiConflictError("it has changed"), id="a conflict that no event explains"),
    ],
)
async def test_what_was_not_written_is_written_later(error: ApiError) -> None:
    store = Store(error, error)
    async with running(store) as projection:
        projection.told(GPU)
        await until(lambda: "gpu" in store.objects)
        await until(lambda: projection.problems == {"gpu": ""})
    assert store.writes == 3
    assert projection.projected == 1


async def test_a_class_that_cannot_be_written_does_not_keep_others_from_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    store = Store()
    async with running(store) as projection:
        projection.listed([FOREIGN])
        for _ in range(3):
            projection.told(GPU)
            projection.told(ClassBrokered(cluster="east", name="nic", spec={"selectors": []}))
            await until(lambda: "nic" in store.objects)
        assert projection.problems["gpu"].startswith("is somebody else's")
        assert list(store.objects) == ["nic"]
        projection.saw(WatchEvent("DELETED", FOREIGN, "9"))
        await until(lambda: "gpu" in store.objects)
        await until(lambda: projection.problems == {"gpu": "", "nic": ""})
    [said] = [record.message for record in caplog.records]
    assert said.startswith(
        "DeviceClass gpu of east is somebody else's (no label dragoman.dev/projected): delete it, or"
    )


async def test_what_comes_and_goes_at_the_hub_comes_and_goes_here() -> None:
    store = Store()
    async with running(store) as projection:
        projection.told(GPU)
        await until(lambda: "gpu" in store.objects)
        projection.saw(WatchEvent("ADDED", store.objects["gpu"], "3"))
        projection.saw(WatchEvent("BOOKMARK", {}, "4"))
        projection.told(ClassBrokered(cluster="east", name="gpu"))
        await until(lambda: store.objects == {})
    assert store.writes == 2
    assert projection.projected == 0


def a_rule(name: str) -> TaintRule:
    return TaintRule(name, "gpu.example.com", "rack7", "gpu-0", "dragoman.dev/maintenance", reason="ada: smoke")


async def test_there_are_the_rules_that_the_ledger_wants_and_no_others_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    store = Store()
    left_over: ApiObject = {"metadata": {"name": "old", "labels": {"dragoman.dev/projected": "true"}}, "spec": {}}
    theirs: ApiObject = {"metadata": {"name": "theirs"}, "spec": {}}
    store.objects = {"old": left_over, "theirs": theirs}
    async with run(TaintRuleProjection("east", store, retry_first_s=0.001)) as projection:
        projection.listed([left_over, theirs])
        await anyio.wait_all_tasks_blocked()
        assert store.writes == 0, "nobody has said yet which are wanted"
        projection.told([a_rule("r"), a_rule("theirs")])
        await until(lambda: sorted(store.objects) == ["r", "theirs"])
        await until(lambda: "theirs" in projection.problems)
        assert store.objects["theirs"] == theirs
        assert projection.projected == 1
        assert [name for name, problem in projection.problems.items() if problem] == ["theirs"]
        projection.saw(WatchEvent("DELETED", store.objects.pop("r"), "9"))  # somebody has deleted it
        await until(lambda: "r" in store.objects)
        projection.told([])
        await until(lambda: list(store.objects) == ["theirs"])
        await until(lambda: not any(projection.problems.values()))
    [said] = [record.message for record in caplog.records]
    assert said == "DeviceTaintRule theirs of east is somebody else's (no label dragoman.dev/projected): delete it"
