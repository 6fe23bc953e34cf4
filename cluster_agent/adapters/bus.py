"""The agent at the bus: publish state by compare-and-set, follow what is addressed to its cluster.

An agent may read very little (docs/nats.md): the last message of a subject of its own, by direct get, and what comes
through consumers that the broker makes when it is asked to (`Join`). So nothing begins before a broker leads.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from cluster_agent.adapters.state_publisher import Result, StatePublisher
from schemas.client.api import ApiError, call_api
from schemas.client.client import as_published
from schemas.client.connection import REQUEST_DEADLINE_S, Connection
from schemas.client.errors import BusError, BusUnavailableError
from schemas.client.follow import WINDOW, Delivered, Pull
from schemas.client.reader import PROGRESS_DEADLINE_S, StreamReader
from schemas.wire.bus import OutgoingMessage, ReceivedMessage, StoredMessage
from schemas.wire.calls import Join, Joined
from schemas.wire.codec import WireError, decode_call, decode_entry, encode
from schemas.wire.ledger import own_sequence
from schemas.wire.subjects import (
    STATE_STREAM,
    agent_consumer,
    ask_subject,
    beat_subject,
    join_subject,
    ledger_subject,
)

_log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.02
RETRY_S = 0.5
LOOK_FOR_SEGMENTS_S = 10.0  # how long a segment is silent before we look whether there is a later one


class AgentBus:
    """What one cluster's agent says and hears."""

    def __init__(self, connection: Connection, cluster: str) -> None:
        self._connection = connection
        self.cluster = cluster
        self._state = StreamReader(connection, STATE_STREAM)
        self.publisher = StatePublisher(connection)

    async def wait_for_broker(self) -> Joined:
        """Return when a broker leads and has made what we read; we may have started first."""
        told = ""
        delay_s = RETRY_FIRST_S
        while True:
            try:
                return await self.join()
            except BusError as error:
                # Both may have been started in the same moment: that is nothing to tell.
                if str(error) != told and delay_s >= RETRY_S:
                    told = str(error)
                    _log.warning("waiting for the broker: %s", told)
            await anyio.sleep(delay_s)
            delay_s = min(2 * delay_s, RETRY_S)

    async def join(self, last_of: str = "") -> Joined:
        """Ask the broker what we may read. Raises: BusUnavailableError, until a broker leads."""
        verb = join_subject(self.cluster).split(".", 3)[3]
        try:
            answer = decode_call(await call_api(self._connection, verb, encode(Join(last_of)), REQUEST_DEADLINE_S))
        except (ApiError, WireError) as error:
            raise BusUnavailableError(f"the broker does not let cluster {self.cluster} join: {error}") from error
        if not isinstance(answer, Joined):
            raise BusUnavailableError(f"the broker answers a join with {type(answer).__name__}")
        return answer

    async def publish_state(
        self,
        message: OutgoingMessage,
        expected_last_subject_sequence: int,
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> Result:
        """Store `message` in DRA_STATE if its subject's last message has this stream sequence (0: there is none).

        A large payload is compressed on the way; many messages at once travel together.
        Raises: MessageTooLargeError, nothing was sent.
        """
        return await self.publisher.publish(message, expected_last_subject_sequence, deadline_s)

    async def last_message(self, subject: str, at_least: int = 0) -> StoredMessage | None:
        """The last message on `subject`, which is one of ours.

        at_least: a sequence that we have heard of; a replica that lags behind it is not believed.
        Raises: BusUnavailableError, BusRefusedError.
        """
        found = await self._state.direct_last(subject)
        if at_least > (found.stream_sequence if found is not None else 0):
            raise BusUnavailableError(f"a replica of {STATE_STREAM} lags behind message {at_least} on {subject}")
        return found

    async def last_messages(self) -> list[StoredMessage]:
        """The last message of each of the cluster's subjects, ascending by sequence.

        Raises: BusUnavailableError, BusRefusedError.
        """
        joined = await self.join("state")
        return await self._read_last(STATE_STREAM, joined.state_last)

    @asynccontextmanager
    async def follow_ledger(self) -> AsyncIterator["LedgerFollower"]:
        """The ledger's entries for this cluster; what was acknowledged does not come again."""
        follower = LedgerFollower(self._connection, self)
        try:
            yield follower
        finally:
            await follower.close()

    async def last_decision(self, uid: str) -> StoredMessage | None:
        """The ledger's last decision (Allocate or Release) for a claim, as its open segment has it; None without one.

        As some replica has it. A decision that it does not have yet comes through the durable consumer.
        Raises: BusUnavailableError, BusRefusedError.
        """
        return max(await self._last_in_segments("claim", uid), key=_known_by, default=None)

    async def last_about_cluster(self, key: str) -> StoredMessage | None:
        """The open segment's last entry about the cluster itself under this key; None without one.

        Raises: BusUnavailableError, BusRefusedError.
        """
        found = await self._last_in_segments("cluster", key)
        return max(found, key=lambda message: message.stream_sequence, default=None)

    async def _last_in_segments(self, kind: str, key: str) -> list[StoredMessage]:
        found = []
        for segment in (await self.join()).segments:
            _, shard, number = segment.stream.rsplit("_", 2)
            subject = ledger_subject(shard, int(number), self.cluster, kind, key)
            message = await StreamReader(self._connection, segment.stream).direct_last(subject)
            if message is not None:
                found.append(message)
        return found

    async def last_decisions(self) -> list[StoredMessage]:
        """The last decision for each claim, ascending by ledger sequence: an entry's own, where a checkpoint states it.

        One that is settled and holds nothing is not stated again, and of no concern any more.
        Raises: BusUnavailableError, BusRefusedError.
        """
        return sorted(await self._last_in_ledger("ledger"), key=_known_by)

    async def last_classes(self) -> list[StoredMessage]:
        """What the ledger says last of each brokered class of the hub; nothing from a broker that cannot say it.

        Raises: BusUnavailableError, BusRefusedError.
        """
        return await self._last_in_ledger("classes")

    async def _last_in_ledger(self, last_of: str) -> list[StoredMessage]:
        found: list[StoredMessage] = []
        for segment in (await self.join(last_of)).segments:
            found += await self._read_last(segment.stream, segment.last_sequence)
        return found

    async def _read_last(self, stream: str, until: int) -> list[StoredMessage]:
        """What the consumer of last messages delivers, up to a sequence that the stream's leader has named."""
        by_subject: dict[str, StoredMessage] = {}
        position = count = 0
        async with Pull(self._connection, stream, f"{agent_consumer(self.cluster)}_last").opened() as pull:
            while position < until:
                delivered: list[Delivered] = []
                with anyio.move_on_after(PROGRESS_DEADLINE_S):
                    delivered = await pull.take(WINDOW)
                for one in delivered:
                    count += 1
                    if one.delivery.consumer_sequence != count:
                        delivered = []  # something fell out of a queue, or another agent of the cluster reads it too
                        break
                    by_subject[one.message.subject] = one.message
                    position = one.message.stream_sequence
                if not delivered:
                    raise BusUnavailableError(f"reading stream {stream} was cut at {position} of {until}")
        return sorted(by_subject.values(), key=lambda message: message.stream_sequence)

    def follow_asks(
        self, messages_max: int = 100
    ) -> AbstractAsyncContextManager[MemoryObjectReceiveStream[ReceivedMessage]]:
        """The broker's asks; dropped while `messages_max` wait to be read, for they are repeated until answered."""
        return self._connection.listen(ask_subject(self.cluster), messages_max)

    async def beat(self, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a heartbeat. Raises: BusUnavailableError without a connection."""
        await self._connection.publish(beat_subject(self.cluster), payload, headers)


class LedgerFollower:
    """Ledger entries for one cluster, of the last segment. Made by `AgentBus.follow_ledger`.

    Whatever is unsettled when a segment is closed the next one states again: there is nothing to wait for in the old
    one, where an entry that takes long to settle would keep all that follows it waiting.
    It knows of one shard at a time: with several, each needs a follower of its own.
    Two agents of one cluster share the consumer and each get a part of the entries: an ack moves it on, and proves
    nothing about what became of a decision.
    """

    def __init__(self, connection: Connection, bus: AgentBus) -> None:
        self._connection = connection
        self._bus = bus
        self._segment = ""
        self._pull: Pull | None = None
        self._held = AsyncExitStack()
        self._told_of = ""  # a segment's stream
        self._waiting = anyio.CancelScope()

    def goes_on_in(self, stream: str) -> None:
        """The broker says that the ledger goes on in `stream`: look at once, not after a while."""
        self._told_of = stream
        self._waiting.cancel()

    async def next_batch(self, messages_max: int = WINDOW) -> list[Delivered]:
        """The next entries: those that are there, at once; else wait until there is one. Never empty.

        An entry that is not acknowledged comes again, later than others. It may be cancelled and called again.
        """
        while True:
            if self._pull is None:
                await self._start()
            assert self._pull is not None
            delivered: list[Delivered] = []
            if self._told_of in ("", self._segment):
                with anyio.move_on_after(LOOK_FOR_SEGMENTS_S) as self._waiting:
                    delivered = await self._pull.take(messages_max)
            if delivered:
                return delivered
            self._told_of = ""
            # Lost, or silent for long, or told: then there may be a later segment, and this one is closed for good.
            if not self._waiting.cancelled_caught or await self._has_later():
                await self.close()

    async def acknowledge(self, entries: Sequence[Delivered]) -> None:
        """These need not come again. Lost with the connection, they come once more."""
        acks = [as_published(each.ack_subject, b"", b"+ACK") for each in entries]
        try:
            await self._connection.publish_all(b"".join(acks), entries[0].ack_subject)
        except BusUnavailableError as error:
            _log.debug("acks were lost: %s", error)

    async def close(self) -> None:
        """Stop listening; the durable consumer stays."""
        self._pull = None
        held, self._held = self._held, AsyncExitStack()
        await held.aclose()

    async def _start(self) -> None:
        """Listen to the last segment; try until there is one."""
        told = ""
        while True:
            try:
                segments = (await self._bus.join()).segments
                if not segments:
                    raise BusUnavailableError("no ledger exists yet: the broker makes it")
                self._segment = segments[-1].stream
                pull = Pull(self._connection, self._segment, agent_consumer(self._bus.cluster))
                await self._held.enter_async_context(pull.opened())
            except BusError as error:
                if str(error) != told:
                    told = str(error)
                    _log.warning("cannot follow the ledger yet, trying again: %s", told)
                await anyio.sleep(RETRY_S)
                continue
            self._pull = pull
            return

    async def _has_later(self) -> bool:
        try:
            segments = (await self._bus.join()).segments
        except BusError:
            return False
        return bool(segments) and segments[-1].stream != self._segment


def _known_by(message: StoredMessage) -> int:
    """The ledger sequence by which the entry is known; where it stands, if it cannot be read."""
    try:
        entry = decode_entry(message.payload)
    except WireError:
        return message.stream_sequence
    return own_sequence(entry, message.stream_sequence)
