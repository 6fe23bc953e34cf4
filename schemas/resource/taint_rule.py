"""DeviceTaintRule: a taint that an administrator puts on devices, one by one or by driver or pool. Source: KEP-5055."""

import msgspec
from msgspec import field

from schemas.resource.device import DeviceTaint
from schemas.resource.meta import ApiStruct, Condition, ObjectMeta


class DeviceTaintSelector(ApiStruct, frozen=True, kw_only=True, gc=False):
    """Which devices get the taint: those that match every field that is set. With none set: all devices."""

    driver: str | None = None
    pool: str | None = None
    device: str | None = None


class DeviceTaintRuleSpec(ApiStruct, frozen=True, kw_only=True):
    """The taint and where it goes.

    device_selector: None selects no device.
    """

    device_selector: DeviceTaintSelector | None = None
    taint: DeviceTaint = field(default_factory=DeviceTaint)


class DeviceTaintRuleStatus(ApiStruct, frozen=True, kw_only=True):
    """How far an eviction has come."""

    conditions: list[Condition] = field(default_factory=list)


class DeviceTaintRule(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A taint on devices that the driver did not put there."""

    api_version: str = "resource.k8s.io/v1"
    kind: str = "DeviceTaintRule"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: DeviceTaintRuleSpec = field(default_factory=DeviceTaintRuleSpec)
    status: DeviceTaintRuleStatus = field(default_factory=DeviceTaintRuleStatus)
