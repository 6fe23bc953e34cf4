"""The agent's chart gives exactly the rights that its role needs: with all of them the agent starts, without any one
of them it says which is missing.
"""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest

from broker.cli.agent import ROLES
from cluster_agent.adapters.kube_cluster import KubernetesCluster
from cluster_agent.adapters.kube_connection import Credentials, connect_to_cluster
from cluster_agent.adapters.kube_rights import Right, check_rights, needed_rights
from cluster_agent.errors import ClusterAccessError
from tests.controlplane.api import wait_for
from tests.controlplane.plane import ControlPlane, Identity, Rule
from tests.deploy.charts import AGENT, CHARTS, Object, only, render

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]

# For the policy alone, which asks who may decide claims; the agent itself never does.
OF_THE_POLICY = Right("dragoman.dev", "heldclaims", "allocate")


@pytest.mark.parametrize(
    ("role", "writes_taint_rules", "writes_events"),
    [*((role, False, True) for role in sorted(ROLES)), ("member", True, True), ("member", False, False)],
)
async def test_with_the_charts_rights_it_starts_and_without_one_it_names_it(
    helm_program: Path,
    plane: ControlPlane,
    namespace: str,
    role: str,
    writes_taint_rules: bool,
    writes_events: bool,
) -> None:
    values = {**AGENT, "role": role, "deviceTaintRules": {"write": writes_taint_rules}}
    values["claimEvents"] = {"enabled": writes_events}
    objects = render(helm_program, "agent", values, namespace)
    rights = rights_of(only(objects, "ClusterRole"))
    needing = partial(needed_rights, writes_taint_rules=writes_taint_rules, writes_events=writes_events)
    needed = set(needing(ROLES[role]))
    assert rights - {OF_THE_POLICY} == needed
    assert (OF_THE_POLICY in rights) == (role != "hub")
    await plane.api.apply([only(objects, "ServiceAccount")], namespace)
    account = only(objects, "ServiceAccount")["metadata"]["name"]
    agent = await plane.identify(account, namespace)
    for missing in [None, *sorted(needed)]:
        await plane.grant(account, namespace, [as_rule(right) for right in sorted(needed) if right != missing])
        says = agent.user if missing is None else f"{agent.user} may not {missing} at "
        await wait_for(
            partial(starts_so, agent, role, says, needing),
            otherwise=partial("nothing says {}".format, says),
        )


def test_each_rule_is_explained() -> None:
    lines = [line.strip() for line in (CHARTS / "agent/templates/rbac.yaml").read_text().splitlines()]
    lines = [line for line in lines if not line.startswith("{{")]
    rules = [number for number, line in enumerate(lines) if line.startswith("- apiGroups:")]
    assert len(rules) > 5
    assert all(lines[number - 1].startswith("# ") for number in rules)


async def starts_so(agent: Identity, role: str, says: str, needing: Callable[..., list[Right]]) -> bool:
    """Whether it says so, as the command has it before it starts the agent. The API server hears of rules in time."""
    async with connect_to_cluster(Credentials(str(agent.kubeconfig), "", False)) as connection:
        versions = await KubernetesCluster(connection).versions()
        kinds = [kind for kind in ROLES[role] if kind in versions]
        try:
            said = await check_rights(connection, needing(kinds))
        except ClusterAccessError as error:
            said = str(error)
    return says == said or ("may not" in says and says in said)


def rights_of(role: Object) -> set[Right]:
    """One for each group, resource and verb of a ClusterRole."""
    return set(_each(role["rules"]))


def _each(rules: Iterable[Object]) -> Iterable[Right]:
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                for verb in rule["verbs"]:
                    yield Right(group, resource, verb)


def as_rule(right: Right) -> Rule:
    return Rule(right.group, [right.resource], [right.verb])
