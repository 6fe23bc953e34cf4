"""What kube-apiserver 1.37 refuses in a device's capacity and its request policy; see `validate`. Source: KEP-5075."""

from collections.abc import Sequence

from schemas.errors import FieldError
from schemas.quantity import Quantity
from schemas.resource import CapacityRequestPolicy, CapacityRequestPolicyRange, DeviceCapacity, checks, limits
from schemas.resource.checks import Errors, entries

_INT64_MAX = 2**63 - 1


def capacity_errors(capacity: DeviceCapacity, path: str, is_shared: bool) -> Errors:
    """A capacity and, on a device that can be shared, how much of it requests may take."""
    errors = [*checks.quantity(capacity.value, f"{path}.value")]
    policy = capacity.request_policy
    if policy is not None and not is_shared:
        errors.append(FieldError(f"{path}.requestPolicy", "must only be set with allowMultipleAllocations: true"))
    elif policy is not None and not errors:
        errors += _request_policy(policy, f"{path}.requestPolicy", Quantity.parse(capacity.value))
    yield from errors


def _request_policy(policy: CapacityRequestPolicy, path: str, capacity: Quantity) -> Errors:
    valid_range = policy.valid_range or CapacityRequestPolicyRange()
    amounts = {
        "default": policy.default,
        "validRange.min": valid_range.min_,
        "validRange.max": valid_range.max_,
        "validRange.step": valid_range.step,
        **{f"validValues[{index}]": text for index, text in enumerate(policy.valid_values)},
    }
    unreadable = [error for name, text in amounts.items() for error in checks.quantity(text, f"{path}.{name}")]
    if unreadable:
        yield from unreadable
    elif policy.valid_values and policy.valid_range is not None:
        yield FieldError(path, "must have one of `validValues` and `validRange`, found both")
    elif policy.valid_values or policy.valid_range is not None:
        if policy.default is None:
            yield FieldError(f"{path}.default", "must be set where validValues or validRange is")
        elif policy.valid_values:
            yield from _valid_values(policy.valid_values, path, Quantity.parse(policy.default), capacity)
        else:
            yield from _valid_range(valid_range, path, Quantity.parse(policy.default), capacity)


def _valid_values(texts: Sequence[str], path: str, default: Quantity, capacity: Quantity) -> Errors:
    values = [Quantity.parse(text) for text in texts]
    for index in range(1, len(values)):
        if values[index - 1] > values[index]:
            yield FieldError(
                f"{path}.validValues[{index}]", f"must not be less than the value before, found {texts[index]}"
            )

    def check(value: Quantity, place: str) -> Errors:
        if value > capacity:
            yield FieldError(place, f"must not be more than the capacity {capacity}, found {value}", str(value))

    yield from entries(values, f"{path}.validValues", limits.VALID_VALUES_MAX, check, identity=_whole)
    if default not in values:
        yield FieldError(f"{path}.default", f"must be one of validValues, found {default}", str(default))


def _valid_range(valid: CapacityRequestPolicyRange, path: str, default: Quantity, capacity: Quantity) -> Errors:
    if valid.min_ is None:
        yield FieldError(f"{path}.validRange.min", "must be set")
        return
    lowest = Quantity.parse(valid.min_)
    highest = Quantity.parse(valid.max_) if valid.max_ is not None else None
    step = Quantity.parse(valid.step) if valid.step is not None else None
    if lowest > capacity:
        yield FieldError(f"{path}.validRange.min", f"must not be more than the capacity {capacity}, found {lowest}")
    if default < lowest:
        yield FieldError(f"{path}.default", f"must not be less than validRange.min {lowest}, found {default}")
    if highest is not None:
        if highest < lowest:
            yield FieldError(f"{path}.validRange.max", f"must not be less than min {lowest}, found {highest}")
        if highest > capacity:
            yield FieldError(
                f"{path}.validRange.max", f"must not be more than the capacity {capacity}, found {highest}"
            )
        if default > highest:
            yield FieldError(f"{path}.default", f"must not be more than validRange.max {highest}, found {default}")
    if step is None:
        return
    if step.nanos <= 0:
        yield FieldError(f"{path}.validRange.step", f"must be greater than 0, found {step}")
        return
    if lowest + step > capacity:
        yield FieldError(f"{path}.validRange.step", f"must not lead from min {lowest} above the capacity {capacity}")
    aligned = {"default": default, "validRange.max": highest}
    bounds = {**aligned, "validRange.min": lowest, "validRange.step": step}
    beyond = [name for name, value in bounds.items() if value is not None and not 0 <= _whole(value) <= _INT64_MAX]
    for name in beyond:
        yield FieldError(f"{path}.{name}", f"must be between 0 and 2^63 - 1 for steps, found {bounds[name]}")
    for name, value in aligned.items() if not beyond else ():
        if value is not None and (_whole(value) - _whole(lowest)) % _whole(step):
            yield FieldError(f"{path}.{name}", f"must be {lowest} plus a multiple of the step {step}, found {value}")


def _whole(quantity: Quantity) -> int:
    """The amount rounded up: what the API server computes with unless DRAFractionalCapacityRange is on."""
    return -(-quantity.nanos // 10**9)
