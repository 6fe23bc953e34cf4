"""`dragoman explain --at`: a claim as the ledger told it at an earlier point."""

from contextlib import aclosing

from rich.console import Console
from rich.text import Text

from broker.app.audit import Ledger, Range, segments_from
from broker.cli.errors import CommandError
from broker.cli.moments import Moment
from broker.cli.progress import Progress
from broker.machine.claim_history import ClaimHistory, ClaimTold
from broker.machine.ledger_check import LedgerCheck
from schemas.wire.codec import WireError, decode_entry


async def claims_at(ledger: Ledger, at: Moment, namespace: str, name: str, cluster: str) -> list[ClaimTold]:
    """The claims of that name, by the ledger up to and with that entry, or that time.

    Raises: CommandError where the ledger has no such entry, or is not well before it; BusError; ArchiveError.
    """
    within = Range(at.sequence, at.time_ms, at.sequence, at.time_ms)
    segment = (await segments_from(ledger, within))[0]
    check, history = LedgerCheck(ledger.shard), ClaimHistory(namespace, name, cluster)
    check.begin(segment)
    is_over = False
    with Progress("entries read") as progress:
        async with aclosing(ledger.entries(segment)) as batches:
            async for batch in batches:
                for message in batch:
                    is_over = within.is_over(message)
                    if is_over:
                        break
                    check.add([message])
                    _must_be_well(check)
                    try:
                        history.add(message, decode_entry(message.payload))
                    except WireError as error:
                        raise CommandError(str(error), exit_code=1) from error
                progress.add(len(batch), f"of segment {segment}")
                if is_over:
                    break
    if not is_over:
        check.end()
        _must_be_well(check)
    if not history.last_sequence:
        raise CommandError("the ledger has nothing from before that", exit_code=1)
    if at.sequence is not None and at.sequence != history.last_sequence:
        text = f"there is no ledger entry {at.sequence}: what there is of it ends at {history.last_sequence}"
        raise CommandError(text, exit_code=1)
    world = check.world
    if world is None:
        raise CommandError(
            f"segment {segment} is not open at {history.last_sequence}: ask for a later entry", exit_code=1
        )
    return history.told(world)


def _must_be_well(check: LedgerCheck) -> None:
    if check.bad is not None:
        text = f"ledger entry {check.bad.sequence} is not as it must be: {check.bad.problem}"
        raise CommandError(f"{text}; see `dragoman audit verify`", exit_code=1)


def print_claim(to: Console, told: ClaimTold) -> None:
    """A claim for people."""
    name = f"{told.cluster}/{told.namespace}/{told.name}"
    style = {"Allocated": "green", "Invalid": "red"}.get(told.state, "yellow")
    to.print(Text.assemble(f"at ledger entry {told.at} ({told.at_time}) {name} is ", (told.state, style)))
    if told.reason:
        to.print(Text(f"  {told.reason}: {told.message}"), soft_wrap=True)
    for device in told.devices:
        to.print(Text(f"  has {device}"), soft_wrap=True)
    if told.unsettled:
        to.print(Text(f"  decision {told.unsettled} has no outcome yet"))
    if told.entries:
        to.print(Text("  what the ledger had said of it:"))
    for each in told.entries:
        to.print(Text(f"    {each.ledger_sequence:>8}  {each.time}  {each.entry}  {each.what}"), soft_wrap=True)
