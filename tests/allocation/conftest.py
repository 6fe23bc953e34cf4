"""What the tests of the core share: one engine and one index, as a broker has them."""

import pytest

from broker.allocation.cel.engine import SelectorEngine, default_engine
from broker.allocation.index import DeviceIndex


@pytest.fixture(scope="session")
def engine() -> SelectorEngine:
    return default_engine()


@pytest.fixture
def device_index(engine: SelectorEngine) -> DeviceIndex:
    return DeviceIndex(engine)
