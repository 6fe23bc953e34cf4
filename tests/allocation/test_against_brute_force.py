"""Random small fleets and claims: the core finds a solution exactly when trying everything does, and the same one."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.allocation.allocate import allocate
from broker.allocation.budget import Budget
from broker.allocation.candidates import View
from broker.allocation.problem import pose
from broker.allocation.reasons import NoFit, Reason
from broker.allocation.requests import read_requests
from broker.allocation.snapshot import Snapshot
from broker.allocation.solve import solve
from broker.world.usage import InUse
from schemas.resource import ResourceClaim
from tests.allocation.problems import ENGINE, INDEX, NODES, claims, partitions, puzzles, snapshots
from tests.allocation.validator import as_names, brute_force, faults, fleet
from tests.builders import DRIVER, a_match


@settings(max_examples=400, deadline=None)
@given(snapshot=snapshots(), wanted=st.one_of(st.tuples(claims("one")), st.tuples(claims("one"), claims("two"))))
def test_finds_what_trying_everything_finds(snapshot: Snapshot, wanted: tuple[ResourceClaim, ...]) -> None:
    nodes = snapshot.nodes or []
    expected = brute_force(wanted, snapshot, nodes, ENGINE)
    found = allocate(wanted, snapshot, INDEX)
    if isinstance(found, NoFit):
        assert expected is None, found.message
        assert found.message
        assert found.reason is not Reason.SELECTOR_FAILED
        # That nothing fits is always found out; why not, within a budget.
        assert found.reason is not Reason.SEARCH_BUDGET_EXCEEDED or found.message.startswith("nothing fits, ")
    else:
        by_id = {(pool.key.driver, pool.key.pool): pool for pool in snapshot.pools}
        assert as_names(found, by_id) == expected
        assert any(not faults(wanted, found, snapshot, node, ENGINE) for node in nodes)


@settings(max_examples=400, deadline=None)
@given(puzzle=puzzles())
def test_solves_what_constraints_allow(puzzle: tuple[Snapshot, ResourceClaim]) -> None:
    snapshot, wanted = puzzle
    expected = brute_force([wanted], snapshot, NODES[:1], ENGINE)
    found = allocate([wanted], snapshot, INDEX)
    if isinstance(found, NoFit):
        assert expected is None, found.message
        assert found.reason in (Reason.CONSTRAINT_UNSATISFIABLE, Reason.NO_MATCHING_DEVICE)
    else:
        assert as_names(found, {(DRIVER, "p"): snapshot.pools[0]}) == expected
        assert faults([wanted], found, snapshot, NODES[0], ENGINE) == []


@settings(max_examples=200, deadline=None)
@given(snapshot=snapshots(), wanted=claims("one"))
def test_in_use_is_the_reason_exactly_when_free_devices_would_do(snapshot: Snapshot, wanted: ResourceClaim) -> None:
    found = allocate([wanted], snapshot, INDEX)
    if not isinstance(found, NoFit) or found.reason is Reason.SEARCH_BUDGET_EXCEEDED:
        return
    unavoided = msgspec.structs.replace(snapshot, avoid=frozenset())
    free = msgspec.structs.replace(unavoided, in_use=InUse())
    fits_unavoided = brute_force([wanted], unavoided, snapshot.nodes or [], ENGINE) is not None
    fits_free = brute_force([wanted], free, snapshot.nodes or [], ENGINE) is not None
    assert (found.reason is Reason.DEVICES_AVOIDED) == fits_unavoided
    assert (found.reason is Reason.DEVICES_IN_USE) == (fits_free and not fits_unavoided)
    if found.reason is Reason.DEVICES_IN_USE:
        assert found.waits_on.pools


@settings(max_examples=200, deadline=None)
@given(snapshot=snapshots(), wanted=claims("one"))
def test_counts_every_device_once_for_each_request(snapshot: Snapshot, wanted: ResourceClaim) -> None:
    found = allocate([wanted], snapshot, INDEX)
    if isinstance(found, NoFit):
        for report in found.requests:
            assert (
                report.usable + sum(each.count for each in report.ruled_out) == report.devices == len(fleet(snapshot))
            )


@settings(max_examples=400, deadline=None)
@given(problem=partitions())
def test_finds_room_among_partitions_and_shares(problem: tuple[Snapshot, tuple[ResourceClaim, ...]]) -> None:
    snapshot, wanted = problem
    expected = brute_force(wanted, snapshot, NODES[:1], ENGINE)
    found = allocate(wanted, snapshot, INDEX)
    if isinstance(found, NoFit):
        assert expected is None, found.message
        assert found.reason is not Reason.SEARCH_BUDGET_EXCEEDED or found.message.startswith("nothing fits, ")
    else:
        assert as_names(found, {(DRIVER, "p"): snapshot.pools[0]}) == expected
        assert faults(wanted, found, snapshot, NODES[0], ENGINE) == []


def matching_rack(wanted: ResourceClaim) -> ResourceClaim:
    devices = msgspec.structs.replace(wanted.spec.devices, constraints=[a_match(f"{DRIVER}/rack")])
    return msgspec.structs.replace(wanted, spec=msgspec.structs.replace(wanted.spec, devices=devices))


@settings(max_examples=400, deadline=None)
@given(
    problem=st.one_of(
        puzzles().map(lambda puzzle: (puzzle[0], (puzzle[1],))),
        st.tuples(snapshots(), st.one_of(st.tuples(claims("one")), st.tuples(claims("one"), claims("two")))),
        partitions().map(lambda problem: (problem[0], tuple(map(matching_rack, problem[1])))),
    )
)
def test_counting_thoroughly_loses_no_solution(problem: tuple[Snapshot, tuple[ResourceClaim, ...]]) -> None:
    snapshot, wanted = problem
    requests = read_requests(wanted, snapshot, INDEX, Budget(50_000))
    assert not isinstance(requests, NoFit)
    index_fleet = INDEX.fleet(snapshot.pools, snapshot.in_use)
    for group in index_fleet.groups(snapshot.nodes, snapshot.node):
        found = []
        for quick_steps in (50_000, 0):
            budget = Budget(50_000)
            chosen = solve(pose(requests, View(snapshot, index_fleet, group), wanted, budget), budget, quick_steps)
            names = [(each.alternative.name, each.device.key) for each in chosen or ()]
            found.append(None if chosen is None else names)
        assert found[0] == found[1]
