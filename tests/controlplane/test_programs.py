"""How the programs are found and built, with a Go that only pretends."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.controlplane import programs
from tests.controlplane.programs import ETCD, KUBERNETES, NoControlPlaneError, build, cache_directory, find, main

NAMES = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"]
# `go build -v ... -o PROGRAM PACKAGE`; it writes what it was told to build into the program.
BUILDS = 'for last; do :; done; while [ "$1" != -o ]; do shift; done; echo k8s.io/api >&2; echo "$last" > "$2"'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no assets."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path / "cache" / "dragoman"


def a_go(directory: Path, monkeypatch: pytest.MonkeyPatch, builds: str) -> None:
    """A Go that is new enough, first on the PATH; `builds` is what `go build` does."""
    directory.mkdir()
    script = f'#!/bin/sh\nif [ "$1" = env ]; then echo go1.99.0; exit; fi\necho "$@" >> {directory}/calls\n{builds}\n'
    (directory / "go").write_text(script)
    (directory / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")


def some_files(directory: Path, names: Sequence[str]) -> None:
    directory.mkdir(parents=True)
    for name in names:
        (directory / name).touch()


def test_the_modules_pin_the_releases_that_the_facts_were_measured_on() -> None:
    assert (KUBERNETES.version, ETCD.version) == ("v1.37.2", "v3.7.3")


def test_assets_are_taken_where_all_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some_files(tmp_path / "assets", NAMES)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    assert [path.name for path in find()] == NAMES
    assert {path.parent for path in find()} == {tmp_path / "assets"}


def test_without_programs_the_sentence_says_what_builds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some_files(tmp_path / "assets", ["etcd", "kube-apiserver", "kubectl"])  # as envtest has them
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    with pytest.raises(NoControlPlaneError) as caught:
        find()
    said = str(caught.value)
    assert f"there is no Kubernetes v1.37.2 in {cache_directory()}: `make controlplane` builds it" in said
    assert f"KUBEBUILDER_ASSETS={tmp_path / 'assets'} has no kube-controller-manager, kube-scheduler" in said


def test_builds_what_is_missing_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_go(tmp_path / "go", monkeypatch, BUILDS)
    monkeypatch.setattr(programs, "PROGRESS_S", 0.0)
    found = build()
    assert found.kube_scheduler == cache / "kubernetes-v1.37.2" / "kube-scheduler"
    assert found.kube_scheduler.read_text() == "k8s.io/kubernetes/cmd/kube-scheduler\n"
    assert found.etcd.read_text() == "go.etcd.io/etcd/server/v3\n"
    assert "kube-scheduler: 3 packages compiled" in capsys.readouterr().out
    calls = (tmp_path / "go" / "calls").read_text().splitlines()
    assert len(calls) == 4
    assert "-X k8s.io/component-base/version.gitVersion=v1.37.2 " in calls[1]
    assert build() == find() == found
    assert len((tmp_path / "go" / "calls").read_text().splitlines()) == 4
    assert sorted(path.name for path in cache.iterdir() if path.is_dir()) == ["etcd-v3.7.3", "kubernetes-v1.37.2"]


def test_a_build_that_fails_leaves_nothing_and_says_why(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_go(tmp_path / "go", monkeypatch, "echo 'dial tcp: no route to host' >&2; exit 1")
    with pytest.raises(NoControlPlaneError, match="no route to host"):
        build()
    assert [path for path in cache.iterdir() if path.is_dir()] == []
    assert main([]) == 1
    assert main(["--if-possible"]) == 0
    assert "no route to host" in capsys.readouterr().err


def test_two_builds_at_once_are_one(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins while the first compiles; it waits, and finds everything there."""
    fifo = tmp_path / "go-on"
    subprocess.run(["mkfifo", str(fifo)], check=True)
    a_go(tmp_path / "go", monkeypatch, f"case $* in *go.etcd.io*) cat {fifo};; esac; {BUILDS}")
    command = [sys.executable, "-u", "-m", "tests.controlplane.programs"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second,
    ):
        assert first.stdout is not None
        assert second.stdout is not None
        said = [first.stdout.readline(), second.stdout.readline()]
        assert sum("waiting for another build of etcd" in line for line in said) == 1, said
        fifo.write_text("\n")  # returns when the one that builds has read it
        assert (first.wait(60), second.wait(60)) == (0, 0)
    assert len((tmp_path / "go" / "calls").read_text().splitlines()) == 4
