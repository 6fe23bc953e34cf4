"""Begin a lost ledger anew, at NATS: close what is left of it, and open a segment above all that was ever seen."""

import msgspec

from broker.adapters.durability import Durability
from broker.adapters.ledger_store import LedgerStore, Refused, as_batches
from broker.adapters.streams import StreamSettings, ensure_streams, ledger_segments, stream_names
from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.app.envelopes import Envelopes
from broker.app.warm_world import read_segments
from broker.errors import InvariantError, LedgerLostError
from broker.machine import Identity, Machine, rebuild
from broker.machine.segments import LedgerStart
from broker.world import checkpoint
from broker.world.federation import Federation
from broker.world.world import World
from schemas.client.connection import Connection
from schemas.client.errors import StreamGapError, StreamLostError
from schemas.client.follow import stream_state
from schemas.client.reader import StreamReader
from schemas.wire.chain import Message
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import AnyEntry, LedgerRebuilt, SegmentClosed
from schemas.wire.subjects import PREFIX, STATE_STREAM, ledger_stream

SEQUENCE_MOST = 2**53  # no ledger comes so far; beyond 2**63 NATS takes no message any more


class RebuildRefusedError(Exception):
    """The ledger was not rebuilt; the text says why, and what to do."""


class Rebuilt(msgspec.Struct, frozen=True):
    """What was done.

    left: the segments that were still there. problem: why no world could be made from them, "" if one could.
    kept: cordons and evictions that were taken over, as "CLUSTER: cordon".
    """

    segment: int
    first_sequence: int
    highest_seen: int
    state_sequence: int
    left: list[int]
    problem: str
    clusters: list[str]
    kept: list[str]


async def rebuild_ledger(
    connection: Connection, federation: Federation, shard: str, operator: str, reason: str, now_ms: int, above: int = 0
) -> Rebuilt:
    """Open the next segment with a world that holds nothing yet.

    above: a ledger sequence that the operator has seen somewhere, in a log for instance.
    Raises: RebuildRefusedError; BusError; StreamSettingsError.
    """
    segments = await ledger_segments(connection, shard)
    left, problem = await _what_is_left(connection, federation, shard, segments)
    evidence, state_sequence, state_first = rebuild.Evidence(), 0, checkpoint.last_state_sequence(left) + 2
    if STATE_STREAM in await stream_names(connection, f"{PREFIX}.state.>"):
        state_sequence = (await stream_state(connection, STATE_STREAM)).last_sequence
        evidence.add(await StreamReader(connection, STATE_STREAM).last_messages())
    highest = max(above, evidence.highest_seen, left.ledger_last)
    for segment in segments:
        highest = max(highest, (await stream_state(connection, ledger_stream(shard, segment))).last_sequence)
    if highest > SEQUENCE_MOST:
        raise RebuildRefusedError(
            f"the ledger sequence {highest} was seen, which no ledger reaches: what a cluster has said in"
            f" {STATE_STREAM} names it, or what is left of the ledger. Nothing was done: find the cluster, and let its"
            " agent publish anew"
        )
    first = rebuild.first_sequence(highest)
    world = rebuild.world_to_begin_with(federation, left, evidence.clusters, first, state_sequence)
    last = await _abandon(connection, shard, segments[-1], now_ms) if segments else None
    segment = segments[-1] + 1 if segments else 0
    said = LedgerRebuilt(
        operator=operator, reason=reason, at_ms=now_ms, highest_seen=highest, state_sequence=state_sequence
    )
    await _open(connection, world, shard, segment, said, state_first, last)
    return Rebuilt(
        segment,
        first,
        highest,
        state_sequence,
        segments,
        problem,
        sorted(world.clusters),
        [
            f"{name}: {what}"
            for name, record in sorted(world.clusters.items())
            for what, order in (("cordon", record.cordon), ("eviction", record.eviction))
            if order is not None
        ],
    )


async def _what_is_left(
    connection: Connection, federation: Federation, shard: str, segments: list[int]
) -> tuple[World, str]:
    """As much of the old world as can be read, and why that is not all of it."""

    def new_machine() -> Machine:
        return Machine(World(federation), DeviceIndex(default_engine()), Identity("rebuild", "", ""))

    start = LedgerStart(segments, new_machine)
    try:
        await read_segments(connection, shard, start)
    except (LedgerLostError, InvariantError, WireError, StreamGapError, StreamLostError) as error:
        return start.machine.world, str(error)
    return start.machine.world, ""


async def _abandon(connection: Connection, shard: str, segment: int, now_ms: int) -> Message | None:
    """Nobody can append to the last segment any more; returns its last entry. Raises: RebuildRefusedError."""
    stream = ledger_stream(shard, segment)
    last = await StreamReader(connection, stream).last()
    try:
        if last is not None and isinstance(decode_entry(last.payload), SegmentClosed):
            return last
    except WireError:
        pass  # whatever it is, it is not the end
    ends_at = (await stream_state(connection, stream)).last_sequence
    closed = SegmentClosed(next_segment=segment + 1, is_abandoned=True)
    return await _append(connection, shard, segment, [closed], ends_at, now_ms, last)


async def _open(
    connection: Connection,
    world: World,
    shard: str,
    segment: int,
    said: LedgerRebuilt,
    state_first: int,
    before: Message | None,
) -> None:
    """state_first: where DRA_STATE begins, should it be gone too. before: what is left ends with this entry."""
    last = world.ledger_last
    durability = Durability(allow_unsafe=True, is_embedded=True)  # a broker checks it when it starts
    is_there = STATE_STREAM in await stream_names(connection, f"{PREFIX}.state.>")
    first_of_state = 0 if is_there else state_first
    await ensure_streams(connection, StreamSettings(), shard, segment, last + 1, durability, first_of_state)
    entries = checkpoint.checkpoint(world, shard, segment, said)
    await _append(connection, shard, segment, entries, last, said.at_ms, before)


async def _append(
    connection: Connection,
    shard: str,
    segment: int,
    entries: list[AnyEntry],
    last: int,
    now_ms: int,
    before: Message | None,
) -> Message:
    """Append, and return the last message."""
    store = LedgerStore(connection, ledger_stream(shard, segment))
    envelopes = Envelopes(shard, segment, f"rebuild-{connection.unique_name()}")
    messages = envelopes.batch(entries, last + 1, now_ms, before)
    for batch in as_batches(messages):
        result = await store.append_until_known(batch, last)
        if isinstance(result, Refused):
            text = f"somebody else writes to {store.stream}: stop all brokers, and try again"
            raise RebuildRefusedError(text)
        last += len(batch)
    return messages[-1]
