"""What an audit reads of DRA_STATE while that goes on, and expires."""

from collections.abc import Sequence

import pytest

from broker.adapters.state_history import InputsExpiredError, StateHistory
from broker.adapters.streams import PER_SUBJECT
from schemas.client.connection import Connection
from schemas.wire.bus import StoredMessage
from schemas.wire.subjects import STATE_STREAM
from tests.bus.builders import a_state, store

pytestmark = pytest.mark.anyio


def sequences(messages: Sequence[StoredMessage]) -> list[int]:
    return [message.stream_sequence for message in messages]


async def test_reads_what_has_come_since_it_began(connection: Connection) -> None:
    """A ledger is read while its leader goes on: batches follow that were decided from later messages."""
    await store(connection, *(a_state("old", key=f"u{number}") for number in range(4)))
    async with StateHistory(connection) as history:
        await history.begin_at(1)
        assert sequences(await history.after(3)) == [2, 3]
        await store(connection, a_state("new", key="u5"), a_state("new", key="u6"))
        assert sequences(await history.after(5)) == [4, 5]
        assert sequences(await history.after(5)) == []
        assert sequences(await history.after(6)) == [6]
        assert history.kept.last_sequence == 6
        with pytest.raises(InputsExpiredError, match="before message 9"):
            await history.after(8)


async def test_what_has_expired_since_is_not_taken_for_read(connection: Connection) -> None:
    await store(connection, *(a_state("old", key=f"u{number}") for number in range(9)))
    async with StateHistory(connection) as history:
        told: list[StoredMessage] = []
        assert await history.up_to(5, told.extend) == set()
        assert (sequences(told), history.kept.first_sequence) == ([1, 2, 3, 4, 5], 1)
        await connection.api(f"STREAM.PURGE.{STATE_STREAM}", {"seq": 4})
        told.clear()
        assert await history.up_to(5, told.extend) == set()
        assert (sequences(told), history.kept.first_sequence) == ([4, 5], 4)
        await history.begin_at(5)
        await connection.api(f"STREAM.PURGE.{STATE_STREAM}", {"seq": 8})
        with pytest.raises(InputsExpiredError, match="before message 8"):
            await history.after(9)
        await history.begin_at(9)
        await store(connection, *(a_state("new", key=f"u{number}") for number in range(3)))
        await connection.api(f"STREAM.PURGE.{STATE_STREAM}", {"seq": 12})
        with pytest.raises(InputsExpiredError, match="before message 12"):
            await history.after(11)


async def test_an_object_that_has_changed_often_meanwhile_may_lack_messages(connection: Connection) -> None:
    """Those that the next term had read of it have made way for later ones."""
    first, seldom, often = (a_state("", key=key) for key in ("first", "seldom", "often"))
    await store(connection, first, seldom, *[often] * (PER_SUBJECT + 1))
    position = PER_SUBJECT + 3
    async with StateHistory(connection) as history:
        assert await history.up_to(position, lambda _: None) == set()
        await store(connection, *[seldom] * PER_SUBJECT)
        assert await history.up_to(position, lambda _: None) == {seldom.subject}
