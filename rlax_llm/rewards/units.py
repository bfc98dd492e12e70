"""Units after a number: what may be left out, what is the same one, and by what factor they differ."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """What stands after a number.

    Attributes:
        size: of it in the base units of its dimensions.
        dimensions: sorted names and powers of base units, ``("m", 1), ("s", -1)``; of things that are counted, a noun.
        counted: whether it is a noun that no table knows.
    """

    size: Fraction
    dimensions: tuple[tuple[str, int], ...]
    counted: bool = False


NO_UNIT = Unit(Fraction(1), ())
PERCENT = Unit(Fraction(1), (("%", 1),))
DEGREE = Unit(Fraction(1), (("°", 1),))
_TABLE = {
    "m": "m meter metre:1 km kilometer kilometre kilometers:1000 cm centimeter centimetre:1/100 mm millimeter "
    "millimetre:1/1000 in inch inche:127/5000 ft foot feet:381/1250 yd yard:1143/1250 mi mile:201168/125",
    "g": "g gram gramme:1 kg kilogram kilo:1000 mg milligram:1/1000 lb pound:45359237/100000 oz ounce:45359237/1600000",
    "s": "s sec second:1 ms millisecond:1/1000 min minute:60 h hr hour:3600 day:86400 week:604800",
    "month": "month:1 yr year:12",
    "L": "L l liter litre:1 mL ml milliliter millilitre:1/1000 gal gallon:473176473/125000000",
    "$": "$ dollar USD buck:1 ¢ cent:1/100",
    "€": "€ euro EUR:1",
    "£": "£ GBP:1",
    "°": "° degree deg:1",
    "rad": "rad radian:1",
    "°C": "°C celsius:1",
    "°F": "°F fahrenheit:1",
    "K": "K kelvin:1",
    "N": "N newton:1",
    "J": "J joule:1 kJ kilojoule:1000",
    "W": "W watt:1 kW kilowatt:1000",
    "V": "V volt:1",
    "A": "A amp ampere:1",
    "Hz": "Hz hertz:1",
    "mol": "mol mole:1",
    "%": "% percent pct percentage:1",
    "mph": "mph:1",
    "": "unit:1",
}
_KNOWN = {
    name: (Fraction(size), base)
    for base, line in _TABLE.items()
    for names, size in re.findall(r"([^:]+):(\S+)\s*", line)
    for name in names.split()
}
MULTIPLES = {"dozen": 12, "hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
"""Words after a number that belong to it."""
# A number before them is not yet the answer's value, or what they say is more than a unit.
_NOT_NOUNS = frozenset(
    re.findall(
        r"\w+",
        """
        times squared cubed factorial plus minus over less more than of half halves third thirds quarter quarters fifths
        sixths sevenths eighths ninths tenths hundredths thousandths and or but not to from per by is are was the mod
        modulo choose root sqrt pi sin cos tan cot sec csc log ln exp lim max min gcd lcm if for where with in base
        remainder e i either neither nor otherwise then so because no yes infinity approximately about
        """,
    )
)
_ONE = re.compile(r"([A-Za-z%°$¢€£]+?)(?:\^?\{?([23])\}?)?")
_PLURALS = ("", "s", "es")
AMBIGUOUS = frozenset("mgshlLKNJWVA")
"""Letters that stand for a unit or for an unknown."""


def known_unit(text: str) -> Unit | None:
    """The unit that ``text`` names, of those that the table has.

    Args:
        text: words, signs and abbreviations without fonts.

    >>> known_unit("km/h"), known_unit("square feet") == known_unit("ft^2"), known_unit("apples")
    (Unit(size=Fraction(5, 18), dimensions=(('m', 1), ('s', -1)), counted=False), True, None)
    """
    text = re.sub(r"\b(?:square|sq\.?)\s+(units?)\b|\b(?:cubic|cu\.?)\s+(units?)\b", "unit", text.strip())
    text = re.sub(
        r"\b(?:square|sq\.?)\s+([A-Za-z]+)", r"\1^2", re.sub(r"\b(?:cubic|cu\.?)\s+([A-Za-z]+)", r"\1^3", text)
    )
    text = re.sub(r"\s+squared\b", "^2", re.sub(r"\s+cubed\b", "^3", text))
    text = re.sub(r"\bkm/?h\b|\bkph\b", "km/h", re.sub(r"\bmiles per hour\b|\bmi/h\b", "mph", text))
    above, *below = re.split(r"\s*(?:/|\bper\b|\ban?\b)\s*", text)
    size = Fraction(1)
    powers = Counter[str]()
    for sign, product in [(1, above), *((-1, part) for part in below)]:
        for factor in re.split(r"[\s*·]+|\\cdot", product.strip()):
            found = _ONE.fullmatch(factor)
            entry = _entry(found[1]) if found else None
            if found is None or entry is None:
                return None
            power = sign * int(found[2] or 1)
            size *= entry[0] ** power
            powers[entry[1]] += power
    return Unit(size, tuple(sorted((name, power) for name, power in powers.items() if name and power)))


def _entry(name: str) -> tuple[Fraction, str] | None:
    if name in _KNOWN:
        return _KNOWN[name]
    lowered = name.lower()
    if len(name) < 3:
        return None
    singular = (lowered.removesuffix(end) for end in _PLURALS)
    return next((_KNOWN[word] for word in singular if word in _KNOWN), None)


def counted_things(text: str) -> Unit | None:
    """At most four words that say what is counted, as a unit of its own.

    Args:
        text: words without fonts.

    >>> counted_things("red apples").dimensions, counted_things("more than x")
    ((('red apple', 1),), None)
    """
    words = text.lower().split()
    if not 0 < len(words) <= 4 or any(word in _NOT_NOUNS for word in words):
        return None
    if not all(re.fullmatch(r"[a-z][a-z'-]+", word) for word in words) or len(words[-1]) < 3:
        return None
    return Unit(Fraction(1), ((" ".join(word.removesuffix("s") for word in words), 1),), counted=True)


def ratio(gold: Unit, given: Unit) -> Fraction | None:
    """By what a number with the unit ``given`` is multiplied to have the unit ``gold``; a unit may be left out.

    Args:
        gold: the right answer's.
        given: the completion's.

    Returns:
        ``None`` where they are units of different things; 1 where one is not written, or both are nouns.

    >>> ratio(known_unit("m"), known_unit("cm")), ratio(known_unit("m"), NO_UNIT), ratio(known_unit("m"), PERCENT)
    (Fraction(1, 100), Fraction(1, 1), None)
    """
    if gold.dimensions == given.dimensions:
        return given.size / gold.size
    if gold.dimensions and given.dimensions:
        return None
    return Fraction(1)
