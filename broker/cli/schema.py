"""`dragoman schema`: write the documents of the public events, or check that they are current."""

import argparse
import difflib
from pathlib import Path

import shtab

from broker.cli.errors import CommandError
from broker.cli.schema_files import DIRECTORY, schema_files

EPILOG = """\
schemas/asyncapi.yaml (AsyncAPI 3.1) and schemas/json/TYPE.json (JSON Schema 2020-12), from the Structs of
schemas/events.py: for whoever reads events in another language.

examples:
  dragoman schema --dir build/schemas
  dragoman schema --check

exit code: 0; with --check 1 if a file is not what it should be: the difference is printed.
"""


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare `schema`."""
    parser = commands.add_parser(
        "schema",
        help="write JSON Schemas and the AsyncAPI document of the events",
        description="Write the documents that describe the public events, or check that they are current.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    directory = parser.add_argument(
        "--dir", type=Path, default=DIRECTORY, metavar="DIR", help="where (default: schemas/ of this installation)"
    )
    directory.complete = shtab.DIRECTORY  # type: ignore[attr-defined]  # how shtab is told
    parser.add_argument("--check", action="store_true", help="write nothing, and say what differs")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write or compare."""
    wanted = schema_files()
    if options.check:
        differences = "".join(_difference(options.dir / name, text) for name, text in wanted.items())
        print(differences, end="")
        return 1 if differences else 0
    try:
        for name, text in wanted.items():
            path = options.dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    except OSError as error:
        raise CommandError(f"--dir {options.dir}: {error.strerror or error}") from error
    print(f"{len(wanted)} files in {options.dir}")
    return 0


def _difference(path: Path, wanted: str) -> str:
    """Raises: CommandError."""
    try:
        there = path.read_text() if path.exists() else ""
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} cannot be read: it is not text in UTF-8") from error
    lines = difflib.unified_diff(
        there.splitlines(keepends=True), wanted.splitlines(keepends=True), str(path), "as schemas/events.py has it"
    )
    return "".join(lines)
