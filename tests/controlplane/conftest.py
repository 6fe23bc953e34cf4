"""Fixtures of the tests of the control plane."""

from tests.controlplane.fixture import namespace, plane, programs, shared_plane, start_plane

__all__ = ["namespace", "plane", "programs", "shared_plane", "start_plane"]
