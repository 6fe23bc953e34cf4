"""`dragoman agent`: one cluster's agent by itself, against a NATS that is there."""

import argparse
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import shtab
from anyio.abc import TaskGroup

from broker.adapters.errors import ListenError
from broker.app.settings import check_federation
from broker.cli.bus import add_nats_arguments, bus_options
from broker.cli.errors import CommandError
from broker.cli.local import log_problem, new_instance
from broker.cli.monitoring import add_http_argument, monitoring
from broker.cli.signals import until_told_to_stop
from broker.errors import flat
from broker.world.federation import Federation
from broker.world.keys import ClusterId
from cluster_agent.adapters.bus import AgentBus
from cluster_agent.adapters.journal import JournalError
from cluster_agent.adapters.manifest_cluster import ManifestCluster
from cluster_agent.app.agent import KINDS, Agent, AgentSettings
from cluster_agent.app.claim_events import ClaimEvents
from cluster_agent.app.metrics import AgentMetrics, MeasuredCluster
from cluster_agent.app.projection import ClassProjection, TaintRuleProjection
from cluster_agent.errors import AgentReplacedError, ClusterAccessError, NewerLedgerError
from cluster_agent.mirror.rejections import PATIENCE, Patience
from cluster_agent.ports import ApiError, Cluster, EventWriter, Kind
from schemas.client.connection import Connection, connect
from schemas.client.errors import BusError
from schemas.errors import ManifestError
from schemas.resource.versions import V1

_log = logging.getLogger(__name__)

EPILOG = """\
A Kubernetes cluster: the agent reads it, and writes to its ResourceClaims, through the API server that a kubeconfig or
the pod's service account names. What it needs to be allowed there is in docs/kubernetes.md; it is checked at the start.

A directory of manifests: it is watched for changes and never written. What an API server would keep (UIDs,
allocations, claims made from templates) is kept in the data directory: give the same one at each start.

examples:
  dragoman agent --cluster east --in-cluster --role member --nats nats://nats:4222
  dragoman agent --cluster hub --kubeconfig ~/.kube/config --context rack7 --role hub --nats nats://nats:4222
  dragoman agent --cluster east --manifests manifests/east --data /var/lib/dragoman/east --nats nats://nats:4222
"""

PATIENCE_S_MOST = 86_400.0

# hub: where inventory and classes are published. member: where claims are. taintrule: only where it is served.
ROLES: dict[str, tuple[Kind, ...]] = {
    "hub": ("slice", "class", "taintrule"),
    "member": ("namespace", "node", "class", "pod", "claim", "taintrule"),
    "both": KINDS,
}


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `agent`."""
    parser = commands.add_parser(
        "agent",
        help="run the agent of one cluster",
        description="Run the agent of one cluster: of Kubernetes, or a directory of manifests that behaves as one.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cluster", required=True, metavar="NAME", help="the cluster's name in the federation")
    kubernetes = parser.add_argument_group("a Kubernetes cluster")
    kubeconfig = kubernetes.add_argument(
        "--kubeconfig", default="", metavar="FILE", help="(default: $KUBECONFIG, else ~/.kube/config)"
    )
    kubernetes.add_argument(
        "--context", default="", metavar="NAME", help="in the kubeconfig (default: its current one)"
    )
    kubernetes.add_argument("--in-cluster", action="store_true", help="as the service account of the pod we run in")
    kubernetes.add_argument(
        "--role",
        choices=tuple(ROLES),
        default="both",
        help="hub: slices and classes are published here; member: claims are here (default: both)",
    )
    kubernetes.add_argument(
        "--unschedulable-after",
        type=float,
        default=PATIENCE.unschedulable_ms / 1000,
        metavar="SECONDS",
        help="what a claim has is given back when its pod stays Unschedulable for so long (default: %(default)g)",
    )
    kubernetes.add_argument(
        "--binding-timeout",
        type=float,
        default=PATIENCE.binding_ms / 1000,
        metavar="SECONDS",
        help="and when its devices are not bound after so long (default: %(default)g, as kube-scheduler)",
    )
    kubernetes.add_argument(
        "--write-taint-rules",
        action="store_true",
        help="write a DeviceTaintRule for each NoExecute taint that the broker tells of: its pods end",
    )
    kubernetes.add_argument(
        "--claim-events",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="write Events on claims, which `kubectl describe resourceclaim` shows (default: yes)",
    )
    directory = parser.add_argument_group("a directory of manifests")
    manifests = directory.add_argument("--manifests", type=Path, metavar="DIR", help="the cluster")
    data = directory.add_argument("--data", type=Path, metavar="DIR", help="where to keep what must last")
    kubeconfig.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    for argument in (manifests, data):
        argument.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    parser.add_argument(
        "--annotate-trace",
        action="store_true",
        help="annotate claims with the trace context of what gives them devices (dragoman.dev/traceparent)",
    )
    add_nats_arguments(parser)
    add_http_argument(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until told to stop, or until another agent serves the cluster."""
    for problem in check_federation(Federation(clusters=[ClusterId(options.cluster)])):
        raise CommandError(f"--cluster: {problem.partition(': ')[2]}")
    _check_arguments(options)
    nats = bus_options(options, f"dragoman agent {options.cluster}", f"agent-{options.cluster}")

    async def serve() -> None:
        async with (
            until_told_to_stop(),
            anyio.create_task_group() as tasks,
            _cluster(options, tasks) as (cluster, settings, classes, taint_rules, event_writer),
            connect(nats) as connection,
        ):
            metrics = AgentMetrics()
            bus = AgentBus(connection, options.cluster)
            measured = MeasuredCluster(cluster, metrics)
            instance, claim_events = new_instance(), None
            if event_writer is not None:
                claim_events = ClaimEvents(event_writer, f"{options.cluster}-{instance}", metrics.count_claim_event)
            agent = Agent(options.cluster, measured, bus, instance, settings, classes, taint_rules, claim_events)
            refresh, registry = partial(metrics.refresh, agent), metrics.registry
            async with monitoring(options.http, registry, refresh, partial(_why_not_ready, agent, connection)):
                await agent.run()

    try:
        anyio.run(serve)
    except* (
        AgentReplacedError,
        ClusterAccessError,
        ListenError,
        NewerLedgerError,
        BusError,
        ManifestError,
        JournalError,
    ) as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None
    return 0


def _why_not_ready(agent: Agent, connection: Connection) -> str:
    if not connection.is_up:
        return f"not connected to NATS ({connection.places})"
    return "" if agent.is_synced else "not all that its cluster has is told yet"


def _check_arguments(options: argparse.Namespace) -> None:
    """Which cluster is meant. Raises: CommandError."""
    for name, seconds in (
        ("--unschedulable-after", options.unschedulable_after),
        ("--binding-timeout", options.binding_timeout),
    ):
        if not 1 <= seconds <= PATIENCE_S_MOST:
            raise CommandError(f"{name}: {seconds:g} is not between 1 and {PATIENCE_S_MOST:g} s")
    if options.write_taint_rules and (options.manifests is not None or options.role == "hub"):
        raise CommandError("--write-taint-rules: only a Kubernetes cluster with claims has pods to end")
    if options.manifests is not None:
        if options.kubeconfig or options.context or options.in_cluster:
            raise CommandError("--manifests: a directory is the cluster, or Kubernetes is, not both")
        if options.data is None:
            raise CommandError("--manifests needs --data, where to keep what must last")
        if not options.manifests.exists():
            raise CommandError(f"--manifests {options.manifests}: there is no such directory")
    elif options.in_cluster and (options.kubeconfig or options.context):
        raise CommandError("--in-cluster: the pod's service account is used, or a kubeconfig is, not both")
    elif options.data is not None:
        raise CommandError("--data belongs to --manifests: of a Kubernetes cluster nothing is kept here")
    elif not (options.in_cluster or options.kubeconfig or options.context):
        raise CommandError("which cluster? Give --kubeconfig, --context, --in-cluster or --manifests")


@asynccontextmanager
async def _cluster(
    options: argparse.Namespace, tasks: TaskGroup
) -> AsyncIterator[
    tuple[Cluster, AgentSettings, ClassProjection | None, TaintRuleProjection | None, EventWriter | None]
]:
    if options.manifests is not None:
        manifests = ManifestCluster([options.manifests], data_dir=options.data, report=log_problem)
        tasks.start_soon(manifests.run)
        try:
            settings = AgentSettings(publishes_all=True, annotates_trace=options.annotate_trace)
            yield manifests, settings, None, None, None
        finally:
            manifests.close()
        return
    # Half a second and 50 MB, which no other command has to pay.
    from cluster_agent.adapters.kube_cluster import KubernetesCluster
    from cluster_agent.adapters.kube_connection import Credentials, connect_to_cluster
    from cluster_agent.adapters.kube_rights import check_rights, needed_rights

    async with connect_to_cluster(Credentials(options.kubeconfig, options.context, options.in_cluster)) as connection:
        cluster = KubernetesCluster(connection)
        try:
            versions = await cluster.versions()
        except ApiError as error:
            raise ClusterAccessError(f"{connection.server}: {error}") from error
        kinds = ROLES[options.role]
        if options.write_taint_rules and versions.get("taintrule") != V1:
            raise ClusterAccessError(
                f"--write-taint-rules: {connection.server} has no DeviceTaintRules in {V1}: Kubernetes 1.37 has"
            )
        served = [kind for kind in kinds if kind in versions]
        rights = needed_rights(served, writes_taint_rules=options.write_taint_rules, writes_events=options.claim_events)
        who = await check_rights(connection, rights)
        _log.info(
            "cluster %s is %s, we are %s there; claims in %s",
            options.cluster,
            connection.server,
            who,
            versions["claim"],
        )
        patience = Patience(int(options.unschedulable_after * 1000), int(options.binding_timeout * 1000))
        classes = ClassProjection(options.cluster, cluster) if "claim" in kinds else None
        taint_rules = TaintRuleProjection(options.cluster, cluster) if options.write_taint_rules else None
        settings = AgentSettings(
            publishes_all=False, kinds=kinds, patience=patience, annotates_trace=options.annotate_trace
        )
        writer = cluster if options.claim_events and "claim" in kinds else None
        yield cluster, settings, classes, taint_rules, writer
