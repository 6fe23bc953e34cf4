"""Tests that only a Docker engine can run; elsewhere they are skipped and say so."""

import docker
import docker.errors
import pytest


@pytest.fixture(scope="session")
def engine() -> docker.DockerClient:
    """A Docker engine that answers."""
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    return client
