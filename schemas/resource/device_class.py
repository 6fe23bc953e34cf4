"""DeviceClass: what an administrator offers to claims, under a name."""

import msgspec
from msgspec import field

from schemas.resource.device import DeviceSelector, OpaqueDeviceConfiguration
from schemas.resource.meta import ApiStruct, ObjectMeta


class DeviceClassConfiguration(ApiStruct, frozen=True, kw_only=True):
    """Configuration for every device that is allocated through the class."""

    opaque: OpaqueDeviceConfiguration | None = None


class DeviceClassSpec(ApiStruct, frozen=True, kw_only=True):
    """Which devices belong to the class.

    extended_resource_name: pods that request this extended resource get devices of the class. Source: KEP-5004.
    """

    selectors: list[DeviceSelector] = field(default_factory=list)
    config: list[DeviceClassConfiguration] = field(default_factory=list)
    extended_resource_name: str | None = None


class DeviceClass(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A named kind of device."""

    api_version: str = "resource.k8s.io/v1"
    kind: str = "DeviceClass"
    metadata: ObjectMeta = field(default_factory=ObjectMeta)
    spec: DeviceClassSpec = field(default_factory=DeviceClassSpec)
