"""What the API server sends, as the agent's port hands it on: in the form of v1, without what nobody here reads.

A slice's spec stays as bytes, for a thousand slices of 128 devices are 25 MB of JSON and ten times that as dicts. Of
pods and nodes little is kept: a cluster may have a hundred thousand of the former, and the latter change all the time.
"""

import re
from typing import Any, TypeVar

import msgspec

from cluster_agent.ports import ApiObject, Kind
from schemas.errors import DecodeError
from schemas.resource.decode import decode_json
from schemas.resource.untyped import as_dict
from schemas.resource.versions import GROUP, V1, to_v1


class ApiKind(msgspec.Struct, frozen=True):
    """Where a kind is found. versions: the best first, `group/version`. page: how many objects a page of a list has."""

    name: str
    resource: str
    versions: tuple[str, ...]
    page: int = 500


_DRA_VERSIONS = (V1, f"{GROUP}/v1beta2", f"{GROUP}/v1beta1")

API_KINDS: dict[Kind, ApiKind] = {
    # A slice may be 100 kB: a page of them is read at once and must not be what the agent's memory is sized by.
    "slice": ApiKind("ResourceSlice", "resourceslices", _DRA_VERSIONS, 50),
    "class": ApiKind("DeviceClass", "deviceclasses", _DRA_VERSIONS),
    "claim": ApiKind("ResourceClaim", "resourceclaims", _DRA_VERSIONS),
    "taintrule": ApiKind("DeviceTaintRule", "devicetaintrules", (V1, f"{GROUP}/v1beta2", f"{GROUP}/v1alpha3")),
    "node": ApiKind("Node", "nodes", ("v1",)),
    "pod": ApiKind("Pod", "pods", ("v1",)),
    "namespace": ApiKind("Namespace", "namespaces", ("v1",)),
}


class _RawObject(msgspec.Struct):
    metadata: dict[str, Any]
    spec: msgspec.Raw = msgspec.Raw(b"{}")


class _PodSpec(msgspec.Struct, rename="camel", omit_defaults=True):
    node_name: str = ""
    resource_claims: list[Any] = []
    scheduling_gates: list[Any] = []


class _PodStatus(msgspec.Struct, rename="camel", omit_defaults=True):
    phase: str = ""
    conditions: list[Any] = []
    resource_claim_statuses: list[Any] = []


class _Pod(msgspec.Struct):
    metadata: dict[str, Any]
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _NodeStatus(msgspec.Struct, rename="camel", omit_defaults=True):
    declared_features: list[Any] = []


class _Node(msgspec.Struct):
    metadata: dict[str, Any]
    status: _NodeStatus = msgspec.field(default_factory=_NodeStatus)


class _Metadata(msgspec.Struct):
    metadata: dict[str, Any]


DEPTH_MAX = 100  # of objects and lists in one another; the API itself has a dozen
_CUT = 500  # deeper than this not even the rest of an answer can be read, for Python's stack ends
_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_T = TypeVar("_T")

_raw_object = msgspec.json.Decoder(_RawObject)
_pod = msgspec.json.Decoder(_Pod)
_node = msgspec.json.Decoder(_Node)
_namespace = msgspec.json.Decoder(_Metadata)
_anything = msgspec.json.Decoder(dict[str, Any])


def decoded(decoder: msgspec.json.Decoder[_T], data: bytes | msgspec.Raw) -> _T:
    """What is in `data`, of which only what is nested beyond all measure is left out.

    A driver's parameters may be any JSON: whoever may create a claim can nest it 5,000 deep; it must harm nobody.
    Raises: msgspec.DecodeError.
    """
    try:
        try:
            return decoder.decode(data)
        except RecursionError:
            return decoder.decode(_shallow(bytes(data)))
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from error


def _shallow(data: bytes) -> bytes:
    """The same JSON with null for all that is nested deeper than _CUT."""
    parts: list[bytes] = []
    kept_from = depth = 0
    for token in _TOKENS.finditer(data):
        match data[token.start() : token.start() + 1]:
            case b"{" | b"[":
                depth += 1
                if depth == _CUT + 1:
                    parts += data[kept_from : token.start()], b"null"
            case b"}" | b"]":
                if depth == _CUT + 1:
                    kept_from = token.end()
                depth -= 1
    return b"".join([*parts, data[kept_from:]])


def read_object(kind: Kind, api_version: str, data: bytes | msgspec.Raw) -> tuple[ApiObject, str] | None:
    """An object, and why it cannot be read ("" if it can); None for a pod that uses no claims.

    api_version: in which it was asked for; objects in a list do not say it themselves.
    Raises: msgspec.DecodeError where there is no object with metadata at all.
    """
    read = _read_shallow(kind, api_version, data)
    if read is None or read[1]:
        return read
    return read[0], _problem(kind, read[0])


def read_claim(api_version: str, data: bytes) -> ApiObject:
    """The claim of an answer. Whether it can be used is not looked at: the watch brings it, too.

    Raises: msgspec.DecodeError where there is no object with metadata at all.
    """
    read = _read_shallow("claim", api_version, data)
    assert read is not None, "only pods are left out"
    return read[0]


def _read_shallow(kind: Kind, api_version: str, data: bytes | msgspec.Raw) -> tuple[ApiObject, str] | None:
    """As read_object, but what the object says is not looked at."""
    try:
        obj = _read(kind, api_version, data)
    except msgspec.ValidationError as error:
        obj = decoded(_anything, data)
        if not isinstance(obj.get("metadata"), dict):
            raise
        return _named(kind, api_version, _without_noise(obj)), str(error)
    if obj is None:
        return None
    # In a slice nothing is free to nest; and nothing is nested deeper than brackets are opened.
    if kind != "slice" and _opened(data) > DEPTH_MAX and _is_cut(obj):
        return (
            obj,
            f"{obj['kind']} {obj['metadata'].get('name')}: nested more than {DEPTH_MAX} deep; the rest is left out",
        )
    return obj, ""


def _opened(data: bytes | msgspec.Raw) -> int:
    text = bytes(data)
    return text.count(b"{") + text.count(b"[")


def _is_cut(obj: ApiObject) -> bool:
    """Leave out what is nested too deeply for whoever reads it next, with a deeper stack; whether there was any."""
    is_cut = False
    level: list[Any] = [obj]
    for _ in range(DEPTH_MAX):
        inner = []
        for container in level:
            values = container.values() if isinstance(container, dict) else container
            inner += [value for value in values if isinstance(value, dict | list)]
        if not inner:
            return False
        level = inner
    for container in level:
        items = list(container.items()) if isinstance(container, dict) else list(enumerate(container))
        for key, value in items:
            if isinstance(value, dict | list):
                container[key] = None
                is_cut = True
    return is_cut


def _read(kind: Kind, api_version: str, data: bytes | msgspec.Raw) -> ApiObject | None:
    match kind:
        case "pod":
            pod = decoded(_pod, data)
            obj = msgspec.to_builtins(pod) if pod.spec.resource_claims else None
        case "node":
            obj = msgspec.to_builtins(decoded(_node, data))
            obj["metadata"].pop("annotations", None)
        case "namespace":
            obj = msgspec.to_builtins(decoded(_namespace, data))
        case "slice" if api_version == V1:
            found = decoded(_raw_object, data)
            obj = {"metadata": found.metadata, "spec": found.spec.copy()}  # else it keeps its whole page in memory
        case _:
            obj = decoded(_anything, data)
            if not isinstance(obj.get("metadata"), dict):
                raise msgspec.ValidationError("Expected `object` - at `$.metadata`")
    if obj is None:
        return None
    obj = to_v1(_named(kind, api_version, _without_noise(obj)))
    if kind == "slice" and api_version != V1:
        obj = {**obj, "spec": msgspec.Raw(msgspec.json.encode(obj.get("spec")))}
    return obj


def _problem(kind: Kind, obj: ApiObject) -> str:
    if kind not in ("slice", "class", "claim", "taintrule"):
        return ""  # of the others only what was read above is read later
    try:
        decode_json(msgspec.json.encode(obj))
    except DecodeError as error:
        return str(error)
    return ""


def _named(kind: Kind, api_version: str, obj: ApiObject) -> ApiObject:
    return {"apiVersion": api_version, "kind": API_KINDS[kind].name, **obj}


def _without_noise(obj: ApiObject) -> ApiObject:
    """Without what the API server keeps by itself when a PUT lacks it."""
    as_dict(obj.get("metadata")).pop("managedFields", None)
    return obj
