"""Stage times: what the broker spends on them for a claim, beside all else that it does for one."""

import gc
import time
from collections.abc import Sequence
from functools import partial

from broker.app.envelopes import Envelopes
from broker.app.metrics import BrokerMetrics
from broker.app.stage_times import StageTimes
from broker.machine import Machine
from schemas.resource import ResourceClaim
from schemas.wire.bus import HeaderBlock, StoredMessage, header_block
from schemas.wire.chain import Message
from schemas.wire.ledger import Allocate, AnyEntry
from tests.bench.clusters import CLUSTERS, Log, a_leader, answer, settle
from tests.bench.fleet import a_claim_for, selects_model, some_slices
from tests.bench.measure import Table, count, least, progress, ratio, us

CLAIMS = 2_000
REPEATS = 5
ALL_MODELS = 320  # devices, in which each model occurs twice
_NOW_MS = 1_800_000_000_000


def measure(claims: int = CLAIMS) -> list[Table]:
    """Decide claims and hear of their outcomes, with stage times and without."""
    progress(f"tracing: {count(claims)} claims with stage times and without")
    some = [a_claim_for(selects_model(index), index) for index in range(claims)]
    with_times, without = least(REPEATS, partial(_cpu, some, has_times=True), partial(_cpu, some, has_times=False))
    return [
        Table(
            "tracing: microseconds of the broker's CPU for each claim",
            ["claims", "with stage times", "without", "ratio", "entry with, bytes", "without"],
            [
                [
                    count(claims),
                    us(with_times / claims),
                    us(without / claims),
                    ratio(with_times, without),
                    *(count(_entry_bytes(some[0], has_times=each)) for each in (True, False)),
                ]
            ],
            [
                "From messages that have come to batches as bytes, and to their headers read again by who makes events",
                "of them: decisions and outcomes, no deletions. Without NATS, so all of it is the broker's own work.",
            ],
        )
    ]


class _Broker:
    """What a broker does between reading messages and sending batches."""

    def __init__(self, machine: Machine, *, has_times: bool) -> None:
        self.machine = machine
        self.sent: list[bytes] = []  # header blocks
        self._stages = StageTimes() if has_times else None
        self._envelopes = Envelopes("main", 0, "bench")
        self._metrics = BrokerMetrics()
        self._last: Message | None = None
        if self._stages is not None:
            machine.core.observer = self._stages

    def hear(self, messages: Sequence[StoredMessage]) -> list[tuple[int, AnyEntry]]:
        """The entries that follow, with their sequences."""
        found: list[tuple[int, AnyEntry]] = []
        stages = self._stages
        if stages is not None:
            stages.arrived(messages)
        self.machine.feed(messages)
        while self.machine.has_work(_NOW_MS):
            if stages is not None:
                stages.step_begins()
            effects = self.machine.step(_NOW_MS)
            headers: list[dict[str, str]] = []
            if stages is not None:
                stages.step_ended()
                headers, decided = stages.headers(effects), stages.decisions(effects)
            if not effects.entries:
                continue
            batch = self._envelopes.batch(effects.entries, effects.first_sequence, _NOW_MS, self._last, headers)
            self._last = batch[-1]
            for message in batch:
                self.sent.append(header_block(message.headers))
                assert HeaderBlock(self.sent[-1])["traceparent"]
            if stages is not None:
                self._metrics.decided(decided, time.time_ns() // 1_000)
            found += enumerate(effects.entries, start=effects.first_sequence)
        return found


def _cpu(claims: Sequence[ResourceClaim], *, has_times: bool) -> float:
    """Seconds of this process's CPU for the decisions and the outcomes of all claims."""
    machine, log = a_leader(), Log()
    log.start(some_slices(len(claims) + ALL_MODELS))
    log.finish_syncs()
    settle(machine, log, [])
    broker = _Broker(machine, has_times=has_times)
    for index, claim in enumerate(claims):
        log.publish_claim(CLUSTERS[index % 2], claim)
    gc.collect()
    spent = -time.process_time()
    entries = broker.hear(log.since(machine.world.position))
    spent += time.process_time()
    assert sum(isinstance(entry, Allocate) for _, entry in entries) == len(claims), "a device for each"
    answer(log, entries, {claim.metadata.uid: claim for claim in claims})
    gc.collect()
    spent -= time.process_time()
    broker.hear(log.since(machine.world.position))
    return spent + time.process_time()


def _entry_bytes(claim: ResourceClaim, *, has_times: bool) -> int:
    """Of an Allocate's headers."""
    machine, log = a_leader(), Log()
    log.start(some_slices(ALL_MODELS))
    log.finish_syncs()
    settle(machine, log, [])
    broker = _Broker(machine, has_times=has_times)
    log.publish_claim(CLUSTERS[0], claim)
    broker.hear(log.since(machine.world.position))
    return max(len(block) for block in broker.sent)
