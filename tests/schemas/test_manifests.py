import gc
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import FieldError, ManifestError
from schemas.manifests import ManifestSet, parse_manifests, read_manifests
from schemas.resource import DeviceClass, ResourceClaim
from tests.schemas.raw import NAMES, a_raw

_HEAD = "apiVersion: resource.k8s.io/v1\nkind: DeviceClass\n"


def _a_class(name: str) -> str:
    return f"{_HEAD}metadata:\n  name: {name}\n"


def _parsed(text: str) -> ManifestSet:
    return parse_manifests(text, "test.yaml")


def _names(found: ManifestSet) -> list[str]:
    return [document.raw["metadata"]["name"] for document in found.documents]


def _value(text: str) -> Any:
    """What `x: TEXT` is in a manifest."""
    found = _parsed(f"{_HEAD}x: {text}\n")
    assert found.errors == []
    return found.documents[0].raw["x"]


def _error(text: str) -> ManifestError:
    found = _parsed(text)
    assert found.documents == []
    (error,) = found.errors
    return error


@pytest.mark.parametrize("name", NAMES)
def test_reads_yaml_and_json_alike(name: str) -> None:
    raw = a_raw(name)
    assert [document.raw for document in _parsed(yaml.safe_dump(raw)).documents] == [raw]
    assert [document.raw for document in _parsed(json.dumps(raw)).documents] == [raw]
    assert [document.raw for document in parse_manifests(json.dumps(raw, indent="\t"), "test.json").documents] == [raw]


@pytest.mark.parametrize(
    ("text", "places"),
    [
        pytest.param("{a}---\n{b}", [("a", 1, 1), ("b", 2, 6)], id="two documents"),
        pytest.param("---\n{a}---\n{b}---\n", [("a", 1, 2), ("b", 2, 7)], id="markers at both ends"),
        pytest.param("# licence\n\n---\n{a}", [("a", 1, 4)], id="a comment before the first marker"),
        pytest.param("%YAML 1.1\n---\n{a}", [("a", 1, 3)], id="a directive"),
        pytest.param("{a}...\n---\n{b}", [("a", 1, 1), ("b", 2, 7)], id="an end marker"),
        pytest.param("{a}...\n{b}", [("a", 1, 1), ("b", 2, 6)], id="an end marker alone"),
        pytest.param("{a}---\n# nothing\n---\n{b}", [("a", 1, 1), ("b", 3, 8)], id="an empty document counts"),
        pytest.param("--- # first\n{a}", [("a", 1, 2)], id="a comment behind a marker"),
        pytest.param("\ufeff{a}", [("a", 1, 1)], id="a byte order mark"),
    ],
)
def test_a_document_knows_its_number_and_line(tmp_path: Path, text: str, places: list[tuple[str, int, int]]) -> None:
    file = tmp_path / "classes.yaml"
    file.write_text(text.replace("{a}", _a_class("a")).replace("{b}", _a_class("b")), encoding="utf-8")
    found = read_manifests([file])
    assert found.errors == []
    assert [
        (document.raw["metadata"]["name"], document.number, document.line) for document in found.documents
    ] == places
    assert {document.path for document in found.documents} == {str(file)}


def test_windows_line_ends_do_not_matter() -> None:
    text = f"{_a_class('a')}---\n{_a_class('b')}".replace("\n", "\r\n")
    found = _parsed(text)
    assert _names(found) == ["a", "b"]
    assert found.documents[1].line == 6


def test_a_marker_inside_of_a_block_is_text() -> None:
    found = _parsed(f"{_a_class('a')}x: |\n  ---\n  text\n")
    assert found.documents[0].raw["x"] == "---\ntext\n"


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_lists_are_unpacked(suffix: str) -> None:
    typed = {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceClassList", "items": [{"metadata": {"name": "b"}}]}
    mixed = {
        "apiVersion": "v1",
        "kind": "List",
        "items": [a_raw("class"), a_raw("pod"), {"apiVersion": "v1", "kind": "Service"}, typed, 7],
    }
    found = parse_manifests(json.dumps(mixed), f"test{suffix}")
    assert _names(found) == ["gpu.example.com", "train-0", "b"]
    assert isinstance(found.documents[2].decode(), DeviceClass)
    assert found.skipped == {"Service": 1}
    (error,) = found.errors
    assert (error.field, error.message) == ("", "expected an object with apiVersion and kind")


def test_an_empty_list_holds_nothing() -> None:
    assert _parsed("apiVersion: v1\nkind: List\nitems:\n") == ManifestSet([], [], {})
    assert _error("apiVersion: v1\nkind: List\nitems: x\n").message == "expected a list"


def test_other_kinds_are_counted_and_passed_over() -> None:
    text = "apiVersion: apps/v1\nkind: Deployment\n---\napiVersion: example.com/v1\nkind: ResourceClaim\n"
    assert _parsed(text * 1 + "---\n" + text) == ManifestSet([], [], {"Deployment": 2, "ResourceClaim": 2})


def test_directories_are_read_whole_in_the_order_of_names(tmp_path: Path) -> None:
    for place in ("b.yaml", "a/z.yml", "a/y.json", "c.txt", ".hidden.yaml", "..data/d.yaml", "d.yaml"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        name = place.replace("/", "-").strip(".")
        raw = {**a_raw("class"), "metadata": {"name": name}}
        (tmp_path / place).write_text(json.dumps(raw), encoding="utf-8")
    (tmp_path / "linked.yaml").symlink_to(tmp_path / "..data" / "d.yaml")
    found = read_manifests([tmp_path])
    assert found.errors == []
    assert _names(found) == ["a-y.json", "a-z.yml", "b.yaml", "d.yaml", "data-d.yaml"]


def test_a_file_that_cannot_be_read_does_not_stop_the_others(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(_a_class("x").encode() + b"# \xff\n")
    (tmp_path / "broken.json").write_text('{"apiVersion": "v1",\n "kind": }', encoding="utf-8")
    (tmp_path / "good.yaml").write_text(_a_class("good"), encoding="utf-8")
    found = read_manifests([tmp_path / "missing.yaml", tmp_path])
    assert _names(found) == ["good"]
    assert [(Path(error.path).name, error.line, error.column) for error in found.errors] == [
        ("missing.yaml", 0, 0),
        ("bad.yaml", 5, 3),
        ("broken.json", 2, 10),
    ]


@pytest.mark.parametrize(
    ("broken", "line", "column"),
    [
        pytest.param("a: [1\n", 6, 4, id="a bracket that is not closed"),
        pytest.param('a: "x\n', 6, 4, id="a quote that is not closed"),
        pytest.param("a: 1\n b: 2\n", 7, 3, id="indentation"),
        pytest.param("a:\n\t- 1\n", 7, 1, id="a tab"),
        pytest.param("a: *nowhere\n", 6, 4, id="an alias of nothing"),
        pytest.param("a: \x07\n", 6, 4, id="a control character"),
        pytest.param("a: 1\nb: 2\na: 3\n", 8, 1, id="a key that is there twice"),
        pytest.param("yes: 1\n", 6, 1, id="a key that is no text"),
        pytest.param("a: !Ref b\n", 6, 4, id="a tag of somebody's own"),
        pytest.param("a: !!int x\n", 6, 4, id="a tag that does not fit"),
        pytest.param("a: &a [*a]\n", 6, 1, id="an alias that refers to itself"),
        pytest.param("[" * 100_000, 6, 200, id="brackets without end"),
        pytest.param("- " * 100_000, 6, 399, id="dashes without end"),
        pytest.param("just text\n", 6, 1, id="no object"),
        pytest.param("kind: Pod\n", 6, 1, id="no apiVersion"),
        pytest.param("apiVersion: v1\nkind: 7\n", 7, 7, id="a kind that is no text"),
    ],
)
def test_a_broken_document_is_named_with_its_place_and_spoils_no_other(broken: str, line: int, column: int) -> None:
    found = _parsed(f"{_a_class('before')}---\n{broken}\n---\n{_a_class('after')}")
    assert _names(found) == ["before", "after"]
    (error,) = found.errors
    assert (error.path, error.document, error.line, error.column) == ("test.yaml", 2, line, column), error
    assert str(error).startswith(f"test.yaml:{line}:{column} (document 2): ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param("no", False, id="no is a boolean, as for Kubernetes"),
        pytest.param("On", True, id="On is a boolean"),
        pytest.param("y", True, id="y is a boolean"),
        pytest.param('"no"', "no", id="quotes make text"),
        pytest.param("nO", "nO", id="an odd spelling is text"),
        pytest.param("", None, id="nothing is null"),
        pytest.param("~", None, id="a tilde is null"),
        pytest.param("010", 8, id="a leading zero is octal"),
        pytest.param("0o10", 8, id="octal of today"),
        pytest.param("0x1F", 31, id="hexadecimal"),
        pytest.param("0b11", 3, id="binary"),
        pytest.param("1_000", 1000, id="underscores"),
        pytest.param("-7", -7, id="a negative number"),
        pytest.param("08", 8.0, id="no octal number, so a decimal"),
        pytest.param("1e3", 1000.0, id="an exponent"),
        pytest.param("1.50", 1.5, id="a fraction"),
        pytest.param(".inf", float("inf"), id="infinity"),
        pytest.param("1e999", "1e999", id="a number that no float holds is text"),
        pytest.param(str(2**70), float(2**70), id="a number beyond 64 bits is a float"),
        pytest.param("1:30", "1:30", id="no sexagesimal numbers"),
        pytest.param("0000:01:00.0", "0000:01:00.0", id="a PCI address"),
        pytest.param("2026-11-24", "2026-11-24", id="a date stays text"),
        pytest.param("2026-11-24T10:00:00Z", "2026-11-24T10:00:00Z", id="a timestamp stays text"),
        pytest.param("!!str 12", "12", id="a tag for text"),
        pytest.param('!!int "12"', 12, id="a tag for a number"),
        pytest.param("80Gi", "80Gi", id="a quantity"),
        pytest.param("{1: a, 010: b}", {"1": "a", "010": "b"}, id="numbers as keys are text"),
        pytest.param("<<", "<<", id="a merge key as value"),
    ],
)
def test_plain_values_are_read_as_kubectl_reads_them(text: str, value: Any) -> None:
    found = _value(text)
    assert (found, type(found)) == (value, type(value))


def test_anchors_and_merge_keys_work() -> None:
    text = f"{_HEAD}base: &base {{a: 1, b: 2}}\nmore: &more {{b: 3, c: 4}}\n"
    raw = _parsed(text + "one: {<<: *base, b: 5}\ntwo: {<<: [*base, *more]}\nsame: *base\n").documents[0].raw
    assert raw["one"] == {"a": 1, "b": 5}
    assert raw["two"] == {"a": 1, "b": 2, "c": 4}
    assert raw["same"] == raw["base"]
    assert raw["same"] is not raw["base"], "parts that are shared would change together"
    assert "expected an object to merge" in _error(f"{_HEAD}x: {{<<: 1}}\n").message


def test_many_aliases_of_something_small_are_fine_and_bombs_are_not() -> None:
    small = f"{_HEAD}base: &base {{a: 1, b: [2, 3]}}\nx: [{', '.join(['*base'] * 5000)}]\n"
    assert len(_parsed(small).documents[0].raw["x"]) == 5000
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert "aliases repeat too much" in _error(_HEAD + "\n".join(lines)).message


_CLAIM = """\
# a claim
apiVersion: resource.k8s.io/v1beta1
kind: ResourceClaim
metadata: {name: one, labels: {example.com/team: ml}}
spec:
  devices:
    requests:
    - name: gpu
      deviceClassName: gpu
      selectors:
      - cel:
          expression: |
            true
    - name: nic
      firstAvailable:
      - {name: fast, deviceClassName: nic, count: two}
"""


@pytest.mark.parametrize(
    ("path", "line", "column"),
    [
        pytest.param("", 2, 1, id="the object"),
        pytest.param("kind", 3, 7, id="a value"),
        pytest.param("metadata.labels[example.com/team]", 4, 50, id="a key with dots and a slash"),
        pytest.param("spec.devices", 6, 3, id="an object, at its key"),
        pytest.param("spec.devices.requests[1]", 14, 7, id="an entry of a list"),
        pytest.param("spec.devices.requests[0].selectors[0].cel.expression", 12, 23, id="a block of text"),
        pytest.param("spec.devices.requests[1].firstAvailable[0].count", 16, 51, id="inside of braces"),
        pytest.param("spec.devices.requests[0].count", 8, 7, id="a field that is not there"),
        pytest.param("spec.devices.requests[7].name", 7, 5, id="an entry that is not there"),
        pytest.param("status.allocation", 2, 1, id="nothing of it is there"),
    ],
)
def test_locates_fields(path: str, line: int, column: int) -> None:
    (document,) = _parsed("---\n---\n" + _CLAIM).documents
    assert document.locate(path) == (line + 2, column)


def test_locates_fields_that_are_merged_in() -> None:
    (document,) = _parsed(f"{_HEAD}base: &base {{a: {{b: 1}}}}\nx: {{<<: *base}}\n").documents
    assert document.locate("x.a.b") == (3, 21)


def test_locates_fields_in_lists() -> None:
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": [a_raw("node"), a_raw("claim")]}, indent=2)
    for path in ("test.yaml", "test.json"):
        document = parse_manifests(text, path).documents[1]
        line, column = document.locate("metadata.name")
        assert text.splitlines()[line - 1][column - 1 :] == '"training",'
        assert text.splitlines()[document.line - 1].strip() == "{"


def test_json_that_yaml_does_not_allow_still_has_a_line() -> None:
    text = json.dumps({**a_raw("claim"), "note": "\U0001f600"}, indent=2)
    assert parse_manifests(text, "test.json").documents[0].locate("metadata.name") == (1, 1)


def test_a_key_that_is_twice_in_json_is_found_too() -> None:
    (error,) = parse_manifests('{"apiVersion": "v1",\n "kind": "Pod", "kind": "Pod"}', "test.json").errors
    assert (error.line, error.column) == (2, 17)
    assert parse_manifests("[" * 100_000, "test.json").errors[0].message == "nested too deeply"


def test_decoding_errors_have_their_place() -> None:
    (document,) = _parsed(_CLAIM).documents
    with pytest.raises(ManifestError) as caught:
        document.decode()
    assert str(caught.value) == (
        "test.yaml:16:51 (document 1): spec.devices.requests[1].firstAvailable[0].count: "
        'expected an integer of 64 bits, found the text "two"'
    )


def test_errors_of_the_decoded_object_have_their_place_and_the_words_of_the_manifest() -> None:
    (document,) = _parsed(_CLAIM.replace("two", "2")).documents
    assert isinstance(document.decode(), ResourceClaim)
    error = document.error(FieldError("spec.devices.requests[0].exactly.selectors[0].cel", "is odd"))
    assert str(error) == "test.yaml:11:9 (document 1): spec.devices.requests[0].selectors[0].cel: is odd"
    in_v1beta1 = json.dumps({**a_raw("slice"), "apiVersion": "resource.k8s.io/v1beta1", "spec": {"devices": []}})
    (document,) = _parsed(in_v1beta1.replace("[]", '[{"name": "a", "basic": {"capacity": {"memory": "x"}}}]')).documents
    error = document.error(FieldError("spec.devices[0].capacity[memory].value", "is odd"))
    assert error.field == "spec.devices[0].basic.capacity[memory]"


def test_reading_leaves_the_garbage_collector_as_it_was() -> None:
    before = gc.get_threshold()
    _parsed("a: [")
    assert gc.get_threshold() == before


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False) | st.text(),
        lambda children: st.lists(children) | st.dictionaries(st.text(), children),
        max_leaves=10,
    )
)
def test_reads_what_a_yaml_library_writes(value: Any) -> None:
    raw = {"apiVersion": "v1", "kind": "Pod", "x": value}
    # Quoted and tagged, since PyYAML does not quote the text "y", which is a boolean for Kubernetes.
    (document,) = _parsed(yaml.safe_dump(raw, default_style='"')).documents
    assert document.raw == raw
