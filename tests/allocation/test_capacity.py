"""What a request consumes of a device's capacity: upstream's rounding, exactly."""

import pytest
from msgspec.structs import replace

from broker.allocation.capacity import consumption_of
from schemas.resource import CapacityRequestPolicy, CapacityRequestPolicyRange, Device, DeviceCapacity
from tests.builders import a_device


def _shared(value: str, policy: CapacityRequestPolicy | None = None) -> Device:
    return replace(
        a_device(),
        allow_multiple_allocations=True,
        capacity={"memory": DeviceCapacity(value=value, request_policy=policy)},
    )


def _range(default: str, least: str, most: str | None = None, step: str | None = None) -> CapacityRequestPolicy:
    return CapacityRequestPolicy(
        default=default, valid_range=CapacityRequestPolicyRange(min_=least, max_=most, step=step)
    )


VALUES = CapacityRequestPolicy(default="2Gi", valid_values=["1Gi", "2Gi", "4Gi"])
IN_GIBI = _range("1Gi", "1Gi", "8Gi", "1Gi")
IN_PARTS = _range("500m", "500m", step="750m")
IN_MICROS = _range("1", "1", step="1500u")


@pytest.mark.parametrize(
    ("value", "policy", "asked", "expected"),
    [
        pytest.param("8Gi", None, None, "8Gi", id="without a policy all of it"),
        pytest.param("8Gi", None, "3G", "3G", id="without a policy what is asked for, as it was written"),
        pytest.param("8Gi", None, "9Gi", None, id="more than there is"),
        pytest.param("8Gi", None, "-1", None, id="less than nothing"),
        pytest.param("8Gi", None, "0", "0", id="nothing"),
        pytest.param("8Gi", CapacityRequestPolicy(default="2Gi"), None, "2Gi", id="the default"),
        pytest.param("8Gi", CapacityRequestPolicy(default="2Gi"), "3Gi", "3Gi", id="a policy with only a default"),
        pytest.param("8Gi", VALUES, None, "2Gi", id="the default of valid values"),
        pytest.param("8Gi", VALUES, "1500Mi", "2Gi", id="up to the next valid value"),
        pytest.param("8Gi", VALUES, "4Gi", "4Gi", id="a valid value"),
        pytest.param("8Gi", VALUES, "5Gi", None, id="above all valid values"),
        pytest.param("8Gi", IN_GIBI, "1", "1Gi", id="up to the minimum"),
        pytest.param("8Gi", IN_GIBI, "5G", "5Gi", id="up to the next step, in the step's format"),
        pytest.param("8Gi", IN_GIBI, "8Gi", "8Gi", id="the maximum"),
        pytest.param("9Gi", IN_GIBI, "8193Mi", None, id="above the maximum although there is so much"),
        pytest.param("8", _range("1", "1", "4"), "1500m", "1500m", id="a range without steps rounds nothing"),
        pytest.param("8", IN_PARTS, "1300m", "2", id="fractional steps from a fractional minimum"),
        pytest.param("8", IN_PARTS, "1250001u", "2", id="finer than thousandths, upstream gives up"),
        pytest.param("8", IN_MICROS, "1100m", "2", id="steps finer than thousandths count as whole ones"),
        pytest.param("20Pi", _range("1", "1", step="1"), "17Pi", "19140298416324608", id="too large for thousandths"),
        pytest.param("x", None, None, None, id="a capacity that is no quantity"),
    ],
)
def test_what_is_consumed(
    value: str, policy: CapacityRequestPolicy | None, asked: str | None, expected: str | None
) -> None:
    found = consumption_of(_shared(value, policy), (("memory", asked),) if asked else ())
    if expected is None:
        assert isinstance(found, str)
    else:
        assert not isinstance(found, str), found
        assert [(name, str(amount)) for name, amount, _ in found] == [("memory", expected)]


def test_a_capacity_that_the_device_does_not_have() -> None:
    assert consumption_of(_shared("8"), (("memory", "1"), ("cores", "1"))) == "no capacity cores"


def test_names_are_compared_as_they_are_written() -> None:
    """As upstream: "memory" of the driver and "gpu.example.com/memory" are two names here."""
    assert consumption_of(_shared("8"), (("gpu.example.com/memory", "1"),)) == "no capacity gpu.example.com/memory"
