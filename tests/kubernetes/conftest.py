"""Fixtures of the tests on real control planes."""

import pytest

from tests.controlplane.fixture import chosen, namespace, plane, programs, shared_plane, start_plane

__all__ = ["chosen", "namespace", "plane", "programs", "shared_plane", "start_plane"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/kubernetes/" in item.nodeid:
            item.add_marker(pytest.mark.kubernetes)
