"""The mirror: what the cluster shows against what the bus was told, and what follows from the difference.

`handle` takes one event and returns actions; there is no clock, random or await in here. One publish is in flight per
subject and one write per claim. What the agent owes the broker (DESIGN section 4) is kept here and nowhere else.
"""

from collections.abc import Iterable
from typing import Any, assert_never

from cluster_agent.mirror import settling
from cluster_agent.mirror.actions import (
    Action,
    Asked,
    ClaimRead,
    Cleaning,
    DecisionSeen,
    Event,
    Exit,
    LastMessage,
    ObjectGone,
    ObjectSeen,
    Publish,
    Published,
    PublishRefused,
    Relisted,
    RunTaken,
    Started,
    Tick,
    Watched,
    WriteFailed,
    Wrote,
)
from cluster_agent.mirror.consumers import ClaimName, Consumers
from cluster_agent.mirror.rejections import (
    LACKING_ANOTHER,
    PATIENCE,
    Patience,
    Rejection,
    binding_of,
    binding_problem,
    unschedulable,
)
from cluster_agent.mirror.tracked import (
    Job,
    Tracked,
    class_names_of,
    fingerprint,
    holds_of,
    is_held,
    metadata_of,
    raw,
)
from schemas.resource.untyped import allocation_of, as_dict
from schemas.wire.calls import Beat
from schemas.wire.ledger import Release
from schemas.wire.state import (
    NAMES_IN_PART,
    NO_OBJECT,
    ClaimState,
    ObjectName,
    ObjectState,
    Rejected,
    SyncFinished,
    SyncPart,
    add_to_digest,
    object_digest,
)
from schemas.wire.subjects import KINDS, RUN_KEY

BROKERED_LABEL = "dragoman.dev/brokered"


class Mirror:
    """One cluster's agent, without its hands.

    publishes_all: every claim is the broker's business (a directory of manifests); else those on a brokered class and
    those that have an allocation.
    refresh_ms: publish each object again when its last message is older; a third of what the stream keeps.
    patience: how long the cluster may take to use what it was given.
    """

    def __init__(self, cluster: str, *, publishes_all: bool, refresh_ms: int, patience: Patience = PATIENCE) -> None:
        self.cluster = cluster
        self.publishes_all = publishes_all
        self.refresh_ms = refresh_ms
        self.patience = patience
        self.epoch = 0
        self.has_synced = False
        self.readmission = 0  # under which this run began, see Started
        self._oldest_decision = 0  # those before it are over, or of a ledger that was lost
        self.tracked: dict[ObjectName, Tracked] = {}
        self.consumers = Consumers()
        self._digest = 0
        self._last_stored = 0
        self._attempts = 0
        self._in_flight = 0  # publishes of objects
        self._now_ms = 0
        self._synced_ms = 0
        self._uids: dict[ClaimName, set[str]] = {}  # of claims, by the name that pods use
        self._watched: dict[str, int] = {}  # resourceVersion up to which the view of a kind is complete
        self._unmet: dict[str, DecisionSeen] = {}  # by UID, for claims that the watch has still to bring
        self._unseen: set[ObjectName] = set()  # only the bus knows of them: gone, or the watch will bring them
        self._brokered: set[str] = set()  # names of the classes that the cluster itself marks as brokered
        self._agent_sequences: dict[str, int] = {}  # last sequence of agent.<key>
        self._sync = 0
        self._wants_sync = False
        self._republishes = False  # everything was asked for, and the sync after it is still to come
        self._owed: set[ObjectName] = set()  # must be published before the sync may say that it is finished
        self._unused: set[ObjectName] = set()  # claims whose allocation is rejected if enough time passes
        self._to_clean: set[ObjectName] = set()  # a part of _owed, until it is published that they are
        self._sync_queue: list[SyncPart | SyncFinished] = []  # the sync that is being published; nothing else is then
        self._sync_in_flight: Publish | None = None
        self._actions: list[Action] = []

    def handle(self, event: Event) -> list[Action]:
        """What follows from an event."""
        self._actions = []
        match event:
            case Started():
                self._start(event)
            case ObjectSeen():
                self._see(event)
            case ObjectGone():
                self._lose(event)
            case Watched():
                for unseen in self._passed(event.kind, event.resource_version):
                    self._advance(unseen)
            case Relisted():
                self._relist(event)
            case DecisionSeen():
                self._take_decision(event)
            case Published():
                self._published(event.action, event.stream_sequence)
            case PublishRefused():
                self._refused(event)
            case Wrote() | WriteFailed() | ClaimRead():
                tracked = self.tracked.get(ObjectName("claim", event.action.claim.uid))
                if tracked is not None:
                    self._look_for_running(tracked)
                    self._actions += settling.answer(tracked, event, self._now_ms)
                    self._advance(tracked)
                    self._forget_if_done(tracked)
            case Asked():
                self._asked(event)
            case RunTaken():
                # Not compared with our own last message there: that may be lost, and its sequence given again.
                if event.stream_sequence > self.epoch:
                    self._exit(event.stream_sequence)
            case Tick():
                self._tick(event)
            case _:
                assert_never(event)
        self._maybe_sync()
        return self._actions

    def beat(self) -> Beat | None:
        """The heartbeat; None before the first sync is finished."""
        return Beat(self.epoch, format(self._digest, "x"), self._last_stored) if self.has_synced else None

    @property
    def is_idle(self) -> bool:
        """Nothing is under way and nothing is left to tell."""
        return (
            self.has_synced
            and not self._wants_sync
            and not self._sync_queue
            and not any(each.in_flight or each.job or self._differs(each) for each in self.tracked.values())
        )

    def has_published_outcome(self, uid: str, ledger_sequence: int) -> bool:
        """Whether a decision needs nothing more of us: its outcome is stored in the log, or its claim is gone."""
        tracked = self.tracked.get(ObjectName("claim", uid))
        if tracked is not None:
            return tracked.published_decision >= ledger_sequence
        return uid not in self._unmet

    # --- the start

    def _start(self, event: Started) -> None:
        self.epoch = event.epoch
        if event.run_sequence != event.epoch:
            self._exit(event.run_sequence)
            return
        self._agent_sequences = {RUN_KEY: event.run_sequence}
        for part, sequence in event.sync_part_sequences.items():
            self._agent_sequences[f"sync-{part}"] = sequence
        self._last_stored = event.run_sequence
        self._watched = dict(event.listed_at)
        for last in event.last_messages:
            self._learn(last)
            if last.message is not None and last.message.agent_epoch < self.epoch < last.stream_sequence:
                # The agent before us spoke after us: nobody believes it, so what it said is still to be said.
                self.tracked[last.name].published = None
        self.readmission = event.readmission
        if event.readmission:  # nothing that was said before it counts
            for tracked in self.tracked.values():
                tracked.published = None
        met = set(self.tracked)
        self._wants_sync = True
        for seen in event.objects:
            self._view(seen)
        for tracked in self.tracked.values():
            if tracked.object is None:  # it went while no agent was there
                tracked.view_version = max(tracked.subject_version, 1)
        if event.cleaning is not None:
            self._oldest_decision = event.cleaning.since
            self._clean(event.cleaning, {decision.uid for _, decision in event.decisions})
        for sequence, decision in event.decisions:
            if sequence < self._oldest_decision:
                continue
            name = ObjectName("claim", decision.uid)
            known = self.tracked.get(name)
            if known is None or sequence <= known.decision_sequence:
                continue  # of a claim that is gone: the sync says so
            known.job = Job(sequence, decision)
            if name not in met and known.object is not None:
                # Its messages have expired, so nobody knows what was written for it: find out before doing anything.
                self._actions += settling.settle(known, known.job)
        self._owed = {each.name for each in self.tracked.values() if self._differs(each)} | self._to_clean
        for tracked in list(self.tracked.values()):
            self._advance(tracked)

    def _clean(self, cleaning: Cleaning, decided: set[str]) -> None:
        """No claim of before may get an allocation by a write that is still under way; see Cleaning.

        decided: UIDs of claims for which something was ever decided.
        """
        for tracked in self.tracked.values():
            if tracked.name.kind != "claim" or tracked.object is None or tracked.decision_sequence >= cleaning.since:
                continue  # a run before us has done it
            is_unwritable = tracked.error and not is_held(tracked.object) and holds_of(tracked.object) is None
            if tracked.name.key in decided or (self._is_our_business(tracked) and not is_unwritable):
                # What cannot be read was never decided, and what was left out of it no write could carry: whoever may
                # create such a claim must not keep the cluster out.
                tracked.job = Job(cleaning.since, cleaning)
                self._to_clean.add(tracked.name)

    def _exit(self, sequence: int) -> None:
        self._actions.append(Exit(f"another agent serves cluster {self.cluster} (its message {sequence})"))

    def _learn(self, last: LastMessage) -> None:
        """The last message of a subject says what was published, perhaps by an agent before us."""
        if last.message is None:
            return
        tracked = self.tracked.setdefault(last.name, Tracked(last.name))
        self._note_published(tracked, last.message, last.stream_sequence, last.stored_ms)
        if isinstance(last.message, ClaimState):
            tracked.subject_version = _version(last.message.resource_version)
            if last.message.decision and last.message.decision.ledger_sequence > tracked.decision_sequence:
                tracked.decision = last.message.decision
            tracked.rejected = last.message.rejected

    # --- views

    def _see(self, event: ObjectSeen) -> None:
        for tracked in [*self._view(event), *self._passed(event.kind, event.resource_version)]:
            self._advance(tracked)

    def _view(self, event: ObjectSeen) -> list[Tracked]:
        """Take in an object; returns whose messages it can change."""
        metadata = metadata_of(event.object)
        if event.kind in ("pod", "namespace"):
            return self._concerned(self.consumers.see(event.kind, event.object), event.seen_us)
        key = str(metadata.get("uid" if event.kind == "claim" else "name", ""))
        name = ObjectName(event.kind, key)
        tracked = self.tracked.setdefault(name, Tracked(name))
        if event.resource_version < tracked.view_version:
            return []  # a late event; the view never goes back
        tracked.object, tracked.error, tracked.view_version = event.object, event.error, event.resource_version
        tracked.note_news(event.seen_us)
        if tracked.removal == "failed":
            tracked.removal = ""
        if event.kind == "claim":
            self._uids.setdefault((tracked.ref.namespace, tracked.ref.name), set()).add(key)
            unmet = self._unmet.pop(key, None)
            if unmet is not None:
                self._take_decision(unmet)
        if event.kind == "class":
            return [tracked, *self._class_changed(tracked)]
        return [tracked]

    def _passed(self, kind: str, resource_version: int) -> list[Tracked]:
        """The watch has come so far; returns objects that it did not bring: that may say that they are gone."""
        self._watched[kind] = max(self._watched.get(kind, 0), resource_version)
        if kind == "claim" and self._unmet:
            self._unmet = {uid: event for uid, event in self._unmet.items() if self._is_still_to_come(event)}
        return [self.tracked[name] for name in sorted(self._unseen) if name.kind == kind and name in self.tracked]

    def _concerned(self, names: set[ClaimName] | str, seen_us: int) -> list[Tracked]:
        """The claims of these names, or of a whole namespace: what is said of them has changed."""
        if isinstance(names, str):
            uids = {uid for (namespace, _), each in self._uids.items() if namespace == names for uid in each}
        else:
            uids = {uid for name in names for uid in self._uids.get(name, ())}
        found = [self.tracked[name] for uid in sorted(uids) if (name := ObjectName("claim", uid)) in self.tracked]
        for tracked in found:
            tracked.note_news(seen_us)
        return found

    def _class_changed(self, tracked: Tracked) -> list[Tracked]:
        """A class became brokered: claims that were not our business may be now."""
        labels = as_dict(metadata_of(tracked.object).get("labels"))
        is_brokered = labels.get(BROKERED_LABEL) == "true"
        if is_brokered == (tracked.name.key in self._brokered):
            return []
        (self._brokered.add if is_brokered else self._brokered.discard)(tracked.name.key)
        return [each for each in self.tracked.values() if each.name.kind == "claim"]

    def _lose(self, event: ObjectGone) -> None:
        metadata = metadata_of(event.object)
        if event.kind in ("pod", "namespace"):
            for claim in self._concerned(self.consumers.lose(event.kind, event.object), event.seen_us):
                self._advance(claim)
            return
        key = str(metadata.get("uid" if event.kind == "claim" else "name", ""))
        tracked = self.tracked.get(ObjectName(event.kind, key))
        if tracked is not None and event.resource_version >= tracked.view_version:
            self._gone(tracked, event.resource_version, event.seen_us)
        for unseen in self._passed(event.kind, event.resource_version):
            self._advance(unseen)

    def _gone(self, tracked: Tracked, resource_version: int, seen_us: int = 0) -> None:
        if tracked.name.kind == "claim":
            ref = tracked.ref
            uids = self._uids.get((ref.namespace, ref.name), set())
            uids.discard(tracked.name.key)
            if not uids:
                self._uids.pop((ref.namespace, ref.name), None)
        tracked.object, tracked.error = None, ""
        tracked.must_be_gone = False
        tracked.note_news(seen_us)
        tracked.view_version = max(tracked.view_version, tracked.own_version, tracked.subject_version, resource_version)
        if tracked.name.kind == "class":
            self._brokered.discard(tracked.name.key)
        self._advance(tracked)
        self._forget_if_done(tracked)

    def _relist(self, event: Relisted) -> None:
        if event.kind in ("pod", "namespace"):
            self.consumers.forget(event.kind)
            for tracked in self.tracked.values():  # whoever is not in the list is gone
                tracked.is_dirty = True
        for seen in event.objects:
            self._view(seen)
        there = {
            str(metadata_of(seen.object).get("uid" if event.kind == "claim" else "name", "")) for seen in event.objects
        }
        for tracked in [each for each in self.tracked.values() if each.name.kind == event.kind]:
            if tracked.name.key not in there and tracked.object is not None:
                self._gone(tracked, event.resource_version)
        self._passed(event.kind, event.resource_version)
        for tracked in list(self.tracked.values()):
            self._advance(tracked)

    def _forget_if_done(self, tracked: Tracked) -> None:
        """Gone, and nobody has to be told (any more)."""
        done = tracked.object is None and tracked.job is None and tracked.in_flight is None
        if done and not self._differs(tracked) and tracked.name not in self._owed:
            del self.tracked[tracked.name]
            self._unused.discard(tracked.name)

    # --- decisions

    def _take_decision(self, event: DecisionSeen) -> None:
        tracked = self.tracked.get(ObjectName("claim", event.decision.uid))
        if tracked is None:
            if self._is_still_to_come(event):
                self._unmet[event.decision.uid] = event
            return  # else it is gone, which our messages say
        if event.ledger_sequence <= max(tracked.decision_sequence, self._oldest_decision):
            return  # settled; or over
        if tracked.job is not None and tracked.job.ledger_sequence >= event.ledger_sequence:
            return
        tracked.job = Job(event.ledger_sequence, event.decision)
        self._advance(tracked)

    def _is_still_to_come(self, event: DecisionSeen) -> bool:
        """It was decided on a state of its claim that our watch has not brought yet, and another agent's has."""
        return _version(event.decision.resource_version) > self._watched.get("claim", 0)

    # --- rejections

    def _look_for_running(self, tracked: Tracked) -> None:
        """Before a Release does anything: whether a pod has got a node with what is to be asked back."""
        if tracked.object is not None and tracked.job is not None and isinstance(tracked.job.decision, Release):
            tracked.is_running = self._has_running(tracked.object)

    def _has_running(self, claim: dict[str, Any]) -> bool:
        """A pod that uses the claim has a node."""
        return any(pod.is_running for pod in self.consumers.of(claim))

    def _look_at_use(self, tracked: Tracked) -> None:
        """Report an allocation of ours that the cluster cannot use; once, and for as long as it is there."""
        if tracked.rejected is not None and tracked.object is not None and self._has_running(tracked.object):
            tracked.rejected = None  # for good: that its pod is done later does not make it unusable again
        found = self._why_unused(tracked)
        if found is None:
            return
        assert tracked.decision is not None
        tracked.rejected = Rejected(tracked.decision.ledger_sequence, found.reason, found.message)
        tracked.is_dirty = True
        self._unused.discard(tracked.name)

    def _why_unused(self, tracked: Tracked) -> Rejection | None:
        self._unused.discard(tracked.name)
        before, tracked.unschedulable_since = tracked.unschedulable_since, None
        claim, decision = tracked.object, tracked.decision
        if claim is None or allocation_of(claim) is None or tracked.job is not None:
            return None
        if decision is None or decision.outcome != "Applied":
            return None  # not ours: nobody could tell the broker which grant it is
        if tracked.rejected is not None and tracked.rejected.ledger_sequence == decision.ledger_sequence:
            return None
        if self._has_running(claim):
            return None
        binding = binding_of(claim)
        found = binding_problem(claim, binding, self._now_ms, self.patience)
        if found is not None or binding.pending:  # meanwhile the pod is what it was before, Unschedulable perhaps
            self._unused.add(tracked.name)
            return found
        consumers = self.consumers.of(claim)
        found = unschedulable(consumers, self.consumers.refusals)
        if found is None:
            return None
        lacks_another = any(self._lacks_another(pod.uid, tracked) for pod in consumers if pod.is_live)
        since_ms, lacked = before or (self._now_ms, lacks_another)
        tracked.unschedulable_since = (since_ms if lacked == lacks_another else self._now_ms, lacks_another)
        self._unused.add(tracked.name)
        patience_ms = self.patience.unschedulable_ms * (LACKING_ANOTHER if lacks_another else 1)
        return found if self._now_ms - tracked.unschedulable_since[0] >= patience_ms else None

    def _lacks_another(self, pod: str, tracked: Tracked) -> bool:
        """The pod uses another claim of ours, too, which has no allocation: so it is no wonder that it waits."""
        others = {uid for name in self.consumers.claims_of(pod) for uid in self._uids.get(name, ())}
        return any(
            other is not tracked and other.object is not None and allocation_of(other.object) is None
            for other in (self.tracked.get(ObjectName("claim", uid)) for uid in sorted(others))
            if other is not None and self._is_our_business(other)
        )

    # --- publishing

    def _advance(self, tracked: Tracked) -> None:
        """Do whatever can be done for an object now."""
        if tracked.name in self._unseen:
            self._look_for(tracked)
        if tracked.name.kind == "claim":
            self._look_for_running(tracked)
            self._actions += settling.advance(tracked)
            self._look_at_use(tracked)
        if tracked.in_flight is not None or not tracked.view_is_current or tracked.is_half_way:
            return
        if not self._differs(tracked):
            tracked.news_us = 0
            self._is_told(tracked)
        elif not self._holds_back:
            self._publish(tracked)

    def _is_told(self, tracked: Tracked) -> None:
        """The sync need not wait for the object any more, unless it has to be cleaned before that."""
        if tracked.published_decision >= self._oldest_decision or tracked.published_version is None:
            self._to_clean.discard(tracked.name)
        if tracked.name not in self._to_clean:
            self._owed.discard(tracked.name)

    def _look_for(self, tracked: Tracked) -> None:
        """The subject's last message, of an agent before us, knows the object as of a resourceVersion; we never saw it.

        Where our view of the kind is complete beyond that, it is gone; else the watch will say.
        """
        if tracked.object is None and tracked.subject_version <= self._watched.get(tracked.name.kind, 0):
            tracked.view_version = max(tracked.view_version, tracked.subject_version)
        if tracked.object is not None or tracked.view_is_current:
            self._unseen.discard(tracked.name)

    @property
    def _holds_back(self) -> bool:
        """A sync is about to be published: nothing may come between its list and its last message."""
        return bool(self._sync_queue) or (self._wants_sync and not self._owed)

    def _differs(self, tracked: Tracked) -> bool:
        """What the object's last message says is not what it should say."""
        if tracked.object is None and tracked.published_version is None:
            # Never told of, or a tombstone: told (again) only where somebody asked, or we do not know what is there.
            return tracked.published is None and (tracked.last_sequence > 0 or tracked.name in self._owed)
        if tracked.object is not None and not self._is_our_business(tracked):
            return False
        if tracked.published is not None and not tracked.is_dirty:
            return False
        differs = fingerprint(self._message(tracked)) != tracked.published
        tracked.is_dirty = differs
        return differs

    def _is_our_business(self, tracked: Tracked) -> bool:
        if tracked.name.kind != "claim" or self.publishes_all:
            return True
        if tracked.published_version is not None or tracked.name in self._owed or tracked.job or tracked.decision:
            return True  # the broker has known it, or is about to: a sync without it would end what it holds
        assert tracked.object is not None
        # With our finalizer something was decided for it once: it must not be taken for gone, nor for new.
        return (
            holds_of(tracked.object) is not None
            or is_held(tracked.object)
            or any(name in self._brokered for name in class_names_of(tracked.object))
        )

    def _message(self, tracked: Tracked) -> ClaimState | ObjectState:
        version = str(tracked.view_version)
        body = raw(tracked.object) if tracked.object is not None else NO_OBJECT
        if tracked.name.kind != "claim":
            return ObjectState(agent_epoch=self.epoch, object=body, resource_version=version, error=tracked.error)
        if tracked.object is None:
            return ClaimState(agent_epoch=self.epoch, resource_version=version, decision=tracked.decision)
        consumers = self.consumers.of(tracked.object)
        is_used = any(pod.is_running for pod in consumers)
        return ClaimState(
            agent_epoch=self.epoch,
            claim=body,
            resource_version=version,
            consumers=consumers,
            namespace_labels=self.consumers.namespace_labels(tracked.ref.namespace),
            decision=tracked.decision,
            rejected=None if is_used else tracked.rejected,
            error=tracked.error,
        )

    def _publish(self, tracked: Tracked) -> None:
        self._attempts += 1
        action = Publish(tracked.name, self._message(tracked), tracked.last_sequence, self._attempts, tracked.news_us)
        tracked.in_flight, tracked.news_us = action, 0
        self._in_flight += 1
        self._actions.append(action)

    def _published(self, action: Publish, stream_sequence: int) -> None:
        self._last_stored = max(self._last_stored, stream_sequence)
        if action.name.kind == "agent":
            self._sync_published(action, stream_sequence)
            return
        tracked = self.tracked[action.name]
        assert isinstance(action.message, ClaimState | ObjectState)
        tracked.in_flight = None
        self._in_flight -= 1
        self._note_published(tracked, action.message, stream_sequence, self._now_ms)
        self._is_told(tracked)
        if action.message.is_tombstone and tracked.object is None and tracked.job and tracked.job.stage == "start":
            tracked.job = None  # of a claim that we never saw: its tombstone settles all that there is
        self._advance(tracked)
        self._forget_if_done(tracked)

    def _note_published(
        self, tracked: Tracked, message: ClaimState | ObjectState, stream_sequence: int, stored_ms: int
    ) -> None:
        if tracked.published_version is not None:
            self._digest = add_to_digest(self._digest, -object_digest(tracked.name, tracked.published_sequence))
        decision = message.decision if isinstance(message, ClaimState) else None
        tracked.last_sequence = tracked.published_sequence = stream_sequence
        tracked.published = fingerprint(message)
        tracked.published_version = None if message.is_tombstone else message.resource_version
        tracked.published_decision = decision.ledger_sequence if decision else 0
        tracked.subject_version = _version(message.resource_version)
        tracked.published_ms = stored_ms
        if tracked.published_version is not None:
            self._digest = add_to_digest(self._digest, object_digest(tracked.name, stream_sequence))

    def _refused(self, event: PublishRefused) -> None:
        action = event.action
        if event.is_ours:
            assert event.last is not None
            self._published(action, event.last.stream_sequence)
            return
        if event.last_epoch > self.epoch:
            self._exit(event.last_epoch)
            return
        if action.name.kind == "agent":
            self._sync_in_flight = None
            self._agent_sequences[action.name.key] = event.last.stream_sequence if event.last else 0
            self._publish_next_part()
            return
        tracked = self.tracked[action.name]
        tracked.in_flight = None
        self._in_flight -= 1
        if event.last is None or event.last.message is None:
            tracked.last_sequence = event.last.stream_sequence if event.last else 0
        else:
            # What is there was written by an agent that came before: it may know more than we do.
            self._learn(event.last)
            job = tracked.job
            if job is not None and job.ledger_sequence <= tracked.decision_sequence:
                tracked.job = None
            if tracked.object is None and not tracked.view_is_current:
                self._unseen.add(tracked.name)
        tracked.published = None
        tracked.news_us = action.seen_us or tracked.news_us
        # Our message may still land. No sync may speak before a later one of ours has made that impossible.
        self._owed.add(tracked.name)
        self._advance(tracked)

    # --- full syncs

    def _asked(self, event: Asked) -> None:
        if not event.objects:
            if self._republishes:
                return  # asks are repeated; the answer is on its way
            # A sync that is being published goes first: its last message, perhaps under way, speaks for what was
            # published before it and for nothing else.
            self._republishes = self._wants_sync = True
            self._mark(self.tracked)
        else:
            for name in event.objects:
                if name.kind in KINDS:
                    self.tracked.setdefault(name, Tracked(name))
            self._mark(name for name in event.objects if name.kind in KINDS)

    def _mark(self, names: Iterable[ObjectName]) -> None:
        """Publish these whatever was published before."""
        for name in list(names):
            tracked = self.tracked[name]
            tracked.published = None
            if tracked.object is None or self._is_our_business(tracked):
                self._owed.add(name)
        for name in sorted(self._owed):
            self._advance(self.tracked[name])

    def _maybe_sync(self) -> None:
        if not self._wants_sync or self._sync_queue or self._owed or self._in_flight:
            return
        self._wants_sync = False
        self._sync += 1
        names = sorted(each.name for each in self.tracked.values() if each.published_version is not None)
        parts = [names[start : start + NAMES_IN_PART] for start in range(0, len(names), NAMES_IN_PART)] or [[]]
        self._sync_queue = [
            SyncPart(self.epoch, self._sync, number, part) for number, part in enumerate(parts[:-1], start=1)
        ]
        self._sync_queue.append(SyncFinished(self.epoch, self._sync, len(parts) - 1, parts[-1], self.readmission))
        self._publish_next_part()

    def _publish_next_part(self) -> None:
        if self._sync_in_flight is not None or not self._sync_queue:
            return
        message = self._sync_queue[0]
        key = RUN_KEY if isinstance(message, SyncFinished) else f"sync-{message.part}"
        self._attempts += 1
        action = Publish(ObjectName("agent", key), message, self._agent_sequences.get(key, 0), self._attempts)
        self._sync_in_flight = action
        self._actions.append(action)

    def _sync_published(self, action: Publish, stream_sequence: int) -> None:
        self._sync_in_flight = None
        self._agent_sequences[action.name.key] = stream_sequence
        if self._sync_queue and self._sync_queue[0] is action.message:
            self._sync_queue.pop(0)
        if self._sync_queue:
            self._publish_next_part()
            return
        if isinstance(action.message, SyncFinished):
            self.has_synced = True
            self._synced_ms = self._now_ms
            if not self._wants_sync:
                self._republishes = False
        for tracked in list(self.tracked.values()):
            self._advance(tracked)

    def _tick(self, event: Tick) -> None:
        self._now_ms = event.now_ms
        old = event.now_ms - self.refresh_ms
        for tracked in list(self.tracked.values()):
            if tracked.job is not None and tracked.job.is_due(event.now_ms):
                self._actions += settling.settle(tracked, tracked.job)
                self._advance(tracked)
            if tracked.removal == "failed" and tracked.removal_refused.is_over(event.now_ms):
                tracked.removal = ""
                self._advance(tracked)
            if tracked.published_version is not None and tracked.published_ms < old:
                tracked.published = None
                self._advance(tracked)
        for name in sorted(self._unused):
            self._advance(self.tracked[name])
        if self.has_synced and self._synced_ms < old:
            self._wants_sync = True


def _version(text: str) -> int:
    return int(text) if text.isdigit() else 0
