"""What the checks of several kinds have in common; see `validate`."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from schemas.errors import FieldError
from schemas.quantity import Quantity, QuantityError
from schemas.resource import (
    Condition,
    DeviceClaim,
    DeviceTaint,
    DeviceToleration,
    NodeSelector,
    NodeSelectorRequirement,
    ObjectMeta,
    OpaqueDeviceConfiguration,
    limits,
    names,
)

Errors = Iterator[FieldError]
_Item = TypeVar("_Item")

_TAINT_EFFECTS = ("None", "NoSchedule", "NoExecute")
_SKIP_NODE_OPERATIONS = ("NodePrepareResources", "NodeUnprepareResources", "*")


def required(value: str, path: str, check: names.Check) -> Errors:
    """A text that must be there and have a format."""
    if not value:
        yield FieldError(path, "must be set")
    else:
        yield from optional(value, path, check)


def optional(value: str | None, path: str, check: names.Check) -> Errors:
    """A text that must have a format if it is there."""
    if value is not None and (problem := check(value)):
        yield FieldError(path, problem, value)


def one_of(value: str, path: str, expected: Sequence[str]) -> Errors:
    """A text out of a fixed set."""
    if not value:
        yield FieldError(path, f"must be one of {', '.join(expected)}")
    elif value not in expected:
        yield FieldError(path, f'must be one of {", ".join(expected)}, found "{value}"', value)


def entries(
    items: Sequence[_Item],
    path: str,
    maximum: int,
    check: Callable[[_Item, str], Iterable[FieldError]],
    identity: Callable[[_Item], Hashable] | None = None,
) -> Errors:
    """A list with a limit, a check of each entry, and what must differ between them.

    A list beyond the limit is not looked into, as the API server does not either.
    """
    if len(items) > maximum:
        yield FieldError(path, f"must have at most {maximum} entries, found {len(items)}", len(items))
        return
    seen = set()
    for index, item in enumerate(items):
        place = f"{path}[{index}]"
        yield from check(item, place)
        if identity is not None:
            key = identity(item)
            if key in seen:
                yield FieldError(place, f"must not repeat {_quoted(key)}", key)
            seen.add(key)


def metadata(meta: ObjectMeta) -> Errors:
    """Name, labels and keys of annotations; an absent namespace is filled in by whoever sends the object."""
    if meta.name or not meta.generate_name:
        yield from required(meta.name, "metadata.name", names.dns_subdomain)
    yield from optional(meta.namespace or None, "metadata.namespace", names.dns_label)
    yield from labels_and_annotations(meta, "metadata")


def labels_and_annotations(meta: ObjectMeta, path: str) -> Errors:
    """The parts of metadata that a template has, too."""
    for key, value in meta.labels.items():
        yield from optional(key, f"{path}.labels[{key}]", names.label_key)
        yield from optional(value, f"{path}.labels[{key}]", names.label_value)
    for key in meta.annotations:
        yield from optional(key.lower(), f"{path}.annotations[{key}]", names.label_key)


def quantity(text: str | None, path: str) -> Errors:
    """An amount that can be read."""
    try:
        Quantity.parse(text if text is not None else "0")
    except QuantityError as error:
        yield FieldError(path, str(error), text)


def taint(value: DeviceTaint, path: str) -> Errors:
    """A taint, in a slice or a rule."""
    yield from required(value.key, f"{path}.key", names.label_key)
    yield from optional(value.value, f"{path}.value", names.label_value)
    yield from one_of(value.effect, f"{path}.effect", _TAINT_EFFECTS)


def toleration(value: DeviceToleration, path: str) -> Errors:
    """A toleration, in a request or a result."""
    yield from optional(value.key or None, f"{path}.key", names.label_key)
    yield from one_of(value.operator, f"{path}.operator", ("Equal", "Exists"))
    if value.operator == "Exists" and value.value:
        yield FieldError(f"{path}.value", f'must be empty with the operator Exists, found "{value.value}"', value.value)
    elif value.operator == "Equal":
        yield from optional(value.value, f"{path}.value", names.label_value)
    if value.effect:
        yield from one_of(value.effect, f"{path}.effect", _TAINT_EFFECTS)


def request_names(claim: DeviceClaim) -> set[str]:
    """How constraints, configuration and results can refer to requests: "request" or "request/subrequest"."""
    subrequests = {f"{request.name}/{sub.name}" for request in claim.requests for sub in request.first_available}
    return subrequests | {request.name for request in claim.requests}


def request_reference(name: str, path: str, known: set[str]) -> Errors:
    """The name of a request, or of a subrequest with its request's before it."""
    if name not in known:
        expected = ", ".join(sorted(known)) or "none"
        yield FieldError(path, f'must name a request of the claim ({expected}), found "{name}"', name)


def request_references(items: Sequence[str], path: str, known: set[str]) -> Errors:
    """Names of requests, each once."""
    yield from entries(
        items, path, limits.REQUESTS_MAX, lambda name, place: request_reference(name, place, known), identity=str
    )


def opaque(config: OpaqueDeviceConfiguration | None, path: str) -> Errors:
    """Parameters for a driver."""
    if config is None:
        yield FieldError(path, "must be set")
    else:
        yield from required(config.driver, f"{path}.driver", names.driver_name)
        if config.parameters is None:
            yield FieldError(f"{path}.parameters", "must be set")
        else:
            yield from free_form(config.parameters, f"{path}.parameters")


def free_form(value: Any, path: str) -> Errors:
    """An object of a driver's own making; its size is that of its JSON."""
    if not isinstance(value, dict):
        yield FieldError(path, "must be an object")
    elif (size := len(msgspec.json.encode(value))) > limits.OPAQUE_MAX_BYTES:
        yield FieldError(path, f"must have at most {limits.OPAQUE_MAX_BYTES} bytes as JSON, found {size}", size)


def binding_conditions(conditions: Sequence[str], failure_conditions: Sequence[str], path: str) -> Errors:
    """Both lists or none, without a name in common. Source: KEP-5007."""
    for field, items in (("bindingConditions", conditions), ("bindingFailureConditions", failure_conditions)):
        yield from entries(
            items,
            f"{path}.{field}",
            limits.BINDING_CONDITIONS_MAX,
            lambda name, place: required(name, place, names.label_key),
            identity=str,
        )
    for index, name in enumerate(failure_conditions):
        if name in conditions:
            message = f'must not be in bindingConditions at the same time, found "{name}"'
            yield FieldError(f"{path}.bindingFailureConditions[{index}]", message, name)
    if bool(conditions) != bool(failure_conditions):
        missing = "bindingFailureConditions" if conditions else "bindingConditions"
        yield FieldError(f"{path}.{missing}", "must be set where the other of the two condition lists is")


def skip_node_operations(operations: Sequence[str], path: str) -> Errors:
    """What nodes need not do; nothing can be prepared without being unprepared. Source: KEP-5945."""
    yield from entries(
        operations, path, len(operations), lambda name, place: one_of(name, place, _SKIP_NODE_OPERATIONS), identity=str
    )
    if "NodePrepareResources" in operations and not {"NodeUnprepareResources", "*"} & set(operations):
        yield FieldError(path, "must have NodeUnprepareResources where it has NodePrepareResources", list(operations))


def node_selector(selector: NodeSelector, path: str) -> Errors:
    """A node selector with at least one term."""
    terms = f"{path}.nodeSelectorTerms"
    if not selector.node_selector_terms:
        yield FieldError(terms, "must have at least one term")
    for index, term in enumerate(selector.node_selector_terms):
        for position, requirement in enumerate(term.match_expressions):
            yield from _match_expression(requirement, f"{terms}[{index}].matchExpressions[{position}]")
        for position, requirement in enumerate(term.match_fields):
            yield from _match_field(requirement, f"{terms}[{index}].matchFields[{position}]")


def _match_expression(requirement: NodeSelectorRequirement, path: str) -> Errors:
    yield from one_of(requirement.operator, f"{path}.operator", ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"))
    found = len(requirement.values)
    if requirement.operator in ("In", "NotIn") and not found:
        yield FieldError(f"{path}.values", f"must be set with the operator {requirement.operator}")
    elif requirement.operator in ("Exists", "DoesNotExist") and found:
        yield FieldError(f"{path}.values", f"must be empty with the operator {requirement.operator}, found {found}")
    elif requirement.operator in ("Gt", "Lt") and found != 1:
        yield FieldError(f"{path}.values", f"must be one value with the operator {requirement.operator}, found {found}")
    yield from required(requirement.key, f"{path}.key", names.label_key)
    for index, value in enumerate(requirement.values):
        yield from optional(value, f"{path}.values[{index}]", names.label_value)


def _match_field(requirement: NodeSelectorRequirement, path: str) -> Errors:
    yield from one_of(requirement.operator, f"{path}.operator", ("In", "NotIn"))
    yield from one_of(requirement.key, f"{path}.key", ("metadata.name",))
    if len(requirement.values) != 1:
        yield FieldError(f"{path}.values", f"must be one value for a field, found {len(requirement.values)}")
    for index, value in enumerate(requirement.values):
        yield from optional(value, f"{path}.values[{index}]", names.dns_subdomain)


def conditions(items: Sequence[Condition], path: str) -> Errors:
    """The conditions of a status."""
    yield from entries(items, path, limits.STATUS_CONDITIONS_MAX, _condition, identity=lambda item: item.type_)


def _condition(item: Condition, path: str) -> Errors:
    yield from required(item.type_, f"{path}.type", names.label_key)
    yield from one_of(item.status, f"{path}.status", ("True", "False", "Unknown"))
    yield from required(item.reason, f"{path}.reason", names.condition_reason)
    if not item.last_transition_time:
        yield FieldError(f"{path}.lastTransitionTime", "must be set")


def _quoted(key: Hashable) -> str:
    parts = key if isinstance(key, tuple) else (key,)
    return '"' + "/".join(str(part) for part in parts if part is not None) + '"'
