"""Watches all clusters, independently of our code, for a device that two claims hold at once."""

from collections.abc import Mapping
from contextlib import suppress

import aiohttp
import anyio
from anyio.abc import TaskStatus

from tests.controlplane.api import Api, Object

Holder = tuple[str, str, str]  # cluster, namespace, name


class Checker:
    """allocated: how many times a claim was seen to get devices. collisions: what must never be."""

    def __init__(self, apis: Mapping[str, Api]) -> None:
        self._apis = apis
        self._holders: dict[str, dict[Holder, str]] = {}  # by device; with the claim's UID
        self.allocated = 0
        self.collisions: list[str] = []

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        async with anyio.create_task_group() as tasks:
            for cluster in self._apis:
                await tasks.start(self._follow, cluster)
            task_status.started()

    async def _follow(self, cluster: str, *, task_status: TaskStatus[None]) -> None:
        api = self._apis[cluster]
        resource_version = ""
        task_status.started()
        while True:
            # Begun anew with all that there is, after a restart of the API server.
            try:
                async with api.watch("ResourceClaim", resource_version=resource_version) as events:
                    async for event in events:
                        if event["type"] in ("ADDED", "MODIFIED", "DELETED"):
                            await self._see(cluster, event["type"], event["object"])
            except aiohttp.ClientError:
                await anyio.sleep(0.1)

    async def _see(self, cluster: str, type_: str, claim: Object) -> None:
        metadata = claim["metadata"]
        holder = (cluster, metadata["namespace"], metadata["name"])
        held = devices(claim) if type_ != "DELETED" else set()
        for device, holders in self._holders.items():
            if device not in held:
                holders.pop(holder, None)
        for device in held:
            holders = self._holders.setdefault(device, {})
            if holder not in holders:
                self.allocated += 1
            holders[holder] = metadata["uid"]
            if len(holders) > 1:
                await self._look_again(device)

    async def _look_again(self, device: str) -> None:
        """One cluster's watch may be behind another's: who has lost the device is known by a consistent read."""
        there = []
        for (cluster, namespace, name), uid in list(self._holders[device].items()):
            claim = await self._find(cluster, namespace, name)
            if claim is not None and claim["metadata"]["uid"] == uid and device in devices(claim):
                there.append(f"{cluster}/{namespace}/{name}")
        if len(there) > 1:
            self.collisions.append(f"{device}: {', '.join(there)}")

    async def _find(self, cluster: str, namespace: str, name: str) -> Object | None:
        while True:
            with suppress(aiohttp.ClientError):
                return await self._apis[cluster].find("ResourceClaim", name, namespace)
            await anyio.sleep(0.1)


def devices(claim: Object) -> set[str]:
    """What its allocation holds, by pool and name."""
    allocation = (claim.get("status") or {}).get("allocation") or {}
    return {f"{each['pool']}/{each['device']}" for each in allocation.get("devices", {}).get("results", [])}
