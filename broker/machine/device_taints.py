"""Taints that the broker keeps on devices: by what their holders report, and by what operators order.

A claim's status.devices goes with its allocation, and the device is as broken as before: so what it said is an entry of
the ledger. It keeps claims off that do not tolerate it, and does nothing to those that have the device; unless an
operator orders NoExecute, see `projected_taints`.
"""

from typing import Any

from broker.machine import projected_taints
from broker.machine.core import Core
from broker.world.commitments import published
from broker.world.device_health import Identity, held_by, identity_of, verdict_on, verdicts, who_says_unhealthy
from broker.world.keys import DeviceKey
from broker.world.records import Claim
from schemas.resource.meta import Condition
from schemas.wire.ledger import DeviceCommand, DeviceTainted, DeviceUntainted, ReportedBy

UNHEALTHY = "dragoman.dev/unhealthy"
MAINTENANCE = "dragoman.dev/maintenance"
TEXT_LENGTH_MAX = 1_000
REPORTED_MAX = 4_096  # taints by the reports of one cluster: more than it has devices, unless it makes them up


def told_by(core: Core, claim: Claim | None) -> dict[Identity, bool]:
    """What the claim has said of devices up to now; to be asked before its next message is taken in."""
    return verdicts(claim, core.world.federation.device_health) if claim is not None else {}


def take_reports(core: Core, claim: Claim, told_before: dict[Identity, bool]) -> None:
    """The claim's message is taken in: mark the devices that it holds and reports unhealthy, unmark those healed.

    told_before: what it had said before, see `told_by`. That a device is healthy counts when it is news: else of two
    holders of shares the one that has noticed nothing yet would take back what the other has found.
    """
    if claim.spec is None or not claim.spec.status.devices:
        return
    world = core.world
    held = held_by(claim)
    shown = {identity_of(hold) for hold in claim.shown or () if not hold.admin_access}
    for status in claim.spec.status.devices:
        identity = identity_of(status)
        verdict = verdict_on(status, world.federation.device_health)
        if verdict is None:
            continue
        is_news = told_before.get(identity) is not verdict.is_healthy
        device = held.get(identity)
        if device is None:
            if is_news and identity not in shown:  # else it has the device, and no grant of it yet
                text = f"it reports {_words(verdict.condition)} of {'/'.join(identity[:3])}, which it does not hold"
                core.notice("warning", "DeviceReportIgnored", f"claim {world.holder_name(claim.key)}", text)
            continue
        is_tainted = UNHEALTHY in world.taints.get(device, {})
        if not verdict.is_healthy and not is_tainted:
            _taint_as_reported(core, claim, device, verdict.condition)
        elif verdict.is_healthy and is_tainted and is_news and not any(who_says_unhealthy(world, device)):
            core.record(
                DeviceUntainted(
                    **_place(device), key=UNHEALTHY, at_ms=core.now_ms, report=_report(claim, verdict.condition)
                )
            )
            core.wake_devices([device])


def carry_out(core: Core, command: DeviceCommand) -> str:
    """Do what an operator orders about a device; returns why it cannot be done, "" if it was."""
    found = _find(core, command)
    if isinstance(found, str):
        return found
    if command.verb == "taint":
        return _taint(core, command, found)
    return _untaint(core, command, found)


def _taint(core: Core, command: DeviceCommand, device: DeviceKey) -> str:
    key = command.key or MAINTENANCE
    if key == UNHEALTHY:
        return f"key {UNHEALTHY} is for what holders of a device report, and ends by it: use another"
    before = core.world.taints.get(device, {}).get(key)
    if before is not None:
        was = f"{key}:{before.effect}"
        return f"device {device} is tainted with {was} already, by {before.operator}: {before.reason}"
    federation = core.world.federation
    if command.effect == "NoExecute" and not projected_taints.are_written_for(federation, device.pool.scope):
        return (
            f"nothing would end pods that have device {device}: no cluster that reaches it is in"
            " device_taint_rules.clusters of the broker's config"
        )
    core.record(
        DeviceTainted(
            **_place(device),
            key=key,
            at_ms=core.now_ms,
            operator=command.operator,
            reason=command.reason,
            effect=command.effect,
        )
    )
    core.wake_devices([device])
    return ""


def _untaint(core: Core, command: DeviceCommand, device: DeviceKey) -> str:
    taints = core.world.taints.get(device, {})
    if not taints:
        return f"the broker keeps no taint of device {device}; those of slices and DeviceTaintRules are not its own"
    if not command.key and len(taints) > 1:
        return f"device {device} has several taints: name one of {', '.join(sorted(taints))} with --key"
    key = command.key or next(iter(taints))
    if key not in taints:
        return f"device {device} is not tainted with {key}; it has {', '.join(sorted(taints))}"
    if key == UNHEALTHY and (holders := list(who_says_unhealthy(core.world, device))):
        names = ", ".join(map(core.world.holder_name, holders))
        return f"{names} holds device {device} and goes on reporting it unhealthy: it would be tainted again at once"
    core.record(
        DeviceUntainted(**_place(device), key=key, at_ms=core.now_ms, operator=command.operator, reason=command.reason)
    )
    core.wake_devices([device])
    return ""


def _find(core: Core, command: DeviceCommand) -> DeviceKey | str:
    """The device that is meant, or why nobody knows."""
    world = core.world
    pools = world.inventory.keys_of_scopes(world.inventory.scopes())
    devices = [DeviceKey(pool, command.device) for pool in pools]
    there = [device for device in devices if _is_meant(command, device) and published(world, device) is not None]
    if command.verb == "untaint":  # it may have gone since
        there += [device for device in world.taints if _is_meant(command, device) and device not in there]
    name = f"{command.driver}/{command.pool}/{command.device}"
    if not there:
        return f"no device {name} is published{f' in {command.scope}' if command.scope else ''}"
    if len(there) > 1:
        scopes = ", ".join(sorted(device.pool.scope for device in there))
        return f"there is a device {name} in each of {scopes}: say which with --scope"
    return there[0]


def _is_meant(command: DeviceCommand, device: DeviceKey) -> bool:
    pool = device.pool
    wanted = (command.driver, command.pool, command.device)
    return (pool.driver, pool.pool, device.device) == wanted and command.scope in ("", pool.scope)


def _taint_as_reported(core: Core, claim: Claim, device: DeviceKey, condition: Condition) -> None:
    name, holder = claim.key.cluster, core.world.holder_name(claim.key)
    reports = [taint.report for each in core.world.taints.values() for taint in each.values() if taint.report]
    if sum(report.cluster == name for report in reports) >= REPORTED_MAX:
        text = f"{name} has reported {REPORTED_MAX} devices unhealthy, and this one is not tainted"
        core.notice("error", "DeviceReportIgnored", f"device {device}", text)
        return
    core.record(DeviceTainted(**_place(device), key=UNHEALTHY, at_ms=core.now_ms, report=_report(claim, condition)))
    core.wake_devices([device])
    text = (
        f"claim {holder}, which holds it, reports {_words(condition)}: it is given to nobody who does not tolerate it"
    )
    core.notice("warning", "DeviceTainted", f"device {device}", text)


def _report(claim: Claim, condition: Condition) -> ReportedBy:
    return ReportedBy(
        cluster=claim.key.cluster,
        uid=claim.key.uid,
        namespace=claim.namespace,
        name=claim.name,
        condition=f"{condition.type_}={condition.status}"[:TEXT_LENGTH_MAX],
        reason=condition.reason[:TEXT_LENGTH_MAX],
        message=condition.message[:TEXT_LENGTH_MAX],
    )


def _words(condition: Condition) -> str:
    why = ": ".join(each for each in (condition.reason, condition.message) if each)
    return f"{condition.type_}={condition.status}{f' ({why})' if why else ''}"[:TEXT_LENGTH_MAX]


def _place(device: DeviceKey) -> dict[str, Any]:
    pool = device.pool
    return {"scope": pool.scope, "driver": pool.driver, "pool": pool.pool, "device": device.device}
