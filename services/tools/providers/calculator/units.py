"""Units that convert by an exact factor, and temperatures.

Factors after the International System and the international yard and pound agreement (1959); US gallon of 231 cubic
inches; the calorie is the thermochemical one.
"""

from dataclasses import dataclass
from fractions import Fraction

from services.tools.providers.calculator.numbers import CalculationError, Number, add, divide, multiply


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit."""

    name: str
    kind: str
    factor: Fraction
    """Of the kind's base unit."""
    offset: Fraction = Fraction(0)
    """Added after the factor; temperatures only."""


_TABLE = """
length | m meter meters metre metres | 1
length | km kilometer kilometers kilometre kilometres | 1000
length | cm centimeter centimeters centimetre centimetres | 1/100
length | mm millimeter millimeters millimetre millimetres | 1/1000
length | um micrometer micrometers micron microns | 1/1000000
length | nm nanometer nanometers | 1/1000000000
length | in inch inches | 0.0254
length | ft foot feet | 0.3048
length | yd yard yards | 0.9144
length | mi mile miles | 1609.344
length | nmi | 1852
length | au | 149597870700
length | ly lightyear lightyears | 9460730472580800
mass | kg kilogram kilograms | 1
mass | g gram grams | 1/1000
mass | mg milligram milligrams | 1/1000000
mass | t tonne tonnes | 1000
mass | lb lbs pound pounds | 0.45359237
mass | oz ounce ounces | 0.028349523125
mass | st stone stones | 6.35029318
time | s sec second seconds | 1
time | ms millisecond milliseconds | 1/1000
time | min minute minutes | 60
time | h hr hour hours | 3600
time | d day days | 86400
time | week weeks | 604800
volume | l liter liters litre litres | 1/1000
volume | ml milliliter milliliters millilitre millilitres | 1/1000000
volume | gal gallon gallons | 0.003785411784
volume | qt quart quarts | 0.000946352946
volume | pt pint pints | 0.000473176473
volume | cup cups | 0.0002365882365
area | ha hectare hectares | 10000
area | acre acres | 4046.8564224
speed | mps | 1
speed | kph kmh | 5/18
speed | mph | 0.44704
speed | kn knot knots | 463/900
data | bit bits | 1
data | byte bytes | 8
data | kb kilobyte kilobytes | 8000
data | mb megabyte megabytes | 8000000
data | gb gigabyte gigabytes | 8000000000
data | tb terabyte terabytes | 8000000000000
data | kib kibibyte kibibytes | 8192
data | mib mebibyte mebibytes | 8388608
data | gib gibibyte gibibytes | 8589934592
data | tib tebibyte tebibytes | 8796093022208
energy | j joule joules | 1
energy | kj kilojoule kilojoules | 1000
energy | cal calorie calories | 4.184
energy | kcal | 4184
energy | wh | 3600
energy | kwh | 3600000
pressure | pa pascal pascals | 1
pressure | kpa | 1000
pressure | bar bars | 100000
pressure | atm | 101325
power | w watt watts | 1
power | kw kilowatt kilowatts | 1000
"""


def _read() -> dict[str, Unit]:
    units = {}
    for line in _TABLE.strip().splitlines():
        kind, names, number = (part.strip() for part in line.split("|"))
        for name in names.split():
            units[name] = Unit(name=names.split()[0], kind=kind, factor=Fraction(number))
    fahrenheit = Fraction(5, 9)
    for name, factor, offset in (
        ("kelvin", Fraction(1), Fraction(0)),
        ("celsius", Fraction(1), Fraction("273.15")),
        ("fahrenheit", fahrenheit, Fraction("459.67") * fahrenheit),
    ):
        unit = Unit(name=name[0].upper(), kind="temperature", factor=factor, offset=offset)
        units[name] = units[name[0]] = unit
    return units


UNITS = _read()
"""By every name that they have."""


def unit_of(text: str) -> Unit | None:
    """A unit by its name; None when there is none."""
    name = text.strip().lower().removeprefix("degrees ").removeprefix("degree ").removeprefix("\u00b0").strip()
    return UNITS.get(name)


def converted(value: Number, source: Unit, target: Unit) -> Number:
    """A quantity in another unit.

    Raises:
        CalculationError: If the units measure different things.
    """
    if source.kind != target.kind:
        raise CalculationError(f"{source.name} measures {source.kind}, {target.name} measures {target.kind}")
    base = add(multiply(value, source.factor), source.offset)
    return divide(add(base, -target.offset), target.factor)
