"""Messages that are not kept in a log of truth: heartbeats, asks, joins, dead letters, the leader's beacon."""

import msgspec

from schemas.wire.state import ObjectName


class Beat(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.beat.v1"):
    """An agent's heartbeat: what the broker must believe once it has read up to `last_sequence`."""

    agent_epoch: int
    digest: str  # hexadecimal, see schemas.wire.state.object_digest
    last_sequence: int  # DRA_STATE's sequence of the last message that this agent stored


class Ask(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.ask.v1"):
    """Publish these objects again; without names, everything, and then say that a sync is finished."""

    objects: list[ObjectName] = []


class Join(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.join.v1"):
    """An agent asks what it may read.

    last_of: offer the last message of each of its subjects there: "state", or of the ledger's "ledger" (its decisions)
        or "classes" (the hub's brokered classes); "" for none.
    """

    last_of: str = ""


class LedgerSegment(msgspec.Struct, frozen=True, omit_defaults=True):
    """A stream of the ledger.

    last_sequence: of the last decision for the cluster, 0 without one; only where `last_of` asked for it.
    """

    stream: str
    last_sequence: int = 0


class Joined(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.joined.v1"):
    """What an agent may read: through the consumer `agent_<cluster>` of the last segment, and, if it asked, `..._last`.

    state_age_s: how long DRA_STATE keeps a message, 0: for ever.
    state_last: the sequence of the cluster's last message there, 0 without one; only where `last_of` asked for it.
    segments: the open one of each ledger; older brokers name all that there are, in order.
    """

    state_age_s: float
    state_last: int = 0
    segments: list[LedgerSegment] = []


class LedgerGoesOn(msgspec.Struct, frozen=True, tag_field="type", tag="dev.dragoman.ledger-goes-on.v1"):
    """The ledger goes on in another segment's stream: follow that one. Not needed, but sooner than finding it."""

    stream: str


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.deadletter.v1"):
    """A message that could not be applied, kept with its reason.

    payload: the message's bytes as stored (base64 in JSON), the first 512 KiB of them. DRA_STATE has all of it at
    `stream_sequence`, for as long as it keeps it. Empty, and `message` says so, where NATS takes no message so large.
    """

    cluster: str
    subject: str
    stream_sequence: int
    reason: str
    message: str
    payload: bytes = b""


class LeaderBeacon(msgspec.Struct, frozen=True, tag_field="type", tag="dev.dragoman.leader-beacon.v1"):
    """The leader lives. It keeps others from trying; that nobody else leads is proved by the append alone."""

    leader_epoch: int
    instance: str
