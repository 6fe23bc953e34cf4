"""Which pods use which claims, and the labels of their namespaces."""

from typing import Any

from cluster_agent.mirror.rejections import refusal_of
from cluster_agent.mirror.tracked import metadata_of
from schemas.resource.untyped import as_dict, as_text, dicts_in
from schemas.wire.state import Consumer

ClaimName = tuple[str, str]  # namespace and name


class Consumers:
    """Pods by the claims that they name."""

    def __init__(self) -> None:
        self._pods: dict[str, Consumer] = {}
        self._refusals: dict[str, str] = {}  # what kube-scheduler says of pods that it finds no node for
        self._claims_of_pod: dict[str, set[ClaimName]] = {}
        self._pods_of_claim: dict[ClaimName, set[str]] = {}
        self._namespaces: dict[str, dict[str, str]] = {}

    def see(self, kind: str, obj: dict[str, Any]) -> set[ClaimName] | str:
        """A pod or a namespace as it is now; returns the claims it concerns, or the namespace's name: all in it."""
        metadata = metadata_of(obj)
        if kind == "namespace":
            name = str(metadata.get("name", ""))
            labels = as_dict(metadata.get("labels"))
            self._namespaces[name] = {key: value for key, value in labels.items() if isinstance(value, str)}
            return name
        uid = str(metadata.get("uid", ""))
        before = self._drop(uid)
        claims = _claims_named(obj)
        self._pods[uid] = consumer_of(obj)
        refusal = refusal_of(obj)
        if refusal is not None:
            self._refusals[uid] = refusal
        self._claims_of_pod[uid] = claims
        for claim in claims:
            self._pods_of_claim.setdefault(claim, set()).add(uid)
        return before | claims

    def lose(self, kind: str, obj: dict[str, Any]) -> set[ClaimName] | str:
        """A pod or a namespace is gone; returns the claims it concerned."""
        metadata = metadata_of(obj)
        if kind == "namespace":
            name = str(metadata.get("name", ""))
            self._namespaces.pop(name, None)
            return name
        return self._drop(str(metadata.get("uid", "")))

    def forget(self, kind: str) -> None:
        """A new list of all pods, or all namespaces, follows."""
        if kind == "namespace":
            self._namespaces.clear()
        else:
            self._pods.clear()
            self._refusals.clear()
            self._claims_of_pod.clear()
            self._pods_of_claim.clear()

    def of(self, claim: dict[str, Any]) -> list[Consumer]:
        """The pods that use a claim, by UID."""
        metadata = metadata_of(claim)
        uids = set(self._pods_of_claim.get((str(metadata.get("namespace", "")), str(metadata.get("name", ""))), ()))
        owners = dicts_in(metadata.get("ownerReferences"))
        uids |= {as_text(owner.get("uid")) for owner in owners if owner.get("kind") == "Pod"} & self._pods.keys()
        return [self._pods[uid] for uid in sorted(uids)]

    def claims_of(self, pod: str) -> set[ClaimName]:
        """The claims that a pod uses, by its UID; without one that is still to be made from a template."""
        return self._claims_of_pod.get(pod, set())

    @property
    def refusals(self) -> dict[str, str]:
        """What kube-scheduler says of pods that are Unschedulable, by UID."""
        return self._refusals

    def namespace_labels(self, namespace: str) -> dict[str, str]:
        """The labels of a namespace; {} where it is not known."""
        return self._namespaces.get(namespace, {})

    def _drop(self, uid: str) -> set[ClaimName]:
        claims = self._claims_of_pod.pop(uid, set())
        self._pods.pop(uid, None)
        self._refusals.pop(uid, None)
        for claim in claims:
            self._pods_of_claim[claim].discard(uid)
            if not self._pods_of_claim[claim]:
                del self._pods_of_claim[claim]
        return claims


def consumer_of(pod: dict[str, Any]) -> Consumer:
    """What matters of a pod."""
    metadata = metadata_of(pod)
    spec, status = as_dict(pod.get("spec")), as_dict(pod.get("status"))
    return Consumer(
        uid=str(metadata.get("uid", "")),
        name=str(metadata.get("name", "")),
        scheduled=bool(spec.get("nodeName")),
        terminal=status.get("phase") in ("Succeeded", "Failed"),
        deleting=metadata.get("deletionTimestamp") is not None,
    )


def _claims_named(pod: dict[str, Any]) -> set[ClaimName]:
    namespace = str(metadata_of(pod).get("namespace", ""))
    named = dicts_in(as_dict(pod.get("spec")).get("resourceClaims"))
    made = dicts_in(as_dict(pod.get("status")).get("resourceClaimStatuses"))
    names = {as_text(each.get("resourceClaimName")) for each in [*named, *made]}
    return {(namespace, name) for name in names if name}
