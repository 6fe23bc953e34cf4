"""A collector that is there: OTLP over HTTP, as its protocol has it, and what came."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import msgspec
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

DEADLINE_S = 60.0


class Got(msgspec.Struct, frozen=True):
    """A span as it came. Times are Unix microseconds; ids hex."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    start_us: int
    end_us: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    resource: dict[str, Any]
    is_error: bool


class Collector:
    """refuses: answer 503 and keep nothing. requests: how many came, refused or not."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Got] = []
        self.refuses = False
        self.requests = 0
        self._changed = anyio.Event()

    def times_came(self) -> Counter[str]:
        """How often each span came, by its id."""
        return Counter(span.span_id for span in self.spans)

    async def until(self, what: str, is_true: Any) -> None:
        """Return as soon as it is so."""
        with anyio.move_on_after(DEADLINE_S):
            while not is_true(self):
                await self._changed.wait()
            return
        raise AssertionError(f"{what} did not come within {DEADLINE_S:g} s; {[span.name for span in self.spans]}")

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests += 1
        changed, self._changed = self._changed, anyio.Event()
        changed.set()
        if self.refuses:
            return web.Response(status=503)
        assert request.content_type == "application/x-protobuf"
        said = ExportTraceServiceRequest()
        said.ParseFromString(body)
        for of_resource in said.resource_spans:
            resource = _attributes(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                self.spans += [_got(span, resource) for span in of_scope.spans]
        return web.Response(
            body=ExportTraceServiceResponse().SerializeToString(), content_type="application/x-protobuf"
        )


@asynccontextmanager
async def a_collector() -> AsyncIterator[Collector]:
    """Listens on a free port."""
    collector = Collector()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.add_routes([web.post("/v1/traces", collector.take)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield collector
    finally:
        await runner.cleanup()


def _got(span: Any, resource: dict[str, Any]) -> Got:
    return Got(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.kind,
        span.start_time_unix_nano // 1_000,
        span.end_time_unix_nano // 1_000,
        _attributes(span.attributes),
        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        resource,
        span.status.code == 2,
    )


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    which = value.WhichOneof("value")
    if which == "array_value":
        return [_value(each) for each in value.array_value.values]
    return getattr(value, which)
