"""Devices that a later request cannot do without: so few can serve it that those before it could use them up.

"4 devices with different UUIDs", and then "all 16 of this model": the first request may take none of the 16. A search
that finds that out only where the second begins has tried every four of twenty by then.
"""

from collections.abc import Mapping, Sequence

from broker.allocation.budget import Budget
from broker.allocation.index import IndexedDevice
from broker.allocation.problem import Problem
from broker.allocation.requests import Request

_NOTHING: Sequence[int] = ()


class Scarcity:
    """The scarce sets of devices: all that some request without alternatives can use, each of them exclusive.

    What is counted is who is certain to need devices of a set and of no other: that request, and those whose devices
    are among its own.
    """

    def __init__(self, problem: Problem, budget: Budget) -> None:
        """Raises: BudgetExceededError."""
        # Whoever comes before a request takes fewer than this, beside what the request needs itself.
        most = sum(max(problem.candidates[each].count for each in one.alternatives) for one in problem.requests)
        # For each request after the first the devices of which it needs some, and how many.
        needs = [_need(problem, each, most) for each in problem.requests[1:]]
        sets = list(dict.fromkeys(need[0] for need in needs if need is not None))
        self._sets_of: dict[IndexedDevice, list[int]] = {}
        for index, devices in enumerate(sets):
            for device in devices:
                self._sets_of.setdefault(device, []).append(index)
        budget.spend(len(sets) * len(needs))
        self._free = [len(devices) for devices in sets]
        self._needed_after = [[0] * len(sets)]  # each request: how many devices of each set
        for need in reversed(needs):
            last = self._needed_after[-1]
            self._needed_after.append(
                [
                    last[index] + (need[1] if need is not None and need[0] <= devices else 0)
                    for index, devices in enumerate(sets)
                ]
            )
        self._needed_after.reverse()

    @property
    def sets_of(self) -> Mapping[IndexedDevice, Sequence[int]]:
        """The sets that a device is in, if it is in any."""
        return self._sets_of

    def suffices(self) -> bool:
        """There are enough devices for the requests after the first, as long as nothing is taken."""
        return all(free >= needed for free, needed in zip(self._free, self._needed_after[0], strict=True))

    def take(self, device: IndexedDevice) -> None:
        """A device that nobody had is taken."""
        for index in self._sets_of.get(device, _NOTHING):
            self._free[index] -= 1

    def give_back(self, device: IndexedDevice) -> None:
        """Nobody has the device any more."""
        for index in self._sets_of.get(device, _NOTHING):
            self._free[index] += 1

    def can_spare(self, device: IndexedDevice, request: int) -> bool:
        """The requests after this one have enough left of the sets of the device if this one takes it now."""
        needed = self._needed_after[request]
        return all(self._free[index] > needed[index] for index in self._sets_of.get(device, _NOTHING))


def _need(problem: Problem, request: Request, most: int) -> tuple[frozenset[IndexedDevice], int] | None:
    """The devices of which the request is sure to need some, and how many; None if there are `most` of them."""
    only, *others = request.alternatives
    candidates = problem.candidates[only]
    # Where a selector failed the search is to end, not to go elsewhere.
    if others or only.admin_access or candidates.offer.may_fail or candidates.devices.has(most):
        return None
    devices = frozenset(candidates.devices)
    if any(each.device.allow_multiple_allocations for each in devices):
        return None
    return devices, candidates.count
