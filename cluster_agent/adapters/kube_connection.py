"""HTTP to one API server, as one identity: where it is, who we are there, and what its refusals mean.

kubernetes-asyncio reads kubeconfigs and service account files, runs credential plugins and makes the TLS session; its
typed clients are not used (they take nine seconds for a list that `kube_objects` reads in a quarter of one).
"""

import logging
import math
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
import msgspec
import yaml
from kubernetes_asyncio.client import Configuration
from kubernetes_asyncio.client.rest import RESTClientObject
from kubernetes_asyncio.config import ConfigException, load_incluster_config, load_kube_config

from cluster_agent.errors import ClusterAccessError
from cluster_agent.ports import (
    ApiBusyError,
    ApiConflictError,
    ApiDeniedError,
    ApiError,
    ApiInvalidError,
    ApiNotFoundError,
    ApiUncertainError,
    ExpiredError,
)
from schemas.errors import UNREADABLE

_log = logging.getLogger(__name__)

CONNECT_S = 5.0
ANSWER_S = 30.0  # the whole answer of one call; a page of a list takes part of a second
PLUGIN_S = 60.0  # a credential plugin may ask an identity provider far away
RENEW_EARLY = timedelta(seconds=60)
RENEW_AGAIN_S = 5.0  # a credential plugin that fails, or whose token is refused, is not run for each call
BUSY_S = 1.0  # where a 429 does not say how long

Query = Sequence[tuple[str, str]]
_NOTHING_WRITTEN = frozenset({400, 405, 406, 413, 415, 422})


class Credentials(msgspec.Struct, frozen=True):
    """Where to find the API server and who we are.

    kubeconfig: files as in $KUBECONFIG, "" for that, or else ~/.kube/config. context: "" for the current one.
    """

    kubeconfig: str = ""
    context: str = ""
    in_cluster: bool = False

    def __str__(self) -> str:
        if self.in_cluster:
            return "the service account of this pod"
        context = f", context {self.context}" if self.context else ""
        return f"kubeconfig {self.paths}{context}"

    @property
    def paths(self) -> str:
        """The kubeconfig's files, as they are named in $KUBECONFIG."""
        return self.kubeconfig or os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())

    @property
    def exist(self) -> bool:
        """Whether there is any of the kubeconfig's files."""
        return any(Path(path).expanduser().exists() for path in self.paths.split(os.pathsep) if path)


class Where(msgspec.Struct, frozen=True):
    """What a call is about, for its errors."""

    kind: str = ""
    namespace: str = ""
    name: str = ""


class KubeConnection:
    """Calls to one API server. Made by `connect_to_cluster`."""

    def __init__(self, credentials: Credentials, renew_again_s: float = RENEW_AGAIN_S) -> None:
        """renew_again_s: the least time between two attempts to renew the credentials."""
        self._credentials = credentials
        self._renew_again_s = renew_again_s
        self._renewed_at = -math.inf
        self._renewing = anyio.Lock()
        self._configuration = Configuration()
        self._rest: RESTClientObject | None = None
        self._endpoint: tuple[object, ...] = ()  # what the session was made for
        self._expires: datetime | None = None
        self._renewals = 0
        self._trust_is_stale = False  # the server's certificate was not believed: the CA may be another by now

    @property
    def server(self) -> str:
        """The API server's URL."""
        return str(self._configuration.host)

    async def open(self) -> None:
        """Read the credentials. Raises: ClusterAccessError."""
        await self._load()

    async def close(self) -> None:
        """Cut what is under way."""
        if self._rest is not None:
            await self._rest.close()

    async def call(
        self,
        method: str,
        path: str,
        query: Query = (),
        body: Any = None,
        *,
        where: Where,
        answer_s: float = ANSWER_S,
    ) -> bytes:
        """One call; its answer. Nothing is tried twice, but for a call that was refused because a token had expired.

        body: encoded as JSON; of a PATCH, what is merged into the object.
        Raises: ApiError, the one that the status stands for.
        """
        data = None if body is None else msgspec.json.encode(body)
        timeout = aiohttp.ClientTimeout(total=answer_s, connect=CONNECT_S)
        try:
            async with self._answered(method, path, query, data, where, timeout) as response:
                return await response.read()
        except ExpiredError as error:
            if method == "GET":
                raise
            raise _uncertain(f"status 410: {error.message}", where) from error

    @asynccontextmanager
    async def stream(
        self, path: str, query: Query, *, where: Where, silent_s: float
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """A GET whose answer comes bit by bit.

        silent_s: nothing came for so long: TimeoutError.
        Raises: ApiError.
        """
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=silent_s)
        async with self._answered("GET", path, query, None, where, timeout) as response:
            yield response.content

    @asynccontextmanager
    async def _answered(
        self, method: str, path: str, query: Query, data: bytes | None, where: Where, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        renewals = await self._ready()
        try:
            async with await self._send(method, path, query, data, timeout) as response:
                if response.status != 401:
                    await self._check(response, where)
                    yield response
                    return
                await self._check_renewed(response, renewals, where)
            async with await self._send(method, path, query, data, timeout) as response:
                await self._check(response, where)
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            self._trust_is_stale = True
            raise _uncertain(f"{self.server} is not who it says: {error}", where) from error
        except aiohttp.SocketTimeoutError:
            raise  # of a stream, for whom silence is nothing special
        except (aiohttp.ClientError, OSError) as error:
            raise _uncertain(f"{self.server} gave no answer: {error or type(error).__name__}", where) from error

    async def _send(
        self, method: str, path: str, query: Query, data: bytes | None, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        assert self._rest is not None, "the connection is not open"
        headers = {"Accept": "application/json", "User-Agent": "dragoman-agent"}
        if data is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        if token:
            headers["Authorization"] = token.strip()
        options: dict[str, Any] = {"headers": headers, "data": data, "timeout": timeout}
        if self._rest.proxy:
            options["proxy"] = self._rest.proxy
        if self._rest.server_hostname:
            options["server_hostname"] = self._rest.server_hostname
        url = f"{self.server}{path}" + (f"?{urlencode(query)}" if query else "")
        response: aiohttp.ClientResponse = await self._rest.pool_manager.request(method, url, **options)
        return response

    async def _check(self, response: aiohttp.ClientResponse, where: Where) -> None:
        if not 200 <= response.status < 300:
            raise error_of(response.status, await response.read(), where, response.headers.get("Retry-After"))

    # --- who we are

    async def _ready(self) -> int:
        """Renew what is about to expire; returns how often that was done."""
        is_old = self._expires is not None and datetime.now(UTC) >= self._expires - RENEW_EARLY
        if is_old or self._trust_is_stale:
            try:
                await self._renew(self._renewals)
            except ClusterAccessError as error:
                _log.warning("credentials are not renewed yet: %s", error)  # they may be good for a minute
        return self._renewals

    async def _check_renewed(self, response: aiohttp.ClientResponse, renewals: int, where: Where) -> None:
        """A 401: nothing was done. Another token, if there is one, may be taken.

        Raises: ApiDeniedError.
        """
        denied = error_of(401, await response.read(), where)
        try:
            await self._renew(renewals)
        except ClusterAccessError as error:
            raise ApiDeniedError(f"{denied.message}, and: {error}", **_fields(where)) from error

    async def _renew(self, renewals: int) -> None:
        async with self._renewing:
            if renewals != self._renewals or time.monotonic() - self._renewed_at < self._renew_again_s:
                return  # somebody has done it meanwhile, or has just tried
            try:
                await self._load()
            finally:
                self._renewed_at = time.monotonic()

    async def _load(self) -> None:
        configuration = Configuration()
        try:
            if self._credentials.in_cluster:
                load_incluster_config(client_configuration=configuration)
                expires = None
            else:
                expires = await self._load_kubeconfig(configuration)
            endpoint = _endpoint_of(configuration)
            if self._rest is None or endpoint != self._endpoint:
                await self._begin_session(configuration)
        except ClusterAccessError:
            raise
        except Exception as error:  # whatever the library stumbles over in a file that is no kubeconfig
            if not self._credentials.in_cluster and not isinstance(error, OSError):
                _check_kubeconfigs(self._credentials.paths)
            reason = str(error) if isinstance(error, ConfigException | OSError) else f"{type(error).__name__}: {error}"
            raise ClusterAccessError(f"{self._credentials}: {reason}") from error
        self._configuration, self._endpoint, self._expires = configuration, endpoint, expires
        self._renewals += 1
        self._trust_is_stale = False

    async def _begin_session(self, configuration: Configuration) -> None:
        # Whoever calls limits what he asks at once. A call that waited for a connection would be over time before it is
        # sent, and a write then counts as one of which nobody knows.
        configuration.connection_pool_maxsize = 0
        before, rest = self._rest, RESTClientObject(configuration)
        # A PUT that aiohttp sends again by itself, because a kept connection was cut, would find that it has landed and
        # tell of a conflict where there was none.
        rest.pool_manager._retry_connection = False
        # With it aiohttp reads ~/.netrc before each call, in a thread, and refuses our token where that names the host.
        rest.pool_manager._trust_env = False
        rest.proxy = rest.proxy or _proxy_of_environment(configuration.host)
        self._rest = rest
        if before is not None:
            await before.close()  # and with it the watches, which go on in the new one

    async def _load_kubeconfig(self, configuration: Configuration) -> datetime | None:
        """Returns when a credential plugin's token expires, if it says so."""
        paths = self._credentials.paths
        if not self._credentials.exist:
            raise ClusterAccessError(f"there is no kubeconfig {paths}")
        try:
            with anyio.fail_after(PLUGIN_S):
                loader = await load_kube_config(
                    paths, context=self._credentials.context or None, client_configuration=configuration
                )
        except TimeoutError as error:
            raise ClusterAccessError(f"{self._credentials}: its credential plugin took over {PLUGIN_S:g} s") from error
        except yaml.YAMLError as error:
            raise ClusterAccessError(f"{self._credentials}: not YAML: {error}") from error
        expires: datetime | None = getattr(loader, "exec_plugin_expiry", None)
        return expires


@asynccontextmanager
async def connect_to_cluster(
    credentials: Credentials, renew_again_s: float = RENEW_AGAIN_S
) -> AsyncIterator[KubeConnection]:
    """A connection, until the context ends. Raises: ClusterAccessError where the credentials cannot be read."""
    connection = KubeConnection(credentials, renew_again_s)
    await connection.open()
    try:
        yield connection
    finally:
        await connection.close()


class _Cluster(msgspec.Struct):
    name: Any
    cluster: dict[Any, Any] | None = None


class _Context(msgspec.Struct):
    name: Any
    context: dict[Any, Any] | None = None


class _User(msgspec.Struct):
    name: Any
    user: dict[Any, Any] | None = None


class _Kubeconfig(msgspec.Struct):
    """One of several files may leave out what the others have."""

    clusters: list[_Cluster] | None = None
    contexts: list[_Context] | None = None
    users: list[_User] | None = None
    current_context: Any = msgspec.field(name="current-context", default=None)


def _check_kubeconfigs(paths: str) -> None:
    """Raises: ClusterAccessError, naming the first file whose form is not a kubeconfig's."""
    for path in paths.split(os.pathsep):
        file = Path(path).expanduser()
        if path and file.is_file() and not _is_kubeconfig(file):
            raise ClusterAccessError(f"{path} is no kubeconfig: expected an object with clusters, contexts and users")


def _is_kubeconfig(file: Path) -> bool:
    try:
        return msgspec.convert(yaml.safe_load(file.read_bytes()), _Kubeconfig) != _Kubeconfig()
    except (yaml.YAMLError, ValueError, *UNREADABLE):  # a ValueError: a date that there is not
        return False


def _endpoint_of(configuration: Configuration) -> tuple[object, ...]:
    """Whom a session talks to, whom it believes, and as whom: another token cuts no watch."""
    files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
    contents = [Path(path).read_bytes() if path else b"" for path in files]
    names = ("host", "verify_ssl", "tls_server_name", "proxy")
    return (*(getattr(configuration, name) for name in names), *contents)


def _proxy_of_environment(server: str) -> str:
    """What HTTPS_PROXY, HTTP_PROXY and NO_PROXY say of the server."""
    parts = urlsplit(server)
    if not parts.hostname or proxy_bypass(parts.netloc):
        return ""
    return getproxies().get(parts.scheme, "")


# --- what a refusal means


class _Cause(msgspec.Struct):
    reason: str = ""
    message: str = ""
    field: str = ""


class _Details(msgspec.Struct, rename="camel"):
    name: str = ""
    kind: str = ""  # a resource, such as resourceclaims
    causes: list[_Cause] = []
    retry_after_seconds: float = 0


class _Status(msgspec.Struct):
    """A metav1.Status."""

    kind: str = ""
    message: str = ""
    reason: str = ""
    details: _Details | None = None
    code: int = 0


def error_of(code: int, body: bytes | msgspec.Raw, where: Where, retry_after: str | None = None) -> ApiError:
    """The error that an answer of the API server stands for.

    body: a metav1.Status; else, from a proxy perhaps, anything.
    """
    try:
        status = msgspec.json.decode(body, type=_Status)
    except UNREADABLE:
        status = _Status(message=bytes(body)[:300].decode(errors="replace").strip())
    details = status.details or _Details()
    message = status.message or f"status {code}"
    fields = _fields(where)
    if code in (401, 403):
        return ApiDeniedError(message if code == 403 else f"401, we are not known there ({message})", **fields)
    if code == 404 and status.kind == "Status" and _is_named(where, details):
        return ApiNotFoundError(message, **fields)
    if code == 409:
        return ApiConflictError(message, **fields)
    if code == 410:
        return ExpiredError(message, **fields)
    if code == 429:
        said = details.retry_after_seconds or (float(retry_after) if retry_after and retry_after.isdecimal() else 0.0)
        return ApiBusyError(message, retry_after_s=said or BUSY_S, **fields)
    if code in _NOTHING_WRITTEN:
        cause = details.causes[0] if details.causes else _Cause(reason=status.reason or f"Status{code}")
        return ApiInvalidError(message, field=cause.field, reason=cause.reason, **fields)
    # A 404 that the API server did not write, or not of this object, a 5xx: who answers does not know what came of it.
    return ApiUncertainError(f"status {code}: {message}", **fields)


def _is_named(where: Where, details: _Details) -> bool:
    """What there is none of is the object that was asked for, and nothing on the way to it."""
    return not where.name or (details.name == where.name and where.kind in details.kind)


def _uncertain(message: str, where: Where) -> ApiUncertainError:
    return ApiUncertainError(message, **_fields(where))


def _fields(where: Where) -> dict[str, str]:
    return msgspec.structs.asdict(where)
