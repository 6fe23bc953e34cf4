"""Which messages are believed; and the others become dead letters with a reason, and spoil nothing else."""

import base64

import pytest

from broker.machine.core import LETTER_PAYLOAD_MAX
from broker.machine.intake import BODY_BYTES_MAX, CONSUMERS_MAX
from broker.world.federation import FABRIC_LABEL, Federation
from schemas.resource import Device, DeviceTaint, DeviceTaintRule, DeviceTaintRuleSpec, Node, ObjectMeta
from schemas.wire.bus import OutgoingMessage, StoredMessage, pack
from schemas.wire.calls import Ask
from schemas.wire.codec import encode
from schemas.wire.ledger import Allocate, GrantEnded, Inputs, ReasonChanged
from schemas.wire.state import AgentStarted, ClaimState, ObjectName, ObjectState, SyncFinished
from schemas.wire.subjects import run_subject, state_subject
from tests.builders import DRIVER, a_claim, a_class, a_request, a_slice, some_devices
from tests.machine.conftest import Starter
from tests.machine.driven import (
    EAST,
    WEST,
    Agent,
    Driven,
    a_brokered_class,
    a_pod,
    an_allocation,
    an_immediate_claim,
    devices_of,
    everyone_heard,
    granted,
    raw,
    reason,
    settled,
)

A_NODE = Node(metadata=ObjectMeta(name="n1"))
A_RULE = DeviceTaintRule(
    metadata=ObjectMeta(name="drain"),
    spec=DeviceTaintRuleSpec(taint=DeviceTaint(key="example.com/smoke", effect="NoSchedule")),
)
CLAIM_SUBJECT = state_subject(EAST, "claim", "uid-x")


@pytest.mark.parametrize(
    ("subject", "payload", "why"),
    [
        pytest.param(CLAIM_SUBJECT, b"{", "NotJSON", id="not JSON"),
        pytest.param(CLAIM_SUBJECT, b'{"claim":' + b"[" * 100_000, "NotJSON", id="nested too deeply"),
        pytest.param(CLAIM_SUBJECT, b'{"type":"dev.dragoman.state.claim.v9"}', "UnknownType", id="a type of tomorrow"),
        pytest.param(CLAIM_SUBJECT, b"[]", "Malformed", id="not an object"),
        pytest.param(
            CLAIM_SUBJECT, b'{"type":"dev.dragoman.state.claim.v1"}', "Malformed", id="a claim's without epoch"
        ),
        pytest.param(
            state_subject(EAST, "slice", "s"),
            b'{"type":"dev.dragoman.state.claim.v1","agent_epoch":1}',
            "UnknownType",
            id="a claim's message on a slice's subject",
        ),
        pytest.param(
            state_subject(EAST, "agent", "other"), encode(AgentStarted("x")), "Malformed", id="a run begins elsewhere"
        ),
        pytest.param(state_subject(EAST, "secret", "x"), b"{}", "UnknownSubject", id="a kind that we do not know"),
        pytest.param("dra.v1.state.east.slice.a%2Fb%zz", b"{}", "UnknownSubject", id="a key that nobody encodes so"),
        pytest.param("dra.v1.state.east.slice", b"{}", "UnknownSubject", id="no key"),
    ],
)
def test_keeps_what_it_cannot_apply_and_goes_on(machine: Driven, subject: str, payload: bytes, why: str) -> None:
    east, _ = everyone_heard(machine)
    sequence = machine.put(subject, payload)
    east.tells(an_immediate_claim())
    machine.run()
    (letter,) = machine.letters
    assert (letter.subject, letter.stream_sequence, letter.reason) == (subject, sequence, why)
    assert letter.payload == payload
    assert letter.message
    assert [(each.code, each.level) for each in machine.notices] == [(why, "warning")]
    assert len(machine.recorded(Allocate)) == 1
    assert machine.world.position == sequence + 1


def test_a_cluster_that_is_not_in_the_config_is_not_listened_to(machine: Driven) -> None:
    everyone_heard(machine)
    stranger = Agent(machine, "north")
    stranger.tells(an_immediate_claim())
    machine.run()
    assert [(each.cluster, each.reason) for each in machine.letters] == [("north", "UnknownCluster")] * 2
    assert "east, west" in machine.letters[0].message
    assert "north" not in machine.world.clusters


def test_without_a_list_of_clusters_they_come_by_themselves(start: Starter) -> None:
    driven = start(Federation())
    north = Agent(driven, "north")
    north.publishes(a_slice(), a_brokered_class())
    north.syncs()
    north.tells(an_immediate_claim())
    driven.run()
    assert driven.last(Allocate)[1].scopes == ["cluster/north"]


# --- payloads


def test_reads_a_compressed_message(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    many = a_slice(some_devices(100, text="x" * 60), pool="local", name="big")
    packed = pack(
        OutgoingMessage(
            state_subject(EAST, "slice", "big"),
            encode(ObjectState(agent_epoch=east.epoch, object=raw(many), resource_version="9" * 66_000)),
        )
    )
    assert packed.headers
    machine.put(packed.subject, packed.payload, packed.headers)
    machine.run()
    assert machine.letters == []
    assert {pool.key.pool for pool in machine.world.inventory.all_pools()} == {"rack7", "local"}


def test_refuses_a_message_that_unpacks_to_too_much_and_cuts_what_it_keeps(machine: Driven) -> None:
    everyone_heard(machine)
    bomb = pack(OutgoingMessage(CLAIM_SUBJECT, b" " * (BODY_BYTES_MAX + 1)))
    machine.put(CLAIM_SUBJECT, bomb.payload, bomb.headers)
    machine.put(CLAIM_SUBJECT, b"{" + b" " * LETTER_PAYLOAD_MAX)
    machine.run()
    assert [each.reason for each in machine.letters] == ["Malformed", "NotJSON"]
    assert machine.letters[0].payload == bomb.payload
    assert len(machine.letters[1].payload) == LETTER_PAYLOAD_MAX
    assert len(base64.b64encode(machine.letters[1].payload)) < 1024 * 1024


# --- epochs


def test_ignores_a_lower_epoch_and_asks_for_that_object_again(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim, before = an_immediate_claim(), east.epoch
    east.starts()
    late = east.tells(claim, epoch=before)
    machine.run()
    (letter,) = machine.letters
    assert (letter.reason, letter.stream_sequence, letter.cluster) == ("LowerEpoch", late, EAST)
    assert machine.asks == [(EAST, Ask([ObjectName("claim", claim.metadata.uid)]))]
    assert machine.world.claims == {}
    east.tells(claim)
    machine.run()
    assert len(machine.recorded(Allocate)) == 1


def test_a_late_sync_of_a_lower_epoch_is_not_a_sync_and_nobody_is_asked(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim, before = an_immediate_claim(), east.epoch
    granted(machine, east, claim)
    east.starts()
    east.living.clear()
    east.syncs(epoch=before)
    machine.run()
    assert [each.reason for each in machine.letters] == ["LowerEpoch"]
    assert machine.asks == []
    assert machine.recorded(GrantEnded) == {}


def test_refuses_an_epoch_from_the_future(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    sequence = east.tells(an_immediate_claim(), epoch=10_000)
    machine.run()
    assert [(each.reason, each.stream_sequence) for each in machine.letters] == [("ImpossibleEpoch", sequence)]
    assert machine.world.cluster(EAST).epoch == east.epoch
    assert machine.recorded(Allocate) == {}


def test_learns_an_epoch_from_any_message_of_its_run(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    before = east.epoch
    # The run's first message expired before it was read.
    run = len(machine.log) + 1
    machine.log.append(StoredMessage(run_subject(EAST), encode(AgentStarted("new")), {}, run, time_ms=0))
    machine.never_read.add(run)
    east.epoch = run
    east.tells(an_immediate_claim("new"))
    east.tells(an_immediate_claim("old"), epoch=before)
    machine.run()
    assert machine.world.cluster(EAST).epoch == run
    assert [each.reason for each in machine.letters] == ["LowerEpoch"]
    assert machine.last(Inputs)[1].epochs == {EAST: run}


# --- subjects and what is on them


@pytest.mark.parametrize(
    ("kind", "key", "obj", "says"),
    [
        pytest.param(
            "claim", "uid-x", a_claim(), "claim of UID 'uid-default-train' on the subject of 'uid-x'", id="another UID"
        ),
        pytest.param("claim", "uid-x", a_slice(), "a ResourceSlice on a claim's subject", id="a slice for a claim"),
        pytest.param("slice", "s9", a_slice(), "ResourceSlice slice-0 on the subject of s9", id="a slice's name"),
        pytest.param("node", "n1", a_slice(), "a ResourceSlice on the subject of node n1", id="a slice for a node"),
        pytest.param("class", "c", a_class("ghost"), "DeviceClass ghost on the subject of c", id="a class's name"),
        pytest.param(
            "node", "n2", Node(metadata=ObjectMeta(name="n1")), "Node n1 on the subject of n2", id="a node's name"
        ),
        pytest.param("taintrule", "r", A_RULE, "DeviceTaintRule drain on the subject of r", id="a rule's name"),
        pytest.param("class", "c", {"kind": "DeviceClass"}, "apiVersion", id="no API version"),
        pytest.param(
            "slice", "slice-0", a_slice([Device(name="GPU 0")]), "ResourceSlice slice-0: ", id="an invalid slice"
        ),
    ],
)
def test_an_object_on_the_wrong_subject_or_that_makes_no_sense_is_unreadable(
    machine: Driven, kind: str, key: str, obj: object, says: str
) -> None:
    east, _ = everyone_heard(machine)
    message: ClaimState | ObjectState = ObjectState(agent_epoch=east.epoch, object=raw(obj))
    if kind == "claim":
        message = ClaimState(agent_epoch=east.epoch, claim=raw(obj), resource_version="7")
    machine.put(state_subject(EAST, kind, key), encode(message))
    machine.run()
    assert [each.reason for each in machine.letters] == ["Unreadable"]
    assert says in machine.letters[0].message
    assert ObjectName(kind, key) in machine.world.cluster(EAST).known
    east.removes(kind, key)
    machine.run()  # a start, which comes next, finds nothing of it


@pytest.mark.parametrize("count", [pytest.param(CONSUMERS_MAX, id="as many as allowed"), CONSUMERS_MAX + 1])
def test_a_claim_with_too_many_consumers_to_look_at_is_unreadable(machine: Driven, count: int) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    east.tells(claim, None, *[a_pod(f"p{number}") for number in range(count)])
    machine.run()
    assert reason(machine, east, claim) == ("TooManyConsumers" if count == CONSUMERS_MAX else "Unreadable")


def test_an_invalid_claim_says_why_in_the_ledger(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    twice = an_immediate_claim("twice", a_request("gpu"), a_request("gpu"))
    east.tells(twice)
    machine.run()
    _, entry = machine.last(ReasonChanged)
    assert (entry.state, entry.reason) == ("Invalid", "InvalidClaim")
    assert "spec.devices.requests" in entry.message


# --- slices


def test_keeps_slices_of_a_fabric_from_anyone_but_its_source(machine: Driven) -> None:
    _, west = everyone_heard(machine, devices=1)
    west.publishes(a_slice(some_devices(1, first=1), name="intruder"))
    west.tells(an_immediate_claim("a"))
    west.tells(an_immediate_claim("b"))
    machine.run()
    assert [(each.cluster, each.reason) for each in machine.letters] == [(WEST, "NotTheSource")]
    assert [devices_of(each) for each in machine.recorded(Allocate).values()] == [["gpu-0"]]


def test_does_not_believe_a_label_where_a_config_says_what_is_shared(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    west.publishes(a_slice(name="mine", pool="local", labels={FABRIC_LABEL: "g"}))
    machine.run()
    assert [each.reason for each in machine.letters] == ["FabricLabelNotBelieved"]
    assert [pool.key.pool for pool in machine.world.inventory.all_pools()] == ["rack7"]


def test_a_slice_that_cannot_be_read_any_more_offers_no_devices(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    state = ObjectState(agent_epoch=east.epoch, object=raw({"kind": "ResourceSlice"}), resource_version="8")
    machine.put(state_subject(EAST, "slice", "slice-0"), encode(state))
    west.tells(an_immediate_claim())
    machine.run()
    assert machine.recorded(Allocate) == {}
    assert list(machine.world.inventory.all_pools()) == []


def test_tells_of_a_pool_that_is_not_complete_once_its_source_was_heard(machine: Driven) -> None:
    east = Agent(machine, EAST)
    east.publishes(a_slice(name="one", slice_count=2))
    machine.run()
    assert machine.notices == []
    east.syncs()
    machine.run()
    assert [(each.code, each.place) for each in machine.notices] == [("PoolProblem", f"pool fabric/f/{DRIVER}/rack7")]


# --- claims that cannot be read


UNREADABLE = {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim", "spec": "soon",
              "metadata": {"name": "train", "namespace": "default", "uid": "uid-default-train"},
              "status": {"allocation": an_allocation("gpu-1")}}  # fmt: skip


def test_the_grants_of_a_claim_that_cannot_be_read_stay(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=3)
    claim = an_immediate_claim()
    sequence = granted(machine, east, claim)
    machine.put(
        state_subject(EAST, "claim", claim.metadata.uid),
        encode(
            ClaimState(
                agent_epoch=east.epoch, claim=raw(UNREADABLE), resource_version="900", decision=settled(sequence)
            )
        ),
    )
    machine.run()
    assert machine.recorded(GrantEnded) == {}
    # What it shows besides is not free either, though nobody can adopt it.
    assert (machine.is_in_use("gpu-0"), machine.is_in_use("gpu-1")) == (True, True)
    west.tells(an_immediate_claim("other"))
    machine.run()
    assert devices_of(machine.last(Allocate)[1]) == ["gpu-2"]
    east.tells(claim, decision=settled(sequence))
    machine.run()
    assert len(machine.recorded(GrantEnded)) == 1
    assert not machine.is_in_use("gpu-1")


def test_each_result_of_an_unreadable_allocation_counts_by_itself(machine: Driven) -> None:
    everyone_heard(machine, devices=3)
    results: list[object] = [*an_allocation("gpu-0")["devices"]["results"], 5, {"device": 3}]
    results += an_allocation("gpu-2")["devices"]["results"]
    broken = {**UNREADABLE, "status": {"allocation": {"devices": {"results": results}}}}
    machine.put(CLAIM_SUBJECT, encode(ClaimState(agent_epoch=1, claim=raw(broken), error="cannot be read")))
    machine.run()
    assert [machine.is_in_use(f"gpu-{number}") for number in range(3)] == [True, False, True]
    assert [each.message for each in machine.letters] == ["cannot be read"]


def test_a_claim_whose_message_is_no_json_keeps_what_it_held(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    claim = an_immediate_claim()
    granted(machine, east, claim)
    machine.put(state_subject(EAST, "claim", claim.metadata.uid), b"{")
    west.tells(an_immediate_claim("other"))
    machine.run()
    assert machine.recorded(GrantEnded) == {}
    assert reason(machine, west, an_immediate_claim("other")) == "DevicesInUse"
    # It is there, so a sync that names it is complete, and one that does not ends it.
    east.syncs()
    machine.run()
    assert [each.code for each in machine.notices] == ["NotJSON"]
    assert machine.recorded(GrantEnded) == {}
    east.living.discard(ObjectName("claim", claim.metadata.uid))
    east.syncs()
    machine.run()
    assert machine.last(GrantEnded)[1].cause == "ClaimMissing"


def test_a_device_shown_before_a_message_became_unreadable_is_not_free_after_a_start(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    holder, intruder = an_immediate_claim("holder"), a_claim(name="intruder")
    granted(machine, east, holder)
    west.tells(intruder, an_allocation("gpu-0"))
    machine.run()
    machine.put(state_subject(WEST, "claim", intruder.metadata.uid), b"{")
    machine.run()
    east.deletes(holder)
    machine.run()
    assert machine.is_in_use("gpu-0")


def test_an_unreadable_claim_waits_as_invalid(machine: Driven) -> None:
    everyone_heard(machine)
    machine.put(CLAIM_SUBJECT, b"{")
    machine.run()
    _, entry = machine.last(ReasonChanged)
    assert (entry.uid, entry.state, entry.reason) == ("uid-x", "Invalid", "Unreadable")
    assert "not JSON" in entry.message


def test_a_sync_must_not_be_malformed_to_count(machine: Driven) -> None:
    east = Agent(machine, EAST)
    machine.put(run_subject(EAST), encode(SyncFinished(east.epoch, 1, 0)).replace(b'"parts":0', b'"parts":"none"'))
    machine.run()
    assert [each.reason for each in machine.letters] == ["Malformed"]
    assert not machine.world.cluster(EAST).is_heard
