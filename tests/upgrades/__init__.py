"""The build before this one beside it: what it wrote is read, and both run together, in both directions.

Nothing is released yet. Until something is, the previous build is the commit `PREVIOUS`, run from git's history where
that is at hand. What a still older one wrote in a run that was recorded is read everywhere, see `record`; from that one
there is no way back.
"""

import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

PREVIOUS = "06eb58c7b442df0e96f54709a23a317e902b66c2"
OLDER = "62eff8252ec4e41f9bf84c0bedc42b6cf313b8e7"
RECORDED = Path(__file__).parent / "previous"


def source_of(commit: str, directory: Path) -> Path | None:
    """The code of a build, unpacked into `directory`; None where git does not have it."""
    repository = Path(__file__).parents[2]
    packed = subprocess.run(
        ["git", "archive", commit, "broker", "cluster_agent", "schemas"],
        cwd=repository,
        capture_output=True,
        check=False,
    )
    if packed.returncode:
        return None
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        archive.extractall(directory, filter="data")
    return directory
