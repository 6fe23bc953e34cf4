"""Clusters that go silent, are cordoned, excluded, evicted and readmitted: what is granted, and what stays held."""

import pytest

from broker.machine.cluster_report import cluster_rows
from broker.machine.liveness import DEAF_AFTER_MS, Silence
from broker.machine.report import claim_rows, explain
from broker.machine.syncs import on_beat
from broker.world.federation import Federation
from broker.world.world import World
from schemas.wire.calls import Ask, Beat
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    ClusterCordoned,
    ClusterEvicted,
    ClusterExcluded,
    ClusterReadmitted,
    FenceLifted,
    GrantEnded,
    LivenessChanged,
    OperatorCommand,
    OutcomeRecorded,
)
from tests.builders import a_slice, some_devices
from tests.machine.driven import (
    EAST,
    HUB,
    WEST,
    Agent,
    Driven,
    a_brokered_class,
    an_allocation,
    an_immediate_claim,
    everyone_heard,
    granted,
    reason,
)

# --- silent clusters


def test_a_stale_cluster_keeps_what_it_has_and_is_granted_nothing_new(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=2)
    held, waits = an_immediate_claim("held"), an_immediate_claim("waits")
    granted(machine, west, held)
    assert [type(entry) for entry in machine.mark(WEST, "Stale")] == [LivenessChanged]
    west.tells(waits)
    machine.run()
    assert reason(machine, west, waits) == "ClusterStale"
    assert machine.claim(WEST, held).grants
    other = an_immediate_claim("other")
    assert granted(machine, east, other), "others go on with what is free"
    assert machine.mark(WEST, "Stale") == []


def test_a_stale_cluster_returns_by_itself(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    claim = an_immediate_claim()
    machine.mark(WEST, "Stale")
    west.tells(claim)
    machine.run()
    back, allocated = machine.mark(WEST, "Live")
    assert isinstance(back, LivenessChanged)
    assert back.state == "Live"
    assert isinstance(allocated, Allocate)


def test_nothing_of_a_silent_source_is_granted(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    machine.mark(EAST, "Stale")
    claim = an_immediate_claim()
    west.tells(claim)
    machine.run()
    assert reason(machine, west, claim) == "ClusterStale"
    waiting = machine.claim(WEST, claim).waiting
    assert waiting is not None
    assert waiting.message.startswith("nothing of fabric f is granted: the agent of cluster east is silent")
    assert [type(entry) for entry in machine.mark(EAST, "Live")] == [LivenessChanged, Allocate]


def test_a_lost_cluster_returns_by_a_full_sync_only(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    claim, held = an_immediate_claim(), an_immediate_claim("held")
    granted(machine, west, held)
    machine.mark(WEST, "Lost")
    assert machine.is_in_use("gpu-0"), "unreachable is not free"
    west.deletes(held)
    west.tells(claim)
    machine.asks.clear()
    machine.mark(WEST, "Live")
    assert machine.asks == [(WEST, Ask())]
    assert reason(machine, west, claim) == "ClusterLost"
    west.syncs()
    back, allocated = machine.run()
    assert isinstance(back, LivenessChanged)
    assert back.state == "Live"
    assert isinstance(allocated, Allocate)


def test_the_next_leader_goes_on_asking_a_cluster_that_returns(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    machine.mark(WEST, "Lost")
    machine.mark(WEST, "Live")
    again = machine.restart()
    digest = format(again.world.cluster(WEST).digest, "x")
    beat = Beat(west.epoch, digest, again.world.cluster(WEST).last_sequence)
    assert on_beat(again.core, WEST, beat) == Ask()


def test_a_cluster_that_falls_silent_again_on_its_way_back_is_lost(machine: Driven) -> None:
    everyone_heard(machine)
    for state in ("Stale", "Lost", "Live", "Stale"):
        machine.mark(WEST, state)
    assert [entry.state for entry in machine.recorded(LivenessChanged).values()] == [
        "Stale",
        "Lost",
        "Returning",
        "Lost",
    ]


def test_a_cluster_that_was_never_heard_is_not_silent(machine: Driven) -> None:
    Agent(machine, EAST)
    machine.run()
    assert machine.mark(EAST, "Lost") == []


# --- the clock


def a_world() -> World:
    world = World(Federation(clusters=[EAST, WEST], stale_after_s=10, lost_after_s=60))
    for name in (EAST, WEST):
        world.cluster(name).synced_sequence = world.cluster(name).epoch = 1
    return world


def states(silence: Silence, world: World, now_ms: int) -> list[tuple[str, str]]:
    return [(mark.cluster, mark.state) for mark in silence.marks(world, now_ms)]


def look_each_second(silence: Silence, world: World, until_ms: int, now_ms: int = 0) -> list[tuple[int, str, str]]:
    return [(now // 1000, *found) for now in range(now_ms, until_ms + 1, 1000) for found in states(silence, world, now)]


def test_a_new_leader_counts_silence_from_its_beginning() -> None:
    silence, world = Silence(0), a_world()
    world.cluster(EAST).last_sequence = 7
    assert look_each_second(silence, world, 10_000) == [(10, EAST, "Stale"), (10, WEST, "Stale")]
    world.cluster(EAST).liveness = "Lost"
    assert states(Silence(0), world, 1_000) == [], "only who is really heard comes back"


def test_heartbeats_and_messages_are_heard() -> None:
    silence, world = Silence(0), a_world()
    silence.marks(world, 0)
    for now in range(1_000, 20_000, 1_000):
        silence.hear(world, EAST, 1, now)
        silence.hear(world, WEST, 0, now)  # of a run that was replaced
        assert states(silence, world, now) == ([(WEST, "Stale")] if now >= 10_000 else [])
    world.cluster(WEST).liveness = "Stale"
    world.cluster(WEST).last_sequence = 9
    assert states(silence, world, 20_000) == [(WEST, "Live")]


def test_time_in_which_the_broker_itself_was_deaf_does_not_count() -> None:
    silence, world = Silence(0), a_world()
    silence.hear(world, EAST, 1, 0)
    assert states(silence, world, 500_000) == []
    assert look_each_second(silence, world, 500_000 + DEAF_AFTER_MS, 500_000) == []
    assert states(silence, world, 500_000 + DEAF_AFTER_MS + 1_000) == []


# --- cordon


def test_a_cordoned_cluster_is_granted_nothing_new_until_it_is_uncordoned(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=2)
    granted(machine, east, an_immediate_claim("held"))
    assert machine.command("cordon", EAST) == ""
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    assert reason(machine, east, claim) == "ClusterCordoned"
    assert granted(machine, west, an_immediate_claim("other"))
    west.deletes(an_immediate_claim("other"))
    assert machine.command("uncordon", EAST) == ""
    assert machine.claim(EAST, claim).grants
    (cordoned, uncordoned) = machine.recorded(ClusterCordoned).values()
    assert (cordoned.is_cordoned, cordoned.operator, cordoned.reason) == (True, "ada", "maintenance")
    assert not uncordoned.is_cordoned


@pytest.mark.parametrize(
    ("verb", "cluster", "refusal"),
    [
        ("cordon", "nord", "there is no cluster nord; known are east, west"),
        ("uncordon", EAST, "cluster east is not cordoned"),
        ("exclude", EAST, "nobody waits for cluster east"),
        ("readmit", EAST, "cluster east is not evicted"),
    ],
)
def test_refuses_what_makes_no_sense(machine: Driven, verb: str, cluster: str, refusal: str) -> None:
    everyone_heard(machine)
    before = len(machine.ledger)
    assert machine.command(verb, cluster).startswith(refusal)  # type: ignore[arg-type]  # all of them are verbs
    assert len(machine.ledger) == before


# --- exclusion


def test_nobody_waits_for_an_excluded_cluster_and_it_gets_nothing_before_it_is_heard(machine: Driven) -> None:
    east, west = Agent(machine, EAST), Agent(machine, WEST)
    east.publishes(a_slice(some_devices(2)), a_brokered_class())
    west.publishes(a_brokered_class())
    mine, theirs = an_immediate_claim(), an_immediate_claim("theirs")
    east.tells(mine)
    west.tells(theirs)
    east.syncs()
    machine.run()
    assert reason(machine, east, mine) == "WaitingForCluster"
    assert machine.command("exclude", WEST) == ""
    assert machine.claim(EAST, mine).grants
    assert reason(machine, west, theirs) == "WaitingForCluster"
    west.syncs()
    machine.run()
    assert machine.claim(WEST, theirs).grants
    assert [each.is_excluded for each in machine.recorded(ClusterExcluded).values()] == [True, False]


def test_an_excluded_cluster_that_shows_a_device_of_others_is_reported(machine: Driven) -> None:
    east, west = Agent(machine, EAST), Agent(machine, WEST)
    east.publishes(a_slice(some_devices(1)), a_brokered_class())
    east.syncs()
    machine.run()
    machine.command("exclude", WEST)
    granted(machine, east, an_immediate_claim())
    west.tells(an_immediate_claim("theirs"), an_allocation("gpu-0"))
    west.syncs()
    machine.run()
    assert [notice.code for notice in machine.notices if notice.level == "error"] == ["DeviceHeldTwice"]


# --- eviction


def test_a_fenced_eviction_frees_all_devices_at_once(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    held, waits = an_immediate_claim("held"), an_immediate_claim("waits")
    sequence = granted(machine, west, held)
    east.tells(waits)
    machine.run()
    assert machine.command("evict", WEST, fenced=True) == ""
    _, entry = machine.last(ClusterEvicted)
    assert (entry.operator, entry.is_fenced, entry.state_sequence) == ("ada", True, len(machine.log))
    assert machine.last(GrantEnded)[1] == GrantEnded(
        cluster=WEST, uid=held.metadata.uid, grant_sequence=sequence, cause="ClusterEvicted"
    )
    assert machine.claim(EAST, waits).grants
    assert not [key for key in machine.world.claims if key.cluster == WEST]


def test_a_fenced_eviction_settles_what_is_open(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    west.tells(an_immediate_claim())
    machine.run()
    machine.command("evict", WEST, fenced=True)
    assert machine.last(OutcomeRecorded)[1].outcome == "Gone"
    assert machine.command("evict", WEST, fenced=True) == "cluster west is evicted already (cut off)"


def test_a_fenced_eviction_of_many_claims_takes_several_batches_and_a_restart(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    slices = [
        a_slice(some_devices(120, first=120 * number), name=f"s-{number}", generation=2, slice_count=5)
        for number in range(5)
    ]
    east.publishes(*slices)
    for number in range(600):
        west.tells(an_immediate_claim(f"claim-{number}"))
    machine.run()
    machine.machine.order(_evict(machine))
    machine.step()
    assert machine.world.granted, "one batch is too small for all"
    again = machine.restart()
    while again.has_work(machine.now_ms):
        again.step(machine.now_ms)
    assert not again.world.granted
    machine.run()
    assert not machine.world.granted


def _evict(machine: Driven) -> OperatorCommand:
    return OperatorCommand("evict", WEST, "ada", "gone", is_fenced=True, state_sequence=len(machine.log))


def test_the_devices_of_a_cluster_that_was_evicted_without_fence_are_in_quarantine(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    held, waits, pending = an_immediate_claim("held"), an_immediate_claim("waits"), an_immediate_claim("pending")
    granted(machine, west, held)
    west.tells(pending)
    machine.run()
    assert machine.command("evict", WEST) == ""
    assert reason(machine, west, pending) in ("DevicesInUse", "ClusterEvicted")
    west.deletes(held)  # nobody believes it any more
    east.tells(waits)
    machine.run()
    assert machine.letters[-1].reason in ("ClusterEvicted", "LowerEpoch")
    assert machine.is_in_use("gpu-0")
    assert reason(machine, east, waits) == "DevicesInUse"
    assert machine.command("evict", WEST, fenced=True) == ""
    assert machine.claim(EAST, waits).grants


def test_an_evicted_cluster_is_believed_after_readmission_and_with_a_later_epoch_only(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    machine.command("evict", WEST, fenced=True)
    claim = an_immediate_claim()
    west.tells(claim)
    west.syncs()
    machine.run()
    old_epoch = west.epoch
    west.starts()
    west.tells(claim)
    machine.run()
    assert not machine.world.cluster(WEST).known
    assert on_beat(machine.machine.core, WEST, Beat(west.epoch, "0", len(machine.log))) is None
    machine.asks.clear()
    assert machine.command("readmit", WEST) == ""
    assert machine.asks == [(WEST, Ask())]
    west.tells(claim, epoch=old_epoch)
    machine.run()
    assert not machine.world.cluster(WEST).known, "its epoch is over"
    west.tells(claim)
    machine.run()
    assert machine.claim(WEST, claim).state_sequence == len(machine.log)
    assert machine.command("readmit", WEST).startswith("cluster west is being readmitted already")


@pytest.mark.parametrize("fenced", [False, True])
def test_the_next_leader_goes_on_asking_a_cluster_that_is_being_readmitted(machine: Driven, fenced: bool) -> None:
    _, west = everyone_heard(machine)
    machine.command("evict", WEST, fenced=fenced)
    machine.command("readmit", WEST)
    west.starts()  # and what it says after that is lost on the way, or by the log
    machine.run()
    again = machine.restart()
    record = again.world.cluster(WEST)
    assert on_beat(again.core, WEST, Beat(west.epoch, format(record.digest, "x"), record.last_sequence)) == Ask()


def test_the_fence_is_lifted_by_the_sync_that_names_the_readmission(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    lost, claim = an_immediate_claim("lost"), an_immediate_claim()
    granted(machine, west, lost)
    machine.command("evict", WEST, fenced=True)
    machine.command("readmit", WEST)
    sequence, _ = machine.last(ClusterReadmitted)
    west.living.clear()
    west.starts()
    west.publishes(a_brokered_class())
    west.tells(lost, an_allocation("gpu-0"))  # it was never cleared
    west.tells(claim)
    west.syncs()
    machine.run()
    assert not machine.recorded(FenceLifted)
    assert not machine.recorded(Adopted)
    assert machine.is_in_use("gpu-0"), "what is shown is not free, whoever shows it"
    assert reason(machine, west, claim) == "ClusterEvicted"
    west.tells(lost)
    west.syncs(readmission=sequence)
    machine.run()
    assert machine.recorded(FenceLifted)
    assert machine.world.cluster(WEST).eviction is None
    (kept,) = machine.world.granted.values()
    assert kept[0].claim.cluster == WEST


def test_a_fabric_does_not_wait_for_a_cluster_that_is_cut_off(hub_machine: Driven) -> None:
    machine = hub_machine
    hub, east = Agent(machine, HUB), Agent(machine, EAST)
    hub.publishes(a_slice(some_devices(1)), a_brokered_class())
    for agent in (hub, east):
        agent.syncs()
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    assert reason(machine, east, claim) == "WaitingForCluster"
    machine.command("evict", WEST)
    assert reason(machine, east, claim) == "WaitingForCluster", "nobody knows what it holds"
    machine.command("evict", WEST, fenced=True)
    assert machine.claim(EAST, claim).grants


def test_an_evicted_source_takes_its_inventory_with_it(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    held, waits = an_immediate_claim("held"), an_immediate_claim("waits")
    granted(machine, west, held)
    machine.command("evict", EAST, fenced=True)
    west.tells(waits)
    machine.run()
    assert machine.claim(WEST, held).grants
    assert reason(machine, west, waits) == "ClusterEvicted"


# --- what people are shown


def test_shows_for_both_claims_who_keeps_a_device_that_two_clusters_show(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    first, second = an_immediate_claim("first"), an_immediate_claim("second")
    sequence = granted(machine, east, first)
    west.tells(second, an_allocation("gpu-0"))
    machine.run()
    keeper, intruder = claim_rows(machine.world)
    assert (keeper.reason, intruder.reason) == ("DeviceHeldTwice", "DeviceHeldTwice")
    assert keeper.message == "it keeps its devices, which west/default/second shows too: delete that claim"
    assert f"east/default/first (grant {sequence}) held first and keeps" in intruder.message
    east.deletes(first)
    machine.run()
    assert [row.reason for row in claim_rows(machine.world)] == [""], "the other is adopted"


def test_shows_that_nobody_knows_how_an_allocation_of_a_lost_cluster_is(machine: Driven) -> None:
    _, west = everyone_heard(machine)
    granted(machine, west, an_immediate_claim())
    machine.mark(WEST, "Lost")
    (row,) = claim_rows(machine.world)
    assert (row.state, row.reason) == ("Allocated", "ClusterLost")
    assert explain(machine.world, machine.claim(WEST, an_immediate_claim())).cluster_state == "Lost"


def test_shows_how_every_cluster_stands(machine: Driven) -> None:
    def state() -> str:
        (row,) = [row for row in cluster_rows(machine.world) if row.cluster == WEST]
        return row.state

    assert state() == "Waiting"
    machine.command("exclude", WEST)
    assert state() == "Excluded"
    _, west = everyone_heard(machine)
    assert state() == "Ready"
    granted(machine, west, an_immediate_claim())
    (row,) = [row for row in cluster_rows(machine.world, lambda _: 7) if row.cluster == WEST]
    assert (row.synced, row.claims, row.grants, row.heard_ms, row.epoch) == (True, 1, 1, 7, west.epoch)
    machine.mark(WEST, "Stale")
    assert state() == "Stale"
    machine.command("evict", WEST)
    assert state() == "Quarantined"
    machine.command("evict", WEST, fenced=True)
    assert state() == "Evicted"
    machine.command("readmit", WEST)
    (row,) = [row for row in cluster_rows(machine.world) if row.cluster == WEST]
    assert row.state == "Readmitting"
    assert row.eviction is not None
    assert row.eviction.operator == "ada"


def test_a_readmission_before_the_log_was_read_up_to_the_eviction_lets_nothing_of_before_through(
    machine: Driven,
) -> None:
    _, west = everyone_heard(machine)
    west.tells(an_immediate_claim())  # still to be read when both orders come
    last = len(machine.log)
    machine.machine.order(OperatorCommand("evict", WEST, "ada", "fire", is_fenced=True, state_sequence=last))
    machine.machine.order(OperatorCommand("readmit", WEST, "ada", "over"))
    machine.run()
    assert machine.last(ClusterReadmitted)[1].position == last
    assert not machine.world.cluster(WEST).known
