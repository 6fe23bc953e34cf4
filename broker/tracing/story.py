"""A claim's life as episodes: what was decided for it, what became of that, when its pod was scheduled, how it ended.

Fed with the facts of both logs, each in its order; which of the two is ahead does not matter as long as a message is
there before an entry that follows from it. The stages of an episode follow each other without a gap: each begins where
the one before it ended, and one whose end nobody noted is part of the next. Where two clocks disagree a stage takes no
time, and the one after it what is left.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from broker.tracing.facts import Context, EntryFacts, StateFacts, Tell, entry_facts, state_facts
from broker.tracing.spans import Episode, Kind, Link, Span, Value, span_id_of
from schemas.wire import ledger
from schemas.wire.bus import StoredMessage
from schemas.wire.codec import trace_id
from schemas.wire.ledger import AnyEntry, inputs_of, own_sequence
from schemas.wire.subjects import STATE_STREAM

STATES_KEPT = 64  # messages of one claim, as many as the stream keeps
LINKS_MOST = 16
_NEW = ("publish", "queue")  # stages of a message that was not met before

# What a stage is in the words of OpenTelemetry: its kind, and operation and type of messaging (semconv 1.44).
_MESSAGING: dict[str, tuple[Kind, str, str]] = {
    "publish": ("producer", "publish", "send"),
    "queue": ("consumer", "fetch", "receive"),
    "commit": ("producer", "publish", "send"),
    "deliver": ("consumer", "fetch", "receive"),
    "report": ("producer", "publish", "send"),
}
_STATE_TEMPLATE = "dra.v1.state.{cluster}.claim.{uid}"
_LEDGER_TEMPLATE = "dra.v1.ledger.{shard}.{segment}.{cluster}.{kind}.{uid}"


@dataclass(slots=True)
class Open:
    """A decision that an agent has to carry out. Its stages up to its commit are known."""

    facts: EntryFacts
    start_us: int
    stages: list[tuple[str, int]]
    waited_us: int
    cause: StateFacts | None
    links: tuple[Link, ...]
    batch: Context | None


@dataclass(slots=True)
class Batch:
    """What the entries of a batch share. entries: how many there were so far. freed: grants that ended in it."""

    context: Context | None = None
    entries: int = 0
    freed: list[Link] = field(default_factory=list)


@dataclass(slots=True)
class Story:
    """One claim. states: by sequence, those after the last entry that follows from one."""

    cluster: str
    uid: str
    namespace: str = ""
    name: str = ""
    states: dict[int, StateFacts] = field(default_factory=dict)
    told: int = 0  # sequence of the last message that an episode tells of
    last_entry: int = 0
    waiting_us: int = 0  # when it was said last that it waits, 0 if it does not
    waiting_for: str = ""
    grants: set[int] = field(default_factory=set)  # ledger sequences of those that have not ended
    is_gone: bool = False
    open: Open | None = None
    # An Allocate that was applied: its ledger sequence, that of its outcome, when it was written, as of which message.
    applied: tuple[int, int, int, int] | None = None
    unscheduled: StateFacts | None = None  # the first message that shows a pod with a node

    @property
    def trace_id(self) -> str:
        """All of its spans share it."""
        return trace_id(self.cluster, self.uid)

    # --- facts

    def state(self, facts: StateFacts) -> Iterator[Episode]:
        """A state message; one that was met before, or is older than what it would tell, changes nothing."""
        if facts.sequence in self.states or facts.sequence <= self.told:
            return
        self.states[facts.sequence] = facts
        self.is_gone = facts.is_tombstone
        while len(self.states) > STATES_KEPT:
            del self.states[min(self.states)]
        yield from self._scheduled()

    def entry(self, facts: EntryFacts, batch: Batch) -> Iterator[Episode]:
        """A ledger entry about the claim; one that was met before changes nothing."""
        if facts.sequence <= self.last_entry:
            return
        self.last_entry = facts.sequence
        entry = facts.entry
        if own_sequence(entry, facts.sequence) != facts.sequence:
            return  # a checkpoint states it again
        if isinstance(entry, ledger.Allocate | ledger.Release | ledger.ReasonChanged | ledger.Adopted):
            self.namespace, self.name = entry.namespace, entry.name
        match entry:
            case ledger.Allocate():
                self.open = self._decided(facts, batch)
                self.waiting_us, self.applied = 0, None
                self.grants.add(facts.sequence)
            case ledger.Release():
                self.open = self._decided(facts, batch)
            case ledger.ReasonChanged():
                yield self._refused(facts, batch)
            case ledger.OutcomeRecorded():
                yield from self._settled(facts)
                yield from self._scheduled()
            case ledger.GrantEnded():
                yield from self._ended(facts, batch)
            case ledger.Adopted() | ledger.CollisionFound() | ledger.ClaimForgotten():
                yield self._recorded(facts, batch, _TITLES[type(entry)])
                self.is_gone = isinstance(entry, ledger.ClaimForgotten)
                if isinstance(entry, ledger.Adopted):
                    self.grants.add(facts.sequence)
        self._consume(facts.cause)

    @property
    def is_over(self) -> bool:
        """The claim is gone and holds nothing: nothing more will be told of it."""
        return self.is_gone and not self.grants and self.open is None

    def checkpoint(self, kept: ledger.ClaimKept) -> None:
        """What a checkpoint says of it, where nothing else is known."""
        self.grants.update(grant.ledger_sequence for grant in kept.grants)
        self.namespace, self.name = kept.namespace, kept.name
        if kept.waiting is not None:
            self.waiting_us, self.waiting_for = kept.waiting.since_ms * 1_000, kept.waiting.reason
            self.told = max(self.told, kept.waiting.order)

    # --- episodes

    def _decided(self, facts: EntryFacts, batch: Batch) -> Open:
        """A decision up to its commit. One that waited begins where it began to wait."""
        cause = self.states.get(facts.cause)
        times = facts.times
        stages: list[tuple[str, int]] = []
        is_new = facts.cause > self.told
        turn_us = times.get("deciding", times.get("stepped", 0))
        start_us, waited_us = self._start(facts, cause, is_new=is_new), 0
        if is_new:
            stages += [("publish", times.get("received", 0)), ("queue", turn_us)]
        elif self.waiting_us and turn_us and isinstance(facts.entry, ledger.Allocate | ledger.ReasonChanged):
            start_us = self.waiting_us
            waited_us = max(0, turn_us - start_us)
            stages.append(("wait", turn_us))
        elif turn_us:
            start_us = turn_us
        stages += [
            ("decide", times.get("decided", times.get("ended", 0))),
            ("batch", times.get("sent", 0)),
            ("commit", facts.stored_us),
        ]
        links = tuple(batch.freed[:LINKS_MOST]) if not is_new else ()
        if cause is not None and cause.asked_by is not None:
            links += (Link(cause.asked_by.trace_id, cause.asked_by.span_id, "asked by"),)
        return Open(facts, start_us, stages, waited_us, cause if is_new else None, links, batch.context)

    def _refused(self, facts: EntryFacts, batch: Batch) -> Episode:
        entry = facts.entry
        assert isinstance(entry, ledger.ReasonChanged)
        decided = self._decided(facts, batch)
        title = "refuse" if entry.state == "Invalid" else "pending"
        more: dict[str, Value] = {"dra.decision": entry.state, "dra.reason": entry.reason}
        episode = self._episode(title, decided, more, unusual="refused" if entry.state == "Invalid" else "")
        self.waiting_us, self.waiting_for = facts.stored_us, entry.reason
        return episode

    def _settled(self, facts: EntryFacts) -> Iterator[Episode]:
        entry = facts.entry
        assert isinstance(entry, ledger.OutcomeRecorded)
        decided, outcome = self.open, self.states.get(facts.cause)
        if decided is None or decided.facts.sequence != entry.decision_sequence:
            return  # what it settles was decided before we began to read
        self.open = None
        times = outcome.times if outcome is not None else {}
        written_us = times.get("written", 0)
        decided.stages += [("deliver", times.get("delivered", 0)), ("apply", written_us), ("report", facts.stored_us)]
        what = decided.facts.entry
        is_applied = entry.outcome == "Applied"
        if isinstance(what, ledger.Allocate) and is_applied:
            self.applied = (entry.decision_sequence, facts.sequence, written_us or facts.stored_us, facts.cause)
        more: dict[str, Value] = {"dra.outcome": entry.outcome, **_about(what)}
        yield self._episode(
            "allocate" if isinstance(what, ledger.Allocate) else "release",
            decided,
            more,
            last=facts,
            outcome=outcome,
            unusual="" if is_applied else "failed",
            error="" if is_applied else f"{entry.outcome}: {entry.message}",
        )

    def _scheduled(self) -> Iterator[Episode]:
        """The pod has a node: when both the outcome and a message that shows it are there, whichever came first."""
        if self.applied is None:
            return
        grant, ledger_sequence, written_us, as_of = self.applied
        shows = next((each for _, each in sorted(self.states.items()) if each.is_scheduled), None)
        if shows is None or shows.sequence < as_of:
            return
        self.applied = None
        end_us = max(written_us, shows.times.get("seen", shows.times.get("sent", shows.stored_us)))
        span = Span(
            self.trace_id,
            span_id_of(self.trace_id, "schedule", grant),
            f"schedule {self._title}",
            written_us,
            end_us,
            attributes={**self._who, "dra.grant.sequence": grant, "dra.state.sequence": shows.sequence},
        )
        yield Episode((span,), ledger_sequence, shows.sequence, waited_us=end_us - written_us)

    def _ended(self, facts: EntryFacts, batch: Batch) -> Iterator[Episode]:
        entry = facts.entry
        assert isinstance(entry, ledger.GrantEnded)
        if self.open is not None and self.open.facts.sequence == entry.grant_sequence:
            # Deleted or evicted before its agent has said what became of it.
            decided, self.open = self.open, None
            decided.stages.append(("report", facts.stored_us))
            more: dict[str, Value] = {"dra.end.cause": entry.cause, **_about(decided.facts.entry)}
            yield self._episode("allocate", decided, more, last=facts, unusual="failed", error=entry.cause)
        self.applied = None
        self.grants.discard(entry.grant_sequence)
        self.is_gone = self.is_gone or entry.cause == "ClaimMissing"
        more = {"dra.grant.sequence": entry.grant_sequence, "dra.end.cause": entry.cause}
        unusual = {"ClusterEvicted": "evicted", "AllocationRejected": "rejected"}.get(entry.cause, "")
        yield self._recorded(facts, batch, "end", more, unusual)
        batch.freed.append(Link(self.trace_id, facts.context.span_id, "freed by"))

    def _recorded(
        self, facts: EntryFacts, batch: Batch, title: str, more: dict[str, Value] | None = None, unusual: str = ""
    ) -> Episode:
        """An entry that asks nothing of anybody."""
        return self._episode(title, self._decided(facts, batch), {**_about(facts.entry), **(more or {})}, unusual)

    # --- spans

    def _episode(
        self,
        title: str,
        decided: Open,
        attributes: dict[str, Value],
        unusual: str = "",
        error: str = "",
        last: EntryFacts | None = None,
        outcome: StateFacts | None = None,
    ) -> Episode:
        """Spans that follow each other, below one that spans them all."""
        facts, cause = decided.facts, decided.cause
        last = last or facts
        top_id = facts.context.span_id
        children: list[Span] = []
        at_us = decided.start_us
        for stage, end_us in decided.stages:
            if not end_us:
                continue  # nobody noted it: it is part of the next one
            begin_us, at_us = at_us, max(at_us, end_us)
            children.append(self._stage(stage, begin_us, at_us, top_id, decided, last, outcome))
            children += self._within(stage, children[-1], facts, outcome)
        about: dict[str, Value] = {**self._who, "dra.ledger.sequence": facts.sequence, **attributes}
        if facts.cause:
            about["dra.state.sequence"] = facts.cause
        if self.waiting_for and decided.waited_us:
            about["dra.waited_for"] = self.waiting_for
        top = Span(
            self.trace_id,
            top_id,
            f"{title} {self._title}",
            decided.start_us,
            at_us,
            attributes=about,
            links=decided.links,
            error=error,
        )
        if decided.batch is not None:
            children = [self._with_batch(span, decided.batch) for span in children]
        state = max(facts.cause, last.cause, outcome.sequence if outcome else 0, cause.sequence if cause else 0)
        return Episode((top, *children), last.sequence, state, unusual, decided.waited_us)

    def _stage(
        self,
        stage: str,
        start_us: int,
        end_us: int,
        top_id: str,
        decided: Open,
        last: EntryFacts,
        outcome: StateFacts | None,
    ) -> Span:
        attributes: dict[str, Value] = {"dra.cluster": self.cluster}
        kind: Kind = "internal"
        events: list[tuple[str, int]] = []
        span_id = span_id_of(top_id, stage)
        if stage in _MESSAGING:
            kind, name, operation = _MESSAGING[stage]
            is_state = stage in _NEW
            attributes |= {
                "messaging.system": "nats",
                "messaging.operation.name": name,
                "messaging.operation.type": operation,
                "messaging.destination.name": STATE_STREAM if is_state else "DRA_LEDGER",
                "messaging.destination.template": _STATE_TEMPLATE if is_state else _LEDGER_TEMPLATE,
            }
            message_id = (decided.cause.message_id if decided.cause else "") if is_state else decided.facts.message_id
            if stage == "report":
                message_id = last.message_id
            if message_id:
                attributes["messaging.message.id"] = message_id
        if stage == "publish" and decided.cause is not None:
            events += [("sent", sent)] if (sent := decided.cause.times.get("sent", 0)) else []
            events.append(("stored", decided.cause.stored_us))
        elif stage == "deliver":
            attributes["messaging.consumer.group.name"] = f"agent_{self.cluster}"
        elif stage == "report" and outcome is not None:
            events += [(each, outcome.times[each]) for each in ("seen", "sent") if each in outcome.times]
            events.append(("stored", outcome.stored_us))
        return Span(
            self.trace_id,
            span_id,
            stage,
            start_us,
            end_us,
            parent_id=top_id,
            kind=kind,
            attributes=attributes,
            events=tuple(events),
        )

    def _within(self, stage: str, span: Span, facts: EntryFacts, outcome: StateFacts | None) -> Iterator[Span]:
        """What is known of the inside of a stage."""
        parts: list[tuple[str, int, int]] = []
        if stage == "decide" and (filtered_us := facts.times.get("filtered", 0)):
            parts = [("filter", span.start_us, filtered_us), ("search", filtered_us, span.end_us)]
        elif stage == "apply" and outcome is not None and (writing_us := outcome.times.get("writing", 0)):
            parts = [("write", writing_us, span.end_us)]
        for name, start_us, end_us in parts:
            start_us = min(max(start_us, span.start_us), span.end_us)
            end_us = min(max(end_us, start_us), span.end_us)
            yield Span(self.trace_id, span_id_of(span.span_id, name), name, start_us, end_us, parent_id=span.span_id)

    def _with_batch(self, span: Span, batch: Context) -> Span:
        if span.name != "commit":
            return span
        return replace(span, links=(Link(batch.trace_id, batch.span_id, "stored with"),))

    def _start(self, facts: EntryFacts, cause: StateFacts | None, *, is_new: bool) -> int:
        """When the first news came from which the entry follows, as far as that is known."""
        candidates: list[int] = []
        if is_new and cause is not None:
            candidates = [cause.times.get("seen", 0), cause.times.get("sent", 0), cause.stored_us]
        times = facts.times
        candidates += [times.get("received", 0) if is_new else 0, times.get("stepped", 0), facts.stored_us]
        return next(each for each in candidates if each)

    def _consume(self, cause: int) -> None:
        self.told = max(self.told, cause)
        for sequence in [each for each in self.states if each < self.told]:
            del self.states[sequence]

    @property
    def _title(self) -> str:
        return f"{self.namespace}/{self.name}" if self.name else self.uid

    @property
    def _who(self) -> dict[str, Value]:
        who: dict[str, Value] = {"dra.cluster": self.cluster, "dra.claim.uid": self.uid}
        if self.name:
            who |= {"dra.claim.name": self.name, "k8s.namespace.name": self.namespace}
        return who


_TITLES: dict[type, str] = {ledger.Adopted: "adopt", ledger.CollisionFound: "collide", ledger.ClaimForgotten: "forget"}


def _about(entry: AnyEntry) -> dict[str, Value]:
    """What was decided."""
    about: dict[str, Value] = {"dra.decision": type(entry).__name__}
    if isinstance(entry, ledger.Allocate | ledger.Release | ledger.Adopted | ledger.CollisionFound):
        about["dra.devices"] = [f"{hold.driver}/{hold.pool}/{hold.device}" for hold in entry.holds]
    if isinstance(entry, ledger.Release):
        about |= {"dra.reason": entry.reason, "dra.grant.sequence": entry.grant_sequence}
    return about


class Stories:
    """All claims. Fed with the messages of DRA_STATE and with the entries of the ledger, each in their order.

    An entry must not come before the state message that it follows from (`EntryFacts.cause`).
    tell: hears of what cannot be used.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._stories: dict[tuple[str, str], Story] = {}
        self._batch = Batch()

    def __len__(self) -> int:
        return len(self._stories)

    def state(self, message: StoredMessage) -> list[Episode]:
        """What is complete now; messages about anything but claims say nothing here."""
        found = state_facts(message, self._tell)
        if found is None:
            return []
        cluster, uid, facts = found
        return list(self._story(cluster, uid).state(facts))

    def entry(self, message: StoredMessage) -> list[Episode]:
        """What is complete now."""
        facts = entry_facts(message, self._tell)
        return [] if facts is None else self.told(facts)

    def told(self, facts: EntryFacts) -> list[Episode]:
        """As `entry`, of one that was read already."""
        entry, batch = facts.entry, self._batch
        batch.entries += 1
        batch.context = _batch_context(facts)
        episodes: list[Episode] = []
        if isinstance(entry, ledger.CheckpointClaims):
            for kept in entry.claims:
                story = self._story(kept.cluster, kept.uid)
                if not story.last_entry:
                    story.checkpoint(kept)
        elif isinstance(entry, _OF_CLAIMS):
            episodes = list(self._story(entry.cluster, entry.uid).entry(facts, batch))
        if inputs_of(entry) is not None:
            self._batch = Batch()
            episodes += _batch_episode(facts, batch)
        return episodes

    def _story(self, cluster: str, uid: str) -> Story:
        return self._stories.setdefault((cluster, uid), Story(cluster, uid))

    def forget_over(self) -> None:
        """Claims that are gone. To be called when both logs are read to their ends: of others more may come."""
        for key in [key for key, story in self._stories.items() if story.is_over]:
            del self._stories[key]


_OF_CLAIMS = (
    ledger.Allocate,
    ledger.Release,
    ledger.ReasonChanged,
    ledger.OutcomeRecorded,
    ledger.GrantEnded,
    ledger.Adopted,
    ledger.CollisionFound,
    ledger.ClaimForgotten,
)


def _batch_context(facts: EntryFacts) -> Context | None:
    """A batch has a trace of its own; its entries know it by who wrote them and when that step began."""
    stepped_us = facts.times.get("stepped", 0)
    if not stepped_us:
        return None
    writer = facts.message_id.rpartition(".")[0]
    return Context(trace_id("batch", f"{writer}/{stepped_us}"), span_id_of("batch", writer, stepped_us))


def _batch_episode(last: EntryFacts, batch: Batch) -> Iterator[Episode]:
    if batch.context is None:
        return
    start_us = last.times["stepped"]
    attributes: dict[str, Value] = {
        "messaging.system": "nats",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "DRA_LEDGER",
        "messaging.batch.message_count": batch.entries,
        "dra.ledger.sequence": last.sequence,
    }
    span = Span(
        batch.context.trace_id,
        batch.context.span_id,
        "batch",
        start_us,
        max(start_us, last.stored_us),
        kind="producer",
        attributes=attributes,
    )
    yield Episode((span,), last.sequence)
