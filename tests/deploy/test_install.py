"""docs/install.md, run as it is written, on three real control planes.

Not run: what needs Docker, and what installs Dragoman; but the commands find no package that this would not install.
The site's names are replaced by ours; the pods of the charts run as processes here (see kubelet.py).
"""

import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest
import yaml

from tests.controlplane.plane import ControlPlane, start
from tests.controlplane.programs import Programs
from tests.deploy.extras import extras_named, installed_with
from tests.deploy.kubelet import Kubelet
from tests.nats_fixture import free_port, servers

pytestmark = [pytest.mark.anyio, pytest.mark.kubernetes]

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "install.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = ("pip ", "docker ")


class Command(NamedTuple):
    """A command of the page, and what it is said to print; "…" there stands for anything."""

    text: str
    prints: list[str]


class File(NamedTuple):
    """A file that the reader is to write."""

    name: str
    text: str


def steps() -> Iterator[Command | File]:
    """What the page says, in order."""
    for language, text in BLOCK.findall(PAGE.read_text()):
        if language == "yaml":
            first, _, rest = text.partition("\n")
            yield File(first.removeprefix("# "), rest)
        else:
            assert language == "console", language
            yield from commands(text)


def commands(text: str) -> Iterator[Command]:
    """Each `$ `, with the lines that go on with it, and then what it prints."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        length = 1
        while lines[length - 1].endswith("\\") or (length < len(lines) and lines[length].startswith("  ")):
            length += 1
        yield Command("\n".join(lines[:length]), lines[length:])


@pytest.fixture
async def planes(anyio_backend: str, programs: Programs, tmp_path: Path) -> AsyncIterator[dict[str, ControlPlane]]:
    """Bare clusters, with a node each."""
    async with AsyncExitStack() as stack:
        planes = {}
        for name in ("hub", "east", "west"):
            planes[name] = await stack.enter_async_context(start(programs, tmp_path / name))
            await planes[name].add_node("n1")
        yield planes


def kubeconfig(planes: dict[str, ControlPlane], path: Path) -> Path:
    """One file with a context for each."""
    ones = {name: yaml.safe_load(plane.admin.kubeconfig.read_text()) for name, plane in planes.items()}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": one["clusters"][0]["cluster"]} for name, one in ones.items()],
        "users": [{"name": name, "user": one["users"][0]["user"]} for name, one in ones.items()],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}} for name in ones],
    }
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.timeout(600)
async def test_the_page_does_what_it_says(planes: dict[str, ControlPlane], helm_program: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    (site / "deploy").symlink_to(ROOT / "deploy")
    environment = {
        **os.environ,
        **installed_with(extras_named(PAGE.read_text()), tmp_path / "extras"),
        "PATH": f"{helm_program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "KUBECONFIG": str(kubeconfig(planes, tmp_path / "kubeconfig")),
    }
    kubelets = [Kubelet(plane, "dragoman", tmp_path / f"{name}-kubelet") for name, plane in planes.items()]
    exports: list[str] = []
    try:
        async with AsyncExitStack() as stack, anyio.create_task_group() as tasks:
            for kubelet in kubelets:
                tasks.start_soon(kubelet.run)
            for step in steps():
                if isinstance(step, File):
                    (site / step.name).write_text(step.text)
                elif step.text.startswith(NOT_RUN):
                    continue
                elif "nats-server -c" in step.text:
                    [config] = re.findall(r"-c (\S+)", step.text)
                    await stack.enter_async_context(servers(site / "nats" / config))
                elif step.text.startswith("export "):
                    exports.append(of_this_site(step.text))
                else:
                    await run(step, exports, site, environment)
            tasks.cancel_scope.cancel()
    finally:
        for kubelet in kubelets:
            kubelet.show()
    for plane in planes.values():
        assert await plane.api.list_all("ResourceClaim") == []


def of_this_site(exports: str) -> str:
    """The reader's names replaced by ours."""
    return exports.replace("nats.example.com", "127.0.0.1").replace("NATS_PORT=4222", f"NATS_PORT={free_port()}")


async def run(command: Command, exports: list[str], site: Path, environment: dict[str, str]) -> None:
    """Raises: AssertionError if it fails, or prints something else."""
    print(f"$ {command.text}", flush=True)
    with anyio.fail_after(180):
        script = "\n".join(["set -euo pipefail", *exports, command.text])
        done = await anyio.run_process(["bash", "-c", script], cwd=site, env=environment, check=False)
    said = done.stdout.decode()
    print(said + done.stderr.decode(), flush=True)
    assert done.returncode == 0, f"{command.text}\n{said}{done.stderr.decode()}"
    lines = iter(" ".join(line.split()) for line in said.splitlines())
    for wanted in command.prints:
        pattern = " ".join(wanted.split()).replace("…", "*")
        assert any(fnmatchcase(line, pattern) for line in lines), f"{command.text}\nno line {wanted!r} in\n{said}"
