"""How the agent talks to its cluster: a Kubernetes API server, or something that behaves as one.

Objects are plain dicts in the form of `resource.k8s.io/v1`, so that a write keeps what we do not know. The caller may
change what it receives. What is written and when is for the mirror, and so are retries and settling: an adapter
reports what came of one call and tries nothing twice.
"""

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import msgspec

Kind = Literal["slice", "class", "claim", "node", "taintrule", "pod", "namespace"]
ApiObject = dict[str, Any]


class Listing(msgspec.Struct, frozen=True):
    """All objects of a kind at one moment; of pods, only those that use claims need be among them.

    An object may lack what no part of the project reads (`metadata.managedFields`, a node's status), but for a claim,
    which has everything that a PUT has to keep. A slice's spec may be a msgspec.Raw.

    resource_version: of the moment; a watch from here misses nothing and repeats nothing.
    errors: by UID, why an object cannot be read. Such an object is in `objects` too, as it was found.
    """

    objects: list[ApiObject]
    resource_version: str
    errors: dict[str, str] = {}


class WatchEvent(msgspec.Struct, frozen=True):
    """One change of one object.

    object: as it is now; of a DELETED event as it was last; empty for a BOOKMARK.
    resource_version: where a watch goes on after this event; for a DELETED event that of the deletion.
    error: why the object cannot be read, "" if it can.
    """

    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK"]
    object: ApiObject
    resource_version: str
    error: str = ""


class Cluster(Protocol):
    """A cluster as its agent sees it.

    Every call may raise ApiUncertainError where the cluster cannot be reached, ApiBusyError and ApiDeniedError.
    """

    async def list_objects(self, kind: Kind) -> Listing:
        """List all objects of a kind, consistently: no write acknowledged before the call is missing.

        What may be absent from a cluster of its age, such as taint rules, is empty there; anything else has to be
        served.
        """
        ...

    def watch(self, kind: Kind, resource_version: str) -> AsyncIterator[WatchEvent]:
        """Follow a kind from just after `resource_version`, each change once and in order, until the caller stops.

        An open watch is no sign of life: it may stay silent while its server is shutting down.
        Raises: ExpiredError when changes may have been missed; list again, see RestoredError.
        """
        ...

    async def get_claim(self, namespace: str, name: str) -> ApiObject | None:
        """Read a claim, consistently: as it was at some moment after the call began.

        Returns: None if the API server says of this claim that there is none.
        """
        ...

    async def get_pod(self, namespace: str, name: str) -> ApiObject | None:
        """Read a pod, consistently, as get_claim. None if there is no such pod, or it uses no claims."""
        ...

    async def update_claim(self, obj: ApiObject) -> ApiObject:
        """PUT the claim itself: labels, annotations, finalizers. Its status is not written.

        Returns: the claim as it is stored; its resourceVersion is the same if nothing else had to change either. If the
        last finalizer of a deleted claim was taken away, the claim as it was last.
        Raises: as update_claim_status.
        """
        ...

    async def update_claim_status(self, obj: ApiObject) -> ApiObject:
        """PUT the claim's status, and nothing else of it.

        Raises: ValueError if `obj` lacks its UID or resourceVersion, without which a PUT would overwrite, or clear, an
        allocation that it has not seen; ApiConflictError, ApiInvalidError, ApiNotFoundError when nothing was written;
        ApiUncertainError when it may have been, or may still be.
        """
        ...


class Objects(Protocol):
    """Objects of a cluster, without namespace, that are kept there as the broker says. Errors as those of Cluster."""

    async def list_objects(self, kind: Kind) -> Listing:
        """See Cluster."""
        ...

    async def create_object(self, kind: Kind, obj: ApiObject) -> ApiObject:
        """POST it. Returns: the object as it is stored."""
        ...

    async def update_object(self, kind: Kind, obj: ApiObject) -> ApiObject:
        """PUT it, guarded by its uid and resourceVersion. Returns: the object as it is stored."""
        ...

    async def delete_object(self, kind: Kind, obj: ApiObject) -> None:
        """Delete it if it still is what was read: by its uid and resourceVersion."""
        ...


class EventWriter(Protocol):
    """Writes Events of events.k8s.io/v1. Errors as those of Cluster."""

    async def create_event(self, obj: ApiObject) -> None:
        """POST it."""
        ...

    async def patch_event(self, namespace: str, name: str, patch: ApiObject) -> None:
        """Merge the patch into it."""
        ...


class ApiError(Exception):
    """A call that did not do what was asked. kind, namespace, name: of the object, as far as there is one."""

    def __init__(self, message: str, *, kind: str = "", namespace: str = "", name: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.kind = kind
        self.namespace = namespace
        self.name = name

    def __str__(self) -> str:
        where = "/".join(part for part in (self.namespace, self.name) if part)
        subject = " ".join(part for part in (self.kind, where) if part)
        return f"{subject}: {self.message}" if subject else self.message


class ApiConflictError(ApiError):
    """409: the object changed since it was read, is another one of that name, or exists already. Read it again."""


class ApiNotFoundError(ApiError):
    """404: there is no such object, says the API server by its name."""


class ApiInvalidError(ApiError):
    """422: the object may not become what was written.

    field, reason: from the first cause, such as "status.allocation" and "FieldValueInvalid"; decide by them, never by
    the message, which changes from release to release.
    """

    def __init__(
        self, message: str, *, field: str, reason: str, kind: str = "", namespace: str = "", name: str = ""
    ) -> None:
        super().__init__(message, kind=kind, namespace=namespace, name=name)
        self.field = field
        self.reason = reason

    def __str__(self) -> str:
        return f"{super().__str__()} ({self.field}, {self.reason})"


class ApiUncertainError(ApiError):
    """No answer: a write may have happened or not, and may still land. Only a later write of ours excludes that."""


class ApiBusyError(ApiError):
    """429: the API server asks us to come again in `retry_after_s`. Nothing was written."""

    def __init__(
        self, message: str, *, retry_after_s: float, kind: str = "", namespace: str = "", name: str = ""
    ) -> None:
        super().__init__(message, kind=kind, namespace=namespace, name=name)
        self.retry_after_s = retry_after_s


class ApiDeniedError(ApiError):
    """401, 403: who we are does not let us, or is not known. The message says who, what, and on what. Nothing was
    written."""


class ExpiredError(ApiError):
    """410: the history from this resourceVersion on is gone. List again and watch from there."""


class RestoredError(ExpiredError):
    """The cluster has not come to this resourceVersion (again): it was restored from a backup. What it lists now is
    what there is, whatever its resourceVersion."""


# Nothing is known to have been done, and the same call may be made again later.
UNANSWERED = (ApiUncertainError, ApiBusyError, ApiDeniedError)
