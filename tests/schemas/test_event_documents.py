"""What `dragoman schema` writes is current, valid by the judgement of others, and true of the events."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import get_args

import jsonschema
import msgspec
import pytest
import yaml

from broker.cli.main import main
from broker.cli.schema_files import DIRECTORY, schema_files
from schemas.event_examples import EXAMPLES
from schemas.events import AnyEvent, event_subject, event_type
from schemas.wire.codec import encode

PARSER = Path(__file__).parent / "asyncapi"


def test_the_files_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--check"]) == 0, capsys.readouterr().out
    assert {path.name for path in (DIRECTORY / "json").iterdir()} == {
        Path(name).name for name in schema_files() if name.startswith("json/")
    }


def test_a_file_that_is_not_current_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--dir", str(tmp_path)]) == 0
    assert main(["schema", "--dir", str(tmp_path), "--check"]) == 0
    changed = tmp_path / "json/dev.dragoman.claim.allocated.v1.json"
    changed.write_text(changed.read_text().replace('"grant"', '"grants"'))
    (tmp_path / "asyncapi.yaml").unlink()
    capsys.readouterr()
    assert main(["schema", "--dir", str(tmp_path), "--check"]) == 1
    out = capsys.readouterr().out
    assert '-    "grants": {\n+    "grant": {\n' in out
    assert "+asyncapi: 3.1.0\n" in out


def test_every_type_has_one_example() -> None:
    assert [type(each) for each in EXAMPLES] == list(get_args(AnyEvent))


@pytest.mark.parametrize("event", EXAMPLES, ids=event_type)
def test_an_event_is_what_its_schema_says(event: AnyEvent) -> None:
    schema = json.loads((DIRECTORY / f"json/{event_type(event)}.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    payload = json.loads(encode(event))
    validator.validate(payload)
    assert msgspec.convert(payload, AnyEvent) == event
    later = {**payload, "added_later": 1}
    validator.validate(later)
    for name in schema["required"]:
        with pytest.raises(jsonschema.ValidationError):
            validator.validate({key: value for key, value in payload.items() if key != name})


@pytest.mark.parametrize("event", EXAMPLES, ids=event_type)
def test_an_event_is_published_where_the_document_says(event: AnyEvent) -> None:
    document = yaml.safe_load((DIRECTORY / "asyncapi.yaml").read_text())
    [channel] = [each for each in document["channels"].values() if type(event).__name__ in each["messages"]]
    address, subject = channel["address"].split("."), event_subject(event).split(".", 6)
    assert [here for there, here in zip(address, subject, strict=True) if not there.startswith("{")] == [
        there for there in address if not there.startswith("{")
    ]


def test_the_official_parser_takes_the_document() -> None:
    parser = _installed_parser()
    said = subprocess.run(
        ["node", str(parser / "check.mjs"), str(DIRECTORY / "asyncapi.yaml")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(said.stdout)
    assert found["diagnostics"] == []
    assert found["messages"] == [event_type(each) for each in get_args(AnyEvent)]


def _installed_parser() -> Path:
    """@asyncapi/parser as its lock has it, kept outside the tree for all checkouts."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("the official AsyncAPI parser needs Node.js with npm")
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dragoman/asyncapi-parser-3.6.6"
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "check.mjs"):
        shutil.copy(PARSER / name, kept / name)
    if not (kept / "node_modules/@asyncapi/parser").exists():
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=kept, capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"@asyncapi/parser cannot be installed: {done.stderr[-300:]}")
    return kept
