"""What the broker answers to people and tools: verbs of `dra.v1.api`, JSON in and out."""

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import msgspec

from broker.adapters.api_service import ApiError, Handler
from broker.machine import Machine, report

T = TypeVar("T")


class ExplainCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which claim; without a cluster, all of that name."""

    namespace: str
    name: str
    cluster: str | None = None


class World(Protocol):
    """Whoever can be asked about the machine between two batches."""

    def ask_world(self, read: Callable[[Machine], T]) -> Awaitable[T]:
        """See Broker."""
        ...


def handlers(world: World) -> dict[str, Handler]:
    """The verbs that a leading broker serves."""

    async def explain(payload: bytes) -> bytes:
        try:
            call = msgspec.json.decode(payload, type=ExplainCall)
        except msgspec.DecodeError as error:
            raise ApiError(400, f'explain takes {{"namespace", "name", "cluster"?}}: {error}') from error
        found = await world.ask_world(
            lambda machine: [
                report.explain(machine.world, claim)
                for claim in report.find_claim(machine.world, call.namespace, call.name, call.cluster)
            ]
        )
        if not found:
            where = f" in cluster {call.cluster}" if call.cluster else ""
            raise ApiError(404, f"no claim {call.namespace}/{call.name} is known{where}")
        return msgspec.json.encode(found)

    async def claims(_: bytes) -> bytes:
        return msgspec.json.encode(await world.ask_world(lambda machine: report.claim_rows(machine.world)))

    async def pools(_: bytes) -> bytes:
        return msgspec.json.encode(await world.ask_world(lambda machine: report.pool_rows(machine.world)))

    return {"explain": explain, "claims": claims, "pools": pools}
