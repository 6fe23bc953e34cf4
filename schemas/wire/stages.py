"""When a message reached each stage of its way: one header beside the payload, which no decision is made from.

`Dra-Times: seen=1790000000000000,sent=+215`: the first is Unix microseconds by the clock of whoever wrote the message,
the others are microseconds after the first (`-`: before it). A stage that was not met, or is not known any more, is
left out. Who writes which stages is said in docs/tracing.md; readers pass over names that they do not know.
"""

import re
from collections.abc import Mapping

TIMES = "Dra-Times"
CAUSE = "ce-causationid"  # of a ledger entry: `DRA_STATE.<sequence>` of the message that led to it

TIMES_LENGTH_MAX = 1_000
UNIX_US_MAX = 1 << 53  # the year 2255; beyond it JSON numbers are not exact
_ONE = re.compile(r"([a-z]{1,20})=([+-]?)([0-9]{1,16})", re.ASCII)


class StageTimesError(ValueError):
    """A header does not say times as it should; whoever reads it goes on without them."""


def write_times(times: Mapping[str, int]) -> str:
    """times: Unix microseconds by stage, at least one; the first is written in full."""
    (first, first_us), *others = times.items()
    return ",".join([f"{first}={first_us}", *(f"{name}={at_us - first_us:+d}" for name, at_us in others)])


def read_times(text: str) -> dict[str, int]:
    """Unix microseconds by stage; {} for "". Raises: StageTimesError."""
    if not text:
        return {}
    if len(text) > TIMES_LENGTH_MAX:
        raise StageTimesError(f"{TIMES} has {len(text)} characters, at most {TIMES_LENGTH_MAX} are read")
    times: dict[str, int] = {}
    first_us = 0
    for number, part in enumerate(text.split(",")):
        found = _ONE.fullmatch(part)
        if found is None or bool(found[2]) != bool(number):
            raise StageTimesError(f"{TIMES}: {part!r} is not NAME=MICROSECONDS, signed but for the first")
        at_us = int(found[2] + found[3]) + first_us
        if number == 0:
            first_us = at_us
        if not 0 < at_us < UNIX_US_MAX:
            raise StageTimesError(f"{TIMES}: {part!r} is no time of this age")
        if found[1] in times:
            raise StageTimesError(f"{TIMES}: {found[1]!r} is there twice")
        times[found[1]] = at_us
    return times
