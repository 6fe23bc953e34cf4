"""The programs of a Kubernetes control plane: found, or built from the Go modules beside this file.

`python -m tests.controlplane.programs`, or `make controlplane`, builds what is missing. What is built is kept outside
the tree, by version, so that it is built once for all checkouts of a machine.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests import golang
from tests.golang import GoError

MODULES = Path(__file__).parent
PROGRESS_S = 15.0


class NoControlPlaneError(Exception):
    """There is no control plane on this machine, or no other program; the sentence says why and what to do."""


class Programs(NamedTuple):
    """Where the programs are, all of one release of Kubernetes."""

    etcd: Path
    kube_apiserver: Path
    kube_controller_manager: Path
    kube_scheduler: Path


class Module(NamedTuple):
    """A Go module of ours that pins one upstream module and everything that it needs.

    directory: with go.mod and go.sum; its name is that of what is built.
    upstream: what it builds from; its version is in go.mod.
    packages: by name of the program, its package.
    """

    directory: Path
    upstream: str
    packages: dict[str, str]

    @property
    def version(self) -> str:
        """As go.mod pins it, such as "v1.37.2"."""
        pinned = re.search(rf"^\s*(?:require )?{re.escape(self.upstream)} (v\S+)", self._go_mod(), re.MULTILINE)
        assert pinned, f"{self.directory}/go.mod does not require {self.upstream}"
        return pinned[1]

    @property
    def cached(self) -> Path:
        """The directory of what is built."""
        return cache_directory() / f"{self.directory.name}-{self.version}"

    def _go_mod(self) -> str:
        return (self.directory / "go.mod").read_text()


KUBERNETES = Module(
    MODULES / "kubernetes",
    "k8s.io/kubernetes",
    {name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")},
)
ETCD = Module(MODULES / "etcd", "go.etcd.io/etcd/server/v3", {"etcd": "go.etcd.io/etcd/server/v3"})


def find() -> Programs:
    """The programs in KUBEBUILDER_ASSETS, if all of them are there, else those that were built.

    Raises: NoControlPlaneError.
    """
    names = [*ETCD.packages, *KUBERNETES.packages]
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    missing = [name for name in names if not (Path(assets) / name).exists()] if assets else names
    if not missing:
        return Programs(*(Path(assets) / name for name in names))
    if all((module.cached / name).exists() for module in (ETCD, KUBERNETES) for name in module.packages):
        return Programs(*(module.cached / name for module in (ETCD, KUBERNETES) for name in module.packages))
    # The assets of envtest have neither scheduler nor controller-manager, and releases do not mix.
    beside = f"; KUBEBUILDER_ASSETS={assets} has no {', '.join(missing)}" if assets else ""
    raise NoControlPlaneError(
        f"there is no Kubernetes {KUBERNETES.version} in {cache_directory()}: `make controlplane` builds it{beside}"
    )


def build() -> Programs:
    """As find; what is missing is built first.

    Raises: NoControlPlaneError.
    """
    try:
        return find()
    except NoControlPlaneError:
        for module in (ETCD, KUBERNETES):
            build_module(module)
        return find()


def cache_directory() -> Path:
    """Where programs are kept, one directory for each module and version."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dragoman"


def build_module(module: Module) -> None:
    """Build its programs, unless they are there. Raises: NoControlPlaneError."""
    what = f"{', '.join(module.packages)} {module.version}"
    cache_directory().mkdir(parents=True, exist_ok=True)
    with _alone(module, what):
        if module.cached.exists():
            return  # somebody else has built it while we waited
        try:
            go = golang.find_go(module.directory, what)
        except GoError as error:
            raise NoControlPlaneError(str(error)) from error
        print(f"building {what} with {go} (once for this machine)", flush=True)
        # It appears all at once: whoever sees the directory sees whole programs.
        unfinished = Path(tempfile.mkdtemp(prefix=f"{module.cached.name}.", dir=cache_directory()))
        try:
            began = time.monotonic()
            _compile(go, module, unfinished)
            unfinished.chmod(0o755)
            unfinished.rename(module.cached)
            print(f"built {what} in {time.monotonic() - began:.0f} s: {module.cached}", flush=True)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _alone(module: Module, what: str) -> Iterator[None]:
    """Nobody else on this machine builds `module` meanwhile."""
    with module.cached.with_name(f"{module.cached.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another build of {what}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _compile(go: str, module: Module, into: Path) -> None:
    """Go's own words go by as progress: a line now and then says how far it is.

    Raises: NoControlPlaneError.
    """
    began = said = time.monotonic()
    packages = 0
    words: list[str] = []  # all that are no progress: what went wrong, if something does
    for name, package in module.packages.items():
        command = [go, "build", "-v", "-trimpath", "-ldflags", _linker_flags(module), "-o", str(into / name), package]
        for line in _lines(command, module.directory):
            if line.startswith("go: downloading "):
                doing = f"downloads {line.split()[2]}"
            elif " " in line or line.startswith("#"):
                words.append(line)
                continue
            else:
                packages += 1
                doing = f"{packages} packages compiled"
            if time.monotonic() - said >= PROGRESS_S:
                said = time.monotonic()
                print(f"  {name}: {doing}, {said - began:.0f} s", flush=True)
        if not (into / name).exists():
            raise NoControlPlaneError(f"{' '.join(command)} in {module.directory} failed:\n" + "\n".join(words[-20:]))


def _lines(command: Sequence[str], directory: Path) -> Iterator[str]:
    with subprocess.Popen(
        command, cwd=directory, env=os.environ | golang.ENVIRONMENT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            yield line.rstrip("\n")


def _linker_flags(module: Module) -> str:
    flags = "-s -w"  # without debugging symbols: half the size
    if module is KUBERNETES:
        major, minor, _ = module.version.removeprefix("v").split(".")
        values = {"gitVersion": module.version, "gitMajor": major, "gitMinor": minor}
        flags += "".join(f" -X k8s.io/component-base/version.{name}={value}" for name, value in values.items())
    return flags


def main(arguments: Sequence[str]) -> int:
    """Build what is missing; with --if-possible it is no failure if that cannot be: the tests say why they skip."""
    try:
        build()
    except NoControlPlaneError as error:
        print(error, file=sys.stderr, flush=True)
        return 0 if "--if-possible" in arguments else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
