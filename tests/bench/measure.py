"""Measure two ways of doing one thing in turn, and show the figures as a table with their growth.

The least of several runs is kept (of what takes very long there is one): what disturbs a run only ever makes it longer.
The sides take turns, so that a machine that slows down slows both.
"""

import gc
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

Side = Callable[[], float]  # does one thing and returns the seconds that it took


class Table(NamedTuple):
    """Figures to print. notes: what a reader must know to believe them, a sentence each."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """The table in Markdown, readable as it is."""
        cells = [list(self.header), *map(list, self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.header))]
        lines = [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
        rule = " | ".join("-" * (width - 1) + ":" for width in widths)
        body = "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))
        notes = "".join(f"\n{note}" for note in self.notes)
        return f"### {self.title}\n\n{body}\n" + (f"{notes}\n" if notes else "")


def timed(do: Callable[[], object]) -> float:
    """Seconds that one call takes, garbage of earlier ones not counted."""
    gc.collect()
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def least(repeats: int, *sides: Side) -> list[float]:
    """Run the sides in turn, each `repeats` times; the least seconds that each of them returned.

    A side returns the seconds that it measured itself (see `timed`), so that it can prepare what is not to be counted.
    """
    best = [math.inf] * len(sides)
    for _ in range(repeats):
        for index, side in enumerate(sides):
            best[index] = min(best[index], side())
    return best


def per_call(do: Callable[[], object], calls: int = 0, at_least_s: float = 0.01) -> Side:
    """A side for something too short to be timed alone: it is called again and again, and one call's share returned."""
    if not calls:
        calls = 1
        while _loop(do, calls) < at_least_s:
            calls *= 2

    def side() -> float:
        return timed(lambda: _loop(do, calls)) / calls

    return side


def _loop(do: Callable[[], object], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        do()
    return time.perf_counter() - began


def growth(before: tuple[int, float] | None, size: int, seconds: float) -> str:
    """The exponent with which the time grew since the size before: 1 is in proportion, 0 not at all."""
    if before is None:
        return ""
    return f"{math.log(seconds / before[1]) / math.log(size / before[0]):.1f}"


def cpu_seconds(processes: Mapping[str, int]) -> dict[str, float]:
    """What each process has had of the CPU until now, its threads together. nan where the system does not say."""
    return {name: _cpu_seconds(pid) for name, pid in processes.items()}


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime


def ms(seconds: float) -> str:
    """Milliseconds with three significant digits."""
    return _digits(seconds * 1e3)


def us(seconds: float) -> str:
    """Microseconds with three significant digits."""
    return _digits(seconds * 1e6)


def ratio(ours: float, other: float) -> str:
    """How many times as long ours takes."""
    return f"{_digits(ours / other)}x"


def count(number: float) -> str:
    """A whole number with separators."""
    return f"{number:,.0f}"


def progress(text: str) -> None:
    """Tell who watches what is being measured."""
    print(text, file=sys.stderr, flush=True)


def _digits(number: float) -> str:
    if number >= 999.5:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number >= 100 else f"{number:#.3g}"
