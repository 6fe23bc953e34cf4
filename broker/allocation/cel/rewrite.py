"""From the expression as the user wrote it to one that cel-expr-python evaluates as Kubernetes would.

What differs: a domain that a device has nothing of reads as an empty map, Kubernetes' functions run in Python, a few
of them are shorter in CEL itself, and comparing a version with a string is an error. Calls into Python take one list
of all arguments, since cel-expr-python chooses among Python functions by the kinds of their parameters and knows no
"any kind".
"""

from collections.abc import Callable
from itertools import count

from broker.allocation.cel.library import FUNCTIONS, MAX_LIST, OPAQUE_TYPES, call, opaque_text, takes_no_container
from broker.allocation.cel.syntax import (
    DYN,
    Call,
    Comprehension,
    Constant,
    ConstantValue,
    Entry,
    Identifier,
    ListLiteral,
    MapLiteral,
    Node,
    Parsed,
    Select,
    Type,
    literal_text,
    rebuild,
    walk,
)

_DOMAIN_MAPS = (
    Type("map", (Type("string"), Type("map", (Type("string"), DYN)))),
    Type("map", (Type("string"), Type("map", (Type("string"), Type("kubernetes.Quantity"))))),
)
OPAQUE_FIELD = "in"  # of the messages that stand for Kubernetes' types: a word that no expression can select
_SMALL = 12  # nodes
_FOLDED = ("quantity", "semver", "ip", "cidr")
_MACRO_RESULT = "@result"  # grows one by one, and each step counts
_VERSION = "kubernetes.Semver"
_OPAQUE_TYPES = {f"kubernetes.{name}" for name in OPAQUE_TYPES}
_ZEROS: dict[str, Node] = {
    "uint": Constant(0, "uint64_value", 0),
    "double": Constant(0, "double_value", 0.0),
    "duration": Call(0, "duration", (Constant(0, "string_value", "0s"),)),
}


def python_name(function: str) -> str:
    """What a function of the library is called in a rewritten expression."""
    return function if function.startswith("@") else f"@{function}"


def qualified_name(call: Call, parsed: Parsed) -> str | None:
    """The name of a namespaced function such as `format.named`, which parses like a method of the variable `format`."""
    if isinstance(call.target, Identifier) and call.target.id not in parsed.types:
        return f"{call.target.name}.{call.function}"
    return None


def evaluable(parsed: Parsed) -> Node:
    """Rewrite a checked expression; its types decide what is meant."""
    rewriter = _Rewriter(parsed)
    root = rewriter.rewrite(parsed.root)
    has_loop = any(isinstance(node, Comprehension) and not node.is_bind for node in walk(root))
    return rewriter.with_clean_slots(root) if has_loop else root


class _Rewriter:
    def __init__(self, parsed: Parsed) -> None:
        self._parsed = parsed
        self._ids = count(1 + max(node.id for node in walk(parsed.root)))

    def rewrite(self, node: Node) -> Node:
        changed = rebuild(node, self.rewrite)
        match node, changed:
            case Select(), Select() if self._is_domain_map(node.operand):
                return self._domain(changed, changed.operand, self._text(node.field), is_test=node.test_only)
            case Call(function="_[_]" | "_?._" | "_[?_]"), Call() if self._is_domain_map(node.arguments[0]):
                domain = self._domain(changed, changed.arguments[0], changed.arguments[1])
                return domain if node.function == "_[_]" else self._call("optional.of", domain)
            case Call(), Call():
                return self._rewrite_call(node, changed)
        return changed

    def _domain(self, node: Node, domains: Node, name: Node, is_test: bool = False) -> Node:
        """domains[?name].orValue({}), so that what a selector reads of an unknown domain is a missing key.

        has() of a domain is always true then; only `in` and macros see which domains there are, as in Kubernetes.
        """
        if is_test:
            return Constant(node.id, "bool_value", True)
        found = self._call("_[?_]", domains, name)
        return Call(node.id, "orValue", (MapLiteral(self._id(), "", ()),), found)

    def _rewrite_call(self, node: Call, changed: Call) -> Node:
        name = qualified_name(node, self._parsed)
        if name is not None:
            return self._rewrite_namespaced(name, node, changed)
        receiver = self._parsed.type_of(node.operands[0]) if node.operands else DYN
        operands = changed.operands
        match node.function:
            case "sum" if node.target is not None:
                return self._sum(operands[0], receiver)
            case "min" | "max" if node.target is not None:
                return self._extreme(node.function, operands[0])
            case "includes" if node.target is not None:
                return self._includes(*operands)
            case "unwrapOpt" if node.target is not None:
                return self._unwrapped(operands[0])
            case "_==_":
                return self._equality(node, changed)
            case "_+_" if "list" in (receiver.name, self._parsed.type_of(node.arguments[1]).name):
                return self._concatenation(changed, *operands)
            case "@in" if self._is_constant_list(node.arguments[1]) and receiver == DYN:
                return self._no_version(changed)
            case "validate":
                return self._call(
                    "optional.ofNonZeroValue",
                    self._in_python("validate", *self._without_containers("validate", node.operands, operands)),
                )
            case "cel.@mapInsert":
                return self._in_python("@mapInsert", *operands)
            case "string" if receiver.name not in ("kubernetes.IP", "kubernetes.CIDR"):
                return changed
            case "indexOf" | "lastIndexOf" if receiver.name == "string" and len(operands) == 2:
                return changed
            case "int" if receiver == DYN:
                # cel-expr-python converts bools too.
                return self._once(operands[0], self._int)
            case "matches" | "find" | "findAll" if literal_text(node.operands[1]) is None:
                function = f"@{node.function}Computed"
                return self._in_python(function, *self._without_containers(function, node.operands, operands))
            case function if function in FUNCTIONS:
                return self._in_python(function, *self._without_containers(function, node.operands, operands))
        return changed

    def _without_containers(self, function: str, written: tuple[Node, ...], operands: tuple[Node, ...]) -> list[Node]:
        """Arguments of which none is a full list or map where the function has no use for one.

        It refuses those, but would get them in Python first, which takes long if they are large.
        """
        return [
            self._once(operand, self._emptied)
            if self._parsed.type_of(before) == DYN and takes_no_container(function, len(operands), place)
            else operand
            for place, (before, operand) in enumerate(zip(written, operands, strict=True))
        ]

    def _emptied(self, value: Node) -> Node:
        otherwise = value
        for name, empty in (("map", MapLiteral(self._id(), "", ())), ("list", ListLiteral(self._id(), ()))):
            is_one = self._call("_==_", self._call("type", value), Identifier(self._id(), name))
            otherwise = self._call("_?_:_", is_one, empty, otherwise)
        return otherwise

    def _rewrite_namespaced(self, name: str, node: Call, changed: Call) -> Node:
        match name:
            case "cel.@mapInsert":
                return self._in_python("@mapInsert", *changed.arguments)
            case "lists.range":
                return self._in_python("@range", *self._without_containers("@range", node.arguments, changed.arguments))
            case "optional.unwrap":
                return self._unwrapped(*changed.arguments)
            case "format.named":
                arguments = self._without_containers(name, node.arguments, changed.arguments)
                return self._call("optional.ofNonZeroValue", self._in_python(name, *arguments))
            case _ if name in FUNCTIONS:
                return self._in_python(name, *self._without_containers(name, node.arguments, changed.arguments))
        return changed

    def _is_domain_map(self, node: Node) -> bool:
        if isinstance(node, Call) and node.function == "dyn":
            return self._is_domain_map(node.arguments[0])
        return self._parsed.type_of(node) in _DOMAIN_MAPS

    def _equality(self, node: Call, changed: Call) -> Node:
        """`==` is an error upstream, not false, where the left side is a version or quantity and the right side is not.

        The other way round it is false. Attributes can be versions, so `version == "1.2.3"` would pass unnoticed here.
        """
        left_type, right_type = map(self._parsed.type_of, node.arguments)
        if right_type.name == "null_type":
            return changed
        if left_type.name in _OPAQUE_TYPES and right_type == DYN:
            return self._once(
                changed.arguments[1],
                lambda right: self._checked(
                    self._call("_==_", changed.arguments[0], right),
                    self._call("_!=_", self._call("type", right), self._type(left_type.name)),
                ),
            )
        if left_type == DYN and right_type == DYN:
            return self._once(
                changed.arguments[0],
                lambda left: self._once(
                    changed.arguments[1],
                    lambda right: self._checked(
                        self._call("_==_", left, right),
                        self._call("_&&_", self._is_of(left, _VERSION), self._call("!_", self._is_of(right, _VERSION))),
                    ),
                ),
            )
        if left_type == DYN and right_type.name != _VERSION:
            return self._no_version(changed)
        return changed

    def _no_version(self, test: Call) -> Node:
        """`left == right` or `left in right` where only the left side can be a version."""
        right = test.arguments[1]
        return self._once(
            test.arguments[0],
            lambda left: self._checked(self._call(test.function, left, right), self._is_of(left, _VERSION)),
        )

    def _checked(self, test: Node, wrong: Node) -> Node:
        """test ? true : wrong ? error : false; what is true needs no second look."""
        false, true = Constant(self._id(), "bool_value", False), Constant(self._id(), "bool_value", True)
        failing = self._call("_?_:_", wrong, self._in_python("@notComparable"), false)
        return self._call("_?_:_", test, true, failing)

    def _is_of(self, value: Node, type_name: str) -> Node:
        return self._call("_==_", self._call("type", value), self._type(type_name))

    def _once(self, value: Node, use: Callable[[Node], Node]) -> Node:
        """Bind what is used twice, unless it is as small as the selection of an attribute."""
        if sum(1 for _ in walk(value)) <= _SMALL:
            return use(value)
        variable = self._variable("once")
        return self._bind(variable, value, use(variable))

    def _concatenation(self, sum_: Call, left: Node, right: Node) -> Node:
        """left + right with a limit, since cel-expr-python copies lists that cel-go only links, and charges for."""
        if isinstance(left, Identifier) and left.name == _MACRO_RESULT:
            return sum_
        first, second = self._variable("left"), self._variable("right")
        length = self._call("_+_", self._call("size", first), self._call("size", second))
        is_long = self._call("_>_", length, Constant(self._id(), "int64_value", MAX_LIST))
        choice = self._call("_?_:_", is_long, self._in_python("@tooLong"), self._call("_+_", first, second))
        return self._bind(first, left, self._bind(second, right, choice))

    def _type(self, name: str) -> Node:
        package, _, message = name.partition(".")
        return Select(self._id(), Identifier(self._id(), package), message)

    @staticmethod
    def _is_constant_list(node: Node) -> bool:
        if not isinstance(node, ListLiteral) or not node.elements:
            return False
        return all(isinstance(element, Constant) for element in node.elements)

    def _int(self, value: Node) -> Node:
        is_bool = self._call("_==_", self._call("type", value), Identifier(self._id(), "bool"))
        return self._call("_?_:_", is_bool, self._in_python("@notConvertible"), self._call("int", value))

    def _sum(self, values: Node, list_type: Type) -> Node:
        of = list_type.parameters[0].name if list_type.parameters else DYN.name
        total, value = self._variable("total"), self._variable("value")
        zero: Node = _ZEROS.get(of, Constant(0, "int64_value", 0))
        return self._fold(values, value, total, zero, self._call("_+_", total, value))

    def _extreme(self, function: str, values: Node) -> Node:
        """values[index of the least or greatest], so that the value keeps its type."""
        bound = self._variable("values")
        index = self._in_python("@indexOfLeast" if function == "min" else "@indexOfGreatest", bound)
        return self._bind(bound, values, self._call("_[_]", bound, index))

    def _includes(self, target: Node, wanted: Node) -> Node:
        bound = self._variable("target")
        is_list = self._call("_==_", self._call("type", bound), Identifier(self._id(), "list"))
        # The branch not taken is not evaluated, so `in` sees lists only.
        choice = self._call("_?_:_", is_list, self._call("@in", wanted, bound), self._call("_==_", bound, wanted))
        return self._bind(bound, target, choice)

    def _unwrapped(self, optionals: Node) -> Node:
        found, value = self._variable("found"), self._variable("value")
        has_value = Call(self._id(), "hasValue", (), value)
        one_more = self._call("_+_", found, ListLiteral(self._id(), (Call(self._id(), "value", (), value),)))
        step = self._call("_?_:_", has_value, one_more, found)
        return self._fold(optionals, value, found, ListLiteral(self._id(), ()), step)

    def _bind(self, variable: Identifier, value: Node, result: Node) -> Node:
        never, nothing = Constant(self._id(), "bool_value", False), ListLiteral(self._id(), ())
        unused = self._variable("unused")
        return Comprehension(self._id(), unused.name, "", nothing, variable.name, value, never, variable, result)

    def with_clean_slots(self, node: Node) -> Node:
        """A loop of one step before each binding, in an expression that has loops.

        cel-cpp leaves the variables of a loop that ended early in their slots, and a binding that comes next takes
        what it finds in its slot for its own value: `[1, 2].exists(x, true) && cel.bind(t, 5, t == 5)` is false there.
        A loop that runs to its end clears the slots. Seen in cel-expr-python 0.1.3; try without it in later ones.
        """
        changed = rebuild(node, self.with_clean_slots)
        if not isinstance(changed, Comprehension) or not changed.is_bind:
            return changed
        index, value, done = self._variable("index"), self._variable("value"), self._variable("done")
        once = ListLiteral(self._id(), (Constant(self._id(), "int64_value", 0),))
        true = Constant(self._id(), "bool_value", True)
        loop = Comprehension(self._id(), index.name, value.name, once, done.name, true, true, done, done)
        return self._call("_?_:_", loop, changed, Constant(self._id(), "bool_value", False))

    def _fold(self, over: Node, value: Identifier, accumulator: Identifier, start: Node, step: Node) -> Node:
        always = Constant(self._id(), "bool_value", True)
        return Comprehension(self._id(), value.name, "", over, accumulator.name, start, always, step, accumulator)

    def _in_python(self, function: str, *arguments: Node) -> Node:
        if function in _FOLDED and arguments and all(isinstance(argument, Constant) for argument in arguments):
            folded = self._folded(
                function, [argument.value for argument in arguments if isinstance(argument, Constant)]
            )
            if folded is not None:
                return folded
        return self._call(python_name(function), ListLiteral(self._id(), arguments))

    def _folded(self, function: str, values: list[ConstantValue]) -> Node | None:
        """The value of quantity("16Gi") and the like, computed once; errors stay errors of the evaluation."""
        try:
            opaque = opaque_text(call(function, values))
        except (TypeError, ValueError):
            return None
        if opaque is None:
            return None
        type_name, text = opaque
        return MapLiteral(self._id(), f"kubernetes.{type_name}", (Entry(self._id(), OPAQUE_FIELD, self._text(text)),))

    def _call(self, function: str, *arguments: Node) -> Call:
        return Call(self._id(), function, arguments)

    def _text(self, value: str) -> Constant:
        return Constant(self._id(), "string_value", value)

    def _variable(self, name: str) -> Identifier:
        identity = self._id()
        return Identifier(identity, f"@{name}{identity}")

    def _id(self) -> int:
        return next(self._ids)
