"""Which devices can stand for each other: after one has failed at a point of the search, those like it need no try.

Two devices are alike when they are candidates of the same alternatives, agree on every attribute that a constraint
compares, consume as much of as much capacity, and draw as much from counters that are as full. If taking the one leads
nowhere, so does taking the other: whatever completes the search with the other completes it with the one, with the two
exchanged.

Two counter sets are as full when as much is left in them and the devices that draw from them are alike, one by one, the
taken ones and the others. Then the sets can be exchanged with all their devices: a claim that does not fit onto one of
eight free GPUs is not tried on the other seven. Where admin access is asked for, where a device draws from two sets or
where drawing devices are shared, each set is told apart from all others, which is always safe.

Why the first solution stays the first: what is passed over could be exchanged for devices earlier in the order, and all
that begins with those was tried before.
"""

from collections.abc import Hashable, Iterable
from typing import NamedTuple

from broker.allocation.budget import Budget
from broker.allocation.index import IndexedDevice
from broker.allocation.problem import Problem
from broker.allocation.taken import CounterSet, Taken


class _Static(NamedTuple):
    """What never changes during a search.

    number: equal for devices that agree in all but counters and what was taken.
    sets: the counter sets that it draws from.
    """

    number: int
    sets: tuple[CounterSet, ...]


class Kinds:
    """The kinds of the candidates of one problem."""

    def __init__(self, problem: Problem, taken: Taken, budget: Budget) -> None:
        self._taken = taken
        self._problem = problem
        self._budget = budget
        self._alternatives = [each for request in problem.requests for each in request.alternatives]
        self._has_admin_access = any(each.admin_access for each in self._alternatives)
        compared = [
            (1 << index, each, tuple(dict.fromkeys(c.attribute for c in problem.constraints_on(each))))
            for index, each in enumerate(self._alternatives)
        ]
        self._attributes = tuple(
            dict.fromkeys(name for _, each, names in compared for name in names if name not in each.derived)
        )
        self._derived = [(bit, each, name) for bit, each, names in compared for name in names if name in each.derived]
        self._asks = list(dict.fromkeys(each.capacity for each in self._alternatives))
        self._numbers: dict[Hashable, int] = {}
        self._statics: dict[IndexedDevice, _Static] = {}
        self._populations: dict[CounterSet, tuple[int, ...] | None] = {}

    def of(self, device: IndexedDevice) -> Hashable:
        """Equal for devices that are alike as the search stands now."""
        number, sets = self._static(device)
        state = self._taken.state_of(device)
        if not sets:
            return number if state is None else (number, state)
        return number, state, tuple(self._state_of(each, device) for each in sets)

    def _state_of(self, counter_set: CounterSet, device: IndexedDevice) -> Hashable:
        if counter_set not in self._populations:
            self._populations[counter_set] = self._population(counter_set, device)
        population = self._populations[counter_set]
        if population is None:
            return counter_set
        taken = sorted(
            self._static(each).number for _, each in self._taken.chosen() if counter_set in self._static(each).sets
        )
        return population, tuple(taken), self._taken.state_of_counters(counter_set)

    def _population(self, counter_set: CounterSet, device: IndexedDevice) -> tuple[int, ...] | None:
        """Equal for sets from which like devices draw; None for one that is told apart from all others."""
        numbers = []
        for each in self._problem.view.drawing_from(counter_set[1], device.block.pool):
            number, sets = self._static(each)
            if any(self._problem.candidates[one].includes(each) for one in self._alternatives):
                if len(sets) > 1 or each.device.allow_multiple_allocations or self._has_admin_access:
                    return None
                numbers.append(number)
        return tuple(sorted(numbers))

    def _static(self, device: IndexedDevice) -> _Static:
        found = self._statics.get(device)
        if found is None:
            found = self._statics[device] = self._read(device)
        return found

    def _read(self, device: IndexedDevice) -> _Static:
        self._budget.spend(1 + len(self._derived))
        mask = 0
        for index, alternative in enumerate(self._alternatives):
            if self._problem.candidates[alternative].includes(device):
                mask |= 1 << index
        parts: list[Hashable] = [mask, *map(device.values_of, self._attributes)]
        parts += [each.values_of(device, name) if mask & bit else None for bit, each, name in self._derived]
        sets: tuple[CounterSet, ...] = ()
        if device.device.consumes_counters:
            draws = self._problem.supplies.draws(device.key)
            sets = tuple((device.key.pool, draw.counter_set) for draw in draws)
            parts.append(tuple((draw.amounts, draw.groups) for draw in draws))
        if device.device.allow_multiple_allocations:
            parts += [_amounts(device.consumption(ask)) for ask in self._asks]
        return _Static(self._numbers.setdefault(tuple(parts), len(self._numbers)), sets)


def _amounts(consumption: Iterable[object] | str) -> Hashable:
    return consumption if isinstance(consumption, str) else tuple(consumption)
