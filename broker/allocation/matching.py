"""What selectors say about devices: asked once for each combination of what they read, and kept.

Verdicts are kept by expression and combination, so that a new or changed slice is rarely worth a question; and what a
chain of selectors says about a pool is kept as a mask, of which a changed slice costs only its own part.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from broker.allocation.cel.engine import Selector, SelectorCompileError, SelectorEngine, SelectorFailure, Verdict
from broker.allocation.cel.fields import FieldPath, fields_read
from broker.allocation.columns import Cell, Column, bits
from broker.allocation.devices import IndexedDevice, IndexedPool, Layout, SliceBlock

Chain = tuple[
    str, ...
]  # expressions: those of the class, then those of the request; each asked where all before are true

# Expressions come from tenants, so what is kept of them is bounded; beyond that the oldest half is forgotten.
_VERDICTS_KEPT = 500_000
_MASKS_KEPT = 500_000
_DEVICES_KEPT = 50_000


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


class _Matched:
    """What one chain says, pool by pool."""

    __slots__ = ("before", "failures", "fields", "matches_by_pool", "position", "selector", "verdicts")

    def __init__(self, chain: Chain, selector: Selector, before: "_Matched | None") -> None:
        self.before = before  # the chain without its last selector; None if that is empty
        self.position = len(chain) - 1
        self.selector = selector
        self.fields: list[FieldPath] = sorted(fields_read(chain[-1]))
        self.verdicts: dict[tuple[Cell, ...], Verdict] = {}
        self.matches_by_pool: dict[IndexedPool, Matches] = {}
        self.failures: dict[SliceBlock, dict[int, FailedSelector]] = {}  # of the pools' blocks, by index


class Matching:
    """Selectors and what they said. See DeviceIndex."""

    def __init__(self, engine: SelectorEngine) -> None:
        self._engine = engine
        self._matched: dict[Chain, _Matched] = {}  # the least recently used first
        self._masks_kept = 0
        self._verdicts: dict[str, dict[tuple[Cell, ...], Verdict]] = {}  # by expression
        self._verdicts_kept = 0
        self._devices: dict[tuple[SliceBlock, int], IndexedDevice] = {}

    def compile(self, expression: str) -> Selector | SelectorCompileError:
        """The compiled selector, or why it does not compile."""
        try:
            return self._engine.compile(expression)
        except SelectorCompileError as error:
            return error

    def device(self, block: SliceBlock, index: int) -> IndexedDevice:
        """The device as a search wants it; the same one until `tidy`."""
        found = self._devices.get((block, index))
        if found is None:
            found = self._devices[block, index] = IndexedDevice(block, index)
        return found

    def tidy(self) -> None:
        """Forget what is beyond the bounds; called when no allocation is under way."""
        if len(self._devices) > _DEVICES_KEPT:
            self._devices.clear()
        if self._verdicts_kept > _VERDICTS_KEPT:
            self._verdicts.clear()
            self._verdicts_kept = 0
            for each in self._matched.values():
                each.verdicts = self._verdicts.setdefault(each.selector.expression, {})
        if self._masks_kept > _MASKS_KEPT:
            for chain in list(self._matched)[: (len(self._matched) + 1) // 2]:
                self._masks_kept -= len(self._matched.pop(chain).matches_by_pool)

    def forget_pool(self, pool: IndexedPool) -> None:
        """The pool is gone."""
        for matched in self._matched.values():
            if matched.matches_by_pool.pop(pool, None) is not None:
                self._masks_kept -= 1
            for block in pool.layout.blocks:
                matched.failures.pop(block, None)
        for block in pool.layout.blocks:
            self.forget_devices(block)

    def forget_devices(self, block: SliceBlock) -> None:
        """The block is about to be retired."""
        for index in range(len(block.devices)):
            self._devices.pop((block, index), None)

    def match(self, pool: IndexedPool, chain: Chain) -> Matches:
        """Ask a chain, whose expressions compile, about the devices of a pool."""
        if not chain:
            return Matches(pool.layout, pool.layout.everything, 0)
        return self._match(pool, self.matched(chain))

    def matched(self, chain: Chain) -> _Matched:
        """What is kept for a chain that is not empty."""
        found = self._matched.pop(chain, None)
        if found is None:
            selector = self.compile(chain[-1])
            assert not isinstance(selector, SelectorCompileError), f"selector {chain[-1]!r} was not compiled before"
            found = _Matched(chain, selector, self.matched(chain[:-1]) if len(chain) > 1 else None)
            found.verdicts = self._verdicts.setdefault(chain[-1], {})
        self._matched[chain] = found
        return found

    def failures(self, block: SliceBlock, chain: Chain) -> Mapping[int, FailedSelector]:
        """On which devices of the block, by index, a selector of the chain failed."""
        if not chain:
            return {}
        matched = self.matched(chain)
        self._match(block.pool, matched)
        return matched.failures.get(block, {})

    def _match(self, pool: IndexedPool, matched: _Matched) -> Matches:
        known = matched.matches_by_pool.get(pool)
        layout = pool.layout
        if known is not None and known.layout is layout:
            return known
        before = self._match(pool, matched.before) if matched.before else Matches(layout, layout.everything, 0)
        masks = dict.fromkeys(layout.blocks, 0)
        masks.update(before.layout.split(before.possible))
        kept: dict[SliceBlock, int] = {}
        if known is not None:
            of_known = dict(known.layout.split(known.possible))
            kept = {block: of_known.get(block, 0) for block in known.layout.blocks if block in masks}
            for block in known.layout.blocks:
                if block not in masks:
                    matched.failures.pop(block, None)
        else:
            self._masks_kept += 1
        failing = 0
        for block, asked in masks.items():
            masks[block] = kept[block] if block in kept else self._ask(block, asked, matched)
            if matched.failures and (failures := matched.failures.get(block)):
                failing |= sum(1 << index for index in failures) << block.offset
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
            asked &= ~sum(1 << index for index in before)
        unreadable = asked & block.columns.unreadable
        for index in bits(unreadable):
            verdict = matched.selector.evaluate(self.device(block, index).bound(self._engine))
            assert isinstance(verdict, SelectorFailure), "a device that cannot be read was evaluated"
            failures[index] = FailedSelector(matched.position, verdict)
        asked &= ~unreadable
        possible = self._true(block, asked, matched, failures) if asked else 0
        if failures:
            matched.failures[block] = failures
        return possible | sum(1 << index for index in failures)

    def _true(self, block: SliceBlock, asked: int, matched: _Matched, failures: dict[int, FailedSelector]) -> int:
        """Those of the devices on which the selector is true; where it fails, `failures` says so afterwards."""
        columns = [block.columns.of_field(field) for field in matched.fields]
        alike = [asked]  # sets of devices that agree in all that the selector reads
        for column in columns:
            if len(column.cells) > 1:
                alike = [part for mask in alike for part in column.split(mask)]
        found = 0
        for mask in alike:
            verdict = self._verdict(block, (mask & -mask).bit_length() - 1, matched, columns)
            if verdict is True:
                found |= mask
            elif isinstance(verdict, SelectorFailure):
                failures.update(dict.fromkeys(bits(mask), FailedSelector(matched.position, verdict)))
        return found

    def _verdict(self, block: SliceBlock, index: int, matched: _Matched, columns: Sequence[Column]) -> Verdict:
        cells = tuple([column.cells[column.codes[index]] for column in columns])
        verdict = matched.verdicts.get(cells)
        if verdict is None:
            verdict = matched.selector.evaluate(self.device(block, index).bound(self._engine))
            matched.verdicts[cells] = verdict
            self._verdicts_kept += 1
        return verdict
