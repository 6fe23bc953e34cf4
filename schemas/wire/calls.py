"""Messages that are not kept in a log of truth: heartbeats, asks, dead letters, the leader's beacon."""

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


class LedgerGoesOn(msgspec.Struct, frozen=True, tag_field="type", tag="dev.dragoman.ledger-goes-on.v1"):
    """The ledger goes on in another segment's stream: follow that one. Not needed, but sooner than finding it."""

    stream: str


class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag="dev.dragoman.deadletter.v1"):
    """A message that could not be applied, kept with its reason.

    payload: the message's bytes as stored (base64 in JSON), the first 512 KiB of them. DRA_STATE has all of it at
    `stream_sequence`, for as long as it keeps it.
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
