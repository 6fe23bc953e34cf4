"""Follow the public events: those that are kept, from where you like, and then those that come, each once and in order.

    async with connect(BusOptions(("nats://nats:4222",))) as connection:
        async for received in subscribe(connection, types=[ClaimAllocated], cluster="east", since=Since.seconds(3600)):
            print(received.event.claim.name, received.event.devices)

All that is needed at NATS is to hear `dra.v1.events.>` and to ask for kept messages by direct get: no consumer is made.
With a durable name NATS keeps the place, in a consumer of that name (`schemas.client.durable`).
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection
from contextlib import AsyncExitStack, aclosing

import anyio
import msgspec

from schemas.client.connection import Connection
from schemas.client.durable import durable_messages
from schemas.client.errors import BusUnavailableError
from schemas.client.kept import KeptMessages
from schemas.client.since import Since
from schemas.errors import UNREADABLE
from schemas.events import AnyEvent, PublicEvent
from schemas.wire.bus import StoredMessage
from schemas.wire.subjects import EVENTS_STREAM, PREFIX

__all__ = ["Received", "Since", "subscribe"]

IDS_REMEMBERED = 50_000  # of events that were handed out last: what comes again, comes within some minutes
LOOK_AGAIN_S = 5.0  # also where nothing was heard: a message that only wakes us may be lost
_events: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


class Received(msgspec.Struct, frozen=True):
    """An event with its CloudEvents attributes.

    event: None where this build does not know its type; `payload` has it as it is.
    id: the same for the same event for ever. stream_sequence: where to go on, see `Since.after`.
    """

    event: AnyEvent | None
    type: str
    id: str
    time: str
    stream_sequence: int
    subject: str
    headers: dict[str, str]
    payload: bytes


async def subscribe(
    connection: Connection,
    *,
    types: Collection[type[PublicEvent] | str] = (),
    cluster: str = "",
    since: Since = Since(is_new=True),  # noqa: B008  # immutable
    follow: bool = True,
    durable: str = "",
) -> AsyncGenerator[Received, None]:
    """Events in the order of the ledger, each once, through lost connections and restarted servers.

    types: of the events, or their CloudEvents types; () is all, unknown ones too. cluster: of this one only.
    follow: go on with what comes; else end when all that is kept was given.
    durable: a name under which NATS keeps the place: an event is done with when the next is asked for, and one that
        was not done with comes again, in this run never. `since` is where a new name begins. Runs with one name share
        the events; the same `types` and `cluster` belong to it, for others' events are done with unseen.
    Raises: BusRefusedError when NATS does not let us; without `follow` BusUnavailableError; ValueError when `durable`
        is no name.
    """
    wanted = {each if isinstance(each, str) else str(each.__struct_config__.tag) for each in types}
    pattern = f"{PREFIX}.events.{cluster or '*'}.>"
    if durable:
        found = durable_messages(connection, durable, since, follow=follow)
    else:
        found = _kept_and_new(connection, pattern, since, follow=follow)
    prefix = f"{PREFIX}.events.{cluster}." if cluster else ""
    known: OrderedDict[str, None] = OrderedDict()
    async with aclosing(found) as messages:
        async for message in messages:
            received = _received(message)
            event_id = received.id or str(received.stream_sequence)
            if event_id in known or not received.subject.startswith(prefix):
                continue
            if not wanted or received.type in wanted:
                yield received
                known[event_id] = None
                if len(known) > IDS_REMEMBERED:
                    known.popitem(last=False)


async def _kept_and_new(
    connection: Connection, pattern: str, since: Since, *, follow: bool
) -> AsyncGenerator[StoredMessage, None]:
    """What the stream has, by direct get, and then what comes."""
    news = anyio.Event()

    def wake(*_: bytes) -> None:
        news.set()

    async with AsyncExitStack() as held:
        if follow:
            await held.enter_async_context(connection.hear(pattern, wake))
        kept = KeptMessages(connection, EVENTS_STREAM, pattern)
        start: dict[str, object] = {"seq": since.sequence + 1}
        if since.is_new:
            start = {"seq": await kept.last(f"{PREFIX}.events.>") + 1}
        elif since.time is not None:
            start = {"start_time": since.time_text}
        while True:
            news = anyio.Event()  # before asking: what comes while we ask wakes us again
            try:
                messages = await kept.begin(start)
            except BusUnavailableError:
                if not follow:
                    raise
                messages = []
            for message in messages:
                start = {"seq": message.stream_sequence + 1}
                yield message
            if not messages:
                if not follow:
                    return
                with anyio.move_on_after(LOOK_AGAIN_S):
                    await news.wait()


def _received(message: StoredMessage) -> Received:
    headers = dict(message.headers)
    try:
        event: AnyEvent | None = _events.decode(message.payload)
    except UNREADABLE:
        event = None
    return Received(
        event,
        headers.get("ce-type", ""),
        headers.get("ce-id", ""),
        headers.get("ce-time", ""),
        message.stream_sequence,
        message.subject,
        headers,
        message.payload,
    )
