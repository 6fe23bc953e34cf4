"""`dragoman`: the command line, and the only place that puts broker and agent together.

Each command is a module with `add_command`. What they share: results on stdout (`-o table` for people, `-o json` for
machines), logs on stderr, exit codes 0 done, 1 done but something is wrong with what was asked for, 2 bad input,
74 (EX_IOERR) stdout cannot be written, or a file that nobody looks after, 130 interrupted, 141 whoever read stdout has
gone; the last two as a shell has them for SIGINT and SIGPIPE.
"""

import argparse
import errno
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
from broker.cli.output import drop_unwritable, open_missing_streams, set_up_logging
from broker.errors import flat

_log = logging.getLogger(__name__)

IO_ERROR = 74
INTERRUPTED = 130
READER_GONE = 141
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # a full disk, a closed stdout ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Raises: SystemExit where the arguments say all (--help) or are wrong."""
    open_missing_streams()
    parser = make_parser()
    options = argparse.Namespace(command=None)
    code = 0
    try:
        try:
            parser.parse_args(arguments, options)
            code = _run(options)
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except* BrokenPipeError:
        code = READER_GONE
        drop_unwritable()
    except* OSError as group:
        code = IO_ERROR
        _log.debug("input or output has failed", exc_info=group)
        drop_unwritable()
        why = "; ".join(map(_sentence, flat(group)))
        print(f"{' '.join(filter(None, ('dragoman', options.command)))}: {why}", file=sys.stderr)
    return code


def _run(options: argparse.Namespace) -> int:
    set_up_logging(options.verbose, options.log_format)
    try:
        code: int = options.run(options)
    except CommandError as error:
        print(f"dragoman {options.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


def _sentence(error: BaseException) -> str:
    """Of an OSError that no command looks after."""
    if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
        return f"the output cannot be written: {error.strerror}; what was asked for may be done all the same"
    return str(error)


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="dragoman",
        description="One broker for the shared accelerators of many Kubernetes clusters (Dynamic Resource Allocation).",
        epilog="Start with `dragoman demo`; then `dragoman up --cluster east=DIR --cluster west=DIR` on your own."
        " Exit codes: 0 done; 1 done, and something is wrong with what was asked for; 2 bad input; 74 stdout or a file"
        " cannot be written or read; 130 interrupted; 141 whoever read stdout has gone.",
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
