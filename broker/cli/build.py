"""Which build this is."""

from importlib.metadata import PackageNotFoundError, version


def build() -> str:
    """The version of this build, as the ledger and `--version` say it."""
    try:
        return version("dragoman")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0.0.0+source"
