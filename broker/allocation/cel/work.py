"""How long evaluating an expression can take, in steps of `broker.allocation.budget`.

Kubernetes' estimate (`cost`) decides what the API server accepts, and so what is accepted here. It is no measure of
time: it looks at the outermost level of lists and maps only, takes no notice of how large the program of a regular
expression is, and its functions are not in Python. This is an upper bound on what our engine does: what each value can
hold in all its levels is followed through bindings, loops and calls, and each operation is charged by that.

The prices are measured, and rounded up. Loops are multiplied out up to the 10,000 rounds that cel-expr-python allows.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import msgspec

from broker.allocation.cel.library import (
    COMPUTED_PROGRAM_MAX,
    FUNCTIONS,
    MAX_LIST,
    call,
    compiled_pattern,
    opaque_text,
    takes_no_container,
)
from broker.allocation.cel.rewrite import qualified_name
from broker.allocation.cel.syntax import (
    Call,
    Comprehension,
    Constant,
    Identifier,
    ListLiteral,
    MapLiteral,
    Node,
    Parsed,
    Select,
    Type,
    literal_text,
)

_ROUNDS_MAX = 10_000  # of all loops of an evaluation together

# Thousandths of a step.
_NODE = 80  # any part of an expression
_DOMAIN = 200  # reading what may be the attributes of a driver, with a default
_IN_PYTHON = 3_000  # a call of a function of ours
_ARGUMENT = 1_000  # each of its values, list elements too, there and back
_MESSAGE_ARGUMENT = 2_500  # the same where they can be quantities, versions and the like
_COMPARED = 50  # one value with another
_MESSAGE_COMPARED = 400  # as above
_COPIED = 30  # an element of a list; what macros make grows by copies
_INSERTED = 150  # a value in a map, which goes to Python and back with each entry that is added
_FORMATTED = 200  # a value in format()
_CHARACTER = 3  # that is written, or turned into something else
_READ = 10  # a character that a function of ours reads
_FOUND = 3_500  # one match of findAll()
_MATCHED = 10  # a character of a text with an instruction of a pattern's program
_PATTERN = 15_000  # compiling a pattern that is computed,
_INSTRUCTION = 600  # and each instruction of it
_SORTED = 1_500  # an element, whatever it is compared with

_NUMBER = 32  # characters of a number, a time, an address
_QUANTITY = 64  # digits of a device's quantity
_LARGE_QUANTITY = 1_300  # digits of any quantity that is read: 256 and an exponent of 999, in billionths
_PRECISE = 1_400  # characters of a double with a precision of 1,000
_PRECISION = re.compile(r"%\.|%[ef]")
_SCALARS = {"bool", "double", "duration", "int", "null_type", "timestamp", "type", "uint"}
_PLAIN = _SCALARS | {"string", "bytes"}


class Held(msgspec.Struct, frozen=True):
    """The most that a value can be.

    size: characters of a text, entries of a list or map.
    values: in it, in all its levels, and itself; what is referred to twice counts twice.
    characters: in all of them.
    item, key: the largest of a list's elements or a map's values, and of its indices or keys; None: nothing is known.
    """

    size: int = 1
    values: int = 1
    characters: int = 0
    item: "Held | None" = None
    key: "Held | None" = None

    @property
    def any_item(self) -> "Held":
        """An element of it."""
        return self.item or self._part

    @property
    def any_key(self) -> "Held":
        return self.key or self._part

    @property
    def _part(self) -> "Held":
        return Held(max(self.values, self.characters), self.values, self.characters)

    def times(self, count: int) -> "Held":
        """A list or map with as much for each of `count`."""
        return Held(self.size * count, 1 + self.values * count, self.characters * count, self.item, self.key)


def _text(size: int) -> Held:
    return Held(size, 1, size)


def _list(size: int, item: Held) -> Held:
    return Held(size, 1 + size * item.values, size * item.characters, item, _SCALAR)


def _map(size: int, key: Held, value: Held) -> Held:
    values, characters = key.values + value.values, key.characters + value.characters
    return Held(size, 1 + size * values, size * characters, value, key)


_SCALAR = Held(characters=_NUMBER)
_ATTRIBUTE = _list(64, _text(64))  # or a text, or a number
_DOMAINS = _map(32, _text(63), _map(32, _text(32), _ATTRIBUTE))
_CAPACITIES = _map(32, _text(63), _map(32, _text(32), Held(characters=_QUANTITY)))
_DEVICE_FIELDS = {"attributes": _DOMAINS, "capacity": _CAPACITIES, "driver": _text(63)}
_DEVICE = Held(
    len(_DEVICE_FIELDS),
    sum(each.values for each in _DEVICE_FIELDS.values()) + 2,
    sum(each.characters for each in _DEVICE_FIELDS.values()),
)


def _either(left: Held | None, right: Held | None) -> Held | None:
    if left is None or right is None or left is right:
        return left if left is right else None
    return Held(
        max(left.size, right.size),
        max(left.values, right.values),
        max(left.characters, right.characters),
        _either(left.item, right.item),
        _either(left.key, right.key),
    )


def _any_of(found: Iterable[Held]) -> Held:
    largest: Held | None = None
    for index, each in enumerate(found):
        largest = each if index == 0 else _either(largest, each)
    return largest or Held()


def _together(found: Iterable[Held]) -> Held:
    """What can be made of several values by taking them apart."""
    held = list(found)
    values, characters = sum(each.values for each in held), sum(each.characters for each in held)
    return Held(max(values, characters, *(each.size for each in held), 1), values + 1, characters + _NUMBER)


def _as_taken(name: str, held: list[Held]) -> list[Held]:
    """The arguments of a function of ours: see `rewrite` about lists where it has no use for any."""
    return [
        Held(each.size, 1, each.size if each.values > 1 else max(each.size, each.characters))
        if takes_no_container(name, len(held), place)
        else each
        for place, each in enumerate(held)
    ]


def worst_case_steps(parsed: Parsed) -> int:
    """Steps of `broker.allocation.budget` that evaluating a checked expression takes at most."""
    estimator = _Estimator(parsed)
    estimator.visit(parsed.root, 1)
    return -(-estimator.work // 1000)


class _Estimator:
    def __init__(self, parsed: Parsed) -> None:
        self.work = 0
        self._parsed = parsed
        self._locals: dict[str, list[Held]] = {}

    def visit(self, node: Node, times: int) -> Held:
        """What the node can be, after charging for evaluating it so many times."""
        self.work += times * _NODE
        match node:
            case Constant():
                return _text(len(node.value)) if isinstance(node.value, str | bytes) else _SCALAR
            case Identifier():
                scopes = self._locals.get(node.name)
                return scopes[-1] if scopes else _DEVICE if node.name == "device" else _SCALAR
            case Select():
                return self._select(node, times)
            case Call():
                return self._call(node, times)
            case ListLiteral():
                elements = [self.visit(each, times) for each in node.elements]
                self.work += times * len(elements) * _COPIED
                return self._literal(elements, [])
            case MapLiteral():
                return self._map(node, times)
            case Comprehension():
                return self._bind(node, times) if node.is_bind else self._loop(node, times)

    def _select(self, node: Select, times: int) -> Held:
        operand = self.visit(node.operand, times)
        self.work += times * _DOMAIN
        if node.test_only:
            return _SCALAR
        if operand is _DEVICE:
            return _DEVICE_FIELDS.get(node.field, _SCALAR)
        return operand.any_item

    def _literal(self, items: list[Held], keys: list[Held]) -> Held:
        return Held(
            len(items),
            1 + sum(each.values for each in (*items, *keys)),
            sum(each.characters for each in (*items, *keys)),
            _any_of(items),
            _any_of(keys) if keys else _SCALAR,
        )

    def _map(self, node: MapLiteral, times: int) -> Held:
        keys = [self.visit(entry.key, times) for entry in node.entries if not isinstance(entry.key, str)]
        values = [self.visit(entry.value, times) for entry in node.entries]
        self.work += times * len(values) * _INSERTED
        return self._literal(values, keys)

    def _bind(self, node: Comprehension, times: int) -> Held:
        with self._local(node.accu_var, self.visit(node.accu_init, times)):
            return self.visit(node.result, times)

    def _loop(self, node: Comprehension, times: int) -> Held:
        over, start = self.visit(node.iter_range, times), self.visit(node.accu_init, times)
        match self._type(node.iter_range).name:
            case "list":
                alone = over.any_item
            case "map":
                alone = over.any_key
            case _:  # it may be either
                alone = _any_of((over.any_item, over.any_key))
        rounds = min(times * over.size, _ROUNDS_MAX)
        with self._local(node.accu_var, start):
            first = over.any_key if node.iter_var2 else alone
            with self._local(node.iter_var, first), self._local(node.iter_var2, over.any_item):
                self.visit(node.loop_condition, rounds)
                step = self.visit(node.loop_step, rounds)
        grown = start
        if isinstance(node.accu_init, ListLiteral):
            grown = step.times(over.size)
            self.work += rounds * grown.size * _COPIED
        elif isinstance(node.accu_init, MapLiteral):
            grown = step.times(over.size)
            self.work += rounds * (grown.values * _INSERTED + _IN_PYTHON)
        with self._local(node.accu_var, grown):
            return self.visit(node.result, times)

    def _call(self, node: Call, times: int) -> Held:
        if node.function == "_?_:_":
            return self._conditional(node, times)
        name = qualified_name(node, self._parsed)
        operands = node.arguments if name is not None else node.operands
        held = [self.visit(each, times) for each in operands]
        work, found = self._own(name or node.function, operands, held)
        self.work += times * work
        match self._type(node).name:
            case "string" | "bytes":
                return _text(found.size)
            case name if name in _SCALARS:
                return _SCALAR
        return found

    def _conditional(self, node: Call, times: int) -> Held:
        self.visit(node.arguments[0], times)
        before = self.work
        found, works = [], []
        for each in node.arguments[1:]:
            self.work = before
            found.append(self.visit(each, times))
            works.append(self.work)
        self.work = max(works)
        return _any_of(found)

    def _own(self, name: str, operands: tuple[Node, ...], held: list[Held]) -> tuple[int, Held]:
        """What a call takes besides its operands, and what it yields."""
        first = held[0] if held else _SCALAR
        second = held[1] if len(held) > 1 else _SCALAR
        compared = self._comparing(operands)
        match name:
            case "_&&_" | "_||_" | "!_" | "@not_strictly_false":
                return 0, _SCALAR
            case "_==_" | "_!=_":
                return min(first.values, second.values) * compared + min(first.characters, second.characters), _SCALAR
            case "_[_]" | "_?._" | "_[?_]":
                return _DOMAIN, _DEVICE_FIELDS["attributes"] if first is _DEVICE else first.any_item
            case "dyn" | "optional.of" | "optional.ofNonZeroValue" | "value":
                return _NODE, first
            case "optional.none":
                return _NODE, Held()
            case "or" | "orValue":
                return _NODE, _any_of(held)
            case "size":
                # Characters are counted, entries are not.
                return _NODE + (0 if self._type(operands[0]).name in ("list", "map") else first.size // 2), _SCALAR
            case "hasValue" | "type":
                return _NODE, _SCALAR
            case "first" | "last" if len(held) == 1:
                return _NODE, first.any_item
            case "_+_":
                return self._sum(operands, first, second)
            case "@in":
                size = first.size if self._type(operands[1]).name == "map" else second.size
                pairs = min(second.values, size * first.values)
                return pairs * compared + min(second.characters, size * first.characters), _SCALAR
            case "includes":
                return 8 * _NODE + min(first.values, first.size * second.values) * compared, _SCALAR
            case "cel.@mapInsert":
                # Charged for in the loop that it belongs to.
                return _NODE, self._inserted(first, held[1:])
            case "sum" | "unwrapOpt" | "optional.unwrap":
                rounds = min(first.size, _ROUNDS_MAX)
                copies = 0 if name == "sum" else rounds * rounds * _COPIED
                return rounds * 8 * _NODE + copies, first
            case "min" | "max":
                return _IN_PYTHON + first.values * self._passing(operands), first.any_item
            case "sets.contains" | "sets.intersects" | "sets.equivalent":
                pairs = min(first.size * second.values, second.size * first.values) + first.values + second.values
                texts = min(first.size * second.characters, second.size * first.characters)
                return 2 * (pairs * compared + texts), _SCALAR
            case "distinct":
                return first.size * (first.values * compared + first.characters), first
            case "sort" | "@sortByAssociatedKeys":
                return sum(each.values * _SORTED + each.characters * _CHARACTER for each in held), first
            case "flatten":
                flat = Held(first.values, first.values, first.characters)
                return 2 * first.values * _COPIED, flat
            case "reverse" | "slice":
                return first.size * (_COPIED + _CHARACTER), first
            case "lists.range":
                size = self._int(operands[0])
                return _IN_PYTHON + size * _ARGUMENT, _list(size, _SCALAR)
            case "contains" | "startsWith" | "endsWith":
                return self._searching(first, second), _SCALAR
            case "indexOf" | "lastIndexOf" if self._type(operands[0]).name == "string":
                return self._searching(first, second) + (_IN_PYTHON if len(held) > 2 else 0), _SCALAR
            case "replace":
                written = (first.size + 1) * max(1, held[2].size) + first.size
                shortest = len(literal_text(operands[1]) or "")
                if shortest:
                    written = first.size // shortest * held[2].size + first.size
                return self._searching(first, second) + written * _CHARACTER, _text(written)
            case "split":
                parts = first.size + 1
                found = Held(parts, parts + 1, first.size, _text(first.size), _SCALAR)
                return self._searching(first, second) + parts * (_COPIED + _CHARACTER), found
            case "join":
                written = first.characters + first.size * (second.size if len(held) > 1 else 0)
                return first.size * _COPIED + written * _CHARACTER, _text(written)
            case "format":
                return self._formatted(operands[0], first, second)
            case "strings.quote":
                return 2 * first.size * _CHARACTER, _text(2 * first.size + 2)
            case "bytes" | "string" if self._type(operands[0]).name not in ("kubernetes.IP", "kubernetes.CIDR"):
                written = 4 * first.size + _NUMBER
                return written * _CHARACTER, _text(written)
            case "lowerAscii" | "upperAscii" | "substring" | "trim" | "charAt":
                return first.size * _CHARACTER, _text(first.size)
            case "matches":
                return self._matching(operands[1], first.size), _SCALAR
            case "find" | "findAll":
                return self._finding(name, operands, first)
            case "quantity":
                return _IN_PYTHON + (first.size + _LARGE_QUANTITY) * _READ, self._quantity(operands[0], first)
            case _ if name in FUNCTIONS:
                found = _together(_as_taken(name, held))
                return _IN_PYTHON + found.values * self._passing(operands) + found.characters * _READ, found
        found = _together(held)
        return found.values * compared + found.characters * _CHARACTER, found

    def _sum(self, operands: tuple[Node, ...], first: Held, second: Held) -> tuple[int, Held]:
        size, characters = first.size + second.size, first.characters + second.characters
        if all(self._type(each).name in ("string", "bytes") for each in operands):
            return size * _CHARACTER, _text(size)
        item, key = _either(first.item, second.item), _either(first.key, second.key)
        found = Held(size, first.values + second.values, characters, item, key)
        if any(self._type(each).name == "list" for each in operands):
            # What would be longer is an error.
            size = min(size, max(MAX_LIST, second.size))
            most = found.any_item
            values, characters = min(found.values, 1 + size * most.values), min(characters, size * most.characters)
            found = Held(size, values, characters, item, key)
        return size * _COPIED, found

    @staticmethod
    def _inserted(entries: Held, more: list[Held]) -> Held:
        """A map with one entry more, or with those of another map."""
        size, item, key = (more[0].size, more[0].item, more[0].key) if len(more) == 1 else (1, more[1], more[0])
        return Held(
            entries.size + size,
            entries.values + sum(each.values for each in more),
            entries.characters + sum(each.characters for each in more),
            _either(entries.item, item),
            _either(entries.key, key),
        )

    def _searching(self, text: Held, wanted: Held) -> int:
        return text.size * _CHARACTER + text.size * min(wanted.size, text.size) // 16

    def _formatted(self, clauses: Node, text: Held, values: Held) -> tuple[int, Held]:
        literal = literal_text(clauses)
        number = _PRECISE if literal is None or _PRECISION.search(literal) else 2 * _NUMBER
        written = text.size + 2 * values.characters + values.values * number
        return values.values * _FORMATTED + written * _CHARACTER, _text(written)

    def _matching(self, pattern: Node, characters: int) -> int:
        literal = literal_text(pattern)
        if literal is not None:
            program: int = compiled_pattern(literal).programsize
            return (characters + 1) * program * _MATCHED
        compiling = _PATTERN + COMPUTED_PROGRAM_MAX * _INSTRUCTION
        return compiling + _IN_PYTHON + (characters + 1) * COMPUTED_PROGRAM_MAX * _MATCHED

    def _finding(self, name: str, operands: tuple[Node, ...], text: Held) -> tuple[int, Held]:
        once = _IN_PYTHON + len(operands) * _ARGUMENT + self._matching(operands[1], text.size)
        if name == "find":
            return once, _text(text.size)
        count = text.size + 1
        if len(operands) > 2 and isinstance(operands[2], Constant) and self._int(operands[2]) >= 0:
            count = min(count, self._int(operands[2]) + 1)
        literal = literal_text(operands[1])
        program = COMPUTED_PROGRAM_MAX if literal is None else compiled_pattern(literal).programsize
        # Each search may look at all that is left.
        again = count * (_FOUND + text.size * program * _MATCHED // 2)
        return once + again, Held(count, count + 1, text.size, _text(text.size), _SCALAR)

    def _quantity(self, written: Node, text: Held) -> Held:
        literal = literal_text(written)
        if literal is None:
            return Held(characters=_LARGE_QUANTITY if text.size > 2 else _NUMBER)
        try:
            found = opaque_text(call("quantity", [literal]))
        except ValueError:
            return _SCALAR
        return Held(characters=len(found[1])) if found else _SCALAR

    def _int(self, node: Node) -> int:
        """The length that a list can have if this is to be its length."""
        if isinstance(node, Constant) and isinstance(node.value, int) and not isinstance(node.value, bool):
            return min(node.value, MAX_LIST) if node.value > 0 else 0
        return MAX_LIST

    def _comparing(self, operands: tuple[Node, ...]) -> int:
        return _COMPARED if any(self._is_plain(self._type(each)) for each in operands) else _MESSAGE_COMPARED

    def _passing(self, operands: tuple[Node, ...]) -> int:
        return _ARGUMENT if all(self._is_plain(self._type(each)) for each in operands) else _MESSAGE_ARGUMENT

    def _is_plain(self, found: Type) -> bool:
        return all(map(self._is_plain, found.parameters)) if found.parameters else found.name in _PLAIN

    def _type(self, node: Node) -> Type:
        return self._parsed.type_of(node)

    @contextmanager
    def _local(self, name: str, held: Held) -> Iterator[None]:
        self._locals.setdefault(name, []).append(held)
        yield
        self._locals[name].pop()
