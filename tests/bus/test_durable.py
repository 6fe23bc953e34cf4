"""Events under a durable name, against a real server that is killed, with readers that are killed."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import msgspec
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from broker.adapters.embedded_nats import EmbeddedNats, dying_with_us
from schemas.client.connection import Connection
from schemas.client.durable import make_durable
from schemas.client.since import Since
from schemas.client.subscribe import Received, subscribe
from schemas.wire.bus import OutgoingMessage
from tests.bus.builders import store
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio

DEADLINE_S = 30.0
ACK_WAIT_S = 1.0
# Prints the id of each event; with "stuck" it never gets done with the first.
READER = """
import sys, anyio
from schemas.client.connection import BusOptions, connect
from schemas.client.since import Since
from schemas.client.subscribe import subscribe

async def main(url, how):
    async with connect(BusOptions((url,))) as connection:
        async for received in subscribe(connection, durable="billing", since=Since.beginning()):
            print(received.id, flush=True)
            if how == "stuck":
                await anyio.sleep_forever()

anyio.run(main, *sys.argv[1:])
"""


async def publish(connection: Connection, *numbers: int, cluster: str = "east") -> list[str]:
    """Events with these numbers; returns their ids."""
    for number in numbers:
        headers = {"ce-id": f"main.{number}", "ce-type": "dev.dragoman.claim.later.v9"}
        await store(connection, OutgoingMessage(f"dra.v1.events.{cluster}.claim.later.u{number}", b"{}", headers))
    return [f"main.{number}" for number in numbers]


def billing(connection: Connection, *, follow: bool = True, **more: Any) -> Any:
    """What is read as `billing`, from the beginning."""
    return subscribe(connection, durable="billing", since=Since.beginning(), follow=follow, **more)


async def ids_of(events: Any, count: int) -> list[str]:
    """Of so many events, the last of which is done with."""
    found: list[str] = []
    with anyio.fail_after(DEADLINE_S):
        async with aclosing(events):
            async for received in events:
                if len(found) == count:
                    break  # this one is not done with
                found.append(received.id)
    return found


async def all_ids(events: Any) -> list[str]:
    with anyio.fail_after(DEADLINE_S):
        return [received.id async for received in events]


@asynccontextmanager
async def reader(connection: Connection, how: str = "") -> AsyncIterator[tuple[Process, TextReceiveStream]]:
    """A process that reads as `billing`, and its output."""
    url = f"nats://{connection.client.connected_url.netloc}"  # type: ignore[union-attr]
    process = await anyio.open_process(
        dying_with_us([sys.executable, "-c", READER, url, how]), stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        yield process, TextReceiveStream(process.stdout)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_next_run_goes_on_where_the_last_was(connection: Connection) -> None:
    ids = await publish(connection, *range(1, 8))
    assert await ids_of(billing(connection), 3) == ids[:3]
    later = await publish(connection, 8)
    # The fourth was handed out and not done with: it comes again, and at once.
    assert sorted(await all_ids(billing(connection, follow=False))) == [*ids[3:], *later]
    assert await all_ids(billing(connection, follow=False)) == []


async def test_one_that_was_killed_while_it_handled_an_event_gets_it_again(connection: Connection) -> None:
    await make_durable(connection, "billing", Since.beginning(), ack_wait_s=ACK_WAIT_S)
    ids = await publish(connection, *range(1, 4))
    async with reader(connection, "stuck") as (process, output):
        with anyio.fail_after(DEADLINE_S):
            assert (await output.receive()).split() == ids[:1]
        process.kill()
        await process.wait()
    found: list[str] = []
    with anyio.fail_after(DEADLINE_S):
        async for received in billing(connection):
            found.append(received.id)
            if len(found) == 3:
                break
    assert sorted(found) == ids  # the same ids


async def test_a_run_hands_out_nothing_twice_though_it_takes_longer_than_the_server_waits(
    connection: Connection,
) -> None:
    await make_durable(connection, "billing", Since.beginning(), ack_wait_s=ACK_WAIT_S)
    ids = await publish(connection, *range(1, 4))
    found: list[str] = []
    with anyio.move_on_after(DEADLINE_S):
        async for received in billing(connection):
            found.append(received.id)
            if received.id == ids[0]:
                await until(connection, lambda about: about["num_redelivered"] >= 3)  # the server thinks it is dead
            if received.id == ids[-1]:
                ids += await publish(connection, 4) if len(ids) == 3 else []
            if received.id == "main.4":
                break
    assert found == ids


async def test_two_runs_of_one_name_share_the_events(connection: Connection) -> None:
    await make_durable(connection, "billing", Since.beginning())
    async with reader(connection) as (one, output), reader(connection) as (other, other_output):
        assert one.returncode is other.returncode is None
        await until(connection, lambda about: about["num_waiting"] == 2)
        ids = await publish(connection, *range(1, 301))
        heard: list[list[str]] = [[], []]
        has_all = anyio.Event()

        async def listen(stream: TextReceiveStream, to: list[str]) -> None:
            async for text in stream:
                to += text.split()
                if sum(map(len, heard)) >= len(ids):
                    has_all.set()

        with anyio.fail_after(DEADLINE_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(listen, output, heard[0])
                tasks.start_soon(listen, other_output, heard[1])
                await has_all.wait()
                await until(connection, lambda about: about["num_ack_pending"] == 0)
                tasks.cancel_scope.cancel()
    assert sorted(heard[0] + heard[1]) == sorted(ids)
    assert min(map(len, heard)) > 0


async def test_each_comes_once_through_a_killed_server(own_nats: EmbeddedNats, own_connection: Connection) -> None:
    ids = await publish(own_connection, *range(1, 151))
    found: list[str] = []
    async with connect_to(own_nats) as connection:
        with anyio.fail_after(DEADLINE_S):
            async for received in billing(connection):
                found.append(received.id)
                if len(found) == 20:
                    await own_nats.kill()
                    await own_nats.start()
                    await own_connection.wait_until_up()
                    ids += await publish(own_connection, 151)
                if len(found) >= 151:
                    break
        await until(connection, lambda about: about["num_pending"] == 0)
    assert sorted(found) == sorted(ids)


async def test_what_is_not_asked_for_is_done_with_unseen(connection: Connection) -> None:
    await publish(connection, 1)
    west = await publish(connection, 2, cluster="west")
    assert await all_ids(billing(connection, follow=False, cluster="west")) == west
    assert await all_ids(billing(connection, follow=False, types=["nothing"])) == []
    assert await all_ids(billing(connection, follow=False)) == []


async def test_a_new_name_begins_where_it_is_told(connection: Connection) -> None:
    ids = await publish(connection, 1, 2, 3)
    since = {"after": Since.after(1), "past": Since.seconds(3600), "new": Since.new()}
    found = {
        name: await all_ids(subscribe(connection, durable=name, since=where, follow=False))
        for name, where in since.items()
    }
    assert found == {"after": ids[1:], "past": ids, "new": []}
    later = await publish(connection, 4)
    assert await all_ids(subscribe(connection, durable="new", follow=False)) == later


@pytest.mark.parametrize("name", ["a.b", "a b", "*", "x" * 65])
async def test_a_name_that_is_none_is_refused(connection: Connection, name: str) -> None:
    with pytest.raises(ValueError, match="no durable name"):
        await all_ids(subscribe(connection, durable=name))


async def test_an_event_that_was_stored_twice_is_handed_out_once(connection: Connection) -> None:
    ids = await publish(connection, 1, 2, 1, 3, 2)
    plain: list[Received] = [each async for each in subscribe(connection, since=Since.beginning(), follow=False)]
    assert [each.id for each in plain] == [ids[0], ids[1], ids[3]]
    assert await all_ids(billing(connection, follow=False)) == [ids[0], ids[1], ids[3]]


async def until(connection: Connection, is_so: Any) -> None:
    """Return when it is so by what the server says of the consumer."""
    about: dict[str, Any] = {}
    with anyio.move_on_after(DEADLINE_S):
        while True:
            about = msgspec.json.decode(await connection.api("CONSUMER.INFO.DRA_EVENTS.subscriber_billing"))
            if is_so(about):
                return
            await anyio.sleep(0.05)
    raise AssertionError(about)
