"""Keeps the broker's objects in a member as they should be there: the hub's classes, and DeviceTaintRules.

The agent tells it what the ledger says of them and what the cluster has; what is to be written follows from the two,
again whenever one of them changes. Nothing else of the agent waits for it.
"""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import anyio

from cluster_agent.mirror.classes import project
from cluster_agent.mirror.projected import PROJECTED_LABEL, Create, Delete, Foreign, Step, Update, is_projected
from cluster_agent.mirror.taint_rules import project_rule
from cluster_agent.ports import (
    UNANSWERED,
    ApiConflictError,
    ApiError,
    ApiInvalidError,
    ApiNotFoundError,
    ApiObject,
    Kind,
    Objects,
    WatchEvent,
)
from schemas.wire.ledger import ClassBrokered, TaintRule

_log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 30.0


class Projection(ABC):
    """Objects of one kind. noun: what people call it.

    problems: by name of an object, why it is not as it should be; "" where it is.
    """

    kind: Kind
    noun: str
    what_to_do = "delete it"  # about somebody else's of that name

    def __init__(self, cluster: str, objects: Objects, retry_first_s: float = RETRY_FIRST_S) -> None:
        """retry_first_s: when what failed is tried again; twice as long each time, up to half a minute."""
        self._cluster = cluster
        self._retry_first_s = retry_first_s
        self._objects = objects
        self._found: dict[str, ApiObject] = {}
        self._complete_at = 0  # resourceVersion up to which it has all that list and watch say; answers may be later
        self._conflicts: dict[str, int] = {}  # in a row, by name
        self._changed = anyio.Event()
        self.problems: dict[str, str] = {}

    @property
    def projected(self) -> int:
        """How many objects of the cluster are ours."""
        return sum(map(is_projected, self._found.values()))

    # --- what is so

    def listed(self, objects: list[ApiObject], resource_version: str) -> None:
        """The cluster has these objects and no others."""
        self._take_all(objects, resource_version)
        self._changed.set()

    def _take_all(self, objects: list[ApiObject], resource_version: str) -> None:
        self._found = {each["metadata"]["name"]: each for each in objects}
        self._complete_at = int(resource_version)

    def saw(self, event: WatchEvent) -> None:
        """An object of the cluster has changed."""
        version = int(event.resource_version)
        if version <= self._complete_at:
            return  # it was in a list of ours
        self._complete_at = version
        if event.type == "BOOKMARK":
            return
        name = event.object["metadata"]["name"]
        if name in self._found and _version_of(self._found[name]) >= version:
            return  # a write of ours came after it
        if event.type == "DELETED":
            self._found.pop(name, None)
        else:
            self._found[name] = event.object
        self._changed.set()

    def _written(self, obj: ApiObject) -> None:
        """The answer of a write. The watch may have brought this and what came of it before."""
        if _version_of(obj) > self._complete_at:
            self._found[obj["metadata"]["name"]] = obj

    @abstractmethod
    def _names(self) -> Iterable[str]:
        """Which objects are to be looked at."""

    @abstractmethod
    def _step(self, name: str, found: ApiObject | None) -> Step | None:
        """What has to be done about one; found: what the cluster has under the name."""

    # --- what is done

    async def run(self) -> None:
        """Write what differs, until cancelled."""
        failures = 0
        while True:
            delay_s = min(self._retry_first_s * 2 ** min(failures, 10), RETRY_MOST_S) if failures else math.inf
            with anyio.move_on_after(delay_s):
                await self._changed.wait()
            self._changed = anyio.Event()
            names = sorted(self._names())
            self.problems = {name: text for name, text in self.problems.items() if name in names}
            self._conflicts = {name: count for name, count in self._conflicts.items() if name in names}
            are_right = [await self._put_right(name) for name in names]
            failures = 0 if all(are_right) else failures + 1

    async def _put_right(self, name: str) -> bool:
        """Whether nothing more is to be done until something changes."""
        step = self._step(name, self._found.get(name))
        problem, is_right, conflicts = "", True, 0
        try:
            if isinstance(step, Foreign):
                problem = f"is somebody else's (no label {PROJECTED_LABEL}): {self.what_to_do}"
            elif step is not None:
                await self._write(name, step)
        except (ApiConflictError, ApiNotFoundError) as error:
            conflicts, is_right = self._conflicts.get(name, 0) + 1, False  # it has changed: the watch says how
            if conflicts > 1:
                problem = _problem(error)
                await self._list_again()
        except (*UNANSWERED, ApiInvalidError) as error:
            problem, is_right = _problem(error), False
        if problem and problem != self.problems.get(name):
            _log.warning("%s %s of %s %s", self.noun, name, self._cluster, problem)
        self.problems[name], self._conflicts[name] = problem, conflicts
        return is_right

    async def _list_again(self) -> None:
        """No event has explained a conflict: look at what there is."""
        try:
            listing = await self._objects.list_objects(self.kind)
        except UNANSWERED as error:
            _log.debug("%ss of %s are not listed: %s", self.noun, self._cluster, error)  # a write says so, too
            return
        if int(listing.resource_version) >= self._complete_at:
            self._take_all(listing.objects, listing.resource_version)

    async def _write(self, name: str, step: Create | Update | Delete) -> None:
        match step:
            case Create():
                self._written(await self._objects.create_object(self.kind, step.object))
                done = "is there now"
            case Update():
                self._written(await self._objects.update_object(self.kind, step.object))
                done = "is again as it should be"
            case Delete():
                await self._objects.delete_object(self.kind, step.object)
                if self._found.get(name) is step.object:
                    del self._found[name]
                done = "is gone, as it should be"
        _log.info("%s %s of %s %s", self.noun, name, self._cluster, done)


def _problem(error: ApiError) -> str:
    return f"cannot be written, trying again: {error}"


def _version_of(obj: ApiObject) -> int:
    return int(obj["metadata"]["resourceVersion"])


class ClassProjection(Projection):
    """The hub's brokered classes."""

    kind, noun = "class", "DeviceClass"
    what_to_do = "delete it, or `dragoman cluster join`"

    def __init__(self, cluster: str, objects: Objects, retry_first_s: float = RETRY_FIRST_S) -> None:
        super().__init__(cluster, objects, retry_first_s)
        self._wanted: dict[str, dict[str, Any] | None] = {}  # the hub's specs; None: it has none any more

    def told(self, entry: ClassBrokered) -> None:
        """The ledger says so of a class of the hub."""
        self._wanted[entry.name] = entry.spec
        self._changed.set()

    def _names(self) -> Iterable[str]:
        return self._wanted

    def _step(self, name: str, found: ApiObject | None) -> Step | None:
        return project(name, self._wanted[name], found)


class TaintRuleProjection(Projection):
    """DeviceTaintRules for NoExecute taints of devices; any other of ours is deleted."""

    kind, noun = "taintrule", "DeviceTaintRule"

    def __init__(self, cluster: str, objects: Objects, retry_first_s: float = RETRY_FIRST_S) -> None:
        super().__init__(cluster, objects, retry_first_s)
        self._wanted: dict[str, TaintRule] | None = None  # None: nobody has said yet

    def told(self, rules: Iterable[TaintRule]) -> None:
        """The ledger wants these, and no others."""
        self._wanted = {rule.name: rule for rule in rules}
        self._changed.set()

    def _names(self) -> Iterable[str]:
        if self._wanted is None:
            return ()
        return {*self._wanted, *(name for name, each in self._found.items() if is_projected(each))}

    def _step(self, name: str, found: ApiObject | None) -> Step | None:
        return project_rule(name, (self._wanted or {}).get(name), found)
