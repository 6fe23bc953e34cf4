"""What kube-apiserver 1.37 refuses when an object is created, all of it, as values.

Paths are in the words of v1; `schemas.resource.versions.path_as_written` brings them to those of the input. Feature
gates count as on, since a field whose gate is off is dropped, not refused; but DRAFractionalCapacityRange counts as
off, as it is by default. CEL is not compiled here: the broker does that. Owner references and finalizers are not looked
at. Source: kubernetes, pkg/apis/resource/validation, and the declarative rules in k8s.io/api, resource/v1/types.go.
"""

from schemas.errors import FieldError
from schemas.resource import (
    DeviceClaim,
    DeviceClaimConfiguration,
    DeviceClass,
    DeviceClassConfiguration,
    DeviceConstraint,
    DeviceDerivedAttribute,
    DeviceRequest,
    DeviceSelector,
    DeviceSubRequest,
    DeviceTaintRule,
    ExactDeviceRequest,
    ObjectMeta,
    ResourceClaim,
    ResourceClaimSpec,
    ResourceClaimTemplate,
    checks,
    limits,
    names,
)
from schemas.resource.checks import Errors, entries, optional, required
from schemas.resource.validate_slice import validate_slice
from schemas.resource.validate_status import validate_status

__all__ = [
    "validate_claim",
    "validate_claim_spec",
    "validate_class",
    "validate_metadata",
    "validate_slice",
    "validate_status",
    "validate_taint_rule",
    "validate_template",
]


def validate_claim(claim: ResourceClaim) -> list[FieldError]:
    """What is wrong with a claim's metadata and spec; its status is for `validate_status`."""
    return [*validate_metadata(claim.metadata), *validate_claim_spec(claim.spec)]


def validate_metadata(metadata: ObjectMeta) -> list[FieldError]:
    """What is wrong with an object's metadata."""
    return list(checks.metadata(metadata))


def validate_claim_spec(spec: ResourceClaimSpec) -> list[FieldError]:
    """What is wrong with a claim's spec."""
    return list(_device_claim(spec.devices, "spec.devices"))


def validate_template(template: ResourceClaimTemplate) -> list[FieldError]:
    """What is wrong with a template, and so with every claim made from it."""
    return [
        *checks.metadata(template.metadata),
        *checks.labels_and_annotations(template.spec.metadata, "spec.metadata"),
        *_device_claim(template.spec.spec.devices, "spec.spec.devices"),
    ]


def validate_class(device_class: DeviceClass) -> list[FieldError]:
    """What is wrong with a DeviceClass."""
    spec = device_class.spec
    return [
        *checks.metadata(device_class.metadata),
        *entries(spec.selectors, "spec.selectors", limits.SELECTORS_MAX, _selector),
        *entries(spec.config, "spec.config", limits.CONFIG_MAX, _class_configuration),
        *optional(spec.extended_resource_name, "spec.extendedResourceName", names.extended_resource_name),
    ]


def validate_taint_rule(rule: DeviceTaintRule) -> list[FieldError]:
    """What is wrong with a DeviceTaintRule."""
    errors = [*checks.metadata(rule.metadata), *checks.taint(rule.spec.taint, "spec.taint")]
    selector = rule.spec.device_selector
    if selector is not None:
        errors += optional(selector.driver, "spec.deviceSelector.driver", names.driver_name)
        errors += optional(selector.pool, "spec.deviceSelector.pool", names.pool_name)
        errors += optional(selector.device, "spec.deviceSelector.device", names.dns_label)
    errors += checks.conditions(rule.status.conditions, "status.conditions")
    return errors


def _device_claim(claim: DeviceClaim, path: str) -> Errors:
    yield from entries(
        claim.requests,
        f"{path}.requests",
        limits.REQUESTS_MAX,
        lambda request, place: _request(request, place, claim),
        identity=lambda request: request.name,
    )
    known = checks.request_names(claim)
    yield from entries(
        claim.constraints,
        f"{path}.constraints",
        limits.CONSTRAINTS_MAX,
        lambda constraint, place: _constraint(constraint, place, known),
    )
    yield from entries(
        claim.config,
        f"{path}.config",
        limits.CONFIG_MAX,
        lambda config, place: _claim_configuration(config, place, known),
    )


def _request(request: DeviceRequest, path: str, claim: DeviceClaim) -> Errors:
    yield from required(request.name, f"{path}.name", names.dns_label)
    if (request.exactly is None) == (not request.first_available):
        found = "neither" if request.exactly is None else "both"
        yield FieldError(path, f"must have one of `exactly` and `firstAvailable`, found {found}")
    elif request.exactly is not None:
        yield from _device_spec(request.exactly, f"{path}.exactly", request.name, claim)
    else:
        yield from entries(
            request.first_available,
            f"{path}.firstAvailable",
            limits.FIRST_AVAILABLE_MAX,
            lambda sub, place: _sub_request(sub, place, request.name, claim),
            identity=lambda sub: sub.name,
        )


def _sub_request(request: DeviceSubRequest, path: str, parent: str, claim: DeviceClaim) -> Errors:
    yield from required(request.name, f"{path}.name", names.dns_label)
    yield from _device_spec(request, path, f"{parent}/{request.name}", claim)


def _device_spec(request: ExactDeviceRequest | DeviceSubRequest, path: str, name: str, claim: DeviceClaim) -> Errors:
    yield from required(request.device_class_name, f"{path}.deviceClassName", names.dns_subdomain)
    yield from entries(request.selectors, f"{path}.selectors", limits.SELECTORS_MAX, _selector)
    yield from checks.one_of(request.allocation_mode, f"{path}.allocationMode", ("ExactCount", "All"))
    if request.allocation_mode == "All" and request.count:
        yield FieldError(
            f"{path}.count", f"must not be set with allocationMode All, found {request.count}", request.count
        )
    elif request.allocation_mode == "ExactCount" and request.count <= 0:
        yield FieldError(f"{path}.count", f"must be greater than 0, found {request.count}", request.count)
    for index, toleration in enumerate(request.tolerations):
        yield from checks.toleration(toleration, f"{path}.tolerations[{index}]")
    for key, amount in (request.capacity.requests if request.capacity else {}).items():
        yield from checks.quantity(amount, f"{path}.capacity.requests[{key}]")
    constrained = _constrained_attributes(claim, name)
    yield from entries(
        request.derived_attributes,
        f"{path}.derivedAttributes",
        limits.DERIVED_ATTRIBUTES_MAX,
        lambda attribute, place: _derived_attribute(attribute, place, constrained),
        identity=lambda attribute: attribute.name,
    )


def _constrained_attributes(claim: DeviceClaim, name: str) -> set[str | None]:
    """The attributes that constraints compare across the devices of a request or subrequest."""
    targets = {name, name.partition("/")[0]}
    return {
        constraint.match_attribute or constraint.distinct_attribute
        for constraint in claim.constraints
        if not constraint.requests or targets & set(constraint.requests)
    }


def _derived_attribute(attribute: DeviceDerivedAttribute, path: str, constrained: set[str | None]) -> Errors:
    yield from required(attribute.name, f"{path}.name", names.fully_qualified_name)
    if attribute.name and attribute.name not in constrained:
        message = "must be named by a matchAttribute or distinctAttribute of a constraint on this request"
        yield FieldError(f"{path}.name", message, attribute.name)
    yield from _expression(attribute.expression, f"{path}.expression")


def _selector(selector: DeviceSelector, path: str) -> Errors:
    if selector.cel is None:
        yield FieldError(f"{path}.cel", "must be set")
    else:
        yield from _expression(selector.cel.expression, f"{path}.cel.expression")


def _expression(expression: str, path: str) -> Errors:
    size = names.byte_length(expression)
    if not expression:
        yield FieldError(path, "must be set")
    elif size > limits.EXPRESSION_MAX_BYTES:
        yield FieldError(path, f"must have at most {limits.EXPRESSION_MAX_BYTES} bytes, found {size}", size)


def _constraint(constraint: DeviceConstraint, path: str, known: set[str]) -> Errors:
    yield from checks.request_references(constraint.requests, f"{path}.requests", known)
    if constraint.match_attribute is None and constraint.distinct_attribute is None:
        yield FieldError(path, "must have one of `matchAttribute` and `distinctAttribute`, found neither")
    yield from optional(constraint.match_attribute, f"{path}.matchAttribute", names.fully_qualified_name)
    yield from optional(constraint.distinct_attribute, f"{path}.distinctAttribute", names.fully_qualified_name)


def _claim_configuration(config: DeviceClaimConfiguration, path: str, known: set[str]) -> Errors:
    yield from checks.request_references(config.requests, f"{path}.requests", known)
    yield from checks.opaque(config.opaque, f"{path}.opaque")


def _class_configuration(config: DeviceClassConfiguration, path: str) -> Errors:
    yield from checks.opaque(config.opaque, f"{path}.opaque")
