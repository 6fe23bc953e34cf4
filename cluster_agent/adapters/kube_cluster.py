"""The agent's cluster port over a Kubernetes API server.

Lists come in pages, consistently (never `resourceVersion=0`); a watch is resumed where it was when its server ends it,
and is an error when it is cut. The caller resumes it then, or lists again; retries and settling are not in here.
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from random import SystemRandom
from typing import Annotated, Literal, TypeVar

import aiohttp
import anyio
import msgspec

from cluster_agent.adapters.kube_connection import KubeConnection, Where, error_of
from cluster_agent.adapters.kube_objects import API_KINDS, decoded, read_claim, read_object
from cluster_agent.errors import ClusterAccessError
from cluster_agent.ports import (
    ApiConflictError,
    ApiInvalidError,
    ApiNotFoundError,
    ApiObject,
    ApiUncertainError,
    ExpiredError,
    Kind,
    Listing,
    RestoredError,
    WatchEvent,
)
from schemas.resource.untyped import as_dict
from schemas.resource.versions import GROUP, claim_as

WATCH_S = (240, 300)  # an API server ends a watch after so long; at random, so that they do not all end together
SILENT_S = 75.0  # bookmarks come each minute: a watch that brings nothing for longer is dead, or its server is ending
AT_ONCE_S = 1.0  # a watch that ends within this time and brought nothing is no watch
LINE_MAX = 64 << 20
NOT_SERVED_S = 60.0  # how often an API that was not served is looked for
LISTS_MOST = 3
EVENT_ANSWER_S = 5.0  # nobody waits for an Event
MAY_BE_ABSENT: frozenset[Kind] = frozenset({"taintrule"})  # from a cluster that has DRA

_random = SystemRandom()
_T = TypeVar("_T")


_Version = Annotated[str, msgspec.Meta(pattern="^[0-9]+$")]


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: _Version
    continue_: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _EventMetadata(msgspec.Struct, rename="camel"):
    resource_version: _Version = "0"


class _EventObject(msgspec.Struct):
    """What is needed of the object of any event; code: of an ERROR's Status."""

    metadata: _EventMetadata = msgspec.field(default_factory=_EventMetadata)
    code: int = 0


class _GroupVersion(msgspec.Struct, rename="camel"):
    group_version: str


class _Group(msgspec.Struct):
    versions: list[_GroupVersion]


class _Resource(msgspec.Struct):
    name: str


class _Resources(msgspec.Struct):
    resources: list[_Resource]


_event = msgspec.json.Decoder(_Event)
_event_object = msgspec.json.Decoder(_EventObject)


class KubernetesCluster:
    """The agent's cluster port over an API server."""

    def __init__(
        self, connection: KubeConnection, *, silent_s: float = SILENT_S, watch_s: tuple[int, int] = WATCH_S
    ) -> None:
        """silent_s: after so long without a byte a watch is opened anew. watch_s: how long one is asked for."""
        self._connection = connection
        self._silent_s = silent_s
        self._watch_s = watch_s
        self._served: dict[str, set[str]] | None = None  # resources of our API group by version

    # --- which versions there are

    async def versions(self) -> dict[Kind, str]:
        """In which API version each kind is used; kinds that are not served are left out.

        Raises: ClusterAccessError if there is no DRA at all; and as every call.
        """
        found = {}
        for kind in API_KINDS:
            api_version = await self._version_of(kind)
            if api_version is not None:
                found[kind] = api_version
        if "claim" not in found:
            wanted = ", ".join(API_KINDS["claim"].versions)
            raise ClusterAccessError(
                f"{self._connection.server} serves none of {wanted}: Dynamic Resource Allocation needs Kubernetes 1.32 "
                "or later, and before 1.34 a --runtime-config of the API server"
            )
        return found

    async def _version_of(self, kind: Kind) -> str | None:
        api_kind = API_KINDS[kind]
        if api_kind.versions == ("v1",):
            return "v1"
        if self._served is None:
            with self._reading(Where(GROUP)):
                self._served = await self._discover()
        served = self._served
        return next((each for each in api_kind.versions if api_kind.resource in served.get(each, ())), None)

    async def _discover(self) -> dict[str, set[str]]:
        where = Where(GROUP)
        try:
            group = _read(await self._connection.call("GET", f"/apis/{GROUP}", where=where), _Group, where)
        except ApiNotFoundError:
            return {}
        except ApiUncertainError as error:
            if error.message.startswith("status 404:"):  # of the API server's router, which answers in plain text
                return {}
            raise
        served = {}
        for each in group.versions:
            answer = await self._connection.call("GET", f"/apis/{each.group_version}", where=where)
            served[each.group_version] = {one.name for one in _read(answer, _Resources, where).resources}
        return served

    async def _path(self, kind: Kind) -> tuple[str, str] | None:
        """The version and the path of a kind; None where a cluster that has all the rest does not have it.

        Raises: ApiUncertainError if it is not served and has to be. A router's 404, or one of several API servers
        without DRA, does not say that there are none.
        """
        found = await self._path_if_served(kind)
        if found is None and not (kind in MAY_BE_ABSENT and self._served):
            raise self._not_served(kind, Where(kind))
        return found

    async def _path_if_served(self, kind: Kind) -> tuple[str, str] | None:
        api_version = await self._version_of(kind)
        if api_version is None:
            return None
        prefix = "/api/" if "/" not in api_version else "/apis/"
        return api_version, f"{prefix}{api_version}/{API_KINDS[kind].resource}"

    def _not_served(self, kind: Kind, where: Where) -> ApiUncertainError:
        self._served = None
        resource = API_KINDS[kind].resource
        return ApiUncertainError(f"{self._connection.server} serves no {resource} now", **msgspec.structs.asdict(where))

    @contextmanager
    def _reading(self, where: Where, *, may_expire: bool = False) -> Iterator[None]:
        """A read. Who refuses it is not the API server as we know it; after an upgrade another version may be there.

        Raises: ApiUncertainError in place of errors that mean nothing for a read.
        """
        try:
            yield
        except (ApiConflictError, ApiInvalidError, ApiNotFoundError, ExpiredError) as error:
            if may_expire and isinstance(error, ExpiredError):
                raise
            self._served = None
            fields = msgspec.structs.asdict(where)
            raise ApiUncertainError(f"the read was refused: {error.message}", **fields) from error
        except ApiUncertainError:
            self._served = None
            raise

    # --- lists

    async def list_objects(self, kind: Kind) -> Listing:
        """See Cluster."""
        found = await self._path(kind)
        if found is None:
            return Listing([], "0")
        api_version, path = found
        page = API_KINDS[kind].page
        for _ in range(LISTS_MOST):
            try:
                with self._reading(Where(kind), may_expire=True):
                    return await self._list(kind, api_version, path, page)
            except ExpiredError:
                page *= 10  # the rest of it was compacted away before we asked for it
        raise ApiUncertainError(f"its list has expired {LISTS_MOST} times while it was read", kind=kind)

    async def _list(self, kind: Kind, api_version: str, path: str, page: int) -> Listing:
        objects: list[ApiObject] = []
        errors: dict[str, str] = {}
        where = Where(kind)
        token = ""
        while True:
            query = [("limit", str(page))] + ([("continue", token)] if token else [])
            found = _read(await self._connection.call("GET", path, query, where=where), _Page, where)
            for item in found.items or ():
                read = _object(kind, api_version, item, where)
                if read is not None:
                    objects.append(read[0])
                    if read[1]:
                        errors[str(read[0]["metadata"].get("uid", ""))] = read[1]
            token = found.metadata.continue_
            if not token:
                return Listing(objects, found.metadata.resource_version, errors)

    # --- watches

    async def watch(self, kind: Kind, resource_version: str) -> AsyncIterator[WatchEvent]:
        """See Cluster."""
        found = await self._path(kind)
        while found is None:
            await anyio.sleep(NOT_SERVED_S)
            self._served = None
            found = await self._path(kind)
            if found is not None:
                raise ExpiredError(f"is served now, as {found[0]}", kind=kind)
        api_version, path = found
        seen: dict[str, ApiObject] = {}
        while True:
            began, position = time.monotonic(), resource_version
            with suppress(aiohttp.SocketTimeoutError), self._reading(Where(kind), may_expire=True):
                async with aclosing(self._stream(kind, api_version, path, resource_version)) as events:
                    async for event in events:
                        if int(event.resource_version) < int(resource_version) + (event.type != "BOOKMARK"):
                            continue  # whoever stands between has sent it twice
                        resource_version = event.resource_version
                        yield _quiet(kind, event, seen)
            if resource_version == position:
                await self._check_history(kind, path, resource_version)
                if time.monotonic() - began < AT_ONCE_S:
                    raise ApiUncertainError("the API server ends the watch at once", kind=kind)

    async def _stream(
        self, kind: Kind, api_version: str, path: str, resource_version: str
    ) -> AsyncGenerator[WatchEvent, None]:
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", resource_version),
            ("timeoutSeconds", str(_random.randint(*self._watch_s))),
        ]
        async with self._connection.stream(path, query, where=Where(kind), silent_s=self._silent_s) as content:
            rest = b""  # the beginning of a line; at the end of the stream it is nothing: the event comes again
            async for chunk in content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > LINE_MAX:
                    raise ApiUncertainError(f"an event of more than {LINE_MAX} bytes", kind=kind)
                for line in lines:
                    if line.strip():
                        yield _watch_event(kind, api_version, line)

    async def _check_history(self, kind: Kind, path: str, resource_version: str) -> None:
        """A watch from a resourceVersion that the cluster has not reached yet, restored from a backup, stays silent.

        Raises: RestoredError.
        """
        where = Where(kind)
        with self._reading(where):
            found = _read(await self._connection.call("GET", path, [("limit", "1")], where=where), _Page, where)
        now = found.metadata.resource_version
        if int(now) < int(resource_version):
            raise RestoredError(
                f"the cluster is at {now}, before {resource_version}: restored from a backup", kind=kind
            )

    # --- claims

    async def get_claim(self, namespace: str, name: str) -> ApiObject | None:
        """See Cluster."""
        where = Where("claim", namespace, name)
        api_version, path = await self._claim_path(where)
        with self._reading(where):
            try:
                return _claim(api_version, await self._connection.call("GET", path, where=where), where)
            except ApiNotFoundError:
                return None

    async def get_pod(self, namespace: str, name: str) -> ApiObject | None:
        """See Cluster."""
        where = Where("pod", namespace, name)
        query = [("fieldSelector", f"metadata.name={name}")]  # as a list: to get one would be a further right
        with self._reading(where):
            answer = await self._connection.call("GET", f"/api/v1/namespaces/{namespace}/pods", query, where=where)
            found = [_object("pod", "v1", item, where) for item in _read(answer, _Page, where).items or ()]
        return next((each[0] for each in found if each is not None), None)

    async def update_claim(self, obj: ApiObject) -> ApiObject:
        """See Cluster."""
        return await self._put(obj, "")

    async def update_claim_status(self, obj: ApiObject) -> ApiObject:
        """See Cluster."""
        return await self._put(obj, "/status")

    async def _put(self, obj: ApiObject, subresource: str) -> ApiObject:
        metadata = as_dict(obj.get("metadata"))
        if not metadata.get("uid") or not metadata.get("resourceVersion"):
            raise ValueError("a claim is written only with the uid and resourceVersion that it was read with")
        where = Where("claim", str(metadata.get("namespace", "")), str(metadata.get("name", "")))
        api_version, path = await self._claim_path(where)
        body = claim_as(api_version, obj)
        return _claim(
            api_version, await self._connection.call("PUT", path + subresource, body=body, where=where), where
        )

    # --- objects that are kept as the broker says

    async def create_object(self, kind: Kind, obj: ApiObject) -> ApiObject:
        """See Objects."""
        return await self._write_object("POST", kind, obj)

    async def update_object(self, kind: Kind, obj: ApiObject) -> ApiObject:
        """See Objects."""
        return await self._write_object("PUT", kind, obj)

    async def delete_object(self, kind: Kind, obj: ApiObject) -> None:
        """See Objects."""
        metadata = obj["metadata"]
        guard = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        where = Where(kind, "", metadata["name"])
        _, path = await self._served_path(kind, where)
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": guard}
        await self._connection.call("DELETE", f"{path}/{where.name}", body=body, where=where)

    async def _write_object(self, method: str, kind: Kind, obj: ApiObject) -> ApiObject:
        where = Where(kind, "", obj["metadata"]["name"])
        api_version, path = await self._served_path(kind, where)
        path = path if method == "POST" else f"{path}/{where.name}"
        answer = await self._connection.call(method, path, body={**obj, "apiVersion": api_version}, where=where)
        try:
            read = read_object(kind, api_version, answer)
        except msgspec.DecodeError as error:
            raise _not_understood(error, where) from error
        assert read is not None, "only pods are left out"
        return read[0]

    async def _served_path(self, kind: Kind, where: Where) -> tuple[str, str]:
        found = await self._path_if_served(kind)
        if found is None:
            raise self._not_served(kind, where)
        return found

    # --- Events

    async def create_event(self, obj: ApiObject) -> None:
        """See EventWriter."""
        metadata = obj["metadata"]
        where = Where("event", metadata["namespace"], metadata["name"])
        await self._connection.call("POST", _events_path(where), body=obj, where=where, answer_s=EVENT_ANSWER_S)

    async def patch_event(self, namespace: str, name: str, patch: ApiObject) -> None:
        """See EventWriter."""
        where = Where("event", namespace, name)
        path = f"{_events_path(where)}/{name}"
        await self._connection.call("PATCH", path, body=patch, where=where, answer_s=EVENT_ANSWER_S)

    async def _claim_path(self, where: Where) -> tuple[str, str]:
        api_version = await self._version_of("claim")
        if api_version is None:
            raise self._not_served("claim", where)
        return api_version, f"/apis/{api_version}/namespaces/{where.namespace}/resourceclaims/{where.name}"


def _events_path(where: Where) -> str:
    return f"/apis/events.k8s.io/v1/namespaces/{where.namespace}/events"


def _watch_event(kind: Kind, api_version: str, line: bytes) -> WatchEvent:
    """Raises: ApiError for an ERROR event, ApiUncertainError for what is no event."""
    try:
        event = decoded(_event, line)
        said = decoded(_event_object, event.object)
        if event.type == "ERROR":
            raise error_of(said.code, event.object, Where(kind))
        read = read_object(kind, api_version, event.object) if event.type != "BOOKMARK" else None
    except msgspec.DecodeError as error:
        raise ApiUncertainError(f"the watch brought something that is no event: {error}", kind=kind) from error
    if read is None or event.type == "BOOKMARK":
        return WatchEvent("BOOKMARK", {}, said.metadata.resource_version)
    return WatchEvent(event.type, read[0], said.metadata.resource_version, read[1])


def _quiet(kind: Kind, event: WatchEvent, seen: dict[str, ApiObject]) -> WatchEvent:
    """The event; of a node of which nothing has changed that we read, only that time has passed.

    Its kubelet writes a node's status every few minutes, and each would be published.
    """
    if kind != "node" or event.type == "BOOKMARK":
        return event
    name = str(event.object["metadata"].get("name", ""))
    if event.type == "DELETED":
        seen.pop(name, None)
        return event
    metadata = {key: value for key, value in event.object["metadata"].items() if key != "resourceVersion"}
    now = {**event.object, "metadata": metadata}
    if seen.get(name) == now:
        return WatchEvent("BOOKMARK", {}, event.resource_version)
    seen[name] = now
    return event


def _claim(api_version: str, data: bytes, where: Where) -> ApiObject:
    try:
        claim = read_claim(api_version, data)
        _check_version(claim)
    except msgspec.DecodeError as error:
        raise _not_understood(error, where) from error
    return claim


def _object(kind: Kind, api_version: str, data: bytes | msgspec.Raw, where: Where) -> tuple[ApiObject, str] | None:
    try:
        read = read_object(kind, api_version, data)
        if read is not None:
            _check_version(read[0])
    except msgspec.DecodeError as error:
        raise _not_understood(error, where) from error
    return read


def _check_version(obj: ApiObject) -> None:
    """The agent counts on it. Raises: msgspec.DecodeError."""
    msgspec.convert(obj["metadata"].get("resourceVersion"), _Version)


def _read(data: bytes, type_: type[_T], where: Where) -> _T:
    try:
        return decoded(msgspec.json.Decoder(type_), data)
    except msgspec.DecodeError as error:
        raise _not_understood(error, where) from error


def _not_understood(error: msgspec.DecodeError, where: Where) -> ApiUncertainError:
    """Somebody answered; if it was a write, nobody knows whether the API server has seen it."""
    return ApiUncertainError(f"the answer is none of an API server: {error}", **msgspec.structs.asdict(where))
