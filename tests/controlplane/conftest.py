"""Fixtures of the tests of the control plane."""

from tests.controlplane.fixture import chosen, namespace, plane, programs, shared_plane, start_plane

__all__ = ["chosen", "namespace", "plane", "programs", "shared_plane", "start_plane"]
