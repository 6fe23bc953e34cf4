"""Kubernetes quantities ("16Gi", "500m", "2e3"), exact.

Whoever needs a quantity as it was written keeps the text; this type is for comparing, adding and printing.
Source: apimachinery, pkg/api/resource. Three differences, each where upstream loses the value: a number too large for
the decimal suffixes is printed with an exponent (upstream drops the suffix), exponents beyond 999 are refused (upstream
wraps them around or computes for ever), and so is text without a digit (upstream reads "Gi" as 0).
"""

import re
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from functools import lru_cache

import msgspec

_QUANTITY = re.compile(
    r"(?=[+-]?\.?[0-9])([+-]?)([0-9]*)(?:\.([0-9]*))?(|[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)", re.ASCII
)
_DECIMAL_SUFFIXES = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY_SUFFIXES = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_SUFFIX_BY_EXPONENT = {exponent: suffix for suffix, exponent in _DECIMAL_SUFFIXES.items()}
_SUFFIX_BY_POWER_OF_1024 = {power: suffix for suffix, power in _BINARY_SUFFIXES.items()}

_NANOS = 10**9
_BINARY_MAX_NANOS = (2**63 - 1) * _NANOS
_MAX_DIGITS = 256
_MAX_EXPONENT = 999


class QuantityError(ValueError):
    """Text that is no quantity; the message says what is expected."""


class QuantityFormat(Enum):
    """How a quantity was written, which is how it is printed; it does not matter for comparison."""

    BINARY_SI = "BinarySI"
    DECIMAL_SI = "DecimalSI"
    DECIMAL_EXPONENT = "DecimalExponent"


class Quantity(msgspec.Struct, frozen=True, eq=False):
    """An exact amount; compare, add and hash by value.

    nanos: the amount in billionths. Every quantity is a whole number of them: smaller parts are rounded away from zero.
    """

    nanos: int
    format: QuantityFormat = QuantityFormat.DECIMAL_SI

    @classmethod
    def parse(cls, text: str | int | float) -> "Quantity":
        """Read a quantity as Kubernetes does; a number, as YAML may have it, counts as its decimal text.

        Amounts written with a binary suffix are capped at 2^63 - 1.
        Raises: QuantityError.
        """
        return _parse(text if isinstance(text, str) else number_text(text))

    @property
    def value(self) -> Fraction:
        """The amount itself."""
        return Fraction(self.nanos, _NANOS)

    def __str__(self) -> str:
        """The canonical form: no fraction, the largest suffix that keeps the number whole."""
        if self.nanos == 0:
            return "0"
        if self.format is QuantityFormat.BINARY_SI and abs(self.nanos) >= 1024 * _NANOS and self.nanos % _NANOS == 0:
            number, power = _strip(self.nanos // _NANOS, 1024, limit=6)
            return f"{number}{_SUFFIX_BY_POWER_OF_1024[power] if power else ''}"
        number, exponent = _strip(self.nanos, 1000)
        exponent = exponent * 3 - 9
        if self.format is QuantityFormat.DECIMAL_EXPONENT or exponent not in _SUFFIX_BY_EXPONENT:
            return f"{number}e{exponent}" if exponent else str(number)
        return f"{number}{_SUFFIX_BY_EXPONENT[exponent]}"

    def __add__(self, other: "Quantity") -> "Quantity":
        return Quantity(self.nanos + other.nanos, self.format if self.nanos else other.format)

    def __sub__(self, other: "Quantity") -> "Quantity":
        return Quantity(self.nanos - other.nanos, self.format if self.nanos else other.format)

    def __eq__(self, other: object) -> bool:
        return self.nanos == other.nanos if isinstance(other, Quantity) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.nanos)

    def __lt__(self, other: "Quantity") -> bool:
        return self.nanos < other.nanos

    def __le__(self, other: "Quantity") -> bool:
        return self.nanos <= other.nanos

    def __gt__(self, other: "Quantity") -> bool:
        return self.nanos > other.nanos

    def __ge__(self, other: "Quantity") -> bool:
        return self.nanos >= other.nanos


def number_text(number: int | float) -> str:
    """The text that stands for a bare number, as the API server sees it: without exponent as far as JSON prints none.

    Raises: QuantityError for what is no finite number.
    """
    if isinstance(number, bool):
        raise QuantityError(f"expected a quantity, found {str(number).lower()}")
    if isinstance(number, int):
        return str(number)
    exact = Decimal(repr(number)).normalize()
    if not exact.is_finite():
        raise QuantityError(f"expected a quantity, found {number}")
    if number and not 1e-6 <= abs(number) < 1e21:
        return f"{exact:e}"
    return f"{exact:f}"


@lru_cache(maxsize=8192)
def _parse(text: str) -> Quantity:
    match = _QUANTITY.fullmatch(text)
    if match is None or not text or len(text) > _MAX_DIGITS:
        raise QuantityError(
            f'expected a quantity, found "{text[:64]}"; write a number with an optional suffix, '
            "one of n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei, or an exponent"
        )
    sign, whole, fraction, suffix = match[1], match[2], match[3] or "", match[4]
    digits = int(whole + fraction or "0")
    decimals = len(fraction)
    if suffix in _BINARY_SUFFIXES:
        quantity_format = QuantityFormat.BINARY_SI
        nanos = min(_scaled(digits * 1024 ** _BINARY_SUFFIXES[suffix], 9 - decimals), _BINARY_MAX_NANOS)
    elif suffix in _DECIMAL_SUFFIXES:
        quantity_format = QuantityFormat.DECIMAL_SI
        nanos = _scaled(digits, 9 - decimals + _DECIMAL_SUFFIXES[suffix])
    else:
        quantity_format = QuantityFormat.DECIMAL_EXPONENT
        exponent = int(suffix[1:])
        if abs(exponent) > _MAX_EXPONENT:
            raise QuantityError(
                f'expected an exponent between -{_MAX_EXPONENT} and {_MAX_EXPONENT}, found "{text[:64]}"'
            )
        nanos = _scaled(digits, 9 - decimals + exponent)
    return Quantity(-nanos if sign == "-" else nanos, quantity_format)


def _scaled(digits: int, exponent: int) -> int:
    """digits * 10^exponent for digits >= 0, rounded up: who asks for something gets something."""
    power: int = 10 ** abs(exponent)
    return digits * power if exponent >= 0 else -(-digits // power)


def _strip(number: int, base: int, limit: int | None = None) -> tuple[int, int]:
    """Move factors of `base` from a number that is not 0 into an exponent."""
    exponent = 0
    while number % base == 0 and (limit is None or exponent < limit):
        number //= base
        exponent += 1
    return number, exponent
