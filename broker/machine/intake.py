"""One state message: is it believed, what does it change, who should be told.

A message that cannot be applied is kept as a dead letter with its reason; nothing else is spoiled by it.
"""

import msgspec

from broker.allocation.validate_selectors import compile_class
from broker.machine import claims, pools, syncs
from broker.machine.core import Core
from broker.world import observe
from broker.world.federation import BROKERED_LABEL, PROJECTED_LABEL
from broker.world.keys import ClusterId
from schemas.errors import DecodeError
from schemas.resource import (
    DeviceClass,
    DeviceRequestAllocationResult,
    DeviceTaintRule,
    Node,
    ResourceClaim,
    ResourceSlice,
)
from schemas.resource.decode import decode_json
from schemas.resource.validate import validate_class, validate_slice, validate_taint_rule
from schemas.wire.bus import PayloadError, StoredMessage
from schemas.wire.calls import Ask
from schemas.wire.codec import (
    WireError,
    decode_agent_message,
    decode_claim_state,
    decode_object_state,
)
from schemas.wire.state import (
    AgentMessage,
    AgentStarted,
    ClaimState,
    ObjectName,
    ObjectState,
    SyncFinished,
    SyncPart,
    why_no_list,
)
from schemas.wire.subjects import KINDS, RUN_KEY, StateSubject, parse_state_subject

BODY_BYTES_MAX = 2 * 1024 * 1024  # unpacked; an API server stores objects of at most 1.5 MiB
CONSUMERS_MAX = 4_096  # pods that use one claim; more than 256 are refused, with a reason
NAME_LENGTH_MAX = 253  # of a name, a namespace or a UID
RESULTS_MAX = 32  # devices in one allocation
AMOUNTS_MAX = 32  # capacities in one result: a device has no more

_KIND_OF: dict[type, str] = {
    ResourceSlice: "slice",
    DeviceClass: "class",
    Node: "node",
    DeviceTaintRule: "taintrule",
}

Said = ClaimState | ObjectState | AgentMessage


def accept(core: Core, message: StoredMessage) -> None:
    """Apply one message of DRA_STATE."""
    subject = parse_state_subject(message.subject)
    if subject is None or subject.kind not in (*KINDS, "agent"):
        cluster = subject.cluster if subject else "_"
        core.dead_letter(message, cluster, "UnknownSubject", f"nothing is expected on subject {message.subject}")
        return
    members = core.world.federation.clusters
    if members and subject.cluster not in members:
        text = f"cluster {subject.cluster} is not in the broker's config, which lists {', '.join(members)}"
        core.dead_letter(message, subject.cluster, "UnknownCluster", text)
        return
    try:
        said = read(message, subject)
    except WireError as error:
        unreadable(core, message, subject, error)
    else:
        take_in(core, message, subject, said)


def take_in(core: Core, message: StoredMessage, subject: StateSubject, said: Said) -> None:
    """Apply what a message says, see `read`."""
    if isinstance(said, AgentStarted):
        syncs.agent_started(core, ClusterId(subject.cluster), message.stream_sequence)
        return
    if not _is_believed(core, message, subject, said.agent_epoch):
        return
    match said:
        case ClaimState():
            _claim(core, message, subject, said)
        case ObjectState():
            _object(core, message, subject, said)
        case SyncPart():
            syncs.sync_part(core, ClusterId(subject.cluster), said)
        case SyncFinished():
            syncs.sync_finished(core, ClusterId(subject.cluster), said, message.stream_sequence)


def read(message: StoredMessage, subject: StateSubject) -> Said:
    """What a state message says. Raises: WireError if it is not what belongs on its subject."""
    try:
        payload = message.body(BODY_BYTES_MAX)
    except PayloadError as error:
        raise WireError("Malformed", str(error)) from error
    if subject.kind == "claim":
        return decode_claim_state(payload)
    if subject.kind != "agent":
        return decode_object_state(payload)
    said = decode_agent_message(payload)
    if not isinstance(said, AgentStarted):
        wrong = why_no_list(said, subject.key)
    else:
        wrong = f"an agent starts on agent.{RUN_KEY}, not on agent.{subject.key}" if subject.key != RUN_KEY else ""
    if wrong:
        raise WireError("Malformed", wrong)
    return said


def _is_believed(core: Core, message: StoredMessage, subject: StateSubject, epoch: int) -> bool:
    cluster = core.world.cluster(ClusterId(subject.cluster))
    if epoch > message.stream_sequence:
        text = f"epoch {epoch} is above the message's own stream sequence {message.stream_sequence}"
        core.dead_letter(message, subject.cluster, "ImpossibleEpoch", text)
        return False
    # One that was stored before the newest run began was believed then; in stream order that is only met at a start.
    if cluster.is_replaced(epoch, message.stream_sequence):
        text = f"epoch {epoch} is lower than {cluster.epoch}, of the agent that came after it"
        core.dead_letter(message, subject.cluster, "LowerEpoch", text)
        if subject.kind != "agent":
            core.ask(cluster.name, Ask([ObjectName(subject.kind, subject.key)]))
        return False
    if epoch > cluster.epoch and not core.is_replaying:  # the message with which that run began has expired
        core.note_epoch(cluster.name, epoch, message.stream_sequence)
    if cluster.is_silenced(message.stream_sequence):
        text = f"cluster {cluster.name} is evicted: what it says counts after `dragoman cluster readmit {cluster.name}`"
        core.dead_letter(message, subject.cluster, "ClusterEvicted", text)
        return False
    cluster.last_sequence = max(cluster.last_sequence, message.stream_sequence)
    return True


def _claim(core: Core, message: StoredMessage, subject: StateSubject, state: ClaimState) -> None:
    cluster = ClusterId(subject.cluster)
    if state.is_tombstone:
        claims.on_tombstone(core, cluster, subject.key, message.stream_sequence)
        return
    spec, error = None, state.error or _why_too_large(state)
    if not error:
        try:
            found = decode_json(bytes(state.claim))
            if not isinstance(found, ResourceClaim):
                error = f"a {type(found).__name__} on a claim's subject"
            elif _has_too_long((found.metadata.name, found.metadata.namespace)):
                error = f"a name or namespace has more than {NAME_LENGTH_MAX} characters"
            elif len(_results_of(found)) > RESULTS_MAX:
                error = f"status.allocation.devices.results: {len(_results_of(found))} items, at most {RESULTS_MAX}"
            elif any(len(each.consumed_capacity) > AMOUNTS_MAX for each in _results_of(found)):
                error = f"status.allocation.devices.results: consumedCapacity has more than {AMOUNTS_MAX} entries"
            elif any(_has_too_long(_names_in(each)) for each in _results_of(found)):
                error = f"status.allocation.devices.results: a text has more than {NAME_LENGTH_MAX} characters"
            elif found.metadata.uid != subject.key:
                error = f"claim of UID {found.metadata.uid!r} on the subject of {subject.key!r}"
            else:
                spec = msgspec.structs.replace(found, spec=core.specs.of(found.spec).spec)
        except DecodeError as failure:
            error = str(failure)
    if error:
        state = msgspec.structs.replace(state, error=error)
        core.dead_letter(message, cluster, "Unreadable", error)
    claims.on_claim(core, cluster, subject.key, state, spec, message.stream_sequence)


def _results_of(claim: ResourceClaim) -> list[DeviceRequestAllocationResult]:
    """The devices of the claim's allocation, [] without one."""
    return claim.status.allocation.devices.results if claim.status.allocation is not None else []


def _names_in(result: DeviceRequestAllocationResult) -> tuple[str, ...]:
    """All of a result that the ledger repeats."""
    names = (result.request, result.driver, result.pool, result.device, result.share_id or "")
    return (
        (*names, *result.consumed_capacity, *result.consumed_capacity.values()) if result.consumed_capacity else names
    )


def _has_too_long(names: tuple[str, ...]) -> bool:
    """As they are written down: a control character takes six bytes there."""
    if len("".join(names)) <= NAME_LENGTH_MAX // 6:
        return False
    return any(len(name) > NAME_LENGTH_MAX or len(msgspec.json.encode(name)) > NAME_LENGTH_MAX + 2 for name in names)


def _why_too_large(state: ClaimState) -> str:
    """What goes into ledger entries must fit there, whatever an agent says."""
    if len(state.consumers) > CONSUMERS_MAX:
        return f"{len(state.consumers)} consumers, at most {CONSUMERS_MAX} are looked at"
    if any(_has_too_long((pod.uid, pod.name)) for pod in state.consumers):
        return f"a consumer's name or UID has more than {NAME_LENGTH_MAX} characters"
    if _has_too_long((state.resource_version,)):
        return "its resourceVersion is too long"
    if state.decision is not None and len(state.decision.message) > BODY_BYTES_MAX // 64:
        return "the message of its outcome is too long"
    return ""


def _object(core: Core, message: StoredMessage, subject: StateSubject, state: ObjectState) -> None:
    world, cluster = core.world, ClusterId(subject.cluster)
    name = ObjectName(subject.kind, subject.key)
    if state.is_tombstone:
        world.know(world.cluster(cluster), name, 0)
        forget(core, cluster, name)
        return
    world.know(world.cluster(cluster), name, message.stream_sequence)
    error = state.error
    if not error:
        try:
            found = decode_json(bytes(state.object))
        except DecodeError as failure:
            error = str(failure)
        else:
            error = _take_in(core, message, cluster, name, found)
    if error:
        core.dead_letter(message, cluster, "Unreadable", error)
        # What it said before is not true any more, and what it says now cannot be read.
        forget(core, cluster, name)


def _take_in(core: Core, message: StoredMessage, cluster: ClusterId, name: ObjectName, found: object) -> str:
    """Returns why the object cannot be used, or ""."""
    if not isinstance(found, ResourceSlice | DeviceClass | Node | DeviceTaintRule) or (
        _KIND_OF[type(found)] != name.kind
    ):
        return f"a {type(found).__name__} on the subject of {name.kind} {name.key}"
    what = f"{type(found).__name__} {name.key}"
    if found.metadata.name != name.key:  # it would be forgotten by its key, and stay
        return f"{type(found).__name__} {found.metadata.name} on the subject of {name.key}"
    match found:
        case ResourceSlice():
            errors = validate_slice(found)
            return f"{what}: {errors[0]}" if errors else _slice(core, message, cluster, name, found)
        case DeviceClass():
            errors = validate_class(found)
            if errors:
                return f"{what}: {errors[0]}"
            _class(core, cluster, found)
        case Node():
            observe.observe_node(core.world, cluster, found)
            core.changed(f"nodes:{cluster}")
        case DeviceTaintRule():
            errors = validate_taint_rule(found)
            if errors:
                return f"{what}: {errors[0]}"
            observe.observe_taint_rule(core.world, cluster, found)
            pools.all_changed(core)
    return ""


def _slice(core: Core, message: StoredMessage, cluster: ClusterId, name: ObjectName, found: ResourceSlice) -> str:
    before = core.world.inventory.placed.get((cluster, name.key))
    placed = observe.observe_slice(core.world, cluster, name.key, found)
    if before is not None and before.key is not None and before.key != placed.key:
        pools.changed(core, before.key, cluster)
    if placed.key is not None:
        pools.changed(core, placed.key, cluster)
    elif placed.reason != "SetAside":
        core.dead_letter(message, cluster, placed.reason, placed.message)
    return ""


def _class(core: Core, cluster: ClusterId, found: DeviceClass) -> None:
    name = found.metadata.name
    world = core.world
    observe.observe_class(world, cluster, found)
    core.changed(f"class:{cluster}/{name}")
    for error in compile_class(found, core.index):
        core.notice("warning", "InvalidSelector", f"DeviceClass {name} of {cluster}", error.sentence())
    hub = world.federation.hub
    if hub and cluster != hub:
        theirs = world.classes.get((hub, name))
        is_projected = found.metadata.labels.get(PROJECTED_LABEL) == "true"
        if theirs is not None and theirs.spec != found.spec and _is_brokered(found) and not is_projected:
            text = f"differs from the hub's DeviceClass of that name; the hub's ({hub}) is used"
            core.notice("warning", "ClassDiffers", f"DeviceClass {name} of {cluster}", text)
    core.classes_changed = True


def _is_brokered(device_class: DeviceClass) -> bool:
    return device_class.metadata.labels.get(BROKERED_LABEL) == "true"


def forget(core: Core, cluster: ClusterId, name: ObjectName) -> None:
    """An object that is not a claim is gone, or not believed any more."""
    placed = core.world.inventory.placed.get((cluster, name.key)) if name.kind == "slice" else None
    observe.forget_object(core.world, cluster, name)
    if placed is not None and placed.key is not None:
        pools.changed(core, placed.key, cluster)
    elif name.kind == "class":
        core.changed(f"class:{cluster}/{name.key}")
        core.classes_changed = True
    elif name.kind == "taintrule":
        pools.all_changed(core)
    elif name.kind == "node":
        core.changed(f"nodes:{cluster}")


def unreadable(core: Core, message: StoredMessage, subject: StateSubject, error: WireError) -> None:
    """Not even the envelope can be read: nobody knows which run of the agent wrote it."""
    core.dead_letter(message, subject.cluster, error.reason, error.message)
    if core.world.cluster(ClusterId(subject.cluster)).is_silenced(message.stream_sequence):
        return
    if subject.kind == "claim":
        claims.on_unreadable(core, ClusterId(subject.cluster), subject.key, error.message, message.stream_sequence)
    elif subject.kind in KINDS:
        cluster = core.world.cluster(ClusterId(subject.cluster))
        name = ObjectName(subject.kind, subject.key)
        core.world.know(cluster, name, message.stream_sequence)
