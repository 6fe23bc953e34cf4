"""Take in what clusters say. Facts only: nothing here ends a grant or decides anything."""

from typing import Any

import msgspec

from broker.world.federation import PROJECTED_LABEL
from broker.world.inventory import Placed
from broker.world.keys import ClaimKey, ClaimUid, ClusterId
from broker.world.records import Claim
from broker.world.world import World
from schemas.errors import UNREADABLE
from schemas.resource import AllocationResult, DeviceClass, DeviceTaintRule, Node, ResourceClaim, ResourceSlice
from schemas.wire.ledger import DeviceHold, canonical_amounts
from schemas.wire.state import ClaimState, ObjectName


def observe_claim(
    world: World, cluster: ClusterId, uid: ClaimUid, state: ClaimState, spec: ResourceClaim | None, stream_sequence: int
) -> Claim:
    """The claim is now as its agent says. spec: None when it could not be read; its allocation is read apart."""
    claim = world.claim(ClaimKey(cluster, uid))
    world.know(world.cluster(cluster), ObjectName("claim", uid), stream_sequence)
    claim.state_sequence = stream_sequence
    claim.first_sequence = claim.first_sequence or stream_sequence
    claim.spec, claim.error = spec, state.error
    claim.resource_version = state.resource_version
    claim.consumers = tuple(state.consumers[:_CONSUMERS_KEPT])
    claim.namespace_labels = state.namespace_labels
    claim.settled, claim.rejected = state.decision, state.rejected
    if spec is not None:
        claim.namespace, claim.name = spec.metadata.namespace, spec.metadata.name
        world.show(claim, allocation_holds(spec.status.allocation))
    else:
        fields = _loosely(state.claim)
        # As this message says, even where it says nothing: a start has no other.
        metadata = fields.get("metadata")
        says = metadata if isinstance(metadata, dict) else {}
        claim.namespace = str(says.get("namespace") or "")[:_NAME_LENGTH_MAX]
        claim.name = str(says.get("name") or "")[:_NAME_LENGTH_MAX]
        world.show(claim, _loose_holds(fields))
    return claim


def observe_unreadable_claim(
    world: World, cluster: ClusterId, uid: ClaimUid, error: str, stream_sequence: int
) -> Claim:
    """A claim's message that is not a ClaimState at all: the claim is there, and no more is known of it than before."""
    claim = world.claim(ClaimKey(cluster, uid))
    claim.state_sequence = stream_sequence
    claim.first_sequence = claim.first_sequence or stream_sequence
    claim.spec, claim.error = None, error
    world.know(world.cluster(cluster), ObjectName("claim", uid), stream_sequence)
    return claim


def observe_slice(world: World, cluster: ClusterId, name: str, resource_slice: ResourceSlice) -> Placed:
    """A ResourceSlice, new or changed; says where it belongs."""
    return world.inventory.put((cluster, name), resource_slice)


def observe_class(world: World, cluster: ClusterId, device_class: DeviceClass) -> None:
    """A DeviceClass, new or changed."""
    world.classes[cluster, device_class.metadata.name] = device_class


def observe_node(world: World, cluster: ClusterId, node: Node) -> None:
    """A Node, new or changed."""
    world.nodes.setdefault(cluster, {})[node.metadata.name] = node


def observe_taint_rule(world: World, cluster: ClusterId, rule: DeviceTaintRule) -> None:
    """A DeviceTaintRule, new or changed. What an agent has written there as the broker asked is no news to it."""
    is_ours = rule.metadata.labels.get(PROJECTED_LABEL) == "true"
    world.inventory.put_rule((cluster, rule.metadata.name), None if is_ours else rule)


def forget_object(world: World, cluster: ClusterId, name: ObjectName) -> None:
    """The object is gone, or what it says can no longer be believed. (Claims: World.forget_claim.)"""
    if name.kind == "slice":
        world.inventory.remove((cluster, name.key))
    elif name.kind == "class":
        world.classes.pop((cluster, name.key), None)
    elif name.kind == "taintrule":
        world.inventory.put_rule((cluster, name.key), None)
    elif name.kind == "node":
        world.nodes.get(cluster, {}).pop(name.key, None)


def allocation_holds(allocation: AllocationResult | None) -> tuple[DeviceHold, ...] | None:
    """What an allocation holds; two allocations are the same when this is equal. None: no allocation."""
    if allocation is None:
        return None
    return tuple(
        DeviceHold(
            request=result.request,
            driver=result.driver,
            pool=result.pool,
            device=result.device,
            share_id=result.share_id or "",
            admin_access=bool(result.admin_access),
            consumed_capacity=canonical_amounts(result.consumed_capacity),
        )
        for result in allocation.devices.results
    )


_NAME_LENGTH_MAX = 253
_CONSUMERS_KEPT = 4_096


class _LooseResult(msgspec.Struct, rename="camel"):
    request: str = ""
    driver: str = ""
    pool: str = ""
    device: str = ""
    share_id: str | None = msgspec.field(name="shareID", default=None)
    admin_access: bool | None = None
    consumed_capacity: Any = None


def _loosely(raw: msgspec.Raw) -> dict[str, Any]:
    try:
        fields = msgspec.json.decode(raw)
    except UNREADABLE:
        return {}
    return fields if isinstance(fields, dict) else {}


def _loose_holds(fields: dict[str, Any]) -> tuple[DeviceHold, ...] | None:
    """The devices in a claim that cannot be read as a whole: each result that makes sense by itself counts."""
    found: Any = fields
    for step in ("status", "allocation", "devices", "results"):
        found = found.get(step) if isinstance(found, dict) else None
    if not isinstance(found, list):
        return None
    holds = []
    for item in found:
        try:
            result = msgspec.convert(item, _LooseResult)
        except msgspec.ValidationError:
            continue
        amounts = result.consumed_capacity or {}
        is_readable = isinstance(amounts, dict)
        holds.append(
            DeviceHold(
                request=result.request,
                driver=result.driver,
                pool=result.pool,
                device=result.device,
                share_id=(result.share_id or "") if is_readable else "",  # nobody knows how much: all of it
                admin_access=bool(result.admin_access),
                consumed_capacity=canonical_amounts(amounts) if is_readable else {},
            )
        )
    return tuple(holds)
