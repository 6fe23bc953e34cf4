"""Errors of the broker's edges. Trouble with the bus itself is in `schemas.client.errors`."""

from collections.abc import Sequence
from pathlib import Path

from broker.errors import REMEDY, InvariantError, LedgerLostError


class StreamSettingsError(Exception):
    """Streams, or the servers that keep them, are not as the protocol needs them; nothing was changed.

    differences: one sentence each. may_allow: they only make loss possible, and an operator may accept that.
    """

    def __init__(self, differences: Sequence[str], *, may_allow: bool = False) -> None:
        fix = "correct the streams with `dragoman nats-setup`, or use another NATS account"
        if may_allow:
            fix += "; --allow-unsafe-durability starts all the same, and acknowledged decisions may be lost"
        lines = "".join(f"\n  - {difference}" for difference in differences)
        super().__init__(f"this NATS is not as Dragoman needs it:{lines}\n{fix}")
        self.differences = tuple(differences)


class BatchTooLargeError(InvariantError):
    """A batch holds more messages than the server takes as one: nothing was sent."""

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(f"a ledger batch of {count} messages: the server takes at most {limit} as one; split the step")
        self.count = count
        self.limit = limit


class LedgerTornError(LedgerLostError):
    """The ledger holds a part of a batch, although batches are atomic: it is damaged. Append nothing, stop."""

    def __init__(self, stream: str, first_sequence: int, found: int, count: int) -> None:
        super().__init__(
            f"{stream} holds only {found} of the {count} messages of a batch that begins at sequence {first_sequence}:"
            " the stream is damaged; stop all brokers and restore it from a backup"
        )
        self.stream = stream
        self.first_sequence = first_sequence


class LedgerGoneError(LedgerLostError):
    """The stream of the open segment does not exist any more. Append nothing, stop."""

    def __init__(self, stream: str) -> None:
        what = "is gone while it was written to: somebody deleted it, or NATS lost its data"
        super().__init__(f"{stream} {what}. {REMEDY}")
        self.stream = stream


class EmbeddedNatsError(Exception):
    """The nats-server of this process does not run."""


class ListenError(Exception):
    """An address for probes and metrics cannot be had."""


class ArchiveError(Exception):
    """A file of a ledger segment cannot be written, or is damaged, or is none."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path


class AnchorError(Exception):
    """A key or an anchor cannot be read or written, or its signature is wrong."""


class ExportError(Exception):
    """Rows cannot be written there, or so."""
