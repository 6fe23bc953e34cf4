"""The projection of classes and rules while its API server does not do what it is asked."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio
import pytest

from cluster_agent.app.projection import ClassProjection, Projection, TaintRuleProjection
from cluster_agent.ports import ApiConflictError, ApiError, ApiObject, ApiUncertainError, Kind, Listing, WatchEvent
from schemas.wire.ledger import ClassBrokered, TaintRule

pytestmark = pytest.mark.anyio

P = TypeVar("P", bound=Projection)
GPU = ClassBrokered(cluster="east", name="gpu", spec={"selectors": []})


def an_object(name: str, labels: dict[str, str] | None = None) -> ApiObject:
    """As somebody has made it, a while ago."""
    return {"metadata": {"name": name, "resourceVersion": "2", "labels": labels or {}}, "spec": {}}


FOREIGN = an_object("gpu")


class Store:
    """Objects of a cluster, guarded by their resourceVersions. errors: raised by the next writes, in turn.

    meanwhile: called with what was written before the answer is there.
    """

    def __init__(self, *errors: ApiError) -> None:
        self.errors = list(errors)
        self.objects: dict[str, ApiObject] = {}
        self.writes = 0
        self.meanwhile: Callable[[ApiObject], None] = lambda obj: None
        self._version = 10

    async def list_objects(self, kind: Kind) -> Listing:
        return Listing(list(self.objects.values()), str(self._version))

    async def create_object(self, kind: Kind, obj: ApiObject) -> ApiObject:
        return self._write(obj)

    async def update_object(self, kind: Kind, obj: ApiObject) -> ApiObject:
        return self._write(obj)

    async def delete_object(self, kind: Kind, obj: ApiObject) -> None:
        self._write(obj)
        del self.objects[obj["metadata"]["name"]]

    def change(self, name: str) -> WatchEvent:
        """Somebody else writes its status; what the watch says of that."""
        changed = self._store({**self.objects[name], "status": {"conditions": []}})
        return WatchEvent("MODIFIED", changed, changed["metadata"]["resourceVersion"])

    def remove(self, name: str) -> WatchEvent:
        """Somebody else deletes it."""
        self._version += 1
        return WatchEvent("DELETED", self.objects.pop(name), str(self._version))

    def _write(self, obj: ApiObject) -> ApiObject:
        self.writes += 1
        if self.errors:
            raise self.errors.pop(0)
        found = self.objects.get(obj["metadata"]["name"], {"metadata": {}})
        if found["metadata"].get("resourceVersion") != obj["metadata"].get("resourceVersion"):
            raise ApiConflictError("the object has been modified")
        written = self._store(obj)
        self.meanwhile(written)
        return written

    def _store(self, obj: ApiObject) -> ApiObject:
        self._version += 1
        stored = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self._version)}}
        self.objects[obj["metadata"]["name"]] = stored
        return stored


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
        store.objects = {"gpu": FOREIGN}
        projection.listed([FOREIGN], "5")
        for _ in range(3):
            projection.told(GPU)
            projection.told(ClassBrokered(cluster="east", name="nic", spec={"selectors": []}))
            await until(lambda: "nic" in store.objects)
        assert projection.problems["gpu"].startswith("is somebody else's")
        assert store.objects["gpu"] == FOREIGN
        projection.saw(store.remove("gpu"))
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
        projection.saw(WatchEvent("ADDED", store.objects["gpu"], store.objects["gpu"]["metadata"]["resourceVersion"]))
        projection.saw(WatchEvent("BOOKMARK", {}, "14"))
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
    left_over = an_object("old", {"dragoman.dev/projected": "true"})
    theirs = an_object("theirs")
    store.objects = {"old": left_over, "theirs": theirs}
    async with run(TaintRuleProjection("east", store, retry_first_s=0.001)) as projection:
        projection.listed([left_over, theirs], "5")
        await anyio.wait_all_tasks_blocked()
        assert store.writes == 0, "nobody has said yet which are wanted"
        projection.told([a_rule("r"), a_rule("theirs")])
        await until(lambda: sorted(store.objects) == ["r", "theirs"])
        await until(lambda: "theirs" in projection.problems)
        assert store.objects["theirs"] == theirs
        assert projection.projected == 1
        assert [name for name, problem in projection.problems.items() if problem] == ["theirs"]
        projection.saw(store.remove("r"))
        await until(lambda: "r" in store.objects)
        projection.told([])
        await until(lambda: list(store.objects) == ["theirs"])
        await until(lambda: not any(projection.problems.values()))
    [said] = [record.message for record in caplog.records]
    assert said == "DeviceTaintRule theirs of east is somebody else's (no label dragoman.dev/projected): delete it"


async def test_an_answer_that_is_older_than_what_the_watch_has_brought_is_not_believed() -> None:
    """kube-controller-manager writes the status of a new rule before its maker has the answer."""
    store = Store()
    async with run(TaintRuleProjection("east", store, retry_first_s=0.001)) as projection:
        projection.listed([], "5")
        store.meanwhile = lambda written: projection.saw(store.change(written["metadata"]["name"]))
        projection.told([a_rule("r")])
        await until(lambda: "r" in store.objects)
        store.meanwhile = lambda written: None
        projection.told([])
        await until(lambda: store.objects == {})
        await until(lambda: projection.projected == 0)
    assert store.writes == 2


async def test_what_is_gone_before_its_makers_answer_is_there_is_made_again() -> None:
    store = Store()
    async with run(TaintRuleProjection("east", store, retry_first_s=0.001)) as projection:
        projection.listed([], "5")

        def is_deleted(written: ApiObject) -> None:
            store.meanwhile = lambda written: None
            projection.saw(store.remove(written["metadata"]["name"]))

        store.meanwhile = is_deleted
        projection.told([a_rule("r")])
        await until(lambda: "r" in store.objects)
    assert store.writes == 2


async def test_what_the_watch_brings_late_does_not_undo_what_was_answered() -> None:
    store = Store()
    async with run(TaintRuleProjection("east", store, retry_first_s=0.001)) as projection:
        store.objects = {"r": an_object("r", {"dragoman.dev/projected": "true"})}
        projection.listed(list(store.objects.values()), "5")
        late = WatchEvent("MODIFIED", store.objects["r"], "6")
        projection.told([a_rule("r")])
        await until(lambda: store.writes == 1)
        projection.saw(late)
        await anyio.wait_all_tasks_blocked()
        projection.told([])
        await until(lambda: store.objects == {})
    assert store.writes == 2


async def test_conflicts_that_no_event_explains_are_told_and_end_with_a_new_list(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    store = Store()
    async with run(TaintRuleProjection("east", store, retry_first_s=0.001)) as projection:
        projection.listed([], "5")
        projection.told([a_rule("r")])
        await until(lambda: "r" in store.objects)
        store.change("r")  # and the watch says nothing
        projection.told([])
        await until(lambda: store.objects == {})
        await until(lambda: not any(projection.problems.values()))
    assert store.writes == 4
    [said] = [record.message for record in caplog.records]
    assert said == "DeviceTaintRule r of east cannot be written, trying again: the object has been modified"
