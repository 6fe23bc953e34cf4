"""What the index keeps: a selector is asked about a device once, and a changed slice costs only itself."""

from broker.allocation.allocate import allocate_claim
from broker.allocation.cel.engine import BoundDevice, DerivedAttribute, Selector, SelectorEngine, Verdict
from broker.allocation.index import DeviceIndex
from broker.allocation.reasons import NoFit
from broker.world.keys import PoolKey
from broker.world.pools import assemble_pool
from schemas.resource import Device
from tests.allocation.test_allocate import a_snapshot
from tests.builders import DRIVER, a_claim, a_device, a_pool, a_request, a_slice

SMALL = f'device.attributes["{DRIVER}"].size < 3'


class CountedSelector:
    """Notes each verdict that is asked for."""

    def __init__(self, selector: Selector, asked: list[str]) -> None:
        self.expression = selector.expression
        self.cost = selector.cost
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


def test_a_selector_is_asked_about_a_device_only_once(engine: SelectorEngine) -> None:
    counting = CountingEngine(engine)
    index = DeviceIndex(counting)
    snapshot = a_snapshot(a_pool(a_slice([a_device(f"d{n}", size=n) for n in range(5)])))
    for name in ("one", "two"):
        assert not isinstance(allocate_claim(a_claim(a_request("gpu", SMALL), name=name), snapshot, index), NoFit)
    assert counting.asked.count(SMALL) == 5
    assert len(counting.asked) == 10
    assert len(counting.bound) == 5


def test_a_changed_slice_costs_only_its_own_devices(engine: SelectorEngine) -> None:
    counting = CountingEngine(engine)
    index = DeviceIndex(counting)
    kept = a_slice([a_device("kept", size=9)], name="s1", slice_count=2)
    for size in (8, 7, 2):
        changed = a_slice([a_device("changed", size=size)], name="s2", slice_count=2)
        found = allocate_claim(a_claim(a_request("gpu", SMALL)), a_snapshot(a_pool(kept, changed)), index)
    assert counting.bound == ["kept", "changed", "changed", "changed"]
    assert not isinstance(found, NoFit)
    assert [each.device for each in found.devices.results] == ["changed"]


def test_a_slice_is_looked_at_again_when_its_pool_becomes_usable(engine: SelectorEngine) -> None:
    index = DeviceIndex(engine)
    kept = a_slice(name="s1", slice_count=2)
    assert isinstance(allocate_claim(a_claim(), a_snapshot(a_pool(kept)), index), NoFit)
    whole = a_pool(kept, a_slice([], name="s2", slice_count=2))
    assert not isinstance(allocate_claim(a_claim(), a_snapshot(whole), index), NoFit)


def test_pools_that_are_gone_are_forgotten(engine: SelectorEngine) -> None:
    counting = CountingEngine(engine)
    index = DeviceIndex(counting)
    pool = a_pool()
    for _ in range(2):
        allocate_claim(a_claim(), a_snapshot(pool), index)
        index.keep_only([])
    assert counting.bound == ["gpu-0", "gpu-0"]


def test_pools_of_one_name_in_two_scopes_are_two_pools(engine: SelectorEngine) -> None:
    index = DeviceIndex(engine)
    for scope, name in (("cluster/east", "e"), ("cluster/west", "w"), ("cluster/east", "e")):
        pool = assemble_pool(PoolKey(scope, DRIVER, "rack7"), [a_slice([a_device(name)])])
        found = allocate_claim(a_claim(), a_snapshot(pool), index)
        assert not isinstance(found, NoFit)
        assert [each.device for each in found.devices.results] == [name]
