"""`dragoman up` as a process that goes on: what it prints, line by line, and its bus."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, Process

DEADLINE_S = 30.0
Row = dict[str, Any]


class Live:
    """A running `dragoman up -o json`.

    rows: the last line of each claim that lives, by cluster and name. lines: all lines. err: what came on stderr.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.rows: dict[str, Row] = {}
        self.lines: list[Row] = []
        self.err = ""
        self._changed = anyio.Event()
        self._has_ended = False
        self.is_killed = False

    async def kill(self) -> None:
        """As a power cut would."""
        self.is_killed = True
        self.process.kill()
        await self.process.wait()

    async def until(self, what: str, is_true: Callable[["Live"], Any]) -> None:
        """Return as soon as it is so by what was printed."""
        with anyio.move_on_after(DEADLINE_S):
            while not is_true(self):
                changed = self._changed
                assert not self._has_ended, f"up has ended:\n{self.err}"
                await changed.wait()
            return
        raise AssertionError(f"{what} did not happen within {DEADLINE_S:g} s; {self.rows}\n{self.err}")

    async def until_state(self, claim: str, state: str) -> Row:
        """The claim's line once it is in that state. claim: cluster/name."""
        await self.until(f"{claim} {state}", lambda live: live.rows.get(claim, {}).get("state") == state)
        return self.rows[claim]

    async def url(self) -> str:
        """Of its NATS, as it says on stderr."""
        await self.until("NATS address", lambda live: "NATS: " in live.err)
        found = re.search(r"NATS: (\S+)", self.err)
        assert found is not None
        return found[1]

    async def read_stdout(self, stream: ByteReceiveStream) -> None:
        async for line in _lines(stream):
            row = json.loads(line)  # nothing but JSON is on stdout
            self.lines.append(row)
            key = f"{row['cluster']}/{row['name']}"
            if row.get("deleted"):
                if self.rows.get(key, {}).get("uid") == row["uid"]:
                    del self.rows[key]
            else:
                self.rows[key] = row
            self._wake()
        self._has_ended = True
        self._wake()

    async def read_stderr(self, stream: ByteReceiveStream) -> None:
        async for line in _lines(stream):
            self.err += line + "\n"
            self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


@asynccontextmanager
async def live_up(directories: Mapping[str, Path], options: Sequence[str] = ()) -> AsyncIterator[Live]:
    """`dragoman up` on these directories; in the end, unless it was killed, it is told to stop, and exits with 0."""
    clusters = [f"--cluster={name}={directory}" for name, directory in directories.items()]
    process = await anyio.open_process(
        [sys.executable, "-m", "broker.cli.main", "up", *clusters, "-o", "json", *options],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    live = Live(process)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(live.read_stdout, process.stdout)
            tasks.start_soon(live.read_stderr, process.stderr)
            yield live
            if not live.is_killed:
                process.send_signal(signal.SIGINT)
                with anyio.fail_after(DEADLINE_S):
                    assert await process.wait() == 0, live.err
    finally:
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                process.kill()
            await process.aclose()


async def _lines(stream: ByteReceiveStream) -> AsyncIterator[str]:
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode()
