"""NoExecute taints end pods in a real member: by DeviceTaintRules that its agent writes, where the config says so."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from anyio import to_thread

from broker.cli.main import main
from cluster_agent.adapters.kube_cluster import KubernetesCluster
from cluster_agent.adapters.kube_connection import Credentials, connect_to_cluster
from cluster_agent.app.membership import leave
from tests.controlplane.api import Object, wait_for
from tests.controlplane.fixture import StartPlane
from tests.kubernetes.federation import Federation, a_kube_federation, a_pod, brokered, closed_class, devices_of
from tests.kubernetes.pods import is_bound
from tests.manifests import DRIVER, a_manifest, claim_manifest, class_manifest, slice_manifest

pytestmark = pytest.mark.anyio

KEY = "dragoman.dev/maintenance"


@pytest.fixture
async def federation(tmp_path: Path, start_plane: StartPlane) -> AsyncIterator[Federation]:
    """A hub with two devices, and the member east, where rules are written; the policy of the chart is not there."""
    hub = await start_plane("hub", scheduler=False, controller_manager=False)
    east = await start_plane("east")
    await east.add_node("n1")
    await hub.api.create(brokered(class_manifest()))
    await hub.api.create(slice_manifest(["gpu-0", "gpu-1"]))
    await east.api.create(closed_class())
    async with a_kube_federation(tmp_path, {"hub": hub, "east": east}) as federation:
        config = yaml.safe_load((tmp_path / "config.yaml").read_text())
        config["device_taint_rules"] = {"clusters": ["east"]}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        await federation.add_agent("east", "", "--write-taint-rules")
        await federation.start("broker", "hub", "east")
        for cluster in ("hub", "east"):
            await federation.processes[cluster].until_it_says("first sync of")
        yield federation
        federation.check()


async def order(federation: Federation, *arguments: str) -> None:
    """`dragoman device ...`, as a person types it, once the broker knows of the device."""
    more = ["--reason", "smoke", "--operator", "ada", "--nats", federation.nats.url]

    async def is_done() -> bool:
        return await to_thread.run_sync(lambda: main(["device", *arguments, *more])) == 0

    await wait_for(is_done, otherwise=lambda: f"device {' '.join(arguments)} is refused")


async def runs(federation: Federation, name: str) -> str:
    """A pod is bound; the device of its claim."""
    east = federation.planes["east"].api
    await east.create(claim_manifest(name))
    await east.create(a_pod(name, "default", name))
    await east.until("Pod", name, "default", is_bound)
    (device,) = devices_of(await east.get("ResourceClaim", name, "default"))
    return device


async def rules(federation: Federation) -> list[Object]:
    return await federation.planes["east"].api.list_all("DeviceTaintRule")


async def the_rule(federation: Federation) -> Object:
    """The only one that there is, as soon as there is one."""

    async def found() -> Object | None:
        found = await rules(federation)
        assert len(found) <= 1
        return found[0] if found else None

    return await wait_for(found, otherwise=lambda: "there is no rule")


async def no_rules(federation: Federation) -> None:
    async def are_gone() -> bool:
        return not await rules(federation)

    await wait_for(are_gone, otherwise=lambda: "a rule is still there")


def selector(rule: Object) -> dict[str, str]:
    found: dict[str, str] = rule["spec"]["deviceSelector"]
    return found


async def test_a_device_that_an_operator_taints_no_execute_ends_its_pod(federation: Federation) -> None:
    east = federation.planes["east"].api
    assert await runs(federation, "first") == "gpu-0"
    assert await runs(federation, "second") == "gpu-1"
    await order(federation, "taint", f"{DRIVER}/rack/gpu-0", "--effect", "NoExecute")
    await east.until_gone("Pod", "first", "default")
    rule = await the_rule(federation)
    assert selector(rule) == {"driver": DRIVER, "pool": "rack", "device": "gpu-0"}
    assert {key: rule["spec"]["taint"][key] for key in ("key", "effect")} == {"key": KEY, "effect": "NoExecute"}
    assert rule["metadata"]["annotations"]["dragoman.dev/reason"] == "ada: smoke"

    # The device is free, and given to nobody; whoever has another one keeps it.
    await east.until("ResourceClaim", "first", "default", lambda claim: not devices_of(claim))
    assert is_bound(await east.get("Pod", "second", "default"))

    # Somebody makes it a dry run, or deletes it.
    await east.merge("DeviceTaintRule", rule["metadata"]["name"], "", {"spec": {"taint": {"effect": "None"}}})
    name = rule["metadata"]["name"]
    await east.until("DeviceTaintRule", name, "", lambda rule: rule["spec"]["taint"]["effect"] == "NoExecute")
    await east.delete("DeviceTaintRule", name)
    await east.until("DeviceTaintRule", name, "", lambda found: found["metadata"]["uid"] != rule["metadata"]["uid"])

    await order(federation, "untaint", f"{DRIVER}/rack/gpu-0")
    await no_rules(federation)
    await east.create(a_pod("again", "default", "first"))
    await east.until("Pod", "again", "default", is_bound)
    assert devices_of(await east.get("ResourceClaim", "first", "default")) == ["gpu-0"]


async def test_a_rule_of_the_hub_ends_pods_of_the_fabrics_pools(federation: Federation) -> None:
    hub, east = federation.planes["hub"].api, federation.planes["east"].api
    await runs(federation, "p")
    taint = {"key": "example.com/off", "effect": "NoExecute"}
    await hub.create(a_manifest("DeviceTaintRule", "off", {"deviceSelector": {}, "taint": taint}))
    await east.until_gone("Pod", "p", "default")
    assert selector(await the_rule(federation)) == {"driver": DRIVER, "pool": "rack"}

    # It goes while nobody listens.
    await federation.processes["east"].kill()
    await hub.delete("DeviceTaintRule", "off")
    await federation.start("east")
    await federation.processes["east"].until_it_says("first sync of")
    await no_rules(federation)


async def test_somebody_elses_rule_stays_and_is_reported(federation: Federation) -> None:
    east = federation.planes["east"].api
    await order(federation, "taint", f"{DRIVER}/rack/gpu-0", "--effect", "NoExecute")
    name = (await the_rule(federation))["metadata"]["name"]
    theirs = {"metadata": {"labels": {"dragoman.dev/projected": None}}, "spec": {"taint": {"effect": "None"}}}
    await east.merge("DeviceTaintRule", name, "", theirs)
    await federation.processes["east"].until_it_says(f"DeviceTaintRule {name} of east is somebody else's")
    assert (await east.get("DeviceTaintRule", name))["spec"]["taint"]["effect"] == "None"
    await order(federation, "untaint", f"{DRIVER}/rack/gpu-0")
    await order(federation, "taint", f"{DRIVER}/rack/gpu-1", "--effect", "NoExecute")

    async def both() -> bool:
        return len(await rules(federation)) == 2

    await wait_for(both)
    await federation.processes["east"].kill()
    admin = federation.planes["east"].admin.kubeconfig
    async with connect_to_cluster(Credentials(str(admin), "")) as connection:
        left = await leave(KubernetesCluster(connection))
    assert len(left.rules) == 1
    assert [rule["metadata"]["name"] for rule in await rules(federation)] == [name], "leave removes only our own"


async def test_without_the_setting_there_are_none_and_with_it_an_agent_that_may_not_says_so(
    federation: Federation,
) -> None:
    """The agent is started without --write-taint-rules; then the setting goes."""
    await federation.processes["east"].kill()
    await federation.add_agent("east")
    await federation.start("east")
    await order(federation, "taint", f"{DRIVER}/rack/gpu-0", "--effect", "NoExecute")
    await federation.processes["east"].until_it_says("this agent runs without --write-taint-rules")
    assert await rules(federation) == []

    await federation.processes["east"].kill()
    await federation.add_agent("east", "", "--write-taint-rules")
    await federation.start("east")
    await federation.processes["east"].until_it_says("first sync of")
    await the_rule(federation)
    config = federation.root / "config.yaml"
    found = yaml.safe_load(config.read_text())
    del found["device_taint_rules"]
    config.write_text(yaml.safe_dump(found))
    await federation.processes["broker"].kill()
    await federation.start("broker")
    await no_rules(federation)
