"""Follow the allocations of one cluster: those of the last hour, then those that come, each once.

python follow.py nats://nats:4222 east
"""

import sys

import anyio

from schemas.client.connection import BusOptions, connect
from schemas.client.since import Since
from schemas.client.subscribe import subscribe
from schemas.events import ClaimAllocated


async def main(server: str, cluster: str) -> None:
    """Print a line for each, until interrupted."""
    async with connect(BusOptions((server,))) as connection:
        async for received in subscribe(connection, types=[ClaimAllocated], cluster=cluster, since=Since.seconds(3600)):
            assert isinstance(received.event, ClaimAllocated)
            claim, devices = received.event.claim, received.event.devices
            print(received.id, f"{claim.namespace}/{claim.name}", *(each.device for each in devices), flush=True)


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
