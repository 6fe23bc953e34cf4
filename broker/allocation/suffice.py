"""Whether there is enough of everything, by plain counting: no means that there is no solution, yes means nothing yet.

Only alternatives that every solution contains are counted: those of requests with a single one.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from broker.allocation.budget import Budget
from broker.allocation.constraints import Constraint, DistinctAttribute
from broker.allocation.index import IndexedDevice
from broker.allocation.problem import Problem
from broker.allocation.requests import Alternative
from broker.allocation.supplies import Supplies
from schemas.resource.limits import ALLOCATION_RESULTS_MAX

_DEVICES_PER_STEP = 4

Supply = Counter[tuple[str, object]]  # how many devices have each value


def look_at(devices: Sequence[IndexedDevice], budget: Budget) -> None:
    """Charge for one pass over the devices. Raises: BudgetExceededError."""
    budget.spend(1 + len(devices) // _DEVICES_PER_STEP)


def supply(attribute: str, alternative: Alternative, devices: Sequence[IndexedDevice]) -> Supply:
    """How many of the devices have each value."""
    return Counter(value for device in devices for value in alternative.values_of(device, attribute) or ())


def constraints_with_scope(problem: Problem, budget: Budget) -> Iterator[tuple[Constraint, list[Alternative]]]:
    """Each constraint with the alternatives in its scope."""
    for claim_index, constraints in enumerate(problem.constraints_by_claim):
        of_claim = [
            each for request in problem.requests if request.claim_index == claim_index for each in request.alternatives
        ]
        for constraint in constraints:
            budget.spend(len(of_claim))
            yield constraint, [each for each in of_claim if constraint.applies_to(each.name)]


class Sufficiency:
    """Counts one problem. Supplies of values are counted once for all constraints, and for who narrows with them."""

    def __init__(self, problem: Problem, budget: Budget) -> None:
        self.certain = dict.fromkeys(each.alternatives[0] for each in problem.requests if len(each.alternatives) == 1)
        self._problem = problem
        self._budget = budget
        # By the identity of a list of devices and the attribute; with the list, so that no other gets its identity.
        self._supplies: dict[tuple[int, str], tuple[Sequence[IndexedDevice], Supply]] = {}

    def is_given(self) -> bool:
        """There may be a solution.

        Raises: BudgetExceededError.
        """
        return (
            self._devices_suffice()
            and self._results_fit()
            and self._distinct_values_suffice()
            and self._supplies_suffice()
        )

    def supply(self, attribute: str, alternative: Alternative, devices: Sequence[IndexedDevice]) -> Supply:
        """How many of the devices have each value.

        Raises: BudgetExceededError.
        """
        expression = alternative.derived.get(attribute)
        key = (id(devices), f"={expression}" if expression is not None else attribute)
        if key not in self._supplies:
            look_at(devices, self._budget)
            self._supplies[key] = devices, supply(attribute, alternative, devices)
        return self._supplies[key][1]

    def _supply_of(self, attribute: str, alternative: Alternative) -> Supply:
        return self.supply(attribute, alternative, self._problem.candidates[alternative].devices)

    def _devices_suffice(self) -> bool:
        """For the alternatives that every solution contains; without admin access, which takes nothing from others."""
        asking = [each for each in self.certain if not each.admin_access]
        if len(asking) <= 1:
            return True  # counted already
        return self._places(asking) >= sum(self._problem.candidates[each].count for each in asking)

    def _places(self, alternatives: Sequence[Alternative]) -> int:
        """How many devices the alternatives can have together; of a shared one each can have a share."""
        exclusive: set[IndexedDevice] = set()
        shares = 0
        for each in alternatives:
            devices = self._problem.candidates[each].devices
            look_at(devices, self._budget)
            alone = [device for device in devices if not device.device.allow_multiple_allocations]
            exclusive.update(alone)
            shares += len(devices) - len(alone)
        return len(exclusive) + shares

    def _supplies_suffice(self) -> bool:
        candidates = {each: self._problem.candidates[each] for each in self.certain}
        needs = [Need(each, mine.count, mine.devices) for each, mine in candidates.items()]
        return counters_suffice(needs, self._problem.supplies, self._budget) and capacities_suffice(
            needs, self._problem.supplies, self._budget
        )

    def _results_fit(self) -> bool:
        least: Counter[int] = Counter()
        for request in self._problem.requests:
            least[request.claim_index] += min(self._problem.candidates[each].count for each in request.alternatives)
        return all(count <= ALLOCATION_RESULTS_MAX for count in least.values())

    def _distinct_values_suffice(self) -> bool:
        for constraint, bound in constraints_with_scope(self._problem, self._budget):
            if isinstance(constraint, DistinctAttribute):
                certain = [each for each in bound if each in self.certain]
                values: set[tuple[str, object]] = set()
                for each in certain:
                    values |= self._supply_of(constraint.attribute, each).keys()
                if len(values) < sum(self._problem.candidates[each].count for each in certain):
                    return False
        return True


class Need(NamedTuple):
    """So many of the devices for an alternative."""

    alternative: Alternative
    number: int
    devices: Sequence[IndexedDevice]


def counters_suffice(needs: Sequence[Need], supplies: Supplies, budget: Budget) -> bool:
    """What all need together of counters is there, over all of their devices.

    Raises: BudgetExceededError.
    """

    def drawn(_: Alternative, device: IndexedDevice) -> Mapping[str, int]:
        if not device.device.consumes_counters or device.device.allow_multiple_allocations:
            return {}  # a further share draws nothing
        amounts: Counter[str] = Counter()
        for draw in supplies.draws(device.key):
            amounts.update(dict(draw.amounts))
        return amounts

    def sources(_: Alternative, device: IndexedDevice) -> Iterator[tuple[Hashable, Mapping[str, int]]]:
        left = supplies.counters(device.key.pool).left
        for draw in supplies.draws(device.key):
            for name, _amount in draw.amounts:
                yield (device.key.pool, draw.counter_set, name), {name: left[draw.counter_set, name]}

    return _suffices(needs, drawn, sources, budget)


def capacities_suffice(needs: Sequence[Need], supplies: Supplies, budget: Budget) -> bool:
    """The same of the capacities of shared devices.

    Raises: BudgetExceededError.
    """

    def consumed(alternative: Alternative, device: IndexedDevice) -> Mapping[str, int]:
        consumption = device.consumption(alternative.capacity)
        if not device.device.allow_multiple_allocations or isinstance(consumption, str):
            return {}
        return {name: amount.nanos for name, amount, _ in consumption}

    def sources(alternative: Alternative, device: IndexedDevice) -> Iterator[tuple[Hashable, Mapping[str, int]]]:
        consumption, held = device.consumption(alternative.capacity), supplies.consumed(device.key)
        if not isinstance(consumption, str):
            yield device, {name: limit - held.get(name, 0) for name, _, limit in consumption}

    return _suffices(needs, consumed, sources, budget)


def _suffices(
    needs: Sequence[Need],
    least_of: Callable[[Alternative, IndexedDevice], Mapping[str, int]],
    sources_of: Callable[[Alternative, IndexedDevice], Iterable[tuple[Hashable, Mapping[str, int]]]],
    budget: Budget,
) -> bool:
    """
    least_of: what an alternative takes at least by taking the device, by name.
    sources_of: where the device takes it from, with what is left there, by name.
    """
    needed: Counter[str] = Counter()
    left: dict[Hashable, Mapping[str, int]] = {}
    for alternative, number, devices in needs:
        least: dict[str, int] | None = None
        for device in devices:
            budget.spend()
            takes = least_of(alternative, device)
            if least is None:
                least = dict(takes)
            else:
                least = {name: min(amount, takes[name]) for name, amount in least.items() if name in takes}
            if not least:
                break  # at least one device costs nothing
        else:
            needed.update({name: amount * number for name, amount in (least or {}).items()})
            left.update(source for each in devices for source in sources_of(alternative, each))
    there: Counter[str] = Counter()
    for amounts in left.values():
        there.update(amounts)
    return all(there[name] >= amount for name, amount in needed.items())
