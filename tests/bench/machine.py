"""The machine: pending claims decided in steps, and what one freed device costs while others wait."""

from collections.abc import Sequence
from functools import partial

import msgspec

from broker.allocation.allocate import allocate_claim
from broker.allocation.cel.engine import default_engine
from broker.allocation.index import DeviceIndex
from broker.allocation.reasons import NoFit
from broker.allocation.snapshot import Snapshot
from broker.machine import Machine
from broker.world.keys import DeviceKey, PoolKey, fabric_scope
from broker.world.usage import InUse, Use
from schemas.resource import ResourceClaim
from schemas.wire.ledger import Allocate, AnyEntry
from tests.bench.clusters import CLUSTERS, Log, a_leader, answer, run, settle
from tests.bench.fleet import a_claim_for, selects_model, some_pools, some_slices
from tests.bench.measure import Table, count, growth, least, ms, progress, ratio, timed, us
from tests.builders import CLASS, DRIVER, a_class

DEVICES = 500
PENDING = ((250, 500), (1_000, 500), (4_000, 500), (500, 500), (1_000, 1_000), (2_000, 2_000))  # claims and devices
WAITING = (100, 1_000, 5_000)
WAITING_DIFFERENT = 500  # at most: each of them is searched for by itself
FREED = 4


def measure(
    pending: Sequence[tuple[int, int]] = PENDING, waiting: Sequence[int] = WAITING, devices: int = DEVICES
) -> list[Table]:
    """Decide many claims, then free single devices."""
    return [_decide(pending), _free(waiting, devices)]


def _decide(sizes: Sequence[tuple[int, int]]) -> Table:
    rows = []
    together_before = answered_before = None
    for size, devices in sizes:
        if together_before and together_before[0] > size:
            together_before = answered_before = None
        progress(f"machine: {count(size)} pending claims on {count(devices)} devices")
        claims = _some_claims(size)
        together, answered, alone, decoding = least(
            3 if size <= 1_000 else 2,
            partial(_decide_together, claims, devices),
            partial(_answer_one_by_one, claims, devices),
            partial(_core_alone, claims, devices),
            partial(_decode_alone, claims),
        )
        placed = min(size, devices)
        rows.append(
            [
                count(size),
                count(devices),
                ms(together),
                count(size / together),
                growth(together_before, size, together),
                ratio(together, alone),
                ratio(together, decoding),
                ms(answered),
                count(placed / answered),
                growth(answered_before, size, answered),
            ]
        )
        together_before, answered_before = (size, together), (size, answered)
    header = [
        "pending",
        "devices",
        "decided ms",
        "claims/s",
        "growth",
        "to core alone",
        "to decoding",
        "answers ms",
        "answers/s",
        "growth",
    ]
    notes = [
        "Decided: from the claims' messages as bytes to ledger entries, for all of them; the index is cold.",
        "Core alone: the same claims placed by the allocation core, also cold, those that do not fit given up at once.",
        "Decoding: the same messages from bytes to dicts with msgspec.",
        "Answers: then every applied allocation is reported by a message that is a step of its own.",
    ]
    return Table("machine: claims for one of ten models", header, rows, notes)


def _free(sizes: Sequence[int], devices: int) -> Table:
    rows = []
    for name, is_alike in (("one template", True), ("all different", False)):
        before = None
        for size in sizes:
            if not is_alike:
                size = min(size, WAITING_DIFFERENT)
                if before and before[0] == size:
                    break
            progress(f"machine: a device is freed, {count(size)} claims wait ({name})")
            freeing = _Freeing(size, is_alike, devices)
            one, alone = least(FREED, freeing.free_one, freeing.core_alone)
            rows.append([name, count(size), ms(one), growth(before, size, one), us(one / size), ratio(one, alone)])
            before = (size, one)
    header = ["claims", "waiting", "freed ms", "growth", "us per waiting", "to core alone"]
    notes = [
        "Freed: a holder's tombstone as bytes, until its device is given to the next claim and all others wait again.",
        "Core alone: the next claim is placed by the allocation core on the same fleet with that device free.",
    ]
    return Table(f"machine: one device is freed, {devices} devices", header, rows, notes)


def _some_claims(size: int, namespace: str = "default") -> list[ResourceClaim]:
    return [a_claim_for(selects_model(index), index, namespace) for index in range(size)]


def _cluster_of(claim: ResourceClaim) -> str:
    return CLUSTERS[int(claim.metadata.name.rpartition("-")[2]) % 2]


def _heard(devices: int) -> tuple[Machine, Log]:
    """A machine that has heard both clusters and knows the devices."""
    log, machine = Log(), a_leader()
    log.start(some_slices(devices))
    log.finish_syncs()
    settle(machine, log, [])
    return machine, log


def _with_claims(claims: Sequence[ResourceClaim], devices: int) -> tuple[Machine, Log]:
    """The same, with the claims fed and not decided."""
    machine, log = _heard(devices)
    for claim in claims:
        log.publish_claim(_cluster_of(claim), claim)
    machine.feed(log.since(machine.world.position))
    return machine, log


def _decide_together(claims: Sequence[ResourceClaim], devices: int) -> float:
    machine, _ = _with_claims(claims, devices)
    return timed(lambda: list(run(machine)))


def _answer_one_by_one(claims: Sequence[ResourceClaim], devices: int) -> float:
    machine, log = _with_claims(claims, devices)
    answer(log, list(run(machine)), {claim.metadata.uid: claim for claim in claims})

    def hear_each() -> None:
        for message in log.since(machine.world.position):
            machine.feed([message])
            list(run(machine))

    return timed(hear_each)


def _core_alone(claims: Sequence[ResourceClaim], devices: int) -> float:
    pools = some_pools(devices, fabric_scope("f"))
    in_use = InUse()
    snapshot = Snapshot(pools=pools, classes={CLASS: a_class()}, in_use=in_use)
    index = DeviceIndex(default_engine())

    def place() -> None:
        hopeless: set[bytes] = set()
        for claim in claims:
            likeness = msgspec.json.encode(claim.spec)
            if likeness in hopeless:
                continue
            found = allocate_claim(claim, snapshot, index)
            if isinstance(found, NoFit):
                hopeless.add(likeness)
            else:
                in_use.update(
                    (
                        DeviceKey(PoolKey(fabric_scope("f"), each.driver, each.pool), each.device),
                        Use((claim.metadata.name,)),
                    )
                    for each in found.devices.results
                )

    return timed(place)


def _decode_alone(claims: Sequence[ResourceClaim]) -> float:
    log = Log()
    log.start([])
    for claim in claims:
        log.publish_claim(_cluster_of(claim), claim)
    return timed(lambda: [msgspec.json.decode(message.payload) for message in log.messages])


class _Freeing:
    """All devices are held, and claims that any of them would do for wait."""

    def __init__(self, waiting: int, is_alike: bool, devices: int) -> None:
        holders = [a_claim_for(_selects_any(0), index, "holders") for index in range(devices)]
        pending = [a_claim_for(_selects_any(0 if is_alike else index), index) for index in range(waiting)]
        self._claims = holders + pending
        self._machine, self._log = _heard(devices)
        for claims in (holders, pending):
            for claim in claims:
                self._log.publish_claim(_cluster_of(claim), claim)
            settle(self._machine, self._log, self._claims)
        assert len(self._machine.world.in_use) == devices
        self._leaving = iter(holders)
        # The same fleet for the core alone, which places the next claim again and again.
        self._pools = some_pools(devices, fabric_scope("f"))
        self._in_use = InUse(dict(list(self._machine.world.in_use.items())[1:]))
        self._index = DeviceIndex(default_engine())
        self._next = pending[0]
        self.core_alone()

    def free_one(self) -> float:
        holder = next(self._leaving)
        self._log.delete_claim(_cluster_of(holder), holder.metadata.uid)
        self._machine.feed(self._log.since(self._machine.world.position))
        decided: list[tuple[int, AnyEntry]] = []
        took = timed(lambda: decided.extend(run(self._machine)))
        assert sum(isinstance(entry, Allocate) for _, entry in decided) == 1, "a freed device goes to one claim"
        answer(self._log, decided, {claim.metadata.uid: claim for claim in self._claims})
        settle(self._machine, self._log, self._claims)
        return took

    def core_alone(self) -> float:
        snapshot = Snapshot(pools=self._pools, classes={CLASS: a_class()}, in_use=self._in_use)
        found: list[object] = []
        took = timed(lambda: found.append(allocate_claim(self._next, snapshot, self._index)))
        assert not isinstance(found[0], NoFit)
        return took


def _selects_any(number: int) -> str:
    return f'device.attributes["{DRIVER}"].index >= 0 && device.attributes["{DRIVER}"].model != "other-{number}"'
