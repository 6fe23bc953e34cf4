"""Manifests as people write them: plain objects, right or wrong, and the files that hold them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

API = "resource.k8s.io/v1"
CLASS = "gpu"
DRIVER = "gpu.example.com"
FABRIC_LABEL = "dragoman.dev/fabric"

Manifest = dict[str, Any]


def a_manifest(kind: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> Manifest:
    """An object of resource.k8s.io/v1."""
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name, **metadata}, "spec": dict(spec)}


def class_manifest(name: str = CLASS, *selectors: str, driver: str = DRIVER) -> Manifest:
    """A class of all devices of a driver, or of those that the selectors say."""
    expressions = selectors or (f'device.driver == "{driver}"',)
    return a_manifest("DeviceClass", name, {"selectors": [{"cel": {"expression": each}} for each in expressions]})


def slice_manifest(
    devices: Sequence[str | Manifest],
    *,
    name: str = "rack",
    pool: str = "rack",
    driver: str = DRIVER,
    fabric: str = "",
    generation: int = 1,
    slices: int = 1,
) -> Manifest:
    """A slice of devices that every node reaches. fabric: declared by label."""
    spec = {
        "driver": driver,
        "pool": {"name": pool, "generation": generation, "resourceSliceCount": slices},
        "allNodes": True,
        "devices": [{"name": each} if isinstance(each, str) else each for each in devices],
    }
    return a_manifest("ResourceSlice", name, spec, **({"labels": {FABRIC_LABEL: fabric}} if fabric else {}))


def claim_manifest(
    name: str, *selectors: str, namespace: str = "default", device_class: str = CLASS, **exactly: Any
) -> Manifest:
    """A claim for one device, `gpu`, unless `exactly` says otherwise."""
    request = {"deviceClassName": device_class, **exactly}
    if selectors:
        request["selectors"] = [{"cel": {"expression": each}} for each in selectors]
    devices = {"requests": [{"name": "gpu", "exactly": request}]}
    return a_manifest("ResourceClaim", name, {"devices": devices}, namespace=namespace)


def holding(claim: Manifest, *devices: str, pool: str = "rack", driver: str = DRIVER) -> Manifest:
    """The claim with an allocation of these devices in its status."""
    results = [{"request": "gpu", "driver": driver, "pool": pool, "device": each} for each in devices]
    return {**claim, "status": {"allocation": {"devices": {"results": results}}}}


def write_manifests(path: Path, *documents: Manifest | str) -> None:
    """A file of manifests; text is written as it is. It appears at once, never half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [each if isinstance(each, str) else yaml.safe_dump(each, sort_keys=False) for each in documents]
    part = path.with_name(f".{path.name}.part")
    part.write_text("---\n".join(text if text.endswith("\n") else f"{text}\n" for text in texts))
    part.rename(path)
