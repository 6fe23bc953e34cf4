"""What agents read through: consumers that the broker makes for them, because they may make none themselves.

Whoever makes a consumer chooses where its messages are delivered, so that right would be one to write anywhere.
"""

from collections.abc import Collection
from typing import Any

import msgspec

from broker.adapters.api_service import ApiError
from schemas.client.connection import Connection, read_answer
from schemas.client.errors import BusError, BusRefusedError
from schemas.client.follow import CONSUMER_LIFE_S, WINDOW, create_consumer
from schemas.client.reader import StreamReader
from schemas.wire.calls import Join, Joined, LedgerSegment
from schemas.wire.codec import WireError, decode_call, encode
from schemas.wire.subjects import PREFIX, STATE_STREAM, agent_consumer

CONSUMER_NOT_FOUND = 10014
ACK_WAIT_S = 30  # an entry that was not acknowledged comes again after this
_NS = 1_000_000_000


class AgentConsumers:
    """Answers `dra.v1.api.join.<cluster>`. clusters: who takes part; empty: anybody.

    ledger: the stream of the last segment that is open: what agents need of earlier ones its checkpoint states again.
    One that is being opened does not say all yet.
    """

    def __init__(self, connection: Connection, ledger: str, clusters: Collection[str] = ()) -> None:
        self._connection = connection
        self._clusters = clusters
        self.ledger = ledger

    async def join(self, cluster: str, payload: bytes) -> bytes:
        """Make what `cluster`'s agent reads through, and say what it finds there. Raises: ApiError."""
        if self._clusters and cluster not in self._clusters:
            raise ApiError(404, f"cluster {cluster} is not in the broker's config: add it to clusters there")
        try:
            call = decode_call(payload)
        except WireError as error:
            raise ApiError(400, f"join takes a Join: {error}") from error
        last_of = call.last_of if isinstance(call, Join) else ""
        try:
            return encode(await self._join(cluster, last_of))
        except BusError as error:
            raise ApiError(503, f"the streams cannot be read now: {error}") from error

    async def _join(self, cluster: str, last_of: str) -> Joined:
        name = agent_consumer(cluster)
        state_last = 0
        if last_of == "state":
            state_last = await self._offer_last(STATE_STREAM, name, f"{PREFIX}.state.{cluster}.>")
        ledger, last = self.ledger, 0
        await self._ensure_durable(ledger, name, f"{PREFIX}.ledger.*.*.{cluster}.>")
        kind = {"ledger": "claim", "classes": "class"}.get(last_of)
        if kind is not None:
            last = await self._offer_last(ledger, name, f"{PREFIX}.ledger.*.*.{cluster}.{kind}.>")
        request = f"STREAM.INFO.{STATE_STREAM}"
        info = read_answer(request, await self._connection.api(request), _StreamInfo)
        return Joined(info.config.max_age / _NS, state_last, [LedgerSegment(ledger, last)])

    async def _offer_last(self, stream: str, name: str, subjects: str) -> int:
        """A new consumer of the last message of each of `subjects`; returns the sequence of the very last, 0: none.

        As the stream's leader names it: a replica that delivers them may lag.
        """
        name = f"{name}_last"
        try:
            await self._connection.api(f"CONSUMER.DELETE.{stream}.{name}")
        except BusRefusedError as error:
            if error.err_code != CONSUMER_NOT_FOUND:
                raise
        last = await StreamReader(self._connection, stream).last(subjects)
        config = {
            "name": name,
            "ack_policy": "none",
            "max_deliver": 1,
            "deliver_policy": "last_per_subject",
            "num_replicas": 1,
            "mem_storage": True,
            "inactive_threshold": int(CONSUMER_LIFE_S * _NS),
        }
        await create_consumer(self._connection, stream, name, config, [subjects])
        return last.stream_sequence if last is not None else 0

    async def _ensure_durable(self, stream: str, name: str, subjects: str) -> None:
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
                "ack_wait": ACK_WAIT_S * _NS,
                "max_ack_pending": WINDOW,
                "deliver_policy": "all",
            }
            await create_consumer(self._connection, stream, name, config, [subjects])


class _StreamConfig(msgspec.Struct):
    max_age: int = 0


class _StreamInfo(msgspec.Struct):
    config: _StreamConfig
