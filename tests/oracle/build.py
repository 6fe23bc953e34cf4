"""Builds the oracle: `python -m tests.oracle.build`, or `make oracle`."""

import os
import sys
import time
from pathlib import Path

from tests import golang
from tests.golang import GoError

SOURCES = Path(__file__).parent
BINARY = SOURCES.parents[1] / "build" / "oracle"


def build() -> Path:
    """The oracle's path; it is built if it is older than its sources.

    Raises: GoError.
    """
    if is_current():
        return BINARY
    go = golang.find_go(SOURCES, "the oracle")
    print(
        f"building {BINARY.relative_to(SOURCES.parents[1])} with {go} (the first time takes a minute or two)",
        flush=True,
    )
    began = time.monotonic()
    BINARY.parent.mkdir(exist_ok=True)
    # Another process may be running the old one, or building too: the new one appears all at once.
    unfinished = BINARY.with_name(f"oracle.{os.getpid()}")
    try:
        golang.run([go, "build", "-o", str(unfinished), "."], SOURCES)
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


if __name__ == "__main__":
    try:
        build()
    except GoError as error:
        sys.exit(str(error))
