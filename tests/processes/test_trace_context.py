"""The trace context where others find it: on claims whose agent writes it there, and on the broker's metrics."""

from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest

from cluster_agent.adapters.manifest_cluster import ManifestCluster
from schemas.client.reader import StreamReader
from schemas.wire.codec import decode_entry, trace_id
from schemas.wire.ledger import Allocate
from tests.manifests import claim_manifest
from tests.processes.harness import Federation, a_federation
from tests.processes.test_federation import start_and_wait

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

ANNOTATION = "dragoman.dev/traceparent"
OPEN_METRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


async def claims_of(federation: Federation, cluster: str) -> list[dict[str, Any]]:
    """As the cluster has them."""
    manifests = ManifestCluster([federation.root / cluster], data_dir=federation.data(cluster))
    try:
        return list((await manifests.list_objects("claim")).objects)
    finally:
        manifests.close()


async def test_claims_and_metrics_name_the_trace(tmp_path: Path) -> None:
    async with a_federation(tmp_path) as federation, aiohttp.ClientSession() as client:
        annotates = federation.processes["east"]
        annotates._arguments = [*annotates._arguments, "--annotate-trace"]
        await start_and_wait(federation)
        for cluster in ("east", "west"):
            federation.write(cluster, "claims", *(claim_manifest(f"{cluster}-{number}") for number in range(3)))
        await federation.until("all are allocated", lambda view: len(view.applied) == 6)
        decided = {
            (entry.cluster, entry.uid): message.headers["traceparent"]
            async for batch in StreamReader(federation.connection, "DRA_LEDGER_main_0").read(0)
            for message in batch
            if isinstance(entry := decode_entry(message.payload), Allocate)
        }
        async with client.get(f"{await federation.processes['broker'].http()}/metrics", headers=OPEN_METRICS) as answer:
            said = await answer.text()
        for cluster in ("east", "west"):
            assert await federation.processes[cluster].stop() == 0
        with anyio.fail_after(10):
            east, west = [await claims_of(federation, cluster) for cluster in ("east", "west")]

    assert len(east) == len(west) == 3
    for claim in east:
        context = claim["metadata"]["annotations"][ANNOTATION]
        assert context == decided["east", claim["metadata"]["uid"]]
        assert context.split("-")[1] == trace_id("east", claim["metadata"]["uid"])
        assert claim["status"]["allocation"]
    assert not any(ANNOTATION in claim["metadata"].get("annotations", {}) for claim in west), "off unless asked for"

    examples = [
        line for line in said.splitlines() if "dragoman_decision_duration_seconds_bucket" in line and "#" in line
    ]
    named = {line.partition('trace_id="')[2].partition('"')[0] for line in examples}
    assert named
    assert named <= {trace_id(*claim) for claim in decided}
    assert 'dragoman_decision_duration_seconds_count{result="allocated"} 6.0' in said
