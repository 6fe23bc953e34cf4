"""What the index keeps: a selector is asked about a device once, and a changed slice costs only itself."""

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from broker.allocation.allocate import allocate_claim
from broker.allocation.cel.engine import BoundDevice, DerivedAttribute, Selector, SelectorEngine, Verdict
from broker.allocation.index import DeviceIndex
from broker.allocation.reasons import NoFit
from broker.allocation.snapshot import Snapshot
from broker.allocation.stock import Stock
from broker.world.federation import Federation
from broker.world.inventory import Inventory
from broker.world.keys import ClusterId, DeviceKey, PoolKey, cluster_scope
from broker.world.pools import assemble_pool
from broker.world.usage import InUse, Use
from schemas.resource import CapacityRequirements, Device, DeviceCapacity, ResourceClaim, ResourceSlice
from tests.allocation.test_allocate import a_snapshot
from tests.builders import CLASS, DRIVER, a_claim, a_class, a_device, a_match, a_pool, a_request, a_slice

EAST = ClusterId("east")
CLASSES = {CLASS: a_class()}
SMALL = f'device.attributes["{DRIVER}"].size < 3'


class CountedSelector:
    """Notes each verdict that is asked for."""

    def __init__(self, selector: Selector, asked: list[str]) -> None:
        self.expression = selector.expression
        self.steps = selector.steps
        self._selector = selector
        self._asked = asked

    def evaluate(self, device: BoundDevice) -> Verdict:
        self._asked.append(self.expression)
        return self._selector.evaluate(device)


class CountingEngine:
    """The real engine, with its evaluations counted."""

    name = "counting"

    def __init__(self, engine: SelectorEngine) -> None:
        self._engine = engine
        self.asked: list[str] = []
        self.bound: list[str] = []

    def compile(self, expression: str) -> Selector:
        return CountedSelector(self._engine.compile(expression), self.asked)

    def compile_attribute(self, expression: str) -> DerivedAttribute:
        return self._engine.compile_attribute(expression)

    def bind(self, driver: str, device: Device) -> BoundDevice:
        self.bound.append(device.name)
        return self._engine.bind(driver, device)


def test_a_selector_is_asked_once_for_devices_that_agree_in_what_it_reads(engine: SelectorEngine) -> None:
    counting = CountingEngine(engine)
    index = DeviceIndex(counting)
    pools = [a_pool(a_slice([a_device(f"d{n}", size=n % 5) for n in range(20)], pool=name)) for name in ("a", "b")]
    for name in ("one", "two"):
        found = allocate_claim(a_claim(a_request("gpu", SMALL), name=name), a_snapshot(*pools), index)
        assert not isinstance(found, NoFit)
    assert counting.asked.count(SMALL) == 5
    assert len(counting.asked) == 5 + 1  # the class asks for the driver


def test_a_selector_that_reads_all_of_a_device_is_asked_about_each(engine: SelectorEngine) -> None:
    counting = CountingEngine(engine)
    index = DeviceIndex(counting)
    wide = f'device.attributes["{DRIVER}"].size() == 2'
    pool = a_pool(a_slice([a_device(f"d{n}", number=n, model="a") for n in range(5)]))
    for _ in range(2):
        assert not isinstance(allocate_claim(a_claim(a_request("gpu", wide)), a_snapshot(pool), index), NoFit)
    assert counting.asked.count(wide) == 5


def test_a_changed_slice_costs_only_its_own_devices(engine: SelectorEngine) -> None:
    counting = CountingEngine(engine)
    index = DeviceIndex(counting)
    kept = a_slice([a_device("kept", size=9)], name="s1", slice_count=2)
    for size in (8, 7, 2):
        changed = a_slice([a_device("changed", size=size)], name="s2", slice_count=2)
        found = allocate_claim(a_claim(a_request("gpu", SMALL)), a_snapshot(a_pool(kept, changed)), index)
    assert counting.asked.count(SMALL) == 4  # sizes 9, 8, 7 and 2
    assert not isinstance(found, NoFit)
    assert [each.device for each in found.devices.results] == ["changed"]


def test_a_slice_is_looked_at_again_when_its_pool_becomes_usable(engine: SelectorEngine) -> None:
    index = DeviceIndex(engine)
    kept = a_slice(name="s1", slice_count=2)
    assert isinstance(allocate_claim(a_claim(), a_snapshot(a_pool(kept)), index), NoFit)
    whole = a_pool(kept, a_slice([], name="s2", slice_count=2))
    assert not isinstance(allocate_claim(a_claim(), a_snapshot(whole), index), NoFit)


def test_pools_that_are_gone_are_forgotten(engine: SelectorEngine) -> None:
    index = DeviceIndex(engine)
    pool = a_pool(a_slice(name="to-be-forgotten"))
    assert not isinstance(allocate_claim(a_claim(), a_snapshot(pool), index), NoFit)
    assert isinstance(allocate_claim(a_claim(), a_snapshot(), index), NoFit)
    del pool
    gc.collect()
    known = [each for each in gc.get_objects() if isinstance(each, ResourceSlice)]
    assert "to-be-forgotten" not in [each.metadata.name for each in known]


def test_a_pool_is_forgotten_that_no_request_can_use_and_a_selector_fails_on(engine: SelectorEngine) -> None:
    index = DeviceIndex(engine)
    gone = a_pool(a_slice([a_device("d1", capacity=None)], pool="gone"))
    kept = a_pool(a_slice([a_device("d2", size=9)], pool="kept"))
    wanted = a_request("gpu", SMALL, capacity=CapacityRequirements(requests={"memory": "1"}))
    for pools in ([gone, kept], [kept]):
        found = allocate_claim(a_claim(wanted), a_snapshot(*pools), index)
        assert isinstance(found, NoFit)
        assert found == allocate_claim(a_claim(wanted), a_snapshot(*pools), DeviceIndex(engine))


def test_a_pool_that_another_fleet_has_already_is_new_to_this_one(engine: SelectorEngine) -> None:
    inventory = Inventory(Federation(clusters=[EAST]))
    inventory.put((EAST, "s"), a_slice())
    index, pools = DeviceIndex(engine), inventory.pools_of_scopes([cluster_scope(EAST)])
    found = [allocate_claim(a_claim(), Snapshot(each, CLASSES), index) for each in ([], pools, [], list(pools))]
    assert [isinstance(each, NoFit) for each in found] == [True, False, True, False]


def test_what_nobody_can_use_is_forgotten_too(engine: SelectorEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.allocation.index._STOCKED_KEPT", 100)
    before = [each for each in gc.get_objects() if isinstance(each, Stock)]  # of other tests
    index, snapshot = DeviceIndex(engine), a_snapshot(a_pool())
    for amount in range(300):
        wanted = a_request(capacity=CapacityRequirements(requests={"nothing": str(amount)}))
        assert isinstance(allocate_claim(a_claim(wanted), snapshot, index), NoFit)
    stocks = [each for each in gc.get_objects() if isinstance(each, Stock)]
    assert (
        len(stocks) - len(before) < 100 + 5 * 64
    )  # with what comes between two times that they are counted; each claim needs a few


def test_pools_of_one_name_in_two_scopes_are_two_pools(engine: SelectorEngine) -> None:
    index = DeviceIndex(engine)
    for scope, name in (("cluster/east", "e"), ("cluster/west", "w"), ("cluster/east", "e")):
        pool = assemble_pool(PoolKey(scope, DRIVER, "rack7"), [a_slice([a_device(name)])])
        found = allocate_claim(a_claim(), a_snapshot(pool), index)
        assert not isinstance(found, NoFit)
        assert [each.device for each in found.devices.results] == [name]


class Busy:
    """A fleet of pools of 32 devices, and claims that are decided one after the other."""

    def __init__(self, pools: int, engine: SelectorEngine, **device: Any) -> None:
        self.inventory = Inventory(Federation(clusters=[EAST]))
        self.in_use = InUse()
        self.index = DeviceIndex(engine)
        for pool in range(pools):
            devices = [
                replace(a_device(f"d{n}", model="a", size=n % 4, fabric=f"{pool}-{n // 8}"), **device)
                for n in range(32)
            ]
            self.inventory.put((EAST, f"s{pool}"), a_slice(devices, name=f"s{pool}", pool=f"p{pool:02}"))

    def decide(self, claim: ResourceClaim) -> None:
        pools = self.inventory.pools_of_scopes([cluster_scope(EAST)])
        found = allocate_claim(claim, Snapshot(pools, {CLASS: a_class()}, in_use=self.in_use), self.index)
        assert not isinstance(found, NoFit), found.message
        for each in found.devices.results:
            key = DeviceKey(PoolKey(cluster_scope(EAST), each.driver, each.pool), each.device)
            use = Use(("a",)) if each.share_id is None else Use(("a",), False, True, {"memory": 10**9})
            self.in_use[key] = use


def calls_of(work: Callable[[], object]) -> int:
    """How many Python functions are called: a measure of work that does not depend on the machine."""
    count = 0

    def note(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    ("claim", "device"),
    [
        pytest.param(a_claim(a_request(count=2)), {}, id="any devices"),
        pytest.param(a_claim(a_request("gpu", SMALL)), {}, id="a selector"),
        pytest.param(
            a_claim(a_request("gpu", SMALL, count=4), constraints=[a_match(f"{DRIVER}/fabric")]), {}, id="a fabric"
        ),
        pytest.param(
            a_claim(a_request(capacity=CapacityRequirements(requests={"memory": "1"}))),
            {"allow_multiple_allocations": True, "capacity": {"memory": DeviceCapacity(value="8")}},
            id="shares",
        ),
    ],
)
def test_what_a_claim_costs_does_not_depend_on_the_fleet(
    engine: SelectorEngine, claim: ResourceClaim, device: dict[str, Any]
) -> None:
    few, many = (Busy(pools, engine, **device) for pools in (4, 64))
    for each in (few, many):
        each.decide(claim)  # the first one finds out what there is
    assert calls_of(lambda: many.decide(claim)) <= calls_of(lambda: few.decide(claim)) * 1.05
