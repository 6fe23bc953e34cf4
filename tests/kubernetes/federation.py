"""A federation of real processes: control planes, nats-server, a broker and agents under the rights that they need."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from broker.adapters.embedded_nats import EmbeddedNats, embedded_nats
from broker.cli.agent import ROLES
from cluster_agent.adapters.kube_rights import Right, needed_rights
from tests.controlplane.api import Object
from tests.controlplane.plane import ControlPlane, Identity, Rule
from tests.manifests import CLASS, DRIVER, Manifest, class_manifest
from tests.processes.harness import Process

BROKERED = "dragoman.dev/brokered"


class Federation:
    """Planes by the name of their cluster; processes by name: `broker`, and one for each cluster."""

    def __init__(self, root: Path, nats: EmbeddedNats, planes: dict[str, ControlPlane]) -> None:
        self.root = root
        self.nats = nats
        self.planes = planes
        self.processes: dict[str, Process] = {}
        self.members = [name for name in planes if name != "hub"]
        config = root / "config.yaml"
        fabric = {"name": "rack", "source": "hub", "clusters": self.members or ["hub"], "pools": [{"driver": DRIVER}]}
        config.write_text(yaml.safe_dump({"clusters": list(planes), "hub": "hub", "fabrics": [fabric]}))
        self.add("broker", "broker", "--config", str(config), "--http", "127.0.0.1:0")

    def add(self, name: str, *arguments: str) -> None:
        """A dragoman process, in place of one of that name; not started."""
        self.processes[name] = Process(name, [*arguments, "--nats", self.nats.url], self.root / f"{name}.log")

    async def add_agent(self, cluster: str, kubeconfig: str = "", *arguments: str) -> None:
        """The agent of a cluster, in place of one before, as a ServiceAccount that has the rights of its role.

        kubeconfig: in place of that of such an account. arguments: more of them, with the rights that they need.
        """
        role = "hub" if cluster == "hub" else "member"
        if not kubeconfig:
            identity = await agent_identity(
                self.planes[cluster],
                role,
                writes_taint_rules="--write-taint-rules" in arguments,
                writes_events="--no-claim-events" not in arguments,
            )
            kubeconfig = str(identity.kubeconfig)
        self.add(cluster, "agent", "--cluster", cluster, "--kubeconfig", kubeconfig, "--role", role, *arguments)

    def check(self) -> None:
        """No process has ended by itself, or met what it did not expect."""
        for process in self.processes.values():
            process.check()
            assert "Traceback" not in process.tail()

    async def start(self, *names: str) -> None:
        for name in names:
            await self.processes[name].start()

    def show(self) -> None:
        """What the processes have said; pytest shows it with a test that failed."""
        for process in self.processes.values():
            print(f"--- {process.name}\n{process.tail()}")


@asynccontextmanager
async def a_kube_federation(root: Path, planes: dict[str, ControlPlane]) -> AsyncIterator[Federation]:
    """One broker, and an agent for each plane; nothing is started yet but nats-server."""
    async with embedded_nats(root / "nats") as nats:
        federation = Federation(root, nats, planes)
        try:
            for cluster in planes:
                await federation.add_agent(cluster)
            yield federation
        finally:
            for process in federation.processes.values():
                if process.is_running:
                    await process.kill()
            federation.show()


async def agent_identity(
    plane: ControlPlane, role: str, *, writes_taint_rules: bool = False, writes_events: bool = True
) -> Identity:
    """A new ServiceAccount with the rights of the role and no others."""
    found = rules(role, writes_taint_rules=writes_taint_rules, writes_events=writes_events)
    return await plane.service_account(plane.unique_name("agent"), rules=found)


def rules(role: str, *, writes_taint_rules: bool = False, writes_events: bool = True) -> list[Rule]:
    """The rules of RBAC that an agent of this role needs."""
    rights = needed_rights(ROLES[role], writes_taint_rules=writes_taint_rules, writes_events=writes_events)
    return [rule_of(right) for right in rights]


def rule_of(right: Right) -> Rule:
    return Rule(right.group, [right.resource], [right.verb])


def brokered(device_class: Manifest) -> Manifest:
    """The class, labelled as ours."""
    return {**device_class, "metadata": {**device_class["metadata"], "labels": {BROKERED: "true"}}}


def a_pod(name: str, namespace: str, claim: str = "", template: str = "", **spec: Any) -> Object:
    """A pod that uses a claim, or one that is made for it from a template."""
    source = {"resourceClaimName": claim} if claim else {"resourceClaimTemplateName": template}
    container = {"name": "main", "image": "example.com/none", "resources": {"claims": [{"name": "gpu"}]}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "containers": [container],
            "resourceClaims": [{"name": "gpu", **source}],
            "terminationGracePeriodSeconds": 0,
            **spec,
        },
    }


def is_bound(pod: Object) -> bool:
    return bool(pod["spec"].get("nodeName"))


def devices_of(claim: Object) -> list[str]:
    """What its allocation holds."""
    allocation = (claim.get("status") or {}).get("allocation") or {}
    return [each["device"] for each in allocation.get("devices", {}).get("results", [])]


def closed_class() -> Manifest:
    """The brokered class as a member has it: its own scheduler finds no device for it."""
    return brokered(class_manifest(CLASS, "false"))
