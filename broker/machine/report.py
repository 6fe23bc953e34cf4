"""The world for people and for machines: where each claim is, and why. Read only after a batch is stored."""

from collections.abc import Iterator
from heapq import nsmallest
from itertools import islice
from typing import Literal

import msgspec

from broker.allocation.cel import SelectorCompileError, advise
from broker.allocation.taints import blocking_taints
from broker.machine.cluster_report import state_of
from broker.machine.deciding import why_withheld
from broker.machine.device_report import DeviceStatusRow, device_statuses
from broker.machine.specs import class_names
from broker.world.commitments import grants_in_the_way
from broker.world.keys import ClusterId
from broker.world.records import Claim
from broker.world.world import World
from schemas.resource import DeviceSelector

ClaimStateName = Literal["Allocated", "Pending", "Invalid"]


class ResultRow(msgspec.Struct, frozen=True):
    """One allocated device."""

    request: str
    driver: str
    pool: str
    device: str


class ClaimRow(msgspec.Struct, frozen=True):
    """Where a claim is. results: empty unless Allocated; reason and message: empty only if it is."""

    cluster: str
    namespace: str
    name: str
    uid: str
    state: ClaimStateName
    results: list[ResultRow]
    reason: str
    message: str


class PoolRow(msgspec.Struct, frozen=True):
    """A pool and how much of it is free. tainted: so many of the free ones only claims that tolerate a taint get."""

    scope: str
    driver: str
    pool: str
    generation: int
    devices: int
    free: int
    tainted: int
    problem: str


class AdviceRow(msgspec.Struct, frozen=True):
    """A selector that is legal and surely not what its author means. place: whose selector, and which."""

    place: str
    expression: str
    message: str
    suggestion: str


class Explanation(msgspec.Struct, frozen=True):
    """All that is known about why a claim is where it is."""

    claim: ClaimRow
    classes: list[str]
    resource_version: str
    grants: list[int]  # ledger sequences
    unsettled: str
    waiting_since_ms: int | None
    requests: list[dict[str, object]]  # what became of the devices, see broker.allocation.reasons
    advice: list[AdviceRow]  # on selectors that do not mean what they seem to
    cluster_state: str = ""  # of the claim's cluster, see broker.machine.cluster_report
    devices: list[DeviceStatusRow] = []  # that it has, and what their driver reports of them


def claim_rows(
    world: World, cluster: str | None = None, after: tuple[str, ...] = (), limit: int | None = None
) -> list[ClaimRow]:
    """Claims (of one cluster) by cluster, namespace, name and UID: the first so many after `after`, or all of them."""
    claims = (
        claim
        for claim in world.claims.values()
        if claim.state_sequence and cluster in (None, claim.key.cluster) and _place(claim) > after
    )
    chosen = sorted(claims, key=_place) if limit is None else nsmallest(limit, claims, key=_place)
    return [_as_known(world, claim, claim_row(claim)) for claim in chosen]


def _place(claim: Claim) -> tuple[str, ...]:
    return claim.key.cluster, claim.namespace, claim.name, claim.key.uid


def claim_row(claim: Claim) -> ClaimRow:
    """One claim as people see it."""

    def row(state: ClaimStateName, reason: str, message: str) -> ClaimRow:
        holds = (claim.shown or ()) if state == "Allocated" else ()
        results = [ResultRow(hold.request, hold.driver, hold.pool, hold.device) for hold in holds]
        return ClaimRow(claim.key.cluster, claim.namespace, claim.name, claim.key.uid, state, results, reason, message)

    waiting = claim.waiting
    if claim.invalid is not None and (claim.shown is None or claim.spec is None):
        return row("Invalid", *claim.invalid)
    if claim.shown is not None:
        if claim.collision is not None and claim.is_shown_without_grant:
            return row("Allocated", "DeviceHeldTwice", "its allocation has devices that another claim holds")
        return row("Allocated", "", "")
    if claim.unsettled is not None:
        decision = claim.unsettled
        text = f"decision {decision.ledger_sequence} ({decision.kind}) was given to the cluster, its outcome is awaited"
        return row("Pending", "Allocating" if decision.kind == "Allocate" else "Releasing", text)
    if claim.grants:
        sequences = ", ".join(str(grant.ledger_sequence) for grant in claim.grants)
        return row("Pending", "Allocating", f"grant {sequences} holds its devices, the cluster does not show it yet")
    if waiting is not None:
        return row(waiting.state, waiting.reason, waiting.message)
    if claim.spec is not None and claim.spec.metadata.deletion_timestamp is not None:
        return row("Pending", "BeingDeleted", "the claim is being deleted")
    return row("Pending", "NotDecidedYet", "the claim was not looked at yet")


def find_claim(world: World, namespace: str, name: str, cluster: str | None = None) -> list[Claim]:
    """The claims of that name; more than one where several clusters have it."""
    found = [
        claim
        for claim in world.claims.values()
        if claim.state_sequence
        and (claim.namespace, claim.name) == (namespace, name)
        and cluster in (None, claim.key.cluster)
    ]
    return sorted(found, key=lambda claim: claim.key)


def explain(world: World, claim: Claim) -> Explanation:
    """Why the claim is where it is, or why it waits."""
    waiting = claim.waiting
    requests = waiting.explanation.get("requests", []) if waiting else []
    assert isinstance(requests, list)
    named = class_names(claim.spec.spec) if claim.spec else []
    owner = world.federation.class_owner(claim.key.cluster)
    return Explanation(
        claim=_as_known(world, claim, claim_row(claim)),
        classes=named,
        resource_version=claim.resource_version,
        grants=[grant.ledger_sequence for grant in claim.grants],
        unsettled=f"{claim.unsettled.kind} {claim.unsettled.ledger_sequence}" if claim.unsettled else "",
        waiting_since_ms=waiting.since_ms if waiting and not claim.grants else None,
        requests=requests,
        advice=_advice(world, owner, claim, named),
        cluster_state=state_of(world.cluster(claim.key.cluster)),
        devices=device_statuses(world, claim),
    )


def _as_known(world: World, claim: Claim, row: ClaimRow) -> ClaimRow:
    """What others say of an allocation: who else has its devices and who keeps them, and whether anybody knows."""
    if row.state != "Allocated":
        return row
    if row.reason == "DeviceHeldTwice":
        keepers = ", ".join(
            f"{world.holder_name(grant.claim)} (grant {grant.ledger_sequence})"
            for grant in grants_in_the_way(world, claim)
        )
        text = f"its allocation has devices that {keepers or 'others'} held first and keeps: delete this claim"
        return msgspec.structs.replace(row, message=text)
    intruders = sorted(
        other
        for other in {key for device in claim.shown_devices for key in world.shown[device]} - {claim.key}
        if world.claims[other].collision is not None and world.claims[other].is_shown_without_grant
    )
    if intruders:
        names = ", ".join(map(world.holder_name, intruders))
        return msgspec.structs.replace(
            row, reason="DeviceHeldTwice", message=f"it keeps its devices, which {names} shows too: delete that claim"
        )
    cluster = world.cluster(claim.key.cluster)
    if cluster.liveness in ("Lost", "Returning") or cluster.eviction is not None:
        withheld = why_withheld(cluster)
        assert withheld is not None, f"{cluster.name} is {cluster.liveness}, {cluster.eviction}"
        return msgspec.structs.replace(row, reason=withheld[0], message=f"this is what was known; {withheld[1]}")
    return row


def pool_rows(world: World) -> list[PoolRow]:
    """All pools, by key."""
    rows = []
    for pool in world.inventory.all_pools():
        held = world.in_use.of_pool(pool.key)
        devices = [device for _, device in pool]
        free = [device for device in devices if device.name not in held] if pool.is_usable else []
        rows.append(
            PoolRow(
                scope=pool.key.scope,
                driver=pool.key.driver,
                pool=pool.key.pool,
                generation=pool.generation,
                devices=len(devices),
                free=len(free),
                tainted=sum(bool(blocking_taints(device)) for device in free),
                problem=pool.problem or "",
            )
        )
    return rows


def is_settled(world: World, *, clusters: list[ClusterId]) -> bool:
    """Nothing is under way: every cluster was heard, and every Allocate and Release has its outcome."""
    return all(world.cluster(name).is_heard and not world.cluster(name).asked_at for name in clusters) and not any(
        claim.unsettled or _is_on_its_way(claim) for claim in world.claims.values()
    )


def _is_on_its_way(claim: Claim) -> bool:
    """A grant of ours whose allocation the cluster does not show (any more)."""
    return any(not grant.is_adopted and grant.holds != claim.shown for grant in claim.grants)


def _advice(world: World, owner: ClusterId, claim: Claim, named: list[str]) -> list[AdviceRow]:
    sample = list(
        islice(((part.spec.driver, device) for pool in world.inventory.all_pools() for part, device in pool), 100)
    )
    rows = []
    for place, selectors in _selectors(world, owner, claim, named):
        for index, selector in enumerate(selectors):
            expression = selector.cel.expression if selector.cel else ""
            try:
                found = advise(expression, sample)
            except SelectorCompileError:
                continue  # which is why the claim is where it is
            rows += [
                AdviceRow(f"{place}, selector {index}", expression, each.message, each.suggestion) for each in found
            ]
    return rows


def _selectors(
    world: World, owner: ClusterId, claim: Claim, named: list[str]
) -> Iterator[tuple[str, list[DeviceSelector]]]:
    for name in named:
        device_class = world.classes.get((owner, name))
        if device_class is not None:
            yield f"DeviceClass {name}", device_class.spec.selectors
    for request in claim.spec.spec.devices.requests if claim.spec else []:
        if request.exactly is not None:
            yield f"request {request.name}", request.exactly.selectors
        for sub in request.first_available:
            yield f"request {request.name}/{sub.name}", sub.selectors
