"""What an allocation says: devices, configuration, and the nodes where it holds.

No timestamp: the core has no clock, whoever commits the decision adds it. And no shareIDs: they follow from the
decision's place in the ledger, so whoever commits it names the shares (`with_share_ids`).
"""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from broker.allocation.nodes import NodeView, selector_for_results
from broker.allocation.requests import Alternative
from broker.allocation.search import Chosen
from schemas.resource import (
    AllocationResult,
    DeviceAllocationConfiguration,
    DeviceAllocationResult,
    DeviceRequestAllocationResult,
    ResourceClaim,
)
from schemas.share_id import share_id

UNNAMED = ""  # the shareID of a share that is not committed yet


def allocation_of(claim: ResourceClaim, chosen: Sequence[Chosen], node: NodeView) -> AllocationResult:
    """The allocation of one claim.

    chosen: its devices in the order of its requests.
    node: one that reaches all of them; named only where a device is local to it or binds to it.
    """
    alternatives = {_request_name(each.alternative): each.alternative for each in chosen}
    return AllocationResult(
        devices=DeviceAllocationResult(
            results=[_result_of(each) for each in chosen], config=_config_of(claim, alternatives)
        ),
        node_selector=selector_for_results(
            [(each.device.reach, bool(each.device.device.binds_to_node)) for each in chosen], node
        ),
    )


def _request_name(alternative: Alternative) -> str:
    return alternative.name.partition("/")[0]


def with_share_ids(allocation: AllocationResult, claim_uid: str, ledger_sequence: int) -> AllocationResult:
    """The allocation with a shareID for each share that has none yet."""
    if not any(each.share_id == UNNAMED for each in allocation.devices.results):
        return allocation
    results = [
        replace(each, share_id=share_id(claim_uid, ledger_sequence, index)) if each.share_id == UNNAMED else each
        for index, each in enumerate(allocation.devices.results)
    ]
    return replace(allocation, devices=replace(allocation.devices, results=results))


def _result_of(chosen: Chosen) -> DeviceRequestAllocationResult:
    alternative, device = chosen
    consumed: dict[str, str] = {}
    is_shared = bool(device.device.allow_multiple_allocations)
    if is_shared:
        consumption = device.consumption(alternative.capacity)
        assert not isinstance(consumption, str), f"{device.key} was chosen, although it has {consumption}"
        consumed = {name: str(amount) for name, amount, _ in consumption}
    return DeviceRequestAllocationResult(
        request=alternative.name,
        driver=device.key.pool.driver,
        pool=device.key.pool.pool,
        device=device.key.device,
        admin_access=alternative.admin_access or None,
        tolerations=list(alternative.tolerations),
        binding_conditions=device.device.binding_conditions,
        binding_failure_conditions=device.device.binding_failure_conditions,
        share_id=UNNAMED if is_shared else None,
        consumed_capacity=consumed,
        skip_node_operations=device.slice.spec.skip_node_operations,
    )


def _config_of(claim: ResourceClaim, alternatives: Mapping[str, Alternative]) -> list[DeviceAllocationConfiguration]:
    """Each class's configuration once, naming the requests that it came with, then the claim's.

    alternatives: the chosen one of each request, by the request's name.
    Of the claim's, entries that name only requests and alternatives that were not chosen are left out. As since
    Kubernetes 1.37, an entry that applies to all requests names none.
    """
    if not claim.spec.devices.config and not any(each.device_class.spec.config for each in alternatives.values()):
        return []
    names_by_class: dict[str, list[str]] = {}
    for each in alternatives.values():
        names_by_class.setdefault(each.device_class.metadata.name, []).append(each.name)
    class_by_name = {each.device_class.metadata.name: each.device_class for each in alternatives.values()}
    config = [
        DeviceAllocationConfiguration(source="FromClass", requests=names, opaque=each.opaque)
        for class_name, names in names_by_class.items()
        for each in class_by_name[class_name].spec.config
    ]
    chosen = {(request, each.name) for request, each in alternatives.items()}
    config += [
        DeviceAllocationConfiguration(source="FromClaim", requests=each.requests, opaque=each.opaque)
        for each in claim.spec.devices.config
        if not each.requests or any(not names.isdisjoint(each.requests) for names in map(set, chosen))
    ]
    return [_without_needless_names(each, chosen) for each in config]


def _without_needless_names(
    config: DeviceAllocationConfiguration, chosen: set[tuple[str, str]]
) -> DeviceAllocationConfiguration:
    if all(not names.isdisjoint(config.requests) for names in map(set, chosen)):
        return DeviceAllocationConfiguration(source=config.source, opaque=config.opaque)
    return config
