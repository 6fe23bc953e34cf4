"""Groups of nodes that are alike, so that what failed for one is not tried for the next.

Most nodes of a cluster are like many others: eight GPUs each, and three of them free. Two groups have the same shape if
there is a solution for one exactly if there is one for the other: all nodes reach the same besides, and what only these
reach has the same masks and, in what constraints compare, the same values; or other values in the same places, if no
device that all nodes reach can have them too. Which of two solutions is the first has no say in that: where there is
one, the search finds it.

A shape depends on what slices and holders say, never on what an index remembers.
"""

from collections.abc import Callable, Hashable, Sequence

from broker.allocation.budget import Budget
from broker.allocation.candidates import View
from broker.allocation.columns import Column, values_of_cell
from broker.allocation.devices import IndexedPool
from broker.allocation.offer import Offer
from broker.allocation.requests import Alternative
from broker.allocation.tally import ValueKey

_POOLS_MAX = 16  # of a group that are not on all nodes; those with more are few
_OFFERS_PER_STEP = 2
_CELLS_PER_STEP = 8


class Shapes:
    """The shapes of groups, as some alternatives see them.

    attributes: all that constraints on them compare.
    """

    def __init__(self, alternatives: Sequence[Alternative], attributes: Sequence[str], view: View) -> None:
        self._asking = list({view.stock(each): each for each in alternatives}.values())
        self._attributes = tuple(dict.fromkeys(attributes))
        self._takes_all = any(each.takes_all for each in alternatives)
        self._can_tell = not any(each.derived for each in alternatives)

    def of(self, view: View, budget: Budget) -> Hashable:
        """The shape of the view's group; None if it is not like any other.

        Raises: BudgetExceededError.
        """
        if not self._can_tell:
            return None
        budget.spend(1 + len(self._asking) // _OFFERS_PER_STEP)
        offers = [view.offer(each) for each in self._asking]
        masks = [each.local() for each in offers]
        pools = sorted(set().union(*masks), key=view.fleet.position.__getitem__)
        # Where a selector fails, the order of devices has a say in what happens; and devices of which shares can be had
        # or that draw from counters are not told apart by masks and values.
        if len(pools) > _POOLS_MAX or any(each.fails_locally for each in offers):
            return None
        unions = [_union(pool, masks) for pool in pools]
        if any(union & (pool.shared | pool.drawing) for pool, union in zip(pools, unions, strict=True)):
            return None
        node = view.group.node
        of_all = (view.spoils_all, *(each.matched for each in offers)) if self._takes_all else ()
        return node.name != "", node.skips_operations, of_all, self._of_devices(pools, unions, offers, masks, budget)

    def _of_devices(
        self,
        pools: Sequence[IndexedPool],
        unions: Sequence[int],
        offers: Sequence[Offer],
        masks: Sequence[dict[IndexedPool, int]],
        budget: Budget,
    ) -> Hashable:
        if not self._attributes and len(masks) == 1:
            return sum([each.bit_count() for each in unions])  # then one device is as good as another
        tell = _renamer() if all(each.is_local for each in offers) else _as_it_is
        found: list[Hashable] = []
        for pool, union in zip(pools, unions, strict=True):
            found.append(tuple([each.get(pool, 0) for each in masks]))
            for block, _ in pool.layout.split(union) if self._attributes else ():
                columns = [block.columns.attribute(each) for each in self._attributes]
                budget.spend(sum([len(each.cells) for each in columns]) // _CELLS_PER_STEP)
                told = [tell(name, column) for name, column in zip(self._attributes, columns, strict=True)]
                found.append((block.offset, *told))
        return tuple(found)


def _union(pool: IndexedPool, masks: Sequence[dict[IndexedPool, int]]) -> int:
    union = 0
    for each in masks:
        union |= each.get(pool, 0)
    return union


def _as_it_is(_: str, column: Column) -> Hashable:
    return column.codes, tuple([values_of_cell(cell) for cell in column.cells])


def _renamer() -> Callable[[str, Column], Hashable]:
    """Tells values by numbers, for each attribute in the order in which they first occur."""
    numbers: dict[tuple[str, ValueKey], int] = {}

    def tell(name: str, column: Column) -> Hashable:
        return column.codes, tuple(
            [
                tuple([numbers.setdefault((name, value), len(numbers)) for value in values_of_cell(cell)])
                for cell in column.cells
            ]
        )

    return tell
