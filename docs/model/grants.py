"""Claims, grants and writes that land late: sections "State" and "What frees a device" of docs/protocol.md as a model.

Each cluster has one agent at a time, which may crash; its writes to the API server are guarded by a version, and may
land long after their answer was given up. The broker reads what agents publish, in order, and grants devices. Operators
evict clusters and readmit them; the ledger may be lost and is rebuilt from the clusters.

Left out, and left to the simulator: two agents of one cluster at once, messages that expire, watches that lag, and
brokers that start again (`ledger` has two of them).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

RULES = {
    "settle by the decision's number": "a message without an allocation frees the device, whatever it has settled",
    "read and void": "a write that was refused or got no answer is reported as failed without a voiding write",
    "wait for every cluster": "devices are granted before every cluster has finished a full sync",
    "adopt what is found": "an allocation that no grant covers is not taken for a grant",
    "silence frees nothing": "a cluster that is evicted without being cut off loses its grants",
    "the evicted are not believed": "what an evicted cluster has said before is believed after its return",
    "clear before the fence is lifted": "a readmitted cluster keeps the allocations whose grants have ended",
    "void before the fence is lifted": "a readmitted cluster clears what it has, and voids no write that travels",
    "rebuild above every number": "a rebuilt ledger counts from one again",
    "rebuild voids": "a ledger is rebuilt without a voiding write on what is not allocated",
    "rebuild waits for every cluster": "a rebuilt ledger grants before every cluster was heard again",
    "a gang in one batch": "the claims of a gang are granted one by one",
}

Standing = Literal["member", "quarantined", "cut off", "cleaning", "returning"]


class Claim(NamedTuple):
    """A ResourceClaim in its API server.

    by: the decision that its allocation is of; 0: it was there before anything, or there is none; -1: a stranger's,
    which nobody can keep from being allocated twice.
    """

    version: int = 1
    device: int = 0
    by: int = 0
    is_gone: bool = False
    is_held: bool = False  # it has our finalizer


class Write(NamedTuple):
    """A PUT of an allocation that is under way. waits: its agent waits for the answer."""

    claim: int
    guard: int
    device: int
    decision: int
    waits: bool


class Agent(NamedTuple):
    """An agent's memory. jobs: by claim; told: what was published last, by claim."""

    is_up: bool = True
    run: int = 1
    jobs: tuple[str, ...] = ()  # "": nothing under way; "sent"; "doubt": read it, and void
    settled: tuple[int, ...] = ()  # the last decision whose outcome is known, by claim
    told: tuple["Told | None", ...] = ()
    has_synced: bool = False
    cleaned: tuple[bool, ...] = ()  # what a readmission or a rebuild asks for is done


class Told(NamedTuple):
    """A claim's message. settled: the last decision whose outcome is known."""

    claim: Claim
    settled: int


class Message(NamedTuple):
    """In DRA_STATE. claim: of which it is, -1 for "sync finished"; living: claims that the sync names."""

    cluster: int
    run: int
    claim: int = -1
    told: Told | None = None
    living: tuple[int, ...] = ()


class Grant(NamedTuple):
    """A hold on a device. decision: its number in the ledger; an adopted grant has one, too."""

    claim: int
    device: int
    decision: int
    is_adopted: bool


class Decision(NamedTuple):
    """The last Allocate for a claim. version: of the claim, as it was decided on."""

    number: int = 0
    device: int = 0
    version: int = 0
    is_over: bool = True  # its outcome is known, or its claim is gone


class Budget(NamedTuple):
    """How many of each fault may still come."""

    late: int = 0
    crash: int = 0
    clear: int = 0
    delete: int = 0
    stranger: int = 0
    evict: int = 0
    fence: int = 0
    lose_ledger: int = 0


NO_FAULTS = Budget()


class State(NamedTuple):
    """Everything. number: the ledger's last; known: what the broker believes of each claim."""

    claims: tuple[Claim, ...]
    writes: tuple[Write, ...]
    agents: tuple[Agent, ...]
    log: tuple[Message, ...]  # that the broker has not read
    number: int
    grants: tuple[Grant, ...]
    decisions: tuple[Decision, ...]
    known: tuple[Told | None, ...]
    heard: tuple[bool, ...]
    least_run: tuple[int, ...]  # a lower one is not believed
    standing: tuple[Standing, ...]
    is_rebuilt: bool  # a ledger before this one was lost
    wrong: str
    faults: Budget


def put(items: tuple, index: int, item: object) -> tuple:  # type: ignore[type-arg]
    """The tuple with another item at `index`."""
    return (*items[:index], item, *items[index + 1 :])


@dataclass(frozen=True)
class Grants:
    """The model.

    cluster_of: by claim. found: devices that claims have before anything. gang: claims that are granted together or not
    at all. without: the rule that is left out.
    """

    cluster_of: tuple[int, ...]
    devices: int = 1
    faults: Budget = NO_FAULTS
    found: dict[int, int] = field(default_factory=dict)
    gang: tuple[int, ...] = ()
    without: str = ""

    def begin(self) -> State:
        """Agents run, and nobody was heard."""
        count, clusters = len(self.cluster_of), range(max(self.cluster_of) + 1)
        agent = Agent(jobs=("",) * count, settled=(0,) * count, told=(None,) * count, cleaned=(True,) * count)
        return State(
            claims=tuple(Claim(device=self.found.get(each, 0)) for each in range(count)),
            writes=(),
            agents=(agent,) * len(clusters),
            log=(),
            number=0,
            grants=(),
            decisions=(Decision(),) * count,
            known=(None,) * count,
            heard=(False,) * len(clusters),
            least_run=(1,) * len(clusters),
            standing=("member",) * len(clusters),
            is_rebuilt=False,
            wrong="",
            faults=self.faults,
        )

    def calm(self, state: State) -> State:
        """No fault comes any more."""
        return state._replace(faults=Budget())

    def has(self, rule: str) -> bool:
        """Whether the rule is kept."""
        assert rule in RULES, rule
        return self.without != rule

    # --- what must be

    def wrong(self, state: State) -> str:
        """No device is allocated twice; a cluster that is cut off does not count."""
        if state.wrong:
            return state.wrong
        seen: dict[int, int] = {}
        for index, claim in enumerate(state.claims):
            if (
                claim.device
                and not claim.is_gone
                and state.standing[self.cluster_of[index]] not in ("cut off", "cleaning")
            ):
                if claim.by < 0:
                    continue
                if claim.device in seen:
                    return f"device {claim.device} is allocated to claims {seen[claim.device]} and {index}"
                seen[claim.device] = index
        return ""

    def unfinished(self, state: State) -> str:
        """At rest: grants and allocations are the same, and who can have a device has one."""
        live = {index: claim for index, claim in enumerate(state.claims) if not claim.is_gone}
        held = {grant.claim: grant.device for grant in state.grants}
        for index, decision in enumerate(state.decisions):
            if not decision.is_over:
                return f"decision {decision.number} for claim {index} is never settled"
        for grant in state.grants:
            if grant.claim not in live or live[grant.claim].device != grant.device:
                return f"grant {grant.decision} stays, and claim {grant.claim} has no such allocation"
        for index, claim in live.items():
            if claim.device and index not in held and claim.device not in held.values():
                return f"nobody knows of the allocation of claim {index}"
        used = set(held.values()) | {claim.device for claim in live.values()}
        free = self.devices - len(used - {0})
        waiting = [index for index, claim in live.items() if not claim.device]
        gang = [index for index in self.gang if index in live]
        placed = [index for index in gang if live[index].device]
        if placed and len(placed) < len(gang):
            return f"of the gang {gang} only {placed} have a device"
        alone = [index for index in waiting if index not in gang]
        if free and alone:
            return f"a device is free, and claim {alone[0]} waits for ever"
        if gang and not placed and free >= len(gang):
            return f"{free} devices are free, and the gang waits for ever"
        return ""

    # --- what happens

    def moves(self, state: State) -> Iterator[tuple[str, State]]:
        """Those that need no fault first, in the order in which they bring it to rest."""
        yield from self._writes_land(state)
        for cluster, agent in enumerate(state.agents):
            if agent.is_up:
                yield from self._agent(state, cluster, agent)
            elif state.standing[cluster] not in ("quarantined", "cut off"):
                yield f"an agent of cluster {cluster} starts", self._starts(state, cluster)
        if state.log:
            yield f"the broker reads {_of(state.log[0])}", self._read(state)
        yield from self._readmissions(state)
        yield from self._faults(state)

    def _writes_land(self, state: State) -> Iterator[tuple[str, State]]:
        for index, write in enumerate(state.writes):
            claim = state.claims[write.claim]
            rest = state._replace(writes=state.writes[:index] + state.writes[index + 1 :])
            lands = claim.version == write.guard and not claim.device and not claim.is_gone
            after = rest
            if lands:
                made = claim._replace(version=claim.version + 1, device=write.device, by=write.decision)
                after = rest._replace(claims=put(state.claims, write.claim, made))
                after = after._replace(wrong=self._why_not_allocate(state, write))
            name = f"the write of decision {write.decision} for claim {write.claim}"
            if write.waits:
                job = "" if lands else "doubt"
                settled = write.decision if lands else None
                yield f"{name} {'lands' if lands else 'is refused'}", self._job(after, write.claim, job, settled)
            else:
                yield f"{name} {'lands late' if lands else 'is refused, and nobody hears of it'}", after
                if lands:
                    yield f"{name} is lost", rest

    def _why_not_allocate(self, state: State, write: Write) -> str:
        if state.standing[self.cluster_of[write.claim]] in ("cut off", "cleaning"):
            return ""
        if state.is_rebuilt or any(grant.decision == write.decision for grant in state.grants):
            return ""  # after a rebuild the number alone says nothing; what is allocated twice is seen
        return f"decision {write.decision} is written for claim {write.claim}, and its grant has ended"

    def _job(self, state: State, index: int, job: str, settled: int | None = None) -> State:
        cluster = self.cluster_of[index]
        agent = state.agents[cluster]
        agent = agent._replace(jobs=put(agent.jobs, index, job))
        if settled is not None:
            agent = agent._replace(settled=put(agent.settled, index, max(settled, agent.settled[index])))
        return state._replace(agents=put(state.agents, cluster, agent))

    # --- agents

    def _agent(self, state: State, cluster: int, agent: Agent) -> Iterator[tuple[str, State]]:
        mine = [index for index, owner in enumerate(self.cluster_of) if owner == cluster]
        busy = False
        for index in mine:
            claim, decision = state.claims[index], state.decisions[index]
            if not agent.cleaned[index]:
                busy = True
                if agent.jobs[index] != "sent":
                    yield f"the agent cleans claim {index}", self._clean(state, cluster, index)
                continue
            if agent.jobs[index] == "doubt":
                busy = True
                yield f"the agent reads claim {index}, to settle {decision.number}", self._settle(state, index)
            elif agent.jobs[index] == "" and decision.number > agent.settled[index] and not claim.is_gone:
                busy = True
                yield from self._carry_out(state, index, decision)
            if agent.told[index] != (told := Told(claim, agent.settled[index])):
                busy = True
                message = Message(cluster, agent.run, index, told)
                after = agent._replace(told=put(agent.told, index, told))
                said = state._replace(agents=put(state.agents, cluster, after), log=(*state.log, message))
                yield f"the agent says: claim {index} has {claim.device or 'nothing'}, settled {told.settled}", said
        if not busy and not agent.has_synced and "sent" not in agent.jobs:
            living = tuple(index for index in mine if not state.claims[index].is_gone)
            message = Message(cluster, agent.run, living=living)
            after = state._replace(agents=put(state.agents, cluster, agent._replace(has_synced=True)))
            yield f"the agent of cluster {cluster} has finished a sync", after._replace(log=(*state.log, message))

    def _carry_out(self, state: State, index: int, decision: Decision) -> Iterator[tuple[str, State]]:
        claim = state.claims[index]
        if claim.device == decision.device and claim.by == decision.number:
            yield f"the agent finds decision {decision.number} done", self._job(state, index, "", decision.number)
            return
        if decision.version != claim.version:
            changed = f"the agent cannot write decision {decision.number}: the claim has changed"
            yield changed, self._job(state, index, "doubt")
            return
        if not claim.is_held:  # guarded by the decision's version; what it returns guards the next write
            claim = claim._replace(version=claim.version + 1, is_held=True)
            state = state._replace(claims=put(state.claims, index, claim))
        write = Write(index, claim.version, decision.device, decision.number, waits=True)
        sent = self._job(state, index, "sent")
        yield (
            f"the agent writes decision {decision.number}",
            sent._replace(writes=tuple(sorted((*state.writes, write)))),
        )

    def _settle(self, state: State, index: int) -> State:
        """A consistent read; where nothing is allocated, a write that voids what was sent before."""
        claim, decision = state.claims[index], state.decisions[index]
        if not claim.device and not claim.is_gone and self.has("read and void"):
            state = state._replace(claims=put(state.claims, index, claim._replace(version=claim.version + 1)))
        return self._job(state, index, "", decision.number)

    def _clean(self, state: State, cluster: int, index: int) -> State:
        """What a readmission or a rebuild asks for: no allocation that no grant covers, no write that may land."""
        claim = state.claims[index]
        is_rebuild = state.standing[cluster] == "member"
        clears = claim.device and not is_rebuild and self.has("clear before the fence is lifted")
        voids = not claim.device and self.has("rebuild voids" if is_rebuild else "void before the fence is lifted")
        if (clears or voids) and not claim.is_gone:
            state = state._replace(claims=put(state.claims, index, _cleared(claim)))
        agent = state.agents[cluster]
        agent = agent._replace(cleaned=put(agent.cleaned, index, True), jobs=put(agent.jobs, index, ""))
        # All decisions of before are settled by that.
        agent = agent._replace(settled=put(agent.settled, index, max(agent.settled[index], state.number)))
        return state._replace(agents=put(state.agents, cluster, agent))

    def _starts(self, state: State, cluster: int) -> State:
        """A new run: it knows what the last messages say, and nothing of what was under way."""
        before = state.agents[cluster]
        after = before._replace(is_up=True, run=before.run + 1, has_synced=False, jobs=("",) * len(self.cluster_of))
        settled = tuple(told.settled if told else 0 for told in before.told)
        after = after._replace(settled=settled)
        if state.standing[cluster] in ("cleaning", "returning"):
            after = after._replace(told=(None,) * len(self.cluster_of))
        if state.standing[cluster] == "cleaning":
            after = after._replace(cleaned=(False,) * len(self.cluster_of))
        return state._replace(agents=put(state.agents, cluster, after))

    # --- the broker

    def _read(self, state: State) -> State:
        message, state = state.log[0], state._replace(log=state.log[1:])
        cluster = message.cluster
        is_out = state.standing[cluster] in ("quarantined", "cut off")
        if message.run < state.least_run[cluster] or (is_out and self.has("the evicted are not believed")):
            return state
        state = state._replace(least_run=put(state.least_run, cluster, message.run))
        if message.told is not None:
            return self._decide(self._take_in(state, message.claim, message.told))
        for index, owner in enumerate(self.cluster_of):
            if owner == cluster and index not in message.living:
                state = self._forget(state, index)
        state = state._replace(heard=put(state.heard, cluster, True))
        if state.standing[cluster] in ("cleaning", "returning"):
            state = state._replace(standing=put(state.standing, cluster, "member"))
        return self._decide(state)

    def _take_in(self, state: State, index: int, told: Told) -> State:
        """A claim's message: rules (a) and (b), and adoption."""
        if told.claim.is_gone:
            return self._forget(state, index)
        state = state._replace(known=put(state.known, index, told))
        decision = state.decisions[index]
        if told.settled >= decision.number:
            state = state._replace(decisions=put(state.decisions, index, decision._replace(is_over=True)))
        for grant in [each for each in state.grants if each.claim == index]:
            shows_it = told.claim.device == grant.device and (grant.is_adopted or told.claim.by == grant.decision)
            is_settled = grant.is_adopted or told.settled >= grant.decision
            if not shows_it and (is_settled or not self.has("settle by the decision's number")):
                state = state._replace(grants=tuple(each for each in state.grants if each != grant))
        return state

    def _forget(self, state: State, index: int) -> State:
        """It is gone: whatever it held or waited for ends."""
        decision = state.decisions[index]._replace(is_over=True)
        return state._replace(
            grants=tuple(each for each in state.grants if each.claim != index),
            known=put(state.known, index, None),
            decisions=put(state.decisions, index, decision),
        )

    def _decide(self, state: State) -> State:
        """Adopt what is found, then grant what is free: one batch."""
        for index, told in enumerate(state.known):
            if told is None or not told.claim.device or not self.has("adopt what is found"):
                continue
            if state.standing[self.cluster_of[index]] != "member":
                continue
            is_held = any(grant.device == told.claim.device for grant in state.grants)
            if not is_held:
                number = state.number + 1
                grant = Grant(index, told.claim.device, number, is_adopted=True)
                state = state._replace(number=number, grants=tuple(sorted((*state.grants, grant))))
        waits = self.has("rebuild waits for every cluster" if state.is_rebuilt else "wait for every cluster")
        # One that is cut off holds nothing that counts.
        heard = all(
            known or standing in ("cut off", "cleaning")
            for known, standing in zip(state.heard, state.standing, strict=True)
        )
        if not heard and waits:
            return state
        gang = [index for index in self.gang if self._may_be_granted(state, index)]
        free = self._free(state)
        whole = self.has("a gang in one batch")
        members = [index for index in self.gang if state.known[index] is not None]
        # What is left of a gang comes before all others: the device of a write that failed is given again in one batch.
        has_begun = any(grant.claim in self.gang for grant in state.grants)
        if whole and gang and (has_begun or set(gang) == set(members)) and len(free) >= len(gang):
            for index, device in zip(gang, free, strict=False):
                state = self._allocate(state, index, device)
        alone = [index for index in range(len(self.cluster_of)) if index not in self.gang or not whole]
        if state.is_rebuilt:
            alone.reverse()  # nobody remembers who came first
        for index in alone:
            free = self._free(state)
            if free and self._may_be_granted(state, index):
                state = self._allocate(state, index, free[0])
        return state

    def _free(self, state: State) -> list[int]:
        """What nobody holds, and no message that is believed shows."""
        held = {grant.device for grant in state.grants}
        shown = {told.claim.device for told in state.known if told is not None}
        return [device for device in range(1, self.devices + 1) if device not in held | shown]

    def _may_be_granted(self, state: State, index: int) -> bool:
        told = state.known[index]
        return (
            told is not None
            and not told.claim.device
            and state.standing[self.cluster_of[index]] == "member"
            and state.decisions[index].is_over
            and not any(grant.claim == index for grant in state.grants)
        )

    def _allocate(self, state: State, index: int, device: int) -> State:
        told = state.known[index]
        assert told is not None
        number = state.number + 1
        return state._replace(
            number=number,
            grants=tuple(sorted((*state.grants, Grant(index, device, number, is_adopted=False)))),
            decisions=put(state.decisions, index, Decision(number, device, told.claim.version, is_over=False)),
        )

    # --- operators

    def _evict(self, state: State, cluster: int, is_cut_off: bool) -> State:
        frees = is_cut_off or not self.has("silence frees nothing")
        mine = [index for index, owner in enumerate(self.cluster_of) if owner == cluster]
        if frees:
            for index in mine:
                state = self._forget(state, index)
        agent = state.agents[cluster]
        least = agent.run + 1 if self.has("the evicted are not believed") else state.least_run[cluster]
        state = self._ends(state, cluster)
        state = state._replace(
            standing=put(state.standing, cluster, "cut off" if is_cut_off else "quarantined"),
            least_run=put(state.least_run, cluster, least),
            heard=put(state.heard, cluster, state.heard[cluster] and not is_cut_off),
        )
        return self._decide(state)

    def _readmissions(self, state: State) -> Iterator[tuple[str, State]]:
        for cluster, standing in enumerate(state.standing):
            if standing == "quarantined":
                back: Standing = "returning"
            elif standing == "cut off":
                back = "cleaning"
            else:
                continue
            yield f"cluster {cluster} is readmitted", state._replace(standing=put(state.standing, cluster, back))

    def _rebuild(self, state: State) -> State:
        """The ledger is lost: another one begins with what the clusters say."""
        count, clusters = len(self.cluster_of), len(state.agents)
        number = state.number if self.has("rebuild above every number") else 0
        none: tuple[None, ...] = (None,) * count
        agents = tuple(
            agent._replace(
                run=agent.run + 1,
                told=none,
                has_synced=False,
                jobs=("",) * count,
                cleaned=(False,) * count,
            )
            for agent in state.agents
        )
        return state._replace(
            number=number,
            grants=(),
            decisions=(Decision(),) * count,
            known=none,
            heard=(False,) * clusters,
            least_run=tuple(agent.run for agent in agents),
            agents=agents,
            writes=tuple(sorted({write._replace(waits=False) for write in state.writes})),
            log=(),
            is_rebuilt=True,
        )

    # --- faults

    def _ends(self, state: State, cluster: int) -> State:
        """The agent's process ends; what it has sent travels on."""
        writes = tuple(
            sorted(
                write._replace(waits=False) if self.cluster_of[write.claim] == cluster else write
                for write in state.writes
            )
        )
        agent = state.agents[cluster]._replace(is_up=False, jobs=("",) * len(self.cluster_of), has_synced=False)
        return state._replace(agents=put(state.agents, cluster, agent), writes=writes)

    def _faults(self, state: State) -> Iterator[tuple[str, State]]:
        left = state.faults
        if left.late:
            after = state._replace(faults=left._replace(late=left.late - 1))
            for write in state.writes:
                if write.waits:
                    others = tuple(each for each in state.writes if each != write)
                    given_up = after._replace(writes=tuple(sorted((*others, write._replace(waits=False)))))
                    yield f"no answer comes for decision {write.decision}", self._job(given_up, write.claim, "doubt")
        if left.crash:
            after = state._replace(faults=left._replace(crash=left.crash - 1))
            for cluster, agent in enumerate(state.agents):
                if agent.is_up:
                    yield f"the agent of cluster {cluster} crashes", self._ends(after, cluster)
        for index, claim in enumerate(state.claims):
            if claim.is_gone:
                continue
            if left.clear and claim.device:
                after = state._replace(faults=left._replace(clear=left.clear - 1))
                cleared = put(state.claims, index, _cleared(claim))
                yield f"somebody clears claim {index}", after._replace(claims=cleared)
            if left.delete and not claim.device:
                after = state._replace(faults=left._replace(delete=left.delete - 1))
                deleted = put(state.claims, index, claim._replace(version=claim.version + 1, is_gone=True))
                yield f"claim {index} is deleted", after._replace(claims=deleted)
            if left.stranger and not claim.device:
                after = state._replace(faults=left._replace(stranger=left.stranger - 1))
                taken = put(state.claims, index, claim._replace(version=claim.version + 1, device=1, by=-1))
                yield f"a stranger allocates device 1 to claim {index}", after._replace(claims=taken)
        if left.evict or left.fence:
            for cluster, standing in enumerate(state.standing):
                if standing != "member" or cluster:  # one of them is enough, for they are alike
                    continue
                if left.fence:
                    after = state._replace(faults=left._replace(fence=left.fence - 1))
                    yield f"cluster {cluster} is evicted, and is cut off", self._evict(after, cluster, is_cut_off=True)
                if left.evict:
                    after = state._replace(faults=left._replace(evict=left.evict - 1))
                    yield f"cluster {cluster} is evicted", self._evict(after, cluster, is_cut_off=False)
        if left.lose_ledger and all(standing == "member" for standing in state.standing):
            after = state._replace(faults=left._replace(lose_ledger=left.lose_ledger - 1))
            yield "the ledger is lost, and rebuilt", self._rebuild(after)


def _cleared(claim: Claim) -> Claim:
    """Without an allocation, and at another version in any case."""
    return claim._replace(version=claim.version + 1, device=0, by=0)


def _of(message: Message) -> str:
    return f"what cluster {message.cluster} says of {'its sync' if message.told is None else f'claim {message.claim}'}"


def without(model: Grants, rule: str) -> Grants:
    """The model with a rule left out."""
    assert rule in RULES, rule
    return replace(model, without=rule)
