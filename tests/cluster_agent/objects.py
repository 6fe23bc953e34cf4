"""API objects as plain dicts, for tests of what stands between the agent and its cluster."""

from typing import Any

from cluster_agent.ports import ApiObject

TIME = "2026-01-01T00:00:00Z"
PROTECTED = "resource.kubernetes.io/delete-protection"
HELD = "dragoman.dev/held"


def a_raw_claim(name: str = "c", *, namespace: str = "default", finalizers: list[str] | None = None) -> ApiObject:
    """A claim with the request `gpu`."""
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    if finalizers:
        metadata["finalizers"] = finalizers
    request = {"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com"}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": metadata,
        "spec": {"devices": {"requests": [request]}},
    }


def a_raw_pod(
    name: str = "p", *, namespace: str = "default", phase: str = "", template: str = "", claim: str = ""
) -> ApiObject:
    """A pod; with `template`, one that needs the claim `gpu` made from it; with `claim`, one that needs that claim."""
    pod: ApiObject = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"containers": [{"name": "main", "image": "registry.example/main"}]},
    }
    if template:
        pod["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": template}]
    if claim:
        pod["spec"]["resourceClaims"] = [{"name": "gpu", "resourceClaimName": claim}]
    if phase:
        pod["status"] = {"phase": phase}
    return pod


def a_raw_template(name: str = "t", *, namespace: str = "default", metadata: ApiObject | None = None) -> ApiObject:
    """A template for claims like `a_raw_claim`."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"metadata": metadata or {}, "spec": a_raw_claim()["spec"]},
    }


def an_allocation(device: str = "gpu-0", request: str = "gpu") -> ApiObject:
    """One device of the pool `rack7`."""
    result = {"request": request, "driver": "gpu.example.com", "pool": "rack7", "device": device}
    return {"devices": {"results": [result]}, "allocationTimestamp": TIME}


def with_status(claim: ApiObject, **status: Any) -> ApiObject:
    """The claim with another status."""
    return {**claim, "status": status}


def with_metadata(obj: ApiObject, **metadata: Any) -> ApiObject:
    """The object with some metadata changed."""
    return {**obj, "metadata": {**obj["metadata"], **metadata}}


def consumer_of(pod: ApiObject) -> ApiObject:
    """The entry of reservedFor for a pod that has its UID."""
    return {"resource": "pods", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}


def a_raw_slice(name: str = "s", *, devices: int = 1, pool: str = "") -> ApiObject:
    """A slice that is a pool of its own, on every node."""
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {"name": name},
        "spec": {
            "driver": "gpu.example.com",
            "pool": {"name": pool or name, "generation": 1, "resourceSliceCount": 1},
            "allNodes": True,
            "devices": [{"name": f"gpu-{number}"} for number in range(devices)],
        },
    }
