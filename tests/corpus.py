"""The corpus of real manifests, and what must become of each: corpus.yaml, read.

The manifests are not part of this repository. DRAGOMAN_CORPUS says where they are (default: ../shared/corpus beside the
checkout); where they are absent, as on a user's machine, the tests on them are skipped.
"""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

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

    @property
    def name(self) -> str:
        """Of the folder."""
        return str(Path(self.files[0]).parent)


CASES = msgspec.convert(yaml.safe_load((ROOT / "tests" / "corpus.yaml").read_text()), list[Case])
EACH_CASE = [pytest.param(case, id=case.name) for case in CASES]


@pytest.fixture(scope="session")
def corpus() -> Path:
    place = Path(os.environ.get("DRAGOMAN_CORPUS", ROOT / ".." / "shared" / "corpus")) / "dra-example-driver"
    if not place.is_dir():
        pytest.skip(f"the corpus of real manifests is not at {place}; set DRAGOMAN_CORPUS to its folder")
    return place


def has(found: Any, expected: Any) -> bool:
    """`found` has at least what `expected` says; lists have the same length."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return all(name in found and has(found[name], value) for name, value in expected.items())
    if isinstance(expected, list) and isinstance(found, list):
        return len(found) == len(expected) and all(map(has, found, expected))
    return bool(found == expected)
