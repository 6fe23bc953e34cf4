"""The worst case of an expression, in the cost units of Kubernetes.

The API server refuses a selector whose worst case exceeds 1,000,000 units; this is the same estimate, and it is what
bounds the work of an evaluation: an expression whose strings or lists could grow without limit never gets past it.
It knows how large everything in a device can be, follows sizes through calls, and multiplies loops by their ranges.
Source: cel-go, checker/cost.go; apiserver, pkg/cel/library/cost.go; the DRA compiler's sizeEstimator. Only upper bounds
are computed, and sizes of what a type alone cannot tell count as unlimited.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from broker.allocation.cel.syntax import (
    DYN,
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
)

UNLIMITED = 2**64 - 1
_TRAVERSAL = 0.1  # per character of a string
_PATTERN = 0.25  # per character of a regular expression
_LIST, _MAP, _MESSAGE = 10, 30, 40  # creating one
_SCALARS = {"bool", "double", "duration", "int", "timestamp", "uint"}
_CONSTANT_COST_EQUALITY = {f"kubernetes.{name}" for name in ("Quantity", "Semver", "IP", "CIDR", "URL")}
_ORDERS = {"_<_", "_<=_", "_>_", "_>=_"}
_ON_WHOLE_LIST = {"isSorted", "sum", "max", "min", "indexOf", "lastIndexOf", "includes"}
_SAME_SIZE = {"lowerAscii", "upperAscii", "substring", "trim"}
_PARSERS = {"cidr", "isIP", "isCIDR", "ip", "quantity", "isQuantity", "semver", "isSemver"}

Path = tuple[str, ...]


class _Declared(msgspec.Struct, frozen=True):
    """What the API allows at a place of a device: at most `size` characters or entries."""

    size: int
    key: "_Declared | None" = None
    element: "_Declared | None" = None
    fields: dict[str, "_Declared"] = {}


_ATTRIBUTE = _Declared(64)  # the longer of a string's length and a list's
_IDENTIFIER, _DOMAIN = _Declared(32), _Declared(63)
_DEVICE = _Declared(
    0,
    fields={
        "driver": _Declared(63),
        "allowMultipleAllocations": _Declared(1),
        "attributes": _Declared(32, _DOMAIN, _Declared(32, _IDENTIFIER, _ATTRIBUTE)),
        "capacity": _Declared(32, _DOMAIN, _Declared(32, _IDENTIFIER, _Declared(0))),
    },
)


class _Entries(msgspec.Struct, frozen=True):
    """Largest sizes of a container's keys and values, where they are known from literals."""

    is_list: bool
    key: int
    value: int


class _Local(msgspec.Struct, frozen=True):
    path: Path
    size: int | None
    entries: _Entries | None = None


def worst_case_cost(parsed: Parsed) -> int:
    """Cost units, at most UNLIMITED."""
    return min(_Estimator(parsed).cost(parsed.root), UNLIMITED)


def _times(size: int, factor: float) -> int:
    return UNLIMITED if size * factor >= UNLIMITED else math.ceil(size * factor)


class _Estimator:
    def __init__(self, parsed: Parsed) -> None:
        self._parsed = parsed
        self._paths: dict[int, Path] = {}
        self._sizes: dict[int, int] = {}
        self._entries: dict[int, _Entries] = {}
        self._locals: dict[str, list[_Local]] = {}

    def cost(self, node: Node) -> int:
        match node:
            case Constant():
                return 0
            case Identifier():
                self._paths[node.id] = self._path(node)
                return 1
            case Select():
                return self._select(node)
            case Call():
                return self._call(node)
            case ListLiteral():
                total = _LIST + sum(map(self.cost, node.elements))
                largest = max(map(self._size_or_unlimited, node.elements), default=0)
                self._entries[node.id] = _Entries(True, 1, largest)
                return total
            case MapLiteral():
                return self._map(node)
            case Comprehension():
                return self._bind(node) if node.is_bind else self._comprehension(node)

    def _select(self, node: Select) -> int:
        operand = self.cost(node.operand)
        if node.test_only:
            return operand
        self._paths[node.id] = (*self._path(node.operand), node.field)
        kind = self._parsed.type_of(node.operand).name
        return operand + (kind == "map" or "." in kind)

    def _map(self, node: MapLiteral) -> int:
        if node.message_name:
            return _MESSAGE + sum(self.cost(entry.value) for entry in node.entries)
        total, key_size, value_size = _MAP, 0, 0
        for entry in node.entries:
            assert not isinstance(entry.key, str)
            total += self.cost(entry.key) + self.cost(entry.value)
            key_size = max(key_size, self._size_or_unlimited(entry.key))
            value_size = max(value_size, self._size_or_unlimited(entry.value))
        self._entries[node.id] = _Entries(False, key_size, value_size)
        return total

    def _bind(self, node: Comprehension) -> int:
        total = self.cost(node.iter_range) + self.cost(node.accu_init)
        with self._local(node.accu_var, self._local_of(node.accu_init)):
            total += self.cost(node.result)
            self._copy(node, node.result)
        return total

    def _comprehension(self, node: Comprehension) -> int:
        total = self.cost(node.iter_range) + self.cost(node.accu_init)
        entries = self._entries_of(node.iter_range)
        is_list = entries.is_list if entries else self._parsed.type_of(node.iter_range).name == "list"
        path = self._path(node.iter_range)
        key = _Local((*path, "@indices" if is_list else "@keys"), entries.key if entries else None)
        value = _Local((*path, "@items" if is_list else "@values"), entries.value if entries else None)
        with self._local(node.accu_var, self._local_of(node.accu_init)):
            first = key if node.iter_var2 or not is_list else value
            with self._local(node.iter_var, first), self._local(node.iter_var2, value):
                step = self.cost(node.loop_condition) + self.cost(node.loop_step)
            total += self.cost(node.result)
        rounds = self._size_or_unlimited(node.iter_range)
        if isinstance(node.accu_init, Constant):
            self._set_size(node, self._size(node.accu_init))
        elif isinstance(node.accu_init, ListLiteral | MapLiteral):
            self._sizes[node.id] = rounds
            if (grown := self._entries_of(node.loop_step)) is not None:
                self._entries[node.id] = grown
        return total + rounds * step

    def _call(self, node: Call) -> int:
        if node.function == "dyn" and len(node.arguments) == 1:
            argument = self.cost(node.arguments[0])
            self._copy(node, node.arguments[0])
            return 1 + argument
        arguments = [self.cost(argument) for argument in node.arguments]
        is_namespaced = isinstance(node.target, Identifier) and node.target.id not in self._parsed.types
        target = None if is_namespaced else node.target
        total = self.cost(target) if target is not None else 0
        if node.function == "_?_:_":
            self._conditional(node)
            return total + arguments[0] + max(arguments[1:])
        own, size = self._own_cost(node, target)
        self._set_size(node, size)
        return total + sum(arguments) + own

    def _conditional(self, node: Call) -> None:
        left, right = node.arguments[1:]
        self._sizes[node.id] = max(self._size_or_unlimited(left), self._size_or_unlimited(right))
        self._set_entries(node, self._union(left, right))

    def _own_cost(self, node: Call, target: Node | None) -> tuple[int, int | None]:
        """What the call itself costs, and the size of its result where that is not a matter of its type."""
        size, arguments = self._size_or_unlimited, node.arguments
        name = node.function if target is node.target or not isinstance(node.target, Identifier) else ""
        if not name and isinstance(node.target, Identifier):
            return self._namespaced_cost(f"{node.target.name}.{node.function}", arguments)
        if target is not None:
            cost = self._method_cost(name, target, arguments)
            if cost is not None:
                return cost
        match name:
            case "_&&_" | "_||_":
                return 0, None
            case "_+_" if self._all_may_be(arguments, "string", "bytes", "list"):
                self._set_entries(node, self._union(*arguments))
                grown = min(size(arguments[0]) + size(arguments[1]), UNLIMITED)
                copies = self._all_may_be(arguments, "string", "bytes")
                return (_times(grown, _TRAVERSAL) if copies else 1), grown
            case "_==_" | "_!=_":
                return self._equality_cost(name, arguments), None
            case _ if name in _ORDERS and self._all_may_be(arguments, "string", "bytes"):
                return max(_times(min(map(size, arguments)), _TRAVERSAL), int(self._all_may_be(arguments))), None
            case "_[_]":
                return 1, self._index(node)
            case "@in" if self._may_be(arguments[1], "list"):
                return max(size(arguments[1]), int(self._may_be(arguments[1], "map"))), None
            case "matches" if len(arguments) == 2:
                return self._match_cost(*arguments), None
            case "url":
                return _times(size(arguments[0]), _TRAVERSAL), size(arguments[0])
            case _ if name in _PARSERS and arguments:
                return _times(size(arguments[0]), _TRAVERSAL), None
            case "bytes" if self._may_be(arguments[0], "string"):
                return max(1, _times(size(arguments[0]), _TRAVERSAL)), min(4 * size(arguments[0]), UNLIMITED)
            case "string" if self._may_be(arguments[0], "bytes"):
                return max(1, _times(size(arguments[0]), _TRAVERSAL)), size(arguments[0])
        return 1, None

    def _method_cost(self, name: str, target: Node, arguments: tuple[Node, ...]) -> tuple[int, int | None] | None:
        size = self._size_or_unlimited
        on = size(target)
        match name:
            case _ if name in _ON_WHOLE_LIST:
                return self._whole_list_cost(name, target), None
            case _ if name in _SAME_SIZE:
                return _times(on, _TRAVERSAL), on
            case "replace":
                return _times(on, 2 * _TRAVERSAL), self._replaced_size(on, arguments[0], arguments[1])
            case "split":
                limit = arguments[1] if len(arguments) > 1 else None
                parts = limit.value if isinstance(limit, Constant) and isinstance(limit.value, int) else on
                return _times(on, 2 * _TRAVERSAL), parts if parts >= 0 else UNLIMITED
            case "join":
                joined = on * self._element_size(target) if self._parsed.type_of(target).parameters else 0
                if arguments:
                    joined += size(arguments[0]) * max(on - 1, 0)
                joined = min(joined, UNLIMITED)
                return _times(joined, _TRAVERSAL), joined
            case "find" | "findAll":
                return self._match_cost(target, arguments[0]), on
            case "matches":
                return self._match_cost(target, arguments[0]), None
            case "validate":
                return _times(_times(size(arguments[0]), _TRAVERSAL), 128 * _PATTERN), None
            case "containsIP":
                text = self._may_be(arguments[0], "string")
                return 4 + (_times(size(arguments[0]), _TRAVERSAL) if text else 0), None
            case "containsCIDR":
                text = self._may_be(arguments[0], "string")
                return 7 + (_times(size(arguments[0]), _TRAVERSAL) if text else 0), None
            case "format":
                return _times(on, _TRAVERSAL), None
            case "startsWith" | "endsWith":
                return _times(size(arguments[0]), _TRAVERSAL), None
            case "contains":
                return _times(on, _TRAVERSAL) * _times(size(arguments[0]), _TRAVERSAL), None
            case "reverse":
                return on + 1 + _LIST, on
            case "flatten":
                depth = self._int_literal(arguments[0], UNLIMITED) if arguments else 1
                return _times(on, depth) + 1 + _LIST, on
            case "distinct":
                return 2 * on * on + 1 + _LIST, min(on * on, UNLIMITED)
            case "sort" | "@sortByAssociatedKeys":
                keys = arguments[0] if arguments else target
                sorts_text = self._element_type(keys).name in ("string", "bytes", "dyn")
                squared = min(size(keys) * size(keys), UNLIMITED)
                return _times(squared, 2 + _TRAVERSAL if sorts_text else 2) + 1 + _LIST, squared
            case "slice":
                start, end = self._int_literal(arguments[0], 0), self._int_literal(arguments[1], on)
                length = end - start if end >= start else UNLIMITED
                return length + 1 + _LIST, length
        return None

    def _namespaced_cost(self, name: str, arguments: tuple[Node, ...]) -> tuple[int, int | None]:
        size = self._size_or_unlimited
        match name:
            case "ip.isCanonical":
                return _times(size(arguments[0]), 2 * _TRAVERSAL), None
            case "strings.quote":
                return _times(size(arguments[0]), _TRAVERSAL), min(2 * size(arguments[0]) + 2, UNLIMITED)
            case "sets.contains" | "sets.intersects":
                return size(arguments[0]) * size(arguments[1]) + 1, None
            case "sets.equivalent":
                return 2 * size(arguments[0]) * size(arguments[1]) + 1, None
            case "lists.range":
                length = self._int_literal(arguments[0], UNLIMITED)
                return length + 1 + _LIST, length
        return 1, None

    def _whole_list_cost(self, name: str, target: Node) -> int:
        size, list_type = self._size_or_unlimited(target), self._parsed.type_of(target)
        if list_type.parameters:
            is_text = self._element_type(target).name in ("string", "bytes")
            return size * (1 + (_times(self._element_size(target), _TRAVERSAL) if is_text else 0))
        return size if name == "includes" else _times(size, _TRAVERSAL)

    def _equality_cost(self, name: str, arguments: tuple[Node, ...]) -> int:
        left, right = map(self._parsed.type_of, arguments)
        if name == "_==_" and left == right:
            if left.name in _CONSTANT_COST_EQUALITY:
                return 1
            if left.name == "kubernetes.Format":
                return 7
        return _times(min(map(self._size_or_unlimited, arguments)), _TRAVERSAL)

    def _match_cost(self, text: Node, pattern: Node) -> int:
        characters = min(self._size_or_unlimited(text) + 1, UNLIMITED)
        return _times(characters, _TRAVERSAL) * _times(self._size_or_unlimited(pattern), _PATTERN)

    def _replaced_size(self, size: int, replaced: Node, replacement: Node) -> int:
        # Only of a literal do we know that it is not empty, as an empty one matches everywhere.
        shortest = len(replaced.value) if isinstance(replaced, Constant) and isinstance(replaced.value, str) else 0
        longest = self._size_or_unlimited(replacement)
        if shortest == 0:
            return min((size + 1) * longest + size, UNLIMITED)
        if longest <= shortest:
            return size
        return min(math.ceil(size / shortest) * longest, UNLIMITED)

    def _index(self, node: Call) -> int | None:
        container = node.arguments[0]
        is_list = self._parsed.type_of(container).name == "list"
        self._paths[node.id] = (*self._path(container), "@items" if is_list else "@values")
        entries = self._entries_of(container)
        return entries.value if entries else None

    def _path(self, node: Node) -> Path:
        if isinstance(node, Identifier):
            scopes = self._locals.get(node.name)
            return scopes[-1].path if scopes else (node.name,)
        return self._paths.get(node.id, ())

    def _size(self, node: Node) -> int | None:
        if node.id in self._sizes:
            return self._sizes[node.id]
        match node:
            case Constant(value=str() | bytes() as text):
                return len(text)
            case Constant():
                return 1
            case ListLiteral():
                return len(node.elements)
            case MapLiteral() if not node.message_name:
                return len(node.entries)
        declared = _declared_size(self._path(node))
        if declared is not None:
            return declared
        if _is_scalar(self._parsed.type_of(node)):
            return 1
        if isinstance(node, Identifier) and self._locals.get(node.name):
            return self._locals[node.name][-1].size
        return None

    def _size_or_unlimited(self, node: Node) -> int:
        size = self._size(node)
        return UNLIMITED if size is None else size

    def _set_size(self, node: Node, size: int | None) -> None:
        size = self._size(node) if size is None else size
        if size is not None:
            self._sizes[node.id] = size

    def _element_type(self, node: Node) -> Type:
        parameters = self._parsed.type_of(node).parameters
        return parameters[0] if parameters else DYN

    def _element_size(self, node: Node) -> int:
        declared = _declared_size((*self._path(node), "@items"))
        return UNLIMITED if declared is None else declared

    def _entries_of(self, node: Node) -> _Entries | None:
        if node.id in self._entries:
            return self._entries[node.id]
        if isinstance(node, Identifier) and self._locals.get(node.name):
            return self._locals[node.name][-1].entries
        return None

    def _union(self, left: Node, right: Node) -> _Entries | None:
        first, second = self._entries_of(left), self._entries_of(right)
        if first is None or second is None:
            return None
        return _Entries(first.is_list, max(first.key, second.key), max(first.value, second.value))

    def _set_entries(self, node: Node, entries: _Entries | None) -> None:
        if entries is not None:
            self._entries[node.id] = entries

    def _copy(self, to: Node, source: Node) -> None:
        size = self._size(source)
        if size is not None:
            self._sizes[to.id] = size
        self._set_entries(to, self._entries_of(source))

    def _local_of(self, node: Node) -> _Local:
        return _Local(self._path(node), self._size(node), self._entries_of(node))

    @contextmanager
    def _local(self, name: str, local: _Local) -> Iterator[None]:
        self._locals.setdefault(name, []).append(local)
        yield
        self._locals[name].pop()

    def _may_be(self, node: Node, *names: str) -> bool:
        found = self._parsed.type_of(node)
        return found.name in names or found == DYN

    def _all_may_be(self, nodes: tuple[Node, ...], *names: str) -> bool:
        return all(self._may_be(node, *names) for node in nodes)

    def _int_literal(self, node: Node, otherwise: int) -> int:
        if isinstance(node, Constant) and isinstance(node.value, int) and not isinstance(node.value, bool):
            return max(node.value, 0)
        return otherwise


def _declared_size(path: Path) -> int | None:
    """The largest size that the API allows at a path that begins with `device`."""
    if not path or path[0] != "device":
        return None
    place: _Declared | None = _DEVICE
    for name in path[1:]:
        assert place is not None
        match name:
            case "@items" | "@values":
                place = place.element
            case "@keys":
                place = place.key
            case _:
                place = place.fields.get(name) or (_ATTRIBUTE if place.element is _ATTRIBUTE else None)
        if place is None:
            return None
    return place.size if place else None


def _is_scalar(found: Type) -> bool:
    if found.name == "optional_type" and found.parameters:
        return _is_scalar(found.parameters[0])
    return found.name in _SCALARS
