from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.quantity import Quantity, QuantityError, QuantityFormat, number_text

quantities = st.builds(Quantity, st.integers(-(10**40), 10**40), st.sampled_from(QuantityFormat))


@pytest.mark.parametrize(
    ("text", "value", "canonical"),
    [
        pytest.param("0", 0, "0", id="zero"),
        pytest.param("-0Ki", 0, "0", id="zero has no sign and no suffix"),
        pytest.param("1n", Fraction(1, 10**9), "1n", id="nano"),
        pytest.param("1u", Fraction(1, 10**6), "1u", id="micro"),
        pytest.param("500m", Fraction(1, 2), "500m", id="milli"),
        pytest.param("7", 7, "7", id="no suffix"),
        pytest.param("12k", 12_000, "12k", id="kilo"),
        pytest.param("3M", 3 * 10**6, "3M", id="mega"),
        pytest.param("3G", 3 * 10**9, "3G", id="giga"),
        pytest.param("3T", 3 * 10**12, "3T", id="tera"),
        pytest.param("3P", 3 * 10**15, "3P", id="peta"),
        pytest.param("3E", 3 * 10**18, "3E", id="exa, which is no exponent"),
        pytest.param("2Ki", 2048, "2Ki", id="kibi"),
        pytest.param("80Gi", 80 * 2**30, "80Gi", id="gibi"),
        pytest.param("7Ei", 7 * 2**60, "7Ei", id="exbi"),
        pytest.param("12e6", 12 * 10**6, "12e6", id="an exponent stays an exponent"),
        pytest.param("1E3", 1000, "1e3", id="an exponent in upper case"),
        pytest.param("15e-1", Fraction(3, 2), "1500e-3", id="exponents are multiples of three"),
        pytest.param("+1.50", Fraction(3, 2), "1500m", id="no fraction is printed"),
        pytest.param(".5", Fraction(1, 2), "500m", id="nothing before the point"),
        pytest.param("5.", 5, "5", id="nothing after the point"),
        pytest.param("1000000", 10**6, "1M", id="the largest suffix that keeps the number whole"),
        pytest.param("1024", 1024, "1024", id="a decimal quantity does not become binary"),
        pytest.param("1024Mi", 2**30, "1Gi", id="binary suffixes grow too"),
        pytest.param("0.5Ki", 512, "512", id="binary below 1024 is printed as decimal"),
        pytest.param("1.5Gi", 3 * 2**29, "1536Mi", id="a whole number of a smaller binary suffix"),
        pytest.param(
            "1.0005Ki", Fraction(10005 * 1024, 10**4), "1024512m", id="binary that is not whole is printed as decimal"
        ),
        pytest.param("0.1n", Fraction(1, 10**9), "1n", id="less than a nano is rounded up"),
        pytest.param("-0.1n", Fraction(-1, 10**9), "-1n", id="less than a nano is rounded away from zero"),
        pytest.param("1e-30", Fraction(1, 10**9), "1e-9", id="nothing but zero is rounded to zero"),
        pytest.param("16Ei", 2**63 - 1, str(2**63 - 1), id="binary is capped"),
        pytest.param("-16Ei", -(2**63 - 1), str(-(2**63 - 1)), id="binary is capped below, too"),
        pytest.param("1000E", 10**21, "1e21", id="beyond the last suffix an exponent stands in"),
    ],
)
def test_reads_and_prints_as_kubernetes(text: str, value: Fraction | int, canonical: str) -> None:
    quantity = Quantity.parse(text)
    assert quantity.value == value
    assert str(quantity) == canonical


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("Gi", id="only a suffix"),
        pytest.param(".", id="only a point"),
        pytest.param("1.2.3", id="two points"),
        pytest.param("1K", id="kilo is written k"),
        pytest.param("1gi", id="suffixes in the wrong case"),
        pytest.param("1 Gi", id="a space inside"),
        pytest.param(" 1Gi", id="a space before"),
        pytest.param("1GiB", id="bytes"),
        pytest.param("--1", id="two signs"),
        pytest.param("1e", id="an exponent without digits"),
        pytest.param("1e3.5", id="a broken exponent"),
        pytest.param("1e1000000000", id="an exponent that nobody can compute"),
        pytest.param("1" * 5000, id="a number that fills pages"),
        pytest.param("٣", id="digits of another script"),
        pytest.param("0x10", id="hexadecimal"),
        pytest.param("1\n", id="a line break"),
    ],
)
def test_refuses_what_is_no_quantity(text: str) -> None:
    with pytest.raises(QuantityError, match="expected"):
        Quantity.parse(text)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        pytest.param(16, "16", id="an integer"),
        pytest.param(-3, "-3", id="a negative one"),
        pytest.param(1.5, "1.5", id="a fraction"),
        pytest.param(8.0, "8", id="a float that is whole"),
        pytest.param(1e16, "10000000000000000", id="no exponent where JSON writes none"),
        pytest.param(1e21, "1e+21", id="an exponent where JSON writes one"),
        pytest.param(1e-7, "1e-7", id="a tiny float"),
    ],
)
def test_bare_numbers_count_as_their_text(number: float, text: str) -> None:
    assert number_text(number) == text
    assert Quantity.parse(number) == Quantity.parse(text)


@pytest.mark.parametrize("number", [True, float("nan"), float("inf")])
def test_refuses_numbers_that_are_no_amounts(number: float) -> None:
    with pytest.raises(QuantityError, match="expected a quantity"):
        Quantity.parse(number)


@given(quantities)
def test_the_canonical_form_reads_as_the_same_amount(quantity: Quantity) -> None:
    # Binary is capped on reading, and only there.
    if abs(quantity.nanos) <= (2**63 - 1) * 10**9:
        again = Quantity.parse(str(quantity))
        assert again == quantity
        assert str(again) == str(quantity) or again.format is not quantity.format


@given(quantities, quantities)
def test_order_sum_and_difference_are_those_of_the_values(one: Quantity, other: Quantity) -> None:
    assert (one < other) == (one.value < other.value)
    assert (one <= other) == (one.value <= other.value)
    assert (one > other) == (one.value > other.value)
    assert (one >= other) == (one.value >= other.value)
    assert (one == other) == (one.value == other.value)
    assert (one + other).value == one.value + other.value
    assert (one - other).value == one.value - other.value


def test_equality_and_hash_ignore_how_it_was_written() -> None:
    assert Quantity.parse("1024") == Quantity.parse("1Ki")
    assert len({Quantity.parse("1024"), Quantity.parse("1Ki"), Quantity.parse("1024.0")}) == 1
    assert Quantity.parse("1") != 1


def test_a_sum_is_printed_like_its_first_part_that_is_not_zero() -> None:
    assert str(Quantity.parse("1Gi") + Quantity.parse("1048576")) == "1025Mi"
    assert str(Quantity.parse("0") + Quantity.parse("1Gi")) == "1Gi"
