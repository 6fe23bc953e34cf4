"""What a connection must survive."""

import anyio
import pytest
from anyio.lowlevel import checkpoint

from schemas.client.connection import Connection

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
