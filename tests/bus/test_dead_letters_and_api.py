"""Dead letters are kept once; the API answers, refuses and survives its handlers."""

import anyio
import pytest

from broker.adapters.api_service import ApiError, call_api, serve_api
from broker.adapters.dead_letters import DeadLetters
from broker.adapters.embedded_nats import EmbeddedNats
from schemas.client.connection import Connection
from schemas.client.errors import BusUnavailableError
from schemas.wire.bus import OutgoingMessage
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio


def a_letter(text: str, cluster: str = "east", message_id: str = "") -> OutgoingMessage:
    headers = {"Nats-Msg-Id": message_id} if message_id else {}
    return OutgoingMessage(f"dra.v1.deadletter.{cluster}", text.encode(), headers)


async def test_keeps_dead_letters_in_order_and_once(connection: Connection) -> None:
    letters = DeadLetters(connection)
    assert await letters.all() == []
    assert await letters.keep(a_letter("first", message_id="1")) == 1
    assert await letters.keep(a_letter("of west", cluster="west")) == 2
    assert await letters.keep(a_letter("first", message_id="1")) == 1
    assert await letters.keep(a_letter("second", message_id="2")) == 3
    assert [letter.payload for letter in await letters.all()] == [b"first", b"of west", b"second"]
    assert [letter.payload for letter in await letters.all("west")] == [b"of west"]


async def test_says_when_a_dead_letter_could_not_be_kept(own_nats: EmbeddedNats, own_connection: Connection) -> None:
    await own_nats.kill()
    with pytest.raises(BusUnavailableError):
        await DeadLetters(own_connection).keep(a_letter("lost"), deadline_s=0.2)


async def echo(payload: bytes) -> bytes:
    return b"you said " + payload


async def refuse(payload: bytes) -> bytes:
    raise ApiError(404, f"no claim {payload.decode()}\nat all")


async def fail(payload: bytes) -> bytes:
    raise RuntimeError("secret detail")


async def huge(payload: bytes) -> bytes:
    return b"x" * 2_000_000


async def test_answers_calls_and_refuses_with_a_reason(connection: Connection, nats_url: str) -> None:
    async with connect_to(nats_url) as client:
        with pytest.raises(BusUnavailableError, match=r"nobody answers dra\.v1\.api\.echo"):
            await call_api(client, "echo", b"")
        async with serve_api(connection, {"echo": echo, "refuse": refuse, "fail": fail, "huge": huge}):
            assert await call_api(client, "echo", b"hello") == b"you said hello"
            with pytest.raises(ApiError, match="no claim x") as refused:
                await call_api(client, "refuse", b"x")
            assert refused.value.code == 404
            with pytest.raises(ApiError, match="failed inside the broker") as failed:
                await call_api(client, "fail", b"")
            assert failed.value.code == 500
            assert "secret" not in failed.value.message
            with pytest.raises(ApiError, match="2000000 bytes") as large:
                await call_api(client, "huge", b"")
            assert large.value.code == 413
            assert await call_api(client, "echo", b"again") == b"you said again"
            info = await client.request("$SRV.INFO.dragoman", deadline_s=2)
            assert b'"subject": "dra.v1.api.echo"' in info.payload.replace(b'":"', b'": "')
        with pytest.raises(BusUnavailableError, match="nobody answers"):
            await call_api(client, "echo", b"")


async def test_the_api_answers_again_after_the_server_was_restarted(
    own_nats: EmbeddedNats, own_connection: Connection
) -> None:
    async with serve_api(own_connection, {"echo": echo}), connect_to(own_nats) as client:
        await own_nats.kill()
        await own_nats.start()
        with anyio.fail_after(5):
            await own_connection.wait_until_up()
            await own_connection.flush()
            assert await call_api(client, "echo", b"hello") == b"you said hello"
