"""Messages as the bus carries them: compression, and what NATS says around a message."""

import os

import pytest
import zstandard

from schemas.wire.bus import (
    Delivery,
    OutgoingMessage,
    PayloadError,
    ReceivedMessage,
    StoredMessage,
    pack,
    parse_delivery,
    stored_from_api,
    stored_from_direct_get,
    unpack,
)


def stored(message: OutgoingMessage) -> StoredMessage:
    return StoredMessage(message.subject, message.payload, message.headers, stream_sequence=1, time_ms=0)


@pytest.mark.parametrize(
    ("size", "is_packed"),
    [
        pytest.param(0, False, id="nothing"),
        pytest.param(64 * 1024, False, id="64 KiB stay plain"),
        pytest.param(64 * 1024 + 1, True, id="one byte more is compressed"),
        pytest.param(8 * 1024 * 1024, True, id="8 MiB are compressed"),
    ],
)
def test_packs_large_payloads_and_gives_them_back(size: int, is_packed: bool) -> None:
    message = OutgoingMessage("a.b", b"x" * size, {"ce-id": "1"})
    packed = pack(message)
    assert packed.headers == ({"ce-id": "1", "Content-Encoding": "zstd"} if is_packed else {"ce-id": "1"})
    assert (len(packed.payload) < size) == is_packed
    assert stored(packed).body() == message.payload
    assert pack(packed) == packed


def test_packing_survives_bytes_that_cannot_be_compressed() -> None:
    noise = os.urandom(200_000)
    assert stored(pack(OutgoingMessage("a", noise))).body() == noise


def without_size(payload: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(payload)


@pytest.mark.parametrize(
    ("payload", "encoding", "says"),
    [
        pytest.param(zstandard.compress(b"x" * 5000), "zstd", "more than 1000 bytes", id="declares too much"),
        pytest.param(without_size(b"x" * 5_000_000), "zstd", "at most 1000 bytes", id="hides how much it is"),
        pytest.param(zstandard.compress(b"x" * 900)[:-3], "zstd", "not valid zstd", id="cut off"),
        pytest.param(b"{}", "zstd", "not valid zstd", id="not zstd at all"),
        pytest.param(b"", "zstd", "not valid zstd", id="empty"),
        pytest.param(b"{}", "gzip", "'gzip' is not known", id="another encoding"),
    ],
)
def test_refuses_what_cannot_be_unpacked_within_bounds(payload: bytes, encoding: str, says: str) -> None:
    with pytest.raises(PayloadError, match=says):
        unpack(payload, encoding, bytes_max=1000)


def test_unpacks_a_frame_that_does_not_declare_its_size() -> None:
    assert unpack(without_size(b"x" * 900), "zstd", bytes_max=1000) == b"x" * 900


def test_reads_a_stored_message_from_the_api() -> None:
    raw = (
        b'{"subject":"a.b","seq":7,"data":"e30=","time":"2026-11-24T10:40:57.010999999Z",'
        b'"hdrs":"TkFUUy8xLjANCmNlLWlkOiB4OnkNCg0K"}'
    )
    assert stored_from_api(raw) == StoredMessage("a.b", b"{}", {"ce-id": "x:y"}, 7, 1795516857010)


@pytest.mark.parametrize("time", ["2026-11-24T10:40:57Z", "2026-11-24T10:40:57.1Z"])
def test_reads_times_without_all_their_digits(time: str) -> None:
    message = stored_from_api(b'{"subject":"a","seq":1,"time":"%s"}' % time.encode())
    assert message.time_ms == (1795516857100 if ".1" in time else 1795516857000)


@pytest.mark.parametrize("raw", [b"{}", b"[]", b'{"subject":"a","seq":1,"time":"today"}', b"no JSON"])
def test_says_when_the_api_answers_something_else(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a stored message"):
        stored_from_api(raw)


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param("$JS.ACK.S.C.1.42.7.1795516857010999999.3", id="as ever"),
        pytest.param("$JS.ACK.hub.ACCOUNT.S.C.1.42.7.1795516857010999999.3.x1", id="with domain and account"),
        pytest.param("$JS.ACK._.ACCOUNT.S.C.1.42.7.1795516857010999999.3", id="without the random token"),
    ],
)
def test_reads_where_a_delivered_message_stands(reply: str) -> None:
    assert parse_delivery(reply) == Delivery(42, 7, 1795516857010, 3)


def test_says_when_a_reply_subject_is_not_from_jetstream() -> None:
    with pytest.raises(ValueError, match="not a JetStream reply subject"):
        parse_delivery("_INBOX.abc")


@pytest.mark.parametrize("of_a_batch", [{}, {"Nats-Num-Pending": "3", "Nats-Last-Sequence": "6"}])
def test_a_direct_get_gives_the_headers_that_were_stored_and_no_others(of_a_batch: dict[str, str]) -> None:
    answer = {
        "Nats-Stream": "S",
        "Nats-Subject": "a.b",
        "Nats-Sequence": "7",
        "Nats-Time-Stamp": "2026-01-31T12:00:00Z",
    }
    stored = stored_from_direct_get(ReceivedMessage("inbox", b"x", {"ce-id": "main.7", **answer, **of_a_batch}))
    assert (stored.subject, stored.stream_sequence, stored.headers) == ("a.b", 7, {"ce-id": "main.7"})
