"""An index that has followed any history answers as one that was just made: what it keeps changes no decision."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.allocation.allocate import MoreToAskError, allocate
from broker.allocation.budget import Budget
from broker.allocation.index import DeviceIndex
from broker.allocation.snapshot import Snapshot
from broker.world.federation import Fabric, Federation, PoolPattern
from broker.world.inventory import Inventory
from broker.world.keys import ClusterId, DeviceKey, cluster_scope, fabric_scope
from broker.world.pools import Pool
from broker.world.usage import InUse
from schemas.resource import (
    Counter,
    CounterSet,
    DeviceTaintRule,
    DeviceTaintRuleSpec,
    DeviceTaintSelector,
    ObjectMeta,
    ResourceSlice,
)
from tests.allocation.problems import CLASSES, COUNTERS, ENGINE, EXPRESSIONS, NODES, claims, rarely, slices, uses
from tests.allocation.validator import Placed
from tests.builders import a_claim, a_request, a_slice, a_taint

EAST, WEST, HUB = ClusterId("east"), ClusterId("west"), ClusterId("hub")
SCOPES = {cluster: [cluster_scope(cluster), fabric_scope("f")] for cluster in (EAST, WEST)}
SOURCES = {"shared": HUB, "more": HUB, "local": EAST}  # the pools, and who publishes them
COUNTER_SETS = {"shared": ["gpu-0"], "more": [], "local": ["gpu-0", "gpu-1"]}  # that each has, if they are published


class History:
    """A small world, and one index that has seen all of it."""

    def __init__(self) -> None:
        fabric = Fabric("f", HUB, [EAST, WEST], [PoolPattern(pool="shared"), PoolPattern(pool="more")])
        self.inventory = Inventory(Federation(fabrics=[fabric], clusters=[EAST, WEST, HUB]))
        self.in_use = InUse()
        self.warm = DeviceIndex(ENGINE)

    def pools(self, cluster: ClusterId) -> Sequence[Pool]:
        return self.inventory.pools_of_scopes(SCOPES[cluster])

    def devices(self) -> dict[DeviceKey, Placed]:
        placed = [Placed(pool, *each) for pool in self.inventory.all_pools() for each in pool]
        return {each.key: each for each in placed}

    def change(self, draw: st.DrawFn) -> None:
        """Something happens."""
        match draw(st.sampled_from(["slice"] * 4 + ["gone"] + ["take"] * 3 + ["give back", "rule"])):
            case "slice":
                self._publish(draw)
            case "gone":
                if self.inventory.slices:
                    self.inventory.remove(draw(st.sampled_from(sorted(self.inventory.slices))))
            case "take":
                if known := self.devices():
                    key = draw(st.sampled_from(sorted(known)))
                    self.in_use[key] = draw(uses(known[key]))
            case "give back":
                if self.in_use:
                    del self.in_use[draw(st.sampled_from(sorted(self.in_use)))]
            case "rule":
                taint = a_taint(effect=draw(st.sampled_from(["NoSchedule", "NoExecute", "None"])))
                selector = DeviceTaintSelector(pool=draw(st.sampled_from(sorted(SOURCES))))
                rule = DeviceTaintRule(
                    metadata=ObjectMeta(name="rule"), spec=DeviceTaintRuleSpec(device_selector=selector, taint=taint)
                )
                self.inventory.put_rule((HUB, "rule"), draw(st.sampled_from([rule, None])))

    def _publish(self, draw: st.DrawFn) -> None:
        name = draw(st.sampled_from(sorted(SOURCES)))
        counter_sets = COUNTER_SETS[name]
        count = draw(rarely(3, 2)) + bool(counter_sets)
        number = draw(st.integers(0, 1 + bool(counter_sets)))
        published: ResourceSlice
        if number == 2:
            left = st.sampled_from(["1", "3", "4"])
            sets = [
                CounterSet(name=each, counters={one: Counter(value=draw(left)) for one in COUNTERS[each]})
                for each in counter_sets
            ]
            published = a_slice([], name=f"{name}-2", pool=name, slice_count=count, shared_counters=sets)
        else:
            published = draw(slices(name, number, count, SOURCES[name] == HUB, counter_sets))
        pool = replace(published.spec.pool, generation=draw(rarely(2, 1)))
        published = replace(published, spec=replace(published.spec, pool=pool))
        self.inventory.put((SOURCES[name], published.metadata.name), published)

    def ask(self, draw: st.DrawFn) -> None:
        """Both indexes are asked the same."""
        if draw(st.booleans()):
            wanted = [draw(claims(name)) for name in draw(st.sampled_from([["one"], ["one"], ["one", "two"]]))]
        else:  # most of the others stand in their own way
            expressions = draw(st.lists(st.sampled_from(EXPRESSIONS), max_size=1))
            wanted = [a_claim(a_request("gpu", *expressions, of="any", count=draw(st.integers(1, 2))))]
        cluster = draw(st.sampled_from([EAST, EAST, WEST]))
        pools = self.pools(cluster)
        known = sorted(self.devices())
        snapshot = Snapshot(
            pools=list(pools) if draw(rarely(True, False)) else pools,
            classes=CLASSES,
            nodes=draw(st.sampled_from([NODES, NODES[:1], None])),
            in_use=InUse(self.in_use) if draw(rarely(True, False)) else self.in_use,
            avoid=frozenset(draw(st.lists(st.sampled_from(known), max_size=1)) if known else ()),
            allows_admin_access=True,
        )
        allowance = draw(st.sampled_from([None, None, 1, 50, 400]))
        try:
            found = allocate(wanted, snapshot, self.warm, allowance=Budget(allowance) if allowance else None)
        except MoreToAskError:
            return  # the claim is gone, or asked again, and what was found out so far stays
        assert found == allocate(wanted, snapshot, DeviceIndex(ENGINE))


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Changes and questions in turn; each question is asserted as it is asked."""
    history = History()
    for _ in range(draw(st.integers(1, 8))):
        for _ in range(draw(st.integers(0, 5))):
            history.change(draw)
        history.ask(draw)
    return history


BOUNDS = {
    "broker.world.changes._KEPT": 4,
    "broker.allocation.index._STOCKED_KEPT": 5,
    "broker.allocation.index._FLEETS_KEPT": 1,
    "broker.allocation.index._TIDY_AFTER": 2,
    "broker.allocation.matching._COMBINATIONS_KEPT": 5,
    "broker.allocation.matching._MASKS_KEPT": 5,
    "broker.allocation.matching._DEVICES_KEPT": 5,
    "broker.allocation.matching._DERIVED_KEPT": 5,
    "broker.allocation.matching._COLUMNS_KEPT": 2,
    "broker.allocation.room._ANSWERS_KEPT": 3,
}


@pytest.fixture(params=[False, True], ids=["with much memory", "with little memory"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept is bounded; here so that hardly anything is."""
    for name, bound in BOUNDS.items() if request.param else ():
        monkeypatch.setattr(name, bound)


@pytest.mark.usefixtures("memory")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories())
def test_a_warm_index_answers_as_a_cold_one(history: History) -> None:
    history.in_use.clear()
    snapshot = Snapshot(history.pools(EAST), CLASSES, NODES, in_use=history.in_use)
    for count in (1, 3):
        wanted = [a_claim(a_request(of="any", count=count))]
        assert allocate(wanted, snapshot, history.warm) == allocate(wanted, snapshot, DeviceIndex(ENGINE))
