"""Request and reply for people, tools and agents (`dra.v1.api.<verb>`), as a NATS micro service."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

import anyio
import nats.errors
from anyio.lowlevel import checkpoint_if_cancelled
from nats import micro
from nats.micro.request import Request, ServiceError

from schemas.client.api import ApiError, call_api
from schemas.client.connection import CLOSE_GRACE_S, Connection
from schemas.client.errors import BusUnavailableError
from schemas.wire.subjects import PREFIX

__all__ = ["ApiError", "Handler", "OwnHandler", "call_api", "serve_api"]

_log = logging.getLogger(__name__)

HANDLER_DEADLINE_S = 20.0
SERVICE = "dragoman"

Handler = Callable[[bytes], Awaitable[bytes]]
OwnHandler = Callable[[str, bytes], Awaitable[bytes]]  # with the cluster that calls, as the subject proves it


@asynccontextmanager
async def serve_api(
    connection: Connection, handlers: Mapping[str, Handler], own_handlers: Mapping[str, OwnHandler] = {}
) -> AsyncIterator[None]:
    """Answer `dra.v1.api.<verb>` with `handlers[verb]`, one call of a verb at a time, until the block ends.

    own_handlers: answer `dra.v1.api.<verb>.<cluster>`, which only that cluster may call.

    Raises: BusUnavailableError.
    """
    try:
        service = await micro.add_service(
            connection.client, name=SERVICE, version=_version(), description="Dragoman's API"
        )
        for verb, handler in sorted(handlers.items()):
            await service.add_endpoint(
                name=verb, subject=f"{PREFIX}.api.{verb}", handler=_endpoint(connection, verb, _of_anybody(handler))
            )
        for verb, own_handler in sorted(own_handlers.items()):
            await service.add_endpoint(
                name=verb, subject=f"{PREFIX}.api.{verb}.*", handler=_endpoint(connection, verb, own_handler)
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


def _of_anybody(handler: Handler) -> OwnHandler:
    async def handle(_: str, payload: bytes) -> bytes:
        return await handler(payload)

    return handle


def _endpoint(connection: Connection, verb: str, handler: OwnHandler) -> Callable[[Request], Awaitable[None]]:
    async def handle(request: Request) -> None:
        try:
            with anyio.fail_after(HANDLER_DEADLINE_S):
                answer = await handler(request.subject.rpartition(".")[2], request.data)
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
