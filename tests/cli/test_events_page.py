"""The commands of docs/events.md, run in their order as they are written, on a fresh demo."""

import os
import re
import signal
import subprocess
import sys
from collections import deque
from fnmatch import fnmatchcase
from pathlib import Path
from shutil import which
from typing import NamedTuple

import anyio
import pytest
from anyio.abc import Process
from anyio.streams.text import TextReceiveStream

from broker.adapters.embedded_nats import dying_with_us

pytestmark = [pytest.mark.anyio, pytest.mark.processes]

PAGE = Path(__file__).parents[2] / "docs/events.md"
DEADLINE_S = 60.0


class Command(NamedTuple):
    """A command of the page, and the lines that it prints, in this order; "…" stands for anything."""

    text: str
    prints: list[str]


def commands() -> list[Command]:
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            text, *prints = part.splitlines()
            found.append(Command(text, prints))
    return found


class Shell:
    """Runs commands where the demo is, with the same environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    async def start(self, text: str, errors: str) -> Process:
        """It in a process group of its own; what it says on stderr goes to the file `errors`."""
        shell = dying_with_us([str(which("bash")), "-c", text])
        with (self.directory / errors).open("wb") as file:
            return await anyio.open_process(
                shell, cwd=self.directory, env=self.environment, stderr=file, start_new_session=True
            )

    async def run(self, command: Command) -> None:
        """To its end, or, where it follows, until it has said what it should.

        Raises: AssertionError if it fails, or says something else.
        """
        follows = "--follow" in command.text
        wanted = deque(" ".join(line.split()).replace("…", "*") for line in command.prints)
        process = await self.start(f"set -euo pipefail\n{command.text}", "errors.log")
        said = unfinished = ""
        assert process.stdout is not None
        try:
            with anyio.move_on_after(DEADLINE_S):
                async for text in TextReceiveStream(process.stdout):
                    said += text
                    *lines, unfinished = (unfinished + text).split("\n")
                    for line in lines:
                        if wanted and fnmatchcase(" ".join(line.split()), wanted[0]):
                            wanted.popleft()
                    if follows and not wanted:
                        os.killpg(process.pid, signal.SIGINT)
                        follows = False
                await process.wait()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        errors = (self.directory / "errors.log").read_text()
        assert not wanted, f"{command.text}\nno line {wanted[0]!r} in\n{said}{errors}"
        if "--follow" not in command.text:
            assert process.returncode == 0, f"{command.text}\n{said}{errors}"
            assert bool(command.prints) == bool(said.strip()) or command.text.startswith("dragoman demo"), said


@pytest.mark.timeout(300)
async def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    if which("jq") is None:
        pytest.skip("the page's commands need jq")
    shell, up = Shell(tmp_path), None
    try:
        for command in commands():
            if command.text.endswith(" &"):
                up = await shell.start(f"exec {command.text.removesuffix(' &')}", "up.err")
            elif command.text.startswith("export DRAGOMAN_NATS="):
                shell.environment["DRAGOMAN_NATS"] = await until_there(tmp_path / "up.err", r"NATS: (\S+)")
                await until_there(tmp_path / "up.log", r'("name":"train-west").*"state":"Allocated"')
                await until_told(shell)
            else:
                await shell.run(command)
    finally:
        if up is not None:
            up.terminate()
            await up.wait()
    assert len(commands()) == PAGE.read_text().count("\n$ ") >= 7


async def until_there(log: Path, pattern: str) -> str:
    """What the group of the pattern matches, once it does."""
    with anyio.fail_after(DEADLINE_S):
        while True:
            text = await anyio.Path(log).read_text() if await anyio.Path(log).exists() else ""
            if found := re.search(pattern, text):
                return found[1]
            await anyio.sleep(0.1)


async def until_told(shell: Shell) -> None:
    """Events come a moment after what they tell of."""
    command = ["dragoman", "events", "--type", "claim.allocated"]
    with anyio.fail_after(DEADLINE_S):
        while True:
            done = await anyio.run_process(command, env=shell.environment, check=False, stderr=subprocess.DEVNULL)
            if b"train-west" in done.stdout:
                return
