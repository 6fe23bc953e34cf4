"""The histories C1 to C14 that the protocol's model found: what goes wrong when one rule is left out.

Each is told twice: with the real code, where its bad end must not happen and everything comes to rest; and with a test
double that leaves the rule out, where it must, so that the telling is known to be able to fail.
east has the claim `u`, west the claim `w`; there is one device, `d`. A and B are agents of east. L1 is the decision
that gives d to u; rv2 and so on are resourceVersions.
"""

from typing import Any

import msgspec
import pytest

from broker.machine import Machine, recovery
from broker.world import fold
from broker.world.records import Grant
from broker.world.world import World
from cluster_agent.mirror import Mirror
from cluster_agent.mirror.actions import (
    Action,
    Cleaning,
    DecisionSeen,
    Event,
    LastMessage,
    Publish,
    PublishRefused,
    ReadClaim,
    RunTaken,
    Void,
    WriteAllocation,
    WriteFinalizers,
    Wrote,
)
from cluster_agent.mirror.tracked import metadata_of
from schemas.wire.bus import StoredMessage
from schemas.wire.calls import Ask, Beat
from schemas.wire.codec import decode_claim_state, decode_entry
from schemas.wire.ledger import Adopted, Allocate, FenceLifted, GrantEnded, OutcomeRecorded, SegmentOpened
from schemas.wire.state import ObjectName, SyncFinished
from schemas.wire.subjects import state_subject
from tests.believing import believe_again
from tests.protocol.harness import POOL, AllocatedTwiceError, GrantLeakedError, Late, Stage, UnsettledError
from tests.simulation.agent import AgentRun, Call
from tests.simulation.broker import BrokerRun
from tests.simulation.cluster import version_of
from tests.simulation.oracle import Violation, same_by_ledger
from tests.simulation.rules import BelievesEmptySegments, Recomputes


def at_rest(**doubles: Any) -> Stage:
    """All agents run, the broker leads, every cluster was heard; there are no claims yet."""
    stage = Stage(**doubles)
    stage.rest()
    return stage


def u_is_decided(stage: Stage) -> tuple[AgentRun, str]:
    """Allocate L1 u=d, decided on rv2 (of u); then w comes and waits for d. Returns A and u."""
    u = stage.claim("east", "u")
    stage.tell("east")
    stage.claim("west", "w")
    stage.tell("west")
    return stage.agent_of("east"), u


def outcomes(stage: Stage) -> list[str]:
    """What became of each decision, in the ledger's order."""
    return [each.outcome for each in stage.entries(OutcomeRecorded)]


# --- C1, C2: a PUT that is still under way


class VoidsInWordsOnly(AgentRun):
    """Says that it has written the mark that voids earlier writes, and has not."""

    def carry_out(self, call: Call) -> None:
        if isinstance(call.request, Void):
            call.is_done = True
            call.answer = [Wrote(call.request, call.request.object, version_of(call.request.object))]
        else:
            super().carry_out(call)


def a_put_outlives_its_agent(stage: Stage) -> Late:
    a, _ = u_is_decided(stage)  # 1
    a.take_decision()
    stage.do(a, WriteFinalizers)  # 2 rv2 -> 3
    (put,) = stage.kill(a)  # 3, 4 A sends PUT status, guard rv3, and crashes; the PUT travels
    assert isinstance(put.request, WriteAllocation)
    return put


def tell_c1(stage: Stage) -> None:
    put = a_put_outlives_its_agent(stage)
    stage.agent("east")  # 5 A': epoch, last message, list (rv3, no allocation)
    stage.rest()  # 6 A' takes L1 again, which was not decided on rv3; 7 reports {no allocation, L1 Conflict}
    put.arrives()  # 8
    stage.rest()


def test_c1_a_decision_is_not_settled_while_a_put_of_a_crashed_agent_can_land() -> None:
    stage = at_rest()
    tell_c1(stage)
    assert outcomes(stage) == ["Conflict", "Applied"]
    assert stage.allocated() == {"west/w": ["d"]}


def test_c1_without_the_voiding_write() -> None:
    with pytest.raises(AllocatedTwiceError):
        tell_c1(at_rest(agent=VoidsInWordsOnly))


def tell_c2(stage: Stage) -> None:
    put = a_put_outlives_its_agent(stage)
    (uid,) = stage.clusters["east"].keys
    stage.log.expire_subject(state_subject("east", "claim", uid))
    stage.agent("east")  # A' reads no allocation, and no message says that anything was decided
    stage.rest()
    put.arrives()
    stage.rest()


def test_c2_nor_where_the_claims_messages_have_expired() -> None:
    stage = at_rest()
    tell_c2(stage)
    assert stage.allocated() == {"west/w": ["d"]}


def test_c2_without_the_voiding_write() -> None:
    with pytest.raises(AllocatedTwiceError):
        tell_c2(at_rest(agent=VoidsInWordsOnly))


# --- C3: the guard of a PUT


class GuardsByItsOwnView(Mirror):
    """Takes the resourceVersion that it sees for the one that was decided on."""

    def handle(self, event: Event) -> list[Action]:
        if isinstance(event, DecisionSeen) and isinstance(event.decision, Allocate):
            seen = self.tracked[ObjectName("claim", event.decision.uid)].view_version
            decision = msgspec.structs.replace(event.decision, resource_version=str(seen))
            event = DecisionSeen(event.ledger_sequence, decision)
        return super().handle(event)


def tell_c3(stage: Stage) -> None:
    a, _ = u_is_decided(stage)  # 1; 2 A stalls before it looks at L1
    b = stage.agent("east")  # 3 B: epoch, last messages, list, takes L1,
    stage.do(b, WriteFinalizers)
    b.time_out(stage.pending(b, WriteAllocation))  # its PUT is lost,
    stage.do(b, ReadClaim)
    stage.do(b, Void)  # and is voided (rv4)
    a.watch_all()  # 4 A's watch delivers rv4;
    a.take_decision()
    writes = [call.request for call in a.calls if isinstance(call.request, WriteAllocation)]  # it sends its PUT
    stage.tell("east")  # 5 B reports {rv4, none, L1 Failed}; 6 L1 ends
    stage.tell("west")
    west = stage.agent_of("west")
    west.take_decision()
    stage.tell("west")
    assert stage.allocated() == {"west/w": ["d"]}
    for put in writes:
        a.arrive(put)
    stage.rest()


def test_c3_no_later_view_guards_the_put_of_a_decision() -> None:
    stage = at_rest()
    tell_c3(stage)
    assert stage.allocated() == {"west/w": ["d"]}
    assert [each.is_alive for each in stage.agents if each.cluster.name == "east"] == [False, True]


def test_c3_with_the_agents_own_view_as_guard() -> None:
    with pytest.raises(AllocatedTwiceError):
        tell_c3(at_rest(mirror=GuardsByItsOwnView))


# --- C4: a view that is older than what was published


class PublishesOlderViews(Mirror):
    """Takes over what an earlier agent settled, and not as of which resourceVersion."""

    def _learn(self, last: LastMessage) -> None:
        super()._learn(last)
        self.tracked[last.name].subject_version = 0


def tell_c4(stage: Stage) -> None:
    a, u = u_is_decided(stage)
    a.take_decision()
    stage.do(a, WriteFinalizers)  # 1 rv3; A sends its PUT
    b = stage.agent("east")  # 2 B: epoch, last message (decision null), list (rv3, none)
    stage.do(a, WriteAllocation)  # 3 the PUT lands (rv4)
    a.watch_all()
    stage.do(a, Publish, u)  # 4 A publishes {rv4, d, L1 Applied}
    last = stage.log.last(state_subject("east", "claim", u))
    assert last is not None
    assert decode_claim_state(last.payload).decision is not None
    stage.do(b, Publish, u)  # 5 B's publish is refused; it reads the message again and takes over decision L1,
    for call in [call for call in b.calls if isinstance(call.request, Publish)]:
        b.do(call)  # 6 and publishes its own older view {rv3, none, L1}
    stage.decide()
    stage.rest()


def test_c4_a_view_older_than_the_subjects_last_message_is_not_published() -> None:
    stage = at_rest()
    tell_c4(stage)
    assert stage.allocated() == {"east/u": ["d"]}
    assert stage.entries(GrantEnded) == []


def test_c4_with_an_older_view_published() -> None:
    with pytest.raises(AllocatedTwiceError):
        tell_c4(at_rest(mirror=PublishesOlderViews))


# --- C5: an allocation that nobody decided


class TakesAdoptionsForDecisions(BrokerRun):
    """Waits for an agent to settle what was adopted."""

    def _a_machine(self) -> Machine:
        class Adopter(World):
            def add_grant(self, grant: Grant) -> None:
                super().add_grant(msgspec.structs.replace(grant, is_adopted=False))

        core = super()._a_machine().core
        return Machine(Adopter(core.world.federation), core.index, core.identity)


def tell_c5(stage: Stage) -> None:
    u = stage.claim("east", "u", immediate=False)
    stage.tell("east")
    stage.clusters["east"].allocate(u, [(POOL, "d")])  # 1 a stranger allocates d to u
    stage.tell("east")  # 2 message {d, decision null}: adopted as L1
    assert len(stage.entries(Adopted)) == 1
    stage.claim("west", "w")
    stage.tell("west")
    stage.clusters["east"].clear(u)  # 3 kube-controller-manager clears it
    stage.rest()  # 4 message {none, decision null}


def test_c5_an_adopted_grant_ends_although_nobody_settles_it() -> None:
    stage = at_rest()
    tell_c5(stage)
    assert stage.allocated() == {"west/w": ["d"]}


def test_c5_if_adoptions_had_to_be_settled() -> None:
    with pytest.raises(GrantLeakedError):
        tell_c5(at_rest(broker=TakesAdoptionsForDecisions))


# --- C6: a start from the last message of each subject


class StartsFromLastMessages(BrokerRun):
    """Its recorded position has expired."""

    def _recover(self) -> None:
        self.read_up_to = self._log.last_sequence
        recovery.position_expired(self.machine, self._log.last_messages(), self.read_up_to)
        recovery.resume(self.machine)


class CountsOldSyncs(StartsFromLastMessages):
    """Reads those messages as if they were all that there ever was: epochs as they come, syncs as they are found."""

    def _recover(self) -> None:
        self.world.decides_from = 0  # and decides on the way
        self._left: list[StoredMessage] = self._log.last_messages()
        self.read_up_to = self._log.last_sequence
        recovery.resume(self.machine)

    def unread(self) -> int:
        return len(self._left) or super().unread()

    def read(self, count: int) -> None:
        if self._left:
            self.machine.feed([self._left.pop(0)])
        else:
            super().read(count)


def tell_c6(stage: Stage, start: type[BrokerRun], synced_again: bool = False) -> None:
    a, _ = u_is_decided(stage)  # 1 a sync of east was finished before; 2 u was created, Allocate L1
    if synced_again:
        a.ask(Ask())
        stage.tell("east")  # b) the sync that knows u is the last message on agent.run,
    a.take_decision()
    write = stage.pending(a, WriteFinalizers)
    a.carry_out(write)
    a.watch_all()  # before the answer
    stage.do(a, Publish)  # u's last message is newer than that sync, and shows no allocation yet
    a.deliver(write)
    stage.decide()
    stage.start_broker(start)  # 3 in stream order: the sync comes first, and u is not known
    stage.decide()
    stage.serve(stage.agent_of("west"))
    stage.rest()


@pytest.mark.parametrize("synced_again", [False, True], ids=["the sync lacks u", "the sync names u"])
def test_c6_no_old_sync_ends_what_was_not_met_yet(synced_again: bool) -> None:
    stage = at_rest()
    tell_c6(stage, StartsFromLastMessages, synced_again)
    assert stage.allocated() == {"east/u": ["d"]}
    assert stage.entries(GrantEnded) == []


def test_c6_if_old_syncs_counted() -> None:
    stage = at_rest()
    with pytest.raises(AllocatedTwiceError):
        tell_c6(stage, CountsOldSyncs)


def tell_c6_with_two_agents(stage: Stage, start: type[BrokerRun]) -> None:
    a = stage.agent_of("east")
    assert stage.broker is not None
    stage.broker.stop("killed")
    b = stage.agent("east")  # B has listed its cluster
    u = stage.claim("east", "u")
    a.watch_all()
    stage.do(a, Publish, u)  # A (lower epoch) publishes u
    stage.do(b, Publish)  # B's sync is finished and does not have u; it replaces B's first message
    stage.claim("west", "w")
    stage.serve(stage.agent_of("west"))
    stage.start_broker(start)  # it has not met B's first message, and meets u first
    stage.decide()
    stage.rest()


def test_c6_a_message_counts_only_if_no_newer_run_had_begun() -> None:
    stage = at_rest()
    tell_c6_with_two_agents(stage, StartsFromLastMessages)
    assert len(stage.allocated()) == 1
    assert len(stage.entries(Allocate)) == 1


def test_c6_if_epochs_were_learned_on_the_way() -> None:
    with pytest.raises(AllocatedTwiceError):
        tell_c6_with_two_agents(at_rest(), CountsOldSyncs)


# --- C7: what a sync lists


class SyncsAsListed(AgentRun):
    """Says of a full sync what it has listed, not what it has published."""

    def _store(self, request: Publish) -> int | None:
        if isinstance(request.message, SyncFinished):
            listed = {ObjectName(each.kind, _key(each.kind, each.object)) for each in self._objects}
            message = msgspec.structs.replace(
                request.message, objects=[name for name in request.message.objects if name in listed]
            )
            request = msgspec.structs.replace(request, message=message)
        return super()._store(request)


def _key(kind: str, obj: dict[str, Any]) -> str:
    return str(metadata_of(obj)["uid" if kind == "claim" else "name"])


def tell_c7(stage: Stage) -> None:
    stage.kill(stage.agent_of("east"))
    v = stage.claim("east", "v", immediate=False)
    a = stage.agent("east")  # 1 A lists, and publishes what is new: v, which takes its time
    u = stage.claim("east", "u")  # 2 u is created, A's watch publishes it,
    a.watch_all()
    stage.do(a, Publish, u)
    stage.decide()
    a.take_decision()  # L1 is granted and applied
    stage.do(a, WriteFinalizers)
    stage.do(a, WriteAllocation)
    a.watch_all()
    stage.do(a, Publish, u)
    stage.claim("west", "w")
    stage.tell("west")
    stage.do(a, Publish, v)
    stage.do(a, Publish, "run")  # 3 A says that its sync is finished
    stage.decide()
    stage.rest()


def test_c7_a_sync_names_what_was_published_up_to_it() -> None:
    stage = at_rest()
    tell_c7(stage)
    assert stage.allocated() == {"east/u": ["d"]}
    assert stage.entries(GrantEnded) == []


def test_c7_if_a_sync_named_what_was_listed() -> None:
    with pytest.raises(AllocatedTwiceError):
        tell_c7(at_rest(agent=SyncsAsListed))


# --- C8: who waits when the broker starts


class ForgetsWhoWaits(BrokerRun):
    """Knows after a start who holds what, and looks at nobody again."""

    def _recover(self) -> None:
        position = self.read_up_to = self.world.position
        believe_again(self.machine, self._log.read(0, position))


def tell_c8(stage: Stage, start: type[BrokerRun]) -> None:
    _, u = u_is_decided(stage)  # 1 w waits for d;
    stage.rest()
    stage.clusters["east"].touch(u)
    stage.tell("east")  # 2 u's later message is in the recorded position
    stage.start_broker(start)  # 3 the broker reads from there
    stage.decide()
    stage.delete("east", "u")  # 4 u is deleted, d is free
    stage.rest()


def test_c8_a_broker_that_starts_considers_all_who_wait() -> None:
    stage = at_rest()
    tell_c8(stage, BrokerRun)
    assert stage.allocated() == {"west/w": ["d"]}


def test_c8_if_it_considered_only_what_has_news() -> None:
    stage = at_rest()
    tell_c8(stage, ForgetsWhoWaits)
    assert stage.allocated() == {}


# --- C9, C10, C11: an agent that nobody believes any more


class IgnoresOtherRuns(Mirror):
    """Does not mind that the last message on agent.run is not its own."""

    def handle(self, event: Event) -> list[Action]:
        return [] if isinstance(event, RunTaken) else super().handle(event)


class NeverBeats(Mirror):
    """Nobody can compare what it published with what is believed."""

    def beat(self) -> Beat | None:
        return None


def b_takes_the_epoch_and_dies(stage: Stage) -> None:
    b = stage.begin_agent("east")
    assert [b.start_step(), b.start_step()] == ["read the run", "take the epoch"]
    stage.kill(b)


def tell_c9(stage: Stage) -> None:
    u_is_decided(stage)
    b_takes_the_epoch_and_dies(stage)  # 1
    a = stage.agent_of("east")
    a.take_decision()
    stage.tell("east")  # 2, 3 A lives on, applies L1, publishes and acks; all is ignored
    stage.rest()


def test_c9_an_agent_that_was_replaced_exits() -> None:
    stage = at_rest()
    tell_c9(stage)
    assert stage.allocated() == {"east/u": ["d"]}
    assert outcomes(stage) == ["Applied"]


def test_c9_if_it_lived_on() -> None:
    with pytest.raises(UnsettledError, match="never rests"):
        tell_c9(at_rest(mirror=IgnoresOtherRuns))


def tell_c10(stage: Stage) -> None:
    a, _ = u_is_decided(stage)
    b_takes_the_epoch_and_dies(stage)  # 1
    a.take_decision()
    stage.tell("east")  # A applies and publishes L1 (lower epoch, ignored)
    stage.kill(a)
    assert stage.asks.pop()[0] == "east"  # the broker asks, nobody is there
    stage.agent("east")  # 2 A' starts: u's last message equals what it lists, nothing is published
    stage.rest()


def test_c10_the_heartbeat_tells_that_the_broker_believes_something_else() -> None:
    stage = at_rest()
    tell_c10(stage)
    assert outcomes(stage) == ["Applied"]


def test_c10_without_heartbeats() -> None:
    with pytest.raises(UnsettledError, match="Allocate"):
        tell_c10(at_rest(mirror=NeverBeats))


class DoesNotAskTheLedger(AgentRun):
    """Reads the ledger's last decision at its start only, not when it has read a subject again."""

    def _read_again(self, request: Publish) -> list[Event]:
        return [event for event in super()._read_again(request) if isinstance(event, PublishRefused)]


def tell_c11(stage: Stage) -> None:
    a = stage.agent_of("east")
    u = stage.claim("east", "u")
    stage.tell("east")  # Allocate L1 is in the ledger only after B has read it:
    consumer = stage.consumers["east"]
    assert consumer.has_new()
    latest, stage.ledger.latest = stage.ledger.latest, {}
    b = stage.agent("east")  # 1 B starts
    stage.serve(b)
    stage.ledger.latest = latest
    a.take_decision()
    stage.serve(a)  # 2 A applies L1, publishes (ignored), acks on the shared consumer
    assert not consumer.taken
    stage.decide()
    stage.asks.clear()
    stage.kill(a)
    stage.log.expire_subject(state_subject("east", "claim", u))  # 3 u's messages expire
    stage.rest()  # 4 B publishes u with decision null; L1 is acked and never comes again


def test_c11_the_ledgers_last_decision_is_read_whenever_a_subject_was_read_again() -> None:
    stage = at_rest()
    tell_c11(stage)
    assert outcomes(stage) == ["Applied"]
    assert stage.allocated() == {"east/u": ["d"]}


def test_c11_if_it_was_read_at_a_start_only() -> None:
    with pytest.raises(UnsettledError, match="Allocate"):
        tell_c11(at_rest(agent=DoesNotAskTheLedger))


# --- C12: an evicted cluster comes back


class CleansNothing(Mirror):
    """It says that it has done what a readmission asks for, and has not."""

    def _clean(self, cleaning: Cleaning, decided: set[str]) -> None:
        pass


def a_put_for_w_travels(stage: Stage) -> Late:
    """Allocate L1 w=d in west, decided on rv2; its agent is gone, and u waits for d."""
    stage.claim("west", "w")
    stage.tell("west")
    stage.claim("east", "u")
    stage.tell("east")
    a = stage.agent_of("west")
    a.take_decision()
    stage.do(a, WriteFinalizers)
    (put,) = stage.kill(a)  # 1
    return put


def tell_c12_a_late_put(stage: Stage) -> None:
    put = a_put_for_w_travels(stage)
    stage.order("evict", "west", fenced=True)  # 2 L1 ends, d goes to east
    stage.rest()
    assert stage.allocated() == {"east/u": ["d"]}
    stage.order("readmit", "west")
    stage.tell("west")  # it finishes a full sync, and the fence is lifted
    assert stage.entries(FenceLifted)
    put.arrives()  # 3
    stage.rest()


def test_c12_a_put_of_before_the_eviction_cannot_land_any_more() -> None:
    stage = at_rest()
    tell_c12_a_late_put(stage)
    assert stage.allocated() == {"east/u": ["d"]}
    assert len(stage.entries(FenceLifted)) == 1


def test_c12_without_the_voiding_write() -> None:
    with pytest.raises(AllocatedTwiceError):
        tell_c12_a_late_put(at_rest(mirror=CleansNothing))


def tell_c12_an_allocation_that_is_there(stage: Stage) -> None:
    stage.claim("west", "w")
    stage.tell("west")
    stage.rest()
    assert stage.allocated() == {"west/w": ["d"]}
    stage.claim("east", "u")
    stage.tell("east")
    stage.order("evict", "west", fenced=True)
    stage.rest()
    assert stage.allocated() == {"east/u": ["d"], "west/w": ["d"]}, "one of them is cut off"
    stage.order("readmit", "west")
    stage.rest()


def test_c12_an_allocation_that_no_grant_covers_is_cleared_before_the_fence_is_lifted() -> None:
    stage = at_rest()
    tell_c12_an_allocation_that_is_there(stage)
    assert stage.allocated() == {"east/u": ["d"]}


def test_c12_without_clearing_it() -> None:
    with pytest.raises(AllocatedTwiceError):
        tell_c12_an_allocation_that_is_there(at_rest(mirror=CleansNothing))


def test_c12_a_decision_that_comes_again_is_not_carried_out() -> None:
    stage = at_rest()
    stage.claim("west", "w")
    stage.tell("west")
    stage.claim("east", "u")
    stage.tell("east")
    a = stage.agent_of("west")
    stage.order("evict", "west", fenced=True)
    stage.order("readmit", "west")
    stage.kill(a)  # L1 was never delivered to anybody
    stage.rest()
    assert stage.allocated() == {"east/u": ["d"]}
    assert not stage.consumers["west"].taken


def test_c12_what_was_held_in_quarantine_is_held_after_it() -> None:
    stage = at_rest()
    stage.claim("west", "w")
    stage.tell("west")
    stage.rest()
    stage.claim("east", "u")
    stage.order("evict", "west")
    stage.rest()
    assert stage.allocated() == {"west/w": ["d"]}
    stage.order("readmit", "west")
    stage.rest()
    assert stage.allocated() == {"west/w": ["d"]}
    assert len(stage.entries(FenceLifted)) == 1
    stage.delete("west", "w")
    stage.rest()
    assert stage.allocated() == {"east/u": ["d"]}


# --- C13: a segment that was made, and not opened


def tell_c13(stage: Stage) -> None:
    stage.order("cordon", "west")
    stage.claim("west", "w")
    stage.tell("west")
    u = stage.claim("east", "u")
    stage.tell("east")  # L1, of which east has not heard yet; in an empty world d is for w, which came first
    b0, stage.broker = stage.broker, None
    assert b0 is not None
    closing = b0.close_segment(stage.now_ms)  # 1 SegmentClosed
    b0.arrive(closing)
    b0.deliver(closing)
    assert b0.phase == "opens"
    assert stage.ledger.segments == [0, 1]  # and segment 1, without its checkpoint
    assert not stage.ledger.segment(1)
    b1 = stage.start_broker()  # 2
    assert b1.phase == "leads"
    late = b0.go_on()
    b0.arrive(late)
    assert not late.was_stored
    stage.rest()
    assert stage.believed("east", u).grants


def test_c13_a_segment_without_its_checkpoint_is_opened_with_the_world_of_the_closed_one() -> None:
    stage = at_rest()
    tell_c13(stage)
    assert stage.allocated() == {"east/u": ["d"]}
    assert isinstance(decode_entry(stage.ledger.segment(1)[0].payload), SegmentOpened)


def test_c13_if_it_were_taken_for_a_new_ledger() -> None:
    with pytest.raises(AllocatedTwiceError):
        tell_c13(at_rest(broker=BelievesEmptySegments))


# --- C14: an append that nobody answered


def tell_c14(stage: Stage) -> None:
    broker = stage.broker
    assert broker is not None
    u = stage.claim("east", "u")
    stage.serve(stage.agent_of("east"))
    broker.read(broker.unread())
    first = broker.step(stage.now_ms)  # 1 times out
    assert first is not None
    broker.lose(first)
    stage.claim("west", "w")
    stage.serve(stage.agent_of("west"))
    broker.read(broker.unread())
    broker.read_tail()  # 2 nothing is there
    broker.read(broker.unread())
    second = broker.retry() if broker.must_retry else broker.step(stage.now_ms)
    assert second is not None
    broker.arrive(first)  # 3 lands late
    broker.arrive(second)
    assert not second.was_stored
    broker.deliver(second)  # 4
    broker.read_tail()
    assert broker.phase == "leads"
    replayed = World(stage.federation)
    for message in stage.ledger.messages:
        fold.apply_entry(replayed, decode_entry(message.payload), message.stream_sequence)
    same_by_ledger(replayed, broker.world)
    stage.rest()
    assert stage.believed("east", u).grants


def test_c14_what_is_appended_again_is_the_same_batch() -> None:
    tell_c14(at_rest())


def test_c14_without_that() -> None:
    with pytest.raises(Violation):
        tell_c14(at_rest(broker=Recomputes))
