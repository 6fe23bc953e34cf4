"""Places in the ledger, as people name them: a sequence, a time, or how long ago."""

import argparse
import re
import time
from datetime import datetime

import msgspec

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
