"""Real manifests, through the command that a user would type. What is expected of each is in corpus.yaml."""

import json
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import yaml

from broker.cli.main import main
from tests.corpus import CASES, EACH_CASE, Case, corpus, has
from tests.corpus_profiles import COUNT, manifests

__all__ = ["corpus"]


@pytest.mark.parametrize("case", EACH_CASE)
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
        assert has(result["allocation"], expected.allocation), result["allocation"]
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
