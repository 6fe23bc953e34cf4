"""Fixtures of the tests of charts: Helm, and a real control plane."""

import os
from pathlib import Path

import pytest

from tests.controlplane.fixture import chosen, namespace, plane, programs, shared_plane, start_plane
from tests.controlplane.programs import NoControlPlaneError
from tests.deploy.helm_program import find_helm

__all__ = ["chosen", "namespace", "plane", "programs", "shared_plane", "start_plane"]


@pytest.fixture(scope="session")
def helm_program() -> Path:
    """Where there is none the tests are skipped; in CI they fail."""
    try:
        return find_helm()
    except NoControlPlaneError as error:
        if os.environ.get("CI") == "true" or os.environ.get("DRAGOMAN_REQUIRE_KUBERNETES") == "1":
            pytest.fail(f"CI must test the charts: {error}")
        pytest.skip(str(error))
