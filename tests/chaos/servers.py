"""One nats-server, or a cluster of three, over data directories that outlive them."""

from collections.abc import Sequence
from pathlib import Path

from broker.adapters.embedded_nats import dying_with_us, find_binary
from tests.nats_fixture import free_port
from tests.processes.harness import Process


class Server(Process):
    """A nats-server; may be killed and started again."""

    def __init__(self, name: str, config: Path, port: int) -> None:
        super().__init__(name, (), config.with_suffix(".log"))
        self.port = port
        self._config = config

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return dying_with_us([str(find_binary()), "-c", str(self._config)])

    async def until_ready(self) -> None:
        """It takes connections."""
        await self.until_it_says("Server is ready")


def make_servers(root: Path, count: int) -> list[Server]:
    """Their configuration; none is started.

    Clients must not hear of the servers' own ports: all that they say goes through links.
    """
    ports = free_port(2 * count)
    routes = [f"nats://127.0.0.1:{ports + count + number}" for number in range(count)]
    return [_server(root, number, ports + number, ports + count + number, routes) for number in range(count)]


def _server(root: Path, number: int, port: int, route_port: int, routes: Sequence[str]) -> Server:
    name = f"nats-{number}"
    lines = [
        f"server_name: {name}",
        f"listen: 127.0.0.1:{port}",
        f'jetstream {{ store_dir: "{root / name}", sync_interval: always }}',
    ]
    if len(routes) > 1:
        others = ", ".join(route for route in routes if not route.endswith(f":{route_port}"))
        cluster = f"name: chaos, listen: 127.0.0.1:{route_port}, no_advertise: true, routes: [{others}]"
        lines.append(f"cluster {{ {cluster} }}")
    config = root / f"{name}.conf"
    config.write_text("\n".join(lines) + "\n")
    return Server(name, config, port)
