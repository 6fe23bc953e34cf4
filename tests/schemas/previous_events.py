"""The public events as the previous release had them: its JSON Schemas, and bytes that it wrote.

`python -m tests.schemas.previous_events` keeps those of this build in `previous/`: at a release, and at no other time.
A difference between releases that `breaks` names needs a new type (`.v2`) beside the old one.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args

import msgspec

from broker.cli.schema_files import DIRECTORY
from schemas.event_examples import EXAMPLES
from schemas.events import AnyEvent, event_subject
from schemas.wire.codec import encode

RECORDED = Path(__file__).parent / "previous"
Schema = dict[str, Any]
# Words for people; a default is what a reader takes where nothing is said, so it stays.
_FOR_PEOPLE = {"title", "description", "examples", "$schema", "$id", "$defs"}
_OF_OBJECTS = {"properties", "required"}
_ALTERNATIVES_MOST = 8  # words of an enum


class Line(msgspec.Struct):
    """An event as it was stored."""

    subject: str
    payload: msgspec.Raw


def schemas_in(directory: Path) -> dict[str, Schema]:
    """By type."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(directory.glob("*.json"))}


def current_schemas() -> dict[str, Schema]:
    """Of this build."""
    return schemas_in(DIRECTORY / "json")


def recorded_schemas() -> dict[str, Schema]:
    """Of the previous release."""
    return schemas_in(RECORDED / "json")


def recorded_lines() -> list[Line]:
    """What the previous release wrote."""
    return [msgspec.json.decode(line, type=Line) for line in (RECORDED / "events.jsonl").read_bytes().splitlines()]


def breaks(before: dict[str, Schema], after: dict[str, Schema]) -> list[str]:
    """What keeps a reader of either from reading what the other has written; [] is as it should be."""
    found = [f"{name}: the type is gone" for name in before if name not in after]
    for name in before.keys() & after.keys():
        found += _breaks(name, before[name], after[name], before[name], after[name])
    return sorted(found)


def _breaks(where: str, old: Schema, new: Schema, old_root: Schema, new_root: Schema) -> Iterator[str]:
    old, new = _resolved(old, old_root), _resolved(new, new_root)
    for key in sorted((old.keys() | new.keys()) - _FOR_PEOPLE - _OF_OBJECTS):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):  # items, additionalProperties
            yield from _breaks(f"{where}.{key}", was, now, old_root, new_root)
        elif key == "anyOf" and was is not None and now is not None and len(was) == len(now):
            for one, other in zip(was, now, strict=True):
                yield from _breaks(where, one, other, old_root, new_root)
        elif was != now:
            yield f"{where}: {key} was {was!r}, is {now!r}"
    had, has = old.get("properties", {}), new.get("properties", {})
    for name in sorted(had.keys() - has.keys()):
        yield f"{where}.{name}: the field is gone"
    for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        yield f"{where}.{name}: the field is required, and was not"
    for name in sorted(set(old.get("required", ())) - set(new.get("required", ()))):
        yield f"{where}.{name}: the field was always there, and may be left out now"
    for name in sorted(had.keys() & has.keys()):
        yield from _breaks(f"{where}.{name}", had[name], has[name], old_root, new_root)


def _resolved(schema: Schema, root: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    rest = {key: value for key, value in schema.items() if key != "$ref"}
    return {**root["$defs"][schema["$ref"].removeprefix("#/$defs/")], **rest}


def reader_of(schema: Schema) -> type[msgspec.Struct]:
    """A reader that knows nothing but the schema: a Struct with its fields and types."""
    found: type[msgspec.Struct] = _type(schema, schema)
    return found


def _type(schema: Schema, root: Schema) -> Any:
    schema = _resolved(schema, root)
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    if "anyOf" in schema:
        return Union[tuple(_type(each, root) for each in schema["anyOf"])]  # noqa: UP007  # of a tuple
    match schema.get("type"):
        case "null":
            return None
        case "object" if "properties" in schema:
            required = set(schema.get("required", ()))
            fields: list[Any] = []
            for name, value in schema["properties"].items():
                if name in required:
                    fields.append((name, _type(value, root)))
                else:
                    optional = _type(value, root) | msgspec.UnsetType
                    fields.append((name, optional, msgspec.field(default=msgspec.UNSET)))
            return msgspec.defstruct(schema["title"], fields, kw_only=True)
        case "object":
            values = schema.get("additionalProperties", True)
            return dict[str, _type(values, root) if isinstance(values, dict) else Any]  # type: ignore[misc]
        case "array":
            return list[_type(schema["items"], root)]  # type: ignore[misc]
        case "string":
            return str
        case "integer":
            return int
        case "boolean":
            return bool
    raise NotImplementedError(f"no reader is made from {schema}")


def samples(schema: Schema) -> list[Any]:
    """Values that the schema allows: with all fields, each alternative in turn, and with the required ones alone."""
    full = [_sample(schema, schema, turn) for turn in range(_ALTERNATIVES_MOST)]
    return [*full, {name: value for name, value in full[0].items() if name in schema["required"]}]


def _sample(schema: Schema, root: Schema, turn: int) -> Any:
    schema = _resolved(schema, root)
    if "enum" in schema:
        return schema["enum"][turn % len(schema["enum"])]
    if "anyOf" in schema:
        return _sample(schema["anyOf"][turn % len(schema["anyOf"])], root, turn)
    match schema.get("type"):
        case "null":
            return None
        case "object":
            return {name: _sample(value, root, turn) for name, value in schema.get("properties", {}).items()}
        case "array":
            return [_sample(schema["items"], root, turn)]
        case "string":
            return "text"
        case "integer":
            return 7
        case "boolean":
            return True
    raise NotImplementedError(f"no sample of {schema}")


def record() -> None:
    """Keep what this build has."""
    (RECORDED / "json").mkdir(parents=True, exist_ok=True)
    for path in (RECORDED / "json").iterdir():
        path.unlink()
    for path in (DIRECTORY / "json").iterdir():
        (RECORDED / "json" / path.name).write_text(path.read_text())
    lines = [msgspec.json.encode(Line(event_subject(each), msgspec.Raw(encode(each)))) for each in EXAMPLES]
    assert len(lines) == len(get_args(AnyEvent))
    (RECORDED / "events.jsonl").write_bytes(b"\n".join(lines) + b"\n")


if __name__ == "__main__":
    record()
