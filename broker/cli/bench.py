"""`dragoman bench allocate`: how long the allocation core takes on fleets of any size."""

import argparse
import gc
import resource
import statistics
import time
from collections.abc import Callable
from functools import partial

import msgspec
from rich.table import Table

from broker.allocation.allocate import allocate
from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.allocation.nodes import NodeView
from broker.allocation.reasons import NoFit
from broker.allocation.result import with_share_ids
from broker.allocation.snapshot import Snapshot
from broker.cli.bench_scenarios import SCENARIOS, default_claims, driver_class
from broker.cli.errors import CommandError
from broker.cli.output import console, print_json
from broker.machine.specs import STEP_BUDGET
from broker.world.federation import Federation
from broker.world.keys import ClusterId, DeviceKey, PoolKey, cluster_scope
from broker.world.usage import use_of
from broker.world.world import World
from schemas.resource import (
    AllocationResult,
    DeviceAttribute,
    DeviceRequestAllocationResult,
    ResourceClaim,
    ResourceSlice,
)
from schemas.wire.ledger import DeviceHold

_CLUSTER = ClusterId("bench")
_UPDATES = 9  # slices that are published once more, to measure the median

DESCRIPTION = """\
Allocates claims one after the other on a made-up fleet, and prints how long each took: from the claim to its complete
allocation, with its devices taken. Everything happens in this process; no cluster, no NATS.

scenarios (slices of 128 devices, 8 slices a pool, all nodes; fabrics of 16 devices of one of 10 models):
  one     one device of the driver
  cel     one device of a model with enough memory
  gang8   8 devices of one model on one fabric
  gang17  17 devices on one fabric, which do not exist
  fill    one device each, until 90 % of the fleet are taken
  share   an eighth of a device's memory, of each model in turn
  mig     partitions of GPUs of sizes 1, 1, 2, 1, 4, 2, 1 and 8 in turn; --devices counts partitions
"""

EPILOG = """\
examples:
  dragoman bench allocate --devices 102400 --scenario cel
  dragoman bench allocate --devices 10240 --scenario fill -o json | jq .total_s

build_s: from ResourceSlices to an index that is ready. slice_update_ms: from a changed ResourceSlice to an index that
is ready again. peak_rss_mib: of the whole process, ResourceSlices included.
"""


class Figures(msgspec.Struct, frozen=True):
    """What was measured."""

    scenario: str
    devices: int
    claims: int
    placed: int
    median_us: float
    p99_us: float
    total_s: float
    build_s: float
    slice_update_ms: float
    peak_rss_mib: float


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `bench`."""
    parser = commands.add_parser("bench", help="how fast the allocation core is")
    what = parser.add_subparsers(dest="what", metavar="WHAT", required=True)
    of_allocate = what.add_parser(
        "allocate",
        help="allocate claims on a made-up fleet",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    of_allocate.add_argument("--devices", type=int, default=1024, metavar="N", help="in the fleet (default: 1024)")
    of_allocate.add_argument(
        "--claims", type=int, metavar="M", help="how many (default: 100; for fill, 90 %% of the devices)"
    )
    of_allocate.add_argument("--scenario", choices=tuple(SCENARIOS), default="one", help="(default: one)")
    of_allocate.add_argument("-o", "--output", choices=("table", "json"), default="table")
    of_allocate.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and print."""
    for name in ("devices", "claims"):
        count = getattr(options, name)
        if count is not None and count < 1:
            raise CommandError(f"--{name} {count}: must be at least 1")
    claims = options.claims if options.claims is not None else default_claims(options.scenario, options.devices)
    figures = measure(options.scenario, options.devices, claims)
    if options.output == "json":
        print_json(figures)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in figures.__struct_fields__:
            table.add_column(name.upper(), justify="left" if name == "scenario" else "right")
        table.add_row(*map(str, msgspec.structs.astuple(figures)))
        console().print(table)
    return 0


def measure(scenario_name: str, devices: int, claims: int) -> Figures:
    """Run one scenario."""
    scenario = SCENARIOS[scenario_name]
    slices = list(scenario.fleet(devices))
    bench = _Bench()
    build_s = _seconds(lambda: bench.build(slices))
    gc.collect()
    gc.freeze()  # what has been built stays; looking through it again and again is no part of an allocation
    seconds, placed = [], 0
    for k in range(claims):
        claim = scenario.claim(k)
        started = time.perf_counter()
        placed += bench.allocate(claim)
        seconds.append(time.perf_counter() - started)
    devices_in = [each for each in slices if each.spec.devices]
    changed = [devices_in[index * len(devices_in) // _UPDATES] for index in range(_UPDATES)]
    updates = [_seconds(partial(bench.update, _republished(each))) for each in changed]
    return Figures(
        scenario=scenario_name,
        devices=devices,
        claims=claims,
        placed=placed,
        median_us=round(statistics.median_high(seconds) * 1e6, 1),
        p99_us=round(sorted(seconds)[min(int(len(seconds) * 0.99), len(seconds) - 1)] * 1e6, 1),
        total_s=round(sum(seconds), 6),
        build_s=round(build_s, 6),
        slice_update_ms=round(statistics.median(updates) * 1e3, 3),
        peak_rss_mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    )


class _Bench:
    """A world with one cluster, and an index over it."""

    def __init__(self) -> None:
        self._world = World(Federation(clusters=[_CLUSTER]))
        self._index = DeviceIndex(default_engine())
        self._classes = {each.metadata.name: each for each in (driver_class(),)}
        self._nodes = [NodeView("node-0")]
        self._allocated = 0
        self._held: dict[DeviceKey, list[tuple[str, DeviceHold]]] = {}

    def build(self, slices: list[ResourceSlice]) -> None:
        """Take in the slices and index them."""
        for each in slices:
            self._world.inventory.put((_CLUSTER, each.metadata.name), each)
        self.update()

    def update(self, changed: ResourceSlice | None = None) -> None:
        """Take in a changed slice, and bring all that is kept up to date."""
        if changed is not None:
            self._world.inventory.put((_CLUSTER, changed.metadata.name), changed)
        snapshot = self._snapshot()
        self._index.fleet(snapshot.pools, snapshot.in_use).catch_up()

    def allocate(self, claim: ResourceClaim) -> bool:
        """Allocate one claim; it holds its devices from then on."""
        found = allocate([claim], self._snapshot(), self._index, step_budget=STEP_BUDGET)
        if isinstance(found, NoFit):
            return False
        self._hold(claim, with_share_ids(found[0], claim.metadata.uid, self._allocated))
        self._allocated += 1
        return True

    def _snapshot(self) -> Snapshot:
        pools = self._world.inventory.pools_of_scopes([cluster_scope(_CLUSTER)])
        return Snapshot(pools=pools, classes=self._classes, nodes=self._nodes, in_use=self._world.in_use)

    def _hold(self, claim: ResourceClaim, allocation: AllocationResult) -> None:
        scope = cluster_scope(_CLUSTER)
        for each in allocation.devices.results:
            key = DeviceKey(PoolKey(scope, each.driver, each.pool), each.device)
            self._held.setdefault(key, []).append((claim.metadata.name, _hold_of(each)))
            use = use_of(self._held[key])
            assert use is not None
            self._world.in_use[key] = use


def _hold_of(result: DeviceRequestAllocationResult) -> DeviceHold:
    return DeviceHold(
        request=result.request,
        driver=result.driver,
        pool=result.pool,
        device=result.device,
        share_id=result.share_id or "",
        consumed_capacity=result.consumed_capacity,
    )


def _republished(slice_: ResourceSlice) -> ResourceSlice:
    """The slice with another value in each of its devices."""
    return msgspec.structs.replace(
        slice_,
        spec=msgspec.structs.replace(
            slice_.spec,
            devices=[
                msgspec.structs.replace(each, attributes={**each.attributes, **_renewed(each.name)})
                for each in slice_.spec.devices
            ],
        ),
    )


def _renewed(name: str) -> dict[str, DeviceAttribute]:
    return {"uuid": DeviceAttribute(string=f"renewed-{name}")}


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
