"""The ledger as anyone may read it: who holds what, folded without a line of the broker's own code.

Every entry is checked on the way: no device is held twice, and nobody but the last elected leader writes.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping
from itertools import count

from schemas.client.connection import Connection
from schemas.client.follow import follow
from schemas.quantity import Quantity
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import decode_entry
from schemas.wire.ledger import (
    Adopted,
    Allocate,
    AnyEntry,
    CollisionFound,
    DeviceHold,
    GrantEnded,
    LeaderElected,
    OutcomeRecorded,
    ReasonChanged,
    Release,
    SegmentClosed,
    SegmentOpened,
    inputs_of,
)
from schemas.wire.subjects import ledger_stream

Claim = tuple[str, str]  # cluster and UID
Device = tuple[str, str, str, str]  # scope, driver, pool and name


class LedgerView:
    """What the ledger says up to `last`.

    capacity: of the devices that are shared, by their name. holders: the grant that holds a device. shares: what the
    grants have of a shared device. grants: the devices of each grant that has not ended, by its sequence.
    """

    def __init__(self, capacity: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self.last = 0
        self.capacity = capacity or {}
        self.holders: dict[Device, int] = {}
        self.shares: dict[Device, list[tuple[int, dict[str, str]]]] = {}
        self.grants: dict[int, tuple[Claim, list[Device]]] = {}
        self.applied: set[int] = set()
        self.unsettled: dict[Claim, int] = {}
        self.names: dict[Claim, str] = {}
        self.waiting: dict[Claim, str] = {}
        self.leaders: list[tuple[int, str]] = []
        self.synced: set[str] = set()
        self.algorithms: set[int] = set()
        self.allocates = 0
        self.decisions = 0  # and releases, and why claims wait
        self.outcomes = 0
        self.collisions = 0
        self.segments = 1
        self.is_between = False  # a segment is closed and the next one is not open yet
        self._checkpoint_left = 0  # entries
        self._stated_again: set[int] = set()

    @property
    def allocated(self) -> dict[Claim, list[Device]]:
        """What claims hold by a decision that their cluster has carried out."""
        return {claim: devices for grant, (claim, devices) in self.grants.items() if grant in self.applied}

    def fold(self, messages: Iterable[StoredMessage]) -> None:
        """Go on by these entries."""
        for message in messages:
            assert message.stream_sequence == self.last + 1, f"entry {message.stream_sequence} follows {self.last}"
            self.last = message.stream_sequence
            self._apply(decode_entry(message.payload))

    def _apply(self, entry: AnyEntry) -> None:
        if self._checkpoint_left and not isinstance(entry, SegmentOpened):
            self._state_again(entry)
            return
        self.decisions += isinstance(entry, Allocate | Release | ReasonChanged)
        inputs = inputs_of(entry)
        if inputs is not None:
            assert inputs.leader_epoch == self.leaders[-1][0], f"{self.last} is not by the leader, {self.leaders}"
            self.synced.update(inputs.synced)
            if inputs.steps:  # else it only keeps a checkpoint and what follows it apart
                self.algorithms.add(inputs.algorithm)
        match entry:
            case SegmentOpened():
                assert self.is_between == (entry.segment > 0), f"{self.last} opens a segment, another is not closed"
                self._checkpoint_left, self._stated_again = entry.entries, set()
            case SegmentClosed():
                self.is_between = True
            case _ if self.is_between:
                raise AssertionError(f"{self.last} is in a segment that is not open: {entry}")
            case LeaderElected():
                self.leaders.append((self.last, entry.instance))
            case Allocate() | Adopted():
                self._hold(entry)
            case Release():
                self._begin((entry.cluster, entry.uid))
            case OutcomeRecorded():
                self.outcomes += 1
                assert self.unsettled.pop((entry.cluster, entry.uid)) == entry.decision_sequence
                if entry.outcome == "Applied":
                    self.applied.add(entry.decision_sequence)
            case GrantEnded():
                self._end(entry)
            case CollisionFound():
                self.collisions += 1
            case ReasonChanged():
                self.names[entry.cluster, entry.uid] = f"{entry.namespace}/{entry.name}"
                self.waiting[entry.cluster, entry.uid] = entry.reason

    def _state_again(self, entry: AnyEntry) -> None:
        """A checkpoint says what is known already; all of it."""
        if isinstance(entry, Allocate | Adopted | Release):
            assert entry.ledger_sequence in self.grants or entry.ledger_sequence in self.unsettled.values()
            self._stated_again.add(entry.ledger_sequence)
        self._checkpoint_left -= 1
        if not self._checkpoint_left:
            assert self._stated_again == self.grants.keys() | set(self.unsettled.values())
            self.is_between = False
            self.segments += 1

    def _hold(self, entry: Allocate | Adopted) -> None:
        claim = (entry.cluster, entry.uid)
        self.names[claim] = f"{entry.namespace}/{entry.name}"
        devices = []
        for scope, hold in zip(entry.scopes, entry.holds, strict=True):
            device = (scope, hold.driver, hold.pool, hold.device)
            devices.append(device)
            assert device not in self.holders, f"{self.last} gives {device}, which grant {self.holders[device]} holds"
            if hold.share_id:
                self._share(device, hold)
            else:
                assert not self.shares.get(device), f"{self.last} gives all of {device}, which is shared"
                self.holders[device] = self.last
        self.grants[self.last] = (claim, devices)
        self.waiting.pop(claim, None)
        if isinstance(entry, Allocate):
            self.allocates += 1
            self._begin(claim)
        else:
            self.applied.add(self.last)

    def _share(self, device: Device, hold: DeviceHold) -> None:
        shares = self.shares.setdefault(device, [])
        shares.append((self.last, hold.consumed_capacity))
        for name, amount in self.capacity[hold.device].items():
            taken = [Quantity.parse(consumed.get(name, 0)) for _, consumed in shares]
            total = sum(taken, start=Quantity.parse(0))
            assert total <= Quantity.parse(amount), f"{self.last} gives {device} away beyond its {name}: {shares}"

    def _end(self, entry: GrantEnded) -> None:
        _, devices = self.grants.pop(entry.grant_sequence)
        for device in devices:
            if self.holders.pop(device, None) is None:
                self.shares[device] = [share for share in self.shares[device] if share[0] != entry.grant_sequence]

    def _begin(self, claim: Claim) -> None:
        assert claim not in self.unsettled, f"{self.last} follows {self.unsettled[claim]}, which has no outcome"
        self.unsettled[claim] = self.last

    def __str__(self) -> str:
        return (
            f"ledger at {self.last} in segment {self.segments - 1}: {len(self.leaders)} elections, "
            f"{self.allocates} Allocates, {self.outcomes} outcomes, {len(self.allocated)} claims allocated, "
            f"{len(self.unsettled)} unsettled, "
            f"{len(self.waiting)} waiting"
        )


async def follow_ledger(connection: Connection, view: LedgerView) -> AsyncGenerator[list[StoredMessage], None]:
    """What comes in the ledger, segment after segment, for ever; folded into `view`."""
    for segment in count():
        is_closed = False
        async with follow(connection, ledger_stream("main", segment), view.last) as follower:
            while not is_closed:
                messages = await follower.next_batch()
                assert isinstance(messages, list), "entries of the ledger have expired"
                view.fold(messages)
                yield messages
                is_closed = messages[-1].subject.endswith(".leader.closed")
