"""Probes and metrics over HTTP: the argument of the commands that run for long, and the serving."""

import argparse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from broker.adapters.monitoring import serve_monitoring


def add_http_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --http."""
    parser.add_argument(
        "--http",
        type=_address,
        metavar="HOST:PORT",
        help="answer /livez, /readyz and /metrics (Prometheus) there; :8080 is every address (default: nowhere)",
    )


@asynccontextmanager
async def monitoring(
    address: tuple[str, int] | None,
    registry: CollectorRegistry,
    refresh: Callable[[], Awaitable[None]],
    why_not_ready: Callable[[], str],
) -> AsyncIterator[None]:
    """Serve until the block ends; nothing where no address is given. Raises: ListenError."""
    if address is None:
        yield
        return
    async with serve_monitoring(*address, registry, refresh, why_not_ready):
        yield


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8080 or :8080")
    return host.removeprefix("[").removesuffix("]"), int(port)
