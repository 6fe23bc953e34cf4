"""`dragoman`: the command line, and the only place that puts broker and agent together.

Each command is a module with `add_command`. What they share: results on stdout (`-o table` for people, `-o json` for
machines), logs on stderr, exit codes 0 done, 1 done but something is wrong with what was asked for, 2 bad input.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

import shtab

from broker.cli import (
    agent,
    allocate,
    audit,
    bench,
    broker,
    cluster,
    demo,
    device,
    events,
    explain,
    ledger,
    lists,
    nats_config,
    nats_setup,
    schema,
    trace,
    tracer,
    up,
)
from broker.cli.build import build
from broker.cli.errors import CommandError
from broker.cli.output import set_up_logging

BAD_INPUT = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    set_up_logging(options.verbose, options.log_format)
    try:
        code: int = options.run(options)
    except CommandError as error:
        print(f"dragoman {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return BAD_INPUT  # whoever read our output has gone
    return code


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="dragoman",
        description="One broker for the shared accelerators of many Kubernetes clusters (Dynamic Resource Allocation).",
        epilog="Start with `dragoman demo`; then `dragoman up --cluster east=DIR --cluster west=DIR` on your own.",
    )
    parser.add_argument("--version", action="version", version=f"dragoman {build()}")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log more to stderr; -vv for debugging")
    parser.add_argument("--log-format", choices=("text", "json"), default="text", help="of the logs on stderr")
    shtab.add_argument_to(parser, "--print-completion", help="print a completion script for this shell")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    of_federations = (
        explain,
        trace,
        lists,
        events,
        broker,
        agent,
        tracer,
        cluster,
        device,
        ledger,
        audit,
        nats_config,
        nats_setup,
        schema,
    )
    for module in (demo, up, allocate, *of_federations, bench):
        module.add_command(commands)
    return parser


if __name__ == "__main__":
    logging.captureWarnings(capture=True)
    sys.exit(main())
