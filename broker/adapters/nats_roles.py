"""Who may say what at NATS: one user for each role, and an account for everybody who is not trusted like the broker.

Permissions of a user are not enough. The server sends answers (a publish's ack, a direct get's message) to whatever
reply subject the asker named, without asking whether the asker may publish there: within one account an agent could so
write into another cluster's state, or into the ledger. An answer never leaves the asker's account. See
docs/adr/0010-an-account-for-each-cluster.md.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from schemas.wire.subjects import (
    DEAD_LETTER_STREAM,
    EVENTS_STREAM,
    PREFIX,
    STATE_STREAM,
    agent_consumer,
    ask_subject,
    beat_subject,
    durable_consumer,
    inbox_prefix,
    join_subject,
)

OWN_ACCOUNT = "DRAGOMAN"
TRACER_ACCOUNT = "TRACER"
SYSTEM_ACCOUNT = "SYS"
_ACK = "$JS.ACK"
_API = "$JS.API"
# A leaf node keeps `$JS.API` to itself; so its account maps that name to this one, which the hub maps back. And in an
# account without JetStream the server answers itself what is asked of `$JS.API`, beside who is asked by an import.
MAPPED_API = f"{PREFIX}.js"
API_MAPPING = {f"{_API}.>": f"{MAPPED_API}.>"}


class Role(msgspec.Struct, frozen=True):
    """A user of NATS.

    name: also that of its key file. Its requests are answered on `inbox_prefix(name)`, which nobody else may hear.
    """

    name: str
    account: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...] = ()


class Export(msgspec.Struct, frozen=True):
    """What the account of the broker offers to `account`. kind: "stream" flows to it; a "service" it may ask."""

    kind: str
    subject: str
    account: str
    has_many_answers: bool = False


def cluster_account(cluster: str) -> str:
    """The account of a cluster's agent."""
    return f"CLUSTER_{cluster}"


def subscriber_account(name: str) -> str:
    """The account of a service that reads events: with others in it, answers could acknowledge what is theirs."""
    return f"SUBSCRIBER_{name}"


def roles(clusters: Sequence[str], leaf_clusters: Sequence[str] = (), subscribers: Sequence[str] = ()) -> list[Role]:
    """Everybody, in the order of their files."""
    found = [_broker(), _setup(), _operator(), _tracer(), Role("sys", SYSTEM_ACCOUNT, ("$SYS.REQ.>",))]
    for cluster in clusters:
        offered = agent_exports(cluster)
        said = tuple(each.subject for each in offered if each.kind == "service")
        heard = tuple(each.subject for each in offered if each.kind == "stream")
        found.append(Role(f"agent-{cluster}", cluster_account(cluster), said, heard))
        if cluster in leaf_clusters:
            # What the agent behind it may say and hear, and the inbox of that agent instead of one of its own.
            heard = (*heard, f"{inbox_prefix(f'agent-{cluster}')}.>")
            said = tuple(subject.replace(_API, MAPPED_API) for subject in said)
            found.append(Role(f"leaf-{cluster}", cluster_account(cluster), said, heard))
    for name in subscribers:
        offered = event_exports(name)
        said = tuple(each.subject for each in offered if each.kind == "service")
        heard = tuple(each.subject for each in offered if each.kind == "stream")
        found.append(Role(f"subscriber-{name}", subscriber_account(name), said, heard))
    return found


def agent_exports(cluster: str) -> list[Export]:
    """What a cluster's account may ask and hear of the broker's."""
    to = cluster_account(cluster)
    consumer = agent_consumer(cluster)
    return [
        Export("service", f"{PREFIX}.state.{cluster}.>", to),
        Export("service", beat_subject(cluster), to),
        Export("service", join_subject(cluster), to),
        Export("service", f"{_API}.DIRECT.GET.{STATE_STREAM}.{PREFIX}.state.{cluster}.>", to),
        Export("service", f"{_API}.DIRECT.GET.*.{PREFIX}.ledger.*.*.{cluster}.>", to),
        # Never CONSUMER.CREATE: a consumer's maker may have its messages delivered to any subject of the account.
        Export("service", f"{_API}.CONSUMER.MSG.NEXT.*.{consumer}", to, has_many_answers=True),
        Export("service", f"{_API}.CONSUMER.MSG.NEXT.*.{consumer}_last", to, has_many_answers=True),
        Export("service", f"{_ACK}.*.{consumer}.>", to),
        Export("stream", ask_subject(cluster), to),
    ]


def event_exports(subscriber: str) -> list[Export]:
    """What a subscriber may ask and hear: events as they come, those that are kept, its place among them."""
    to = subscriber_account(subscriber)
    consumer = durable_consumer(subscriber)
    return [
        Export("stream", f"{PREFIX}.events.>", to),
        Export("service", f"{_API}.DIRECT.GET.{EVENTS_STREAM}", to, has_many_answers=True),
        Export("service", f"{_API}.DIRECT.GET.{EVENTS_STREAM}.{PREFIX}.events.>", to),
        # `nats-setup --subscriber` makes it: never CONSUMER.CREATE, for the reason given above.
        Export("service", f"{_API}.CONSUMER.MSG.NEXT.{EVENTS_STREAM}.{consumer}", to, has_many_answers=True),
        Export("service", f"{_ACK}.{EVENTS_STREAM}.{consumer}.>", to),
    ]


def tracer_exports() -> list[Export]:
    """What the tracer may ask: which streams there are, where they begin and end, and what they keep."""
    unary = ("STREAM.NAMES", "STREAM.INFO.*", "STREAM.MSG.GET.*")
    return [
        *(Export("service", f"{_API}.{what}", TRACER_ACCOUNT) for what in unary),
        Export("service", f"{_API}.DIRECT.GET.*", TRACER_ACCOUNT, has_many_answers=True),
    ]


def _broker() -> Role:
    said = (
        *(f"{PREFIX}.{what}.>" for what in ("ledger", "events", "ask", "deadletter", "lead")),
        *_reads(),
        # Streams it may make, for the next segment, but not change, purge or delete.
        f"{_API}.STREAM.CREATE.*",
        f"{_API}.CONSUMER.DELETE.>",
        # Answers to calls. Not `allow_responses`, which would let a caller name any subject as the place to answer.
        "_INBOX.>",
        "_R_.>",
    )
    heard = (f"{PREFIX}.beat.*", f"{PREFIX}.lead.*", f"{PREFIX}.api.>", "$SRV.>")
    return Role("broker", OWN_ACCOUNT, said, heard)


def _setup() -> Role:
    return Role("setup", OWN_ACCOUNT, (f"{_API}.>",))


def _operator() -> Role:
    """People's commands: they ask the broker, read every stream and hear events; they write nothing.

    Whoever has the key could write, by the answers to what it asks: it is in the broker's account.
    """
    return Role("operator", OWN_ACCOUNT, (f"{PREFIX}.api.*", *_reads()), (f"{PREFIX}.events.>",))


def _tracer() -> Role:
    """Makes spans of what is in the logs: it reads streams, and says and hears nothing else."""
    said = [each.subject for each in tracer_exports()]
    # The server asks for permission before and after it has mapped a subject.
    return Role("tracer", TRACER_ACCOUNT, (*said, *(subject.replace(_API, MAPPED_API) for subject in said)))


def _reads() -> tuple[str, ...]:
    streams = (STATE_STREAM, EVENTS_STREAM, DEAD_LETTER_STREAM)
    return (
        f"{_API}.INFO",
        *(f"{_API}.STREAM.{what}" for what in ("NAMES", "LIST", "INFO.*", "MSG.GET.*")),
        *(f"{_API}.DIRECT.GET.{stream}" for stream in streams),
        f"{_API}.DIRECT.GET.*.>",
        f"{_API}.CONSUMER.CREATE.>",
        f"{_API}.CONSUMER.INFO.>",
        f"{_API}.CONSUMER.MSG.NEXT.>",
        f"{_ACK}.>",
    )


def accounts_config(everybody: Sequence[Role], public_keys: dict[str, str], bytes_max: int = 0) -> dict[str, Any]:
    """`accounts` of nats-server's configuration. bytes_max: of all streams together, 0: what the server has."""
    accounts: dict[str, Any] = {}
    for role in everybody:
        account = accounts.setdefault(role.account, {"users": []})
        heard = [*role.subscribe, f"{inbox_prefix(role.name)}.>"]
        permissions = {"publish": {"allow": list(role.publish)}, "subscribe": {"allow": heard}}
        account["users"].append({"nkey": public_keys[role.name], "permissions": permissions})
    own = accounts[OWN_ACCOUNT]
    own["jetstream"] = {"max_file": bytes_max} if bytes_max else "enabled"
    own["exports"] = []
    behind_leaves = {role.account for role in everybody if role.name.startswith("leaf-")}
    offered = [export for name in _clusters_of(everybody) for export in agent_exports(name)]
    for role in everybody:
        if role.name.startswith("subscriber-"):
            offered += event_exports(role.name.removeprefix("subscriber-"))
        elif role.account == TRACER_ACCOUNT:
            offered += tracer_exports()
    for each in offered:
        kind: dict[str, Any] = {each.kind: each.subject, "accounts": [each.account]}
        own["exports"].append({**kind, "response_type": "stream"} if each.has_many_answers else kind)
        account = accounts[each.account]
        imported: dict[str, Any] = {each.kind: {"account": OWN_ACCOUNT, "subject": each.subject}}
        mapped = {**imported, "to": each.subject.replace(_API, MAPPED_API)}
        if each.account == TRACER_ACCOUNT:
            account["mappings"] = API_MAPPING
            account.setdefault("imports", []).append(mapped)
            continue
        account.setdefault("imports", []).append(imported)
        if each.account in behind_leaves and each.subject.startswith(_API):
            account["imports"].append(mapped)
    return accounts


def _clusters_of(everybody: Sequence[Role]) -> list[str]:
    return [role.name.removeprefix("agent-") for role in everybody if role.name.startswith("agent-")]
