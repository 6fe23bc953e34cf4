"""Which control plane is taken, and why none, with a Docker engine that only pretends; `tests/optional` runs K3s."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.controlplane.fixture import is_missing
from tests.controlplane.k3s import K3s, choose
from tests.controlplane.programs import NoControlPlaneError, Programs

NAMES = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]


@pytest.fixture(autouse=True)
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No assets, nothing built, and no engine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")
    monkeypatch.delenv("DOCKER_TLS_VERIFY", raising=False)
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.delenv("DRAGOMAN_K3S_IMAGE", raising=False)


class _Engine(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"ApiVersion": "1.44"}' if self.path.endswith("/version") else b"OK"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing to tell."""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An engine answers; it could run nothing."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Engine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()
        thread.join()


def test_k3s_of_the_pinned_release_is_taken_where_there_is_nothing_else(engine: None) -> None:
    assert choose() == K3s("rancher/k3s:v1.37.2-k3s1")


def test_another_image_may_be_named(engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRAGOMAN_K3S_IMAGE", "registry.example.com/k3s:v1.38.0-k3s1")
    assert choose() == K3s("registry.example.com/k3s:v1.38.0-k3s1")


def test_programs_come_before_it(engine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "assets").mkdir()
    for name in NAMES:
        (tmp_path / "assets" / name).touch()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    found = choose()
    assert isinstance(found, Programs)
    assert found.etcd == tmp_path / "assets" / "etcd"


def test_where_there_is_nothing_each_reason_is_told() -> None:
    with pytest.raises(NoControlPlaneError) as caught:
        choose()
    said = str(caught.value)
    assert said.startswith("there is no Kubernetes v1.37.2 in ")
    assert "`make controlplane` builds it; nor is there K3s: no Docker engine answers: " in said


@pytest.mark.parametrize("variable", [("CI", "true"), ("DRAGOMAN_REQUIRE_KUBERNETES", "1")])
def test_a_skip_is_a_failure_in_ci(variable: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "DRAGOMAN_REQUIRE_KUBERNETES"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(pytest.skip.Exception, match="there is none"):
        is_missing("there is none")
    monkeypatch.setenv(*variable)
    with pytest.raises(pytest.fail.Exception, match="CI must test with Kubernetes: there is none"):
        is_missing("there is none")
