"""A start where the whole ledger and the whole log are at hand."""

from collections.abc import Iterable

from broker.machine import Machine
from broker.machine.recovery import LastBelieved
from broker.machine.segments import SegmentFold
from schemas.wire.bus import StoredMessage


def fold_ledger(machine: Machine, messages: Iterable[StoredMessage]) -> None:
    """Fold a ledger of one segment, from its first entry on, into the machine's world; see `segments` for a start.

    Raises: UnreadableEntryError; InvariantError if one cannot follow.
    """
    whole = SegmentFold(machine.world, 0)
    whole.add(messages)
    whole.finish()


def believe_again(machine: Machine, messages: Iterable[StoredMessage]) -> None:
    """Take in what was believed; messages up to the recorded position, in stream order."""
    believed = LastBelieved(machine)
    believed.add(messages)
    believed.take_in()
