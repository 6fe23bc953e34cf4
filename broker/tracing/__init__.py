"""Spans of what was done for claims, made from the messages that tell of it. Pure: messages in, spans out.

`facts` reads what a message says of stages; `story` is one claim's life and makes its spans; `spans` is what a span is
and which are kept. Nothing here knows NATS or OpenTelemetry: `dragoman trace` prints the spans, `dragoman tracer` sends
them to a collector.
"""

from broker.tracing.facts import EntryFacts, StateFacts, TraceProblem
from broker.tracing.spans import Episode, Link, Span
from broker.tracing.story import Stories, Story

__all__ = ["EntryFacts", "Episode", "Link", "Span", "StateFacts", "Stories", "Story", "TraceProblem"]
