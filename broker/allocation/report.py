"""What became of every device for one alternative: counts by cause, and a sentence about them."""

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from broker.allocation.budget import Budget
from broker.allocation.candidates import View
from broker.allocation.cel.engine import SelectorFailure
from broker.allocation.columns import Cell, Value, bits, value_text, values_of_cell
from broker.allocation.constraints import DistinctAttribute, MatchAttribute, constraint_of
from broker.allocation.devices import Place
from broker.allocation.index import Fleet, IndexedDevice, IndexedPool
from broker.allocation.nodes import EVERYWHERE, OPTIONAL_NODE_OPERATIONS, NodeGroup, Reach
from broker.allocation.offer import Offer
from broker.allocation.reasons import Cause, RequestReport, RuledOut
from broker.allocation.requests import Alternative, Asks, claim_name
from broker.allocation.shapes import Shapes
from broker.allocation.snapshot import Snapshot
from broker.allocation.suffice import supply
from broker.allocation.taints import taint_text, untolerated
from broker.allocation.tally import column_for
from broker.world.keys import PoolKey
from schemas.resource import ResourceClaim
from schemas.resource.limits import ALLOCATION_RESULTS_MAX

_DETAILS_SHOWN = 3
_DETAILS_LOOKED_AT = 500  # devices
_STEPS_FOR_POOL = 4


@dataclass(slots=True)
class _Tally:
    """How many devices one cause ruled out, and for what, in the order met."""

    count: int = 0
    details: dict[str, None] = field(default_factory=dict)
    looked_at: int = 0
    is_cut_off: bool = False

    def add(self, count: int, details: Iterator[str]) -> None:
        """So many more; the details are looked at only as long as they are few."""
        self.count += count
        for each in islice(details, _DETAILS_LOOKED_AT - self.looked_at):
            self.details[each] = None
            self.looked_at += 1
        if self.looked_at == _DETAILS_LOOKED_AT:
            self.is_cut_off |= next(details, None) is not None

    def text(self) -> str:
        told = [each for each in self.details if each]
        shown = told[:_DETAILS_SHOWN]
        hidden = len(told) - len(shown)
        more = " and more" if self.is_cut_off else f" and {hidden} more" if hidden else ""
        return ", ".join(shown) + more


@dataclass(frozen=True, slots=True)
class _Counted:
    """The part of a report that alternatives which ask for the same devices share."""

    devices: int
    of_class: int
    matching_by_reach: Mapping[Reach, int]
    usable: int
    ruled_out: tuple[RuledOut, ...]

    def matching_for(self, group: NodeGroup) -> int:
        """How many devices match, of those that the nodes of the group reach."""
        by_reach = self.matching_by_reach
        return by_reach.get(EVERYWHERE, 0) + sum([by_reach.get(each, 0) for each in group.reaches or ()])


@dataclass(slots=True)
class Reporter:
    """Looks at all devices of a snapshot once more, this time at those that were ruled out.

    everyone: the devices as all nodes in question together see them.
    groups: of nodes that see the same.
    contended: pools with a device that matches and is held or avoided, or is affected by one that is held.
    """

    snapshot: Snapshot
    fleet: Fleet
    everyone: View
    groups: Sequence[NodeGroup]
    budget: Budget
    contended: set[PoolKey] = field(default_factory=set)
    _counted: dict[Asks, _Counted] = field(default_factory=dict)

    def report(self, claim: ResourceClaim, alternative: Alternative) -> RequestReport:
        """What became of the devices for one alternative of the claim.

        Raises: BudgetExceededError.
        """
        counted = self._counted.get(alternative.asks)
        if counted is None:
            counted = self._counted[alternative.asks] = self._count(alternative)
        needed, nearest, where = self._nearest(claim, alternative, counted)
        return RequestReport(
            claim=claim_name(claim),
            request=alternative.name,
            device_class=alternative.device_class.metadata.name,
            takes_all=alternative.takes_all,
            devices=counted.devices,
            of_class=counted.of_class,
            needed=needed,
            usable=counted.usable,
            nearest=min(nearest, needed),
            nearest_where=where,
            ruled_out=counted.ruled_out,
        )

    def least(self, alternative: Alternative) -> int:
        """How many devices it needs at least, on whatever node; 1 if nobody counted."""
        if not alternative.takes_all:
            return alternative.count
        counted = self._counted.get(alternative.asks)
        needs = [counted.matching_for(group) for group in self.groups] if counted is not None else []
        return min([each for each in needs if each], default=1)

    def _count(self, alternative: Alternative) -> _Counted:
        """Charge every device to the first cause that applies."""
        tallies = {cause: _Tally() for cause in Cause}
        by_selector: Counter[int] = Counter()
        matching: Counter[Reach] = Counter()
        devices = usable = 0
        match = self.fleet.matching.match
        # Its selectors were charged for before, or this ends here.
        self.everyone.candidates(alternative, self.budget)
        for pool in self.fleet.pools:
            self.budget.spend(_STEPS_FOR_POOL + len(alternative.chain))
            left = pool.layout.everything.bit_count()
            devices += left
            possible = pool.layout.everything
            for position in range(len(alternative.chain)):
                possible = match(pool, alternative.chain[: position + 1]).possible
                by_selector[position] += left - possible.bit_count()
                left = possible.bit_count()
            if possible:
                charged = self.everyone.charged(pool, alternative, self.budget)
                ruled_out = 0
                for cause, mask in charged.items():
                    ruled_out += mask.bit_count()
                    tallies[cause].add(mask.bit_count(), self._details(cause, pool, mask, alternative))
                usable += left - ruled_out
                counting = possible & ~charged.get(Cause.CAPACITY, 0)
                for standing, mask in pool.standings if alternative.takes_all else ():
                    if counting & mask:
                        matching[standing.place.reach] += (counting & mask).bit_count()
                is_affected = possible & (pool.used | (pool.drawing if pool.used else 0))
                if is_affected or Cause.AVOIDED in charged:
                    self.contended.add(pool.key)
            if alternative.takes_all and pool.pool.problem is not None:
                # It holds up All even where none of its devices match.
                cause = Cause.POOL_INVALID if pool.pool.is_complete else Cause.POOL_INCOMPLETE
                tallies[cause].add(0, iter([f"{pool.key.pool}: {pool.pool.problem}"]))
        by_others = sum(count for position, count in by_selector.items() if position < alternative.class_selectors)
        return _Counted(
            devices=devices,
            of_class=devices - by_others,
            matching_by_reach=matching,
            usable=usable,
            ruled_out=(
                *_ruled_out_by_selectors(by_selector, alternative.class_selectors),
                *(RuledOut(cause, tally.count, tally.text()) for cause, tally in tallies.items() if tally.details),
            ),
        )

    def _details(self, cause: Cause, pool: IndexedPool, mask: int, alternative: Alternative) -> Iterator[str]:
        """For what the devices of a pool are ruled out: device by device, or once for all of them."""
        if cause is Cause.POOL_INCOMPLETE or cause is Cause.POOL_INVALID:
            yield f"{pool.key.pool}: {pool.pool.problem}"
            return
        if cause is Cause.AVOIDED:
            yield ""
            return
        if cause is Cause.NODE:
            for standing, of_standing in pool.standings:
                if of_standing & mask:
                    yield self._why_not_from(standing.place)
            return
        for block, of_block in pool.layout.split(mask):
            for index in bits(of_block):
                yield from self._details_of(cause, self.fleet.matching.device(block, index), alternative)

    def _why_not_from(self, place: Place) -> str:
        group = self.everyone.group
        if group.sees(place.reach) and place.skips and not group.node.skips_operations:
            return f"not every node declares {OPTIONAL_NODE_OPERATIONS}"
        return "it binds to a node, and none is known" if group.sees(place.reach) else ""

    def _details_of(self, cause: Cause, device: IndexedDevice, alternative: Alternative) -> Iterator[str]:
        supplies = self.everyone.supplies
        match cause:
            case Cause.CAPACITY:
                yield str(device.consumption(alternative.capacity))
            case Cause.DERIVED_ATTRIBUTE:
                for name, expression in alternative.derived.items():
                    failure = (device.derived or {}).get(expression)
                    if isinstance(failure, SelectorFailure):
                        yield f"{name}: {failure.message}"
            case Cause.UNSUPPORTED:
                yield f"{device.standing.unsupported} of slice {device.slice.metadata.name}"
            case Cause.COUNTERS:
                yield supplies.never(device.key) or ""
            case Cause.TAINT:
                taint = untolerated(device.standing.taints, alternative.tolerations)
                yield taint_text(taint) if taint else ""
            case Cause.IN_USE | Cause.CAPACITY_IN_USE:
                yield from self.snapshot.in_use[device.key].holders
            case Cause.COUNTERS_IN_USE:
                counters = supplies.counters(device.key.pool)
                yield f"{counters.why_not(supplies.draws(device.key))} of pool {device.key.pool.pool}"
            case _:
                yield str(device.key)

    def _nearest(self, claim: ResourceClaim, alternative: Alternative, counted: _Counted) -> "_Nearest":
        """The group of nodes on which, as far as one constraint can tell, the fewest devices are missing.

        All means those that one node reaches; a node without any is none that could serve it.
        """
        best = _Nearest(0, 0, "")
        constraints = [constraint_of(each) for each in claim.spec.devices.constraints]
        bound_by = [each for each in constraints if each.applies_to(alternative.name)]
        everyone = self.everyone.candidates(alternative, self.budget).offer
        shapes = Shapes([alternative], [each.attribute for each in bound_by], self.everyone)
        known: set[Hashable] = set()
        for group in self.groups:
            self.budget.spend()
            needed = counted.matching_for(group) if alternative.takes_all else alternative.count
            if needed == 0 or not _Nearest(needed, everyone.count_for(group), "").is_nearer_than(best):
                continue
            view = self.everyone if len(self.groups) == 1 else self.everyone.of(group)
            shape = (needed, shapes.of(view, self.budget)) if bound_by and len(self.groups) > 1 else None
            if shape in known:
                continue
            if shape is not None and shape[1] is not None:
                known.add(shape)
            candidates = view.candidates(alternative, self.budget)
            count = len(candidates.devices) if alternative.derived else candidates.offer.count
            most = (count, f"reached from one node ({group.node.name})" if len(self.groups) > 1 else "")
            for constraint in bound_by:
                if alternative.derived:
                    self.budget.spend(1 + len(candidates.devices))
                    found = _most_among(constraint, alternative, candidates.devices)
                else:
                    found = _most_of(constraint, candidates.offer)
                most = min(most, found, key=lambda found: found[0])
            here = _Nearest(needed, *most)
            if here.is_nearer_than(best):
                best = here
        return best


class _Nearest(NamedTuple):
    """What one group of nodes has of the devices that a request needs there.

    needed: 0 if there is none that could serve it.
    """

    needed: int
    there: int
    where: str

    def is_nearer_than(self, other: "_Nearest") -> bool:
        return self._distance < other._distance

    @property
    def _distance(self) -> tuple[bool, bool, int, int]:
        # More than a claim can have is farther than anything that is only missing.
        return self.needed == 0, self.needed > ALLOCATION_RESULTS_MAX, self.needed - self.there, self.needed


def _most_among(
    constraint: MatchAttribute | DistinctAttribute, alternative: Alternative, devices: Sequence[IndexedDevice]
) -> tuple[int, str]:
    by_value = supply(constraint.attribute, alternative, devices)
    if isinstance(constraint, DistinctAttribute):
        return len(by_value), f"with different {constraint.attribute}"
    if not by_value:
        return 0, f"with the attribute {constraint.attribute}"
    most = max(by_value.values())
    # A list is a set here: of values that as many devices have, the smallest text, lest it differ from run to run.
    value = min(str(value) for (_, value), count in by_value.items() if count == most)
    return most, f"with the same {constraint.attribute} ({value})"


def _most_of(constraint: MatchAttribute | DistinctAttribute, offer: Offer) -> tuple[int, str]:
    attributes = (constraint.attribute,)
    counts = offer.counts(attributes)
    if isinstance(constraint, DistinctAttribute):
        return counts.number, f"with different {constraint.attribute}"
    most = counts.most
    if not most:
        return 0, f"with the attribute {constraint.attribute}"

    def best(cell: Cell) -> Value | None:
        return next((value for value in values_of_cell(cell) if counts[value] == most), None)

    device = next(offer.devices([(attributes, lambda cell: best(cell) is not None)], only_in=counts.pools_with(most)))
    column = column_for(device.block, attributes)
    value = best(column.cells[column.codes[device.index]])
    assert value is not None
    return most, f"with the same {constraint.attribute} ({value_text(value)})"


def _ruled_out_by_selectors(by_position: Counter[int], class_selectors: int) -> Iterator[RuledOut]:
    of_class = sum(count for position, count in by_position.items() if position < class_selectors)
    if of_class:
        yield RuledOut(Cause.CLASS_SELECTOR, of_class)
    for position in sorted(by_position):
        if position >= class_selectors and by_position[position]:
            yield RuledOut(
                Cause.REQUEST_SELECTOR, by_position[position], f"selector {position - class_selectors} of the request"
            )


def sentence(report: RequestReport, node: str | None) -> str:
    """One request for people: what can be used, what is in the way, and how near it came.

    node: the only node that was allowed.
    """
    request = f"request {report.request}"
    if report.devices == 0:
        return f"{request}: no devices are published where this cluster reaches them"
    if report.of_class == 0:
        return f"{request}: none of {_devices(report.devices)} belongs to class {report.device_class}"
    count = f"{report.usable} of {_devices(report.of_class)} of class {report.device_class} can be used"
    if report.takes_all:
        text = f"{request} asks for all {report.needed} that match: {count}"
    elif report.needed > 1:
        text = f"{request} needs {report.needed}: {count}"
    else:
        text = f"{request}: {count}"
    phrases = [_phrase(each, node) for each in reversed(report.ruled_out) if each.cause is not Cause.CLASS_SELECTOR]
    if phrases:
        text += f": {', '.join(phrases)}"
    if report.nearest < min(report.needed, report.usable):
        text += f"; at most {report.nearest} of the {report.needed} needed {report.nearest_where}"
    return text


def _phrase(ruled_out: RuledOut, node: str | None) -> str:
    count, detail = ruled_out.count, ruled_out.detail
    match ruled_out.cause:
        case Cause.REQUEST_SELECTOR:
            return f"{count} ruled out by {detail}"
        case Cause.SELECTOR_FAILED:
            return f"{count} on which a selector failed ({detail})"
        case Cause.CAPACITY:
            return f"{count} without the capacity ({detail})"
        case Cause.DERIVED_ATTRIBUTE:
            return f"{count} for which a derived attribute cannot be computed ({detail})"
        case Cause.COUNTERS:
            return f"{count} that draw more than their pool's counters have ({detail})"
        case Cause.UNSUPPORTED:
            return f"{count} with what this release does not support ({detail})"
        case Cause.NODE:
            return (
                f"{count} not reached from {f'node {node}' if node else 'any node'}{f' ({detail})' if detail else ''}"
            )
        case Cause.POOL_INCOMPLETE if count == 0:
            return f"what all are is unknown until the pool is complete ({detail})"
        case Cause.POOL_INVALID if count == 0:
            return f"what all are is unknown until the pool is valid ({detail})"
        case Cause.POOL_INCOMPLETE:
            return f"{count} in an incomplete pool ({detail})"
        case Cause.POOL_INVALID:
            return f"{count} in an invalid pool ({detail})"
        case Cause.TAINT:
            return f"{count} tainted ({detail})"
        case Cause.IN_USE:
            return f"{count} in use (held by {detail})"
        case Cause.CAPACITY_IN_USE:
            return f"{count} with too little capacity left (shared by {detail})"
        case Cause.COUNTERS_IN_USE:
            return f"{count} whose counters others have drawn ({detail})"
        case _:
            return f"{count} avoided because it was rejected there"


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count} devices"
