"""Read what a stream keeps by direct gets, many messages an answer: no consumer is made, and none need be permitted.

A consumer's maker may have its messages delivered to any subject of the account; an answer goes to its asker. Any
replica answers, perhaps one that lags: what is not there yet is asked for again.
"""

import anyio
import msgspec

from schemas.client.connection import Connection
from schemas.client.errors import BusRefusedError, BusUnavailableError
from schemas.wire.bus import ReceivedMessage, StoredMessage, parse_headers, status_of, stored_from_direct_get

BATCH = 200  # messages asked for at a time
ANSWER_S = 5.0  # without a message of the answer


class KeptMessages:
    """What `stream` keeps on subjects that match `pattern`."""

    def __init__(self, connection: Connection, stream: str, pattern: str, batch: int = BATCH) -> None:
        self.stream = stream
        self._connection = connection
        self._pattern = pattern
        self._batch = batch
        self._request = f"$JS.API.DIRECT.GET.{stream}"

    async def last(self, pattern: str) -> int:
        """The stream sequence of the last message on `pattern`, 0 without one.

        Raises: BusUnavailableError; BusRefusedError.
        """
        reply = await self._connection.request(
            self._request, msgspec.json.encode({"last_by_subj": pattern}), deadline_s=ANSWER_S
        )
        if "Nats-Sequence" in reply.headers:
            return int(reply.headers["Nats-Sequence"])
        _raise_refusal(self._request, reply.headers)
        return 0

    async def after(self, position: int) -> list[StoredMessage]:
        """Up to a batch of messages after that sequence; [] where there are none yet. Raises: as `begin`."""
        return await self.begin({"seq": position + 1})

    async def begin(self, start: dict[str, object]) -> list[StoredMessage]:
        """Up to a batch of messages from there on, in the words of NATS; [] where there are none yet.

        Raises: BusUnavailableError; BusRefusedError.
        """
        found: list[StoredMessage] = []
        came = anyio.Event()
        refused: dict[str, str] = {}
        unreadable = ""
        is_done = False

        def keep(_subject: bytes, _reply: bytes, payload: bytes, headers: bytes) -> None:
            nonlocal is_done, unreadable
            fields = parse_headers(headers)
            if "Nats-Sequence" in fields:
                try:
                    found.append(stored_from_direct_get(ReceivedMessage("", payload, fields)))
                except ValueError as error:
                    unreadable = str(error)
            else:
                status, text = status_of(headers)
                if status not in ("204", "404"):  # the end of the batch; there is none
                    refused.update({"Status": status, "Description": text})
                is_done = True
            came.set()

        ask = {**start, "batch": self._batch, "next_by_subj": self._pattern}
        async with self._connection.inbox(keep) as inbox:
            await self._connection.publish(self._request, msgspec.json.encode(ask), reply=inbox)
            while not is_done:
                with self._connection.wait_scope(ANSWER_S) as scope:
                    await came.wait()
                if scope.cancelled_caught:
                    raise BusUnavailableError(f"no answer about what {self.stream} keeps within {ANSWER_S:g} s")
                came = anyio.Event()
        if refused:
            _raise_refusal(self._request, refused)
        if unreadable and not found:
            raise BusUnavailableError(f"no answer about what {self.stream} keeps can be read: {unreadable}")
        return found


def _raise_refusal(request: str, headers: dict[str, str]) -> None:
    status = headers.get("Status", "")
    if status and status != "404":
        raise BusRefusedError(request, int(status) if status.isdigit() else 0, 0, headers.get("Description", ""))
