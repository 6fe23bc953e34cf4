"""The public events that follow from what a broker has recorded."""

import pytest

from broker.machine.public_events import ProjectedEvent, Projection
from schemas import events
from schemas.events import ClaimRef, event_subject
from schemas.wire.codec import decode_entry
from schemas.wire.ledger import Allocate
from tests.builders import a_claim
from tests.machine.driven import EAST, WEST, Agent, Driven, a_pod, everyone_heard, granted, settled


def projected(machine: Driven, after: int = 0) -> list[ProjectedEvent]:
    """Of all that is in the ledger, those of entries after `after`."""
    projection = Projection("main")
    found = [projection.project(decode_entry(message.payload), message.stream_sequence) for message in machine.ledger]
    return [each for each in found if each is not None and each.event.ledger_sequence > after]


def kinds(found: list[ProjectedEvent]) -> list[str]:
    return [type(each.event).__name__ for each in found]


def test_tell_of_a_claim_from_waiting_to_being_free_again(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    began = machine.world.ledger_last
    claim = a_claim()
    east.tells(claim)
    machine.run()
    sequence = granted(machine, east, claim, a_pod())
    east.deletes(claim)
    machine.run()
    pending, grant, allocated, released = projected(machine, began)
    assert kinds([pending, grant, allocated, released]) == [
        "ClaimPending",
        "ClaimGranted",
        "ClaimAllocated",
        "ClaimReleased",
    ]
    ref = ClaimRef(EAST, claim.metadata.uid, "default", "train")
    assert isinstance(pending.event, events.ClaimPending)
    assert (pending.event.claim, pending.event.reason) == (ref, "WaitingForConsumer")
    assert isinstance(grant.event, events.ClaimGranted)
    assert (grant.event.ledger_sequence, grant.event.pods) == (sequence, ["uid-worker"])
    assert isinstance(allocated.event, events.ClaimAllocated)
    assert (allocated.event.grant, allocated.cause) == (sequence, sequence)
    assert isinstance(released.event, events.ClaimReleased)
    assert (released.event.claim, released.event.cause, released.cause) == (ref, "ClaimDeleted", sequence)
    devices = machine.last(Allocate)[1].holds
    assert grant.event.devices == allocated.event.devices == released.event.devices == devices
    assert [each.event_id for each in (grant, released)] == [
        f"main.{sequence}",
        f"main.{released.event.ledger_sequence}",
    ]
    assert event_subject(released.event) == f"dra.v1.events.{EAST}.claim.released.{claim.metadata.uid}"


def test_a_decision_that_its_cluster_did_not_take_is_told_as_failed(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    east.tells(a_claim(), None, a_pod())
    machine.run()
    sequence, _ = machine.last(Allocate)
    began = machine.world.ledger_last
    east.tells(a_claim(), None, a_pod(), decision=settled(sequence, "Failed", "no right"))
    machine.run()
    found = projected(machine, began)
    assert kinds(found)[:2] == ["ClaimAllocationFailed", "ClaimReleased"]
    failed = found[0].event
    assert isinstance(failed, events.ClaimAllocationFailed)
    assert (failed.grant, failed.outcome, failed.message) == (sequence, "Failed", "no right")


def test_what_an_operator_orders_and_what_follows_is_told(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    granted(machine, east, a_claim(), a_pod())
    began = machine.world.ledger_last
    machine.command("cordon", WEST)
    machine.command("uncordon", WEST)
    machine.command("evict", EAST, fenced=True)
    machine.run()
    assert kinds(projected(machine, began)) == [
        "ClusterCordoned",
        "ClusterUncordoned",
        "ClusterEvicted",
        "ClaimEvicted",
    ]


@pytest.mark.parametrize(("state", "kind"), [("Stale", "ClusterStale"), ("Lost", "ClusterLost")])
def test_silence_is_told(machine: Driven, state: str, kind: str) -> None:
    everyone_heard(machine)
    began = machine.world.ledger_last
    machine.mark(EAST, "Stale")
    if state == "Lost":
        machine.mark(EAST, "Lost")
    assert kinds(projected(machine, began))[-1] == kind


def test_a_checkpoint_tells_nothing_again_and_names_are_known_after_it(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    sequence = granted(machine, east, a_claim(), a_pod())
    before = projected(machine)
    machine.rotate()
    assert projected(machine) == before
    east.deletes(a_claim())
    machine.run()
    # From the new segment alone, as who goes on there reads it.
    projection = Projection("main")
    found = [
        projection.project(decode_entry(message.payload), message.stream_sequence)
        for message in machine.ledger[machine.segments[-1] :]
    ]
    [released] = [each.event for each in found if each is not None]
    assert isinstance(released, events.ClaimReleased)
    assert (released.claim.name, released.grant, len(released.devices)) == ("train", sequence, 1)


def test_a_device_by_operators_hand(machine: Driven) -> None:
    everyone_heard(machine)
    east = Agent(machine, EAST)
    assert east.name == EAST
    began = machine.world.ledger_last
    machine.device_command("taint", "gpu-0")
    machine.device_command("untaint", "gpu-0")
    found = projected(machine, began)
    assert kinds(found) == ["DeviceTainted", "DeviceUntainted"]
    assert event_subject(found[0].event).startswith("dra.v1.events._.device.tainted.")
