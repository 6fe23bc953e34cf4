"""`dragoman agent`: one cluster's agent by itself, against a NATS that is there."""

import argparse
from pathlib import Path

import anyio
import shtab

from broker.app.settings import check_federation
from broker.cli.bus import add_nats_arguments, bus_options
from broker.cli.errors import CommandError
from broker.cli.local import log_problem, make_agent
from broker.cli.signals import until_told_to_stop
from broker.errors import flat
from broker.world.federation import Federation
from broker.world.keys import ClusterId
from cluster_agent.adapters.journal import JournalError
from cluster_agent.adapters.manifest_cluster import ManifestCluster
from cluster_agent.errors import AgentReplacedError, NewerLedgerError
from schemas.client.connection import connect
from schemas.client.errors import BusError
from schemas.errors import ManifestError

EPILOG = """\
The directory of manifests is the cluster; it is watched for changes and never written. What an API server would keep
(UIDs, allocations, claims made from templates) is kept in the data directory: give the same one at each start.

examples:
  dragoman agent --cluster east --manifests manifests/east --data /var/lib/dragoman/east --nats nats://nats:4222
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `agent`."""
    parser = commands.add_parser(
        "agent",
        help="run the agent of one cluster",
        description="Run the agent of one cluster, which is a directory of manifests in this release.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cluster", required=True, metavar="NAME", help="the cluster's name in the federation")
    manifests = parser.add_argument("--manifests", type=Path, required=True, metavar="DIR", help="the cluster")
    data = parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="where to keep what must last")
    for argument in (manifests, data):
        argument.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # how shtab is told
    add_nats_arguments(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until told to stop, or until another agent serves the cluster."""
    for problem in check_federation(Federation(clusters=[ClusterId(options.cluster)])):
        raise CommandError(f"--cluster: {problem.partition(': ')[2]}")
    if not options.manifests.exists():
        raise CommandError(f"--manifests {options.manifests}: there is no such directory")

    async def serve() -> None:
        cluster = ManifestCluster([options.manifests], data_dir=options.data, report=log_problem)
        try:
            async with (
                connect(
                    bus_options(options, f"dragoman agent {options.cluster}", f"agent-{options.cluster}")
                ) as connection,
                until_told_to_stop(),
                anyio.create_task_group() as tasks,
            ):
                tasks.start_soon(cluster.run)
                await make_agent(options.cluster, cluster, connection).run()
        finally:
            cluster.close()

    try:
        anyio.run(serve)
    except* (AgentReplacedError, NewerLedgerError, BusError, ManifestError, JournalError) as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None
    return 0
