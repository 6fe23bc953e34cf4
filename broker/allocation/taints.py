"""Device taints and tolerations. Source: KEP-5055, resourceclaim.ToleratesTaint."""

from collections.abc import Iterable, Sequence

from schemas.resource import Device, DeviceTaint, DeviceToleration


def blocking_taints(device: Device) -> tuple[DeviceTaint, ...]:
    """Those that keep claims off the device; None and effects that we do not know keep nobody off."""
    return tuple(taint for taint in device.taints if taint.effect in ("NoSchedule", "NoExecute"))


def untolerated(taints: Iterable[DeviceTaint], tolerations: Sequence[DeviceToleration]) -> DeviceTaint | None:
    """The first taint that none of the tolerations covers."""
    return next((taint for taint in taints if not any(_tolerates(each, taint) for each in tolerations)), None)


def _tolerates(toleration: DeviceToleration, taint: DeviceTaint) -> bool:
    if toleration.effect and toleration.effect != taint.effect:
        return False
    if toleration.key and toleration.key != taint.key:
        return False
    match toleration.operator:
        case "" | "Equal":
            return toleration.value == taint.value
        case "Exists":
            return True
        case _:
            return False


def taint_text(taint: DeviceTaint) -> str:
    """As kubectl prints a taint: key=value:effect."""
    return f"{taint.key}={taint.value}:{taint.effect}" if taint.value else f"{taint.key}:{taint.effect}"
