"""Whether the servers keep what they acknowledge: their version, and that they sync every write to the disk.

The latter is seen only in a server's monitoring (`/varz`), not through NATS itself.
"""

import logging
import urllib.request
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import msgspec
from anyio import to_thread

from schemas.client.connection import Connection

_log = logging.getLogger(__name__)

SERVER_VERSION_MIN = (2, 14, 6)  # earlier ones can skip the sync to disk although `sync_interval: always` is set
PAYLOAD_BYTES_MIN = 1024 * 1024  # the server's default; larger ones of ours, as a checkpoint, go in parts
MONITOR_DEADLINE_S = 5.0
VARZ_BYTES_MAX = 4 * 1024 * 1024


class Durability(msgspec.Struct, frozen=True):
    """How it is checked.

    monitors: `http://HOST:PORT` of each server's monitoring; without any, the sync stays unverified.
    allow_unsafe: start although something is missing. is_embedded: the server is ours, and so is its configuration.
    """

    monitors: tuple[str, ...] = ()
    allow_unsafe: bool = False
    is_embedded: bool = False


DEFAULT = Durability()


class _Config(msgspec.Struct):
    sync_always: bool = False
    sync_interval: int = 0


class _JetStream(msgspec.Struct):
    config: _Config | None = None


class _Varz(msgspec.Struct):
    version: str = ""
    server_name: str = ""
    jetstream: _JetStream = msgspec.field(default_factory=_JetStream)


async def server_problems(connection: Connection, durability: Durability) -> list[str]:
    """What is missing, a sentence with its fix for each; what nobody can tell is a warning in the log."""
    problems = []
    if connection.server_version < SERVER_VERSION_MIN:
        problems.append(_too_old(f"nats-server at {connection.places}", connection.server_version))
    if connection.payload_bytes_max < PAYLOAD_BYTES_MIN:
        problems.append(
            f"nats-server at {connection.places}: max_payload is {connection.payload_bytes_max} bytes: set"
            f" `max_payload: 1MB` there, which is its default; ledger entries, and what agents say, may need as much"
        )
    for url in durability.monitors:
        problems += await to_thread.run_sync(_monitor_problems, url)
    if not durability.monitors and not durability.is_embedded:
        _log.warning("sync_interval of nats-server is unverified: give --nats-monitor http://HOST:8222 for each server")
    return problems


def _monitor_problems(url: str) -> list[str]:
    try:
        if urlsplit(url).scheme not in ("http", "https"):
            return [f"--nats-monitor {url}: it is not the http:// or https:// address of a server's monitoring"]
        with urllib.request.urlopen(f"{url.rstrip('/')}/varz", timeout=MONITOR_DEADLINE_S) as answer:  # noqa: S310  # checked
            varz = msgspec.json.decode(answer.read(VARZ_BYTES_MAX), type=_Varz)
    except (OSError, ValueError, HTTPException) as error:
        return [f"--nats-monitor {url}: /varz cannot be read ({error}): is `http` set in nats-server's configuration?"]
    name = f"nats-server {varz.server_name} ({url})"
    if varz.jetstream.config is None:
        return [f"{name}: JetStream is off: add `jetstream {{ sync_interval: always }}` to its configuration"]
    problems = []
    if not varz.jetstream.config.sync_always:
        interval_s = varz.jetstream.config.sync_interval / 1e9
        problems.append(f"{name}: sync_interval is {interval_s:g}s: set `jetstream {{ sync_interval: always }}` there")
    version: Any = tuple(int(part) for part in varz.version.partition("-")[0].split(".") if part.isdigit())
    if version < SERVER_VERSION_MIN:
        problems.append(_too_old(name, version))
    return problems


def _too_old(name: str, version: tuple[int, ...]) -> str:
    found, wanted = (".".join(map(str, numbers)) for numbers in (version, SERVER_VERSION_MIN))
    return f"{name}: version {found}, {wanted} or later is needed: install it"
