"""`dragoman ledger rebuild`, as `broker.app.rebuild` does it, at the streams of the simulation."""

from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.errors import InvariantError, LedgerLostError
from broker.machine import Identity, Machine, rebuild
from broker.machine.segments import LedgerStart
from broker.world import checkpoint
from broker.world.federation import Federation
from broker.world.world import World
from schemas.wire.codec import decode_entry
from schemas.wire.ledger import LedgerRebuilt, SegmentClosed
from tests.simulation.streams import Batch, Ledger, StateLog


def rebuild_ledger(log: StateLog, ledger: Ledger, federation: Federation, now_ms: int, above: int = 0) -> int:
    """Close what is left, and open a segment that holds nothing yet; returns where it begins.

    above: a ledger sequence that the operator has seen somewhere.
    """
    left = _what_is_left(ledger, federation)
    evidence = rebuild.Evidence()
    evidence.add(log.last_messages())
    highest = max(above, evidence.highest_seen, left.ledger_last, ledger.last_sequence)
    first = rebuild.first_sequence(highest)
    world = rebuild.world_to_begin_with(federation, left, evidence.clusters, first, log.last_sequence)
    if ledger.messages and not isinstance(decode_entry(ledger.messages[-1].payload), SegmentClosed):
        abandon(ledger, "rebuild")
    segment = ledger.begin_again(first)
    said = LedgerRebuilt(
        operator="ada", reason="disk", at_ms=now_ms, highest_seen=highest, state_sequence=log.last_sequence
    )
    entries = checkpoint.checkpoint(world, "main", segment, said)
    assert ledger.append(Batch.of(entries, first - 1, "rebuild", segment, is_of_checkpoint=True))
    return first


def abandon(ledger: Ledger, writer: str) -> None:
    """Nobody can go on from what is left."""
    segment = ledger.segments[-1]
    closed = SegmentClosed(next_segment=segment + 1, is_abandoned=True)
    assert ledger.append(Batch.of([closed], ledger.last_sequence, writer, segment))


def _what_is_left(ledger: Ledger, federation: Federation) -> World:
    """As much of the old world as can be read."""

    def new_machine() -> Machine:
        return Machine(World(federation), DeviceIndex(default_engine()), Identity("rebuild", "", ""))

    start = LedgerStart(ledger.segments, new_machine)
    try:
        while start.wanted is not None:
            start.add(ledger.segment(start.wanted))
            start.end()
    except (LedgerLostError, InvariantError):
        pass  # the operator is told why
    return start.machine.world
