"""Devices that are broken or drained: what holders report of them, and what operators order."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from broker.machine.device_taints import MAINTENANCE, REPORTED_MAX, UNHEALTHY
from broker.world.federation import DeviceHealth, Federation
from schemas.resource import CapacityRequirements, DeviceToleration, ResourceClaim
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    DeviceTainted,
    DeviceUntainted,
    Release,
    ReportedBy,
)
from schemas.wire.state import Rejected
from tests.builders import DRIVER, a_claim, a_device, a_request, a_slice, some_devices
from tests.machine.conftest import Starter
from tests.machine.driven import (
    EAST,
    ONE_FABRIC,
    RACK,
    WEST,
    Agent,
    Driven,
    a_brokered_class,
    a_pod,
    an_allocation,
    an_immediate_claim,
    devices_of,
    everyone_heard,
    fabric_device,
    granted,
    reason,
    settled,
)

ADMIN = {"resource.kubernetes.io/admin-access": "true"}
BROKEN = [{"type": "Healthy", "status": "False", "reason": "XidError", "message": "GPU has fallen off the bus"}]
HEALED = [{"type": "Healthy", "status": "True", "reason": "SelfTest"}]


def of(device: str, conditions: Iterable[dict[str, str]], **more: Any) -> dict[str, Any]:
    """An entry of status.devices."""
    return {"driver": DRIVER, "pool": RACK, "device": device, "conditions": list(conditions), **more}


def reports(driven: Driven, agent: Agent, claim: ResourceClaim, *devices: dict[str, Any], **state: Any) -> None:
    """The claim's driver says this of its devices."""
    ours = {number: entry for number, entry in driven.recorded(Allocate).items() if entry.uid == claim.metadata.uid}
    sequence, entry = max(ours.items())
    agent.tells(claim, entry.allocation, a_pod(), decision=settled(sequence), devices=devices, **state)
    driven.run()


def tainted(driven: Driven) -> dict[str, list[str]]:
    """Keys of the taints of the fabric's devices."""
    return {device.device: sorted(taints) for device, taints in driven.world.taints.items()}


def test_a_device_that_its_holder_reports_unhealthy_is_given_to_nobody_else(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    reports(machine, east, claim, of("gpu-0", BROKEN))
    sequence, entry = machine.last(DeviceTainted)
    assert entry == DeviceTainted(
        scope="fabric/f",
        driver=DRIVER,
        pool=RACK,
        device="gpu-0",
        key=UNHEALTHY,
        at_ms=machine.now_ms,
        report=ReportedBy(
            cluster=EAST,
            uid=claim.metadata.uid,
            namespace="default",
            name="train",
            condition="Healthy=False",
            reason="XidError",
            message="GPU has fallen off the bus",
        ),
    )
    assert machine.world.taints[fabric_device("gpu-0")][UNHEALTHY].ledger_sequence == sequence
    east.deletes(claim)
    waiting = an_immediate_claim("other")
    west.tells(waiting)
    machine.run()
    assert not machine.world.in_use, "the report went with the claim, and the device is as broken as before"
    assert reason(machine, west, waiting) == "DevicesTainted"
    assert f"{UNHEALTHY}:NoSchedule" in machine.claim(WEST, waiting).waiting.message  # type: ignore[union-attr]


def test_the_same_report_again_is_nothing_new(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=2)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    for _ in range(3):
        reports(machine, east, claim, of("gpu-0", BROKEN))
    assert len(machine.recorded(DeviceTainted)) == 1
    assert [notice.code for notice in machine.notices if notice.code.startswith("Device")] == ["DeviceTainted"]


def test_a_claim_that_tolerates_the_taint_gets_the_device_and_may_find_it_healthy(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    reports(machine, east, claim, of("gpu-0", BROKEN))
    east.deletes(claim)
    waiting = an_immediate_claim("waiting")
    west.tells(waiting)
    machine.run()
    tolerant = a_claim(a_request(tolerations=[DeviceToleration(key=UNHEALTHY, operator="Exists")]), name="selftest")
    granted(machine, west, tolerant, a_pod())
    reports(machine, west, tolerant, of("gpu-0", HEALED))
    (untainted,) = machine.recorded(DeviceUntainted).values()
    assert untainted.report is not None
    assert (untainted.report.cluster, untainted.report.name, untainted.operator) == (WEST, "selftest", "")
    assert tainted(machine) == {}
    assert reason(machine, west, waiting) == "DevicesInUse"
    west.deletes(tolerant)
    machine.run()
    assert machine.last(Allocate)[1].name == "waiting"


def test_its_holder_may_find_it_healthy_again(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    for conditions in (HEALED, BROKEN, HEALED, HEALED):
        reports(machine, east, claim, of("gpu-0", conditions))
    assert [len(machine.recorded(kind)) for kind in (DeviceTainted, DeviceUntainted)] == [1, 1]


@pytest.mark.parametrize(
    "conditions",
    [
        pytest.param([], id="none"),
        pytest.param([{"type": "Ready", "status": "False", "reason": "Preparing"}], id="Ready: it is being prepared"),
        pytest.param([{"type": "Healthy", "status": "Unknown"}], id="nobody knows"),
        pytest.param([{"type": "Healthy", "status": "false"}], id="no status that Kubernetes has"),
        pytest.param([{"type": "example.com/AttachFailed", "status": "True"}], id="a type that is not configured"),
    ],
)
def test_no_other_condition_makes_a_device_unhealthy(machine: Driven, conditions: list[dict[str, str]]) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    reports(machine, east, claim, of("gpu-0", conditions))
    assert tainted(machine) == {}


def test_unhealthy_wins_where_conditions_contradict_each_other(machine: Driven, start: Starter) -> None:
    health = DeviceHealth(healthy=["Healthy", "example.com/LinkUp"])
    other = start(_with(health))
    east, _ = everyone_heard(other)
    claim = a_claim()
    granted(other, east, claim, a_pod())
    reports(other, east, claim, of("gpu-0", [*HEALED, {"type": "example.com/LinkUp", "status": "False"}]))
    assert tainted(other) == {"gpu-0": [UNHEALTHY]}


# --- who may speak


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(of("gpu-1", BROKEN), id="a free one"),
        pytest.param(of("gpu-2", BROKEN), id="one that another claim holds"),
        pytest.param(of("gpu-9", BROKEN), id="one that there is not"),
        pytest.param(of("gpu-0", BROKEN, pool="rack8"), id="of another pool"),
        pytest.param(of("gpu-0", BROKEN, shareID="00000000-0000-0000-0000-000000000001"), id="a share of its own"),
        pytest.param(of("gpu-1", HEALED), id="that a free one is healthy"),
    ],
)
def test_a_report_about_a_device_that_the_claim_does_not_hold_is_ignored_and_counted(
    machine: Driven, device: dict[str, Any]
) -> None:
    east, west = everyone_heard(machine, devices=3)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    west.tells(a_claim(name="west"), an_allocation("gpu-2"))
    machine.run()
    assert machine.device_command("taint", "gpu-1") == ""
    before = tainted(machine)
    for _ in range(2):
        reports(machine, east, claim, device)
    assert tainted(machine) == before
    assert [notice.place for notice in machine.notices if notice.code == "DeviceReportIgnored"] == [
        "claim east/default/train"
    ]


def test_admin_access_does_not_speak_for_a_device_that_another_holds(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    granted(machine, east, a_claim(), a_pod())
    admin = a_claim(a_request(admin_access=True), name="admin")
    granted(machine, west, admin, a_pod(), namespace_labels=ADMIN)
    reports(machine, west, admin, of("gpu-0", BROKEN), namespace_labels=ADMIN)
    assert tainted(machine) == {}
    assert "DeviceReportIgnored" in [notice.code for notice in machine.notices]


def test_an_allocation_that_is_adopted_speaks_with_its_adoption(machine: Driven) -> None:
    _east, west = everyone_heard(machine)
    found = a_claim(name="found")
    west.tells(found, an_allocation("gpu-0"), devices=[of("gpu-0", BROKEN)])
    machine.run()
    assert len(machine.recorded(Adopted)) == 1
    assert tainted(machine) == {"gpu-0": [UNHEALTHY]}
    assert not [notice for notice in machine.notices if notice.code == "DeviceReportIgnored"]


def test_an_allocation_that_collides_does_not_speak(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    granted(machine, east, a_claim(), a_pod())
    west.tells(a_claim(name="intruder"), an_allocation("gpu-0"), devices=[of("gpu-0", BROKEN)])
    machine.run()
    assert tainted(machine) == {}


def test_of_two_holders_of_shares_the_one_that_has_noticed_nothing_takes_nothing_back(machine: Driven) -> None:
    east, west = Agent(machine, EAST), Agent(machine, WEST)
    shared = msgspec.structs.replace(a_device(capacity={"memory": "8"}), allow_multiple_allocations=True)
    east.publishes(a_slice([shared]))
    for agent in (east, west):
        agent.publishes(a_brokered_class())
        agent.syncs()
    machine.run()
    half = a_request(capacity=CapacityRequirements(requests={"memory": "4"}))
    one, two = a_claim(half, name="one"), a_claim(half, name="two")
    shares = {}
    for claim, agent in ((one, east), (two, west)):
        granted(machine, agent, claim, a_pod())
        shares[agent] = machine.last(Allocate)[1].holds[0].share_id
    reports(machine, west, two, of("gpu-0", HEALED, shareID=shares[west]))
    reports(machine, east, one, of("gpu-0", BROKEN, shareID=shares[east]))
    reports(machine, west, two, of("gpu-0", HEALED, shareID=shares[west]))
    reports(machine, west, two, of("gpu-0", [], shareID=shares[west]))
    reports(machine, west, two, of("gpu-0", HEALED, shareID=shares[west]))
    assert tainted(machine) == {"gpu-0": [UNHEALTHY]}, "the other still reports it"
    east.deletes(one)
    reports(machine, west, two, of("gpu-0", HEALED, shareID=shares[west]))
    assert tainted(machine) == {"gpu-0": [UNHEALTHY]}, "it has said so before"
    reports(machine, west, two, of("gpu-0", [], shareID=shares[west]))
    reports(machine, west, two, of("gpu-0", HEALED, shareID=shares[west]))
    assert tainted(machine) == {}


def test_every_device_of_a_full_claim_may_break_at_once(machine: Driven) -> None:
    east, _ = everyone_heard(machine, devices=32)
    claim = a_claim(a_request(count=32))
    granted(machine, east, claim, a_pod())
    reports(machine, east, claim, *(of(f"gpu-{index}", BROKEN) for index in range(32)))
    assert len(machine.recorded(DeviceTainted)) == 32


# --- what a taint outlives


def test_a_new_generation_of_the_pool_says_nothing_of_a_devices_health(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    reports(machine, east, claim, of("gpu-0", BROKEN))
    east.deletes(claim)
    east.publishes(a_slice(some_devices(1), generation=2))
    waiting = an_immediate_claim("waiting")
    west.tells(waiting)
    machine.run()
    assert reason(machine, west, waiting) == "DevicesTainted"
    east.removes("slice", "slice-0")
    machine.run()
    east.publishes(a_slice(some_devices(1), generation=3))
    machine.run()
    assert reason(machine, west, waiting) == "DevicesTainted"


def test_taints_go_on_in_the_next_segment_with_who_set_them(machine: Driven) -> None:
    east, west = everyone_heard(machine, devices=2)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    reports(machine, east, claim, of("gpu-0", BROKEN))
    machine.device_command("taint", "gpu-1", key="example.com/fan")
    before = {device: dict(taints) for device, taints in machine.world.taints.items()}
    machine.rotate()
    machine.rotate()
    assert machine.only_the_ledger().world.taints == before
    assert [entry.ledger_sequence > 0 for entry in list(machine.recorded(DeviceTainted).values())[-2:]] == [True, True]
    assert machine.device_command("untaint", "gpu-1") == ""
    west.tells(an_immediate_claim("other"))
    machine.run()
    assert devices_of(machine.last(Allocate)[1]) == ["gpu-1"]


def test_a_report_of_a_device_whose_slice_is_away_counts_when_it_is_back(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    east.removes("slice", "slice-0")
    reports(machine, east, claim, of("gpu-0", BROKEN))
    east.deletes(claim)
    east.publishes(a_slice(some_devices(1), generation=2))
    west.tells(an_immediate_claim("waiting"))
    machine.run()
    assert reason(machine, west, an_immediate_claim("waiting")) == "DevicesTainted"


def test_a_cluster_cannot_fill_the_ledger_with_devices_that_it_makes_up(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    for number in range(REPORTED_MAX // 32 + 1):
        names = [f"gpu-{number}-{index}" for index in range(32)]
        made_up = an_allocation(*names, pool="made-up")
        west.tells(a_claim(name=f"c{number}"), made_up, devices=[of(name, BROKEN, pool="made-up") for name in names])
    machine.run()
    assert len(machine.world.taints) == REPORTED_MAX
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    reports(machine, east, claim, of("gpu-0", BROKEN))
    assert fabric_device("gpu-0") in machine.world.taints, "others may still report theirs"


# --- operators


def test_an_operator_drains_a_device_and_gives_it_back(machine: Driven) -> None:
    _east, west = everyone_heard(machine)
    assert machine.device_command("taint", "gpu-0") == ""
    (entry,) = machine.recorded(DeviceTainted).values()
    assert (entry.key, entry.operator, entry.reason, entry.report) == (MAINTENANCE, "ada", "fan is loud", None)
    waiting = an_immediate_claim()
    west.tells(waiting)
    machine.run()
    assert reason(machine, west, waiting) == "DevicesTainted"
    assert machine.device_command("untaint", "gpu-0") == ""
    assert devices_of(machine.last(Allocate)[1]) == ["gpu-0"]


def test_a_drained_device_stays_with_who_has_it(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    assert machine.device_command("taint", "gpu-0") == ""
    assert machine.recorded(Release) == {}
    assert machine.is_in_use("gpu-0")


def test_a_report_ends_no_taint_of_an_operator(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    machine.device_command("taint", "gpu-0")
    for conditions in (BROKEN, HEALED):
        reports(machine, east, claim, of("gpu-0", conditions))
    assert tainted(machine) == {"gpu-0": [MAINTENANCE]}


def test_an_operator_may_say_that_a_device_works_again_when_nobody_says_otherwise(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    claim = a_claim()
    granted(machine, east, claim, a_pod())
    reports(machine, east, claim, of("gpu-0", BROKEN))
    assert machine.device_command("untaint", "gpu-0").startswith("east/default/train holds device fabric/f/")
    east.deletes(claim)
    machine.run()
    assert machine.device_command("untaint", "gpu-0") == ""
    assert tainted(machine) == {}


def test_a_taint_of_a_device_that_has_gone_can_be_taken_off(machine: Driven) -> None:
    east, _ = everyone_heard(machine)
    machine.device_command("taint", "gpu-0")
    east.removes("slice", "slice-0")
    machine.run()
    assert tainted(machine) == {"gpu-0": [MAINTENANCE]}
    assert machine.device_command("untaint", "gpu-0") == ""
    assert machine.world.taints == {}


def test_says_why_an_order_cannot_be_done(machine: Driven) -> None:
    east, west = everyone_heard(machine)
    for agent in (east, west):
        agent.publishes(a_slice(some_devices(1), name="own", pool="own"))
    machine.run()
    assert machine.device_command("taint", "gpu-7") == f"no device {DRIVER}/rack7/gpu-7 is published"
    assert machine.device_command("taint", "gpu-0", scope="fabric/g").endswith("gpu-0 is published in fabric/g")
    assert machine.device_command("taint", "gpu-0", key=UNHEALTHY).startswith(f"key {UNHEALTHY} is for what holders")
    assert machine.device_command("taint", "gpu-0", pool="own").endswith(
        "cluster/east, cluster/west: say which with --scope"
    )
    assert machine.device_command("taint", "gpu-0", pool="own", scope="cluster/west") == ""
    assert machine.device_command("untaint", "gpu-0").startswith("the broker keeps no taint of device fabric/f/")
    assert machine.device_command("taint", "gpu-0") == ""
    assert machine.device_command("taint", "gpu-0").endswith(
        f"is tainted with {MAINTENANCE}:NoSchedule already, by ada: fan is loud"
    )
    assert machine.device_command("untaint", "gpu-0", key="a").endswith(f"is not tainted with a; it has {MAINTENANCE}")
    assert machine.device_command("taint", "gpu-0", key="example.com/b") == ""
    assert "has several taints: name one of" in machine.device_command("untaint", "gpu-0")


# --- binding that fails


def test_a_device_whose_binding_fails_is_given_back_and_tainted_where_that_type_says_so(start: Starter) -> None:
    failed = "example.com/AttachFailed"
    machine = start(_with(DeviceHealth(unhealthy=[failed])))
    east, west = Agent(machine, EAST), Agent(machine, WEST)
    devices = [
        msgspec.structs.replace(
            a_device(name), binding_conditions=["example.com/Attached"], binding_failure_conditions=[failed]
        )
        for name in ("gpu-0", "gpu-1")
    ]
    east.publishes(a_slice(devices))
    for agent in (east, west):
        agent.publishes(a_brokered_class())
        agent.syncs()
    machine.run()
    claim = a_claim()
    sequence = granted(machine, east, claim, a_pod())
    (result,) = machine.last(Allocate)[1].allocation["devices"]["results"]
    assert (result["bindingConditions"], result["bindingFailureConditions"]) == (["example.com/Attached"], [failed])
    said = of("gpu-0", [{"type": failed, "status": "True", "reason": "PortDark"}])
    reports(machine, east, claim, said, rejected=Rejected(sequence, "BindingFailed", "port is dark"))
    number, release = machine.last(Release)
    assert release.reason == "BindingFailed"
    assert tainted(machine) == {"gpu-0": [UNHEALTHY]}
    east.tells(claim, None, a_pod(), decision=settled(number))
    machine.run(after_ms=release.retry_at_ms - machine.now_ms)
    assert devices_of(machine.last(Allocate)[1]) == ["gpu-1"]
    west.tells(an_immediate_claim("other"))
    machine.run()
    assert len(machine.recorded(Allocate)) == 2, "the broken one is free, and for nobody"


def _with(health: DeviceHealth) -> Federation:
    return msgspec.structs.replace(ONE_FABRIC, device_health=health)
