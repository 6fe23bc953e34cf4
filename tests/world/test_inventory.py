"""Whose slices make up which pools: fabrics of a config file, fabrics declared by label, and what is local."""

import msgspec
import pytest

from broker.world.federation import FABRIC_LABEL, Fabric, Federation, PoolPattern
from broker.world.inventory import Inventory, Placed
from broker.world.keys import ClusterId, PoolKey
from schemas.resource import DeviceTaint, DeviceTaintRule, ObjectMeta, ResourceSlice
from schemas.resource.taint_rule import DeviceTaintRuleSpec, DeviceTaintSelector
from tests.builders import DRIVER, a_slice, some_devices

HUB, EAST, WEST, NORTH = (ClusterId(name) for name in ("hub", "east", "west", "north"))

BY_CONFIG = Federation(
    fabrics=[
        Fabric("f", source=HUB, clusters=[EAST, WEST], pools=[PoolPattern(driver="gpu.*", pool="rack*")]),
        Fabric("rest", source=WEST, clusters=[WEST, NORTH], pools=[PoolPattern(pool="rack7"), PoolPattern("nic.*")]),
    ],
    clusters=[HUB, EAST, WEST, NORTH],
)
BY_LABEL = Federation(clusters=[EAST, WEST], believe_labels=True)


def in_pool(pool: str, name: str = "s", *, driver: str = DRIVER, fabric: str = "", devices: int = 1) -> ResourceSlice:
    labels = {FABRIC_LABEL: fabric} if fabric else {}
    return a_slice(some_devices(devices), name=name, driver=driver, pool=pool, labels=labels)


def opened(federation: Federation = BY_LABEL) -> Inventory:
    """An inventory after every cluster was heard."""
    inventory = Inventory(federation)
    inventory.open_labels()
    return inventory


def pools(inventory: Inventory) -> dict[str, list[str]]:
    """Names of the slices in each pool."""
    return {str(pool.key): [each.metadata.name for each in pool.slices] for pool in inventory.all_pools()}


# --- a config file


@pytest.mark.parametrize(
    ("cluster", "driver", "pool", "scope"),
    [
        pytest.param(HUB, DRIVER, "rack7", "fabric/f", id="the source speaks for the fabric"),
        pytest.param(EAST, DRIVER, "node-1", "cluster/east", id="another pool is the cluster's own"),
        pytest.param(NORTH, DRIVER, "rack8", "cluster/north", id="who does not reach the fabric has pools of its own"),
        pytest.param(HUB, "nic.example.com", "rack7", "cluster/hub", id="a pool of a fabric that it does not reach"),
        pytest.param(WEST, "nic.example.com", "x", "fabric/rest", id="the second pattern of a fabric"),
    ],
)
def test_a_slice_belongs_where_its_cluster_may_speak(cluster: ClusterId, driver: str, pool: str, scope: str) -> None:
    inventory = Inventory(BY_CONFIG)
    assert inventory.put((cluster, "s"), in_pool(pool, driver=driver)) == Placed(PoolKey(scope, driver, pool))
    assert inventory.scope_of(cluster, driver, pool) == scope


@pytest.mark.parametrize("cluster", [EAST, WEST])
def test_only_the_source_speaks_for_a_fabric(cluster: ClusterId) -> None:
    inventory = Inventory(BY_CONFIG)
    placed = inventory.put((cluster, "s"), in_pool("rack7"))
    assert (placed.key, placed.reason) == (None, "NotTheSource")
    assert f"ResourceSlice s of {cluster}" in placed.message
    assert "fabric f, whose source is hub" in placed.message
    assert pools(inventory) == {}
    # What an allocation there names is on the fabric all the same.
    assert inventory.scope_of(cluster, DRIVER, "rack7") == "fabric/f"


def test_the_first_fabric_that_has_the_pool_has_it() -> None:
    fabric = BY_CONFIG.fabric_of(DRIVER, "rack7")
    assert fabric is not None
    assert fabric.name == "f"
    # North reaches only the second, so there the pool is its own: a pool is on one fabric for everybody.
    assert Inventory(BY_CONFIG).scope_of(NORTH, DRIVER, "rack7") == "cluster/north"


def test_a_label_is_not_believed_beside_a_config() -> None:
    inventory = Inventory(BY_CONFIG)
    placed = inventory.put((EAST, "s"), in_pool("mine", fabric="g"))
    assert (placed.key, placed.reason) == (None, "FabricLabelNotBelieved")
    assert inventory.put((HUB, "s"), in_pool("rack7", fabric="g")).key == PoolKey("fabric/f", DRIVER, "rack7")


def test_who_must_be_heard_are_source_members_and_hub() -> None:
    fabric = BY_CONFIG.fabrics[1]
    assert BY_CONFIG.must_be_heard(fabric) == [NORTH, WEST]
    assert msgspec.structs.replace(BY_CONFIG, hub=HUB).must_be_heard(fabric) == [HUB, NORTH, WEST]


def test_two_clusters_may_each_have_a_pool_of_one_name() -> None:
    inventory = Inventory(BY_CONFIG)
    inventory.put((EAST, "s"), in_pool("local"))
    inventory.put((WEST, "s"), in_pool("local"))
    assert pools(inventory) == {
        f"cluster/east/{DRIVER}/local": ["s"],
        f"cluster/west/{DRIVER}/local": ["s"],
    }


# --- slices that change


def test_a_slice_that_changes_its_pool_leaves_the_old_one() -> None:
    inventory = Inventory(BY_CONFIG)
    inventory.put((EAST, "a"), in_pool("one", "a"))
    inventory.put((EAST, "a"), in_pool("two", "a"))
    assert pools(inventory) == {f"cluster/east/{DRIVER}/two": ["a"]}
    assert inventory.remove((EAST, "a")) == PoolKey("cluster/east", DRIVER, "two")
    assert pools(inventory) == {}
    assert inventory.remove((EAST, "a")) is None
    assert inventory.pool(PoolKey("cluster/east", DRIVER, "two")) is None


def test_a_slice_that_is_not_used_any_more_leaves_its_pool() -> None:
    inventory = Inventory(BY_CONFIG)
    inventory.put((EAST, "a"), in_pool("local", "a"))
    inventory.put((EAST, "a"), in_pool("rack7", "a"))
    assert pools(inventory) == {}
    assert inventory.remove((EAST, "a")) is None


def test_a_pool_is_put_together_anew_only_when_it_changes() -> None:
    inventory = Inventory(BY_CONFIG)
    key, other = (PoolKey("cluster/east", DRIVER, name) for name in ("one", "two"))
    inventory.put((EAST, "a"), in_pool("one", "a"))
    inventory.put((EAST, "b"), in_pool("two", "b"))
    one, two = inventory.pool(key), inventory.pool(other)
    inventory.put((EAST, "a"), in_pool("one", "a", devices=3))
    again = inventory.pool(key)
    assert inventory.pool(other) is two
    assert again is not one
    assert again is not None
    assert len(list(again)) == 3


def test_gives_pools_in_the_order_of_driver_name_and_scope() -> None:
    inventory = Inventory(BY_CONFIG)
    for cluster, driver, pool in ((WEST, "b", "a"), (EAST, "b", "a"), (EAST, "a", "z"), (HUB, DRIVER, "rack7")):
        inventory.put((cluster, f"{driver}-{pool}"), in_pool(pool, f"{driver}-{pool}", driver=driver))
    scopes = ["cluster/west", "fabric/f", "cluster/east", "cluster/nobody"]
    assert [str(pool.key) for pool in inventory.pools_of_scopes(scopes)] == [
        "cluster/east/a/z",
        "cluster/east/b/a",
        "cluster/west/b/a",
        f"fabric/f/{DRIVER}/rack7",
    ]
    assert [str(pool.key) for pool in inventory.pools_of_scopes(["fabric/f"])] == [f"fabric/f/{DRIVER}/rack7"]


# --- fabrics declared by label


def test_everything_is_set_aside_until_every_cluster_was_heard() -> None:
    inventory = Inventory(BY_LABEL)
    for name, fabric in (("shared", "g"), ("local", "")):
        placed = inventory.put((EAST, name), in_pool(name, name, fabric=fabric))
        assert (placed.key, placed.reason) == (None, "SetAside")
    assert pools(inventory) == {}
    assert inventory.label_scopes() == []
    inventory.open_labels()
    assert pools(inventory) == {f"cluster/east/{DRIVER}/local": ["local"], f"fabric/g/{DRIVER}/shared": ["shared"]}
    assert inventory.label_scopes() == ["fabric/g"]


@pytest.mark.parametrize("arrival", [(EAST, WEST), (WEST, EAST)])
def test_the_first_cluster_of_the_config_is_the_source_whoever_came_first(arrival: tuple[ClusterId, ClusterId]) -> None:
    inventory = Inventory(BY_LABEL)
    for cluster in arrival:
        inventory.put((cluster, f"of-{cluster}"), in_pool("rack7", f"of-{cluster}", fabric="g"))
    refused = [placed for _, placed in inventory.open_labels() if placed.key is None]
    assert pools(inventory) == {f"fabric/g/{DRIVER}/rack7": ["of-east"]}
    assert [placed.reason for placed in refused] == ["NotTheSource"]
    assert "whose source is east" in refused[0].message


def test_a_label_wins_over_a_local_pool_of_that_name_whoever_comes_first_in_the_config() -> None:
    inventory = Inventory(BY_LABEL)
    inventory.put((EAST, "a"), in_pool("rack7", "a"))
    inventory.put((WEST, "b"), in_pool("rack7", "b", fabric="g"))
    inventory.open_labels()
    assert pools(inventory) == {f"fabric/g/{DRIVER}/rack7": ["b"]}
    assert inventory.scope_of(EAST, DRIVER, "rack7") == "fabric/g"
    assert inventory.scope_of(EAST, DRIVER, "other") == "cluster/east"


def test_a_pool_that_is_local_already_does_not_become_a_fabrics_without_all_its_slices() -> None:
    inventory = opened()
    inventory.put((EAST, "a"), in_pool("rack7", "a"))
    placed = inventory.put((EAST, "b"), in_pool("rack7", "b", fabric="g"))
    assert (placed.key, placed.reason) == (None, "NotTheSource")
    assert "already a local pool (cluster/east)" in placed.message
    inventory.remove((EAST, "a"))
    assert inventory.put((EAST, "b"), in_pool("rack7", "b", fabric="g")).key == PoolKey("fabric/g", DRIVER, "rack7")


@pytest.mark.parametrize(
    ("cluster", "fabric"),
    [
        pytest.param(WEST, "g", id="another cluster"),
        pytest.param(WEST, "", id="another cluster, as its own"),
        pytest.param(EAST, "h", id="the source, on another fabric"),
        pytest.param(EAST, "", id="the source, as its own"),
    ],
)
def test_a_pool_is_on_one_fabric_and_its_source_alone_adds_to_it(cluster: ClusterId, fabric: str) -> None:
    inventory = opened()
    inventory.put((EAST, "a"), in_pool("rack7", "a", fabric="g"))
    assert inventory.put((cluster, "b"), in_pool("rack7", "b", fabric=fabric)).reason == "NotTheSource"
    assert inventory.put((EAST, "c"), in_pool("rack7", "c", fabric="g")).key == PoolKey("fabric/g", DRIVER, "rack7")


def test_a_fabric_ends_with_its_last_slice_and_another_cluster_can_be_the_source_then() -> None:
    inventory = opened()
    inventory.put((EAST, "a"), in_pool("rack7", "a", fabric="g"))
    inventory.remove((EAST, "a"))
    assert inventory.label_scopes() == []
    assert inventory.scope_of(WEST, DRIVER, "rack7") == "cluster/west"
    assert inventory.put((WEST, "b"), in_pool("rack7", "b", fabric="g")).key == PoolKey("fabric/g", DRIVER, "rack7")


def test_one_fabric_may_have_pools_of_several_sources() -> None:
    inventory = opened()
    inventory.put((EAST, "a"), in_pool("rack7", "a", fabric="g"))
    inventory.put((WEST, "b"), in_pool("rack8", "b", fabric="g"))
    assert inventory.label_scopes() == ["fabric/g"]
    assert inventory.scope_of(WEST, DRIVER, "rack7") == inventory.scope_of(EAST, DRIVER, "rack8") == "fabric/g"


def test_a_fabric_of_the_config_comes_before_a_label() -> None:
    inventory = opened(msgspec.structs.replace(BY_CONFIG, believe_labels=True))
    assert inventory.put((HUB, "s"), in_pool("rack7", fabric="g")).key == PoolKey("fabric/f", DRIVER, "rack7")
    assert inventory.put((EAST, "s"), in_pool("rack7", fabric="g")).reason == "NotTheSource"
    assert inventory.put((EAST, "t"), in_pool("other", "t", fabric="g")).key == PoolKey("fabric/g", DRIVER, "other")


# --- taint rules


def a_rule(**selector: str) -> DeviceTaintRule:
    taint = DeviceTaint(key="example.com/broken", effect="NoSchedule")
    spec = DeviceTaintRuleSpec(device_selector=DeviceTaintSelector(**selector), taint=taint)
    return DeviceTaintRule(metadata=ObjectMeta(name="rule"), spec=spec)


def tainted(inventory: Inventory) -> list[str]:
    """Devices that have a taint, as pool/device."""
    return [f"{pool.key.pool}/{device.name}" for pool in inventory.all_pools() for _, device in pool if device.taints]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        pytest.param({}, ["one/gpu-0", "one/gpu-1", "two/gpu-0", "two/gpu-1"], id="everything"),
        pytest.param({"driver": DRIVER}, ["one/gpu-0", "one/gpu-1"], id="a driver"),
        pytest.param({"pool": "two"}, ["two/gpu-0", "two/gpu-1"], id="a pool"),
        pytest.param({"device": "gpu-1"}, ["one/gpu-1", "two/gpu-1"], id="a device's name"),
        pytest.param({"driver": DRIVER, "pool": "one", "device": "gpu-0"}, ["one/gpu-0"], id="one device"),
        pytest.param({"driver": DRIVER, "pool": "two"}, [], id="nothing that there is"),
    ],
)
def test_a_rule_taints_what_it_selects(selector: dict[str, str], expected: list[str]) -> None:
    inventory = Inventory(BY_CONFIG)
    inventory.put((EAST, "a"), in_pool("one", "a", devices=2))
    inventory.put((EAST, "b"), in_pool("two", "b", driver="nic.east.example.com", devices=2))
    inventory.put_rule((EAST, "rule"), a_rule(**selector))
    assert tainted(inventory) == expected
    inventory.put_rule((EAST, "rule"), None)
    assert tainted(inventory) == []


def test_a_rule_without_a_selector_taints_nothing() -> None:
    inventory = Inventory(BY_CONFIG)
    inventory.put((EAST, "a"), in_pool("one", "a"))
    rule = DeviceTaintRule(spec=DeviceTaintRuleSpec(taint=DeviceTaint(key="example.com/broken", effect="NoSchedule")))
    inventory.put_rule((EAST, "rule"), rule)
    assert tainted(inventory) == []


@pytest.mark.parametrize(
    ("hub", "whose", "counts"),
    [
        pytest.param("", HUB, True, id="the source's"),
        pytest.param("", EAST, False, id="a member's"),
        pytest.param(NORTH, NORTH, True, id="the hub's"),
        pytest.param(NORTH, EAST, False, id="a member's beside a hub's"),
    ],
)
def test_a_rule_counts_where_its_cluster_may_speak_for_the_pool(hub: str, whose: ClusterId, counts: bool) -> None:
    inventory = Inventory(msgspec.structs.replace(BY_CONFIG, hub=ClusterId(hub)))
    inventory.put((HUB, "s"), in_pool("rack7"))
    inventory.put_rule((whose, "rule"), a_rule())
    assert tainted(inventory) == (["rack7/gpu-0"] if counts else [])
