"""Two brokers and one ledger in segments: the section "Ledger" of docs/protocol.md as a model.

A broker may start, crash, wait for an answer that never comes, or go on long after another has taken over; a batch may
arrive late. Each input is a claim that is granted by the batch that takes it in; an agent follows the last segment
alone, and must hear of every grant.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

RULES = {
    "append after what was read": "a batch is appended to wherever the ledger ends",
    "look at the tail": "an append that was refused is taken for one that was not stored",
    "the same batch again": "a batch without an answer is made anew, and an entry of our own epoch is taken for it",
    "an empty segment is not open": "a segment without a checkpoint is taken for a new ledger",
    "close before opening": "the next segment is opened before the last one is closed",
    "a checkpoint states decisions again": "a checkpoint says what was granted, and not to whom it must still be told",
}

Kind = Literal["elected", "granted", "closed", "checkpoint"]


class Entry(NamedTuple):
    """A batch in the ledger. first, last: inputs before it and after it; a checkpoint has all up to `last`."""

    kind: Kind
    epoch: int
    first: int
    last: int


class Broker(NamedTuple):
    """A broker's memory. read: entries of `segment` that it knows; batch: of which it does not know what became."""

    phase: Literal["down", "elects", "leads", "opens", "waits", "unknown", "refused"] = "down"
    segment: int = 0
    read: int = 0
    epoch: int = 0
    inputs: int = 0
    batch: "Batch | None" = None


class Batch(NamedTuple):
    """An append that is under way. broker: who waits for its answer, -1: nobody."""

    segment: int
    expected: int
    entry: Entry
    broker: int = -1


class Budget(NamedTuple):
    """How many of each may still come."""

    starts: int = 3
    crash: int = 1
    lost_answer: int = 1
    late: int = 1
    rotation: int = 1


NO_FAULTS = Budget(starts=1, crash=0, lost_answer=0, late=0, rotation=0)


class State(NamedTuple):
    """Everything. segments: the second is None before it is made. heard: grants that the agent knows of."""

    segments: tuple[tuple[Entry, ...], tuple[Entry, ...] | None]
    brokers: tuple[Broker, ...]
    network: tuple[Batch, ...]
    heard: frozenset[int]
    followed: tuple[int, int]  # the agent: segment, and entries of it
    faults: Budget


@dataclass(frozen=True)
class Ledger:
    """The model. inputs: how many come. without: the rule that is left out."""

    inputs: int = 1
    faults: Budget = NO_FAULTS
    without: str = ""

    def begin(self) -> State:
        """Nobody has started."""
        return State(((), None), (Broker(), Broker()), (), frozenset(), (0, 0), self.faults)

    def calm(self, state: State) -> State:
        """No fault comes any more; brokers are started again."""
        return state._replace(faults=Budget(starts=9, crash=0, lost_answer=0, late=0, rotation=0))

    def has(self, rule: str) -> bool:
        """Whether the rule is kept."""
        assert rule in RULES, rule
        return self.without != rule

    # --- what must be

    def wrong(self, state: State) -> str:
        """One writer at a time, no input lost or taken twice, and a leader's world is what its ledger says."""
        inputs = epoch = 0
        for number, segment in enumerate(state.segments):
            for index, entry in enumerate(segment or ()):
                if entry.kind == "elected":
                    epoch = entry.epoch
                elif entry.kind == "checkpoint":
                    if entry.last != inputs:
                        return f"a checkpoint has {entry.last} inputs, the ledger {inputs}"
                    epoch = entry.epoch
                elif entry.epoch != epoch:
                    return f"{entry} follows the election of {epoch}"
                elif entry.kind == "granted":
                    if entry.first != inputs:
                        return f"{entry} was decided on {entry.first} inputs, the ledger has {inputs}: lost, or twice"
                    inputs = entry.last
                elif index != len(segment or ()) - 1:
                    return "an entry follows the end of a segment"
            if number == 0 and state.segments[1] and (not segment or segment[-1].kind != "closed"):
                return "the second segment is open while the first one is not closed"
        for index, broker in enumerate(state.brokers):
            if broker.phase == "leads" and (known := _inputs(state, broker)) != broker.inputs:
                return f"broker {index} leads with {broker.inputs} inputs, what it has read has {known}"
        return ""

    def unfinished(self, state: State) -> str:
        """At rest all inputs are taken in, and the agent has heard of all that they led to."""
        last = max((entry.last for segment in state.segments for entry in segment or ()), default=0)
        if last < self.inputs:
            return f"{self.inputs - last} inputs are never taken in"
        missing = set(range(1, self.inputs + 1)) - state.heard
        return f"the agent never hears of {sorted(missing)}" if missing else ""

    # --- what happens

    def moves(self, state: State) -> Iterator[tuple[str, State]]:
        """Those that need no fault first, in the order in which they bring it to rest."""
        for batch in state.network:
            yield from self._arrives(state, batch)
        yield from self._agent(state)
        for index, broker in enumerate(state.brokers):
            yield from self._broker(state, index, broker)
        yield from self._faults(state)

    def _arrives(self, state: State, batch: Batch) -> Iterator[tuple[str, State]]:
        rest = state._replace(network=_without(state.network, batch))
        segment = state.segments[batch.segment]
        expected = batch.expected
        if segment is not None and not self.has("append after what was read"):
            expected = len(segment)
        stored = segment is not None and len(segment) == expected
        if stored and segment is not None:
            grown = (*segment, batch.entry)
            rest = rest._replace(
                segments=(grown, state.segments[1]) if not batch.segment else (state.segments[0], grown)
            )
        name = f"{batch.entry.kind} of {batch.entry.first} to {batch.entry.last}"
        what = "is stored" if stored else "is refused"
        if batch.broker < 0:
            yield f"{name} {what}, late", rest
            if stored:
                yield f"{name} never arrives", state._replace(network=_without(state.network, batch))
            return
        broker = state.brokers[batch.broker]
        told = _committed(broker, expected) if stored else broker._replace(phase="refused")
        yield f"{name} of broker {batch.broker} {what}", _with(rest, batch.broker, told)
        if (left := state.faults).lost_answer:
            lost = rest._replace(faults=left._replace(lost_answer=left.lost_answer - 1))
            unknown = broker._replace(phase="unknown")
            yield (
                f"{name} of broker {batch.broker} {what}, and it does not hear that",
                _with(lost, batch.broker, unknown),
            )

    def _agent(self, state: State) -> Iterator[tuple[str, State]]:
        segment, read = state.followed
        if segment == 0 and state.segments[1]:  # it is told of the next one, and leaves the rest of this
            yield "the agent goes on in the next segment", state._replace(followed=(1, 0))
        elif read < len(entries := state.segments[segment] or ()):
            entry = entries[read]
            heard = state.heard
            if entry.kind == "granted":
                heard |= set(range(entry.first + 1, entry.last + 1))
            elif entry.kind == "checkpoint" and self.has("a checkpoint states decisions again"):
                heard |= set(range(1, entry.last + 1))
            yield f"the agent reads {entry.kind}", state._replace(followed=(segment, read + 1), heard=heard)

    def _broker(self, state: State, index: int, broker: Broker) -> Iterator[tuple[str, State]]:
        match broker.phase:
            case "down":
                if state.faults.starts:
                    left = state.faults._replace(starts=state.faults.starts - 1)
                    yield f"broker {index} starts", _with(state._replace(faults=left), index, self._started(state))
            case "elects":
                epoch = 10 * (8 * broker.segment + broker.read) + index + 1
                entry = Entry("elected", epoch, broker.inputs, broker.inputs)
                yield f"broker {index} tries to lead", self._append(state, index, broker, entry)
            case "leads":
                for last in range(broker.inputs + 1, self.inputs + 1):
                    entry = Entry("granted", broker.epoch, broker.inputs, last)
                    yield f"broker {index} takes in up to input {last}", self._append(state, index, broker, entry)
                if state.faults.rotation and broker.segment == 0:
                    yield f"broker {index} begins with the next segment", self._rotates(state, index, broker)
            case "opens":
                epoch = broker.epoch or 80 + index + 1
                entry = Entry("checkpoint", epoch, broker.inputs, broker.inputs)
                made = state._replace(segments=(state.segments[0], state.segments[1] or ()))
                there = Broker("opens", 1, 0, epoch, broker.inputs)
                yield f"broker {index} opens the next segment", self._append(made, index, there, entry)
            case "unknown" | "refused":
                yield from self._looks(state, index, broker)
            case "waits":
                pass

    def _started(self, state: State) -> Broker:
        """The last segment that is open, from its first entry to its last."""
        first, second = state.segments
        if second is not None and not second and not self.has("an empty segment is not open"):
            return Broker("elects", 1, 0)
        if second:
            broker = Broker("elects", 1, len(second))
        else:
            is_closed = bool(first) and first[-1].kind == "closed"
            broker = Broker("opens" if is_closed else "elects", 0, len(first))
        return broker._replace(inputs=_inputs(state, broker))

    def _append(self, state: State, index: int, broker: Broker, entry: Entry) -> State:
        batch = Batch(broker.segment, broker.read, entry, index)
        waiting = broker._replace(phase="waits", batch=batch)
        return _with(state._replace(network=tuple(sorted((*state.network, batch)))), index, waiting)

    def _rotates(self, state: State, index: int, broker: Broker) -> State:
        state = state._replace(faults=state.faults._replace(rotation=state.faults.rotation - 1))
        if self.has("close before opening"):
            entry = Entry("closed", broker.epoch, broker.inputs, broker.inputs)
            return self._append(state, index, broker, entry)
        entry = Entry("checkpoint", broker.epoch, broker.inputs, broker.inputs)
        state = state._replace(segments=(state.segments[0], state.segments[1] or ()))
        return self._append(state, index, broker._replace(segment=1, read=0), entry)

    def _looks(self, state: State, index: int, broker: Broker) -> Iterator[tuple[str, State]]:
        """Nobody has told it what became of its batch: it reads the ledger's tail."""
        batch = broker.batch
        assert batch is not None
        segment = state.segments[batch.segment] or ()
        if broker.phase == "refused" and not self.has("look at the tail"):
            again = broker._replace(read=len(segment))
            yield f"broker {index} appends its batch behind the tail", self._append(state, index, again, batch.entry)
            return
        there = segment[batch.expected] if len(segment) > batch.expected else None
        if there is None:
            entries = [batch.entry]
            if batch.entry.kind == "granted" and not self.has("the same batch again"):
                more = range(broker.inputs + 1, self.inputs + 1)
                entries = [Entry("granted", broker.epoch, broker.inputs, last) for last in more]
            for entry in entries:
                yield f"broker {index} finds nothing, and appends again", self._append(state, index, broker, entry)
            return
        is_ours = there == batch.entry
        if not self.has("the same batch again"):
            is_ours = there.epoch == batch.entry.epoch
        found = _committed(broker, batch.expected) if is_ours else Broker()
        yield f"broker {index} finds {'its batch' if is_ours else 'another, and stops'}", _with(state, index, found)

    def _faults(self, state: State) -> Iterator[tuple[str, State]]:
        left = state.faults
        for index, broker in enumerate(state.brokers):
            left_alone = tuple(sorted(_left_by(each, index) for each in state.network))
            if left.crash and broker.phase != "down":
                after = state._replace(network=left_alone, faults=left._replace(crash=left.crash - 1))
                yield f"broker {index} crashes", _with(after, index, Broker())
            if left.late and broker.phase == "waits":
                after = state._replace(network=left_alone, faults=left._replace(late=left.late - 1))
                yield f"broker {index} waits no longer", _with(after, index, broker._replace(phase="unknown"))


def _left_by(batch: Batch, broker: int) -> Batch:
    return batch._replace(broker=-1) if batch.broker == broker else batch


def _without(network: tuple[Batch, ...], batch: Batch) -> tuple[Batch, ...]:
    at = network.index(batch)
    return network[:at] + network[at + 1 :]


def _with(state: State, index: int, broker: Broker) -> State:
    return state._replace(brokers=(*state.brokers[:index], broker, *state.brokers[index + 1 :]))


def _inputs(state: State, broker: Broker) -> int:
    """What the entries that it has read have taken in."""
    first, second = state.segments
    entries = first[: broker.read] if broker.segment == 0 else (second or ())[: broker.read]
    return max((entry.last for entry in entries), default=0)


def _committed(broker: Broker, expected: int) -> Broker:
    batch = broker.batch
    assert batch is not None
    entry = batch.entry
    after = broker._replace(read=expected + 1, epoch=entry.epoch, inputs=entry.last, batch=None, segment=batch.segment)
    return after._replace(phase="opens" if entry.kind == "closed" else "leads")
