"""The core's entrance: claims and a snapshot in, allocations or the reason why not out."""

from collections.abc import Callable, Sequence

from broker.allocation.budget import Budget, BudgetExceededError
from broker.allocation.candidates import View, terms_of
from broker.allocation.explain import Attempt, explain, explain_exceeded_budget, explain_failed_selector
from broker.allocation.index import DeviceIndex, Fleet
from broker.allocation.nodewise import search_nodes
from broker.allocation.reasons import NoFit, Reason
from broker.allocation.requests import Request, read_requests
from broker.allocation.result import allocation_of
from broker.allocation.search import SelectorFailedError
from broker.allocation.snapshot import Snapshot
from schemas.resource import AllocationResult, ResourceClaim

DEFAULT_STEP_BUDGET = 50_000  # with the explanation at most about a tenth of a second


class MoreToAskError(Exception):
    """What selectors say about the devices is not all known yet, and the allowance for asking was spent."""


def allocate_claim(
    claim: ResourceClaim,
    snapshot: Snapshot,
    device_index: DeviceIndex,
    *,
    step_budget: int = DEFAULT_STEP_BUDGET,
    allowance: Budget | None = None,
    filtered: Callable[[], None] | None = None,
    spent: Callable[[int], None] | None = None,
) -> AllocationResult | NoFit:
    """Allocate one claim; see `allocate`."""
    found = allocate(
        [claim],
        snapshot,
        device_index,
        step_budget=step_budget,
        allowance=allowance,
        filtered=filtered,
        spent=spent,
    )
    return found if isinstance(found, NoFit) else found[0]


def allocate(
    claims: Sequence[ResourceClaim],
    snapshot: Snapshot,
    device_index: DeviceIndex,
    *,
    step_budget: int = DEFAULT_STEP_BUDGET,
    allowance: Budget | None = None,
    filtered: Callable[[], None] | None = None,
    spent: Callable[[int], None] | None = None,
) -> list[AllocationResult] | NoFit:
    """Allocate all claims on one node, as kube-scheduler does for the claims of one pod, or none of them.

    claims: without an allocation; valid (`schemas.resource.validate`).
    device_index: the same one for every call, so that what selectors said is not asked again.
    step_budget: for all nodes together, see `budget`. As much again may be spent to find out why nothing fits.
    allowance: for asking selectors about devices, which is no part of the step budget: it takes as long as it takes,
        and is done once for all claims that come. Without an allowance all of it is done at once.
    filtered: called when it is known which devices suit the requests, and the search begins.
    spent: called at the end with the steps that it took to search and to find out why, however that ended.
    Raises: MoreToAskError, with an allowance that did not suffice. The next call goes on where this one ended.
    Returns: one allocation per claim, in their order, without timestamps and shareIDs (see `result`). The snapshot is
        not changed.

    Nodes are tried in their order, those that reach the same devices at once; the first that works is taken, even
    where a later one would need fewer devices that are local to it. The devices are those that kube-scheduler's
    allocator chooses for that node. It fails some claims that are placed here: where one alternative wants All and a
    pool is incomplete, or a constraint keeps one of All away, only that alternative is passed over; and selectors are
    not asked about devices that are held or tainted, so they cannot fail there.
    """
    budget = Budget(step_budget)
    try:
        requests = read_requests(claims, snapshot, device_index, budget)
    except BudgetExceededError:
        text = f"its selectors are too long to be compiled within {step_budget} steps; make them shorter, or fewer"
        return NoFit(Reason.SEARCH_BUDGET_EXCEEDED, text)
    if isinstance(requests, NoFit):
        return requests
    fleet = device_index.fleet(snapshot.pools, snapshot.in_use)
    if allowance is not None:
        _ask_ahead(fleet, requests, allowance)
    groups = fleet.groups(snapshot.nodes, snapshot.node)
    if filtered is not None:
        filtered()
    view = View(snapshot, fleet, groups[0])
    compiled = budget.spent
    attempts: list[Attempt] = []

    def attempt() -> Attempt:
        attempts.append(Attempt(claims, requests, snapshot, fleet, groups, Budget(step_budget)))
        return attempts[-1]

    try:
        found = search_nodes(requests, claims, view, groups, budget)
    except SelectorFailedError as error:
        return explain_failed_selector(attempt(), error.alternative, error.device, error.failure)
    except BudgetExceededError:
        return explain_exceeded_budget(attempt(), step_budget)
    else:
        if found is None:
            return explain(attempt())
    finally:
        if spent is not None:
            spent(budget.spent - compiled + sum(each.spent for each in attempts))
    chosen, group = found
    return [
        allocation_of(claim, [each for each in chosen if each.alternative.claim_index == index], group.node)
        for index, claim in enumerate(claims)
    ]


def _ask_ahead(fleet: Fleet, requests: Sequence[Request], allowance: Budget) -> None:
    try:
        for each in (each for request in requests for each in request.alternatives):
            fleet.ask_ahead(terms_of(each, frozenset()), dict.fromkeys(each.derived.values()), allowance)
    except BudgetExceededError:
        raise MoreToAskError from None
