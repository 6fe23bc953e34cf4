"""Real manifests of kubernetes-sigs/dra-example-driver, which are no part of this project.

The folder is named by DRAGOMAN_CORPUS; without it these tests are skipped.
"""

import os
from pathlib import Path

import pytest

from schemas.errors import FieldError
from schemas.manifests import Document, read_manifests
from schemas.resource import DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice
from schemas.resource.validate import (
    validate_claim,
    validate_class,
    validate_slice,
    validate_taint_rule,
    validate_template,
)

_ROOT = Path(__file__).parents[2]
_CORPUS = _ROOT / os.environ.get("DRAGOMAN_CORPUS", "../shared/corpus") / "dra-example-driver"

pytestmark = pytest.mark.skipif(not _CORPUS.is_dir(), reason=f"no corpus at {_CORPUS}; set DRAGOMAN_CORPUS")


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return read_manifests([_CORPUS]).documents


def test_everything_is_read_but_what_is_no_kubernetes_object() -> None:
    found = read_manifests([_CORPUS])
    assert len(found.documents) > 50
    # kubectl refuses this pod as well: it has no apiVersion.
    assert [(Path(error.path).name, error.field) for error in found.errors] == [
        ("4-pod-not-scheduled.yaml", "apiVersion")
    ]
    assert found.skipped.keys() == {"Deployment", "PodGroup"}


def test_every_object_is_valid(documents: list[Document]) -> None:
    errors: list[FieldError] = []
    for document in documents:
        match document.decode():
            case ResourceClaim() as claim:
                errors += validate_claim(claim)
            case ResourceClaimTemplate() as template:
                errors += validate_template(template)
            case DeviceClass() as device_class:
                errors += validate_class(device_class)
            case ResourceSlice() as resource_slice:
                errors += validate_slice(resource_slice)
            case DeviceTaintRule() as rule:
                errors += validate_taint_rule(rule)
    assert errors == []
