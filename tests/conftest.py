"""What all tests share: async tests run on asyncio, for nats-py knows nothing else."""

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
