"""Types that claims, classes, slices and taint rules of `resource.k8s.io/v1` have in common."""

from typing import Any

from msgspec.structs import force_setattr

from schemas.resource.meta import ApiStruct, Int64


class CELDeviceSelector(ApiStruct, frozen=True, kw_only=True, gc=False):
    """A CEL expression that yields true for the devices that may be chosen."""

    expression: str = ""


class DeviceSelector(ApiStruct, frozen=True, kw_only=True):
    """One selector; a device must satisfy all of a list. `cel` is the only kind there is."""

    cel: CELDeviceSelector | None = None


class OpaqueDeviceConfiguration(ApiStruct, frozen=True, kw_only=True):
    """Parameters that only the driver understands; they are passed on as they are, never read."""

    driver: str = ""
    parameters: Any = None


class DeviceTaint(ApiStruct, frozen=True, kw_only=True, gc=False):
    """Keeps claims without a matching toleration off a device. Source: KEP-5055.

    effect: None, NoSchedule or NoExecute; one that we do not know has no effect.
    time_added: RFC 3339; None until an API server has set it, which is when the taint is first stored.
    """

    key: str = ""
    value: str = ""
    effect: str = ""
    time_added: str | None = None


class DeviceToleration(ApiStruct, frozen=True, kw_only=True, gc=False):
    """Lets a request use devices in spite of a taint. Source: KEP-5055.

    key: "" with the operator Exists matches every taint.
    operator: Exists or Equal; absent means Equal.
    effect: "" matches every effect.
    """

    key: str = ""
    operator: str = ""
    value: str = ""
    effect: str = ""
    toleration_seconds: Int64 | None = None

    def __post_init__(self) -> None:
        if not self.operator:
            force_setattr(self, "operator", "Equal")
