"""Dragoman as a page says to install it: without the packages of extras that it does not name."""

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT = """\
import sys
from importlib.machinery import PathFinder


class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def extras_named(page: str) -> set[str]:
    """Of the one `pip install .` on it."""
    [extras] = re.findall(r"pip install (?:--quiet )?'?\.(?:\[([\w,]+)\])?'?", page)
    return set(extras.split(",")) - {""}


def installed_with(extras: set[str], directory: Path) -> dict[str, str]:
    """Variables of an environment where Python finds no package that only other extras bring."""
    optional = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras <= optional.keys()
    absent = {
        re.split(r"[^\w-]", requirement)[0]
        for extra, requirements in optional.items()
        for requirement in requirements
        if extra not in extras
    }
    modules = {module for module, found in packages_distributions().items() if absent & {*found}}
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(WITHOUT.format(absent=sorted(modules)))
    return {"PYTHONPATH": str(directory)}
