"""DeviceTaintRules as the broker wants them in a member: what of a rule there has to be written.

kube-controller-manager acts upon a NoExecute rule by what claims have been allocated, whether the cluster has a
ResourceSlice of the device or not. A rule of that name that is not projected is somebody else's: it is left alone.
"""

from typing import Any

from cluster_agent.mirror.projected import PROJECTED_LABEL, Create, Delete, Foreign, Step, Update, is_projected
from cluster_agent.ports import ApiObject
from schemas.resource.untyped import as_dict
from schemas.resource.versions import V1
from schemas.wire.ledger import TaintRule

REASON_ANNOTATION = "dragoman.dev/reason"


def project_rule(name: str, rule: TaintRule | None, found: ApiObject | None) -> Step | None:
    """What to do so that the member has the rule as it should be; None: it has.

    rule: as the broker wants it; None: there is to be none. found: what the member has under the name.
    """
    if found is None:
        return None if rule is None else Create(_written({"name": name}, rule, ""))
    if not is_projected(found):
        return None if rule is None else Foreign(name)
    metadata, spec = as_dict(found.get("metadata")), as_dict(found.get("spec"))
    if metadata.get("deletionTimestamp"):
        return None  # its end is told, and then it is made anew
    if rule is None:
        return Delete(found)
    # The API server sets the time when it is not given; pods that tolerate the taint for a while count from it.
    wanted = _written(metadata, rule, as_dict(spec.get("taint")).get("timeAdded", ""))
    return None if (wanted["metadata"], wanted["spec"]) == (metadata, spec) else Update(wanted)


def _written(metadata: dict[str, Any], rule: TaintRule, time_added: str) -> ApiObject:
    """The rule with this metadata, and what belongs to others in it."""
    labels = {**as_dict(metadata.get("labels")), PROJECTED_LABEL: "true"}
    annotations = {**as_dict(metadata.get("annotations")), REASON_ANNOTATION: rule.reason}
    selector = {"driver": rule.driver, "pool": rule.pool, "device": rule.device}
    taint = {"key": rule.key, "value": rule.value, "effect": rule.effect, "timeAdded": time_added}
    return {
        "apiVersion": V1,
        "kind": "DeviceTaintRule",
        "metadata": {**metadata, "labels": labels, "annotations": annotations},
        "spec": {"deviceSelector": _set(selector), "taint": _set(taint)},
    }


def _set(fields: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in fields.items() if value}
