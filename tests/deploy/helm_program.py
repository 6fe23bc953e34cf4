"""Helm, built from its Go module: `python -m tests.deploy.helm_program`, kept beside the control plane's programs."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.controlplane.programs import Module, NoControlPlaneError, build_module

HELM = Module(Path(__file__).parent / "helm", "helm.sh/helm/v4", {"helm": "helm.sh/helm/v4/cmd/helm"})


class HelmError(Exception):
    """Helm refused; what it said."""


def find_helm() -> Path:
    """Raises: NoControlPlaneError."""
    program = HELM.cached / "helm"
    if not program.exists():
        raise NoControlPlaneError(f"there is no Helm {HELM.version}: `python -m tests.deploy.helm_program` builds it")
    return program


def helm(program: Path, *arguments: str) -> str:
    """What it says. Raises: HelmError."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise HelmError(f"{done.stdout}{done.stderr}")
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    """Build it unless it is there; with --if-possible it is no failure if that cannot be."""
    try:
        build_module(HELM)
    except NoControlPlaneError as error:
        print(error, file=sys.stderr, flush=True)
        return 0 if "--if-possible" in arguments else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
