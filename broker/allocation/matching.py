"""What selectors say about devices: asked once for each combination of what they read, and kept.

Verdicts are kept by expression and combination, so that a new or changed slice is rarely worth a question; and what a
chain of selectors says about a pool is kept as a mask, of which a changed slice costs only its own part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.allocation.budget import Budget, evaluation_steps
from broker.allocation.cel.engine import (
    DerivedAttribute,
    Selector,
    SelectorCompileError,
    SelectorEngine,
    SelectorFailure,
    Verdict,
)
from broker.allocation.cel.fields import FieldPath, fields_read, texts_required
from broker.allocation.columns import Cell, Column, bits, mask_of
from broker.allocation.constraints import Values, derived_values
from broker.allocation.devices import IndexedDevice, IndexedPool, Layout, SliceBlock

Chain = tuple[str, ...]  # the expressions of the class, then of the request; each asked where all before are true

# Expressions come from tenants, so what is kept of them is bounded; beyond that the oldest half is forgotten.
_COMBINATIONS_KEPT = 500_000
_MASKS_KEPT = 500_000
_DEVICES_KEPT = 50_000
_DERIVED_KEPT = 500_000
_COLUMNS_KEPT = 10_000  # for each chain
_STEPS_FOR_BLOCK = 10


@dataclass(frozen=True, slots=True)
class FailedSelector:
    """A selector of a chain that could not be evaluated on a device."""

    position: int
    failure: SelectorFailure


class Matches(NamedTuple):
    """What a chain says about a pool, over the layout that it had then.

    possible: the devices on which no selector is false.
    failing: those of them on which a selector failed; the selectors behind it were not asked.
    """

    layout: Layout
    possible: int
    failing: int


# The devices of a slice by what a selector reads of them: number and mask of each combination.
Alike = list[tuple[int, int]]


class _Matched:
    """What one chain says, pool by pool."""

    __slots__ = (
        "alike_by_block",
        "alike_by_columns",
        "before",
        "failures",
        "fields",
        "matches_by_pool",
        "numbers",
        "position",
        "required",
        "selector",
        "verdicts",
    )

    def __init__(self, chain: Chain, selector: Selector, before: "_Matched | None") -> None:
        self.before = before  # the chain without its last selector; None if that is empty
        self.position = len(chain) - 1
        self.selector = selector
        self.required = texts_required(chain[-1])
        self.fields: list[FieldPath] = sorted({*fields_read(chain[-1]), *self.required})
        self.numbers: dict[tuple[Cell, ...], int] = {}  # of the combinations that occur, from 0
        self.verdicts: dict[int, Verdict] = {}  # of those that were asked about, by number
        self.alike_by_block: dict[SliceBlock, Alike] = {}  # sorted out, and not asked about yet
        self.alike_by_columns: dict[tuple[int, tuple[Column, ...]], Alike] = {}  # for those of few cells
        self.matches_by_pool: dict[IndexedPool, Matches] = {}
        self.failures: dict[SliceBlock, dict[int, FailedSelector]] = {}  # by index in the block

    def forget_blocks(self, blocks: Sequence[SliceBlock]) -> None:
        """They are not in their pool any more."""
        for block in blocks:
            self.failures.pop(block, None)
            self.alike_by_block.pop(block, None)


class Matching:
    """Selectors and what they said. See DeviceIndex."""

    def __init__(self, engine: SelectorEngine) -> None:
        self._engine = engine
        self._matched: dict[Chain, _Matched] = {}  # the least recently used first
        self._masks_kept = 0
        self._devices: dict[tuple[SliceBlock, int], IndexedDevice] = {}
        self._derived: dict[tuple[str, tuple[Cell, ...]], Values | SelectorFailure | None] = {}
        self._derived_kept = 0  # at devices
        self._fields_of_attribute: dict[str, list[FieldPath]] = {}

    def compile(self, expression: str) -> Selector | SelectorCompileError:
        """The compiled selector, or why it does not compile."""
        try:
            return self._engine.compile(expression)
        except SelectorCompileError as error:
            return error

    def compile_attribute(self, expression: str) -> DerivedAttribute | SelectorCompileError:
        """The compiled expression of a derived attribute, or why it does not compile."""
        try:
            return self._engine.compile_attribute(expression)
        except SelectorCompileError as error:
            return error

    def derive(self, device: IndexedDevice, expression: str) -> Values | SelectorFailure | None:
        """The values of a derived attribute whose expression compiles; None: an empty list."""
        if device.derived is None:
            device.derived = {}
        if expression not in device.derived:
            self._derived_kept += 1
            device.derived[expression] = self._derive(device.block, device.index, expression, None)
        return device.derived[expression]

    def derive_ahead(self, block: SliceBlock, mask: int, expression: str, allowance: Budget) -> None:
        """Compute a derived attribute of these devices; then `derive` has it at hand.

        Raises: BudgetExceededError, and what was computed until then is kept.
        """
        for index in bits(mask):
            self._derive(block, index, expression, allowance)

    def _derive(
        self, block: SliceBlock, index: int, expression: str, allowance: Budget | None
    ) -> Values | SelectorFailure | None:
        """Once for all devices that agree in what the expression reads."""
        fields = self._fields_of_attribute.get(expression)
        if fields is None:
            fields = self._fields_of_attribute[expression] = sorted(fields_read(expression))
        columns = [block.columns.of_field(field) for field in fields]
        is_readable = not block.columns.unreadable >> index & 1
        key = (expression, tuple([column.cells[column.codes[index]] for column in columns])) if is_readable else None
        if key is not None and key in self._derived:
            return self._derived[key]
        compiled = self.compile_attribute(expression)
        assert not isinstance(compiled, SelectorCompileError), f"{expression!r} was not compiled before its use"
        if allowance is not None:
            allowance.begin(evaluation_steps(expression, compiled.steps))
        device = block.columns.reduced(block.devices[index], fields) if is_readable else block.devices[index]
        value = compiled.evaluate(self._engine.bind(block.slice.spec.driver, device))
        found = value if isinstance(value, SelectorFailure) else derived_values(value)
        if key is not None:
            self._derived[key] = found
        return found

    # --- devices

    def device(self, block: SliceBlock, index: int) -> IndexedDevice:
        """The device as a search wants it; the same one until `tidy`."""
        found = self._devices.get((block, index))
        if found is None:
            found = self._devices[block, index] = IndexedDevice(block, index)
        return found

    def tidy(self) -> None:
        """Forget what is beyond the bounds; called when no allocation is under way."""
        if len(self._devices) > _DEVICES_KEPT or self._derived_kept > _DERIVED_KEPT:
            self._devices.clear()
            self._derived_kept = 0
        if len(self._derived) > _DERIVED_KEPT or len(self._fields_of_attribute) > _DERIVED_KEPT:
            self._derived.clear()
            self._fields_of_attribute.clear()
        if self._masks_kept > _MASKS_KEPT:
            self._forget_half()

    def tidy_combinations(self) -> None:
        """The same for what takes longer to find out."""
        kept = sum(len(each.numbers) for each in self._matched.values())
        for chain in list(self._matched)[:-1]:  # never the latest, which somebody may be asking right now
            if kept <= _COMBINATIONS_KEPT:
                break
            kept -= len(self._matched[chain].numbers)
            self._forget(chain)

    def _forget_half(self) -> None:
        for chain in list(self._matched)[: len(self._matched) // 2]:
            self._forget(chain)

    def _forget(self, chain: Chain) -> None:
        self._masks_kept -= len(self._matched.pop(chain).matches_by_pool)

    def forget_pool(self, pool: IndexedPool) -> None:
        """The pool is gone."""
        for matched in self._matched.values():
            if matched.matches_by_pool.pop(pool, None) is not None:
                self._masks_kept -= 1
        self.forget_blocks(pool.layout.blocks)

    def forget_blocks(self, blocks: Sequence[SliceBlock]) -> None:
        """They are about to be retired."""
        for matched in self._matched.values():
            matched.forget_blocks(blocks)
        for block in blocks:
            for index in range(len(block.devices)):
                self._devices.pop((block, index), None)

    # --- selectors

    def is_current(self, chain: Chain, matched: _Matched) -> bool:
        """What is kept for the chain was not forgotten in the meantime."""
        return self._matched.get(chain) is matched

    def ask_ahead(self, pool: IndexedPool, chain: Chain, allowance: Budget) -> None:
        """Ask the last selector of the chain about a pool, after all before it; then `match` has the answer at hand.

        Raises: BudgetExceededError, and what was found out until then is kept.
        """
        matched = self.of(chain)
        known = matched.matches_by_pool.get(pool)
        if known is not None and known.layout is pool.layout:
            return
        before = self._before(pool, matched)
        steps = evaluation_steps(chain[-1], matched.selector.steps)
        for block, mask in pool.layout.split(before.possible & ~before.failing):
            allowance.begin(_STEPS_FOR_BLOCK)
            alike = matched.alike_by_block.get(block)
            if alike is None:
                alike = matched.alike_by_block[block] = self._alike(block, mask & ~block.columns.unreadable, matched)
            for number, devices in alike:
                if number not in matched.verdicts:
                    allowance.begin(steps)
                    self._verdict(block, devices, number, matched)
        self._match(pool, matched)

    def match(self, pool: IndexedPool, chain: Chain) -> Matches:
        """Ask a chain, whose expressions compile, about the devices of a pool."""
        return self._match(pool, self.of(chain)) if chain else Matches(pool.layout, pool.layout.everything, 0)

    def failures(self, block: SliceBlock, chain: Chain) -> Mapping[int, FailedSelector]:
        """On which devices of the block, by index, a selector of the chain failed."""
        if not chain:
            return {}
        matched = self.of(chain)
        self._match(block.pool, matched)
        return matched.failures.get(block, {})

    def of(self, chain: Chain) -> _Matched:
        """What is kept for a chain that is not empty."""
        found = self._matched.pop(chain, None)
        if found is None:
            selector = self.compile(chain[-1])
            assert not isinstance(selector, SelectorCompileError), f"selector {chain[-1]!r} was not compiled before"
            found = _Matched(chain, selector, self.of(chain[:-1]) if len(chain) > 1 else None)
        self._matched[chain] = found
        return found

    def _before(self, pool: IndexedPool, matched: _Matched) -> Matches:
        layout = pool.layout
        return self._match(pool, matched.before) if matched.before else Matches(layout, layout.everything, 0)

    def _match(self, pool: IndexedPool, matched: _Matched) -> Matches:
        known = matched.matches_by_pool.get(pool)
        layout = pool.layout
        if known is not None and known.layout is layout:
            return known
        before = self._before(pool, matched)
        masks = dict.fromkeys(layout.blocks, 0)
        masks.update(layout.split(before.possible))
        kept: dict[SliceBlock, int] = {}
        if known is not None:
            of_known = dict(known.layout.split(known.possible))
            kept = {block: of_known.get(block, 0) for block in known.layout.blocks if block in masks}
        else:
            self._masks_kept += 1
        failing = 0
        for block, asked in masks.items():
            masks[block] = kept[block] if block in kept else self._ask(block, asked, matched)
            if matched.failures and (failures := matched.failures.get(block)):
                failing |= mask_of(failures) << block.offset
        found = Matches(layout, layout.joined(list(masks.values())), failing)
        matched.matches_by_pool[pool] = found
        return found

    def _ask(self, block: SliceBlock, asked: int, matched: _Matched) -> int:
        """The devices of the block on which the last selector of the chain is not false either."""
        failures: dict[int, FailedSelector] = {}
        before = matched.before.failures.get(block) if matched.before else None
        if before:
            # They stay possible; the search must stop when it gets to one.
            failures.update(before)
            asked &= ~mask_of(before)
        for index in bits(asked & block.columns.unreadable):
            verdict = matched.selector.evaluate(self.device(block, index).bound(self._engine))
            assert isinstance(verdict, SelectorFailure), "a device that cannot be read was evaluated"
            failures[index] = FailedSelector(matched.position, verdict)
        found = 0
        alike = matched.alike_by_block.pop(block, None)
        if alike is None:
            alike = self._alike(block, asked & ~block.columns.unreadable, matched)
        for number, mask in alike:
            verdict = self._verdict(block, mask, number, matched)
            if verdict is True:
                found |= mask
            elif isinstance(verdict, SelectorFailure):
                failures.update(dict.fromkeys(bits(mask), FailedSelector(matched.position, verdict)))
        if failures:
            matched.failures[block] = failures
        return found | mask_of(failures) if failures else found

    def _alike(self, block: SliceBlock, asked: int, matched: _Matched) -> Alike:
        """The devices by what the last selector of the chain reads of them.

        Those are left out on which it is false whatever else they have (`texts_required`).
        """
        columns = tuple([block.columns.of_field(field) for field in matched.fields])
        if not all(column.has_few_cells for column in columns):
            return self._sorted_out(asked, columns, matched)
        found = matched.alike_by_columns.get((asked, columns))
        if found is None:
            if len(matched.alike_by_columns) >= _COLUMNS_KEPT:
                matched.alike_by_columns.clear()
            found = matched.alike_by_columns[asked, columns] = self._sorted_out(asked, columns, matched)
        return found

    def _sorted_out(self, asked: int, columns: Sequence[Column], matched: _Matched) -> Alike:
        for field, column in zip(matched.fields, columns, strict=True):
            texts = matched.required.get(field)
            if texts is not None:
                asked &= column.without_other_texts(texts)
        if not asked:
            return []
        parts = [asked]
        for column in columns:
            if len(column.cells) > 1:
                parts = [part for mask in parts for part in column.split(mask)]
        numbers = matched.numbers
        found = []
        for mask in parts:
            index = (mask & -mask).bit_length() - 1
            cells = tuple([column.cells[column.codes[index]] for column in columns])
            found.append((numbers.setdefault(cells, len(numbers)), mask))
        return found

    def _verdict(self, block: SliceBlock, mask: int, number: int, matched: _Matched) -> Verdict:
        verdict = matched.verdicts.get(number)
        if verdict is None:
            device = block.columns.reduced(block.devices[(mask & -mask).bit_length() - 1], matched.fields)
            bound = self._engine.bind(block.slice.spec.driver, device)
            verdict = matched.verdicts[number] = matched.selector.evaluate(bound)
        return verdict


class Asking:
    """Asks the last selector of a chain about the pools of a fleet, as far as anybody allows, and goes on later.

    read: up to where the log of changed layouts was read.
    """

    def __init__(self, chain: Chain, matching: Matching) -> None:
        self.read = -1
        self._chain = chain
        self._matching = matching
        self._matched = matching.of(chain)
        self._left: dict[IndexedPool, None] = {}

    @property
    def is_valid(self) -> bool:
        """What it found out was not forgotten."""
        return self._matching.is_current(self._chain, self._matched)

    def change(self, pool: IndexedPool, is_there: bool) -> None:
        """The pool's slices are not what they were."""
        if is_there:
            self._left[pool] = None
        else:
            self._left.pop(pool, None)

    def go_on(self, allowance: Budget) -> None:
        """Ask about what is left.

        Raises: BudgetExceededError.
        """
        while self._left:
            pool = next(iter(self._left))
            self._matching.ask_ahead(pool, self._chain, allowance)
            del self._left[pool]
