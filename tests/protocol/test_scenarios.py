"""Scenarios beyond the model's histories: what a cluster's agent, or the broker, meets on a bad day.

Where it is cheap, a second test leaves the rule out, so that the first is known to be able to fail.
"""

from typing import Any

import msgspec
import pytest

from broker.world.federation import Federation
from broker.world.keys import ClusterId
from cluster_agent.mirror import Mirror
from cluster_agent.mirror.actions import Action, ClearAllocation, Event, Publish, Started, WriteFailed
from cluster_agent.mirror.rejections import PATIENCE
from schemas.wire.calls import Beat
from schemas.wire.ledger import Allocate, GrantEnded, Release
from schemas.wire.subjects import state_subject
from tests.protocol.harness import POOL, GrantLeakedError, Stage, a_fabric
from tests.simulation.agent import AgentRun, Call
from tests.simulation.broker import BrokerRun
from tests.simulation.cluster import a_claim, a_class, a_pod, a_slice, an_allocation


def at_rest(**doubles: Any) -> Stage:
    """All agents run, the broker leads, every cluster was heard; there are no claims yet."""
    stage = Stage(**doubles)
    stage.rest()
    return stage


# --- an agent that does not know yet that it was replaced


class NeverBeats(Mirror):
    """Nothing but what it publishes tells the broker anything."""

    def beat(self) -> Beat | None:
        return None


class TrustsWhatItFinds(NeverBeats):
    """Takes any message that it finds on its subjects for one that was believed."""

    def handle(self, event: Event) -> list[Action]:
        if isinstance(event, Started):
            last = [
                each
                if each.message is None
                else msgspec.structs.replace(
                    each, message=msgspec.structs.replace(each.message, agent_epoch=event.epoch)
                )
                for each in event.last_messages
            ]
            event = msgspec.structs.replace(event, last_messages=last)
        return super().handle(event)


def tell_of_a_late_word(stage: Stage) -> None:
    a = stage.agent_of("east")
    b = stage.begin_agent("east")
    assert [b.start_step(), b.start_step()] == ["read the run", "take the epoch"]
    u = stage.claim("east", "u")
    a.watch_all()
    stage.do(a, Publish, u)  # after B's epoch: nobody believes it
    b.start()  # B finds on u's subject just what it would say itself
    stage.rest(asks_arrive=False)


def test_what_a_replaced_agent_said_after_its_successor_began_is_said_again() -> None:
    stage = at_rest(mirror=NeverBeats)
    tell_of_a_late_word(stage)
    assert stage.allocated() == {"east/u": ["d"]}


def test_if_the_successor_took_it_as_said() -> None:
    stage = at_rest(mirror=TrustsWhatItFinds)
    tell_of_a_late_word(stage)
    assert stage.allocated() == {}


# --- a watch that starts again


def test_a_new_list_of_pods_tells_of_those_that_are_gone() -> None:
    stage = at_rest()
    stage.claim("west", "w")
    stage.rest()
    u = stage.claim("east", "u", immediate=False)
    stage.clusters["east"].create("pod", a_pod("p", ["u"]))
    stage.rest()
    assert stage.reason("east", u) == "DevicesInUse"
    stage.clusters["east"].delete("pod", "p")
    stage.agent_of("east").relist("pod")
    stage.rest()
    assert stage.reason("east", u) == "WaitingForConsumer"


# --- a ledger that was lost


def two_fabrics() -> Stage:
    """Fabric `one` (pool rack7) is reached by east and west, fabric `two` (pool rack8) by north."""
    fabrics = [
        a_fabric("one", "hub", "east", "west", pool="rack7"),
        a_fabric("two", "hub", "north", pool="rack8"),
    ]
    clusters = [ClusterId(each) for each in ("hub", "east", "west", "north")]
    stage = Stage(federation=Federation(fabrics=fabrics, hub=clusters[0], clusters=clusters))
    stage.clusters["hub"].create("class", a_class())
    for pool in ("rack7", "rack8"):
        stage.clusters["hub"].create("slice", a_slice(pool, pool, [f"{pool}-0", f"{pool}-1"]))
    return stage


def test_a_cluster_that_knows_decisions_which_the_ledger_lost_stops_only_what_it_reaches() -> None:
    stage = two_fabrics()
    stage.claim("east", "u")
    stage.rest()
    assert stage.allocated() == {"east/u": ["rack7-0"]}
    stage.lose_ledger()
    west = stage.claim("west", "w")
    stage.claim("north", "n")
    for cluster in stage.clusters:
        stage.serve(stage.agent(cluster))
    stage.start_broker().read(1_000)
    stage.step()
    stage.rest()
    assert stage.allocated() == {"east/u": ["rack7-0"], "north/n": ["rack8-0"]}
    assert stage.reason("west", west) == "WaitingForCluster"
    assert [(each.code, each.place) for each in stage.notices if each.level == "error"] == [("LedgerLost", "east")]
    assert [each.cluster for each in stage.entries(Allocate)] == ["north"]


# --- a sync that ends more than one batch can hold


class CountsCutSyncs(BrokerRun):
    """Takes a sync for finished although not all that it ends has ended, and asks for no other."""

    def _recover(self) -> None:
        super()._recover()
        for cluster in self.world.clusters.values():
            cluster.synced_sequence, cluster.asked_at = cluster.synced_sequence or 1, 0


def tell_of_a_cut_sync(stage: Stage, start: type[BrokerRun]) -> None:
    east = stage.clusters["east"]
    for index in range(1_100):
        device = "d" if index == 1_099 else f"gone-{index}"
        east.create("claim", a_claim(f"c{index}", allocation=an_allocation([(POOL, device)])), author="initial")
    stage.rest()
    stage.claim("west", "w")
    stage.tell("west")
    assert len(stage.world.granted) == 1_100
    stage.kill(stage.agent_of("east"))
    for uid, key in list(east.keys.items()):  # all are deleted while no agent is there, and their messages expire
        stage.log.expire_subject(state_subject("east", "claim", uid))
        east.delete("claim", key.name)
    stage.serve(stage.agent("east"))
    assert stage.broker is not None
    stage.broker.read(1_000)
    stage.step()
    assert 0 < len(stage.world.granted) < 1_100
    stage.start_broker(start)
    stage.rest()


def test_a_sync_that_ends_more_than_a_batch_holds_survives_a_crash_between_its_batches() -> None:
    stage = at_rest()
    tell_of_a_cut_sync(stage, BrokerRun)
    assert stage.allocated() == {"west/w": ["d"]}
    assert len(stage.entries(GrantEnded)) == 1_100


def test_if_it_counted_when_it_was_cut_short() -> None:
    with pytest.raises(GrantLeakedError):
        tell_of_a_cut_sync(at_rest(), CountsCutSyncs)


# --- allocations that their cluster cannot use


def rejects(stage: Stage, uid: str) -> None:
    """East's agent finds that no node takes the pod; the broker asks the allocation back and gets it."""
    agent = stage.agent_of("east")
    agent.reject(uid)
    stage.tell("east")
    agent.take_decision()
    stage.tell("east")


def decides_when_time_has_come(stage: Stage) -> int:
    """Time passes until the broker has something to do; returns how long that took, in ms."""
    assert stage.broker is not None
    wake_ms = stage.broker.machine.wake_at_ms()
    assert wake_ms is not None
    waited, stage.now_ms = wake_ms - stage.now_ms, wake_ms
    stage.decide()
    return waited


def test_a_rejected_allocation_is_released_avoided_and_given_later_each_time() -> None:
    stage = at_rest(devices=["d0", "d1"])
    u = stage.claim("east", "u")
    stage.rest()
    waits, given = [], []
    for _ in range(4):
        given += stage.allocated()["east/u"]
        rejects(stage, u)
        assert stage.allocated() == {}
        assert stage.world.in_use == {}
        assert stage.reason("east", u) == "BackingOff"
        waits.append(decides_when_time_has_come(stage))
        stage.agent_of("east").take_decision()
        stage.tell("east")
    assert given[:2] == ["d0", "d1"]
    assert waits == [1_000, 2_000, 4_000, 8_000]
    stage.rest()


def a_pod_waits(stage: Stage) -> str:
    """East has a claim that a pod uses, and is given a device; returns the claim's UID."""
    stage.clusters["east"].create("pod", a_pod("p", ["u"]))
    u = stage.claim("east", "u", immediate=False)
    stage.rest()
    assert stage.allocated() == {"east/u": ["d0"]}
    return u


def test_a_pod_that_finds_no_node_with_its_device_gets_another_one() -> None:
    stage = at_rest(devices=["d0", "d1"])
    u = a_pod_waits(stage)
    refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node has rack 0"}
    stage.clusters["east"].change("pod", {**a_pod("p", ["u"]), "status": {"conditions": [refused]}})
    stage.tell("east")
    stage.now_ms += PATIENCE.unschedulable_ms
    stage.agent_of("east").tick(stage.now_ms)
    stage.tell("east")
    (release,) = stage.entries(Release)
    assert (release.reason, release.message) == ("Unschedulable", "pod p: no node has rack 0")
    stage.clusters["east"].change("pod", a_pod("p", ["u"]))
    stage.rest()
    assert stage.allocated() == {"east/u": ["d1"]}
    assert stage.believed("east", u).failures == 1


def test_a_device_that_cannot_be_bound_is_given_back_and_avoided() -> None:
    stage = Stage(devices=["d0", "d1"])
    made = a_slice("s", POOL, ["d0", "d1"])
    for device in made["spec"]["devices"]:
        device |= {"bindingConditions": ["example.com/Attached"], "bindingFailureConditions": ["example.com/Failed"]}
    stage.clusters["hub"].change("slice", made)
    stage.rest()
    u = a_pod_waits(stage)
    east = stage.clusters["east"]
    (result,) = east.claim(u)["status"]["allocation"]["devices"]["results"]  # type: ignore[index]
    assert result["bindingConditions"] == ["example.com/Attached"]
    east.report(u, {"type": "example.com/Failed", "status": "True", "reason": "LinkDown", "message": "port 4"})
    stage.rest()
    (release,) = stage.entries(Release)
    assert release.reason == "BindingFailed"
    assert release.message.endswith("reports example.com/Failed: LinkDown: port 4")
    assert stage.allocated() == {"east/u": ["d1"]}


def test_a_broken_device_is_given_to_nobody_when_its_claim_is_gone() -> None:
    stage = at_rest(devices=["d0", "d1"])
    u = a_pod_waits(stage)
    broken = {"type": "Healthy", "status": "False", "reason": "Xid", "message": "it is on fire"}
    stage.clusters["east"].report(u, broken)
    stage.rest()
    stage.clusters["east"].delete("pod", "p")
    stage.delete("east", "u")
    stage.rest()
    assert stage.allocated() == {}
    stage.claim("west", "w")
    stage.claim("east", "v")
    stage.rest()
    assert list(stage.allocated().values()) == [["d1"]], "d0 is free, and nobody's"
    stage.start_broker()
    assert [device.device for device in stage.world.taints] == ["d0"]


def test_what_the_scheduler_clears_while_a_pod_waits_is_avoided_and_given_later() -> None:
    stage = at_rest(devices=["d0", "d1"])
    u = a_pod_waits(stage)
    stage.clusters["east"].clear(u)
    stage.tell("east")
    assert stage.entries(GrantEnded)[-1].cause == "AllocationRejected"
    assert stage.reason("east", u) == "BackingOff"
    assert decides_when_time_has_come(stage) == 1_000
    stage.rest()
    assert stage.allocated() == {"east/u": ["d1"]}


class Forbids(AgentRun):
    """Its API server refuses to clear allocations, for a while."""

    refuses = 1

    def carry_out(self, call: Call) -> None:
        if isinstance(call.request, ClearAllocation) and self.refuses:
            self.refuses -= 1
            call.is_done = True
            call.answer = [WriteFailed(call.request, "invalid", "a policy says no")]
        else:
            super().carry_out(call)


def test_a_release_that_failed_is_asked_for_again_only_after_its_time() -> None:
    stage = at_rest(agent=Forbids)
    u = stage.claim("east", "u")
    stage.rest()
    rejects(stage, u)
    stage.tell("east")
    assert stage.allocated() == {"east/u": ["d"]}
    assert stage.believed("east", u).unsettled is None
    stage.clusters["east"].touch(u)
    stage.now_ms += 500
    stage.tell("east")  # news of the claim is no reason
    assert len(stage.entries(Release)) == 1
    assert decides_when_time_has_come(stage) == 500
    assert len(stage.entries(Release)) == 2
    stage.agent_of("east").take_decision()
    stage.tell("east")
    assert stage.allocated() == {}
    stage.rest()


# --- claims that are hard to decide

DRIVER = "gpu.example.com"


def a_hard_slice() -> dict[str, Any]:
    """12 devices of which no two share a value, among these 64: as hard a question as constraints can ask."""
    made = a_slice("hard", "hard", [f"h{n}" for n in range(64)])
    for n, device in enumerate(made["spec"]["devices"]):
        edge = sorted({n % 25, (n * 7 + 3) % 25, (n * 11 + 5) % 25})
        device["attributes"] = {"edge": {"ints": edge}}
    return made


def a_hard_claim(name: str) -> dict[str, Any]:
    claim = a_claim(name, count=12)
    claim["spec"]["devices"]["constraints"] = [{"requests": ["gpu"], "distinctAttribute": f"{DRIVER}/edge"}]
    return claim


def a_plain_claim(name: str) -> dict[str, Any]:
    claim = a_claim(name)
    selector = {"cel": {"expression": f'has(device.attributes["{DRIVER}"].plain)'}}
    claim["spec"]["devices"]["requests"][0]["exactly"]["selectors"] = [selector]
    return claim


def test_hard_claims_wait_for_each_other_and_nobody_waits_for_them() -> None:
    stage = at_rest()
    stage.clusters["hub"].create("slice", a_hard_slice())
    hard = [stage.clusters["east"].create("claim", a_hard_claim(f"hard-{index}")) for index in range(3)]
    plain = stage.clusters["west"].create("claim", a_plain_claim("plain"))
    for cluster in ("hub", "east", "west"):
        stage.tell(cluster)
    assert {stage.reason("east", each) for each in hard} == {"SearchBudgetExceeded"}
    assert stage.reason("west", plain) not in ("", "SearchBudgetExceeded")

    new = a_slice("plain", "plain", ["p0", "p1"])
    for device in new["spec"]["devices"]:
        device["attributes"] = {"plain": {"bool": True}}
    stage.clusters["hub"].create("slice", new)
    stage.serve(stage.agent_of("hub"))
    assert stage.broker is not None
    stage.broker.read(1_000)
    machine = stage.broker.machine
    stage.step()  # all four are due: the newest is decided first, and one of the hard ones
    assert [each.name for each in stage.entries(Allocate)] == ["plain"]
    assert len(machine.core.queue.due(stage.now_ms)) == 2
    stage.clusters["west"].create("claim", a_plain_claim("late"))
    stage.serve(stage.agent_of("west"))
    stage.broker.read(1_000)
    stage.step()  # one that comes meanwhile does not wait either
    assert [each.name for each in stage.entries(Allocate)] == ["plain", "late"]
    stage.step()
    assert not machine.has_work(stage.now_ms)
    wake_ms = machine.wake_at_ms()
    assert wake_ms is not None
    assert wake_ms > stage.now_ms
