"""`dragoman explain`: why a claim is where it is, or why it waits."""

import argparse
import time
from pathlib import Path
from typing import Any

import msgspec
import shtab
from rich.console import Console

from broker.app.api import ExplainCall
from broker.app.audit import Ledger
from broker.cli.bus import add_nats_arguments
from broker.cli.calls import call
from broker.cli.errors import CommandError
from broker.cli.explain_at import claims_at, print_claim
from broker.cli.ledger_bus import run_async, with_nats
from broker.cli.ledger_source import LedgerAtNats, LedgerInFiles
from broker.cli.moments import moment
from broker.cli.output import claim_table, console, print_json
from broker.machine.claim_history import ClaimTold
from broker.machine.device_report import DeviceStatusRow
from broker.machine.report import Explanation

EPILOG = """\
Asks the broker that leads. `dragoman up` prints the address of its NATS when it starts.

examples:
  dragoman explain default/train-a
  dragoman explain ml/stock-prediction-pod-gpu-req-x7k2p --cluster east --nats nats://127.0.0.1:40123
  dragoman explain default/train-a -o json | jq '.[0].claim.reason'
  dragoman explain default/train-a --at 4711              # as the ledger told it after entry 4711
  dragoman explain default/train-a --at 2h                # two hours ago
  dragoman explain default/train-a --at 2026-01-31T12:00Z --archive segment-0.jsonl.zst

With --at the ledger is read instead, as an operator, or files of `dragoman ledger archive`; the broker need not run.

exit code: 0; 1 if no claim of that name is known, or the broker (with --at: NATS) does not answer.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `explain`."""
    parser = commands.add_parser(
        "explain",
        help="why a claim is where it is, or why it waits",
        description="Say where a claim is and why: its devices, or what ruled out each device and what would help.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("claim", metavar="NAMESPACE/NAME", help="the ResourceClaim; NAME alone is in default")
    parser.add_argument("--cluster", help="which cluster's, where several have one of that name")
    parser.add_argument(
        "--at",
        type=moment,
        metavar="WHEN",
        help="as it was then: a ledger sequence, a time as 2026-01-31T12:00Z, or how long ago (30m, 1h, 2d)",
    )
    archive = parser.add_argument(
        "--archive",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="with --at: read this archived segment, not NATS; may be repeated",
    )
    archive.complete = shtab.FILE  # type: ignore[attr-defined]  # how shtab is told
    add_nats_arguments(parser)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Ask and print."""
    namespace, slash, name = options.claim.rpartition("/")
    asked = ExplainCall(namespace if slash else "default", name, options.cluster)
    if not asked.namespace or not asked.name:
        raise CommandError(f"{options.claim!r} is not NAMESPACE/NAME")
    if options.at is not None:
        return _run_at(options, asked)
    if options.archive:
        raise CommandError("--archive: as of when? Give --at")
    answer = call(options, "explain", msgspec.json.encode(asked))
    if options.output == "json":
        print_json(msgspec.Raw(answer))
    else:
        for explanation in msgspec.json.decode(answer, type=list[Explanation]):
            print_explanation(console(), explanation)
    return 0


def _run_at(options: argparse.Namespace, asked: ExplainCall) -> int:
    async def read(ledger: Ledger) -> list[ClaimTold]:
        return await claims_at(ledger, options.at, asked.namespace, asked.name, asked.cluster or "")

    if options.archive:
        found = run_async(lambda: read(LedgerInFiles(options.archive)))
    else:
        found = with_nats(options, "operator", lambda connection: read(LedgerAtNats(connection)))
    if not found:
        raise CommandError(f"the ledger did not know a claim {asked.namespace}/{asked.name} then", exit_code=1)
    if options.output == "json":
        print_json(found)
        return 0
    for told in found:
        print_claim(console(), told)
        for request in told.requests:
            _print_request(console(), request)
    return 0


def print_explanation(to: Console, explanation: Explanation) -> None:
    """An explanation for people."""
    to.print(claim_table([explanation.claim]))
    if explanation.cluster_state not in ("", "Ready"):
        to.print(f"  cluster {explanation.claim.cluster} is {explanation.cluster_state}, see dragoman cluster list")
    if explanation.waiting_since_ms is not None:
        seconds = max(0, time.time_ns() // 1_000_000 - explanation.waiting_since_ms) // 1000
        to.print(f"  waiting for {seconds} s")
    for sequence in explanation.grants:
        to.print(f"  granted by ledger entry {sequence}")
    for device in explanation.devices:
        _print_device(to, device)
    for request in explanation.requests:
        _print_request(to, request)
    for advice in explanation.advice:
        to.print(f"  [yellow]warning[/yellow]: {advice.place}: {_plain(advice.expression)}", soft_wrap=True)
        to.print(f"    {_plain(advice.message)}", soft_wrap=True)
        for line in advice.suggestion.splitlines():
            to.print(f"    write instead: {_plain(line)}", soft_wrap=True)


def _print_device(to: Console, device: DeviceStatusRow) -> None:
    if not (device.conditions or device.addresses or device.taints):
        return
    addresses = f" ({', '.join(device.addresses)})" if device.addresses else ""
    to.print(f"  device {device.driver}/{device.pool}/{device.device}{_plain(addresses)}")
    for condition in device.conditions:
        why = ": ".join(each for each in (condition.reason, condition.message) if each)
        to.print(f"    reports {condition.type}={condition.status}{_plain(f' ({why})' if why else '')}", soft_wrap=True)
    for taint in device.taints:
        to.print(
            f"    tainted {taint.key}:{taint.effect} by {_plain(taint.by)}: {_plain(taint.reason)}", soft_wrap=True
        )


def _print_request(to: Console, request: dict[str, Any]) -> None:
    needed, usable, of_class = request["needed"], request["usable"], request["of_class"]
    to.print(
        f"  request {request['request']}: needs {needed}, {usable} of the {of_class} devices of class "
        f"{request['device_class']} can be used"
    )
    for ruled_out in request["ruled_out"]:
        detail = f" ({ruled_out['detail']})" if ruled_out["detail"] else ""
        to.print(f"    {ruled_out['count']:>5} ruled out: {ruled_out['cause']}{_plain(detail)}")
    if request["nearest"] < needed and request["nearest_where"]:
        to.print(f"    nearest: {request['nearest']} of {needed} where {_plain(request['nearest_where'])}")


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
