"""What the comparison at the end of a run says of worlds that agree, and of worlds with one thing wrong in them."""

from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from schemas.wire.bus import StoredMessage
from schemas.wire.calls import DeadLetter
from schemas.wire.codec import encode
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    DeviceHold,
    GrantEnded,
    Inputs,
    LeaderElected,
    OutcomeRecorded,
    ReasonChanged,
    SegmentOpened,
)
from schemas.wire.state import ClaimState, Settled
from tests.chaos import agreement
from tests.chaos.agreement import KeptClaim, StrictView
from tests.chaos.load import CAPACITY, DEVICES, SHARED_DRIVER
from tests.manifests import DRIVER
from tests.processes.harness import Row

GPU = (DRIVER, "rack", "gpu-0")
SLOT = (SHARED_DRIVER, "slots", "slot-0")


def allocate(uid: str, device: tuple[str, str, str] = GPU, memory: str = "") -> Allocate:
    hold = DeviceHold("gpu", *device)
    if memory:
        hold = replace(hold, share_id=f"share-{uid}", consumed_capacity={"memory": memory})
    return Allocate(
        cluster="east",
        uid=uid,
        namespace="default",
        name=f"one-{uid}",
        resource_version="1",
        state_sequence=1,
        allocation={},
        holds=[hold],
        scopes=["fabric/rack"],
    )


def applied(uid: str, sequence: int) -> OutcomeRecorded:
    return OutcomeRecorded(cluster="east", uid=uid, decision_sequence=sequence, outcome="Applied")


def ended(uid: str, sequence: int, cause: Any = "ClaimDeleted") -> GrantEnded:
    return GrantEnded(cluster="east", uid=uid, grant_sequence=sequence, cause=cause)


def waits(uid: str, name: str, reason: str) -> ReasonChanged:
    return ReasonChanged(
        cluster="east",
        uid=uid,
        namespace="default",
        name=name,
        state="Pending",
        reason=reason,
        message="so it is",
        since_ms=1,
        order=1,
    )


BEGIN: list[AnyEntry] = [
    SegmentOpened(shard="main", segment=0),
    LeaderElected(instance="b", build="1"),
    Inputs(leader_epoch=2),
]


def folded(*entries: AnyEntry) -> StrictView:
    """The first of `entries` is number 4."""
    view = StrictView(CAPACITY)
    messages = enumerate([*BEGIN, *entries], start=1)
    view.fold(StoredMessage("x", encode(entry), {}, sequence, 0) for sequence, entry in messages)
    return view


def kept(*devices: tuple[str, str, str]) -> KeptClaim:
    return KeptClaim("east", "one-1", Counter(devices))


def a_row(uid: str = "1", name: str = "one-1", reason: str = "", devices: tuple[tuple[str, str, str], ...] = ()) -> Row:
    results = [{"driver": driver, "pool": pool, "device": device} for driver, pool, device in devices]
    state = "Allocated" if devices else "Pending"
    return Row("east", "default", name, uid, state, results, reason, "so it is" if reason else "")


def test_worlds_that_agree() -> None:
    view = folded(allocate("1"), applied("1", 4), waits("2", "none-2", "NoMatchingDevice"))
    objects = {"1": kept(GPU), "2": KeptClaim("east", "none-2", Counter())}
    rows = [a_row(devices=(GPU,)), a_row("2", "none-2", "NoMatchingDevice")]
    assert agreement.files_and_objects({"east": {"one-1", "none-2"}}, objects) == []
    assert agreement.objects_and_ledger(objects, view) == []
    assert agreement.objects_and_broker(objects, rows) == []
    assert agreement.reasons(rows, view) == []
    said = ClaimState(agent_epoch=1, decision=Settled(4, "Applied"))
    assert agreement.settled_in_ledger([StoredMessage("dra.v1.state.east.claim.1", encode(said), {}, 1, 0)], view) == []


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([allocate("1"), allocate("2")], id="one device to two"),
        pytest.param([allocate("1", SLOT, "30Gi"), allocate("2", SLOT, "20Gi")], id="more than there is of a device"),
        pytest.param([allocate("1", SLOT, "10Gi"), allocate("2", SLOT)], id="all of a device that is shared"),
        pytest.param([allocate("1"), applied("1", 4), ended("1", 4), allocate("1")], id="to a claim that is gone"),
        pytest.param([allocate("1"), Inputs(leader_epoch=1)], id="by one who does not lead"),
        pytest.param(
            [
                Adopted(
                    cluster="east",
                    uid="1",
                    namespace="d",
                    name="n",
                    state_sequence=1,
                    holds=[DeviceHold("gpu", *GPU)],
                    scopes=["fabric/rack"],
                )
            ],
            id="an allocation that nobody decided",
        ),
    ],
)
def test_a_ledger_that_cannot_be(entries: list[AnyEntry]) -> None:
    with pytest.raises(AssertionError):
        folded(*entries)


@pytest.mark.parametrize(
    ("objects", "entries"),
    [
        pytest.param({"1": kept(GPU)}, [], id="an allocation that the ledger does not know"),
        pytest.param({"1": kept()}, [allocate("1"), applied("1", 4)], id="a grant that is not there"),
        pytest.param({}, [allocate("1"), applied("1", 4)], id="a grant of a claim that is gone"),
        pytest.param({"1": kept(GPU)}, [allocate("1")], id="a decision without an outcome"),
        pytest.param(
            {"1": kept()},
            [allocate("1"), applied("1", 4), ended("1", 4, "AllocationCleared")],
            id="a living claim that lost its devices",
        ),
    ],
)
def test_objects_and_a_ledger_that_differ(objects: dict[str, KeptClaim], entries: list[AnyEntry]) -> None:
    assert agreement.objects_and_ledger(objects, folded(*entries))


@pytest.mark.parametrize(
    ("objects", "rows"),
    [
        pytest.param({"1": kept()}, [], id="a claim that the broker does not know"),
        pytest.param({}, [a_row()], id="a claim that is gone"),
        pytest.param(
            {"1": kept(GPU)}, [a_row(reason="DevicesInUse")], id="an allocation that the broker does not know"
        ),
    ],
)
def test_objects_and_a_broker_that_differ(objects: dict[str, KeptClaim], rows: list[Row]) -> None:
    assert agreement.objects_and_broker(objects, rows)


def test_files_and_objects_that_differ() -> None:
    assert agreement.files_and_objects({"east": {"one-1"}}, {})
    assert agreement.files_and_objects({"east": set()}, {"1": kept()})
    assert agreement.files_and_objects({"east": {"one-1"}}, {"1": kept(), "2": kept()})


@pytest.mark.parametrize(
    ("row", "is_full"),
    [
        pytest.param(a_row(reason="DevicesInUse"), False, id="a device is free"),
        pytest.param(a_row(name="share-1", reason="DevicesInUse"), True, id="a share is free"),
        pytest.param(a_row(reason="NoMatchingDevice"), True, id="another reason than the true one"),
        pytest.param(a_row(name="none-1", reason="DevicesInUse"), True, id="it would not fit if all were free"),
        pytest.param(a_row(), True, id="no reason"),
    ],
)
def test_reasons_that_are_not_true(row: Row, is_full: bool) -> None:
    full = [allocate(f"{number}", (DRIVER, "rack", f"gpu-{number}")) for number in range(DEVICES if is_full else 1)]
    assert agreement.reasons([row], folded(*full, waits("1", row.name, row.reason)))


def test_a_reason_that_is_true_now_and_not_in_the_ledger() -> None:
    full = [allocate(f"{number}", (DRIVER, "rack", f"gpu-{number}")) for number in range(DEVICES)]
    row = a_row(uid="x", reason="DevicesInUse")
    assert agreement.reasons([row], folded(*full))
    assert agreement.reasons([row], folded(*full, waits("x", row.name, row.reason))) == []


@pytest.mark.parametrize("sequence", [4, 9])
def test_a_decision_that_an_agent_carried_out_and_the_ledger_lost(sequence: int) -> None:
    said = ClaimState(agent_epoch=1, decision=Settled(sequence, "Applied"))
    message = StoredMessage("dra.v1.state.east.claim.2", encode(said), {}, 1, 0)
    assert agreement.settled_in_ledger([message], folded(allocate("1")))


def test_dead_letters_of_an_agent_that_was_replaced_are_expected_alone() -> None:
    letters = [DeadLetter("east", "s", 1, reason, "m") for reason in ("LowerEpoch", "InternalError")]
    counts, problems = agreement.dead_letters(StoredMessage("x", encode(each), {}, 1, 0) for each in letters)
    assert counts == {"LowerEpoch": 1, "InternalError": 1}
    assert len(problems) == 1
