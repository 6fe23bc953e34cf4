"""What the search is to solve, put together from claims and from what a group of nodes sees."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broker.allocation.budget import Budget
from broker.allocation.candidates import Candidates, View
from broker.allocation.constraints import Constraint, constraint_of
from broker.allocation.requests import Alternative, Request
from broker.allocation.supplies import Supplies
from schemas.resource import ResourceClaim


@dataclass(slots=True)
class Problem:
    """What the search is to solve: one choice of alternative, and then of devices, for each request in turn.

    constraints_by_claim: with no device chosen.
    view: which devices there are, and what holders leave of them.
    """

    requests: Sequence[Request]
    candidates: Mapping[Alternative, Candidates]
    constraints_by_claim: Sequence[Sequence[Constraint]]
    view: View

    @property
    def supplies(self) -> Supplies:
        """What holders leave of counters and capacities."""
        return self.view.supplies

    def constraints_on(self, alternative: Alternative) -> list[Constraint]:
        """Those with the alternative in their scope."""
        return [
            each for each in self.constraints_by_claim[alternative.claim_index] if each.applies_to(alternative.name)
        ]


def pose(
    requests: Sequence[Request],
    view: View,
    claims: Sequence[ResourceClaim],
    budget: Budget,
    with_constraints: bool = True,
) -> Problem:
    """The problem as the claims pose it, with the devices that a group of nodes sees.

    Raises: BudgetExceededError.
    """
    candidates = {each: view.candidates(each, budget) for request in requests for each in request.alternatives}
    constraints = [_constraints_of(claim) if with_constraints else [] for claim in claims]
    return Problem(requests, candidates, constraints, view)


def _constraints_of(claim: ResourceClaim) -> list[Constraint]:
    """Those that say the same once: a claim can have 32, and each is looked at for each device that is tried."""
    unlike = {
        (each.match_attribute, each.distinct_attribute, frozenset(each.requests)): each
        for each in claim.spec.devices.constraints
    }
    return [constraint_of(each) for each in unlike.values()]
