"""The second opinion: Kubernetes' DRA environment on cel-python, as far as that goes.

It is used where there is no wheel of cel-expr-python, and in tests, where both must agree. cel-python has no type
checker, no optionals, no namespaced functions and no macros beyond the first five, so this engine takes only
expressions of a form that it evaluates as Kubernetes does, and refuses others when they are compiled rather than
guess. Type errors show here only when an expression meets a device, and nothing is known of costs; nested macros are
therefore limited to two levels, over lists and maps that the API keeps short.

Importing cel-python sets the process's recursion limit to 2500. Its interpreter is used, not its compiler, which
shares globals between threads and cannot call functions that are closures.
"""

import operator
from collections.abc import Callable
from typing import Any

import celpy
import msgspec
from celpy import celtypes
from celpy.evaluation import Activation, CELEvalError, Evaluator
from lark import Token, Tree

from broker.allocation.cel import library
from broker.allocation.cel.engine import (
    AttributeValue,
    BoundDevice,
    SelectorCompileError,
    SelectorFailure,
    Verdict,
    attribute_value,
    check_length,
)
from broker.allocation.cel.library import FUNCTIONS, cel_equal, compiled_pattern
from broker.allocation.cel.network import CIDR, IP
from broker.allocation.cel.values import device_values
from schemas.quantity import Quantity
from schemas.resource import Device
from schemas.semver import Semver

_MACROS = {"all", "exists", "exists_one", "filter", "map"}
_MAX_MACRO_DEPTH = 2
_ASSUMED_STEPS = 1_000  # nothing is known of costs here
_DEVICE_FIELDS = {"driver", "allowMultipleAllocations", "attributes", "capacity"}
_DOMAIN_MAPS = {"attributes", "capacity"}
_NO_BOOLEANS = {"addition", "multiplication", "list_lit"}
_NOT_UNDERSTOOD = "cel-python, which this process uses for want of cel-expr-python, cannot evaluate"


class CelPythonEngine:
    """cel-python's interpreter behind the allocator's interface."""

    name = "cel-python"

    def __init__(self) -> None:
        self._environment = celpy.Environment(runner_class=celpy.InterpretedRunner)

    def compile(self, expression: str) -> "CelPythonSelector":
        return CelPythonSelector(expression, self._compile(expression, is_selector=True))

    def compile_attribute(self, expression: str) -> "CelPythonAttribute":
        return CelPythonAttribute(self._compile(expression, is_selector=False))

    def _compile(self, expression: str, is_selector: bool) -> Any:
        check_length(expression)
        try:
            tree = self._environment.compile(expression)
        except celpy.CELParseError as error:
            message = f"syntax error, or syntax that {_NOT_UNDERSTOOD}"
            if error.line is None or error.line < 1:
                raise SelectorCompileError(message) from error
            lines = expression.split("\n")
            offset = sum(len(line) + 1 for line in lines[: error.line - 1]) + max((error.column or 1) - 1, 0)
            raise SelectorCompileError.at(expression, offset, message) from error
        except RecursionError as error:
            raise SelectorCompileError("the expression is nested too deeply") from error
        _Inspection(expression).check(tree, is_selector)
        return tree

    def bind(self, driver: str, device: Device) -> "CelPythonDevice | SelectorFailure":
        values = device_values(driver, device, _to_cel)
        if isinstance(values, SelectorFailure):
            return values
        return CelPythonDevice(
            celtypes.MapType(
                {
                    celtypes.StringType("driver"): _to_cel(values.driver),
                    celtypes.StringType("allowMultipleAllocations"): _to_cel(values.allow_multiple_allocations),
                    celtypes.StringType("attributes"): _domain_map(values.attributes),
                    celtypes.StringType("capacity"): _domain_map(values.capacity),
                }
            )
        )


class CelPythonDevice(msgspec.Struct, frozen=True):
    """The variable `device`."""

    value: Any


class CelPythonSelector:
    """A tree of cel-python's parser."""

    steps = _ASSUMED_STEPS

    def __init__(self, expression: str, tree: Any) -> None:
        self.expression = expression
        self._tree = tree

    def evaluate(self, device: BoundDevice) -> Verdict:
        value = _evaluate(self._tree, device)
        if isinstance(value, celtypes.BoolType):
            return bool(value)
        if isinstance(value, SelectorFailure):
            return value
        return SelectorFailure(f"the result is of type {type(value).__name__}, not bool")


class CelPythonAttribute:
    """A tree of cel-python's parser that computes an attribute."""

    steps = _ASSUMED_STEPS

    def __init__(self, tree: Any) -> None:
        self._tree = tree

    def evaluate(self, device: BoundDevice) -> AttributeValue | SelectorFailure:
        value = _evaluate(self._tree, device)
        return value if isinstance(value, SelectorFailure) else attribute_value(_from_cel(value))


def _evaluate(tree: Any, device: BoundDevice) -> Any:
    """The value of an expression, or a SelectorFailure."""
    if isinstance(device, SelectorFailure):
        return device
    assert isinstance(device, CelPythonDevice), "bound by another engine"
    activation = Activation(vars={"device": device.value}, functions=_FUNCTIONS)
    try:
        value = _KubernetesEvaluator(tree, activation).evaluate()
        if isinstance(value, CELEvalError):
            raise value
    except (CELEvalError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        cause = error.__cause__ if isinstance(error, CELEvalError) and error.__cause__ else error
        return SelectorFailure(str(cause.args[0]) if cause.args else str(cause))
    return value


class _DomainMap(celtypes.MapType):  # type: ignore[misc]  # the package is not typed
    """Reading a domain that a device has nothing of yields an empty map; `in` and macros see what there is."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if key in self else celtypes.MapType({})


def _domain_map(domains: dict[str, dict[str, Any]]) -> _DomainMap:
    return _DomainMap(
        {
            celtypes.StringType(domain): celtypes.MapType(
                {celtypes.StringType(name): value for name, value in entries.items()}
            )
            for domain, entries in domains.items()
        }
    )


class _KubernetesEvaluator(Evaluator):  # type: ignore[misc]  # the package is not typed
    """With macros over lists and maps only, and errors of macros as values, which || and && can absorb."""

    def sub_evaluator(self, ast: Any) -> "_KubernetesEvaluator":
        return _KubernetesEvaluator(ast, activation=self.activation)

    def member_dot_arg(self, tree: Any) -> Any:
        if tree.children[1].value in _MACROS:
            over = self.visit(tree.children[0])
            if not isinstance(over, celtypes.ListType | celtypes.MapType | CELEvalError):
                return CELEvalError(f"no such overload: {tree.children[1].value} over {type(over).__name__}")
        try:
            return super().member_dot_arg(tree)
        except (CELEvalError, TypeError) as error:
            return error if isinstance(error, CELEvalError) else CELEvalError(*error.args)


class _Inspection:
    """Walks a tree and refuses what cel-python would get wrong or what Kubernetes would refuse."""

    def __init__(self, expression: str) -> None:
        self._expression = expression

    def check(self, tree: Any, is_selector: bool) -> None:
        root = _inner(tree)
        if not is_selector:
            pass  # any type will do until a device shows which it is
        elif root.data in _NO_BOOLEANS or (root.data == "literal" and root.children[0].type != "BOOL_LIT"):
            raise SelectorCompileError("must evaluate to bool")
        self._visit(tree, frozenset(), 0)

    def _visit(self, tree: Any, variables: frozenset[str], depth: int) -> None:
        if tree is None or isinstance(tree, Token):
            return
        match tree.data:
            case "member_dot_arg":
                self._method(tree, variables, depth)
                return
            case "ident_arg":
                self._function(tree)
            case "ident":
                name = tree.children[0].value
                if name == "device":
                    self._refuse(tree, "`device` itself as a value")
                if name not in variables:
                    self._fail(tree, f"undeclared reference to '{name}'")
            case "member_dot" if _is_device(tree.children[0]):
                if tree.children[1].value not in _DEVICE_FIELDS:
                    self._fail(tree, f"undefined field '{tree.children[1].value}'")
                return
            case "member_object" | "map_lit" | "dot_ident" | "dot_ident_arg":
                self._refuse(tree, "message and map literals, or names that begin with a dot")
            case "literal" if tree.children[0].type in ("UINT_LIT", "BYTES_LIT"):
                self._refuse(tree, "literals of type uint and bytes")
        for child in tree.children:
            self._visit(child, variables, depth)

    def _method(self, tree: Any, variables: frozenset[str], depth: int) -> None:
        target, name = tree.children[0], tree.children[1].value
        arguments = tree.children[2].children if len(tree.children) > 2 and tree.children[2] is not None else []
        inner = _inner(target)
        if inner.data == "ident" and inner.children[0].value not in variables:
            self._refuse(tree, f"namespaced functions such as {inner.children[0].value}.{name}")
        self._visit(target, variables, depth)
        if name not in _MACROS:
            if name not in _METHODS:
                self._refuse(tree, f"the method {name}")
            for argument in arguments:
                self._visit(argument, variables, depth)
            return
        variable = _inner(arguments[0]) if len(arguments) == 2 else None
        if variable is None or variable.data != "ident":
            self._refuse(tree, f"{name} with other than one variable and one expression")
            return
        if depth == _MAX_MACRO_DEPTH:
            self._refuse(tree, f"macros nested deeper than {_MAX_MACRO_DEPTH} levels")
        self._visit(arguments[1], variables | {variable.children[0].value}, depth + 1)

    def _function(self, tree: Any) -> None:
        name = tree.children[0].value
        if name == "has":
            if not _is_attribute_test(tree):
                self._refuse(tree, "has() of anything but an attribute or capacity")
        elif name not in _PLAIN_FUNCTIONS:
            self._refuse(tree, f"the function {name}")

    def _refuse(self, tree: Any, what: str) -> None:
        self._fail(tree, f"{_NOT_UNDERSTOOD} {what}")

    def _fail(self, tree: Any, message: str) -> None:
        raise SelectorCompileError.at(self._expression, tree.meta.start_pos, message)


def _inner(tree: Any) -> Any:
    """The node below those that only group: `x` of ((x))."""
    while len(tree.children) == 1 and isinstance(tree.children[0], Tree):
        tree = tree.children[0]
    return tree


def _is_device(tree: Any) -> bool:
    inner = _inner(tree)
    return bool(inner.data == "ident" and inner.children[0].value == "device")


def _is_attribute_test(tree: Any) -> bool:
    """has(device.attributes[...].name), where an error below cannot be taken for an absent attribute."""
    selected = _inner(tree.children[1])
    if selected.data != "member_dot":
        return False
    domain = _inner(selected.children[0])
    if domain.data not in ("member_index", "member_dot"):
        return False
    domains = _inner(domain.children[0])
    if domain.data == "member_index" and _inner(domain.children[1]).data != "literal":
        return False
    is_field = domains.data == "member_dot" and _is_device(domains.children[0])
    return bool(is_field and domains.children[1].value in _DOMAIN_MAPS)


def _to_cel(value: Any) -> Any:
    match value:
        case bool():
            return celtypes.BoolType(value)
        case int():
            return celtypes.IntType(value)
        case float():
            return celtypes.DoubleType(value)
        case str():
            return celtypes.StringType(value)
        case list():
            return celtypes.ListType(map(_to_cel, value))
        case dict():
            return celtypes.MapType({_to_cel(key): _to_cel(item) for key, item in value.items()})
    return value


def _from_cel(value: Any) -> Any:
    match value:
        case CELEvalError():
            raise value
        case celtypes.BoolType():
            return bool(value)
        case celtypes.ListType():
            return list(map(_from_cel, value))
        case celtypes.MapType():
            return {_from_cel(key): _from_cel(item) for key, item in value.items()}
        case celtypes.IntType():
            return int(value)
        case celtypes.DoubleType():
            return float(value)
        case celtypes.StringType():
            return str(value)
    return value


def _translated(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function on Python values as one on cel-python's; errors are values there."""

    def translated(*arguments: Any) -> Any:
        try:
            return _to_cel(function(*map(_from_cel, arguments)))
        except CELEvalError as error:
            return error
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            return CELEvalError(*error.args)

    return translated


def _library_function(name: str) -> Callable[..., Any]:
    return _translated(lambda *arguments: library.call(name, arguments))


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Semver | Quantity) and right is not None and type(left) is not type(right):
        raise TypeError(f"no such overload: {type(left).__name__} == {type(right).__name__}")
    return cel_equal(left, right)


def _not_equal(left: Any, right: Any) -> bool:
    return not cel_equal(left, right)


def _ordering(compare: Callable[[Any, Any], bool]) -> Callable[..., Any]:
    def ordered(left: Any, right: Any) -> bool:
        for kinds in ((int, float), (str,), (bool,)):
            if all(
                isinstance(value, kinds) and isinstance(value, bool) == (kinds == (bool,)) for value in (left, right)
            ):
                return compare(left, right)
        raise TypeError(f"no such overload: comparison of {type(left).__name__} and {type(right).__name__}")

    return ordered


def _arithmetic(symbol: str, compute: Callable[[Any, Any], Any], kinds: tuple[type, ...]) -> Callable[..., Any]:
    def computed(left: Any, right: Any) -> Any:
        if isinstance(left, CELEvalError) or isinstance(right, CELEvalError):
            return left if isinstance(left, CELEvalError) else right
        if type(left) is not type(right) or not isinstance(left, kinds):
            return CELEvalError(f"no such overload: {type(left).__name__} {symbol} {type(right).__name__}")
        try:
            return compute(left, right)
        except (ArithmeticError, ValueError) as error:
            return CELEvalError(*error.args)

    return computed


def _item(container: Any, key: Any) -> Any:
    is_list = isinstance(container, celtypes.ListType) and isinstance(key, celtypes.IntType)
    if not is_list and not (isinstance(container, celtypes.MapType) and isinstance(key, celtypes.StringType)):
        raise TypeError(f"no such overload: {type(container).__name__}[{type(key).__name__}]")
    if is_list and not 0 <= key < len(container):
        raise IndexError(f"index out of bounds: {key}")
    return container[key]


def _is_in(item: Any, container: Any) -> bool:
    if isinstance(container, list):
        return any(cel_equal(item, element) for element in container)
    if isinstance(container, dict):
        return isinstance(item, str) and item in container
    raise TypeError("no such overload: in")


def _on_text(function: Callable[[str, str], bool]) -> Callable[..., Any]:
    def on_text(text: Any, other: Any) -> bool:
        if not isinstance(text, str) or not isinstance(other, str):
            raise TypeError("no such overload: this method takes strings")
        return function(text, other)

    return _translated(on_text)


def _size(value: Any) -> int:
    if not isinstance(value, str | list | dict):
        raise TypeError(f"no such overload: size({type(value).__name__})")
    return len(value)


def _includes(target: Any, wanted: Any) -> bool:
    return _is_in(wanted, target) if isinstance(target, list) else cel_equal(target, wanted)


def _to_string(value: Any) -> str:
    if not isinstance(value, str | int | IP | CIDR) or isinstance(value, bool):
        raise TypeError(f"no such overload: string({type(value).__name__})")
    return str(value)


_NUMBERS = (celtypes.IntType, celtypes.DoubleType)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: _library_function(name) for name in FUNCTIONS if "." not in name and not name.startswith("@")},
    "_==_": _translated(_equal),
    "_!=_": _translated(_not_equal),
    "_<_": _translated(_ordering(operator.lt)),
    "_<=_": _translated(_ordering(operator.le)),
    "_>_": _translated(_ordering(operator.gt)),
    "_>=_": _translated(_ordering(operator.ge)),
    "_in_": _translated(_is_in),
    "_+_": _arithmetic("+", operator.add, (*_NUMBERS, celtypes.StringType)),
    "_-_": _arithmetic("-", operator.sub, _NUMBERS),
    "_*_": _arithmetic("*", operator.mul, _NUMBERS),
    "_/_": _arithmetic("/", operator.truediv, _NUMBERS),
    "_%_": _arithmetic("%", operator.mod, (celtypes.IntType,)),
    "_[_]": _item,
    "size": _translated(_size),
    "startsWith": _on_text(str.startswith),
    "endsWith": _on_text(str.endswith),
    "contains": _on_text(str.__contains__),
    "matches": _on_text(lambda text, pattern: compiled_pattern(pattern).search(text) is not None),
    "includes": _translated(_includes),
    "string": _translated(_to_string),
}
_METHODS = {
    name
    for name, overloads in FUNCTIONS.items()
    if name in _FUNCTIONS and any(overload.is_method for overload in overloads) and name != "validate"
} | {"size", "startsWith", "endsWith", "contains", "matches", "includes"}
_PLAIN_FUNCTIONS = {
    name
    for name, overloads in FUNCTIONS.items()
    if name in _FUNCTIONS and any(not overload.is_method for overload in overloads)
} | {"size", "string"}
