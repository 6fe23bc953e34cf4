"""The world: what the broker believes, with the indexes that keep a decision from scanning it.

Two kinds of facts meet here. What clusters say (`observe_*`, from DRA_STATE) can be read again at any start. What was
decided (`fold.apply_entry`, from the ledger) changes only by ledger entries, so that folding the ledger gives it back.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from broker.world.federation import Federation
from broker.world.inventory import Inventory
from broker.world.keys import ClaimKey, ClusterId, DeviceKey, PoolKey, cluster_scope, fabric_scope
from broker.world.records import Claim, Cluster, Grant
from broker.world.usage import InUse, use_of
from schemas.resource import DeviceClass, DeviceTaint, Node
from schemas.wire.ledger import DeviceHold, DeviceTainted
from schemas.wire.state import ObjectName, add_to_digest, object_digest


@dataclass(slots=True)
class World:
    """Everything that a decision may depend on.

    position: DRA_STATE's sequence up to which every message was applied.
    ledger_last: the last ledger sequence that is folded in.
    segment, checkpoint_last: the ledger's segment, and the last entry of the checkpoint that opened it.
    is_closed: the last entry is SegmentClosed; nothing follows before the next segment is open. is_abandoned: the next
    one does not go on from this world.
    decides_from: nothing is decided before DRA_STATE is applied up to there; see LeaderElected.
    in_use: who has a device and how much of it, by grant or by what its claim's status shows; keys are exactly the
    devices that are not free.
    """

    federation: Federation
    inventory: Inventory = field(init=False)
    clusters: dict[ClusterId, Cluster] = field(default_factory=dict)
    claims: dict[ClaimKey, Claim] = field(default_factory=dict)
    classes: dict[tuple[ClusterId, str], DeviceClass] = field(default_factory=dict)
    nodes: dict[ClusterId, dict[str, Node]] = field(default_factory=dict)
    position: int = 0
    ledger_last: int = 0
    segment: int = 0
    checkpoint_last: int = 0
    is_closed: bool = False
    is_abandoned: bool = False
    decides_from: int = 0
    leader_epoch: int = 0
    in_use: InUse = field(default_factory=InUse)
    granted: dict[DeviceKey, list[Grant]] = field(default_factory=dict)  # live grants by device
    shown: dict[DeviceKey, set[ClaimKey]] = field(default_factory=dict)  # claims whose status shows the device
    told_classes: dict[tuple[ClusterId, str], dict[str, Any] | None] = field(default_factory=dict)  # to members
    taints: dict[DeviceKey, dict[str, DeviceTainted]] = field(default_factory=dict)  # by key, as said; never empty
    _shown_holds: dict[tuple[DeviceKey, ClaimKey], list[DeviceHold]] = field(default_factory=dict)  # of `shown`

    def __post_init__(self) -> None:
        self.inventory = Inventory(self.federation)
        for name in self.federation.clusters:
            self.cluster(name)

    def cluster(self, name: ClusterId) -> Cluster:
        """The record of a cluster, made when it is first heard of."""
        record = self.clusters.get(name)
        if record is None:
            record = self.clusters[name] = Cluster(name)
        return record

    def all_heard(self) -> bool:
        """Every cluster of the config has finished a full sync, or need not."""
        return not any(self.cluster(name).is_waited_for for name in self.federation.clusters)

    def scopes_from(self, cluster: ClusterId) -> list[str]:
        """The scopes whose pools `cluster` may speak for."""
        own = [fabric_scope(fabric.name) for fabric in self.federation.fabrics if fabric.source == cluster]
        return [cluster_scope(cluster), *own, *self.inventory.label_scopes()]

    def claim(self, key: ClaimKey) -> Claim:
        """The record of a claim, made when it is first heard of."""
        record = self.claims.get(key)
        if record is None:
            record = self.claims[key] = Claim(key)
        return record

    # --- objects as published, for digests and syncs

    def know(self, cluster: Cluster, name: ObjectName, stream_sequence: int) -> None:
        """Note the last message about an object of `cluster`; 0: it was a tombstone."""
        before = cluster.known.pop(name, 0)
        if before:
            cluster.digest = add_to_digest(cluster.digest, -object_digest(name, before))
        if stream_sequence:
            cluster.known[name] = stream_sequence
            cluster.digest = add_to_digest(cluster.digest, object_digest(name, stream_sequence))

    # --- devices and who has them

    def device_key(self, cluster: ClusterId, hold: DeviceHold) -> DeviceKey:
        """The device that an allocation in `cluster` names."""
        scope = self.inventory.scope_of(cluster, hold.driver, hold.pool)
        return DeviceKey(PoolKey(scope, hold.driver, hold.pool), hold.device)

    def add_grant(self, grant: Grant) -> None:
        """A grant begins."""
        self.claim(grant.claim).grants.append(grant)
        for device in _held(grant):
            self.granted.setdefault(device, []).append(grant)
            pool = device.pool
            self.inventory.granted_scopes.setdefault((pool.driver, pool.pool), Counter())[pool.scope] += 1
            self._refresh(device)

    def end_grant(self, grant: Grant) -> None:
        """A grant holds nothing any more."""
        self.claims[grant.claim].grants.remove(grant)
        for device in _held(grant):
            grants = self.granted[device]
            grants.remove(grant)
            if not grants:
                del self.granted[device]
            pool = device.pool
            self.inventory.granted_scopes[pool.driver, pool.pool][pool.scope] -= 1
            self._refresh(device)

    def replace_grant(self, before: Grant, after: Grant) -> None:
        """The same grant with other particulars; it goes on holding the same devices."""
        grants = self.claims[before.claim].grants
        grants[grants.index(before)] = after
        for device in _held(before):
            holders = self.granted[device]
            holders[holders.index(before)] = after

    def show(self, claim: Claim, holds: tuple[DeviceHold, ...] | None) -> None:
        """The claim's status shows this allocation now; None: it has none."""
        if holds is None and claim.shown is None:
            return
        for device in dict.fromkeys(claim.shown_devices):
            claims = self.shown[device]
            claims.discard(claim.key)
            if not claims:
                del self.shown[device]
            del self._shown_holds[device, claim.key]
            self._refresh(device)
        claim.shown = holds
        occupying = [hold for hold in holds or () if not hold.admin_access]
        claim.shown_devices = tuple(self.device_key(claim.key.cluster, hold) for hold in occupying)
        for device, hold in zip(claim.shown_devices, occupying, strict=True):
            self.shown.setdefault(device, set()).add(claim.key)
            self._shown_holds.setdefault((device, claim.key), []).append(hold)
        for device in dict.fromkeys(claim.shown_devices):
            self._refresh(device)

    def put_taint(self, device: DeviceKey, key: str, taint: DeviceTainted | None) -> None:
        """The broker keeps this taint on the device; None: not any more."""
        taints = self.taints.setdefault(device, {})
        taints.pop(key, None)
        if taint is not None:
            taints[key] = taint
        said = [DeviceTaint(key=key, effect=taints[key].effect) for key in sorted(taints)]
        if not taints:
            del self.taints[device]
        self.inventory.put_taints(device, said)

    def resolve_again(self) -> None:
        """Fabrics were declared: look up anew which devices the shown allocations name."""
        for claim in self.claims.values():
            if claim.shown is not None:
                self.show(claim, claim.shown)

    def forget_claim(self, claim: Claim) -> None:
        """The claim is gone for ever. Its grants must have ended."""
        assert not claim.grants, f"claim {claim.key} is forgotten while it holds {claim.grants}"
        self.show(claim, None)
        del self.claims[claim.key]

    def shown_beside(self, device: DeviceKey) -> set[ClaimKey]:
        """Claims whose allocation shows the device, or one that draws from the same counters as it may."""
        pool = self.inventory.pool(device.pool)
        if pool is None or not any(each.spec.shared_counters for each in pool.slices):
            return set(self.shown.get(device, ()))
        names = self.in_use.of_pool(device.pool)
        return set().union(*(self.shown.get(DeviceKey(device.pool, name), ()) for name in names))

    def holder_name(self, key: ClaimKey) -> str:
        """A claim as people call it."""
        claim = self.claims.get(key)
        return f"{key.cluster}/{claim.namespace}/{claim.name}" if claim and claim.name else str(key)

    def holds_on(self, device: DeviceKey) -> list[tuple[ClaimKey, DeviceHold]]:
        """All that takes something of the device from others: of grants, then what claims show."""
        found = [
            (grant.claim, hold)
            for grant in self.granted.get(device, ())
            for key, hold in _taken(grant)
            if key == device
        ]
        if shown := self.shown.get(device):
            found += [(claim, hold) for claim in sorted(shown) for hold in self._shown_holds[device, claim]]
        return found

    def _refresh(self, device: DeviceKey) -> None:
        use = use_of(self.holds_on(device), self.holder_name)
        if use == self.in_use.get(device):
            return  # as when an allocation of ours is reported as applied: nothing changed for anybody
        if use is not None:
            self.in_use[device] = use
        else:
            del self.in_use[device]


def _taken(grant: Grant) -> list[tuple[DeviceKey, DeviceHold]]:
    """What the grant takes from others; admin access takes nothing (KEP-5018)."""
    return [(key, hold) for key, hold in zip(grant.devices, grant.holds, strict=True) if not hold.admin_access]


def _held(grant: Grant) -> list[DeviceKey]:
    """The devices that the grant takes something of. Each once."""
    return list(dict.fromkeys([key for key, _ in _taken(grant)]))
