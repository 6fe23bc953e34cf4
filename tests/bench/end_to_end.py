"""End to end over a real nats-server: two clusters of manifests want more than their fabric has."""

import json
import tempfile
import time
from collections.abc import Sequence
from itertools import count as counter
from pathlib import Path

import anyio

from broker.adapters.embedded_nats import embedded_nats
from broker.adapters.streams import StreamSettings, ensure_streams
from broker.cli.local import local_federation
from broker.world.federation import Federation
from broker.world.keys import ClusterId
from cluster_agent.adapters.bus import AgentBus
from cluster_agent.adapters.state_publisher import Published
from schemas.client.connection import BusOptions, connect
from schemas.client.reader import StreamReader
from schemas.resource import Resource
from schemas.resource.decode import to_builtins
from schemas.wire.bus import MESSAGE_ID, OutgoingMessage, StoredMessage
from schemas.wire.subjects import STATE_STREAM
from tests.bench.fleet import a_claim_for, some_slices
from tests.bench.measure import Table, count, growth, progress, ratio
from tests.builders import CLASS, DRIVER, a_class

CLUSTERS = ("east", "west")
DEVICES = 150
CLAIMS = (50, 100, 200, 400)  # in each cluster
REPEATS = 2


def measure(claims: Sequence[int] = CLAIMS, devices: int = DEVICES, repeats: int = REPEATS) -> list[Table]:
    """`up --once` with so many claims in each cluster, in one process with the broker and both agents."""
    rows: list[list[str]] = []
    before = None
    for size in claims:
        took, bare_s, decided, messages = float("inf"), float("inf"), 0, 0
        for _ in range(repeats):
            progress(f"end to end: 2 x {count(size)} claims on {devices} devices")
            seconds, decided, stored = anyio.run(_settle, size, devices)
            bare_seconds = anyio.run(_publish_alone, stored)
            took, bare_s, messages = min(took, seconds), min(bare_s, bare_seconds), len(stored)
        rows.append(
            [
                f"2 x {count(size)}",
                f"{took:.2f}",
                growth(before, size, took),
                count(decided),
                count(decided / took),
                count(2 * size / took),
                count(messages),
                f"{bare_s:.2f}",
                ratio(took, bare_s),
            ]
        )
        before = (size, took)
    header = ["claims", "s", "growth", "granted", "granted/s", "claims/s", "messages", "bare s", "to bare"]
    notes = [
        "From both agents started to nothing left to do; every grant is written into its claim and reported.",
        "Bare: the same state messages published with acks one after the other to a server of the same kind",
        "(sync_interval: always). The ledger's batches, dead letters and heartbeats are not in it.",
    ]
    return [Table(f"end to end: two clusters on {devices} shared devices", header, rows, notes)]


async def _settle(size: int, devices: int) -> tuple[float, int, list[StoredMessage]]:
    """Seconds until all is settled, how many claims got a device, and what the agents published."""
    with tempfile.TemporaryDirectory(prefix="dragoman-bench-") as directory:
        directories = {name: Path(directory, name) for name in CLUSTERS}
        for name, path in directories.items():
            _write_manifests(path, name, size, devices)
        federation = Federation(clusters=[ClusterId(name) for name in CLUSTERS], believe_labels=True)
        async with local_federation(directories, federation, data_dir=None, tell=lambda _: None) as local:
            began = time.perf_counter()
            await local.start_agents()
            await local.wait_until_settled()
            seconds = time.perf_counter() - began
            states = [row.state for row in await local.claims()]
            granted = states.count("Allocated")
            assert (len(states), granted) == (2 * size, min(2 * size, devices)), f"{granted} of {len(states)} granted"
            async with connect(BusOptions((local.url,))) as connection:
                reader = StreamReader(connection, STATE_STREAM)
                stored = [message async for batch in reader.read(0) for message in batch]
    return seconds, granted, stored


async def _publish_alone(messages: Sequence[StoredMessage]) -> float:
    """Seconds to publish the messages one after the other, with the headers and the guard that an agent gives them."""
    numbers = counter()
    last_sequences: dict[str, int] = {}
    async with embedded_nats() as server, connect(BusOptions((server.url,))) as connection:
        await ensure_streams(connection, StreamSettings(), "main", 0)
        bus = AgentBus(connection, CLUSTERS[0])
        began = time.perf_counter()
        for message in messages:
            headers = {**message.headers, MESSAGE_ID: f"bench-{next(numbers)}"}
            outgoing = OutgoingMessage(message.subject, message.payload, headers)
            stored = await bus.publish_state(outgoing, last_sequences.get(message.subject, 0))
            assert isinstance(stored, Published), stored
            last_sequences[message.subject] = stored.stream_sequence
        return time.perf_counter() - began


def _write_manifests(path: Path, cluster: str, size: int, devices: int) -> None:
    path.mkdir()
    selector = f'device.attributes["{DRIVER}"].index >= 0'
    objects: list[Resource] = [a_class(CLASS), *(a_claim_for(selector, index) for index in range(size))]
    items = [to_builtins(each) for each in objects]
    if cluster == CLUSTERS[0]:
        for part in map(to_builtins, some_slices(devices)):
            part["metadata"]["labels"] = {"dragoman.dev/fabric": "f"}
            items.append(part)
    for item in items:
        item["metadata"].pop("uid", None)
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    (path / "manifests.json").write_text(text)
