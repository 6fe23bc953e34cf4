"""The fixture `oracle`; a test module or conftest that wants it says `from tests.oracle.fixture import oracle`."""

import os
from collections.abc import Iterator

import pytest

from tests.golang import GoError
from tests.oracle.build import build
from tests.oracle.client import Oracle


@pytest.fixture(scope="session")
def oracle() -> Iterator[Oracle]:
    """Upstream's allocator and CEL compiler. Where it cannot be built its tests are skipped; in CI they fail."""
    try:
        binary = build()
    except GoError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must compare with upstream: {error}")
        pytest.skip(f"nothing to compare with: {error}")
    with Oracle(binary) as running:
        yield running
