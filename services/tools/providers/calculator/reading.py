"""Reading questions such as `17% of 240`, `sqrt(2) * 5!` and `10 miles in km`, and working them out."""

import math
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

from services.tools.providers.calculator import numbers
from services.tools.providers.calculator.numbers import CalculationError, Number, text_of
from services.tools.providers.calculator.units import converted, unit_of

MAX_CHARACTERS = 1000
MAX_DEPTH = 50
MAX_STEPS = 400

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d*)?(?:[eE][+-]?\d{1,3})?|\.\d+)|([A-Za-z_][A-Za-z_0-9]*)|(\*\*|[-+*/^%!(),]))")
_SPOKEN = (
    (r"[?=.\s]+$", ""),
    (r"^(please\s+)?(what\s+is|what's|calculate|compute|evaluate|how\s+much\s+is|solve)\s+", ""),
    (r"\bthe\s+", ""),
    (r"(?<=\d),(?=\d{3}(\D|$))", ""),
    (r"\bsquare\s+root\s+of\s+", "sqrt "),
    (r"\bcube\s+root\s+of\s+", "cbrt "),
    (r"\bfactorial\s+of\s+(\d+)", r"\1!"),
    (r"\b(\d+)\s+factorial\b", r"\1!"),
    (r"\bmultiplied\s+by\b|\btimes\b|[\u00d7\u00b7]", " * "),
    (r"\bdivided\s+by\b|\bover\b|\u00f7", " / "),
    (r"\bplus\b", " + "),
    (r"\bminus\b|\u2212", " - "),
    (r"\b(raised\s+)?to\s+the\s+power\s+of\b", " ^ "),
    (r"\bsquared\b", "^2"),
    (r"\bcubed\b", "^3"),
    (r"\bpercent\b", "%"),
    (r"\u221a", "sqrt "),
    (r"\u03c0", " pi "),
)
_CONVERSION = re.compile(
    r"^(?:convert\s+)?(.+?)\s*((?:degrees?\s+|\u00b0)?[A-Za-z]+)\s+(?:to|in|into|as)\s+((?:degrees?\s+|\u00b0)?[A-Za-z]+)$"
)

CONSTANTS: dict[str, Number] = {
    "pi": Decimal("3.141592653589793238462643383279502884197"),
    "e": Decimal("2.718281828459045235360287471352662497757"),
    "tau": Decimal("6.283185307179586476925286766559005768394"),
}
_DEGREE = math.pi / 180
FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "sqrt": numbers.square_root,
    "cbrt": numbers.cube_root,
    "abs": lambda a: numbers.negative(a) if a < 0 else a,
    "exp": numbers.exponential,
    "ln": numbers.logarithm,
    "log": lambda a: numbers.logarithm(a, Fraction(10)),
    "log10": lambda a: numbers.logarithm(a, Fraction(10)),
    "log2": lambda a: numbers.logarithm(a, Fraction(2)),
    "factorial": numbers.factorial,
    "floor": lambda a: Fraction(math.floor(a)),
    "ceil": lambda a: Fraction(math.ceil(a)),
    "round": lambda a: Fraction(math.floor(numbers.add(a, Fraction(1, 2)))),
    "sin": numbers.by_float(math.sin),
    "cos": numbers.by_float(math.cos),
    "tan": numbers.by_float(math.tan),
    "asin": numbers.by_float(math.asin),
    "acos": numbers.by_float(math.acos),
    "atan": numbers.by_float(math.atan),
    "sind": numbers.by_float(lambda a: math.sin(a * _DEGREE)),
    "cosd": numbers.by_float(lambda a: math.cos(a * _DEGREE)),
    "tand": numbers.by_float(lambda a: math.tan(a * _DEGREE)),
}
CAN = (
    "+ - * / ^ mod, brackets, percent, factorials, roots, logarithms, exp, sin cos tan (radians; sind cosd tand: "
    "degrees), floor, ceil, round, abs, gcd, lcm, min, max, binomial, pi, e, and conversions such as `10 miles in km`"
)


def calculate(question: str) -> tuple[str, bool]:
    """The answer to a question, and whether it is exact.

    Raises:
        CalculationError: If it cannot be read or worked out.
    """
    if len(question) > MAX_CHARACTERS:
        raise CalculationError(f"it has more than {MAX_CHARACTERS} characters")
    text = question.strip()
    for pattern, plain in _SPOKEN:
        text = re.sub(pattern, plain, text, flags=re.IGNORECASE)
    match = _CONVERSION.match(text.strip())
    if match and (source := unit_of(match[2])) and (target := unit_of(match[3])):
        value = converted(_Reader(match[1]).whole(), source, target)
        return f"{text_of(value)} {target.name}", isinstance(value, Fraction)
    value = _Reader(text).whole()
    return text_of(value), isinstance(value, Fraction)


class _Reader:
    """Reads by precedence: sums, products, signs, powers, what stands behind a number."""

    def __init__(self, text: str) -> None:
        self._tokens: list[str] = []
        at = 0
        while at < len(text.rstrip()):
            match = _TOKEN.match(text, at)
            if match is None:
                raise CalculationError(f"{text[at:].strip()[:40]!r} is not understood")
            self._tokens.append(next(part for part in match.groups() if part is not None))
            at = match.end()
        if len(self._tokens) > MAX_STEPS:
            raise CalculationError("it is too long")
        self._at = 0
        self._depth = 0

    def whole(self) -> Number:
        if not self._tokens:
            raise CalculationError("there is nothing to calculate")
        value = self._sum()
        if self._next:
            raise CalculationError(f"{self._next!r} is not expected there")
        return value

    @property
    def _next(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _take(self, *wanted: str) -> str:
        token = self._next
        if token and token.lower() in wanted:
            self._at += 1
            return token.lower()
        return ""

    def _sum(self) -> Number:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CalculationError("it is nested too deeply")
        value = self._product()
        while sign := self._take("+", "-"):
            start = self._at
            right = self._product()
            if self._at == start + 2 and self._tokens[self._at - 1] == "%":  # 200 + 10% is 220
                right = numbers.multiply(value, right)
            value = numbers.add(value, right if sign == "+" else numbers.negative(right))
        self._depth -= 1
        return value

    def _product(self) -> Number:
        value = self._signed()
        while True:
            if sign := self._take("*", "/", "of", "mod"):
                right = self._signed()
                match sign:
                    case "/":
                        value = numbers.divide(value, right)
                    case "mod":
                        value = numbers.modulo(value, right)
                    case _:
                        value = numbers.multiply(value, right)
            elif self._next == "(" or (
                self._next and self._next[0].isalpha() and self._next.lower() in {*CONSTANTS, *FUNCTIONS}
            ):
                value = numbers.multiply(value, self._power())  # 2 pi
            else:
                return value

    def _signed(self) -> Number:
        minus = False
        while sign := self._take("+", "-"):
            minus ^= sign == "-"
        value = self._power()
        return numbers.negative(value) if minus else value

    def _power(self) -> Number:
        value = self._behind()
        if self._take("^", "**"):
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise CalculationError("it is nested too deeply")
            value = numbers.power(value, self._signed())
            self._depth -= 1
        return value

    def _behind(self) -> Number:
        value = self._atom()
        while sign := self._take("!", "%"):
            value = numbers.factorial(value) if sign == "!" else numbers.divide(value, Fraction(100))
        return value

    def _atom(self) -> Number:
        if self._take("("):
            value = self._sum()
            self._close()
            return value
        found = self._next
        if not found:
            raise CalculationError("it ends too early")
        self._at += 1
        name = found.lower()
        if found[0].isdigit() or found[0] == ".":
            return numbers.checked(Fraction(found))
        if name in CONSTANTS:
            return CONSTANTS[name]
        if name in FUNCTIONS:
            return numbers.checked(FUNCTIONS[name](self._argument()))
        if name in _MANY and self._take("("):
            values = [self._sum()]
            while self._take(","):
                values.append(self._sum())
            self._close()
            return numbers.checked(_MANY[name](values))
        raise CalculationError(f"{found!r} is not known")

    def _argument(self) -> Number:
        if self._take("("):
            value = self._sum()
            self._close()
            return value
        return self._signed()  # sqrt 2

    def _close(self) -> None:
        if not self._take(")"):
            raise CalculationError("a bracket is not closed")


def _whole(value: Number) -> int:
    if not isinstance(value, Fraction) or value.denominator != 1:
        raise CalculationError("whole numbers are needed there")
    return value.numerator


def _binomial(values: list[Number]) -> Number:
    if len(values) != 2 or not 0 <= _whole(values[0]) <= numbers.MAX_FACTORIAL or _whole(values[1]) < 0:
        raise CalculationError(f"binomial needs two whole numbers, the first up to {numbers.MAX_FACTORIAL}")
    return Fraction(math.comb(_whole(values[0]), _whole(values[1])))


_MANY: dict[str, Callable[[list[Number]], Number]] = {
    "gcd": lambda values: Fraction(math.gcd(*map(_whole, values))),
    "lcm": lambda values: Fraction(math.lcm(*map(_whole, values))),
    "min": min,
    "max": max,
    "binomial": _binomial,
}
