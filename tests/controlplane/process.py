"""One program of a control plane: started, signalled, ended by its process id, started again."""

import signal
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import Process as OsProcess

from broker.adapters.embedded_nats import dying_with_us

POLL_S = 0.02


class ProgramDiedError(Exception):
    """It ended by itself, or did not get ready; the message has the end of its log."""


class Program:
    """A program with its command line; it ends when we do, however that happens (on Linux).

    log: everything it says, run after run.
    """

    def __init__(
        self, binary: Path, arguments: Sequence[str], log: Path, is_ready: Callable[[], Awaitable[bool]]
    ) -> None:
        self.name = binary.name
        self.log = log
        self._command = [str(binary), *arguments]
        self._is_ready = is_ready
        self._process: OsProcess | None = None
        self._log_shown = 0

    @property
    def is_running(self) -> bool:
        """It was started and has not ended; stopped by a signal it still runs."""
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int:
        """Of the running program."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    async def start(self, deadline_s: float = 60.0) -> None:
        """Start it and return when it is ready; after a stop it comes back with the same ports and data.

        Raises: ProgramDiedError.
        """
        assert not self.is_running, f"{self.name} is running"
        with self.log.open("ab") as log:
            self._process = await anyio.open_process(
                dying_with_us(self._command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # A session of its own: Ctrl-C is for the tests, which end it in good order.
                start_new_session=True,
                cwd=self.log.parent,
            )
        with anyio.move_on_after(deadline_s):
            while not await self._is_ready():
                if self._process.returncode is not None:
                    raise ProgramDiedError(f"{self.name} ended with {self._process.returncode}:\n{self.tail()}")
                await anyio.sleep(POLL_S)
            return
        raise ProgramDiedError(f"{self.name} was not ready within {deadline_s:g} s:\n{self.tail()}")

    def send_signal(self, number: signal.Signals) -> None:
        """Such as SIGTERM without waiting, or SIGSTOP and SIGCONT."""
        assert self._process is not None, f"{self.name} was never started"
        self._process.send_signal(number)

    async def stop(self, deadline_s: float = 90.0) -> None:
        """End it in good order. An apiserver waits a minute for its clients' open watches."""
        self.send_signal(signal.SIGTERM)
        await self.ended(deadline_s)

    async def ended(self, deadline_s: float = 90.0) -> int:
        """Return when it has ended; its exit status."""
        assert self._process is not None, f"{self.name} was never started"
        with anyio.fail_after(deadline_s):
            return await self._process.wait()

    async def kill(self) -> None:
        """End it as a power cut would; nothing happens if it does not run."""
        if self._process is None:
            return
        with anyio.CancelScope(shield=True):
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            await self._process.aclose()

    def tail(self, characters: int = 4000) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-characters:].decode(errors="replace") if self.log.exists() else ""

    def said_since_shown(self, characters: int = 4000) -> str:
        """What it said since this was last asked, or the end of that."""
        said = self.log.read_bytes()[self._log_shown :] if self.log.exists() else b""
        self._log_shown += len(said)
        return said[-characters:].decode(errors="replace")
