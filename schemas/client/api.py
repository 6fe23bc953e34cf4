"""Calls of the broker (`dra.v1.api.<verb>`), and what it refuses them with."""

from schemas.client.connection import Connection
from schemas.wire.subjects import PREFIX

CALL_DEADLINE_S = 30.0
ERROR_CODE = "Nats-Service-Error-Code"
ERROR = "Nats-Service-Error"


class ApiError(Exception):
    """What a handler raises to refuse a call, and what the caller gets.

    code: like HTTP's: 400 the call is wrong, 404 there is no such thing, 503 not now, 500 our fault.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


async def call_api(connection: Connection, verb: str, payload: bytes, deadline_s: float = CALL_DEADLINE_S) -> bytes:
    """Call a verb of the broker. Raises: ApiError; BusUnavailableError, also when no broker is there."""
    reply = await connection.request(f"{PREFIX}.api.{verb}", payload, deadline_s=deadline_s)
    if ERROR_CODE in reply.headers:
        code = reply.headers[ERROR_CODE]
        raise ApiError(int(code) if code.isdigit() else 500, reply.headers.get(ERROR, ""))
    return reply.payload
