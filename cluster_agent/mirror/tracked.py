"""What the mirror knows of one object: the view, what was published of it, and the decision that is being settled."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from cluster_agent.mirror.actions import ClaimRef, Cleaning, Decision, Publish
from schemas.resource.untyped import allocation_of, as_dict, as_text, dicts_in, results_of, texts_in
from schemas.wire.codec import encode
from schemas.wire.ledger import Allocate, DeviceHold, canonical_amounts
from schemas.wire.state import ClaimState, ObjectName, ObjectState, Outcome, Rejected, Settled

DELETE_PROTECTION = "resource.kubernetes.io/delete-protection"
HELD = "dragoman.dev/held"
VOIDED_ANNOTATION = "dragoman.dev/voided"
STUCK_FIRST_MS = 1_000
STUCK_MOST_MS = 60_000  # so long after its policy is right again a claim may have to wait

_sorted = msgspec.json.Encoder(order="sorted")


@dataclass(slots=True)
class BackOff:
    """Longer each time: a policy that is wrong refuses the writes of all claims, perhaps for hours."""

    times: int = 0
    again_ms: int = 0

    def note(self, now_ms: int) -> None:
        """It was refused once more."""
        self.again_ms = now_ms + min(STUCK_FIRST_MS << min(self.times, 10), STUCK_MOST_MS)
        self.times += 1

    def is_over(self, now_ms: int) -> bool:
        """It has waited for long enough; or the clock was set back."""
        return not 0 < self.again_ms - now_ms <= STUCK_MOST_MS


@dataclass(slots=True)
class Job:
    """A decision that is being settled.

    stage: start, nothing was sent; sent, an action is under way; stuck, tried again when `refused` is over.
    failure: what to report once it is certain that nothing of it can land any more.
    half_way: resourceVersion of our write of finalizers while the allocation that follows it is under way; else 0.
    """

    ledger_sequence: int
    decision: Decision | Cleaning
    stage: Literal["start", "sent", "stuck"] = "start"
    failure: tuple[Outcome, str] = ("Conflict", "")
    is_unknown: bool = False  # the last write's result is not known; it is tried again where that is safe
    voids: int = 0
    half_way: int = 0
    is_in_use: bool = False  # a pod was found to run with what is to be cleared
    refused: BackOff = field(default_factory=BackOff)

    def note_refusal(self, now_ms: int) -> None:
        """What it takes was refused for what it says."""
        self.stage = "stuck"
        self.refused.note(now_ms)

    def is_due(self, now_ms: int) -> bool:
        """It was stuck for long enough."""
        return self.stage == "stuck" and self.refused.is_over(now_ms)


@dataclass(slots=True)
class Tracked:
    """One object of the cluster.

    Versions are resourceVersions: of the view (from the watch alone), of our own last write, of the subject's last
    message. A claim is published only when the view is not older than either of the others.
    """

    name: ObjectName
    object: dict[str, Any] | None = None  # None: gone, or not seen yet
    error: str = ""
    view_version: int = 0
    own_version: int = 0
    subject_version: int = 0
    must_be_gone: bool = False  # a read found no such claim; the watch has not said so yet

    last_sequence: int = 0  # of the subject's last message, as far as we know
    published: bytes | None = None  # fingerprint of what the subject's last message says; None: publish in any case
    published_sequence: int = 0  # of the message that says so
    published_version: str | None = None  # of the live object in it; None: a tombstone, or nothing
    published_decision: int = 0  # ledger sequence of the settled decision in it
    published_ms: int = 0
    is_dirty: bool = True  # what it would say now was not compared with what was published
    news_us: int = 0  # when the first news came that was not published yet; 0: there is none, or nobody took the time
    in_flight: Publish | None = None

    decision: Settled | None = None
    rejected: Rejected | None = None
    is_running: bool = False  # a pod that uses the claim has a node
    # As far as this run knows: allocated, bound, and no node for its pod; and whether that lacks another claim, too.
    unschedulable_since: tuple[int, bool] | None = None
    job: Job | None = None
    removal: Literal["", "sent", "failed"] = ""  # of our finalizer; failed: tried again with a new view, or later
    removal_refused: BackOff = field(default_factory=BackOff)

    def note_news(self, seen_us: int) -> None:
        """What it would say now is to be compared with what was published."""
        self.is_dirty = True
        self.news_us = self.news_us or seen_us

    @property
    def decision_sequence(self) -> int:
        """Ledger sequence of the last settled decision, else 0."""
        return self.decision.ledger_sequence if self.decision else 0

    @property
    def is_half_way(self) -> bool:
        """All that the view shows of late is our finalizers; what matters comes with the next write's answer."""
        return self.job is not None and 0 < self.job.half_way == self.view_version

    @property
    def view_is_current(self) -> bool:
        """The watch has delivered our own last write, and whatever the subject's last message was made from."""
        return self.view_version >= max(self.own_version, self.subject_version) and not self.must_be_gone

    @property
    def ref(self) -> ClaimRef:
        """The claim as the API server addresses it."""
        metadata = metadata_of(self.object)
        return ClaimRef(self.name.key, str(metadata.get("namespace", "")), str(metadata.get("name", "")))


def metadata_of(obj: dict[str, Any] | None) -> dict[str, Any]:
    """An object's metadata, {} where there is none to be read."""
    return as_dict(as_dict(obj).get("metadata"))


def raw(obj: dict[str, Any]) -> msgspec.Raw:
    """An object as JSON; equal objects give equal bytes."""
    return msgspec.Raw(_sorted.encode(obj))


def fingerprint(message: ClaimState | ObjectState) -> bytes:
    """What a message says, whoever says it."""
    return hashlib.sha256(encode(msgspec.structs.replace(message, agent_epoch=0))).digest()


def class_names_of(claim: dict[str, Any]) -> list[str]:
    """The DeviceClass of each request and of each of its alternatives."""
    devices = as_dict(as_dict(claim.get("spec")).get("devices"))
    parts = [
        part
        for request in dicts_in(devices.get("requests"))
        for part in (as_dict(request.get("exactly")), *dicts_in(request.get("firstAvailable")))
    ]
    return [as_text(part.get("deviceClassName")) for part in parts]


def holds_of(claim: dict[str, Any] | None) -> list[DeviceHold] | None:
    """What the claim's status.allocation holds; None where it has none."""
    allocation = allocation_of(claim)
    if allocation is None:
        return None
    return [
        DeviceHold(
            request=as_text(result.get("request")),
            driver=as_text(result.get("driver")),
            pool=as_text(result.get("pool")),
            device=as_text(result.get("device")),
            share_id=as_text(result.get("shareID")),
            admin_access=bool(result.get("adminAccess")),
            consumed_capacity=canonical_amounts(as_dict(result.get("consumedCapacity"))),
        )
        for result in results_of(allocation)
    ]


def is_held(claim: dict[str, Any] | None) -> bool:
    """Whether the claim carries our finalizer: something was decided for it once."""
    return HELD in texts_in(metadata_of(claim).get("finalizers"))


def with_finalizers(claim: dict[str, Any]) -> dict[str, Any] | None:
    """The claim with both finalizers; None where it has them."""
    finalizers = texts_in(metadata_of(claim).get("finalizers"))
    missing = [each for each in (DELETE_PROTECTION, HELD) if each not in finalizers]
    if not missing:
        return None
    return {**claim, "metadata": {**metadata_of(claim), "finalizers": finalizers + missing}}


def without_finalizers(claim: dict[str, Any]) -> dict[str, Any]:
    """The claim without both finalizers."""
    finalizers = [
        each for each in texts_in(metadata_of(claim).get("finalizers")) if each not in (DELETE_PROTECTION, HELD)
    ]
    return {**claim, "metadata": {**metadata_of(claim), "finalizers": finalizers}}


def with_void_mark(claim: dict[str, Any], ledger_sequence: int, attempt: int) -> dict[str, Any]:
    """The claim with a mark that no other write left: writing it changes the resourceVersion for certain."""
    metadata = metadata_of(claim)
    annotations = {**as_dict(metadata.get("annotations")), VOIDED_ANNOTATION: f"{ledger_sequence}-{attempt}"}
    return {**claim, "metadata": {**metadata, "annotations": annotations}}


def reserved_pods(claim: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """Names and UIDs of the pods that the claim is reserved for."""
    reserved = dicts_in(as_dict(claim.get("status")).get("reservedFor"))
    return tuple(
        (as_text(each.get("name")), as_text(each.get("uid"))) for each in reserved if each.get("resource") == "pods"
    )


def with_allocation(claim: dict[str, Any], decision: Decision | Cleaning) -> dict[str, Any]:
    """The claim with what an Allocate says in its status, or without any allocation."""
    status = dict(as_dict(claim.get("status")))
    status.pop("reservedFor", None)
    status.pop("devices", None)
    if isinstance(decision, Allocate):
        status["allocation"] = decision.allocation
        reserved = [{"resource": "pods", "name": pod.name, "uid": pod.uid} for pod in decision.reserved_for]
        if reserved:
            status["reservedFor"] = reserved
    else:
        status.pop("allocation", None)
    return {**claim, "status": status}
