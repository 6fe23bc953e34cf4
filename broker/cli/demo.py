"""`dragoman demo`: two clusters share one fabric, from manifests that are written to a temporary directory."""

import argparse
import tempfile
from importlib.resources import files
from pathlib import Path

import anyio
from rich.console import Console

from broker.adapters.errors import EmbeddedNatsError
from broker.cli.errors import CommandError
from broker.cli.explain import print_explanation
from broker.cli.local import LocalFederation, local_federation
from broker.cli.output import claim_table, console, pool_table
from broker.cli.up import make_federation
from broker.errors import flat
from broker.machine import report
from schemas.client.errors import BusError

CLUSTERS = ("east", "west")
HOLDER = "train-east.yaml"  # the file whose claim is deleted in the end

EPILOG = """\
Nothing is left behind, and nothing but the nats-server that comes with dragoman is started.

examples:
  dragoman demo
  dragoman demo --keep ./demo     # keep the manifests, to change them and run `dragoman up` on them
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `demo`."""
    parser = commands.add_parser(
        "demo",
        help="see two clusters share one fabric",
        description="Two clusters, one fabric with fewer devices than both want: who gets what, who waits, and why.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the demo's manifests here and leave them")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the demo."""
    with tempfile.TemporaryDirectory(prefix="dragoman-demo-") as temporary:
        root = options.keep or Path(temporary)
        try:
            if root.exists() and any(root.iterdir()):
                raise CommandError(f"--keep {root}: the directory is not empty; give a new one")
            write_manifests(root)
        except OSError as error:
            raise CommandError(f"the demo's manifests cannot be written to {root}: {error.strerror}") from error
        try:
            anyio.run(_demo, root, console())
        except* (EmbeddedNatsError, BusError) as group:
            raise CommandError("; ".join(map(str, flat(group))), exit_code=1) from None
    return 0


def write_manifests(root: Path) -> None:
    """Put the demo's manifests into one directory for each cluster. Raises: OSError."""
    for cluster in CLUSTERS:
        (root / cluster).mkdir(parents=True, exist_ok=True)
        for source in files("broker.cli").joinpath("demo_manifests", cluster).iterdir():
            (root / cluster / source.name).write_text(source.read_text())


async def _demo(root: Path, to: Console) -> None:
    directories = {cluster: root / cluster for cluster in CLUSTERS}
    federation = make_federation(list(CLUSTERS), None)
    async with local_federation(directories, federation, data_dir=None, tell=lambda _: None) as local:
        to.rule("Two clusters, east and west, reach one fabric: rack7")
        await local.start_agents()
        await local.wait_until_settled()
        to.print(pool_table(await local.broker.ask_world(lambda machine: report.pool_rows(machine.world))))
        to.print()
        to.print("The walk-through's pod asks for a GPU by a template (v1beta1), and gets one:\n")
        await _explain(local, to, "stock-prediction-pod")
        to.print()
        to.rule("Who got what, who waits, and why")
        to.print(claim_table(await local.claims()))
        to.print()
        to.rule("The holder of the last H100, east/ml/train-east, is deleted: the claim that waited gets it")
        (root / "east" / HOLDER).unlink()
        local.manifests["east"].rescan()
        await _wait_until_deleted(local)
        await local.wait_until_settled()
        to.print(claim_table(await local.claims()))


async def _explain(local: LocalFederation, to: Console, pod: str) -> None:
    explanations = await local.broker.ask_world(
        lambda machine: [
            report.explain(machine.world, claim)
            for claim in machine.world.claims.values()
            if claim.name.startswith(pod)
        ]
    )
    for explanation in explanations:
        print_explanation(to, explanation)


async def _wait_until_deleted(local: LocalFederation) -> None:
    while True:
        changed = local.broker.changed
        if not any(row.name == "train-east" for row in await local.claims()):
            return
        await changed.wait()
