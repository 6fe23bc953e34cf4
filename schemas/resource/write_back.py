"""Writing a changed object back without losing what we do not know.

A PUT replaces the whole object, so every field that a newer API or another client put there must go along.
"""

from typing import Any

import msgspec

from schemas.resource import (
    AllocatedDeviceStatus,
    Condition,
    Container,
    Device,
    DeviceRequest,
    DeviceRequestAllocationResult,
    DeviceSubRequest,
    OwnerReference,
    PodResourceClaim,
    PodResourceClaimStatus,
    PodSchedulingGate,
    Resource,
    ResourceClaimConsumerReference,
)
from schemas.resource.decode import decode_object
from schemas.resource.versions import to_v1

# What makes two entries of a list the same one although they differ; the API's own list map keys where it has them.
_IDENTITY: dict[type, tuple[str, ...]] = {
    AllocatedDeviceStatus: ("driver", "pool", "device", "share_id"),
    Condition: ("type_",),
    Container: ("name",),
    Device: ("name",),
    DeviceRequest: ("name",),
    DeviceRequestAllocationResult: ("request", "driver", "pool", "device", "share_id"),
    DeviceSubRequest: ("name",),
    OwnerReference: ("uid",),
    PodResourceClaim: ("name",),
    PodResourceClaimStatus: ("name",),
    PodSchedulingGate: ("name",),
    ResourceClaimConsumerReference: ("uid",),
}


def write_back(original: dict[str, Any], obj: Resource) -> dict[str, Any]:
    """`obj` as builtins in the form of v1, with everything of `original` that was not changed, known to us or not.

    original: what `obj` was decoded from before it was changed; not modified, but the result shares parts with it.
    What did not change is taken over as it was written. In what changed, unknown fields are kept at every depth; an
    entry of a list takes them from the entry that is equal, or else has the same identity (a condition's type, a
    device's name ...), wherever that stands. What was removed takes its unknown fields with it.
    Raises: DecodeError if `original` cannot be decoded.
    """
    merged: dict[str, Any] = _merged(to_v1(original), decode_object(original), obj)
    return merged


def _merged(raw: Any, old: Any, new: Any) -> Any:
    if old == new:
        return raw
    if isinstance(new, msgspec.Struct) and type(old) is type(new) and isinstance(raw, dict):
        return _merged_struct(raw, old, new)
    if isinstance(new, dict) and isinstance(old, dict) and isinstance(raw, dict):
        return {key: _merged(raw[key], old[key], value) if key in old else _plain(value) for key, value in new.items()}
    if isinstance(new, list) and isinstance(old, list) and isinstance(raw, list):
        return _merged_list(raw, old, new)
    return _plain(new)


def _merged_struct(raw: dict[str, Any], old: msgspec.Struct, new: msgspec.Struct) -> dict[str, Any]:
    merged = dict(raw)
    written = _plain(new)
    for field in msgspec.structs.fields(new):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after:
            continue
        if field.encode_name in written:
            merged[field.encode_name] = _merged(raw.get(field.encode_name), before, after)
        else:
            merged.pop(field.encode_name, None)
    return merged


def _merged_list(raw: list[Any], old: list[Any], new: list[Any]) -> list[Any]:
    unused = list(range(len(old)))
    origins: list[int | None] = [None] * len(new)
    for is_origin in (_is_equal, _is_same):  # an equal entry before one that only has the same identity
        for position, after in enumerate(new):
            if origins[position] is None:
                origin = next((index for index in unused if is_origin(old[index], after)), None)
                if origin is not None:
                    unused.remove(origin)
                    origins[position] = origin
    return [
        _plain(after) if origin is None else _merged(raw[origin], old[origin], after)
        for origin, after in zip(origins, new, strict=True)
    ]


def _is_equal(old: Any, new: Any) -> bool:
    return bool(old == new)


def _is_same(old: Any, new: Any) -> bool:
    names = _IDENTITY.get(type(new), ())
    return bool(names) and all(getattr(old, name) == getattr(new, name) for name in names)


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)
