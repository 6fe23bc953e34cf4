"""Spans to an OpenTelemetry collector, by OTLP over HTTP. Where it is, and how it wants to be spoken to, is said by
OpenTelemetry's standard environment variables (OTEL_EXPORTER_OTLP_ENDPOINT and so on).

Spans are handed to the SDK's exporter as finished ones: their ids and times are made elsewhere, from the messages.
Imported by `dragoman tracer` alone: it takes the extra `tracing`.
"""

from collections.abc import Sequence
from functools import partial

from anyio import to_thread
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from broker.tracing import Span

SERVICE = "dragoman"
SCOPE = "dragoman.tracing"
_KINDS = {
    "internal": SpanKind.INTERNAL,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
    "client": SpanKind.CLIENT,
}


class OtlpExporter:
    """Sends spans; holds a connection."""

    def __init__(self, build: str) -> None:
        """build: of dragoman, which the spans name. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before ours."""
        ours = Resource({"service.name": SERVICE, "service.version": build})
        said = Resource.create()
        if str(said.attributes.get("service.name", "")).startswith("unknown_service"):
            said = said.merge(Resource({"service.name": SERVICE}))
        self._resource = ours.merge(said)
        self._scope = InstrumentationScope(SCOPE, build)
        self._exporter = OTLPSpanExporter()

    async def export(self, spans: Sequence[Span]) -> bool:
        """Send spans; False if the collector did not take them, however often the SDK has tried."""
        finished = [self._finished(span) for span in spans]
        result = await to_thread.run_sync(partial(self._exporter.export, finished), abandon_on_cancel=True)
        return result is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Give up the connection."""
        self._exporter.shutdown()  # type: ignore[no-untyped-call]  # of the SDK

    def _finished(self, span: Span) -> ReadableSpan:
        return ReadableSpan(
            span.name,
            context=_context(span.trace_id, span.span_id),
            parent=_context(span.trace_id, span.parent_id) if span.parent_id else None,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(name, timestamp=at_us * 1_000) for name, at_us in span.events],
            links=[Link(_context(each.trace_id, each.span_id), {"dra.link": each.why}) for each in span.links],
            kind=_KINDS[span.kind],
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(),
            start_time=span.start_us * 1_000,
            end_time=span.end_us * 1_000,
            instrumentation_scope=self._scope,
        )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
