"""Decisions made again from what the ledger says was seen: the same bytes must come out.

A replay covers one leader's term, from its beginning: what a leader decides also depends on what it has asked of
selectors since it was elected. Which messages of DRA_STATE were seen is in `Inputs`; where they are had from, and
whether they are still all there, is the caller's business.
"""

from collections.abc import Iterable, Sequence

import msgspec

from broker.allocation.cel.engine import SelectorEngine
from broker.allocation.index import DeviceIndex
from broker.machine import recovery
from broker.machine.effects import Identity
from broker.machine.machine import Machine
from broker.world import checkpoint
from broker.world.federation import Federation
from broker.world.world import World
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import AnyEntry, Inputs, SegmentClosed, SegmentOpened, inputs_of

TEXT_MAX = 400  # of what a replay gives instead, when it is told


class Differs(msgspec.Struct, frozen=True):
    """Where a replay gives something else. sequence: of the first entry that is not what it gives."""

    sequence: int
    problem: str


def world_of(federation: Federation, folded: World) -> World:
    """The same world by the ledger, as a start from a checkpoint here would have it, under another federation."""
    opening = checkpoint.checkpoint(folded, "", folded.segment)
    first = opening[0]
    assert isinstance(first, SegmentOpened)
    world = World(federation)
    checkpoint.load(world, first, opening[1:])
    world.segment, world.ledger_last = folded.segment, folded.ledger_last
    world.checkpoint_last, world.decides_from = folded.checkpoint_last, folded.decides_from
    return world


class TermReplay:
    """One leader's term. First `believe` all of DRA_STATE up to `position`, then `resume`, then its batches in order.

    world: before the term's first batch, by the ledger (`world_of`); the replay owns it from here on.
    inputs: of the term's first batch.
    """

    def __init__(self, world: World, engine: SelectorEngine, inputs: Inputs) -> None:
        identity = Identity("replay", inputs.build, inputs.settings_digest)
        self._machine = Machine(world, DeviceIndex(engine), identity)
        self._believed = recovery.LastBelieved(self._machine)
        self.position = world.position  # up to which DRA_STATE was fed

    def believe(self, messages: Iterable[StoredMessage]) -> None:
        """More of the log up to the position at which the term began."""
        self._believed.add(messages)

    def resume(self) -> None:
        """All of it was there."""
        self._believed.take_in()
        recovery.resume(self._machine)

    def batch(self, messages: Sequence[StoredMessage], state: Sequence[StoredMessage]) -> Differs | None:
        """One batch.

        messages: its entries; the last has its inputs. state: all of DRA_STATE after `position`, up to the last step's.
        """
        last = decode_entry(messages[-1].payload)
        inputs = inputs_of(last)
        assert inputs is not None
        made: list[AnyEntry] = []
        at = 0
        for number, step in enumerate(inputs.steps, start=1):
            for order in step.orders:
                self._machine.order(order)
            first = at
            while at < len(state) and state[at].stream_sequence <= step.position:
                at += 1
            self._machine.feed(state[first:at])
            if number == len(inputs.steps) and isinstance(last, SegmentClosed):
                effects = self._machine.close_segment(step.now_ms)
            else:
                effects = self._machine.step(step.now_ms)
            self.position = max(self.position, step.position)
            if effects.entries and number < len(inputs.steps):
                text = f"the replay has decided something after {number} of its {len(inputs.steps)} steps"
                return Differs(messages[0].stream_sequence, text)
            made += effects.entries
        return _compare(messages, inputs, made)

    def segment_opened(self, segment: int, last_sequence: int) -> None:
        """The next segment is open, and its checkpoint ends there."""
        checkpoint.opened(self._machine.world, segment, last_sequence)


def _compare(messages: Sequence[StoredMessage], inputs: Inputs, made: Sequence[AnyEntry]) -> Differs | None:
    if not made:
        return Differs(messages[0].stream_sequence, "the replay has nothing to record there")
    seen = inputs_of(made[-1])
    if seen is not None and inputs.state_digest and seen.state_digest != inputs.state_digest:
        text = "the messages of DRA_STATE are not those that it was decided on: their digest is another one"
        return Differs(messages[-1].stream_sequence, text)
    for message, entry in zip(messages, made, strict=False):
        again = encode(entry)
        if again != message.payload:
            return Differs(message.stream_sequence, f"the replay gives {again.decode():.{TEXT_MAX}}")
    if len(made) != len(messages):
        sequence = messages[0].stream_sequence + min(len(made), len(messages))
        more = f"{len(made)} entries, and {len(messages)} are there"
        return Differs(sequence, f"the replay gives {more}")
    return None
