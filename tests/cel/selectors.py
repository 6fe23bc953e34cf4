"""Selectors of every kind, each with its verdict on one device; all engines are held to this table.

The verdicts are those of k8s.io/dynamic-resource-allocation v0.37.2, with which each of them was compared.
In an expression, "@" stands for device.attributes["gpu.example.com"].
"""

from enum import Enum
from typing import NamedTuple

from schemas.resource import Device, DeviceAttribute, DeviceCapacity

DRIVER = "gpu.example.com"
DEVICE = Device(
    name="gpu-0",
    attributes={
        "model": DeviceAttribute(string="H100"),
        "index": DeviceAttribute(int_=2),
        "healthy": DeviceAttribute(bool_=True),
        "memory": DeviceAttribute(string="80Gi"),
        "driverVersion": DeviceAttribute(version="550.54.15"),
        "features": DeviceAttribute(strings=["mig", "nvlink"]),
        "ports": DeviceAttribute(ints=[1, 2, 3]),
        "flags": DeviceAttribute(bools=[True, False]),
        "versions": DeviceAttribute(versions=["1.0.0", "2.0.0-beta"]),
        "ip": DeviceAttribute(string="10.1.2.3"),
        "other.example.com/numa": DeviceAttribute(int_=1),
    },
    capacity={"memory": DeviceCapacity(value="80Gi"), "cores": DeviceCapacity(value="1500m")},
    allow_multiple_allocations=True,
)


class Expected(Enum):
    TRUE = "true"
    FALSE = "false"
    ERROR = "error"
    REFUSED = "refused"  # when it is compiled


T, F, E, R = Expected.TRUE, Expected.FALSE, Expected.ERROR, Expected.REFUSED


class Case(NamedTuple):
    """One row."""

    about: str
    expected: Expected
    text: str

    @property
    def expression(self) -> str:
        return self.text.replace("@", 'device.attributes["gpu.example.com"]')


CASES = [
    # the device
    Case("the driver's name is a string", T, 'device.driver == "gpu.example.com" && device.driver.endsWith(".com")'),
    Case("a driver compared with a number", R, "device.driver == 1"),
    Case("shares can be allocated", T, "device.allowMultipleAllocations"),
    Case("a field that a device has not", R, "device.foo"),
    Case("has() of a field of the device", T, "has(device.driver) && has(device.attributes) && has(device.capacity)"),
    Case("a device is no map", R, 'device["driver"] == "x"'),
    Case("a device equals itself", T, "device == device"),
    Case("a variable that there is none of", R, 'dev.attributes["x"].y'),
    # attributes
    Case("a name without domain has the driver's", T, '@.model == "H100"'),
    Case("an attribute by index", T, '@["model"] == "H100"'),
    Case("an attribute of another domain", T, 'device.attributes["other.example.com"].numa == 1'),
    Case("another domain's attribute is not the driver's", E, "@.numa == 1"),
    Case("a bool attribute is a verdict", T, "@.healthy"),
    Case("a string attribute is none", E, "@.model"),
    Case("a list attribute is none", E, "@.features"),
    Case("an attribute that is missing", E, '@.missing == "x"'),
    Case("has() of an attribute that is missing", F, "has(@.missing)"),
    Case("has() guards what follows", F, 'has(@.missing) && @.missing == "x"'),
    Case("in guards what follows", F, '"missing" in @ && @.missing == "x"'),
    Case("comprehension over the names of a domain", T, '@.exists(k, k.startsWith("mod"))'),
    # domains that a device has nothing of
    Case("an attribute of an unknown domain is missing", E, 'device.attributes["nope"].x == 1'),
    Case("an unknown domain is an empty map", T, 'device.attributes["nope"] == {}'),
    Case("has() below an unknown domain", F, 'has(device.attributes["nope"].x)'),
    Case("an unknown domain is not in the map", F, '"nope" in device.attributes'),
    Case("a known domain is in the map", T, '"other.example.com" in device.attributes'),
    Case("macros see the known domains only", T, 'device.attributes.all(d, d.endsWith(".example.com"))'),
    Case("size counts the known domains", T, "device.attributes.size() == 2 && device.capacity.size() == 1"),
    Case("has() of an unknown domain", T, "has(device.attributes.nope)"),
    Case("an unknown domain is there as an optional", T, 'device.attributes[?"nope"].hasValue()'),
    Case("what is below that optional is not", F, 'device.attributes[?"nope"].?x.hasValue()'),
    Case("an unknown domain of capacity", F, '"memory" in device.capacity["nope"]'),
    Case("an unknown domain under another name", T, 'cel.bind(a, device.attributes, a["nope"] == {})'),
    Case("an unknown domain of a bound device", T, 'cel.bind(d, device, !d.attributes["nope"].?x.hasValue())'),
    Case("an unknown domain in a list", T, '[device.attributes][0]["nope"] == {}'),
    Case("an unknown domain behind dyn()", T, 'dyn(device.attributes)["nope"] == {}'),
    # errors and what absorbs them
    Case("|| absorbs an error on its left", T, '@.missing == "x" || @.model == "H100"'),
    Case("&& absorbs an error on its left", F, '@.missing == "x" && @.model == "A100"'),
    Case("&& keeps an error beside true", E, '@.missing == "x" && @.model == "H100"'),
    Case("exists absorbs errors once one is true", T, '["x", "H100"].exists(m, m == "H100" || @.missing)'),
    Case("a condition that is an error", E, "@.missing ? true : false"),
    Case("the branch not taken is not evaluated", T, "has(@.missing) ? @.missing == 1 : true"),
    Case("division by zero", E, "@.index / 0 == 1"),
    Case("integer overflow", E, "9223372036854775807 + @.index > 0"),
    # equality and order across types
    Case("a string does not equal a number", F, "@.model == 1"),
    Case("a bool does not equal one", F, "@.healthy == 1"),
    Case("numbers are equal across types", T, "@.index == 2.0 && @.index == 2u && dyn(1) in [2.0, 1.0]"),
    Case("numbers have an order across types", T, "@.index < 2.5 && @.index < 3u && @.index >= 1.5"),
    Case("literals have an order across types", T, "1 < 2.5 && 3u > 2"),
    Case("literals are not equal across types", R, "1 == 1.0"),
    Case("literals of two types", R, '"a" == 1'),
    Case("a number has no order with a string", E, '@.index > "a"'),
    Case("strings are ordered as text", T, '@.memory >= "16Gi"'),
    Case("a version compared with text", E, '@.driverVersion == "550.54.15"'),
    Case("text compared with a version", F, '"550.54.15" == @.driverVersion'),
    Case("a version differs from text", T, '@.driverVersion != "550.54.15"'),
    Case("a version in a list compared with text", E, '@.versions.exists(v, v == "1.0.0")'),
    Case("an attribute is not null", T, "@.driverVersion != null && @.model != null"),
    Case("a list attribute equals a list", T, '@.features == ["mig", "nvlink"]'),
    Case("the order of a list counts", F, '@.features == ["nvlink", "mig"]'),
    Case("a literal of mixed types", R, '[1, "a"].size() == 2'),
    Case("a literal that mixes dyn and string", R, '[dyn(1), "a"].size() == 2'),
    Case("a map literal of mixed values", R, '{"a": 1, "b": "x"}.size() == 2'),
    Case("branches of two types", R, "true ? true : 1"),
    # results
    Case("true", T, "true"),
    Case("false", F, "false"),
    Case("a number as result", R, "1"),
    Case("a string as result", R, '"true"'),
    Case("null as result", R, "null"),
    Case("an optional as result", R, "@.?healthy"),
    Case("the optional of a format check as result", R, 'format.uuid().validate("x")'),
    Case("a wrapped bool as result", T, "google.protobuf.BoolValue{value: true}"),
    # list attributes
    Case("in a list attribute", T, '"mig" in @.features && !("x" in @.features)'),
    Case("in a literal list", T, '@.model in ["A100", "H100"]'),
    Case("in a string is no test", E, '"H" in @.model'),
    Case("exists over a list attribute", T, '@.features.exists(f, f.startsWith("nv"))'),
    Case("all over a list attribute", T, "@.ports.all(p, p > 0)"),
    Case("exists_one over a list attribute", T, "@.ports.exists_one(p, p == 2)"),
    Case("filter and map", T, "@.ports.filter(p, p > 1).map(p, p * 2) == [4, 6]"),
    Case("exists over a string attribute", E, '@.model.exists(c, c == "H")'),
    Case("exists over a number", E, "@.index.exists(i, i == 2)"),
    Case("an error of a macro is absorbed", T, '@.model.exists(c, c == "H") || true'),
    Case("an element by index", T, "@.ports[0] == 1"),
    Case("an index beyond the end", E, "@.ports[9] == 1"),
    Case("a character by index", E, '@.model[0] == "H"'),
    Case("a list of bools", T, "@.flags.exists(f, f) && @.flags.size() == 2"),
    Case("a list of versions", T, '@.versions.exists(v, v.isLessThan(semver("1.5.0")))'),
    Case("a version in a list of versions", T, 'semver("1.0.0") in @.versions'),
    Case("includes on a list", T, '@.features.includes("mig") && !@.features.includes("x")'),
    Case("includes on a scalar", T, '@.model.includes("H100") && !@.model.includes("H")'),
    Case("includes of another type", F, "@.model.includes(1)"),
    Case("includes of a version", T, '@.versions.includes(semver("1.0.0"))'),
    Case("includes on what is missing", E, '@.missing.includes("x")'),
    # lists
    Case("sum, min and max of an attribute", T, "@.ports.sum() == 6 && @.ports.min() == 1 && @.ports.max() == 3"),
    Case("sum of nothing", T, "[].sum() == 0"),
    Case("sum keeps the type", T, '[1u].sum() == 1u && [1.5].sum() == 1.5 && [duration("1s")].sum() == duration("1s")'),
    Case("max of nothing", E, "[].max() == 1"),
    Case("max of durations", T, '[duration("1m"), duration("1s")].max() == duration("1m")'),
    Case("isSorted", T, "[1, 2].isSorted() && ![2, 1].isSorted() && [].isSorted()"),
    Case("isSorted of versions", E, "@.versions.isSorted()"),
    Case("indexOf in lists", T, "@.ports.indexOf(2) == 1 && @.ports.lastIndexOf(9) == -1"),
    Case("indexOf in strings", T, '@.model.indexOf("0") == 2 && @.model.lastIndexOf("0") == 3'),
    Case("indexOf from beyond the end", T, '"abc".indexOf("c", 5) == -1 && @.model.indexOf("0", 3) == 3'),
    Case("indexOf of a version", T, '@.versions.indexOf(semver("2.0.0-beta")) == 1'),
    Case("indexOf does not take true for one", T, "[true].indexOf(dyn(1)) == -1"),
    Case("indexOf of another type", R, '[1, 2].indexOf("a") == -1'),
    Case("indexOf of a number in a string", E, "@.model.indexOf(1) == 1"),
    Case("sort, slice, reverse, distinct", T, "[3, 1, 1].distinct().sort().reverse().slice(0, 1) == [3]"),
    Case("sortBy", T, "[3, 1, 2].sortBy(x, -x)[0] == 3"),
    Case("flatten", T, "[[1], [2, 3]].flatten() == [1, 2, 3]"),
    Case("a negative range", E, "lists.range(-1).size() == 0"),
    Case("lists.range", T, "lists.range(5).map(x, x * x).sum() == 30"),
    Case("first and last", T, '["a"].first().orValue("b") == "a" && [1, 2].last().value() == 2'),
    Case("concatenation", T, "cel.bind(a, [1, 2], cel.bind(b, a + a, b.size() == 4))"),
    # sets
    Case("sets.contains", T, 'sets.contains(["a", "b"], ["a"]) && !sets.contains(@.features, ["x"])'),
    Case("sets.equivalent and sets.intersects", T, "sets.equivalent([1, 1], [1]) && sets.intersects([1], [1, 2])"),
    # quantities
    Case(
        "a capacity against an amount", T, 'device.capacity["gpu.example.com"].memory.compareTo(quantity("16Gi")) >= 0'
    ),
    Case("a string attribute as amount", T, 'quantity(@.memory).isGreaterThan(quantity("16Gi"))'),
    Case("a capacity of a domain that is unknown", E, 'device.capacity["nope"].memory.isGreaterThan(quantity("1"))'),
    Case("a capacity has no order operators", R, 'device.capacity["gpu.example.com"].memory >= quantity("1")'),
    Case("a capacity against text", R, 'device.capacity["gpu.example.com"].memory >= "16Gi"'),
    Case("a capacity equals an amount", T, 'device.capacity["gpu.example.com"].cores == quantity("1.5")'),
    Case(
        "equal however they are written",
        T,
        'quantity("1Gi") == quantity("1024Mi") && quantity("1e3") == quantity("1k")',
    ),
    Case("isQuantity", T, 'isQuantity("1.3Gi") && isQuantity("1e3") && !isQuantity("1.3GiB") && !isQuantity("")'),
    Case("text that is no quantity", E, "quantity(@.model).isInteger()"),
    Case("a number is no text", R, 'quantity(1) == quantity("1")'),
    Case("an attribute that is a number is no text", E, 'quantity(@.index) == quantity("2")'),
    Case("add and sub", T, 'quantity("50k").add(20).sub(quantity("20")) == quantity("50000")'),
    Case("plus is not for quantities", R, 'quantity("1") + quantity("2") == quantity("3")'),
    Case("asInteger", T, 'device.capacity["gpu.example.com"].memory.asInteger() == 85899345920'),
    Case("asInteger of a part", E, 'quantity("500m").asInteger() == 0'),
    Case("isInteger", F, 'quantity("500m").isInteger()'),
    Case("asApproximateFloat", T, 'quantity("500m").asApproximateFloat() == 0.5'),
    Case("sign is a function", T, 'sign(quantity("-1")) == -1'),
    Case("sign is no method", R, 'quantity("1").sign() == 1'),
    Case("a quantity in a list of them", T, 'quantity("1") in [quantity("1000m")]'),
    Case("the text inside a quantity is not to be had", R, 'quantity("1").text == "1"'),
    # versions
    Case("a version attribute", T, '@.driverVersion.isGreaterThan(semver("550.0.0"))'),
    Case("the parts of a version", T, "@.driverVersion.major() == 550 && @.driverVersion.patch() == 15"),
    Case("a version has no order operators", R, '@.driverVersion > semver("1.0.0")'),
    Case("a prerelease comes before its release", T, 'semver("1.0.0-rc.1").isLessThan(semver("1.0.0"))'),
    Case("longer prereleases come later", T, 'semver("1.0.0-alpha").isLessThan(semver("1.0.0-alpha.1"))'),
    Case("numbers in prereleases are numbers", T, 'semver("1.0.0-rc.2").compareTo(semver("1.0.0-rc.10")) == -1'),
    Case("build metadata does not count", T, 'semver("1.0.0+a") == semver("1.0.0+b")'),
    Case("a short version", E, 'semver("v1.2") == semver("1.2.0")'),
    Case("a short version, normalized", T, 'semver("v1.2", true) == semver("1.2.0")'),
    Case("isSemver", F, 'isSemver("v1.2") || isSemver("01.2.3")'),
    Case("isSemver, normalized", T, 'isSemver("v1.2", true) && isSemver("01.2.3", true) && !isSemver("1.2-rc", true)'),
    # strings
    Case(
        "contains, startsWith, endsWith",
        T,
        '@.model.contains("10") && @.model.startsWith("H") && @.model.endsWith("0")',
    ),
    Case("matches", T, '@.model.matches("^H[0-9]+$") && @.model.matches("(?i)h100")'),
    Case("find", T, '"abc 123".find("[0-9]+") == "123" && "abc".find("x") == ""'),
    Case("findAll", T, '"123 abc 456".findAll("[0-9]+") == ["123", "456"]'),
    Case("findAll with empty matches", T, '"1a".findAll("[0-9]*") == ["1", ""]'),
    Case("findAll with a limit", T, '"123 abc 456".findAll("[0-9]+", 1) == ["123"]'),
    Case("size counts characters", T, '"é".size() == 1 && size(@.model) == 4'),
    Case("size of a number", E, "@.index.size() == 1"),
    Case("split and join", T, '"a,b,c".split(",", 2) == ["a", "b,c"] && @.features.join("-") == "mig-nvlink"'),
    Case("replace and trim", T, '" aXbX ".trim().replace("X", "y", 1) == "aybX"'),
    Case("substring and charAt", T, '"tacocat".substring(4) == "cat" && "tacocat".charAt(3) == "o"'),
    Case("lowerAscii and upperAscii", T, '"AbC".lowerAscii() == "abc" && "abc".upperAscii() == "ABC"'),
    Case("format", T, '"%s-%d-%.2f-%x".format([@.model, 1, 1.5, 255]) == "H100-1-1.50-ff"'),
    Case("strings.quote", T, 'strings.quote("a") == "\\"a\\""'),
    Case("strings have no reverse", R, '"abc".reverse() == "cba"'),
    # checked when compiled
    Case("a pattern that is none", R, '@.model.matches("[")'),
    Case("a pattern for find that is none", R, '@.model.find("[") == ""'),
    Case("patterns are RE2's", R, '@.model.matches("(?=x)")'),
    Case("a duration that is none", R, 'duration("1z") == duration("1s")'),
    Case("a timestamp that is none", R, 'timestamp("x") == timestamp("y")'),
    Case("a number that is none", R, 'int("abc") == 1'),
    Case("an attribute that is no number", E, "int(@.model) == 1"),
    Case("a format with too few arguments", R, '"%s %s".format(["x"]) == ""'),
    Case("a format with too many arguments", R, '"%s".format(["x", "y"]) == ""'),
    Case("a format with a wrong argument", R, '"%d".format(["x"]) == ""'),
    Case("a format with an unknown clause", R, '"%q".format(["x"]) == ""'),
    # urls
    Case(
        "the host of a url",
        T,
        'url("https://u:p@example.com:80/a").getHost() == "example.com:80"'.replace("@", "\\x40"),
    ),
    Case(
        "hostname and port of a url",
        T,
        'url("https://[::1]:80/").getHostname() == "::1" && url("https://x:80/").getPort() == "80"',
    ),
    Case("the path of a url is escaped", T, 'url("https://example.com/a b").getEscapedPath() == "/a%20b"'),
    Case("the query of a url", T, 'url("/p?a=1&b=2&b=3").getQuery() == {"a": ["1"], "b": ["2", "3"]}'),
    Case("isURL", T, 'isURL("/path") && isURL("https://example.com") && url("HTTPS://x/").getScheme() == "https"'),
    Case(
        "what is no url",
        F,
        'isURL("../relative") || isURL("https://a:b:c/") || isURL("") || isURL("http://[1.2.3.4]/")',
    ),
    # addresses
    Case(
        "addresses",
        T,
        'ip("10.0.0.1").family() == 4 && ip("::1").isLoopback() && ip("2001:DB8::1") == ip("2001:db8::1")',
    ),
    Case("what is no address", F, 'isIP("::ffff:1.2.3.4") || isIP("fe80::1%eth0") || isIP("010.0.0.1")'),
    Case("canonical addresses", T, 'ip.isCanonical("2001:db8::1") && !ip.isCanonical("2001:DB8::1")'),
    Case("kinds of addresses", T, 'ip("224.0.0.1").isLinkLocalMulticast() && ip("fe80::1").isLinkLocalUnicast()'),
    Case(
        "global unicast",
        T,
        'ip("10.0.0.1").isGlobalUnicast() && !ip("127.0.0.1").isGlobalUnicast() && ip("::").isUnspecified()',
    ),
    Case(
        "an address as text",
        T,
        'string(ip("2001:DB8::1")) == "2001:db8::1" && string(cidr("10.0.0.1/8")) == "10.0.0.1/8"',
    ),
    Case(
        "a range contains an attribute",
        T,
        'cidr("10.0.0.0/8").containsIP(@.ip) && !cidr("10.2.0.0/16").containsIP(ip("10.1.0.1"))',
    ),
    Case(
        "a range contains a range",
        T,
        'cidr("10.0.0.0/8").containsCIDR("10.1.0.0/16") && !cidr("10.1.0.0/16").containsCIDR(cidr("10.0.0.0/8"))',
    ),
    Case(
        "the parts of a range",
        T,
        'cidr("10.1.2.3/16").masked() == cidr("10.1.0.0/16") && cidr("10.1.2.3/16").prefixLength() == 16',
    ),
    Case("what is no range", F, 'isCIDR("10.0.0.0/33") || isCIDR("10.0.0.0") || isCIDR("10.0.0.0/255.0.0.0")'),
    # named formats
    Case(
        "a named format",
        T,
        '!format.dns1123Label().validate("a-b").hasValue() && format.dns1123Label().validate("A").hasValue()',
    ),
    Case("a format by name", T, 'format.named("uuid").value().validate("x").value().size() == 1'),
    Case("a format that there is none of", F, 'format.named("nope").hasValue()'),
    Case(
        "qualified names and label values",
        T,
        '!format.qualifiedName().validate("a.com/A_1").hasValue() && !format.labelValue().validate("").hasValue()',
    ),
    Case(
        "dates and times",
        T,
        'format.date().validate("1-2-3").hasValue() && !format.datetime().validate("2021-01-01T00:00:00Z").hasValue()',
    ),
    # optionals
    Case("an optional attribute", T, '@.?model.orValue("x") == "H100" && @.?nope.orValue("x") == "x"'),
    Case("optional chains", T, 'device.attributes[?"gpu.example.com"].?model.optMap(m, m == "H100").orValue(false)'),
    Case("one optional or another", T, '@.?nope.or(@.?model).value() == "H100"'),
    Case("the value of none", E, "@.?nope.value() == 1"),
    Case("optional entries of literals", T, '{?"a": @.?nope}.size() == 0 && [?@.?nope].size() == 0'),
    Case(
        "unwrapping optionals",
        T,
        "optional.unwrap([optional.of(1), optional.none()]) == [1] && [optional.of(1)].unwrapOpt() == [1]",
    ),
    # bindings and two variables
    Case("cel.bind", T, 'cel.bind(d, @, d.model == "H100" && d.index == 2)'),
    Case("a binding after a loop that ended early", T, "[1, 2].exists(x, true) && cel.bind(t, 5, t == 5)"),
    Case(
        "bindings after loops in loops",
        T,
        "[1].all(x, [3, 4].exists(y, true) && cel.bind(u, 5, cel.bind(w, 6, u + w + x == 12)))",
    ),
    Case("a binding after a loop that failed", T, "[1, 2].map(x, x / 0) == [1] || cel.bind(t, 5, t == 5)"),
    Case("a binding is only evaluated where it is used", T, "cel.bind(t, @.missing, true)"),
    Case(
        "an optional mapped after a loop that ended early",
        T,
        "[1, 2].exists(x, true) && optional.of(5).optMap(o, o + 1).value() == 6",
    ),
    Case(
        "max and includes after a loop that ended early",
        T,
        "[1, 2].exists(x, true) && [5].max() == 5 && [7].includes(7)",
    ),
    Case("exists with name and value", T, '@.exists(k, v, k == "index" && v == 2)'),
    Case("all with index and value", T, "[1, 2].all(i, v, i < v)"),
    Case("transformList", T, "[1, 2].transformList(i, v, i + v) == [1, 3]"),
    Case("transformMap", T, '{"a": 1, "b": 2}.transformMap(k, v, v > 1, v + 1) == {"b": 3}'),
    Case("transformMapEntry", T, '{"a": 1}.transformMapEntry(k, v, {v: k}) == {1: "a"}'),
    Case("transformMapEntry with one key twice", E, '{"a": 1, "b": 1}.transformMapEntry(k, v, {v: k}).size() == 1'),
    Case(
        "capacities by name and value",
        T,
        'device.capacity["gpu.example.com"].exists(k, v, v.isGreaterThan(quantity("10Gi")))',
    ),
    # conversions and time
    Case("conversions", T, 'string(@.index) == "2" && int("12") == 12 && double("1.5") == 1.5 && bool("true")'),
    Case("a bool is no number", E, "int(@.healthy) == 1"),
    Case(
        "durations and timestamps",
        T,
        'duration("1h") > duration("59m") && timestamp("2024-01-01T00:00:00Z").getFullYear() == 2024',
    ),
    Case("the size of a type is unknown, so comparing types is too costly", R, "type(@.index) == int"),
    # what is not in this environment
    Case("math", R, "math.greatest(1, 2) == 2"),
    Case("encoders", R, 'base64.encode(b"a") == "x"'),
    Case("an unknown function", R, "foo(device.driver)"),
    Case("an unknown method", R, "@.model.foo()"),
    Case("the names of Kubernetes' types", R, "type(@.driverVersion) == kubernetes.Semver"),
    Case("values of Kubernetes' types", R, 'kubernetes.Quantity{} == quantity("1")'),
    # syntax
    Case("a comment", T, "true // why"),
    Case("half an expression", R, "@.model =="),
    Case("one equals sign", R, '@.model = "x"'),
    Case("nothing", R, ""),
]
