"""Values to be matched whose devices have too little left together: of counters, or of capacity.

Two partitions of 4 of one GPU, where all but the last have 7 slices left: enough devices, enough slices over all GPUs,
and the search finds only pair by pair that it does not work. Here each GPU is counted once. That looks at every device,
so it is left to claims that a short search could not answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from broker.allocation.budget import Budget
from broker.allocation.candidates import Lineup
from broker.allocation.constraints import MatchAttribute, Values
from broker.allocation.index import IndexedDevice
from broker.allocation.problem import Problem
from broker.allocation.requests import Alternative
from broker.allocation.suffice import Need, capacities_suffice, constraints_with_scope, counters_suffice, look_at

Devices = Mapping[tuple[str, object], Sequence[IndexedDevice]]  # by value


def without_poor_values(problem: Problem, budget: Budget, most: int) -> Problem:
    """The problem without devices all of whose values of some attribute to be matched have too little.

    most: so many devices may be looked up; a constraint on more alternatives than that is passed over.
    Raises: BudgetExceededError.
    """
    candidates = dict(problem.candidates)
    certain = {request.alternatives[0] for request in problem.requests if len(request.alternatives) == 1}
    for constraint, scope in constraints_with_scope(problem, budget):
        if not isinstance(constraint, MatchAttribute) or not _are_few(
            [candidates[each].devices for each in scope], most
        ):
            continue
        if not any(not device.is_plain for each in scope for device in candidates[each].devices):
            continue
        by_value = {each: _by_value(each, candidates[each].devices, constraint.attribute, budget) for each in scope}
        in_any_case = [each for each in scope if each in certain]
        common: Values | None = None
        for alternative in scope:
            before = candidates[alternative]
            if alternative not in certain:
                rich = _rich_values(problem, [alternative, *in_any_case], by_value, budget)
            else:
                common = _rich_values(problem, in_any_case, by_value, budget) if common is None else common
                rich = common
            left = [
                device
                for device in before.devices
                if not rich.isdisjoint(alternative.values_of(device, constraint.attribute) or ())
            ]
            if len(left) < len(before.devices):
                candidates[alternative] = before.only(left)
    return replace(problem, candidates=candidates)


def _are_few(lineups: Sequence[Lineup], most: int) -> bool:
    for each in lineups:
        if each.has(most + 1):
            return False
        most -= len(each)
    return True


def _by_value(alternative: Alternative, devices: Sequence[IndexedDevice], attribute: str, budget: Budget) -> Devices:
    look_at(devices, budget)
    found: dict[tuple[str, object], list[IndexedDevice]] = {}
    for device in devices:
        for value in alternative.values_of(device, attribute) or ():
            found.setdefault(value, []).append(device)
    return found


def _rich_values(
    problem: Problem, alternatives: Sequence[Alternative], by_value: Mapping[Alternative, Devices], budget: Budget
) -> Values:
    """The values that have enough for the first of the alternatives, which is to be served beside the others."""
    counts = [(each, problem.candidates[each].count, by_value[each]) for each in alternatives]
    rich = []
    for value in by_value[alternatives[0]]:
        needs = [Need(each, count, devices.get(value, ())) for each, count, devices in counts]
        if counters_suffice(needs, problem.supplies, budget) and capacities_suffice(needs, problem.supplies, budget):
            rich.append(value)
    return frozenset(rich)
