"""Places in the ledger and in other streams, as people name them: a sequence, a time, or how long ago."""

import argparse
import re
import time
from datetime import UTC, datetime

import msgspec

from broker.app.audit import Range

SEQUENCE_END = 2**64 - 1  # NATS counts in 64 bits, and is asked for the one after
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
    """A sequence, or a time in UTC, which may be named with another zone, or by how long ago it was.

    of: what has the sequences, for the error.
    Raises: ArgumentTypeError.
    """
    if text.isascii() and text.isdigit():
        if len(text) > len(str(SEQUENCE_END)) or int(text) >= SEQUENCE_END:
            raise argparse.ArgumentTypeError(f"{text} is no {of} sequence: they are below {SEQUENCE_END}")
        return int(text)
    when: datetime | None
    try:
        if found := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
            return datetime.fromtimestamp(time.time() - float(found[1]) * UNITS[found[2]], UTC)
        when = datetime.fromisoformat(text)
        when = when.astimezone(UTC) if when.tzinfo is not None else None
    except (ValueError, OverflowError):  # so long ago, or to come, that UTC has no year for it
        when = None
    if when is None:
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
