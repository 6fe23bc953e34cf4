"""CEL expressions as trees: what the parser found, macros expanded.

cel-expr-python hands out serialized cel.expr.ParsedExpr and CheckedExpr messages, and no package ships their
descriptors, so the parts that we need are declared here. The trees are immutable; `rewrite` makes others from them.
Source: cel-spec, proto/cel/expr/syntax.proto and checked.proto.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

ConstantValue = bool | int | float | str | bytes | None


class Constant(msgspec.Struct, frozen=True, gc=False):
    """A literal; `kind` is the protocol's name of its type, such as "int64_value", for 1 and 1u are two values."""

    id: int
    kind: str
    value: ConstantValue


class Identifier(msgspec.Struct, frozen=True, gc=False):
    """A variable, or the first part of a qualified name."""

    id: int
    name: str


class Select(msgspec.Struct, frozen=True):
    """`operand.field`, or has(operand.field) if `test_only`."""

    id: int
    operand: "Node"
    field: str
    test_only: bool = False


class Call(msgspec.Struct, frozen=True):
    """A function, operator or method (then with a target)."""

    id: int
    function: str
    arguments: tuple["Node", ...]
    target: "Node | None" = None

    @property
    def operands(self) -> tuple["Node", ...]:
        return self.arguments if self.target is None else (self.target, *self.arguments)


class ListLiteral(msgspec.Struct, frozen=True):
    """`[a, ?b]`; optional_indices says which elements have the question mark."""

    id: int
    elements: tuple["Node", ...]
    optional_indices: tuple[int, ...] = ()


class Entry(NamedTuple):
    """One entry of a map literal (key is a node) or of a message literal (key is a field's name)."""

    id: int
    key: "Node | str"
    value: "Node"
    is_optional: bool = False


class MapLiteral(msgspec.Struct, frozen=True):
    """`{k: v}`, or a message literal if it has a message_name."""

    id: int
    message_name: str
    entries: tuple[Entry, ...]


class Comprehension(msgspec.Struct, frozen=True):
    """What the macros (exists, map, cel.bind, ...) become: a fold."""

    id: int
    iter_var: str
    iter_var2: str
    iter_range: "Node"
    accu_var: str
    accu_init: "Node"
    loop_condition: "Node"
    loop_step: "Node"
    result: "Node"

    @property
    def is_bind(self) -> bool:
        """cel.bind(accu_var, accu_init, result): nothing is iterated."""
        return isinstance(self.iter_range, ListLiteral) and not self.iter_range.elements


Node = Constant | Identifier | Select | Call | ListLiteral | MapLiteral | Comprehension


class Type(NamedTuple):
    """A type that the checker found, written as CEL's messages write it."""

    name: str
    parameters: tuple["Type", ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.parameters))})" if self.parameters else self.name


DYN = Type("dyn")


class Parsed(NamedTuple):
    """An expression; offsets (in characters, by node id) and, if it was checked, types (by node id)."""

    root: Node
    offsets: dict[int, int]
    types: dict[int, Type]

    def type_of(self, node: Node) -> Type:
        return self.types.get(node.id, DYN)


def children(node: Node) -> Iterator[Node]:
    match node:
        case Select():
            yield node.operand
        case Call():
            yield from node.operands
        case ListLiteral():
            yield from node.elements
        case MapLiteral():
            for entry in node.entries:
                if not isinstance(entry.key, str):
                    yield entry.key
                yield entry.value
        case Comprehension():
            yield from (node.iter_range, node.accu_init, node.loop_condition, node.loop_step, node.result)


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it."""
    yield node
    for child in children(node):
        yield from walk(child)


def rebuild(node: Node, change: Callable[[Node], Node]) -> Node:
    """The same node with changed children."""
    match node:
        case Select():
            return Select(node.id, change(node.operand), node.field, node.test_only)
        case Call():
            target = None if node.target is None else change(node.target)
            return Call(node.id, node.function, tuple(map(change, node.arguments)), target)
        case ListLiteral():
            return ListLiteral(node.id, tuple(map(change, node.elements)), node.optional_indices)
        case MapLiteral():
            entries = (
                Entry(e.id, e.key if isinstance(e.key, str) else change(e.key), change(e.value), e.is_optional)
                for e in node.entries
            )
            return MapLiteral(node.id, node.message_name, tuple(entries))
        case Comprehension():
            return Comprehension(
                node.id,
                node.iter_var,
                node.iter_var2,
                change(node.iter_range),
                node.accu_var,
                change(node.accu_init),
                change(node.loop_condition),
                change(node.loop_step),
                change(node.result),
            )
    return node


def literal_text(node: Node) -> str | None:
    """The value of a string literal."""
    return node.value if isinstance(node, Constant) and isinstance(node.value, str) else None


# Message name -> "field:number:type" of each field we read; "*" marks repeated ones, maps are repeated entries.
_LAYOUT = {
    "ParsedExpr": "expr:2:Expr source_info:3:SourceInfo",
    "CheckedExpr": "type_map:3:TypeEntry* expr:4:Expr source_info:5:SourceInfo",
    "SourceInfo": "positions:4:PositionEntry*",
    "PositionEntry": "key:1:int64 value:2:int32",
    "TypeEntry": "key:1:int64 value:2:Type",
    "Constant": (
        "null_value:1:int32 bool_value:2:bool int64_value:3:int64 uint64_value:4:uint64 double_value:5:double "
        "string_value:6:string bytes_value:7:bytes"
    ),
    "Expr": (
        "id:2:int64 const_expr:3:Constant ident_expr:4:Ident select_expr:5:Select call_expr:6:Call "
        "list_expr:7:CreateList struct_expr:8:CreateStruct comprehension_expr:9:Comprehension"
    ),
    "Ident": "name:1:string",
    "Select": "operand:1:Expr field:2:string test_only:3:bool",
    "Call": "target:1:Expr function:2:string args:3:Expr*",
    "CreateList": "elements:1:Expr* optional_indices:2:int32*",
    "CreateStruct": "message_name:1:string entries:2:Entry*",
    "Entry": "id:1:int64 field_key:2:string map_key:3:Expr value:4:Expr optional_entry:5:bool",
    "Comprehension": (
        "iter_var:1:string iter_range:2:Expr accu_var:3:string accu_init:4:Expr loop_condition:5:Expr "
        "loop_step:6:Expr result:7:Expr iter_var2:8:string"
    ),
    "Type": (
        "dyn:1:Nothing null:2:int32 primitive:3:int32 wrapper:4:int32 well_known:5:int32 list_type:6:ListType "
        "map_type:7:MapType message_type:9:string type_param:10:string type:11:Type error:12:Nothing "
        "abstract_type:14:AbstractType"
    ),
    "Nothing": "",
    "ListType": "elem_type:1:Type",
    "MapType": "key_type:1:Type value_type:2:Type",
    "AbstractType": "name:1:string parameter_types:2:Type*",
}
_ONE_OF = {"Constant": "null_value", "Expr": "const_expr", "Type": "dyn"}  # message -> first field of its `kind`
_PACKAGE = "cel.expr"
_PRIMITIVES = ("unspecified", "bool", "int", "uint", "double", "string", "bytes")
_WELL_KNOWN = ("unspecified", "any", "timestamp", "duration")


def _messages() -> Callable[[str], Any]:
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="cel_expr.proto", package=_PACKAGE, syntax="proto3")
    for name, layout in _LAYOUT.items():
        message = file.message_type.add(name=name)
        in_one_of = False
        for described in layout.split():
            field_name, number, type_name = described.split(":")
            field = message.field.add(name=field_name, number=int(number))
            field.label = field_type.LABEL_REPEATED if type_name.endswith("*") else field_type.LABEL_OPTIONAL
            type_name = type_name.removesuffix("*")
            if type_name in _LAYOUT:
                field.type, field.type_name = field_type.TYPE_MESSAGE, f".{_PACKAGE}.{type_name}"
            else:
                field.type = field_type.Type.Value(f"TYPE_{type_name.upper()}")
            if field_name == _ONE_OF.get(name):
                message.oneof_decl.add(name="kind")
                in_one_of = True
            if in_one_of:
                field.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


_message = _messages()
_ParsedExpr, _CheckedExpr, _Expr = _message("ParsedExpr"), _message("CheckedExpr"), _message("Expr")


def read(serialized: bytes) -> Parsed:
    """Read what `Expression.serialize()` returns."""
    envelope = any_pb2.Any.FromString(serialized)
    is_checked = envelope.type_url.endswith("CheckedExpr")
    message = (_CheckedExpr if is_checked else _ParsedExpr).FromString(envelope.value)
    return Parsed(
        _node(message.expr),
        {entry.key: entry.value for entry in message.source_info.positions},
        {entry.key: _type(entry.value) for entry in message.type_map} if is_checked else {},
    )


def write(root: Node) -> bytes:
    """What `Env.deserialize()` reads."""
    parsed = _ParsedExpr()
    _fill(parsed.expr, root)
    return any_pb2.Any(
        type_url=f"type.googleapis.com/{_PACKAGE}.ParsedExpr", value=parsed.SerializeToString()
    ).SerializeToString()


def _node(expr: Any) -> Node:
    match expr.WhichOneof("kind"):
        case "const_expr":
            kind = expr.const_expr.WhichOneof("kind")
            value = None if kind == "null_value" else getattr(expr.const_expr, kind)
            return Constant(expr.id, kind, value)
        case "ident_expr":
            return Identifier(expr.id, expr.ident_expr.name)
        case "select_expr":
            select = expr.select_expr
            return Select(expr.id, _node(select.operand), select.field, select.test_only)
        case "call_expr":
            call = expr.call_expr
            target = _node(call.target) if call.HasField("target") else None
            return Call(expr.id, call.function, tuple(map(_node, call.args)), target)
        case "list_expr":
            return ListLiteral(
                expr.id, tuple(map(_node, expr.list_expr.elements)), tuple(expr.list_expr.optional_indices)
            )
        case "struct_expr":
            entries = (
                Entry(
                    entry.id,
                    _node(entry.map_key) if entry.HasField("map_key") else entry.field_key,
                    _node(entry.value),
                    entry.optional_entry,
                )
                for entry in expr.struct_expr.entries
            )
            return MapLiteral(expr.id, expr.struct_expr.message_name, tuple(entries))
        case "comprehension_expr":
            fold = expr.comprehension_expr
            return Comprehension(
                expr.id,
                fold.iter_var,
                fold.iter_var2,
                _node(fold.iter_range),
                fold.accu_var,
                _node(fold.accu_init),
                _node(fold.loop_condition),
                _node(fold.loop_step),
                _node(fold.result),
            )
    raise AssertionError("an expression without a kind")


def _fill(expr: Any, node: Node) -> None:
    expr.id = node.id
    match node:
        case Constant():
            setattr(expr.const_expr, node.kind, 0 if node.value is None else node.value)
        case Identifier():
            expr.ident_expr.name = node.name
        case Select():
            _fill(expr.select_expr.operand, node.operand)
            expr.select_expr.field = node.field
            expr.select_expr.test_only = node.test_only
        case Call():
            expr.call_expr.function = node.function
            if node.target is not None:
                _fill(expr.call_expr.target, node.target)
            for argument in node.arguments:
                _fill(expr.call_expr.args.add(), argument)
        case ListLiteral():
            expr.list_expr.SetInParent()
            expr.list_expr.optional_indices.extend(node.optional_indices)
            for element in node.elements:
                _fill(expr.list_expr.elements.add(), element)
        case MapLiteral():
            expr.struct_expr.SetInParent()
            expr.struct_expr.message_name = node.message_name
            for entry in node.entries:
                written = expr.struct_expr.entries.add(id=entry.id, optional_entry=entry.is_optional)
                if isinstance(entry.key, str):
                    written.field_key = entry.key
                else:
                    _fill(written.map_key, entry.key)
                _fill(written.value, entry.value)
        case Comprehension():
            fold = expr.comprehension_expr
            fold.iter_var, fold.iter_var2, fold.accu_var = node.iter_var, node.iter_var2, node.accu_var
            for part in ("iter_range", "accu_init", "loop_condition", "loop_step", "result"):
                _fill(getattr(fold, part), getattr(node, part))


def _type(message: Any) -> Type:
    match message.WhichOneof("kind"):
        case "primitive":
            return Type(_PRIMITIVES[message.primitive])
        case "wrapper":
            return Type("wrapper", (Type(_PRIMITIVES[message.wrapper]),))
        case "well_known":
            return Type(_WELL_KNOWN[message.well_known])
        case "null":
            return Type("null_type")
        case "list_type":
            return Type("list", (_type(message.list_type.elem_type),))
        case "map_type":
            return Type("map", (_type(message.map_type.key_type), _type(message.map_type.value_type)))
        case "message_type":
            return Type(message.message_type)
        case "type_param":
            return Type(message.type_param)
        case "type":
            return Type("type", (_type(message.type),))
        case "abstract_type":
            parameters = map(_type, message.abstract_type.parameter_types)
            return Type(message.abstract_type.name, tuple(parameters))
    return DYN
