"""Numbers of the calculator: exact fractions as long as possible, else decimals of 30 digits; all bounded."""

import decimal
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

Number = Fraction | Decimal

MAX_BITS = 13_000
"""Of numerator and denominator: about 3,900 digits."""
MAX_FACTORIAL = 1_000
DIGITS = 30
_CONTEXT = decimal.Context(prec=DIGITS + 10, Emax=10_000, Emin=-10_000)
_FLOAT_DIGITS = 15


class CalculationError(Exception):
    """What cannot be calculated; the message says why."""


def checked(value: Number) -> Number:
    """A number that is not too large.

    Raises:
        CalculationError: If it is.
    """
    if isinstance(value, Fraction):
        if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
            raise CalculationError("the result has too many digits")
    elif not value.is_finite():
        raise CalculationError("the result is no finite number")
    return value


def decimal_of(value: Number) -> Decimal:
    """A number as a decimal."""
    if isinstance(value, Decimal):
        return value
    return _run(lambda: _CONTEXT.divide(Decimal(value.numerator), Decimal(value.denominator)))


def add(a: Number, b: Number) -> Number:
    """A + b."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return checked(a + b)
    return _run(lambda: _CONTEXT.add(decimal_of(a), decimal_of(b)))


def multiply(a: Number, b: Number) -> Number:
    """A times b."""
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return checked(a * b)
    return _run(lambda: _CONTEXT.multiply(decimal_of(a), decimal_of(b)))


def negative(a: Number) -> Number:
    """Minus a."""
    return -a if isinstance(a, Fraction) else a.copy_negate()


def divide(a: Number, b: Number) -> Number:
    """A over b."""
    if not b:
        raise CalculationError("division by zero")
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return checked(a / b)
    return _run(lambda: _CONTEXT.divide(decimal_of(a), decimal_of(b)))


def modulo(a: Number, b: Number) -> Number:
    """What is left of a divided by b, with the sign of b."""
    if not b:
        raise CalculationError("division by zero")
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a % b
    raise CalculationError("mod needs exact numbers")


def power(a: Number, b: Number) -> Number:
    """A to the power of b: exact for whole exponents and for roots that are exact."""
    if not a and b < 0:
        raise CalculationError("division by zero")
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        if b.denominator == 1:
            size = max(a.numerator.bit_length(), a.denominator.bit_length())
            if abs(a.numerator) != a.denominator and size * abs(b.numerator) > MAX_BITS:
                raise CalculationError("the result has too many digits")
            exponent = b.numerator if abs(a.numerator) != a.denominator else b.numerator % 2
            return checked(Fraction(a**exponent))
        root = exact_root(a, b.denominator) if b.denominator <= MAX_BITS else None
        if root is not None:
            return power(root, Fraction(b.numerator))
    if a < 0:
        raise CalculationError("a fractional power of a negative number is not real")
    return _run(lambda: _CONTEXT.power(decimal_of(a), decimal_of(b)))


def square_root(a: Number) -> Number:
    """The square root."""
    if a < 0:
        raise CalculationError("the square root of a negative number is not real")
    root = exact_root(a, 2) if isinstance(a, Fraction) else None
    return root if root is not None else _run(lambda: _CONTEXT.sqrt(decimal_of(a)))


def cube_root(a: Number) -> Number:
    """The real cube root."""
    if a < 0:
        return negative(cube_root(negative(a)))
    return power(a, Fraction(1, 3)) if a else a


def exact_root(a: Fraction, degree: int) -> Fraction | None:
    """The real root when it is a fraction."""
    if a < 0:
        if degree % 2 == 0:
            return None
        root = exact_root(-a, degree)
        return None if root is None else -root
    top, bottom = _whole_root(a.numerator, degree), _whole_root(a.denominator, degree)
    return None if top is None or bottom is None else Fraction(top, bottom)


def factorial(a: Number) -> Number:
    """A!"""
    if not isinstance(a, Fraction) or a.denominator != 1 or a < 0:
        raise CalculationError("a factorial needs a whole number that is not negative")
    if a > MAX_FACTORIAL:
        raise CalculationError(f"factorials go up to {MAX_FACTORIAL}!")
    return checked(Fraction(math.factorial(a.numerator)))


def logarithm(a: Number, base: Number | None = None) -> Number:
    """The natural logarithm, or that to a base."""
    if a <= 0 or (base is not None and (base <= 0 or base == 1)):
        raise CalculationError("a logarithm needs a number above 0, and a base above 0 that is not 1")
    if base is None:
        return _run(lambda: _CONTEXT.ln(decimal_of(a)))
    value = _run(lambda: _CONTEXT.divide(_CONTEXT.ln(decimal_of(a)), _CONTEXT.ln(decimal_of(base))))
    whole = Fraction(int(value.to_integral_value()))
    if isinstance(a, Fraction) and isinstance(base, Fraction) and abs(whole) < MAX_BITS and power(base, whole) == a:
        return whole
    return value


def exponential(a: Number) -> Number:
    """E to the power of a."""
    return _run(lambda: _CONTEXT.exp(decimal_of(a)))


def by_float(function: Callable[[float], float]) -> Callable[[Number], Number]:
    """A function of floats as one of numbers, with 15 digits."""

    def run(a: Number) -> Number:
        try:
            value = function(float(a))
        except (ValueError, OverflowError) as error:
            raise CalculationError(f"not defined there ({error})") from error
        if abs(value) > 1e15 or math.isnan(value):
            raise CalculationError("not defined there")
        return Decimal(repr(round(value, _FLOAT_DIGITS)))

    return run


def text_of(value: Number) -> str:
    """A number for people: whole, fraction and decimals, or decimals that are marked as rounded."""
    if isinstance(value, Fraction):
        if value.denominator == 1:
            return str(value.numerator)
        exact = _decimal_text(value)
        return f"{value} = {exact}" if exact else f"{value} (about {_rounded(decimal_of(value))})"
    return f"about {_rounded(value)}"


def _decimal_text(value: Fraction) -> str:
    """A fraction in decimals when they end after not too many digits."""
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest != 1 or places > DIGITS:
        return ""
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}"


def _rounded(value: Decimal) -> str:
    digits = _FLOAT_DIGITS + 1 if len(value.as_tuple().digits) <= _FLOAT_DIGITS + 2 else DIGITS
    short = decimal.Context(prec=digits, Emax=10_000, Emin=-10_000).create_decimal(value)
    text = f"{short:f}" if -10 < short.adjusted() < 40 else f"{short:e}"
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def _whole_root(value: int, degree: int) -> int | None:
    if value < 2:
        return value
    low, high = 1, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high + 1) // 2
        if middle**degree <= value:
            low = middle
        else:
            high = middle - 1
    return low if low**degree == value else None


def _run(work: Callable[[], Decimal]) -> Decimal:
    try:
        value = work()
    except decimal.DecimalException as error:
        raise CalculationError("the result is too large, or not defined") from error
    checked(value)
    return value
