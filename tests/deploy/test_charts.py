"""The charts: what they render is what an API server takes, wrong values are named, and the pods are as restricted as
Kubernetes knows how.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.cli.main import make_parser
from tests.controlplane.api import path_of
from tests.controlplane.plane import ControlPlane
from tests.deploy.charts import AGENT, BROKER, CHARTS, FULL_AGENT, FULL_BROKER, Object, only, render
from tests.deploy.helm_program import HelmError, helm

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]

VALUES = [
    pytest.param("broker", BROKER, id="broker"),
    pytest.param("broker", FULL_BROKER, id="broker with everything"),
    pytest.param("agent", AGENT, id="agent"),
    pytest.param("agent", {**AGENT, "role": "hub"}, id="agent of a hub"),
    pytest.param("agent", FULL_AGENT, id="agent with everything"),
]


@pytest.mark.parametrize(("chart", "values"), VALUES)
async def test_an_api_server_takes_what_is_rendered(
    helm_program: Path, plane: ControlPlane, namespace: str, chart: str, values: Object
) -> None:
    for each in render(helm_program, chart, values, namespace):
        path = path_of(each["kind"], each["metadata"].get("namespace", ""), "", each["apiVersion"])
        await plane.api.call("POST", path, each, query={"dryRun": "All", "fieldValidation": "Strict"})


@pytest.mark.parametrize(("chart", "values"), VALUES)
async def test_the_pods_are_let_into_a_restricted_namespace(
    helm_program: Path, plane: ControlPlane, chart: str, values: Object
) -> None:
    namespace = await plane.add_namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    template = only(render(helm_program, chart, values, namespace), "Deployment")["spec"]["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", **template}
    pod["metadata"] = {**template["metadata"], "name": "pod", "namespace": namespace}
    path = path_of("Pod", namespace)
    await plane.api.call("POST", path, pod, query={"dryRun": "All", "fieldValidation": "Strict"})
    loose = copy.deepcopy(pod)
    del loose["spec"]["containers"][0]["securityContext"]
    with pytest.raises(Exception, match='violates PodSecurity "restricted'):
        await plane.api.call("POST", path, loose, query={"dryRun": "All"})


@pytest.mark.parametrize(("chart", "values"), VALUES)
def test_the_command_line_is_one_that_dragoman_takes(helm_program: Path, chart: str, values: Object) -> None:
    [container] = only(render(helm_program, chart, values), "Deployment")["spec"]["template"]["spec"]["containers"]
    options = make_parser().parse_args(container["args"])
    assert options.nats == values["nats"]["urls"]
    mounted = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
    files = [options.nkey, options.tls_ca, *([options.config] if chart == "broker" else [])]
    assert all(str(Path(file).parent) in mounted or str(file) in mounted for file in files if file)
    assert bool(options.nkey) == bool(values["nats"].get("keySecret"))


def test_the_config_is_the_federation_of_the_values(helm_program: Path) -> None:
    config = only(render(helm_program, "broker", BROKER), "ConfigMap")["data"]["federation.yaml"]
    assert yaml.safe_load(config) == BROKER["config"]


def test_another_config_is_another_deployment(helm_program: Path) -> None:
    def template(values: Object) -> Any:
        return only(render(helm_program, "broker", values), "Deployment")["spec"]["template"]

    assert template(BROKER) == template(BROKER)
    assert template(BROKER) != template({**BROKER, "config": {**BROKER["config"], "lost_after_s": 600}})


@pytest.mark.parametrize(("chart", "values"), [("broker", FULL_BROKER), ("agent", FULL_AGENT)])
def test_prometheus_operator_is_served_where_wanted(helm_program: Path, chart: str, values: Object) -> None:
    assert "ServiceMonitor" not in {each["kind"] for each in render(helm_program, chart, values)}
    objects = render(helm_program, chart, {**values, "serviceMonitor": {"enabled": True, "labels": {"a": "b"}}})
    monitor, service = only(objects, "ServiceMonitor"), only(objects, "Service")
    assert monitor["metadata"]["labels"]["a"] == "b"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


@pytest.mark.parametrize(
    ("chart", "values", "says"),
    [
        ("broker", {}, ["'/image/repository': minLength", "'/nats/urls': minItems", "'/config': missing properties"]),
        ("broker", {**BROKER, "replica": 1}, ["additional properties 'replica' not allowed"]),
        ("broker", {**BROKER, "replicas": 0}, ["'/replicas': minimum"]),
        ("broker", {**BROKER, "nats": {"urls": ["n1:4222"]}}, ["'/nats/urls/0': 'n1:4222' does not match pattern"]),
        ("broker", {**BROKER, "config": {"clusters": ["East"], "fabrics": []}}, ["'/config/clusters/0'"]),
        ("agent", {}, ["'/cluster'", "'/image/repository'", "'/nats/urls'"]),
        ("agent", {**AGENT, "role": "members"}, ["'/role': value must be one of 'hub', 'member', 'both'"]),
        (
            "agent",
            {**AGENT, "role": "hub", "deviceTaintRules": {"write": True}},
            ["'/role': value must be one of 'member'"],
        ),
        ("agent", {**AGENT, "cluster": "East"}, ["'/cluster': 'East' does not match pattern"]),
    ],
)
def test_wrong_values_are_named_by_their_path(helm_program: Path, chart: str, values: Object, says: list[str]) -> None:
    with pytest.raises(HelmError) as caught:
        render(helm_program, chart, values)
    assert all(text in str(caught.value) for text in says), caught.value


@pytest.mark.parametrize("chart", ["broker", "agent"])
def test_lint_finds_nothing(helm_program: Path, tmp_path: Path, chart: str) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(FULL_BROKER if chart == "broker" else FULL_AGENT))
    said = helm(helm_program, "lint", "--strict", str(CHARTS / chart), "--values", str(values))
    assert "0 chart(s) failed" in said


@pytest.mark.parametrize(("chart", "more"), [("broker", []), ("agent", ["--set=cluster=east"])])
def test_the_values_of_the_quickstart_are_taken(helm_program: Path, chart: str, more: list[str]) -> None:
    values = str(CHARTS.parent / f"quickstart/{chart}-values.yaml")
    rendered = helm(helm_program, "template", f"dragoman-{chart}", str(CHARTS / chart), f"--values={values}", *more)
    assert 'image: "dragoman:quickstart"' in rendered


@pytest.mark.parametrize("chart", ["broker", "agent"])
def test_every_value_is_in_the_schema_and_said_what_it_is_for(chart: str) -> None:
    values = yaml.safe_load((CHARTS / chart / "values.yaml").read_text())
    schema = yaml.safe_load((CHARTS / chart / "values.schema.json").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)
    for name, value in values.items():
        inner = schema["properties"][name].get("properties")
        if isinstance(value, dict) and inner is not None and name != "config":
            assert set(inner) == set(value), name
