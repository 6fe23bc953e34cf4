"""Whose ResourceSlices make up which pools.

A slice counts only when its cluster may speak for the pool: the fabric's source for a shared pool, the cluster itself
for a local one. The pools are assembled when they are asked for, and only those that changed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from broker.world.federation import FABRIC_LABEL, Federation
from broker.world.keys import ClusterId, PoolKey, cluster_scope, fabric_scope, is_fabric
from broker.world.pools import Pool, assemble_pool
from broker.world.taint_rules import with_rules
from schemas.resource import DeviceTaintRule, ResourceSlice

SliceRef = tuple[ClusterId, str]  # cluster and name of a ResourceSlice (or DeviceTaintRule)
PlaceReason = Literal["", "NotTheSource", "FabricLabelNotBelieved", "SetAside", "PoolInUse"]


@dataclass(slots=True, frozen=True)
class Placed:
    """Where a slice belongs; without a key it is not used, for `reason`."""

    key: PoolKey | None
    reason: PlaceReason = ""
    message: str = ""


@dataclass(slots=True)
class Inventory:
    """All slices, by the pool that they belong to.

    `labels_open`: every cluster was heard, so that fabrics declared by label can have a source.
    `granted_scopes`: under which scopes devices of a pool are granted, by driver and pool name; the world counts them.
    """

    federation: Federation
    slices: dict[SliceRef, ResourceSlice] = field(default_factory=dict)
    placed: dict[SliceRef, Placed] = field(default_factory=dict)
    labels_open: bool = False
    granted_scopes: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)
    _rules: dict[SliceRef, DeviceTaintRule] = field(default_factory=dict)
    _members: dict[PoolKey, dict[SliceRef, ResourceSlice]] = field(default_factory=dict)
    _pools: dict[PoolKey, Pool] = field(default_factory=dict)
    _keys_by_scope: dict[str, set[PoolKey]] = field(default_factory=dict)
    _label_sources: dict[PoolKey, ClusterId] = field(default_factory=dict)  # keys are fabric pools with members
    _label_keys: dict[tuple[str, str], PoolKey] = field(default_factory=dict)  # the same pools, by driver and name

    def put(self, ref: SliceRef, resource_slice: ResourceSlice) -> Placed:
        """Take in a slice, new or changed, and say where it belongs."""
        self.remove(ref)
        self.slices[ref] = resource_slice
        return self._place(ref)

    def remove(self, ref: SliceRef) -> PoolKey | None:
        """Forget a slice; returns the pool that lost it."""
        if self.slices.pop(ref, None) is None:
            return None
        placed = self.placed.pop(ref)
        if placed.key is None:
            return None
        members = self._members[placed.key]
        del members[ref]
        self._pools.pop(placed.key, None)
        if not members:
            del self._members[placed.key]
            self._keys_by_scope[placed.key.scope].discard(placed.key)
            if self._label_sources.pop(placed.key, None) is not None:
                del self._label_keys[placed.key.driver, placed.key.pool]
        return placed.key

    def open_labels(self) -> list[tuple[SliceRef, Placed]]:
        """Every cluster was heard: place what was set aside, in the order of the clusters, which decides sources.

        Labelled slices come first: a pool that is on a fabric is on it for everybody.
        """
        self.labels_open = True
        order = {cluster: index for index, cluster in enumerate(self.federation.clusters)}
        waiting = [ref for ref, placed in self.placed.items() if placed.reason == "SetAside"]
        waiting.sort(key=lambda ref: (not self._label_of(ref), order.get(ref[0], len(order)), ref))
        return [(ref, self._place(ref)) for ref in waiting]

    def place_again(self, driver: str, pool: str) -> list[tuple[SliceRef, Placed]]:
        """Devices of the pool were freed: place the slices that could not change its scope before, if any."""
        waiting = [
            ref
            for ref, placed in self.placed.items()
            if placed.reason == "PoolInUse" and self._is_of(ref, driver, pool)
        ]
        return [(ref, self._place(ref)) for ref in sorted(waiting)]

    def pool(self, key: PoolKey) -> Pool | None:
        """The pool as its slices have it now."""
        if key not in self._members:
            return None
        pool = self._pools.get(key)
        if pool is None:
            pool = self._pools[key] = assemble_pool(key, self._tainted_members(key))
        return pool

    def put_rule(self, ref: SliceRef, rule: DeviceTaintRule | None) -> None:
        """A DeviceTaintRule is new or changed; None: it is gone."""
        if rule is None:
            self._rules.pop(ref, None)
        else:
            self._rules[ref] = rule
        self._pools.clear()

    def pools_of_scopes(self, scopes: Iterable[str]) -> list[Pool]:
        """The pools of these scopes, ascending by driver and pool name (upstream's ID order), then by scope."""
        keys = [key for scope in scopes for key in self._keys_by_scope.get(scope, ())]
        keys.sort(key=lambda key: (key.driver, key.pool, key.scope))
        return [pool for key in keys if (pool := self.pool(key)) is not None]

    def all_pools(self) -> Iterator[Pool]:
        """Every pool, ascending by key."""
        for key in sorted(self._members):
            pool = self.pool(key)
            assert pool is not None
            yield pool

    def scope_of(self, cluster: ClusterId, driver: str, pool: str) -> str:
        """The scope of a pool that an allocation in `cluster` names."""
        scope = self.federation.scope_by_config(cluster, driver, pool)
        if scope != cluster_scope(cluster) or not self.federation.believe_labels:
            return scope
        known = self._label_keys.get((driver, pool))
        # Without a slice the pool is still on the fabric under which its devices are held.
        return known.scope if known is not None else self._held_elsewhere(driver, pool, scope) or scope

    def scopes(self) -> list[str]:
        """All scopes that have pools."""
        return sorted(self._keys_by_scope)

    def label_scopes(self) -> list[str]:
        """Scopes of fabrics that are declared by label."""
        return sorted({key.scope for key in self._label_sources})

    def _tainted_members(self, key: PoolKey) -> list[ResourceSlice]:
        members = self._members[key]
        speakers = {cluster for cluster, _ in members} | {self.federation.hub}
        rules = [rule for ref, rule in sorted(self._rules.items()) if ref[0] in speakers]
        return [with_rules(each, rules) for each in members.values()]

    def _place(self, ref: SliceRef) -> Placed:
        placed = self._choose(ref)
        self.placed[ref] = placed
        if placed.key is not None:
            self._members.setdefault(placed.key, {})[ref] = self.slices[ref]
            self._keys_by_scope.setdefault(placed.key.scope, set()).add(placed.key)
            self._pools.pop(placed.key, None)
        return placed

    def _choose(self, ref: SliceRef) -> Placed:
        cluster, name = ref
        spec = self.slices[ref].spec
        driver, pool = spec.driver, spec.pool.name
        label = self._label_of(ref)
        fabric = self.federation.fabric_of(driver, pool)
        if fabric is not None and fabric.concerns(cluster):
            if cluster == fabric.source:
                return Placed(PoolKey(fabric_scope(fabric.name), driver, pool))
            return _not_the_source(name, driver, pool, fabric.name, cluster, fabric.source)
        if self.federation.believe_labels:
            return self._choose_by_label(ref, label)
        if label:
            return Placed(
                None,
                "FabricLabelNotBelieved",
                f"ResourceSlice {name} of {cluster} declares fabric {label} by label, which is not believed here: "
                f"declare the fabric and its source in the broker's config file",
            )
        return Placed(PoolKey(cluster_scope(cluster), driver, pool))

    def _choose_by_label(self, ref: SliceRef, label: str) -> Placed:
        """A pool is on one fabric or local, never both: an allocation names it without saying which."""
        cluster, name = ref
        spec = self.slices[ref].spec
        driver, pool = spec.driver, spec.pool.name
        if not self.labels_open:
            return Placed(None, "SetAside", f"ResourceSlice {name} waits until every cluster was heard")
        known = self._label_keys.get((driver, pool))
        if known is not None:
            source = self._label_sources[known]
            if cluster == source and fabric_scope(label) == known.scope:
                return Placed(known)
            return _not_the_source(name, driver, pool, known.scope.partition("/")[2], cluster, source)
        scope = fabric_scope(label) if label else cluster_scope(cluster)
        held = self._held_elsewhere(driver, pool, scope)
        if held:
            # A device has one name in each scope: under another one, what is held would count as free.
            return Placed(
                None,
                "PoolInUse",
                f"ResourceSlice {name} of {cluster} moves pool {driver}/{pool} to {scope} while devices of it are "
                f"allocated as {held}: it is used when those allocations have ended, or with its old label",
            )
        if not label:
            return Placed(PoolKey(scope, driver, pool))
        local = [key for key in self._members if (key.driver, key.pool) == (driver, pool)]
        if local:
            return Placed(
                None,
                "NotTheSource",
                f"ResourceSlice {name} of {cluster} declares pool {driver}/{pool} to be on fabric {label}, but it is "
                f"already a local pool ({local[0].scope}): label all of its slices, or rename one of the pools",
            )
        key = PoolKey(scope, driver, pool)
        self._label_sources[key], self._label_keys[driver, pool] = cluster, key
        return Placed(key)

    def _held_elsewhere(self, driver: str, pool: str, scope: str) -> str:
        """A scope other than `scope` under which devices of the pool are granted, "" if there is none.

        Local pools of two clusters are two pools, and so is one that the config puts on a fabric of other clusters.
        """
        fabric = self.federation.fabric_of(driver, pool)
        others = {scope, fabric_scope(fabric.name) if fabric else scope}
        for held, count in sorted(self.granted_scopes.get((driver, pool), {}).items()):
            if count and held not in others and (is_fabric(held) or is_fabric(scope)):
                return held
        return ""

    def _is_of(self, ref: SliceRef, driver: str, pool: str) -> bool:
        spec = self.slices[ref].spec
        return (spec.driver, spec.pool.name) == (driver, pool)

    def _label_of(self, ref: SliceRef) -> str:
        return self.slices[ref].metadata.labels.get(FABRIC_LABEL, "")


def _not_the_source(name: str, driver: str, pool: str, fabric: str, cluster: str, source: str) -> Placed:
    return Placed(
        None,
        "NotTheSource",
        f"ResourceSlice {name} of {cluster} is for pool {driver}/{pool} of fabric {fabric}, whose source is {source}: "
        f"only the source's slices are believed",
    )
