"""A machine as a broker drives it: what agents say goes into a log, what it decides into a ledger. Both are lists.

Every step is checked as it is made: the world, the size of the batch, the sequences. `replay` and `restart` make the
same world a second time, from the log in the recorded steps and from the ledger.
"""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import structs

from broker.allocation.cel.engine import SelectorEngine
from broker.allocation.index import DeviceIndex
from broker.machine import Effects, Identity, Machine, Notice, recovery
from broker.machine.core import MAX_BATCH
from broker.machine.recovery import LastBelieved
from broker.machine.segments import LedgerStart, SegmentFold
from broker.world.check import check
from broker.world.checkpoint import checkpoint, opened
from broker.world.federation import ALLOCATE_ANNOTATION, BROKERED_LABEL, Fabric, Federation, PoolPattern
from broker.world.keys import ClaimKey, ClaimUid, ClusterId, DeviceKey, PoolKey
from broker.world.records import Claim
from broker.world.world import World
from schemas.resource import (
    DeviceClass,
    DeviceRequest,
    DeviceTaintRule,
    Node,
    OpaqueDeviceConfiguration,
    ResourceClaim,
    ResourceSlice,
)
from schemas.wire.bus import StoredMessage
from schemas.wire.calls import Ask, DeadLetter
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import (
    Allocate,
    AnyEntry,
    CheckpointEnds,
    DeviceCommand,
    DeviceVerb,
    Inputs,
    LeaderElected,
    LivenessMark,
    OperatorCommand,
    ReasonChanged,
    SegmentClosed,
    SegmentOpened,
    TaintEffect,
    Verb,
    inputs_of,
)
from schemas.wire.state import (
    AgentStarted,
    ClaimState,
    Consumer,
    ObjectName,
    ObjectState,
    Outcome,
    Settled,
    SyncFinished,
    SyncPart,
)
from schemas.wire.subjects import run_subject, state_subject, sync_part_subject
from tests.believing import believe_again, fold_ledger
from tests.builders import CLASS, DRIVER, a_claim, a_class, a_slice, some_devices

EAST, WEST, HUB = ClusterId("east"), ClusterId("west"), ClusterId("hub")
RACK = "rack7"
PAYLOAD_MAX = 1024 * 1024 - 64 * 1024  # of an entry: a server takes 1 MiB, with the headers
IDENTITY = Identity("broker-0", "test", "settings")

# Two clusters reach one fabric, whose slices east publishes.
ONE_FABRIC = Federation(
    fabrics=[Fabric("f", source=EAST, clusters=[EAST, WEST], pools=[PoolPattern(pool=RACK)])], clusters=[EAST, WEST]
)
WITH_HUB = Federation(
    fabrics=[Fabric("f", source=HUB, clusters=[EAST, WEST], pools=[PoolPattern(pool=RACK)])],
    hub=HUB,
    clusters=[HUB, EAST, WEST],
)

_NOT_CLAIM_FACTS = ("first_sequence", "is_checked", "invalid")  # the last two follow from the spec, when one looks
_NOT_FACTS = ("sync", "sync_parts", "asked_at")  # of a cluster: what is under way
E = TypeVar("E", bound=AnyEntry)
Shareable = ResourceSlice | DeviceClass | Node | DeviceTaintRule
_KINDS: dict[type, str] = {ResourceSlice: "slice", DeviceClass: "class", Node: "node", DeviceTaintRule: "taintrule"}


class Driven:
    """One leader, its log and its ledger."""

    def __init__(self, federation: Federation, engine: SelectorEngine) -> None:
        self.federation = federation
        self.index = DeviceIndex(engine)
        self._engine = engine
        self.log: list[StoredMessage] = []
        self.ledger: list[StoredMessage] = []
        self.never_read: set[int] = set()  # stream sequences in the log that had expired before the leader came to them
        self.segments: list[int] = [0]  # how many entries came before each
        self.now_ms = 1_000_000
        self.letters: list[DeadLetter] = []
        self.asks: list[tuple[str, Ask]] = []
        self.notices: list[Notice] = []
        self.answers: list[str] = []
        self._append([SegmentOpened(shard="main", segment=0), LeaderElected(instance="broker-0", build="test")])
        self.machine = self.only_the_ledger()
        recovery.resume(self.machine)

    @property
    def world(self) -> World:
        return self.machine.world

    def put(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> int:
        """A message comes; returns its stream sequence."""
        message = StoredMessage(subject, payload, dict(headers or {}), len(self.log) + 1, time_ms=self.now_ms)
        self.log.append(message)
        self.machine.feed([message])
        return message.stream_sequence

    def step(self) -> Effects:
        """One step, checked and kept."""
        effects = self.machine.step(self.now_ms)
        check(self.world)
        if effects.entries:
            assert effects.first_sequence == len(self.ledger) + 1
            assert len(effects.entries) <= MAX_BATCH
            *before, last = map(inputs_of, effects.entries)
            assert last is not None
            assert not any(before)
            self._append(effects.entries)
        assert self.world.ledger_last == len(self.ledger)
        self.letters += effects.dead_letters
        self.asks += effects.asks
        self.notices += effects.notices
        self.answers += effects.answers
        return effects

    def run(self, *, after_ms: int = 0) -> list[AnyEntry]:
        """Step until nothing is left to do; returns what was recorded, inputs apart."""
        self.now_ms += after_ms
        entries: list[AnyEntry] = []
        while self.machine.has_work(self.now_ms):
            entries += self.step().entries
        return without_inputs(entries)

    def rotate(self) -> None:
        """The ledger goes on in its next segment."""
        self._append(self.machine.close_segment(self.now_ms).entries)
        self.segments.append(len(self.ledger))
        self._append(checkpoint(self.world, "main", self.world.segment + 1))
        opened(self.world, self.world.segment + 1, len(self.ledger))
        check(self.world)

    def mark(self, cluster: str, state: Literal["Live", "Stale", "Lost"]) -> list[AnyEntry]:
        """The clock says so; returns what was recorded."""
        self.machine.order(LivenessMark(cluster, state))
        return self.run()

    def command(self, verb: Verb, cluster: str, *, fenced: bool = False) -> str:
        """An operator orders something; returns why it cannot be done."""
        last = len(self.log) if verb == "evict" else 0
        self.machine.order(OperatorCommand(verb, cluster, "ada", "maintenance", fenced, last))
        self.run()
        return self.answers[-1]

    def device_command(
        self, verb: DeviceVerb, device: str, *, pool: str = RACK, effect: TaintEffect = "NoSchedule", **more: str
    ) -> str:
        """An operator orders something about a device of the pool; returns why it cannot be done."""
        command = DeviceCommand(verb, DRIVER, pool, device, "ada", "fan is loud", effect=effect, **more)
        self.machine.order(command)
        self.run()
        return self.answers[-1]

    def recorded(self, kind: type[E]) -> dict[int, E]:
        """All entries of a kind by their ledger sequence; Inputs by that of the entry that has them."""
        found: dict[int, E] = {}
        for message in self.ledger:
            entry = decode_entry(message.payload)
            about: AnyEntry | None = inputs_of(entry) if kind is Inputs else structs.replace(entry, inputs=None)
            if isinstance(about, kind):
                found[message.stream_sequence] = about
        return found

    def last(self, kind: type[E]) -> tuple[int, E]:
        """The last entry of a kind, and its ledger sequence."""
        return max(self.recorded(kind).items())

    def claim(self, cluster: str, claim: ResourceClaim) -> Claim:
        """What is believed of a claim."""
        return self.world.claims[key_of(cluster, claim)]

    def is_in_use(self, device: str) -> bool:
        """Whether a device of the fabric is not free."""
        return fabric_device(device) in self.world.in_use

    def replay(self) -> list[bytes]:
        """The ledger once more: the same messages in the recorded steps, from nothing."""
        again = Machine(World(self.federation), DeviceIndex(self._engine), IDENTITY)
        fold_ledger(again, self.ledger[:2])
        recovery.resume(again)
        made = [message.payload for message in self.ledger[:2]]
        position = 0
        entries = [decode_entry(message.payload) for message in self.ledger]
        for entry in entries:
            inputs = inputs_of(entry)
            steps = inputs.steps if inputs is not None else []
            for step in steps:
                for order in step.orders:
                    again.order(order)
                applied = self.log[position : step.position]
                again.feed(each for each in applied if each.stream_sequence not in self.never_read)
                position = step.position
                closes = isinstance(entry, SegmentClosed) and step is steps[-1]
                effects = again.close_segment(step.now_ms) if closes else again.step(step.now_ms)
                made += [encode(each) for each in effects.entries]
            if isinstance(entry, SegmentClosed):
                made += [encode(each) for each in checkpoint(again.world, "main", again.world.segment + 1)]
                opened(again.world, again.world.segment + 1, len(made))
        return made

    def restart(self) -> Machine:
        """Another leader's machine, as it is when it has read ledger and log."""
        machine = self.only_the_ledger()
        position = machine.world.position
        believe_again(machine, self.log[:position])
        recovery.resume(machine)
        machine.feed(self.log[position:])
        return machine

    def restart_from_checkpoint(self) -> Machine:
        """Another leader's machine, where the ledger's last entries are a checkpoint of our world."""
        machine = Machine(World(self.federation), self.index, IDENTITY)
        whole = SegmentFold(machine.world, 1)
        whole.add(as_stored(checkpoint(self.world, "main", 1), len(self.ledger) + 1))
        assert whole.finish()
        believe_again(machine, self.log[: machine.world.position])
        recovery.resume(machine)
        return machine

    def takeover(self) -> Machine:
        """A standby's machine when it takes over: it has followed the ledger batch by batch."""
        start, believed, up_to = self._start(), None, 0
        batches = [at for at, entry in enumerate(self.ledger, start=1) if inputs_of(decode_entry(entry.payload))]
        for end in sorted({*batches, *self.segments[1:], len(self.ledger)}):
            self._read(start, end)
            if believed is not None and believed.is_outdated:
                start, believed, up_to = self._start(), None, 0
                self._read(start, end)
            believed = believed or LastBelieved(start.machine)
            position = start.machine.world.position
            believed.add(self.log[up_to:position])
            believed.take_in()
            up_to = position
        recovery.resume(start.machine)
        start.machine.feed(self.log[up_to:])
        return start.machine

    def _start(self) -> LedgerStart:
        return LedgerStart([0], lambda: Machine(World(self.federation), self.index, IDENTITY))

    def _read(self, start: LedgerStart, end: int) -> None:
        """Read the ledger as it was when it had `end` entries."""
        if start.wanted is None:
            start.go_on([segment for segment, at in enumerate(self.segments) if at < end])
        while start.wanted is not None:
            ends = [*self.segments[1:], end]
            start.add(self.ledger[max(start.after, self.segments[start.wanted]) : min(end, ends[start.wanted])])
            start.end()

    def only_the_ledger(self) -> Machine:
        """Another leader's machine before it has read the log."""
        ends = [*self.segments[1:], len(self.ledger)]
        start = LedgerStart(range(len(ends)), lambda: Machine(World(self.federation), self.index, IDENTITY))
        while start.wanted is not None:
            start.add(self.ledger[self.segments[start.wanted] : ends[start.wanted]])
            start.end()
        return start.machine

    def _append(self, entries: Iterable[AnyEntry]) -> None:
        stored = as_stored(entries, len(self.ledger) + 1)
        assert all(len(each.payload) <= PAYLOAD_MAX for each in stored), "a message that no server takes"
        self.ledger += stored


def without_inputs(entries: Iterable[AnyEntry]) -> list[AnyEntry]:
    """What was recorded, and not what it was decided from."""
    said = [entry for entry in entries if not isinstance(entry, Inputs | CheckpointEnds)]
    return [structs.replace(entry, inputs=None) for entry in said]


def as_stored(entries: Iterable[AnyEntry], first_sequence: int) -> list[StoredMessage]:
    """Entries as a segment has them."""
    return [
        StoredMessage("ledger", encode(entry), {}, sequence, time_ms=0)
        for sequence, entry in enumerate(entries, start=first_sequence)
    ]


class Agent:
    """What the agent of one cluster says; each call is a message, and returns its stream sequence."""

    def __init__(self, driven: Driven, name: str) -> None:
        self.driven = driven
        self.name = ClusterId(name)
        self.living: set[ObjectName] = set()
        self.epoch = 0
        self._syncs = 0
        self._resource_version = 100
        self.starts()

    def starts(self) -> int:
        """A new run."""
        self.epoch = self.driven.put(run_subject(self.name), encode(AgentStarted(f"{self.name}-{self.epoch}")))
        return self.epoch

    def publishes(self, *objects: Shareable, epoch: int = 0) -> int:
        """Objects other than claims; returns the last message's sequence."""
        sequence = 0
        for each in objects:
            kind, key = _KINDS[type(each)], each.metadata.name
            self.living.add(ObjectName(kind, key))
            message = ObjectState(agent_epoch=epoch or self.epoch, object=raw(each), resource_version=self._next())
            sequence = self.driven.put(state_subject(self.name, kind, key), encode(message))
        return sequence

    def removes(self, kind: str, key: str) -> int:
        """The tombstone of an object."""
        self.living.discard(ObjectName(kind, key))
        message: ClaimState | ObjectState
        if kind == "claim":
            message = ClaimState(agent_epoch=self.epoch, resource_version=self._next())
        else:
            message = ObjectState(agent_epoch=self.epoch, resource_version=self._next())
        return self.driven.put(state_subject(self.name, kind, key), encode(message))

    def tells(
        self,
        claim: ResourceClaim,
        allocation: Mapping[str, Any] | None = None,
        *pods: Consumer,
        epoch: int = 0,
        devices: Iterable[Mapping[str, Any]] = (),
        **state: Any,
    ) -> int:
        """A claim as it is now. devices: its status.devices."""
        uid = claim.metadata.uid
        self.living.add(ObjectName("claim", uid))
        message = ClaimState(
            agent_epoch=epoch or self.epoch,
            claim=raw(with_allocation(claim, allocation, devices)),
            resource_version=self._next(),
            consumers=list(pods),
            **state,
        )
        return self.driven.put(state_subject(self.name, "claim", uid), encode(message))

    def deletes(self, claim: ResourceClaim) -> int:
        """The tombstone of a claim."""
        return self.removes("claim", claim.metadata.uid)

    def syncs(
        self,
        *,
        parts: Iterable[Iterable[ObjectName]] = (),
        promised: int | None = None,
        epoch: int = 0,
        readmission: int = 0,
    ) -> int:
        """A full sync: what is not in the parts is in its last message, which promises as many parts as there were."""
        self._syncs += 1
        listed: set[ObjectName] = set()
        count = 0
        for count, part in enumerate(parts, start=1):
            listed.update(part)
            message = SyncPart(epoch or self.epoch, self._syncs, count, sorted(part))
            self.driven.put(sync_part_subject(self.name, count), encode(message))
        count = count if promised is None else promised
        finished = SyncFinished(epoch or self.epoch, self._syncs, count, sorted(self.living - listed), readmission)
        return self.driven.put(run_subject(self.name), encode(finished))

    def _next(self) -> str:
        self._resource_version += 1
        return str(self._resource_version)


def everyone_heard(driven: Driven, *, devices: int = 1, brokered: bool = True) -> tuple[Agent, Agent]:
    """Both members were heard, and the fabric has some devices."""
    east, west = Agent(driven, EAST), Agent(driven, WEST)
    east.publishes(a_slice(some_devices(devices)))
    for agent in (east, west):
        agent.publishes(a_brokered_class() if brokered else a_class())
        agent.syncs()
    driven.run()
    return east, west


def a_brokered_class(
    name: str = CLASS, *expressions: str, config: Iterable[OpaqueDeviceConfiguration] = ()
) -> DeviceClass:
    """A class whose claims are the broker's business."""
    return a_class(name, *expressions, config=config, labels={BROKERED_LABEL: "true"})


def an_immediate_claim(name: str = "train", *requests: DeviceRequest) -> ResourceClaim:
    """A claim that waits for no pod."""
    return a_claim(*requests, name=name, annotations={ALLOCATE_ANNOTATION: "Immediate"})


def a_pod(name: str = "worker", **state: bool) -> Consumer:
    """A live pod that no node runs yet, unless `state` says otherwise."""
    return Consumer(uid=f"uid-{name}", name=name, **state)


def an_allocation(*devices: str, request: str = "gpu", pool: str = RACK, **result: Any) -> dict[str, Any]:
    """status.allocation with these devices, one result each."""
    results = [{"request": request, "driver": DRIVER, "pool": pool, "device": device, **result} for device in devices]
    return {"devices": {"results": results}}


def settled(ledger_sequence: int, outcome: Outcome = "Applied", message: str = "") -> Settled:
    """What an agent says of a decision."""
    return Settled(ledger_sequence, outcome, message)


def granted(driven: Driven, agent: Agent, claim: ResourceClaim, *pods: Consumer, **state: Any) -> int:
    """The claim gets devices and its agent has applied it; returns the grant's ledger sequence."""
    agent.tells(claim, None, *pods, **state)
    driven.run()
    sequence, entry = driven.last(Allocate)
    assert entry.uid == claim.metadata.uid
    agent.tells(claim, entry.allocation, *pods, decision=settled(sequence))
    driven.run()
    return sequence


def reason(driven: Driven, agent: Agent, claim: ResourceClaim) -> str:
    """The code of why the claim waits, "" if it does not."""
    waiting = driven.claim(agent.name, claim).waiting
    return waiting.reason if waiting else ""


def reasons(driven: Driven, claim: ResourceClaim) -> list[str]:
    """All codes that the ledger has for a claim, in order."""
    return [entry.reason for entry in driven.recorded(ReasonChanged).values() if entry.uid == claim.metadata.uid]


def devices_of(entry: Allocate) -> list[str]:
    """Names of the devices that a decision gives."""
    return [hold.device for hold in entry.holds]


def raw(obj: Any) -> msgspec.Raw:
    """An object as JSON inside a message."""
    return msgspec.Raw(msgspec.json.encode(obj))


def with_allocation(
    claim: ResourceClaim, allocation: Mapping[str, Any] | None, devices: Iterable[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """The claim's manifest with that allocation, and status.devices."""
    manifest: dict[str, Any] = msgspec.to_builtins(claim)
    status = {"allocation": allocation, "devices": list(devices)}
    return {**manifest, "status": status} if allocation is not None else manifest


def key_of(cluster: str, claim: ResourceClaim) -> ClaimKey:
    """A claim of that cluster."""
    return ClaimKey(ClusterId(cluster), ClaimUid(claim.metadata.uid))


def fabric_device(device: str, scope: str = "fabric/f", pool: str = RACK) -> DeviceKey:
    """A device of the fabric's pool."""
    return DeviceKey(PoolKey(scope, DRIVER, pool), device)


def facts(world: World) -> dict[str, Any]:
    """All of a world that a later decision may depend on, to compare it with another.

    A waiting claim's words are left out: they are news for people, and the ledger has only those of the first time.
    """
    claims = {
        key: {each.name: getattr(claim, each.name) for each in fields(claim) if each.name not in _NOT_CLAIM_FACTS}
        | {"waiting": claim.waiting and (claim.waiting.reason, claim.waiting.order, claim.waiting.since_ms)}
        for key, claim in world.claims.items()
    }
    clusters = {
        name: {at.name: getattr(each, at.name) for at in fields(each) if at.name not in _NOT_FACTS}
        for name, each in world.clusters.items()
    }
    pools = {pool.key: (pool.generation, pool.slices, pool.problem) for pool in world.inventory.all_pools()}
    return {
        "claims": claims,
        "clusters": clusters,
        "pools": pools,
        "classes": world.classes,
        "nodes": {cluster: nodes for cluster, nodes in world.nodes.items() if nodes},
        "told": world.told_classes,
        "taints": world.taints,
        "in_use": set(world.in_use),
        "granted": world.granted,
        "position": world.position,
    }
