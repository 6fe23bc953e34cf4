"""The charts: what they render is what an API server takes, wrong values are named, and the pods are as restricted as
Kubernetes knows how.
"""

import copy
import json
import re
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


def templates(objects: list[Object]) -> list[Object]:
    """Of the pods; at least one."""
    found = [each["spec"]["template"] for each in objects if each["kind"] == "Deployment"]
    assert found
    return found


@pytest.mark.parametrize(("chart", "values"), VALUES)
async def test_the_pods_are_let_into_a_restricted_namespace(
    helm_program: Path, plane: ControlPlane, chart: str, values: Object
) -> None:
    namespace = await plane.add_namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    path = path_of("Pod", namespace)
    for template in templates(render(helm_program, chart, values, namespace)):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {**template["metadata"], "name": "pod", "namespace": namespace}
        await plane.api.call("POST", path, pod, query={"dryRun": "All", "fieldValidation": "Strict"})
    loose = copy.deepcopy(pod)
    del loose["spec"]["containers"][0]["securityContext"]
    with pytest.raises(Exception, match='violates PodSecurity "restricted'):
        await plane.api.call("POST", path, loose, query={"dryRun": "All"})


@pytest.mark.parametrize(("chart", "values"), VALUES)
def test_the_command_line_is_one_that_dragoman_takes(helm_program: Path, chart: str, values: Object) -> None:
    for template in templates(render(helm_program, chart, values)):
        [container] = template["spec"]["containers"]
        options = make_parser().parse_args(container["args"])
        assert container["name"] == container["args"][options.verbose] == options.command
        assert options.nats == values["nats"]["urls"]
        mounts = container.get("volumeMounts", [])
        assert {mount["name"] for mount in mounts} == {volume["name"] for volume in template["spec"].get("volumes", [])}
        mounted = {mount["mountPath"] for mount in mounts}
        files = [options.nkey, options.tls_ca, getattr(options, "config", None)]
        assert all(str(Path(file).parent) in mounted or str(file) in mounted for file in files if file)
        assert bool(options.nkey) == bool(values["nats"].get("keySecret"))


@pytest.mark.parametrize("values", [AGENT, FULL_AGENT], ids=["agent", "agent with everything"])
def test_the_notes_of_the_agent_name_what_nats_asks_for(helm_program: Path, values: Object) -> None:
    command = next(line for line in notes(helm_program, "agent", values) if line.startswith("  dragoman "))
    options = make_parser().parse_args(command.split()[1:])
    assert options.nats == values["nats"]["urls"]
    has_files = "keySecret" in values["nats"]
    assert (options.nkey, options.tls_ca) == (("nats/keys/operator.nk", "nats/tls/ca.crt") if has_files else ("", ""))


def notes(program: Path, chart: str, values: Object) -> list[str]:
    """What `helm install` says afterwards."""
    arguments = [f"--set-json={name}={json.dumps(value)}" for name, value in values.items()]
    said = helm(program, "install", f"dragoman-{chart}", str(CHARTS / chart), "--dry-run=client", *arguments)
    return said.partition("NOTES:\n")[2].splitlines()


def test_the_agent_is_for_the_versions_of_kubernetes_that_its_page_names(helm_program: Path) -> None:
    page = (CHARTS.parents[1] / "docs/kubernetes.md").read_text()
    [first] = re.findall(r"^Kubernetes 1\.(\d+) or later", page, re.MULTILINE)
    render(helm_program, "agent", FULL_AGENT, arguments=[f"--kube-version=1.{first}.0-gke.1"])
    with pytest.raises(HelmError, match="incompatible"):
        render(helm_program, "agent", FULL_AGENT, arguments=[f"--kube-version=1.{int(first) - 1}.9"])


@pytest.mark.parametrize(("chart", "values"), [("broker", BROKER), ("agent", AGENT)])
def test_a_namespace_need_not_be_prepared_for_a_priority(helm_program: Path, chart: str, values: Object) -> None:
    """GKE, for one, lets the system's into namespaces with a quota for it alone."""

    def priority(values: Object) -> Any:
        [template] = templates(render(helm_program, chart, values))
        return template["spec"].get("priorityClassName")

    assert priority(values) is None
    assert priority({**values, "priorityClassName": "high"}) == "high"


def test_the_config_is_the_federation_of_the_values(helm_program: Path) -> None:
    config = only(render(helm_program, "broker", BROKER), "ConfigMap")["data"]["federation.yaml"]
    assert yaml.safe_load(config) == BROKER["config"]


def test_another_config_is_another_deployment(helm_program: Path) -> None:
    def template(values: Object) -> Any:
        return only(render(helm_program, "broker", values), "Deployment")["spec"]["template"]

    assert template(BROKER) == template(BROKER)
    assert template(BROKER) != template({**BROKER, "config": {**BROKER["config"], "lost_after_s": 600}})


@pytest.mark.parametrize(
    ("chart", "values", "components"),
    [("broker", FULL_BROKER, ["broker", "tracer"]), ("agent", FULL_AGENT, ["agent"])],
)
def test_prometheus_operator_is_served_where_wanted(
    helm_program: Path, chart: str, values: Object, components: list[str]
) -> None:
    assert "ServiceMonitor" not in {each["kind"] for each in render(helm_program, chart, values)}
    objects = render(helm_program, chart, {**values, "serviceMonitor": {"enabled": True, "labels": {"a": "b"}}})
    for component in components:
        monitor, service = (only(objects, kind, component) for kind in ("ServiceMonitor", "Service"))
        assert monitor["metadata"]["labels"]["a"] == "b"
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_alerts_and_dashboard_are_installed_where_wanted(helm_program: Path) -> None:
    assert "PrometheusRule" not in {each["kind"] for each in render(helm_program, "broker", BROKER)}
    wanted = {"prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}}, "dashboard": {"enabled": True}}
    objects = render(helm_program, "broker", {**BROKER, **wanted})
    rule = only(objects, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((CHARTS / "broker/monitoring/alerts.yaml").read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    [loaded] = [each for each in objects if "grafana_dashboard" in each["metadata"]["labels"]]
    assert loaded["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert loaded["data"]["dragoman.json"] == (CHARTS / "broker/monitoring/dashboard.json").read_text()


def test_no_selector_of_one_component_finds_another(helm_program: Path) -> None:
    """A PodDisruptionBudget or Service of the brokers that had the tracer in it would count wrong."""
    objects = render(helm_program, "broker", {**FULL_BROKER, "serviceMonitor": {"enabled": True}})
    pods = {
        each["metadata"]["labels"]["app.kubernetes.io/component"]: each["spec"]["template"]["metadata"]["labels"]
        for each in objects
        if each["kind"] == "Deployment"
    }
    assert len(pods) == 2
    checked = 0
    for each in objects:
        spec = each.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector")
        if selector is not None:
            asked = selector.get("matchLabels", selector)
            found = {name for name, labels in pods.items() if asked.items() <= labels.items()}
            assert found == {each["metadata"]["labels"]["app.kubernetes.io/component"]}, each
            checked += 1
    assert checked == 9  # of each component Deployment, Service, ServiceMonitor, NetworkPolicy; the broker's budget


def test_the_tracer_keeps_its_progress_where_it_may_write(helm_program: Path) -> None:
    def mounted(values: Object) -> Any:
        spec = only(render(helm_program, "broker", values), "Deployment", "tracer")["spec"]["template"]["spec"]
        [container] = spec["containers"]
        options = make_parser().parse_args(container["args"])
        assert (options.ratio, options.slow, options.from_start) == (0.05, 2.5, True)
        [mount] = [each for each in container["volumeMounts"] if each["mountPath"] == str(options.data)]
        assert not mount.get("readOnly")
        assert container["env"][0] == {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": values["tracer"]["endpoint"]}
        return {each["name"]: each for each in spec["volumes"]}[mount["name"]]

    volume = only(render(helm_program, "broker", FULL_BROKER), "PersistentVolumeClaim")["metadata"]["name"]
    assert mounted(FULL_BROKER)["persistentVolumeClaim"]["claimName"] == volume
    without = {**FULL_BROKER, "tracer": {**FULL_BROKER["tracer"], "persistence": {"enabled": False}}}
    assert "emptyDir" in mounted(without)
    assert "PersistentVolumeClaim" not in {each["kind"] for each in render(helm_program, "broker", without)}


@pytest.mark.parametrize(
    ("chart", "values", "says"),
    [
        ("broker", {}, ["'/image/repository': minLength", "'/nats/urls': minItems", "'/config': missing properties"]),
        ("broker", {**BROKER, "replica": 1}, ["additional properties 'replica' not allowed"]),
        ("broker", {**BROKER, "replicas": 0}, ["'/replicas': minimum"]),
        ("broker", {**BROKER, "nats": {"urls": ["n1:4222"]}}, ["'/nats/urls/0': 'n1:4222' does not match pattern"]),
        ("broker", {**BROKER, "config": {"clusters": ["East"], "fabrics": []}}, ["'/config/clusters/0'"]),
        ("broker", {**BROKER, "tracer": {"enabled": True}}, ["'/tracer/endpoint': '' does not match pattern"]),
        ("broker", {**BROKER, "tracer": {"ratio": 5}}, ["'/tracer/ratio': maximum"]),
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
