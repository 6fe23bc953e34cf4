"""A span, an episode of them, and which episodes a sampler keeps."""

import hashlib
from typing import Literal

import msgspec

Kind = Literal["internal", "producer", "consumer", "client"]
Value = str | int | list[str]

UNSAMPLED_BITS = 64  # of a trace id, from its end: what samplers by ratio look at


class Link(msgspec.Struct, frozen=True):
    """A span of another trace that this one has to do with. why: in a word."""

    trace_id: str
    span_id: str
    why: str


class Span(msgspec.Struct, frozen=True, omit_defaults=True):
    """trace_id, span_id: hex, as W3C writes them; the same messages give the same ids. parent_id: "" at the top.

    start_us, end_us: Unix microseconds, the end never before the start. events: names with their times. error: what
    went wrong, "" if nothing did.
    """

    trace_id: str
    span_id: str
    name: str
    start_us: int
    end_us: int
    parent_id: str = ""
    kind: Kind = "internal"
    attributes: dict[str, Value] = {}
    events: tuple[tuple[str, int], ...] = ()
    links: tuple[Link, ...] = ()
    error: str = ""


class Episode(msgspec.Struct, frozen=True):
    """One thing that happened to a claim, with all that was done for it; or a batch of the ledger.

    spans: the one at the top, then those below it; they are made and sampled together.
    ledger_sequence, state_sequence: of the last message in each log that it is made from.
    unusual: why it is worth keeping whatever the ratio (`refused`, `evicted`, `failed`), or "".
    waited_us: how much of it went by in waiting for devices, which says nothing of how fast anybody was.
    """

    spans: tuple[Span, ...]
    ledger_sequence: int
    state_sequence: int = 0
    unusual: str = ""
    waited_us: int = 0

    @property
    def top(self) -> Span:
        """The span that the others belong to."""
        return self.spans[0]

    @property
    def worked_us(self) -> int:
        """From its begin to its end, without the time of waiting for devices."""
        return self.top.end_us - self.top.start_us - self.waited_us

    def is_kept(self, ratio: float, slow_us: int) -> bool:
        """Whether a sampler that keeps `ratio` of all traces keeps it; what is unusual or slow it always keeps.

        By the trace id alone, as OpenTelemetry's TraceIdRatioBased: all samplers of one ratio keep the same traces.
        """
        if self.unusual or self.worked_us >= slow_us:
            return True
        return int(self.top.trace_id, 16) % (1 << UNSAMPLED_BITS) < round(ratio * (1 << UNSAMPLED_BITS))


def span_id_of(*parts: object) -> str:
    """The id of a span that no message has one for."""
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()[:16]
