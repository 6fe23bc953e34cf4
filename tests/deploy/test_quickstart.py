"""deploy/quickstart/up.sh as far as it goes without Docker: programs that it runs are replaced by ones that say little.

With Docker it is run by tests/optional/test_quickstart.py.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.extras import ROOT, extras_named, installed_with

QUICKSTART = ROOT / "deploy/quickstart"
PROGRAMS = {
    "docker": "exit 0",
    # Both clusters are there, and more than a pipe holds.
    "kind": 'case "$1 $2" in "get clusters") echo east; echo west; exec seq 100000;; "create cluster") exit 1;; esac',
    "kubectl": "exit 0",
    "helm": "exit 0",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in PROGRAMS.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (programs / name).chmod(0o755)
    return {
        **os.environ,
        **installed_with(extras_named((QUICKSTART / "README.md").read_text()), tmp_path / "site"),
        "PATH": f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DRAGOMAN_QUICKSTART": str(tmp_path / "work"),
    }


def test_it_may_be_run_again(environment: dict[str, str], tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run([QUICKSTART / "up.sh"], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Now give the device to west" in done.stdout
    assert (tmp_path / "work/nats/keys/setup.nk").exists()
