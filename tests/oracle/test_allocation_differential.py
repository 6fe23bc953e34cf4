"""Our allocations against kube-scheduler's: random problems with several claims, holders, and all that DRA has.

Where upstream allocates a claim, we allocate the same. Where it does not and we do, what we allocate must be without
fault to a validator that knows neither, and upstream's reason for giving up must be one that docs/allocation.md tells.

ORACLE_PROBLEMS sets how many problems are tried (4,000), ORACLE_SEED where they start (1). A longer run:
`ORACLE_PROBLEMS=100000 ORACLE_SEED=2 pytest tests/oracle/test_allocation_differential.py --timeout 0`.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from random import Random

import msgspec
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from broker.allocation.allocate import allocate
from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.allocation.nodes import OPTIONAL_NODE_OPERATIONS, NodeView
from broker.allocation.reasons import NoFit
from broker.allocation.result import with_share_ids
from broker.allocation.snapshot import Snapshot
from broker.world.keys import DeviceKey, PoolKey
from broker.world.observe import allocation_holds
from broker.world.pools import assemble_pool, in_allocation_order
from broker.world.taint_rules import with_rules
from broker.world.usage import InUse, use_of
from schemas.quantity import Quantity
from schemas.resource import AllocationResult, ObjectMeta, ResourceClaim, ResourceSlice
from schemas.wire.ledger import DeviceHold
from tests.allocation.validator import faults
from tests.builders import a_claim, a_class, a_request, a_slice, some_devices
from tests.oracle.client import Attempt, Oracle, OracleNode, Problem
from tests.oracle.problems import ProblemWriter, minimal

PROBLEMS = int(os.environ.get("ORACLE_PROBLEMS", "4000"))
SEED = int(os.environ.get("ORACLE_SEED", "1"))
AT_ONCE = 20

ENGINE = default_engine()
INDEX = DeviceIndex(ENGINE)  # one for all problems, as a broker has one for all claims

Allocate = Callable[[Sequence[ResourceClaim], Snapshot], list[AllocationResult] | NoFit]

# Why upstream fails claims that can be allocated, by what it says or does.
GIVES_UP = {
    "filter operation aborted": "did not find it in time",
    "asks for all devices, but resource pool": "fails a claim for one alternative that wants All of a spoilt pool",
    "because a claim constraint would not be satisfied": "fails a claim for one alternative of All under a constraint",
    "CEL runtime error": "asks selectors about devices that are in use or tainted, and fails with them",
}


def snapshot_of(problem: Problem, holders: "Holders") -> Snapshot:
    """The problem as the core sees it."""
    by_pool: dict[PoolKey, list[ResourceSlice]] = {}
    for each in problem.slices:
        key = PoolKey("cluster/east", each.spec.driver, each.spec.pool.name)
        by_pool.setdefault(key, []).append(with_rules(each, problem.taint_rules))
    return Snapshot(
        pools=in_allocation_order(assemble_pool(key, slices) for key, slices in by_pool.items()),
        classes={each.metadata.name: each for each in problem.classes},
        nodes=[
            NodeView(
                each.metadata.name, each.metadata.labels, OPTIONAL_NODE_OPERATIONS in each.status.declared_features
            )
            for each in problem.nodes
        ],
        in_use=holders.in_use,
        allows_admin_access=True,
    )


class Holders:
    """Who has what, claim by claim."""

    def __init__(self, claims: Iterable[ResourceClaim] = ()) -> None:
        self.in_use = InUse()
        self._holds: dict[DeviceKey, list[tuple[str, DeviceHold]]] = {}
        for claim in claims:
            if claim.status.allocation is not None:
                self.add(claim.metadata.name, claim.status.allocation)

    def add(self, name: str, allocation: AllocationResult) -> None:
        """One more; admin access holds nothing."""
        for hold in allocation_holds(allocation) or ():
            if not hold.admin_access:
                key = DeviceKey(PoolKey("cluster/east", hold.driver, hold.pool), hold.device)
                self._holds.setdefault(key, []).append((name, hold))
                use = use_of(self._holds[key])
                assert use is not None
                self.in_use[key] = use


def comparable(allocation: AllocationResult) -> AllocationResult:
    """Without what is random upstream (share ids), and amounts in one way of writing them."""
    results = [
        msgspec.structs.replace(
            each,
            share_id=None if each.share_id is None else "share",
            consumed_capacity={
                name: str(Quantity.parse(amount)) for name, amount in sorted(each.consumed_capacity.items())
            },
        )
        for each in allocation.devices.results
    ]
    return msgspec.structs.replace(
        allocation, devices=msgspec.structs.replace(allocation.devices, results=results), allocation_timestamp=None
    )


def trusts_too_much(allocation: AllocationResult, snapshot: Snapshot) -> bool:
    """A device is of a replaced generation, or of a pool that contradicts itself.

    Upstream looks at the slices of other nodes only where those of this node are too few, so it does not always notice.
    """
    usable = {
        (pool.key.driver, pool.key.pool, device.name) for pool in snapshot.pools if pool.is_usable for _, device in pool
    }
    return any((each.driver, each.pool, each.device) not in usable for each in allocation.devices.results)


def takes_all(claim: ResourceClaim) -> bool:
    return any(
        asked.allocation_mode == "All"
        for request in claim.spec.devices.requests
        for asked in ([request.exactly] if request.exactly is not None else request.first_available)
    )


class Comparison:
    """Compares one problem after the other and counts what it met."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self.allocate: Allocate = lambda claims, snapshot: allocate(claims, snapshot, INDEX)
        self.claims: Counter[str] = Counter()
        self.better: Counter[str] = Counter()
        self.distrusted = 0  # claims that upstream allocates and we do not, see trusts_too_much
        self.compared = 0

    def compare(self, problem: Problem) -> None:
        """Raises: AssertionError where we differ, with a note of the least problem that shows it."""
        try:
            self._compare(problem)
        except AssertionError as error:
            kind = _kind_of(error)
            least = minimal(problem, lambda less: self._difference(less) == kind)
            error.add_note(f"the least problem that differs:\n{msgspec.json.encode(least).decode()}")
            raise

    def _difference(self, problem: Problem) -> str | None:
        try:
            self._compare(problem)
        except AssertionError as error:
            return _kind_of(error)
        return None

    def _compare(self, problem: Problem) -> None:
        holders = Holders(problem.held)
        snapshot = snapshot_of(problem, holders)
        self.compared += 1
        attempts = self._oracle.allocate(problem)
        if problem.together:
            self._step(problem.claims, attempts, snapshot)
            return
        for claim, attempt in zip(problem.claims, attempts, strict=True):
            allocations = self._step([claim], [attempt], snapshot)
            if attempt.outcome == "allocated" and allocations is not None:
                holders.add(claim.metadata.name, with_share_ids(allocations[0], claim.metadata.name, 0))
            elif allocations is not None or attempt.outcome == "allocated":
                return  # from here on other devices are free than upstream

    def _step(
        self, claims: Sequence[ResourceClaim], attempts: Sequence[Attempt], snapshot: Snapshot
    ) -> list[AllocationResult] | None:
        found = self.allocate(claims, snapshot)
        outcome = attempts[0].outcome
        self.claims[outcome] += len(claims)
        given = [each.allocation for each in attempts if each.allocation is not None]
        if outcome == "allocated":
            # All may leave out a pool that upstream takes for whole, and we do not.
            is_spoilt = any(map(takes_all, claims)) and not all(pool.is_usable for pool in snapshot.pools)
            if any(trusts_too_much(each, snapshot) for each in given) or (is_spoilt and isinstance(found, NoFit)):
                self.distrusted += len(claims)
                return None
            assert not isinstance(found, NoFit), f"upstream allocates it, we say: {found.message}"
            assert [comparable(each) for each in found] == [comparable(each) for each in given]
            return found
        if isinstance(found, NoFit):
            return None
        message = attempts[0].message
        why = next((why for text, why in GIVES_UP.items() if text in message), None)
        assert why is not None, f"we allocate it, upstream: {outcome} {message}\n{found}"
        wrong = [faults(claims, found, snapshot, node, ENGINE) for node in snapshot.nodes or ()]
        assert [] in wrong, f"upstream does not allocate it ({outcome} {message}), and ours is faulty: {wrong}"
        self.better[why] += len(claims)
        return found


def _kind_of(error: AssertionError) -> str:
    return str(error).partition(":")[0]


def test_random_problems_are_solved_alike(oracle: Oracle, capsys: pytest.CaptureFixture[str]) -> None:
    comparison = Comparison(oracle)

    @seed(SEED)
    @settings(max_examples=PROBLEMS // AT_ONCE, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    # One draw for many problems: Hypothesis would vary a few of its draws at a time, and write much the same again.
    @given(random=st.randoms(use_true_random=True))
    def compare_many(random: Random) -> None:
        writer = ProblemWriter(random)
        for _ in range(AT_ONCE):
            comparison.compare(writer.problem())

    compare_many()
    with capsys.disabled():
        print(f"\n{comparison.compared:,} problems, seed {SEED}: all agree")
        print(f"  claims, by what upstream says: {dict(comparison.claims)}")
        print(f"  {comparison.distrusted:,} claims not allocated from pools that upstream should not trust")
        print(f"  {comparison.better.total():,} claims allocated although upstream")
        for why, count in comparison.better.most_common():
            print(f"    {count:4} {why}")
    assert comparison.claims["allocated"] >= comparison.compared // 4, "too few of the problems have a solution"


def test_a_claim_that_asks_for_nothing_is_given_nothing(oracle: Oracle) -> None:
    nothing = ResourceClaim(metadata=ObjectMeta(name="nothing"))
    problem = Problem(nodes=[OracleNode(metadata=ObjectMeta(name="n1"))], claims=[nothing])
    comparison = Comparison(oracle)
    comparison.compare(problem)
    assert comparison.claims == {"allocated": 1}


def test_a_difference_is_told_with_the_least_problem_that_shows_it(oracle: Oracle) -> None:
    problem = Problem(
        slices=[a_slice(some_devices(3), name="s-a"), a_slice(some_devices(2), name="s-b", pool="other")],
        classes=[a_class()],
        nodes=[OracleNode(metadata=ObjectMeta(name="n0"))],
        claims=[a_claim(name="one"), a_claim(a_request("a"), a_request("b"), name="two")],
    )
    wrong = Comparison(oracle)
    wrong.allocate = lambda claims, snapshot: allocate(claims, msgspec.structs.replace(snapshot, nodes=[]), INDEX)
    wrong.compare(problem)  # all nodes reach all devices, so that does not matter
    wrong.allocate = lambda claims, snapshot: allocate(claims, msgspec.structs.replace(snapshot, classes={}), INDEX)
    with pytest.raises(AssertionError, match="upstream allocates it, we say") as caught:
        wrong.compare(problem)
    told = msgspec.json.decode(caught.value.__notes__[0].partition("\n")[2], type=Problem)
    assert [len(each.spec.devices) for each in told.slices] == [1]
    assert [len(each.spec.devices.requests) for each in told.claims] == [1]
