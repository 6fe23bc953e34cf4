"""Links between processes and NATS that can be cut, go silent and be slow: TCP proxies of our own."""

import contextlib

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, SocketStream, TaskGroup

CHUNK = 65_536


class Link:
    """A port of ours that leads to a server's port; made by `open_link`.

    delay_s: of each piece of data, both ways.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.delay_s = 0.0
        self._target = target
        self._is_cut = False
        self._flows = anyio.Event()
        self._flows.set()
        self._connections: set[anyio.CancelScope] = set()

    def cut(self) -> None:
        """Connections break, and new ones are closed at once."""
        self._is_cut = True
        for scope in list(self._connections):
            scope.cancel()

    def silence(self) -> None:
        """Nothing comes through, and nobody is told; what was sent meanwhile arrives when the link is well again."""
        if self._flows.is_set():
            self._flows = anyio.Event()

    def heal(self) -> None:
        """As it was."""
        self._is_cut, self.delay_s = False, 0.0
        self._flows.set()

    async def open(self, tasks: TaskGroup) -> None:
        """Listen until the tasks end."""
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self.port = int(listener.extra(anyio.abc.SocketAttribute.local_port))
        tasks.start_soon(listener.serve, self._serve)

    async def _serve(self, client: SocketStream) -> None:
        with anyio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                async with client:
                    if not self._is_cut:
                        await self._join(client)
            except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass  # either side has gone, or the server is down: as without us
            finally:
                self._connections.discard(scope)

    async def _join(self, client: SocketStream) -> None:
        async with await anyio.connect_tcp("127.0.0.1", self._target) as server, anyio.create_task_group() as tasks:

            async def carry(source: ByteReceiveStream, sink: ByteSendStream) -> None:
                with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                    while True:
                        data = await source.receive(CHUNK)
                        await self._flows.wait()
                        if self.delay_s:
                            await anyio.sleep(self.delay_s)
                        await sink.send(data)
                tasks.cancel_scope.cancel()

            tasks.start_soon(carry, client, server)
            tasks.start_soon(carry, server, client)


async def open_link(target: int, tasks: TaskGroup) -> Link:
    """A link to a local port, until the tasks end."""
    link = Link(target)
    await link.open(tasks)
    return link
