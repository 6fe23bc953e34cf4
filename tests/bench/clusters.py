"""Clusters without agents: what theirs would publish, as bytes, and how they answer a decision."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.machine import Identity, Machine, recovery
from broker.world.federation import BROKERED_LABEL, Fabric, Federation, PoolPattern
from broker.world.keys import ClusterId
from broker.world.world import World
from schemas.resource import Resource, ResourceClaim, ResourceSlice
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import encode
from schemas.wire.ledger import Allocate, AnyEntry, LeaderElected, SegmentOpened
from schemas.wire.state import (
    NAMES_IN_PART,
    NO_OBJECT,
    AgentStarted,
    ClaimState,
    ObjectName,
    ObjectState,
    Settled,
    SyncFinished,
    SyncPart,
)
from schemas.wire.subjects import run_subject, state_subject, sync_part_subject
from tests.builders import CLASS, a_class

CLUSTERS = (ClusterId("east"), ClusterId("west"))
_NOW_MS = 1_780_000_000_000


def federation() -> Federation:
    """Two clusters that share all pools; the first is their source."""
    fabric = Fabric(name="f", source=CLUSTERS[0], clusters=list(CLUSTERS), pools=[PoolPattern()])
    return Federation(fabrics=[fabric], clusters=list(CLUSTERS))


class Log:
    """DRA_STATE with two agents that write to it."""

    def __init__(self) -> None:
        self.messages: list[StoredMessage] = []
        self._epochs: dict[str, int] = {}
        self._syncs = 0
        self._living: dict[str, set[ObjectName]] = {}

    def start(self, slices: Iterable[ResourceSlice]) -> None:
        """Both agents start; classes and slices are published."""
        for cluster in CLUSTERS:
            self._epochs[cluster] = self._put(run_subject(cluster), AgentStarted(f"agent-{cluster}"))
            self.publish(cluster, "class", CLASS, a_class(labels={BROKERED_LABEL: "true"}))
        for each in slices:
            self.publish(CLUSTERS[0], "slice", each.metadata.name, each)

    def finish_syncs(self) -> None:
        """Both agents say what lives."""
        self._syncs += 1
        for cluster in CLUSTERS:
            names = sorted(self._living[cluster])
            parts = [names[at : at + NAMES_IN_PART] for at in range(0, len(names), NAMES_IN_PART)]
            epoch = self._epochs[cluster]
            for number, part in enumerate(parts[:-1], start=1):
                self._put(sync_part_subject(cluster, number), SyncPart(epoch, self._syncs, number, part))
            finished = SyncFinished(epoch, self._syncs, len(parts) - 1, parts[-1])
            self._put(run_subject(cluster), finished)

    def publish(self, cluster: str, kind: str, key: str, obj: Resource) -> int:
        """An object that is not a claim."""
        self._living.setdefault(cluster, set()).add(ObjectName(kind, key))
        message = ObjectState(agent_epoch=self._epochs[cluster], object=_raw(obj), resource_version="1")
        return self._put(state_subject(cluster, kind, key), message)

    def publish_claim(
        self, cluster: str, claim: ResourceClaim, resource_version: int = 1, decision: Settled | None = None
    ) -> int:
        """A claim, and what became of the last decision for it."""
        return self.publish_raw_claim(cluster, claim.metadata.uid, _raw(claim), resource_version, decision)

    def publish_raw_claim(
        self, cluster: str, uid: str, claim: msgspec.Raw, resource_version: int, decision: Settled | None
    ) -> int:
        """The same of a claim that is JSON already."""
        self._living.setdefault(cluster, set()).add(ObjectName("claim", uid))
        message = ClaimState(
            agent_epoch=self._epochs[cluster],
            claim=claim,
            resource_version=str(resource_version),
            decision=decision,
        )
        return self._put(state_subject(cluster, "claim", uid), message)

    def delete_claim(self, cluster: str, uid: str) -> None:
        """A claim's tombstone."""
        self._living[cluster].discard(ObjectName("claim", uid))
        message = ClaimState(agent_epoch=self._epochs[cluster], claim=NO_OBJECT, resource_version="9")
        self._put(state_subject(cluster, "claim", uid), message)

    def epochs(self) -> dict[str, int]:
        """Of both agents."""
        return dict(self._epochs)

    def since(self, position: int) -> list[StoredMessage]:
        """What follows the stream sequence `position`."""
        return self.messages[position:]

    def _put(self, subject: str, message: msgspec.Struct) -> int:
        sequence = len(self.messages) + 1
        self.messages.append(StoredMessage(subject, encode(message), {}, sequence, _NOW_MS))
        return sequence


def a_leader() -> Machine:
    """A broker's machine that has just opened its ledger."""
    machine = Machine(World(federation()), DeviceIndex(default_engine()), Identity("bench", "bench", "none"))
    opened: list[AnyEntry] = [
        SegmentOpened(shard="main", segment=0),
        LeaderElected(instance="bench", build="bench"),
    ]
    recovery.fold_entries(machine, opened, 1)
    recovery.resume(machine)
    return machine


def run(machine: Machine) -> Iterator[tuple[int, AnyEntry]]:
    """Step until nothing is left to do; the entries of each batch with their sequences."""
    while machine.has_work(_NOW_MS):
        effects = machine.step(_NOW_MS)
        yield from enumerate(effects.entries, start=effects.first_sequence)


def answer(log: Log, entries: Iterable[tuple[int, AnyEntry]], claims_by_uid: dict[str, ResourceClaim]) -> int:
    """Publish that every allocation of the entries was applied; how many there were."""
    applied = 0
    for sequence, entry in entries:
        if isinstance(entry, Allocate):
            held = {**msgspec.to_builtins(claims_by_uid[entry.uid]), "status": {"allocation": entry.allocation}}
            raw = msgspec.Raw(msgspec.json.encode(held))
            log.publish_raw_claim(entry.cluster, entry.uid, raw, 3, Settled(sequence, "Applied"))
            applied += 1
    return applied


def settle(machine: Machine, log: Log, claims: Sequence[ResourceClaim]) -> None:
    """Feed what the machine has not seen, answer what it decides, until both are quiet."""
    by_uid = {claim.metadata.uid: claim for claim in claims}
    fed = machine.world.position
    while True:
        machine.feed(log.since(fed))
        fed = len(log.messages)
        if not answer(log, list(run(machine)), by_uid) and fed == len(log.messages):
            return


def _raw(obj: msgspec.Struct) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(obj))
