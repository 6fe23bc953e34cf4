"""The bytes of every message on the bus. They are kept in logs and read by other releases: they never change by chance.

A test that fails here after a new field: give the field a default, so that older messages and readers go on working.
"""

from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.wire import codec
from schemas.wire.calls import Ask, Beat, DeadLetter, Join, Joined, LeaderBeacon, LedgerGoesOn, LedgerSegment
from schemas.wire.codec import Call, WireError, cloud_event_headers, encode, message_type, peek_epoch, trace_parent
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    CheckpointClaims,
    CheckpointEnds,
    CheckpointWorld,
    ClaimForgotten,
    ClaimKept,
    ClassBrokered,
    ClusterAhead,
    ClusterCordoned,
    ClusterEvicted,
    ClusterExcluded,
    ClusterKept,
    ClusterReadmitted,
    ClusterRebuilt,
    CollisionFound,
    ConsumerRef,
    ConsumersServed,
    DeviceAvoided,
    DeviceHold,
    DeviceTainted,
    DeviceUntainted,
    EvictionKept,
    FenceLifted,
    GrantEnded,
    GrantKept,
    Inputs,
    LeaderElected,
    LeaderElectedBefore,
    LedgerRebuilt,
    LivenessChanged,
    LivenessMark,
    OperatorCommand,
    OrderKept,
    OutcomeRecorded,
    ReasonChanged,
    Release,
    ReportedBy,
    SegmentClosed,
    SegmentOpened,
    Step,
    TaintRule,
    TaintRulesChanged,
    WaitingKept,
    entry_place,
)
from schemas.wire.state import (
    AgentMessage,
    AgentStarted,
    ClaimState,
    Consumer,
    ObjectName,
    ObjectState,
    Rejected,
    Settled,
    SyncFinished,
    SyncPart,
    add_to_digest,
    object_digest,
)
from schemas.wire.subjects import (
    KEY_LENGTH_MAX,
    StateSubject,
    ask_subject,
    beat_subject,
    dead_letter_subject,
    decode_key,
    encode_key,
    lead_subject,
    ledger_stream,
    ledger_subject,
    parse_state_subject,
    run_subject,
    state_subject,
    sync_part_subject,
)

HOLD = DeviceHold("gpu", "gpu.example.com", "rack7", "gpu-0")
HOLD_JSON = b'{"request":"gpu","driver":"gpu.example.com","pool":"rack7","device":"gpu-0"}'
SHARE = DeviceHold("gpu", "gpu.example.com", "rack7", "gpu-0", share_id="s", admin_access=True)
SHARE_JSON = HOLD_JSON[:-1] + b',"share_id":"s","admin_access":true}'
WHO = b'"cluster":"east","uid":"u1","namespace":"default","name":"train"'

STATE: list[tuple[msgspec.Struct, bytes]] = [
    (
        ClaimState(
            agent_epoch=7,
            claim=msgspec.Raw(b'{"kind":"ResourceClaim"}'),
            resource_version="100",
            consumers=[
                Consumer("p1", "worker"),
                Consumer("p2", "done", scheduled=True, terminal=True, deleting=True),
            ],
            namespace_labels={"team": "a"},
            decision=Settled(40, "Failed", "disk full"),
            rejected=Rejected(30, "Unschedulable", "no node"),
            error="metadata.name: text",
        ),
        (
            b'{"type":"dev.dragoman.state.claim.v1","agent_epoch":7,"claim":{"kind":"ResourceClaim"},'
            b'"resource_version":"100","consumers":[{"uid":"p1","name":"worker"},'
            b'{"uid":"p2","name":"done","scheduled":true,"terminal":true,"deleting":true}],'
            b'"namespace_labels":{"team":"a"},'
            b'"decision":{"ledger_sequence":40,"outcome":"Failed","message":"disk full"},'
            b'"rejected":{"ledger_sequence":30,"reason":"Unschedulable","message":"no node"},'
            b'"error":"metadata.name: text"}'
        ),
    ),
    (
        ObjectState(agent_epoch=7, object=msgspec.Raw(b'{"kind":"Node"}'), resource_version="5", error="odd"),
        (
            b'{"type":"dev.dragoman.state.object.v1","agent_epoch":7,"object":{"kind":"Node"},"resource_version":"5",'
            b'"error":"odd"}'
        ),
    ),
    (AgentStarted("agent-1"), b'{"type":"dev.dragoman.state.agent-started.v1","instance":"agent-1"}'),
    (
        SyncPart(7, 2, 1, [ObjectName("claim", "u1"), ObjectName("slice", "s1")]),
        (
            b'{"type":"dev.dragoman.state.sync-part.v1","agent_epoch":7,"sync":2,"part":1,'
            b'"objects":[["claim","u1"],["slice","s1"]]}'
        ),
    ),
    (
        SyncFinished(7, 2, 1, [ObjectName("class", "gpu")]),
        b'{"type":"dev.dragoman.state.sync-finished.v1","agent_epoch":7,"sync":2,"parts":1,"objects":[["class","gpu"]]}',
    ),
]

BY_ADA: dict[str, Any] = {"cluster": "east", "operator": "ada", "reason": "fire", "at_ms": 5_000}
BY_ADA_JSON = b'"cluster":"east","operator":"ada","reason":"fire","at_ms":5000'

GPU_3: dict[str, Any] = {"scope": "fabric/f", "driver": "gpu.example.com", "pool": "rack7", "device": "gpu-3"}
GPU_3_JSON = b'"scope":"fabric/f","driver":"gpu.example.com","pool":"rack7","device":"gpu-3"'
LEDGER: list[tuple[AnyEntry, bytes]] = [
    (
        SegmentOpened(shard="main", segment=1, covers=9, entries=2, checksum="ab"),
        (
            b'{"type":"dev.dragoman.ledger.segment-opened.v1","shard":"main","segment":1,"covers":9,"entries":2,'
            b'"checksum":"ab"}'
        ),
    ),
    (
        CheckpointWorld(
            position=7,
            leader_epoch=2,
            clusters=[
                ClusterKept("east", 1, 4),
                ClusterKept(
                    "west",
                    liveness="Stale",
                    liveness_since_ms=8,
                    cordon=OrderKept("ada", "fire", 5),
                    exclusion=OrderKept("ada"),
                    eviction=EvictionKept(OrderKept("ada"), is_fenced=True, state_sequence=7, readmitted=9),
                    silences=[(3, 6)],
                ),
            ],
        ),
        (
            b'{"type":"dev.dragoman.ledger.checkpoint-world.v1","position":7,"leader_epoch":2,'
            b'"clusters":[{"name":"east","epoch":1,"synced_sequence":4},'
            b'{"name":"west","liveness":"Stale","liveness_since_ms":8,'
            b'"cordon":{"operator":"ada","reason":"fire","at_ms":5},"exclusion":{"operator":"ada"},'
            b'"eviction":{"ordered":{"operator":"ada"},"is_fenced":true,"state_sequence":7,"readmitted":9},'
            b'"silences":[[3,6]]}]}'
        ),
    ),
    (
        CheckpointClaims(
            claims=[
                ClaimKept(
                    cluster="east",
                    uid="u1",
                    namespace="default",
                    name="train",
                    grants=[GrantKept(4, was_applied=True, is_released=True)],
                    unsettled=5,
                    last_decision=5,
                    failures=1,
                    not_before_ms=2_000,
                    waiting=WaitingKept("Pending", "NoFit", "no device", 1_000, 3, {"gpu": 1}),
                    collision=[],
                )
            ],
            avoided=[DeviceAvoided("east", "u1", "fabric/f", "gpu.example.com", "rack7", "gpu-0")],
            served=[ConsumersServed("east", "u1", ["p1", "p2"])],
        ),
        (
            b'{"type":"dev.dragoman.ledger.checkpoint-claims.v1","claims":[{"cluster":"east","uid":"u1",'
            b'"namespace":"default","name":"train","grants":[{"ledger_sequence":4,"was_applied":true,'
            b'"is_released":true}],"unsettled":5,"last_decision":5,"failures":1,"not_before_ms":2000,'
            b'"waiting":{"state":"Pending","reason":"NoFit","message":"no device","since_ms":1000,"order":3,'
            b'"explanation":{"gpu":1}},"collision":[]}],'
            b'"avoided":[["east","u1","fabric/f","gpu.example.com","rack7","gpu-0"]],'
            b'"served":[["east","u1",["p1","p2"]]]}'
        ),
    ),
    (
        SegmentClosed(next_segment=1),
        b'{"type":"dev.dragoman.ledger.segment-closed.v1","next_segment":1}',
    ),
    (
        LeaderElected(instance="broker-0", build="1.0"),
        b'{"type":"dev.dragoman.ledger.leader-elected.v2","instance":"broker-0","build":"1.0"}',
    ),
    (
        Inputs(
            leader_epoch=2,
            steps=[Step(5, 1_000), Step(6, 2_000)],
            epochs={"east": 1},
            synced={"west": 4},
            position_expired=True,
            settings_digest="d",
            build="1.0",
            algorithm=1,
        ),
        (
            b'{"type":"dev.dragoman.ledger.inputs.v1","leader_epoch":2,'
            b'"steps":[{"position":5,"now_ms":1000},{"position":6,"now_ms":2000}],"epochs":{"east":1},"synced":{"west":4},'
            b'"position_expired":true,"settings_digest":"d","build":"1.0","algorithm":1}'
        ),
    ),
    (
        Allocate(
            cluster="east",
            uid="u1",
            namespace="default",
            name="train",
            resource_version="100",
            state_sequence=11,
            allocation={"devices": {"results": []}},
            holds=[HOLD, SHARE],
            scopes=["fabric/f", "cluster/east"],
            reserved_for=[ConsumerRef("p1", "worker")],
            unscheduled=["p1"],
        ),
        b'{"type":"dev.dragoman.ledger.allocate.v1",' + WHO + b',"resource_version":"100","state_sequence":11,'
        b'"allocation":{"devices":{"results":[]}},"holds":[' + HOLD_JSON + b"," + SHARE_JSON + b"],"
        b'"scopes":["fabric/f","cluster/east"],"reserved_for":[{"uid":"p1","name":"worker"}],"unscheduled":["p1"]}',
    ),
    (
        Release(
            cluster="east",
            uid="u1",
            namespace="default",
            name="train",
            grant_sequence=40,
            holds=[HOLD],
            reason="Unschedulable",
            message="no node",
            retry_at_ms=5_000,
            rejections=2,
        ),
        b'{"type":"dev.dragoman.ledger.release.v1",' + WHO + b',"grant_sequence":40,"holds":[' + HOLD_JSON + b"],"
        b'"reason":"Unschedulable","message":"no node","retry_at_ms":5000,"rejections":2}',
    ),
    (
        Adopted(
            cluster="east",
            uid="u1",
            namespace="default",
            name="train",
            state_sequence=11,
            holds=[HOLD],
            scopes=["fabric/f"],
        ),
        b'{"type":"dev.dragoman.ledger.adopted.v1",' + WHO + b',"state_sequence":11,"holds":[' + HOLD_JSON + b"],"
        b'"scopes":["fabric/f"]}',
    ),
    (
        OutcomeRecorded(
            cluster="east",
            uid="u1",
            decision_sequence=40,
            outcome="Failed",
            message="disk full",
            retry_at_ms=5_000,
            failures=3,
        ),
        (
            b'{"type":"dev.dragoman.ledger.outcome.v1","cluster":"east","uid":"u1","decision_sequence":40,'
            b'"outcome":"Failed","message":"disk full","retry_at_ms":5000,"failures":3}'
        ),
    ),
    (
        GrantEnded(cluster="east", uid="u1", grant_sequence=40, cause="ClaimMissing"),
        (
            b'{"type":"dev.dragoman.ledger.grant-ended.v1","cluster":"east","uid":"u1","grant_sequence":40,'
            b'"cause":"ClaimMissing"}'
        ),
    ),
    (
        CollisionFound(
            cluster="east", uid="u1", namespace="default", name="train", holds=[HOLD], held_by=["west/default/other"]
        ),
        b'{"type":"dev.dragoman.ledger.collision.v1",' + WHO + b',"holds":[' + HOLD_JSON + b"],"
        b'"held_by":["west/default/other"]}',
    ),
    (
        ReasonChanged(
            cluster="east",
            uid="u1",
            namespace="default",
            name="train",
            state="Pending",
            reason="DevicesInUse",
            message="1 device is in use",
            since_ms=1_000,
            order=11,
            explanation={"requests": []},
        ),
        b'{"type":"dev.dragoman.ledger.reason.v1",' + WHO + b',"state":"Pending","reason":"DevicesInUse",'
        b'"message":"1 device is in use","since_ms":1000,"order":11,"explanation":{"requests":[]}}',
    ),
    (
        ClassBrokered(cluster="east", name="gpu", spec={"selectors": []}),
        b'{"type":"dev.dragoman.ledger.class.v1","cluster":"east","name":"gpu","spec":{"selectors":[]}}',
    ),
    (
        LivenessChanged(cluster="east", state="Stale", since_ms=31_000, heard_ms=1_000),
        (
            b'{"type":"dev.dragoman.ledger.liveness.v1","cluster":"east","state":"Stale","since_ms":31000,'
            b'"heard_ms":1000}'
        ),
    ),
    (
        ClusterCordoned(is_cordoned=True, **BY_ADA),
        b'{"type":"dev.dragoman.ledger.cordoned.v1",' + BY_ADA_JSON + b',"is_cordoned":true}',
    ),
    (
        ClusterExcluded(is_excluded=True, **BY_ADA),
        b'{"type":"dev.dragoman.ledger.excluded.v1",' + BY_ADA_JSON + b',"is_excluded":true}',
    ),
    (
        ClusterEvicted(is_fenced=True, state_sequence=99, position=98, **BY_ADA),
        b'{"type":"dev.dragoman.ledger.evicted.v1",' + BY_ADA_JSON + b',"is_fenced":true,"state_sequence":99,'
        b'"position":98}',
    ),
    (
        ClusterReadmitted(is_fenced=True, position=120, **BY_ADA),
        b'{"type":"dev.dragoman.ledger.readmitted.v1",' + BY_ADA_JSON + b',"is_fenced":true,"position":120}',
    ),
    (
        FenceLifted(cluster="east", at_ms=7_000),
        b'{"type":"dev.dragoman.ledger.fence-lifted.v1","cluster":"east","at_ms":7000}',
    ),
    (
        ClaimForgotten(cluster="east", uid="u1"),
        b'{"type":"dev.dragoman.ledger.forgotten.v1","cluster":"east","uid":"u1"}',
    ),
    (
        ClusterAhead(cluster="east", message="decision 9 is later than the ledger"),
        b'{"type":"dev.dragoman.ledger.ahead.v1","cluster":"east","message":"decision 9 is later than the ledger"}',
    ),
    (
        ClusterRebuilt(cluster="east", ledger_sequence=1_000_000),
        b'{"type":"dev.dragoman.ledger.cluster-rebuilt.v1","cluster":"east","ledger_sequence":1000000}',
    ),
    (
        LedgerRebuilt(operator="ada", reason="r", at_ms=1, highest_seen=99, state_sequence=120),
        b'{"type":"dev.dragoman.ledger.rebuilt.v1","operator":"ada","reason":"r","at_ms":1,"highest_seen":99,"state_sequence":120}',
    ),
    (
        GrantEnded(
            cluster="east", uid="u1", grant_sequence=40, cause="AllocationRejected", retry_at_ms=3_000, rejections=2
        ),
        (
            b'{"type":"dev.dragoman.ledger.grant-ended.v1","cluster":"east","uid":"u1","grant_sequence":40,'
            b'"cause":"AllocationRejected","retry_at_ms":3000,"rejections":2}'
        ),
    ),
    (
        DeviceTainted(
            **GPU_3,
            key="dragoman.dev/unhealthy",
            at_ms=2_000,
            report=ReportedBy("east", "u1", "default", "train", "Healthy=False", "Xid", "it is on fire"),
        ),
        b'{"type":"dev.dragoman.ledger.device-tainted.v1",'
        + GPU_3_JSON
        + b',"key":"dragoman.dev/unhealthy","at_ms":2000,"report":{"cluster":"east","uid":"u1","namespace":"default",'
        b'"name":"train","condition":"Healthy=False","reason":"Xid","message":"it is on fire"}}',
    ),
    (
        DeviceTainted(**GPU_3, key="example.com/fan", at_ms=2_000, operator="ada", reason="loud", ledger_sequence=44),
        b'{"type":"dev.dragoman.ledger.device-tainted.v1",'
        + GPU_3_JSON
        + b',"key":"example.com/fan","at_ms":2000,"operator":"ada","reason":"loud","ledger_sequence":44}',
    ),
    (
        DeviceUntainted(**GPU_3, key="example.com/fan", at_ms=3_000, operator="ada", reason="new fan"),
        b'{"type":"dev.dragoman.ledger.device-untainted.v1",'
        + GPU_3_JSON
        + b',"key":"example.com/fan","at_ms":3000,"operator":"ada","reason":"new fan"}',
    ),
    (CheckpointEnds(), b'{"type":"dev.dragoman.ledger.checkpoint-ends.v1"}'),
    (
        LeaderElectedBefore(instance="broker-0", build="1.0"),
        b'{"type":"dev.dragoman.ledger.leader-elected.v1","instance":"broker-0","build":"1.0"}',
    ),
    (
        SegmentClosed(next_segment=1, inputs=Inputs(leader_epoch=2, steps=[Step(5, 1_000)])),
        (
            b'{"type":"dev.dragoman.ledger.segment-closed.v1",'
            b'"inputs":{"type":"dev.dragoman.ledger.inputs.v1","leader_epoch":2,'
            b'"steps":[{"position":5,"now_ms":1000}]},"next_segment":1}'
        ),
    ),
    (
        TaintRulesChanged(
            cluster="east",
            rules=[
                TaintRule("a", "d", "p", "g", "k", "v", reason="r"),
                TaintRule("n", "d", "p"),
            ],
        ),
        b'{"type":"dev.dragoman.ledger.taint-rules.v1","cluster":"east","rules":[{"name":"a","driver":"d","pool":"p","device":"g","key":"k","value":"v","reason":"r"},{"name":"n","driver":"d","pool":"p"}]}',
    ),
]

CALLS: list[tuple[msgspec.Struct, bytes]] = [
    (Beat(7, "ff", 12), b'{"type":"dev.dragoman.beat.v1","agent_epoch":7,"digest":"ff","last_sequence":12}'),
    (Ask([ObjectName("claim", "u1")]), b'{"type":"dev.dragoman.ask.v1","objects":[["claim","u1"]]}'),
    (
        DeadLetter("east", "dra.v1.state.east.claim.u1", 12, "NotJSON", "message is not JSON", b"{"),
        (
            b'{"type":"dev.dragoman.deadletter.v1","cluster":"east","subject":"dra.v1.state.east.claim.u1",'
            b'"stream_sequence":12,"reason":"NotJSON","message":"message is not JSON","payload":"ew=="}'
        ),
    ),
    (
        LedgerGoesOn("DRA_LEDGER_main_1"),
        b'{"type":"dev.dragoman.ledger-goes-on.v1","stream":"DRA_LEDGER_main_1"}',
    ),
    (
        LeaderBeacon(2, "broker-0"),
        b'{"type":"dev.dragoman.leader-beacon.v1","leader_epoch":2,"instance":"broker-0"}',
    ),
    (Join("state"), b'{"type":"dev.dragoman.join.v1","last_of":"state"}'),
    (
        Joined(1.0, 0, [LedgerSegment("S", 5)]),
        b'{"type":"dev.dragoman.joined.v1","state_age_s":1.0,"segments":[{"stream":"S","last_sequence":5}]}',
    ),
]

EVERY_MESSAGE = [*STATE, *LEDGER, *CALLS]

# What only the fields without a default say: as the first release wrote it, and as a tombstone or an empty ask is.
SHORTEST: list[tuple[msgspec.Struct, bytes]] = [
    (ClaimState(agent_epoch=7), b'{"type":"dev.dragoman.state.claim.v1","agent_epoch":7}'),
    (ObjectState(agent_epoch=7), b'{"type":"dev.dragoman.state.object.v1","agent_epoch":7}'),
    (SyncFinished(7, 1, 0), b'{"type":"dev.dragoman.state.sync-finished.v1","agent_epoch":7,"sync":1,"parts":0}'),
    (
        SegmentOpened(shard="main", segment=0),
        b'{"type":"dev.dragoman.ledger.segment-opened.v1","shard":"main","segment":0}',
    ),
    (Inputs(leader_epoch=2), b'{"type":"dev.dragoman.ledger.inputs.v1","leader_epoch":2}'),
    (
        Inputs(
            leader_epoch=2,
            steps=[
                Step(5, 1_000, [LivenessMark("east", "Lost", 700)]),
                Step(6, 2_000, [OperatorCommand("evict", "east", "ada", "fire", is_fenced=True, state_sequence=99)]),
            ],
        ),
        (
            b'{"type":"dev.dragoman.ledger.inputs.v1","leader_epoch":2,"steps":[{"position":5,"now_ms":1000,'
            b'"orders":[{"order":"mark","cluster":"east","state":"Lost","heard_ms":700}]},{"position":6,"now_ms":2000,'
            b'"orders":[{"order":"command","verb":"evict","cluster":"east","operator":"ada","reason":"fire",'
            b'"is_fenced":true,"state_sequence":99}]}]}'
        ),
    ),
    (
        SyncFinished(7, 2, 1, [], readmission=40),
        (b'{"type":"dev.dragoman.state.sync-finished.v1","agent_epoch":7,"sync":2,"parts":1,"readmission":40}'),
    ),
    (
        Allocate(
            cluster="east",
            uid="u1",
            namespace="default",
            name="train",
            resource_version="1",
            state_sequence=1,
            allocation={},
            holds=[],
            scopes=[],
        ),
        b'{"type":"dev.dragoman.ledger.allocate.v1",' + WHO + b',"resource_version":"1","state_sequence":1,'
        b'"allocation":{},"holds":[],"scopes":[]}',
    ),
    (
        Release(cluster="east", uid="u1", namespace="default", name="train", grant_sequence=4, holds=[], reason="r"),
        b'{"type":"dev.dragoman.ledger.release.v1",' + WHO + b',"grant_sequence":4,"holds":[],"reason":"r"}',
    ),
    (
        OutcomeRecorded(cluster="east", uid="u1", decision_sequence=4, outcome="Applied"),
        (
            b'{"type":"dev.dragoman.ledger.outcome.v1","cluster":"east","uid":"u1","decision_sequence":4,'
            b'"outcome":"Applied"}'
        ),
    ),
    (
        ClassBrokered(cluster="east", name="gpu"),
        b'{"type":"dev.dragoman.ledger.class.v1","cluster":"east","name":"gpu"}',
    ),
    (Ask(), b'{"type":"dev.dragoman.ask.v1"}'),
    (
        DeadLetter("east", "s", 1, "NotJSON", "m"),
        (
            b'{"type":"dev.dragoman.deadletter.v1","cluster":"east","subject":"s","stream_sequence":1,"reason":"NotJSON",'
            b'"message":"m"}'
        ),
    ),
]


def by_type(message: msgspec.Struct) -> str:
    return type(message).__name__


def decoder_of(message: msgspec.Struct) -> Callable[[bytes], msgspec.Struct]:
    """What reads it where it arrives."""
    if isinstance(message, ClaimState):
        return codec.decode_claim_state
    if isinstance(message, ObjectState):
        return codec.decode_object_state
    if isinstance(message, get_args(AgentMessage)):
        return codec.decode_agent_message
    return codec.decode_entry if isinstance(message, get_args(AnyEntry)) else codec.decode_call


@pytest.mark.parametrize(
    ("message", "payload"), [pytest.param(*each, id=by_type(each[0])) for each in [*EVERY_MESSAGE, *SHORTEST]]
)
def test_writes_and_reads_these_bytes(message: msgspec.Struct, payload: bytes) -> None:
    assert encode(message) == payload
    assert decoder_of(message)(payload) == message
    assert msgspec.json.decode(payload)["type"] == message_type(message)


def test_every_message_that_travels_is_here() -> None:
    travels = {ClaimState, ObjectState, *get_args(AgentMessage), *get_args(AnyEntry), *get_args(Call)}
    assert {type(message) for message, _ in EVERY_MESSAGE} == travels
    assert len({message_type(message) for message, _ in EVERY_MESSAGE}) == len(travels)


# --- readers of another release


def of_tomorrow(value: Any, known: Any) -> Any:
    """JSON with one field more in every Struct, as a newer writer might write it."""
    match known:
        case ObjectName() | DeviceAvoided() | ConsumersServed():
            return [*value, "added"]
        case msgspec.Struct():
            fields = {
                field.encode_name: of_tomorrow(value[field.encode_name], getattr(known, field.name))
                for field in msgspec.structs.fields(known)
                if field.encode_name in value
            }
            return {"type": value["type"], **fields, "added": {"x": [1]}} if "type" in value else {**fields, "added": 1}
        case list():
            return [of_tomorrow(*each) for each in zip(value, known, strict=True)]
    return value


@pytest.mark.parametrize(("message", "payload"), [pytest.param(*each, id=by_type(each[0])) for each in EVERY_MESSAGE])
def test_a_reader_of_today_ignores_what_a_newer_writer_adds(message: msgspec.Struct, payload: bytes) -> None:
    newer = msgspec.json.encode(of_tomorrow(msgspec.json.decode(payload), message))
    assert newer.count(b"added") >= 1
    assert decoder_of(message)(newer) == message


@pytest.mark.parametrize(
    ("payload", "decode", "reason"),
    [
        pytest.param(b"{", codec.decode_entry, "NotJSON", id="not JSON"),
        pytest.param(
            b'{"type":"dev.dragoman.ledger.x.v1"}', codec.decode_entry, "UnknownType", id="a type of tomorrow"
        ),
        pytest.param(b'{"type":"dev.dragoman.ask.v1"}', codec.decode_entry, "UnknownType", id="of another family"),
        pytest.param(b'{"type":3}', codec.decode_call, "Malformed", id="a type that is no text"),
        pytest.param(b'{"type":"\xff"}', codec.decode_call, "NotJSON", id="a type that is not UTF-8"),
        pytest.param(
            b'{"type":"dev.dragoman.state.claim.v1","agent_epoch":1,"resource_version":"\xff"}',
            codec.decode_claim_state,
            "NotJSON",
            id="text that is not UTF-8",
        ),
        pytest.param(
            b'{"type":"dev.dragoman.beat.v1","agent_epoch":"x"}', codec.decode_call, "Malformed", id="text for a number"
        ),
        pytest.param(b'{"type":"dev.dragoman.beat.v1"}', codec.decode_call, "Malformed", id="a field is missing"),
        pytest.param(
            b'{"type":"dev.dragoman.state.claim.v1","claim":' + b"[" * 50_000,
            codec.decode_claim_state,
            "NotJSON",
            id="nested too deeply",
        ),
        pytest.param(b"\xff", codec.decode_agent_message, "NotJSON", id="not even text"),
    ],
)
def test_what_cannot_be_read_is_a_value_with_its_reason(
    payload: bytes, decode: Callable[[bytes], object], reason: str
) -> None:
    with pytest.raises(WireError) as raised:
        decode(payload)
    assert raised.value.reason == reason
    assert raised.value.message


def test_names_the_type_that_it_does_not_know() -> None:
    with pytest.raises(WireError, match=r"'dev\.dragoman\.ledger\.x\.v1'"):
        codec.decode_entry(b'{"type":"dev.dragoman.ledger.x.v1"}')


@pytest.mark.parametrize(
    ("payload", "epoch"),
    [
        pytest.param(STATE[0][1], 7, id="a claim's message"),
        pytest.param(STATE[2][1], None, id="a run begins"),
        pytest.param(b"{}", None, id="none"),
    ],
)
def test_peeks_at_the_epoch_alone(payload: bytes, epoch: int | None) -> None:
    assert peek_epoch(payload) == epoch


def test_a_message_without_an_object_is_a_tombstone() -> None:
    assert ClaimState(agent_epoch=1).is_tombstone
    assert not ClaimState(agent_epoch=1, claim=msgspec.Raw(b"{}")).is_tombstone
    assert codec.decode_object_state(SHORTEST[1][1]).is_tombstone
    assert not codec.decode_object_state(STATE[1][1]).is_tombstone


@pytest.mark.parametrize(
    ("state", "is_live"),
    [({}, True), ({"scheduled": True}, True), ({"terminal": True}, False), ({"deleting": True}, False)],
)
def test_a_pod_is_live_until_it_is_finished_or_being_deleted(state: dict[str, bool], is_live: bool) -> None:
    assert Consumer("p", "worker", **state).is_live == is_live


# --- CloudEvents


def test_says_of_each_message_what_cloud_events_ask_for() -> None:
    headers = cloud_event_headers(
        STATE[0][0],
        event_id="east/7/3",
        source="/clusters/east",
        subject="claim/u1",
        now_ms=1_700_000_000_123,
        trace=trace_parent("east", "u1", "east/7/3"),
    )
    assert headers == {
        "ce-specversion": "1.0",
        "ce-type": "dev.dragoman.state.claim.v1",
        "ce-source": "/clusters/east",
        "ce-id": "east/7/3",
        "ce-time": "2023-11-14T22:13:20.123Z",
        "ce-subject": "claim/u1",
        "ce-datacontenttype": "application/json",
        "traceparent": "00-9d6b5d10c5d7856d7c87221cbfc2f8d9-a071e7fd1a4e855e-01",
        "Nats-Msg-Id": "east/7/3",
    }


def test_a_whole_second_has_its_milliseconds_too() -> None:
    headers = cloud_event_headers(Ask(), event_id="i", source="s", subject="x", now_ms=1_000, trace="t")
    assert headers["ce-time"] == "1970-01-01T00:00:01.000Z"


def test_all_spans_of_a_claim_are_of_one_trace() -> None:
    first, second = trace_parent("east", "u1", "a"), trace_parent("east", "u1", "b")
    other = trace_parent("west", "u1", "a")
    assert first[:36] == second[:36] != other[:36]
    assert first[36:] == other[36:] != second[36:]


# --- subjects


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            state_subject("east", "slice", "node1-gpu.example.com-x7"),
            "dra.v1.state.east.slice.node1-gpu.example.com-x7",
        ),
        (state_subject("east", "claim", "a b*>é"), "dra.v1.state.east.claim.a%20b%2A%3E%C3%A9"),
        (state_subject("east", "class", ".a..b."), "dra.v1.state.east.class.%2Ea%2E.b%2E"),
        (state_subject("east", "class", "50%"), "dra.v1.state.east.class.50%25"),
        (state_subject("east", "class", ""), "dra.v1.state.east.class.%"),
        (run_subject("east"), "dra.v1.state.east.agent.run"),
        (sync_part_subject("east", 3), "dra.v1.state.east.agent.sync-3"),
        (ledger_subject("main", 0, "east", "claim", "u.1"), "dra.v1.ledger.main.0.east.claim.u.1"),
        (ledger_stream("main", 0), "DRA_LEDGER_main_0"),
        (ask_subject("east"), "dra.v1.ask.east"),
        (beat_subject("east"), "dra.v1.beat.east"),
        (lead_subject("main"), "dra.v1.lead.main"),
        (dead_letter_subject("east"), "dra.v1.deadletter.east"),
    ],
)
def test_subjects_are_these(found: str, expected: str) -> None:
    assert found == expected


@given(st.text(max_size=80))
def test_any_name_survives_its_way_through_a_subject(name: str) -> None:
    tokens = encode_key(name)
    assert decode_key(tokens) == name
    assert all(tokens.split(".")), "an empty token"
    assert not set(tokens) & set(" *>\t\r\n\0"), "NATS does not allow this in a subject"
    if len(tokens) <= KEY_LENGTH_MAX:
        assert parse_state_subject(state_subject("east", "claim", name)) == StateSubject("east", "claim", name)


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_names_never_share_a_subject(one: str, other: str) -> None:
    assert (encode_key(one) == encode_key(other)) == (one == other)


@given(st.from_regex(r"[a-zA-Z0-9%._*-]{0,30}", fullmatch=True))
def test_a_subject_is_read_only_as_it_is_written(key: str) -> None:
    found = parse_state_subject(f"dra.v1.state.east.claim.{key}")
    assert found is None or encode_key(found.key) == key


@pytest.mark.parametrize(
    "subject",
    [
        "dra.v1.state.east.claim",
        "dra.v1.state.east..x",
        "dra.v1.ask.east.claim.x",
        "dra.v2.state.east.claim.x",
        "dra.v1.state.east.claim.",
        "dra.v1.state.east.claim.a..b",
        "dra.v1.state.east.claim.%41",
        "dra.v1.state.east.claim.%e9",
        "dra.v1.state.east.claim.%FF",
        "dra.v1.state.east.claim." + "x" * (KEY_LENGTH_MAX + 1),
    ],
)
def test_other_subjects_are_not_of_state(subject: str) -> None:
    assert parse_state_subject(subject) is None


@pytest.mark.parametrize(
    ("entry", "place"),
    [
        *[(entry, ("_", "leader", "checkpoint")) for entry, _ in LEDGER[:3]],
        (LEDGER[3][0], ("_", "leader", "closed")),
        (LEDGER[4][0], ("_", "leader", "elected")),
        (LEDGER[5][0], ("_", "inputs", "batch")),
        (LEDGER[6][0], ("east", "claim", "u1")),
        (LEDGER[7][0], ("east", "claim", "u1")),
        *[(entry, ("east", "record", "u1")) for entry, _ in LEDGER[8:13]],
        (LEDGER[13][0], ("east", "class", "gpu")),
        (LEDGER[14][0], ("east", "cluster", "liveness")),
        (LEDGER[15][0], ("east", "cluster", "cordon")),
        (LEDGER[16][0], ("east", "cluster", "exclusion")),
        *[(entry, ("east", "cluster", "eviction")) for entry, _ in LEDGER[17:20]],
        (LEDGER[20][0], ("east", "record", "u1")),
        (LEDGER[21][0], ("east", "cluster", "ahead")),
        (LEDGER[22][0], ("east", "cluster", "rebuilt")),
        (LEDGER[23][0], ("_", "leader", "rebuilt")),
        (LEDGER[24][0], ("east", "record", "u1")),
        (LEDGER[25][0], ("_", "device", "fabric/f/gpu.example.com/rack7/gpu-3/dragoman.dev/unhealthy")),
        *[
            (entry, ("_", "device", "fabric/f/gpu.example.com/rack7/gpu-3/example.com/fan"))
            for entry, _ in LEDGER[26:28]
        ],
        (LEDGER[28][0], ("_", "leader", "checkpoint")),
        (LEDGER[29][0], ("_", "leader", "elected")),
        (LEDGER[30][0], ("_", "leader", "closed")),
        (LEDGER[31][0], ("east", "cluster", "taintrules")),
    ],
    ids=by_type,
)
def test_only_decisions_are_on_a_claims_own_subject(entry: AnyEntry, place: tuple[str, str, str]) -> None:
    assert entry_place(entry) == place


# --- digests


def test_a_digest_is_the_same_in_every_release() -> None:
    assert format(object_digest(ObjectName("claim", "u1"), 12), "x") == "8e4c24207b734ce425d331b7c3b4f7a1"


def test_a_digest_does_not_depend_on_the_order_and_forgets_what_is_taken_away() -> None:
    shares = [object_digest(ObjectName("claim", f"u{number}"), number) for number in range(5)]
    forwards = backwards = 0
    for share in shares:
        forwards = add_to_digest(forwards, share)
    for share in reversed(shares):
        backwards = add_to_digest(backwards, share)
    assert forwards == backwards
    for share in shares[1:]:
        forwards = add_to_digest(forwards, -share)
    assert forwards == shares[0]
    assert 0 <= add_to_digest(0, -shares[0]) < 2**128


def test_a_digest_tells_kind_key_and_sequence_apart() -> None:
    names = [("claim", "u1", 12), ("class", "u1", 12), ("claim", "u2", 12), ("claim", "u1", 13), ("clai", "mu1", 12)]
    assert len({object_digest(ObjectName(kind, key), sequence) for kind, key, sequence in names}) == len(names)
