"""Many state messages at once: stored together, each with the result that it would have had alone."""

import asyncio
import time
from collections.abc import Iterable

import anyio
import msgspec
import pytest
from anyio.lowlevel import checkpoint

from broker.adapters.embedded_nats import EmbeddedNats
from cluster_agent.adapters import state_publisher
from cluster_agent.adapters.bus import AgentBus
from cluster_agent.adapters.state_publisher import (
    BATCH_MOST,
    ONE_BY_ONE_MOST,
    Published,
    RefusedBySubject,
    Result,
    StatePublisher,
    Uncertain,
)
from schemas.client.connection import Connection
from schemas.wire.subjects import STATE_STREAM
from tests.bus.builders import Cut, a_proxy, a_state
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio

MANY = BATCH_MOST + 150


async def publish_all(
    bus: AgentBus, numbers: Iterable[int], expected: dict[int, int] | None = None
) -> dict[int, Result]:
    """All at once, each on a subject of its own. expected: the last sequence of some of the subjects."""
    results: dict[int, Result] = {}

    async def publish(number: int) -> None:
        message = a_state(f"state {number}", key=f"u{number}", message_id=f"m{number}")
        results[number] = await bus.publish_state(message, (expected or {}).get(number, 0))

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number in numbers:
                tasks.start_soon(publish, number)
    return results


async def is_right(bus: AgentBus, results: dict[int, Result]) -> bool:
    """Whether each message is where its result says."""
    for number, result in results.items():
        last = await bus.last_message(a_state("", key=f"u{number}").subject)
        assert last is not None
        assert isinstance(result, Published), result
        if (last.stream_sequence, last.body()) != (result.stream_sequence, f"state {number}".encode()):
            return False
    return True


async def test_many_at_once_are_stored_in_batches(connection: Connection) -> None:
    bus = AgentBus(connection, "east")
    results = await publish_all(bus, range(MANY))
    assert sorted(each.stream_sequence for each in results.values() if isinstance(each, Published)) == list(
        range(1, MANY + 1)
    )
    assert await is_right(bus, results)
    assert bus.publisher.batches >= 2


async def test_few_are_stored_one_by_one(connection: Connection) -> None:
    bus = AgentBus(connection, "east")
    assert await is_right(bus, await publish_all(bus, range(ONE_BY_ONE_MOST + 10)))
    assert bus.publisher.batches == 0


async def test_one_that_is_refused_keeps_none_of_the_others_from_being_stored(connection: Connection) -> None:
    bus = AgentBus(connection, "east")
    taken = a_state("another agent's", key="u60")
    assert await bus.publish_state(taken, 0) == Published(1)
    results = await publish_all(bus, range(100))
    assert results.pop(60) == RefusedBySubject(1)
    assert await is_right(bus, results)
    more = await publish_all(bus, range(100, 200))
    assert await is_right(bus, more)
    assert bus.publisher.batches >= 1, "what another agent did is no reason to do without batches"


async def test_it_says_when_a_later_message_is_told_of_than_one_that_is_not(connection: Connection) -> None:
    bus, told, gaps = AgentBus(connection, "east"), set[int](), 0

    async def publish(number: int) -> None:
        nonlocal gaps
        result = await bus.publish_state(a_state("x", key=f"u{number}", message_id=f"m{number}"), 0)
        assert isinstance(result, Published)
        told.add(result.stream_sequence)
        has_gap = max(told) > len(told)
        gaps += has_gap
        assert bus.publisher.is_telling or not has_gap

    with anyio.fail_after(30):
        for turn in range(200):
            if gaps:
                break
            async with anyio.create_task_group() as tasks:
                for number in range(48):
                    tasks.start_soon(publish, turn * 100 + number)
                await checkpoint()  # the batch is sent; what comes behind it is answered in the same moment
                for number in range(48, 60):
                    tasks.start_soon(publish, turn * 100 + number)
            assert not bus.publisher.is_telling
    assert gaps > 0, "there is something to be said"


async def test_batches_of_others_that_never_end_are_no_reason_to_do_without_for_long(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_publisher, "BATCH_AGAIN_S", 0.05)
    for number in range(50):
        headers = {"Nats-Batch-Id": f"b{number}", "Nats-Batch-Sequence": "1"}
        await connection.request("dra.v1.state.west.claim.u1", b"x", headers, deadline_s=5)
    bus = AgentBus(connection, "east")
    assert await is_right(bus, await publish_all(bus, range(MANY)))
    assert bus.publisher.batches == 0
    for number in range(50):
        headers = {"Nats-Batch-Id": f"b{number}", "Nats-Batch-Sequence": "2", "Nats-Batch-Commit": "1"}
        await connection.request("dra.v1.state.west.claim.u2", b"x", headers, deadline_s=5)
    await anyio.sleep(state_publisher.BATCH_AGAIN_S)
    assert await is_right(bus, await publish_all(bus, range(1000, 1000 + MANY)))
    assert bus.publisher.batches > 0


async def test_without_batches_all_are_stored_one_by_one(connection: Connection) -> None:
    info = msgspec.json.decode(await connection.api(f"STREAM.INFO.{STATE_STREAM}"))
    await connection.api(f"STREAM.UPDATE.{STATE_STREAM}", {**info["config"], "allow_atomic": False})
    bus = AgentBus(connection, "east")
    assert await is_right(bus, await publish_all(bus, range(MANY)))
    assert bus.publisher.batches == 0
    assert bus.publisher._batches_from > time.monotonic() + state_publisher.BATCH_AGAIN_S, (
        "it knows that there are none"
    )


async def test_a_batch_whose_ack_is_lost_is_uncertain(nats_server: EmbeddedNats, connection: Connection) -> None:
    def before_its_ack(sent: bytes) -> Cut | None:
        return Cut(len(sent), after_answer=b'"count"') if b"Nats-Batch-Commit" in sent else None

    async with a_proxy(nats_server.port) as proxy, connect_to(proxy.url) as shaky:
        bus = AgentBus(shaky, "east")
        proxy.cut_at = before_its_ack
        results = await publish_all(bus, range(48))
        assert proxy.cuts == 1
        uncertain = {number for number, each in results.items() if isinstance(each, Uncertain)}
        assert len(uncertain) >= 32, "all that the batch had"
        for number in uncertain:
            last = await bus.last_message(a_state("", key=f"u{number}").subject)
            if last is not None:
                assert last.message_id == f"m{number}", "so its sender finds it"
        again = await publish_all(bus, range(1000, 1000 + MANY))
        assert await is_right(bus, again)


async def test_a_batch_that_is_given_up_leaves_the_others_to_themselves(connection: Connection) -> None:
    publisher = StatePublisher(connection)

    async def publish(number: int) -> Result:
        message = a_state(f"{number}", key=f"u{number}", message_id=f"m{number}")
        return await publisher.publish(message, 0, 5)

    tasks = [asyncio.create_task(publish(number)) for number in range(MANY)]
    await asyncio.sleep(0)
    tasks[ONE_BY_ONE_MOST].cancel()  # the first that waited: it is about to send the batch
    with anyio.fail_after(30):
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results.pop(ONE_BY_ONE_MOST), asyncio.CancelledError)
    assert all(isinstance(each, Published) for each in results)
