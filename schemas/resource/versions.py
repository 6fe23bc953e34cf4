"""Older versions of the API, brought to the form of v1.

Works on builtins, before types: what does not have the expected form is left as it is, for `decode` to complain about.
v1beta2 differs from v1 in nothing but its name; in v1beta1 a request's fields stand in the request itself, a device's
under `basic`, and a capacity may be the bare quantity.
"""

import re
from collections.abc import Callable
from typing import Any

from schemas.errors import FieldError

GROUP = "resource.k8s.io"
V1 = f"{GROUP}/v1"
_V1BETA1 = f"{GROUP}/v1beta1"

_FIELDS_OF_EXACTLY: tuple[str, ...] = (
    "deviceClassName",
    "selectors",
    "allocationMode",
    "count",
    "adminAccess",
    "tolerations",
    "capacity",
    "derivedAttributes",
)
_REQUESTS_BY_KIND: dict[str, tuple[str, ...]] = {
    "ResourceClaim": ("spec", "devices", "requests"),
    "ResourceClaimTemplate": ("spec", "spec", "devices", "requests"),
}
_DEVICES: tuple[str, ...] = ("spec", "devices")


def to_v1(raw: dict[str, Any]) -> dict[str, Any]:
    """The same object in the form of resource.k8s.io/v1; the argument is not changed."""
    api_version, kind = raw.get("apiVersion"), raw.get("kind")
    if not isinstance(api_version, str) or not api_version.startswith(GROUP + "/") or api_version == V1:
        return raw
    if api_version == _V1BETA1 and isinstance(kind, str):
        if kind in _REQUESTS_BY_KIND:
            raw = _changed(raw, _REQUESTS_BY_KIND[kind], _each(_request_to_v1))
        elif kind == "ResourceSlice":
            raw = _changed(_changed(raw, ("spec",), _slice_spec_to_v1), _DEVICES, _each(_device_to_v1))
    return {**raw, "apiVersion": V1}


def claim_as(api_version: str, claim: dict[str, Any]) -> dict[str, Any]:
    """A claim in the form of v1, in that of another version, to be written to an API server that does not have v1."""
    if api_version == _V1BETA1:
        claim = _changed(claim, _REQUESTS_BY_KIND["ResourceClaim"], _each(_request_as_v1beta1))
    return {**claim, "apiVersion": api_version}


def path_as_written(raw: dict[str, Any], path: str) -> str:
    """The path of a field in the words of the object as it was written, from its path in the form of v1."""
    if raw.get("apiVersion") != _V1BETA1:
        return path
    if raw.get("kind") != "ResourceSlice":
        return re.sub(r"^((?:spec\.)?spec\.devices\.requests\[\d+\])\.exactly(?=\.|$)", r"\1", path)
    path = re.sub(r"^(spec\.devices\[\d+\])\.(?!name\b)", r"\1.basic.", path)
    value = re.match(r"spec\.devices\[(\d+)\]\.basic\.capacity\[(.+)\]\.value$", path)
    if value:
        device = _items(raw, _DEVICES)[int(value[1])]
        if not isinstance(device["basic"]["capacity"][value[2]], dict):
            return path.removesuffix(".value")
    return path


def field_of_another_version(raw: dict[str, Any]) -> FieldError | None:
    """The first field that another version of the API has in its place, where what this version has is missing.

    An API server drops such a field without a word, and then says that something is missing.
    """
    api_version, kind = str(raw.get("apiVersion")), str(raw.get("kind"))
    is_v1beta1 = api_version == _V1BETA1
    steps = _DEVICES if kind == "ResourceSlice" else _REQUESTS_BY_KIND.get(kind)
    if steps is None or not api_version.startswith(GROUP + "/"):
        return None
    if kind == "ResourceSlice":
        flat: tuple[str, ...] = ("attributes", "capacity")
        nested, place = ("basic",), "`basic`"
    else:
        flat = _FIELDS_OF_EXACTLY
        nested, place = ("exactly",), "`exactly`"
    is_nested = is_v1beta1 == (kind == "ResourceSlice")
    expected, misplaced = (nested, flat) if is_nested else (flat, nested)
    for index, item in enumerate(_items(raw, steps)):
        if not isinstance(item, dict):
            continue
        path = f"{'.'.join(steps)}[{index}]"
        if is_v1beta1 and is_nested and not isinstance(item.get("basic"), dict | None):
            return FieldError(f"{path}.basic", f"expected an object, found {item['basic']!r}")
        if any(item.get(name) is not None for name in (*expected, "firstAvailable")):
            continue
        for name in misplaced:
            if item.get(name) is not None:
                where = f"under {place}" if is_nested else f"in the entry itself, without {place}"
                return FieldError(
                    f"{path}.{name}", f"{api_version} has no such field here; it expects the fields {where}"
                )
    return None


def _items(raw: Any, steps: tuple[str, ...]) -> list[Any]:
    for step in steps:
        raw = raw.get(step) if isinstance(raw, dict) else None
    return raw if isinstance(raw, list) else []


def _changed(raw: Any, steps: tuple[str, ...], change: Callable[[Any], Any]) -> Any:
    """A copy of `raw` with the value at the end of `steps` changed, if there is one."""
    if not steps:
        return change(raw)
    if not isinstance(raw, dict) or raw.get(steps[0]) is None:
        return raw
    return {**raw, steps[0]: _changed(raw[steps[0]], steps[1:], change)}


def _each(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Any], Any]:
    def change_all(items: Any) -> Any:
        if not isinstance(items, list):
            return items
        return [change(item) if isinstance(item, dict) else item for item in items]

    return change_all


def _request_to_v1(request: dict[str, Any]) -> dict[str, Any]:
    exactly = {name: request[name] for name in _FIELDS_OF_EXACTLY if request.get(name) is not None}
    rest = {name: value for name, value in request.items() if name not in _FIELDS_OF_EXACTLY}
    return {**rest, "exactly": exactly} if exactly else rest


def _request_as_v1beta1(request: dict[str, Any]) -> dict[str, Any]:
    exactly = request.get("exactly")
    if not isinstance(exactly, dict):
        return request
    return {**{name: value for name, value in request.items() if name != "exactly"}, **exactly}


def _slice_spec_to_v1(spec: Any) -> Any:
    # v1beta1 has no pointers here: "" and false mean absent.
    if not isinstance(spec, dict):
        return spec
    empty = {"nodeName": "", "allNodes": False}
    return {name: value for name, value in spec.items() if name not in empty or value != empty[name]}


def _device_to_v1(device: dict[str, Any]) -> dict[str, Any]:
    basic = device.get("basic")
    if not isinstance(basic, dict):
        return device
    basic = _changed(basic, ("capacity",), _capacities_to_v1)
    return {**{name: value for name, value in device.items() if name != "basic"}, **basic}


def _capacities_to_v1(capacities: Any) -> Any:
    if not isinstance(capacities, dict):
        return capacities
    return {
        name: capacity if capacity is None or isinstance(capacity, dict) else {"value": capacity}
        for name, capacity in capacities.items()
    }
