"""Places in the ledger, as people name them: a sequence, a time, or how long ago."""

import argparse
import re
import time
from datetime import datetime

import msgspec

from broker.app.audit import Range

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Moment(msgspec.Struct, frozen=True):
    """One of both: a ledger sequence, or Unix milliseconds."""

    sequence: int | None = None
    time_ms: int | None = None


def moment(text: str) -> Moment:
    """What `text` names. Raises: ArgumentTypeError."""
    if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return Moment(time_ms=time.time_ns() // 1_000_000 - int(float(found[1]) * UNITS[found[2]] * 1000))
    if text.isascii() and text.isdigit():
        return Moment(sequence=int(text))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time span (30m, 1h, 2d), time with a zone (2026-01-31T12:00Z) or ledger sequence"
        )
    return Moment(time_ms=int(when.timestamp() * 1000))


def add_range_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --since and --until."""
    text = "a ledger sequence, a time as 2026-01-31T12:00Z, or how long ago (30m, 1h, 2d)"
    parser.add_argument("--since", type=moment, metavar="WHEN", help=f"{text} (default: its beginning)")
    parser.add_argument("--until", type=moment, metavar="WHEN", help="the same (default: its end)")


def range_of(options: argparse.Namespace) -> Range:
    """What --since and --until say."""
    since, until = options.since or Moment(), options.until or Moment()
    return Range(since.sequence, since.time_ms, until.sequence, until.time_ms)
