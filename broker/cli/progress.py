"""How far something is that takes longer than two seconds: on stderr, one line that is written over on a terminal."""

import sys
import time

FIRST_S = 2.0
ON_TERMINAL_S = 0.2
IN_LOG_S = 5.0


class Progress:
    """Tell it what was done; it says so now and then. As a context: the line is gone afterwards."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = self._told = time.monotonic()
        self._count = 0
        self._is_terminal = sys.stderr.isatty()

    def add(self, count: int, where: str = "") -> None:
        """So many more, here."""
        self._count += count
        now = time.monotonic()
        if now - self._began < FIRST_S or now - self._told < (ON_TERMINAL_S if self._is_terminal else IN_LOG_S):
            return
        self._told = now
        line = f"{self._count:,} {self._what} {where}, {self._count / (now - self._began):,.0f} a second"
        print(f"\r{line}\033[K" if self._is_terminal else line, end="" if self._is_terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal and self._told != self._began:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
