"""A ledger that was lost or cut: nothing is granted before it is rebuilt, and nothing twice afterwards."""

import pytest

from broker.machine.report import explain
from cluster_agent.mirror import Mirror
from cluster_agent.mirror.actions import Cleaning, WriteAllocation, WriteFinalizers
from schemas.wire.ledger import Adopted, Allocate, ClusterAhead
from tests.protocol.harness import POOL, AllocatedTwiceError, Late, Stage
from tests.simulation.broker import BrokerRun


def lost(stage: Stage) -> list[str]:
    """Clusters of which the broker says that they know more than the ledger."""
    return sorted({each.place for each in stage.notices if each.code == "LedgerLost"})


def at_rest(**more: object) -> Stage:
    stage = Stage(**more)  # type: ignore[arg-type]  # what a stage takes
    stage.rest()
    return stage


def u_has_d0(**more: object) -> Stage:
    """u of east has d0 of two devices."""
    stage = at_rest(devices=["d0", "d1"], **more)
    stage.claim("east", "u")
    stage.rest()
    assert stage.allocated() == {"east/u": ["d0"]}
    return stage


@pytest.mark.parametrize("agents_too", [True, False], ids=["agents restart", "agents run on"])
def test_a_lost_ledger_is_rebuilt_from_what_clusters_have(agents_too: bool) -> None:
    stage = u_has_d0()
    stage.lose_ledger(agents_too=agents_too)
    stage.claim("west", "w")
    stage.rest()
    assert lost(stage) == ["east"]
    assert stage.allocated() == {"east/u": ["d0"]}, "nothing is granted"
    first = stage.rebuild()
    stage.rest()
    assert stage.allocated() == {"east/u": ["d0"], "west/w": ["d1"]}
    adopted = stage.entries(Adopted)[-1]
    assert (adopted.cluster, adopted.name) == ("east", "u")
    [decision] = stage.believed("west", next(iter(stage.clusters["west"].keys))).grants
    assert decision.ledger_sequence > first
    stage.delete("east", "u")
    stage.claim("west", "x")
    stage.rest()
    assert stage.allocated() == {"west/w": ["d1"], "west/x": ["d0"]}


def test_nothing_is_granted_before_every_cluster_has_come_with_a_new_run() -> None:
    stage = u_has_d0()
    stage.lose_ledger()
    stage.rebuild()
    w = stage.claim("west", "w")
    stage.start_broker()
    for cluster in ("hub", "west"):
        stage.serve(stage.agent(cluster))
    stage.decide()
    assert stage.reason("west", w) == "WaitingForCluster"
    stage.rest()
    assert stage.allocated() == {"east/u": ["d0"], "west/w": ["d1"]}


# --- writes that are still under way


class VoidsNothing(Mirror):
    """It says that it has done what a rebuild asks for, and has not."""

    def _clean(self, cleaning: Cleaning, decided: set[str]) -> None:
        pass


def test_no_write_of_a_forgotten_decision_lands_after_a_rebuild() -> None:
    stage = Stage()
    put = decided_and_lost(stage)
    west_gets_it(stage)
    put.arrives()
    stage.rest()
    assert stage.allocated() == {"west/w": ["d"]}


def test_if_agents_voided_nothing_after_a_rebuild() -> None:
    stage = Stage(mirror=VoidsNothing)
    put = decided_and_lost(stage)
    west_gets_it(stage)
    with pytest.raises(AllocatedTwiceError):
        put.arrives()


def decided_and_lost(stage: Stage) -> Late:
    """u of east is to get d; the write travels while the ledger is lost, and with it all that is known of that."""
    stage.rest()
    stage.claim("east", "u")
    stage.tell("east")
    agent = stage.agent_of("east")
    agent.take_decision()
    stage.do(agent, WriteFinalizers)
    put = next(each for each in stage.kill(agent) if isinstance(each.request, WriteAllocation))
    stage.lose_ledger()
    return put


def west_gets_it(stage: Stage) -> None:
    """After the rebuild w, which came before u, gets d."""
    stage.rebuild()
    stage.claim("west", "w")
    stage.start_broker()
    for cluster in ("hub", "west", "east"):
        stage.serve(stage.agent(cluster))
    stage.decide()
    stage.serve(stage.agent_of("west"))
    while stage.consumers["west"].has_new():
        stage.agent_of("west").take_decision()
    stage.tell("west")
    assert stage.allocated() == {"west/w": ["d"]}


# --- a ledger whose end is missing, or that is an older copy


class DecidesOnTheWay(BrokerRun):
    """It does not read all that clusters have said before it decides."""

    def _recover(self) -> None:
        self.world.decides_from = 0
        super()._recover()


def tell_of_a_cut(stage: Stage, start: type[BrokerRun]) -> None:
    """w of west came before u of east and was passed over; the ledger has forgotten why, and that u has d."""
    stage.rest()
    stage.claim("west", "v")
    stage.rest()
    stage.claim("west", "w")
    stage.rest()
    stage.claim("east", "u")
    stage.rest()
    cut = stage.ledger.last_sequence
    stage.order("cordon", "west")
    stage.delete("west", "v")
    stage.rest()
    assert stage.allocated() == {"east/u": ["d"]}
    stage.lose_ledger(cut)
    stage.start_broker(start)
    stage.decide()
    stage.rest()


def test_a_cut_ledger_is_noticed_before_anything_is_granted() -> None:
    stage = Stage()
    tell_of_a_cut(stage, BrokerRun)
    assert lost(stage) == ["east"]
    assert stage.allocated() == {"east/u": ["d"]}
    stage.start_broker()
    stage.rest()
    assert [each.cluster for each in stage.entries(ClusterAhead)] == ["east"], "it is in the ledger, and said once"
    stage.rebuild()
    stage.rest()
    assert stage.allocated() == {"east/u": ["d"]}


def test_if_it_decided_on_the_way() -> None:
    with pytest.raises(AllocatedTwiceError):
        tell_of_a_cut(Stage(), DecidesOnTheWay)


def test_the_loss_of_both_logs_is_noticed_by_the_finalizer_of_allocated_claims() -> None:
    stage = u_has_d0()
    stage.lose_ledger()
    stage.log.lose()
    stage.claim("west", "w")
    stage.rest()
    assert lost(stage) == ["east"]
    assert stage.allocated() == {"east/u": ["d0"]}
    stage.rebuild()
    stage.rest()
    assert stage.allocated() == {"east/u": ["d0"], "west/w": ["d1"]}


# --- what an operator ordered


def test_a_cluster_that_was_cut_off_stays_so() -> None:
    stage = u_has_d0()
    stage.order("evict", "west", fenced=True)
    stage.order("cordon", "east")
    cut = stage.ledger.last_sequence
    stage.lose_ledger(cut)
    stage.rebuild()
    x = stage.claim("east", "x")
    stage.rest()
    assert stage.reason("east", x) == "ClusterCordoned"
    assert stage.allocated() == {"east/u": ["d0"]}
    stage.claim("west", "w")
    stage.order("uncordon", "east")
    stage.order("readmit", "west")
    stage.rest()
    assert stage.allocated() == {"east/u": ["d0"], "east/x": ["d1"]}


def test_a_cluster_that_is_evicted_and_readmitted_after_a_rebuild_is_no_loss_of_the_ledger() -> None:
    stage = u_has_d0()
    stage.lose_ledger()
    stage.rebuild()
    stage.rest()
    v = stage.claim("east", "v", count=3)
    stage.rest()
    stage.order("evict", "east")
    stage.order("readmit", "east")
    stage.rest()
    stage.clusters["east"].allocate(v, [(POOL, "d1")])
    stage.rest()
    assert lost(stage) == []
    assert stage.believed("east", v).grants, "what somebody else has allocated is adopted"


# --- two clusters hold one device


def test_two_clusters_that_hold_one_device_are_told_of_and_the_first_to_be_heard_keeps_it() -> None:
    stage = u_has_d0()
    stage.lose_ledger()
    w = stage.claim("west", "w")
    u = next(iter(stage.clusters["east"].keys))
    stage.clusters["west"].on_allocated = lambda _: None  # as if the loss had led to it
    stage.clusters["west"].allocate(w, [(POOL, "d0")])
    stage.rebuild()
    stage.start_broker()
    for name in ("hub", "east", "west"):
        stage.serve(stage.agent(name))
        stage.decide()
    stage.rest()
    assert [(each.code, each.level) for each in stage.notices if each.code == "DeviceHeldTwice"] == [
        ("DeviceHeldTwice", "error")
    ]
    assert stage.believed("east", u).grants
    said = explain(stage.world, stage.believed("west", w))
    assert said.claim.reason == "DeviceHeldTwice"
    assert "east/default/u" in said.claim.message
    stage.delete("east", "u")
    stage.rest()
    assert stage.believed("west", w).grants
    assert len(stage.entries(Allocate)) == 0
