"""Faults stop, and everything must come to rest: what is true then."""

from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.machine import Machine, recovery, report
from broker.machine.device_taints import UNHEALTHY
from broker.machine.segments import LedgerStart
from broker.world.federation import BROKERED_LABEL
from broker.world.keys import ClaimKey, ClaimUid, ClusterId
from broker.world.records import Claim
from broker.world.world import World
from cluster_agent.mirror.tracked import holds_of, metadata_of
from cluster_agent.ports import ApiObject
from schemas.resource.untyped import as_dict
from schemas.wire.ledger import OperatorCommand
from tests.believing import believe_again
from tests.simulation import faults
from tests.simulation.agent import AgentRun, describe
from tests.simulation.broker import BrokerRun
from tests.simulation.cluster import CLASS
from tests.simulation.oracle import Violation, require, same_by_ledger
from tests.simulation.simulation import Simulation

ROUNDS = 400  # many more than any history needs


def drain(sim: Simulation) -> None:
    """Let all come to rest. Raises: Violation, if it does not or if what is then true is wrong."""
    sim.say("faults stop")
    faults.heal(sim)
    if sim.oracle.is_lost:
        sim.rebuild_ledger()
    calm(sim)
    while sim.log.last_sequence < sim.lost_until:
        _life_goes_on(sim)
    _check(sim, sim.brokers[0])


def _life_goes_on(sim: Simulation) -> None:
    """That messages were lost is noticed when the log has come to where its end was: heartbeats name that."""
    sim.create_claim(sim.clusters[sim.plan.members[0]])
    for cluster in sim.clusters.values():
        for uid in sorted(cluster.keys):
            cluster.touch(uid)
    calm(sim)


def calm(sim: Simulation) -> None:
    """Nothing goes wrong any more, until nothing is left to do. Raises: Violation, if that never comes."""
    for _ in range(ROUNDS):
        if _pass(sim):
            continue
        broker = sim.brokers[0]
        wake_ms = broker.machine.wake_at_ms()
        if wake_ms is None:
            return
        sim.now_ms = max(sim.now_ms, wake_ms)
    raise Violation("it does not come to rest")


def _pass(sim: Simulation) -> bool:
    """Everything that anybody waits for arrives, once; returns whether there was anything."""
    before = _marks(sim)
    for cluster in sim.clusters:
        if not sim.live_agents(cluster):
            sim.start_agent(cluster)
    for agent in list(sim.agents):
        _serve(sim, agent)
    sim.bury()
    if not sim.brokers:
        sim.start_broker()
    while sim.appends:
        attempt = sim.appends.pop(0)
        if not attempt.is_done:
            attempt.broker.arrive(attempt)
        attempt.broker.deliver(attempt)
    for broker in list(sim.brokers):
        _lead(sim, broker)
    sim.bury()
    while sim.asks:
        name, ask = sim.asks.pop(0)
        for agent in sim.live_agents(name):
            if agent.runs:
                agent.ask(ask)
    for each in sim.clusters.values():
        for uid in sorted(each.keys):
            while uid in each.keys and each.clean_up(uid):
                pass
    if _marks(sim) != before or any(agent.calls for agent in sim.agents) or sim.appends:
        return True
    return _beats(sim) or _late_arrives(sim)


def _late_arrives(sim: Simulation) -> bool:
    """As late as can be: when nobody does anything any more."""
    if not sim.late:
        return False
    agent, request = sim.late.pop(0)
    sim.say(f"{describe(request)} of {agent.instance} arrives last")
    agent.arrive(request)
    return True


def _marks(sim: Simulation) -> object:
    stores = [cluster.store.resource_version for cluster in sim.clusters.values()]
    return (sim.log.last_sequence, sim.ledger.last_sequence, stores, len(sim.agents), len(sim.brokers))


def _serve(sim: Simulation, agent: AgentRun) -> None:
    agent.follow_evictions()
    agent.start()
    if not agent.runs:
        return
    while agent.calls and agent.is_alive:
        agent.do(agent.calls[0])
    if agent.is_alive:
        agent.watch_all()
    if agent.is_alive:
        agent.follow_run()
    consumer = sim.consumers[agent.cluster.name]
    while agent.is_alive and consumer.has_new():
        agent.take_decision()
    for sequence, (_, holder) in list(consumer.taken.items()):
        if agent.is_alive and holder not in sim.agents:
            agent.take_decision(sequence)


def _lead(sim: Simulation, broker: BrokerRun) -> None:
    if broker.must_look:
        broker.read_tail()
    if broker.must_retry:
        sim.appends.append(broker.retry())
    if broker.phase == "leads" and broker.world.leader_epoch < sim.oracle.leader_epoch:
        broker.stop("hears of another leader")
    if broker.phase == "opens" and not broker.is_waiting:
        sim.appends.append(broker.go_on())
    if broker.phase != "leads" or broker.is_waiting:
        return
    if broker.unread():
        broker.read(1_000)
    _end_orders(broker)
    while broker.phase == "leads" and not broker.is_waiting and broker.machine.has_work(sim.now_ms):
        attempt = broker.step(sim.now_ms)
        if attempt is not None:
            sim.appends.append(attempt)


def _end_orders(broker: BrokerRun) -> None:
    """Operators let every cluster back."""
    for name, record in sorted(broker.world.clusters.items()):
        if record.eviction is not None and not record.eviction.readmitted:
            broker.machine.order(OperatorCommand("readmit", name, "ada", "it is over"))
        if record.cordon is not None:
            broker.machine.order(OperatorCommand("uncordon", name, "ada"))


def _beats(sim: Simulation) -> bool:
    leader = sim.brokers[0]
    for agent in sim.agents:
        beat = agent.mirror.beat()
        ask = leader.hear(agent.cluster.name, beat, sim.now_ms) if beat is not None else None
        if ask is not None:
            sim.asks.append((agent.cluster.name, ask))
        agent.tick(sim.now_ms)
    leader.look(sim.now_ms)
    return bool(sim.asks) or any(agent.calls for agent in sim.agents) or leader.machine.has_work(sim.now_ms)


# --- at rest


def _check(sim: Simulation, broker: BrokerRun) -> None:
    oracle, world = sim.oracle, broker.world
    for name in sim.clusters:
        agents = sim.live_agents(name)
        require(len(agents) == 1, f"{len(agents)} agents of {name} are left")
        require(agents[0].mirror.is_idle, f"the agent of {name} is not idle: {_open(agents[0])}")
        beat = agents[0].mirror.beat()
        ours = format(world.clusters[ClusterId(name)].digest, "x")
        require(beat is not None and beat.digest == ours, f"broker and agent of {name} do not believe the same")
        record = world.clusters[ClusterId(name)]
        is_well = record.liveness == "Live" and not (record.eviction or record.exclusion or record.cordon)
        require(is_well, f"{name} is {record.liveness}, {record.eviction}, {record.exclusion}, {record.cordon}")
    require(not oracle.unsettled, f"decisions are unsettled: {oracle.unsettled}")
    held = set()
    for grant in oracle.grants.values():
        shown = sim.clusters[grant.claim[0]].allocations.get(grant.claim[1])
        require(shown and shown.holds == grant.holds, f"{grant} is left, its claim shows {shown}")
        held.add(grant.claim)
    for cluster in sim.clusters.values():
        for uid, allocation in cluster.allocations.items():
            if (cluster.name, uid) in held:
                continue
            claim = world.claims.get(ClaimKey(ClusterId(cluster.name), ClaimUid(uid)))
            there = list(oracle.devices(allocation).items())
            collides = oracle.too_much([there, *(grant.devices for grant in oracle.grants.values())])
            is_told = claim is not None and claim.collision is not None
            require(is_told and collides, f"{allocation} is no grant, and beside the grants there is room for it")
    for cluster in sim.clusters.values():
        for claim_object in cluster.claims():
            _check_claim(sim, broker, cluster.name, claim_object)
    _check_reports(sim)
    for key, claim in world.claims.items():
        if claim.state_sequence == 0:
            continue  # only the ledger knows of it; the next sync ends that
        require(key.uid in sim.clusters[key.cluster].keys, f"the broker still knows {key}, which is gone")
    _check_restart(sim, broker)


def _check_reports(sim: Simulation) -> None:
    """Every device that its holder goes on reporting unhealthy is tainted."""
    for grant in sim.oracle.grants.values():
        name, uid = grant.claim
        claim = sim.clusters[name].claim(uid)
        for status in as_dict(as_dict(claim).get("status")).get("devices") or ():
            is_broken = any(each["type"] == "Healthy" and each["status"] == "False" for each in status["conditions"])
            for device, _ in grant.devices if is_broken else ():
                if device[1:] == (status["driver"], status["pool"], status["device"]):
                    require(UNHEALTHY in sim.oracle.tainted.get(device, ()), f"{uid} reports {device} unhealthy")


def _check_claim(sim: Simulation, broker: BrokerRun, cluster: str, claim_object: ApiObject) -> None:
    uid = str(metadata_of(claim_object)["uid"])
    claim = broker.world.claims.get(ClaimKey(ClusterId(cluster), ClaimUid(uid)))
    owner = sim.clusters[sim.plan.hub or cluster]
    the_class = owner.store.get("class", "", CLASS)
    is_brokered = bool(the_class and (metadata_of(the_class).get("labels") or {}).get(BROKERED_LABEL) == "true")
    allocated = holds_of(claim_object) is not None
    is_ours = sim.plan.publishes_all or is_brokered or allocated
    require(claim is not None or not is_ours, f"the broker does not know claim {uid} of {cluster}")
    if claim is not None and not claim.state_sequence and not is_ours:
        return  # only the ledger knows of it: it was forgotten, and nobody tells of it
    if claim is None or allocated or metadata_of(claim_object).get("deletionTimestamp"):
        return
    row = report.claim_row(claim)
    require(row.reason and row.message and row.reason != "NotDecidedYet", f"{uid} is pending without a reason: {row}")
    require(row.reason not in ("Allocating", "Releasing", "BackingOff", "InternalError"), f"{uid} hangs: {row}")
    if not is_brokered or not _may_be_allocated(sim, claim, claim_object):
        return
    request = claim_object["spec"]["devices"]["requests"][0]["exactly"]
    free = _free(sim, claim, is_share="capacity" in request)
    require(free < request["count"], f"{uid} of {cluster} wants {request}, {free} are free, and it waits: {row}")


def _may_be_allocated(sim: Simulation, claim: Claim, claim_object: ApiObject) -> bool:
    """Whether its consumers let it have an allocation."""
    metadata = metadata_of(claim_object)
    live = frozenset(
        str(metadata_of(pod.object)["uid"])
        for pod in sim.clusters[claim.key.cluster].store.list_objects("pod")
        if any(each["resourceClaimName"] == metadata["name"] for each in pod.object["spec"]["resourceClaims"])
        and not pod.object["spec"].get("nodeName")
        and (pod.object.get("status") or {}).get("phase") != "Succeeded"
    )
    if not live and not metadata.get("annotations", {}).get("dragoman.dev/allocate"):
        return False
    return live not in sim.oracle.spent.get((claim.key.cluster, claim.key.uid), set())


def _free(sim: Simulation, claim: Claim, *, is_share: bool) -> int:
    """Devices that have room for the claim, that its cluster reaches, and that were not rejected for it."""
    oracle = sim.oracle
    taken = [grant.devices for grant in oracle.grants.values()]
    for cluster in sim.clusters.values():
        for uid, allocation in cluster.allocations.items():
            if not any(grant.claim == (cluster.name, uid) for grant in oracle.grants.values()):
                taken.append(list(oracle.devices(allocation).items()))
    avoided = {(key.pool.scope, key.pool.driver, key.pool.pool, key.device) for key in claim.avoid}
    free = 0
    for pool in sim.plan.devices:
        fabric = sim.plan.pools[pool]
        there = sim.clusters[sim.plan.source_of(pool)].store.get("slice", "", f"slice-{pool}")
        if (
            there is None
            or claim.key.cluster not in sim.plan.reaches[fabric]
            or (is_share and pool not in oracle.shares)
        ):
            continue
        spec = there["spec"]
        for device in spec["devices"] if spec["pool"]["resourceSliceCount"] == 1 else ():
            ref = (f"fabric/fab-{fabric}", spec["driver"], pool, device["name"])
            has_room = ref not in oracle.too_much([*taken, [(ref, 1 if is_share else 0)]])
            free += has_room and ref not in avoided and ref not in oracle.tainted
    return free


def _check_restart(sim: Simulation, broker: BrokerRun) -> None:
    """A broker that starts now comes to the same world."""
    start = LedgerStart(
        sim.ledger.segments,
        lambda: Machine(World(sim.plan.federation()), DeviceIndex(default_engine()), broker.machine.core.identity),
    )
    while start.wanted is not None:
        start.add(sim.ledger.segment(start.wanted))
        start.end()
    again = start.machine
    if sim.log.has_expired(again.world.position):
        return
    believe_again(again, sim.log.read(0, again.world.position))
    recovery.resume(again)
    again.feed(sim.log.read(again.world.position, sim.log.last_sequence))
    now_ms = max(sim.now_ms, broker.machine.core.now_ms)  # clocks have jumped
    while again.has_work(now_ms):
        again.step(now_ms)
    if any(again.world.clusters[name].digest != cluster.digest for name, cluster in broker.world.clusters.items()):
        return  # messages have expired: it would ask for everything first
    same_by_ledger(again.world, broker.world)


def _open(agent: AgentRun) -> str:
    """What keeps it from being idle."""
    mirror = agent.mirror
    behind = [
        f"{each.name.kind}/{each.name.key}: job {each.job}, in flight {each.in_flight is not None}, view "
        f"{each.view_version}, own write {each.own_version}, subject {each.subject_version}, gone {each.must_be_gone}"
        for each in mirror.tracked.values()
        if each.job or each.in_flight or not each.view_is_current or each.published is None
    ]
    return f"synced {mirror.has_synced}; {'; '.join(behind)}"
