"""Messages that a stream stores in order, and as an atomic batch, all of them or none, if they say so."""

from collections.abc import Sequence

import msgspec

from schemas.client.client import as_published
from schemas.client.connection import Connection, raise_api_error, read_answer
from schemas.client.errors import BusUnavailableError
from schemas.wire.bus import OutgoingMessage, header_block


class PubAck(msgspec.Struct):
    """What a stream answers. seq: of the last message. count: how many an atomic batch had, else 0."""

    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    count: int = 0


def as_batch(messages: Sequence[OutgoingMessage], name: str) -> list[OutgoingMessage]:
    """The messages with the headers of an atomic batch.

    name: a new one for every try: with that of a try whose remains the server still holds, it would take the first
        message for a gap.
    """
    batch = []
    for number, message in enumerate(messages, start=1):
        headers = {**message.headers, "Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)}
        if number == len(messages):
            headers["Nats-Batch-Commit"] = "1"
        batch.append(OutgoingMessage(message.subject, message.payload, headers))
    return batch


async def send_in_order(
    connection: Connection, messages: Sequence[OutgoingMessage], what: str, deadline_s: float
) -> PubAck:
    """Send the messages and wait for the ack of the last. what: they are, for errors.

    Raises: MessageTooLargeError before anything is sent; BusUnavailableError; BusRefusedError.
    """
    losses = connection.losses
    ready = []
    for message in messages:
        block = header_block(message.headers)
        connection.check_bytes(message.subject, len(block) + len(message.payload))
        ready.append(as_published(message.subject, block, message.payload))
    if len(ready) > 1:
        await connection.publish_all(b"".join(ready[:-1]), messages[0].subject)
        if losses != connection.losses or not connection.is_up:
            raise BusUnavailableError("the connection was lost in the middle of the batch")
    last = messages[-1]
    reply = await connection.request(last.subject, last.payload, last.headers, deadline_s=deadline_s)
    raise_api_error(what, reply.payload)
    return read_answer(what, reply.payload, PubAck)
