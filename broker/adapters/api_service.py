"""Request and reply for people and tools (`dra.v1.api.<verb>`), as a NATS micro service; and the call's other side."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import anyio
import nats.errors
from anyio.lowlevel import checkpoint_if_cancelled
from nats import micro
from nats.micro.request import Request, ServiceError

from schemas.client.connection import CLOSE_GRACE_S, Connection
from schemas.client.errors import BusUnavailableError
from schemas.wire.subjects import PREFIX

_log = logging.getLogger(__name__)

HANDLER_DEADLINE_S = 20.0
CALL_DEADLINE_S = 30.0
SERVICE = "dragoman"
_ERROR_CODE = "Nats-Service-Error-Code"
_ERROR = "Nats-Service-Error"

Handler = Callable[[bytes], Awaitable[bytes]]


class ApiError(Exception):
    """What a handler raises to refuse a call, and what the caller gets.

    code: like HTTP's: 400 the call is wrong, 404 there is no such thing, 503 not now, 500 our fault.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@asynccontextmanager
async def serve_api(connection: Connection, handlers: Mapping[str, Handler]) -> AsyncIterator[None]:
    """Answer `dra.v1.api.<verb>` with `handlers[verb]`, one call of a verb at a time, until the block ends.

    Raises: BusUnavailableError.
    """
    try:
        service = await micro.add_service(
            connection.client, name=SERVICE, version=_version(), description="Dragoman's API"
        )
        for verb, handler in sorted(handlers.items()):
            await service.add_endpoint(
                name=verb, subject=f"{PREFIX}.api.{verb}", handler=_endpoint(connection, verb, handler)
            )
        await connection.flush()
    except (nats.errors.Error, OSError) as error:
        await checkpoint_if_cancelled()
        raise BusUnavailableError(f"cannot serve the API at NATS ({connection.places}): {error}") from error
    try:
        yield
    finally:
        with anyio.move_on_after(CLOSE_GRACE_S, shield=True):
            try:
                await service.stop()
            except (nats.errors.Error, OSError) as error:
                _log.debug("ending the API service: %s", error)


async def call_api(connection: Connection, verb: str, payload: bytes, deadline_s: float = CALL_DEADLINE_S) -> bytes:
    """Call a verb of the broker. Raises: ApiError; BusUnavailableError, also when no broker is there."""
    reply = await connection.request(f"{PREFIX}.api.{verb}", payload, deadline_s=deadline_s)
    if _ERROR_CODE in reply.headers:
        code = reply.headers[_ERROR_CODE]
        raise ApiError(int(code) if code.isdigit() else 500, reply.headers.get(_ERROR, ""))
    return reply.payload


def _endpoint(connection: Connection, verb: str, handler: Handler) -> Callable[[Request], Awaitable[None]]:
    async def handle(request: Request) -> None:
        try:
            with anyio.fail_after(HANDLER_DEADLINE_S):
                answer = await handler(request.data)
        except ApiError as error:
            raise ServiceError(str(error.code), error.message) from error
        except TimeoutError as error:
            raise ServiceError("503", f"{verb} took longer than {HANDLER_DEADLINE_S:g} s") from error
        except Exception as error:
            # The caller learns that it is our fault, the log says what.
            _log.exception("API call %s failed", verb)
            raise ServiceError("500", f"{verb} failed inside the broker; its log has the details") from error
        if len(answer) > connection.payload_bytes_max:
            raise ServiceError(
                "413", f"the answer to {verb} has {len(answer)} bytes, more than NATS takes: ask for less"
            )
        await request.respond(answer)

    return handle


def _version() -> str:
    try:
        return version("dragoman")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "0.0.0"
