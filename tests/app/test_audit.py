"""Which terms an audit can make again, by what DRA_STATE still has."""

import pytest

from broker.adapters.state_history import Kept
from broker.app.audit import why_expired
from broker.world.federation import Federation
from broker.world.keys import ClusterId
from broker.world.world import World
from schemas.wire.ledger import Liveness

HOUR_MS = 3_600_000
AGE_MS = 72 * HOUR_MS
BEGAN_MS = 1_000 * HOUR_MS  # the term's first decision, made on message 500
POSITION = 500


def kept(first: int = 100, last: int = 900, hours_before: float = 24) -> Kept:
    """The first message is from so many hours before the term."""
    return Kept(first, last, BEGAN_MS - int(hours_before * HOUR_MS), AGE_MS)


def a_world(liveness: Liveness = "Live", since_ms: int = 0, *, is_heard: bool = True) -> World:
    world = World(Federation(clusters=[ClusterId("east"), ClusterId("west")]))
    for each in world.clusters.values():
        each.synced_sequence = 7
    west = world.clusters[ClusterId("west")]
    west.liveness, west.liveness_since_ms, west.synced_sequence = liveness, since_ms, 7 if is_heard else 0
    return world


EXPIRED = "inputs expired before message 100 of DRA_STATE"


@pytest.mark.parametrize(
    ("there", "missing", "world", "why"),
    [
        pytest.param(kept(), set(), a_world(), "", id="a third of the age before the term, all clusters live"),
        pytest.param(kept(hours_before=23.9), set(), a_world(), EXPIRED, id="less than that"),
        pytest.param(kept(first=1, hours_before=1), set(), a_world(), "", id="all messages that there ever were"),
        pytest.param(kept(), set(), a_world("Stale", 0), EXPIRED, id="a silent cluster publishes nothing again"),
        pytest.param(kept(), set(), a_world("Live", BEGAN_MS - HOUR_MS), EXPIRED, id="one that was silent since"),
        pytest.param(kept(), set(), a_world("Live", BEGAN_MS - 30 * HOUR_MS), "", id="one that was silent before"),
        pytest.param(kept(), set(), a_world("Lost", is_heard=False), "", id="nothing was believed of that cluster"),
        pytest.param(kept(first=1), set(), a_world("Stale", 0), "", id="all messages, silent or not"),
        pytest.param(kept(first=501), set(), a_world(), "", id="nothing before the term, by age alone"),
        pytest.param(
            kept(first=502),
            set(),
            a_world(),
            "inputs expired before message 502 of DRA_STATE",
            id="messages of the term itself",
        ),
        pytest.param(
            kept(first=1),
            {"dra.v1.state.west.claim.b", "dra.v1.state.west.claim.a"},
            a_world(),
            "inputs expired: of 2 objects messages are missing, such as dra.v1.state.west.claim.a",
            id="of an object that has changed often",
        ),
        pytest.param(
            kept(last=499),
            set(),
            a_world(),
            "DRA_STATE ends at 499, and it had seen message 500",
            id="another stream than it had",
        ),
    ],
)
def test_what_a_term_began_with_is_there_or_it_is_said(there: Kept, missing: set[str], world: World, why: str) -> None:
    assert why_expired(there, POSITION, BEGAN_MS, missing, world) == why
