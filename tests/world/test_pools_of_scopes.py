"""Pools by scope, kept up to date from what has changed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.world.changes import Changes
from broker.world.federation import Fabric, Federation, PoolPattern
from broker.world.inventory import Inventory
from broker.world.keys import ClusterId
from broker.world.pools import in_allocation_order
from schemas.resource import DeviceTaintRule, DeviceTaintRuleSpec, DeviceTaintSelector, ObjectMeta
from tests.builders import a_slice, a_taint

EAST, HUB = ClusterId("east"), ClusterId("hub")
SCOPES = ["cluster/east", "fabric/f"]


def an_inventory() -> Inventory:
    return Inventory(Federation(fabrics=[Fabric("f", HUB, [EAST], [PoolPattern(pool="f*")])], clusters=[EAST, HUB]))


def a_rule(pool: str) -> DeviceTaintRule:
    selector = DeviceTaintSelector(pool=pool)
    return DeviceTaintRule(
        metadata=ObjectMeta(name="r"), spec=DeviceTaintRuleSpec(device_selector=selector, taint=a_taint())
    )


def test_the_same_pools_each_time_and_only_what_changed_is_new() -> None:
    inventory = an_inventory()
    for name in ("f2", "f1"):
        inventory.put((HUB, name), a_slice(name=name, pool=name))
    pools = inventory.pools_of_scopes(SCOPES)
    first, second = pools
    assert (first.key.pool, second.key.pool) == ("f1", "f2")
    before = pools.changes.end

    inventory.put((HUB, "f2"), a_slice([], name="f2", pool="f2"))
    assert inventory.pools_of_scopes(SCOPES) is pools
    assert pools[0] is first
    assert pools[1] is not second
    assert pools.changes.since(before) == [second.key]
    assert pools.get(second.key) is pools[1]


def test_a_taint_rule_concerns_only_the_pools_that_it_selects() -> None:
    inventory = an_inventory()
    for name in ("f1", "f2"):
        inventory.put((HUB, name), a_slice(name=name, pool=name))
    kept, tainted = inventory.pools_of_scopes(SCOPES)
    inventory.put_rule((HUB, "r"), a_rule("f2"))
    assert inventory.pool(kept.key) is kept
    assert [device.taints for _, device in inventory.pool(tainted.key) or ()] == [[a_taint()]]
    inventory.put_rule((HUB, "r"), a_rule("f1"))
    assert [[device.taints for _, device in pool] for pool in inventory.pools_of_scopes(SCOPES)] == [
        [[a_taint()]],
        [[]],
    ]


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_follows_any_changes(data: st.DataObject) -> None:
    inventory = an_inventory()
    for _ in range(data.draw(st.integers(1, 6))):
        for _ in range(data.draw(st.integers(0, 4))):
            cluster, pool = data.draw(st.sampled_from([(EAST, "own"), (HUB, "f1"), (HUB, "f2"), (EAST, "f1")]))
            ref = (cluster, f"{pool}-{data.draw(st.integers(0, 1))}")
            if data.draw(st.booleans()):
                inventory.put(ref, a_slice(name=ref[1], pool=pool, generation=data.draw(st.integers(1, 2))))
            else:
                inventory.remove(ref)
        expected = in_allocation_order(each for each in inventory.all_pools() if each.key.scope in SCOPES)
        assert list(inventory.pools_of_scopes(SCOPES)) == expected


def test_a_reader_that_is_too_far_behind_is_told_so() -> None:
    changes: Changes[int] = Changes()
    start = changes.end
    assert changes.since(start) == []
    changes.note(7)
    assert changes.since(start) == [7]
    for number in range(200_000):
        changes.note(number)
    assert changes.since(start) is None
    assert changes.since(changes.end - 2) == [199_998, 199_999]
