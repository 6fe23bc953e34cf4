"""Warnings about comparisons that mean something else than they say."""

import pytest

from broker.allocation.cel import Advice, SelectorCompileError, advise, default_engine
from schemas.resource import Device, DeviceAttribute, DeviceCapacity

D = 'device.attributes["d.example.com"]'
C = 'device.capacity["d.example.com"]'


def suggestions(expression: str, *devices: Device) -> list[str]:
    return [advice.suggestion for advice in advise(expression, [("d.example.com", device) for device in devices])]


def test_the_walk_through_that_compares_memory_as_text() -> None:
    memory = 'device.attributes["gpu-driver.example.com"].memory'
    assert advise(f'{memory} >= "16Gi"') == [
        Advice(
            f'{memory} >= "16Gi" compares text, letter by letter, not amounts: "8Gi" counts as more than "16Gi"',
            f'quantity({memory}).compareTo(quantity("16Gi")) >= 0\n'
            'device.capacity["gpu-driver.example.com"].memory.compareTo(quantity("16Gi")) >= 0',
        )
    ]


def test_what_it_says_is_true_and_what_it_suggests_works() -> None:
    engine = default_engine()
    device = engine.bind("d.example.com", Device(name="a", attributes={"memory": DeviceAttribute(string="8Gi")}))
    asked = f'{D}.memory >= "16Gi"'
    assert engine.compile(asked).evaluate(device) is True
    assert engine.compile(suggestions(asked)[0].splitlines()[0]).evaluate(device) is False


@pytest.mark.parametrize(
    ("expression", "suggestion"),
    [
        pytest.param(f'{D}.m < "500"', f'quantity({D}.m).compareTo(quantity("500")) < 0', id="digits alone"),
        pytest.param(f'"16Gi" <= {D}.m', f'quantity({D}.m).compareTo(quantity("16Gi")) >= 0', id="the literal first"),
        pytest.param(f'{D}["m-x"] > "1k"', f'quantity({D}["m-x"]).compareTo(quantity("1k")) > 0', id="an odd name"),
        pytest.param(f'cel.bind(d, {D}, d.m > "1k")', f'quantity({D}.m).compareTo(quantity("1k")) > 0', id="a binding"),
        pytest.param(f'{D}.?m > "1k"', f'quantity({D}.m).compareTo(quantity("1k")) > 0', id="an optional"),
        pytest.param(
            f'{D}.list.exists(x, {D}.m > "1k")', f'quantity({D}.m).compareTo(quantity("1k")) > 0', id="inside a macro"
        ),
        pytest.param(f'{D}.v >= "1.2.3"', f'semver({D}.v).compareTo(semver("1.2.3")) >= 0', id="a version"),
        pytest.param(f'{D}.v >= "v12.4"', f'semver({D}.v, true).compareTo(semver("v12.4", true)) >= 0', id="v12.4"),
        pytest.param(f'{C}.m >= "1Gi"', f'{C}.m.compareTo(quantity("1Gi")) >= 0', id="a capacity"),
    ],
)
def test_finds(expression: str, suggestion: str) -> None:
    found = suggestions(expression)
    assert len(found) == 1
    assert found[0].splitlines()[0] == suggestion


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param(f'{D}.model == "80Gi"', id="equality of text is what it says"),
        pytest.param(f'{D}.name >= "abc"', id="text that is neither amount nor version"),
        pytest.param(f"{D}.index >= 16", id="a number"),
        pytest.param(f'quantity({D}.m).compareTo(quantity("16Gi")) >= 0', id="the right form"),
        pytest.param('["2"].all(device, device > "1")', id="another variable of that name"),
        pytest.param('["2"].all(x, x > "1")', id="no attribute"),
        pytest.param(f'{D}.list[0] > "1"', id="an element of a list"),
    ],
)
def test_is_silent_about(expression: str) -> None:
    assert advise(expression) == []


def test_a_sample_of_devices_decides_between_attribute_and_capacity() -> None:
    attribute = Device(name="a", attributes={"m": DeviceAttribute(string="8Gi")})
    capacity = Device(name="b", capacity={"d.example.com/m": DeviceCapacity(value="8Gi")})
    asked = f'{D}.m >= "16Gi"'
    assert suggestions(asked, attribute) == [f'quantity({D}.m).compareTo(quantity("16Gi")) >= 0']
    assert suggestions(asked, capacity) == [f'{C}.m.compareTo(quantity("16Gi")) >= 0']
    assert len(suggestions(asked, attribute, capacity)[0].splitlines()) == 2


def test_a_sample_of_devices_tells_a_version_from_text() -> None:
    version = Device(name="a", attributes={"v": DeviceAttribute(version="9.0.0")})
    assert suggestions(f'{D}.v >= "10.0.0"', version) == [f'{D}.v.compareTo(semver("10.0.0")) >= 0']


def test_an_expression_that_does_not_parse() -> None:
    with pytest.raises(SelectorCompileError):
        advise("device.driver ==")
