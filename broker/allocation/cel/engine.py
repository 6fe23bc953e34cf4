"""What the allocator knows of CEL: engines, selectors, verdicts, and how their errors are told.

The engines themselves are in `cel_expr` (the real one) and `cel_python` (the fallback, and the tests' second opinion).
Source: k8s.io/dynamic-resource-allocation/cel, which kube-scheduler and the API server share.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Protocol, TypeVar

import msgspec

from schemas.resource import Device
from schemas.semver import Semver

MAX_EXPRESSION_BYTES = 10 * 1024  # CELSelectorExpressionMaxLength
MAX_COST = 1_000_000  # CELSelectorExpressionMaxCost
MAX_STEPS = 100_000  # of broker.allocation.budget: an evaluation cannot be divided, and others wait meanwhile
_KEPT_EXPRESSIONS = 4096


class SelectorCompileError(ValueError):
    """An expression that no device can be tested with: syntax, types, limits.

    line, column: count from 1; 0 where the expression as a whole is meant.
    caret: the line of the expression and, under it, a mark; "" without a place.
    """

    def __init__(self, message: str, line: int = 0, column: int = 0, caret: str = "") -> None:
        super().__init__(message, line, column, caret)
        self.message = message
        self.line = line
        self.column = column
        self.caret = caret

    def __str__(self) -> str:
        place = f"line {self.line}, column {self.column}: " if self.line else ""
        return f"{place}{self.message}" + (f"\n{self.caret}" if self.caret else "")

    @classmethod
    def at(cls, expression: str, offset: int, message: str) -> "SelectorCompileError":
        """An error at a character of the expression."""
        before = expression[:offset]
        line, column = before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1
        return cls(message, line, column, caret_under(expression, line, column))


def caret_under(expression: str, line: int, column: int) -> str:
    """The given line of an expression with a caret below the column."""
    lines = expression.split("\n")
    if not 1 <= line <= len(lines):
        return ""
    return f"{lines[line - 1]}\n{' ' * (column - 1)}^"


class SelectorFailure(msgspec.Struct, frozen=True):
    """The third verdict: on this device the expression has no value, or none that is true or false.

    Kubernetes gives up the whole allocation then, so it must not be taken for false; nor for true, hence no `bool()`.
    """

    message: str

    def __bool__(self) -> bool:
        raise TypeError("a verdict has three values; compare it with `is True` or `is False`")


Verdict = bool | SelectorFailure

Scalar = bool | int | str | Semver
AttributeValue = Scalar | list[bool] | list[int] | list[str] | list[Semver]  # of a derived attribute (KEP-6080)


class SelectorPlace(msgspec.Struct, frozen=True):
    """Where a selector stands.

    object: such as "DeviceClass gpu.example.com" or "request gpu".
    index: in its list of selectors, from 0.
    """

    object: str
    index: int

    def __str__(self) -> str:
        return f"{self.object}: selectors[{self.index}]"


def describe_compile_error(place: SelectorPlace, error: SelectorCompileError) -> str:
    """The sentence for a selector that does not compile."""
    return f"{place}.cel.expression does not compile: {error}"


def attribute_value(value: object) -> AttributeValue | SelectorFailure:
    """What an engine computed as the value of a derived attribute; upstream takes the same types."""
    if isinstance(value, bool | int | str | Semver):
        return value
    if isinstance(value, list):
        kinds = {type(each) for each in value}
        if kinds <= {bool} or kinds <= {int} or kinds <= {str} or kinds <= {Semver}:
            return value
        return SelectorFailure(f"the result is a list of {', '.join(sorted(kind.__name__ for kind in kinds))}")
    return SelectorFailure(f"the result is of type {type(value).__name__}, which no attribute can have")


def describe_failure(place: SelectorPlace, device: object, failure: SelectorFailure) -> str:
    """The sentence for a selector that failed on a device, which is named as its `str()` names it."""
    return (
        f"{place}.cel.expression failed on device {device}: {failure.message}. "
        "Kubernetes stops the allocation at such an error; test with has() or `in` before reading what may be absent"
    )


class BoundDevice(Protocol):
    """A device as one engine needs it; made by that engine's `bind`, once per device, and opaque to everyone else."""


class Selector(Protocol):
    """A compiled expression.

    steps: what one evaluation takes at worst, in steps of broker.allocation.budget; at most MAX_STEPS.
    """

    @property
    def expression(self) -> str: ...

    @property
    def steps(self) -> int: ...

    def evaluate(self, device: BoundDevice) -> Verdict:
        """Never raises for what a device contains, and ends within the engine's limits."""
        ...


class DerivedAttribute(Protocol):
    """A compiled expression whose value is an attribute; `steps` as for selectors."""

    @property
    def steps(self) -> int: ...

    def evaluate(self, device: BoundDevice) -> AttributeValue | SelectorFailure:
        """Never raises for what a device contains, and ends within the engine's limits."""
        ...


class SelectorEngine(Protocol):
    """One implementation of Kubernetes' DRA environment."""

    @property
    def name(self) -> str: ...

    def compile(self, expression: str) -> Selector:
        """Check an expression and make it ready.

        Raises: SelectorCompileError.
        """
        ...

    def compile_attribute(self, expression: str) -> DerivedAttribute:
        """Check the expression of a derived attribute and make it ready. Source: KEP-6080.

        Raises: SelectorCompileError.
        """
        ...

    def bind(self, driver: str, device: Device) -> BoundDevice:
        """Prepare a device; attributes and capacities without a domain get the driver's name as theirs.

        A device that Kubernetes could not evaluate (a version that is none) fails every selector; nothing is raised.
        """
        ...


class CachingEngine:
    """Compiles each expression once, wrong ones too; forgets the least recently used beyond a few thousand.

    Cluster-wide there are few distinct selectors: classes and templates repeat them.
    """

    def __init__(self, engine: SelectorEngine, max_expressions: int = _KEPT_EXPRESSIONS) -> None:
        self.name = engine.name
        self.bind = engine.bind
        self._compile = lru_cache(maxsize=max_expressions)(_outcome_of(engine.compile))
        self._compile_attribute = lru_cache(maxsize=max_expressions)(_outcome_of(engine.compile_attribute))

    def compile(self, expression: str) -> Selector:
        return _value_of(self._compile(expression))

    def compile_attribute(self, expression: str) -> DerivedAttribute:
        return _value_of(self._compile_attribute(expression))


Compiled = TypeVar("Compiled")


def _outcome_of(compile_: Callable[[str], Compiled]) -> Callable[[str], Compiled | SelectorCompileError]:
    def outcome(expression: str) -> Compiled | SelectorCompileError:
        try:
            return compile_(expression)
        except SelectorCompileError as error:
            return error

    return outcome


def _value_of(outcome: Compiled | SelectorCompileError) -> Compiled:
    if isinstance(outcome, SelectorCompileError):
        raise outcome.with_traceback(None)
    return outcome


@lru_cache(maxsize=1)
def default_engine() -> SelectorEngine:
    """The engine of this process: cel-expr-python, or cel-python where there is no wheel of it (musl, for example)."""
    engine: SelectorEngine
    try:
        from broker.allocation.cel.cel_expr import shared_engine
    except ImportError:
        from broker.allocation.cel.cel_python import CelPythonEngine

        engine = CelPythonEngine()
    else:
        engine = shared_engine()
    return CachingEngine(engine)


def check_length(expression: str) -> None:
    """Raises: SelectorCompileError."""
    size = len(expression.encode(errors="surrogatepass"))
    if size > MAX_EXPRESSION_BYTES:
        raise SelectorCompileError(f"must have at most {MAX_EXPRESSION_BYTES} bytes, has {size}")
    if not expression.strip():
        raise SelectorCompileError("must be a CEL expression, is empty")
