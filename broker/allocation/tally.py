"""How many devices there are of each value of the attributes that constraints compare."""

from collections import Counter
from collections.abc import Iterable
from itertools import product

from broker.allocation.columns import Cell, Column, Value, bits, joint_column, values_of_cell
from broker.allocation.devices import IndexedPool, SliceBlock

Attributes = tuple[str, ...]  # fully qualified names
_FEW_VALUES = 64

ValueKey = Value | tuple[Value, ...]  # one value of one attribute, or one of each of several


def column_for(block: SliceBlock, attributes: Attributes) -> Column:
    """The attributes of a block's devices; a cell is a tuple where there are several."""
    columns = [block.columns.attribute(each) for each in attributes]
    return columns[0] if len(columns) == 1 else joint_column(columns)


def keys_of(cell: Cell, attributes: Attributes) -> Iterable[ValueKey]:
    """The values of a cell of `column_for`; none where an attribute is missing."""
    if len(attributes) == 1:
        return values_of_cell(cell)
    assert isinstance(cell, tuple)
    return product(*map(values_of_cell, cell))


class Tally:
    """How many devices there are of each value of some attributes.

    counts: in no particular order.
    values_by_count: how many values have this many devices.
    """

    __slots__ = ("_columns", "_homes", "_plentiful", "attributes", "counts", "values_by_count")

    def __init__(self, attributes: Attributes) -> None:
        self.attributes = attributes
        self.counts: dict[ValueKey, int] = {}
        self.values_by_count: dict[int, int] = {}
        self._homes: dict[ValueKey, IndexedPool | None] = {}  # where all devices of a value are; None: nobody knows
        self._plentiful: dict[int, set[ValueKey]] = {}  # by a number, the values that at least so many devices have
        self._columns: dict[SliceBlock, Column] = {}  # of all blocks that were counted, even when they are retired

    @property
    def most(self) -> int:
        """The most devices that one value has."""
        return max(self.values_by_count, default=0)

    def pools_with(self, least: int) -> list[IndexedPool] | None:
        """All pools with devices of values that at least so many devices have; None if they are too many to tell."""
        values = self._plentiful.get(least)
        if values is None:
            values = {key for key, count in self.counts.items() if count >= least}
            self._plentiful[least] = values
        if len(values) > _FEW_VALUES:
            return None
        homes = [self._homes[key] for key in values]
        known = [each for each in homes if each is not None]
        return known if len(known) == len(homes) else None

    def add(self, block: SliceBlock, mask: int, sign: int) -> None:
        """Devices of the block came (sign 1) or went (-1)."""
        column = self._columns.get(block)
        if column is None:
            column = self._columns[block] = column_for(block, self.attributes)
        count = mask.bit_count()
        by_code: Iterable[tuple[int, int]]
        if count == len(column.codes):
            by_code = Counter(column.codes).items()
        elif count <= 2 * len(column.cells):
            by_code = Counter(column.codes[index] for index in bits(mask)).items()
        else:
            by_code = ((code, (mask & column.mask(code)).bit_count()) for code in range(len(column.cells)))
        for code, number in by_code:
            if number:
                for key in keys_of(column.cells[code], self.attributes):
                    self._change(key, sign * number, block.pool)

    def forget(self, blocks: Iterable[SliceBlock]) -> None:
        """These will not be counted again."""
        for block in blocks:
            self._columns.pop(block, None)

    def _change(self, key: ValueKey, by: int, pool: IndexedPool) -> None:
        before = self.counts.get(key, 0)
        after = before + by
        by_count = self.values_by_count
        if before:
            if by_count[before] == 1:
                del by_count[before]
            else:
                by_count[before] -= 1
        if after:
            self.counts[key] = after
            by_count[after] = by_count.get(after, 0) + 1
            if not before:
                self._homes[key] = pool
            elif by > 0 and self._homes[key] is not pool:
                self._homes[key] = None
        else:
            del self.counts[key], self._homes[key]
        for least, values in self._plentiful.items():
            if before < least <= after:
                values.add(key)
            elif after < least <= before:
                values.discard(key)
