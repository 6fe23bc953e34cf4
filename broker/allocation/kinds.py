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
        self._has_admin_access = any(each.admin_access for request in problem.requests for each in request.alternatives)
        self._statics = self._read(budget)
        self._members: dict[CounterSet, list[int]] = {}
        self._apart: set[CounterSet] = set()
        for device, static in self._statics.items():
            for counter_set in static.sets:
                self._members.setdefault(counter_set, []).append(static.number)
                if len(static.sets) > 1 or device.device.allow_multiple_allocations or self._has_admin_access:
                    self._apart.add(counter_set)
        # Equal for sets from which like devices draw.
        self._population = {each: tuple(sorted(numbers)) for each, numbers in self._members.items()}

    def of(self, device: IndexedDevice) -> Hashable:
        """Equal for devices that are alike as the search stands now."""
        number, sets = self._statics[device]
        state = self._taken.state_of(device)
        if not sets:
            return number if state is None else (number, state)
        return number, state, tuple(map(self._state_of, sets))

    def _state_of(self, counter_set: CounterSet) -> Hashable:
        if counter_set in self._apart:
            return counter_set
        taken = sorted(
            self._statics[device].number
            for _, device in self._taken.chosen()
            if counter_set in self._statics[device].sets
        )
        return self._population[counter_set], tuple(taken), self._taken.state_of_counters(counter_set)

    def _read(self, budget: Budget) -> dict[IndexedDevice, _Static]:
        problem = self._problem
        alternatives = [each for request in problem.requests for each in request.alternatives]
        by_device: dict[IndexedDevice, int] = {}
        for index, alternative in enumerate(alternatives):
            devices = problem.candidates[alternative].devices
            budget.spend(len(devices))
            for each in devices:
                by_device[each] = by_device.get(each, 0) | 1 << index
        compared = [
            (1 << index, each, tuple(dict.fromkeys(c.attribute for c in problem.constraints_on(each))))
            for index, each in enumerate(alternatives)
        ]
        attributes = tuple(
            dict.fromkeys(name for _, each, names in compared for name in names if name not in each.derived)
        )
        derived = [(bit, each, name) for bit, each, names in compared for name in names if name in each.derived]
        asks = list(dict.fromkeys(each.capacity for each in alternatives))
        numbers: dict[Hashable, int] = {}
        found: dict[IndexedDevice, _Static] = {}
        for device, mask in by_device.items():
            budget.spend(1 + len(derived))
            parts: list[Hashable] = [mask, *map(device.values_of, attributes)]
            parts += [each.values_of(device, name) if mask & bit else None for bit, each, name in derived]
            sets: tuple[CounterSet, ...] = ()
            if device.device.consumes_counters:
                draws = problem.supplies.draws(device.key)
                sets = tuple((device.key.pool, draw.counter_set) for draw in draws)
                parts.append(tuple((draw.amounts, draw.groups) for draw in draws))
            if device.device.allow_multiple_allocations:
                parts += [_amounts(device.consumption(ask)) for ask in asks]
            found[device] = _Static(numbers.setdefault(tuple(parts), len(numbers)), sets)
        return found


def _amounts(consumption: Iterable[object] | str) -> Hashable:
    return consumption if isinstance(consumption, str) else tuple(consumption)
