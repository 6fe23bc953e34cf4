"""Machines for tests. Each test ends by testing every invariant, a replay, and a start from what it left behind."""

from collections.abc import Iterator
from typing import Protocol

import pytest

from broker.allocation.cel.engine import SelectorEngine, default_engine
from broker.world.check import check
from broker.world.federation import Federation
from schemas.wire.ledger import Inputs, LeaderElected
from tests.machine.driven import ONE_FABRIC, WITH_HUB, Driven, facts


@pytest.fixture(scope="session")
def engine() -> SelectorEngine:
    return default_engine()


class Starter(Protocol):
    """Starts a machine for a federation."""

    def __call__(self, federation: Federation, engine: SelectorEngine | None = None, /) -> Driven: ...


@pytest.fixture
def start(engine: SelectorEngine) -> Iterator[Starter]:
    """Machines for any federation, and any engine."""
    started: list[Driven] = []

    def start_one(federation: Federation, other: SelectorEngine | None = None, /) -> Driven:
        started.append(Driven(federation, other or engine))
        return started[-1]

    yield start_one
    for each in started:
        must_hold(each)


@pytest.fixture
def machine(start: Starter) -> Driven:
    """Two members and a fabric, whose source is one of them."""
    return start(ONE_FABRIC)


@pytest.fixture
def hub_machine(start: Starter) -> Driven:
    """Two members, and a hub that publishes the fabric and the classes."""
    return start(WITH_HUB)


def must_hold(driven: Driven) -> None:
    """What is true at the end of every test."""
    driven.run()
    check(driven.world)
    inputs = driven.recorded(Inputs).values()
    if len(driven.recorded(LeaderElected)) == 1 and not any(each.position_expired for each in inputs):
        assert driven.replay() == [message.payload for message in driven.ledger], "a replay gives other bytes"
    for again, who in (driven.restart(), "a start"), (driven.takeover(), "a standby"):
        while again.has_work(driven.now_ms):
            entries = again.step(driven.now_ms).entries
            assert all(isinstance(entry, Inputs) for entry in entries), f"{who} alone led to {entries}"
            check(again.world)
        assert facts(again.world) == facts(driven.world), f"{who} gives another world"
    assert facts(driven.restart_from_checkpoint().world) == facts(driven.world), "a checkpoint gives another world"
