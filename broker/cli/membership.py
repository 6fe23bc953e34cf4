"""`dragoman cluster join` and `leave`: what a cluster's own scheduler hands out comes under the broker, and back.

Joining closes the classes to the scheduler first, and only then lets the agent's full sync tell what is held: what the
scheduler gave away is adopted, and nothing is granted before. No pod is touched on either way.
"""

import argparse
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import anyio
import msgspec
import shtab
from anyio import to_thread

from broker.app.api import ClusterCall
from broker.cli.bus import add_nats_arguments
from broker.cli.calls import call, call_list, login
from broker.cli.errors import CommandError
from broker.errors import flat
from broker.machine.cluster_report import ClusterRow
from broker.machine.report import ClaimRow
from cluster_agent.app.membership import holders, join, leave
from cluster_agent.errors import ClusterAccessError
from cluster_agent.mirror.tracked import HELD
from cluster_agent.ports import ApiError

if TYPE_CHECKING:
    from cluster_agent.adapters.kube_cluster import KubernetesCluster

POLL_S = 0.5
TELL_S = 5.0  # who waits is told what for
SETTLE_S = 10.0
SILENT_MS = 5_000  # an agent beats once a second
TIMEOUT_S = 600.0

JOIN_EPILOG = """\
Before: the cluster, and the fabric with these devices, are in the broker's config, whose brokers run; the hub has the
classes, labelled dragoman.dev/brokered; the cluster's agent does not run yet, or has nothing to do with these classes.
The driver stops publishing the pool in this cluster and publishes it at the hub, under the same names.

Start the agent when this says so, or let it wait.

example:
  dragoman cluster join east --context east --class gpu.example.com
"""
LEAVE_EPILOG = """\
The cluster is cordoned and keeps what it has. Uninstall its agent when this says so. A pool that others use too leaves
with all of them: take it out of the broker's config only when each cluster has left.

example:
  dragoman cluster leave east --context east --reason "back to one cluster"
"""


def add_verbs(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `join` and `leave`."""
    for verb, short, description, epilog, run in (
        (
            "join",
            "bring devices that the cluster's own scheduler hands out under the broker",
            "Close classes of a cluster to its scheduler, and wait until the broker has adopted what is held of them.",
            JOIN_EPILOG,
            run_join,
        ),
        (
            "leave",
            "give devices back to the cluster's own scheduler",
            "Undo what agents have written into a cluster; its pods keep what they have.",
            LEAVE_EPILOG,
            run_leave,
        ),
    ):
        parser = verbs.add_parser(
            verb,
            help=short,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("cluster", metavar="CLUSTER", help="the cluster's name in the federation")
        kubeconfig = parser.add_argument("--kubeconfig", default="", metavar="FILE", help="(default: as kubectl)")
        kubeconfig.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
        parser.add_argument(
            "--context", default="", metavar="NAME", help="in the kubeconfig (default: its current one)"
        )
        parser.add_argument(
            "--timeout", type=float, default=TIMEOUT_S, metavar="S", help="give up after so long (default: %(default)g)"
        )
        if verb == "join":
            parser.add_argument(
                "--class",
                dest="classes",
                action="append",
                required=True,
                metavar="NAME",
                help="a DeviceClass; may be given several times",
            )
            parser.add_argument(
                "--settle",
                type=float,
                default=SETTLE_S,
                metavar="S",
                help="how long what the scheduler has begun may still land (default: %(default)g)",
            )
        else:
            parser.add_argument("--reason", required=True, help="why, for those who read the ledger later")
            parser.add_argument("--operator", default="", help="who orders it (default: your login name)")
        add_nats_arguments(parser)
        parser.set_defaults(run=run)


def run_join(options: argparse.Namespace) -> int:
    """Close, wait, compare."""
    return _run(_join, options)


def run_leave(options: argparse.Namespace) -> int:
    """Cordon, wait, give back."""
    return _run(_leave, options)


def _run(do: "Callable[[KubernetesCluster, argparse.Namespace], Awaitable[int]]", options: argparse.Namespace) -> int:
    # Half a second and 50 MB, which no other command has to pay.
    from cluster_agent.adapters.kube_cluster import KubernetesCluster
    from cluster_agent.adapters.kube_connection import Credentials, connect_to_cluster

    async def run() -> int:
        async with connect_to_cluster(Credentials(options.kubeconfig, options.context)) as connection:
            cluster = KubernetesCluster(connection)
            await cluster.versions()
            return await do(cluster, options)

    try:
        return anyio.run(run)
    except* (ClusterAccessError, ApiError) as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None


# --- join


async def _join(cluster: "KubernetesCluster", options: argparse.Namespace) -> int:
    await _row(options)  # before anything is closed: whether a broker leads, and knows the cluster
    await _check_classes(cluster, options.classes)
    done = await join(cluster, options.classes)
    for name in options.classes:
        before = " already" if name in done.were_closed else "; what it was like is kept in its annotations"
        _say(f"DeviceClass {name} is closed to the scheduler{before}")
    _say(f"{done.in_use} of its claims hold devices; waiting {options.settle:g} s for what the scheduler has begun")
    await anyio.sleep(options.settle)
    held = await holders(cluster, options.classes)
    if len(held) > done.in_use:
        _say(f"{len(held) - done.in_use} claims got their devices meanwhile; they are adopted, too")

    async def is_adopted() -> tuple[bool, str]:
        row = await _row(options)
        if row.state != "Ready":
            return False, f"the broker has not heard {options.cluster} ({row.state}): start its agent"
        known = {each.uid for each in await _rows(options) if each.state == "Allocated"}
        missing = [name for uid, name in held.items() if uid not in known]
        return not missing, f"the broker does not know of {', '.join(missing[:3])} yet"

    await _until(is_adopted, options.timeout)
    twice = [row for row in await _rows(options) if row.reason == "DeviceHeldTwice"]
    for row in twice:
        _say(f"{row.namespace}/{row.name}: {row.message}")
    print(f"cluster {options.cluster} has joined: the broker knows of {len(held)} claims that hold devices")
    return 1 if twice else 0


# --- leave


async def _leave(cluster: "KubernetesCluster", options: argparse.Namespace) -> int:
    order = ClusterCall("cordon", options.cluster, options.operator or login(), options.reason, False)
    await to_thread.run_sync(call, options, "cluster", msgspec.json.encode(order))
    _say(f"cluster {options.cluster} is cordoned: it keeps what it has and gets nothing new")

    async def is_settled() -> tuple[bool, str]:
        moving = [row for row in await _rows(options) if row.reason in ("Allocating", "Releasing")]
        return not moving, f"{len(moving)} decisions are still under way"

    async def is_silent() -> tuple[bool, str]:
        silent_ms = time.time_ns() // 1_000_000 - (await _row(options)).heard_ms
        return silent_ms > SILENT_MS, f"its agent still runs: uninstall it (helm uninstall) in {options.cluster}"

    await _until(is_settled, options.timeout)
    await _until(is_silent, options.timeout)
    done = await leave(cluster)
    for name in done.given_back:
        _say(f"DeviceClass {name} is as it was before it joined")
    for name in done.deleted:
        _say(f"DeviceClass {name} is gone: the agent had made it")
    for name in done.rules:
        _say(f"DeviceTaintRule {name} is gone: the agent had made it")
    print(
        f"cluster {options.cluster} has left: {done.released} claims lost the finalizer {HELD} and keep their devices."
        " When every cluster that uses the pool has left, take it out of the broker's config"
    )
    return 0


# --- what both need


async def _check_classes(cluster: "KubernetesCluster", names: Iterable[str]) -> None:
    """Raises: CommandError for one that is not there."""
    there = {each["metadata"]["name"] for each in (await cluster.list_objects("class")).objects}
    for name in names:
        if name not in there:
            raise CommandError(f"--class {name}: there is no such DeviceClass; there are {', '.join(sorted(there))}")


async def _row(options: argparse.Namespace) -> ClusterRow:
    """How the cluster stands. Raises: CommandError."""
    answer = await to_thread.run_sync(call, options, "clusters")
    rows = {row.cluster: row for row in msgspec.json.decode(answer, type=list[ClusterRow])}
    if options.cluster not in rows:
        raise CommandError(f"{options.cluster}: the broker's config has {', '.join(sorted(rows))}; add it there first")
    return rows[options.cluster]


async def _rows(options: argparse.Namespace) -> list[ClaimRow]:
    """Its claims, as the broker has them."""
    answer = await to_thread.run_sync(call_list, options, "claims", options.cluster)
    return [row for row in msgspec.json.decode(answer, type=list[ClaimRow]) if row.cluster == options.cluster]


async def _until(is_so: Callable[[], Awaitable[tuple[bool, str]]], timeout_s: float) -> None:
    """Return when it is; say now and then why it is not. Raises: CommandError when the time is over."""
    told_at, why = time.monotonic() - TELL_S, ""
    with anyio.move_on_after(timeout_s):
        while True:
            done, why = await is_so()
            if done:
                return
            if time.monotonic() - told_at >= TELL_S:
                told_at = time.monotonic()
                _say(f"waiting: {why}")
            await anyio.sleep(POLL_S)
    raise CommandError(f"gave up after {timeout_s:g} s: {why}", exit_code=1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
