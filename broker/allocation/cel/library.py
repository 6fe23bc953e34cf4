"""Kubernetes' own CEL functions, on Python values; engines only translate arguments and results.

Declared as they are typed upstream. A function raises ValueError (or TypeError, if no overload fits) for what is an
error in CEL. One difference is left: isInteger and asInteger go by a quantity's value, upstream also by how it was
written ("1.0" and "1000m" are no integers there).
Source: apiserver, pkg/cel/library, as environment/base.go and the DRA compiler of Kubernetes 1.37 switch it on.
`math` and `image` are not part of that environment.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec
import re2  # type: ignore[import-untyped]  # it has no stubs

from broker.allocation.cel.named_formats import NAMED_FORMATS
from broker.allocation.cel.network import (
    CIDR,
    IP,
    URL,
    contains_cidr,
    contains_ip,
    escaped_path,
    hostname_and_port,
    is_global_unicast,
    is_link_local_multicast,
    is_url,
    masked,
    parse_cidr,
    parse_ip,
    parse_url,
    query_values,
)
from schemas.quantity import Quantity
from schemas.semver import Semver

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
_NANOS = 10**9
MAX_LIST = 10_000  # as many steps as cel-expr-python lets a comprehension take


class NamedFormat(msgspec.Struct, frozen=True):
    """What `format.uuid()` yields."""

    name: str


class Overload(msgspec.Struct, frozen=True):
    """One typed form of a function; of a method, the first parameter is the target."""

    parameters: tuple[str, ...]
    result: str
    is_method: bool
    call: Callable[..., Any]


_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "int": int,
    "double": float,
    "bool": bool,
    "Quantity": Quantity,
    "Semver": Semver,
    "IP": IP,
    "CIDR": CIDR,
    "URL": URL,
    "Format": NamedFormat,
}
OPAQUE_TYPES = ("Quantity", "Semver", "IP", "CIDR", "URL", "Format")
COMPARABLE_TYPES = ("int", "uint", "double", "bool", "duration", "timestamp", "string", "bytes")

_SIGNATURE = re.compile(r"(?:(?P<target>[^.]+)\.)?\((?P<parameters>.*)\) -> (?P<result>.*)")


def _function(*overloads: tuple[str, Callable[..., Any]]) -> tuple[Overload, ...]:
    """Overloads from texts like `Quantity.(int) -> Quantity`, where what stands before the dot is a method's target."""
    found = []
    for signature, call in overloads:
        match = _SIGNATURE.fullmatch(signature)
        assert match is not None, signature
        target = (match["target"],) if match["target"] else ()
        parameters = tuple(filter(None, match["parameters"].split(", ")))
        found.append(Overload(target + parameters, match["result"], bool(target), call))
    return tuple(found)


def takes_no_container(name: str, arguments: int, place: int) -> bool:
    """Whether a function with so many arguments can never do anything with a list or map at this place."""
    fitting = [each.parameters[place] for each in FUNCTIONS[name] if len(each.parameters) == arguments]
    return bool(fitting) and all(each in _PYTHON_TYPES for each in fitting)


def opaque_text(value: Any) -> tuple[str, str] | None:
    """The type and the text that stand for a value of Kubernetes' types: equal values have equal texts."""
    match value:
        case Quantity():
            return "Quantity", str(value.nanos)
        case Semver():
            # Build metadata does not count for equality.
            return "Semver", str(Semver(value.major, value.minor, value.patch, value.prerelease))
        case IP() | CIDR():
            return type(value).__name__, str(value)
        case URL():
            return "URL", value.text
        case NamedFormat():
            return "Format", value.name
    return None


@lru_cache(maxsize=8192)
def from_opaque_text(type_name: str, text: str) -> Any:
    """The other way round."""
    match type_name:
        case "Quantity":
            return Quantity(int(text))
        case "Semver":
            return Semver.parse(text)
        case "IP":
            return parse_ip(text)
        case "CIDR":
            return parse_cidr(text)
        case "URL":
            return parse_url(text)
    return NamedFormat(text)


def call(name: str, arguments: Sequence[Any]) -> Any:
    """Apply the overload that fits the arguments.

    Raises: TypeError, if there is none; ValueError.
    """
    for overload in FUNCTIONS[name]:
        if len(overload.parameters) == len(arguments) and all(map(_is_a, arguments, overload.parameters)):
            return overload.call(*arguments)
    raise TypeError(f"no such overload: {name}({', '.join(map(_type_name, arguments))})")


def _is_a(value: Any, type_name: str) -> bool:
    if type_name.startswith("list"):
        return isinstance(value, list)
    expected = _PYTHON_TYPES.get(type_name)
    if expected is None:
        return True
    return isinstance(value, expected) and (type_name == "bool" or not isinstance(value, bool))


def _type_name(value: Any) -> str:
    for name in ("bool", *_PYTHON_TYPES):
        if _is_a(value, name):
            return name
    return "list" if isinstance(value, list) else "map" if isinstance(value, dict) else type(value).__name__


def cel_equal(left: Any, right: Any) -> bool:
    """CEL's equality on Python values: numbers by value whatever their types, but true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return isinstance(left, bool) and isinstance(right, bool) and left == right
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(cel_equal, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(cel_equal(value, right[key]) for key, value in left.items())
    return bool(left == right)


def _is_valid(parse: Callable[..., Any]) -> Callable[..., bool]:
    def is_valid(*arguments: Any) -> bool:
        try:
            parse(*arguments)
        except ValueError:
            return False
        return True

    return is_valid


def _compare(left: Any, right: Any) -> int:
    return int(left > right) - int(left < right)


def _as_integer(quantity: Quantity) -> int:
    if not _is_integer(quantity):
        raise ValueError("cannot convert value to integer")
    return quantity.nanos // _NANOS


def _is_integer(quantity: Quantity) -> bool:
    return quantity.nanos % _NANOS == 0 and _INT64_MIN <= quantity.nanos // _NANOS <= _INT64_MAX


def _int64(number: int) -> int:
    # CEL's ints have 64 bits; upstream converts a larger part of a version without asking.
    return (number + 2**63) % 2**64 - 2**63


@lru_cache(maxsize=1024)
def compiled_pattern(pattern: str) -> Any:
    """A pattern in RE2's syntax, which is Go's; RE2 takes linear time whatever the pattern.

    Raises: ValueError.
    """
    return _compiled(pattern, _PATTERN_OPTIONS)


@lru_cache(maxsize=1024)
def _computed_pattern(pattern: str) -> Any:
    """The same for a pattern that is not written in the expression: who charged for it did not see it."""
    return _compiled(pattern, _COMPUTED_OPTIONS)


def _compiled(pattern: str, options: Any) -> Any:
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        text = error.args[0].decode(errors="replace") if isinstance(error.args[0], bytes) else str(error)
        raise ValueError(f"invalid regular expression {pattern!r}: {text}") from error


def _options(program_max: int) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.max_mem = program_max * _BYTES_FOR_INSTRUCTION
    return options


_BYTES_FOR_INSTRUCTION = 12  # RE2's limit is one of memory, of which it lets programs have a part
PROGRAM_MAX = 20_000  # instructions of a pattern; compiling one takes about a microsecond
COMPUTED_PROGRAM_MAX = 2_000
_PATTERN_OPTIONS = _options(PROGRAM_MAX)
_COMPUTED_OPTIONS = _options(COMPUTED_PROGRAM_MAX)


def _find(text: str, pattern: str) -> str:
    return _first_match(compiled_pattern(pattern), text)


def _first_match(compiled: Any, text: str) -> str:
    match = compiled.search(text)
    return match[0] if match else ""


def _find_all(text: str, pattern: str, limit: int = -1) -> list[str]:
    return _all_matches(compiled_pattern(pattern), text, limit)


def _all_matches(compiled: Any, text: str, limit: int) -> list[str]:
    found: list[str] = []
    end = -1
    for match in compiled.finditer(text):
        # Go passes over an empty match right behind another match, Python does not.
        if match.start() == match.end() == end:
            continue
        if len(found) == limit:
            break
        end = match.end()
        found.append(match[0])
    return found


def _ordered(values: list[Any]) -> list[Any]:
    """The values themselves, if CEL can order them: all numbers, or all of one type.

    Raises: TypeError.
    """
    families = {
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value) for value in values
    }
    if len(families) > 1 or not families <= {"number", str, bool, bytes, timedelta, datetime}:
        raise TypeError(f"no such overload: a list of {', '.join(sorted(set(map(_type_name, values))))} has no order")
    return values


def _is_sorted(values: list[Any]) -> bool:
    return all(map(lambda left, right: left <= right, _ordered(values), values[1:]))


def _index_of_least(values: list[Any]) -> int:
    return values.index(min(_not_empty("min", _ordered(values))))


def _index_of_greatest(values: list[Any]) -> int:
    return values.index(max(_not_empty("max", _ordered(values))))


def _not_empty(name: str, values: list[Any]) -> list[Any]:
    if not values:
        raise ValueError(f"{name} called on empty list")
    return values


def _index_in_list(values: list[Any], wanted: Any) -> int:
    return next((index for index, value in enumerate(values) if cel_equal(value, wanted)), -1)


def _last_index_in_list(values: list[Any], wanted: Any) -> int:
    return next((index for index in reversed(range(len(values))) if cel_equal(values[index], wanted)), -1)


def _index_in_string(text: str, wanted: str, start: int = 0) -> int:
    _check_offset(start)
    if start >= len(text):
        return -1 if wanted else len(text)
    return text.find(wanted, start)


def _last_index_in_string(text: str, wanted: str, start: int | None = None) -> int:
    if start is None:
        return text.rfind(wanted)
    _check_offset(start)
    if start >= len(text):
        return -1 if wanted else len(text)
    return text.rfind(wanted, 0, start + len(wanted))


def _check_offset(offset: int) -> None:
    if offset < 0:
        raise ValueError(f"index out of range: {offset}")


def _range(size: int) -> list[int]:
    if size < 0:
        raise ValueError(f"lists.range({size}): the size must not be negative")
    if size > MAX_LIST:
        _too_long()
    return list(range(size))


def _too_long() -> None:
    raise ValueError(f"a list of more than {MAX_LIST} elements")


def _insert(entries: dict[Any, Any], key: Any, value: Any) -> dict[Any, Any]:
    if key in entries:
        raise ValueError(f"insert failed: key {key!r} already exists")
    return {**entries, key: value}


def _merge(entries: dict[Any, Any], more: dict[Any, Any]) -> dict[Any, Any]:
    for key, value in more.items():
        entries = _insert(entries, key, value)
    return entries


def _not_comparable() -> bool:
    raise TypeError(
        'no such overload: == of a version or quantity and another type; write semver("...") or quantity("...")'
    )


def _not_convertible() -> int:
    raise TypeError("no such overload: int(bool)")


def _named_format(name: str) -> NamedFormat:
    return NamedFormat(name if name in NAMED_FORMATS else "")


def _validate(named: NamedFormat, text: str) -> list[str]:
    return NAMED_FORMATS[named.name](text)


FUNCTIONS: dict[str, tuple[Overload, ...]] = {
    # quantity; `sign` is a function upstream too, although its documentation calls it a method
    "quantity": _function(("(string) -> Quantity", Quantity.parse)),
    "isQuantity": _function(("(string) -> bool", _is_valid(Quantity.parse))),
    "sign": _function(("(Quantity) -> int", lambda quantity: _compare(quantity.nanos, 0))),
    "isGreaterThan": _function(
        ("Quantity.(Quantity) -> bool", lambda left, right: left > right),
        ("Semver.(Semver) -> bool", lambda left, right: left > right),
    ),
    "isLessThan": _function(
        ("Quantity.(Quantity) -> bool", lambda left, right: left < right),
        ("Semver.(Semver) -> bool", lambda left, right: left < right),
    ),
    "compareTo": _function(("Quantity.(Quantity) -> int", _compare), ("Semver.(Semver) -> int", _compare)),
    "asApproximateFloat": _function(("Quantity.() -> double", lambda quantity: float(quantity.value))),
    "asInteger": _function(("Quantity.() -> int", _as_integer)),
    "isInteger": _function(("Quantity.() -> bool", _is_integer)),
    "add": _function(
        ("Quantity.(Quantity) -> Quantity", lambda left, right: left + right),
        ("Quantity.(int) -> Quantity", lambda left, right: left + Quantity(right * _NANOS)),
    ),
    "sub": _function(
        ("Quantity.(Quantity) -> Quantity", lambda left, right: left - right),
        ("Quantity.(int) -> Quantity", lambda left, right: left - Quantity(right * _NANOS)),
    ),
    # semver
    "semver": _function(("(string) -> Semver", Semver.parse), ("(string, bool) -> Semver", Semver.parse)),
    "isSemver": _function(
        ("(string) -> bool", _is_valid(Semver.parse)), ("(string, bool) -> bool", _is_valid(Semver.parse))
    ),
    "major": _function(("Semver.() -> int", lambda semver: _int64(semver.major))),
    "minor": _function(("Semver.() -> int", lambda semver: _int64(semver.minor))),
    "patch": _function(("Semver.() -> int", lambda semver: _int64(semver.patch))),
    # regex
    "find": _function(("string.(string) -> string", _find)),
    "findAll": _function(
        ("string.(string) -> list(string)", _find_all), ("string.(string, int) -> list(string)", _find_all)
    ),
    # lists; sum, min, max and includes are written in CEL itself, see `rewrite`
    "isSorted": _function(*((f"list({of}).() -> bool", _is_sorted) for of in COMPARABLE_TYPES)),
    "indexOf": _function(
        ("list(A).(A) -> int", _index_in_list),
        ("string.(string) -> int", _index_in_string),
        ("string.(string, int) -> int", _index_in_string),
    ),
    "lastIndexOf": _function(
        ("list(A).(A) -> int", _last_index_in_list),
        ("string.(string) -> int", _last_index_in_string),
        ("string.(string, int) -> int", _last_index_in_string),
    ),
    # url
    "url": _function(("(string) -> URL", parse_url)),
    "isURL": _function(("(string) -> bool", is_url)),
    "getScheme": _function(("URL.() -> string", lambda url: url.scheme)),
    "getHost": _function(("URL.() -> string", lambda url: url.host)),
    "getHostname": _function(("URL.() -> string", lambda url: hostname_and_port(url.host)[0])),
    "getPort": _function(("URL.() -> string", lambda url: hostname_and_port(url.host)[1])),
    "getEscapedPath": _function(("URL.() -> string", escaped_path)),
    "getQuery": _function(("URL.() -> map(string, list(string))", query_values)),
    # ip and cidr
    "ip": _function(("(string) -> IP", parse_ip), ("CIDR.() -> IP", lambda cidr: IP(cidr.interface.ip))),
    "isIP": _function(("(string) -> bool", _is_valid(parse_ip))),
    "ip.isCanonical": _function(("(string) -> bool", lambda text: str(parse_ip(text)) == text)),
    "family": _function(("IP.() -> int", lambda ip: ip.address.version)),
    "isUnspecified": _function(("IP.() -> bool", lambda ip: ip.address.is_unspecified)),
    "isLoopback": _function(("IP.() -> bool", lambda ip: ip.address.is_loopback)),
    "isLinkLocalMulticast": _function(("IP.() -> bool", is_link_local_multicast)),
    "isLinkLocalUnicast": _function(("IP.() -> bool", lambda ip: ip.address.is_link_local)),
    "isGlobalUnicast": _function(("IP.() -> bool", is_global_unicast)),
    "cidr": _function(("(string) -> CIDR", parse_cidr)),
    "isCIDR": _function(("(string) -> bool", _is_valid(parse_cidr))),
    "containsIP": _function(
        ("CIDR.(string) -> bool", lambda cidr, text: contains_ip(cidr, parse_ip(text))),
        ("CIDR.(IP) -> bool", contains_ip),
    ),
    "containsCIDR": _function(
        ("CIDR.(string) -> bool", lambda cidr, text: contains_cidr(cidr, parse_cidr(text))),
        ("CIDR.(CIDR) -> bool", contains_cidr),
    ),
    "masked": _function(("CIDR.() -> CIDR", masked)),
    "prefixLength": _function(("CIDR.() -> int", lambda cidr: cidr.interface.network.prefixlen)),
    "string": _function(("(IP) -> string", str), ("(CIDR) -> string", str)),
    # format; both results are optional in CEL, which `rewrite` sees to
    "validate": _function(("Format.(string) -> dyn", _validate)),
    "format.named": _function(("(string) -> dyn", _named_format)),
    **{f"format.{name}": _function(("() -> Format", lambda name=name: NamedFormat(name))) for name in NAMED_FORMATS},
}

# What rewritten expressions call besides; no user can write these names.
FUNCTIONS |= {
    "@indexOfLeast": _function(("(list(dyn)) -> int", _index_of_least)),
    "@indexOfGreatest": _function(("(list(dyn)) -> int", _index_of_greatest)),
    "@range": _function(("(int) -> list(int)", _range)),
    "@notComparable": _function(("() -> bool", _not_comparable)),
    "@tooLong": _function(("() -> dyn", _too_long)),
    "@notConvertible": _function(("() -> int", _not_convertible)),
    "@matchesComputed": _function(
        ("(string, string) -> bool", lambda text, pattern: _computed_pattern(pattern).search(text) is not None)
    ),
    "@findComputed": _function(
        ("(string, string) -> string", lambda text, pattern: _first_match(_computed_pattern(pattern), text))
    ),
    "@findAllComputed": _function(
        ("(string, string) -> list(string)", lambda text, pattern: _all_matches(_computed_pattern(pattern), text, -1)),
        (
            "(string, string, int) -> list(string)",
            lambda text, pattern, limit: _all_matches(_computed_pattern(pattern), text, limit),
        ),
    ),
    "@mapInsert": _function(("(map, dyn, dyn) -> map", _insert), ("(map, map) -> map", _merge)),
}
