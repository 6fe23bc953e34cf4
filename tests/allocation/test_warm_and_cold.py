"""An index that has followed any history answers as one that was just made: what it keeps changes no decision."""

from collections.abc import Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.allocation.allocate import allocate
from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.allocation.snapshot import Snapshot
from broker.world.federation import Fabric, Federation, PoolPattern
from broker.world.inventory import Inventory
from broker.world.keys import ClusterId, DeviceKey, cluster_scope, fabric_scope
from broker.world.pools import Pool
from broker.world.usage import InUse, Use
from schemas.resource import (
    DeviceTaintRule,
    DeviceTaintRuleSpec,
    DeviceTaintSelector,
    ObjectMeta,
)
from tests.allocation.test_against_brute_force import CLASSES, NODES, claims, rarely, slices
from tests.builders import a_taint

ENGINE = default_engine()
EAST, WEST, HUB = ClusterId("east"), ClusterId("west"), ClusterId("hub")
SCOPES = {cluster: [cluster_scope(cluster), fabric_scope("f")] for cluster in (EAST, WEST)}
SOURCES = {"shared": HUB, "more": HUB, "local": EAST}  # the pools, and who publishes them


class History:
    """A small world, and one index that has seen all of it."""

    def __init__(self) -> None:
        fabric = Fabric("f", HUB, [EAST, WEST], [PoolPattern(pool="shared"), PoolPattern(pool="more")])
        self.inventory = Inventory(Federation(fabrics=[fabric], clusters=[EAST, WEST, HUB]))
        self.in_use = InUse()
        self.warm = DeviceIndex(ENGINE)

    def pools(self, cluster: ClusterId) -> Sequence[Pool]:
        return self.inventory.pools_of_scopes(SCOPES[cluster])

    def devices(self) -> list[DeviceKey]:
        every = [DeviceKey(pool.key, device.name) for pool in self.inventory.all_pools() for _, device in pool]
        return sorted({*every, *self.in_use})

    def change(self, draw: st.DrawFn) -> None:
        """Something happens."""
        match draw(st.sampled_from(["slice", "slice", "slice", "gone", "take", "take", "give back", "rule"])):
            case "slice":
                name = draw(st.sampled_from(sorted(SOURCES)))
                number = draw(st.integers(0, 1))
                found = draw(slices(name, number, draw(rarely(3, 2)), SOURCES[name] == HUB))
                generation = draw(rarely(2, 1))
                pool = msgspec.structs.replace(found.spec.pool, generation=generation)
                found = msgspec.structs.replace(found, spec=msgspec.structs.replace(found.spec, pool=pool))
                self.inventory.put((SOURCES[name], found.metadata.name), found)
            case "gone":
                if self.inventory.slices:
                    self.inventory.remove(draw(st.sampled_from(sorted(self.inventory.slices))))
            case "take":
                if known := self.devices():
                    self.in_use[draw(st.sampled_from(known))] = Use((draw(st.sampled_from(["a", "b"])),))
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

    def ask(self, draw: st.DrawFn) -> None:
        """Both indexes are asked the same."""
        wanted = [draw(claims(name)) for name in draw(st.sampled_from([["one"], ["one"], ["one", "two"]]))]
        cluster = draw(st.sampled_from([EAST, EAST, WEST]))
        known = self.devices()
        pools = self.pools(cluster)
        snapshot = Snapshot(
            pools=list(pools) if draw(rarely(True, False)) else pools,
            classes=CLASSES,
            nodes=draw(st.sampled_from([NODES, NODES[:1], None])),
            in_use=InUse(self.in_use) if draw(rarely(True, False)) else self.in_use,
            avoid=frozenset(draw(st.lists(st.sampled_from(known), max_size=1)) if known else ()),
        )
        assert allocate(wanted, snapshot, self.warm) == allocate(wanted, snapshot, DeviceIndex(ENGINE))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_warm_index_answers_as_a_cold_one(data: st.DataObject) -> None:
    history = History()

    @st.composite
    def live(draw: st.DrawFn) -> None:
        for _ in range(draw(st.integers(1, 8))):
            for _ in range(draw(st.integers(0, 4))):
                history.change(draw)
            history.ask(draw)

    data.draw(live())
