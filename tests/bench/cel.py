"""CEL: what our engine adds to the library under it, and what the second opinion costs."""

from functools import partial
from typing import Any

import celpy
from cel_expr_python import cel
from celpy import celtypes

from broker.allocation.cel.cel_expr import CelExprEngine
from broker.allocation.cel.cel_python import CelPythonEngine
from broker.allocation.cel.engine import SelectorEngine
from schemas.resource import DeviceAttribute
from tests.bench.measure import Side, Table, least, per_call, progress, ratio, us
from tests.builders import DRIVER, a_device

_DEVICE = a_device(
    capacity={"memory": "80Gi"},
    model="model-3",
    index=2,
    fabric="fab-7",
    uuid="uuid-0000052",
    healthy=True,
    driverVersion=DeviceAttribute(version="550.54.15"),
)
_A, _C = f'device.attributes["{DRIVER}"]', f'device.capacity["{DRIVER}"]'
_SELECTORS = {
    "compare two attributes": f'{_A}.model == "model-3" && {_A}.index < 4',
    "in, exists, matches": f'{_A}.model in ["model-3", "model-4"] && ["fab-6", "fab-7"].exists(f, f == {_A}.fabric)'
    f' && {_A}.uuid.matches("^uuid-[0-9]+$")',
    "quantity and semver": f'{_C}.memory.compareTo(quantity("40Gi")) >= 0'
    f' && {_A}.driverVersion.isGreaterThan(semver("535.0.0"))',
}
_BARE_DEVICE: dict[str, Any] = {
    "driver": DRIVER,
    "attributes": {
        DRIVER: {"model": "model-3", "index": 2, "fabric": "fab-7", "uuid": "uuid-0000052", "healthy": True}
    },
}


def measure(repeats: int = 5) -> list[Table]:
    """Compile, bind and evaluate."""
    ours, second = CelExprEngine(), CelPythonEngine()
    evaluating, compiling = [], []
    for name, expression in _SELECTORS.items():
        progress(f"cel: {name}")
        is_plain_cel = name != "quantity and semver"
        sides = [_evaluation(ours, expression), _evaluation(second, expression)]
        compilations = [
            per_call(partial(ours.compile, expression)),
            per_call(partial(second.compile, expression)),
        ]
        if is_plain_cel:
            sides += [_bare_cel_expr(expression), _bare_celpy(expression)]
            compilations.append(_bare_compilation(expression))
        best = least(repeats, *sides)
        evaluating.append([name, us(best[0]), *_against(best[0], [best[2:3], best[1:2], best[3:4]])])
        best = least(repeats, *compilations)
        compiling.append([name, us(best[0]), *_against(best[0], [best[2:3], best[1:2]])])
    bound = least(
        repeats,
        per_call(lambda: ours.bind(DRIVER, _DEVICE)),
        per_call(lambda: second.bind(DRIVER, _DEVICE)),
        per_call(lambda: _ENVIRONMENT.Activation({"device": _BARE_DEVICE})),
    )
    compiling.append(["bind a device", us(bound[0]), *_against(bound[0], [bound[2:3], bound[1:2]])])
    notes = [
        "Bare: the library alone, without Kubernetes' functions and without telling three verdicts apart.",
        "Second opinion: cel-python behind the same interface, as the tests use it.",
    ]
    return [
        Table(
            "cel: evaluate a selector on a bound device",
            ["selector", "ours us", "to bare cel-expr-python", "to second opinion", "to bare cel-python"],
            evaluating,
            notes,
        ),
        Table(
            "cel: once per expression, once per device",
            ["compile", "ours us", "to bare cel-expr-python", "to second opinion"],
            compiling,
            ["Ours parses twice, checks types, walks the tree for limits and cost, and rewrites it."],
        ),
    ]


_ENVIRONMENT = cel.NewEnv(variables={"device": cel.Type.Map(cel.Type.STRING, cel.Type.DYN)})


def _evaluation(engine: SelectorEngine, expression: str) -> Side:
    selector, bound = engine.compile(expression), engine.bind(DRIVER, _DEVICE)
    assert selector.evaluate(bound) is True, f"{engine.name}: {expression}"
    return per_call(lambda: selector.evaluate(bound))


def _bare_cel_expr(expression: str) -> Side:
    program = _ENVIRONMENT.compile(expression)
    activation = _ENVIRONMENT.Activation({"device": _BARE_DEVICE})
    assert program.eval(activation).value() is True
    return per_call(lambda: program.eval(activation).value())


def _bare_compilation(expression: str) -> Side:
    return per_call(lambda: _ENVIRONMENT.compile(expression))


def _bare_celpy(expression: str) -> Side:
    environment = celpy.Environment(runner_class=celpy.InterpretedRunner)
    program = environment.program(environment.compile(expression))
    variables = {"device": celpy.json_to_cel(_BARE_DEVICE)}
    assert program.evaluate(variables) == celtypes.BoolType(True)
    return per_call(lambda: program.evaluate(variables))


def _against(ours: float, others: list[list[float]]) -> list[str]:
    return [ratio(ours, other[0]) if other else "-" for other in others]
