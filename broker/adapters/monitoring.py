"""What probes and Prometheus ask a process: `/livez`, `/readyz` and `/metrics` over HTTP."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from broker.adapters.errors import ListenError

_log = logging.getLogger(__name__)

CLOSE_GRACE_S = 1.0


@asynccontextmanager
async def serve_monitoring(
    host: str,
    port: int,
    registry: CollectorRegistry,
    refresh: Callable[[], Awaitable[None]],
    why_not_ready: Callable[[], str],
) -> AsyncIterator[int]:
    """Answer on `host` (all addresses: "") and `port` (0: a free one, which is yielded) until the block ends.

    /livez: 200 as long as this process does anything at all. /readyz: 200, or 503 with what `why_not_ready` says.
    refresh: called before each answer to /metrics, which is in the form that the asker prefers.
    Raises: ListenError if that address cannot be had.
    """

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        why = why_not_ready()
        return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

    async def metrics(request: web.Request) -> web.Response:
        await refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(registry), headers={"Content-Type": content_type})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_GRACE_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host or None, port)
        try:
            await site.start()
        except OSError as error:
            raise ListenError(f"cannot listen on {host or '*'}:{port}: {error.strerror or error}") from error
        bound: int = runner.addresses[0][1]
        _log.info("probes and metrics: http://%s:%d/metrics", host or "127.0.0.1", bound)
        yield bound
    finally:
        await runner.cleanup()
