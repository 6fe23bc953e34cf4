"""What must always be true (DESIGN, section 3), checked from the outside: from the API servers and the ledger.

The ledger is folded here a second time, by code that shares nothing with the broker's.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from broker.errors import InvariantError
from broker.machine import Machine
from broker.machine.segments import SegmentFold
from broker.world.check import check
from broker.world.federation import Federation
from broker.world.keys import ClaimKey, ClaimUid, ClusterId
from broker.world.world import World
from cluster_agent.mirror.actions import WriteAllocation
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import decode_agent_message, decode_claim_state, decode_entry, decode_object_state, peek_epoch
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    ClaimForgotten,
    ClusterCordoned,
    ClusterEntry,
    ClusterEvicted,
    ClusterExcluded,
    ClusterReadmitted,
    CollisionFound,
    DeviceHold,
    DeviceTainted,
    DeviceUntainted,
    FenceLifted,
    GrantEnded,
    Inputs,
    LeaderElected,
    LedgerRebuilt,
    LivenessChanged,
    OutcomeRecorded,
    ReasonChanged,
    Release,
    SegmentClosed,
    SegmentOpened,
    entry_place,
    inputs_of,
)
from schemas.wire.state import ObjectName, SyncFinished
from schemas.wire.subjects import parse_state_subject
from tests.simulation.cluster import MEMORY, Allocation, SimCluster
from tests.simulation.streams import Batch, StateLog

ClaimRef = tuple[str, str]  # cluster and UID
DeviceRef = tuple[str, str, str, str]  # scope, driver, pool, device


ALL_EVERY = 8  # batches
OF_CLAIMS = (
    Adopted,
    Allocate,
    ClaimForgotten,
    CollisionFound,
    GrantEnded,
    OutcomeRecorded,
    ReasonChanged,
    Release,
)


class Violation(AssertionError):  # noqa: N818  # a finding, not an error of the program
    """Something that must always be true is not."""


def require(condition: object, text: str) -> None:
    """Raises: Violation."""
    if not condition:
        raise Violation(text)


@dataclass
class HeldGrant:
    """A grant as the ledger alone tells it. allocation: the one in the cluster that it was adopted from."""

    claim: ClaimRef
    sequence: int
    holds: tuple[DeviceHold, ...]
    devices: list[tuple[DeviceRef, int]]  # with the shares of each; 0: all of it
    is_adopted: bool
    allocation: Allocation | None = None
    unscheduled: frozenset[str] = frozenset()
    was_applied: bool = False
    is_released: bool = False


@dataclass
class Oracle:
    """Told of everything that becomes true; says at once when that must not be.

    writes_under_way: all writes of allocations that may still arrive. shares: of each device, by pool; else it has one.
    """

    federation: Federation
    clusters: dict[str, SimCluster]
    log: StateLog
    writes_under_way: Callable[[], Iterable[tuple[SimCluster, WriteAllocation]]]
    shares: dict[str, int] = field(default_factory=dict)
    grants: dict[int, HeldGrant] = field(default_factory=dict)
    unsettled: dict[ClaimRef, int] = field(default_factory=dict)
    spent: dict[ClaimRef, set[frozenset[str]]] = field(default_factory=dict)
    tainted: dict[DeviceRef, set[str]] = field(default_factory=dict)  # keys; never empty
    dead_letters: set[int] = field(default_factory=set)  # stream sequences
    replica: World = field(init=False)
    leader_epoch: int = 0
    last_order: int = 0  # ledger sequence of the last entry about a cluster
    position: int = 0
    liveness: dict[str, str] = field(default_factory=dict)  # of clusters that were ever silent
    is_lost: bool = False  # the ledger, or its end: nothing may be decided before an operator has rebuilt it
    forgotten: dict[int, HeldGrant] = field(default_factory=dict)  # those of ledgers that were lost
    must_clean: set[str] = field(default_factory=set)  # clusters where a forgotten decision may land yet
    cut_off: set[str] = field(default_factory=set)  # evicted as fenced, and not let back: what they show is void
    _over: dict[str, list[int]] = field(default_factory=dict)  # epochs below which an eviction ended all runs
    evicted: set[str] = field(default_factory=set)  # fenced or not, and not let back
    _cordoned: set[str] = field(default_factory=set)
    _excluded: set[str] = field(default_factory=set)
    _synced: set[str] = field(default_factory=set)
    _just_synced: dict[str, int] = field(
        default_factory=dict
    )  # by the batch that is looked at; sequence of the message
    _readmitted: dict[str, int] = field(default_factory=dict)  # ledger sequence of the last readmission
    _decided: set[ClaimRef] = field(default_factory=set)  # claims that had a decision
    _batches: int = 0
    _last_sequence: int = 0
    _segment: int = 0

    def __post_init__(self) -> None:
        self.replica = World(self.federation)
        self._fold = SegmentFold(self.replica, 0)

    # --- API servers

    def on_allocated(self, allocation: Allocation) -> None:
        """An allocation has just been set."""
        if allocation.cluster in self.cut_off:
            return  # an operator vouches that nothing there reaches a device
        if isinstance(allocation.author, int):
            grant = self.grants.get(allocation.author)
            if grant is None and (self.is_lost or allocation.cluster in self.must_clean):
                grant = self.forgotten.get(allocation.author)
            require(grant, f"{_name(allocation)} was written for decision {allocation.author}, whose grant has ended")
            assert grant is not None
            require(
                grant.claim == (allocation.cluster, allocation.uid) and grant.holds == allocation.holds,
                f"{_name(allocation)} was written for decision {allocation.author}, which says {grant}",
            )
        self._check_alone(allocation)

    def _check_alone(self, allocation: Allocation) -> None:
        if not allocation.counts:
            return
        mine = self.devices(allocation)
        there = [
            other
            for cluster in self.clusters.values()
            for other in (cluster.allocations.values() if cluster.name not in self.cut_off else ())
            if other is not allocation and other.counts and not mine.keys().isdisjoint(self.devices(other))
        ]
        held = [list(mine.items()), *(list(self.devices(other).items()) for other in there)]
        if there and (too_much := self.too_much(held)):
            names = ", ".join(_name(each) for each in [allocation, *there])
            raise Violation(f"more of {too_much} is allocated than there is: {names}")

    def too_much(self, held: Iterable[Iterable[tuple[DeviceRef, int]]]) -> list[DeviceRef]:
        """Devices of which these hold more shares than there are."""
        sums: Counter[DeviceRef] = Counter()
        for holds in held:
            for device, shares in holds:
                sums[device] += shares or self.capacity(device)
        return sorted(device for device, shares in sums.items() if shares > self.capacity(device))

    def capacity(self, device: DeviceRef) -> int:
        """Into how many shares it can be divided."""
        return self.shares.get(device[2], 1)

    # --- the ledger

    def on_stored(self, batch: Batch, writer: Machine | None) -> None:
        """A batch has just been stored. writer: the machine that made it, if it still runs."""
        entries = [decode_entry(message.payload) for message in batch.messages]
        if any(isinstance(entry, LedgerRebuilt) for entry in entries):
            self._begin_again(batch)
            return
        require(batch.expected_last == self._last_sequence, "the ledger has a gap")
        if self.is_lost:
            # Who was to be elected may not know yet; that it then decides nothing is required by the same line.
            is_over = [*map(type, entries)] in ([SegmentClosed], [LeaderElected])
            require(is_over, f"{batch.entries} on what is left of a lost ledger")
            self._last_sequence += 1
            return
        before = self.position
        inputs = inputs_of(entries[-1])
        if not batch.is_of_checkpoint:
            self._check_shape(entries)
            if inputs is not None:
                self._inputs(inputs)
            for sequence, entry in enumerate(entries, start=batch.expected_last + 1):
                self._apply(entry, sequence)
        if batch.segment > self._segment:
            # From what it knows itself, and not from the checkpoint.
            self._segment, self._fold = batch.segment, SegmentFold(self.replica, batch.segment)
        try:
            self._fold.add(batch.messages)
        except InvariantError as error:
            raise Violation(f"the ledger cannot be folded: {error}") from error
        self._last_sequence = batch.expected_last + len(entries)
        if writer is not None and inputs is not None:
            try:
                check(writer.world)
            except InvariantError as error:
                raise Violation(f"the committed world is wrong: {error}") from error
            named = {
                ClaimKey(ClusterId(each.cluster), ClaimUid(each.uid)) for each in entries if isinstance(each, OF_CLAIMS)
            }
            self._batches += 1
            # What a batch does not name it does not change; if it does, that shows after the next few.
            same_by_ledger(self.replica, writer.world, named if self._batches % ALL_EVERY else None)
            self._check_taken_in(writer.world, before)

    def lose(self, last_sequence: int) -> None:
        """The ledger ends here now (0: it is gone), and what came after it is forgotten. What clusters have is not."""
        self.is_lost, self._last_sequence = True, last_sequence
        self.forgotten |= self.grants
        if not last_sequence:
            require(not self.evicted, "an operator would have to evict again")
            self._cordoned.clear()

    def _begin_again(self, batch: Batch) -> None:
        """An operator has rebuilt it: nobody holds anything, and nobody was heard; what was ordered may be known."""
        require(self.is_lost, "a ledger is rebuilt that was not lost")
        first, last = batch.messages[0].stream_sequence, batch.messages[-1].stream_sequence
        require(first > max(self.forgotten, default=0), "the rebuilt ledger begins below decisions of before")
        self.is_lost, self.leader_epoch, self.position = False, 0, self.log.last_sequence
        self._last_sequence, self._segment = last, batch.segment
        self.grants, self.unsettled, self.spent, self.liveness, self.tainted = {}, {}, {}, {}, {}
        self._excluded, self._synced, self._just_synced, self._decided = set(), set(), {}, set()
        self.must_clean = set(self.clusters)
        for name in self.clusters:
            self._over.setdefault(name, []).append(self.position + 1)
        self._readmitted = dict.fromkeys(self._readmitted, first)
        self.replica = World(self.federation)
        self._fold = SegmentFold(self.replica, batch.segment)
        self._fold.add(batch.messages)
        for entry in (decode_entry(message.payload) for message in batch.messages):
            if isinstance(entry, DeviceTainted):  # as much as was left of them
                self.tainted.setdefault((entry.scope, entry.driver, entry.pool, entry.device), set()).add(entry.key)

    def _check_shape(self, entries: list[AnyEntry]) -> None:
        first = entries[0]
        if isinstance(first, SegmentOpened):
            require(self._last_sequence == 0 and len(entries) == 2, "a segment is opened in the middle of the ledger")
        elif not isinstance(first, LeaderElected):
            require(inputs_of(entries[-1]), f"a batch ends with {entries[-1]}, without its inputs")
            others = [
                entry for entry in entries[:-1] if inputs_of(entry) or isinstance(entry, LeaderElected | SegmentOpened)
            ]
            require(not others, f"a batch holds {others} before its inputs")
            require(
                all(each.inputs is None or each.inputs.is_plain or entry_place(each)[0] == "_" for each in entries),
                f"what concerns all clusters is told to one of them by {entries[-1]}",
            )

    def _apply(self, entry: AnyEntry, sequence: int) -> None:
        match entry:
            case LeaderElected():
                self.leader_epoch = sequence
            case Allocate():
                self._allocate(entry, sequence)
            case Adopted():
                self._adopted(entry, sequence)
            case Release():
                claim = (entry.cluster, entry.uid)
                require(claim not in self.unsettled, f"Release {sequence} for {claim}, which has an unsettled decision")
                require(entry.grant_sequence in self.grants, f"Release {sequence} of a grant that is not there")
                self.grants[entry.grant_sequence].is_released = True
                self.unsettled[claim] = sequence
                self._decided.add(claim)
            case OutcomeRecorded():
                self._outcome(entry)
            case GrantEnded():
                self._grant_ended(entry)
            case ClusterEntry():
                self._cluster(entry, sequence)
            case DeviceTainted() | DeviceUntainted():
                self._device(entry, sequence)
            case _:
                pass

    def holds_nothing_unknown(self, cluster: str) -> bool:
        """Whether an operator may vouch for it: all that the cluster shows, or may show yet, is granted to it."""
        if cluster in self.must_clean:
            return False
        granted = {grant.claim: grant.holds for grant in self.grants.values()}
        return all(
            granted.get((cluster, uid)) == allocation.holds or not allocation.counts
            for uid, allocation in self.clusters[cluster].allocations.items()
        )

    def _device(self, entry: DeviceTainted | DeviceUntainted, sequence: int) -> None:
        device = (entry.scope, entry.driver, entry.pool, entry.device)
        keys = self.tainted.setdefault(device, set())
        if isinstance(entry, DeviceUntainted):
            keys.remove(entry.key)
            if not keys:
                del self.tainted[device]
        else:
            keys.add(entry.key)
        if (report := entry.report) is None:
            return
        claim = (report.cluster, report.uid)
        holds = [each for each in self.grants.values() if each.claim == claim and device in dict(each.devices)]
        require(holds, f"{sequence} is about {device}, of which {claim} has spoken and which it does not hold")
        if isinstance(entry, DeviceTainted):
            said = self.clusters[report.cluster].broken.get(report.uid, set())
            require((entry.pool, entry.device) in said, f"{sequence}: nobody has reported {device} unhealthy")

    def _cluster(self, entry: ClusterEntry, sequence: int) -> None:
        name = entry.cluster
        self.last_order = sequence
        match entry:
            case LivenessChanged():
                was_lost = self.liveness.get(name) in ("Lost", "Returning")
                require(
                    not (was_lost and entry.state in ("Live", "Stale")) or name in self._just_synced,
                    f"{name} was lost, and is {entry.state} before it finished a full sync",
                )
                self.liveness[name] = entry.state
            case ClusterCordoned():
                (self._cordoned.add if entry.is_cordoned else self._cordoned.discard)(name)
            case ClusterExcluded():
                (self._excluded.add if entry.is_excluded else self._excluded.discard)(name)
            case ClusterEvicted():
                self.evicted.add(name)
                self._over.setdefault(name, []).append(entry.state_sequence + 1)
                self.liveness[name] = "Live"
                if entry.is_fenced:
                    self.cut_off.add(name)
                    self._synced.discard(name)
            case ClusterReadmitted():
                self._readmitted[name] = sequence
                if entry.is_fenced:
                    self._decided = {claim for claim in self._decided if claim[0] != name}
                    self.spent = {claim: spent for claim, spent in self.spent.items() if claim[0] != name}
            case FenceLifted():
                said = decode_agent_message(self.log.archive[self._just_synced[name] - 1].payload)
                require(
                    isinstance(said, SyncFinished) and said.readmission == self._readmitted[name],
                    f"the fence of {name} is lifted by {said}, not by a run that knows of {self._readmitted[name]}",
                )
                self.evicted.discard(name)
                self.cut_off.discard(name)
                for allocation in self.clusters[name].allocations.values():
                    self._check_alone(allocation)

    def _inputs(self, entry: Inputs) -> None:
        require(
            entry.leader_epoch == self.leader_epoch,
            f"leader {entry.leader_epoch} appends after leader {self.leader_epoch} was elected",
        )
        for step in entry.steps:
            require(step.position >= self.position, f"inputs go back from {self.position} to {step.position}")
            self.position = step.position
        require(self.position <= self.log.last_sequence, "inputs cover messages that do not exist")
        if entry.position_expired:
            self._synced.clear()
        self._just_synced = entry.synced
        self._synced |= entry.synced.keys()
        self.must_clean -= entry.synced.keys()

    def _allocate(self, entry: Allocate, sequence: int) -> None:
        claim = (entry.cluster, entry.uid)
        tainted = [ref for ref, _ in _devices(entry.holds, entry.scopes) if ref in self.tainted]
        require(not tainted, f"Allocate {sequence} gives {tainted}, which are tainted, and {claim} tolerates nothing")
        require(claim not in self.unsettled, f"Allocate {sequence} for {claim}: {self.unsettled.get(claim)} unsettled")
        require(0 < entry.state_sequence <= self.position, f"Allocate {sequence} was decided on inputs not recorded")
        message = self.log.archive[entry.state_sequence - 1]
        subject = parse_state_subject(message.subject)
        require(
            subject and (subject.cluster, subject.kind, subject.key) == (entry.cluster, "claim", entry.uid),
            f"Allocate {sequence} names message {entry.state_sequence}, which is on {message.subject}",
        )
        state = decode_claim_state(message.payload)
        require(
            not state.is_tombstone and state.resource_version == entry.resource_version,
            f"Allocate {sequence} names rv {entry.resource_version}, its message says {state.resource_version}",
        )
        for fabric in self.federation.fabrics:
            if f"fabric/{fabric.name}" in entry.scopes:
                must = {fabric.source, *fabric.clusters, *([self.federation.hub] if self.federation.hub else [])}
                silent = must - self._synced - self._excluded - self.cut_off
                require(not silent, f"Allocate {sequence} before {sorted(silent)} finished a full sync")
                require(
                    fabric.source not in self.evicted and self.liveness.get(fabric.source, "Live") == "Live",
                    f"Allocate {sequence} of {fabric.name}, whose source is silent or evicted",
                )
        require(
            entry.cluster in self._synced - self.evicted - self._cordoned
            and self.liveness.get(entry.cluster, "Live") == "Live",
            f"Allocate {sequence} for {entry.cluster}, which is silent, evicted, cordoned or was never heard",
        )
        devices = _devices(entry.holds, entry.scopes)
        grant = HeldGrant(claim, sequence, tuple(entry.holds), devices, False, unscheduled=frozenset(entry.unscheduled))
        self._begin(grant)
        self.unsettled[claim] = sequence
        self._decided.add(claim)

    def _adopted(self, entry: Adopted, sequence: int) -> None:
        message = self.log.archive[entry.state_sequence - 1]
        version = decode_claim_state(message.payload).resource_version
        shown = self.clusters[entry.cluster].allocation_at(entry.uid, int(version))
        require(
            shown and shown.holds == tuple(entry.holds), f"adoption {sequence} of {entry.holds}, message shows {shown}"
        )
        claim = (entry.cluster, entry.uid)
        self._begin(
            HeldGrant(claim, sequence, tuple(entry.holds), _devices(entry.holds, entry.scopes), True, allocation=shown)
        )

    def _begin(self, grant: HeldGrant) -> None:
        mine = {device for device, _ in grant.devices}
        others = [
            other
            for other in self.grants.values()
            if other.claim != grant.claim and any(device in mine for device, _ in other.devices)
        ]
        if others and (too_much := self.too_much([grant.devices, *(other.devices for other in others)])):
            raise Violation(f"more of {too_much} is granted than there is: {[grant, *others]}")
        self.grants[grant.sequence] = grant

    def _outcome(self, entry: OutcomeRecorded) -> None:
        claim = (entry.cluster, entry.uid)
        require(
            self.unsettled.get(claim) == entry.decision_sequence,
            f"outcome of {entry.decision_sequence} for {claim}, which waits for {self.unsettled.get(claim)}",
        )
        del self.unsettled[claim]
        grant = self.grants.get(entry.decision_sequence)
        if grant is not None and entry.outcome == "Applied":
            grant.was_applied = True
        elif entry.outcome != "Applied":
            for each in self.grants.values():
                if each.claim == claim:
                    each.is_released = False

    def _grant_ended(self, entry: GrantEnded) -> None:
        grant = self.grants.pop(entry.grant_sequence, None)
        require(grant, f"grant {entry.grant_sequence} ends twice")
        assert grant is not None
        cluster = self.clusters[entry.cluster]
        if entry.cause == "ClusterEvicted":
            require(entry.cluster in self.cut_off, f"grant {grant.sequence} ends by an eviction that there is not")
            return
        if entry.cause in ("ClaimDeleted", "ClaimMissing"):
            # A claim that never had a decision, and is not brokered any more, is not told of any more.
            forgotten = entry.cause == "ClaimMissing" and grant.is_adopted and grant.claim not in self._decided
            require(
                entry.uid in cluster.deleted or forgotten,
                f"grant {grant.sequence} ends by {entry.cause}, {grant.claim} still lives",
            )
        shown = cluster.allocations.get(entry.uid)
        still = shown is not None and (
            shown.author == grant.sequence if not grant.is_adopted else shown == grant.allocation
        )
        require(not still, f"grant {grant.sequence} ends ({entry.cause}) while {shown} is its allocation")
        for where, write in self.writes_under_way():
            if where is cluster and write.ledger_sequence == grant.sequence and write.claim.uid == entry.uid:
                require(
                    not cluster.can_land(write), f"grant {grant.sequence} ends while a write of its allocation may land"
                )
        if grant.was_applied and not grant.is_released and entry.cause != "AllocationRejected":
            self.spent.setdefault(grant.claim, set()).add(grant.unscheduled)

    def _check_taken_in(self, world: World, before: int) -> None:
        """Every message since the last batch was applied or kept aside."""
        newest = {message.subject: message for message in self.log.read(before, self.position)}
        for message in newest.values():
            subject = parse_state_subject(message.subject)
            if subject is None or subject.kind == "agent" or message.stream_sequence in self.dead_letters:
                continue
            if self._is_of_an_older_run(message):
                continue  # ignored and asked for again
            record = self.replica.cluster(ClusterId(subject.cluster))
            is_over = (peek_epoch(message.payload) or 0) < record.epoch <= message.stream_sequence
            if is_over or record.is_silenced(message.stream_sequence):
                continue  # its cluster was evicted after all
            cluster = next(each for name, each in world.clusters.items() if name == subject.cluster)
            known = cluster.known.get(ObjectName(subject.kind, subject.key))
            decode = decode_claim_state if subject.kind == "claim" else decode_object_state
            is_gone = decode(message.payload).is_tombstone
            applied = known is None if is_gone else known == message.stream_sequence
            # Gone, and the tombstone was lost by the log: the sync after it says so.
            applied |= known is None and cluster.synced_sequence > message.stream_sequence
            require(
                applied, f"message {message.stream_sequence} on {message.subject} was passed over: known is {known}"
            )

    def _is_of_an_older_run(self, message: StoredMessage) -> bool:
        subject = parse_state_subject(message.subject)
        assert subject is not None
        starts = (each for each in self.log.starts[subject.cluster] if each <= message.stream_sequence)
        ended = (each for each in self._over.get(subject.cluster, ()) if each <= message.stream_sequence)
        return (peek_epoch(message.payload) or 0) < max(*starts, *ended, 0, 0)

    def devices(self, allocation: Allocation) -> dict[DeviceRef, int]:
        """With the shares of each; 0: all of it."""
        found: dict[DeviceRef, int] = {}
        for hold in allocation.holds:
            device = (self.federation_scope(allocation.cluster, hold), hold.driver, hold.pool, hold.device)
            found[device] = found.get(device, 0) + shares_of(hold)
        return found

    def federation_scope(self, cluster: str, hold: DeviceHold) -> str:
        """The scope of a pool, by the config."""
        fabric = self.federation.fabric_of(hold.driver, hold.pool)
        return f"fabric/{fabric.name}" if fabric and fabric.concerns(ClusterId(cluster)) else f"cluster/{cluster}"


def same_by_ledger(replayed: World, live: World, named: Collection[ClaimKey] | None = None) -> None:
    """What the ledger alone tells must be what the live world says.

    named: the claims that are looked at; None: all.
    Raises: Violation.
    """
    for key in live.claims.keys() if named is None else named:
        claim, other = live.claims.get(key), replayed.claims.get(key)
        if claim is None:
            continue
        if other is None:
            require(
                not claim.grants and not claim.unsettled, f"{key} has {claim.grants}, the ledger knows nothing of it"
            )
            continue
        for name in (
            "grants",
            "unsettled",
            "last_decision",
            "spent",
            "avoid",
            "failures",
            "not_before_ms",
            "collision",
        ):
            ours, theirs = getattr(claim, name), getattr(other, name)
            if ours != theirs:
                raise Violation(f"{name} of {key}: live {ours}, replayed {theirs}")
        waiting, again = claim.waiting, other.waiting
        require((waiting is None) == (again is None), f"reason of {key}: live {waiting}, replayed {again}")
        if waiting is not None and again is not None:
            same = (waiting.state, waiting.reason, waiting.order) == (again.state, again.reason, again.order)
            if not same:
                raise Violation(f"reason of {key}: live {waiting}, replayed {again}")
    for key in replayed.claims.keys() if named is None else named:
        other = replayed.claims.get(key)
        if other is not None and key not in live.claims:
            require(
                not other.grants and not other.unsettled, f"the ledger has {other.grants} for {key}, live forgot it"
            )
    for name in live.clusters.keys() | replayed.clusters.keys():
        ours, theirs = live.cluster(name), replayed.cluster(name)
        for at in ("epoch", "synced_sequence", "liveness", "cordon", "exclusion", "eviction", "silences"):
            mine, other_s = getattr(ours, at), getattr(theirs, at)
            if mine != other_s:
                raise Violation(f"{at} of {name}: live {mine}, replayed {other_s}")
    require(live.position == replayed.position, f"position: live {live.position}, replayed {replayed.position}")
    require(live.told_classes == replayed.told_classes, "what members were told differs")
    require(live.taints == replayed.taints, f"taints: live {live.taints}, replayed {replayed.taints}")


def shares_of(hold: DeviceHold) -> int:
    """How much of its device it holds; 0: all of it."""
    return int(hold.consumed_capacity.get(MEMORY, "0")) if hold.share_id else 0


def _devices(holds: Iterable[DeviceHold], scopes: Iterable[str]) -> list[tuple[DeviceRef, int]]:
    return [
        ((scope, hold.driver, hold.pool, hold.device), shares_of(hold))
        for hold, scope in zip(holds, scopes, strict=True)
    ]


def _name(allocation: Allocation) -> str:
    devices = ", ".join(f"{hold.pool}/{hold.device}" for hold in allocation.holds)
    return f"allocation of {devices} in {allocation.cluster}/{allocation.uid} (by {allocation.author})"
