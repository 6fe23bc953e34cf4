"""What people do: users with claims and pods, platform teams with slices and classes, strangers, and operators."""

from collections.abc import Callable

from broker.machine.device_taints import MAINTENANCE
from broker.world.keys import ClusterId, DeviceKey, PoolKey
from cluster_agent.mirror.tracked import metadata_of
from schemas.wire.ledger import DeviceCommand, DeviceVerb, OperatorCommand, Verb
from tests.simulation.broker import BrokerRun
from tests.simulation.cluster import CLASS, DRIVER, SimCluster, a_class, a_pod
from tests.simulation.moves import PASSED, Moves
from tests.simulation.simulation import Simulation

OPERATORS = 4  # how often they have a turn
BAD_MOMENT = 10  # times as often is a cluster evicted while an allocation is on its way there


def offer_turns(sim: Simulation, turns: Moves) -> None:
    """They may do something."""
    turns.add(sim.plan.together(WHIMS), whim)
    turns.add(1.5 if sim.plan.pods else 0, pods_change)
    turns.add(sim.plan.diligence, controller_manager)
    turns.add(OPERATORS, operators_act)
    turns.add(2.0 if sim.oracle.is_lost else 0, Simulation.rebuild_ledger)


def whim(sim: Simulation) -> object:
    """Something that somebody wants."""
    moves = Moves(sim.rng)
    for kind, act in WHIMS.items():
        moves.add(sim.plan.faults[kind], act)
    return None if moves.do_one(sim) else PASSED


def operators_act(sim: Simulation) -> object:
    """They look at a cluster, where a broker hears them."""
    leader = sim.leader()
    if leader is None:
        return PASSED
    often, moves = sim.plan.faults, Moves(sim.rng)
    for name in sim.clusters:
        record = leader.world.cluster(ClusterId(name))
        if record.cordon:
            moves.add(sim.plan.diligence, order, leader, "uncordon", name)
        else:
            moves.add(often["cordon"], order, leader, "cordon", name)
        if record.eviction is None or record.eviction.readmitted:
            is_bad_moment = sim.plan.is_late and sim.is_written(name)
            moves.add((BAD_MOMENT if is_bad_moment else 1) * often["evictions"], order, leader, "evict", name)
        else:
            moves.add(sim.plan.diligence, order, leader, "readmit", name)
        if often["exclude"] and record.is_waited_for and sim.oracle.holds_nothing_unknown(name):
            moves.add(often["exclude"], order, leader, "exclude", name)
    if often["taint a device"]:
        _offer_taints(sim, leader, moves)
    moves.fill(OPERATORS)
    return None if moves.do_one(sim) else PASSED


def _offer_taints(sim: Simulation, leader: BrokerRun, moves: Moves) -> None:
    taints = [(device, key) for device, by_key in sorted(leader.world.taints.items()) for key in sorted(by_key)]
    if taints:
        moves.add(0.3 * sim.plan.diligence, order_device, leader, "untaint", *sim.rng.choice(taints))
    pools = sorted(pool for pool, names in sim.device_names.items() if names)
    if pools:
        pool = sim.rng.choice(pools)
        key = PoolKey(f"fabric/fab-{sim.plan.pools[pool]}", DRIVER, pool)
        device = DeviceKey(key, sim.rng.choice(sim.device_names[pool]))
        moves.add(sim.plan.faults["taint a device"], order_device, leader, "taint", device, MAINTENANCE)


def order(sim: Simulation, leader: BrokerRun, verb: Verb, cluster: str) -> None:
    """An operator orders something."""
    fenced = verb == "evict" and sim.rng.random() < 0.7
    last = sim.log.last_sequence if verb == "evict" else 0
    if verb == "evict":
        sim.faults["evictions"] += 1
        sim.told_last = last
        if sim.rng.random() < 0.4:
            _agent_begins_anew(sim, cluster)
    sim.say(f"an operator orders {leader.instance}: {verb} {cluster}{' --fenced' if fenced else ''}")
    leader.machine.order(OperatorCommand(verb, cluster, "ada", "why not", fenced, last))


def order_device(sim: Simulation, leader: BrokerRun, verb: DeviceVerb, device: DeviceKey, key: str) -> None:
    """An operator drains a device, or says that it works."""
    sim.say(f"an operator orders {leader.instance}: {verb} {device} {key}")
    pool = device.pool
    order = DeviceCommand(verb, pool.driver, pool.pool, device.device, "ada", "why not", pool.scope, key)
    leader.machine.order(order)


def _agent_begins_anew(sim: Simulation, cluster: str) -> None:
    """Perhaps that is why it is evicted. How the cluster stands it has read just before that changes."""
    for agent in sim.live_agents(cluster):
        agent.stop("killed")
        sim.faults["agents killed"] += 1
    sim.bury()
    sim.start_agent(cluster).start_step()


def time_leaps(sim: Simulation) -> None:
    """Nothing happens for a while."""
    sim.pass_time(sim.rng.choice((2_000, 30_000)))
    sim.say(f"it is {sim.now_ms}")


# --- claims


def _any_claim(sim: Simulation, is_allocated: bool | None = None) -> tuple[SimCluster, str] | None:
    if is_allocated is None:
        found = [(cluster, uid) for cluster in sim.clusters.values() for uid in sorted(cluster.keys)]
    else:
        found = [
            (cluster, uid)
            for cluster in sim.clusters.values()
            for uid in sorted(cluster.keys)
            if is_allocated == (uid in cluster.allocations)
        ]
    return sim.rng.choice(found) if found else None


def delete(sim: Simulation, cluster: SimCluster, uid: str) -> None:
    """A claim is not needed any more."""
    sim.say(f"claim {uid} is deleted")
    cluster.delete("claim", cluster.keys[uid].name)


def somebody_is_done(sim: Simulation) -> object:
    """With what was allocated."""
    return somebody_deletes(sim, is_allocated=True)


def somebody_deletes(sim: Simulation, *, is_allocated: bool | None = None) -> object:
    """And perhaps creates another of the same name."""
    found = _any_claim(sim, is_allocated)
    if found is None:
        return PASSED
    cluster, uid = found
    name = cluster.keys[uid].name
    delete(sim, cluster, uid)
    if uid not in cluster.keys and sim.rng.random() < 0.3:
        sim.create_claim(cluster, name)
    return None


def somebody_touches(sim: Simulation) -> None:
    """A write that has nothing to do with us."""
    found = _any_claim(sim)
    if found is not None:
        sim.say(f"claim {found[1]} is touched")
        found[0].touch(found[1])


def somebody_clears(sim: Simulation) -> None:
    """The scheduler, for example."""
    found = _any_claim(sim, is_allocated=True)
    if found is not None:
        sim.say(f"the allocation of {found[1]} is cleared")
        found[0].clear(found[1])


def stranger_allocates(sim: Simulation) -> None:
    """Whom nobody stops."""
    found = _any_claim(sim, is_allocated=False)
    if found is not None:
        pool = sim.rng.choice(sorted(sim.device_names))
        device = sim.rng.choice(sim.device_names[pool] or ["gpu-9"])
        sim.fault("allocated by strangers", f"a stranger allocates {pool}/{device} to {found[1]}")
        found[0].allocate(found[1], [(pool, device)])


def rejected(sim: Simulation) -> None:
    """No node takes a pod of the claim."""
    found = _any_claim(sim, is_allocated=True)
    if found is None:
        return
    for agent in sim.live_agents(found[0].name):
        if agent.runs and agent not in sim.paused:
            sim.say(f"{agent.instance}: {found[1]} is rejected")
            agent.reject(found[1])


def driver_reports(sim: Simulation) -> None:
    """How the devices of a claim are."""
    found = _any_claim(sim, is_allocated=True)
    if found is None:
        return
    cluster, uid = found
    is_broken = sim.rng.random() < 0.5
    sim.say(f"the devices of {uid} are reported {'broken' if is_broken else 'healthy'}")
    cluster.report(uid, {"type": "Healthy", "status": "False" if is_broken else "True", "reason": "SelfTest"})
    if is_broken:
        devices = {(hold.pool, hold.device) for hold in cluster.allocations[uid].holds}
        cluster.broken.setdefault(uid, set()).update(devices)


# --- slices, classes, pods


def slices_change(sim: Simulation) -> None:
    """A pool gets another generation, or goes."""
    pool = sim.rng.choice(sorted(sim.device_names))
    source = sim.clusters[sim.plan.source_of(pool)]
    generation = sim.new_generation()
    names = [f"gpu-{index}" for index in range(sim.rng.randint(0, 4))]
    made = sim.a_slice(pool, names, generation=generation, count=sim.rng.choice((1, 1, 1, 2)))
    there = source.store.get("slice", "", f"slice-{pool}")
    if there is not None and sim.rng.random() < 0.2:
        sim.say(f"the slice of {pool} is deleted")
        source.delete("slice", f"slice-{pool}")
        sim.device_names[pool] = []
        return
    sim.say(f"the slice of {pool} has {names} now, generation {generation}")
    source.change("slice", made) if there is not None else source.create("slice", made)
    sim.device_names[pool] = names


def class_changes(sim: Simulation) -> None:
    """It comes, goes, and is brokered or not."""
    cluster = sim.clusters[sim.plan.hub or sim.rng.choice(sim.plan.members)]
    there = cluster.store.get("class", "", CLASS)
    if there is None:
        sim.say(f"the class of {cluster.name} is created")
        cluster.create("class", a_class())
    elif sim.rng.random() < 0.5:
        sim.say(f"the class of {cluster.name} is deleted")
        cluster.delete("class", CLASS)
    else:
        brokered = not metadata_of(there).get("labels")
        sim.say(f"the class of {cluster.name} is {'brokered' if brokered else 'not brokered'} now")
        cluster.change("class", a_class(brokered=brokered))


def pods_change(sim: Simulation) -> None:
    """One comes, is scheduled, ends or goes."""
    cluster = sim.clusters[sim.rng.choice(sim.plan.members)]
    pods = [each.object for each in cluster.store.list_objects("pod")]
    names = sorted(each.name for each in cluster.keys.values())
    what = sim.rng.choice(("create", "schedule", "finish", "delete"))
    if what == "create":
        if len(pods) < 4 and names:
            pod, claim = sim.name("pod"), sim.rng.choice(names)
            sim.say(f"pod {pod} of {cluster.name} uses {claim}")
            cluster.create("pod", a_pod(pod, [claim]))
        return
    if not pods:
        return
    pod_object = sim.rng.choice(pods)
    name = metadata_of(pod_object)["name"]
    sim.say(f"pod {name} of {cluster.name}: {what}")
    if what == "schedule":
        cluster.change("pod", {**pod_object, "spec": {**pod_object["spec"], "nodeName": "node-1"}})
    elif what == "finish":
        cluster.change("pod", {**pod_object, "status": {"phase": "Succeeded"}})
    else:
        cluster.delete("pod", name)


def controller_manager(sim: Simulation) -> object:
    """kube-controller-manager looks at the claims of a cluster, one after the other."""
    cluster = sim.clusters[sim.rng.choice(sim.plan.members)]
    for uid in sorted(cluster.keys):
        if cluster.clean_up(uid):
            sim.say(f"kube-controller-manager cleans up {uid}")
            return None
    return PASSED


WHIMS: dict[str, Callable[[Simulation], object]] = {
    "delete a claim": somebody_deletes,
    "delete an allocated claim": somebody_is_done,
    "touch a claim": somebody_touches,
    "clear an allocation": somebody_clears,
    "allocated by strangers": stranger_allocates,
    "reject": rejected,
    "report a device": driver_reports,
    "change slices": slices_change,
    "change the class": class_changes,
    "time leaps": time_leaps,
}
