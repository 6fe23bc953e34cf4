"""Tasks that are there and wait for work: to start one for each call costs as much as the call."""

import math
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

T = TypeVar("T")


class Workers(Generic[T]):
    """Do pieces of work in the order in which they are given, `count` at a time."""

    def __init__(self, count: int, do: Callable[[T], Awaitable[None]]) -> None:
        self._count = count
        self._do = do
        self._give, self._take = anyio.create_memory_object_stream[T](math.inf)
        self.open = 0  # pieces that are not done

    def give(self, work: T) -> None:
        """Have it done; an error ends all that run in the task group."""
        self.open += 1
        self._give.send_nowait(work)

    def start(self, tasks: TaskGroup) -> None:
        """Work in these tasks until they are cancelled."""
        for _ in range(self._count):
            tasks.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            try:
                work = self._take.receive_nowait()
            except anyio.WouldBlock:
                work = await self._take.receive()
            await self._do(work)
            self.open -= 1
