"""Messages as the bus carries them: subject, headers, bytes. What the payload says is read elsewhere (`codec`).

Pure: the connection to NATS is in `schemas.client`. A large state payload travels compressed: `pack`, `body`.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

import msgspec
import zstandard

MESSAGE_ID = "Nats-Msg-Id"
CONTENT_ENCODING = "Content-Encoding"

PACK_ABOVE_BYTES = 64 * 1024
_ENDS_OF_LINES = str.maketrans("\r\n", "  ")
BODY_BYTES_MAX = 16 * 1024 * 1024  # far above any object that an API server stores (1.5 MiB)


class PayloadError(ValueError):
    """A payload cannot be unpacked: a poison message, to be kept aside."""


class OutgoingMessage(msgspec.Struct, frozen=True):
    """A message to publish.

    headers: `Nats-Msg-Id` names this publish: the same when it is tried again, a new one for every other publish, even
    of equal content (the server silently drops a repeated id).
    """

    subject: str
    payload: bytes
    headers: dict[str, str] = {}

    @property
    def message_id(self) -> str:
        """Its id, "" without one."""
        return self.headers.get(MESSAGE_ID, "")


class ReceivedMessage(msgspec.Struct, frozen=True):
    """A message that no stream keeps: a heartbeat, an ask, a reply."""

    subject: str
    payload: bytes
    headers: dict[str, str] = {}


class StoredMessage(msgspec.Struct, frozen=True):
    """A message as a stream keeps it.

    payload: the bytes as stored, perhaps compressed; `body` has what was meant.
    time_ms: the server's clock when it was stored, Unix milliseconds.
    """

    subject: str
    payload: bytes
    headers: Mapping[str, str]
    stream_sequence: int
    time_ms: int

    @property
    def message_id(self) -> str:
        """Its id, "" without one."""
        return self.headers.get(MESSAGE_ID, "")

    def body(self, bytes_max: int = BODY_BYTES_MAX) -> bytes:
        """The payload, unpacked. Raises: PayloadError if that fails, or gives more than `bytes_max`."""
        return unpack(self.payload, self.headers.get(CONTENT_ENCODING, ""), bytes_max)


def pack(message: OutgoingMessage) -> OutgoingMessage:
    """The same message, compressed if its payload is over 64 KiB; state messages only, everything else stays plain."""
    if len(message.payload) <= PACK_ABOVE_BYTES or CONTENT_ENCODING in message.headers:
        return message
    # Level 1: the payload is JSON full of repetition, where higher levels gain little and cost the agent's time.
    payload = zstandard.ZstdCompressor(level=1).compress(message.payload)
    return OutgoingMessage(message.subject, payload, {**message.headers, CONTENT_ENCODING: "zstd"})


def unpack(payload: bytes, encoding: str, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """Undo `pack`. Memory is bounded by `bytes_max` whatever the payload claims: a kilobyte can promise gigabytes."""
    if not encoding:
        return payload
    if encoding != "zstd":
        raise PayloadError(f"its Content-Encoding {encoding!r} is not known: expected zstd or none")
    try:
        # What the frame declares is read first (-1: nothing), then never more than bytes_max is written.
        if zstandard.frame_content_size(payload) > bytes_max:
            raise PayloadError(f"its payload unpacks to more than {bytes_max} bytes")
        body = zstandard.ZstdDecompressor().decompress(payload, max_output_size=bytes_max)
    except zstandard.ZstdError as error:
        raise PayloadError(f"its payload is not valid zstd of at most {bytes_max} bytes: {error}") from error
    return body


class _Stored(msgspec.Struct):
    """`message` of a JetStream stream_msg_get_response."""

    subject: str
    seq: int
    time: str
    hdrs: str = ""
    data: str = ""


def stored_from_api(raw: bytes) -> StoredMessage:
    """The `message` of JetStream's answer to STREAM.MSG.GET. Raises: ValueError if it is not one."""
    try:
        found = msgspec.json.decode(raw, type=_Stored)
        headers = parse_headers(base64.b64decode(found.hdrs))
        payload = base64.b64decode(found.data)
        time_ms = unix_ms(found.time)
    except (msgspec.MsgspecError, binascii.Error, ValueError) as error:
        raise ValueError(f"not a stored message as JetStream's API gives it: {error}") from error
    return StoredMessage(found.subject, payload, headers, found.seq, time_ms)


def stored_from_direct_get(reply: ReceivedMessage) -> StoredMessage:
    """JetStream's answer to DIRECT.GET. Raises: ValueError if it is not one."""
    headers = dict(reply.headers)
    try:
        subject, sequence, time = (headers.pop(f"Nats-{name}") for name in ("Subject", "Sequence", "Time-Stamp"))
        # The server appends its own; the first of them may be lost in a header block that does not end as it should.
        for of_a_batch in ("Nats-Stream", "Nats-Num-Pending", "Nats-Last-Sequence"):
            headers.pop(of_a_batch, None)
        return StoredMessage(subject, reply.payload, headers, int(sequence), unix_ms(time))
    except (KeyError, ValueError) as error:
        raise ValueError(f"not a stored message as a direct get gives it: {error!r}") from error


def unix_ms(rfc3339: str) -> int:
    """Milliseconds, cut off as `parse_delivery` cuts them: one message has one time however it was read."""
    seconds, _, fraction = rfc3339.removesuffix("Z").partition(".")
    return int(datetime.fromisoformat(seconds).replace(tzinfo=UTC).timestamp()) * 1000 + int(fraction[:3].ljust(3, "0"))


class HeaderBlock(Mapping[str, str]):
    """The headers of a message as they came, read when somebody asks for one that may be there: few do."""

    __slots__ = ("_block", "_headers")

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._headers: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        if self._headers is None and name.encode() not in self._block:
            raise KeyError(name)
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return repr(self._all())

    def _all(self) -> dict[str, str]:
        if self._headers is None:
            self._headers = parse_headers(self._block)
        return self._headers


def status_of(block: bytes) -> tuple[str, str]:
    """What the server says in the first line of a header block: a code and its description; "" without one."""
    _, _, status = block.partition(b"\r\n")[0].decode("utf-8", "replace").partition(" ")
    code, _, text = status.partition(" ")
    return (code, text) if code.isdigit() else ("", "")


def header_block(headers: Mapping[str, str]) -> bytes:
    """The headers as a NATS header block.

    Raises: ValueError where a line would not be one line, and so another header than was meant.
    """
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\r") != len(headers) or text.count("\n") != len(headers):
        raise ValueError(f"a header of a message may not have more than one line: {headers}")
    return f"NATS/1.0\r\n{text}\r\n".encode()


def one_line(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with a blank for each end of a line in a value, say a name that somebody else chose."""
    values = "".join(headers.values())
    if "\r" not in values and "\n" not in values:
        return dict(headers)
    return {name: value.translate(_ENDS_OF_LINES) for name, value in headers.items()}


def parse_headers(block: bytes) -> dict[str, str]:
    """A NATS header block as a dict; the last value of a repeated name wins."""
    headers = {}
    for line in block.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            headers[name.strip().decode("utf-8", "replace")] = value.strip().decode("utf-8", "replace")
    return headers


class Delivery(msgspec.Struct, frozen=True):
    """Where a delivered message stands, as the reply subject that comes with it says."""

    stream_sequence: int
    consumer_sequence: int
    time_ms: int
    messages_pending: int


def parse_delivery(reply: str) -> Delivery:
    """Read `$JS.ACK.<stream>.<consumer>.<delivered>.<sequences>...`, also with domain and account before the stream.

    Raises: ValueError if it is not one.
    """
    tokens = reply.split(".")
    if len(tokens) < 9 or tokens[:2] != ["$JS", "ACK"]:
        raise ValueError(f"{reply!r} is not a JetStream reply subject")
    stream_sequence, consumer_sequence, time_ns, pending = tokens[5:9] if len(tokens) == 9 else tokens[7:11]
    return Delivery(int(stream_sequence), int(consumer_sequence), int(time_ns) // 1_000_000, int(pending))
