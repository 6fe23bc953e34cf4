"""Keeps the hub's brokered classes in a member as they should be there.

The agent tells it what the ledger says of them and what the cluster has; what is to be written follows from the two,
again whenever one of them changes. Nothing else of the agent waits for it.
"""

import logging
import math
from typing import Any

import anyio

from cluster_agent.mirror.classes import (
    PROJECTED_LABEL,
    CreateClass,
    DeleteClass,
    ForeignClass,
    UpdateClass,
    is_projected,
    project,
)
from cluster_agent.ports import (
    UNANSWERED,
    ApiConflictError,
    ApiInvalidError,
    ApiNotFoundError,
    ApiObject,
    Classes,
    WatchEvent,
)
from schemas.wire.ledger import ClassBrokered

_log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 30.0


class Projection:
    """problems: by name of a class, why it is not as it should be; "" where it is."""

    def __init__(self, cluster: str, classes: Classes, retry_first_s: float = RETRY_FIRST_S) -> None:
        """retry_first_s: when what failed is tried again; twice as long each time, up to half a minute."""
        self._cluster = cluster
        self._retry_first_s = retry_first_s
        self._classes = classes
        self._wanted: dict[str, dict[str, Any] | None] = {}  # the hub's specs; None: it has none any more
        self._found: dict[str, ApiObject] = {}
        self._changed = anyio.Event()
        self.problems: dict[str, str] = {}

    @property
    def projected(self) -> int:
        """How many classes of the cluster are ours."""
        return sum(map(is_projected, self._found.values()))

    # --- what is so

    def told(self, entry: ClassBrokered) -> None:
        """The ledger says so of a class of the hub."""
        self._wanted[entry.name] = entry.spec
        self._changed.set()

    def listed(self, objects: list[ApiObject]) -> None:
        """The cluster has these classes and no others."""
        self._found = {each["metadata"]["name"]: each for each in objects}
        self._changed.set()

    def saw(self, event: WatchEvent) -> None:
        """A class of the cluster has changed."""
        if event.type == "BOOKMARK":
            return
        name = event.object["metadata"]["name"]
        if event.type == "DELETED":
            self._found.pop(name, None)
        else:
            self._found[name] = event.object
        self._changed.set()

    # --- what is done

    async def run(self) -> None:
        """Write what differs, until cancelled."""
        failures = 0
        while True:
            delay_s = min(self._retry_first_s * 2 ** min(failures, 10), RETRY_MOST_S) if failures else math.inf
            with anyio.move_on_after(delay_s):
                await self._changed.wait()
            self._changed = anyio.Event()
            are_right = [await self._put_right(name) for name in sorted(self._wanted)]
            failures = 0 if all(are_right) else failures + 1

    async def _put_right(self, name: str) -> bool:
        """Whether nothing more is to be done until something changes."""
        step = project(name, self._wanted[name], self._found.get(name))
        problem, is_right = "", True
        try:
            if isinstance(step, ForeignClass):
                problem = f"is somebody else's (no label {PROJECTED_LABEL}): delete it, or `dragoman cluster join`"
            elif step is not None:
                await self._write(name, step)
        except (ApiConflictError, ApiNotFoundError):
            is_right = False  # it has changed: the watch says how
        except (*UNANSWERED, ApiInvalidError) as error:
            problem, is_right = f"cannot be written, trying again: {error}", False
        if problem and problem != self.problems.get(name):
            _log.warning("DeviceClass %s of %s %s", name, self._cluster, problem)
        self.problems[name] = problem
        return is_right

    async def _write(self, name: str, step: CreateClass | UpdateClass | DeleteClass) -> None:
        match step:
            case CreateClass():
                self._found[name] = await self._classes.create_class(step.object)
                done = "is there, as the hub has it"
            case UpdateClass():
                self._found[name] = await self._classes.update_class(step.object)
                done = "is again as the hub has it"
            case DeleteClass():
                await self._classes.delete_class(step.object)
                self._found.pop(name, None)
                done = "is gone, as at the hub"
        _log.info("DeviceClass %s of %s %s", name, self._cluster, done)
