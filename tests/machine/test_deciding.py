"""Who gets what, in which order, and the reason of every claim that waits: a code, a sentence, and what wakes it."""

import msgspec
import pytest

from broker.allocation.cel.engine import BoundDevice, DerivedAttribute, Selector, SelectorEngine, Verdict
from broker.machine.deciding import MAX_RESERVED_FOR, TRY_HARD_AGAIN_MS
from schemas.resource import (
    DeviceRequest,
    DeviceTaint,
    DeviceTaintRule,
    Node,
    NodeStatus,
    ObjectMeta,
    ResourceClaimSpec,
)
from schemas.resource.taint_rule import DeviceTaintRuleSpec, DeviceTaintSelector
from schemas.wire.ledger import Adopted, Allocate, ClassBrokered, GrantEnded, ReasonChanged
from schemas.wire.state import Consumer
from tests.builders import (
    CLASS,
    DRIVER,
    a_choice,
    a_claim,
    a_class,
    a_device,
    a_node_selector,
    a_request,
    a_slice,
    a_sub_request,
    a_toleration,
    some_devices,
)
from tests.machine.conftest import Starter
from tests.machine.driven import (
    EAST,
    HUB,
    ONE_FABRIC,
    WEST,
    Agent,
    Driven,
    a_brokered_class,
    a_pod,
    an_immediate_claim,
    devices_of,
    everyone_heard,
    granted,
    key_of,
    reason,
    reasons,
)


def the_reason(machine: Driven) -> ReasonChanged:
    return machine.last(ReasonChanged)[1]


# --- selectors that take long to ask


UUID = f'device.attributes["{DRIVER}"].uuid'


def much_to_ask(machine: Driven) -> tuple[Agent, Agent]:
    """A pool of 3,072 devices, no two alike."""
    east, west = everyone_heard(machine)
    east.publishes(
        *(
            a_slice(
                [a_device(f"d{n}", uuid=f"u{n}") for n in range(first, first + 128)],
                name=f"s{first}",
                pool="large",
                slice_count=24,
            )
            for first in range(0, 3_072, 128)
        )
    )
    machine.run()
    return east, west


def test_a_claim_whose_selector_takes_long_to_ask_holds_up_nobody(machine: Driven) -> None:
    east, west = much_to_ask(machine)
    slow = an_immediate_claim("slow", a_request("gpu", f'{UUID}.endsWith("u3071")'))
    east.tells(slow)
    west.tells(an_immediate_claim("plain"))
    first = machine.step()
    assert [each.name for each in first.entries if isinstance(each, Allocate)] == ["plain"]
    assert machine.claim(EAST, slow).waiting is None
    rest = machine.run()
    assert [devices_of(each) for each in rest if isinstance(each, Allocate)] == [["d3071"]]
    assert reasons(machine, slow) == []


@pytest.mark.parametrize("is_deleted", [False, True])
def test_claims_that_ask_the_same_wait_for_the_first_of_them(machine: Driven, is_deleted: bool) -> None:
    east, _ = much_to_ask(machine)
    claims = [an_immediate_claim(f"slow-{n}", a_request("gpu", f'{UUID} != "u0"')) for n in range(3)]
    for each in claims:
        east.tells(each)
    machine.step()
    assert machine.machine.core.queue.due(machine.now_ms) == {key_of(EAST, claims[0])}
    if is_deleted:
        east.deletes(claims[0])
        machine.run()
        machine.now_ms = machine.machine.wake_at_ms() or 0
    machine.run()
    assert [devices_of(each) for each in machine.recorded(Allocate).values()] == [
        [f"d{n}"] for n in range(1, 3 if is_deleted else 4)
    ]


def test_skipped_operations_are_for_clusters_whose_nodes_all_can_skip_them(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=0)
    east.publishes(a_slice(pool="skipping", skip_node_operations=["*"]))
    able = NodeStatus(declared_features=["DRAOptionalNodeOperations"])
    east.publishes(Node(metadata=ObjectMeta(name="new"), status=able), Node(metadata=ObjectMeta(name="old")))
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    assert reason(machine, east, claim) == "NoMatchingNode"
    assert "not every node declares DRAOptionalNodeOperations" in the_reason(machine).message
    east.publishes(Node(metadata=ObjectMeta(name="old"), status=able))
    assert [type(each) for each in machine.run()] == [Allocate]


# --- what must be known first


def test_grants_nothing_of_a_fabric_before_every_cluster_that_reaches_it_was_heard(machine: Driven) -> None:
    east, west = Agent(machine, EAST), Agent(machine, WEST)
    east.publishes(a_slice(), a_brokered_class())
    east.tells(an_immediate_claim())
    east.syncs()
    machine.run()
    entry = the_reason(machine)
    assert (entry.state, entry.reason) == ("Pending", "WaitingForCluster")
    assert "fabric f (west silent)" in entry.message
    west.syncs()
    assert [type(each) for each in machine.run()] == [Allocate]


def test_a_local_pool_waits_for_nobody_else(machine: Driven) -> None:
    east, _ = Agent(machine, EAST), Agent(machine, WEST)
    east.publishes(a_slice(pool="local"), a_brokered_class())
    east.syncs()
    east.tells(an_immediate_claim())
    machine.run()
    assert machine.last(Allocate)[1].scopes == ["cluster/east"]


def test_a_class_that_its_owner_may_still_publish_is_waited_for(machine: Driven) -> None:
    east = Agent(machine, EAST)
    east.tells(an_immediate_claim())
    machine.run()
    assert the_reason(machine).reason == "WaitingForCluster"
    assert the_reason(machine).message == "cluster east was not heard yet"
    east.syncs()
    machine.run()
    assert the_reason(machine).reason == "UnknownDeviceClass"


# --- classes


def test_each_class_reason_passes_when_the_class_changes(machine: Driven) -> None:
    east, _ = everyone_heard(machine, brokered=False)
    claim = an_immediate_claim("train", a_request(of="fast"))
    east.tells(claim)
    machine.run()
    east.publishes(a_class("fast"))
    machine.run()
    east.publishes(a_brokered_class("fast"))
    machine.run()
    assert reasons(machine, claim) == ["UnknownDeviceClass", "ClassNotBrokered"]
    assert len(machine.recorded(Allocate)) == 1


def _with_a_bad_device(machine: Driven) -> tuple[Agent, Agent]:
    east, west = everyone_heard(machine)
    east.publishes(a_slice([a_device("bad", k=1), a_device("good", opt=1), a_device("other", opt=1)]))
    machine.run()
    return east, west


FAILING = f'device.attributes["{DRIVER}"].opt == 1'
THE_BAD = f'"k" in device.attributes["{DRIVER}"]'


def test_a_selector_that_failed_is_asked_again_when_the_device_is_given_away(machine: Driven) -> None:
    east, west = _with_a_bad_device(machine)
    claim = an_immediate_claim("failing", a_request("gpu", FAILING))
    west.tells(claim)
    machine.run()
    assert reason(machine, west, claim) == "SelectorFailed"
    east.tells(an_immediate_claim("takes-it", a_request("gpu", THE_BAD)))
    machine.run()
    assert [devices_of(entry) for entry in machine.recorded(Allocate).values()] == [["bad"], ["good"]]
    assert machine.last(Allocate)[1].uid == claim.metadata.uid


def test_what_failed_is_asked_again_in_the_round_in_which_the_device_is_given_away(machine: Driven) -> None:
    _, west = _with_a_bad_device(machine)
    for name, selector in (("first", FAILING), ("takes-it", THE_BAD), ("second", FAILING)):
        west.tells(an_immediate_claim(name, a_request("gpu", selector)))
    machine.step()
    assert [entry.name for entry in machine.recorded(Allocate).values()] == ["takes-it", "second"]
    machine.run()
    assert [entry.name for entry in machine.recorded(Allocate).values()] == ["takes-it", "second", "first"]


def test_what_is_given_away_wakes_nobody_else(machine: Driven) -> None:
    _, west = everyone_heard(machine, devices=2)
    picky = an_immediate_claim("picky", a_request("gpu", "false"))
    west.tells(picky)
    machine.run()
    west.tells(an_immediate_claim("other"))
    machine.step()
    assert not machine.machine.has_work(machine.now_ms)


def test_a_claim_that_asks_for_nothing_is_not_the_brokers_business(machine: Driven) -> None:
    """kube-scheduler gives it an allocation without results, which holds nothing."""
    _, west = everyone_heard(machine)
    claim = msgspec.structs.replace(an_immediate_claim(), spec=ResourceClaimSpec())
    west.tells(claim)
    machine.run(after_ms=1_000_000)
    assert (reasons(machine, claim), machine.letters) == (["ClassNotBrokered"], [])
    assert machine.machine.wake_at_ms() is None
    west.tells(claim, {"devices": {}})
    machine.run()
    assert machine.last(Adopted)[1].holds == []
    west.tells(claim)
    machine.run()
    assert machine.last(GrantEnded)[1].cause == "AllocationCleared"
    assert reason(machine, west, claim) == "ClassNotBrokered"


def test_names_the_class_that_is_missing_and_where(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    east.tells(an_immediate_claim("train", a_request("a"), a_request("b", of="fast")))
    machine.run()
    assert "no DeviceClass fast in east" in the_reason(machine).message


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param([a_request("a"), a_request("b", of="plain")], id="two requests"),
        pytest.param(
            [a_choice("a", a_sub_request("x"), a_sub_request("y", of="plain"))], id="alternatives of one request"
        ),
    ],
)
def test_a_claim_that_mixes_brokered_classes_and_others_is_refused(
    machine: Driven, requests: list[DeviceRequest]
) -> None:
    east, _ = everyone_heard(machine)
    east.publishes(a_class("plain"))
    east.tells(an_immediate_claim("mixed", *requests))
    machine.run()
    entry = the_reason(machine)
    assert (entry.state, entry.reason) == ("Invalid", "MixedClasses")
    assert f"brokered classes ({CLASS}) and others (plain)" in entry.message


def test_a_class_that_goes_takes_its_claims_to_waiting(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=0)
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    east.removes("class", CLASS)
    machine.run()
    assert reasons(machine, claim) == ["NoMatchingDevice", "UnknownDeviceClass"]


def test_a_class_that_goes_is_the_reason_even_of_a_claim_that_waits_for_a_pod(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    east.tells(claim)
    machine.run()
    east.removes("class", CLASS)
    machine.run()
    assert reasons(machine, claim) == ["WaitingForConsumer", "UnknownDeviceClass"]


def test_an_invalid_selector_of_a_class_is_told_to_people_and_to_the_claim(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    east.publishes(a_brokered_class("broken", "device.driver =="))
    east.tells(an_immediate_claim("train", a_request(of="broken")))
    machine.run()
    assert [(each.code, each.place) for each in machine.notices] == [("InvalidSelector", "DeviceClass broken of east")]
    assert the_reason(machine).reason == "InvalidDeviceClass"


def test_an_invalid_selector_of_a_claim_makes_it_invalid(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    east.tells(an_immediate_claim("train", a_request("gpu", "device.nothing")))
    machine.run()
    assert (the_reason(machine).state, the_reason(machine).reason) == ("Invalid", "InvalidSelector")


# --- hub


def a_hub_and_members(machine: Driven, *, devices: int = 1) -> tuple[Agent, Agent, Agent]:
    hub, east, west = (Agent(machine, name) for name in (HUB, EAST, WEST))
    hub.publishes(a_slice(some_devices(devices)), a_brokered_class())
    for agent in (hub, east, west):
        agent.syncs()
    machine.run()
    return hub, east, west


def test_the_classes_of_the_hub_are_everybodys(hub_machine: Driven) -> None:
    _, east, _ = a_hub_and_members(hub_machine)
    east.publishes(a_brokered_class("local"))
    east.tells(an_immediate_claim("hers"))
    east.tells(an_immediate_claim("own", a_request(of="local")))
    hub_machine.run()
    assert hub_machine.last(Allocate)[1].name == "hers"
    assert (the_reason(hub_machine).name, the_reason(hub_machine).reason) == ("own", "UnknownDeviceClass")


def test_members_are_told_of_brokered_classes_and_of_what_becomes_of_them(hub_machine: Driven) -> None:
    hub, *_ = a_hub_and_members(hub_machine)
    hub.publishes(a_class("plain"))
    hub_machine.run()
    spec = msgspec.to_builtins(a_brokered_class().spec)
    assert list(hub_machine.recorded(ClassBrokered).values()) == [
        ClassBrokered(cluster=EAST, name=CLASS, spec=spec),
        ClassBrokered(cluster=WEST, name=CLASS, spec=spec),
    ]
    hub.publishes(a_brokered_class())
    assert hub_machine.run() == []
    hub.publishes(a_brokered_class(CLASS, "true"))
    assert {each.cluster for each in hub_machine.run() if isinstance(each, ClassBrokered) and each.spec} == {EAST, WEST}
    hub.publishes(a_class())
    assert hub_machine.run() == [ClassBrokered(cluster=EAST, name=CLASS), ClassBrokered(cluster=WEST, name=CLASS)]


def test_a_class_of_the_hub_that_a_sync_lacks_is_gone_for_members(hub_machine: Driven) -> None:
    hub, *_ = a_hub_and_members(hub_machine)
    hub.living = {name for name in hub.living if name.kind != "class"}
    hub.syncs()
    assert hub_machine.run() == [ClassBrokered(cluster=EAST, name=CLASS), ClassBrokered(cluster=WEST, name=CLASS)]


def test_without_a_hub_nobody_is_told_of_classes(machine: Driven) -> None:
    everyone_heard(machine)
    assert machine.recorded(ClassBrokered) == {}


def test_a_member_whose_class_differs_from_the_hubs_is_named(hub_machine: Driven) -> None:
    _, east, west = a_hub_and_members(hub_machine)
    east.publishes(a_brokered_class())
    west.publishes(a_brokered_class(CLASS, "false"))
    hub_machine.run()
    assert [(each.code, each.place) for each in hub_machine.notices] == [
        ("ClassDiffers", f"DeviceClass {CLASS} of west")
    ]


def test_a_class_that_an_agent_has_projected_is_as_it_should_be(hub_machine: Driven) -> None:
    _, east, _ = a_hub_and_members(hub_machine)
    projected = a_brokered_class(CLASS, "false")
    projected.metadata.labels["dragoman.dev/projected"] = "true"
    east.publishes(projected)
    hub_machine.run()
    assert hub_machine.notices == []


# --- consumers


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param([], id="no pod"),
        pytest.param([a_pod(terminal=True)], id="a finished pod"),
        pytest.param([a_pod(deleting=True)], id="a pod that is being deleted"),
        pytest.param([a_pod(scheduled=True)], id="a pod that runs somewhere"),
    ],
)
def test_waits_for_a_pod_that_is_still_to_be_scheduled(machine: Driven, pods: list[Consumer]) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    east.tells(claim, None, *pods)
    machine.run()
    assert reason(machine, east, claim) == "WaitingForConsumer"
    east.tells(claim, None, *pods, a_pod("new"))
    machine.run()
    assert machine.last(Allocate)[1].unscheduled == ["uid-new"]


def test_more_pods_than_a_claim_can_be_reserved_for_are_refused(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    pods = [a_pod(f"p{number}") for number in range(MAX_RESERVED_FOR + 1)]
    east.tells(claim, None, *pods)
    machine.run()
    assert reason(machine, east, claim) == "TooManyConsumers"
    east.tells(claim, None, *pods[1:])
    machine.run()
    assert len(machine.last(Allocate)[1].reserved_for) == MAX_RESERVED_FOR


def test_a_claim_that_is_being_deleted_gets_nothing(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = an_immediate_claim()
    metadata = msgspec.structs.replace(claim.metadata, deletion_timestamp="2026-01-01T00:00:00Z")
    east.tells(msgspec.structs.replace(claim, metadata=metadata))
    assert machine.run() == []


# --- order, reasons and what wakes


def test_who_came_first_is_served_first_whatever_came_later(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    granted(machine, east, an_immediate_claim("holder"))
    first, second = an_immediate_claim("first"), an_immediate_claim("second")
    west.tells(first)
    east.tells(second)
    machine.run()
    west.tells(first)  # a new message about it does not cost it its place
    machine.run()
    east.deletes(an_immediate_claim("holder"))
    machine.run()
    assert machine.last(Allocate)[1].name == "first"
    assert the_reason(machine).order < machine.claim(WEST, first).state_sequence


def test_a_reason_is_recorded_when_its_code_changes_and_not_when_its_numbers_do(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=1)
    claim = an_immediate_claim("big", a_request(count=3))
    east.tells(claim)
    machine.run()
    east.publishes(a_slice(some_devices(2)))
    assert machine.run() == []
    waiting = machine.claim(EAST, claim).waiting
    assert waiting is not None
    assert waiting.explanation["requests"][0]["devices"] == 2  # type: ignore[index]
    since = the_reason(machine).since_ms
    machine.now_ms += 5_000
    east.removes("class", CLASS)
    machine.run()
    assert reasons(machine, claim) == ["NoMatchingDevice", "UnknownDeviceClass"]
    assert the_reason(machine).since_ms == since


def test_wakes_only_whom_a_change_concerns(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=0)
    east.tells(an_immediate_claim())
    machine.run()
    east.publishes(Node(metadata=ObjectMeta(name="n1")))
    east.publishes(a_brokered_class("other"))
    machine.step()
    assert not machine.machine.has_work(machine.now_ms)
    assert machine.world.position == len(machine.log)
    east.publishes(a_slice(some_devices(1)))
    machine.run()
    assert len(machine.recorded(Allocate)) == 1


def test_a_node_that_comes_can_be_the_one_that_was_missing(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=0)
    east.publishes(Node(metadata=ObjectMeta(name="n1", labels={"rack": "1"})))
    east.publishes(a_slice(some_devices(1), node_selector=a_node_selector(rack="7")))
    claim = an_immediate_claim()
    east.tells(claim)
    machine.run()
    assert reason(machine, east, claim) == "NoMatchingNode"
    east.publishes(Node(metadata=ObjectMeta(name="n7", labels={"rack": "7"})))
    machine.run()
    assert machine.last(Allocate)[1].allocation["nodeSelector"]
    other = an_immediate_claim("other")
    east.deletes(claim)
    east.removes("node", "n7")
    east.tells(other)
    machine.run()
    assert reason(machine, east, other) == "NoMatchingNode"


# --- taint rules


def a_rule(name: str = "drain", **selector: str) -> DeviceTaintRule:
    taint = DeviceTaint(key="example.com/broken", effect="NoSchedule")
    spec = DeviceTaintRuleSpec(device_selector=DeviceTaintSelector(**selector), taint=taint)
    return DeviceTaintRule(metadata=ObjectMeta(name=name), spec=spec)


def test_a_taint_rule_of_the_source_closes_devices_until_it_goes(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=2)
    east.publishes(a_rule(device="gpu-0", driver=DRIVER))
    pair = an_immediate_claim("pair", a_request(count=2))
    west.tells(pair)
    machine.run()
    assert reason(machine, west, pair) == "DevicesTainted"
    west.tells(an_immediate_claim("one"))
    machine.run()
    assert devices_of(machine.last(Allocate)[1]) == ["gpu-1"]
    west.deletes(an_immediate_claim("one"))
    east.removes("taintrule", "drain")
    machine.run()
    assert devices_of(machine.last(Allocate)[1]) == ["gpu-0", "gpu-1"]


def test_a_rule_of_a_member_does_not_close_devices_of_the_fabric(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=1)
    west.publishes(a_rule())
    east.tells(an_immediate_claim())
    machine.run()
    assert len(machine.recorded(Allocate)) == 1


def test_a_rule_of_the_hub_closes_devices_that_another_cluster_publishes(
    start: Starter,
) -> None:
    machine = start(msgspec.structs.replace(ONE_FABRIC, hub=HUB, clusters=[HUB, EAST, WEST]))
    hub = Agent(machine, HUB)
    hub.publishes(a_brokered_class(), a_rule(pool="rack7"))
    hub.syncs()
    east, _ = everyone_heard(machine, devices=1)
    east.tells(an_immediate_claim("tolerates", a_request(tolerations=[a_toleration()])))
    east.tells(an_immediate_claim("does-not"))
    machine.run()
    assert [each.name for each in machine.recorded(Allocate).values()] == ["tolerates"]


# --- what goes wrong


BAD_LUCK = "device.driver != 'bad luck'"


class _Failing:
    """A selector that raises, as none may."""

    expression = BAD_LUCK
    steps = 1

    def evaluate(self, device: BoundDevice) -> Verdict:
        raise RuntimeError("out of luck")


class _FailingEngine:
    """A good engine, but for one expression."""

    name = "failing"

    def __init__(self, engine: SelectorEngine) -> None:
        self._engine = engine
        self.bind = engine.bind

    def compile_attribute(self, expression: str) -> DerivedAttribute:
        return self._engine.compile_attribute(expression)

    def compile(self, expression: str) -> Selector:
        return _Failing() if expression == BAD_LUCK else self._engine.compile(expression)


def test_a_claim_that_cannot_be_decided_stops_nobody_else(start: Starter, engine: SelectorEngine) -> None:
    machine = start(ONE_FABRIC, _FailingEngine(engine))
    east, _ = everyone_heard(machine, devices=2)
    unlucky, other = an_immediate_claim("unlucky", a_request("gpu", BAD_LUCK)), an_immediate_claim("other")
    sequence = east.tells(unlucky)
    east.tells(other)
    machine.run()
    assert machine.last(Allocate)[1].name == "other"
    assert reason(machine, east, unlucky) == "InternalError"
    (letter,) = machine.letters
    assert (letter.reason, letter.stream_sequence, letter.cluster) == ("InternalError", sequence, EAST)
    assert "RuntimeError: out of luck" in letter.message
    assert [(each.code, each.level) for each in machine.notices] == [("InternalError", "error")]
    machine.run(after_ms=TRY_HARD_AGAIN_MS - 1)
    assert len(machine.letters) == 1
    machine.run(after_ms=1)
    assert len(machine.letters) == 2
