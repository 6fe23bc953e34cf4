"""Whose ResourceSlices make up which pools.

A slice counts only when its cluster may speak for the pool: the fabric's source for a shared pool, the cluster itself
for a local one. The pools are assembled when they are asked for, and only those that changed.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, overload

from broker.world.changes import Changes
from broker.world.federation import FABRIC_LABEL, Federation
from broker.world.keys import ClusterId, DeviceKey, PoolKey, cluster_scope, fabric_scope, is_fabric
from broker.world.pools import Pool, allocation_order, assemble_pool
from broker.world.taint_rules import selects_pool, with_rules, with_taints
from schemas.resource import DeviceTaint, DeviceTaintRule, ResourceSlice

SliceRef = tuple[ClusterId, str]  # cluster and name of a ResourceSlice (or DeviceTaintRule)
_SCOPES_KEPT = 1024  # sets of scopes; each cluster has one
_SCOPES_BY_CONFIG_KEPT = 10_000
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
    changes: Changes[PoolKey] = field(default_factory=Changes)  # pools that are new, gone, or not what they were
    _rules: dict[SliceRef, DeviceTaintRule] = field(default_factory=dict)
    _taints: dict[PoolKey, dict[str, Sequence[DeviceTaint]]] = field(default_factory=dict)  # by name; never empty
    _no_execute: dict[SliceRef, list[tuple[str, DeviceTaint]]] = field(default_factory=dict)  # by device; never empty
    _members: dict[PoolKey, dict[SliceRef, ResourceSlice]] = field(default_factory=dict)
    _pools: dict[PoolKey, Pool] = field(default_factory=dict)
    _keys_by_scope: dict[str, set[PoolKey]] = field(default_factory=dict)
    _label_sources: dict[PoolKey, ClusterId] = field(default_factory=dict)  # keys are fabric pools with members
    _label_keys: dict[tuple[str, str], PoolKey] = field(default_factory=dict)  # the same pools, by driver and name
    _of_scopes: dict[tuple[str, ...], "PoolsOfScopes"] = field(default_factory=dict)
    _scopes_by_config: dict[tuple[ClusterId, str, str], str] = field(default_factory=dict)

    def put(self, ref: SliceRef, resource_slice: ResourceSlice) -> Placed:
        """Take in a slice, new or changed, and say where it belongs."""
        self.remove(ref)
        self.slices[ref] = resource_slice
        if taints := [
            (device.name, taint)
            for device in resource_slice.spec.devices
            for taint in device.taints
            if taint.effect == "NoExecute"
        ]:
            self._no_execute[ref] = taints
        return self._place(ref)

    def remove(self, ref: SliceRef) -> PoolKey | None:
        """Forget a slice; returns the pool that lost it."""
        if self.slices.pop(ref, None) is None:
            return None
        self._no_execute.pop(ref, None)
        placed = self.placed.pop(ref)
        if placed.key is None:
            return None
        members = self._members[placed.key]
        del members[ref]
        self._has_changed(placed.key)
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
        concerned = [each for each in (self._rules.pop(ref, None), rule) if each is not None]
        if rule is not None:
            self._rules[ref] = rule
        for key in self._members:
            if any(selects_pool(each, key.driver, key.pool) for each in concerned):
                self._has_changed(key)

    def rules_of(self, key: PoolKey) -> list[tuple[SliceRef, DeviceTaintRule]]:
        """Rules of those who may speak for the pool, ascending; they may select it or not."""
        speakers = {cluster for cluster, _ in self._members.get(key, ())} | {self.federation.hub}
        return [(ref, rule) for ref, rule in sorted(self._rules.items()) if ref[0] in speakers]

    def drivers_no_execute(self, scopes: Collection[str]) -> Iterator[tuple[SliceRef, DeviceKey, DeviceTaint]]:
        """NoExecute taints that slices of these scopes give to devices, as of their pool's newest generation."""
        for ref, taints in sorted(self._no_execute.items(), key=lambda each: each[0]):
            key = self.placed[ref].key
            if key is not None and key.scope in scopes:
                newest = max(each.spec.pool.generation for each in self._members[key].values())
                if self.slices[ref].spec.pool.generation == newest:
                    yield from ((ref, DeviceKey(key, name), taint) for name, taint in taints)

    def put_taints(self, device: DeviceKey, taints: Sequence[DeviceTaint]) -> None:
        """The taints that the broker itself keeps on a device, whether it is published or not."""
        of_pool = self._taints.setdefault(device.pool, {})
        if taints:
            of_pool[device.device] = taints
        else:
            of_pool.pop(device.device, None)
        if not of_pool:
            del self._taints[device.pool]
        self._has_changed(device.pool)

    def pools_of_scopes(self, scopes: Iterable[str]) -> "PoolsOfScopes":
        """The pools of these scopes as they are now: the same object each time, which the next call brings up to date.

        They ascend by driver and pool name (upstream's ID order), then by scope.
        """
        wanted = tuple(dict.fromkeys(scopes))
        found = self._of_scopes.get(wanted)
        if found is None:
            if len(self._of_scopes) >= _SCOPES_KEPT:
                del self._of_scopes[next(iter(self._of_scopes))]
            found = self._of_scopes[wanted] = PoolsOfScopes(self, wanted)
        found.refresh()
        return found

    def keys_of_scopes(self, scopes: Iterable[str]) -> list[PoolKey]:
        """The pools of these scopes by name, in their order."""
        keys = {key for scope in scopes for key in self._keys_by_scope.get(scope, ())}
        return sorted(keys, key=allocation_order)

    def all_pools(self) -> Iterator[Pool]:
        """Every pool, ascending by key."""
        for key in sorted(self._members):
            pool = self.pool(key)
            assert pool is not None
            yield pool

    def scope_of(self, cluster: ClusterId, driver: str, pool: str) -> str:
        """The scope of a pool that an allocation in `cluster` names."""
        scope = self._scopes_by_config.get((cluster, driver, pool))
        if scope is None:
            if len(self._scopes_by_config) >= _SCOPES_BY_CONFIG_KEPT:  # whatever names clusters come up with
                self._scopes_by_config.clear()
            scope = self.federation.scope_by_config(cluster, driver, pool)
            self._scopes_by_config[cluster, driver, pool] = scope
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
        rules = [rule for _, rule in self.rules_of(key)]
        taints = self._taints.get(key, {})
        return [with_taints(with_rules(each, rules), taints) for each in members.values()]

    def _place(self, ref: SliceRef) -> Placed:
        placed = self._choose(ref)
        self.placed[ref] = placed
        if placed.key is not None:
            self._members.setdefault(placed.key, {})[ref] = self.slices[ref]
            self._keys_by_scope.setdefault(placed.key.scope, set()).add(placed.key)
            self._has_changed(placed.key)
        return placed

    def _has_changed(self, key: PoolKey) -> None:
        self._pools.pop(key, None)
        self.changes.note(key)

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


class PoolsOfScopes(Sequence[Pool]):
    """The pools of some scopes, in the order in which to try them.

    changes: keys of those that are new, gone, or not what they were.
    """

    def __init__(self, inventory: Inventory, scopes: Iterable[str]) -> None:
        self.changes: Changes[PoolKey] = Changes()
        self._inventory = inventory
        self._scopes = frozenset(scopes)
        self._read = -1  # up to where `inventory.changes` was read; -1: not at all
        self._keys: list[PoolKey] = []
        self._pools: list[Pool] = []  # of _keys, index by index

    def refresh(self) -> None:
        """Bring it up to date; costs as much as has changed since the last time."""
        changed = self._inventory.changes.since(self._read)
        self._read = self._inventory.changes.end
        if changed is None:
            changed = [*self._inventory.keys_of_scopes(self._scopes), *self._keys]
        for key in dict.fromkeys(changed):
            if key.scope in self._scopes:
                self._put(key, self._inventory.pool(key))

    def get(self, key: PoolKey) -> Pool | None:
        """The pool with this key, if it is among them."""
        index = self._index(key)
        return self._pools[index] if index < len(self._keys) and self._keys[index] == key else None

    def _index(self, key: PoolKey) -> int:
        return bisect_left(self._keys, allocation_order(key), key=allocation_order)

    def _put(self, key: PoolKey, pool: Pool | None) -> None:
        index = self._index(key)
        is_known = index < len(self._keys) and self._keys[index] == key
        if pool is not None and is_known:
            self._pools[index] = pool
        elif pool is not None:
            self._keys.insert(index, key)
            self._pools.insert(index, pool)
        elif is_known:
            del self._keys[index], self._pools[index]
        self.changes.note(key)

    @overload
    def __getitem__(self, index: int) -> Pool: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Pool]: ...

    def __getitem__(self, index: int | slice) -> Pool | Sequence[Pool]:
        return self._pools[index]

    def __len__(self) -> int:
        return len(self._pools)


def _not_the_source(name: str, driver: str, pool: str, fabric: str, cluster: str, source: str) -> Placed:
    return Placed(
        None,
        "NotTheSource",
        f"ResourceSlice {name} of {cluster} is for pool {driver}/{pool} of fabric {fabric}, whose source is {source}: "
        f"only the source's slices are believed",
    )
