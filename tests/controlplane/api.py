"""The tests' own client of an API server, independent of the agent's: objects are plain dicts, errors are statuses."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import aiohttp
import anyio
import msgspec
import yaml

Object = dict[str, Any]
T = TypeVar("T")

POLL_S = 0.02
DEADLINE_S = 30.0  # for one condition; reached only when something is wrong
TIMEOUT = aiohttp.ClientTimeout(total=60)
# No limit for a watch: it ends when its user leaves it.
WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None)


class Resource(NamedTuple):
    """Where objects of a kind are."""

    api_version: str
    plural: str
    is_namespaced: bool


RESOURCES = {
    "ConfigMap": Resource("v1", "configmaps", True),
    "Event": Resource("v1", "events", True),
    "Namespace": Resource("v1", "namespaces", False),
    "Node": Resource("v1", "nodes", False),
    "Pod": Resource("v1", "pods", True),
    "Secret": Resource("v1", "secrets", True),
    "Service": Resource("v1", "services", True),
    "ServiceAccount": Resource("v1", "serviceaccounts", True),
    "Deployment": Resource("apps/v1", "deployments", True),
    "ReplicaSet": Resource("apps/v1", "replicasets", True),
    "Job": Resource("batch/v1", "jobs", True),
    "NetworkPolicy": Resource("networking.k8s.io/v1", "networkpolicies", True),
    "PodDisruptionBudget": Resource("policy/v1", "poddisruptionbudgets", True),
    "PersistentVolumeClaim": Resource("v1", "persistentvolumeclaims", True),
    "Lease": Resource("coordination.k8s.io/v1", "leases", True),
    "ClusterRole": Resource("rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": Resource("rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "Role": Resource("rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": Resource("rbac.authorization.k8s.io/v1", "rolebindings", True),
    "ValidatingAdmissionPolicy": Resource("admissionregistration.k8s.io/v1", "validatingadmissionpolicies", False),
    "ValidatingAdmissionPolicyBinding": Resource(
        "admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings", False
    ),
    "DeviceClass": Resource("resource.k8s.io/v1", "deviceclasses", False),
    "DeviceTaintRule": Resource("resource.k8s.io/v1", "devicetaintrules", False),
    "ResourceClaim": Resource("resource.k8s.io/v1", "resourceclaims", True),
    "ResourceClaimTemplate": Resource("resource.k8s.io/v1", "resourceclaimtemplates", True),
    "ResourceSlice": Resource("resource.k8s.io/v1", "resourceslices", False),
}


class Cause(NamedTuple):
    """One reason of a refusal, such as ("FieldValueInvalid", "status.allocation", ...)."""

    reason: str
    field: str
    message: str


class StatusError(Exception):
    """The server answered with a status that is no success: 404, 409, 422, ..."""

    def __init__(self, call: str, code: int, status: Object) -> None:
        self.code = code
        self.reason = str(status.get("reason", ""))
        self.message = str(status.get("message", ""))
        details = status.get("details") or {}
        self.causes = [
            Cause(cause.get("reason", ""), cause.get("field", ""), cause.get("message", ""))
            for cause in details.get("causes", [])
        ]
        super().__init__(f"{call}: {code} {self.reason}: {self.message}")


class Api:
    """Calls to one server as one user; made by `connect`."""

    def __init__(self, server: str, session: aiohttp.ClientSession) -> None:
        self.server = server
        self._session = session

    # --- objects

    async def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """Read an object, consistently. Raises: StatusError."""
        return await self.call("GET", path_of(kind, namespace, name))

    async def find(self, kind: str, name: str, namespace: str = "") -> Object | None:
        """As get; None if there is no such object."""
        try:
            return await self.get(kind, name, namespace)
        except StatusError as error:
            if error.code == 404:
                return None
            raise

    async def list_all(self, kind: str, namespace: str = "", **query: str) -> list[Object]:
        """All objects of a kind, of one namespace or of all."""
        answer = await self.call("GET", path_of(kind, namespace), query=query)
        # In a list the server leaves out what all of them share.
        return [{"apiVersion": answer["apiVersion"], "kind": kind, **item} for item in answer["items"]]

    async def create(self, obj: Object) -> Object:
        """POST it. Raises: StatusError."""
        metadata = obj["metadata"]
        return await self.call("POST", path_of(obj["kind"], metadata.get("namespace", ""), "", obj["apiVersion"]), obj)

    async def put(self, obj: Object, subresource: str = "") -> Object:
        """PUT it, guarded by its resourceVersion and uid as far as it has them. Raises: StatusError."""
        metadata = obj["metadata"]
        path = path_of(obj["kind"], metadata.get("namespace", ""), metadata["name"], obj["apiVersion"])
        return await self.call("PUT", f"{path}/{subresource}" if subresource else path, obj)

    async def put_status(self, obj: Object) -> Object:
        """PUT its status, as `put`."""
        return await self.put(obj, "status")

    async def merge(self, kind: str, name: str, namespace: str, patch: Object, subresource: str = "") -> Object:
        """A JSON merge patch."""
        path = path_of(kind, namespace, name) + (f"/{subresource}" if subresource else "")
        return await self.call("PATCH", path, patch, content_type="application/merge-patch+json")

    async def delete(self, kind: str, name: str, namespace: str = "", **options: Any) -> None:
        """Delete it; gone already is well. options: of DeleteOptions, such as gracePeriodSeconds=0."""
        try:
            await self.call("DELETE", path_of(kind, namespace, name), options or None)
        except StatusError as error:
            if error.code != 404:
                raise

    async def apply(
        self, manifest: str | Path | Object | Iterable[Object], namespace: str = "", dry_run: bool = False
    ) -> list[Object]:
        """Apply manifests on the server (server-side apply), in their order.

        manifest: YAML text, a file of it, or objects. namespace: for objects that have none.
        Raises: StatusError; unknown fields are one.
        """
        applied = []
        for obj in _objects(manifest):
            metadata = {"namespace": namespace, **obj["metadata"]} if namespace else obj["metadata"]
            if not RESOURCES[obj["kind"]].is_namespaced:
                metadata.pop("namespace", None)
            path = path_of(obj["kind"], metadata.get("namespace", ""), metadata["name"], obj["apiVersion"])
            query = {"fieldManager": "tests", "force": "true", "fieldValidation": "Strict"}
            query |= {"dryRun": "All"} if dry_run else {}
            body = {**obj, "metadata": metadata}
            applied.append(await self.call("PATCH", path, body, query, "application/apply-patch+yaml"))
        return applied

    @asynccontextmanager
    async def watch(
        self, kind: str, namespace: str = "", resource_version: str = "", **query: str
    ) -> AsyncIterator[AsyncIterator[Object]]:
        """Follow a kind: the events as the server sends them, bookmarks and errors too, until its stream ends.

        resource_version: from just after it; "" begins with an ADDED event for each object that there is.
        """
        query = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": resource_version, **query}
        url = self.server + path_of(kind, namespace)
        async with self._session.get(url, params=query, timeout=WATCH_TIMEOUT) as response:
            if response.status != 200:
                raise StatusError(f"watch {kind}", response.status, _decoded(await response.read()))
            yield _events(response)

    # --- waiting

    async def until(
        self,
        kind: str,
        name: str,
        namespace: str,
        condition: Callable[[Object], object],
        deadline_s: float = DEADLINE_S,
    ) -> Object:
        """The object as soon as it is there and `condition` holds for it."""
        last: Object | None = None

        async def holds() -> Object | None:
            nonlocal last
            last = await self.find(kind, name, namespace)
            return last if last is not None and condition(last) else None

        return await wait_for(holds, deadline_s, lambda: f"{kind} {namespace}/{name} is {last}")

    async def until_gone(self, kind: str, name: str, namespace: str = "", deadline_s: float = DEADLINE_S) -> None:
        """Return when there is no such object."""

        async def is_gone() -> bool:
            return await self.find(kind, name, namespace) is None

        await wait_for(is_gone, deadline_s, lambda: f"{kind} {namespace}/{name} is still there")

    # --- anything

    async def call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """One call. Raises: StatusError; aiohttp.ClientError where no answer came."""
        async with self._session.request(
            method,
            self.server + path,
            params=query,
            data=msgspec.json.encode(body) if body is not None else None,
            headers={"Content-Type": content_type, "Accept": "application/json"},
            timeout=TIMEOUT,
        ) as response:
            answer = _decoded(await response.read())
            if not response.ok:
                raise StatusError(f"{method} {path}", response.status, answer)
            return answer

    async def text(self, path: str) -> str:
        """What is no JSON, such as /metrics and /readyz. Raises: StatusError."""
        async with self._session.get(self.server + path, timeout=TIMEOUT) as response:
            if not response.ok:
                raise StatusError(f"GET {path}", response.status, {"message": await response.text()})
            return await response.text()


@asynccontextmanager
async def connect(server: str, ca: Path | None, token: str) -> AsyncIterator[Api]:
    """A client as the user with this token, which trusts this CA and no other. ca: None for a server without TLS."""
    tls: ssl.SSLContext | bool = ssl.create_default_context(cafile=ca) if ca else True
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), headers=headers) as session:
        yield Api(server, session)


async def wait_for(
    condition: Callable[[], Awaitable[T | None]],
    deadline_s: float = DEADLINE_S,
    otherwise: Callable[[], str] = lambda: "the condition does not hold",
) -> T:
    """What `condition` returns as soon as that is true.

    otherwise: what to say when it is not within the deadline, which fails the test.
    """
    with anyio.move_on_after(deadline_s):
        while True:
            if found := await condition():
                return found
            await anyio.sleep(POLL_S)
    raise AssertionError(f"after {deadline_s:g} s: {otherwise()}")


def path_of(kind: str, namespace: str = "", name: str = "", api_version: str = "") -> str:
    """The path of an object, or of all of a kind; without api_version in the one of RESOURCES."""
    resource = RESOURCES[kind]
    version = api_version or resource.api_version
    parts = ["", "apis" if "/" in version else "api", version]
    if resource.is_namespaced and namespace:
        parts += ["namespaces", namespace]
    return "/".join([*parts, resource.plural, *([name] if name else [])])


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Object]:
    unfinished = b""
    async for part in response.content.iter_any():  # not by line: aiohttp's has a limit, an event has none
        *lines, unfinished = (unfinished + part).split(b"\n")
        for line in lines:
            yield msgspec.json.decode(line)


def _objects(manifest: str | Path | Object | Iterable[Object]) -> list[Object]:
    if isinstance(manifest, Path):
        manifest = manifest.read_text()
    if isinstance(manifest, str):
        return [document for document in yaml.safe_load_all(manifest) if document]
    if isinstance(manifest, dict):
        return [manifest]
    return list(manifest)


def _decoded(body: bytes) -> Object:
    try:
        decoded = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return {"message": body.decode(errors="replace")}
    return decoded if isinstance(decoded, dict) else {"message": str(decoded)}
