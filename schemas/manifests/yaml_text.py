"""One YAML document, read as kubectl reads it, and the place of everything in it.

YAML 1.1 as in go-yaml v2, on which Kubernetes rests: `yes`, `no`, `on`, `off`, `y` and `n` are booleans and 010 is 8,
but 1:30 is text. Timestamps stay text, as JSON has none. Keys must be text and must not repeat; aliases and merge keys
work as far as they do not blow up the document. Faster than PyYAML's own construction, which is generic.
"""

import math
import re
from functools import lru_cache
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

_TAG = "tag:yaml.org,2002:"
_STR, _INT, _FLOAT, _BOOL, _NULL = (_TAG + name for name in ("str", "int", "float", "bool", "null"))
_SEQ, _MAP, _MERGE, _TIMESTAMP = (_TAG + name for name in ("seq", "map", "merge", "timestamp"))

_BOOLEANS = {
    spelling: value
    for value, words in ((True, ("y", "yes", "true", "on")), (False, ("n", "no", "false", "off")))
    for word in words
    for spelling in (word, word.capitalize(), word.upper())
}
_NULLS = ("", "~", "null", "Null", "NULL")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_INTEGER = re.compile(r"[-+]?(?:0b[01]+|0o?[0-7]+|0x[0-9a-fA-F]+|0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")

# How often the text may be repeated through aliases, and how much every text may have on top.
_EXPANSION = 10
_EXPANSION_FREE = 100_000
_MAX_DEPTH = 200

_PATH_STEP = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")


class YamlTextError(ValueError):
    """Text that is not one YAML document; line and column count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message, line, column)
        self.message = message
        self.line = line
        self.column = column


def load(text: str) -> Any:
    """The document as builtins.

    Raises: YamlTextError.
    """
    node = compose(text)
    if node is None:
        return None
    try:
        return _Construction(_EXPANSION * len(text) + _EXPANSION_FREE).build(node)
    except RecursionError:
        raise _error("an alias refers to what contains it", node) from None


def compose(text: str) -> Node | None:
    """The document's nodes, which know their places; None if it is empty.

    Raises: YamlTextError.
    """
    try:
        loader = _Composer(text)
        try:
            root: Node | None = loader.get_single_node()
            return root
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark and error.context_mark and mark.line >= text.count("\n"):
            mark = error.context_mark  # where it was opened says more than that it was not closed before the end
        message = " ".join(part for part in (error.context, error.problem) if part)
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise YamlTextError(f"not YAML: {message}", line, column) from error
    except yaml.reader.ReaderError as error:
        before = text.encode()[: error.position].decode(errors="replace")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        raise YamlTextError(f"not YAML: {error.reason}", line, column) from error


def locate(root: Node, path: str) -> tuple[int, int]:
    """Line and column, from 1, of the field at `path`, or of the last thing on the way to it that is there."""
    node, mark = root, root.start_mark
    for name, index in _PATH_STEP.findall(path):
        if isinstance(node, SequenceNode) and index.isdigit() and int(index) < len(node.value):
            node = node.value[int(index)]
            mark = node.start_mark
            continue
        entry = _entry(node, name or index)
        if entry is None:
            break
        key, node = entry
        mark = node.start_mark if isinstance(node, ScalarNode) and node.value else key.start_mark
    return mark.line + 1, mark.column + 1


def _entry(node: Node, key: str) -> tuple[Node, Node] | None:
    """The key and value in a mapping, or in what is merged into it."""
    if not isinstance(node, MappingNode):
        return None
    for key_node, value_node in node.value:
        if key_node.value == key:
            return key_node, value_node
    for key_node, value_node in node.value:
        if key_node.tag == _MERGE:
            for source in value_node.value if isinstance(value_node, SequenceNode) else (value_node,):
                entry = _entry(source, key)
                if entry is not None:
                    return entry
    return None


class _Composer(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the C one is not on every platform
    """Parses and composes; scalars get the tags of go-yaml, and nothing of PyYAML's construction is used."""

    _depth = 0

    def resolve(self, kind: type[Node], value: str | None, implicit: tuple[bool, bool]) -> str:
        if kind is ScalarNode:
            return _plain_tag(value or "") if implicit[0] else _STR
        return _MAP if kind is MappingNode else _SEQ

    def descend_resolver(self, current_node: Node | None, _index: Any) -> None:
        # Composing recurses on the C stack, without the interpreter's guard.
        self._depth += 1
        if self._depth > _MAX_DEPTH and current_node is not None:
            raise _error("nested too deeply", current_node)

    def ascend_resolver(self) -> None:
        self._depth -= 1


@lru_cache(maxsize=16384)
def _plain_tag(value: str) -> str:
    if value[:1] not in "-+.0123456789~nNtTfFyYoO<":
        return _STR
    if value in _BOOLEANS:
        return _BOOL
    if value in _NULLS:
        return _NULL
    if value == "<<":
        return _MERGE
    plain = value.replace("_", "") if value[:1] != "." else value
    if _INTEGER.fullmatch(plain):
        return _INT
    return _FLOAT if _DECIMAL.fullmatch(plain) or _INFINITE.fullmatch(value) else _STR


class _Construction:
    """Builtins from nodes. An alias is built anew each time, so that the result shares no parts with itself."""

    def __init__(self, nodes_left: int) -> None:
        self._nodes_left = nodes_left

    def build(self, node: Node) -> Any:
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise _error("the aliases repeat too much of the document", node)
        if isinstance(node, ScalarNode):
            return node.value if node.tag == _STR else _scalar(node)
        if isinstance(node, MappingNode) and node.tag == _MAP:
            return self._mapping(node)
        if isinstance(node, SequenceNode) and node.tag == _SEQ:
            return [self.build(item) for item in node.value]
        raise _error(f"expected a plain object, list or value, found the tag {node.tag}", node)

    def _mapping(self, node: MappingNode) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged += value_node.value if isinstance(value_node, SequenceNode) else [value_node]
                continue
            key = _key(key_node)
            if key in result:
                raise _error(f'the key "{key}" is there twice', key_node)
            result[key] = self.build(value_node)
        for source in merged:
            if not isinstance(source, MappingNode):
                raise _error("expected an object to merge, or a list of objects", source)
            for key, value in self.build(source).items():
                result.setdefault(key, value)
        return result


def _key(node: Node) -> str:
    if isinstance(node, ScalarNode) and (node.tag == _STR or (node.tag == _INT and node.value.isdecimal())):
        key: str = node.value
        return key
    raise _error("expected text as key; put quotes around it if it only looks like something else", node)


def _scalar(node: ScalarNode) -> Any:
    tag, value = node.tag, node.value
    try:
        match tag:
            case "tag:yaml.org,2002:bool":
                return _BOOLEANS[value]
            case "tag:yaml.org,2002:null":
                return None
            case "tag:yaml.org,2002:int" | "tag:yaml.org,2002:float":
                return _number(value, tag)
            case "tag:yaml.org,2002:timestamp" | "tag:yaml.org,2002:merge":
                return value
    except (KeyError, ValueError):
        raise _error(f'expected {tag.removeprefix(_TAG)}, found "{value}"', node) from None
    raise _error(f"expected a plain object, list or value, found the tag {tag}", node)


def _number(value: str, tag: str) -> int | float | str:
    plain = value.replace("_", "")
    if tag == _INT and len(plain) <= 66:
        digits = plain.lstrip("+-")
        is_octal = len(digits) > 1 and digits[0] == "0" and digits[1].isdigit()
        number = int(plain, 8 if is_octal else 0)
        if -(2**63) <= number < 2**64:
            return number
        return float(number)
    if _INFINITE.fullmatch(value):
        return float(plain.replace(".", ""))
    decimal = float(plain)
    return decimal if math.isfinite(decimal) else value


def _error(message: str, node: Node) -> YamlTextError:
    return YamlTextError(message, node.start_mark.line + 1, node.start_mark.column + 1)
