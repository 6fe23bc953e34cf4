"""A world that is ready to lead: folded from the ledger, with what clusters said, and kept so while another leads.

A start and a standby are the same thing here. Each round reads what the ledger has more than the last time, and then
what clusters said up to the position that it records; the first round reads everything.
"""

import gc
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager

import anyio
from anyio import to_thread

from broker.adapters.ledger_store import LedgerStore
from broker.adapters.streams import ledger_segments
from broker.errors import REMEDY, LedgerLostError
from broker.machine import Machine, recovery
from broker.machine.segments import LedgerStart
from schemas.client.connection import Connection
from schemas.client.errors import BusError, StreamGapError, StreamLostError
from schemas.client.follow import stream_state
from schemas.client.reader import StreamReader
from schemas.wire.bus import StoredMessage
from schemas.wire.subjects import STATE_STREAM, ledger_stream

_log = logging.getLogger(__name__)

ROUND_S = 0.5  # between two rounds of a standby


class WarmWorld:
    """Raises, from all that reads: BusError, then ask again; LedgerLostError; UnreadableEntryError."""

    def __init__(self, connection: Connection, shard: str, new_machine: Callable[[], Machine]) -> None:
        self._connection = connection
        self._shard = shard
        self._new_machine = new_machine
        self._state = StreamReader(connection, STATE_STREAM)
        self._forget()

    def _forget(self) -> None:
        self._start: LedgerStart | None = None
        self._believed: recovery.LastBelieved | None = None
        self._up_to = 0  # position of DRA_STATE up to which clusters are believed

    @property
    def machine(self) -> Machine:
        """After `read_ledger`."""
        assert self._start is not None
        return self._start.machine

    @property
    def last_sequence(self) -> int:
        """Of all ledger entries that were read."""
        assert self._start is not None
        return self._start.last_sequence

    @property
    def last_message(self) -> StoredMessage | None:
        """That was read of the ledger."""
        assert self._start is not None
        return self._start.last_message

    async def keep(self) -> None:
        """Round after round until it is cancelled, which may be at any time."""
        with collector_paused():
            await self._round()
        while True:
            await anyio.sleep(ROUND_S)
            await self._round()

    async def _round(self) -> None:
        started, is_first = time.monotonic(), self._believed is None
        try:
            await self.read_ledger()
            await self.believe()
        except (LedgerLostError, StreamLostError, StreamGapError) as error:
            if is_first:
                raise
            _log.warning("the ledger is not what it was, reading it from its beginning: %s", error)
            self._forget()
        except BusError as error:
            _log.debug("the world is not kept up to date, trying again: %s", error)
        else:
            if is_first:
                claims, seconds = len(self.machine.world.claims), time.monotonic() - started
                _log.info("stands by with a warm world of %d claims, read in %.1f s", claims, seconds)

    async def read_ledger(self) -> None:
        """Fold what the ledger has more than the last time."""
        if self._start is None:
            self._start = LedgerStart(await ledger_segments(self._connection, self._shard), self._new_machine)
        await self._read(self._start)  # all of it, or where that was interrupted
        self._start.go_on(await ledger_segments(self._connection, self._shard))
        await self._read(self._start)
        if self._believed is not None and self._believed.is_outdated:
            self._forget()
            await self.read_ledger()

    async def _read(self, start: LedgerStart) -> None:
        damaged = len(start.damaged)
        await read_segments(self._connection, self._shard, start)
        for error in start.damaged[damaged:]:
            _log.error("%s; it is not believed, the segment before it is read instead", error)

    async def believe(self) -> int:
        """Take in what clusters said up to the ledger's position; returns that."""
        position = self.machine.world.position
        believed = self._believed = self._believed or recovery.LastBelieved(self.machine)

        def add(batch: Sequence[StoredMessage]) -> None:
            believed.add(batch)
            self._up_to = batch[-1].stream_sequence

        async with aclosing(self._state.read(self._up_to, position)) as batches:
            async for batch in batches:
                await to_thread.run_sync(add, batch)
        await to_thread.run_sync(believed.take_in)
        return position

    async def believe_or_begin_again(self) -> int:
        """For a leader: the same, and where messages after the position are lost, go on from the last ones.

        Returns: where the log goes on.
        """
        position = self.machine.world.position
        state = await stream_state(self._connection, STATE_STREAM)
        if state.last_sequence < position:
            raise LedgerLostError(
                f"{STATE_STREAM} ends at {state.last_sequence}, and the ledger has read it up to {position}: it was"
                f" lost, or is an older copy. {REMEDY}"
            )
        if state.first_sequence <= position + 1:
            return await self.believe()
        _log.warning(
            "state up to %d is needed, but begins at %d: starting from the last messages",
            position + 1,
            state.first_sequence,
        )
        if self._up_to:  # nothing may be believed that cannot be read any more
            self._forget()
            await self.read_ledger()
        messages = await self._state.last_messages((), state.last_sequence)
        recovery.position_expired(self.machine, messages, state.last_sequence)
        return state.last_sequence


async def read_segments(connection: Connection, shard: str, start: LedgerStart) -> None:
    """Read what `start` wants until it wants nothing; after an interruption, from there on.

    Raises: BusError; LedgerLostError, UnreadableEntryError, InvariantError, see LedgerStart.
    """
    while start.wanted is not None:
        ledger = LedgerStore(connection, ledger_stream(shard, start.wanted))
        async with aclosing(ledger.read_all(start.after)) as batches:
            async for batch in batches:
                await to_thread.run_sync(start.add, batch)
        await to_thread.run_sync(start.end)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Most of what is made meanwhile stays, and nothing of it needs the collector to go (there is a test): looking
    through it again and again takes most of a start and a fifth of each step, and a look at all seconds.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
