"""What a connection must survive."""

import os
import signal
from contextlib import suppress

import anyio
import pytest
from anyio.lowlevel import checkpoint

from broker.adapters.api_service import serve_api
from broker.adapters.embedded_nats import EmbeddedNats
from schemas.client.connection import Connection
from schemas.client.errors import BusUnavailableError
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio


async def test_goes_on_after_a_flush_was_cancelled(connection: Connection) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.flush)
        await checkpoint()  # it has asked, the answer is to come
        tasks.cancel_scope.cancel()
    losses = connection.losses
    with anyio.fail_after(5):
        for _ in range(3):
            await connection.api("INFO")
    assert connection.losses == losses


async def test_a_flush_waits_for_all_that_was_sent_before(connection: Connection) -> None:
    heard: list[bytes] = []
    async with connection.inbox(lambda _subject, _reply, payload, _headers: heard.append(payload)) as inbox:
        for number in range(1, 301):
            await connection.publish(inbox, b"x")
            await connection.publish(inbox, b"x")
            await connection.flush()
            assert len(heard) == 2 * number


@pytest.mark.parametrize("is_a_service", [pytest.param(False, id="of a flush"), pytest.param(True, id="of a service")])
async def test_goes_on_when_an_answer_comes_after_its_deadline(own_nats: EmbeddedNats, is_a_service: bool) -> None:
    async with connect_to(own_nats) as connection:
        try:
            if is_a_service:
                async with serve_api(connection, {"echo": echo}):
                    os.kill(own_nats.pid, signal.SIGSTOP)
            else:
                os.kill(own_nats.pid, signal.SIGSTOP)
                await connection.flush(deadline_s=0.1)
        finally:
            os.kill(own_nats.pid, signal.SIGCONT)
        for _ in range(3):
            await connection.api("INFO", deadline_s=2)
        assert connection.losses == 0


async def echo(payload: bytes) -> bytes:
    return payload


async def test_comes_back_after_an_error_by_which_the_server_ends_it(connection: Connection) -> None:
    """As "maximum connections exceeded", or a user that was revoked and is known again."""
    losses = connection.losses
    await connection.client.send(b"NONSENSE\r\n")
    with anyio.fail_after(10):
        is_back = False
        while connection.losses == losses or not is_back:
            with suppress(BusUnavailableError):
                await connection.api("INFO")
                is_back = connection.losses > losses
            await checkpoint()


async def test_a_header_of_several_lines_is_sent_as_one(connection: Connection) -> None:
    async def said(payload: bytes) -> bytes:
        return payload

    heard: list[bytes] = []
    async with (
        serve_api(connection, {"echo": said}),
        connection.hear("dra.v1.api.echo", lambda _subject, _reply, _payload, headers: heard.append(headers)),
    ):
        headers = {"ce-subject": "class/a\r\nNats-Msg-Id: forged", "ce-id": "1"}
        answer = await connection.request("dra.v1.api.echo", b"x", headers, deadline_s=5)
        await connection.flush()
    assert answer.payload == b"x"
    assert heard == [b"NATS/1.0\r\nce-subject: class/a  Nats-Msg-Id: forged\r\nce-id: 1\r\n\r\n"]
