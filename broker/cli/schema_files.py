"""The documents that are made from the public events: a JSON Schema for each, and the AsyncAPI document of all."""

import inspect
import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import yaml

from schemas.event_examples import EXAMPLES
from schemas.events import AnyEvent, event_type
from schemas.wire.subjects import PREFIX

DIRECTORY = Path(__file__).parents[2] / "schemas"  # where the repository keeps them
VERSION = "1.0.0"  # of the vocabulary: its second number grows with what is added, its first never

_HEADERS = {
    "ce-specversion": "1.0",
    "ce-type": "dev.dragoman.claim.allocated.v1",
    "ce-id": "main.44",
    "ce-source": "/dragoman/main",
    "ce-subject": "claim/east/5f0c1c1e-0d1e-4c53-9d0c-2f1d7e3f0a11",
    "ce-time": "2026-11-30T12:00:00.000Z",
    "ce-sequence": "00000000000000000044",
    "ce-correlationid": "claim/east/5f0c1c1e-0d1e-4c53-9d0c-2f1d7e3f0a11",
    "ce-causationid": "main.43",
    "ce-datacontenttype": "application/json",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
_OPTIONAL = {"ce-causationid"}


def schema_files() -> dict[str, str]:
    """Content by path below `schemas/`."""
    files = {f"json/{event_type(kind)}.json": _as_json(_json_schema(kind)) for kind in get_args(AnyEvent)}
    return {**files, "asyncapi.yaml": _ASYNCAPI_HEAD + yaml.safe_dump(_asyncapi(), sort_keys=False, width=120)}


_ASYNCAPI_HEAD = "# Written by `dragoman schema` from schemas/events.py and schemas/event_examples.py.\n"


def _as_json(document: Any) -> str:
    return json.dumps(document, indent=2) + "\n"


def _json_schema(kind: type[AnyEvent]) -> dict[str, Any]:
    (reference,), components = msgspec.json.schema_components([kind], ref_template="#/$defs/{name}")
    name = reference["$ref"].rpartition("/")[2]
    components = {each: _tidy(schema) for each, schema in components.items()}
    own = components.pop(name)
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:dragoman:event:{event_type(kind)}",
        **own,
        "examples": [_example(kind)],
    }
    return {**head, "$defs": components} if components else head


def _tidy(schema: Any) -> Any:
    """Docstrings without their indentation."""
    if isinstance(schema, dict):
        return {
            key: inspect.cleandoc(value) if key == "description" and isinstance(value, str) else _tidy(value)
            for key, value in schema.items()
        }
    return [_tidy(each) for each in schema] if isinstance(schema, list) else schema


def _example(kind: type[AnyEvent]) -> Any:
    return next(msgspec.to_builtins(each) for each in EXAMPLES if type(each) is kind)


def _asyncapi() -> dict[str, Any]:
    kinds = get_args(AnyEvent)
    _, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    channels, operations, messages = {}, {}, {}
    for kind in kinds:
        name, type_ = kind.__name__, event_type(kind)
        _, _, entity, what, _ = type_.split(".")
        of_device = entity == "device"
        channels[f"{entity}.{what}"] = {
            "address": f"{PREFIX}.events.{'_' if of_device else '{cluster}'}.{entity}.{what}.{{key}}",
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "parameters": {
                **({} if of_device else {"cluster": {"$ref": "#/components/parameters/cluster"}}),
                "key": {"$ref": "#/components/parameters/key"},
            },
        }
        operations[f"tell.{entity}.{what}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{entity}.{what}"},
            "messages": [{"$ref": f"#/channels/{entity}.{what}/messages/{name}"}],
        }
        messages[name] = {
            "name": type_,
            "title": name,
            "summary": inspect.cleandoc(kind.__doc__ or "").partition("\n")[0],
            "contentType": "application/json",
            "headers": {"$ref": "#/components/schemas/CloudEventHeaders"},
            "payload": {"$ref": f"#/components/schemas/{name}"},
            "examples": [{"payload": _example(kind)}],
        }
    return {
        "asyncapi": "3.1.0",
        "info": {
            "title": "Dragoman's events",
            "version": VERSION,
            "description": "What the broker decides and what becomes of it: CloudEvents 1.0 in NATS' binary mode, each"
            " once, in the stream DRA_EVENTS. See docs/events.md.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "nats.example.com:4222", "protocol": "nats"}},
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "parameters": {
                "cluster": {"description": "The cluster's name in the federation."},
                "key": {
                    "description": "A claim's UID, a cluster's name, or driver/pool/device; what a NATS token cannot"
                    " have is percent-encoded."
                },
            },
            "schemas": {"CloudEventHeaders": _headers(), **_tidy(components)},
        },
    }


def _headers() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "CloudEvents attributes as NATS headers.",
        "properties": {name: {"type": "string", "examples": [value]} for name, value in _HEADERS.items()},
        "required": [name for name in _HEADERS if name not in _OPTIONAL],
    }
