"""The agent at the bus: publish state by compare-and-set, follow what is addressed to its cluster."""

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream

from schemas.client.connection import REQUEST_DEADLINE_S, Connection, raise_api_error
from schemas.client.errors import BusError, BusRefusedError, BusUnavailableError
from schemas.client.follow import WINDOW, Delivered, Follower, Pull, create_consumer, follow
from schemas.client.reader import StreamReader
from schemas.wire.bus import OutgoingMessage, ReceivedMessage, StoredMessage, pack
from schemas.wire.codec import WireError, decode_entry
from schemas.wire.ledger import own_sequence
from schemas.wire.subjects import PREFIX, STATE_STREAM, ask_subject, beat_subject, encode_key

_log = logging.getLogger(__name__)

WRONG_LAST_SEQUENCE = 10071
CONSUMER_NOT_FOUND = 10014
RETRY_S = 0.5
ACK_WAIT_S = 30  # an entry that was not acknowledged comes again after this
LOOK_FOR_SEGMENTS_S = 10.0  # how long a segment is silent before we look whether there is a later one


class Published(msgspec.Struct, frozen=True):
    """The message is stored.

    is_duplicate: a message of this id was there already and nothing new was stored: right for a publish that was tried
    again, the trap for a new one that repeats an id.
    """

    stream_sequence: int
    is_duplicate: bool = False


class RefusedBySubject(msgspec.Struct, frozen=True):
    """The subject's last message is another one than expected. Read it again."""


class Uncertain(msgspec.Struct, frozen=True):
    """The message may be stored, now or later. Read the subject again."""

    reason: str


class AgentBus:
    """What one cluster's agent says and hears."""

    def __init__(self, connection: Connection, cluster: str) -> None:
        self._connection = connection
        self._cluster = cluster
        self._state = StreamReader(connection, STATE_STREAM)

    async def wait_for_streams(self) -> None:
        """Return when DRA_STATE is there: the broker makes the streams, and the agent may have started first."""
        told = ""
        while True:
            try:
                await self._state.state()
                return
            except BusError as error:
                if str(error) != told:
                    told = str(error)
                    _log.warning("waiting for the broker to make stream %s: %s", STATE_STREAM, told)
            await anyio.sleep(RETRY_S)

    async def state_age_s(self) -> float:
        """How long DRA_STATE keeps a message; 0: for ever. Raises: BusUnavailableError, BusRefusedError."""
        answer = await self._connection.api(f"STREAM.INFO.{STATE_STREAM}")
        return msgspec.json.decode(answer, type=_StreamInfo).config.max_age / 1e9

    async def publish_state(
        self,
        message: OutgoingMessage,
        expected_last_subject_sequence: int,
        deadline_s: float = REQUEST_DEADLINE_S,
    ) -> Published | RefusedBySubject | Uncertain:
        """Store `message` in DRA_STATE if its subject's last message has this stream sequence (0: there is none).

        A large payload is compressed on the way.
        Raises: MessageTooLargeError, nothing was sent.
        """
        packed = pack(message)
        headers = {**packed.headers, "Nats-Expected-Last-Subject-Sequence": str(expected_last_subject_sequence)}
        try:
            reply = await self._connection.request(packed.subject, packed.payload, headers, deadline_s=deadline_s)
            raise_api_error(f"state on {packed.subject}", reply.payload)
            ack = msgspec.json.decode(reply.payload, type=_PubAck)
        except BusRefusedError as error:
            return RefusedBySubject() if error.err_code == WRONG_LAST_SEQUENCE else Uncertain(str(error))
        except BusUnavailableError as error:
            return Uncertain(str(error))
        if ack.stream != STATE_STREAM or not ack.seq:
            return Uncertain(f"the server's ack does not fit: {ack}")
        return Published(ack.seq, ack.duplicate)

    async def last_message(self, subject: str) -> StoredMessage | None:
        """The last message on `subject`, as the leader has it. Raises: BusUnavailableError, BusRefusedError."""
        return await self._state.last(subject)

    async def last_messages(self, subject_filter: str = "") -> list[StoredMessage]:
        """The last message of each of the cluster's subjects (that match), ascending by sequence.

        Raises: BusUnavailableError, BusRefusedError.
        """
        return await self._state.last_messages([subject_filter or f"{PREFIX}.state.{self._cluster}.>"])

    def follow_subject(self, subject: str, after: int = 0) -> AbstractAsyncContextManager[Follower]:
        """Every message on `subject` after the stream sequence `after`, as soon as it is stored.

        `await follower.next_batch()` gives a list; StreamLostError when DRA_STATE ends before `after`.
        """
        return follow(self._connection, STATE_STREAM, after, [subject])

    @asynccontextmanager
    async def follow_ledger(self, after: int = 0) -> AsyncIterator["LedgerFollower"]:
        """The ledger's entries for this cluster, through a durable consumer: what was acknowledged does not come again.

        after: the ledger sequence where the consumer begins when it is made for the first time.
        """
        follower = LedgerFollower(self._connection, self._cluster, after)
        try:
            yield follower
        finally:
            await follower.close()

    async def last_decision(self, uid: str) -> StoredMessage | None:
        """The ledger's last decision (Allocate or Release) for a claim, of all segments; None without one.

        Raises: BusUnavailableError, BusRefusedError.
        """
        subject = f"{PREFIX}.ledger.*.*.{self._cluster}.claim.{encode_key(uid)}"
        found = [
            message
            for stream in await ledger_streams(self._connection, self._cluster)
            if (message := await StreamReader(self._connection, stream).last(subject)) is not None
        ]
        return max(found, key=_known_by, default=None)

    async def last_ledger_messages(self, pattern: str = ">") -> list[StoredMessage]:
        """The last entry of each subject `dra.v1.ledger.*.*.<cluster>.<pattern>`, ascending by ledger sequence.

        The sequence is an entry's own, where a checkpoint states it again.
        pattern: `claim.>` gives all last decisions, `class.>` the brokered classes. A subject names its segment, so one
            key may come once per segment: the last one counts.
        Raises: BusUnavailableError, BusRefusedError.
        """
        found: list[StoredMessage] = []
        for stream in await ledger_streams(self._connection, self._cluster):
            reader = StreamReader(self._connection, stream)
            found += await reader.last_messages([f"{PREFIX}.ledger.*.*.{self._cluster}.{pattern}"])
        return sorted(found, key=_known_by)

    def follow_asks(
        self, messages_max: int = 100
    ) -> AbstractAsyncContextManager[MemoryObjectReceiveStream[ReceivedMessage]]:
        """The broker's asks; dropped while `messages_max` wait to be read, for they are repeated until answered."""
        return self._connection.listen(ask_subject(self._cluster), messages_max)

    async def beat(self, payload: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a heartbeat. Raises: BusUnavailableError without a connection."""
        await self._connection.publish(beat_subject(self._cluster), payload, headers)


class LedgerFollower:
    """Ledger entries for one cluster, of the last segment. Made by `AgentBus.follow_ledger`.

    Whatever is unsettled when a segment is closed the next one states again: there is nothing to wait for in the old
    one, where an entry that takes long to settle would keep all that follows it waiting.
    It knows of one shard at a time: with several, each needs a follower of its own.
    Two agents of one cluster share the consumer and each get a part of the entries: an ack moves it on, and proves
    nothing about what became of a decision.
    """

    def __init__(self, connection: Connection, cluster: str, after: int) -> None:
        self._connection = connection
        self._cluster = cluster
        self._after = after
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

        An entry that is not acknowledged with `ack` comes again, later than others. It may be cancelled and called
        again.
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

    async def ack(self, delivered: Delivered) -> None:
        """The entry need not come again. Lost with the connection, it comes once more."""
        try:
            await self._connection.publish(delivered.ack_subject, b"+ACK")
        except BusUnavailableError as error:
            _log.debug("an ack was lost: %s", error)

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
                streams = await ledger_streams(self._connection, self._cluster)
                if not streams:
                    raise BusUnavailableError("no ledger exists yet: the broker makes it")
                self._segment = streams[-1]
                name = f"agent_{self._cluster}"
                await self._ensure_consumer(self._segment, name)
                pull = Pull(self._connection, self._segment, name)
                await self._held.enter_async_context(pull.opened())
            except BusError as error:
                if str(error) != told:
                    told = str(error)
                    _log.warning("cannot follow the ledger yet, trying again: %s", told)
                await anyio.sleep(RETRY_S)
                continue
            self._pull = pull
            return

    async def _ensure_consumer(self, stream: str, name: str) -> None:
        """Make the durable consumer if it is absent."""
        try:
            await self._connection.api(f"CONSUMER.INFO.{stream}.{name}")
        except BusRefusedError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
            config: dict[str, Any] = {
                "durable_name": name,
                "name": name,
                "ack_policy": "explicit",
                "ack_wait": ACK_WAIT_S * 1_000_000_000,
                "max_ack_pending": WINDOW,
                "deliver_policy": "by_start_sequence",
                "opt_start_seq": self._after + 1,
            }
            await create_consumer(self._connection, stream, name, config, [f"{PREFIX}.ledger.*.*.{self._cluster}.>"])

    async def _has_later(self) -> bool:
        try:
            streams = await ledger_streams(self._connection, self._cluster)
        except BusError:
            return False
        return bool(streams) and streams[-1] != self._segment


async def ledger_streams(connection: Connection, cluster: str) -> list[str]:
    """The segments of all ledgers that may hold entries for `cluster`, in order of shard and segment.

    Raises: BusUnavailableError, BusRefusedError.
    """
    answer = await connection.api("STREAM.NAMES", {"subject": f"{PREFIX}.ledger.*.*.{cluster}.>"})
    return sorted(msgspec.json.decode(answer, type=_StreamNames).streams or [], key=_shard_and_segment)


def _known_by(message: StoredMessage) -> int:
    """The ledger sequence by which the entry is known; where it stands, if it cannot be read."""
    try:
        entry = decode_entry(message.payload)
    except WireError:
        return message.stream_sequence
    return own_sequence(entry, message.stream_sequence)


def _shard_and_segment(stream: str) -> tuple[str, int]:
    shard, _, segment = stream.rpartition("_")
    return shard, int(segment) if segment.isdigit() else 0


class _PubAck(msgspec.Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False


class _StreamConfig(msgspec.Struct):
    max_age: int = 0


class _StreamInfo(msgspec.Struct):
    config: _StreamConfig


class _StreamNames(msgspec.Struct):
    streams: list[str] | None = None
