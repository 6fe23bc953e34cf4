"""How much one round of decisions may take, and who gets it: in steps, for a core has no clock."""

from random import Random

import pytest

from broker.allocation.cel.engine import SelectorEngine
from broker.world.federation import ALLOCATE_ANNOTATION, Fabric, Federation, PoolPattern
from broker.world.keys import ClusterId
from schemas.resource import DeviceConstraint, ResourceClaim
from schemas.wire.ledger import Allocate, ReasonChanged
from tests.allocation.test_index import CountingEngine
from tests.builders import DRIVER, a_claim, a_device, a_request, a_slice, some_devices
from tests.machine.conftest import Starter
from tests.machine.driven import EAST, RACK, WEST, Agent, Driven, a_brokered_class, an_immediate_claim

NORTH = ClusterId("north")
THREE = Federation(
    fabrics=[Fabric("f", source=EAST, clusters=[EAST, NORTH, WEST], pools=[PoolPattern(pool=RACK)])],
    clusters=[EAST, NORTH, WEST],
)
VALUES = "ghij"


@pytest.fixture
def three(start: Starter, engine: SelectorEngine) -> Driven:
    return start(THREE, engine)


def heard(machine: Driven, devices: int = 20, values: int = 6) -> tuple[Agent, Agent, Agent]:
    """All agents of THREE; a pool whose devices have four attributes of few values, and a device of east alone."""
    random = Random(3)

    def value() -> int:
        return random.randint(0, values)

    agents = Agent(machine, EAST), Agent(machine, NORTH), Agent(machine, WEST)
    agents[0].publishes(
        a_slice([a_device(f"d{n}", g=value(), h=value(), i=value(), j=value()) for n in range(devices)])
    )
    agents[0].publishes(a_slice(some_devices(1), name="own", pool="a-local"))
    for each in agents:
        each.publishes(a_brokered_class())
        each.syncs()
    machine.run()
    return agents


def a_hard_claim(name: str, requests: int = 6) -> ResourceClaim:
    """Devices that differ in all four attributes; no two claims ask for the same."""
    return a_claim(
        *(a_request(f"{name}-{n}") for n in range(requests)),
        name=name,
        constraints=[DeviceConstraint(distinct_attribute=f"{DRIVER}/{each}") for each in VALUES],
        annotations={ALLOCATE_ANNOTATION: "Immediate"},
    )


def decided(machine: Driven) -> list[str]:
    """The claims that a step decides."""
    return [each.name for each in machine.step().entries if isinstance(each, Allocate | ReasonChanged)]


def test_claims_that_take_long_do_not_hold_up_those_of_another_cluster(three: Driven) -> None:
    east, _, west = heard(three)
    for n in range(12):
        west.tells(a_hard_claim(f"hard-{n}"))
    east.tells(an_immediate_claim("plain"))
    first = decided(three)
    assert "plain" in first
    assert 0 < len(first) - 1 < 6


def test_a_round_ends_when_its_steps_are_taken(three: Driven) -> None:
    _, _, west = heard(three)
    for n in range(12):
        west.tells(a_hard_claim(f"hard-{n}"))
    rounds = []
    while three.machine.has_work(three.now_ms):
        rounds.append(decided(three))
    assert len(rounds) >= 3
    assert [name for names in rounds for name in names] == [f"hard-{n}" for n in range(12)]


def test_clusters_whose_claims_take_long_take_turns(three: Driven) -> None:
    east, north, west = heard(three)
    for n in range(8):
        west.tells(a_hard_claim(f"west-{n}"))
    for n in range(8):
        north.tells(a_hard_claim(f"north-{n}"))
    east.tells(an_immediate_claim("plain"))
    first, second = decided(three), decided(three)
    assert "plain" in first + second
    for whose in ("west", "north"):
        assert any(name.startswith(whose) for name in first + second)
    rest = []
    while three.machine.has_work(three.now_ms):
        rest += decided(three)
    everything = first + second + rest
    for whose in ("west", "north"):
        assert [name for name in everything if name.startswith(whose)] == [f"{whose}-{n}" for n in range(8)]
    assert len(everything) == 17


def test_many_plain_claims_are_decided_in_one_round_in_their_order(three: Driven) -> None:
    east, north, west = heard(three)
    agents = (west, west, west, east, north)
    names = []
    for n in range(700):
        names.append(f"plain-{n}")
        agents[n % len(agents)].tells(an_immediate_claim(names[-1]))
    assert decided(three) == names


def test_selectors_that_take_long_share_what_a_round_has_for_asking(start: Starter, engine: SelectorEngine) -> None:
    counting = CountingEngine(engine)
    machine = start(THREE, counting)
    _, north, west = heard(machine, devices=1)
    before = len(counting.asked)
    for n in range(10):
        slow = f"lists.range(1000).map(a, a + {n}).size() > 0"
        agent = west if n % 2 else north
        agent.tells(an_immediate_claim(f"slow-{n}", a_request("gpu", slow)))
    machine.step()
    assert sum("lists" in expression for expression in counting.asked[before:]) == 1
