"""What the previous build wrote is read by this one, and means the same."""

from collections.abc import Callable, Iterable

import msgspec
import pytest
from msgspec.structs import replace

from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.machine import Identity, Machine, recovery, report
from broker.machine.segments import LedgerStart, SegmentFold
from broker.world.check import check
from broker.world.federation import Fabric, Federation, PoolPattern
from broker.world.keys import ClusterId
from broker.world.world import World
from schemas.wire import codec
from schemas.wire.bus import StoredMessage
from schemas.wire.ledger import Inputs
from schemas.wire.state import ClaimState
from schemas.wire.subjects import ledger_stream, parse_state_subject
from tests.believing import believe_again
from tests.manifests import DRIVER
from tests.upgrades import RECORDED
from tests.upgrades.record import Line

CLUSTERS = [ClusterId("east"), ClusterId("west")]
FABRIC = Fabric(name="rack", source=CLUSTERS[0], clusters=CLUSTERS, pools=[PoolPattern(driver=DRIVER)])


def lines(name: str) -> list[Line]:
    return [msgspec.json.decode(line, type=Line) for line in (RECORDED / f"{name}.jsonl").read_bytes().splitlines()]


def stored(chosen: Iterable[Line]) -> list[StoredMessage]:
    return [StoredMessage(each.subject, bytes(each.payload), {}, each.sequence, 0) for each in chosen]


def segment(number: int) -> list[StoredMessage]:
    return stored(each for each in lines("ledger") if each.stream == ledger_stream("main", number))


def new_machine() -> Machine:
    world = World(Federation(clusters=CLUSTERS, fabrics=[FABRIC]))
    return Machine(world, DeviceIndex(default_engine()), Identity("i", "b", "d"))


def from_its_checkpoint() -> Machine:
    """As a start reads it: the last segment alone."""
    start = LedgerStart([0, 1], new_machine)
    while start.wanted is not None:
        assert start.wanted == 1
        start.add(segment(start.wanted))
        start.end()
    assert start.damaged == []
    return start.machine


def from_its_beginning() -> Machine:
    """Every entry that it ever wrote."""
    machine = new_machine()
    for number in (0, 1):
        fold = SegmentFold(machine.world, number)
        fold.add(segment(number))
        assert fold.finish()
    return machine


@pytest.mark.parametrize("read", [from_its_checkpoint, from_its_beginning])
def test_the_world_is_what_the_previous_build_said_of_it(read: Callable[[], Machine]) -> None:
    machine = read()
    believe_again(machine, stored(lines("state")))
    recovery.resume(machine)
    check(machine.world)
    rows = report.claim_rows(machine.world)
    # Who holds the devices that a claim waits for is told anew in the message; the ledger has the reason as it began.
    told = msgspec.json.decode((RECORDED / "claims.json").read_bytes(), type=list[report.ClaimRow])
    assert [replace(row, message="") for row in rows] == [replace(row, message="") for row in told]


def test_its_batches_name_build_and_algorithm() -> None:
    entries = [codec.decode_entry(bytes(line.payload)) for line in lines("ledger")]
    batches = [entry for entry in entries if isinstance(entry, Inputs)]
    assert len(batches) >= 10
    assert {(batch.build, batch.algorithm) for batch in batches} == {("0.1.0", 1)}


def test_every_kind_of_state_message_was_recorded() -> None:
    subjects = [parse_state_subject(line.subject) for line in lines("state")]
    assert {subject.kind for subject in subjects if subject} == {"slice", "class", "claim", "agent"}
    claims = [line for line in lines("state") if ".claim." in line.subject]
    said = [codec.decode_claim_state(bytes(line.payload)) for line in claims]
    assert any(each.is_tombstone for each in said)
    assert any(each.decision for each in said)
    assert all(isinstance(each, ClaimState) for each in said)
