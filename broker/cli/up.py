"""`dragoman up`: a broker and its clusters on this machine, over directories of manifests."""

import argparse
import logging
import sys
from pathlib import Path

import anyio
import msgspec
import shtab
from rich.live import Live

from broker.adapters.errors import EmbeddedNatsError
from broker.app.settings import check_federation
from broker.cli.errors import CommandError
from broker.cli.federation import read_federation
from broker.cli.local import LocalFederation, local_federation
from broker.cli.output import claim_table, console, print_json
from broker.cli.signals import until_told_to_stop
from broker.errors import InvariantError, LedgerLostError, UnreadableEntryError, flat
from broker.machine import Notice
from broker.machine.report import ClaimRow
from broker.world.federation import Federation
from broker.world.keys import ClusterId
from cluster_agent.adapters.journal import JournalError
from cluster_agent.errors import AgentReplacedError, NewerLedgerError
from schemas.client.errors import BusError
from schemas.errors import ManifestError

_log = logging.getLogger(__name__)

EPILOG = """\
Each directory of YAML or JSON manifests is one cluster. A fabric that several clusters share is declared by the label
`dragoman.dev/fabric: NAME` on its ResourceSlices, or in a config file. Your files are never written.

examples:
  dragoman up --cluster east=manifests/east --cluster west=manifests/west
  dragoman up --cluster east=e --cluster west=w --once -o json | jq '.claims[] | {name, state}'
  dragoman up --cluster hub=hub --cluster east=e --config federation.yaml --data ./state

exit code with --once: 0; 1 if a claim is Invalid or a file cannot be read; 2 for wrong arguments.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `up`."""
    parser = commands.add_parser(
        "up",
        help="run broker and clusters here, over directories of manifests",
        description="Run a broker, an agent for each directory of manifests, and NATS between them, on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cluster",
        action="append",
        required=True,
        metavar="NAME=DIR",
        type=_cluster,
        help="a cluster's name and its manifests; give it once for each cluster, in the order of precedence",
    )
    config = parser.add_argument("--config", type=Path, metavar="FILE", help="fabrics and hub, see docs/config.md")
    data = parser.add_argument("--data", type=Path, metavar="DIR", help="keep the state here; else it is forgotten")
    config.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    data.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    parser.add_argument("--once", action="store_true", help="end when nothing is left to do, and print the result")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run until told to stop, or until nothing is left to do."""
    directories = dict(options.cluster)
    if len(directories) != len(options.cluster):
        raise CommandError("--cluster: each cluster once, and each needs a name of its own")
    for name, directory in directories.items():
        if not directory.exists():
            raise CommandError(f"--cluster {name}={directory}: there is no such directory")
    federation = make_federation(list(directories), options.config)
    try:
        return anyio.run(_up, directories, federation, options)
    except* (EmbeddedNatsError, ManifestError, JournalError) as group:
        raise CommandError("; ".join(map(str, flat(group)))) from None
    except* (
        BusError,
        AgentReplacedError,
        NewerLedgerError,
        InvariantError,
        LedgerLostError,
        UnreadableEntryError,
    ) as group:
        raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None


def make_federation(names: list[str], config: Path | None) -> Federation:
    """The clusters of the command line with the fabrics of the config file. Raises: CommandError."""
    federation = read_federation(config)
    absent = [name for name in federation.clusters if name not in names]
    if absent:
        raise CommandError(f"{config}: clusters: {absent[0]!r} is not among the --cluster arguments")
    federation = msgspec.structs.replace(federation, clusters=[ClusterId(name) for name in names], believe_labels=True)
    problems = check_federation(federation)
    if problems:
        raise CommandError("\n".join(f"{config or '--cluster'}: {problem}" for problem in problems))
    return federation


async def _up(directories: dict[str, Path], federation: Federation, options: argparse.Namespace) -> int:
    async with local_federation(directories, federation, data_dir=options.data, tell=log_notice) as local:
        if options.once:
            await local.start_agents()
            await local.wait_until_settled()
            rows = await local.claims()
            if options.output == "json":
                print_json({"claims": rows})
            else:
                console().print(claim_table(rows))
            is_broken = any(manifests.broken_files for manifests in local.manifests.values())
            return 1 if is_broken or any(row.state == "Invalid" for row in rows) else 0
        await local.start_agents()
        local.follow_files()
        print(f"NATS: {local.url}  (dragoman explain NAMESPACE/NAME --nats {local.url})", file=sys.stderr)
        async with until_told_to_stop():
            await _show(local, options.output)
    return 0


async def _show(local: LocalFederation, output: str) -> None:
    """Show changes as they come, until cancelled."""
    if output == "table" and sys.stdout.isatty():
        with Live(console=console(), auto_refresh=False) as live:
            while True:
                changed = local.broker.changed
                live.update(claim_table(await local.claims()), refresh=True)
                await changed.wait()
    before: dict[str, ClaimRow] = {}
    while True:
        changed = local.broker.changed
        now = {f"{row.cluster}/{row.uid}": row for row in await local.claims()}
        for key, row in now.items():
            if before.get(key) != row:
                _show_row(row, output)
        for key in before.keys() - now.keys():
            _show_row(before[key], output, gone=True)
        before = now
        await changed.wait()


def _show_row(row: ClaimRow, output: str, *, gone: bool = False) -> None:
    if output == "json":
        line = {**msgspec.to_builtins(row), **({"deleted": True} if gone else {})}
        print(msgspec.json.encode(line).decode(), flush=True)
        return
    devices = ", ".join(f"{each.request}={each.pool}/{each.device}" for each in row.results)
    what = "Deleted" if gone else row.state
    print(
        f"{row.cluster}/{row.namespace}/{row.name}: {what} {devices or row.reason} {row.message}".rstrip(), flush=True
    )


def log_notice(notice: Notice) -> None:
    """A notice of the broker as a log line."""
    level = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}[notice.level]
    _log.log(level, "%s: %s: %s", notice.code, notice.place, notice.message)


def _cluster(text: str) -> tuple[str, Path]:
    name, equals, directory = text.partition("=")
    if not equals or not name or not directory:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR, such as east=manifests/east")
    return name, Path(directory)
