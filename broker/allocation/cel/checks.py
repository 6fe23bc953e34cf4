"""What Kubernetes refuses in an expression beyond its types, before any device is seen.

Source: cel-go's AST validators as apiserver's environment/base.go configures them (literals of one type, durations,
timestamps, patterns, format strings), what its planner folds or compiles ahead, the DRA compiler's check of the result.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from broker.allocation.cel.cost import worst_case_cost
from broker.allocation.cel.engine import MAX_COST, MAX_STEPS, SelectorCompileError
from broker.allocation.cel.library import PROGRAM_MAX, compiled_pattern
from broker.allocation.cel.syntax import (
    DYN,
    Call,
    Constant,
    Identifier,
    ListLiteral,
    MapLiteral,
    Node,
    Parsed,
    Type,
    children,
    literal_text,
)

SELECTOR_RESULTS = (Type("bool"), Type("wrapper", (Type("bool"),)), DYN)
_SCALARS = (Type("bool"), Type("int"), Type("string"), Type("kubernetes.Semver"), DYN)
ATTRIBUTE_RESULTS = (*_SCALARS, *(Type("list", (each,)) for each in _SCALARS))
_CONVERSIONS = {"bool", "bytes", "double", "duration", "dyn", "int", "string", "timestamp", "type", "uint"}
_CLAUSE = re.compile(r"%(?:(?P<percent>%)|(?P<precision>\.[0-9]*)?(?P<letter>.)?)", re.DOTALL)
_ANY_TEXT = [
    "string",
    "list",
    "map",
    "int",
    "uint",
    "double",
    "bool",
    "timestamp",
    "bytes",
    "duration",
    "type",
    "null_type",
]
_CLAUSE_TYPES = {
    "s": _ANY_TEXT,
    "d": ["int", "uint"],
    "f": ["double", "string"],
    "e": ["double", "string"],
    "b": ["int", "uint", "bool"],
    "x": ["int", "uint", "string", "bytes"],
    "X": ["int", "uint", "string", "bytes"],
    "o": ["int", "uint"],
}
_PRIVATE_NAMES = "kubernetes."

Problem = tuple[Node, str]


def check_expression(
    parsed: Parsed, error_of_constant: Callable[[Node], str | None], results: Sequence[Type] = SELECTOR_RESULTS
) -> Iterator[Problem]:
    """The problems of a checked expression, each with the node to blame.

    error_of_constant: evaluates a node without variables and says what is wrong with it, if anything.
    results: the types that it may evaluate to.
    """
    yield from _result_problems(parsed, results)
    programs: dict[str, int] = {}
    for node, in_format in _with_format_context(parsed.root, False):
        yield from _hidden_optional(node, parsed)
        match node:
            case Identifier(name="kubernetes") if node.id not in parsed.types:
                yield node, "undeclared reference to 'kubernetes'"
            case MapLiteral() if node.message_name.startswith(_PRIVATE_NAMES):
                yield node, f"undeclared reference to '{node.message_name}'"
            case ListLiteral() | MapLiteral() if not in_format:
                yield from _mixed_types(node, parsed)
            case Call():
                yield from _pattern_problems(node, programs)
                yield from _conversion_problems(node, error_of_constant)
                yield from _format_problems(node, parsed)


def check_cost(parsed: Parsed) -> Iterator[Problem]:
    """The API server's limit on the worst case."""
    cost = worst_case_cost(parsed)
    if cost > MAX_COST:
        yield (
            parsed.root,
            f"too complex: its worst case costs {cost:.3g} units, {MAX_COST:,} are allowed",
        )


def check_steps(parsed: Parsed, steps: int) -> Iterator[Problem]:
    """Our own limit: what takes longer stops everybody else for too long."""
    if steps > MAX_STEPS:
        taken = f"{steps:,}" if steps < 10**12 else "more than 10^12"
        yield (parsed.root, f"too complex: evaluating it once can take {taken} steps, {MAX_STEPS:,} are allowed")


def _result_problems(parsed: Parsed, results: Sequence[Type]) -> Iterator[Problem]:
    result = parsed.type_of(parsed.root)
    if isinstance(parsed.root, Call) and parsed.root.function in ("validate", "named"):
        result = Type("optional_type", (DYN,))  # declared as dyn, as an optional cannot be declared
    if result not in results:
        wanted = (
            "bool or the unknown type"
            if results is SELECTOR_RESULTS
            else "string, int, bool, semver or a list of one of these"
        )
        yield parsed.root, f"must evaluate to {wanted}, not {result}"


def _with_format_context(node: Node, in_format: bool) -> Iterator[tuple[Node, bool]]:
    """Every node, and whether it is below a call of format(), where lists may mix types."""
    yield node, in_format
    below = in_format or (isinstance(node, Call) and node.function == "format")
    for child in children(node):
        yield from _with_format_context(child, below)


def _mixed_types(node: ListLiteral | MapLiteral, parsed: Parsed) -> Iterator[Problem]:
    def types_of(values: list[tuple[Node, bool]]) -> Iterator[Problem]:
        first: Type | None = None
        for value, is_optional in values:
            found = parsed.type_of(value)
            if is_optional and found.parameters:
                found = found.parameters[0]
            first = first or found
            if found != first:
                yield value, f"expected type '{first}' but found '{found}'; all elements of a literal have one type"
                return

    if isinstance(node, ListLiteral):
        optional = set(node.optional_indices)
        yield from types_of([(element, index in optional) for index, element in enumerate(node.elements)])
    elif not node.message_name:
        yield from types_of([(entry.key, False) for entry in node.entries if not isinstance(entry.key, str)])
        yield from types_of([(entry.value, entry.is_optional) for entry in node.entries])


def _hidden_optional(node: Node, parsed: Parsed) -> Iterator[Problem]:
    """cel-expr-python 0.1.3 crashes, process and all, on some maps that hold optionals, so they must not be made.

    An optional that `dyn` hides from the checker could get into one unseen. Kubernetes allows both.
    """
    found = parsed.type_of(node)
    if found.name == "map" and any(parameter.name == "optional_type" for parameter in found.parameters):
        yield node, "a map of optional values is not supported here: unwrap them with orValue()"
    hidden = node.operands if isinstance(node, Call) and node.function == "dyn" else ()
    if any(parsed.type_of(each).name == "optional_type" for each in hidden):
        yield node, "dyn() of an optional value is not supported here: unwrap it with orValue()"


def _pattern_problems(call: Call, programs: dict[str, int]) -> Iterator[Problem]:
    """programs: how large those of the patterns before are; compiling them takes time, and keeping them memory."""
    if call.function == "matches":
        # Upstream looks at the first argument too where it is the text, not the pattern: matches("[", "a") is refused.
        patterns = list(call.arguments)
    elif call.function in ("find", "findAll") and call.target is not None:
        patterns = list(call.arguments[:1])
    else:
        return
    for pattern in patterns:
        text = literal_text(pattern)
        if text is not None:
            try:
                programs[text] = compiled_pattern(text).programsize
            except ValueError as error:
                yield pattern, str(error)
            if sum(programs.values()) > PROGRAM_MAX:
                yield pattern, f"too complex: patterns of more than {PROGRAM_MAX:,} instructions in an expression"


def _conversion_problems(call: Call, error_of_constant: Callable[[Node], str | None]) -> Iterator[Problem]:
    if call.function in _CONVERSIONS and call.target is None and len(call.arguments) == 1:
        argument = call.arguments[0]
        if isinstance(argument, Constant) and (error := error_of_constant(call)):
            yield argument, f"invalid {call.function} argument: {error}"


def _format_problems(call: Call, parsed: Parsed) -> Iterator[Problem]:
    text = literal_text(call.target) if call.function == "format" and call.target is not None else None
    if text is None or len(call.arguments) != 1 or not isinstance(call.arguments[0], ListLiteral):
        return
    arguments = call.arguments[0].elements
    used = 0
    for clause in _CLAUSE.finditer(text):
        if clause["percent"]:
            continue
        allowed = _CLAUSE_TYPES.get(clause["letter"] or "")
        if allowed is None or clause["precision"] == ".":
            yield call, f"could not parse the formatting clause {clause[0]!r}"
            return
        if used >= len(arguments):
            yield call, f"format has more clauses than arguments, which are {len(arguments)}"
            return
        yield from _clause_problems(clause[0], allowed, arguments[used], parsed)
        used += 1
    if used < len(arguments):
        yield call, f"too many arguments supplied to format (expected {used}, got {len(arguments)})"


def _clause_problems(clause: str, allowed: list[str], argument: Node, parsed: Parsed) -> Iterator[Problem]:
    found = parsed.type_of(argument)
    if found != DYN and found.name not in allowed:
        yield argument, f"the clause {clause!r} takes {', '.join(allowed)}, not {found}"
    elif isinstance(argument, ListLiteral | MapLiteral):
        for part in children(argument):
            yield from _clause_problems(clause, allowed, part, parsed)


def raise_first(expression: str, parsed: Parsed, problems: Iterator[Problem]) -> None:
    """Raises: SelectorCompileError for the first problem."""
    for node, message in problems:
        raise SelectorCompileError.at(expression, parsed.offsets.get(node.id, 0), message)
