"""Our charts, rendered."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.helm_program import helm

CHARTS = Path(__file__).parents[2] / "deploy/helm"
Object = dict[str, Any]

BROKER: Object = {
    "image": {"repository": "registry.example.com/dragoman"},
    "config": {
        "clusters": ["hub", "east"],
        "hub": "hub",
        "fabrics": [{"name": "rack7", "source": "hub", "clusters": ["east"], "pools": [{"driver": "gpu.example.com"}]}],
    },
    "nats": {"urls": ["tls://n1.example.com:4222", "tls://n2.example.com:4222"]},
}
AGENT: Object = {
    "cluster": "east",
    "image": {"repository": "registry.example.com/dragoman"},
    "nats": {"urls": ["tls://n1.example.com:4222"]},
}
# All that may be given, so that no part of a template is left out.
FULL_BROKER = {
    **BROKER,
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 3,
    "nats": {
        **BROKER["nats"],
        "keySecret": "dragoman-nats",
        "caSecret": "dragoman-ca",
        "monitors": ["http://n1.example.com:8222"],
        "allowUnsafeDurability": True,
    },
    "verbose": True,
    "networkPolicy": {"metricsFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
    "podAnnotations": {"example.com/a": "b"},
    "podLabels": {"example.com/a": "b"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
    "dashboard": {"enabled": True},
    "tracer": {
        "enabled": True,
        "endpoint": "http://collector.monitoring:4318",
        "env": [
            {
                "name": "OTEL_EXPORTER_OTLP_HEADERS",
                "valueFrom": {"secretKeyRef": {"name": "collector", "key": "headers"}},
            },
        ],
        "keySecret": "dragoman-tracer",
        "ratio": 0.05,
        "slowSeconds": 2.5,
        "fromStart": True,
        "persistence": {"storageClass": "fast"},
    },
}
FULL_AGENT = {
    **AGENT,
    "role": "both",
    "imagePullSecrets": [{"name": "registry"}],
    "nats": {**AGENT["nats"], "keySecret": "dragoman-nats", "caSecret": "dragoman-ca"},
    "deviceTaintRules": {"write": True},
    "annotateTrace": True,
    "rejections": {"unschedulableAfterSeconds": 300, "bindingTimeoutSeconds": 60.5},
    "verbose": True,
    "podAnnotations": {"example.com/a": "b"},
    "podLabels": {"example.com/a": "b"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "system-cluster-critical",
}


def render(
    program: Path, chart: str, values: Object, namespace: str = "dragoman", arguments: Sequence[str] = ()
) -> list[Object]:
    """What `helm install dragoman-CHART` would create. Raises: HelmError, as for values that the schema refuses."""
    # JSON is YAML; a file would do as well.
    given = [f"--set-json={name}={json.dumps(value)}" for name, value in values.items()]
    name = f"dragoman-{chart}"
    text = helm(program, "template", name, str(CHARTS / chart), f"--namespace={namespace}", *given, *arguments)
    return [document for document in yaml.safe_load_all(text) if document]


def only(objects: list[Object], kind: str, component: str = "") -> Object:
    """The one of that kind, of that component where several have one."""
    [found] = [
        each
        for each in objects
        if each["kind"] == kind and component in ("", each["metadata"]["labels"]["app.kubernetes.io/component"])
    ]
    return found
