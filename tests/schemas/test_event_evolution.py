"""A reader of the previous release reads today's events, and today's reads those that it wrote."""

import copy
from collections.abc import Callable
from typing import Any

import jsonschema
import msgspec
import pytest

from schemas.event_examples import EXAMPLES
from schemas.events import AnyEvent, event_subject, event_type
from schemas.wire.codec import encode
from tests.schemas.previous_events import (
    Schema,
    breaks,
    current_schemas,
    reader_of,
    recorded_lines,
    recorded_schemas,
    samples,
)

PREVIOUS = recorded_schemas()
PENDING = "dev.dragoman.claim.pending.v1"
FAILED = "dev.dragoman.claim.allocation-failed.v1"


def test_nothing_breaks_a_reader_of_the_previous_release() -> None:
    assert breaks(PREVIOUS, current_schemas()) == [], "keep the type as it is and add a new one (.v2) beside it"


@pytest.mark.parametrize("event", [each for each in EXAMPLES if event_type(each) in PREVIOUS], ids=event_type)
def test_a_reader_of_the_previous_release_reads_todays_events(event: AnyEvent) -> None:
    schema = PREVIOUS[event_type(event)]
    payload = encode(event)
    jsonschema.Draft202012Validator(schema).validate(msgspec.json.decode(payload))
    assert without_what_is_new(msgspec.json.decode(payload), schema) == read(payload, schema)


@pytest.mark.parametrize("name", sorted(PREVIOUS))
def test_it_reads_all_that_todays_schema_allows(name: str) -> None:
    for sample in samples(current_schemas()[name]):
        payload = msgspec.json.encode(sample)
        msgspec.json.decode(payload, type=AnyEvent)  # it is an event
        jsonschema.Draft202012Validator(PREVIOUS[name]).validate(sample)
        read(payload, PREVIOUS[name])


def test_todays_reader_reads_what_the_previous_release_wrote_and_writes_it_the_same() -> None:
    lines = recorded_lines()
    assert {msgspec.json.decode(line.payload)["type"] for line in lines} == PREVIOUS.keys()
    for line in lines:
        event = msgspec.json.decode(line.payload, type=AnyEvent)
        assert encode(event) == bytes(line.payload)
        assert event_subject(event) == line.subject


# --- the judges themselves


def without(schema: Schema) -> None:
    del schema[PENDING]["properties"]["explanation"]


def narrower(schema: Schema) -> None:
    schema[PENDING]["properties"]["reason"] = {"enum": ["DevicesInUse"]}


def wider(schema: Schema) -> None:
    schema[PENDING]["properties"]["since_ms"] = {"type": "string"}


def deeper(schema: Schema) -> None:
    del schema[PENDING]["$defs"]["ClaimRef"]["properties"]["uid"]


def one_more_word(schema: Schema) -> None:
    schema[FAILED]["properties"]["outcome"]["enum"].append("Later")


def newly_required(schema: Schema) -> None:
    schema[PENDING]["properties"]["queue"] = {"type": "string"}
    schema[PENDING]["required"].append("queue")


def newly_optional(schema: Schema) -> None:
    schema[PENDING]["required"].remove("message")


def another_default(schema: Schema) -> None:
    schema[PENDING]["$defs"]["ClaimRef"]["properties"]["namespace"]["default"] = "default"


def gone(schema: Schema) -> None:
    del schema[PENDING]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without, [f"{PENDING}.explanation: the field is gone"]),
        (narrower, [f"{PENDING}.reason: enum was None, is ['DevicesInUse']", f"{PENDING}.reason: type was 'string'"]),
        (wider, [f"{PENDING}.since_ms: type was 'integer', is 'string'"]),
        (deeper, [f"{PENDING}.claim.uid: the field is gone"]),
        (one_more_word, [f"{FAILED}.outcome: enum was ['Conflict', 'Failed', 'Gone']"]),
        (newly_required, [f"{PENDING}.queue: the field is required, and was not"]),
        (newly_optional, [f"{PENDING}.message: the field was always there, and may be left out now"]),
        (another_default, [f"{PENDING}.claim.namespace: default was '', is 'default'"]),
        (gone, [f"{PENDING}: the type is gone"]),
    ],
)
def test_what_breaks_a_reader_is_named(change: Callable[[Schema], None], said: list[str]) -> None:
    changed = copy.deepcopy(current_schemas())
    change(changed)
    found = breaks(current_schemas(), changed)
    assert [each.startswith(start) for each, start in zip(found, said, strict=True)] == [True] * len(said), found


def one_more_field(schema: Schema) -> None:
    schema[PENDING]["properties"]["queue"] = {"type": "string", "default": ""}
    schema[PENDING]["$defs"]["ClaimRef"]["properties"]["labels"] = {"type": "object", "default": {}}


def one_more_type(schema: Schema) -> None:
    schema["dev.dragoman.claim.pending.v2"] = schema[PENDING]


def other_words(schema: Schema) -> None:
    schema[PENDING]["description"] = "It waits."


@pytest.mark.parametrize("change", [one_more_field, one_more_type, other_words])
def test_what_breaks_nobody_may_change(change: Callable[[Schema], None]) -> None:
    changed = copy.deepcopy(current_schemas())
    change(changed)
    assert breaks(current_schemas(), changed) == []


@pytest.mark.parametrize("change", [wider, deeper, one_more_word, newly_optional])
def test_a_reader_of_before_fails_over_what_breaks_it(change: Callable[[Schema], None]) -> None:
    before, changed = current_schemas(), copy.deepcopy(current_schemas())
    change(changed)
    name = FAILED if change is one_more_word else PENDING
    payloads = list(map(msgspec.json.encode, samples(changed[name])))
    with pytest.raises(msgspec.ValidationError):
        all(read(payload, before[name]) for payload in payloads)


def test_a_reader_of_before_passes_over_a_field_that_was_added() -> None:
    before, changed = current_schemas(), copy.deepcopy(current_schemas())
    one_more_field(changed)
    for sample in samples(changed[PENDING]):
        found = read(msgspec.json.encode(sample), before[PENDING])
        assert found == without_what_is_new(sample, before[PENDING])
        assert "queue" not in found


def read(payload: bytes, schema: Schema) -> Any:
    """What a reader made from the schema alone finds."""
    return msgspec.to_builtins(msgspec.json.decode(payload, type=reader_of(schema)))


def without_what_is_new(value: Any, schema: Schema) -> Any:
    """The value, of each object what the schema knows."""

    def known(part: Any, within: Schema) -> Any:
        if "$ref" in within:
            within = schema["$defs"][within["$ref"].removeprefix("#/$defs/")]
        if isinstance(part, list):
            return [known(each, within["items"]) for each in part]
        if isinstance(part, dict) and "properties" in within:
            fields = within["properties"]
            return {key: known(each, fields[key]) for key, each in part.items() if key in fields}
        return part

    return known(value, schema)
