"""Which parts of a device an expression reads, so that it need be evaluated only once for devices that agree in them.

An abstract interpretation: every value is either a known place of the device or something else. Where a place flows
into anything but a further selection, all of it counts as read; what is not sure to be harmless widens the answer.
"""

from collections.abc import Hashable, Iterator
from typing import Any

import msgspec

from broker.allocation.cel.syntax import (
    Call,
    Comprehension,
    Identifier,
    ListLiteral,
    Node,
    Parsed,
    Select,
    children,
    literal_text,
    walk,
)
from broker.allocation.cel.values import DeviceValues

Place = tuple[str, ...]
_DEVICE: Place = ()
_SELECTIONS = ("_[_]", "_[?_]", "_?._")


class FieldPath(msgspec.Struct, frozen=True, order=True):
    """A place of a device: ("attributes", domain, name), or a shorter one, which stands for all below it."""

    parts: Place


WHOLE_DEVICE = frozenset({FieldPath(_DEVICE)})


def fields_read(expression: str) -> frozenset[FieldPath]:
    """The places that the expression's value can depend on; WHOLE_DEVICE if there is no parser in this process.

    Raises: SelectorCompileError, for syntax.
    """
    parsed = parse(expression)
    if parsed is None:
        return WHOLE_DEVICE
    reader = _Reader()
    reader.read(reader.visit(parsed.root, {"device": _DEVICE}))
    places = reader.places
    return frozenset(
        FieldPath(place) for place in places if not any(place[:length] in places for length in range(len(place)))
    )


def texts_required(expression: str) -> dict[FieldPath, frozenset[str]]:
    """Attributes that must have one of some texts for the expression to be true; empty if there is no parser.

    Where the attribute is another text, the expression is false, whatever else there is. Where it is absent or no text
    nothing is said: the expression has to be evaluated.

    Raises: SelectorCompileError, for syntax.
    """
    parsed = parse(expression)
    found: dict[FieldPath, frozenset[str]] = {}
    for condition in _conditions(parsed.root) if parsed is not None else ():
        if any(isinstance(each, Comprehension) for each in walk(condition)):
            break  # it may take more steps than an evaluation has; then what is behind it does not matter
        required = _text_required(condition)
        if required is not None:
            place, texts = required
            found[place] = found.get(place, texts) & texts
    return found


def _conditions(node: Node) -> Iterator[Node]:
    """All that must be true for the node to be true, in order."""
    if isinstance(node, Call) and node.function == "_&&_":
        for each in node.arguments:
            yield from _conditions(each)
    else:
        yield node


def _text_required(node: Node) -> tuple[FieldPath, frozenset[str]] | None:
    """Of `attribute == "text"` and `attribute in ["text", ...]`."""
    if not isinstance(node, Call) or len(node.arguments) != 2:
        return None
    left, right = node.arguments
    if node.function == "_==_":
        if literal_text(left) is not None:
            left, right = right, left
        texts = [literal_text(right)]
    elif node.function == "@in" and isinstance(right, ListLiteral) and not right.optional_indices:
        texts = list(map(literal_text, right.elements))
    else:
        return None
    place = _attribute_place(left)
    if place is None or None in texts:
        return None
    return FieldPath(place), frozenset(text for text in texts if text is not None)


def _attribute_place(node: Node) -> Place | None:
    """Of `device.attributes["domain"].name`, in any spelling but optional ones."""
    names: list[str] = []
    while (selected := selection(node)) is not None:
        if (isinstance(node, Call) and node.function != "_[_]") or (isinstance(node, Select) and node.test_only):
            return None
        node, name = selected
        names.insert(0, name)
    is_attribute = isinstance(node, Identifier) and node.name == "device" and len(names) == 3
    return tuple(names) if is_attribute and names[0] == "attributes" else None


def parse(expression: str) -> Parsed | None:
    """The tree of an expression, unchecked; None without cel-expr-python, whose parser it is.

    Raises: SelectorCompileError, for syntax.
    """
    try:
        from broker.allocation.cel.cel_expr import shared_engine
    except ImportError:
        return None
    return shared_engine().parse_unchecked(expression)


def project(fields: frozenset[FieldPath], values: DeviceValues) -> Hashable:
    """What the device has at these places: devices with equal projections get equal verdicts.

    values: not encoded for an engine, as `device_values` makes them with `encode=lambda value: value`.
    """
    tree: dict[str, Any] = {
        "driver": values.driver,
        "allowMultipleAllocations": values.allow_multiple_allocations,
        "attributes": values.attributes,
        "capacity": values.capacity,
    }
    return tuple(_key(_at(tree, field.parts)) for field in sorted(fields))


def step(place: Place | None, name: str) -> Place | None:
    """The place below another; None below an attribute, whose inside is no place."""
    if place is None or len(place) == 3 or place[:1] in (("driver",), ("allowMultipleAllocations",)):
        return None
    return (*place, name)


def selection(node: Node) -> tuple[Node, str] | None:
    """What is selected from, and the name: of `a.b`, `a["b"]`, `a.?b` and `a[?"b"]`."""
    if isinstance(node, Select):
        return node.operand, node.field
    if isinstance(node, Call) and node.function in _SELECTIONS and len(node.arguments) == 2:
        name = literal_text(node.arguments[1])
        if name is not None:
            return node.arguments[0], name
    return None


class _Reader:
    def __init__(self) -> None:
        self.places: set[Place] = set()

    def read(self, place: Place | None) -> None:
        if place is not None:
            self.places.add(place)

    def visit(self, node: Node, variables: dict[str, Place | None]) -> Place | None:
        """The place that the node denotes, if it denotes one; whatever else it reads is noted."""
        if isinstance(node, Identifier):
            return variables.get(node.name.lstrip("."))
        if isinstance(node, Comprehension):
            return self._visit_comprehension(node, variables)
        selected = selection(node)
        if selected is not None:
            place = self.visit(selected[0], variables)
            below = step(place, selected[1])
            if below is None or (isinstance(node, Select) and node.test_only):
                self.read(place if below is None else below)
                return None
            return below
        if isinstance(node, Call) and node.function == "@in" and len(node.arguments) == 2:
            name, place = literal_text(node.arguments[0]), self.visit(node.arguments[1], variables)
            below = None if name is None else step(place, name)
            self.read(place if below is None else below)
            self.read(self.visit(node.arguments[0], variables))
            return None
        # Passed on to a function or into a literal, a place is read as a whole. A choice between two maps as well.
        for child in children(node):
            self.read(self.visit(child, variables))
        return None

    def _visit_comprehension(self, node: Comprehension, variables: dict[str, Place | None]) -> Place | None:
        start = self.visit(node.accu_init, variables)
        if node.is_bind:
            return self.visit(node.result, {**variables, node.accu_var: start})
        self.read(self.visit(node.iter_range, variables))
        self.read(start)
        inner: dict[str, Place | None] = {
            **variables,
            node.accu_var: None,
            node.iter_var: None,
            node.iter_var2 or node.iter_var: None,
        }
        self.read(self.visit(node.loop_condition, inner))
        self.read(self.visit(node.loop_step, inner))
        self.read(self.visit(node.result, {**variables, node.accu_var: None}))
        return None


def _at(tree: Any, place: Place) -> Any:
    for name in place:
        if not isinstance(tree, dict) or name not in tree:
            return None
        tree = tree[name]
    return tree


def _key(value: Any) -> Hashable:
    """Hashable, and different for values that CEL tells apart: 1 and true are equal in Python."""
    match value:
        case dict():
            return tuple((name, _key(item)) for name, item in sorted(value.items()))
        case list():
            return ("list", *map(_key, value))
    return (type(value).__name__, value)
