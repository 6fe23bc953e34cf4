"""The allocation core: one claim on ever larger fleets."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count as counter

from broker.allocation.allocate import allocate_claim
from broker.allocation.cel.engine import BoundDevice, SelectorEngine, default_engine
from broker.allocation.index import DeviceIndex
from broker.allocation.reasons import NoFit
from broker.allocation.snapshot import Snapshot
from broker.world.keys import DeviceKey, fabric_scope
from broker.world.usage import InUse, Use
from schemas.resource import ResourceClaim
from tests.bench.fleet import a_claim_for, in_order, selects_device, selects_model, some_pools
from tests.bench.measure import Table, count, growth, least, ms, per_call, progress, ratio, timed, us
from tests.builders import CLASS, a_class

SIZES = (100, 1_000, 10_000, 100_000)


def measure(sizes: Sequence[int] = SIZES) -> list[Table]:
    """Place one claim where the first half of the devices is in use."""
    engine = default_engine()
    cold_rows: list[list[str]] = []
    rows: dict[str, list[list[str]]] = {}
    before: dict[str, tuple[int, float]] = {}

    def grown(name: str, size: int, seconds: float) -> str:
        exponent = growth(before.get(name), size, seconds)
        before[name] = size, seconds
        return exponent

    for size in sizes:
        progress(f"allocation: {count(size)} devices, cold")
        fleet = _Fleet(size, engine)
        claim = a_claim_for(selects_model(3), 0)
        cold, first, every = least(
            max(1, min(3, 10_000 // size)),
            partial(fleet.ours_cold, claim),
            partial(fleet.plain_cold, claim, False),
            partial(fleet.plain_cold, claim, True),
        )
        each = us(cold / size)
        cold_rows.append(
            [count(size), ms(cold), each, grown("cold", size, cold), ratio(cold, every), ratio(cold, first)]
        )
        for name, selector in (
            ("first fits", selects_model(3)),  # one device in ten
            ("last fits", selects_device(size - 1)),
            ("hopeless", selects_model(3).replace("model-3", "no such model")),
        ):
            progress(f"allocation: {count(size)} devices, {name}")
            unseen = (a_claim_for(f"{selector} && {number} >= 0", number) for number in counter(1))
            claim = a_claim_for(selector, 0)
            ours, plain = fleet.ours(claim), fleet.plain(claim)
            assert ours == plain, f"{size} devices, {name}: the core takes {ours}, the plain way {plain}"
            new, warm, alone = least(
                3,
                partial(fleet.ours_new, unseen),
                per_call(partial(fleet.ours, claim)),
                per_call(partial(fleet.plain, claim)),
            )
            rows.setdefault(name, []).append(
                [
                    name,
                    count(size),
                    ms(new),
                    grown(f"new {name}", size, new),
                    ratio(new, alone),
                    ms(warm),
                    grown(f"warm {name}", size, warm),
                    ratio(warm, alone),
                ]
            )
    return [
        Table(
            "allocation: the first claim, one device in ten fits, the first half of the fleet in use",
            ["devices", "cold ms", "us per device", "growth", "to plain, all devices", "to plain, first that fits"],
            cold_rows,
            ["Cold: nothing is known of any device. Plain: evaluate the same selectors with the same engine."],
        ),
        Table(
            "allocation: claims after it",
            ["claim", "devices", "new ms", "growth", "to plain", "warm ms", "growth", "to plain"],
            [row for of_claim in rows.values() for row in of_claim],
            [
                "New: a selector that no claim had before. Warm: one that was seen, as every template's is.",
                "Plain: pass over devices in use, evaluate the selectors, take the first that fits; all are bound.",
            ],
        ),
    ]


class _Fleet:
    """Devices half of which are in use; what the last cold runs learned of them stays."""

    def __init__(self, size: int, engine: SelectorEngine) -> None:
        self._engine = engine
        self._snapshot = _half_full(size)
        self._index = DeviceIndex(engine)
        self._bound: dict[DeviceKey, BoundDevice] = {}

    def ours_cold(self, claim: ResourceClaim) -> float:
        self._index = DeviceIndex(self._engine)
        return timed(partial(self.ours, claim))

    def plain_cold(self, claim: ResourceClaim, looks_at_all: bool) -> float:
        self._bound = {}
        return timed(partial(self.plain, claim, looks_at_all))

    def ours_new(self, unseen: Iterator[ResourceClaim]) -> float:
        claim = next(unseen)
        requested = claim.spec.devices.requests[0].exactly
        assert requested is not None
        for selector in requested.selectors:
            assert selector.cel is not None
            self._engine.compile(selector.cel.expression)  # not counted: it costs the same for any fleet
        return timed(partial(self.ours, claim))

    def ours(self, claim: ResourceClaim) -> str | None:
        found = allocate_claim(claim, self._snapshot, self._index)
        return None if isinstance(found, NoFit) else found.devices.results[0].device

    def plain(self, claim: ResourceClaim, looks_at_all: bool = False) -> str | None:
        requested = claim.spec.devices.requests[0].exactly
        assert requested is not None
        of_class = self._snapshot.classes[requested.device_class_name].spec.selectors
        selectors = [
            self._engine.compile(each.cel.expression) for each in (*of_class, *requested.selectors) if each.cel
        ]
        chosen = None
        for pool, slice_, device in in_order(self._snapshot.pools):
            key = DeviceKey(pool.key, device.name)
            if key in self._snapshot.in_use and not looks_at_all:
                continue
            if key not in self._bound:
                self._bound[key] = self._engine.bind(slice_.spec.driver, device)
            fits = all(selector.evaluate(self._bound[key]) is True for selector in selectors)
            if fits and chosen is None and key not in self._snapshot.in_use:
                chosen = device.name
                if not looks_at_all:
                    break
        return chosen


def _half_full(size: int) -> Snapshot:
    pools = some_pools(size, fabric_scope("f"))
    keys = [DeviceKey(pool.key, device.name) for pool, _, device in in_order(pools)]
    in_use = InUse(dict.fromkeys(keys[: size // 2], Use(("another claim",))))
    return Snapshot(pools=pools, classes={CLASS: a_class()}, in_use=in_use)
