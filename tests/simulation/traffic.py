"""Moves of agents and brokers, as they should be; and answers that are lost, requests and batches that arrive late."""

from broker.errors import LedgerLostError
from cluster_agent.mirror.actions import Publish, ReadClaim, WriteAllocation
from tests.simulation.agent import AgentRun, Call, describe
from tests.simulation.broker import Attempt, BrokerRun
from tests.simulation.cluster import KINDS, Kind
from tests.simulation.moves import PASSED, Moves
from tests.simulation.oracle import Violation
from tests.simulation.simulation import Side, Simulation

AGENT, BROKER = 12, 16  # how often each has its turn


def offer_turns(sim: Simulation, turns: Moves) -> None:
    """Whose turn it may be. Whoever has less to do than others lets most of its turns pass."""
    often = sim.plan.faults
    turns.add(sim.plan.slow * len(sim.late), late_arrives)
    agents: dict[str, list[AgentRun]] = {name: [] for name in sim.clusters}
    for agent in sim.agents:
        agents[agent.cluster.name].append(agent)
        turns.add(AGENT, agent_acts, agent)
    for name, alive in agents.items():
        if not alive:
            turns.add(6, agent_starts, name)
        elif len(alive) == 1:
            turns.add(_needs_another(sim, alive[0]), second_agent_starts, name)
    for broker in sim.brokers:
        turns.add(BROKER, broker_acts, broker)
    for attempt in sim.appends:
        _offer_append(sim, attempt, turns)
    if sim.oracle.is_lost:
        turns.add(2 if sim.ledger.messages else 0, broker_finds_it_lost)
    elif not sim.brokers:
        turns.add(6, broker_starts)
    elif len(sim.brokers) == 1:
        is_heard = sim.reaches(sim.brokers[0], "bus")
        turns.add(often["second brokers"] if is_heard else 6, second_broker_starts)
    if sim.asks:
        turns.add(4, ask_arrives)


def _needs_another(sim: Simulation, agent: AgentRun) -> float:
    if not sim.reaches(agent, "bus"):
        return 2
    often = sim.plan.faults["second agents"]
    if sim.plan.overlaps and any(isinstance(call.request, WriteAllocation) for call in agent.calls):
        return 10 * often  # in the moment in which it matters
    return often


def agent_acts(sim: Simulation, agent: AgentRun) -> object:
    """It has its turn."""
    pace = sim.rng.choice(sim.plan.paces)
    if pace > 1 and agent.runs and agent not in sim.paused and agent not in sim.cut:
        return _gets_ahead(sim, agent, pace)
    moves = Moves(sim.rng)
    if agent in sim.paused:
        _offer_answers_to_nobody(agent, moves)
    else:
        _offer_agent(sim, agent, moves)
    moves.fill(AGENT)
    return None if moves.do_one(sim) else PASSED


def _gets_ahead(sim: Simulation, agent: AgentRun, most: int) -> object:
    """So much of what it has to do is done, in any order, with nothing that goes wrong."""
    consumer, done = sim.consumers[agent.cluster.name], 0
    while done < most and agent.runs:
        behind, has_new = agent.behind(), consumer.has_new()
        drawn = sim.rng.randrange(3)
        if agent.calls and (drawn == 0 or not (behind or has_new)):
            call_moves(sim, agent.calls)
        elif behind and (drawn == 1 or not has_new):
            watch(sim, agent, behind)
        elif has_new:
            take_new(sim, agent)
        else:
            break
        done += 1
    return None if done else PASSED


def broker_acts(sim: Simulation, broker: BrokerRun) -> object:
    """The same."""
    if not sim.reaches(broker, "bus"):
        return PASSED
    for done in range(sim.rng.choice(sim.plan.paces)):
        moves = Moves(sim.rng)
        _offer_broker(sim, broker, moves)
        if done and broker.attempt in sim.appends:
            _offer_append(sim, broker.attempt, moves)
        moves.fill(BROKER)
        if not moves.do_one(sim):
            return None if done else PASSED
    return None


def side_of(call: Call) -> Side:
    """Where a request of an agent goes."""
    return "bus" if isinstance(call.request, Publish) else "API server"


# --- agents


def _offer_answers_to_nobody(agent: AgentRun, moves: Moves) -> None:
    """It stands still, but what it has sent arrives."""
    sent = [call for call in agent.calls if not call.is_done]
    moves.add(2 * len(sent), request_arrives, sent)


def _offer_agent(sim: Simulation, agent: AgentRun, moves: Moves) -> None:
    often = sim.plan.faults
    cut = sim.cut.get(agent)
    bus, api = cut is None or cut[1] != "bus", cut is None or cut[1] != "API server"
    if not agent.runs:
        moves.add(0 if agent.is_shut_out or cut else 10, start_step, agent)
        return
    calls = agent.calls
    if cut is not None and calls:
        waits = [call for call in calls if side_of(call) == cut[1]]
        calls = [call for call in calls if side_of(call) != cut[1]]
        moves.add(len(waits), times_out, [each for each in waits if _may_be_lost(each)] or waits)
    if calls:
        moves.add(4 * len(calls), call_moves, calls)
        _offer_losses(sim, calls, moves)
    if api:
        stalled = "claim" if cut is not None and cut[1] == "watch of claims" else ""
        behind = [kind for kind in agent.behind() if kind != stalled]
        moves.add(4 * len(behind), watch, agent, behind)
        moves.add(0 if stalled else often["lists again"] * len(KINDS), relist, agent)
    if bus:
        if agent.is_evicted():
            moves.add(0.1 if sim.plan.overlaps else 1, hear_of_eviction, agent)
        if agent.other_run():
            moves.add(0.05 if sim.plan.overlaps else 2, follow_run, agent)
        moves.add(0.5, beat, agent)
        _offer_consumer(sim, agent, moves)
    moves.add(0.3, tick, agent)


def _offer_losses(sim: Simulation, calls: list[Call], moves: Moves) -> None:
    lost, late = sim.plan.faults["lost answers"], sim.plan.faults["late requests"]
    if not lost and not late:
        return
    losable = [call for call in calls if _may_be_lost(call)]
    moves.add(lost * len(losable), answer_lost, losable)
    if late:
        publishes = [call for call in losable if isinstance(call.request, Publish)]
        writes = [call for call in losable if not isinstance(call.request, Publish)]
        moves.add(0.2 * late * len(publishes), request_late, publishes)
        moves.add(3 * late * len(writes), request_late, writes)


def _may_be_lost(call: Call) -> bool:
    return not call.is_reading and not isinstance(call.request, ReadClaim)  # else it would simply ask again


def _offer_consumer(sim: Simulation, agent: AgentRun, moves: Moves) -> None:
    consumer = sim.consumers[agent.cluster.name]
    if consumer.has_new():
        moves.add(6, take_new, agent)
    if consumer.taken:
        left = [each for each, (_, holder) in consumer.taken.items() if holder not in sim.agents]
        moves.add(2.0 * len(left), take_again, agent, left)
        again = list(consumer.taken)
        moves.add(sim.plan.faults["deliveries again"] * len(again), taken_comes_again, agent, again)


def agent_starts(sim: Simulation, cluster: str) -> None:
    """There was none."""
    sim.start_agent(cluster)


def second_agent_starts(sim: Simulation, cluster: str) -> None:
    """While another lives, or seems to."""
    sim.faults["second agents"] += 1
    sim.start_agent(cluster)


def start_step(sim: Simulation, agent: AgentRun) -> None:
    """The agent's start goes on."""
    for _ in range(sim.rng.choice((1, 2, 5))):
        lost = sim.rng.random() < 0.1 * sim.plan.faults["lost answers"]
        sim.say(f"{agent.instance}: {agent.start_step(answer_is_lost=lost)}{', answer lost' if lost else ''}")
        if agent.step == "run":
            break


def call_moves(sim: Simulation, calls: list[Call]) -> None:
    """It arrives, or its answer does, or both at once."""
    call = sim.rng.choice(calls)
    if not call.is_done:
        call.agent.carry_out(call)
        arrived = bool(call.is_done)  # carrying it out tells
        sim.say(f"{call} {'arrives' if arrived else 'is refused'}{_result(call)}")
        if not arrived or sim.rng.random() < 0.25:
            return
    sim.say(f"{call}: answered")
    call.agent.deliver(call)


def request_arrives(sim: Simulation, calls: list[Call]) -> None:
    """Its sender does not run, so the answer waits."""
    call = sim.rng.choice(calls)
    call.agent.carry_out(call)
    sim.say(f"{call} {'arrives' if call.is_done else 'is refused'}{_result(call)}")


def answer_lost(sim: Simulation, calls: list[Call]) -> None:
    """The request arrives, the answer does not."""
    call = sim.rng.choice(calls)
    if not call.is_done:
        call.agent.carry_out(call)
    sim.fault("lost answers", f"{call}: answer lost{_result(call)}")
    request = call.agent.time_out(call)
    assert request is None or isinstance(request, Publish), "it has arrived"


def request_late(sim: Simulation, calls: list[Call]) -> None:
    """Its sender waits no longer; it may arrive yet."""
    sim.faults["late requests"] += 1
    times_out(sim, calls)


def times_out(sim: Simulation, calls: list[Call]) -> None:
    """No answer."""
    call = sim.rng.choice(calls)
    request = call.agent.time_out(call)
    sim.say(f"{call}: timed out")
    if request is not None and not isinstance(request, ReadClaim):
        sim.late.append((call.agent, request))


def late_arrives(sim: Simulation) -> None:
    """What nobody waits for arrives, or is lost."""
    agent, request = sim.late.pop(sim.rng.randrange(len(sim.late)))
    if sim.rng.random() < 0.3:
        sim.say(f"{describe(request)} of {agent.instance} never arrives")
        return
    sim.say(f"{describe(request)} of {agent.instance} arrives late")
    agent.arrive(request)


def watch(sim: Simulation, agent: AgentRun, behind: list[Kind]) -> None:
    """The watch delivers."""
    kind = sim.rng.choice(behind)
    count = sim.rng.choice((1, 1, 2, 100))
    sim.say(f"{agent.instance}: its watch delivers {min(count, agent.lag(kind))} of {kind}")
    agent.watch(kind, count)


def relist(sim: Simulation, agent: AgentRun) -> None:
    """The watch has expired."""
    kind = sim.rng.choice(KINDS)
    sim.fault("lists again", f"{agent.instance}: lists {kind} again")
    agent.relist(kind)


def hear_of_eviction(_: Simulation, agent: AgentRun) -> None:
    """And end, to begin anew."""
    agent.follow_evictions()


def follow_run(sim: Simulation, agent: AgentRun) -> None:
    """It is not the last one."""
    sim.say(f"{agent.instance}: hears of another run")
    agent.follow_run()


def tick(sim: Simulation, agent: AgentRun) -> None:
    """Time passes for it."""
    agent.tick(sim.now_of(agent))


def beat(sim: Simulation, agent: AgentRun) -> None:
    """A heartbeat reaches the leader."""
    said, leader = agent.mirror.beat(), sim.leader()
    if said is None or leader is None:
        return
    ask = leader.hear(agent.cluster.name, said, sim.now_of(leader))
    if ask is not None:
        sim.say(f"{leader.instance} hears {said} of {agent.instance}: {ask}")
        sim.asks.append((agent.cluster.name, ask))


def take_new(sim: Simulation, agent: AgentRun) -> None:
    """The ledger's consumer goes on."""
    sim.say(f"{agent.instance}: gets the next decision")
    agent.take_decision()


def take_again(sim: Simulation, agent: AgentRun, sequences: list[int]) -> None:
    """One of those that an agent did not acknowledge."""
    sequence = sim.rng.choice(sequences)
    sim.say(f"{agent.instance}: gets decision {sequence} again")
    agent.take_decision(sequence)


def taken_comes_again(sim: Simulation, agent: AgentRun, sequences: list[int]) -> None:
    """What is not acknowledged comes again, to anyone."""
    sim.faults["deliveries again"] += 1
    take_again(sim, agent, sequences)


def ask_arrives(sim: Simulation) -> None:
    """The broker asks."""
    cluster, ask = sim.asks.pop(sim.rng.randrange(len(sim.asks)))
    agents = [each for each in sim.live_agents(cluster) if each.runs and sim.reaches(each, "bus")]
    heard = [each for each in agents if sim.rng.random() < 0.8]
    sim.say(f"{ask} reaches {[each.instance for each in heard]}")
    for agent in heard:
        agent.ask(ask)


# --- brokers


def _offer_broker(sim: Simulation, broker: BrokerRun, moves: Moves) -> None:
    often = sim.plan.faults
    if broker.must_look:
        moves.add(6, look, broker)
    elif broker.must_retry:
        moves.add(6, retry, broker)
    elif broker.phase == "leads" and not broker.is_waiting:
        if broker.unread():
            moves.add(8, read, broker)
        if broker.machine.has_work(sim.now_of(broker)):
            moves.add(12, step, broker)
        moves.add(often["rotations"], rotate, broker)
    elif broker.phase == "opens" and not broker.is_waiting:
        moves.add(8, open_on, broker)
    if broker.phase == "leads" and broker.world.leader_epoch < sim.oracle.leader_epoch:
        moves.add(0.5, hear_of_another_leader, broker)


def _offer_append(sim: Simulation, attempt: Attempt, moves: Moves) -> None:
    often = sim.plan.faults["lost appends"]
    broker = attempt.broker
    if broker.attempt is not attempt:
        moves.add(8, append, attempt)
        moves.add(0.5, append_dropped, attempt)
    elif broker in sim.paused:
        moves.add(0 if attempt.is_done else 8, append_arrives, attempt)
    elif not sim.reaches(broker, "bus"):
        moves.add(2, append_unanswered, attempt, False)
    else:
        moves.add(8, append, attempt)
        moves.add(often, append_lost, attempt, True)
        moves.add(often, append_lost, attempt, False)


def broker_starts(sim: Simulation) -> None:
    """There was none."""
    sim.start_broker()


def broker_finds_it_lost(sim: Simulation) -> None:
    """It starts all the same, although an operator should have stopped it."""
    try:
        sim.start_broker()
    except LedgerLostError as error:
        sim.brokers.pop()
        sim.say(f"it ends: {error}")
    else:
        raise Violation("a broker starts on a ledger that was cut")


def second_broker_starts(sim: Simulation) -> None:
    """While another lives, or seems to."""
    sim.faults["second brokers"] += 1
    sim.start_broker()


def look(sim: Simulation, broker: BrokerRun) -> None:
    """What became of its batch?"""
    sim.say(f"{broker.instance}: reads the ledger's tail")
    broker.read_tail()


def retry(sim: Simulation, broker: BrokerRun) -> None:
    """Nothing was there."""
    sim.say(f"{broker.instance}: appends the same batch again")
    sim.appends.append(broker.retry())


def read(sim: Simulation, broker: BrokerRun) -> None:
    """More of the log."""
    count = sim.rng.choice((1, 2, 4, 100))
    broker.read(count)
    sim.say(f"{broker.instance}: reads state up to {broker.read_up_to}")


def step(sim: Simulation, broker: BrokerRun) -> None:
    """The machine decides."""
    sim.say(f"{broker.instance}: steps")
    attempt = broker.step(sim.now_of(broker))
    if attempt is not None:
        sim.appends.append(attempt)


def rotate(sim: Simulation, broker: BrokerRun) -> None:
    """The segment is long enough."""
    sim.fault("rotations", f"{broker.instance}: closes the segment")
    sim.appends.append(broker.close_segment(sim.now_of(broker)))


def open_on(sim: Simulation, broker: BrokerRun) -> None:
    """The next segment's checkpoint goes on."""
    sim.say(f"{broker.instance}: opens the next segment")
    sim.appends.append(broker.go_on())


def hear_of_another_leader(sim: Simulation, broker: BrokerRun) -> None:
    """Its beacon."""
    sim.say(f"{broker.instance}: hears of another leader")
    broker.stop("hears of another leader")


def append(sim: Simulation, attempt: Attempt) -> None:
    """It arrives, and mostly its answer does."""
    if not attempt.is_done:
        attempt.broker.arrive(attempt)
        sim.say(f"{attempt} {'is stored' if attempt.was_stored else 'is refused'}")
        if sim.rng.random() < 0.3:
            return
    sim.appends.remove(attempt)
    attempt.broker.deliver(attempt)


def append_arrives(sim: Simulation, attempt: Attempt) -> None:
    """Its writer stands still."""
    attempt.broker.arrive(attempt)
    sim.say(f"{attempt} {'is stored' if attempt.was_stored else 'is refused'}")


def append_lost(sim: Simulation, attempt: Attempt, arrives: bool) -> None:
    """No answer comes."""
    sim.faults["lost appends"] += 1
    append_unanswered(sim, attempt, arrives)


def append_unanswered(sim: Simulation, attempt: Attempt, arrives: bool) -> None:
    """Its writer waits no longer; it may arrive yet."""
    if arrives and not attempt.is_done:
        attempt.broker.arrive(attempt)
    sim.say(f"{attempt}: {'answer lost' if attempt.is_done else 'timed out'}")
    if attempt.is_done:
        sim.appends.remove(attempt)
    attempt.broker.lose(attempt)


def append_dropped(sim: Simulation, attempt: Attempt) -> None:
    """Nobody waits for it, and it is lost."""
    sim.say(f"{attempt} never arrives")
    sim.appends.remove(attempt)


def _result(call: Call) -> str:
    return f": {[type(event).__name__ for event in call.answer]}" if call.is_done else ""
