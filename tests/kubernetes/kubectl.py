"""kubectl, from its wheel."""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio


class KubectlError(Exception):
    """kubectl refused; what it said."""


async def kubectl(kubeconfig: Path, *arguments: str, stdin: str = "") -> str:
    """What it says on stdout. Raises: KubectlError."""
    binary = Path(sys.executable).with_name("kubectl")
    environment: Mapping[str, str] = {"KUBECONFIG": str(kubeconfig), "HOME": str(kubeconfig.parent)}
    command = [str(binary) if binary.exists() else shutil.which("kubectl") or "kubectl", *arguments]
    done = await anyio.run_process(command, input=stdin.encode(), env=environment, check=False)
    if done.returncode:
        raise KubectlError(f"{' '.join(arguments)}: {done.stderr.decode()}")
    return done.stdout.decode()
