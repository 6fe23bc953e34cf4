"""How much of a device's capacity a request consumes. Source: KEP-5075, DRAFractionalCapacityRange.

Every capacity of the device is consumed, named by the request or not. What the request names is rounded up to what the
capacity's policy allows; of what it does not name, the policy's default is consumed, or all of it.
Upstream gives up the whole allocation where an amount is negative or too large for its arithmetic. Arithmetic is exact
here: such a device does not fit, and the next one is tried.
"""

from typing import NamedTuple

from schemas.quantity import Quantity, QuantityError
from schemas.resource import CapacityRequestPolicy, CapacityRequestPolicyRange, Device, DeviceCapacity

CapacityAsk = tuple[tuple[str, str], ...]  # capacity and amount, as the request names them, in order of the names

_MILLI, _WHOLE = 10**6, 10**9  # in billionths
_INT64_MAX = 2**63 - 1


class Consumed(NamedTuple):
    """Of one capacity.

    limit: all there is of it, in billionths.
    """

    name: str
    amount: Quantity
    limit: int


Consumption = tuple[Consumed, ...]  # of one device by one request, in order of the names


def consumption_of(device: Device, ask: CapacityAsk) -> Consumption | str:
    """What the request consumes of the device; or why the device can never satisfy it, for people.

    A device that is not shared is checked all the same, but nobody else can use what is left of it.
    """
    try:
        wanted = {name: Quantity.parse(amount) for name, amount in ask}
        for name in wanted:
            if name not in device.capacity:
                return f"no capacity {name}"
        consumption = []
        for name in sorted(device.capacity):
            capacity = device.capacity[name]
            limit = Quantity.parse(capacity.value)
            amount = _amount(wanted.get(name), capacity.request_policy, limit)
            if amount is None:
                return f"its policy does not allow {wanted.get(name, limit)} of {name}"
            if amount.nanos < 0 or amount > limit:
                return f"{limit} of {name} instead of {amount}"
            consumption.append(Consumed(name, amount, limit.nanos))
    except QuantityError as error:
        return f"a capacity that cannot be read: {error}"
    return tuple(consumption)


def is_trivial(device: Device, ask: CapacityAsk) -> bool:
    """The request takes all of the device and names no capacity, so nothing can be in the way."""
    return not ask and not device.allow_multiple_allocations and not any(map(_has_policy, device.capacity.values()))


def _has_policy(capacity: DeviceCapacity) -> bool:
    return capacity.request_policy is not None


def _amount(wanted: Quantity | None, policy: CapacityRequestPolicy | None, limit: Quantity) -> Quantity | None:
    """What is consumed; None if the policy does not allow it."""
    if policy is None:
        return wanted if wanted is not None else limit
    default = Quantity.parse(policy.default) if policy.default is not None else None
    valid_range, valid_values = policy.valid_range, [Quantity.parse(text) for text in policy.valid_values]
    if wanted is None:
        amount = default if default is not None else limit
    elif valid_range is not None and valid_range.min_ is not None:
        amount = _rounded_up(wanted, valid_range)
    else:
        amount = next((each for each in valid_values if wanted <= each), wanted)
    if default is not None and amount == default:
        return amount
    if valid_range is not None:
        return amount if _is_in_range(amount, valid_range) else None
    return amount if not valid_values or amount in valid_values else None


def _rounded_up(wanted: Quantity, valid: CapacityRequestPolicyRange) -> Quantity:
    """To the minimum, and from there on to a whole number of steps."""
    least = Quantity.parse(valid.min_ or "0")
    if wanted < least:
        return least
    if valid.step is None:
        return wanted
    unit, step = _unit(valid), Quantity.parse(valid.step)
    first, width = _units(least, unit), _units(step, unit)
    if width <= 0:
        return wanted
    steps = -(-(_units(wanted, unit) - first) // width)
    return Quantity((first + steps * width) * unit, step.format)


def _is_in_range(amount: Quantity, valid: CapacityRequestPolicyRange) -> bool:
    if valid.max_ is not None and amount > Quantity.parse(valid.max_):
        return False
    if valid.step is None:
        return True
    unit = _unit(valid)
    width = _units(Quantity.parse(valid.step), unit)
    if unit == _MILLI and amount.nanos % unit:
        return False
    return width <= 0 or (_units(amount, unit) - _units(Quantity.parse(valid.min_ or "0"), unit)) % width == 0


def _unit(valid: CapacityRequestPolicyRange) -> int:
    """What upstream computes in: thousandths if the range can be told in them, else whole numbers."""
    bounds = [Quantity.parse(text).nanos for text in (valid.min_, valid.max_, valid.step) if text is not None]
    in_milli = all(nanos % _MILLI == 0 and abs(nanos) // _MILLI <= _INT64_MAX for nanos in bounds)
    return _MILLI if in_milli else _WHOLE


def _units(amount: Quantity, unit: int) -> int:
    return -(-amount.nanos // unit)
