"""How much work an expression may be: counted, never timed."""

from itertools import pairwise

import pytest

from broker.allocation.cel import SelectorCompileError, SelectorFailure
from broker.allocation.cel.cel_expr import CelExprEngine
from schemas.resource import Device, DeviceAttribute

A = 'device.attributes["gpu.example.com"]'


@pytest.fixture(scope="module")
def engine() -> CelExprEngine:
    return CelExprEngine()


def nested(levels: int, use: str) -> str:
    """Lists of ten lists of ten lists ...; `use` is what is done with the last, which it calls X."""
    expression = use.replace("X", f"v{levels}")
    for level in range(levels, 0, -1):
        inner = f"v{level - 1}" if level > 1 else '"a"'
        expression = f"cel.bind(v{level}, [{', '.join([inner] * 10)}], {expression})"
    return expression


def copies(count: int) -> str:
    return "[" + ", ".join(['"x"'] * count) + "]"


ON_ALL_LEVELS = [
    "X == X",
    "X != X",
    "X in [X]",
    "dyn(X) == dyn(X)",
    "[[X], [X]] == [[X], [X]]",
    '{"a": X} == {"a": X}',
    '"%s".format([X]) == "a"',
    "sets.contains([X], [X])",
    "sets.equivalent([X], [X])",
    "sets.intersects([X], [X])",
    "[X, X].distinct().size() == 1",
    "[X, X].indexOf(X) == 0",
    "[X].map(x, x) == [X]",
    "[X].filter(x, true)[0] == X",
    "optional.of(X).value() == X",
    "optional.of(X).orValue(X) == X",
    "(true ? X : []) == X",
    "([X] + [X]) == [X]",
    "[X].reverse() == [X]",
    "[X].first().value() == X",
    "[X].all(x, x == X)",
    "X.includes(X)",
    "X.flatten(12).size() > 0",
]


@pytest.mark.parametrize("use", ON_ALL_LEVELS)
def test_what_looks_at_all_levels_of_a_value_is_charged_for_all(engine: CelExprEngine, use: str) -> None:
    steps = [engine.compile(nested(levels, use)).steps for levels in (2, 3, 4)]
    assert all(more > 5 * less for less, more in pairwise(steps)), steps


@pytest.mark.parametrize("use", ON_ALL_LEVELS)
def test_ten_levels_of_ten_are_refused_before_anybody_evaluates_them(engine: CelExprEngine, use: str) -> None:
    with pytest.raises(SelectorCompileError, match="too complex: evaluating it once can take"):
        engine.compile(nested(10, use))


def test_a_value_that_nobody_looks_into_may_be_as_deep_as_it_likes(engine: CelExprEngine) -> None:
    assert engine.compile(nested(14, "X.size() == 10")).steps < 100


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param(f"{copies(300)}.all(a, !{A}.name.matches('(a|aa|aaa|aaaa){{1,200}}b'))", id="a large program"),
        pytest.param(f"{copies(300)}.all(a, !{A}.name.matches('[b-z]{{1,500}}' + a))", id="patterns that are computed"),
        pytest.param(f"{copies(300)}.all(a, {A}.name.findAll('a').size() == 64)", id="all matches"),
        pytest.param("lists.range(9999).map(a, a).size() > 0", id="a long list that a macro makes"),
        pytest.param("lists.range(2000).transformMap(i, v, v).size() > 0", id="a large map that a macro makes"),
    ],
)
def test_what_takes_long_though_it_costs_little_is_refused(engine: CelExprEngine, expression: str) -> None:
    with pytest.raises(SelectorCompileError, match="too complex: evaluating it once can take"):
        engine.compile(expression)


def test_a_pattern_is_charged_by_its_program(engine: CelExprEngine) -> None:
    small, large = (engine.compile(f"{A}.name.matches('^[a-z]{{1,{times}}}b')").steps for times in (10, 500))
    assert large > 20 * small
    once, often = (engine.compile(f"{copies(count)}.all(a, {A}.name.matches('a+b'))").steps for count in (1, 100))
    assert often > 50 * once


def test_patterns_that_are_too_large_together_are_refused(engine: CelExprEngine) -> None:
    many = " || ".join(f"{A}.name.matches('x{n}(.*){{900}}')" for n in range(100))
    with pytest.raises(SelectorCompileError, match="patterns of more than 20,000 instructions"):
        engine.compile(many)


@pytest.mark.parametrize("function", ["matches(@)", "find(@) != ''", "findAll(@).size() > 0"])
def test_a_pattern_that_is_computed_must_be_small(engine: CelExprEngine, function: str) -> None:
    device = engine.bind("gpu.example.com", Device(name="a", attributes={"name": DeviceAttribute(string="A100-4g")}))
    small = function.replace("@", "'^A' + '[0-9]+-4g'")
    assert engine.compile(f"{A}.name.{small}").evaluate(device) is True
    large = function.replace("@", "'([a-z]+){1000}' + 'b'")
    verdict = engine.compile(f"{A}.name.{large}").evaluate(device)
    assert isinstance(verdict, SelectorFailure)
    assert "pattern too large" in verdict.message


@pytest.mark.parametrize(
    "expression",
    ["dyn(X).isGreaterThan(semver('1.0.0'))", "quantity(dyn(X)).isInteger()", "dyn(X).find(dyn(X)) == ''"],
)
def test_a_list_where_none_is_taken_does_not_get_to_python(engine: CelExprEngine, expression: str) -> None:
    verdict = engine.compile(nested(2, expression)).evaluate(engine.bind("gpu.example.com", Device(name="a")))
    assert isinstance(verdict, SelectorFailure)
    assert "no such overload" in verdict.message
    assert engine.compile(nested(14, expression)).steps < 100_000


def test_the_size_of_a_text_is_charged_by_its_characters(engine: CelExprEngine) -> None:
    loop = "cel.bind(t, @, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10].all(x, t.size() > 0))"
    short, long = (engine.compile(loop.replace("@", f"'{'a' * length}'")).steps for length in (10, 9_000))
    assert long > short + 20


def test_calls_into_python_are_charged_for(engine: CelExprEngine) -> None:
    capacity = "device.capacity['gpu.example.com'].memory"
    once, often = (
        engine.compile(f"{copies(count)}.all(a, {capacity}.compareTo(quantity('40Gi')) >= 0)").steps
        for count in (1, 500)
    )
    assert once > 6
    assert often > 2_500


@pytest.mark.parametrize(
    ("expression", "steps"),
    [
        pytest.param(f"{A}.model == 'A100' && {A}.driverVersion.isGreaterThan(semver('535.1.0'))", 20, id="a version"),
        pytest.param(f"{A}.model in ['A100', 'H100', 'H200']", 10, id="a list"),
        pytest.param("device.capacity['gpu.example.com'].memory.compareTo(quantity('40Gi')) >= 0", 40, id="memory"),
        pytest.param(f"{A}.productName.lowerAscii().matches('^.*a100.*$')", 60, id="a pattern"),
        pytest.param(f"has({A}.numa) && {A}.numa == 1 && 'gpu.example.com' in device.attributes", 10, id="presence"),
        pytest.param(f"['A100', 'H100'].exists(m, {A}.model.startsWith(m))", 20, id="a loop"),
    ],
)
def test_what_people_write_is_cheap(engine: CelExprEngine, expression: str, steps: int) -> None:
    assert 0 < engine.compile(expression).steps <= steps
