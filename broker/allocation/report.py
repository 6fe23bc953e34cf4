"""What became of every device for one alternative: counts by cause, and a sentence about them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from broker.allocation.budget import Budget
from broker.allocation.candidates import View
from broker.allocation.cel.engine import SelectorFailure
from broker.allocation.constraints import DistinctAttribute, MatchAttribute, constraint_of
from broker.allocation.index import DeviceIndex, IndexedDevice, IndexedPool
from broker.allocation.reasons import HELD, Cause, RequestReport, RuledOut
from broker.allocation.requests import Alternative, Asks, claim_name
from broker.allocation.snapshot import Snapshot
from broker.allocation.suffice import supply
from broker.allocation.taints import taint_text, untolerated
from broker.world.keys import PoolKey
from schemas.resource import ResourceClaim

_DETAILS_SHOWN = 3


@dataclass(slots=True)
class _Tally:
    """How many devices one cause ruled out, and for what, in the order met."""

    count: int = 0
    details: dict[str, None] = field(default_factory=dict)

    def text(self) -> str:
        shown = list(self.details)[:_DETAILS_SHOWN]
        hidden = len(self.details) - len(shown)
        return ", ".join(shown) + (f" and {hidden} more" if hidden else "")


@dataclass(frozen=True, slots=True)
class _Counted:
    """The part of a report that alternatives which ask for the same devices share."""

    devices: int
    of_class: int
    matching: int
    usable: int
    ruled_out: tuple[RuledOut, ...]


@dataclass(slots=True)
class Reporter:
    """Looks at all devices of a snapshot once more, this time at those that were ruled out.

    everyone: the devices as all nodes in question together see them.
    views: as each group of nodes sees them.
    contended: pools with a device that matches and is held or avoided, or is affected by one that is held.
    """

    snapshot: Snapshot
    pools: Sequence[IndexedPool]
    device_index: DeviceIndex
    everyone: View
    views: Sequence[View]
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
        needed = counted.matching if alternative.takes_all else alternative.count
        nearest, where = self._nearest(claim, alternative)
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

    def _count(self, alternative: Alternative) -> _Counted:
        """Charge every device to the first cause that applies."""
        tallies = {cause: _Tally() for cause in Cause}
        by_selector: Counter[int] = Counter()
        devices = matching = usable = 0
        sees, cause_of = self.everyone.group.sees, self.everyone.cause
        for pool in self.pools:
            for slice_ in pool.slices:
                matches = self.device_index.match(slice_, alternative.chain, self.budget)
                self.budget.spend(1 + len(matches.possible))
                devices += len(slice_.devices)
                by_selector.update(dict(enumerate(matches.ruled_out)))
                for device in matches.possible:
                    cause = (
                        Cause.SELECTOR_FAILED
                        if device in matches.failures
                        else cause_of(device, alternative, self.budget)
                    )
                    matching += cause is not Cause.CAPACITY and sees(device.reach)
                    if cause in HELD or cause is Cause.AVOIDED or self._is_affected(device):
                        self.contended.add(pool.pool.key)
                    if cause is None:
                        usable += 1
                        continue
                    tally = tallies[cause]
                    tally.count += 1
                    tally.details.update(dict.fromkeys(self._details(cause, device, alternative)))
            if alternative.takes_all and pool.pool.problem is not None:
                # It holds up All even where none of its devices match.
                cause = Cause.POOL_INVALID if pool.pool.is_complete else Cause.POOL_INCOMPLETE
                tallies[cause].details[f"{pool.pool.key.pool}: {pool.pool.problem}"] = None
        by_others = sum(count for position, count in by_selector.items() if position < alternative.class_selectors)
        return _Counted(
            devices=devices,
            of_class=devices - by_others,
            matching=matching,
            usable=usable,
            ruled_out=(
                *_ruled_out_by_selectors(by_selector, alternative.class_selectors),
                *(RuledOut(cause, tally.count, tally.text()) for cause, tally in tallies.items() if tally.details),
            ),
        )

    def _is_affected(self, device: IndexedDevice) -> bool:
        """Holders take something of it, or of the counters that it draws from."""
        of_pool = self.snapshot.in_use.of_pool(device.key.pool)
        return bool(of_pool) and (device.key.device in of_pool or bool(device.device.consumes_counters))

    def _details(self, cause: Cause, device: IndexedDevice, alternative: Alternative) -> Iterator[str]:
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
                yield f"{device.unsupported} of slice {device.slice.metadata.name}"
            case Cause.POOL_INCOMPLETE | Cause.POOL_INVALID:
                yield f"{device.key.pool.pool}: {device.pool_problem}"
            case Cause.COUNTERS:
                yield supplies.never(device.key) or ""
            case Cause.TAINT:
                taint = untolerated(device.taints, alternative.tolerations)
                yield taint_text(taint) if taint else ""
            case Cause.IN_USE | Cause.CAPACITY_IN_USE:
                yield from self.snapshot.in_use[device.key].holders
            case Cause.COUNTERS_IN_USE:
                counters = supplies.counters(device.key.pool)
                yield f"{counters.why_not(supplies.draws(device.key))} of pool {device.key.pool.pool}"
            case Cause.SELECTOR_FAILED:
                yield str(device.key)
            case _:
                yield ""

    def _nearest(self, claim: ResourceClaim, alternative: Alternative) -> tuple[int, str]:
        """The most devices that one node and one constraint allow."""
        best = (-1, "")
        for view in self.views:
            devices = view.candidates(alternative, self.budget).devices
            here = (len(devices), f"reached from one node ({view.group.node.name})" if len(self.views) > 1 else "")
            for each in claim.spec.devices.constraints:
                constraint = constraint_of(each)
                if constraint.applies_to(alternative.name):
                    self.budget.spend(1 + len(devices))
                    here = min(here, _most_with(constraint, alternative, devices), key=lambda found: found[0])
            best = max(best, here, key=lambda found: found[0])
        return best


def _most_with(
    constraint: MatchAttribute | DistinctAttribute, alternative: Alternative, devices: Sequence[IndexedDevice]
) -> tuple[int, str]:
    by_value = supply(constraint.attribute, alternative, devices)
    if isinstance(constraint, DistinctAttribute):
        return len(by_value), f"with different {constraint.attribute}"
    if not by_value:
        return 0, f"with the attribute {constraint.attribute}"
    (_, value), most = max(by_value.items(), key=lambda found: found[1])
    return most, f"with the same {constraint.attribute} ({value})"


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
            return f"{count} not reached from {f'node {node}' if node else 'any node'}"
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
