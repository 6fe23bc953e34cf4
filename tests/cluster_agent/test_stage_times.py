"""What an agent's messages say in their headers of when things happened."""

from pathlib import Path

import anyio
import pytest

from broker.cli.local import LocalFederation, local_federation
from broker.world.federation import Federation
from broker.world.keys import ClusterId
from cluster_agent.app.stage_times import StageTimes
from schemas.wire.ledger import OperatorCommand, Verb
from schemas.wire.stages import TIMES, read_times
from schemas.wire.state import ClaimState, Settled
from tests.manifests import claim_manifest, class_manifest, slice_manifest, write_manifests

EAST = ClusterId("east")
VERBS: tuple[Verb, ...] = ("evict", "readmit")
A_CLAIM = ClaimState(agent_epoch=1)


def told(stages: StageTimes, decision: int = 0, seen_us: int = 0) -> list[str]:
    """Stages that a message says that has settled this decision."""
    message = ClaimState(agent_epoch=1, decision=Settled(decision, "Applied") if decision else None)
    return list(read_times(stages.headers("u", message, seen_us)[TIMES]))


def test_a_message_tells_when_its_news_came_and_when_it_was_sent() -> None:
    times = read_times(StageTimes().headers("u", A_CLAIM, 1_000)[TIMES])
    assert times["seen"] == 1_000 < times["sent"]
    assert told(StageTimes()) == ["sent"]


def test_an_outcome_tells_of_its_decision_until_that_is_stored() -> None:
    stages = StageTimes()
    stages.delivered("u", 7)
    stages.writing("u", 7)
    stages.written("u", 7)
    assert told(stages) == ["sent"], "nothing is settled yet"
    assert told(stages, 6) == ["sent"], "another one is"
    assert told(stages, 7, 1) == ["seen", "delivered", "writing", "written", "sent"]
    assert told(stages, 7) == ["delivered", "writing", "written", "sent"], "a publish may be tried again"
    stages.forget("u", 6)
    stages.forget("u", 7)
    assert told(stages, 7) == ["sent"]
    stages.written("u", 7)
    assert (told(stages, 7), stages.noted("u")) == (["sent"], 0), "the watch was faster than the answer"


def test_the_first_write_and_the_last_answer_count() -> None:
    stages = StageTimes()
    for _ in range(2):
        stages.delivered("u", 7)
        stages.writing("u", 7)
        stages.written("u", 7)
    message = ClaimState(agent_epoch=1, decision=Settled(7, "Applied"))
    times = read_times(stages.headers("u", message, 0)[TIMES])
    assert times["delivered"] <= times["writing"] < times["written"] <= times["sent"]


def test_an_older_decision_takes_nothing_from_the_newer() -> None:
    stages = StageTimes()
    stages.delivered("u", 7)
    stages.written("u", 5)
    assert told(stages, 5) == ["sent"]
    assert told(stages, 7) == ["delivered", "sent"]


def test_the_context_of_a_decision_is_known_while_it_is_carried_out() -> None:
    stages = StageTimes()
    stages.delivered("u", 7, "context of 7")
    assert (stages.context("u", 7), stages.context("u", 8), stages.context("v", 7)) == ("context of 7", "", "")
    stages.delivered("u", 6, "context of 6")
    assert stages.context("u", 7) == "context of 7", "an older one comes again"
    stages.writing("u", 9)
    assert stages.context("u", 9) == "", "found at a start, without its entry's headers"
    stages.delivered("u", 9, "context of 9")
    stages.forget("u", 9)
    assert stages.context("u", 9) == ""


@pytest.mark.anyio
async def test_nothing_is_noted_any_more_once_all_is_stored(tmp_path: Path) -> None:
    claims = [claim_manifest(f"c{number}") for number in range(3)]
    write_manifests(tmp_path / "all.yaml", class_manifest(), slice_manifest(["gpu-0"]), *claims)
    federation = Federation(clusters=[EAST])
    async with local_federation({EAST: tmp_path}, federation, data_dir=None, tell=lambda _: None) as local:
        with anyio.fail_after(30):
            await local.start_agents()
            await local.wait_until_settled()
            assert noted(local) == {0}
            # The agent begins again, and writes each claim, so that nothing from before can land any more.
            for verb in VERBS:
                assert await local.broker.command(OperatorCommand(verb, EAST, "ada", is_fenced=True)) == ""
            while True:
                changed = local.broker.changed
                if await local.broker.ask_world(lambda machine: machine.world.clusters[EAST].eviction is None):
                    break
                await changed.wait()
            await local.wait_until_settled()
        assert noted(local) == {0}


def noted(local: LocalFederation) -> set[int]:
    """Of all three claims."""
    agent = local.agents[EAST]
    claims = [name.key for name in agent.mirror.tracked if name.kind == "claim"]
    assert len(claims) == 3
    return {agent._stages.noted(uid) for uid in claims}
