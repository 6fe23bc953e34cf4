"""What the API server sends, as the agent's port hands it on: in the form of v1, without what nobody here reads.

A slice's spec stays as bytes, for a thousand slices of 128 devices are 25 MB of JSON and ten times that as dicts. Of
pods and nodes little is kept: a cluster may have a hundred thousand of the former, and the latter change all the time.
"""

from typing import Any

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


_raw_object = msgspec.json.Decoder(_RawObject)
_pod = msgspec.json.Decoder(_Pod)
_node = msgspec.json.Decoder(_Node)
_namespace = msgspec.json.Decoder(_Metadata)
_anything = msgspec.json.Decoder(dict[str, Any])


def read_object(kind: Kind, api_version: str, data: bytes | msgspec.Raw) -> tuple[ApiObject, str] | None:
    """An object, and why it cannot be read ("" if it can); None for a pod that uses no claims.

    api_version: in which it was asked for; objects in a list do not say it themselves.
    Raises: msgspec.DecodeError where there is no object with metadata at all.
    """
    try:
        obj = _read(kind, api_version, data)
    except msgspec.ValidationError as error:
        obj = _anything.decode(data)
        if not isinstance(obj.get("metadata"), dict):
            raise
        return _named(kind, api_version, _without_noise(obj)), str(error)
    return None if obj is None else (obj, _problem(kind, obj))


def _read(kind: Kind, api_version: str, data: bytes | msgspec.Raw) -> ApiObject | None:
    match kind:
        case "pod":
            pod = _pod.decode(data)
            obj = msgspec.to_builtins(pod) if pod.spec.resource_claims else None
        case "node":
            obj = msgspec.to_builtins(_node.decode(data))
            obj["metadata"].pop("annotations", None)
        case "namespace":
            obj = msgspec.to_builtins(_namespace.decode(data))
        case "slice" if api_version == V1:
            found = _raw_object.decode(data)
            obj = {"metadata": found.metadata, "spec": found.spec.copy()}  # else it keeps its whole page in memory
        case _:
            obj = _anything.decode(data)
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
