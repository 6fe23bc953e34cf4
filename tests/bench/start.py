"""A start: the world from the ledger and from what clusters said, against reading the same bytes alone."""

import gc
from collections.abc import Sequence

import msgspec

from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.machine import Identity, Machine, recovery
from broker.machine.segments import SegmentFold
from broker.world.checkpoint import checkpoint
from broker.world.keys import fabric_scope
from broker.world.world import World
from schemas.resource import (
    AllocationResult,
    DeviceAllocationResult,
    DeviceRequestAllocationResult,
    ResourceClaim,
    ResourceClaimStatus,
)
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import decode_entry, encode
from schemas.wire.ledger import (
    Allocate,
    AnyEntry,
    DeviceHold,
    Inputs,
    LeaderElected,
    OutcomeRecorded,
    ReasonChanged,
    SegmentOpened,
    Step,
)
from schemas.wire.state import Settled
from tests.believing import believe_again, fold_ledger
from tests.bench.clusters import CLUSTERS, Log, federation, run
from tests.bench.fleet import a_claim_for, in_order, selects_model, some_pools, some_slices
from tests.bench.measure import Table, count, growth, least, ms, progress, ratio, timed, us

SIZES = (1_000, 10_000, 50_000)
GRANTS = (5_000, 50_000)
TAIL = 100_000  # entries after the checkpoint: half of what a segment has before the next one is begun


def measure(sizes: Sequence[int] = SIZES) -> list[Table]:
    """Of 2/3 N claims half hold a device, with two entries and two messages each; the others wait, with one of each."""
    rows = []
    before = None
    for size in sizes:
        progress(f"start: {count(size)} ledger entries, {count(size)} state messages")
        history = History(size)
        repeats = 3 if size < 10_000 else 2
        fold, believe, first, to_dicts, to_structs = least(
            repeats, history.fold, history.believe, history.first_steps, history.to_dicts, history.to_structs
        )
        whole = fold + believe + first
        rows.append(
            [
                count(size),
                ms(fold),
                ms(believe),
                ms(first),
                us(whole / size),
                growth(before, size, whole),
                ratio(whole, to_dicts),
                ratio(whole, to_structs),
            ]
        )
        before = (size, whole)
    header = ["entries", "fold ms", "believe ms", "first steps ms", "us per entry", "growth", "to dicts", "to Structs"]
    notes = [
        "N ledger entries and N state messages of 2/3 N claims: half of them hold a device, the others wait for",
        "a model that does not exist. First steps: until nothing is left to decide. To dicts, to Structs: the whole",
        "start against decoding the same bytes with msgspec and forgetting them, untyped and typed.",
    ]
    return [Table("start: fold the ledger, believe the clusters again, decide", header, rows, notes)]


def measure_checkpoints(grants: Sequence[int] = GRANTS, tail: int = TAIL) -> list[Table]:
    """Twice as many devices as grants. What came before the checkpoint does not count, however long it was."""
    rows = []
    for size in grants:
        progress(f"start: a checkpoint of {count(size)} grants, {count(tail)} entries after it")
        history = History(3 * size, holding=size, waiting=0, devices=2 * size)
        made = history.make_checkpoint()
        checkpoint_s = history.fold_checkpoint()
        tail_s = history.fold_tail(tail)
        believe, first = history.believe(), history.first_steps()
        entries, size_bytes = history.checkpoint_size()
        whole = checkpoint_s + tail_s + believe + first
        rows.append(
            [
                count(size),
                count(2 * size),
                count(entries),
                f"{size_bytes / 1e6:.0f}",
                ms(made),
                ms(checkpoint_s),
                ms(tail_s),
                ms(believe),
                ms(first),
                f"{whole:.1f}",
            ]
        )
    header = [
        "grants",
        "devices",
        "entries",
        "MB",
        "make ms",
        "fold ms",
        "tail ms",
        "believe ms",
        "first ms",
        "start s",
    ]
    notes = [
        f"A segment that opens with a checkpoint of that many grants, and has {count(tail)} entries after it.",
        "Make: what the leader does between two segments, besides storing it. A start: fold the checkpoint and the",
        "tail, believe the clusters again (two messages for each claim), and decide until nothing is left.",
    ]
    return [Table("start: from a checkpoint", header, rows, notes)]


class History:
    """A ledger and a log as a broker left them, and the machine of the one that starts from them."""

    def __init__(self, size: int, holding: int = 0, waiting: int | None = None, devices: int = 0) -> None:
        holding = holding or size // 3
        waits = size - 2 * holding if waiting is None else waiting
        claims = [a_claim_for(selects_model(index), index) for index in range(holding)]
        waiting_claims = [
            a_claim_for(selects_model(0).replace("model-0", "none"), index) for index in range(holding, holding + waits)
        ]
        log = Log()
        log.start(some_slices(devices or holding))
        entries: list[AnyEntry] = [
            SegmentOpened(shard="main", segment=0),
            LeaderElected(instance="bench", build="bench"),
            Inputs(leader_epoch=2, epochs=log.epochs()),
        ]
        results = (
            DeviceRequestAllocationResult(request="gpu", driver=pool.key.driver, pool=pool.key.pool, device=device.name)
            for pool, _, device in in_order(some_pools(devices or holding, fabric_scope("f")))
        )
        for index, (claim, result) in enumerate(zip(claims, results, strict=False)):
            entries += _held(log, CLUSTERS[index % 2], claim, result, len(entries) + 1)
        for index, claim in enumerate(waiting_claims):
            cluster = CLUSTERS[index % 2]
            sequence = log.publish_claim(cluster, claim)
            entries.append(reason(cluster, claim, sequence))
        log.finish_syncs()
        end = len(log.messages)
        entries.append(Inputs(leader_epoch=2, steps=[Step(end, 0)], synced=dict.fromkeys(CLUSTERS, end)))
        self.entries = entries
        self.state = log.messages
        self._ledger = [
            StoredMessage("ledger", encode(entry), {}, sequence, 0) for sequence, entry in enumerate(entries, start=1)
        ]
        self._machine: Machine
        self._checkpoint: list[StoredMessage]
        self._segment: SegmentFold

    def make_checkpoint(self) -> float:
        """After folding all: its checkpoint, as messages."""
        self.fold()
        world = self._machine.world

        def make() -> None:
            entries = checkpoint(world, "main", 1)
            self._checkpoint = [
                StoredMessage("ledger", encode(entry), {}, sequence, 0)
                for sequence, entry in enumerate(entries, start=world.ledger_last + 1)
            ]

        return timed(make)

    def checkpoint_size(self) -> tuple[int, int]:
        """Entries and bytes."""
        return len(self._checkpoint), sum(len(message.payload) for message in self._checkpoint)

    def fold_checkpoint(self) -> float:
        self._new_machine()
        self._segment = SegmentFold(self._machine.world, 1)

        def fold() -> None:
            self._segment.add(self._checkpoint)
            assert self._segment.finish()

        gc.disable()  # as a broker does at its start
        try:
            return timed(fold)
        finally:
            gc.enable()

    def fold_tail(self, entries: int) -> float:
        """Reasons of claims that wait, three to each batch."""
        first = self._checkpoint[-1].stream_sequence + 1
        end = len(self.state)
        inputs = encode(Inputs(leader_epoch=2, steps=[Step(end, 0)]))
        wait = [encode(reason(CLUSTERS[0], a_claim_for("true", number), end)) for number in range(100)]
        tail = [
            StoredMessage("ledger", wait[number % 100] if number % 4 else inputs, {}, first + number, 0)
            for number in range(entries)
        ]
        return timed(lambda: self._segment.add(tail))

    def _new_machine(self) -> None:
        self._machine = Machine(World(federation()), DeviceIndex(default_engine()), Identity("bench", "bench", "none"))

    def fold(self) -> float:
        self._new_machine()
        return timed(lambda: fold_ledger(self._machine, self._ledger))

    def believe(self) -> float:
        return timed(lambda: believe_again(self._machine, self.state))

    def first_steps(self) -> float:
        def decide() -> None:
            recovery.resume(self._machine)
            list(run(self._machine))

        return timed(decide)

    def to_dicts(self) -> float:
        def decode() -> None:
            for message in (*self._ledger, *self.state):
                msgspec.json.decode(message.payload)

        return timed(decode)

    def to_structs(self) -> float:
        claims = msgspec.json.Decoder(_ClaimMessage)

        def decode() -> None:
            for message in self._ledger:
                decode_entry(message.payload)
            for message in self.state:
                claims.decode(message.payload)

        return timed(decode)


class _ClaimMessage(msgspec.Struct):
    """As much of a state message as tells how long typed decoding takes."""

    claim: ResourceClaim | None = None
    resource_version: str = ""
    decision: Settled | None = None


def _held(
    log: Log, cluster: str, claim: ResourceClaim, result: DeviceRequestAllocationResult, ledger_sequence: int
) -> list[AnyEntry]:
    log.publish_claim(cluster, claim)
    allocation = AllocationResult(devices=DeviceAllocationResult(results=[result]))
    held = msgspec.structs.replace(claim, status=ResourceClaimStatus(allocation=allocation))
    sequence = log.publish_claim(cluster, held, 3, Settled(ledger_sequence, "Applied"))
    allocate = Allocate(
        cluster=cluster,
        uid=claim.metadata.uid,
        namespace=claim.metadata.namespace,
        name=claim.metadata.name,
        resource_version="1",
        state_sequence=sequence,
        allocation=msgspec.to_builtins(allocation),
        holds=[DeviceHold(request=result.request, driver=result.driver, pool=result.pool, device=result.device)],
        scopes=[fabric_scope("f")],
    )
    outcome = OutcomeRecorded(
        cluster=cluster, uid=claim.metadata.uid, decision_sequence=ledger_sequence, outcome="Applied"
    )
    return [allocate, outcome]


def reason(cluster: str, claim: ResourceClaim, stream_sequence: int) -> ReasonChanged:
    """A claim waits for a model that does not exist."""
    return ReasonChanged(
        cluster=cluster,
        uid=claim.metadata.uid,
        namespace=claim.metadata.namespace,
        name=claim.metadata.name,
        state="Pending",
        reason="NoMatchingDevice",
        message="no device of the class gpu.example.com matches its selectors",
        since_ms=0,
        order=stream_sequence,
    )
