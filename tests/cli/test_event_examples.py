"""The examples of docs/examples follow what really happens: what was, and what comes, each once."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteReceiveStream
from anyio.streams.text import TextReceiveStream

from broker.adapters.embedded_nats import dying_with_us
from tests.cli.live import live_up
from tests.manifests import claim_manifest, class_manifest, slice_manifest, write_manifests
from tests.nats_fixture import own_nats

__all__ = ["own_nats"]

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs/examples"
DEADLINE_S = 60.0


@pytest.fixture
def directories(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("east", "west")}
    devices = [f"gpu-{number}" for number in range(4)]
    write_manifests(found["east"] / "all.yaml", class_manifest(), slice_manifest(devices, fabric="rack"))
    write_manifests(found["west"] / "all.yaml", class_manifest())
    return found


@asynccontextmanager
async def lines_of(command: Sequence[str]) -> AsyncIterator["Lines"]:
    """What the command prints while the block runs."""
    process = await anyio.open_process(dying_with_us(command), stderr=subprocess.STDOUT, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield Lines(process.stdout)
    finally:
        process.kill()
        await process.wait()


class Lines:
    def __init__(self, stdout: ByteReceiveStream) -> None:
        self._text = TextReceiveStream(stdout)
        self._unfinished = ""
        self._lines: list[str] = []

    async def next(self) -> str:
        with anyio.fail_after(DEADLINE_S):
            while not self._lines:
                *self._lines, self._unfinished = (self._unfinished + await self._text.receive()).split("\n")
        return self._lines.pop(0)


async def test_node_with_the_asyncapi_document_alone(directories: dict[str, Path]) -> None:
    installed = _installed()
    async with live_up(directories) as live:
        url = await live.url()
        write_manifests(directories["east"] / "a.yaml", claim_manifest("a"))
        await live.until_state("east/a", "Allocated")
        command = [str(shutil.which("node")), str(installed / "follow.mjs"), url, str(ROOT / "schemas/asyncapi.yaml")]
        async with lines_of(command) as lines:
            before = as_json(await lines.next())
            write_manifests(directories["west"] / "b.yaml", claim_manifest("b"))
            after = as_json(await lines.next())
    assert (before["claim"], len(before["devices"])) == ("east/default/a", 1)
    assert (after["claim"], len(after["devices"])) == ("west/default/b", 1)
    assert before["id"] != after["id"]
    assert before["devices"] != after["devices"]


async def test_python_with_our_client(directories: dict[str, Path]) -> None:
    async with live_up(directories) as live:
        url = await live.url()
        write_manifests(directories["east"] / "a.yaml", claim_manifest("a"))
        await live.until_state("east/a", "Allocated")
        async with lines_of([sys.executable, str(EXAMPLES / "follow.py"), url, "east"]) as lines:
            assert (await lines.next()).split()[1:] == ["default/a", "gpu-0"]
            write_manifests(directories["west"] / "b.yaml", claim_manifest("b"))
            await live.until_state("west/b", "Allocated")
            write_manifests(directories["east"] / "c.yaml", claim_manifest("c"))
            assert (await lines.next()).split()[1:] == ["default/c", "gpu-2"]


def as_json(line: str) -> dict[str, Any]:
    assert line.startswith("{"), f"not JSON: {line}"
    found: dict[str, Any] = json.loads(line)
    return found


def _installed() -> Path:
    """The example with what its lock names, kept outside the tree for all checkouts."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("the example needs Node.js with npm")
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dragoman/example-nats-2.29.3"
    kept.mkdir(parents=True, exist_ok=True)
    for path in EXAMPLES.iterdir():
        if path.is_file():
            shutil.copy(path, kept / path.name)
    if not (kept / "node_modules/nats").exists():
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=kept, capture_output=True
        )
        if done.returncode:
            pytest.skip(f"nats for Node.js cannot be installed: {done.stderr.decode()[-300:]}")
    return kept
