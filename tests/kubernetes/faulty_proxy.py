"""What may stand between an agent and its API server and do harm: a proxy that does as it is told."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import aiohttp
import anyio
import msgspec
from aiohttp import web

from tests.controlplane.api import wait_for
from tests.controlplane.plane import ControlPlane, Identity
from tests.nats_fixture import free_port

Answer = Callable[[web.Request, bytes], Awaitable[web.StreamResponse]]


@dataclass
class Fault:
    """How requests of a method whose path and query contain `part` are answered, `times` times."""

    method: str
    part: str
    answer: Answer
    times: int = 1


@dataclass
class FaultyProxy:
    """kubeconfig: of the identity by way of the proxy. requests: method and path with query of each, in order.

    repeats_lines: each line of a watch comes twice. swallows: nothing of watches with this in their paths comes
    through, and nothing ends.
    """

    upstream: str
    session: aiohttp.ClientSession
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    repeats_lines: bool = False
    swallows: str = ""
    kubeconfig: str = ""
    _transports: list[tuple[web.StreamResponse, web.Request]] = field(default_factory=list)

    def count(self, method: str, part: str) -> int:
        """How many such requests came."""
        return sum(each == method and part in path for each, path in self.requests)

    def fail(self, method: str, part: str, answer: Answer, times: int = 1) -> None:
        """Let it go wrong, the next `times` times."""
        self.faults.append(Fault(method, part, answer, times))

    async def cut_watches(self, half_a_line: bytes = b"", part: str = "") -> None:
        """End every watch whose path contains `part`, without any more than this."""
        watches = [each for each in self._transports if part in each[1].path]
        self._transports = [each for each in self._transports if each not in watches]
        for response, request in watches:
            with suppress(ConnectionError, RuntimeError):
                if half_a_line:
                    await response.write(half_a_line)
                if request.transport is not None:  # else it has ended by itself
                    request.transport.close()

    async def list_again(self, resource: str) -> None:
        """Let the history of these expire, and return when whoever follows them lists them again."""
        before = self.count("GET", f"{resource}?limit=")
        self.fail("GET", f"{resource}?watch=true", answers(410, "Expired"))

        async def is_listed() -> bool:
            await self.cut_watches(part=f"/{resource}")  # again, if one has just been on its way here
            return self.count("GET", f"{resource}?limit=") > before

        await wait_for(is_listed)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path = request.path_qs
        self.requests.append((request.method, path))
        for fault in self.faults:
            if fault.times and fault.method == request.method and fault.part in path:
                fault.times -= 1
                return await fault.answer(request, body)
        return await self.forward(request, body)

    async def forward(self, request: web.Request, body: bytes) -> web.StreamResponse:
        headers = {
            name: request.headers[name]
            for name in ("Accept", "Content-Type", "Authorization")
            if name in request.headers
        }
        async with self.session.request(
            request.method, self.upstream + request.path_qs, headers=headers, data=body or None
        ) as answer:
            if "watch=true" not in request.path_qs:
                return web.Response(status=answer.status, body=await answer.read(), content_type="application/json")
            response = web.StreamResponse(status=answer.status)
            await response.prepare(request)
            self._transports.append((response, request))
            rest = b""
            with suppress(ConnectionError):  # its client has left it, or it was cut
                async for chunk in answer.content.iter_any():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        if not self.swallows or self.swallows not in request.path_qs:
                            await response.write((line + b"\n") * (1 + self.repeats_lines))
            return response

    async def forward_and_cut(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """The API server does what is asked; nobody hears of it."""
        await self.forward(request, body)
        assert request.transport is not None
        request.transport.close()
        return web.Response()


def answers(
    code: int, reason: str = "", message: str = "told to", details: dict[str, str] | None = None, **headers: str
) -> Answer:
    """A metav1.Status in place of an answer."""
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "reason": reason,
        "message": message,
        "details": details or {},
        "code": code,
    }

    async def answer(_request: web.Request, _body: bytes) -> web.StreamResponse:
        return web.Response(
            status=code,
            body=msgspec.json.encode(status),
            content_type="application/json",
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )

    return answer


async def hang(_request: web.Request, _body: bytes) -> web.StreamResponse:
    """No answer, for as long as the client waits."""
    await anyio.sleep_forever()
    raise AssertionError("unreachable")


async def no_such_page(_request: web.Request, _body: bytes) -> web.StreamResponse:
    """What a router answers that knows nothing of the path; an API server's too, of an API that it does not serve."""
    return web.Response(status=404, text="404 page not found\n")


async def a_page_of_html(_request: web.Request, _body: bytes) -> web.StreamResponse:
    """What a login page answers."""
    return web.Response(text="<html>Please log in</html>", content_type="text/html")


@asynccontextmanager
async def a_faulty_proxy(plane: ControlPlane, identity: Identity) -> AsyncIterator[FaultyProxy]:
    """A proxy in front of the plane's API server, which does no harm until it is told to."""
    port = free_port()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=_trusting(plane), limit=0)) as session:
        proxy = FaultyProxy(plane.server, session)
        app = web.Application(client_max_size=1 << 26)
        app.router.add_route("*", "/{path:.*}", proxy.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        name = f"proxied-{port}"
        proxy.kubeconfig = str(plane.kubeconfig(name, identity.token, f"http://127.0.0.1:{port}"))
        try:
            yield proxy
        finally:
            await runner.cleanup()


def _trusting(plane: ControlPlane) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=plane.ca)
