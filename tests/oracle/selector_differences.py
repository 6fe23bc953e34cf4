"""Where our selectors are known to differ from upstream's: each kind, its reason, and examples that must differ.

An entry that stops differing fails its test, and leaves the list. docs/adr/0002 says why the engine is not cel-go.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.cel.selectors import Expected

T, F, E, R = Expected.TRUE, Expected.FALSE, Expected.ERROR, Expected.REFUSED


class Seen(NamedTuple):
    """What one engine said. outcome: on one device. text: of its refusal or its error."""

    outcome: Expected
    text: str = ""


class Example(NamedTuple):
    """expression: with "@" for the driver's attributes; on `tests.cel.selectors.DEVICE`."""

    expression: str
    upstream: Expected
    ours: Expected


class Difference(NamedTuple):
    """why: what differs, and whose accident or limit it is.

    explains: whether a difference that was met is of this kind; called only where the outcomes differ.
    """

    why: str
    explains: Callable[[str, Seen, Seen], bool]
    examples: Sequence[Example]


def _has(*texts: str) -> Callable[[str], bool]:
    return lambda expression: any(text in expression for text in texts)


_TWO_VARIABLES = re.compile(r"\(\w+, \w+, ")
_UNTYPED = _has(".flatten(", ".sortBy(", ".first()", ".last()", ".value()", "optional.unwrap(", ".unwrapOpt(")
_LISTED_VERSION = re.compile(r"versions|\[.*driverVersion.*\]", re.DOTALL)

DIFFERENCES = [
    Difference(
        "cel-expr-python takes at most 10,000 steps of comprehensions in one evaluation",
        lambda _, upstream, ours: ours.outcome is E and "10,000 steps" in ours.text,
        [Example("lists.range(101).all(a, lists.range(101).all(b, a + b >= 0))", T, E)],
    ),
    Difference(
        "what can stop the broker for too long is refused, however little it costs in Kubernetes' units",
        lambda _, upstream, ours: ours.outcome is R and "evaluating it once can take" in ours.text,
        [
            Example("lists.range(3000).map(a, a).size() == 3000", T, R),
            Example('lists.range(200).all(a, !device.driver.matches("(a|aa){1,500}b"))', T, R),
        ],
    ),
    Difference(
        "patterns that need large programs are refused, and those that are computed fail sooner than others",
        lambda _, upstream, ours: "more than 20,000 instructions" in ours.text or "pattern too large" in ours.text,
        [
            Example('"a".matches("(.*){1000}(.*){1000}")', T, R),
            Example('"a".matches("(a.*){1000}".trim())', F, E),
        ],
    ),
    Difference(
        "cel-expr-python parses 32 levels of nesting, cel-go 250",
        lambda _, upstream, ours: ours.outcome is R and "nested too deeply" in ours.text,
        [Example("(" * 34 + "true" + ")" * 34, T, R)],
    ),
    Difference(
        "isInteger and asInteger go by the value; upstream goes by how the quantity was made",
        lambda expression, *_: _has(".isInteger()", ".asInteger()")(expression),
        [
            Example('quantity("500m").add(quantity("500m")).isInteger()', F, T),
            Example('quantity("500m").add(quantity("500m")).asInteger() == 1', E, T),
        ],
    ),
    Difference(
        "a quantity that was computed equals its like only on the left side of ==, upstream",
        lambda expression, upstream, _: (
            upstream.text.startswith("no such overload") and _has(".add(", ".sub(")(expression)
        ),
        [Example('quantity("2") == quantity("1").add(1)', E, T)],
    ),
    Difference(
        "a value of Kubernetes' types compared with one of another type behind dyn(): an error upstream, false here",
        lambda expression, upstream, _: upstream.text == "no such overload" and "dyn(" in expression,
        [Example('dyn(quantity("1")) == "1"', E, F), Example('dyn(cidr("10.0.0.0/8")) == dyn([1])', E, F)],
    ),
    Difference(
        "int() of a duration: its nanoseconds upstream, an error here",
        lambda expression, _, ours: "int(duration)" in ours.text,
        [Example('int(duration("1s")) == 1000000000', T, E)],
    ),
    Difference(
        "has() of a field of a version: false upstream, an error here",
        lambda expression, upstream, ours: "has(" in expression and "no_such_field" in ours.text,
        [Example("has(@.driverVersion.a)", F, E)],
    ),
    Difference(
        "upstream cannot convert what first() and last() take from an attribute",
        lambda expression, upstream, ours: (
            upstream.text.startswith("no such overload: ") and _has(".last()", ".first()")(expression)
        ),
        [Example("double(@.ports.last().value()) > 1.0", E, T)],
    ),
    Difference(
        "an error inside a macro that upstream cannot absorb, as it is an accident of its own",
        lambda _, upstream, ours: upstream.text.startswith("internal error: "),
        [Example("@.features.filter(v, @.nope).distinct() == [] && false", E, F)],
    ),
    Difference(
        "upstream evaluates constant calls when it compiles, and refuses what fails then; ours fails on the device",
        lambda _, upstream, ours: upstream.text.startswith("program instantiation failed"),
        [Example('int(string("x")) == 1 || true', R, T)],
    ),
    Difference(
        "upstream takes what cel.bind yields for infinitely large, and refuses what is done with it as too costly",
        lambda expression, upstream, _: "too complex" in upstream.text and "cel.bind(" in expression,
        [Example('cel.bind(x, "a", x).matches("b")', R, F), Example("cel.bind(x, [1], x).all(y, y > 0)", R, T)],
    ),
    Difference(
        "the worst case of macros with two variables over maps is estimated higher than upstream does",
        lambda expression, _, ours: "too complex" in ours.text and _TWO_VARIABLES.search(expression) is not None,
        [Example('device.capacity["gpu.example.com"].all(k, v, k.split("x").isSorted())', T, R)],
    ),
    Difference(
        "the worst case of lists of lists is estimated higher than upstream's where their types are not known",
        lambda expression, _, ours: "too complex" in ours.text and ".flatten(" in expression,
        [Example("(@.features.isSorted() ? [0] : [[0], [3, 1, 2, 1]].flatten()).reverse().all(v, v == v)", T, R)],
    ),
    Difference(
        "the worst case of replace() and sortBy() is estimated higher than upstream does",
        lambda expression, _, ours: "too complex" in ours.text and _has(".replace(", ".sortBy(")(expression),
        [
            Example("[3].sortBy(v, @.index)[0] == @.ports.last().value()", T, R),
            Example('"a".startsWith("".replace("a,b,c".lowerAscii(), string(cidr("10.0.0.0/8")), 2))', T, R),
        ],
    ),
    Difference(
        "what flatten, sortBy, unwrap, format.named, first and last yield has another type to the checker",
        lambda expression, upstream, ours: (
            R in (upstream.outcome, ours.outcome)
            and "too complex" not in ours.text
            and (_UNTYPED(expression) or "format.named(" in expression)
        ),
        [
            Example("[[1, 2], [[3], [1]].flatten()].flatten().size() == 4", T, R),
            Example("[1, optional.unwrap([optional.of(1)])[0]].size() == 2", T, R),
            Example('format.named("uuid").value() == 1', R, F),
            Example("null in [1].sortBy(v, @.index)", R, F),
            Example("[-(@.ports.last().value()), 1].size() == 2", R, T),
            Example('"%s-%d".format(["a", @.ports.last().value()]) == "a-3"', T, R),
        ],
    ),
    Difference(
        "comparing a literal with dyn makes the types of its elements differ, upstream",
        lambda expression, upstream, ours: (
            upstream.outcome is R
            and re.search("expected type '.*' but found '.*'", upstream.text) is not None
            and "dyn" in upstream.text
        ),
        [
            Example('{?"a": optional.none(), "c": 2} == {?"a": @.?index, "c": @.nope}', R, E),
            Example("dyn([3]) in [[3].last().value(), @.ports.last().value()]", R, F),
        ],
    ),
    Difference(
        "no number has an order with NaN: false here, an error upstream",
        lambda _, upstream, ours: "NaN" in upstream.text,
        [Example("(0.0 / 0.0) < 1.0", E, F)],
    ),
    Difference(
        "upstream cannot tell whether a list is sorted that distinct, reverse and the like made of an attribute",
        lambda _, upstream, ours: "isSorted(list)" in upstream.text,
        [Example("@.features.reverse().isSorted()", E, F)],
    ),
    Difference(
        'splitting "" by "" yields one empty text, upstream none',
        lambda expression, *_: ".split(" in expression,
        [Example('"".split("") == []', T, F)],
    ),
    Difference(
        "a version or an optional cannot be a value of a map that a macro makes",
        lambda _, upstream, ours: "Non-CEL value type" in ours.text or "Unimplemented type" in ours.text,
        [
            Example('has({"a": 1}.transformMap(k, v, true, @.driverVersion).a)', T, E),
        ],
    ),
    Difference(
        "cel-expr-python crashes on some maps of optional values, so none may be made",
        lambda _, upstream, ours: ours.outcome is R and "optional value" in ours.text,
        [
            Example('{"a": 1}.transformMap(k, v, optional.of(v)).transformList(k, v, 1) == [1]', T, R),
            Example('["a"].transformMapEntry(i, v, {v: @.?index}).exists(k, true)', T, R),
            Example('{"a": dyn(@.?index)}.exists(k, true)', T, R),
        ],
    ),
    Difference(
        "optMap behind a macro with two variables: they are taken for unknown ones",
        lambda expression, _, ours: "undeclared reference" in ours.text and ".transform" in expression,
        [
            Example("[2, 1].transformList(i, v, v).first().optMap(x, true).orValue(false)", T, R),
            Example('["a", "b"].transformMapEntry(i, v, {v: i}).?b.optMap(x, x == 1).orValue(true)', T, R),
        ],
    ),
    Difference(
        "format() writes exponents and maps another way",
        lambda expression, *_: re.search(r"%(\.\d)?e|format\(\[.*\{", expression) is not None,
        [Example('"%.2e".format([1.5]) == "1.50e+00"', F, T), Example('"%s".format([{"a": 1}]) == "{a: 1}"', F, T)],
    ),
    Difference(
        "a literal with one key twice: the last counts upstream, an error here",
        lambda expression, _, ours: "duplicate key" in ours.text,
        [Example('{"a": 1, "a": 2}.size() == 1', T, E)],
    ),
    Difference(
        "the sum of dyn starts from the integer 0",
        lambda expression, _, ours: ".sum()" in expression and "_+_(int64, " in ours.text,
        [Example("[dyn(1.5)].sum() == 1.5", T, E)],
    ),
    Difference(
        "a list of versions equals every list of that length upstream, if it stands on the left",
        lambda expression, *_: _LISTED_VERSION.search(expression) is not None and " == " in expression,
        [Example('@.versions == ["1.0.0", "2.0.0-beta"]', T, F), Example("[@.driverVersion] == [0]", T, F)],
    ),
    Difference(
        "an optional entry of a map by a key that is a list: an error upstream, none here",
        lambda _, upstream, ours: upstream.text.startswith("invalid qualifier type"),
        [Example('{"a": 1}[?@.ports].hasValue()', E, F)],
    ),
    Difference(
        "nothing is in an empty list: upstream does not ask what, here it may fail",
        lambda expression, *_: " in []" in expression,
        [Example("@.nope in []", F, E)],
    ),
]
