"""What the broker answers to people and tools: verbs of `dra.v1.api`, JSON in and out."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

import msgspec

from broker.adapters.api_service import ApiError, Handler
from broker.errors import DeposedError
from broker.machine import Machine, report
from broker.machine.cluster_report import cluster_rows
from broker.machine.device_report import device_rows
from broker.world.keys import ClusterId
from schemas.client.errors import BusError
from schemas.errors import UNREADABLE
from schemas.resource.names import label_key
from schemas.wire.ledger import Command, DeviceCommand, DeviceVerb, OperatorCommand, TaintEffect, Verb

T = TypeVar("T")

NAME_LENGTH_MAX = 300  # of a cluster, device, pool or driver; scopes have a word more than names
OPERATOR_LENGTH_MAX = 253
REASON_LENGTH_MAX = 1_000
PAGE_ROWS = 2_500
PAGE_BYTES = 512 * 1024  # of rows in one answer; NATS takes messages of 1 MiB


class ExplainCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which claim; without a cluster, all of that name."""

    namespace: str
    name: str
    cluster: str | None = None


class ListCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A part of a list, in the order of its rows' keys; who calls with nothing at all gets all rows in one answer.

    cluster: of this one only, where the rows are claims. after: the key behind which it begins (`Page.more_after`).
    """

    cluster: str | None = None
    after: list[str] = []
    limit: int = PAGE_ROWS


class Page(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rows as JSON. more_after: ask on with this as `after`; empty: that was the last of them."""

    rows: list[msgspec.Raw]
    more_after: list[str] = []


class ClusterCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator orders. fenced: for evict, the operator vouches that the cluster is cut off from all devices."""

    verb: Verb
    cluster: str
    operator: str
    reason: str = ""
    fenced: bool = False


class DeviceCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator orders of a device; see DeviceCommand."""

    verb: DeviceVerb
    driver: str
    pool: str
    device: str
    operator: str
    reason: str = ""
    scope: str = ""
    key: str = ""
    effect: TaintEffect = "NoSchedule"


class World(Protocol):
    """Whoever can be asked about the machine between two batches, and told what operators order."""

    def ask_world(self, read: Callable[[Machine], T]) -> Awaitable[T]:
        """See Broker."""
        ...

    def command(self, command: Command) -> Awaitable[str]:
        """See Broker."""
        ...

    def heard_ms(self, cluster: ClusterId) -> int:
        """See Broker."""
        ...


def handlers(world: World) -> dict[str, Handler]:
    """The verbs that a leading broker serves."""

    async def explain(payload: bytes) -> bytes:
        try:
            call = msgspec.json.decode(payload, type=ExplainCall)
        except UNREADABLE as error:
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

    async def claims(payload: bytes) -> bytes:
        if not payload:
            return msgspec.json.encode(await world.ask_world(lambda machine: report.claim_rows(machine.world)))
        call = _list_call(payload)
        after, limit = tuple(call.after), call.limit + 1
        rows = await world.ask_world(lambda machine: report.claim_rows(machine.world, call.cluster, after, limit))
        return _page(rows, ("cluster", "namespace", "name", "uid"), call)

    async def pools(payload: bytes) -> bytes:
        return await listed(payload, lambda machine: report.pool_rows(machine.world), ("scope", "driver", "pool"))

    async def clusters(payload: bytes) -> bytes:
        return await listed(payload, lambda machine: cluster_rows(machine.world, world.heard_ms), ("cluster",))

    async def listed(payload: bytes, read: Callable[[Machine], list[Any]], key: tuple[str, ...]) -> bytes:
        rows = await world.ask_world(read)
        return _page(rows, key, _list_call(payload)) if payload else msgspec.json.encode(rows)

    async def cluster(payload: bytes) -> bytes:
        try:
            call = msgspec.json.decode(payload, type=ClusterCall)
        except UNREADABLE as error:
            fields = '{"verb", "cluster", "operator", "reason"?, "fenced"?}'
            raise ApiError(400, f"cluster takes {fields}: {error}") from error
        problem = _why_nobody(call) or ("fenced: only evict takes it" if call.fenced and call.verb != "evict" else "")
        if problem:
            raise ApiError(400, problem)
        command = OperatorCommand(call.verb, call.cluster, call.operator, call.reason, call.fenced)
        await order(command, "cluster")
        rows = await world.ask_world(lambda machine: cluster_rows(machine.world, world.heard_ms))
        return msgspec.json.encode([row for row in rows if row.cluster == call.cluster])

    async def devices(payload: bytes) -> bytes:
        key = ("scope", "driver", "pool", "device")
        return await listed(payload, lambda machine: device_rows(machine.world), key)

    async def device(payload: bytes) -> bytes:
        try:
            call = msgspec.json.decode(payload, type=DeviceCall)
        except UNREADABLE as error:
            fields = '{"verb", "driver", "pool", "device", "operator", "reason", "scope"?, "key"?, "effect"?}'
            raise ApiError(400, f"device takes {fields}: {error}") from error
        wrong_key = label_key(call.key) if call.key else None
        problem = _why_nobody(call) or (f"key: {wrong_key}" if wrong_key is not None else "")
        if not problem and call.verb == "untaint" and call.effect != "NoSchedule":
            problem = "effect: only taint takes it"
        if problem:
            raise ApiError(400, problem)
        await order(msgspec.convert(msgspec.to_builtins(call) | {"order": "device-command"}, DeviceCommand), "device")
        rows = await world.ask_world(lambda machine: device_rows(machine.world))
        about = (call.driver, call.pool, call.device)
        ordered = [row for row in rows if (row.driver, row.pool, row.device) == about]
        return msgspec.json.encode([row for row in ordered if call.scope in ("", row.scope)])

    async def order(command: Command, listing: str) -> None:
        try:
            refusal = await world.command(command)
        except (DeposedError, BusError) as error:
            text = f"{error}: look at `dragoman {listing} list` whether it was done, and else try again"
            raise ApiError(503, text) from error
        if refusal:
            raise ApiError(409, refusal)

    return {
        "explain": explain,
        "claims": claims,
        "pools": pools,
        "clusters": clusters,
        "cluster": cluster,
        "devices": devices,
        "device": device,
    }


def _list_call(payload: bytes) -> ListCall:
    """Raises: ApiError."""
    try:
        call = msgspec.json.decode(payload, type=ListCall)
    except UNREADABLE as error:
        raise ApiError(400, f'a list takes {{"cluster"?, "after"?, "limit"?}}: {error}') from error
    if call.limit < 1:
        raise ApiError(400, f"limit: {call.limit} is no number of rows")
    return msgspec.structs.replace(call, limit=min(call.limit, PAGE_ROWS))


def _page(rows: list[Any], key: tuple[str, ...], call: ListCall) -> bytes:
    """As many rows after `call.after` as the caller wants and one answer has room for.

    rows: in the order of their key, of which these are the fields.
    """
    chosen: list[msgspec.Raw] = []
    size, last = 0, call.after
    for row in rows:
        its_key = [getattr(row, field) for field in key]
        if its_key <= call.after:
            continue
        text = msgspec.json.encode(row)
        size += len(text)
        if len(chosen) == call.limit or (chosen and size > PAGE_BYTES):
            return msgspec.json.encode(Page(chosen, last))
        chosen.append(msgspec.Raw(text))
        last = its_key
    return msgspec.json.encode(Page(chosen))


def _why_nobody(call: ClusterCall | DeviceCall) -> str:
    """What the ledger would not know of who ordered it, and why."""
    if not call.operator.strip():
        return "operator: the ledger keeps who ordered it; give a name"
    if not call.reason.strip() and call.verb != "uncordon":
        return f"reason: the ledger keeps why; {call.verb} needs one"
    texts: dict[str, object] = msgspec.structs.asdict(call)
    for field in ("cluster", "driver", "pool", "device", "scope"):
        if len(str(texts.get(field, ""))) > NAME_LENGTH_MAX:
            return f"{field}: at most {NAME_LENGTH_MAX} characters"
    if len(call.operator) > OPERATOR_LENGTH_MAX or len(call.reason) > REASON_LENGTH_MAX:
        return f"operator, reason: at most {OPERATOR_LENGTH_MAX} and {REASON_LENGTH_MAX} characters"
    return ""
