"""Clusters that go silent and come back, and what operators order about them (DESIGN: invariants 3.5 and 3.6).

Marks and commands are inputs of a step, as recorded in the ledger; what follows from them is entries of their own. The
clock that leads to marks is in `liveness`.
"""

from broker.machine import intake, syncs
from broker.machine.core import Core
from broker.machine.effects import NoticeLevel
from broker.machine.liveness import next_liveness
from broker.world.keys import ClusterId
from broker.world.records import FOR_EVER, Cluster
from schemas.wire.calls import Ask
from schemas.wire.ledger import (
    ClusterCordoned,
    ClusterEvicted,
    ClusterExcluded,
    ClusterReadmitted,
    Liveness,
    LivenessChanged,
    LivenessMark,
    OperatorCommand,
)

_SAID: dict[Liveness, tuple[NoticeLevel, str]] = {
    "Live": ("info", "it is heard again"),
    "Stale": ("warning", "its agent is silent: nothing new is granted to it, and what it has stays"),
    "Lost": ("error", "its agent has been silent for long: nobody knows how it is, and what it has stays held"),
    "Returning": ("info", "it is heard again, and asked for a full sync"),
}


def take_mark(core: Core, mark: LivenessMark) -> None:
    """The broker's clock says that a cluster is silent, or heard."""
    record = core.world.cluster(ClusterId(mark.cluster))
    after = next_liveness(record, mark)
    if after == record.liveness:
        return
    core.record(LivenessChanged(cluster=record.name, state=after, since_ms=core.now_ms, heard_ms=mark.heard_ms))
    if after == "Returning":
        core.ask(record.name, Ask())
    has_changed(core, record.name)
    level, text = _SAID[after]
    core.notice(level, f"Cluster{after}", f"cluster {record.name}", text)


def carry_out(core: Core, command: OperatorCommand) -> str:
    """Do what an operator orders; returns why it cannot be done, "" if it was."""
    name = ClusterId(command.cluster)
    known = core.world.federation.names() | core.world.clusters.keys()
    if name not in known:
        return f"there is no cluster {name}; known are {', '.join(sorted(known)) or 'none'}"
    record = core.world.cluster(name)
    match command.verb:
        case "cordon" | "uncordon":
            return _cordon(core, record, command, is_cordoned=command.verb == "cordon")
        case "exclude":
            return _exclude(core, record, command)
        case "evict":
            return _evict(core, record, command)
        case "readmit":
            return _readmit(core, record, command)


def has_changed(core: Core, cluster: ClusterId) -> None:
    """Whoever waits for how the cluster stands is tried again."""
    core.changed(f"cluster:{cluster}")


def resume(core: Core) -> None:
    """A start: go on ending what a fenced cluster had, where the leader before us did not finish."""
    for record in core.world.clusters.values():
        if record.eviction is not None and record.eviction.is_fenced and not record.eviction.readmitted:
            _end_all(core, record)


def _cordon(core: Core, record: Cluster, command: OperatorCommand, *, is_cordoned: bool) -> str:
    if not is_cordoned and record.cordon is None:
        return f"cluster {record.name} is not cordoned"
    core.record(
        ClusterCordoned(
            cluster=record.name,
            is_cordoned=is_cordoned,
            operator=command.operator,
            reason=command.reason,
            at_ms=core.now_ms,
        )
    )
    has_changed(core, record.name)
    return ""


def _exclude(core: Core, record: Cluster, command: OperatorCommand) -> str:
    if not record.is_waited_for:
        return (
            f"nobody waits for cluster {record.name}: it was heard, or is excluded or evicted already; to give away "
            f"what it holds, evict it"
        )
    core.record(
        ClusterExcluded(
            cluster=record.name,
            is_excluded=True,
            operator=command.operator,
            reason=command.reason,
            at_ms=core.now_ms,
        )
    )
    _is_not_waited_for(core, record)
    return ""


def _evict(core: Core, record: Cluster, command: OperatorCommand) -> str:
    before = record.eviction
    if before is not None and not before.readmitted and (before.is_fenced or not command.is_fenced):
        how = "cut off" if before.is_fenced else "in quarantine; with --fenced its devices are freed"
        return f"cluster {record.name} is evicted already ({how})"
    core.record(
        ClusterEvicted(
            cluster=record.name,
            # What an earlier eviction has ended is not cleaned up before its fence is lifted.
            is_fenced=command.is_fenced or (before is not None and before.is_fenced),
            operator=command.operator,
            reason=command.reason,
            at_ms=core.now_ms,
            state_sequence=max(command.state_sequence, core.world.position),
            position=core.world.position,
        )
    )
    record.asked_at = 0
    record.sync_parts.clear()
    assert record.eviction is not None
    if record.eviction.is_fenced:
        for name in sorted(record.known):
            if name.kind != "claim":
                intake.forget(core, record.name, name)
        for name in list(record.known):
            core.world.know(record, name, 0)
        record.last_sequence = 0
        _end_all(core, record)
    _is_not_waited_for(core, record)
    return ""


def _is_not_waited_for(core: Core, record: Cluster) -> None:
    core.changed("heard", *(f"scope:{scope}" for scope in core.world.scopes_from(record.name)))
    syncs.open_labels(core)
    has_changed(core, record.name)


def _end_all(core: Core, record: Cluster) -> None:
    """The cluster is cut off: whatever its claims hold or wait for ends, in as many batches as that takes."""
    claims = sorted(key for key in core.world.claims if key.cluster == record.name)
    core.to_end.extend((key, "ClusterEvicted", FOR_EVER) for key in claims)


def _readmit(core: Core, record: Cluster, command: OperatorCommand) -> str:
    if record.eviction is None:
        return f"cluster {record.name} is not evicted"
    if record.eviction.readmitted:
        return f"cluster {record.name} is being readmitted already: its agent has to finish a full sync"
    core.record(
        ClusterReadmitted(
            cluster=record.name,
            is_fenced=record.eviction.is_fenced,
            operator=command.operator,
            reason=command.reason,
            at_ms=core.now_ms,
            # What was stored before the eviction counts no more, even where it is still to be read.
            position=max(core.world.position, record.eviction.state_sequence),
        )
    )
    core.ask(record.name, Ask())
    has_changed(core, record.name)
    return ""
