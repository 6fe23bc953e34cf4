"""`dragoman allocate`: the allocation core alone on manifests; no NATS, no store, nothing is kept."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import shtab
from rich.table import Table
from rich.text import Text

from broker.allocation.allocate import allocate
from broker.allocation.cel import default_engine
from broker.allocation.index import DeviceIndex
from broker.allocation.nodes import node_views
from broker.allocation.reasons import NoFit, RequestReport
from broker.allocation.result import with_share_ids
from broker.allocation.snapshot import Snapshot
from broker.app.settings import check_federation
from broker.cli.errors import CommandError
from broker.cli.federation import read_federation
from broker.cli.offline_input import InputClaim, OfflineInput, hold, read_input
from broker.cli.output import console, print_json
from broker.machine.specs import STEP_BUDGET
from broker.world.federation import Federation
from broker.world.keys import ClusterId, cluster_scope, fabric_scope
from schemas.errors import ManifestError
from schemas.manifests import ManifestSet, parse_manifests, read_manifests
from schemas.resource import AllocationResult, DeviceRequestAllocationResult

_log = logging.getLogger(__name__)

ALL_ALLOCATED, SOME_NOT_ALLOCATED, BAD_INPUT = 0, 1, 2

DESCRIPTION = """\
Say what the claims in manifests would get, by the allocation core alone: no NATS, no store, nothing is written.

The manifests are read as one cluster: ResourceSlices, DeviceClasses (each counts as brokered), ResourceClaims, Nodes,
and Pods with their ResourceClaimTemplates. Claims are allocated in the order of the input, a pod's where the pod
stands; earlier ones hold their devices. Claims with a status.allocation hold theirs from the start.
"""

EPILOG = """\
examples:
  dragoman allocate -f slices.yaml classes.yaml claims.yaml
  dragoman allocate -f manifests/ --node node-a -o json | jq '.results[] | {name, reason}'
  dragoman allocate -f manifests/ --claim team-a/train
  kubectl get resourceslices,deviceclasses,resourceclaims -A -o yaml | dragoman allocate -f -

exit code:
  0  all claims were allocated
  1  some were not; each says why: no device is free, no such class, a selector that does not compile ...
  2  bad input: a file that cannot be read, text that is not YAML, a field of a wrong type, an object that an API
     server would refuse, or two different objects of one name. File, document and field are named on stderr; the
     rest is allocated and printed all the same. Also for wrong arguments; then nothing is printed.
"""


class Result(msgspec.Struct, frozen=True):
    """What became of one claim. reason and message: empty if it was allocated now."""

    namespace: str
    name: str
    allocation: AllocationResult | None
    reason: str = ""
    message: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """A result, and for a claim that does not fit what became of the devices."""

    result: Result
    requests: tuple[RequestReport, ...] = ()


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `allocate`."""
    parser = commands.add_parser(
        "allocate",
        help="what claims in manifests would get, offline",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    files = parser.add_argument(
        "-f",
        "--filename",
        dest="files",
        nargs="+",
        action="extend",
        required=True,
        metavar="FILE",
        help="manifests in YAML or JSON: files, directories with all that is below them, or - for stdin",
    )
    parser.add_argument("--node", metavar="NAME", help="allocate on this node only; without it, on any")
    parser.add_argument(
        "--claim",
        dest="claims",
        action="append",
        metavar="NAMESPACE/NAME",
        help="only this claim, more if given again; others hold what they have. NAME alone is in default",
    )
    parser.add_argument(
        "--together", action="store_true", help="all claims on one node, or none, as for the claims of one pod"
    )
    parser.add_argument("--cluster", default="local", metavar="NAME", help="whose claims these are (default: local)")
    config = parser.add_argument("--config", type=Path, metavar="FILE", help="fabrics, and which of them NAME reaches")
    files.complete = config.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Read, allocate, print."""
    cluster = ClusterId(options.cluster)
    given = read_input(_read(options.files), _federation(cluster, options.config), cluster)
    for problem in given.problems:
        _log.error("%s", problem)
    for notice in given.notices:
        _log.warning("%s", notice)
    nodes = given.world.nodes.get(cluster, {})
    if options.node and nodes and options.node not in nodes:
        _log.warning("node %s is not in the input (%s); it is taken to have no labels", options.node, ", ".join(nodes))
    claims = _chosen(given, options.claims)
    outcomes = (allocate_together if options.together else allocate_each)(given, claims, options.node)
    results = [each.result for each in outcomes]
    if options.output == "json":
        print_json({"results": results})
    else:
        _print_tables(outcomes)
    if given.problems:
        return BAD_INPUT
    is_all = given.pod_groups == 0 and all(each.allocation is not None for each in results)
    return ALL_ALLOCATED if is_all else SOME_NOT_ALLOCATED


def allocate_each(given: OfflineInput, claims: Sequence[InputClaim], node: str | None = None) -> list[Outcome]:
    """Allocate one claim after the other; each holds its devices for those that follow.

    claims: of `given`, whose world holds their devices afterwards.
    node: the only one to allocate on; None means any.
    """
    snapshot, device_index = _snapshot(given, node), DeviceIndex(default_engine())
    outcomes = []
    for each in claims:
        if each.allocation is not None:
            outcomes.append(_already_allocated(each))
        elif each.claim is None:
            outcomes.append(_not_allocated(each, each.reason, each.message))
        else:
            is_allowed = each.namespace in given.admin_namespaces
            found = allocate(
                [each.claim],
                msgspec.structs.replace(snapshot, allows_admin_access=is_allowed),
                device_index,
                step_budget=STEP_BUDGET,
            )
            outcomes += (told := _told([each], found))
            if (allocation := told[0].result.allocation) is not None:
                hold(given.world, given.cluster, each, allocation)
    return outcomes


def allocate_together(given: OfflineInput, claims: Sequence[InputClaim], node: str | None = None) -> list[Outcome]:
    """Allocate all claims on one node, or none of them. Those that have an allocation already have no say in it.

    claims, node: as in `allocate_each`; nothing is held afterwards.
    """
    waiting = [each for each in claims if each.allocation is None]
    refused = next((each for each in waiting if each.claim is None), None)
    if refused is not None:
        why = f"claim {refused}: {refused.message}"
        outcomes = [_not_allocated(each, each.reason or refused.reason, each.message or why) for each in waiting]
    else:
        wanted = [each.claim for each in waiting if each.claim is not None]
        snapshot = msgspec.structs.replace(
            _snapshot(given, node),
            allows_admin_access=all(each.namespace in given.admin_namespaces for each in waiting),
        )
        found = allocate(wanted, snapshot, DeviceIndex(default_engine()), step_budget=STEP_BUDGET)
        outcomes = _told(waiting, found)
    told = iter(outcomes)
    return [_already_allocated(each) if each.allocation is not None else next(told) for each in claims]


def _snapshot(given: OfflineInput, node: str | None) -> Snapshot:
    world, cluster = given.world, given.cluster
    fabrics = [fabric_scope(each.name) for each in world.federation.fabrics if cluster in each.clusters]
    nodes = world.nodes.get(cluster)
    return Snapshot(
        pools=world.inventory.pools_of_scopes([cluster_scope(cluster), *fabrics, *world.inventory.label_scopes()]),
        classes={name: each for (_, name), each in world.classes.items()},
        nodes=node_views(nodes) if nodes else None,
        node=node,
        in_use=world.in_use,  # as it is at each call
    )


def _told(claims: Sequence[InputClaim], found: list[AllocationResult] | NoFit) -> list[Outcome]:
    if not isinstance(found, NoFit):
        # Names will do for UIDs, and there is no ledger: the same input gives the same shareIDs.
        return [
            Outcome(Result(each.namespace, each.name, with_share_ids(allocation, str(each), 0)))
            for each, allocation in zip(claims, found, strict=True)
        ]
    return [
        msgspec.structs.replace(
            _not_allocated(each, found.reason.value, found.message),
            requests=tuple(report for report in found.requests if report.claim == str(each)),
        )
        for each in claims
    ]


def _not_allocated(claim: InputClaim, reason: str, message: str) -> Outcome:
    return Outcome(Result(claim.namespace, claim.name, None, reason, message))


def _already_allocated(claim: InputClaim) -> Outcome:
    text = "the claim has this allocation in the input"
    return Outcome(Result(claim.namespace, claim.name, claim.allocation, "AlreadyAllocated", text))


def _read(paths: Sequence[str]) -> ManifestSet:
    found = ManifestSet([], [], {})
    for path in paths:
        more = _read_stdin() if path == "-" else read_manifests([path])
        counts = {kind: found.skipped.get(kind, 0) + more.skipped.get(kind, 0) for kind in found.skipped | more.skipped}
        found = ManifestSet(found.documents + more.documents, found.errors + more.errors, counts)
    return found


def _read_stdin() -> ManifestSet:
    try:
        return parse_manifests(sys.stdin.read(), "-")
    except UnicodeDecodeError:
        return ManifestSet([], [ManifestError("-", 0, 0, 0, "not text in UTF-8")], {})


def _federation(cluster: ClusterId, config: Path | None) -> Federation:
    """The fabrics of the config file, with the input as their source. Raises: CommandError."""
    found = read_federation(config)
    known = {found.hub, *found.clusters, *(name for each in found.fabrics for name in (each.source, *each.clusters))}
    if config and cluster not in known:
        named = ", ".join(sorted(known - {""})) or "none"
        raise CommandError(
            f"{config}: there is no cluster {cluster}; say with --cluster whose claims these are: {named}"
        )
    fabrics = [msgspec.structs.replace(each, source=cluster) for each in found.fabrics]
    problems = check_federation(Federation(clusters=[cluster]))
    if problems:
        raise CommandError(f"--cluster {cluster}: {problems[0]}")
    return Federation(fabrics=fabrics, clusters=[cluster], believe_labels=True)


def _chosen(given: OfflineInput, names: Sequence[str] | None) -> list[InputClaim]:
    """The claims to allocate, in the order of the input. Raises: CommandError."""
    if names is None:
        return [each for each in given.claims if each.allocation is None]
    known = [str(each) for each in given.claims]
    wanted = [name if "/" in name else f"default/{name}" for name in names]
    for name in wanted:
        if name not in known:
            there = ", ".join(known) or "none"
            raise CommandError(f"--claim {name}: there is no such claim; those in the input are: {there}")
    return [each for each in given.claims if str(each) in wanted]


def _print_tables(outcomes: Sequence[Outcome]) -> None:
    table = _table("CLAIM", "DEVICES", "WHY")
    for each in (outcome.result for outcome in outcomes):
        rows = each.allocation.devices.results if each.allocation is not None else []
        devices = "\n".join(map(_device_text, rows))
        why = Text(f"{each.reason}: ", "bold").append(Text(each.message, "not bold")) if each.reason else Text()
        table.add_row(Text(f"{each.namespace}/{each.name}"), Text(devices or "-"), why)
    console().print(table)
    counts = _table("CLAIM", "REQUEST", "CLASS", "NEEDED", "USABLE", "DEVICES", "RULED OUT")
    for report in (report for outcome in outcomes for report in outcome.requests):
        ruled_out = "\n".join(
            f"{each.count} {each.cause.value}" + (f" ({each.detail})" if each.detail else "")
            for each in report.ruled_out
        )
        needed = f"all {report.needed}" if report.takes_all else str(report.needed)
        cells = (report.claim, report.request, report.device_class, needed, str(report.usable), str(report.devices))
        counts.add_row(*map(Text, cells), Text(ruled_out or "-"))
    if counts.row_count:
        console().print()
        console().print(counts)


def _device_text(row: DeviceRequestAllocationResult) -> str:
    text = f"{row.request}: {row.driver}/{row.pool}/{row.device}"
    notes = [f"{name} {amount}" for name, amount in row.consumed_capacity.items()]
    notes += ["admin access"] if row.admin_access else []
    return f"{text} ({', '.join(notes)})" if notes else text


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(
            name, no_wrap=name not in ("WHY", "RULED OUT"), ratio=1 if name in ("WHY", "RULED OUT") else None
        )
    return table
