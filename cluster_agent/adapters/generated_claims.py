"""Claims that are made for a pod from a ResourceClaimTemplate, as kube-controller-manager makes them.

Other than there the name's suffix is not random: the same files give the same names.
Source: handleClaim in pkg/controller/resourceclaim.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

from cluster_agent.ports import ApiObject

POD_CLAIM_NAME = "resource.kubernetes.io/pod-claim-name"
_BASE_LENGTH_MAX = 57  # a hyphen and five letters complete a DNS label
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # Kubernetes' own: no vowels, no words


def template_references(pod: ApiObject) -> Iterator[tuple[str, str]]:
    """Each of the pod's claims that is made from a template: its name in the pod, and the template's name."""
    spec = pod.get("spec")
    entries = spec.get("resourceClaims") if isinstance(spec, dict) else None
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            template = entry.get("resourceClaimTemplateName")
            if isinstance(template, str) and template:
                yield entry["name"], template


def generated_name(namespace: str, pod: str, pod_claim: str) -> str:
    """The name of the claim; of a long pod and a long claim name a part each is left away."""
    base = f"{pod}-{pod_claim}-"
    length = len(base)
    if length > _BASE_LENGTH_MAX:
        kept_pod, kept_claim = len(pod) * _BASE_LENGTH_MAX // length, len(pod_claim) * _BASE_LENGTH_MAX // length
        base = f"{pod[:kept_pod]}-{pod_claim[:kept_claim]}-"
    digest = hashlib.sha256(f"{namespace}/{pod}/{pod_claim}".encode()).digest()
    return base + "".join(_ALPHABET[byte % len(_ALPHABET)] for byte in digest[:5])


def generated_claim(template: ApiObject, pod: ApiObject, pod_claim: str) -> ApiObject:
    """The claim for `pod`, which has its UID already."""
    inner = template.get("spec")
    inner = inner if isinstance(inner, dict) else {}
    inherited = inner.get("metadata")
    inherited = inherited if isinstance(inherited, dict) else {}
    owner = pod["metadata"]
    namespace = owner["namespace"]
    annotations = inherited.get("annotations")
    metadata: dict[str, Any] = {
        "name": generated_name(namespace, owner["name"], pod_claim),
        "namespace": namespace,
        "annotations": {**(annotations if isinstance(annotations, dict) else {}), POD_CLAIM_NAME: pod_claim},
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "Pod", "name": owner["name"], "uid": owner["uid"], "controller": True}
        ],
    }
    if inherited.get("labels"):
        metadata["labels"] = inherited["labels"]
    return {
        "apiVersion": template.get("apiVersion"),
        "kind": "ResourceClaim",
        "metadata": metadata,
        "spec": inner.get("spec"),
    }
