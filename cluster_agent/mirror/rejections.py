"""Whether the cluster can use what a claim was given. Pure: what is seen and how long ago, no clock.

Three things say that it cannot: its pod stays Unschedulable although the claim is allocated; a device reports that
binding has failed; a device does not report in time that it is bound (KEP-5007). Where kube-scheduler clears the
allocation by itself there is nothing to be reported: the broker sees it go while its pod still waits.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from schemas.resource.untyped import allocation_of, as_dict, as_text, dicts_in, results_of, texts_in
from schemas.wire.state import Consumer


class Patience(msgspec.Struct, frozen=True):
    """How long a cluster may take to use an allocation.

    unschedulable_ms: a pod may stay Unschedulable for so long with its claim allocated. kube-scheduler tries a pod
    again at once when its claim changes, unless it is backing off (10 s at most) or has thousands to do.
    binding_ms: from status.allocation.allocationTimestamp until all binding conditions are True; as kube-scheduler's
    own bindingTimeout.
    """

    unschedulable_ms: int = 30_000
    binding_ms: int = 600_000


PATIENCE = Patience()
# So many times as long where the pod lacks another claim, too. Then nothing is wrong with this one, and to give it back
# soon would only make it less likely that both are there together; but two pods that wait for each other's must not do
# so for ever.
LACKING_ANOTHER = 10


class Rejection(NamedTuple):
    """reason: Unschedulable, BindingFailed or BindingTimedOut."""

    reason: str
    message: str


class Binding(NamedTuple):
    """How far the devices of an allocation are. failed: what has failed, "" if nothing; pending: what is not True."""

    failed: str
    pending: tuple[str, ...]


def binding_of(claim: dict[str, Any]) -> Binding:
    """What the claim's status.devices say of the binding conditions that its allocation names."""
    status = as_dict(claim.get("status"))
    reported = {_device(each): dicts_in(each.get("conditions")) for each in dicts_in(status.get("devices"))}
    failed, pending = "", []
    for result in results_of(allocation_of(claim)):
        bound, failures = (texts_in(result.get(each)) for each in ("bindingConditions", "bindingFailureConditions"))
        if not bound:
            continue
        name = "/".join(_device(result)[:3])
        conditions = {as_text(each.get("type")): each for each in reported.get(_device(result), ())}
        for kind in failures:
            if not failed and _is_true(conditions.get(kind)):
                failed = f"device {name} reports {kind}: {_words(conditions[kind])}"
        pending += [f"{kind} of {name}" for kind in bound if not _is_true(conditions.get(kind))]
    return Binding(failed, tuple(pending))


def binding_problem(claim: dict[str, Any], binding: Binding, now_ms: int, patience: Patience) -> Rejection | None:
    """Binding has failed, or was not done in time."""
    if binding.failed:
        return Rejection("BindingFailed", binding.failed)
    since_ms = _allocated_ms(claim)
    if binding.pending and since_ms is not None and now_ms - since_ms >= patience.binding_ms:
        text = f"not True {patience.binding_ms // 1000} s after the allocation: {', '.join(binding.pending)}"
        return Rejection("BindingTimedOut", text)
    return None


def unschedulable(consumers: Sequence[Consumer], refusals: dict[str, str]) -> Rejection | None:
    """No pod runs with the claim, and kube-scheduler finds no node for one that waits.

    refusals: what it says of pods that are Unschedulable, by UID.
    """
    if any(pod.is_running for pod in consumers):
        return None
    refused = next((pod for pod in consumers if pod.is_live and pod.uid in refusals), None)
    return None if refused is None else Rejection("Unschedulable", f"pod {refused.name}: {refusals[refused.uid]}")


def refusal_of(pod: dict[str, Any]) -> str | None:
    """What kube-scheduler says of a pod for which it finds no node; None where it does not say so."""
    for condition in dicts_in(as_dict(pod.get("status")).get("conditions")):
        if condition.get("type") == "PodScheduled":
            is_refused = condition.get("status") == "False" and condition.get("reason") == "Unschedulable"
            return as_text(condition.get("message")) if is_refused else None
    return None


def _device(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    driver, pool, device, share = (as_text(entry.get(key)) for key in ("driver", "pool", "device", "shareID"))
    return driver, pool, device, share


def _is_true(condition: dict[str, Any] | None) -> bool:
    return condition is not None and condition.get("status") == "True"


def _words(condition: dict[str, Any]) -> str:
    words = (as_text(condition.get("reason")), as_text(condition.get("message")))
    return ": ".join(each for each in words if each) or "no reason given"


def _allocated_ms(claim: dict[str, Any]) -> int | None:
    """When it was allocated, Unix milliseconds; None where that cannot be read: then nothing is ever too late."""
    text = as_text(as_dict(allocation_of(claim)).get("allocationTimestamp"))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return int(at.timestamp() * 1000) if at.tzinfo is not None else None
