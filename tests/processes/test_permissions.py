"""A federation on a NATS as `dragoman nats-config` configures it: TLS, NKeys, accounts.

What each may not say or read is tried, all of it, on the real server; what each may is enough: claims are granted.
"""

import os
import re
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.abc
import msgspec
import pytest
import yaml

from broker.adapters.ledger_store import LedgerStore
from broker.adapters.ledger_store import Uncertain as NotKnown
from broker.adapters.nats_roles import MAPPED_API, OWN_ACCOUNT, roles
from broker.adapters.streams import ledger_segments
from broker.cli.main import main
from cluster_agent.adapters.bus import AgentBus
from cluster_agent.adapters.manifest_cluster import ManifestCluster
from cluster_agent.adapters.state_publisher import Published, Result, Uncertain
from schemas.client.connection import BusOptions, Connection, connect
from schemas.client.errors import BusUnavailableError, MessageTooLargeError
from schemas.client.follow import Pull
from schemas.client.kept import KeptMessages
from schemas.client.reader import StreamReader
from schemas.wire.bus import OutgoingMessage
from schemas.wire.subjects import inbox_prefix
from tests.manifests import DRIVER, claim_manifest, class_manifest, slice_manifest, write_manifests
from tests.nats_fixture import BESIDE, free_port, servers
from tests.processes.harness import Process

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

DEADLINE_S = 30.0


class Nats(NamedTuple):
    """A directory that `nats-config` wrote, and where its server is."""

    directory: Path
    urls: list[str]
    servers: Sequence[anyio.abc.Process]

    def arguments(self, role: str, url: str = "") -> list[str]:
        """Of a dragoman command."""
        files = ["--nkey", str(self.directory / f"keys/{role}.nk"), "--tls-ca", str(self.directory / "tls/ca.crt")]
        return [*(f"--nats={each}" for each in ([url] if url else self.urls)), *files]

    def connect(
        self, role: str, inbox: str = "", deadline_s: float = 10, url: str = ""
    ) -> AbstractAsyncContextManager[Connection]:
        """As `role`, which hears answers where it may, or where it should not."""
        key = str(self.directory / f"keys/{role}.nk")
        ca = str(self.directory / "tls/ca.crt")
        urls = [url] if url else self.urls
        return connect(BusOptions(urls, nkey_file=key, ca_file=ca, inbox=inbox or inbox_prefix(role)), deadline_s)


@asynccontextmanager
async def a_nats(root: Path, *arguments: str, names: Sequence[str] = ("n1",)) -> AsyncIterator[Nats]:
    """One server, or several, with streams."""
    directory, port = root / "nats", free_port(len(names), beside=BESIDE)
    code = main(
        [
            *("nats-config", f"--dir={directory}", "--cluster=east", "--cluster=west", "--subscriber=audit"),
            "--subscriber=billing",
            *("--dev-ca", f"--port={port}", f"--store-dir={root}/store", *arguments),
        ]
    )
    assert code == 0
    urls = [f"tls://127.0.0.1:{port + index}" for index in range(len(names))]
    async with servers(*(directory / f"{name}.conf" for name in names)) as processes:
        nats = Nats(directory, urls, processes)
        with anyio.fail_after(DEADLINE_S):  # several elect a leader first
            while await anyio.to_thread.run_sync(main, ["nats-setup", *nats.arguments("setup")]) != 0:
                assert len(names) > 1
        yield nats


def write_clusters(root: Path) -> None:
    """Four devices in east, three claims in each cluster."""
    for cluster in ("east", "west"):
        (root / cluster).mkdir()
        claims = [claim_manifest(f"{cluster}-{number}") for number in range(3)]
        write_manifests(root / cluster / "all.yaml", class_manifest(), *claims)
    write_manifests(root / "east/slices.yaml", slice_manifest([f"gpu-{index}" for index in range(4)]))
    fabric = {"name": "rack", "source": "east", "clusters": ["east", "west"], "pools": [{"driver": DRIVER}]}
    (root / "config.yaml").write_text(yaml.safe_dump({"clusters": ["east", "west"], "fabrics": [fabric]}))


@asynccontextmanager
async def running(root: Path, nats: Nats, agent_urls: dict[str, str]) -> AsyncIterator[list[Process]]:
    """A broker and two agents as processes, each with its own key."""
    broker = ["broker", "--config", str(root / "config.yaml"), *nats.arguments("broker")]
    processes = [Process("broker", broker, root / "broker.log")]
    for cluster in ("east", "west"):
        arguments = [
            "agent",
            "--cluster",
            cluster,
            "--manifests",
            str(root / cluster),
            "--data",
            str(root / f"{cluster}-data"),
        ]
        arguments += nats.arguments(f"agent-{cluster}", agent_urls.get(cluster, ""))
        processes.append(Process(cluster, arguments, root / f"{cluster}.log"))
    try:
        for process in processes:
            await process.start()
        yield processes
    finally:
        for process in processes:
            if process.is_running:
                await process.kill()


async def granted(nats: Nats, count: int, processes: Sequence[Process]) -> None:
    """Return when so many decisions are applied, by the ledger as the operator may read it."""
    async with nats.connect("operator") as connection:
        reader = StreamReader(connection, "DRA_LEDGER_main_0")
        entries: list[bytes] = []
        with anyio.move_on_after(DEADLINE_S):
            while True:
                with suppress(BusUnavailableError):  # while servers elect a leader
                    entries = [message.payload async for batch in reader.read(0) for message in batch]
                if sum(b'"outcome":"Applied"' in entry for entry in entries) >= count:
                    return
                await anyio.sleep(0.1)
    logs = "\n".join(f"--- {process.name}\n{process.tail()}" for process in processes)
    raise AssertionError(f"{count} claims were not granted; {entries}\n{logs}")


async def test_claims_are_granted_with_tls_and_keys_of_their_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_clusters(tmp_path)
    async with a_nats(tmp_path) as nats, running(tmp_path, nats, {}) as processes:
        await granted(nats, 4, processes)
        audit = ["events", "--subscriber=audit", "--type=claim.allocated", *nats.arguments("subscriber-audit")]
        with anyio.fail_after(DEADLINE_S):
            while capfd.readouterr().out.count("claim.allocated") < 4:
                assert await anyio.to_thread.run_sync(main, audit) == 0
        explain = ["explain", "default/east-0", *nats.arguments("operator")]
        assert await anyio.to_thread.run_sync(main, explain) == 0
        for process in processes[1:]:
            assert await process.stop() == 0
        for process in processes:
            assert "ermissions" not in process.log.read_text()
            assert "Traceback" not in process.log.read_text()
    devices = []
    for cluster in ("east", "west"):
        manifests = ManifestCluster([tmp_path / cluster], data_dir=tmp_path / f"{cluster}-data")
        for claim in (await manifests.list_objects("claim")).objects:
            results = claim.get("status", {}).get("allocation", {}).get("devices", {}).get("results", [])
            devices += [each["device"] for each in results]
        manifests.close()
    assert sorted(devices) == [f"gpu-{index}" for index in range(4)]


async def test_the_ledger_is_looked_after_with_the_keys_that_the_docs_name(tmp_path: Path) -> None:
    write_clusters(tmp_path)

    async def ledger(nats: Nats, role: str, *arguments: str) -> int:
        return await anyio.to_thread.run_sync(main, ["ledger", *arguments, *nats.arguments(role)])

    async with a_nats(tmp_path) as nats:
        async with running(tmp_path, nats, {}) as processes:
            await granted(nats, 4, processes)
        assert await ledger(nats, "operator", "verify") == 0
        config = str(tmp_path / "config.yaml")
        rebuild = ("rebuild", "--config", config, "--reason", "a drill", "--operator", "ada", "--yes")
        assert await ledger(nats, "operator", *rebuild) == 1
        assert await ledger(nats, "broker", *rebuild) == 0
        assert await ledger(nats, "operator", "archive", "--all-closed", str(tmp_path)) == 0
        assert await ledger(nats, "operator", "archive", "--all-closed", str(tmp_path), "--seal") == 1
        assert await ledger(nats, "setup", "archive", "--all-closed", str(tmp_path), "--seal") == 0
        assert await ledger(nats, "operator", "verify") == 0


async def test_three_servers_go_on_when_one_is_killed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_clusters(tmp_path)
    async with a_nats(tmp_path, *["--host=127.0.0.1"] * 3, "--port-step=1", names=("n1", "n2", "n3")) as nats:
        assert [line.split()[2] for line in capfd.readouterr().out.splitlines() if line.startswith("DRA_")] == ["3"] * 4
        async with running(tmp_path, nats, {}) as processes:
            await granted(nats, 4, processes)
            nats.servers[0].kill()
            write_manifests(
                tmp_path / "east/more.yaml", slice_manifest([f"more-{n}" for n in range(2)], name="more", pool="more")
            )
            await granted(nats, 6, processes)


async def test_an_agent_behind_a_leaf_node_takes_part(tmp_path: Path) -> None:
    write_clusters(tmp_path)
    async with a_nats(tmp_path, "--leaf", "west") as nats:
        leaf, url = a_leaf(nats, "west")
        async with servers(leaf), running(tmp_path, nats, {"west": url}) as processes:
            await granted(nats, 4, processes)
            assert "agent of west runs" in processes[2].log.read_text()


async def test_many_states_at_once_are_stored_in_batches_from_an_account_behind_a_leaf_node(tmp_path: Path) -> None:
    async with a_nats(tmp_path, "--leaf", "west") as nats:
        leaf, url = a_leaf(nats, "west")
        async with servers(leaf):
            await publishes_in_batches(nats, "west", url)
        await publishes_in_batches(nats, "east")


async def test_many_states_at_once_are_stored_in_batches_by_three_servers(tmp_path: Path) -> None:
    async with a_nats(tmp_path, *["--host=127.0.0.1"] * 3, "--port-step=1", names=("n1", "n2", "n3")) as nats:
        await publishes_in_batches(nats, "east")


async def publishes_in_batches(nats: Nats, cluster: str, url: str = "") -> None:
    """Store a hundred states at once; each is where its result says."""
    results: dict[str, Result] = {}

    async def publish(subject: str) -> None:
        results[subject] = await bus.publish_state(OutgoingMessage(subject, subject.encode()), 0)

    async with nats.connect(f"agent-{cluster}", url=url) as connection:
        bus = AgentBus(connection, cluster)
        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(publish, f"dra.v1.state.{cluster}.claim.u{number}")
        assert bus.publisher.batches > 0
        for subject, result in results.items():
            last = await bus.last_message(subject)
            assert last is not None
            assert result == Published(last.stream_sequence)
            assert last.body() == subject.encode()


def a_leaf(nats: Nats, cluster: str) -> tuple[Path, str]:
    """The configuration of a cluster's leaf node, on a free port here, and its URL."""
    port = free_port()
    leaf = nats.directory / f"leaf-{cluster}.conf"
    own = nats.urls[0].rpartition(":")[2]
    leaf.write_text(leaf.read_text().replace(f"0.0.0.0:{own}", f"127.0.0.1:{port}"))
    return leaf, f"tls://127.0.0.1:{port}"


# --- what each may not do

STREAMS = ("DRA_STATE", "DRA_LEDGER_main_0", "DRA_EVENTS", "DRA_DEADLETTER")
ROLES = ("broker", "operator", "tracer", "agent-east", "agent-west", "subscriber-audit", "subscriber-billing")
SUBSCRIBERS = ("subscriber-audit", "subscriber-billing")
# Where messages of the protocol are, and who may write there.
WRITERS = {
    "dra.v1.state.east.claim.u1": {"agent-east"},
    "dra.v1.state.east.agent.run": {"agent-east"},
    "dra.v1.state.west.claim.u1": {"agent-west"},
    "dra.v1.beat.east": {"agent-east"},
    "dra.v1.beat.west": {"agent-west"},
    "dra.v1.ledger.main.0.east.claim.u1": {"broker"},
    "dra.v1.ledger.main.0._.leader._": {"broker"},
    "dra.v1.events.east.claim.allocated.u1": {"broker"},
    "dra.v1.ask.east": {"broker"},
    "dra.v1.ask.west": {"broker"},
    "dra.v1.deadletter.east": {"broker"},
    "dra.v1.lead.main": {"broker"},
    "dra.v1.api.explain": {"operator"},
    "dra.v1.api.join.east": {"agent-east"},
    "dra.v1.api.join.west": {"agent-west"},
    # Where the tracer's account has JetStream's API.
    "dra.v1.js.STREAM.INFO.DRA_STATE": {"tracer"},
    "dra.v1.js.CONSUMER.CREATE.DRA_STATE.c": set(),
    "dra.v1.js.STREAM.DELETE.DRA_STATE": set(),
    # Another's answers, and what belongs to nobody.
    "dra.v1.state": set(),
    "_INBOX.agent-west.x": {"broker"},
    "anything": set(),
}
LISTENERS = {
    "dra.v1.state.east.>": set[str](),
    "dra.v1.ledger.>": set[str](),
    "dra.v1.deadletter.>": set[str](),
    "dra.v1.events.>": {*SUBSCRIBERS, "operator"},
    "dra.v1.beat.*": {"broker"},
    "dra.v1.lead.*": {"broker"},
    "dra.v1.ask.east": {"agent-east"},
    "dra.v1.ask.west": {"agent-west"},
    "dra.v1.api.>": {"broker"},
    "_INBOX.>": set[str](),
    "_INBOX.agent-west.>": {"agent-west"},
    "_INBOX.broker.>": {"broker"},
    "$JS.>": set[str](),
    ">": set[str](),
}
READERS = {"broker", "operator"}
TRACING = {*READERS, "tracer"}
API = {
    # Nobody but setup changes or empties a stream; the broker may make one.
    **{
        f"STREAM.{verb}.{stream}": set[str]()
        for verb in ("UPDATE", "DELETE", "PURGE", "MSG.DELETE", "SEAL", "SNAPSHOT", "RESTORE")
        for stream in STREAMS
    },
    **{f"STREAM.CREATE.{stream}": {"broker"} for stream in STREAMS},
    "STREAM.NAMES": TRACING,
    "STREAM.LIST": READERS,
    "INFO": READERS,
    **{f"STREAM.{verb}.{stream}": TRACING for verb in ("INFO", "MSG.GET") for stream in STREAMS},
    "DIRECT.GET.DRA_STATE": TRACING,
    "DIRECT.GET.DRA_DEADLETTER": TRACING,
    "DIRECT.GET.DRA_EVENTS": {*TRACING, *SUBSCRIBERS},
    "DIRECT.GET.DRA_LEDGER_main_0": {"tracer"},
    "DIRECT.GET.DRA_EVENTS.dra.v1.events.east.claim.allocated.u1": {*READERS, *SUBSCRIBERS},
    "DIRECT.GET.DRA_STATE.dra.v1.state.east.claim.u1": {*READERS, "agent-east"},
    "DIRECT.GET.DRA_STATE.dra.v1.state.west.claim.u1": {*READERS, "agent-west"},
    "DIRECT.GET.DRA_STATE.>": READERS,
    "DIRECT.GET.DRA_LEDGER_main_0.dra.v1.ledger.main.0.east.claim.u1": {*READERS, "agent-east"},
    "DIRECT.GET.DRA_LEDGER_main_0.dra.v1.ledger.main.0.west.claim.u1": {*READERS, "agent-west"},
    "DIRECT.GET.DRA_LEDGER_main_0.dra.v1.ledger.main.0._.leader._": READERS,
    "DIRECT.GET.DRA_DEADLETTER.dra.v1.deadletter.east": READERS,
    "CONSUMER.CREATE.DRA_STATE.c": READERS,
    "CONSUMER.CREATE.DRA_STATE.c.dra.v1.state.east.>": READERS,
    "CONSUMER.CREATE.DRA_EVENTS.c": READERS,
    "CONSUMER.DURABLE.CREATE.DRA_STATE.c": set[str](),
    "CONSUMER.DELETE.DRA_LEDGER_main_0.agent_east": {"broker"},
    "CONSUMER.INFO.DRA_LEDGER_main_0.agent_west": READERS,
    "CONSUMER.MSG.NEXT.DRA_LEDGER_main_0.agent_east": {*READERS, "agent-east"},
    "CONSUMER.MSG.NEXT.DRA_LEDGER_main_0.agent_west": {*READERS, "agent-west"},
    "CONSUMER.MSG.NEXT.DRA_STATE.agent_east_last": {*READERS, "agent-east"},
    "CONSUMER.MSG.NEXT.DRA_STATE.agent_west_last": {*READERS, "agent-west"},
    "CONSUMER.MSG.NEXT.DRA_LEDGER_main_0.somebody": READERS,
    "CONSUMER.CREATE.DRA_EVENTS.subscriber_audit.dra.v1.events.>": READERS,
    "CONSUMER.DELETE.DRA_EVENTS.subscriber_audit": {"broker"},
    "CONSUMER.INFO.DRA_EVENTS.subscriber_audit": READERS,
    "CONSUMER.RESET.DRA_EVENTS.subscriber_audit": set[str](),
    "CONSUMER.UNPIN.DRA_EVENTS.subscriber_audit": set[str](),
    "CONSUMER.PAUSE.DRA_EVENTS.subscriber_audit": set[str](),
    "CONSUMER.MSG.NEXT.DRA_EVENTS.subscriber_audit": {*READERS, "subscriber-audit"},
    "CONSUMER.MSG.NEXT.DRA_EVENTS.subscriber_billing": {*READERS, "subscriber-billing"},
    "CONSUMER.MSG.NEXT.DRA_LEDGER_main_0.subscriber_audit": READERS,
}
ACKS = {
    "$JS.ACK.DRA_EVENTS.subscriber_audit.1.1.1.1.0": {*READERS, "subscriber-audit"},
    "$JS.ACK.DRA_EVENTS.subscriber_billing.1.1.1.1.0": {*READERS, "subscriber-billing"},
    "$JS.ACK.DRA_LEDGER_main_0.agent_east.1.1.1.1.0": {*READERS, "agent-east"},
}
PUBLISHES = WRITERS | ACKS | {f"$JS.API.{request}": may for request, may in API.items()}


@pytest.mark.parametrize("role", ROLES)
async def test_the_server_refuses_whatever_a_role_may_not_say_or_hear(tmp_path: Path, role: str) -> None:
    async with a_nats(tmp_path) as nats, nats.connect(role) as connection:
        refused: list[str] = []

        async def note(error: Exception) -> None:
            refused.append(str(error))

        connection.client._error_cb = note
        forbidden = [subject for subject, may in PUBLISHES.items() if role not in may]
        for subject in forbidden:
            await connection.publish(subject, b"{}", reply=f"{inbox_prefix(role)}.x")
        await connection.flush()
        unheard = [subject for subject, may in LISTENERS.items() if role not in may]
        for subject in unheard:
            await connection.client.subscribe(subject)
        await connection.flush()
        with anyio.move_on_after(5):
            while len(refused) < len(forbidden) + len(unheard):
                await connection.flush()
        # The tracer's account maps the names of JetStream's API, and the server names what it was asked as mapped.
        named = [each.replace("$JS.API", MAPPED_API) if role == "tracer" else each for each in [*forbidden, *unheard]]
        missing = [each for each in named if not any(f'"{each.lower()}"' in error.lower() for error in refused)]
        assert missing == []
        assert len(forbidden) + len(unheard) > 40 or role in ("broker", "operator")
        async with nats.connect("operator") as operator:
            for stream in STREAMS:
                assert (await StreamReader(operator, stream).state()).last_sequence == 0


@pytest.mark.parametrize("role", ROLES)
async def test_the_server_takes_whatever_a_role_may_say_and_hear(tmp_path: Path, role: str) -> None:
    async with a_nats(tmp_path) as nats, nats.connect(role) as connection:
        refused: list[str] = []

        async def note(error: Exception) -> None:
            refused.append(str(error))

        connection.client._error_cb = note
        for subject in [subject for subject, may in PUBLISHES.items() if role in may]:
            await connection.publish(subject, b"{}", reply=f"{inbox_prefix(role)}.x")
        for subject in [subject for subject, may in LISTENERS.items() if role in may]:
            await connection.client.subscribe(subject)
        for _ in range(3):
            await connection.flush()
        assert refused == []


async def test_an_answer_goes_nowhere_but_to_its_asker(tmp_path: Path) -> None:
    """The reply subject of a permitted request is a place to write to that no permission guards: accounts do."""
    async with a_nats(tmp_path) as nats, nats.connect("agent-east") as east, nats.connect("operator") as operator:
        own = "dra.v1.state.east.claim.u1"
        targets = ("dra.v1.state.west.claim.u1", "dra.v1.ledger.main.0.west.claim.u1", "dra.v1.ask.west")
        await east.request(own, b"mine", deadline_s=5)
        for target in targets:
            await east.publish(own, b"mine", reply=target)  # the ack
            await east.publish(f"$JS.API.DIRECT.GET.DRA_STATE.{own}", b"", reply=target)  # the message
            await east.publish("$JS.API.CONSUMER.MSG.NEXT.DRA_LEDGER_main_0.agent_east", b"{}", reply=target)
        assert (await east.request(own, b"last", deadline_s=5)).payload.startswith(b'{"stream":"DRA_STATE"')
        state, ledger = (StreamReader(operator, stream) for stream in ("DRA_STATE", "DRA_LEDGER_main_0"))
        assert (await ledger.state()).last_sequence == 0
        assert {message.subject for message in await state.last_messages()} == {own}


async def test_what_is_answered_to_the_tracer_writes_nothing(tmp_path: Path) -> None:
    """Nor does a consumer that it makes, whose messages go wherever its maker says: it can make none."""
    async with a_nats(tmp_path) as nats, nats.connect("tracer") as tracer, nats.connect("operator") as operator:
        own = "dra.v1.state.east.claim.u1"
        async with nats.connect("agent-east") as east:
            await east.request(own, b"theirs", deadline_s=5)
        targets = ("dra.v1.state.west.claim.u1", "dra.v1.ledger.main.0.west.claim.u1", "dra.v1.deadletter.west")
        asks: dict[str, dict[str, object]] = {
            "STREAM.NAMES": {"subject": own},
            "STREAM.INFO.DRA_STATE": {},
            "STREAM.MSG.GET.DRA_STATE": {"seq": 1},
            "DIRECT.GET.DRA_STATE": {"seq": 1, "batch": 10, "next_by_subj": "dra.v1.state.>"},
            f"DIRECT.GET.DRA_STATE.{own}": {},
            "CONSUMER.MSG.NEXT.DRA_STATE.agent_east_last": {"batch": 1},
        }
        for number, target in enumerate(targets):
            for request, body in asks.items():
                await tracer.publish(f"$JS.API.{request}", msgspec.json.encode(body), reply=target)
            config = {"name": f"c{number}", "deliver_subject": target, "ack_policy": "none"}
            body = {"stream_name": "DRA_STATE", "config": config}
            await tracer.publish(f"$JS.API.CONSUMER.CREATE.DRA_STATE.c{number}", msgspec.json.encode(body), reply="x")
        # What it asks afterwards is answered to it.
        assert [each.payload for each in await KeptMessages(tracer, "DRA_STATE", "dra.v1.state.>").after(0)] == [
            b"theirs"
        ]
        for stream in STREAMS:
            state = await StreamReader(tracer, stream).state()
            assert state == await StreamReader(operator, stream).state()
            assert state.messages == (1 if stream == "DRA_STATE" else 0), stream
        assert await ledger_segments(tracer, "main") == [0]
        message = await StreamReader(tracer, "DRA_STATE").last("dra.v1.state.*.claim.>")
        assert message is not None
        assert message.subject == own


def test_the_docs_say_whose_key_is_trusted_like_the_brokers() -> None:
    """Whoever is in its account may have an answer, or a consumer's messages, delivered to any subject of it."""
    page = (Path(__file__).parents[2] / "docs/nats.md").read_text()
    trusted = {role.name for role in roles(["east"], (), ["audit"]) if role.account == OWN_ACCOUNT}
    [says] = [line for line in page.splitlines() if line.startswith("The keys of ")]
    assert set(re.findall(r"`([a-z]+)`", says.partition(" are trusted")[0])) == trusted
    for role in roles(["<cluster>"], (), ["<name>"]):
        assert f"| `{role.name}` | `{role.account}` |" in page


async def test_a_subscriber_acknowledges_nothing_of_another(tmp_path: Path) -> None:
    """An answer that names another's acknowledgement as its place to go to stays in the asker's account."""
    async with a_nats(tmp_path) as nats:
        setup = ["nats-setup", *nats.arguments("setup"), "--subscriber=audit", "--subscriber=billing"]
        assert await anyio.to_thread.run_sync(main, setup) == 0
        async with nats.connect("broker") as broker:
            for number in range(2):
                await broker.request(f"dra.v1.events.east.claim.pending.u{number}", b"{}", deadline_s=5)
        async with nats.connect("subscriber-audit") as audit, nats.connect("subscriber-billing") as billing:
            pull = Pull(audit, "DRA_EVENTS", "subscriber_audit", waits=False)
            async with pull.opened():
                delivered = await pull.take(10)
            assert len(delivered) == 2
            for reply in (each.ack_subject for each in delivered):
                await billing.publish(
                    "$JS.API.DIRECT.GET.DRA_EVENTS.dra.v1.events.east.claim.pending.u0", b"", reply=reply
                )
                ask = b'{"batch":1,"no_wait":true}'
                await billing.publish("$JS.API.CONSUMER.MSG.NEXT.DRA_EVENTS.subscriber_billing", ask, reply=reply)
            await billing.flush()
            async with nats.connect("operator") as operator:
                about = msgspec.json.decode(await operator.api("CONSUMER.INFO.DRA_EVENTS.subscriber_audit"))
                assert about["num_ack_pending"] == 2
                await audit.publish(delivered[0].ack_subject, b"+ACK")
                with anyio.fail_after(DEADLINE_S):
                    while about["num_ack_pending"] != 1:
                        about = msgspec.json.decode(await operator.api("CONSUMER.INFO.DRA_EVENTS.subscriber_audit"))


async def test_a_subscriber_reads_under_its_name_what_setup_made_for_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with a_nats(tmp_path) as nats:
        async with nats.connect("broker") as broker:
            await broker.request("dra.v1.events.east.claim.pending.u1", b"{}", {"ce-id": "main.1"}, deadline_s=5)
        read = ["events", "--subscriber=audit", "--durable=audit", "-o=json", *nats.arguments("subscriber-audit")]
        capfd.readouterr()
        assert await anyio.to_thread.run_sync(main, read) == 1
        assert "dragoman nats-setup --subscriber audit" in capfd.readouterr().err
        ages = ["nats-setup", *nats.arguments("setup"), "--state-age=7d", "--events-age=7d", "--loosen", "-o=json"]
        assert await anyio.to_thread.run_sync(main, ages) == 0
        setup = ["nats-setup", *nats.arguments("setup"), "--subscriber=audit"]
        for _ in range(2):
            assert await anyio.to_thread.run_sync(main, setup) == 0
        capfd.readouterr()
        assert await anyio.to_thread.run_sync(main, read) == 0
        assert capfd.readouterr().out.count('"id":"main.1"') == 1
        assert await anyio.to_thread.run_sync(main, read) == 0
        assert capfd.readouterr().out == ""
        forget = ["nats-setup", *nats.arguments("setup"), "--forget-subscriber=audit", "-o=json"]
        for action in ("forgotten", "absent"):
            assert await anyio.to_thread.run_sync(main, forget) == 0
            said = msgspec.json.decode(capfd.readouterr().out)
            assert said["subscribers"] == {"audit": action}
            assert {stream["action"] for stream in said["streams"]} == {"found"}, "ages stay as they were chosen"
        assert await anyio.to_thread.run_sync(main, read) == 1
        assert await anyio.to_thread.run_sync(main, setup) == 0
        assert "place of subscriber audit: made" in capfd.readouterr().out
        assert await anyio.to_thread.run_sync(main, read) == 0
        assert capfd.readouterr().out.count('"id":"main.1"') == 1


async def test_an_asker_hears_no_answers_of_others(tmp_path: Path) -> None:
    async with a_nats(tmp_path) as nats, nats.connect("agent-east", inbox="_INBOX") as connection:
        with pytest.raises(BusUnavailableError):
            await connection.request("dra.v1.state.east.claim.u1", b"{}", deadline_s=1)


async def test_a_key_that_was_replaced_is_refused(tmp_path: Path) -> None:
    async with a_nats(tmp_path) as nats:
        key = nats.directory / "keys/agent-east.nk"
        old = key.rename(nats.directory / "keys/old.nk")
        again = ["--cluster=east", "--cluster=west", "--subscriber=audit", "--dev-ca", f"--store-dir={tmp_path}/store"]
        again += [f"--port={nats.urls[0].rpartition(':')[2]}", f"--dir={nats.directory}", "--force"]
        assert await anyio.to_thread.run_sync(main, ["nats-config", *again]) == 0
        nats.servers[0].send_signal(signal.SIGHUP)  # reload
        async with nats.connect("agent-east"):
            pass  # the new one, as soon as the server has read it: until then the connection is tried again
        async with nats.connect("agent-west"):
            pass
        old.rename(key)
        with pytest.raises(BusUnavailableError, match="Authorization Violation"):
            async with nats.connect("agent-east", deadline_s=2):
                pass


async def test_full_streams_refuse_and_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    async with a_nats(tmp_path, "--max-bytes=1M") as nats:
        async with nats.connect("agent-east") as connection:
            bus, acknowledged = AgentBus(connection, "east"), 0
            for number in range(200):  # a flood of new subjects
                message = OutgoingMessage(f"dra.v1.state.east.claim.u{number}", os.urandom(20_000))
                result = await bus.publish_state(message, 0)
                if not isinstance(result, Published):
                    break
                acknowledged += 1
            assert isinstance(result, Uncertain)
            assert "resource" in result.reason or "exceed" in result.reason, result.reason
            with pytest.raises(MessageTooLargeError, match="raise max_payload"):
                await bus.publish_state(OutgoingMessage("dra.v1.state.east.claim.big", os.urandom(10_000_000)), 0)
        async with nats.connect("agent-west") as connection:  # one cluster can fill it for all
            message = OutgoingMessage("dra.v1.state.west.claim.u", os.urandom(20_000))
            assert isinstance(await AgentBus(connection, "west").publish_state(message, 0), Uncertain)
        async with nats.connect("broker") as broker:
            state = await StreamReader(broker, "DRA_STATE").state()
            assert state.messages == acknowledged
            entry = OutgoingMessage("dra.v1.ledger.main.0.east.claim.u1", os.urandom(200_000), {"Nats-Msg-Id": "1"})
            ledger = LedgerStore(broker, "DRA_LEDGER_main_0")
            assert isinstance(await ledger.append([entry], 0), NotKnown)  # it is tried again, and nothing is decided
            assert await ledger.last_sequence() == 0
