"""The machine: state messages in, ledger batches out. The sole writer of the world.

`feed` takes messages in stream order; `step` applies some of them, decides what can be decided, and returns one batch.
The caller stores the batch before it lets anybody see the world, and before the next step. Replaying the same messages
in the same steps gives the same bytes: there is no clock, random or await in here.

Where things are: `intake` one message at a time; `claims` what a claim's message does to its grants; `syncs` runs of
agents and full syncs; `clusters` silent ones and what operators order; `device_taints` devices that are broken or
drained, `projected_taints` which of them end pods; `deciding` who gets what; `segments` and `recovery` a start from the
ledger; `report` the world for people.
"""

from collections import deque
from collections.abc import Iterable

from broker.allocation.index import DeviceIndex
from broker.machine import claims, clusters, deciding, device_taints, intake, projected_taints, syncs
from broker.machine.core import Core
from broker.machine.effects import Effects, Identity
from broker.machine.observer import Observer
from broker.world.world import World
from schemas.wire.bus import StoredMessage
from schemas.wire.ledger import DeviceCommand, LivenessMark, Order, SegmentClosed


class Machine:
    """Drives a world by messages and time."""

    def __init__(self, world: World, index: DeviceIndex, identity: Identity, observer: Observer | None = None) -> None:
        self.core = Core(world, index, identity, observer or Observer())
        self._inbox: deque[StoredMessage] = deque()
        self._orders: deque[Order] = deque()
        self._catch_up_to = 0  # until then the old position stays the recorded one, see feed_after_expiry

    @property
    def world(self) -> World:
        """What is believed. To be read only between a stored batch and the next step."""
        return self.core.world

    def feed(self, messages: Iterable[StoredMessage]) -> None:
        """Messages of DRA_STATE, in stream order, each once."""
        self._inbox.extend(messages)

    def order(self, order: Order) -> None:
        """A mark of the clock, or what an operator commands; carried out in the next step, before any message."""
        self._orders.append(order)

    def feed_after_expiry(self, messages: Iterable[StoredMessage], position: int) -> None:
        """The last message of each subject, where the log between our position and `position` is lost.

        Only when all of them are applied do we stand at `position`: a crash before that begins with them again.
        """
        self._inbox.extend(messages)
        self._catch_up_to = position

    def has_work(self, now_ms: int) -> bool:
        """Whether a step would do anything."""
        core = self.core
        adopts = bool(core.to_adopt) and claims.may_adopt(core)
        decides = core.may_decide and core.queue.has_due(now_ms)
        tells = projected_taints.is_due(core)
        return bool(self._orders or self._inbox or core.to_end or core.must_record or adopts or decides or tells)

    def wake_at_ms(self) -> int | None:
        """When a claim may be tried again that waits for time to pass; None if none does."""
        return self.core.queue.next_due_ms() if self.core.may_decide else None

    @property
    def waiting(self) -> int:
        """Messages that no step has applied yet."""
        return len(self._inbox)

    def step(self, now_ms: int, messages_max: int | None = None) -> Effects:
        """Apply messages, then decide, until there is nothing left or the batch is full.

        now_ms: broker clock, Unix milliseconds; a clock that goes back stands still here.
        messages_max: apply no more than so many of them.
        """
        core = self.core
        core.now_ms = max(now_ms, core.now_ms)
        self._finish_sync()
        self._carry_out_orders()
        left = len(self._inbox) if messages_max is None else min(messages_max, len(self._inbox))
        while left and core.has_room() and not core.to_end:
            left -= 1
            message = self._inbox.popleft()
            core.cause = message.stream_sequence
            core.note_applied(message)
            intake.accept(core, message)
            if message.stream_sequence > self._catch_up_to:
                core.world.position = message.stream_sequence
            self._finish_sync()
        core.cause = 0
        if not self._inbox:
            core.world.position = max(core.world.position, self._catch_up_to)
        if core.to_end:
            syncs.hold_sync(core)
        else:
            syncs.tell_classes(core)
            projected_taints.tell(core)
            claims.adopt(core)
            if core.may_decide:
                deciding.decide(core)
        return core.close_step()

    def close_segment(self, now_ms: int) -> Effects:
        """End the ledger's segment: nothing can follow this batch before the next one is open (`checkpoint`)."""
        core = self.core
        core.now_ms = max(now_ms, core.now_ms)
        core.record(SegmentClosed(next_segment=core.world.segment + 1))
        return core.close_step()

    def _carry_out_orders(self) -> None:
        core = self.core
        if core.world.position < self._catch_up_to:
            return  # which messages are of before an eviction or a readmission is told by the position
        while self._orders and core.has_room() and not core.to_end:
            order = self._orders.popleft()
            core.cause = 0
            core.note_order(order)
            if isinstance(order, LivenessMark):
                clusters.take_mark(core, order)
            elif isinstance(order, DeviceCommand):
                core.answers.append(device_taints.carry_out(core, order))
            else:
                core.answers.append(clusters.carry_out(core, order))
            claims.end_missing(core)

    def _finish_sync(self) -> None:
        """A full sync counts when all that it ends has ended, which may take several batches."""
        claims.end_missing(self.core)
        if not self.core.to_end:
            syncs.count_sync(self.core)
