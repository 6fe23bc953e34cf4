"""What kube-apiserver 1.37 refuses when the status of a claim is written.

Meant for what we are about to write. An allocation that is already there holds its devices, whatever it looks like.
"""

from schemas.errors import FieldError
from schemas.resource import (
    AllocatedDeviceStatus,
    AllocationResult,
    DeviceAllocationConfiguration,
    DeviceRequestAllocationResult,
    NetworkDeviceData,
    ResourceClaim,
    ResourceClaimConsumerReference,
    checks,
    limits,
    names,
)
from schemas.resource.checks import Errors, entries, optional, required


def validate_status(claim: ResourceClaim) -> list[FieldError]:
    """What is wrong with a claim's status, the allocation seen as new."""
    status = claim.status
    errors: list[FieldError] = []
    if status.allocation is not None:
        errors += _allocation(status.allocation, "status.allocation", checks.request_names(claim.spec.devices))
    errors += entries(
        status.reserved_for,
        "status.reservedFor",
        limits.RESERVED_FOR_MAX,
        _consumer,
        identity=lambda consumer: consumer.uid,
    )
    if status.reserved_for and status.allocation is None:
        errors.append(FieldError("status.reservedFor", "must be empty without an allocation"))
    results = status.allocation.devices.results if status.allocation else []
    allocated = {(result.driver, result.pool, result.device, result.share_id) for result in results}
    errors += entries(
        status.devices,
        "status.devices",
        len(status.devices),
        lambda device, place: _device(device, place, _identity(device) in allocated),
        identity=_identity,
    )
    return errors


def _identity(device: AllocatedDeviceStatus) -> tuple[str, str, str, str | None]:
    return device.driver, device.pool, device.device, device.share_id


def _allocation(allocation: AllocationResult, path: str, known: set[str]) -> Errors:
    yield from entries(
        allocation.devices.results,
        f"{path}.devices.results",
        limits.ALLOCATION_RESULTS_MAX,
        lambda result, place: _result(result, place, known),
    )
    yield from entries(
        allocation.devices.config,
        f"{path}.devices.config",
        limits.ALLOCATION_CONFIG_MAX,
        lambda config, place: _configuration(config, place, known),
    )
    if allocation.node_selector is not None:
        yield from checks.node_selector(allocation.node_selector, f"{path}.nodeSelector")


def _result(result: DeviceRequestAllocationResult, path: str, known: set[str]) -> Errors:
    yield from checks.request_reference(result.request, f"{path}.request", known)
    yield from required(result.driver, f"{path}.driver", names.driver_name)
    yield from required(result.pool, f"{path}.pool", names.pool_name)
    yield from required(result.device, f"{path}.device", names.dns_label)
    yield from optional(result.share_id, f"{path}.shareID", names.uuid)
    yield from checks.binding_conditions(result.binding_conditions, result.binding_failure_conditions, path)
    for index, toleration in enumerate(result.tolerations):
        yield from checks.toleration(toleration, f"{path}.tolerations[{index}]")
    for key, amount in result.consumed_capacity.items():
        yield from checks.quantity(amount, f"{path}.consumedCapacity[{key}]")
    yield from checks.skip_node_operations(result.skip_node_operations, f"{path}.skipNodeOperations")


def _configuration(config: DeviceAllocationConfiguration, path: str, known: set[str]) -> Errors:
    yield from checks.one_of(config.source, f"{path}.source", ("FromClass", "FromClaim"))
    yield from checks.request_references(config.requests, f"{path}.requests", known)
    yield from checks.opaque(config.opaque, f"{path}.opaque")


def _consumer(consumer: ResourceClaimConsumerReference, path: str) -> Errors:
    for name, value in (("resource", consumer.resource), ("name", consumer.name), ("uid", consumer.uid)):
        if not value:
            yield FieldError(f"{path}.{name}", "must be set")


def _device(device: AllocatedDeviceStatus, path: str, is_allocated: bool) -> Errors:
    yield from required(device.driver, f"{path}.driver", names.driver_name)
    yield from required(device.pool, f"{path}.pool", names.pool_name)
    yield from required(device.device, f"{path}.device", names.dns_label)
    yield from optional(device.share_id, f"{path}.shareID", names.uuid)
    if not is_allocated:
        yield FieldError(path, "must be a device that is allocated to the claim")
    yield from checks.conditions(device.conditions, f"{path}.conditions")
    if device.data is not None:
        yield from checks.free_form(device.data, f"{path}.data")
    if device.network_data is not None:
        yield from _network_data(device.network_data, f"{path}.networkData")


def _network_data(data: NetworkDeviceData, path: str) -> Errors:
    for name, value, maximum in (
        ("interfaceName", data.interface_name, limits.NETWORK_INTERFACE_NAME_MAX_BYTES),
        ("hardwareAddress", data.hardware_address, limits.NETWORK_HARDWARE_ADDRESS_MAX_BYTES),
    ):
        if (size := names.byte_length(value)) > maximum:
            yield FieldError(f"{path}.{name}", f"must have at most {maximum} bytes, found {size}", size)
    yield from entries(
        data.ips,
        f"{path}.ips",
        limits.NETWORK_IPS_MAX,
        lambda address, place: optional(address, place, names.interface_address),
        identity=str,
    )
