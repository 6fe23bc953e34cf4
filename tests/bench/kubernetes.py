"""Claims, slices and pods of real Kubernetes clusters, beside a bare client and kube-scheduler in the same run."""

import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import anyio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.bench.measure import Table, count, ms, progress
from tests.controlplane.api import Api, Object
from tests.controlplane.plane import ControlPlane, Options, start
from tests.controlplane.programs import Programs, build
from tests.kubernetes.federation import Federation, a_kube_federation, a_pod, brokered, closed_class, is_bound
from tests.manifests import CLASS, DRIVER, a_manifest, claim_manifest, class_manifest, slice_manifest
from tests.processes.harness import Process

RATE = 50  # claims a second, for their delay
CLAIMS = 500
BURST, ROUNDS = 400, 3
PODS = 40
SLICES, DEVICES_OF_A_SLICE = 1_000, 128
WRITES_AT_ONCE = 8  # as the agent
DEADLINE_S = 120.0
LOCAL, LOCAL_DRIVER = "local", "local.example.com"
IMMEDIATE = {"dragoman.dev/allocate": "Immediate"}  # no pod is waited for
FINALIZERS = ["resource.kubernetes.io/delete-protection", "example.com/held"]  # as many as the agent writes


def measure(claims: int = CLAIMS, burst: int = BURST, pods: int = PODS, slices: int = SLICES) -> list[Table]:
    """Claims at a steady rate, claims at once, pods one at a time; then a first list of slices."""
    return anyio.run(_measure, claims, burst, pods, slices)


async def _measure(claims: int, burst: int, pods: int, slices: int) -> list[Table]:
    programs = build()
    rounds = ROUNDS if burst == BURST else 1
    with tempfile.TemporaryDirectory(prefix="dragoman-bench-") as root:
        devices = claims + (burst + 1) * rounds + pods + 16
        async with _a_federation(programs, Path(root), devices) as federation:
            east = federation.planes["east"]
            progress(f"kubernetes: {count(claims)} claims, {RATE} a second")
            delays = sorted(await _steadily(east, claims))
            progress(f"kubernetes: {count(burst)} claims at once, and a bare client's, {rounds} times")
            ours, bare, alone = [], [], []
            for number in range(rounds):
                alone.append(burst / await _unfollowed(federation, f"alone-{number}", burst))
                bare.append(burst / await _bare_client(east, f"bare-{number}", burst))
                ours.append(burst / await _at_once(federation, f"burst-{number}", burst))
            progress(f"kubernetes: {count(pods)} pods of each kind, one at a time")
            brokered_s, local_s = await _pods_in_turn(east, pods)
    with tempfile.TemporaryDirectory(prefix="dragoman-bench-") as root:
        progress(f"kubernetes: a first list of {count(slices)} slices")
        listed_s, peak_mib = await _first_list(programs, Path(root), slices)
    p99 = delays[min(int(len(delays) * 0.99), len(delays) - 1)]
    return [
        Table(
            "kubernetes: from a claim's watch event to its allocation",
            ["claims", "claims/s", "median ms", "p99 ms", "most ms"],
            [[count(claims), count(RATE), ms(statistics.median(delays)), ms(p99), ms(delays[-1])]],
            [
                "Both as another watch of the same API server brings them. Hub, member, their etcds, kube-scheduler,",
                "kube-controller-manager, nats-server (sync_interval: always), broker and agents share the machine.",
            ],
        ),
        Table(
            "kubernetes: allocations written a second",
            ["claims", "by the agent/s", "by a bare client/s", "ratio", "by one whom no agent follows/s", "ratio"],
            [
                [
                    count(burst),
                    count(max(ours)),
                    count(max(bare)),
                    f"{max(ours) / max(bare):.2f}",
                    count(max(alone)),
                    f"{max(ours) / max(alone):.2f}",
                ]
            ],
            [
                f"The claims are there when the agent wakes up; the best of {rounds} rounds in turn. A bare client",
                "makes the same two writes, finalizers and status, for claims that nobody else decides,",
                f"{WRITES_AT_ONCE} at a time. The agent follows these, too, and the broker adopts them, as every claim",
                "with an allocation; beside the client whom none follows the agent is stopped, so that nothing but the",
                "API server and its controllers works. Both cores are busy all the time.",
            ],
        ),
        Table(
            "kubernetes: from a pod's creation to its node, one pod at a time",
            ["pods", "brokered device, median ms", "local device, median ms", "longer by ms"],
            [
                [
                    count(pods),
                    ms(statistics.median(brokered_s)),
                    ms(statistics.median(local_s)),
                    ms(statistics.median(brokered_s) - statistics.median(local_s)),
                ]
            ],
            ["In turn, each with a claim made from a template; kube-scheduler allocates the local device itself."],
        ),
        Table(
            "kubernetes: the first list of slices",
            ["slices", "devices", "seconds", "agent MiB"],
            [[count(slices), count(slices * DEVICES_OF_A_SLICE), f"{listed_s:.1f}", count(peak_mib)]],
            [
                "From the agent's exec until the broker has all devices; the agent's peak of resident memory.",
            ],
        ),
    ]


@asynccontextmanager
async def _a_federation(programs: Programs, root: Path, devices: int) -> AsyncIterator[Federation]:
    """A hub with so many devices and the member east, which has as many of its own; everything runs and is ready."""
    async with (
        start(programs, root / "hub", Options(scheduler=False, controller_manager=False)) as hub,
        start(programs, root / "east") as east,
        a_kube_federation(root, {"hub": hub, "east": east}) as federation,
    ):
        await hub.api.create(brokered(class_manifest()))
        await _publish(hub.api, DRIVER, devices)
        await east.api.create(closed_class())
        await east.api.create(class_manifest(LOCAL, driver=LOCAL_DRIVER))
        await _publish(east.api, LOCAL_DRIVER, 128)
        for number in range(4):
            await east.add_node(f"n{number}")
        await federation.start("broker", "hub", "east")
        await _until_decided(east)
        yield federation


async def _publish(api: Api, driver: str, devices: int) -> None:
    """Slices of one pool with so many devices."""
    names = [f"gpu-{number}" for number in range(devices)]
    parts = [names[first : first + 128] for first in range(0, devices, 128)]
    for number, part in enumerate(parts):
        name = f"{driver}-{number}"
        await api.create(slice_manifest(part, name=name, driver=driver, slices=len(parts)))


async def _until_decided(plane: ControlPlane) -> None:
    """The whole chain works: a first claim is allocated."""
    await plane.api.create(_immediate("first"))
    await plane.api.until("ResourceClaim", "first", "default", _is_allocated, DEADLINE_S)


def _immediate(name: str, namespace: str = "default") -> Object:
    claim = claim_manifest(name, namespace=namespace)
    claim["metadata"]["annotations"] = IMMEDIATE
    return claim


def _is_allocated(claim: Object) -> bool:
    return "allocation" in (claim.get("status") or {})


async def _steadily(plane: ControlPlane, claims: int) -> list[float]:
    """From each claim's event to the one that shows its allocation, seconds."""
    namespace = await plane.add_namespace("steady")
    seen: dict[str, float] = {}
    delays: dict[str, float] = {}

    async def create() -> None:
        began = time.perf_counter()
        async with anyio.create_task_group() as tasks:
            for number in range(claims):
                await anyio.sleep(max(0.0, began + number / RATE - time.perf_counter()))
                tasks.start_soon(plane.api.create, _immediate(f"c-{number}", namespace))

    async with plane.api.watch("ResourceClaim", namespace) as events, anyio.create_task_group() as tasks:
        tasks.start_soon(create)
        with anyio.fail_after(DEADLINE_S):
            async for event in events:
                now, name = time.perf_counter(), event["object"]["metadata"].get("name", "")
                if event["type"] == "ADDED":
                    seen[name] = now
                elif event["type"] == "MODIFIED" and _is_allocated(event["object"]) and name not in delays:
                    delays[name] = now - seen[name]
                if len(delays) == claims:
                    break
    return list(delays.values())


async def _at_once(federation: Federation, prefix: str, claims: int) -> float:
    """Seconds from when the agent sees so many new claims until all of them are allocated."""
    east, agent = federation.planes["east"], federation.processes["east"]
    namespace = await east.add_namespace(prefix)
    agent.suspend()
    await _each_of(claims, lambda number: east.api.create(_immediate(f"c-{number}", namespace)))
    allocated: set[str] = set()
    async with east.api.watch("ResourceClaim", namespace) as events:
        began = time.perf_counter()
        agent.resume()
        with anyio.fail_after(DEADLINE_S):
            async for event in events:
                if event["type"] == "MODIFIED" and _is_allocated(event["object"]):
                    allocated.add(event["object"]["metadata"]["name"])
                    if len(allocated) == claims:
                        break
    return time.perf_counter() - began


async def _bare_client(plane: ControlPlane, prefix: str, claims: int) -> float:
    """Seconds for the same two writes to as many claims of a class that is nobody's, one client, the same limit."""
    namespace = await plane.add_namespace(prefix)
    there: dict[int, Object] = {}

    async def create(number: int) -> None:
        claim = claim_manifest(f"c-{number}", namespace=namespace, device_class="nobodys")
        there[number] = await plane.api.create(claim)

    async def write(number: int) -> None:
        claim = there[number]
        claim["metadata"]["finalizers"] = FINALIZERS
        held = await plane.api.put(claim)
        result = {"request": "gpu", "driver": "nobodys.example.com", "pool": "rack", "device": f"{prefix}-{number}"}
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        held["status"] = {"allocation": {"devices": {"results": [result]}, "allocationTimestamp": stamp}}
        await plane.api.put_status(held)

    await _each_of(claims, create)
    began = time.perf_counter()
    await _each_of(claims, write)
    return time.perf_counter() - began


async def _unfollowed(federation: Federation, prefix: str, claims: int) -> float:
    """As _bare_client, while the agent does nothing."""
    east, agent = federation.planes["east"], federation.processes["east"]
    agent.suspend()
    took_s = await _bare_client(east, prefix, claims)
    agent.resume()
    await east.api.create(_immediate(prefix))  # decided when the agent has seen all before it
    await east.api.until("ResourceClaim", prefix, "default", _is_allocated, DEADLINE_S)
    return took_s


async def _each_of(number: int, do: Callable[[int], Awaitable[object]]) -> None:
    """For 0 to `number`, as many at a time as the agent writes."""
    limit = anyio.CapacityLimiter(WRITES_AT_ONCE)

    async def one(index: int) -> None:
        async with limit:
            await do(index)

    async with anyio.create_task_group() as tasks:
        for index in range(number):
            tasks.start_soon(one, index)


async def _pods_in_turn(plane: ControlPlane, pods: int) -> tuple[list[float], list[float]]:
    """Seconds from each pod's creation to its node: with a brokered device, with a local one."""
    namespace = await plane.add_namespace("pods")
    for device_class in (CLASS, LOCAL):
        spec = {"spec": claim_manifest("any", device_class=device_class)["spec"]}
        await plane.api.create(a_manifest("ResourceClaimTemplate", device_class, spec, namespace=namespace))
    took: dict[str, list[float]] = {CLASS: [], LOCAL: []}
    async with plane.api.watch("Pod", namespace) as events:
        for number in range(pods):
            for device_class, delays in took.items():
                name = f"{device_class}-{number}"
                began = time.perf_counter()
                await plane.api.create(a_pod(name, namespace, template=device_class))
                with anyio.fail_after(DEADLINE_S):
                    async for event in events:
                        pod = event["object"]
                        if event["type"] == "MODIFIED" and pod["metadata"]["name"] == name and is_bound(pod):
                            break
                delays.append(time.perf_counter() - began)
                await plane.finish_pod(name, namespace)
    return took[CLASS], took[LOCAL]


async def _first_list(programs: Programs, root: Path, slices: int) -> tuple[float, float]:
    """Seconds until the broker has all devices of so many slices, and the agent's most memory in MiB."""
    async with (
        start(programs, root / "hub", Options(scheduler=False, controller_manager=False)) as hub,
        a_kube_federation(root, {"hub": hub}) as federation,
        aiohttp.ClientSession() as client,
    ):
        fabric = {"name": "rack", "source": "hub", "clusters": ["hub"], "pools": [{"driver": DRIVER}]}
        (root / "config.yaml").write_text(yaml.safe_dump({"clusters": ["hub"], "hub": "hub", "fabrics": [fabric]}))
        await hub.api.create(brokered(class_manifest()))
        await _each_of(slices, lambda number: hub.api.create(_a_whole_slice(number)))
        broker, agent = federation.processes["broker"], federation.processes["hub"]
        await federation.start("broker")
        url = f"{await broker.http()}/metrics"
        await broker.until_it_says("leads ")
        began = time.perf_counter()
        await federation.start("hub")
        with anyio.fail_after(DEADLINE_S):
            while await _devices(client, url) < slices * DEVICES_OF_A_SLICE:  # noqa: ASYNC110  # HTTP tells nobody
                await anyio.sleep(0.05)
        return time.perf_counter() - began, _peak_mib(agent)


def _a_whole_slice(number: int) -> Object:
    """As a driver publishes it: some 27 kB, a pool of its own."""
    devices = [
        {
            "name": f"gpu-{index}",
            "attributes": {
                "model": {"string": "A100"},
                "index": {"int": index},
                "uuid": {"string": f"{number}-{index}"},
            },
            "capacity": {"memory": {"value": "80Gi"}},
        }
        for index in range(DEVICES_OF_A_SLICE)
    ]
    return slice_manifest(devices, name=f"node-{number}", pool=f"node-{number}")


async def _devices(client: aiohttp.ClientSession, url: str) -> float:
    async with client.get(url) as answer:
        families = text_string_to_metric_families(await answer.text())
        return sum(s.value for family in families if family.name == "dragoman_devices" for s in family.samples)


def _peak_mib(process: Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
