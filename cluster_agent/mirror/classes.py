"""What the brokered classes of the hub are like in a member: what of a class there has to be written.

A projected class selects nothing, so that the member's own scheduler finds no device for it; the broker decides by the
hub's. People read the selectors that count in an annotation. A class of that name that is not projected is somebody
else's: it is left alone.
"""

from typing import Any

import msgspec

from cluster_agent.mirror.projected import PROJECTED_LABEL, Create, Delete, Foreign, Step, Update, is_projected
from cluster_agent.ports import ApiObject
from schemas.resource.untyped import as_dict
from schemas.resource.versions import V1

BROKERED_LABEL = "dragoman.dev/brokered"
SELECTORS_ANNOTATION = "dragoman.dev/selectors"
ORIGINAL_ANNOTATION = "dragoman.dev/original"  # of a class that was taken over: what it was before
LABELS = {BROKERED_LABEL: "true", PROJECTED_LABEL: "true"}


def project(name: str, spec: dict[str, Any] | None, found: ApiObject | None) -> Step | None:
    """What to do so that the member has the class as it should be; None: it has.

    spec: of the hub's brokered class; None: there is none any more.
    found: what the member has under the name.
    """
    if found is None:
        return None if spec is None else Create(_written({"name": name}, spec))
    metadata = as_dict(found.get("metadata"))
    if not is_projected(found):
        return None if spec is None else Foreign(name)
    if metadata.get("deletionTimestamp"):
        return None  # its end is told, and then it is made anew
    if spec is None:
        original = give_back(found)
        if original is None and ORIGINAL_ANNOTATION in as_dict(metadata.get("annotations")):
            return Foreign(name)  # somebody has spoilt what we kept: not ours to make up
        return Delete(found) if original is None else Update(original)
    wanted = _written(metadata, spec)
    if wanted["metadata"] == metadata and wanted["spec"] == found.get("spec"):
        return None
    return Update(wanted)


def take_over(found: ApiObject) -> ApiObject:
    """A class that is in use, closed to the member's own scheduler from now on; it keeps what it was."""
    metadata, spec = as_dict(found.get("metadata")), as_dict(found.get("spec"))
    original = {key: metadata.get(key, {}) for key in ("labels", "annotations")} | {"spec": spec}
    closed = _written(metadata, spec)
    closed["metadata"]["annotations"][ORIGINAL_ANNOTATION] = msgspec.json.encode(original).decode()
    return closed


def give_back(found: ApiObject) -> ApiObject | None:
    """A class that was taken over, as it was before; None if we made it ourselves, or if that cannot be read."""
    metadata = as_dict(found.get("metadata"))
    kept = as_dict(metadata.get("annotations")).get(ORIGINAL_ANNOTATION)
    if kept is None:
        return None
    try:
        original = msgspec.json.decode(kept, type=_Original)
    except msgspec.MsgspecError:
        return None
    return {
        "apiVersion": V1,
        "kind": "DeviceClass",
        "metadata": {**metadata, "labels": original.labels, "annotations": original.annotations},
        "spec": original.spec,
    }


class _Original(msgspec.Struct):
    labels: dict[str, str]
    annotations: dict[str, str]
    spec: dict[str, Any]


def _written(metadata: dict[str, Any], spec: dict[str, Any]) -> ApiObject:
    """The class with this metadata, and what belongs to others in it."""
    expressions = [as_dict(each.get("cel")).get("expression", "") for each in spec.get("selectors", [])]
    annotations = {**as_dict(metadata.get("annotations")), SELECTORS_ANNOTATION: "\n".join(expressions)}
    labels = {**as_dict(metadata.get("labels")), **LABELS}
    # No extendedResourceName: for it kube-scheduler makes claims by itself, once it has found a device.
    closed: dict[str, Any] = {"selectors": [{"cel": {"expression": "false"}}]}
    if spec.get("config"):
        closed["config"] = spec["config"]
    return {
        "apiVersion": V1,
        "kind": "DeviceClass",
        "metadata": {**metadata, "labels": labels, "annotations": annotations},
        "spec": closed,
    }
