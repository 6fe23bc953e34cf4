"""What entries follow from, and that the machine does the same whoever listens."""

from broker.machine.observer import Observer
from broker.world.keys import ClaimKey
from schemas.wire.ledger import Allocate, AnyEntry, GrantEnded, Inputs, OutcomeRecorded, ReasonChanged
from schemas.wire.state import ObjectName
from tests.builders import a_claim
from tests.machine.driven import (
    EAST,
    Driven,
    an_immediate_claim,
    everyone_heard,
    key_of,
    settled,
)


def caused(driven: Driven) -> list[tuple[AnyEntry, int]]:
    """Entries of the next batch, inputs apart, with what they follow from."""
    effects = driven.step()
    of_inputs = [
        cause for entry, cause in zip(effects.entries, effects.causes, strict=True) if isinstance(entry, Inputs)
    ]
    assert not any(of_inputs), "inputs follow from no single message"
    return [each for each in zip(effects.entries, effects.causes, strict=True) if not isinstance(each[0], Inputs)]


def test_each_entry_names_the_message_that_it_follows_from(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    holder, waiter = an_immediate_claim("a"), an_immediate_claim("b")
    first, second = east.tells(holder), west.tells(waiter)
    ((allocate, cause), (reason, other)) = caused(machine)
    assert isinstance(allocate, Allocate)
    assert isinstance(reason, ReasonChanged)
    assert (cause, other) == (first, second)

    sequence, _ = machine.last(Allocate)
    applied = east.tells(holder, allocate.allocation, decision=settled(sequence))
    ((outcome, cause),) = caused(machine)
    assert isinstance(outcome, OutcomeRecorded)
    assert cause == applied

    deleted = east.deletes(holder)
    ((ended, cause), (allocate, other)) = caused(machine)
    assert isinstance(ended, GrantEnded)
    assert isinstance(allocate, Allocate)
    assert (cause, other) == (deleted, second), "who waited is granted by its own message, however old"


def test_what_a_full_sync_ends_follows_from_the_sync(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    east.living.discard(ObjectName("claim", claim.metadata.uid))
    synced = east.syncs()
    ended = [cause for entry, cause in caused(machine) if isinstance(entry, GrantEnded)]
    assert ended == [synced]


class Listening(Observer):
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str | ClaimKey] = []

    def deciding(self) -> None:
        """See Observer."""
        self.heard.append("deciding")

    def filtered(self) -> None:
        """See Observer."""
        self.heard.append("filtered")

    def decided(self, claim: ClaimKey) -> None:
        """See Observer."""
        self.heard.append(claim)


def test_an_observer_hears_of_each_claim_that_is_tried(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=2)
    listening = machine.machine.core.observer = Listening()
    searched, waits = an_immediate_claim("a"), a_claim(name="b")
    east.tells(searched)
    east.tells(waits)
    machine.run()
    assert listening.heard == ["deciding", "filtered", key_of(EAST, searched), key_of(EAST, waits)]
    assert machine.replay() == [message.payload for message in machine.ledger], "nobody listens to a replay"
