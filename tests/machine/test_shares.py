"""Shares and partitions through the machine: decided, held, adopted, in collision, and free again."""

from typing import Any

import msgspec
import pytest

from broker.allocation.cel import default_engine
from broker.allocation.index import DeviceIndex
from broker.errors import InvariantError
from broker.machine.effects import Identity
from broker.machine.machine import Machine
from broker.world.check import check
from broker.world.federation import ALLOCATE_ANNOTATION, Federation
from broker.world.keys import ClaimKey, ClaimUid, ClusterId
from broker.world.records import Claim
from broker.world.world import World
from schemas.resource import (
    AllocationResult,
    CapacityRequirements,
    Counter,
    CounterSet,
    Device,
    DeviceAllocationResult,
    DeviceCounterConsumption,
    DeviceRequestAllocationResult,
    ObjectMeta,
    ResourceClaim,
    ResourceClaimStatus,
    ResourceSlice,
)
from schemas.resource.decode import to_builtins
from schemas.share_id import share_id
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import encode
from schemas.wire.ledger import Adopted, Allocate, AnyEntry, CollisionFound, GrantEnded
from schemas.wire.state import AgentStarted, ClaimState, ObjectName, ObjectState, Settled, SyncFinished
from schemas.wire.subjects import run_subject, state_subject
from tests.builders import DRIVER, a_claim, a_class, a_device, a_request, a_slice

EAST = "east"


class Stage:
    """One cluster and the machine that hears it; every step ends with the invariants."""

    def __init__(self, *slices: ResourceSlice) -> None:
        federation = Federation(clusters=[ClusterId(EAST)])
        self.machine = Machine(World(federation), DeviceIndex(default_engine()), Identity("test", "1", ""))
        self._sequence = 0
        self._names: list[ObjectName] = []
        self._send(run_subject(EAST), AgentStarted("agent"))
        device_class = a_class(labels={"dragoman.dev/brokered": "true"})
        for kind, each in (("class", device_class), *(("slice", slice_) for slice_ in slices)):
            self.publish(kind, each)
        self._send(run_subject(EAST), SyncFinished(1, 1, 0, self._names))
        self.step()

    def publish(self, kind: str, resource: Any) -> None:
        name = resource.metadata.name
        self._names.append(ObjectName(kind, name))
        body = msgspec.Raw(msgspec.json.encode(to_builtins(resource)))
        self._send(state_subject(EAST, kind, name), ObjectState(agent_epoch=1, object=body, resource_version="1"))

    def claim(
        self,
        claim: ResourceClaim,
        *results: DeviceRequestAllocationResult,
        settled: int = 0,
        labels: dict[str, str] | None = None,
    ) -> list[AnyEntry]:
        """The cluster says that the claim is like this; returns what the broker decides."""
        if results:
            allocation = AllocationResult(devices=DeviceAllocationResult(results=list(results)))
            claim = msgspec.structs.replace(claim, status=ResourceClaimStatus(allocation=allocation))
        state = ClaimState(
            agent_epoch=1,
            claim=msgspec.Raw(msgspec.json.encode(to_builtins(claim))),
            resource_version=str(self._sequence),
            namespace_labels=labels or {},
            decision=Settled(settled, "Applied") if settled else None,
        )
        self._send(state_subject(EAST, "claim", claim.metadata.uid), state)
        return self.step()

    def delete(self, claim: ResourceClaim) -> list[AnyEntry]:
        self._send(state_subject(EAST, "claim", claim.metadata.uid), ClaimState(agent_epoch=1))
        return self.step()

    def step(self) -> list[AnyEntry]:
        entries = self.machine.step(now_ms=0).entries
        check(self.machine.world)
        return entries

    def record(self, claim: ResourceClaim) -> Claim:
        return self.machine.world.claims[ClaimKey(ClusterId(EAST), ClaimUid(claim.metadata.uid))]

    def _send(self, subject: str, message: msgspec.Struct) -> None:
        self._sequence += 1
        self.machine.feed([StoredMessage(subject, encode(message), {}, self._sequence, 0)])


def wanting(name: str, memory: str | None = None, **exactly: Any) -> ResourceClaim:
    capacity = CapacityRequirements(requests={"memory": memory}) if memory else None
    return a_claim(
        a_request(capacity=capacity, **exactly), name=name, uid=name, annotations={ALLOCATE_ANNOTATION: "Immediate"}
    )


def a_shared_slice() -> ResourceSlice:
    device = a_device("s", capacity={"memory": "8"})
    return a_slice([msgspec.structs.replace(device, allow_multiple_allocations=True)])


def partitions(*sizes: int, slices: int = 4) -> list[ResourceSlice]:
    def partition(index: int, size: int) -> Device:
        drawn = DeviceCounterConsumption(counter_set="gpu-0", counters={"slices": Counter(value=str(size))})
        return msgspec.structs.replace(a_device(f"p{index}"), consumes_counters=[drawn])

    counters = CounterSet(name="gpu-0", counters={"slices": Counter(value=str(slices))})
    return [
        a_slice([partition(*each) for each in enumerate(sizes)], name="devices", slice_count=2),
        a_slice([], name="counters", slice_count=2, shared_counters=[counters]),
    ]


def a_result(device: str, *, share: str | None = None, memory: str | None = None) -> DeviceRequestAllocationResult:
    consumed = {"memory": memory} if memory else {}
    return DeviceRequestAllocationResult(
        request="gpu", driver=DRIVER, pool="rack7", device=device, share_id=share, consumed_capacity=consumed
    )


def of_kind(entries: list[AnyEntry], *kinds: type[AnyEntry]) -> list[Any]:
    return [entry for entry in entries if isinstance(entry, kinds)]


def test_shares_are_granted_up_to_the_capacity_and_named_by_their_ledger_sequence() -> None:
    stage = Stage(a_shared_slice())
    (first,) = of_kind(stage.claim(wanting("a", "5")), Allocate)
    (grant,) = stage.record(wanting("a")).grants
    assert first.holds[0].share_id == share_id("a", grant.ledger_sequence, 0)
    assert first.allocation["devices"]["results"][0]["shareID"] == first.holds[0].share_id
    assert first.holds[0].consumed_capacity == {"memory": "5"}
    assert of_kind(stage.claim(wanting("b", "4")), Allocate) == []
    waiting = stage.record(wanting("b")).waiting
    assert waiting is not None
    assert waiting.reason == "DevicesInUse"
    assert len(of_kind(stage.claim(wanting("c", "3")), Allocate)) == 1


def test_a_share_that_ends_makes_room_for_who_waits() -> None:
    stage = Stage(a_shared_slice())
    stage.claim(wanting("a", "5"))
    stage.claim(wanting("b", "4"))
    entries = stage.delete(wanting("a"))
    assert len(of_kind(entries, GrantEnded)) == 1
    (allocate,) = of_kind(entries, Allocate)
    assert allocate.name == "b"


def test_a_whole_device_that_is_shown_no_longer_makes_room_beside_the_share_that_is_granted() -> None:
    stage = Stage(a_shared_slice())
    stage.claim(wanting("a", "5"))
    stage.claim(wanting("b", "9"), a_result("s"))
    assert of_kind(stage.claim(wanting("c", "3")), Allocate) == []
    (allocate,) = of_kind(stage.claim(wanting("b", "9")), Allocate)
    assert allocate.name == "c"


def test_the_same_share_shown_and_granted_counts_once() -> None:
    stage = Stage(a_shared_slice())
    (allocate,) = of_kind(stage.claim(wanting("a", "5")), Allocate)
    (grant,) = stage.record(wanting("a")).grants
    shown = a_result("s", share=allocate.holds[0].share_id, memory="5000m")  # as an API server would not write it
    stage.claim(wanting("a", "5"), shown, settled=grant.ledger_sequence)
    assert [use.consumed for use in stage.machine.world.in_use.values()] == [{"memory": 5 * 10**9}]
    assert len(of_kind(stage.claim(wanting("b", "3")), Allocate)) == 1


def test_found_shares_are_adopted_as_far_as_they_fit() -> None:
    stage = Stage(a_shared_slice())
    first = stage.claim(wanting("a"), a_result("s", share="x", memory="5"))
    second = stage.claim(wanting("b"), a_result("s", share="y", memory="3"))
    assert [len(of_kind(entries, Adopted)) for entries in (first, second)] == [1, 1]
    third = stage.claim(wanting("c"), a_result("s", share="z", memory="1"))
    (collision,) = of_kind(third, CollisionFound)
    assert len(collision.held_by) == 2
    assert len(of_kind(stage.delete(wanting("b")), Adopted)) == 1


def test_shares_of_two_claims_with_one_name_are_two_shares() -> None:
    stage = Stage(a_shared_slice())
    for uid in ("a", "b"):
        metadata = ObjectMeta(namespace="default", name="twin", uid=uid)
        twin = msgspec.structs.replace(wanting("twin"), metadata=metadata)
        assert len(of_kind(stage.claim(twin, a_result("s", share="x", memory="3")), Adopted)) == 1
    assert [use.consumed for use in stage.machine.world.in_use.values()] == [{"memory": 6 * 10**9}]
    assert of_kind(stage.claim(wanting("c", "3")), Allocate) == []


def test_a_whole_device_and_a_share_of_it_collide() -> None:
    stage = Stage(a_shared_slice())
    stage.claim(wanting("a"), a_result("s", share="x", memory="1"))
    assert len(of_kind(stage.claim(wanting("b"), a_result("s")), CollisionFound)) == 1


def test_partitions_are_granted_up_to_their_counters() -> None:
    stage = Stage(*partitions(2, 2, 2))
    names = ["a", "b", "c"]
    allocated = [[each.name for each in of_kind(stage.claim(wanting(name)), Allocate)] for name in names]
    assert allocated == [["a"], ["b"], []]
    assert [each.name for each in of_kind(stage.delete(wanting("a")), Allocate)] == ["c"]


def test_found_partitions_that_overdraw_a_counter_collide_until_it_is_paid_back() -> None:
    stage = Stage(*partitions(3, 3))
    assert len(of_kind(stage.claim(wanting("a"), a_result("p0")), Adopted)) == 1
    (collision,) = of_kind(stage.claim(wanting("b"), a_result("p1")), CollisionFound)
    assert collision.held_by[0].startswith("east/default/a (grant ")
    assert len(of_kind(stage.delete(wanting("a")), Adopted)) == 1


def test_admin_access_holds_nothing_and_needs_the_namespaces_consent() -> None:
    stage = Stage(a_slice())
    stage.claim(wanting("holder"))
    admin = wanting("admin", admin_access=True)
    assert of_kind(stage.claim(admin), Allocate) == []
    waiting = stage.record(admin).waiting
    assert waiting is not None
    assert waiting.reason == "AdminAccessNotAllowed"
    (allocate,) = of_kind(stage.claim(admin, labels={"resource.kubernetes.io/admin-access": "true"}), Allocate)
    assert allocate.holds[0].admin_access
    assert len(of_kind(stage.delete(wanting("holder")), GrantEnded)) == 1
    assert len(of_kind(stage.claim(wanting("next")), Allocate)) == 1


def test_a_driver_that_takes_capacity_away_is_found_out() -> None:
    stage = Stage(a_shared_slice())
    stage.claim(wanting("a", "5"))
    device = msgspec.structs.replace(a_device("s", capacity={"memory": "4"}), allow_multiple_allocations=True)
    stage.publish("slice", a_slice([device], generation=2))
    with pytest.raises(InvariantError, match="consume 5 of memory"):
        stage.step()
