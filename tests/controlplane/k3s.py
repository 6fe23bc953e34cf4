"""K3s in a container, for a machine that has a Docker engine and no way to build Kubernetes' own programs.

It is the last resort: one process that cannot be looked into. What is not to be had with it:
- tests that start control planes of their own (`programs`, `start_plane`): nothing of it can be stopped, restarted,
  given feature gates or other APIs, and it keeps its state in SQLite behind kine, not in etcd;
- the scheduler's own identity, which is a certificate and no token;
- the release that is pinned beside this file, unless K3s has released it; DRAGOMAN_K3S_IMAGE names another image.

The rest is as in `plane.py`: the same controllers and admission, no kubelet, nodes made by hand.
"""

import base64
import itertools
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import docker
import docker.errors
import yaml
from anyio import to_thread
from testcontainers.community.k3s import K3SContainer

from tests.controlplane.api import connect, wait_for
from tests.controlplane.plane import CONTROLLERS, NO_ADMISSION, ControlPlane, Identity
from tests.controlplane.process import Program
from tests.controlplane.programs import KUBERNETES, NoControlPlaneError, Programs, find

READY_S = 120.0
ACCOUNT = "tests"


class K3s(NamedTuple):
    """A Docker engine answers, and would run this image."""

    image: str


def choose() -> Programs | K3s:
    """What control planes are made of: KUBEBUILDER_ASSETS, else what was built, else K3s.

    Raises: NoControlPlaneError that says why each of them is not to be had.
    """
    try:
        return find()
    except NoControlPlaneError as error:
        why = why_no_engine()
        if why:
            raise NoControlPlaneError(f"{error}; nor is there K3s: {why}") from error
    return choose_k3s()


def choose_k3s() -> K3s:
    """The image of the pinned release, unless another one is named."""
    return K3s(os.environ.get("DRAGOMAN_K3S_IMAGE") or f"rancher/k3s:{KUBERNETES.version}-k3s1")


def why_no_engine() -> str:
    """Why no Docker engine answers; "" if one does."""
    try:
        client = docker.from_env()
        client.ping()
        client.close()
    except docker.errors.DockerException as error:
        return f"no Docker engine answers: {error}"
    return ""


def arguments(host: str) -> list[str]:
    """How K3s is run: a control plane without a node, for calls to `host`."""
    return [
        "server",
        "--disable-agent",
        "--disable-cloud-controller",
        "--disable-helm-controller",
        "--disable-network-policy",
        "--disable=coredns,local-storage,metrics-server,servicelb,traefik",
        f"--tls-san={host}",
        f"--kube-apiserver-arg=disable-admission-plugins={NO_ADMISSION}",
        f"--kube-controller-manager-arg=controllers={','.join(CONTROLLERS)}",
    ]


class K3sPlane(ControlPlane):
    """K3s as the control plane that tests share; without programs, see above."""

    def __init__(self, directory: Path, server: str, ca: bytes, token: str) -> None:
        self.directory = directory
        self.server = server
        self.ca = directory / "ca.crt"
        self.ca.write_bytes(ca)
        self._names = itertools.count(1)
        self._clients = AsyncExitStack()
        self.admin = Identity(f"system:serviceaccount:kube-system:{ACCOUNT}", token, self.kubeconfig("admin", token))

    @property
    def programs(self) -> list[Program]:
        """None that a test could stop."""
        return []


@asynccontextmanager
async def start_k3s(k3s: K3s, directory: Path) -> AsyncIterator[ControlPlane]:
    """Run it until the end of the block; ready for calls as soon as this returns. The image is pulled if need be."""
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  # nothing else runs yet
    container = await to_thread.run_sync(_Server, k3s.image)
    try:
        await to_thread.run_sync(container.start)

        async def is_ready() -> bool:
            return (await to_thread.run_sync(container.kubectl, "get", "--raw", "/readyz"))[0] == 0

        await wait_for(is_ready, READY_S, otherwise=lambda: f"{k3s.image} is not ready: {container.last_words()}")
        server, ca, token = await to_thread.run_sync(container.credentials)
        plane = K3sPlane(directory, server, ca, token)
        async with connect(server, plane.ca, token) as api:
            plane.api = api
            try:
                yield plane
            finally:
                await plane.end()
    finally:
        await to_thread.run_sync(container.stop)


class _Server(K3SContainer):  # type: ignore[misc]  # it has no types
    """K3s without a node."""

    def __init__(self, image: str) -> None:
        super().__init__(image)
        self.with_command(arguments(self.get_container_host_ip()))

    def _connect(self) -> None:
        """What upstream waits for in the log is about a node, and there is none."""

    def kubectl(self, *command: str) -> tuple[int, str]:
        """Exit code and output."""
        exit_code, output = self.exec(["kubectl", *command])
        return exit_code, output.decode(errors="replace")

    def credentials(self) -> tuple[str, bytes, str]:
        """The server, its CA, and the token of an account that may do everything: `Api` knows tokens only."""
        for command in (
            ["create", "serviceaccount", ACCOUNT, "--namespace=kube-system"],
            [
                "create",
                "clusterrolebinding",
                ACCOUNT,
                "--clusterrole=cluster-admin",
                f"--serviceaccount=kube-system:{ACCOUNT}",
            ],
            ["create", "token", ACCOUNT, "--namespace=kube-system", "--duration=24h"],
        ):
            exit_code, said = self.kubectl(*command)
            assert exit_code == 0, f"kubectl {' '.join(command)}: {said}"
        cluster = yaml.safe_load(self.config_yaml())["clusters"][0]["cluster"]
        return cluster["server"], base64.b64decode(cluster["certificate-authority-data"]), said.strip()

    def last_words(self) -> str:
        """The end of its log."""
        return b"".join(self.get_logs()).decode(errors="replace")[-2_000:]
