"""Where compile errors point, and the limits of expressions."""

import pytest

from broker.allocation.cel import (
    SelectorCompileError,
    SelectorFailure,
    SelectorPlace,
    describe_compile_error,
    describe_failure,
)
from broker.allocation.cel.cel_expr import CelExprEngine
from broker.allocation.cel.cel_python import CelPythonEngine
from broker.allocation.cel.cost import UNLIMITED, worst_case_cost
from schemas.resource import Device


@pytest.fixture(scope="module")
def engine() -> CelExprEngine:
    return CelExprEngine()


def error_of(engine: CelExprEngine | CelPythonEngine, expression: str) -> SelectorCompileError:
    with pytest.raises(SelectorCompileError) as caught:
        engine.compile(expression)
    return caught.value


@pytest.mark.parametrize(
    ("expression", "line", "marked", "message"),
    [
        pytest.param("device.foo", 1, ".foo", "undefined field 'foo'", id="a type error"),
        pytest.param(
            'true &&\n  device.driver == "x" &&\n  1 == "a"', 3, '== "a"', "no matching overload", id="line 3"
        ),
        pytest.param('device.driver.matches("[")', 1, '"["', "invalid regular expression", id="a pattern"),
        pytest.param('[1, "a"].size() == 2', 1, '"a"]', "expected type 'int' but found 'string'", id="a literal"),
        pytest.param('"é" == "é" && 1', 1, "&& 1", "no matching overload", id="characters, not bytes"),
        pytest.param("device.driver", 1, ".driver", "must evaluate to bool", id="the result"),
    ],
)
def test_an_error_shows_its_place(engine: CelExprEngine, expression: str, line: int, marked: str, message: str) -> None:
    error = error_of(engine, expression)
    shown, caret = error.caret.split("\n")
    assert (error.line, shown) == (line, expression.split("\n")[line - 1])
    assert shown[caret.index("^") :].startswith(marked)
    assert error.column == caret.index("^") + 1
    assert message in error.message
    assert str(error).startswith(f"line {line}, column {error.column}: ")


def test_syntax_errors_show_their_place_with_both_engines(engine: CelExprEngine) -> None:
    for one in (engine, CelPythonEngine()):
        error = error_of(one, "true &&\ntrue ]")
        assert (error.line, error.column) == (2, 6)
        assert error.caret == "true ]\n     ^"


@pytest.mark.parametrize("engine_type", [CelExprEngine, CelPythonEngine])
def test_the_longest_expression_has_10_kib(engine_type: type[CelExprEngine] | type[CelPythonEngine]) -> None:
    longest = "true" + " " * (10 * 1024 - 4)
    engine = engine_type()
    assert engine.compile(longest).evaluate(engine.bind("a", Device(name="a"))) is True
    assert "must have at most 10240 bytes, has 10241" in str(error_of(engine, longest + " "))


def test_the_length_is_counted_in_bytes(engine: CelExprEngine) -> None:
    assert "has 10249" in str(error_of(engine, "true //" + "é" * 5121))


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("lists.range(500).all(a, lists.range(500).all(b, a + b >= 0))", id="nested loops"),
        pytest.param("lists.range(2000000).size() > 0", id="a long range"),
        pytest.param(
            "".join(f"cel.bind(a{n}, a{n - 1} + a{n - 1}, " for n in range(1, 24)).replace("a0", "device.driver")
            + "a23.size() > 0"
            + ")" * 23,
            id="a string that doubles again and again",
        ),
        pytest.param('"%s".format([device.driver]).matches(device.driver)', id="a size that cannot be known"),
    ],
)
def test_what_could_cost_too_much_is_refused(engine: CelExprEngine, expression: str) -> None:
    assert "too complex" in error_of(engine, expression).message


@pytest.mark.parametrize(
    ("expression", "cost"),
    [
        # As k8s.io/dynamic-resource-allocation v0.37.2 estimates them.
        pytest.param('device.attributes["a"].b == "x"', 5, id="an attribute against text"),
        pytest.param("device == device", 2, id="the device"),
        pytest.param('device.attributes["a"].b.includes("x")', 68, id="an attribute that may be a list"),
        pytest.param('device.attributes["a"].b.exists(x, x == "H")', 389, id="a loop over an attribute"),
        pytest.param('cel.bind(d, device, d.attributes["n"] == {})', 44, id="a binding and a map"),
        pytest.param('{"a": 1}.transformMapEntry(k, v, {v: k}) == {1: "a"}', 126, id="two variables"),
        pytest.param("[3, 1].sortBy(x, -x) == [3, 1]", 91, id="sorting"),
        pytest.param('"a".find("b") == ""', 1, id="a pattern"),
        pytest.param('lists.range(device.attributes["a"].b) == [0]', UNLIMITED, id="no limit"),
    ],
)
def test_costs_are_those_of_kubernetes(engine: CelExprEngine, expression: str, cost: int) -> None:
    assert worst_case_cost(engine.parse(expression)) == cost


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("lists.range(120).all(a, lists.range(120).all(b, a >= 0))", id="more than 10,000 steps"),
        pytest.param(
            "".join(f"cel.bind(a{n}, a{n - 1} + a{n - 1}, " for n in range(1, 24)).replace("a0", "[1]")
            + "a23.size() > 0"
            + ")" * 23,
            id="a list that doubles again and again",
        ),
    ],
)
def test_what_takes_too_long_fails(engine: CelExprEngine, expression: str) -> None:
    verdict = engine.compile(expression).evaluate(engine.bind("a", Device(name="a")))
    assert isinstance(verdict, SelectorFailure)
    assert "10,000" in verdict.message or "10000" in verdict.message


@pytest.mark.parametrize(
    "expression", [pytest.param("(" * n + "true" + ")" * n, id=f"{n} levels") for n in (100, 5000)]
)
def test_deep_nesting_is_refused(engine: CelExprEngine, expression: str) -> None:
    assert "nested too deeply" in error_of(engine, expression).message


def test_bindings_too_deep_to_be_passed_on_are_refused(engine: CelExprEngine) -> None:
    bindings = "".join(f"cel.bind(a{n}, device.driver, " for n in range(28))
    error = error_of(engine, f"[1].exists(x, true) && {bindings} a0 == a1 {')' * 28}")
    assert "nested too deeply" in error.message


def test_text_that_is_no_unicode_is_refused(engine: CelExprEngine) -> None:
    assert "Unicode" in error_of(engine, 'device.driver == "\ud800"').message


def test_errors_name_the_object_the_selector_and_the_device(engine: CelExprEngine) -> None:
    place = SelectorPlace("DeviceClass gpu.example.com", 1)
    told = describe_compile_error(place, error_of(engine, "device.foo"))
    assert told.startswith(
        "DeviceClass gpu.example.com: selectors[1].cel.expression does not compile: line 1, column 7: undefined field"
    )
    assert told.endswith("\ndevice.foo\n      ^")
    failed = describe_failure(SelectorPlace("request gpu", 0), "rack7/gpu-0", SelectorFailure("no such key: x"))
    assert failed.startswith("request gpu: selectors[0].cel.expression failed on device rack7/gpu-0: no such key: x. ")
