"""A start where the whole log is at hand."""

from collections.abc import Iterable

from broker.machine import Machine
from broker.machine.recovery import LastBelieved
from schemas.wire.bus import StoredMessage


def believe_again(machine: Machine, messages: Iterable[StoredMessage]) -> None:
    """Take in what was believed; messages up to the recorded position, in stream order."""
    believed = LastBelieved(machine)
    believed.add(messages)
    believed.take_in()
