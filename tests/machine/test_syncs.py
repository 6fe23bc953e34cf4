"""Runs of agents and full syncs: when a cluster counts as heard, what a sync ends, and when it is asked for again."""

import tracemalloc

import pytest

from broker.machine import Machine
from broker.machine.recovery import LastBelieved
from broker.machine.syncs import on_beat
from broker.world.federation import FABRIC_LABEL, Federation
from broker.world.keys import ClusterId
from broker.world.world import World
from schemas.wire.bus import OutgoingMessage, pack
from schemas.wire.calls import Ask, Beat
from schemas.wire.codec import encode
from schemas.wire.ledger import Adopted, Allocate, ClaimForgotten, GrantEnded, Inputs, OutcomeRecorded
from schemas.wire.state import (
    NAMES_IN_PART,
    PARTS_MAX,
    AgentMessage,
    ClaimState,
    ObjectName,
    SyncFinished,
    SyncPart,
    add_to_digest,
    object_digest,
)
from schemas.wire.subjects import run_subject, state_subject, sync_part_subject
from tests.believing import fold_ledger
from tests.builders import CLASS, a_claim, a_request, a_slice, some_devices
from tests.machine.conftest import Starter
from tests.machine.driven import (
    EAST,
    IDENTITY,
    WEST,
    Agent,
    Driven,
    a_brokered_class,
    an_allocation,
    an_immediate_claim,
    everyone_heard,
    granted,
    reason,
)


def name_of(uid: str) -> ObjectName:
    return ObjectName("claim", uid)


# --- what a sync ends


def test_a_claim_that_a_sync_lacks_has_ended(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    kept, lost, pending = an_immediate_claim("kept"), an_immediate_claim("lost"), an_immediate_claim("pending")
    sequence = granted(machine, east, lost)
    east.tells(kept)
    east.tells(pending)
    machine.run()
    east.living -= {name_of(lost.metadata.uid), name_of(pending.metadata.uid)}
    east.syncs()
    ended, forgotten, allocated = machine.run()
    assert forgotten == ClaimForgotten(cluster=EAST, uid=pending.metadata.uid)
    assert ended == GrantEnded(cluster=EAST, uid=lost.metadata.uid, grant_sequence=sequence, cause="ClaimMissing")
    assert isinstance(allocated, Allocate)
    assert allocated.name == "kept"
    assert {claim.name for claim in machine.world.claims.values()} == {"kept"}


def test_an_unsettled_decision_of_a_missing_claim_is_gone(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    east.living.discard(name_of(claim.metadata.uid))
    east.syncs()
    assert [type(entry) for entry in machine.run()] == [OutcomeRecorded, GrantEnded]
    assert machine.last(OutcomeRecorded)[1].outcome == "Gone"


def test_a_sync_ends_nothing_of_another_cluster(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    granted(machine, west, an_immediate_claim())
    east.syncs()
    assert machine.run() == []


def test_other_objects_that_a_sync_lacks_are_forgotten(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    east.living.clear()
    east.syncs()
    machine.run()
    assert list(machine.world.inventory.all_pools()) == []
    assert (EAST, CLASS) not in machine.world.classes
    assert machine.world.cluster(EAST).known == {}
    assert machine.world.cluster(EAST).digest == 0


def test_what_a_sync_lacked_stays_forgotten_after_later_runs_and_syncs(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=1)
    east.publishes(a_slice(name="phantom", pool="local"))
    east.living.discard(ObjectName("slice", "phantom"))
    east.syncs(parts=[{ObjectName("slice", "slice-0")}])
    machine.run()
    east.starts()
    east.publishes(a_slice(some_devices(2)))
    east.tells(an_immediate_claim())
    machine.run()
    # The fixture starts another machine from here: it must not see the phantom again.
    assert [pool.key.pool for pool in machine.world.inventory.all_pools()] == ["rack7"]


# --- when it counts


def test_a_sync_in_parts_counts_when_its_last_message_came(machine: Driven) -> None:
    east = Agent(machine, EAST)
    claims = [a_claim(name=f"c{number}") for number in range(5)]
    for claim in claims:
        east.tells(claim)
    names = sorted(east.living)
    sequence = east.syncs(parts=[names[:2], names[2:4]])
    machine.run()
    assert machine.world.cluster(EAST).synced_sequence == sequence
    assert machine.last(Inputs)[1].synced == {EAST: sequence}
    assert len(machine.world.claims) == 5
    assert machine.world.cluster(EAST).sync_parts == {}


def test_a_sync_that_names_what_never_came_ends_nothing_and_is_asked_for_again(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    granted(machine, east, claim)
    before = machine.world.cluster(EAST).synced_sequence
    east.living = {name_of("never-came")}
    east.syncs()
    assert machine.run() == []
    assert machine.asks == [(EAST, Ask())]
    assert [(each.code, each.place) for each in machine.notices] == [("SyncIncomplete", EAST)]
    assert "never-came" in machine.notices[0].message
    assert machine.world.cluster(EAST).synced_sequence == before


def test_a_sync_without_all_its_parts_ends_nothing(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    granted(machine, east, an_immediate_claim())
    names = sorted(east.living)
    east.syncs(parts=[names[:1]], promised=2)
    assert machine.run() == []
    assert machine.asks == [(EAST, Ask())]
    assert "1 parts" in machine.notices[0].message


def test_parts_of_another_sync_are_not_parts_of_this_one(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    granted(machine, east, an_immediate_claim())
    names = sorted(east.living)
    for part in (1, 2):  # of a sync that was never finished
        machine.put(sync_part_subject(EAST, part), encode(SyncPart(east.epoch, 99, part, [name_of("never-came")])))
    sequence = east.syncs(parts=[names[:1]])
    machine.run()
    assert machine.world.cluster(EAST).synced_sequence == sequence
    assert machine.recorded(GrantEnded) == {}
    assert machine.asks == []


def test_a_new_run_does_not_finish_the_sync_of_the_one_before(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    machine.run()
    position = machine.world.cluster(EAST).synced_sequence
    east.starts()
    machine.run()
    assert machine.world.cluster(EAST).synced_sequence == position
    assert machine.last(Inputs)[1].epochs == {EAST: east.epoch}


# --- heartbeats


def a_beat(agent: Agent, **changed: int) -> Beat:
    """What the agent of a machine that has read everything would say."""
    digest = 0
    for message in agent.driven.log:
        prefix = f"dra.v1.state.{agent.name}."
        kind, _, key = message.subject.removeprefix(prefix).partition(".")
        if message.subject.startswith(prefix) and kind != "agent":
            digest = add_to_digest(digest, object_digest(ObjectName(kind, key), message.stream_sequence))
    last = max(each.stream_sequence for each in agent.driven.log if f".{agent.name}." in each.subject)
    wrong = changed.pop("wrong", 0)
    return Beat(
        agent_epoch=changed.get("agent_epoch", agent.epoch),
        digest=format(digest + wrong, "x"),
        last_sequence=changed.get("last_sequence", last),
    )


def test_a_heartbeat_that_agrees_asks_for_nothing(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    for agent in (east, west):
        assert on_beat(machine.machine.core, agent.name, a_beat(agent)) is None


def test_a_heartbeat_that_differs_asks_for_everything_until_a_sync_answers(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    core = machine.machine.core
    assert on_beat(core, EAST, a_beat(east, wrong=1)) == Ask()
    assert on_beat(core, EAST, a_beat(east)) == Ask()
    east.syncs()
    machine.run()
    assert on_beat(core, EAST, a_beat(east)) is None


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"wrong": 1, "last_sequence": 10_000}, id="we have not read that far"),
        pytest.param({"wrong": 1, "last_sequence": 1}, id="we have read more of it since"),
        pytest.param({"wrong": 1, "agent_epoch": 0}, id="of a run that is over"),
    ],
)
def test_a_heartbeat_that_cannot_be_compared_asks_for_nothing(machine: Driven, changed: dict[str, int]) -> None:
    east, _ = everyone_heard(machine)
    assert on_beat(machine.machine.core, EAST, a_beat(east, **changed)) is None


def test_an_agent_that_has_stored_more_than_we_believe_of_it_is_asked(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    last = west.publishes(a_slice(name="later", pool="local"))
    machine.run()
    assert on_beat(machine.machine.core, EAST, a_beat(east, last_sequence=last)) == Ask()


def test_a_cluster_that_was_never_heard_is_asked_again_with_each_heartbeat(machine: Driven) -> None:
    west = Agent(machine, WEST)
    machine.run()
    for _ in range(2):
        assert on_beat(machine.machine.core, WEST, a_beat(west)) == Ask()
    west.syncs()
    machine.run()
    assert on_beat(machine.machine.core, WEST, a_beat(west)) is None


def test_the_heartbeat_of_a_stranger_is_ignored(machine: Driven) -> None:
    everyone_heard(machine)
    assert on_beat(machine.machine.core, ClusterId("north"), Beat(1, "0", 1)) is None
    assert "north" not in machine.world.clusters


# --- fabrics declared by label


LABELLED = Federation(clusters=[EAST, WEST], believe_labels=True)


def test_fabrics_declared_by_label_open_when_every_cluster_was_heard(start: Starter) -> None:
    machine = start(LABELLED)
    east, west = Agent(machine, EAST), Agent(machine, WEST)
    west.publishes(a_slice(labels={FABRIC_LABEL: "g"}), a_brokered_class())
    claim = an_immediate_claim()
    west.tells(claim)
    found = a_claim(name="found")
    west.tells(found, an_allocation("gpu-0", pool="rack8"))
    west.syncs()
    machine.run()
    assert reason(machine, west, claim) == "WaitingForCluster"
    assert machine.recorded(Adopted) == {}
    east.publishes(a_brokered_class(), a_slice(name="mine", pool="rack8", labels={FABRIC_LABEL: "g"}))
    east.syncs()
    adopted, allocated = machine.run()
    assert isinstance(adopted, Adopted)
    assert adopted.scopes == ["fabric/g"]
    assert isinstance(allocated, Allocate)
    assert allocated.scopes == ["fabric/g"]
    east.tells(an_immediate_claim("next", a_request(count=1)))
    machine.run()
    assert reason(machine, east, an_immediate_claim("next")) == "DevicesInUse"


def test_the_first_cluster_in_the_config_is_the_source_of_a_label_fabric(start: Starter) -> None:
    machine = start(LABELLED)
    for name in (WEST, EAST):
        agent = Agent(machine, name)
        agent.publishes(a_slice(some_devices(1, first=len(name)), labels={FABRIC_LABEL: "g"}))
        agent.syncs()
    machine.run()
    assert [each.code for each in machine.notices] == ["NotTheSource"]
    assert "whose source is east" in machine.notices[0].message


# --- how long a list may be


def names_of(count: int) -> list[ObjectName]:
    """All different, and so much alike that they hardly take space on the wire."""
    return [name_of(f"u{number:0100}") for number in range(count)]


@pytest.mark.parametrize(
    ("subject", "said"),
    [
        pytest.param(sync_part_subject(EAST, 1), SyncPart(1, 9, 2, []), id="the number of another part"),
        pytest.param(sync_part_subject(EAST, 0), SyncPart(1, 9, 0, []), id="part 0"),
        pytest.param(run_subject(EAST), SyncPart(1, 9, 1, []), id="a part where runs begin"),
        pytest.param(state_subject(EAST, "agent", "sync-01"), SyncPart(1, 9, 1, []), id="a number with a zero"),
        pytest.param(
            sync_part_subject(EAST, PARTS_MAX + 1), SyncPart(1, 9, PARTS_MAX + 1, []), id="a part above the last"
        ),
        pytest.param(
            sync_part_subject(EAST, 1),
            SyncPart(1, 9, 1, names_of(NAMES_IN_PART + 1)),
            id="more names than go into a part",
        ),
        pytest.param(
            sync_part_subject(EAST, 1), SyncPart(1, 9, 1, [name_of("u" * 1_000_000)]), id="a name of a megabyte"
        ),
        pytest.param(
            sync_part_subject(EAST, 1), SyncPart(1, 9, 1, [ObjectName("k" * 1_000_000, "u")]), id="a kind of a megabyte"
        ),
        pytest.param(
            sync_part_subject(EAST, 1),
            SyncPart(1, 9, 1, [name_of("\N{SNOWMAN}" * 300_000)]),
            id="names of wide letters",
        ),
        pytest.param(sync_part_subject(EAST, 1), SyncFinished(1, 9, 0), id="a sync that ends elsewhere"),
        pytest.param(run_subject(EAST), SyncFinished(1, 9, PARTS_MAX + 1), id="a sync of too many parts"),
        pytest.param(run_subject(EAST), SyncFinished(1, 9, -1), id="a sync of less than no parts"),
        pytest.param(
            run_subject(EAST), SyncFinished(1, 9, 0, names_of(NAMES_IN_PART + 1)), id="a sync with too long a list"
        ),
    ],
)
def test_a_list_that_no_agent_writes_is_a_dead_letter(machine: Driven, subject: str, said: AgentMessage) -> None:
    everyone_heard(machine)
    before = machine.world.cluster(EAST).synced_sequence
    sequence = machine.put(subject, encode(said))
    machine.run()
    (letter,) = machine.letters
    assert (letter.reason, letter.stream_sequence) == ("Malformed", sequence)
    assert machine.world.cluster(EAST).sync_parts == {}
    assert machine.world.cluster(EAST).synced_sequence == before


def test_the_longest_list_counts(machine: Driven) -> None:
    east = Agent(machine, EAST)
    east.tells(an_immediate_claim())
    machine.run()
    epoch = east.epoch
    for part in range(1, PARTS_MAX + 1):
        machine.put(sync_part_subject(EAST, part), encode(SyncPart(epoch, 9, part, [])))
    sequence = machine.put(run_subject(EAST), encode(SyncFinished(epoch, 9, PARTS_MAX, sorted(east.living))))
    machine.run()
    assert machine.letters == []
    assert machine.world.cluster(EAST).synced_sequence == sequence


def put_packed(machine: Driven, subject: str, said: AgentMessage | ClaimState) -> int:
    """As an agent publishes it; returns the bytes that it took on the wire."""
    packed = pack(OutgoingMessage(subject, encode(said)))
    machine.put(subject, bytes(bytearray(packed.payload)), packed.headers)  # a compressor's output keeps its buffer
    return len(packed.payload)


def test_parts_of_few_bytes_do_not_become_a_large_world(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    epoch = east.epoch
    many = SyncPart(epoch, 9, 1, [name_of("x")] * 20_000)
    tracemalloc.start()
    try:
        wire = sum(put_packed(machine, sync_part_subject(EAST, part), many) for part in range(1, 41))
        machine.run()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert wire < 50_000
    assert kept < 2_000_000


def test_what_is_believed_again_is_kept_as_it_is_stored_until_it_is_taken_in(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    epoch = east.epoch
    large = ClaimState(agent_epoch=epoch, error="e" * 1_000_000)
    wire = sum(
        put_packed(machine, sync_part_subject(EAST, part), SyncPart(epoch, 9, part, names_of(NAMES_IN_PART)))
        for part in range(1, 41)
    )
    wire += sum(put_packed(machine, state_subject(EAST, "claim", f"u{number}"), large) for number in range(20))
    machine.run()
    started = Machine(World(machine.federation), machine.index, IDENTITY)
    fold_ledger(started, machine.ledger)
    believed = LastBelieved(started)
    tracemalloc.start()
    try:
        believed.add(machine.log)
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert wire < 500_000
    assert kept < 2_000_000
