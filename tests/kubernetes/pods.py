"""What became of a pod, told by what kube-scheduler wrote into it."""

from collections.abc import Callable

from tests.controlplane.api import Object


def is_bound(pod: Object) -> bool:
    """It has a node."""
    return bool(pod["spec"].get("nodeName"))


def unscheduled(reason: str, text: str = "") -> Callable[[Object], bool]:
    """It was tried and not scheduled, for this reason, such as "Unschedulable", with this in the message."""

    def holds(pod: Object) -> bool:
        conditions = [each for each in pod.get("status", {}).get("conditions", []) if each["type"] == "PodScheduled"]
        return any(each.get("reason") == reason and text in each.get("message", "") for each in conditions)

    return holds
