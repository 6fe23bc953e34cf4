"""What goes wrong: processes that die or stand still, links that are cut, clocks, disks, and time that runs out.

Answers that are lost and requests that arrive late are in `traffic`, beside those that are not.
"""

from collections.abc import Callable

import msgspec

from cluster_agent.mirror.actions import Publish
from schemas.wire.codec import decode_entry, encode, peek_epoch
from schemas.wire.ledger import CheckpointClaims, ClaimKept
from schemas.wire.subjects import parse_state_subject, run_subject
from tests.simulation.agent import AgentRun
from tests.simulation.broker import BrokerRun
from tests.simulation.moves import Moves
from tests.simulation.plan import LOST_AFTER_S
from tests.simulation.simulation import Process, Side, Simulation
from tests.simulation.traffic import beat

CLOCK_JUMPS_MS = (-3_600_000, -30_000, -2_000, 2_000, 30_000, 3_600_000)
BAD_MOMENT = 10  # times as often, where something is under way that must not land later
ANY_TIME = ("agents paused", "brokers paused", "partitions", "clocks jumped", "state expired", "clusters silent")
EVENTS_LASTING = (10, 40, 120)  # a pause, or a cut


def offer_turns(sim: Simulation, turns: Moves) -> None:
    """All that may go wrong now, by itself."""
    often = sim.plan.faults
    for agent in sim.agents:
        turns.add(often["agents killed"], kill_agent, agent)
    for broker in sim.brokers:
        # In the middle of a rotation more often: it is short.
        turns.add((8 if broker.phase == "opens" else 1) * often["brokers killed"], kill_broker, broker)
    turns.add(sim.plan.together(MISHAPS), mishap)


def mishap(sim: Simulation) -> None:
    """One of those that do not depend on what there is."""
    moves = Moves(sim.rng)
    for kind, act in MISHAPS.items():
        is_bad_moment = kind == "ledgers lost" and sim.plan.is_late and sim.is_written()
        moves.add((BAD_MOMENT if is_bad_moment else 1) * sim.plan.faults[kind], act)
    moves.do_one(sim)


def happen(sim: Simulation) -> None:
    """One that can happen at any time, of a kind that has not happened yet."""
    kinds = [kind for kind in ANY_TIME if kind not in sim.faults]
    sim.rng.shuffle(kinds)
    for kind in kinds:
        MISHAPS[kind](sim)
        if kind in sim.faults:
            break
    sim.bury()


def end(sim: Simulation) -> None:
    """What has lasted long enough is over; what ended meanwhile does not go on."""
    for process in [each for each, until in sim.paused.items() if until <= sim.events]:
        del sim.paused[process]
        if process in sim.agents or process in sim.brokers:
            sim.say(f"{process.instance} goes on")
    for process in [each for each, (until, _) in sim.cut.items() if until <= sim.events]:
        del sim.cut[process]
        if process in sim.agents or process in sim.brokers:
            sim.say(f"{process.instance} reaches everything again")


def heal(sim: Simulation) -> None:
    """No fault lasts any longer."""
    sim.paused.clear()
    sim.cut.clear()
    sim.clock_ms.clear()


# --- processes


def kill_agent(sim: Simulation, agent: AgentRun) -> None:
    """Its memory is gone."""
    sim.faults["agents killed"] += 1
    agent.stop("killed")


def kill_broker(sim: Simulation, broker: BrokerRun) -> None:
    """The same."""
    sim.faults["brokers killed"] += 1
    broker.stop("killed")


def pause_agent(sim: Simulation) -> None:
    """It stands still, and goes on later with what it knew."""
    if sim.agents:
        _pause(sim, sim.rng.choice(sim.agents), "agents paused")


def pause_broker(sim: Simulation) -> None:
    """The same."""
    if sim.brokers:
        _pause(sim, sim.rng.choice(sim.brokers), "brokers paused")


def _pause(sim: Simulation, process: Process, kind: str) -> None:
    if process not in sim.paused:
        sim.fault(kind, f"{process.instance} stands still")
        sim.paused[process] = sim.events + sim.rng.choice(EVENTS_LASTING)


def cut(sim: Simulation) -> None:
    """A process is cut off from NATS or its API server, or its watch of claims stalls; what it has sent times out."""
    process = sim.rng.choice([*sim.agents, *sim.brokers, None])
    if process is None or process in sim.cut:
        return
    side: Side = "bus"
    if isinstance(process, AgentRun):
        side = sim.rng.choice(("bus", "bus", "API server", "watch of claims", "watch of claims"))
    sim.fault("partitions", f"{process.instance} is cut off from its {side}")
    sim.cut[process] = sim.events + sim.rng.choice(EVENTS_LASTING), side


def clock_jumps(sim: Simulation) -> None:
    """Of one process."""
    process = sim.rng.choice([*sim.agents, *sim.brokers, None])
    if process is not None:
        sim.clock_ms[process] = sim.clock_ms.get(process, 0) + sim.rng.choice(CLOCK_JUMPS_MS)
        sim.fault("clocks jumped", f"the clock of {process.instance} is off by {sim.clock_ms[process]} ms")


def cluster_falls_silent(sim: Simulation) -> None:
    """Nobody hears of it for so long that it counts as lost; the others beat on."""
    cluster = sim.rng.choice(list(sim.clusters))
    sim.fault("clusters silent", f"{cluster} is silent for long")
    for agent in sim.live_agents(cluster):
        if sim.rng.random() < 0.7:
            agent.stop("power cut")
    sim.bury()
    for _ in range(LOST_AFTER_S + 2):
        sim.pass_time(1_000)
        for agent in sim.agents:
            if agent.cluster.name != cluster and sim.reaches(agent, "bus"):
                beat(sim, agent)


# --- disks


def checkpoint_is_damaged(sim: Simulation) -> None:
    """The last one: its segment goes on, and somebody may start from it.

    Not while a broker is being elected, which looks again at what is before its entry, and would stop everything.
    """
    if any(broker.phase == "elects" for broker in sim.brokers):
        return
    found = sim.ledger.segment(sim.ledger.segments[-1])
    if not any(b"ledger.inputs" in message.payload or b"leader-elected" in message.payload for message in found):
        return
    for message in found:
        if b"checkpoint-claims" not in message.payload:
            continue
        entry = decode_entry(message.payload)
        if isinstance(entry, CheckpointClaims) and entry.claims:
            forgotten = [ClaimKept(each.cluster, each.uid, each.namespace, each.name) for each in entry.claims]
            harmed = encode(msgspec.structs.replace(entry, claims=forgotten))
            if harmed != message.payload:
                text = f"the checkpoint's entry {message.stream_sequence} forgets what claims have"
                sim.fault("checkpoints damaged", text)
                sim.ledger.damage(msgspec.structs.replace(message, payload=harmed))


def tail_is_lost(sim: Simulation) -> None:
    """DRA_STATE forgets the last messages that it has acknowledged, as a disk does that was not synced.

    Only what no batch and no order speaks of: a broker that stands behind the log's end does not go on, and says so.
    Nor the message with which a run of an agent began: its epoch would be given again, and nothing tells the two runs
    apart. Nor what a run has said that was replaced: it may have acknowledged a decision that the next one then never
    hears of. These are some of the reasons why disks must sync (docs/nats.md).
    """
    runs = [each for starts in sim.log.starts.values() for each in starts]
    for message in sim.log.archive[sim.oracle.position :]:
        starts = sim.log.starts.get(message.subject.split(".")[3])
        if starts and (peek_epoch(message.payload) or message.stream_sequence) < starts[-1]:
            runs.append(message.stream_sequence)
    batches = (attempt.batch.position for attempt in sim.appends)
    covered = max([sim.oracle.position, sim.told_last, *batches, *runs])
    lost = min(sim.log.last_sequence - covered, sim.rng.randint(1, 10))
    if lost <= 0:
        return
    sim.lost_until = max(sim.lost_until, sim.log.last_sequence)
    end = sim.log.last_sequence - lost
    sim.fault("state's tail lost", f"the log ends at {end} again")
    sim.log.lose_after(end)
    _forget_publishes(sim)  # the server was started again, and with it all connections
    for broker in sim.brokers:
        if broker.read_up_to > end:
            broker.stop("the log ends before what it has read")


def ledger_is_lost(sim: Simulation) -> None:
    """Its streams are gone, and an operator stops the brokers; one that stands still, or is cut off, goes on later.

    Not while a cluster is evicted: with the ledger that is lost too, and an operator would have to evict it again.
    """
    if sim.oracle.is_lost or not sim.ledger.messages or sim.oracle.evicted:
        return
    sim.fault("ledgers lost", f"the ledger, which ended at {sim.ledger.last_sequence}, is gone")
    _nats_restarts(sim)
    sim.ledger.lose()
    sim.oracle.lose(0)
    for consumer in sim.consumers.values():
        consumer.forget()
    for broker in sim.brokers:
        if sim.reaches(broker, "bus"):
            broker.stop("the ledger is gone")


def ledgers_tail_is_lost(sim: Simulation) -> None:
    """The ledger forgets the last entries that it has acknowledged, as a disk does that was not synced.

    That this is noticed is promised where somebody who has written or read them still lives (docs/reliability.md). So
    the leader does, which sees it with its next append, and the entries are its own. None of them is about a cluster:
    what operators have ordered they would have to order again.
    """
    leader, segment = sim.leader(), sim.ledger.segments[-1]
    if sim.oracle.is_lost or leader is None or leader.world.segment != segment:
        return
    kept = max(sim.oracle.leader_epoch, sim.oracle.last_order, leader.world.checkpoint_last)
    lost = min(sim.ledger.last_sequence - kept, sim.rng.randint(1, 10))
    if lost <= 0 or leader.world.leader_epoch != sim.oracle.leader_epoch:
        return
    end = sim.ledger.last_sequence - lost
    sim.fault("ledger's tail lost", f"the ledger ends at {end} again")
    _nats_restarts(sim)
    sim.ledger.lose(end)
    sim.oracle.lose(end)
    for consumer in sim.consumers.values():
        consumer.forget()
    leader.find_entries_lost()


def _nats_restarts(sim: Simulation) -> None:
    """With it, what travels is lost."""
    _forget_publishes(sim)
    for attempt in sim.appends:
        if attempt.broker.attempt is attempt:
            attempt.broker.lose(attempt)
    sim.appends.clear()


# --- time that runs out


def subject_expires(sim: Simulation) -> None:
    """Only what every leader has read: what may expire before is in `log_expires`."""
    old = [
        subject
        for subject in sim.log.subjects()
        if (last := sim.log.last(subject)) and last.stream_sequence <= sim.oracle.position
    ]
    # A living agent says again in time that its sync is finished, so that its run does not expire under it.
    kept = {run_subject(name) for name in sim.clusters if sim.live_agents(name)}
    if old:
        subject = sim.rng.choice(old)
        parsed = parse_state_subject(subject)
        assert parsed is not None
        if subject not in kept and _may_expire(sim, parsed.cluster):
            sim.fault("state expired", f"{subject} expires")
            sim.log.expire_subject(subject)
            _forget_publishes(sim)


def _may_expire(sim: Simulation, cluster: str) -> bool:
    """Whether the cluster's agents were silent for as long as messages are kept.

    Where that makes no difference to an agent, its messages expire under it, too. But a claim whose class is not
    brokered any more, and whose messages have expired, is not told of again: a broker that lives knows by then that
    the cluster is lost.
    """
    if sim.plan.publishes_all or not sim.plan.faults["change the class"]:
        return True
    if not sim.brokers:
        return not sim.appends and not sim.live_agents(cluster)
    has_read_all = all(each.stream_sequence <= sim.oracle.position for each in sim.log.last_messages(cluster))
    return has_read_all and sim.oracle.liveness.get(cluster) == "Lost" and not sim.live_agents(cluster)


def log_expires(sim: Simulation) -> None:
    """Everything up to some message, read or not; but what a living agent publishes again in time stays."""
    if sim.rng.random() < 0.5:
        sim.say("everything stands still for days")
        for agent in sim.agents:
            agent.stop("power cut")
        for broker in sim.brokers:
            broker.stop("power cut")
        sim.bury()
    until = sim.log.last_sequence
    for name in sim.clusters:
        for agent in sim.live_agents(name):
            kept = [message.stream_sequence for message in sim.log.last_messages(name)]
            until = min([until, *(sequence - 1 for sequence in kept)])
            if not agent.runs:
                until = 0
        if not _may_expire(sim, name):
            until = min([until, *(message.stream_sequence - 1 for message in sim.log.last_messages(name))])
    if until > 0:
        until = sim.rng.randint(1, until)
        sim.fault("state expired", f"state up to {until} expires")
        sim.log.expire_up_to(until)
        _forget_publishes(sim)


def _forget_publishes(sim: Simulation) -> None:
    """No publish travels so long, or outlives its server. (A write to an API server may: nobody promised else.)"""
    sim.late = [each for each in sim.late if not isinstance(each[1], Publish)]


def _state_expires(sim: Simulation) -> None:
    sim.rng.choice((subject_expires, log_expires))(sim)


MISHAPS: dict[str, Callable[[Simulation], None]] = {
    "agents paused": pause_agent,
    "brokers paused": pause_broker,
    "partitions": cut,
    "clocks jumped": clock_jumps,
    "clusters silent": cluster_falls_silent,
    "checkpoints damaged": checkpoint_is_damaged,
    "state expired": _state_expires,
    "state's tail lost": tail_is_lost,
    "ledgers lost": ledger_is_lost,
    "ledger's tail lost": ledgers_tail_is_lost,
}
