"""Kubernetes' DRA environment on cel-expr-python, Google's C++ implementation of CEL.

An expression is checked in one environment, where device, attributes and Kubernetes' types are declared as upstream
declares them, and evaluated in another, where a device is a plain map; `rewrite` leads from one to the other.

Limits differ from Kubernetes' in two places. Kubernetes counts costs while it evaluates, up to 1,000,000 units;
cel-expr-python has no such meter, but lets all comprehensions of one evaluation together take at most 10,000 steps. So
the worst case is estimated when an expression is compiled (`cost`), as the API server does on admission, and again in
time (`work`), and what nests loops deeply over long lists may fail here although kube-scheduler could just afford it.
And cel-expr-python parses 32 levels of nesting, where cel-go parses 250.

Verdicts differ where upstream's are accidents that no selector should rest on: format() of maps and of exponents, lists
of versions compared with lists of strings, duplicate keys in a map literal.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import msgspec
from cel_expr_python import cel
from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.message import DecodeError, EncodeError

from broker.allocation.cel import library
from broker.allocation.cel.checks import (
    ATTRIBUTE_RESULTS,
    SELECTOR_RESULTS,
    check_cost,
    check_expression,
    check_steps,
    raise_first,
)
from broker.allocation.cel.engine import (
    AttributeValue,
    BoundDevice,
    SelectorCompileError,
    SelectorFailure,
    Verdict,
    attribute_value,
    check_length,
)
from broker.allocation.cel.library import COMPARABLE_TYPES, FUNCTIONS, OPAQUE_TYPES, from_opaque_text, opaque_text
from broker.allocation.cel.rewrite import OPAQUE_FIELD, evaluable, python_name
from broker.allocation.cel.syntax import Identifier, Node, Parsed, Select, Type, read, walk, write
from broker.allocation.cel.values import DeviceValues, device_values
from broker.allocation.cel.work import worst_case_steps
from schemas.resource import Device
from schemas.semver import Semver

_PACKAGE = "kubernetes"
_LIBRARIES = {"sets": "latest", "lists": "latest", "strings": "2", "optional": "latest", "bindings": "latest"}
_PLACE = re.compile(r"ERROR: <input>:(\d+):(\d+): (.*)")
_STATUS = re.compile(r"^(?:[A-Z_]+: )?(.*?)(?: \[[A-Z_]+\])?$", re.DOTALL)
_TOO_DEEP = "the expression is nested too deeply: cel-expr-python allows 32 levels"
_DEVICE_TYPE = Type("kubernetes.DRADevice")
_CAPACITY_TEST = re.compile(r"\bhas\(\s*device\s*\.\s*capacity\s*\)")


class CelExprEngine:
    """cel-expr-python behind the allocator's interface."""

    name = "cel-expr-python"

    def __init__(self) -> None:
        self._checking = _checking_environment()
        self._evaluating = _evaluating_environment()
        self.compile("true")  # environments are built at their first use; what is wrong with them should show here

    def compile(self, expression: str) -> "CelExprSelector":
        program, steps = self._compile(expression, SELECTOR_RESULTS)
        return CelExprSelector(expression, program, steps)

    def compile_attribute(self, expression: str) -> "CelExprAttribute":
        program, steps = self._compile(expression, ATTRIBUTE_RESULTS)
        return CelExprAttribute(program, steps)

    def _compile(self, expression: str, results: Sequence[Type]) -> tuple[Any, int]:
        check_length(expression)
        checked = self.parse(expression)
        raise_first(expression, checked, check_expression(checked, self._error_of_constant, results))
        raise_first(expression, checked, check_cost(checked))
        steps = worst_case_steps(checked)
        raise_first(expression, checked, check_steps(checked, steps))
        try:
            program = self._evaluating.deserialize(write(evaluable(checked)))
        except (RuntimeError, EncodeError) as error:
            # What was just parsed can only be too deep for the messages that carry it.
            raise SelectorCompileError(_TOO_DEEP) from error
        return program, steps

    def parse(self, expression: str) -> Parsed:
        """The tree as it was written, with the types that the checker found.

        Raises: SelectorCompileError.
        """
        # has(device.capacity) is always true; to the checker, `device.capacity` is one name, of which has() is no bool.
        checkable = _CAPACITY_TEST.sub(lambda match: "true".ljust(len(match[0])), expression)
        checked, written = self._read(checkable, is_checked=True), self.parse_unchecked(checkable)
        # The checker replaces qualified names in its tree, so only the types are taken from it; the ids are the same.
        types = checked.types
        for node in walk(written.root):
            if isinstance(node, Select) and isinstance(node.operand, Identifier) and node.operand.name == "device":
                types.setdefault(node.operand.id, _DEVICE_TYPE)
        return Parsed(written.root, written.offsets, types)

    def parse_unchecked(self, expression: str) -> Parsed:
        """The tree alone.

        Raises: SelectorCompileError, for syntax only.
        """
        return self._read(expression, is_checked=False)

    def _read(self, expression: str, is_checked: bool) -> Parsed:
        try:
            return read(self._checking.compile(expression, disable_check=not is_checked).serialize())
        except (RuntimeError, TypeError, ValueError, DecodeError) as error:
            raise _compile_error(expression, str(error)) from error

    def bind(self, driver: str, device: Device) -> "CelExprDevice | SelectorFailure":
        values = device_values(driver, device, _encoded)
        if isinstance(values, SelectorFailure):
            return values
        return CelExprDevice(self._evaluating.Activation(_variables(values)))

    def _error_of_constant(self, node: Node) -> str | None:
        try:
            value = self._evaluating.deserialize(write(node)).eval()
            return _message(value) if value.type() == cel.Type.ERROR else None
        except RuntimeError as error:
            return _readable(str(error))


@lru_cache(maxsize=1)
def shared_engine() -> CelExprEngine:
    """The engine of this process; making one takes some milliseconds."""
    return CelExprEngine()


class CelExprDevice(msgspec.Struct, frozen=True):
    """The variables of one device."""

    activation: Any


class CelExprSelector:
    """A program of the evaluating environment."""

    def __init__(self, expression: str, program: Any, steps: int) -> None:
        self.expression = expression
        self.steps = steps
        self._program = program

    def evaluate(self, device: BoundDevice) -> Verdict:
        if isinstance(device, SelectorFailure):
            return device
        assert isinstance(device, CelExprDevice), "bound by another engine"
        try:
            value = self._program.eval(device.activation)
            kind = value.type()
            if kind == cel.Type.BOOL:
                return bool(value.value())
            if kind == cel.Type.ERROR:
                return SelectorFailure(_message(value))
            return SelectorFailure(f"the result is of type {_type_name(kind)}, not bool")
        except (RuntimeError, TypeError, ValueError, SystemError) as error:
            # Among them the limit of comprehension steps; an optional as result cannot be converted either.
            return SelectorFailure(_readable(str(error)))


class CelExprAttribute:
    """A program of the evaluating environment that computes an attribute."""

    def __init__(self, program: Any, steps: int) -> None:
        self.steps = steps
        self._program = program

    def evaluate(self, device: BoundDevice) -> AttributeValue | SelectorFailure:
        if isinstance(device, SelectorFailure):
            return device
        assert isinstance(device, CelExprDevice), "bound by another engine"
        try:
            return _attribute_of(self._program.eval(device.activation))
        except (RuntimeError, TypeError, ValueError, SystemError) as error:
            return SelectorFailure(_readable(str(error)))


def _attribute_of(result: Any) -> AttributeValue | SelectorFailure:
    kind = result.type()
    if kind == cel.Type.ERROR:
        return SelectorFailure(_message(result))
    if _type_name(kind) == "list":
        elements = [_attribute_of(each) for each in result.value()]
        failure = next((each for each in elements if isinstance(each, SelectorFailure)), None)
        return failure if failure is not None else attribute_value(elements)
    if kind in (cel.Type.BOOL, cel.Type.INT, cel.Type.STRING):
        return attribute_value(result.value())
    value = _decoded(result.value())
    if isinstance(value, Semver):
        return value
    return SelectorFailure(f"the result is of type {_type_name(kind)}, which no attribute can have")


def _compile_error(expression: str, text: str) -> SelectorCompileError:
    match = _PLACE.search(text)
    if match is None:
        return SelectorCompileError(_readable(text))
    line, column = int(match[1]), int(match[2])
    offset = sum(len(part) + 1 for part in expression.split("\n")[: line - 1]) + column - 1
    return SelectorCompileError.at(expression, offset, _readable(match[3]).removesuffix(" (in container '')"))


def _message(value: Any) -> str:
    return _readable(str(value.value()))


def _readable(text: str) -> str:
    """An error of cel-expr-python without status codes, in the words that Kubernetes' users know."""
    match = _STATUS.match(text)
    text = match[1] if match else text
    text = re.sub(r"^Key not found in map : \"?(.*?)\"?$", r"no such key: \1", text)
    text = re.sub(r"^No matching overloads found : ", "no such overload: ", text)
    if "recursion" in text:
        return _TOO_DEEP
    if text.startswith("compile(): incompatible"):
        return "the expression is not valid Unicode text"
    if "Iteration budget exceeded" in text:
        return "the expression takes more than 10,000 steps in its comprehensions"
    return text


def _type_name(kind: Any) -> str:
    return str(kind.name()).split("<")[0].lower()


def _variables(values: DeviceValues) -> dict[str, Any]:
    return {
        "device": {
            "driver": values.driver,
            "allowMultipleAllocations": values.allow_multiple_allocations,
            "attributes": values.attributes,
            "capacity": values.capacity,
        }
    }


def _descriptor_pool() -> Any:
    pool = descriptor_pool.DescriptorPool()
    for module in (struct_pb2, wrappers_pb2, any_pb2, duration_pb2, timestamp_pb2, empty_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="kubernetes.proto", package=_PACKAGE, syntax="proto3", dependency=["google/protobuf/struct.proto"]
    )
    for name in OPAQUE_TYPES:
        file.message_type.add(name=name).field.add(
            name=OPAQUE_FIELD, number=1, type=field_type.TYPE_STRING, label=field_type.LABEL_OPTIONAL
        )
    device = file.message_type.add(name="DRADevice")
    device.field.add(name="driver", number=1, type=field_type.TYPE_STRING, label=field_type.LABEL_OPTIONAL)
    device.field.add(
        name="allowMultipleAllocations", number=2, type=field_type.TYPE_BOOL, label=field_type.LABEL_OPTIONAL
    )
    for number, name in ((3, "attributes"), (4, "capacity")):
        # A map of Structs is map(string, map(string, dyn)) to the checker; protobuf itself has no map of maps.
        entry = device.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=field_type.TYPE_STRING, label=field_type.LABEL_OPTIONAL)
        entry.field.add(
            name="value",
            number=2,
            type=field_type.TYPE_MESSAGE,
            type_name=".google.protobuf.Struct",
            label=field_type.LABEL_OPTIONAL,
        )
        device.field.add(
            name=name,
            number=number,
            type=field_type.TYPE_MESSAGE,
            type_name=f".{_PACKAGE}.DRADevice.{entry.name}",
            label=field_type.LABEL_REPEATED,
        )
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _descriptor_pool()
_MESSAGES = {
    name: message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}")) for name in OPAQUE_TYPES
}


def _type(name: str) -> Any:
    """A type of the library's declarations as cel-expr-python's."""
    if name in OPAQUE_TYPES:
        return cel.Type(f"{_PACKAGE}.{name}")
    if name.startswith("list("):
        return cel.Type.List(_type(name[len("list(") : -1]))
    if name.startswith("map("):
        key, _, value = name[len("map(") : -1].partition(", ")
        return cel.Type.Map(_type(key), _type(value))
    return getattr(cel.Type, name.upper())


def _declared(name: str, *overloads: tuple[tuple[str, ...], str, bool]) -> Any:
    return cel.FunctionDecl(
        name,
        [
            cel.Overload(
                f"{name}_{index}",
                return_type=_type(result),
                parameters=[_type(parameter) for parameter in parameters],
                is_member=is_method,
            )
            for index, (parameters, result, is_method) in enumerate(overloads)
        ],
    )


def _checking_environment() -> Any:
    functions = [
        _declared(name, *((overload.parameters, overload.result, overload.is_method) for overload in overloads))
        for name, overloads in FUNCTIONS.items()
        if not name.startswith("@") and name not in ("string", "indexOf", "lastIndexOf")
    ]
    functions += [
        _declared("sum", *(((f"list({of})",), of, True) for of in ("int", "uint", "double", "duration"))),
        _declared("min", *(((f"list({of})",), of, True) for of in COMPARABLE_TYPES)),
        _declared("max", *(((f"list({of})",), of, True) for of in COMPARABLE_TYPES)),
        _declared("includes", (("dyn", "dyn"), "bool", True)),
        _declared("unwrapOpt", (("list(dyn)",), "list(dyn)", True)),
        _declared("optional.unwrap", (("list(dyn)",), "list(dyn)", False)),
    ]
    numbers = ("int", "uint", "double")
    different = [(left, right) for left in numbers for right in numbers if left != right]
    # Names that the standard library has as well can only be extended by an extension.
    extended = [
        _declared(name, *(((left, right), "bool", False) for left, right in different))
        for name in ("_<_", "_<=_", "_>_", "_>=_")
    ]
    # Upstream declares list(A).indexOf(A); a type parameter of ours would not be held to one type.
    elements = (*COMPARABLE_TYPES, *OPAQUE_TYPES, "list(dyn)", "map(dyn, dyn)")
    in_lists = [((f"list({element})", element), "int", True) for element in elements]
    extended += [
        _declared("string", (("IP",), "string", False), (("CIDR",), "string", False)),
        _declared("indexOf", *in_lists),
        _declared("lastIndexOf", *in_lists),
    ]
    return cel.NewEnv(
        descriptor_pool=_POOL,
        config=_configuration({**_LIBRARIES, "two-var-comprehensions": "latest"}),
        extensions=[cel.CelExtension(_PACKAGE, extended)],
        variables={
            "device": cel.Type(f"{_PACKAGE}.DRADevice"),
            "device.capacity": _type("map(string, map(string, Quantity))"),
        },
        functions=functions,
    )


def _evaluating_environment() -> Any:
    """Without two-variable comprehensions: they are expanded already, and their @mapInsert fails unchecked."""
    functions = [
        cel.FunctionDecl(
            python_name(name),
            [
                cel.Overload(
                    python_name(name).replace(".", "_"),
                    return_type=cel.Type.DYN,
                    parameters=[cel.Type.LIST],
                    is_member=False,
                    impl=_implementation(name),
                )
            ],
        )
        for name in FUNCTIONS
    ]
    return cel.NewEnv(
        descriptor_pool=_POOL,
        config=_configuration(_LIBRARIES),
        variables={"device": cel.Type.Map(cel.Type.STRING, cel.Type.DYN)},
        functions=functions,
    )


def _configuration(versions: dict[str, str]) -> Any:
    extensions = "".join(f'  - name: "{name}"\n    version: {version}\n' for name, version in versions.items())
    return cel.NewEnvConfigFromYaml(f"name: {_PACKAGE}\nextensions:\n{extensions}")


def _implementation(name: str) -> Any:
    def implementation(arguments: list[Any]) -> Any:
        return _encoded(library.call(name, _decoded(arguments)))

    return implementation


def _encoded(value: Any) -> Any:
    """A value of the library as one of cel-expr-python, where Kubernetes' types are messages."""
    if isinstance(value, list):
        return list(map(_encoded, value))
    opaque = opaque_text(value)
    if opaque is None:
        return value
    type_name, text = opaque
    return _MESSAGES[type_name](**{OPAQUE_FIELD: text})


def _decoded(value: Any) -> Any:
    """The other way round; what is no message stays as it is."""
    if isinstance(value, list):
        return list(map(_decoded, value))
    descriptor = getattr(value, "DESCRIPTOR", None)
    if descriptor is None or descriptor.name not in _MESSAGES:
        return value
    return from_opaque_text(descriptor.name, getattr(value, OPAQUE_FIELD))
