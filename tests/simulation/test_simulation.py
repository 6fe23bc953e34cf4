"""Two hundred histories hold; and each rule of the protocol, switched off, is caught within as many."""

import pytest

from tests.simulation.rules import RULES, doubles_without
from tests.simulation.run import STEPS, Failure, Passed, run_seed

SEEDS = 200


@pytest.mark.timeout(600)
def test_every_history_is_safe_and_drains() -> None:
    for seed in range(SEEDS):
        found = run_seed(seed)
        assert isinstance(found, Passed), found.text("under test", STEPS, None)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_rule_that_is_switched_off_is_missed(rule: str) -> None:
    with doubles_without(rule) as doubles:
        found = (run_seed(seed, doubles=doubles) for seed in range(SEEDS))
        failure = next((each for each in found if isinstance(each, Failure)), None)
    assert failure is not None, f"{SEEDS} histories without the rule {rule!r} ({RULES[rule].what}) went well"


def test_a_seed_gives_the_same_history_again() -> None:
    first, second = run_seed(7), run_seed(7)
    assert isinstance(first, Passed)
    assert isinstance(second, Passed)
    assert first.digest == second.digest
    assert first.history == second.history
