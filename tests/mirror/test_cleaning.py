"""A cluster that was cut off comes back: no claim keeps an allocation of before, or gets one by a write of before."""

from typing import Any

import pytest

from cluster_agent.mirror.actions import Cleaning, ClearAllocation, ObjectSeen, Publish, ReadClaim, Tick, Void
from schemas.wire.state import Settled, SyncFinished
from tests.mirror.driven import (
    Driven,
    Manifest,
    a_manifest,
    a_state,
    allocated,
    an_allocate,
    an_object,
    decides,
    failed,
    gone,
    protected,
    read,
    seen,
    told,
    wrote,
)

READMITTED = 90


def readmitted(*objects: ObjectSeen, **more: Any) -> Driven:
    driven = Driven()
    driven.starts(*objects, readmission=READMITTED, cleaning=Cleaning(READMITTED), **more)
    return driven


def test_clears_an_allocation_and_syncs_when_that_is_published() -> None:
    driven = readmitted(seen(allocated(protected()), 100), decisions=[(50, an_allocate(99))])
    driven.store_all()
    assert driven.syncs == [], "what it shows is still allocated"
    driven.tell(read(driven.take(ReadClaim), allocated(protected()), 100))
    driven.tell(wrote(driven.take(ClearAllocation), 101))
    assert driven.pending == []
    driven.tell(seen(protected(), 101))
    driven.store_all()
    assert driven.said().decision.ledger_sequence == READMITTED
    assert "status" not in driven.claim()
    assert driven.syncs, "now it is told"
    assert driven.mirror.is_idle


def test_writes_a_claim_without_allocation_so_that_no_earlier_write_can_land() -> None:
    driven = readmitted(seen(a_manifest(), 100), decisions=[(50, an_allocate(100))])
    driven.store_all()
    driven.tell(read(driven.take(ReadClaim), a_manifest(), 100))
    void = driven.take(Void)
    assert void.object["metadata"]["resourceVersion"] == "100"
    driven.tell(failed(void, "unknown"))
    driven.tell(read(driven.take(ReadClaim), a_manifest(), 101))
    driven.tell(wrote(driven.take(Void), 102))
    driven.tell(seen(a_manifest(), 102))
    driven.store_all()
    assert driven.syncs
    assert driven.tell(decides(an_allocate(100), 50)) == [], "what was decided before is over"


def test_a_claim_that_cannot_be_read_and_never_had_anything_needs_no_write() -> None:
    driven = readmitted(seen(a_manifest(), 100, error="nested too deeply"))
    driven.store_all()
    assert driven.pending == []
    assert driven.syncs, "nothing is waited for"


@pytest.mark.parametrize(
    ("manifest", "decisions"),
    [
        pytest.param(protected(), [], id="it carries our finalizer"),
        pytest.param(allocated(a_manifest()), [], id="it has an allocation"),
        pytest.param(a_manifest(), [(50, an_allocate(100))], id="something was decided for it"),
    ],
)
def test_a_claim_that_cannot_be_read_is_cleaned_otherwise(manifest: Manifest, decisions: list[Any]) -> None:
    driven = readmitted(seen(manifest, 100, error="nested too deeply"), decisions=decisions)
    driven.store_all()
    assert driven.all(ReadClaim)
    assert driven.syncs == []


def test_a_refused_write_is_tried_again_when_time_passes() -> None:
    driven = readmitted(seen(allocated(protected()), 100))
    driven.store_all()
    driven.tell(read(driven.take(ReadClaim), allocated(protected()), 100))
    driven.tell(failed(driven.take(ClearAllocation), "invalid"))
    assert driven.pending == []
    driven.tell(Tick(1_000))
    driven.tell(read(driven.take(ReadClaim), allocated(protected()), 100))
    driven.take(ClearAllocation)


def test_a_claim_that_goes_meanwhile_needs_nothing_more() -> None:
    driven = readmitted(seen(a_manifest(), 100))
    driven.store_all()
    driven.tell(read(driven.take(ReadClaim), None, 0))
    driven.tell(gone(a_manifest(), 101))
    driven.store_all()
    assert driven.syncs == [[]]


def test_everything_is_said_again_for_nothing_of_before_counts() -> None:
    driven = readmitted(
        seen(protected(), 100),
        seen(an_object("node", "node-1"), 5, "node"),
        told=[told(a_state(protected(), 100, decision=None), 7)],
    )
    assert {each.name.kind for each in driven.all(Publish)} == {"claim", "node"}


def test_a_run_after_one_that_has_cleaned_up_does_not_do_it_again() -> None:
    done = a_state(protected(), 100, decision=Settled(READMITTED, "Applied"))
    driven = readmitted(seen(protected(), 100), told=[told(done, 7)], decisions=[(50, an_allocate(99))])
    driven.store_all()
    assert driven.pending == []
    assert driven.syncs


def test_its_syncs_name_the_readmission_and_others_none() -> None:
    driven = Driven()
    driven.starts(readmission=READMITTED)
    assert [each.message.readmission for each in driven.all(Publish) if isinstance(each.message, SyncFinished)] == [
        READMITTED
    ]
    ordinary = Driven()
    ordinary.starts()
    assert [each.message.readmission for each in ordinary.all(Publish) if isinstance(each.message, SyncFinished)] == [0]


# --- the ledger was rebuilt


def rebuilt(*objects: ObjectSeen, **more: Any) -> Driven:
    driven = Driven()
    driven.starts(*objects, readmission=READMITTED, cleaning=Cleaning(READMITTED, keeps_allocation=True), **more)
    return driven


def test_a_rebuild_keeps_what_a_claim_has() -> None:
    driven = rebuilt(seen(allocated(protected()), 100))
    driven.store_all()
    assert driven.syncs == [], "it was not looked at yet"
    driven.tell(read(driven.take(ReadClaim), allocated(protected()), 100))
    assert not driven.all(ClearAllocation)
    assert not driven.all(Void)
    driven.store_all()
    assert driven.said().decision.ledger_sequence == READMITTED
    assert driven.syncs


def test_a_rebuild_writes_a_claim_without_allocation_once() -> None:
    driven = rebuilt(seen(protected(), 100))
    driven.store_all()
    driven.tell(read(driven.take(ReadClaim), protected(), 100))
    driven.tell(wrote(driven.take(Void), 101))
    driven.store_all()
    assert driven.syncs == [], "the watch has not brought the write"
    driven.tell(seen(protected(), 101))
    driven.store_all()
    assert driven.syncs


def test_a_decision_of_the_ledger_that_was_lost_is_refused() -> None:
    """Also for a claim that nobody had heard of."""
    driven = rebuilt()
    driven.tell(seen(a_manifest(), 102))
    driven.store_all()
    assert driven.tell(decides(an_allocate(102), READMITTED - 1)) == []
    assert driven.tell(decides(an_allocate(102), READMITTED + 1)) != []
