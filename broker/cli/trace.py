"""`dragoman trace`: where the time of a claim went, from what NATS has; no tracing backend is needed."""

import argparse
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker.adapters.streams import ledger_segments
from broker.cli.bus import add_nats_arguments
from broker.cli.errors import CommandError
from broker.cli.ledger_bus import SHARD, with_nats
from broker.cli.output import console, print_json
from broker.tracing import Episode, Span, Stories, TraceProblem
from broker.tracing.facts import entry_facts
from schemas.client.connection import Connection
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import trace_id
from schemas.wire.ledger import Allocate, GrantEnded, ReasonChanged
from schemas.wire.subjects import PREFIX, STATE_STREAM, encode_key, ledger_stream, state_subject

_log = logging.getLogger(__name__)

BATCH_LOOKED_AT = 256  # entries before a decision that may be of its batch

DESCRIPTION = """\
Show what was done for a claim, step by step, and how long each step took: from the watch event in its cluster to the
write of its status, to its pod, to the end of what it held.
"""

EPILOG = """\
Read from DRA_STATE (72 hours) and the ledger, as an operator; the broker need not run. A claim that is gone is shown,
too. docs/tracing.md says what the spans are; `dragoman tracer` sends the same ones to a collector.

examples:
  dragoman trace ml/train-east
  dragoman trace ml/train-east --cluster east --nats nats://127.0.0.1:40123
  dragoman trace ml/train-east -o json | jq '.[].spans[] | {name, duration_us}'
  dragoman trace --uid 7c0f5d7e-3c86-4a52-9d5b-0e2b6f3e8c11 --cluster east

exit code: 0; 1 if nothing is known of such a claim, or NATS does not answer; 2 for wrong arguments.
"""


class ClaimName(msgspec.Struct):
    """As much of an entry as says whose it is."""

    cluster: str = ""
    uid: str = ""
    namespace: str = ""
    name: str = ""


class Found(msgspec.Struct, frozen=True):
    """A claim's life. episodes: in the order of their begins. others: whose the traces are that it links to."""

    cluster: str
    uid: str
    trace_id: str
    episodes: list[Episode]
    others: dict[str, str]


_names = msgspec.json.Decoder(ClaimName)


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `trace`."""
    parser = commands.add_parser(
        "trace",
        help="where the time of a claim went, step by step",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "claim", nargs="?", metavar="NAMESPACE/NAME", help="the ResourceClaim; NAME alone is in default"
    )
    parser.add_argument("--uid", default="", help="the claim's UID instead of its name: found at once in a long ledger")
    parser.add_argument("--cluster", default="", metavar="NAME", help="of this cluster only; needed with --uid")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    add_nats_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read and print."""
    if bool(options.claim) == bool(options.uid):
        raise CommandError("which claim? Give NAMESPACE/NAME, or --uid")
    if options.uid and not options.cluster:
        raise CommandError("--uid needs --cluster: a claim is its cluster and its UID")
    namespace, slash, name = (options.claim or "").rpartition("/")
    namespace = namespace if slash else "default"
    if not options.uid and not (namespace and name):
        raise CommandError(f"{options.claim!r} is not NAMESPACE/NAME")

    async def read(connection: Connection) -> list[Found]:
        segments = await ledger_segments(connection, SHARD)
        keys = [(options.cluster, options.uid)] if options.uid else []
        if not keys:
            keys = await _keys_of(connection, segments, namespace, name, options.cluster)
        return [await trace_of(connection, segments, *key) for key in keys]

    found = [each for each in with_nats(options, "operator", read) if each.episodes]
    if not found:
        where = f" in {options.cluster}" if options.cluster else ""
        raise CommandError(f"nothing is known of claim {options.claim or options.uid}{where}", exit_code=1)
    if options.output == "json":
        print_json([_as_json(each) for each in found])
        return 0
    for each in found:
        _print(console(), each)
    return 0


async def trace_of(connection: Connection, segments: list[int], cluster: str, uid: str) -> Found:
    """All that the logs say of one claim. Raises: BusError."""
    stories = Stories(_tell)
    episodes: list[Episode] = []
    ended: dict[str, GrantEnded] = {}
    state = StreamReader(connection, STATE_STREAM)
    async with aclosing(state.read(0, filters=[state_subject(cluster, "claim", uid)])) as batches:
        async for batch in batches:
            for message in batch:
                episodes += stories.state(message)
    for segment in segments:
        subjects = [f"{PREFIX}.ledger.{SHARD}.{segment}.{cluster}.{kind}.{encode_key(uid)}" for kind in _KINDS]
        last = 0
        async for message in _entries(connection, segment, subjects):
            if (facts := entry_facts(message, _tell)) is None:
                continue
            if isinstance(facts.entry, Allocate | ReasonChanged):
                # Whose devices became free in the same batch stands before it.
                after = max(last, facts.sequence - BATCH_LOOKED_AT)
                async for other in _entries(connection, segment, (), after, facts.sequence - 1):
                    if (before := entry_facts(other, _tell)) is None:
                        continue
                    episodes += stories.told(before)
                    if isinstance(before.entry, GrantEnded):
                        ended[trace_id(before.entry.cluster, before.entry.uid)] = before.entry
            last = facts.sequence
            episodes += stories.told(facts)
    ours = [each for each in episodes if each.top.trace_id == trace_id(cluster, uid)]
    ours.sort(key=lambda each: (each.top.start_us, each.ledger_sequence))
    linked = {link.trace_id for each in ours for link in each.top.links}
    others = {trace: await _whose(connection, segments, ended[trace]) for trace in linked & ended.keys()}
    return Found(cluster, uid, trace_id(cluster, uid), ours, others)


async def _whose(connection: Connection, segments: list[int], ended: GrantEnded) -> str:
    """CLUSTER/NAMESPACE/NAME of the claim, as its grant says; with its UID instead where that is kept no more."""
    for segment in reversed(segments):
        grant = await StreamReader(connection, ledger_stream(SHARD, segment)).at(ended.grant_sequence)
        if grant is not None:
            said = _names.decode(grant.payload)
            return f"{said.cluster}/{said.namespace}/{said.name}"
    return f"{ended.cluster}/{ended.uid}"


_KINDS = ("claim", "record")


async def _entries(
    connection: Connection, segment: int, subjects: Sequence[str], after: int = 0, until: int | None = None
) -> AsyncGenerator[StoredMessage, None]:
    reader = StreamReader(connection, ledger_stream(SHARD, segment))
    async with aclosing(reader.read(after, until, filters=subjects)) as batches:
        async for batch in batches:
            for message in batch:
                yield message


async def _keys_of(
    connection: Connection, segments: list[int], namespace: str, name: str, cluster: str
) -> list[tuple[str, str]]:
    """Cluster and UID of all claims that ever had this name, in the order of their first entries."""
    found: dict[tuple[str, str], None] = {}
    for segment in segments:
        subjects = [f"{PREFIX}.ledger.{SHARD}.{segment}.{cluster or '*'}.{kind}.>" for kind in _KINDS]
        async for message in _entries(connection, segment, subjects):
            if name.encode() not in message.payload:
                continue
            said = _names.decode(message.payload)
            if (said.namespace, said.name) == (namespace, name):
                found[said.cluster, said.uid] = None
    return list(found)


def _tell(problem: TraceProblem) -> None:
    _log.warning("%s: %s: %s", problem.code, problem.place, problem.message)


def _as_json(found: Found) -> dict[str, object]:
    return {
        "cluster": found.cluster,
        "uid": found.uid,
        "trace_id": found.trace_id,
        "spans": [
            {**msgspec.to_builtins(span), "duration_us": span.end_us - span.start_us}
            for episode in found.episodes
            for span in episode.spans
        ],
    }


def _print(to: Console, found: Found) -> None:
    """A tree for people. Times are from the first span's begin."""
    first_us = found.episodes[0].top.start_us
    at = datetime.fromtimestamp(first_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    to.print(Text(f"{found.cluster}/{found.uid}  from {at}  trace {found.trace_id}"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("SPAN", no_wrap=True)
    table.add_column("AFTER", justify="right", no_wrap=True)
    table.add_column("TOOK", justify="right", no_wrap=True)
    table.add_column("WHAT")
    for episode in found.episodes:
        for span in episode.spans:
            depth = _depth(span, episode)
            name = f"{'  ' * depth}{span.name}"
            after, took = _duration(span.start_us - first_us), _duration(span.end_us - span.start_us)
            table.add_row(
                Text(name, "bold" if depth == 0 else ""),
                after,
                took,
                Text(_what(span, found.others) if not depth else ""),
            )
    to.print(table)


def _depth(span: Span, episode: Episode) -> int:
    by_id = {each.span_id: each for each in episode.spans}
    depth = 0
    while span.parent_id in by_id:
        span, depth = by_id[span.parent_id], depth + 1
    return depth


def _what(span: Span, others: Mapping[str, str]) -> str:
    said = span.attributes
    devices = said.get("dra.devices", [])
    words = [
        *(devices if isinstance(devices, list) else []),
        *(str(said[name]) for name in ("dra.reason", "dra.outcome", "dra.end.cause") if name in said),
        *([f"waited for {said['dra.waited_for']}"] if "dra.waited_for" in said else []),
        *(f"freed by {others[link.trace_id]}" for link in span.links if link.trace_id in others),
        *([span.error] if span.error else []),
    ]
    return "  ".join(words)


def _duration(us: int) -> str:
    if us < 10_000:
        return f"{us / 1e3:.2f} ms"
    return f"{us / 1e3:.1f} ms" if us < 10_000_000 else f"{us / 1e6:.1f} s"
