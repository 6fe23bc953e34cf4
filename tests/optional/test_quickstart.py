"""deploy/quickstart, on real kind clusters: one pod has the device, the other one waits, and gets it afterwards."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

HERE = Path(__file__).parents[2] / "deploy/quickstart"


@pytest.fixture
def clusters(engine: docker.DockerClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What up.sh printed; all of it is removed afterwards."""
    missing = [name for name in ("kind", "kubectl", "helm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not on the PATH")
    monkeypatch.setenv("DRAGOMAN_QUICKSTART", str(tmp_path))
    try:
        yield subprocess.run([HERE / "up.sh"], check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run([HERE / "down.sh"], check=False)


@pytest.mark.timeout(1800)
def test_the_device_goes_from_one_cluster_to_the_other(clusters: str) -> None:
    assert "DevicesInUse" in clusters
    kubectl("kind-east", "delete", "pod/train")
    kubectl("kind-west", "wait", "--for=condition=PodScheduled", "pod/train", "--timeout=120s")


def kubectl(context: str, *arguments: str) -> None:
    subprocess.run(["kubectl", "--context", context, *arguments], check=True)
