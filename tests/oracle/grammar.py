"""Random selectors that mostly type-check: a grammar over everything that Kubernetes' CEL environment offers.

A production is text with holes. `«int»` is a hole for an expression of a type; `«bool|$v:int»` for one that may use the
variable $v, which is bound in the production's own text and gets a name of its own. "@" stands for the attributes of
the driver, as in `tests.cel.selectors`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from tests.cel.selectors import DRIVER

T = TypeVar("T")

_HOLE = re.compile(r"«(\w+)(?:\|([^»]*))?»")
_VARIABLE = re.compile(r"\$\w+")
_WRONG_TYPE_ONE_IN = 60

# What ends a branch: literals, and what the devices have of the type or have not.
LEAVES: dict[str, Sequence[str]] = {
    "bool": ("true", "false", "@.healthy", "device.allowMultipleAllocations", "@.flags[0]", "has(@.model)", "@.nope"),
    "int": ("0", "1", "2", "-1", "3", "10", "9223372036854775807", "@.index", "@.ports[0]", "@.ports[9]", "@.nope"),
    "uint": ("0u", "1u", "2u", "18446744073709551615u"),
    "double": ("0.0", "1.5", "-2.25", "1e3", "2.0"),
    "string": (
        '""',
        '"a"',
        '"H100"',
        '"abc 123"',
        '"é"',
        "device.driver",
        "@.model",
        "@.memory",
        "@.features[0]",
        '"a,b,c"',
        '" x "',
        "@.nope",
    ),
    "amount": ('"1"', '"1.5"', '"500m"', '"16Gi"', '"1e3"', '"-2k"', "@.memory", '"x"', '"1.3GiB"', '"1024Mi"'),
    "number_text": ('"1.2.3"', '"v1.2"', '"1.0.0-rc.1"', '"1.0.0+b"', '"01.2.3"', '"550.54.15"', '"1.0.0-alpha.10"'),
    "ip_text": (
        '"10.1.2.3"',
        '"::1"',
        '"2001:DB8::1"',
        '"010.0.0.1"',
        '"fe80::1"',
        '"224.0.0.1"',
        '"0.0.0.0"',
        "@.ip",
        '"::ffff:1.2.3.4"',
    ),
    "cidr_text": ('"10.0.0.0/8"', '"10.1.2.3/16"', '"2001:db8::/32"', '"10.0.0.0/33"', '"::/0"', '"0.0.0.0/0"'),
    "url_text": (
        '"https://example.com:80/a?b=1&b=2"',
        '"/path"',
        '"../x"',
        '"https://[::1]:80/a b"',
        '"HTTPS://U.example/%20"',
        '"x"',
    ),
    "pattern": ('"a"', '"^H[0-9]+$"', '"(?i)h"', '"[0-9]*"', '"(a|b)c?"', '"["', '"\\\\\\\\d+"'),
    "bytes": ('b"a"', 'b""', 'b"\\\\x01"'),
    "duration": ('duration("1s")', 'duration("1h30m")', 'duration("-5m")', 'duration("1z")'),
    "timestamp": ('timestamp("2024-01-01T00:00:00Z")', 'timestamp("1999-12-31T23:59:59.5+01:00")'),
    "quantity": (
        f'device.capacity["{DRIVER}"].memory',
        f'device.capacity["{DRIVER}"].cores',
        'quantity("1")',
        'quantity("500m")',
        'quantity("16Gi")',
        'device.capacity["nope"].memory',
    ),
    "semver": ("@.driverVersion", "@.versions[0]", 'semver("1.2.3")', 'semver("1.0.0-beta")'),
    "ip": ('ip("10.1.2.3")', 'ip("2001:db8::1")', "ip(@.ip)"),
    "cidr": ('cidr("10.0.0.0/8")', 'cidr("2001:db8::/32")'),
    "url": ('url("https://example.com:80/a?b=1")', 'url("/p")'),
    "format": ("format.dns1123Label()", "format.uuid()", "format.qualifiedName()", "format.date()"),
    "list_int": ("[1, 2, 3]", "[3, 1, 2, 1]", "[0]", "@.ports"),
    "list_string": ('["a", "b"]', '["mig"]', "@.features", '["b", "a", "a"]'),
    "list_double": ("[1.5, 2.0]", "[0.5]"),
    "map_int": ('{"a": 1, "b": 2}', '{"x": 3}', '{"a": 1}'),
    "optional_int": ("optional.of(1)", "@.?index", "@.?nope", "optional.none()", "optional.ofNonZeroValue(0)"),
    "optional_string": ('optional.of("a")', "@.?model", "@.?nope", 'device.attributes[?"nope"].?x'),
    "dyn": (
        "@.model",
        "@.index",
        "@.nope",
        "@.healthy",
        "@.driverVersion",
        "@.features",
        'device.attributes["other.example.com"].numa',
        'device.attributes["nope"].x',
        "dyn(1)",
        'dyn("a")',
        "dyn(1.5)",
        "dyn([1])",
        "null",
    ),
}

PRODUCTIONS: dict[str, Sequence[str]] = {
    "bool": (
        # logic, comparison, membership
        "(«bool» && «bool»)",
        "(«bool» || «bool»)",
        "!(«bool»)",
        "(«bool» ? «bool» : «bool»)",
        "«int» == «int»",
        "«int» != «int»",
        "«int» < «int»",
        "«uint» <= «uint»",
        "«double» > «double»",
        "«int» >= «double»",
        "«string» == «string»",
        "«string» < «string»",
        "«bytes» == «bytes»",
        "«duration» < «duration»",
        "«timestamp» >= «timestamp»",
        "«dyn» == «dyn»",
        "«dyn» != «int»",
        "«dyn» > «string»",
        "«dyn» in «list_int»",
        "«int» in «list_int»",
        "«string» in «list_string»",
        "«string» in «map_int»",
        '«string» in device.attributes["gpu.example.com"]',
        "«list_int» == «list_int»",
        "«list_string» != «list_string»",
        "«map_int» == «map_int»",
        "has(«map_int».a)",
        "has(@.nope)",
        'has(device.attributes["nope"].x)',
        # one variable
        "«list_int».all($v, «bool|$v:int»)",
        "«list_string».exists($v, «bool|$v:string»)",
        "«list_int».exists_one($v, «bool|$v:int»)",
        "«map_int».exists($v, «bool|$v:string»)",
        "device.attributes.exists($v, «bool|$v:string»)",
        "@.all($v, «bool|$v:string»)",
        # two variables
        "«list_int».all($i, $v, «bool|$i:int,$v:int»)",
        "«list_string».exists($i, $v, «bool|$i:int,$v:string»)",
        "«list_string».existsOne($i, $v, «bool|$i:int,$v:string»)",
        "«map_int».all($k, $v, «bool|$k:string,$v:int»)",
        '@.exists($k, $v, $k == "index" && $v == «int|$k:string»)',
        'device.capacity["gpu.example.com"].exists($k, $v, «bool|$k:string,$v:quantity»)',
        # strings
        "«string».contains(«string»)",
        "«string».startsWith(«string»)",
        "«string».endsWith(«string»)",
        "«string».matches(«pattern»)",
        # lists and sets
        "«list_int».isSorted()",
        "«list_string».isSorted()",
        "«list_int».includes(«int»)",
        "«dyn».includes(«dyn»)",
        "sets.contains(«list_int», «list_int»)",
        "sets.equivalent(«list_string», «list_string»)",
        "sets.intersects(«list_int», «list_int»)",
        # quantity, semver
        "isQuantity(«amount»)",
        "«quantity».isGreaterThan(«quantity»)",
        "«quantity».isLessThan(«quantity»)",
        "«quantity».isInteger()",
        "«quantity» == «quantity»",
        "isSemver(«number_text»)",
        "isSemver(«number_text», «bool»)",
        "«semver».isGreaterThan(«semver»)",
        "«semver».isLessThan(«semver»)",
        "«semver» == «semver»",
        # url, ip, cidr, named formats
        "isURL(«url_text»)",
        "«url» == «url»",
        "isIP(«ip_text»)",
        "ip.isCanonical(«ip_text»)",
        "«ip».isLoopback()",
        "«ip».isUnspecified()",
        "«ip».isGlobalUnicast()",
        "«ip».isLinkLocalUnicast()",
        "«ip».isLinkLocalMulticast()",
        "«ip» == «ip»",
        "isCIDR(«cidr_text»)",
        "«cidr».containsIP(«ip»)",
        "«cidr».containsIP(«ip_text»)",
        "«cidr».containsCIDR(«cidr»)",
        "«cidr».containsCIDR(«cidr_text»)",
        "«cidr» == «cidr»",
        "«format».validate(«string»).hasValue()",
        "format.named(«string»).hasValue()",
        # optionals, bindings
        "«optional_int».hasValue()",
        "«optional_int» == «optional_int»",
        "«optional_int».optMap($v, «bool|$v:int»).orValue(«bool»)",
        "cel.bind($v, «int», «bool|$v:int»)",
        "cel.bind($v, «string», «bool|$v:string»)",
        "cel.bind($v, «list_int», «bool|$v:list_int»)",
        "cel.bind($v, «dyn», «bool|$v:dyn»)",
        'bool("true")',
    ),
    "int": (
        "(«int» + «int»)",
        "(«int» - «int»)",
        "(«int» * «int»)",
        "(«int» / «int»)",
        "(«int» % «int»)",
        "-(«int»)",
        "(«bool» ? «int» : «int»)",
        "size(«string»)",
        "«string».size()",
        "«list_int».size()",
        "«map_int».size()",
        "«bytes».size()",
        "«list_int»[«int»]",
        '«map_int»["a"]',
        "«map_int».b",
        "«list_int».sum()",
        "«list_int».min()",
        "«list_int».max()",
        "«list_int».indexOf(«int»)",
        "«list_string».lastIndexOf(«string»)",
        "«string».indexOf(«string»)",
        "«string».lastIndexOf(«string»)",
        "«string».indexOf(«string», «int»)",
        "int(«double»)",
        "int(«uint»)",
        "int(«string»)",
        "int(«timestamp»)",
        "sign(«quantity»)",
        "«quantity».compareTo(«quantity»)",
        "«quantity».asInteger()",
        "«semver».major()",
        "«semver».minor()",
        "«semver».patch()",
        "«semver».compareTo(«semver»)",
        "«ip».family()",
        "«cidr».prefixLength()",
        "«timestamp».getFullYear()",
        "«timestamp».getDayOfWeek()",
        '«timestamp».getHours("+02:00")',
        "«duration».getSeconds()",
        "«optional_int».orValue(«int»)",
        "«optional_int».value()",
        "«optional_int».or(«optional_int»).orValue(«int»)",
        "«list_int».first().orValue(«int»)",
        "«list_int».last().value()",
        "cel.bind($v, «int», «int|$v:int»)",
    ),
    "uint": ("(«uint» + «uint»)", "uint(«int»)", "(«uint» / «uint»)", "[«uint», «uint»].sum()"),
    "double": (
        "(«double» + «double»)",
        "(«double» * «double»)",
        "(«double» / «double»)",
        "double(«int»)",
        "double(«string»)",
        "«list_double».sum()",
        "«list_double».max()",
        "«quantity».asApproximateFloat()",
    ),
    "string": (
        "(«string» + «string»)",
        "(«bool» ? «string» : «string»)",
        "«string».lowerAscii()",
        "«string».upperAscii()",
        "«string».trim()",
        "«string».charAt(«int»)",
        "«string».substring(«int»)",
        "«string».substring(«int», «int»)",
        "«string».replace(«string», «string»)",
        "«string».replace(«string», «string», «int»)",
        "«string».find(«pattern»)",
        "«list_string».join()",
        "«list_string».join(«string»)",
        "«list_string»[«int»]",
        "strings.quote(«string»)",
        '"%s-%d".format([«string», «int»])',
        '"%s".format([«dyn»])',
        '"%.2f|%x|%X|%b|%o|%%".format([«double», «int», «string», «bool», «int»])',
        '"%s %s".format([«list_int», «duration»])',
        "string(«int»)",
        "string(«bool»)",
        "string(«uint»)",
        "string(«bytes»)",
        "string(«ip»)",
        "string(«cidr»)",
        "string(«timestamp»)",
        "string(«duration»)",
        "string(«url_text»)",
        "«url».getScheme()",
        "«url».getHost()",
        "«url».getHostname()",
        "«url».getPort()",
        "«url».getEscapedPath()",
        "«optional_string».orValue(«string»)",
        "«optional_string».value()",
        "cel.bind($v, «string», «string|$v:string»)",
    ),
    "bytes": ("bytes(«string»)", "(«bytes» + «bytes»)"),
    "duration": ("(«duration» + «duration»)", "(«timestamp» - «timestamp»)", '[duration("1s"), «duration»].max()'),
    "timestamp": ("(«timestamp» + «duration»)", "timestamp(«int»)"),
    "quantity": (
        "quantity(«amount»)",
        "«quantity».add(«quantity»)",
        "«quantity».sub(«quantity»)",
        "«quantity».add(«int»)",
        "«quantity».sub(«int»)",
        "(«bool» ? «quantity» : «quantity»)",
    ),
    "semver": ("semver(«number_text»)", "semver(«number_text», «bool»)", "@.versions[«int»]"),
    "ip": ("ip(«ip_text»)", "«cidr».ip()"),
    "cidr": ("cidr(«cidr_text»)", "«cidr».masked()"),
    "url": ("url(«url_text»)",),
    "format": ("format.named(«string»).value()", "format.dns1123Subdomain()", "format.labelValue()", "format.uri()"),
    "list_int": (
        "[«int», «int»]",
        "[«int»]",
        "(«list_int» + «list_int»)",
        "«list_int».map($v, «int|$v:int»)",
        "«list_int».filter($v, «bool|$v:int»)",
        "«list_int».map($v, «bool|$v:int», «int|$v:int»)",
        "«list_int».transformList($i, $v, «int|$i:int,$v:int»)",
        # A map has no order, upstream not even the same one twice.
        "«map_int».transformList($k, $v, «int|$k:string,$v:int»).sort()",
        "«list_int».sort()",
        "«list_int».distinct()",
        "«list_int».reverse()",
        "«list_int».slice(«int», «int»)",
        "«list_int».sortBy($v, «int|$v:int»)",
        "[«list_int», «list_int»].flatten()",
        "lists.range(«int»)",
        "[?«optional_int», «int»]",
        "[«optional_int», «optional_int»].unwrapOpt()",
        "optional.unwrap([«optional_int»])",
        "(«bool» ? «list_int» : «list_int»)",
    ),
    "list_string": (
        "[«string», «string»]",
        "(«list_string» + «list_string»)",
        "«string».split(«string»)",
        "«string».split(«string», «int»)",
        "«string».findAll(«pattern»)",
        "«string».findAll(«pattern», «int»)",
        "«list_string».map($v, «string|$v:string»)",
        "«list_string».filter($v, «bool|$v:string»)",
        "«list_string».distinct()",
        "«list_string».sort()",
        "«list_string».reverse()",
        '«url».getQuery()["b"]',
    ),
    "list_double": ("[«double», «double»]", "«list_double».reverse()"),
    "map_int": (
        '{"a": «int», "b": «int»}',
        '{?"a": «optional_int», "c": «int»}',
        "«map_int».transformMap($k, $v, «int|$k:string,$v:int»)",
        "«map_int».transformMap($k, $v, «bool|$k:string,$v:int», «int|$k:string,$v:int»)",
        "«list_string».transformMapEntry($i, $v, {$v: «int|$i:int,$v:string»})",
    ),
    "optional_int": (
        "optional.of(«int»)",
        "optional.ofNonZeroValue(«int»)",
        "«map_int»[?«string»]",
        "«map_int».?b",
        "«list_int»[?«int»]",
        "«list_int».first()",
        "«optional_int».or(«optional_int»)",
        "«optional_int».optMap($v, «int|$v:int»)",
        "«optional_int».optFlatMap($v, «optional_int|$v:int»)",
    ),
    "optional_string": (
        "optional.of(«string»)",
        "@.?model.optMap($v, «string|$v:string»)",
        "«list_string».last()",
        "«optional_string».or(«optional_string»)",
    ),
    "dyn": ("dyn(«int»)", "dyn(«string»)", "dyn(«list_int»)", "@[«string»]", "[«dyn»][0]", "(«bool» ? «dyn» : «dyn»)"),
}

TYPES = tuple(LEAVES)

Choose = Callable[[Sequence[str]], str]
Happens = Callable[[int], bool]


class Writer:
    """Writes one expression.

    choose: picks one of several texts. happens: true one time in so many.
    """

    def __init__(self, choose: Choose, happens: Happens) -> None:
        self._choose = choose
        self._happens = happens
        self._names = 0

    def expression(self, type_: str, depth: int, scope: Mapping[str, str]) -> str:
        """An expression of the type, with `depth` levels at most; the variables in scope by their names."""
        if self._happens(_WRONG_TYPE_ONE_IN):
            type_ = self._choose(TYPES)
        known = [name for name, of in scope.items() if of == type_]
        if known and self._happens(2):
            return self._choose(known)
        productions = PRODUCTIONS.get(type_, ())
        if not productions or depth <= 0:
            return self._choose(LEAVES[type_])
        if depth < 3 and self._happens(4):
            return self._choose(LEAVES[type_])
        text = self._choose(productions)
        names = {variable: self._fresh() for variable in dict.fromkeys(_VARIABLE.findall(text))}
        return _VARIABLE.sub(
            lambda match: names[match[0]],
            _HOLE.sub(lambda hole: self._fill(hole[1], hole[2] or "", depth - 1, scope, names), text),
        )

    def _fill(self, type_: str, bound: str, depth: int, scope: Mapping[str, str], names: Mapping[str, str]) -> str:
        pairs = (each.split(":") for each in bound.split(",") if each)
        return self.expression(type_, depth, {**scope, **{names[variable]: of for variable, of in pairs}})

    def _fresh(self) -> str:
        self._names += 1
        return f"v{self._names}"


def expand(text: str) -> str:
    """The text with "@" written out."""
    return text.replace("@", f'device.attributes["{DRIVER}"]')


def functions_in(texts: Iterable[str]) -> set[str]:
    """The names that are called in expressions, to see what a run has covered."""
    return {name for text in texts for name in re.findall(r"(\w+)\(", text)}
