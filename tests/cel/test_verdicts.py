"""Both engines on the table of selectors."""

import subprocess
import sys

import pytest

from broker.allocation.cel import SelectorCompileError, SelectorFailure
from broker.allocation.cel.cel_expr import CelExprEngine
from broker.allocation.cel.cel_python import CelPythonEngine
from broker.allocation.cel.engine import CachingEngine, SelectorEngine, default_engine
from schemas.resource import Device, DeviceAttribute, DeviceCapacity
from tests.cel.selectors import CASES, DEVICE, DRIVER, Case, Expected

ALL_CASES = [pytest.param(case, id=case.about) for case in CASES]


@pytest.fixture(scope="module")
def cel_expr() -> CelExprEngine:
    return CelExprEngine()


@pytest.fixture(scope="module")
def cel_python() -> CelPythonEngine:
    return CelPythonEngine()


def outcome(engine: SelectorEngine, expression: str, driver: str = DRIVER, device: Device = DEVICE) -> Expected:
    try:
        verdict = engine.compile(expression).evaluate(engine.bind(driver, device))
    except SelectorCompileError:
        return Expected.REFUSED
    if isinstance(verdict, SelectorFailure):
        return Expected.ERROR
    return Expected.TRUE if verdict is True else Expected.FALSE


@pytest.mark.parametrize("case", ALL_CASES)
def test_cel_expr_agrees_with_kubernetes(cel_expr: CelExprEngine, case: Case) -> None:
    assert outcome(cel_expr, case.expression) is case.expected


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.about) for case in CASES if case.expected is not Expected.REFUSED]
)
def test_cel_python_agrees_or_refuses(cel_python: CelPythonEngine, case: Case) -> None:
    # What Kubernetes refuses for its types alone, cel-python cannot tell: it has no type checker.
    assert outcome(cel_python, case.expression) in (case.expected, Expected.REFUSED)


def test_cel_python_takes_most_of_what_selectors_are_made_of(cel_python: CelPythonEngine) -> None:
    taken = [case for case in CASES if outcome(cel_python, case.expression) is not Expected.REFUSED]
    assert len(taken) >= 90


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        pytest.param('@.?model.orValue("x") == "H100"', "syntax that", id="optionals"),
        pytest.param("cel.bind(d, @, d.index == 2)", "namespaced functions", id="cel.bind"),
        pytest.param('sets.contains(@.features, ["mig"])', "namespaced functions", id="sets"),
        pytest.param("@.exists(k, v, v == 2)", "one variable and one expression", id="two variables"),
        pytest.param("@.ports.sum() == 6", "the method sum", id="a method that it lacks"),
        pytest.param("has(@.model.foo)", "has()", id="has() that would hide an error"),
        pytest.param("device == device", "`device` itself", id="the whole device"),
        pytest.param("dev.driver == 'x'", "undeclared reference", id="an unknown variable"),
        pytest.param("device.foo == 1", "undefined field", id="an unknown field"),
        pytest.param("1 + 1", "must evaluate to bool", id="a result that is no bool"),
        pytest.param(
            "@.ports.all(a, @.ports.all(b, @.ports.all(c, a + b + c > 0)))", "nested deeper", id="deep macros"
        ),
    ],
)
def test_cel_python_says_why_it_refuses(cel_python: CelPythonEngine, expression: str, why: str) -> None:
    with pytest.raises(SelectorCompileError) as caught:
        cel_python.compile(Case("", Expected.REFUSED, expression).expression)
    assert why in str(caught.value)


@pytest.mark.parametrize("engine_type", [CelExprEngine, CelPythonEngine])
def test_a_device_that_cannot_be_read_fails_every_selector(
    engine_type: type[CelExprEngine] | type[CelPythonEngine],
) -> None:
    engine = engine_type()
    for device in (
        Device(name="gpu-0", attributes={"v": DeviceAttribute(version="1.2")}),
        Device(name="gpu-0", attributes={"v": DeviceAttribute()}),
        Device(name="gpu-0", capacity={"v": DeviceCapacity(value="many")}),
    ):
        verdict = engine.compile("true").evaluate(engine.bind(DRIVER, device))
        assert isinstance(verdict, SelectorFailure)
        assert verdict.message.startswith("v cannot be read: ")


@pytest.mark.parametrize("engine_type", [CelExprEngine, CelPythonEngine])
def test_a_device_without_anything_has_a_driver_and_is_exclusive(
    engine_type: type[CelExprEngine] | type[CelPythonEngine],
) -> None:
    expression = 'device.driver == "a.example.com" && !device.allowMultipleAllocations && device.attributes.size() == 0'
    assert outcome(engine_type(), expression, "a.example.com", Device(name="a")) is Expected.TRUE


def test_a_failure_is_neither_true_nor_false() -> None:
    with pytest.raises(TypeError, match="three values"):
        bool(SelectorFailure("no such key: x"))


def test_failures_speak_of_the_expression_not_of_its_library(cel_expr: CelExprEngine) -> None:
    bound = cel_expr.bind(DRIVER, DEVICE)
    messages = {
        expression: cel_expr.compile(Case("", Expected.ERROR, expression).expression).evaluate(bound)
        for expression in ("@.missing", "@.model", "quantity(@.model).isInteger()", "@.index > 'a'")
    }
    assert messages["@.missing"] == SelectorFailure("no such key: missing")
    assert messages["@.model"] == SelectorFailure("the result is of type string, not bool")
    assert 'expected a quantity, found "H100"' in getattr(messages["quantity(@.model).isInteger()"], "message", "")
    assert messages["@.index > 'a'"] == SelectorFailure("no such overload: _>_(int64, string)")


class _CountingEngine:
    name = "counting"

    def __init__(self, engine: CelExprEngine) -> None:
        self.bind = engine.bind
        self.compiled: list[str] = []
        self._engine = engine

    def compile(self, expression: str) -> object:
        self.compiled.append(expression)
        return self._engine.compile(expression)

    def compile_attribute(self, expression: str) -> object:
        self.compiled.append(expression)
        return self._engine.compile_attribute(expression)


def test_an_expression_is_compiled_once_even_if_it_is_wrong(cel_expr: CelExprEngine) -> None:
    counting = _CountingEngine(cel_expr)
    engine = CachingEngine(counting)  # type: ignore[arg-type]  # compile() returns the selector as object here
    assert engine.compile("true") is engine.compile("true")
    for _ in range(2):
        with pytest.raises(SelectorCompileError, match="must evaluate to bool"):
            engine.compile("1")
    assert engine.compile_attribute("1") is engine.compile_attribute("1")
    assert counting.compiled == ["true", "1", "1"]


def test_the_default_engine_is_cel_expr_python_behind_the_cache() -> None:
    assert isinstance(default_engine(), CachingEngine)
    assert default_engine().name == "cel-expr-python"
    assert default_engine() is default_engine()


WITHOUT_CEL_EXPR = """
import sys
sys.modules["cel_expr_python"] = None
from broker.allocation.cel import WHOLE_DEVICE, advise, default_engine, fields_read
from schemas.resource import Device
engine = default_engine()
expression = 'device.driver == "a"'
print(engine.name, engine.compile(expression).evaluate(engine.bind("a", Device(name="d"))))
print(advise('device.attributes["a"].m >= "16Gi"'), fields_read(expression) == WHOLE_DEVICE)
"""


def test_where_cel_expr_python_has_no_wheel_cel_python_takes_its_place() -> None:
    run = subprocess.run([sys.executable, "-c", WITHOUT_CEL_EXPR], capture_output=True, text=True, check=True)
    assert run.stdout == "cel-python True\n[] True\n"
