"""What is legal in an expression, but surely not what its author means.

Attributes such as "80Gi" are strings, and `>=` compares strings letter by letter: "8Gi" >= "16Gi" is true. We allocate
what CEL says, and tell the author.
"""

import re
from collections.abc import Iterable, Iterator

import msgspec

from broker.allocation.cel.fields import Place, parse, selection, step
from broker.allocation.cel.syntax import Call, Comprehension, Identifier, Node, children, literal_text
from broker.allocation.cel.values import split_name
from schemas.quantity import Quantity, QuantityError
from schemas.resource import Device, DeviceAttribute
from schemas.semver import Semver, SemverError

_FLIPPED = {"_<_": "_>_", "_<=_": "_>=_", "_>_": "_<_", "_>=_": "_<=_"}
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_VERSION = re.compile(r"v[0-9].*|[0-9]+\.[0-9]+\.[0-9]+.*")


class Advice(msgspec.Struct, frozen=True):
    """A warning.

    message: what the expression does.
    suggestion: an expression to write instead, or two, one per line, where we cannot know which fits the devices.
    """

    message: str
    suggestion: str


def advise(expression: str, devices: Iterable[tuple[str, Device]] = ()) -> list[Advice]:
    """Warnings on an expression, in its order; none where it has no parser (see `fields.parse`).

    devices: a sample, each with its driver; it tells what kind of value an attribute is.
    Raises: SelectorCompileError, for syntax.
    """
    parsed = parse(expression)
    if parsed is None:
        return []
    sample = list(devices)
    return [
        advice
        for comparison, variables in _comparisons(parsed.root, {"device": ()})
        if (advice := _advice_on(comparison, variables, sample)) is not None
    ]


def _comparisons(node: Node, variables: dict[str, Place]) -> Iterator[tuple[Call, dict[str, Place]]]:
    """Every ordering comparison, with the places that the variables in its scope stand for."""
    if isinstance(node, Comprehension):
        hidden = {node.iter_var, node.iter_var2, node.accu_var}
        inner = {name: place for name, place in variables.items() if name not in hidden}
        yield from _comparisons(node.iter_range, variables)
        yield from _comparisons(node.accu_init, variables)
        bound = _place(node.accu_init, variables) if node.is_bind else None
        if bound is not None:
            inner[node.accu_var] = bound
        for part in (node.loop_condition, node.loop_step, node.result):
            yield from _comparisons(part, inner)
        return
    if isinstance(node, Call) and node.function in _FLIPPED:
        yield node, variables
    for child in children(node):
        yield from _comparisons(child, variables)


def _place(node: Node, variables: dict[str, Place]) -> Place | None:
    if isinstance(node, Identifier):
        return variables.get(node.name)
    selected = selection(node)
    if selected is None:
        return None
    return step(_place(selected[0], variables), selected[1])


def _advice_on(comparison: Call, variables: dict[str, Place], sample: list[tuple[str, Device]]) -> Advice | None:
    left, right = comparison.arguments
    function, literal, place = comparison.function, literal_text(right), _place(left, variables)
    if literal is None:
        function, literal, place = _FLIPPED[function], literal_text(left), _place(right, variables)
    if literal is None or place is None or len(place) != 3:
        return None
    operator = function.strip("_")
    if _is_version(literal):
        return _advice_on_version(place, operator, literal, sample)
    if _is_quantity(literal):
        return _advice_on_quantity(place, operator, literal, sample)
    return None


def _advice_on_quantity(place: Place, operator: str, literal: str, sample: list[tuple[str, Device]]) -> Advice:
    amount = f'quantity("{literal}")'
    as_attribute = f"quantity({_written('attributes', place)}).compareTo({amount}) {operator} 0"
    as_capacity = f"{_written('capacity', place)}.compareTo({amount}) {operator} 0"
    as_written = _written(place[0], place)
    message = (
        f'{as_written} {operator} "{literal}" compares text, letter by letter, not amounts: '
        '"8Gi" counts as more than "16Gi"'
    )
    if place[0] == "capacity":
        message = f'{_written("capacity", place)} {operator} "{literal}" compares an amount with text'
        return Advice(message, as_capacity)
    is_attribute = bool(_attributes_at(place, sample))
    is_capacity = any(split_name(name, driver) == place[1:] for driver, device in sample for name in device.capacity)
    forms = [as_attribute] if is_attribute or not is_capacity else []
    if is_capacity or not is_attribute:
        forms.append(as_capacity)
    return Advice(message, "\n".join(forms))


def _advice_on_version(place: Place, operator: str, literal: str, sample: list[tuple[str, Device]]) -> Advice:
    try:
        Semver.parse(literal)
        lenient = ""
    except SemverError:
        lenient = ", true"
    written = _written(place[0], place)
    found = _attributes_at(place, sample)
    is_version = bool(found) and all(attribute.version is not None for attribute in found)
    version = written if is_version else f"semver({written}{lenient})"
    message = f'{written} {operator} "{literal}" '
    if is_version:
        message += "compares a version with text, which is an error"
    else:
        message += 'compares text, letter by letter, not versions: "9.0.0" counts as more than "10.0.0"'
    return Advice(message, f'{version}.compareTo(semver("{literal}"{lenient})) {operator} 0')


def _attributes_at(place: Place, sample: list[tuple[str, Device]]) -> list[DeviceAttribute]:
    return [
        attribute
        for driver, device in sample
        for name, attribute in device.attributes.items()
        if split_name(name, driver) == place[1:]
    ]


def _written(field: str, place: Place) -> str:
    _, domain, name = place
    selected = f".{name}" if _IDENTIFIER.fullmatch(name) else f'["{name}"]'
    return f'device.{field}["{domain}"]{selected}'


def _is_quantity(text: str) -> bool:
    try:
        Quantity.parse(text)
    except QuantityError:
        return False
    return True


def _is_version(text: str) -> bool:
    if not _VERSION.fullmatch(text):
        return False
    try:
        Semver.parse(text, normalize=True)
    except SemverError:
        return False
    return True
