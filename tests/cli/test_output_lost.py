"""A command whose reader goes away, whose output cannot be written, or that has no stdin, stdout or stderr at all."""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from anyio import to_thread

from tests.cli.live import live_up
from tests.manifests import claim_manifest, class_manifest, slice_manifest, write_manifests

READER_GONE, OUTPUT_LOST = 141, 74
FULL = "the output cannot be written: No space left on device; what was asked for may be done all the same\n"

HAS_FULL = Path("/dev/full").exists()
needs_full = pytest.mark.skipif(not HAS_FULL, reason="there is no /dev/full here")


@pytest.fixture
def east(tmp_path: Path) -> Path:
    """A cluster with a device and two claims; one of them waits."""
    claims = [claim_manifest("a"), claim_manifest("b")]
    write_manifests(tmp_path / "east" / "all.yaml", class_manifest(), slice_manifest(["gpu-0"]), *claims)
    return tmp_path / "east"


def without_reader(*arguments: str) -> tuple[int, str]:
    """Exit code, and what came on stderr, with a pipe as stdout that nobody reads."""
    reads, writes = os.pipe()
    os.close(reads)
    try:
        return _ended(arguments, writes)
    finally:
        os.close(writes)


def on_full_disk(*arguments: str) -> tuple[int, str]:
    """Exit code, and what came on stderr, where stdout has no space left."""
    with Path("/dev/full").open("wb") as full:
        return _ended(arguments, full.fileno())


def _ended(arguments: Sequence[str], stdout: int) -> tuple[int, str]:
    command = [sys.executable, "-m", "broker.cli.main", *arguments]
    ended = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, env=_environment(), check=False
    )
    return ended.returncode, ended.stderr.decode()


def _environment(**more: str) -> dict[str, str]:
    """Ours, where stdout keeps what is printed until it is full, or flushed."""
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}, **more}


def in_shell(streams: str, *arguments: str) -> tuple[int, str]:
    """Exit code and all output of the command with these redirections."""
    shell = ["sh", "-c", f'"$@" {streams}', "sh", sys.executable, "-m", "broker.cli.main", *arguments]
    ended = subprocess.run(shell, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return ended.returncode, ended.stdout.decode()


COMMANDS = [
    pytest.param(["--help"], id="help"),
    pytest.param(["--print-completion", "bash"], id="a completion script"),
    pytest.param(["allocate", "-f", "{east}"], id="a table"),
    pytest.param(["allocate", "-f", "{east}", "-o", "json"], id="JSON"),
    pytest.param(["schema", "--check"], id="nothing to say"),
    pytest.param(["demo"], id="demo"),
    pytest.param(["up", "--cluster", "east={east}"], id="up"),
    pytest.param(["up", "--cluster", "east={east}", "-o", "json"], id="up as JSON"),
]


@pytest.mark.processes
@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_reader_that_goes_away_ends_a_command_as_sigpipe_would(east: Path, arguments: list[str]) -> None:
    says_nothing = arguments[0] == "schema"
    code, err = without_reader(*(each.replace("{east}", str(east)) for each in arguments))
    assert code == (0 if says_nothing else READER_GONE)
    assert [line for line in err.splitlines() if not line.startswith("NATS: ")] == []


@needs_full
@pytest.mark.processes
@pytest.mark.parametrize("arguments", COMMANDS)
def test_a_full_disk_is_a_sentence(east: Path, arguments: list[str]) -> None:
    says_nothing = arguments[0] == "schema"
    code, err = on_full_disk(*(each.replace("{east}", str(east)) for each in arguments))
    assert code == (0 if says_nothing else OUTPUT_LOST)
    name = "dragoman" if arguments[0].startswith("-") else f"dragoman {arguments[0]}"
    lines = [line for line in err.splitlines(keepends=True) if not line.startswith("NATS: ")]
    assert lines == ([] if says_nothing else [f"{name}: {FULL}"])


@pytest.mark.anyio
@pytest.mark.processes
async def test_whatever_asks_nats_says_so_too(east: Path, tmp_path: Path) -> None:
    key = tmp_path / "anchor.nk"
    assert in_shell("", "audit", "key", str(key))[0] == 0
    async with live_up({"east": east}) as live:
        await live.until_state("east/b", "Pending")
        url = await live.url()
        for command in (
            ["claims"],
            ["claims", "-o", "json"],
            ["cluster", "list"],
            ["trace", "a"],
            ["ledger", "verify", "-o", "json"],
            ["audit", "export"],
            ["audit", "anchor", "--key", str(key)],
            ["events", "--follow", "--since", "1h"],
            ["events", "--since", "1h", "-o", "json"],
            ["cluster", "cordon", "east", "--reason", "a test"],
        ):
            gone = await to_thread.run_sync(partial(without_reader, *command, "--nats", url))
            assert (command, *gone) == (command, READER_GONE, "")
            if HAS_FULL:
                full = await to_thread.run_sync(partial(on_full_disk, *command, "--nats", url))
                assert (command, *full) == (command, OUTPUT_LOST, f"dragoman {command[0]}: {FULL}")


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("output", ["table", "json"])
def test_a_command_without_streams_does_its_work(east: Path, streams: str, output: str) -> None:
    code, out = in_shell(streams, "allocate", "-f", str(east), "-o", output)
    assert (code, bool(out)) == (1, streams == "2>&-")


def test_stdin_that_is_closed_has_no_manifests(east: Path) -> None:
    code, out = in_shell("<&-", "allocate", "-f", "-", "-o", "json")
    assert code == 0
    assert out.endswith('{\n  "results": []\n}\n')


def test_nobody_can_be_asked_where_stdin_is_closed() -> None:
    code, out = in_shell("<&-", "cluster", "evict", "east", "--reason", "fire")
    assert code == 2
    assert "nobody can be asked here: give --yes" in out


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_of_both_streams_that_goes_away(east: Path, unbuffered: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "broker.cli.main", "allocate", "-f", str(east)]
    environment = _environment(PYTHONUNBUFFERED=unbuffered)
    ended = subprocess.run(command, stdout=writes, stderr=writes, env=environment, check=False)
    os.close(writes)
    assert ended.returncode == READER_GONE
