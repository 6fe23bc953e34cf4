"""From a problem to its first solution: narrow it, search, and where that takes long, narrow it more."""

from dataclasses import replace

from broker.allocation.budget import Budget, BudgetExceededError
from broker.allocation.constraints import MatchAttribute
from broker.allocation.narrow import narrow
from broker.allocation.problem import Problem
from broker.allocation.search import Chosen, Search

_QUICK_STEPS = 2_000  # most claims need some hundreds


def solve(problem: Problem, budget: Budget, quick_steps: int = _QUICK_STEPS) -> list[Chosen] | None:
    """The first solution, in the order of the requests, or None if there is none.

    quick_steps: after a search of so many, if there is a value to be matched, it is worth while to count thoroughly.
    Raises: SelectorFailedError, BudgetExceededError.
    """
    narrower = narrow(problem, budget)
    if narrower is None:
        return None
    if not any(isinstance(each, MatchAttribute) for of_claim in problem.constraints_by_claim for each in of_claim):
        return Search(narrower, budget).run()
    quick = Budget(min(quick_steps, budget.left))
    try:
        return Search(narrower, quick).run()
    except BudgetExceededError:
        pass
    finally:
        budget.spend(quick.steps - quick.left)
    untouched = [[each.fresh() for each in of_claim] for of_claim in problem.constraints_by_claim]
    narrower = narrow(replace(problem, constraints_by_claim=untouched), budget, thoroughly=True)
    return Search(narrower, budget).run() if narrower is not None else None
