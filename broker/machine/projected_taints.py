"""NoExecute taints, told to the clusters where they are to end pods: as DeviceTaintRules that agents write there.

Where a fabric's devices are used there is no ResourceSlice of them, so what operators order here, and what drivers and
administrators say in slices and DeviceTaintRules of the hub and the source, does nothing to pods. In the clusters that
the config names (`device_taint_rules`) kube-controller-manager acts upon it: it matches a rule against what claims have
been allocated. Other effects are not told: they concern who gets a device, and only the broker decides that.
"""

import hashlib

from broker.machine.core import ENTRY_BYTES_MAX, Core
from broker.world.federation import Federation
from broker.world.keys import ClusterId, PoolKey, cluster_scope, fabric_scope
from broker.world.taint_rules import selects_pool
from broker.world.world import World
from schemas.wire.codec import encode
from schemas.wire.ledger import TaintRule, TaintRulesChanged

RULES_MOST = 500  # in one cluster
_REASON_LENGTH_MAX = 200
_BESIDE_RULES = 64 * 1024  # for all else that the entry says
_NAME_DIGITS = 12  # of a SHA-256, in hex


def is_due(core: Core) -> bool:
    """Whether something has changed since `tell` looked; never where no cluster has rules written."""
    return core.taints_told_at != _state(core.world) and bool(_concerned(core.world))


def tell(core: Core) -> None:
    """Tell each cluster, through the ledger, which rules are to be there, where that has changed."""
    world = core.world
    if not is_due(core):
        return
    to_write = world.federation.device_taint_rules.clusters
    for cluster in _concerned(world):
        if not core.has_room():
            return  # the rest in the next step
        told = _told(world, cluster)
        rules = wanted(world, cluster) if cluster in to_write else {}
        if cluster in to_write and not _all_have_spoken(world):
            rules = {rule.name: rule for rule in told} | rules  # what nobody has confirmed yet is not taken back
        now = tuple(sorted(_as_many_as_fit(list(rules.values())[:RULES_MOST])))
        if now == told:
            continue
        core.record(TaintRulesChanged(cluster=cluster, rules=list(now)))
        if len(rules) > len(now):
            text = f"{len(rules)} DeviceTaintRules would be in {cluster}: {len(now)} are"
            core.notice("error", "TooManyTaintRules", f"cluster {cluster}", text)
    core.taints_told_at = _state(world)


def wanted(world: World, cluster: ClusterId) -> dict[str, TaintRule]:
    """The rules that are to be in the cluster, by name: operators' first, then drivers' and administrators'."""
    scopes = {cluster_scope(cluster), *world.inventory.label_scopes()}
    scopes |= {fabric_scope(fabric.name) for fabric in world.federation.fabrics if cluster in fabric.clusters}
    found: dict[str, TaintRule] = {}

    def want(pool: PoolKey, device: str, key: str, value: str, reason: str) -> None:
        identity = "\n".join((pool.driver, pool.pool, device, key, value))
        digest = hashlib.sha256(identity.encode()).hexdigest()[:_NAME_DIGITS]
        rule = TaintRule(
            name=f"dragoman-{device or 'pool'}-{digest}",
            driver=pool.driver,
            pool=pool.pool,
            device=device,
            key=key,
            value=value,
            reason=reason[:_REASON_LENGTH_MAX],
        )
        found.setdefault(rule.name, rule)

    for device, taints in sorted(world.taints.items()):
        if device.pool.scope in scopes:
            for key, ordered in sorted(taints.items()):
                if ordered.effect == "NoExecute":
                    want(device.pool, device.device, key, "", f"{ordered.operator}: {ordered.reason}")
    for (owner, name), device, taint in world.inventory.drivers_no_execute(scopes):
        if owner != cluster:  # what its own slices say its own kube-controller-manager knows
            want(device.pool, device.device, taint.key, taint.value, f"ResourceSlice {name} of {owner}")
    for pool in world.inventory.keys_of_scopes(scopes):
        for (owner, name), rule in world.inventory.rules_of(pool):
            taint, selector = rule.spec.taint, rule.spec.device_selector
            if owner != cluster and taint.effect == "NoExecute" and selects_pool(rule, pool.driver, pool.pool):
                device_name = selector.device if selector is not None else None
                want(pool, device_name or "", taint.key, taint.value, f"DeviceTaintRule {name} of {owner}")
    return found


def are_written_for(federation: Federation, scope: str) -> bool:
    """Whether there is a cluster that reaches pools of this scope and has rules written."""
    return any(
        scope == cluster_scope(name)
        or any(name in fabric.clusters for fabric in federation.fabrics if fabric_scope(fabric.name) == scope)
        for name in federation.device_taint_rules.clusters
    )


def _as_many_as_fit(rules: list[TaintRule]) -> list[TaintRule]:
    """The first ones that one entry can have: all, unless their texts are long and full of what JSON escapes."""
    left = ENTRY_BYTES_MAX - _BESIDE_RULES
    for count, rule in enumerate(rules):
        left -= len(encode(rule)) + 1
        if left < 0:
            return rules[:count]
    return rules


def _told(world: World, cluster: ClusterId) -> tuple[TaintRule, ...]:
    record = world.clusters.get(cluster)
    return (record.taint_rules if record is not None else None) or ()


def _concerned(world: World) -> list[ClusterId]:
    """Clusters where rules are to be, or may still be."""
    told = (name for name, each in world.clusters.items() if each.taint_rules)
    return sorted({*world.federation.device_taint_rules.clusters, *told})


def _state(world: World) -> tuple[int, bool]:
    """Another one whenever another rule may be wanted."""
    return world.inventory.changes.end, _all_have_spoken(world)


def _all_have_spoken(world: World) -> bool:
    """The hub and all sources have been heard: a rule of theirs that is not known is not there."""
    federation = world.federation
    speakers = {fabric.source for fabric in federation.fabrics} | ({federation.hub} if federation.hub else set())
    return all(name in world.clusters and world.clusters[name].is_heard for name in speakers)
