"""Places in the ledger and in other streams, as people name them: a sequence, a time, or how long ago."""

import argparse
import re
import time
from datetime import UTC, datetime

import msgspec

from broker.app.audit import Range

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Moment(msgspec.Struct, frozen=True):
    """One of both: a ledger sequence, or Unix milliseconds."""

    sequence: int | None = None
    time_ms: int | None = None


def moment(text: str) -> Moment:
    """What `text` names. Raises: ArgumentTypeError."""
    found = sequence_or_time(text, "ledger")
    if isinstance(found, int):
        return Moment(sequence=found)
    return Moment(time_ms=int(found.timestamp() * 1000))


def sequence_or_time(text: str, of: str) -> int | datetime:
    """A sequence, or a time with a zone; also how long ago that was. of: what has the sequences, for the error.

    Raises: ArgumentTypeError.
    """
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
            return datetime.fromtimestamp(time.time() - float(found[1]) * UNITS[found[2]], UTC)
        when = datetime.fromisoformat(text)
    except (ValueError, OverflowError):  # so long ago that there was no year
        when = None
    if when is None or when.tzinfo is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time span (30m, 1h, 2d), time with a zone (2026-01-31T12:00Z) or {of} sequence"
        )
    return when


def add_range_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --since and --until."""
    text = "a ledger sequence, a time as 2026-01-31T12:00Z, or how long ago (30m, 1h, 2d)"
    parser.add_argument("--since", type=moment, metavar="WHEN", help=f"{text} (default: its beginning)")
    parser.add_argument("--until", type=moment, metavar="WHEN", help="the same (default: its end)")


def range_of(options: argparse.Namespace) -> Range:
    """What --since and --until say."""
    since, until = options.since or Moment(), options.until or Moment()
    return Range(since.sequence, since.time_ms, until.sequence, until.time_ms)
