"""The agent at the bus: compare-and-set on a subject, what is addressed to its cluster, asks and heartbeats."""

import os
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

import anyio
import pytest

from broker.adapters.agent_consumers import AgentConsumers
from broker.adapters.api_service import serve_api
from broker.adapters.asks import Asks
from broker.adapters.embedded_nats import EmbeddedNats
from broker.adapters.errors import StreamSettingsError
from broker.adapters.ledger_store import Committed, LedgerStore
from broker.adapters.streams import StreamSettings, ensure_streams, ledger_segments
from cluster_agent.adapters.bus import LOOK_FOR_SEGMENTS_S, AgentBus, LedgerFollower
from cluster_agent.adapters.state_publisher import Published, RefusedBySubject, Uncertain
from schemas.client.connection import Connection
from schemas.client.errors import BusUnavailableError, MessageTooLargeError
from schemas.wire.bus import OutgoingMessage
from schemas.wire.calls import Joined, LedgerSegment
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import ClassBrokered, Release
from schemas.wire.subjects import ledger_stream
from tests.bus.builders import Cut, a_proxy, a_state, an_entry
from tests.bus.conftest import LEDGER
from tests.nats_fixture import connect_to

pytestmark = pytest.mark.anyio

SUBJECT = a_state("").subject


@pytest.fixture
def consumers(connection: Connection) -> AgentConsumers:
    """What a leading broker makes for agents."""
    return AgentConsumers(connection, LEDGER)


@pytest.fixture
async def east(connection: Connection, consumers: AgentConsumers) -> AsyncIterator[AgentBus]:
    """An agent's bus, and a broker that lets it join."""
    async with serve_api(connection, {}, {"join": consumers.join}):
        yield AgentBus(connection, "east")


def joins(connection: Connection) -> AbstractAsyncContextManager[None]:
    """What a leading broker does for agents."""
    return serve_api(connection, {}, {"join": AgentConsumers(connection, LEDGER).join})


async def test_publishes_over_the_message_it_expects_and_over_no_other(east: AgentBus) -> None:
    assert await east.publish_state(a_state("first"), 0) == Published(1)
    assert await east.publish_state(a_state("of another", key="u2"), 0) == Published(2)
    assert await east.publish_state(a_state("second"), 1) == Published(3)
    assert await east.publish_state(a_state("late"), 1) == RefusedBySubject(3)
    assert await east.publish_state(a_state("blind"), 0) == RefusedBySubject(3)
    last = await east.last_message(SUBJECT)
    assert last is not None
    assert (last.body(), last.stream_sequence) == (b"second", 3)
    assert await east.last_message("dra.v1.state.east.claim.unknown") is None


async def test_of_two_agents_one_wins_each_place(nats_url: str, connection: Connection) -> None:
    won: list[int] = []

    async def write(name: str) -> None:
        async with connect_to(nats_url) as own:
            bus = AgentBus(own, "east")
            for number in range(30):
                last = await bus.last_message(SUBJECT)
                expected = last.stream_sequence if last else 0
                result = await bus.publish_state(a_state(f"{name} {number}"), expected)
                if isinstance(result, Published):
                    assert result.stream_sequence > expected
                    won.append(result.stream_sequence)

    async with anyio.create_task_group() as tg:
        tg.start_soon(write, "A")
        tg.start_soon(write, "B")
    assert sorted(won) == list(range(1, len(won) + 1))


async def test_a_repeated_id_is_not_stored_again_and_says_so(east: AgentBus) -> None:
    assert await east.publish_state(a_state("first", message_id="1"), 0) == Published(1)
    # The trap: another publish with an id that was used before is dropped, whatever it says.
    assert await east.publish_state(a_state("second", message_id="1"), 1) == Published(1, is_duplicate=True)
    last = await east.last_message(SUBJECT)
    assert last is not None
    assert last.body() == b"first"
    assert await east.publish_state(a_state("second", message_id="2"), 1) == Published(2)


def before_the_ack(sent: bytes) -> Cut | None:
    if b"Nats-Expected-Last-Subject-Sequence" in sent and b"the message" in sent:
        return Cut(len(sent), after_answer=b'"seq"')
    return None


async def test_a_publish_whose_ack_is_lost_is_uncertain_and_found_by_its_id(
    nats_server: EmbeddedNats, connection: Connection
) -> None:
    async with a_proxy(nats_server.port) as proxy, connect_to(proxy.url) as shaky:
        bus = AgentBus(shaky, "east")
        proxy.cut_at = before_the_ack
        message = a_state("the message", message_id="1")
        with anyio.fail_after(3):  # the lost connection ends the wait, not the deadline
            result = await bus.publish_state(message, 0, deadline_s=30)
        assert isinstance(result, Uncertain)
        last = await bus.last_message(SUBJECT)
        assert last is not None
        assert last.message_id == "1"
        # A single server compares first and then looks at the id; either way nothing is stored twice.
        again = await bus.publish_state(message, 0)
        assert again in (RefusedBySubject(1), Published(1, is_duplicate=True))
        assert await bus.last_message(SUBJECT) == last


async def test_a_large_payload_travels_compressed(east: AgentBus) -> None:
    large = a_state("x" * 3_000_000)  # more than NATS takes as one message
    assert await east.publish_state(large, 0) == Published(1)
    last = await east.last_message(SUBJECT)
    assert last is not None
    assert last.headers["Content-Encoding"] == "zstd"
    assert len(last.payload) < 10_000
    assert last.body() == large.payload

    noise = OutgoingMessage(SUBJECT, os.urandom(1_100_000))
    with pytest.raises(MessageTooLargeError, match="raise max_payload"):
        await east.publish_state(noise, 1)


async def test_reads_the_last_message_of_every_subject_of_its_cluster_only(east: AgentBus) -> None:
    for number, (key, cluster) in enumerate([("u1", "east"), ("u2", "east"), ("u1", "west"), ("u3", "east")]):
        await east.publish_state(a_state(f"{number}", key=key, cluster=cluster), 0)
    await east.publish_state(a_state("4", key="u1"), 1)
    assert [message.body() for message in await east.last_messages()] == [b"1", b"3", b"4"]
    assert await AgentBus(east._connection, "north").last_messages() == []


async def test_does_not_believe_a_replica_that_lags(east: AgentBus) -> None:
    assert await east.publish_state(a_state("first"), 0) == Published(1)
    with pytest.raises(BusUnavailableError, match="lags behind message 2"):
        await east.last_message(SUBJECT, at_least=2)
    with pytest.raises(BusUnavailableError, match="lags behind message 2"):
        await east.last_message("dra.v1.state.east.claim.unknown", at_least=2)


async def test_waits_until_a_broker_lets_it_join(nats_url: str) -> None:
    found: list[Joined] = []

    async def wait() -> None:
        found.append(await AgentBus(connection, "east").wait_for_broker())
        tg.cancel_scope.cancel()

    async def lead() -> None:
        await ensure_streams(connection, StreamSettings())
        async with joins(connection):
            await anyio.sleep_forever()

    async with connect_to(nats_url) as connection, anyio.create_task_group() as tg:
        tg.start_soon(wait)
        tg.start_soon(lead)
    assert found == [Joined(72 * 3600, 0, [LedgerSegment(LEDGER)])]


async def test_a_cluster_that_is_not_in_the_config_may_not_join(connection: Connection) -> None:
    async with serve_api(connection, {}, {"join": AgentConsumers(connection, LEDGER, ["east"]).join}):
        await AgentBus(connection, "east").join()
        with pytest.raises(BusUnavailableError, match="west is not in the broker's config: add it to clusters there"):
            await AgentBus(connection, "west").join()


async def test_two_agents_that_read_at_once_each_read_all_or_hear_of_it(east: AgentBus, nats_url: str) -> None:
    for number in range(300):
        await east.publish_state(a_state(str(number), key=f"u{number}"), 0)
    results: list[int | None] = []

    async def read() -> None:
        async with connect_to(nats_url) as own:
            try:
                results.append(len(await AgentBus(own, "east").last_messages()))
            except BusUnavailableError:
                results.append(None)

    async with anyio.create_task_group() as tg:
        for _ in range(4):
            tg.start_soon(read)
    assert set(results) <= {300, None}
    assert len(await east.last_messages()) == 300


async def entries(follower: LedgerFollower, count: int, within_s: float = 5) -> list[str]:
    """The next `count` entries, acknowledged."""
    texts: list[str] = []
    with anyio.fail_after(within_s):
        while len(texts) < count:
            for one in await follower.next_batch():
                texts.append(one.message.payload.decode())
                await follower.acknowledge([one])
    return texts


def for_west(text: str) -> OutgoingMessage:
    return OutgoingMessage("dra.v1.ledger.main.0.west.claim.u1", text.encode(), {"Nats-Msg-Id": text})


async def test_follows_the_ledger_where_it_left_off(
    east: AgentBus, connection: Connection, ledger: LedgerStore
) -> None:
    assert await ledger.append([an_entry("1"), for_west("2"), an_entry("3")], 0) == Committed(3)
    async with east.follow_ledger() as follower:
        assert await entries(follower, 2) == ["1", "3"]
        await ledger.append([an_entry("4")], 3)
        assert await entries(follower, 1, within_s=1) == ["4"]
        await connection.flush()
    await ledger.append([an_entry("5")], 4)
    async with AgentBus(connection, "east").follow_ledger() as follower:
        assert await entries(follower, 1) == ["5"]


async def test_follows_the_ledger_through_a_restart_of_the_server(
    own_nats: EmbeddedNats, own_connection: Connection
) -> None:
    ledger = LedgerStore(own_connection, LEDGER)
    await ledger.append([an_entry("1")], 0)
    async with joins(own_connection), AgentBus(own_connection, "east").follow_ledger() as follower:
        assert await entries(follower, 1) == ["1"]
        await own_nats.kill()
        await own_nats.start()
        assert await ledger.append_until_known([an_entry("2")], 1, retry_after_s=0.1) == Committed(2)
        texts: list[str] = []
        while "2" not in texts:  # "1" may come again: its ack may not have been on disk
            texts += await entries(follower, 1)


def a_decision(segment: int, ledger_sequence: int = 0) -> OutgoingMessage:
    entry = Release(
        cluster="east",
        uid="u1",
        namespace="default",
        name="train",
        grant_sequence=1,
        holds=[],
        reason="r",
        ledger_sequence=ledger_sequence,
    )
    return OutgoingMessage(f"dra.v1.ledger.main.{segment}.east.claim.u1", encode(entry), {})


async def a_second_segment(connection: Connection) -> LedgerStore:
    """After 100 entries."""
    await ensure_streams(connection, StreamSettings(), "main", 1, 101)
    return LedgerStore(connection, ledger_stream("main", 1))


async def test_a_later_segment_goes_on_with_the_numbers(connection: Connection) -> None:
    assert await ledger_segments(connection, "main") == [0]
    second = await a_second_segment(connection)
    assert await ledger_segments(connection, "main") == [0, 1]
    assert await second.last_sequence() == 100
    assert [batch async for batch in second.read_all()] == []
    assert await second.append([a_decision(1)], 100) == Committed(101)
    assert [[m.stream_sequence for m in batch] async for batch in second.read_all()] == [[101]]
    await a_second_segment(connection)  # another leader finds it as it wants it
    with pytest.raises(StreamSettingsError, match="first_seq is 101, not 102"):
        await ensure_streams(connection, StreamSettings(), "main", 1, 102)


async def test_follows_the_ledger_into_its_next_segment(
    east: AgentBus, connection: Connection, consumers: AgentConsumers
) -> None:
    """Also while an entry of the one before is not settled: that one is stated again."""
    first = LedgerStore(connection, LEDGER)
    assert await first.append([an_entry("1")], 0) == Committed(1)
    async with east.follow_ledger() as follower, anyio.create_task_group() as tg:
        with anyio.fail_after(LOOK_FOR_SEGMENTS_S / 2):  # it would look by itself after twice as long
            assert len(await follower.next_batch()) == 1

            async def goes_on() -> None:
                second = await a_second_segment(connection)
                assert await second.append([an_entry("3", segment=1)], 100) == Committed(101)
                consumers.ledger = second.stream
                follower.goes_on_in(second.stream)

            tg.start_soon(goes_on)
            assert await entries(follower, 1) == ["3"]


async def test_reads_the_open_segment_alone(east: AgentBus, connection: Connection, consumers: AgentConsumers) -> None:
    """One that is being opened does not say all yet, and one before it has nothing that it does not state again."""
    first, second = LedgerStore(connection, LEDGER), await a_second_segment(connection)
    assert await first.append([a_decision(0), a_decision(0)], 0) == Committed(2)
    assert await second.append([a_decision(1, ledger_sequence=1)], 100) == Committed(101)
    decision = await east.last_decision("u1")
    assert decision is not None
    assert decision.stream_sequence == 2
    assert [message.stream_sequence for message in await east.last_decisions()] == [2]
    consumers.ledger = second.stream
    decision = await east.last_decision("u1")
    assert decision is not None
    assert decision.stream_sequence == 101
    assert await second.append([a_decision(1)], 101) == Committed(102)
    assert [message.stream_sequence for message in await east.last_decisions()] == [102]
    assert await east.last_decision("u2") is None
    assert await AgentBus(connection, "west").last_decision("u1") is None


async def test_reads_what_was_said_last_of_each_class(
    east: AgentBus, connection: Connection, consumers: AgentConsumers
) -> None:
    assert await east.last_classes() == []
    entries = [
        ClassBrokered(cluster="east", name="gpu.example.com", spec={"selectors": []}),
        ClassBrokered(cluster="west", name="gpu.example.com", spec={"selectors": []}),
        ClassBrokered(cluster="east", name="nic", spec={}),
        ClassBrokered(cluster="east", name="gpu.example.com"),
    ]
    ledger = LedgerStore(connection, LEDGER)
    told = [
        OutgoingMessage(f"dra.v1.ledger.main.0.{each.cluster}.class.{each.name}", encode(each), {}) for each in entries
    ]
    assert await ledger.append([a_decision(0), *told], 0) == Committed(5)
    assert [decode_entry(message.payload) for message in await east.last_classes()] == entries[2:]


async def test_hears_asks_and_is_heard(connection: Connection, nats_url: str) -> None:
    async with connect_to(nats_url) as other:
        bus, asks = AgentBus(other, "east"), Asks(connection)
        async with bus.follow_asks() as heard_asks, asks.follow_beats() as beats, asks.follow_leader("main") as leaders:
            await asks.ask("west", b"not for us")
            await asks.ask("east", b"everything")
            await bus.beat(b"alive")
            await Asks(other).lead("main", b"I lead")
            with anyio.fail_after(2):
                assert (await heard_asks.receive()).payload == b"everything"
                beat = await beats.receive()
                assert (beat.subject, beat.payload) == ("dra.v1.beat.east", b"alive")
                assert (await leaders.receive()).payload == b"I lead"


async def test_drops_asks_that_nobody_reads_in_time(connection: Connection, east: AgentBus) -> None:
    async with east.follow_asks(messages_max=2) as heard:
        for number in range(5):
            await Asks(connection).ask("east", str(number).encode())
        await connection.flush()
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(2):
            assert [(await heard.receive()).payload for _ in range(2)] == [b"0", b"1"]
        await Asks(connection).ask("east", b"again")
        with anyio.fail_after(2):
            assert (await heard.receive()).payload == b"again"


async def test_goes_on_listening_after_a_restart_and_keeps_nothing_for_later(
    own_nats: EmbeddedNats, own_connection: Connection
) -> None:
    asks, bus = Asks(own_connection), AgentBus(own_connection, "east")
    async with bus.follow_asks() as heard:
        await own_nats.kill()
        with anyio.fail_after(5):
            while own_connection.is_up:
                await own_connection.flush()
            with pytest.raises(BusUnavailableError, match="not connected"):
                await asks.ask("east", b"into the void")
            await own_nats.start()
            await own_connection.wait_until_up()
            await asks.ask("east", b"after")
            assert (await heard.receive()).payload == b"after"
