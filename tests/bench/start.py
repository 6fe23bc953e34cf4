"""A start: the world from the ledger and from what clusters said, against reading the same bytes alone."""

from collections.abc import Sequence

import msgspec

from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.machine import Identity, Machine, recovery
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
from tests.believing import believe_again
from tests.bench.clusters import CLUSTERS, Log, federation, run
from tests.bench.fleet import a_claim_for, in_order, selects_model, some_pools, some_slices
from tests.bench.measure import Table, count, growth, least, ms, progress, ratio, timed, us

SIZES = (1_000, 10_000, 50_000)


def measure(sizes: Sequence[int] = SIZES) -> list[Table]:
    """Of 2/3 N claims half hold a device, with two entries and two messages each; the others wait, with one of each."""
    rows = []
    before = None
    for size in sizes:
        progress(f"start: {count(size)} ledger entries, {count(size)} state messages")
        history = _History(size)
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


class _History:
    """A ledger and a log as a broker left them, and the machine of the one that starts from them."""

    def __init__(self, size: int) -> None:
        holding = size // 3
        claims = [a_claim_for(selects_model(index), index) for index in range(holding)]
        waiting = [
            a_claim_for(selects_model(0).replace("model-0", "none"), index) for index in range(holding, size - holding)
        ]
        log = Log()
        log.start(some_slices(holding))
        entries: list[AnyEntry] = [
            SegmentOpened(shard="main", segment=0),
            LeaderElected(instance="bench", build="bench"),
            Inputs(leader_epoch=2, epochs=log.epochs()),
        ]
        devices = (
            DeviceRequestAllocationResult(request="gpu", driver=pool.key.driver, pool=pool.key.pool, device=device.name)
            for pool, _, device in in_order(some_pools(holding, fabric_scope("f")))
        )
        for index, (claim, result) in enumerate(zip(claims, devices, strict=True)):
            entries += _held(log, CLUSTERS[index % 2], claim, result, len(entries) + 1)
        for index, claim in enumerate(waiting):
            cluster = CLUSTERS[index % 2]
            sequence = log.publish_claim(cluster, claim)
            entries.append(_reason(cluster, claim, sequence))
        log.finish_syncs()
        end = len(log.messages)
        entries.append(Inputs(leader_epoch=2, steps=[Step(end, 0)], synced=dict.fromkeys(CLUSTERS, end)))
        self._state = log.messages
        self._ledger = [
            StoredMessage("ledger", encode(entry), {}, sequence, 0) for sequence, entry in enumerate(entries, start=1)
        ]
        self._machine: Machine

    def fold(self) -> float:
        self._machine = Machine(World(federation()), DeviceIndex(default_engine()), Identity("bench", "bench", "none"))
        return timed(lambda: recovery.fold_ledger(self._machine, self._ledger))

    def believe(self) -> float:
        return timed(lambda: believe_again(self._machine, self._state))

    def first_steps(self) -> float:
        def decide() -> None:
            recovery.resume(self._machine)
            list(run(self._machine))

        return timed(decide)

    def to_dicts(self) -> float:
        def decode() -> None:
            for message in (*self._ledger, *self._state):
                msgspec.json.decode(message.payload)

        return timed(decode)

    def to_structs(self) -> float:
        claims = msgspec.json.Decoder(_ClaimMessage)

        def decode() -> None:
            for message in self._ledger:
                decode_entry(message.payload)
            for message in self._state:
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


def _reason(cluster: str, claim: ResourceClaim, stream_sequence: int) -> ReasonChanged:
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
