"""Who has how much of a device, from what is granted and shown."""

import pytest

from broker.world.keys import DeviceKey, PoolKey
from broker.world.usage import InUse, Use, use_of
from schemas.wire.ledger import DeviceHold, canonical_amounts

POOL = PoolKey("fabric/f", "gpu.example.com", "rack7")
DEVICE = DeviceKey(POOL, "d")


def a_hold(share: str = "", **consumed: str) -> DeviceHold:
    return DeviceHold("r", POOL.driver, POOL.pool, "d", share_id=share, consumed_capacity=consumed)


@pytest.mark.parametrize(
    ("holds", "expected"),
    [
        pytest.param([], None, id="nobody"),
        pytest.param([("a", a_hold())], Use(("a",)), id="all of it"),
        pytest.param([("a", a_hold()), ("a", a_hold())], Use(("a",)), id="told twice"),
        pytest.param(
            [("a", a_hold("x", memory="1")), ("b", a_hold("y", memory="500m", cores="2"))],
            Use(("a", "b"), False, True, {"memory": 1_500_000_000, "cores": 2_000_000_000}),
            id="shares add up",
        ),
        pytest.param(
            [("a", a_hold("x", memory="1")), ("a", a_hold("x", memory="1"))],
            Use(("a",), False, True, {"memory": 1_000_000_000}),
            id="a share that is granted and shown counts once",
        ),
        pytest.param([("a", a_hold("x"))], Use(("a",), False, True), id="a share of nothing"),
        pytest.param([("a", a_hold("x", memory="much"))], Use(("a",)), id="an amount that cannot be read is all of it"),
        pytest.param([("a", a_hold("x", memory="-1"))], Use(("a",)), id="and so is one below zero"),
        pytest.param(
            [("a", a_hold()), ("b", a_hold("x", memory="1"))],
            Use(("a", "b"), True, True, {"memory": 1_000_000_000}),
            id="both, where something went wrong",
        ),
    ],
)
def test_use_of(holds: list[tuple[str, DeviceHold]], expected: Use | None) -> None:
    assert use_of(holds) == expected


def test_two_holders_that_are_called_alike_have_what_each_of_them_has() -> None:
    holds = [(1, a_hold("x", memory="1")), (2, a_hold("x", memory="1"))]
    assert use_of(holds, lambda holder: "a") == Use(("a",), False, True, {"memory": 2_000_000_000})


def test_devices_in_use_by_pool_and_with_a_version() -> None:
    in_use = InUse({DEVICE: Use(("a",))})
    first = in_use.version_of(POOL)
    assert dict(in_use.of_pool(POOL)) == {"d": Use(("a",))}
    in_use[DEVICE] = Use(("b",))
    assert in_use.version_of(POOL) != first
    del in_use[DEVICE]
    assert (dict(in_use.of_pool(POOL)), len(in_use), DEVICE in in_use) == ({}, 0, False)


def test_equal_amounts_are_equal_texts() -> None:
    assert canonical_amounts({"b": "1024Mi", "a": "1000m"}) == {"a": "1", "b": "1Gi"}
    assert canonical_amounts({"a": "much", "b": None}) == {"a": "much", "b": "None"}
