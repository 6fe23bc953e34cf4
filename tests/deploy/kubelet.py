"""What stands in for kubelets: the pods of our charts run as processes here, under their accounts and with their flags.

Other pods do nothing, and end as soon as they are deleted.
"""

import base64
from contextlib import suppress
from pathlib import Path

import aiohttp
import anyio

from tests.controlplane.api import Object, StatusError
from tests.controlplane.plane import ControlPlane
from tests.nats_fixture import free_port
from tests.processes.harness import Process

POLL_S = 0.05


class Kubelet:
    """Of all nodes of a control plane. namespace: where our charts are installed. root: for files and logs."""

    def __init__(self, plane: ControlPlane, namespace: str, root: Path) -> None:
        self._plane = plane
        self._namespace = namespace
        self._root = root
        self._processes: dict[str, Process] = {}  # by the pod's UID
        self._ready_at: dict[str, str] = {}
        root.mkdir()

    async def run(self) -> None:
        """Until cancelled; then all processes have ended."""
        try:
            while True:
                for pod in await self._plane.api.list_all("Pod"):
                    with suppress(StatusError):  # it has changed meanwhile: look at it again
                        await self._look_at(pod)
                await anyio.sleep(POLL_S)
        finally:
            for process in self._processes.values():
                if process.is_running:
                    await process.kill()

    def show(self) -> None:
        """Print what the processes said."""
        for process in self._processes.values():
            print(f"--- {process.name}\n{process.tail()}")

    async def _look_at(self, pod: Object) -> None:
        metadata = pod["metadata"]
        uid, name, namespace = metadata["uid"], metadata["name"], metadata["namespace"]
        if "deletionTimestamp" in metadata:
            if process := self._processes.pop(uid, None):
                await process.stop()
            await self._plane.delete_pod(name, namespace)
        elif not pod["spec"].get("nodeName"):
            return
        elif namespace == self._namespace and uid not in self._processes:
            await self._start(pod)
        elif not _is_ready(pod) and (namespace != self._namespace or await self._answers(uid)):
            ready = {"type": "Ready", "status": "True"}
            conditions = [*(each for each in pod["status"]["conditions"] if each["type"] != "Ready"), ready]
            await self._plane.api.put_status(
                {**pod, "status": {**pod["status"], "phase": "Running", "conditions": conditions}}
            )

    async def _start(self, pod: Object) -> None:
        metadata, spec = pod["metadata"], pod["spec"]
        [container] = spec["containers"]
        account = await self._plane.identify(spec["serviceAccountName"], self._namespace)
        address = f"127.0.0.1:{free_port()}"
        replaced = {"--in-cluster": f"--kubeconfig={account.kubeconfig}", "--http=:8080": f"--http={address}"}
        arguments = [replaced.get(each, each) for each in container["args"]]
        for mount in container.get("volumeMounts", []):
            [volume] = [each for each in spec["volumes"] if each["name"] == mount["name"]]
            source = await self._files(volume)
            arguments = [each.replace(mount["mountPath"], str(source / mount.get("subPath", ""))) for each in arguments]
        uid, name = metadata["uid"], metadata["name"]
        self._ready_at[uid] = f"http://{address}/readyz"
        self._processes[uid] = Process(name, arguments, self._root / f"{name}.log")
        await self._processes[uid].start()

    async def _files(self, volume: Object) -> Path:
        """What is mounted, in a directory."""
        directory = self._root / str(volume["name"])
        directory.mkdir(exist_ok=True)
        if "secret" in volume:
            secret = await self._plane.api.get("Secret", volume["secret"]["secretName"], self._namespace)
            for name, data in secret["data"].items():
                (directory / name).write_bytes(base64.b64decode(data))
        else:
            config = await self._plane.api.get("ConfigMap", volume["configMap"]["name"], self._namespace)
            for name, text in config["data"].items():
                (directory / name).write_text(text)
        return directory

    async def _answers(self, uid: str) -> bool:
        with suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.get(self._ready_at[uid]) as response:
                return response.status == 200
        return False


def _is_ready(pod: Object) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", []))
