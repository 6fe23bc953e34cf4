"""A ledger that was lost is begun anew: which world its first segment opens with.

It holds no grant: what clusters have allocated they show, and it is adopted. Nothing that was said before counts. Each
cluster's agent begins another run, makes sure that nothing that was decided before can land any more, and publishes
everything; before all of them have done so nothing is granted, as at the beginning of any ledger.
"""

from collections.abc import Iterable
from dataclasses import replace

from broker.world.federation import Federation
from broker.world.keys import ClusterId
from broker.world.records import FOR_EVER
from broker.world.world import World
from schemas.wire.bus import PayloadError, StoredMessage
from schemas.wire.codec import WireError, decode_agent_message, decode_claim_state
from schemas.wire.state import SyncFinished
from schemas.wire.subjects import parse_state_subject

# Agents may have read decisions of which nobody has a trace. A ledger makes so many entries in some minutes at most
# before its agents say what became of them.
MARGIN = 1_000_000


class Evidence:
    """What DRA_STATE still knows. clusters: that spoke. highest_seen: ledger sequence that one of them has named."""

    def __init__(self) -> None:
        self.clusters: set[ClusterId] = set()
        self.highest_seen = 0

    def add(self, messages: Iterable[StoredMessage]) -> None:
        """Messages, in any order. One that cannot be read names nothing."""
        for message in messages:
            subject = parse_state_subject(message.subject)
            if subject is None:
                continue
            self.clusters.add(ClusterId(subject.cluster))
            try:
                if subject.kind == "claim":
                    said = decode_claim_state(message.body())
                    named = [each.ledger_sequence for each in (said.decision, said.rejected) if each is not None]
                elif subject.kind == "agent":
                    sync = decode_agent_message(message.body())
                    named = [sync.readmission] if isinstance(sync, SyncFinished) else []
                else:
                    continue
            except (WireError, PayloadError):
                continue
            self.highest_seen = max(self.highest_seen, *named, 0)


def first_sequence(highest_seen: int) -> int:
    """Where the new segment begins: well above all that anybody has seen."""
    return ((highest_seen + MARGIN) // MARGIN + 1) * MARGIN


def world_to_begin_with(
    federation: Federation, left: World, clusters: Iterable[ClusterId], first_sequence: int, state_sequence: int
) -> World:
    """The world of a ledger that begins anew at `first_sequence`.

    left: what could still be read of the old one; cordons, evictions, devices' taints and who was
    told of them are taken over from there.
    clusters: all that are known from anywhere. state_sequence: DRA_STATE's last.
    """
    world = World(federation)
    world.position, world.ledger_last = state_sequence, first_sequence - 1
    for device, taints in left.taints.items():
        for key, taint in taints.items():
            world.put_taint(device, key, taint)
    for name in sorted({*federation.names(), *left.clusters, *clusters}):
        record, before = world.cluster(name), left.clusters.get(name)
        record.epoch = state_sequence + 1
        record.rebuilt = record.cleaned = first_sequence
        until = state_sequence
        if before is not None:
            record.cordon, record.taint_rules = before.cordon, before.taint_rules
            if before.eviction is not None:
                record.eviction = replace(before.eviction, state_sequence=state_sequence)
                until = state_sequence if before.eviction.readmitted else FOR_EVER
        if until:
            record.silences = [(0, until)]
    return world
