"""Who gets what. Pending claims are tried in the order in which they began to wait, those that take long a few at a
time, and the clusters in turn then. Each one that cannot be placed gets a reason, and waits for whatever could change
the answer.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

import msgspec

from broker.allocation.allocate import MoreToAskError, allocate_claim
from broker.allocation.budget import Budget
from broker.allocation.reasons import NoFit, Reason
from broker.allocation.requests import ADMIN_ACCESS_LABEL
from broker.allocation.result import with_share_ids
from broker.allocation.snapshot import Snapshot
from broker.errors import InvariantError
from broker.machine.claims import check, release_if_rejected
from broker.machine.core import ENTRY_BYTES_MAX, Core, Likeness, fits
from broker.machine.specs import STEP_BUDGET
from broker.world.federation import ALLOCATE_ANNOTATION, BROKERED_LABEL
from broker.world.fold import waiting_of
from broker.world.keys import ClusterId, cluster_scope, fabric_scope
from broker.world.observe import allocation_holds
from broker.world.pools import Pool
from broker.world.records import Claim, Cluster
from schemas.resource import AllocationResult, DeviceClass, ResourceClaim, limits
from schemas.wire.codec import encode
from schemas.wire.ledger import Allocate, ConsumerRef, ReasonChanged, RequestState

# In one round, for searching, asking and finding out why: some 50 ms, and the last claim may take as long again.
ROUND_STEPS = 50_000
SHARES_MAX = 8  # into which a round is divided among clusters: not so small that what is usual is too much
HARD_CLAIMS_IN_ROUND = 1  # of those whose search was given up before: they wait for each other, nobody waits for them
TRY_HARD_AGAIN_MS = 60_000
# For asking selectors that are new, or new slices, in one round: some 20 ms, in steps of broker.allocation.budget.
ASKING_STEPS = 20_000
ASK_ANYWAY_MS = 1_000  # should the claim that asks for others like it be gone before it is done
TEXT_LENGTH_MAX = 4_000  # of what an entry says to people; the ledger takes entries of at most 1 MiB
EXPLANATION_BYTES_MAX = 128 * 1024
_NOT_ABOUT_DEVICES = frozenset(
    (
        Reason.INVALID_SELECTOR,
        Reason.UNKNOWN_DEVICE_CLASS,
        Reason.INVALID_DEVICE_CLASS,
        Reason.TOO_MANY_DEVICES,
        Reason.ADMIN_ACCESS_NOT_ALLOWED,
    )
)
MAX_RESERVED_FOR = 256  # consumers in a claim's status.reservedFor (resource.k8s.io/v1)


class Verdict(NamedTuple):
    """Why a claim stays without an allocation, and what it waits for."""

    state: RequestState
    reason: str
    message: str
    topics: tuple[str, ...] = ()
    until_ms: int | None = None
    explanation: dict[str, object] = {}  # noqa: RUF012  # never changed


class Reached(NamedTuple):
    """What a cluster's claims can use now."""

    pools: Sequence[Pool]
    topics: tuple[str, ...]  # that can change it
    unheard: tuple[str, ...]  # "fabric NAME: CLUSTER, ..." for each fabric that waits for clusters
    withheld: tuple[tuple[str, str], ...] = ()  # fabrics whose source is silent or evicted: reason and sentence


class WaitsForAskingError(Exception):
    """A claim that is the same has more to ask.

    topic: changes when it has asked all.
    """

    def __init__(self, topic: str) -> None:
        super().__init__(topic)
        self.topic = topic


class Round:
    """One round of decisions: what does not change within it is looked up once.

    Within a round devices only get fewer, so a claim that is the same as one that could not be placed cannot be
    placed either, and is not searched for again. But where a selector failed: nobody asks it about a device that is
    held, so when that is given away others may be found. That answer is the same only until something is given.
    """

    def __init__(self, core: Core) -> None:
        self.core = core
        self._reached: dict[ClusterId, Reached] = {}
        self._classes: dict[ClusterId, dict[str, DeviceClass]] = {}
        self._failed: dict[Likeness, Verdict] = {}
        self._selector_failed: dict[Likeness, Verdict] = {}
        self._asking_left = ASKING_STEPS
        self.steps = 0  # taken up to now
        self._still_asking: set[Likeness] = set()  # claims like these have more to ask

    def reached(self, cluster: ClusterId) -> Reached:
        """Pools that `cluster` reaches and whose clusters were all heard."""
        if cluster not in self._reached:
            self._reached[cluster] = _reached(self.core, cluster)
        return self._reached[cluster]

    def classes(self, cluster: ClusterId) -> dict[str, DeviceClass]:
        """The DeviceClasses that hold for claims of `cluster`."""
        owner = self.core.world.federation.class_owner(cluster)
        if owner not in self._classes:
            known = self.core.world.classes
            self._classes[owner] = {name: each for (whose, name), each in known.items() if whose == owner}
        return self._classes[owner]

    def snapshot(self, claim: Claim) -> Snapshot:
        """What the allocation core may see for this claim."""
        cluster = claim.key.cluster
        return Snapshot(
            pools=self.reached(cluster).pools,
            classes=self.classes(cluster),
            nodes=self.core.node_views(cluster),
            in_use=self.core.world.in_use,
            avoid=claim.avoid,
            allows_admin_access=claim.namespace_labels.get(ADMIN_ACCESS_LABEL) == "true",
        )

    def allocate(self, claim: Claim, spec: ResourceClaim) -> AllocationResult | Verdict:
        """Search, unless an equal claim was searched for in vain in this round: then the answer is the same.

        Raises: MoreToAskError; WaitsForAskingError where an equal claim has more to ask.
        """
        snapshot = self.snapshot(claim)
        text = self.core.specs.of(spec.spec).text
        likeness = (claim.key.cluster, text, snapshot.allows_admin_access, tuple(sorted(map(str, claim.avoid))))
        failed = self._failed.get(likeness) or self._selector_failed.get(likeness)
        if failed is not None:
            return failed
        if likeness in self._still_asking:
            raise WaitsForAskingError(_asking_topic(likeness))
        try:
            found = self._search(spec, snapshot)
        except MoreToAskError:
            self._still_asking.add(likeness)
            self.core.asking.add(likeness)
            raise
        if likeness in self.core.asking:
            self.core.asking.discard(likeness)
            self.core.changed(_asking_topic(likeness))
        in_the_way = (Reason.DEVICES_AVOIDED, Reason.SEARCH_BUDGET_EXCEEDED)  # or nobody knows
        if isinstance(found, NoFit) and snapshot.avoid and found.reason in in_the_way:
            # Rejected before, but the time to wait for something else has passed.
            found = self._search(spec, msgspec.structs.replace(snapshot, avoid=frozenset()))
        if isinstance(found, NoFit):
            failed_alike = self._selector_failed if found.reason is Reason.SELECTOR_FAILED else self._failed
            verdict = failed_alike[likeness] = _no_fit_verdict(self.core, self, claim, found)
            return verdict
        return found

    def given(self, scopes: Iterable[str]) -> None:
        """Devices of these scopes were given to a claim."""
        self._selector_failed.clear()
        self.core.changed(*sorted({f"taken:{scope}" for scope in scopes}))

    def _search(self, spec: ResourceClaim, snapshot: Snapshot) -> AllocationResult | NoFit:
        """Half of what is left for asking is for this claim: so those behind it get on, however much it has to ask."""
        allowance = Budget(max(self._asking_left // 2, 0))
        try:
            return allocate_claim(
                spec,
                snapshot,
                self.core.index,
                step_budget=STEP_BUDGET,
                allowance=allowance,
                filtered=self.core.observer.filtered,
                spent=self._spent,
            )
        finally:
            self._asking_left -= allowance.spent
            self._spent(allowance.spent)

    def _spent(self, steps: int) -> None:
        self.steps += steps


def decide(core: Core) -> None:
    """Try the claims that are due, as far as the batch has room and the round has steps; the others stay due.

    First come, first served, as long as all are served. Where claims take long, a cluster that had its share of the
    round comes after all others, and if the round ends before all had their turn, after them in the next ones, too.
    """
    found = map(core.world.claims.get, core.queue.due(core.now_ms))
    due = sorted((claim for claim in found if claim is not None), key=partial(_place_in_round, core))
    turn = Round(core)
    clusters = {claim.key.cluster for claim in due}
    share = ROUND_STEPS // min(max(len(clusters), 1), SHARES_MAX)
    taken: Counter[ClusterId] = Counter()
    passed_over: list[Claim] = []
    hard_claims, is_cut_short = 0, False
    core.observer.deciding()
    for place, claim in enumerate(chain(due, passed_over)):  # the second only when all others had their turn
        if not core.has_room() or turn.steps >= ROUND_STEPS:
            is_cut_short = True
            break
        cluster = claim.key.cluster
        if taken[cluster] >= share and place < len(due):
            passed_over.append(claim)
            continue
        if _is_hard(claim):
            if hard_claims == HARD_CLAIMS_IN_ROUND:
                is_cut_short = True
                continue
            hard_claims += 1
        before = turn.steps
        _try(core, turn, claim)
        taken[cluster] += turn.steps - before
    if is_cut_short:
        latest = max(core.had_their_share.values(), default=0) + 1
        core.had_their_share.update((cluster, latest) for cluster in clusters if taken[cluster] >= share)
    else:
        core.had_their_share.clear()


def _try(core: Core, turn: Round, claim: Claim) -> None:
    """Decide one claim, and let it wait for what could change the answer."""
    core.cause = claim.state_sequence
    try:
        verdict = _decide(core, turn, claim)
    except MoreToAskError:
        return  # it stays due, and goes on in the next round
    except WaitsForAskingError as asking:
        core.queue.wait(claim.key, (asking.topic,), core.now_ms + ASK_ANYWAY_MS)
        return
    except InvariantError:
        raise
    except Exception as error:  # one claim must not stop every replica in turn
        text = f"deciding it failed, which is a fault of the broker: {type(error).__name__}: {error}"
        core.dead_letter_claim(claim.key, "InternalError", text)
        topics = turn.reached(claim.key.cluster).topics
        verdict = Verdict("Pending", "InternalError", text, topics, core.now_ms + TRY_HARD_AGAIN_MS)
    if verdict is not None:
        _wait(core, claim, verdict)
    elif claim.rejected is not None and claim.grants and claim.not_before_ms > core.now_ms:
        core.queue.wait(claim.key, (), claim.not_before_ms)  # to be asked back again
    else:
        core.queue.remove(claim.key)
    core.observer.decided(claim.key)


def _asking_topic(likeness: Likeness) -> str:
    return f"asked:{blake2b(repr(likeness).encode(), digest_size=16).hexdigest()}"


def _place_in_round(core: Core, claim: Claim) -> tuple[bool, int, int, str, str]:
    key, waiting = claim.key, claim.waiting
    had_its_share = core.had_their_share.get(key.cluster, 0)
    if waiting is None:  # thousands of them, sorted in each round until their turn comes
        return False, had_its_share, claim.state_sequence, key.cluster, key.uid
    return _is_hard(claim), had_its_share, waiting.order, key.cluster, key.uid


def _is_hard(claim: Claim) -> bool:
    return claim.waiting is not None and claim.waiting.reason == Reason.SEARCH_BUDGET_EXCEEDED


def _decide(core: Core, turn: Round, claim: Claim) -> Verdict | None:
    """Allocate, or say why not; None when there is nothing to decide."""
    spec = claim.spec
    if spec is not None and claim.grants:
        release_if_rejected(core, claim)
    if claim.state_sequence == 0 or claim.unsettled or claim.grants:
        return None  # not heard of yet, or something is under way; its next message makes it due again
    if claim.shown is not None and spec is not None:
        return None  # adopted, or colliding
    check(core, claim)
    if claim.invalid is not None:
        return Verdict("Invalid", *claim.invalid)
    assert spec is not None, f"claim {claim.key} is neither readable nor invalid"
    if spec.metadata.deletion_timestamp is not None:
        return None
    blocked = _cluster_verdict(core, claim) or _class_verdict(core, turn, claim, spec) or _consumer_verdict(claim, spec)
    if blocked is not None:
        # A class that changes can be a better reason than the one that is given now.
        return blocked._replace(topics=_class_topics(core, claim, spec) + blocked.topics)
    if claim.not_before_ms > core.now_ms:
        text = (
            f"the last {claim.failures} tries failed at the cluster; tried again at {_timestamp(claim.not_before_ms)}"
        )
        return Verdict("Pending", "BackingOff", text, until_ms=claim.not_before_ms)
    found = turn.allocate(claim, spec)
    if isinstance(found, Verdict):
        return found
    entry = _allocate(core, claim, found)
    if entry is None:
        text = (
            "its allocation would be too long: use fewer devices, tolerations or pods in one claim, or less"
            " configuration in it and in its classes"
        )
        topics = {*_class_topics(core, claim, spec), *turn.reached(claim.key.cluster).topics}
        topics.add(f"nodes:{claim.key.cluster}")
        return Verdict("Pending", "AllocationTooLarge", text, tuple(sorted(topics)))
    core.record(entry)
    turn.given(entry.scopes)
    return None


def _cluster_verdict(core: Core, claim: Claim) -> Verdict | None:
    """Whether the claim's cluster is granted anything new now."""
    record = core.world.cluster(claim.key.cluster)
    reason, text = why_withheld(record) or ("", "")
    if not reason and record.cordon is not None:
        by = record.cordon
        reason, text = "ClusterCordoned", f"cluster {record.name} was cordoned by {by.operator}: {by.reason}"
    return Verdict("Pending", reason, text, (f"cluster:{record.name}",)) if reason else None


def why_withheld(record: Cluster) -> tuple[str, str] | None:
    """Why nothing new is granted to a cluster, nor of what it is the source of: reason and sentence; None if it is."""
    name, eviction = record.name, record.eviction
    if eviction is not None:
        by = f"cluster {name} was evicted by {eviction.ordered.operator}: {eviction.ordered.reason}"
        return "ClusterEvicted", f"{by}; it is being readmitted: its agent must finish a full sync" if (
            eviction.readmitted
        ) else f"{by}; it comes back with `dragoman cluster readmit {name}`"
    match record.liveness:
        case "Stale":
            return "ClusterStale", f"the agent of cluster {name} is silent: see whether it runs and reaches NATS"
        case "Lost":
            return (
                "ClusterLost",
                f"the agent of cluster {name} has been silent for long: start it, or evict the cluster",
            )
        case "Returning":
            return "ClusterLost", f"cluster {name} was lost and is heard again: its agent must finish a full sync"
        case "Live":
            return None


def _class_topics(core: Core, claim: Claim, spec: ResourceClaim) -> tuple[str, ...]:
    owner = core.world.federation.class_owner(claim.key.cluster)
    return tuple(f"class:{owner}/{name}" for name in core.specs.of(spec.spec).class_names)


def _class_verdict(core: Core, turn: Round, claim: Claim, spec: ResourceClaim) -> Verdict | None:
    owner = core.world.federation.class_owner(claim.key.cluster)
    classes = turn.classes(claim.key.cluster)
    named = core.specs.of(spec.spec).class_names
    missing = [name for name in named if name not in classes]
    if missing:
        if not core.world.cluster(owner).is_heard:
            return Verdict("Pending", "WaitingForCluster", f"cluster {owner} was not heard yet", ("heard",))
        text = f"there is no DeviceClass {missing[0]} in {owner}; create it, or name another in the claim"
        return Verdict("Pending", "UnknownDeviceClass", text)
    ours = [name for name in named if classes[name].metadata.labels.get(BROKERED_LABEL) == "true"]
    if not named:
        return Verdict("Pending", "ClassNotBrokered", "the claim asks for no device, and names no brokered DeviceClass")
    if not ours:
        text = (
            f'no DeviceClass of the claim is brokered: label {named[0]} with {BROKERED_LABEL}: "true" if it should be'
        )
        return Verdict("Pending", "ClassNotBrokered", text)
    if len(ours) < len(named):
        others = ", ".join(name for name in named if name not in ours)
        text = (
            f"the claim mixes brokered classes ({', '.join(ours)}) and others ({others}), and a claim is allocated "
            f"as a whole: use one for each"
        )
        return Verdict("Invalid", "MixedClasses", text)
    return None


def _consumer_verdict(claim: Claim, spec: ResourceClaim) -> Verdict | None:
    waiting = claim.live_unscheduled
    if spec.metadata.annotations.get(ALLOCATE_ANNOTATION) != "Immediate" and not waiting:
        text = (
            f"no pod that is still to be scheduled uses the claim; to allocate it now, annotate it "
            f"{ALLOCATE_ANNOTATION}: Immediate"
        )
        return Verdict("Pending", "WaitingForConsumer", text)
    if waiting in claim.spent:
        text = "its allocation was cleared after use, and nothing new has come that would use another"
        return Verdict("Pending", "WaitingForConsumer", text)
    if len(claim.consumers) > MAX_RESERVED_FOR:
        text = f"{len(claim.consumers)} pods use the claim, at most {MAX_RESERVED_FOR} may"
        return Verdict("Pending", "TooManyConsumers", text)
    return None


def _no_fit_verdict(core: Core, turn: Round, claim: Claim, found: NoFit) -> Verdict:
    cluster = claim.key.cluster
    reached = turn.reached(cluster)
    waits_on = found.waits_on
    owner = core.world.federation.class_owner(cluster)
    topics = {f"class:{owner}/{name}" for name in waits_on.classes}
    topics.update(f"scope:{key.scope}" for key in waits_on.pools)
    if waits_on.slices:
        topics.update(reached.topics)
    if waits_on.nodes:
        topics.add(f"nodes:{cluster}")
    if found.reason is Reason.SELECTOR_FAILED:
        scopes = (topic.removeprefix("scope:") for topic in reached.topics if topic.startswith("scope:"))
        topics.update(f"taken:{scope}" for scope in scopes)
    # By way of JSON, which has no tuples: what is kept here is what a replay of the ledger gives.
    requests = msgspec.json.encode(found.requests)
    explanation: dict[str, object] = {}
    if len(requests) <= EXPLANATION_BYTES_MAX:
        found_requests = msgspec.json.decode(requests)
        for each in found_requests:
            del each["claim"]  # the same for every claim that is alike
        explanation["requests"] = found_requests
    if reached.unheard and found.reason not in _NOT_ABOUT_DEVICES:
        text = f"nothing of {'; '.join(reached.unheard)} is granted before those clusters finished a full sync"
        return Verdict("Pending", "WaitingForCluster", text, tuple(sorted(topics | set(reached.topics))))
    if reached.withheld and found.reason not in _NOT_ABOUT_DEVICES:
        reason = reached.withheld[0][0]
        text = "; ".join(each for _, each in reached.withheld)
        return Verdict("Pending", reason, text, tuple(sorted(topics | set(reached.topics))), None, explanation)
    until_ms = core.now_ms + TRY_HARD_AGAIN_MS if found.reason == Reason.SEARCH_BUDGET_EXCEEDED else None
    return Verdict("Pending", found.reason.value, found.message, tuple(sorted(topics)), until_ms, explanation)


def _allocate(core: Core, claim: Claim, found: AllocationResult) -> Allocate | None:
    """The decision; None where the ledger, or an API server, would not take it."""
    world = core.world
    if len(found.devices.config) > limits.ALLOCATION_CONFIG_MAX or _is_too_long(found):
        return None
    found = with_share_ids(found, claim.key.uid, core.next_sequence())
    found = msgspec.structs.replace(found, allocation_timestamp=_timestamp(core.now_ms))
    holds = allocation_holds(found)
    assert holds is not None
    live = sorted(ConsumerRef(pod.uid, pod.name) for pod in claim.consumers if pod.is_live)
    entry = Allocate(
        cluster=claim.key.cluster,
        uid=claim.key.uid,
        namespace=claim.namespace,
        name=claim.name,
        resource_version=claim.resource_version,
        state_sequence=claim.state_sequence,
        allocation=msgspec.to_builtins(found),
        holds=list(holds),
        scopes=[world.device_key(claim.key.cluster, hold).pool.scope for hold in holds],
        reserved_for=live,
        unscheduled=sorted(claim.live_unscheduled),
    )
    return entry if fits(entry) else None


def _is_too_long(found: AllocationResult) -> bool:
    """So long that it need not be written out: what a request says is in each of its results."""
    left = ENTRY_BYTES_MAX
    for each in (*found.devices.results, *found.devices.config):
        left -= len(encode(each))
        if left < 0:
            return True
    return False


def _wait(core: Core, claim: Claim, verdict: Verdict) -> None:
    core.queue.wait(claim.key, verdict.topics, verdict.until_ms)
    before = claim.waiting
    order = before.order if before else claim.state_sequence
    since_ms = before.since_ms if before else core.now_ms
    entry = ReasonChanged(
        cluster=claim.key.cluster,
        uid=claim.key.uid,
        namespace=claim.namespace,
        name=claim.name,
        state=verdict.state,
        reason=verdict.reason,
        message=shortened(verdict.message),
        since_ms=since_ms,
        order=order,
        explanation=verdict.explanation,
    )
    if before is None or (before.state, before.reason) != (verdict.state, verdict.reason):
        core.record(entry)
    else:
        # The same code with other numbers: news for people who look, not worth an entry for each waiting claim.
        claim.waiting = waiting_of(entry)


def shortened(text: str) -> str:
    """A text that fits into a ledger entry."""
    return text if len(text) <= TEXT_LENGTH_MAX else f"{text[:TEXT_LENGTH_MAX]} ... ({len(text)} characters)"


def _reached(core: Core, cluster: ClusterId) -> Reached:
    world = core.world
    federation = world.federation
    scopes, topics, unheard, withheld = [], [], [], []

    def why(name: ClusterId) -> str:
        return f"{name} knows of decisions that the ledger lost" if world.cluster(name).is_ahead else f"{name} silent"

    def is_silent(name: ClusterId) -> bool:
        # Nobody vouches for what an excluded cluster itself may have.
        return not world.cluster(name).is_heard if name == cluster else world.cluster(name).is_waited_for

    def consider(scope: str, place: str, must_hear: list[ClusterId], source: ClusterId) -> None:
        topics.append(f"scope:{scope}")
        silent = [name for name in must_hear if is_silent(name)]
        why_not = why_withheld(world.cluster(source)) if source != cluster else None  # else its claims know already
        if silent:
            unheard.append(f"{place} ({', '.join(map(why, silent))})")
        elif why_not is not None:
            topics.append(f"cluster:{source}")
            withheld.append((why_not[0], f"nothing of {place} is granted: {why_not[1]}"))
        else:
            scopes.append(scope)

    if federation.believe_labels:
        topics.append("labels")
        if not world.inventory.labels_open:
            silent = [name for name in federation.clusters if is_silent(name)]
            return Reached([], ("heard", *topics), (f"fabrics declared by label ({', '.join(silent)} silent)",))
    consider(cluster_scope(cluster), f"cluster {cluster}", [cluster], cluster)
    for fabric in federation.fabrics:
        if cluster in fabric.clusters:
            must_hear = federation.must_be_heard(fabric)
            consider(fabric_scope(fabric.name), f"fabric {fabric.name}", must_hear, fabric.source)
    for scope in world.inventory.label_scopes():  # with a source for each pool, all of them in one process
        consider(scope, scope.replace("/", " "), list(federation.clusters), cluster)
    if unheard:
        topics.append("heard")
    return Reached(world.inventory.pools_of_scopes(scopes), tuple(topics), tuple(unheard), tuple(withheld))


@lru_cache(maxsize=8)
def _timestamp(unix_ms: int) -> str:
    return datetime.fromtimestamp(unix_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
