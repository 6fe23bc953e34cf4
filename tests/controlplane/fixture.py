"""Fixtures around real control planes; a test module or conftest that wants one imports it from here.

`plane` runs once for all tests of the session: they keep to `namespace`, a new one for each, and to cluster-wide
objects of their own (`plane.unique_name`). `start_plane` starts more, which a test may stop, restart and configure.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from tests.controlplane.k3s import K3s, choose, start_k3s
from tests.controlplane.plane import ControlPlane, Options, start
from tests.controlplane.programs import NoControlPlaneError, Programs

StartPlane = Callable[..., Awaitable[ControlPlane]]


@pytest.fixture(scope="session")
def chosen() -> Programs | K3s:
    """What control planes are made of. Where there is nothing the tests are skipped; in CI they fail."""
    try:
        return choose()
    except NoControlPlaneError as error:
        is_missing(str(error))


@pytest.fixture(scope="session")
def programs(chosen: Programs | K3s) -> Programs:
    """The programs of a control plane, for tests that start one of their own."""
    if isinstance(chosen, K3s):
        is_missing(f"there is only {chosen.image}, of which no test can stop or configure a part: `make controlplane`")
    return chosen


@pytest.fixture(scope="session")
async def shared_plane(
    anyio_backend: str, chosen: Programs | K3s, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[ControlPlane]:
    """The one that all tests of the session share, with all programs and two nodes; take `plane`."""
    directory = tmp_path_factory.mktemp("plane")
    async with start_k3s(chosen, directory) if isinstance(chosen, K3s) else start(chosen, directory) as plane:
        await plane.add_node("n1", {"topology.kubernetes.io/zone": "a"})
        await plane.add_node("n2", {"topology.kubernetes.io/zone": "b"})
        yield plane


@pytest.fixture
async def plane(shared_plane: ControlPlane) -> AsyncIterator[ControlPlane]:
    """The shared control plane, whose logs are shown where the test fails. Nodes: n1 in zone a, n2 in zone b."""
    yield shared_plane
    print(shared_plane.logs_since_shown())


@pytest.fixture
async def namespace(plane: ControlPlane) -> AsyncIterator[str]:
    """A new namespace of `plane`; its pods are deleted after the test, as kubelets would."""
    name = await plane.add_namespace()
    yield name
    for pod in await plane.api.list_all("Pod", name):
        await plane.delete_pod(pod["metadata"]["name"], name)
    await plane.api.delete("Namespace", name)


@pytest.fixture
async def start_plane(anyio_backend: str, programs: Programs, tmp_path: Path) -> AsyncIterator[StartPlane]:
    """Starts a control plane of this test alone: `await start_plane("east", scheduler=False)`; see Options."""
    async with AsyncExitStack() as stack:

        async def started(name: str = "plane", **options: object) -> ControlPlane:
            plane = await stack.enter_async_context(
                start(programs, tmp_path / name, Options(**options))  # type: ignore[arg-type]
            )
            stack.callback(lambda: print(plane.logs_since_shown()))
            return plane

        yield started


def is_missing(why: str) -> NoReturn:
    """The test cannot be run: it is skipped, and fails in CI."""
    if os.environ.get("CI") == "true" or os.environ.get("DRAGOMAN_REQUIRE_KUBERNETES") == "1":
        pytest.fail(f"CI must test with Kubernetes: {why}")
    pytest.skip(why)
