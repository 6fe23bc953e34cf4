"""Real manifests, through the command that a user would type. What is expected of each is in corpus.yaml.

The manifests are not part of this repository. DRAGOMAN_CORPUS says where they are (default: ../shared/corpus beside the
checkout); where they are absent, as on a user's machine, these tests are skipped.
"""

import json
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from broker.cli.main import main
from tests.corpus_profiles import COUNT, manifests

ROOT = Path(__file__).parents[1]


class ExpectedClaim(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    allocation: dict[str, Any] | None = None
    reason: str = ""
    message: str = ""


class Case(msgspec.Struct, forbid_unknown_fields=True):
    files: list[str]
    profile: str
    exit_code: int
    claims: list[ExpectedClaim]
    why: str
    says: str = ""


CASES = msgspec.convert(yaml.safe_load((ROOT / "tests" / "corpus.yaml").read_text()), list[Case])


@pytest.fixture
def corpus() -> Path:
    place = Path(os.environ.get("DRAGOMAN_CORPUS", ROOT / ".." / "shared" / "corpus")) / "dra-example-driver"
    if not place.is_dir():
        pytest.skip(f"the corpus of real manifests is not at {place}; set DRAGOMAN_CORPUS to its folder")
    return place


@pytest.mark.parametrize("case", [pytest.param(case, id=str(Path(case.files[0]).parent)) for case in CASES])
def test_ends_as_its_comments_say(case: Case, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump_all(manifests(case.profile)))
    files = [str(corpus / file) for file in case.files]

    exit_code = main(["allocate", "-o", "json", "-f", str(profile), *files])

    printed = capsys.readouterr()
    results = json.loads(printed.out)["results"]
    assert len(results) == len(case.claims), results
    for result, expected in zip(results, case.claims, strict=True):
        assert fnmatchcase(result["name"], expected.name)
        assert (result["reason"], expected.message in result["message"]) == (expected.reason, True), result
        assert _has(result["allocation"], expected.allocation), result["allocation"]
    assert exit_code == case.exit_code, printed.err
    assert case.says in printed.err
    assert bool(case.says) == bool(printed.err), printed.err


def test_every_manifest_is_listed_once(corpus: Path) -> None:
    listed = [file for case in CASES for file in case.files]

    assert sorted(listed) == sorted(file.relative_to(corpus).as_posix() for file in corpus.rglob("*.yaml"))


@pytest.mark.parametrize("profile", sorted({case.profile for case in CASES}))
def test_a_profile_has_eight_devices(profile: str) -> None:
    slices = [each for each in manifests(profile) if each["kind"] == "ResourceSlice"]

    assert sum(len(each["spec"].get("devices", [])) for each in slices) == COUNT


def _has(found: Any, expected: Any) -> bool:
    """`found` has at least what `expected` says; lists have the same length."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return all(name in found and _has(found[name], value) for name, value in expected.items())
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(_has, found, expected))
    return bool(found == expected)
