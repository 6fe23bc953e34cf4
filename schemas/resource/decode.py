"""Objects from what users and API servers send.

Accepts what an API server accepts: every version of `resource.k8s.io` since v1beta1, null for absent, a bare number as
quantity, fields that we do not know. Whether the values make sense is for `validate`; unknown enum values pass here.
The defaults of the API are part of the types.
"""

from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from schemas.errors import UNREADABLE, DecodeError, FieldError
from schemas.quantity import QuantityError, number_text
from schemas.resource import (
    DeviceClass,
    DeviceTaintRule,
    Namespace,
    Node,
    Pod,
    Resource,
    ResourceClaim,
    ResourceClaimTemplate,
    ResourceSlice,
)
from schemas.resource.versions import GROUP, V1, field_of_another_version, path_as_written, to_v1

_TYPE_BY_KIND: dict[str, type[Resource]] = {
    "ResourceSlice": ResourceSlice,
    "ResourceClaim": ResourceClaim,
    "ResourceClaimTemplate": ResourceClaimTemplate,
    "DeviceClass": DeviceClass,
    "DeviceTaintRule": DeviceTaintRule,
    "Pod": Pod,
    "Node": Node,
    "Namespace": Namespace,
}
_CORE_KINDS = ("Pod", "Node", "Namespace")
_VERSIONS = (V1, f"{GROUP}/v1beta2", f"{GROUP}/v1beta1")
_VERSIONS_OF_TAINT_RULES = (V1, f"{GROUP}/v1beta2", f"{GROUP}/v1alpha3")


class _TypeMeta(msgspec.Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""


_TYPE_META = msgspec.json.Decoder(_TypeMeta)
_JSON_DECODERS: dict[tuple[str, str], msgspec.json.Decoder[Resource]] = {
    ("v1" if kind in _CORE_KINDS else V1, kind): msgspec.json.Decoder(type_) for kind, type_ in _TYPE_BY_KIND.items()
}
_INTEGER_MAX = 2**63 - 1
_type_info = cache(inspect.type_info)
_T = TypeVar("_T")


def is_read(api_version: str, kind: str) -> bool:
    """Whether objects of this kind concern us, in whatever version of their group they come."""
    if kind in _CORE_KINDS:
        return api_version == "v1"
    return kind in _TYPE_BY_KIND and api_version.startswith(GROUP + "/")


def decode_object(raw: dict[str, Any]) -> Resource:
    """Make the object that `raw` says by its apiVersion and kind.

    Raises: DecodeError with the first field whose form is wrong, its path in the words of `raw`.
    """
    try:
        type_ = _type_of(raw)
        misplaced = field_of_another_version(raw)
        if misplaced is not None:
            raise _decode_error(raw, misplaced)
        upgraded = to_v1(raw)
        try:
            return msgspec.convert(upgraded, type_)
        except msgspec.ValidationError:
            # Rare: a null, a bare number as quantity, or an error, which has to be found with its path.
            return msgspec.convert(_cleaned(upgraded, _type_info(type_), ""), type_)
    except RecursionError:
        raise _decode_error(raw, FieldError("", "nested too deeply")) from None
    except _FormError as problem:
        path = path_as_written(raw, problem.path) if isinstance(raw, dict) else problem.path
        raise _decode_error(raw, FieldError(path, problem.message)) from None


def decode_json(data: bytes) -> Resource:
    """Make an object from JSON, without a detour for one that an API server wrote as v1.

    Raises: DecodeError, as `decode_object`; its path is "" where the JSON itself is broken.
    """
    try:
        head = _TYPE_META.decode(data)
        decoder = _JSON_DECODERS.get((head.api_version, head.kind))
        if decoder is not None:
            return decoder.decode(data)
    except UNREADABLE:
        pass  # The slower way says what is wrong, and where.
    try:
        raw = msgspec.json.decode(data)
    except RecursionError:
        raise DecodeError(FieldError("", "expected JSON that is not nested so deeply")) from None
    except UNREADABLE as error:
        raise DecodeError(FieldError("", f"expected JSON: {error}")) from error
    return decode_object(raw)


def to_builtins(obj: Resource) -> dict[str, Any]:
    """The object with the API's own names, ready for JSON or YAML."""
    builtins: dict[str, Any] = msgspec.to_builtins(obj)
    return builtins


class _FormError(Exception):
    def __init__(self, path: str, message: str) -> None:
        super().__init__(path, message)
        self.path = path
        self.message = message


def _type_of(raw: Any) -> type[Resource]:
    _expect(raw, dict, "an object", "")
    api_version = _expect(raw.get("apiVersion"), str, 'text like "resource.k8s.io/v1"', "apiVersion")
    kind = _expect(raw.get("kind"), str, 'text like "ResourceClaim"', "kind")
    if kind not in _TYPE_BY_KIND:
        raise _FormError("kind", f'expected one of {", ".join(_TYPE_BY_KIND)}, found "{kind}"')
    if kind in _CORE_KINDS:
        expected: tuple[str, ...] = ("v1",)
    else:
        expected = _VERSIONS_OF_TAINT_RULES if kind == "DeviceTaintRule" else _VERSIONS
    if api_version not in expected:
        raise _FormError("apiVersion", f'expected {" or ".join(expected)} for a {kind}, found "{api_version}"')
    return _TYPE_BY_KIND[kind]


def _decode_error(raw: Any, error: FieldError) -> DecodeError:
    raw = raw if isinstance(raw, dict) else {}
    metadata = raw.get("metadata")
    found = {"kind": raw.get("kind"), **(metadata if isinstance(metadata, dict) else {})}
    known = {key: value for key in ("kind", "namespace", "name") if isinstance(value := found.get(key), str)}
    return DecodeError(error, **known)


def _cleaned(value: Any, expected: inspect.Type, path: str) -> Any:
    """`value` without nulls and unknown fields, and with text for quantities: what `expected` accepts for certain."""
    if isinstance(expected, inspect.UnionType):  # a type or None, and None has been left out before
        expected = next(option for option in expected.types if not isinstance(option, inspect.NoneType))
    match expected:
        case inspect.StructType(fields=fields):
            _expect(value, dict, "an object", path)
            return {
                field.encode_name: _cleaned(
                    child, field.type, f"{path}.{field.encode_name}" if path else field.encode_name
                )
                for field in fields
                if (child := value.get(field.encode_name)) is not None
            }
        case inspect.DictType(value_type=value_type):
            _expect(value, dict, "an object", path)
            return {
                _expect(key, str, "text as key", path): _cleaned(child, value_type, f"{path}[{key}]")
                for key, child in value.items()
                if child is not None
            }
        case inspect.ListType(item_type=item_type):
            _expect(value, list, "a list", path)
            return [_cleaned(item, item_type, f"{path}[{index}]") for index, item in enumerate(value)]
        case inspect.Metadata():
            return _quantity_text(value, path)
        case inspect.StrType():
            return _expect(value, str, "text", path)
        case inspect.BoolType():
            return _expect(value, bool, "true or false", path)
        case inspect.IntType():
            return _integer(value, path)
    return value


def _quantity_text(value: Any, path: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return number_text(value)
        except QuantityError as error:
            raise _FormError(path, str(error)) from None
    return _expect(value, str, 'a quantity like "16Gi"', path)


def _integer(value: Any, path: str) -> int:
    if isinstance(value, float) and value.is_integer():  # YAML's 1.0, which an API server reads as 1
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not -_INTEGER_MAX - 1 <= value <= _INTEGER_MAX:
        raise _FormError(path, f"expected an integer of 64 bits, found {_describe(value)}")
    return value


def _expect(value: Any, type_: type[_T], expected: str, path: str) -> _T:
    if isinstance(value, type_):
        return value
    hint = ""
    if type_ is str and isinstance(value, bool):
        hint = "; YAML reads an unquoted yes, no, on, off, y or n as a boolean: put quotes around text"
    elif type_ is str and isinstance(value, int | float):
        hint = "; put quotes around it to make it text"
    raise _FormError(path, f"expected {expected}, found {_describe(value)}{hint}")


def _describe(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return f"the boolean {str(value).lower()}"
        case int() | float():
            return f"the number {value}"
        case str():
            return f'the text "{value if len(value) <= 64 else value[:61] + "..."}"'
        case list():
            return "a list"
        case dict():
            return "an object"
    return f"a value of the type {type(value).__name__}"
