"""The protocol's model (docs/model) in small configurations: it holds, and each rule that is left out is missed."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[1] / "docs" / "model" / "check.py"


def _check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, CHECK, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.timeout(600)
def test_holds_and_each_rule_left_out_is_caught() -> None:
    done = _check("--small")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("18 rules left out, 0 not as expected")


def test_shows_the_history_that_goes_wrong() -> None:
    shown = _check("--without", "rebuild voids").stdout
    assert shown.startswith("device 1 is allocated to claims 0 and 1 (")
    assert "the ledger is lost, and rebuilt\n" in shown
    assert "the write of decision 1 for claim 0 lands late\n" in shown


def test_says_which_rules_there_are() -> None:
    done = _check("--without", "nothing")
    assert done.returncode == 2
    assert "there is no such rule; there are: settle by the decision's number, " in done.stderr
