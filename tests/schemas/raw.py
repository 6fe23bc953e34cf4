"""Objects as they are written, with every field of the API filled in, for tests to change."""

import json
import re
from typing import Any

_TOLERATION = {"key": "example.com/broken", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 30}
_SELECTORS = [{"cel": {"expression": 'device.driver == "gpu.example.com"'}}]
_OPAQUE = {"driver": "gpu.example.com", "parameters": {"kind": "GpuConfig", "sharing": {"strategy": "TimeSlicing"}}}
_NODE_SELECTOR = {
    "nodeSelectorTerms": [
        {
            "matchExpressions": [{"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["a", "b"]}],
            "matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}],
        }
    ]
}
_UUID = "0d2d3c1c-7f5d-4a50-9f0e-0a1b2c3d4e5f"
_CONDITION = {
    "type": "Ready",
    "status": "True",
    "observedGeneration": 2,
    "lastTransitionTime": "2026-11-24T10:00:00Z",
    "reason": "Attached",
    "message": "attached",
}
_CLAIM_SPEC = {
    "devices": {
        "requests": [
            {
                "name": "gpu",
                "exactly": {
                    "deviceClassName": "gpu.example.com",
                    "selectors": _SELECTORS,
                    "allocationMode": "ExactCount",
                    "count": 2,
                    "adminAccess": False,
                    "tolerations": [_TOLERATION, {"key": "example.com/old", "operator": "Equal", "value": "yes"}],
                    "capacity": {"requests": {"memory": "10Gi"}},
                    "derivedAttributes": [{"name": "gpu.example.com/half", "expression": "1"}],
                },
            },
            {
                "name": "nic",
                "firstAvailable": [
                    {"name": "fast", "deviceClassName": "nic.example.com", "allocationMode": "ExactCount", "count": 1},
                    {"name": "any", "deviceClassName": "nic.example.com", "allocationMode": "All"},
                ],
            },
        ],
        "constraints": [
            {"requests": ["gpu", "nic/fast"], "matchAttribute": "resource.kubernetes.io/pcieRoot"},
            {"distinctAttribute": "gpu.example.com/half"},
        ],
        "config": [{"requests": ["gpu"], "opaque": _OPAQUE}],
    }
}
_CLAIM_STATUS = {
    "allocation": {
        "devices": {
            "results": [
                {
                    "request": "gpu",
                    "driver": "gpu.example.com",
                    "pool": "rack7/shelf1",
                    "device": "gpu-0",
                    "adminAccess": False,
                    "tolerations": [_TOLERATION],
                    "bindingConditions": ["Attached"],
                    "bindingFailureConditions": ["AttachFailed"],
                    "shareID": _UUID,
                    "consumedCapacity": {"memory": "10Gi"},
                    "skipNodeOperations": ["NodePrepareResources", "NodeUnprepareResources"],
                },
                {"request": "nic/fast", "driver": "nic.example.com", "pool": "rack7", "device": "nic-0"},
            ],
            "config": [{"source": "FromClass", "requests": ["gpu"], "opaque": _OPAQUE}],
        },
        "nodeSelector": _NODE_SELECTOR,
        "allocationTimestamp": "2026-11-24T10:00:00Z",
    },
    "reservedFor": [{"resource": "pods", "name": "train-0", "uid": "u-1"}],
    "devices": [
        {
            "driver": "gpu.example.com",
            "pool": "rack7/shelf1",
            "device": "gpu-0",
            "shareID": _UUID,
            "conditions": [_CONDITION],
            "data": {"port": 7},
            "networkData": {"interfaceName": "eth1", "ips": ["10.0.0.7/24"], "hardwareAddress": "02:00:00:00:00:07"},
        }
    ],
}
_CLAIM_METADATA = {
    "name": "training",
    "namespace": "ml",
    "uid": "c-1",
    "resourceVersion": "42",
    "creationTimestamp": "2026-11-24T09:00:00Z",
    "labels": {"app.kubernetes.io/name": "training"},
    "annotations": {"dragoman.dev/allocate": "Immediate"},
    "finalizers": ["resource.kubernetes.io/delete-protection"],
    "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "train-0", "uid": "u-1", "controller": True}],
}
_CLAIM = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "ResourceClaim",
    "metadata": _CLAIM_METADATA,
    "spec": _CLAIM_SPEC,
    "status": _CLAIM_STATUS,
}
_TEMPLATE = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "ResourceClaimTemplate",
    "metadata": {"name": "training", "namespace": "ml"},
    "spec": {"metadata": {"labels": {"team": "ml"}}, "spec": _CLAIM_SPEC},
}
_CLASS = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceClass",
    "metadata": {"name": "gpu.example.com"},
    "spec": {"selectors": _SELECTORS, "config": [{"opaque": _OPAQUE}], "extendedResourceName": "example.com/gpu"},
}
_TAINT = {"key": "example.com/broken", "value": "fan", "effect": "NoExecute", "timeAdded": "2026-11-24T09:00:00Z"}
_RULE = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "DeviceTaintRule",
    "metadata": {"name": "drain-gpu-0"},
    "spec": {
        "deviceSelector": {"driver": "gpu.example.com", "pool": "rack7/shelf1", "device": "gpu-0"},
        "taint": _TAINT,
    },
    "status": {"conditions": [_CONDITION]},
}
_DEVICE = {
    "name": "gpu-0",
    "attributes": {
        "index": {"int": 0},
        "ecc": {"bool": True},
        "model": {"string": "H100"},
        "driverVersion": {"version": "1.2.3"},
        "resource.kubernetes.io/numaNode": {"ints": [0, 1]},
        "flags": {"bools": [True, False]},
        "links": {"strings": ["a", "b"]},
        "firmwares": {"versions": ["1.0.0", "1.1.0"]},
    },
    "capacity": {
        "memory": {
            "value": "80Gi",
            "requestPolicy": {"default": "10Gi", "validRange": {"min": "10Gi", "max": "40Gi", "step": "10Gi"}},
        },
        "engines": {"value": "8", "requestPolicy": {"default": "1", "validValues": ["1", "2", "4"]}},
        "cores": {"value": "64"},
    },
    "consumesCounters": [
        {"counterSet": "chip-0", "counters": {"memory": {"value": "80Gi"}}, "compatibilityGroups": ["whole"]}
    ],
    "nodeSelector": _NODE_SELECTOR,
    "taints": [_TAINT],
    "bindsToNode": True,
    "bindingConditions": ["Attached"],
    "bindingFailureConditions": ["AttachFailed"],
    "allowMultipleAllocations": True,
    "nodeAllocatableResources": {
        "cpu": {
            "mapping": {"capacityKey": "cores", "capacityMultiplier": "1"},
            "overhead": {"perPod": "1", "perContainer": "0"},
        },
        "memory": {"mapping": {"deviceMultiplier": "1Gi"}},
    },
}
_SLICE = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "ResourceSlice",
    "metadata": {"name": "rack7-shelf1-0", "labels": {"dragoman.dev/fabric": "rack7"}},
    "spec": {
        "driver": "gpu.example.com",
        "pool": {"name": "rack7/shelf1", "generation": 3, "resourceSliceCount": 2},
        "perDeviceNodeSelection": True,
        "devices": [_DEVICE],
        "partitionTypeAttribute": "gpu.example.com/model",
        "skipNodeOperations": ["*"],
    },
}
_COUNTER_SLICE = {
    "apiVersion": "resource.k8s.io/v1",
    "kind": "ResourceSlice",
    "metadata": {"name": "rack7-shelf1-1"},
    "spec": {
        "driver": "gpu.example.com",
        "pool": {"name": "rack7/shelf1", "generation": 3, "resourceSliceCount": 2},
        "nodeSelector": _NODE_SELECTOR,
        "sharedCounters": [{"name": "chip-0", "counters": {"memory": {"value": "80Gi"}}}],
    },
}
_POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "train-0", "namespace": "ml", "uid": "u-1"},
    "spec": {
        "containers": [
            {
                "name": "main",
                "image": "example.com/train:1",
                "resources": {
                    "claims": [{"name": "gpu", "request": "gpu"}],
                    "requests": {"cpu": "1"},
                    "limits": {"example.com/gpu": "1"},
                },
            }
        ],
        "initContainers": [{"name": "init"}],
        "resourceClaims": [
            {"name": "gpu", "resourceClaimTemplateName": "training"},
            {"name": "shared", "resourceClaimName": "shared"},
        ],
        "nodeName": "node-1",
        "schedulingGates": [{"name": "dragoman.dev/gang"}],
        "schedulingGroup": {"podGroupName": "train"},
    },
    "status": {
        "phase": "Running",
        "conditions": [{"type": "PodScheduled", "status": "True"}],
        "resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "train-0-gpu-x7k2p"}],
        "extendedResourceClaimStatus": {"resourceClaimName": "train-0-extended"},
    },
}
_NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "node-1", "labels": {"zone": "a"}},
    "status": {"declaredFeatures": ["DRAOptionalNodeOperations"]},
}
_NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ml", "labels": {"team": "ml"}}}

_ALL = {
    "claim": _CLAIM,
    "template": _TEMPLATE,
    "class": _CLASS,
    "rule": _RULE,
    "slice": _SLICE,
    "counter slice": _COUNTER_SLICE,
    "pod": _POD,
    "node": _NODE,
    "namespace": _NAMESPACE,
}
NAMES = tuple(_ALL)


def a_raw(name: str) -> dict[str, Any]:
    """A fresh copy of one of NAMES, valid and with everything that can be set."""
    copy: dict[str, Any] = json.loads(json.dumps(_ALL[name]))  # a deep copy would keep shared parts shared
    return copy


def as_v1beta1(raw: dict[str, Any]) -> dict[str, Any]:
    """The same claim, template, class or slice in the words of v1beta1."""
    raw = {**raw, "apiVersion": "resource.k8s.io/v1beta1"}
    spec = raw["spec"]["spec"] if raw["kind"] == "ResourceClaimTemplate" else raw["spec"]
    if raw["kind"].startswith("ResourceClaim"):
        for request in spec["devices"]["requests"]:
            request.update(request.pop("exactly", {}))
    elif raw["kind"] == "ResourceSlice":
        spec["devices"] = [{"name": device.pop("name"), "basic": device} for device in spec.get("devices", [])]
    return raw


def steps(path: str) -> list[str]:
    """The names and indices in a path as errors have it."""
    return [name or key for name, key in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path)]


def put(raw: Any, path: str, value: Any) -> None:
    """Set what is at `path`, written as in errors; ABSENT removes it."""
    *before, last = steps(path)
    for step in before:
        raw = raw[int(step)] if isinstance(raw, list) else raw[step]
    key = int(last) if isinstance(raw, list) else last
    if value is ABSENT:
        del raw[key]
    else:
        raw[key] = value


ABSENT: Any = object()
