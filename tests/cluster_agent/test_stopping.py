"""A cluster of files lets go at once."""

import time
from pathlib import Path

import anyio
import pytest

from cluster_agent.adapters.manifest_cluster import ManifestCluster

pytestmark = pytest.mark.anyio


async def test_stops_following_its_files_at_once(tmp_path: Path) -> None:
    cluster = ManifestCluster([tmp_path], poll_s=60)
    async with anyio.create_task_group() as tasks:
        await tasks.start(cluster.run)
        await anyio.wait_all_tasks_blocked()
        cancelled = time.monotonic()
        tasks.cancel_scope.cancel()
    assert time.monotonic() - cancelled < 10
