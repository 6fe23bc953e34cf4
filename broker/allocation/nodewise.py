"""One search for each group of nodes, in order, until one finds something."""

from collections.abc import Hashable, Sequence

from broker.allocation.budget import Budget
from broker.allocation.candidates import View, hopeful_groups
from broker.allocation.index import Groups
from broker.allocation.nodes import NodeGroup
from broker.allocation.problem import pose
from broker.allocation.requests import Request
from broker.allocation.search import Chosen
from broker.allocation.shapes import Shapes
from broker.allocation.solve import solve
from schemas.resource import ResourceClaim


def search_nodes(
    requests: Sequence[Request],
    claims: Sequence[ResourceClaim],
    view: View,
    groups: Groups,
    budget: Budget,
    with_constraints: bool = True,
) -> tuple[list[Chosen], NodeGroup] | None:
    """The first solution, and the group of nodes for which it is one; None if there is none for any.

    view: of any of the groups.
    Raises: SelectorFailedError, BudgetExceededError.
    """
    shapes: Shapes | None = None
    failed: set[Hashable] = set()
    for group in hopeful_groups(view.fleet, groups, requests, view.ignored):
        here = view.of(group)
        shape = shapes.of(here, budget) if shapes is not None else None
        if shape is not None and shape in failed:
            continue
        chosen = solve(pose(requests, here, claims, budget, with_constraints), budget)
        if chosen is not None:
            return chosen, group
        if shapes is None and len(groups) > 1:  # most claims fit where they are tried first, so not before that fails
            constraints = [each for claim in claims for each in claim.spec.devices.constraints if with_constraints]
            compared = [each.match_attribute or each.distinct_attribute or "" for each in constraints]
            shapes = Shapes([each for one in requests for each in one.alternatives], compared, view)
            shape = shapes.of(here, budget)
        if shape is not None:
            failed.add(shape)
    return None
