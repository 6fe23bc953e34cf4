"""Which DeviceTaintRules the broker has written into members: for NoExecute taints, where the config says so."""

from collections.abc import Mapping

import msgspec

from broker.allocation.cel.engine import SelectorEngine
from broker.machine.device_taints import MAINTENANCE
from broker.machine.projected_taints import RULES_MOST
from broker.world.checkpoint import checkpoint
from broker.world.federation import PROJECTED_LABEL, Federation, TaintRuleSettings
from broker.world.keys import ClusterId
from schemas.resource import (
    DeviceTaint,
    DeviceTaintRule,
    DeviceTaintRuleSpec,
    DeviceTaintSelector,
    ObjectMeta,
    ResourceSlice,
)
from schemas.wire.ledger import DeviceTainted, TaintRule, TaintRulesChanged
from tests.builders import DRIVER, a_slice, some_devices
from tests.machine.conftest import Starter
from tests.machine.driven import (
    EAST,
    HUB,
    ONE_FABRIC,
    RACK,
    WEST,
    WITH_HUB,
    Agent,
    Driven,
    a_brokered_class,
    everyone_heard,
)

KEY = "example.com/smoke"
NONE: Mapping[str, str] = {}


def writing(federation: Federation, *clusters: ClusterId) -> Federation:
    """Agents of these clusters write rules."""
    return msgspec.structs.replace(federation, device_taint_rules=TaintRuleSettings([*clusters]))


def a_rule(
    name: str = "drain", effect: str = "NoExecute", *, labels: Mapping[str, str] = NONE, **selector: str
) -> DeviceTaintRule:
    taint = DeviceTaint(key=KEY, value="yes", effect=effect)
    spec = DeviceTaintRuleSpec(device_selector=DeviceTaintSelector(**selector), taint=taint)
    return DeviceTaintRule(metadata=ObjectMeta(name=name, labels=dict(labels)), spec=spec)


def told(driven: Driven, cluster: str) -> list[tuple[str, str, str, str]]:
    """Pool, device, key and reason of the rules that the cluster was told of last."""
    entries = [entry for entry in driven.recorded(TaintRulesChanged).values() if entry.cluster == cluster]
    rules = entries[-1].rules if entries else []
    assert tuple(rules) == (driven.world.cluster(ClusterId(cluster)).taint_rules or ())
    return [(rule.pool, rule.device, rule.key, rule.reason) for rule in rules]


def all_heard(driven: Driven) -> tuple[Agent, Agent, Agent]:
    """A hub with two devices of the fabric, and its members."""
    hub, east, west = (Agent(driven, name) for name in (HUB, EAST, WEST))
    hub.publishes(a_brokered_class(), a_slice(some_devices(2)))
    for agent in (hub, east, west):
        agent.syncs()
    driven.run()
    return hub, east, west


def test_a_device_that_is_tainted_no_execute_has_a_rule_in_the_configured_members(start: Starter) -> None:
    machine = start(writing(ONE_FABRIC, WEST))
    everyone_heard(machine, devices=2)
    assert machine.device_command("taint", "gpu-1", effect="NoExecute") == ""
    assert machine.last(DeviceTainted)[1].effect == "NoExecute"
    (entry,) = machine.recorded(TaintRulesChanged).values()
    assert entry.cluster == WEST
    (rule,) = entry.rules
    assert rule == TaintRule(
        name=rule.name,
        driver=DRIVER,
        pool=RACK,
        device="gpu-1",
        key=MAINTENANCE,
        effect="NoExecute",
        reason="ada: fan is loud",
    )
    assert rule.name.startswith("dragoman-gpu-1-")
    assert machine.device_command("untaint", "gpu-1") == ""
    assert told(machine, WEST) == []
    assert told(machine, EAST) == []


def test_no_other_effect_is_told(start: Starter) -> None:
    """NoSchedule concerns who gets a device; only the broker decides that."""
    machine = start(writing(ONE_FABRIC, EAST, WEST))
    east, _ = everyone_heard(machine, devices=2)
    machine.device_command("taint", "gpu-0")
    east.publishes(a_rule(effect="NoSchedule"))
    machine.run()
    assert machine.recorded(TaintRulesChanged) == {}


def test_an_order_that_nothing_would_carry_out_is_refused(start: Starter) -> None:
    machine = start(writing(ONE_FABRIC, ClusterId("north")))
    everyone_heard(machine)
    said = machine.device_command("taint", "gpu-0", effect="NoExecute")
    assert said.startswith(f"nothing would end pods that have device fabric/f/{DRIVER}/{RACK}/gpu-0: no cluster that")
    assert "device_taint_rules.clusters" in said
    assert machine.world.taints == {}


def test_a_local_device_has_a_rule_in_its_own_cluster_alone(start: Starter) -> None:
    machine = start(writing(ONE_FABRIC, EAST, WEST))
    _, west = everyone_heard(machine)
    west.publishes(a_slice(some_devices(1), pool="own", name="own"))
    machine.run()
    assert machine.device_command("taint", "gpu-0", pool="own", effect="NoExecute") == ""
    assert told(machine, WEST) == [("own", "gpu-0", MAINTENANCE, "ada: fan is loud")]
    assert told(machine, EAST) == []


def test_a_rule_of_the_hub_is_told_for_the_pools_that_it_selects(start: Starter) -> None:
    """Never as it is: with an empty selector it would end pods of whatever the member has itself."""
    machine = start(writing(WITH_HUB, EAST, WEST))
    hub, east, _ = all_heard(machine)
    hub.publishes(a_slice(some_devices(1), pool="not-ours", name="not-ours"), a_rule())
    machine.run()
    everything = [(RACK, "", KEY, f"DeviceTaintRule drain of {HUB}")]
    assert told(machine, EAST) == told(machine, WEST) == everything
    hub.publishes(a_rule(device="gpu-1"))
    machine.run()
    assert told(machine, EAST) == [(RACK, "gpu-1", KEY, f"DeviceTaintRule drain of {HUB}")]
    # What says the same is one rule; who may not speak for the pool says nothing.
    hub.publishes(a_rule("again", device="gpu-1", pool=RACK))
    east.publishes(a_rule("theirs"))
    machine.run()
    assert len(told(machine, WEST)) == 1
    hub.removes("taintrule", "drain")
    machine.run()
    assert told(machine, EAST) == [(RACK, "gpu-1", KEY, f"DeviceTaintRule again of {HUB}")]
    hub.removes("taintrule", "again")
    machine.run()
    assert told(machine, EAST) == told(machine, WEST) == []


def test_a_driver_that_taints_a_device_is_told_too(start: Starter) -> None:
    machine = start(writing(WITH_HUB, EAST))
    hub, _, _ = all_heard(machine)

    def tainted(generation: int, **taints: str) -> ResourceSlice:
        devices = [
            msgspec.structs.replace(device, taints=[DeviceTaint(key=KEY, effect=taints[device.name.replace("-", "_")])])
            if device.name.replace("-", "_") in taints
            else device
            for device in some_devices(2)
        ]
        return a_slice(devices, generation=generation, name=f"g{generation}")

    hub.publishes(tainted(2, gpu_0="NoExecute", gpu_1="NoSchedule"))
    machine.run()
    assert told(machine, EAST) == [(RACK, "gpu-0", KEY, f"ResourceSlice g2 of {HUB}")]
    hub.publishes(tainted(3))  # the slice of the generation before is still there
    machine.run()
    assert told(machine, EAST) == []
    hub.publishes(tainted(3, gpu_1="NoExecute"))
    machine.run()
    assert told(machine, EAST) == [(RACK, "gpu-1", KEY, f"ResourceSlice g3 of {HUB}")]
    hub.removes("slice", "g3")
    machine.run()
    assert told(machine, EAST) == [(RACK, "gpu-0", KEY, f"ResourceSlice g2 of {HUB}")]


def test_what_an_agent_has_written_is_not_taken_for_a_rule_of_the_source(start: Starter) -> None:
    """East is source and member: its rule would else keep itself there for ever."""
    machine = start(writing(ONE_FABRIC, EAST, WEST))
    east, _ = everyone_heard(machine)
    machine.device_command("taint", "gpu-0", effect="NoExecute")
    name = machine.last(TaintRulesChanged)[1].rules[0].name
    east.publishes(a_rule(name, labels={PROJECTED_LABEL: "true"}, driver=DRIVER, pool=RACK, device="gpu-0"))
    machine.run()
    assert len(told(machine, WEST)) == 1
    machine.device_command("untaint", "gpu-0")
    assert told(machine, EAST) == told(machine, WEST) == []
    # Somebody takes the mark off: from then on it is the administrators' of the source, and is there already.
    east.publishes(a_rule(name, driver=DRIVER, pool=RACK, device="gpu-0"))
    machine.run()
    assert told(machine, EAST) == []
    assert told(machine, WEST) == [(RACK, "gpu-0", KEY, f"DeviceTaintRule {name} of {EAST}")]


def test_when_the_config_names_the_cluster_no_more_its_rules_go(engine: SelectorEngine) -> None:
    machine = Driven(writing(ONE_FABRIC, WEST), engine)
    everyone_heard(machine)
    machine.device_command("taint", "gpu-0", effect="NoExecute")
    assert len(told(machine, WEST)) == 1
    machine.federation = ONE_FABRIC
    machine.machine = machine.restart()
    machine.run()  # nothing else has happened
    assert told(machine, WEST) == []
    assert machine.world.taints, "the taint itself stays"


def test_what_was_told_outlives_segments_even_if_it_is_nothing(start: Starter) -> None:
    """An agent that was away while the segment ended reads only the next one."""
    machine = start(writing(ONE_FABRIC, WEST))
    everyone_heard(machine)
    machine.device_command("taint", "gpu-0", effect="NoExecute")
    said = machine.last(TaintRulesChanged)[1]
    assert said in checkpoint(machine.world, "main", 1)
    machine.rotate()
    machine.device_command("untaint", "gpu-0")
    assert TaintRulesChanged(cluster=WEST) in checkpoint(machine.world, "main", 2)
    machine.rotate()
    machine.device_command("taint", "gpu-0", effect="NoExecute")
    assert machine.last(TaintRulesChanged)[1] == said


def test_nothing_is_taken_back_before_the_hub_was_heard(start: Starter) -> None:
    federation = msgspec.structs.replace(ONE_FABRIC, hub=HUB, clusters=[HUB, EAST, WEST])
    machine = start(writing(federation, WEST))
    hub = Agent(machine, HUB)
    hub.publishes(a_brokered_class(), a_rule())
    hub.syncs()
    everyone_heard(machine)
    machine.command("evict", HUB, fenced=True)
    assert len(told(machine, WEST)) == 1
    machine.device_command("taint", "gpu-0", effect="NoExecute")
    assert len(told(machine, WEST)) == 2, "what is new is told"


def test_there_are_not_more_than_a_message_can_have(start: Starter) -> None:
    machine = start(writing(WITH_HUB, EAST))
    hub, _, _ = all_heard(machine)
    hub.publishes(*(a_rule(f"r{number}", device=f"gpu-{number}") for number in range(RULES_MOST + 1)))
    machine.run()
    machine.device_command("taint", "gpu-0", effect="NoExecute")
    rules = machine.last(TaintRulesChanged)[1].rules
    assert len(rules) == RULES_MOST
    assert [rule.key for rule in rules].count(MAINTENANCE) == 1, "operators come first"
    assert [notice.code for notice in machine.notices if notice.level == "error"][-1] == "TooManyTaintRules"
