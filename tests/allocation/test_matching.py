"""What the index says of selectors is what the selectors say of each device by itself."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from broker.allocation.cel.engine import SelectorFailure, Verdict, default_engine
from broker.allocation.index import DeviceIndex
from broker.world.usage import InUse
from schemas.resource import Device, DeviceAttribute, DeviceCapacity
from tests.builders import DRIVER, AttributeValue, a_device, a_pool, a_slice

ENGINE = default_engine()
INDEX = DeviceIndex(ENGINE)  # one for all examples: it remembers what it was told of other fleets
A, C = f'device.attributes["{DRIVER}"]', f'device.capacity["{DRIVER}"]'
OTHER = "other.example.com"
EXPRESSIONS = [
    "true",
    f'device.driver == "{DRIVER}"',
    f'{A}.model == "a"',
    f'"b" == {A}.model && {A}.size > 1',
    f'{A}.model in ["a", "c"] || {A}.size == 1',
    f'{A}.model in ["a", "c"] && {A}["size"] == 1',
    f'{A}.model == "a" && {A}.model == "b"',
    f'{A}.size > 1 && {A}.model == "a"',
    f'"x" in {A}.tags && {A}.model != "a"',
    f'{A}.tags.exists(t, t == "x") && {A}.model == "a"',
    f"has({A}.model)",
    f"{A}.size() == 2",
    f'{A}.all(k, k != "tags")',
    f'"{OTHER}" in device.attributes',
    f'device.attributes["{OTHER}"].model == "a"',
    "device.attributes[device.driver].size == 1",
    f'{C}.memory.compareTo(quantity("2Gi")) >= 0',
    f"{C}.memory.isGreaterThan({C}.compute)",
    "device.allowMultipleAllocations",
    f'{A}.version.isLessThan(semver("2.0.0"))',
    f'{A}.?model.orValue("a") == "a"',
]
VALUES: list[AttributeValue] = ["a", "b", 1, 2, True, ["x"], ["x", "y"], [1], DeviceAttribute(version="1.0.0")]


@st.composite
def devices(draw: st.DrawFn, name: str) -> Device:
    names = ["model", "size", "tags", "version", f"{DRIVER}/model", f"{OTHER}/model"]
    attributes = {each: draw(st.sampled_from(VALUES)) for each in draw(st.sets(st.sampled_from(names), max_size=4))}
    found = replace(
        a_device(name, capacity=None, **attributes),
        capacity={
            each: DeviceCapacity(value=draw(st.sampled_from(["1Gi", "4Gi", "2048Mi"])))
            for each in draw(st.sets(st.sampled_from(["memory", "compute", f"{DRIVER}/memory"]), max_size=2))
        },
        allow_multiple_allocations=draw(st.sampled_from([None, True])),
    )
    match draw(st.integers(0, 9)):
        case 0:
            return replace(found, attributes={**found.attributes, "bad": DeviceAttribute(version="one")})
        case 1:
            return replace(found, capacity={**found.capacity, "bad": DeviceCapacity(value="much")})
    return found


def verdict(device: Device, chain: tuple[str, ...]) -> Verdict:
    """Each selector is asked only where those before it were true."""
    bound = ENGINE.bind(DRIVER, device)
    for expression in chain:
        found = ENGINE.compile(expression).evaluate(bound)
        if found is not True:
            return found
    return True


@settings(max_examples=300, deadline=None)
@given(data=st.data(), chain=st.lists(st.sampled_from(EXPRESSIONS), min_size=1, max_size=2).map(tuple))
def test_agrees_with_the_selectors(data: st.DataObject, chain: tuple[str, ...]) -> None:
    slices = [
        a_slice([data.draw(devices(f"d{number}-{index}")) for index in range(size)], name=f"s{number}", slice_count=3)
        for number, size in enumerate(data.draw(st.lists(st.integers(0, 5), min_size=3, max_size=3)))
    ]
    (pool,) = INDEX.fleet([a_pool(*slices)], InUse()).pools
    matches = INDEX.matching.match(pool, chain)
    for block in pool.layout.blocks:
        for index, device in enumerate(block.devices):
            expected = verdict(device, chain)
            bit = 1 << block.offset + index
            assert bool(matches.possible & bit) == (expected is not False), device
            assert bool(matches.failing & bit) == isinstance(expected, SelectorFailure), device
            failure = INDEX.matching.failures(block, chain).get(index)
            assert (failure.failure if failure else None) == (
                expected if isinstance(expected, SelectorFailure) else None
            )
