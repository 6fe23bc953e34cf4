"""Runs of agents, full syncs, and what members are told besides decisions."""

import msgspec

from broker.machine import claims, pools
from broker.machine.core import Core, fits
from broker.world import observe
from broker.world.federation import BROKERED_LABEL
from broker.world.keys import ClusterId
from broker.world.records import Cluster
from schemas.wire.calls import Ask, Beat
from schemas.wire.ledger import ClassBrokered, ClusterExcluded, FenceLifted, LivenessChanged
from schemas.wire.state import ObjectName, SyncFinished, SyncPart


def agent_started(core: Core, cluster: ClusterId, stream_sequence: int) -> None:
    """A new run of the cluster's agent: it is the one that is believed."""
    record = core.world.cluster(cluster)
    if not record.is_silenced(stream_sequence):
        record.last_sequence = max(record.last_sequence, stream_sequence)
    if stream_sequence > record.epoch and not core.is_replaying:
        core.note_epoch(cluster, stream_sequence)
        record.sync_parts.clear()


def sync_part(core: Core, cluster: ClusterId, part: SyncPart) -> None:
    """Collect a part of a sync's list."""
    record = core.world.cluster(cluster)
    if record.sync != part.sync:
        record.sync, record.sync_parts = part.sync, {}
    record.sync_parts[part.part] = part.objects


def sync_finished(core: Core, cluster: ClusterId, said: SyncFinished, stream_sequence: int) -> None:
    """All that lives in the cluster was published: end the grants of what is missing, and count the cluster as heard.

    Where we have met no message of something that lives, a message was lost or not believed: then nothing follows
    from this sync, and everything is asked for again.
    """
    world, record = core.world, core.world.cluster(cluster)
    if core.is_replaying and stream_sequence != record.synced_sequence:
        return  # it did not count
    if said.readmission < record.rebuilt:
        text = "a full sync of a run that does not know that the ledger was rebuilt: the next one counts"
        core.notice("warning", "SyncTooOld", cluster, text)
        return
    parts = record.sync_parts if record.sync == said.sync else {}
    living = set(said.objects).union(*parts.values())
    # At a start, what was published again later is still to come.
    unmet = living - record.known.keys() if not core.is_replaying else set()
    if len(parts) != said.parts or unmet:
        lost = (
            f"{len(unmet)} objects, such as {min(unmet)}" if unmet else f"{said.parts - len(parts)} parts of its list"
        )
        core.notice("warning", "SyncIncomplete", cluster, f"a full sync names {lost} that never arrived; asking again")
        core.ask(cluster, Ask())
        return
    record.sync_parts.clear()
    record.asked_at = 0
    for name in sorted(record.known.keys() - living):
        if name.kind != "claim":
            world.know(record, name, 0)
            observe.forget_object(world, cluster, name)
        if name.kind == "class":
            core.changed(f"class:{cluster}/{name.key}")
            core.classes_changed = True
    missing = sorted(
        key for key in world.claims if key.cluster == cluster and ObjectName("claim", key.uid) not in living
    )
    if core.is_replaying:
        for key in missing:
            if world.claims[key].state_sequence:  # else it was published again later, or only the ledger knows of it
                claims.on_tombstone(core, cluster, key.uid, stream_sequence)
        return
    core.to_end.extend((key, "ClaimMissing", stream_sequence) for key in missing)
    core.sync_to_count = (cluster, stream_sequence, said.readmission)


def count_sync(core: Core) -> None:
    """All that a finished sync ends has ended: the cluster is heard."""
    if core.sync_to_count is None:
        return
    world = core.world
    cluster, stream_sequence, readmission = core.sync_to_count
    core.sync_to_count = None
    record = world.cluster(cluster)
    was_heard = record.is_heard
    core.note_synced(cluster, stream_sequence)
    _come_back(core, record, readmission)
    if not was_heard:
        core.changed("heard")
        pools.tell_problems(core, world.scopes_from(cluster))
        open_labels(core)
    core.changed(f"nodes:{cluster}", *(f"scope:{scope}" for scope in world.scopes_from(cluster)))


def _come_back(core: Core, record: Cluster, readmission: int) -> None:
    """The cluster was lost, excluded or evicted: with this sync all of it is known again."""
    if record.liveness != "Live":
        core.record(LivenessChanged(cluster=record.name, state="Live", since_ms=core.now_ms))
    if record.exclusion is not None and record.is_heard:
        core.record(ClusterExcluded(cluster=record.name, is_excluded=False, operator="", at_ms=core.now_ms))
    if record.eviction is not None and 0 < record.eviction.readmitted <= readmission:
        core.record(FenceLifted(cluster=record.name, at_ms=core.now_ms))
        claims = (claim for claim in core.world.claims.values() if claim.key.cluster == record.name)
        core.to_adopt.update(claim.key for claim in claims if claim.is_shown_without_grant)
    core.changed(f"cluster:{record.name}")


def hold_sync(core: Core) -> None:
    """What a finished sync ends does not fit into the batch: should we crash now, the cluster must sync again."""
    if core.sync_to_count is None:
        return  # it is an eviction that ends so much
    cluster, _, _ = core.sync_to_count
    if core.world.cluster(cluster).is_heard:
        core.note_synced(cluster, 0)


def open_labels(core: Core) -> None:
    """Where labels declare fabrics: as soon as nobody is waited for, the slices say where they belong."""
    world = core.world
    if not world.federation.believe_labels or world.inventory.labels_open or not world.all_heard():
        return
    scopes: set[str] = set()
    for (cluster, name), placed in world.inventory.open_labels():
        if placed.key is not None:
            scopes.add(placed.key.scope)
        else:
            core.dead_letter_object(cluster, ObjectName("slice", name), placed.reason, placed.message)
    core.changed(*(f"scope:{scope}" for scope in scopes))
    pools.tell_problems(core, sorted(scopes))
    world.resolve_again()
    core.to_adopt.update(claim.key for claim in world.claims.values() if claim.is_shown_without_grant)


def tell_classes(core: Core) -> None:
    """Where a hub defines the classes: tell each member what changed, through the ledger."""
    world = core.world
    hub = world.federation.hub
    if not hub or not core.classes_changed:
        return
    classes = {
        name: msgspec.to_builtins(device_class.spec)
        for (owner, name), device_class in world.classes.items()
        if owner == hub and device_class.metadata.labels.get(BROKERED_LABEL) == "true"
    }
    members = sorted({cluster for fabric in world.federation.fabrics for cluster in fabric.clusters} - {hub})
    for member in members:
        told = {
            name: spec for (cluster, name), spec in world.told_classes.items() if cluster == member and spec is not None
        }
        for name in sorted(classes.keys() | told.keys()):
            if not core.has_room():
                return  # the rest in the next step
            if classes.get(name) == told.get(name):
                continue
            entry = ClassBrokered(cluster=member, name=name, spec=classes.get(name))
            if not fits(entry):
                text = f"it is too long to be told to {member}, whose claims can have its devices all the same"
                core.notice("warning", "ClassTooLarge", f"DeviceClass {name} of {hub}", text)
                if name not in told:
                    continue
                entry = ClassBrokered(cluster=member, name=name)
            core.record(entry)
    core.classes_changed = False


def on_beat(core: Core, cluster: ClusterId, beat: Beat) -> Ask | None:
    """Whether an agent's heartbeat shows that we believe something else than it published; then what to ask for."""
    members = core.world.federation.clusters
    if members and cluster not in members:
        return None
    record = core.world.cluster(cluster)
    if beat.agent_epoch < record.epoch or core.world.position < beat.last_sequence:
        return None
    if record.eviction is not None and not record.eviction.readmitted:
        return None  # it would not be believed
    is_waited_for = not record.synced_sequence or record.eviction is not None or record.liveness == "Returning"
    if record.asked_at or is_waited_for:
        return Ask()  # not answered yet; an ask is not kept, so it is repeated, by the next leader too
    if record.last_sequence > beat.last_sequence:
        return None  # the beat is older than what we have read since
    if record.last_sequence == beat.last_sequence and format(record.digest, "x") == beat.digest:
        return None
    record.asked_at = max(core.world.position, 1)
    return Ask()
