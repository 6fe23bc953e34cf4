"""Tests against upstream's own code."""

from tests.oracle.fixture import oracle

__all__ = ["oracle"]
