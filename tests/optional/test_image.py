"""The image of deploy/Dockerfile: it runs, as nobody, on a file system that it cannot write to, and has no shell."""

from collections.abc import Iterator
from pathlib import Path

import docker
import docker.errors
import pytest
from testcontainers.core.image import DockerImage

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def image(engine: docker.DockerClient) -> Iterator[str]:
    with DockerImage(ROOT, tag="dragoman:test", dockerfile_path="deploy/Dockerfile") as built:
        yield str(built)


def run(engine: docker.DockerClient, image: str, *arguments: str, entrypoint: str | None = None) -> str:
    said: bytes = engine.containers.run(
        image, list(arguments), entrypoint=entrypoint, read_only=True, cap_drop=["ALL"], remove=True
    )
    return said.decode()


def test_it_says_which_build_it_is(engine: docker.DockerClient, image: str) -> None:
    assert run(engine, image, "--version").startswith("dragoman 0.1.0")


def test_the_commands_of_the_charts_are_there(engine: docker.DockerClient, image: str) -> None:
    assert "--config" in run(engine, image, "broker", "--help")
    assert "--in-cluster" in run(engine, image, "agent", "--help")


def test_it_runs_as_nobody_and_has_no_shell(engine: docker.DockerClient, image: str) -> None:
    assert engine.images.get(image).attrs["Config"]["User"] == "65532:65532"
    with pytest.raises(docker.errors.APIError):
        run(engine, image, entrypoint="/bin/sh")
