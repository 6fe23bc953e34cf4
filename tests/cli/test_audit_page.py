"""docs/audit.md, run as it is written, on a fresh demo."""

import os
import re
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from shutil import which
from typing import NamedTuple

import anyio
import pytest

from broker.adapters.embedded_nats import dying_with_us

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

PAGE = Path(__file__).parents[2] / "docs/audit.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND_S = 60.0
READY_S = 60.0


class Command(NamedTuple):
    """A command of the page, and the lines that it is said to print, in this order; "…" stands for anything."""

    text: str
    prints: list[str]


def commands() -> Iterator[Command]:
    for block in BLOCK.findall(PAGE.read_text()):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            text, *prints = part.splitlines()
            yield Command(text, prints)


@pytest.mark.timeout(300)
async def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = 0
    up: anyio.abc.Process | None = None
    try:
        for command in commands():
            if command.text.endswith(" &"):
                shell = dying_with_us([str(which("bash")), "-c", f"exec {command.text.removesuffix(' &')} 2> up.err"])
                up = await anyio.open_process(shell, cwd=tmp_path, env=environment)
            elif command.text.startswith("export DRAGOMAN_NATS="):
                environment["DRAGOMAN_NATS"] = await address(tmp_path / "up.err")
                await until_allocated(tmp_path / "up.log", "train-west")
            else:
                await run(command, tmp_path, environment)
            ran += 1
    finally:
        if up is not None:
            assert up.returncode is None, (tmp_path / "up.err").read_text()
            up.terminate()
            await up.wait()
    assert ran == PAGE.read_text().count("\n$ ") >= 14


async def address(log: Path) -> str:
    """Of NATS, as `up` says it."""
    with anyio.fail_after(READY_S):
        while True:
            text = await anyio.Path(log).read_text() if await anyio.Path(log).exists() else ""
            if found := re.search(r"NATS: (\S+)", text):
                return found[1]
            await anyio.sleep(0.1)


async def until_allocated(log: Path, name: str) -> None:
    """Return when `up` has said so."""
    with anyio.fail_after(READY_S):
        while not re.search(rf'"name":"{name}".*"state":"Allocated"', await anyio.Path(log).read_text()):  # noqa: ASYNC110
            await anyio.sleep(0.1)  # a file tells nobody


async def run(command: Command, cwd: Path, environment: dict[str, str]) -> None:
    """Raises: AssertionError if it fails, or prints something else."""
    with anyio.fail_after(COMMAND_S):
        script = f"set -euo pipefail\n{command.text}"
        done = await anyio.run_process(["bash", "-c", script], cwd=cwd, env=environment, check=False)
    said = done.stdout.decode()
    assert done.returncode == 0, f"{command.text}\n{said}{done.stderr.decode()}"
    lines = iter(" ".join(line.split()) for line in said.splitlines())
    for wanted in command.prints:
        pattern = " ".join(wanted.split()).replace("…", "*")
        assert any(fnmatchcase(line, pattern) for line in lines), f"{command.text}\nno line {wanted!r} in\n{said}"
