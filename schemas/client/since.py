"""Where a subscriber begins to read events."""

import time
from datetime import UTC, datetime

import msgspec


class Since(msgspec.Struct, frozen=True):
    """Where to begin. Made by `new`, `beginning`, `after`, `at` or `seconds`."""

    sequence: int = 0  # of the stream: after this one
    time: datetime | None = None  # at or after this
    is_new: bool = False  # what comes from now on

    @property
    def time_text(self) -> str:
        """`time` as JetStream's API takes it."""
        assert self.time is not None
        return self.time.astimezone(UTC).isoformat().replace("+00:00", "Z")

    @classmethod
    def new(cls) -> "Since":
        """What comes from now on."""
        return cls(is_new=True)

    @classmethod
    def beginning(cls) -> "Since":
        """All that is kept."""
        return cls()

    @classmethod
    def after(cls, stream_sequence: int) -> "Since":
        """What follows the event with this `Received.stream_sequence`: keep it, and nothing is met twice or missed."""
        return cls(sequence=stream_sequence)

    @classmethod
    def at(cls, when: datetime) -> "Since":
        """What was stored at or after this time, which has a time zone."""
        return cls(time=when)

    @classmethod
    def seconds(cls, ago: float) -> "Since":
        """What was stored in the last so many seconds."""
        return cls(time=datetime.fromtimestamp(time.time() - ago, UTC))
