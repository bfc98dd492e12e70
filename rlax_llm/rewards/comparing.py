"""Whether two readings of answers say the same: yes, no, or nobody can tell."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

from rlax_llm.rewards.readings import Choice, Formula, Group, Named, Quantity, Reading, Words, readings
from rlax_llm.rewards.units import DEGREE, NO_UNIT, PERCENT, ratio

_PLACES = 6


class Formulas(NamedTuple):
    """What a library of symbolic mathematics knows of formulas in LaTeX.

    Attributes:
        equal: whether two are.
        value: of one without unknowns, to 30 digits; ``None`` of another.
    """

    equal: Callable[[str, str], bool]
    value: Callable[[str], Fraction | None]


NO_FORMULAS = Formulas(lambda right, given: False, lambda formula: None)
"""Only formulas that are written alike are equal."""


def agreement(right: Reading, given: Sequence[Reading], formulas: Formulas) -> bool | None:
    """Whether any reading of the given answer is the right one.

    Args:
        right: one reading of the right answer.
        given: the readings of the given answer.
        formulas: compares formulas.

    Returns:
        ``None`` where no reading is the right one for certain, and one may be.

    >>> agreement(Quantity(Fraction(1, 2)), [Quantity(Fraction(2, 4))], NO_FORMULAS)
    True
    """
    told = [_same(right, one, formulas) for one in given]
    if True in told:
        return True
    return None if None in told else False


def _same(right: Reading, given: Reading, formulas: Formulas) -> bool | None:
    if isinstance(right, Named) or isinstance(given, Named):
        return _same_named(right, given, formulas)
    if isinstance(right, Choice) or isinstance(given, Choice):
        return _same_choice(right, given, formulas)
    if isinstance(right, Quantity) and isinstance(given, Quantity):
        return _same_quantity(right, given)
    if isinstance(right, Group) and isinstance(given, Group):
        return _same_group(right, given, formulas)
    if isinstance(given, Group) and not given.brackets:
        # "1/2 or 0.5" is one answer.
        return all(agreement(right, part, formulas) is True for part in given.parts)
    if isinstance(right, Words) or isinstance(given, Words):
        return isinstance(right, Words) and isinstance(given, Words) and _letters(right) == _letters(given)
    return _same_formula(right, given, formulas)


def _letters(words: Words) -> str:
    return re.sub(r"[\s,.'&-]", "", words.text)


def _same_named(right: Reading, given: Reading, formulas: Formulas) -> bool | None:
    if isinstance(right, Named) and isinstance(given, Named):
        if right.name != given.name:
            return _same_formula(right, given, formulas)
        return agreement_of(right.readings, given.readings, formulas)
    if (isinstance(right, Formula) and "=" in right.latex) or (isinstance(given, Formula) and "=" in given.latex):
        return _same_formula(right, given, formulas)
    values = [one.readings if isinstance(one, Named) else (one,) for one in (right, given)]
    return agreement_of(values[0], values[1], formulas)


def agreement_of(right: Sequence[Reading], given: Sequence[Reading], formulas: Formulas) -> bool | None:
    """As ``agreement``, of a right answer with several readings; ``None`` where they disagree.

    Args:
        right: the readings of the right answer.
        given: the readings of the given answer.
        formulas: compares formulas.

    >>> half, list_of_two = readings("0,5")
    >>> agreement_of([half, list_of_two], [half], NO_FORMULAS)
    """
    told = {agreement(one, given, formulas) for one in right}
    return told.pop() if len(told) == 1 else None


def _same_choice(right: Reading, given: Reading, formulas: Formulas) -> bool | None:
    if isinstance(right, Choice) and isinstance(given, Choice):
        return right.letter == given.letter
    if isinstance(right, Choice):
        return agreement_of(readings(right.beside), [given], formulas) if right.beside else False
    assert isinstance(given, Choice)
    if given.beside:
        return agreement(right, readings(given.beside), formulas)
    return isinstance(right, Formula) and right.latex == given.letter


def _same_quantity(right: Quantity, given: Quantity) -> bool | None:
    if PERCENT in (right.unit, given.unit) and right.unit != given.unit:
        return _same_percentage(right, given)
    factor = ratio(right.unit, given.unit)
    if factor is None:
        named = right.unit.counted and given.unit.counted
        unlike = right.unit.counted or given.unit.counted
        nouns = [str(one.unit.dimensions[0][0]).split() for one in (right, given)] if named else [[], []]
        within = named and (set(nouns[0]) <= set(nouns[1]) or set(nouns[1]) <= set(nouns[0]))
        equal = _close(right, given, Fraction(1))
        if not (equal and unlike):
            return False
        return True if within else None
    return _close(right, given, factor)


def _same_percentage(right: Quantity, given: Quantity) -> bool | None:
    """A percentage and a number without the sign: equal in value, or as they are written."""
    if NO_UNIT not in (right.unit, given.unit):
        return False
    percentage, other = (right, given) if right.unit == PERCENT else (given, right)
    if percentage.value == 100 * other.value:
        return True
    if percentage.value != other.value:
        return False
    # Up to 1, the number without a sign may be the share itself.
    return True if abs(other.value) > 1 else None


def _close(right: Quantity, given: Quantity, factor: Fraction) -> bool:
    value = given.value * factor
    if right.value == value:
        return True
    # A decimal of so many places is a number that was rounded to it, unless both are decimals.
    if bool(right.places) == bool(given.places) or factor != 1:
        return False
    decimal, exact = (right, given) if right.places else (given, right)
    return rounded_to(decimal.value, decimal.places, exact.value)


def rounded_to(decimal: Fraction, places: int, exact: Fraction) -> bool:
    """Whether a decimal is the exact number rounded to its places, of which it has at least six.

    Args:
        decimal: as written.
        places: decimals that are written.
        exact: the number.

    >>> rounded_to(Fraction("0.333333"), 6, Fraction(1, 3)), rounded_to(Fraction("0.33"), 2, Fraction(1, 3))
    (True, False)
    """
    if places < _PLACES or abs(decimal) * 10**places < 10 ** (_PLACES - 1):
        return False
    return abs(decimal - exact) * 2 * 10**places <= 1


def _same_group(right: Group, given: Group, formulas: Formulas) -> bool | None:
    if len(right.parts) != len(given.parts):
        return False
    if right.brackets == given.brackets or not right.brackets or not given.brackets:
        ordered = _all([agreement_of(one, two, formulas) for one, two in zip(right.parts, given.parts, strict=True)])
        unordered = _in_any_order(right, given, formulas)
        if right.brackets in ("{}", "U") or given.brackets == "{}" or _names_all(right):
            return unordered
        if right.brackets not in ("", "()") and right.brackets != given.brackets:
            return None if ordered else False  # brackets that say more than a list does are missing
        return ordered if right.brackets or ordered is not False or not unordered else None
    return False


def _names_all(group: Group) -> bool:
    return all(isinstance(reading, Named) for part in group.parts for reading in part)


def _all(told: Sequence[bool | None]) -> bool | None:
    if False in told:
        return False
    return None if None in told else True


def _in_any_order(right: Group, given: Group, formulas: Formulas) -> bool | None:
    left = list(given.parts)
    for part in right.parts:
        told = [agreement_of(part, other, formulas) for other in left]
        if True not in told:
            return None if None in told else False
        left.pop(told.index(True))
    return True


def _same_formula(right: Reading, given: Reading, formulas: Formulas) -> bool:
    first = latex(right)
    second = latex(given)
    if first is None or second is None:
        return False
    if first == second or formulas.equal(first, second):
        return True
    for decimal, other in ((right, second), (given, first)):
        if isinstance(decimal, Quantity) and decimal.places >= _PLACES and (value := formulas.value(other)) is not None:
            return rounded_to(decimal.value, decimal.places, value)
    return False


def latex(reading: Reading) -> str | None:
    """A reading as a formula; ``None`` where it is none.

    Args:
        reading: any.

    >>> latex(Quantity(Fraction(-1, 2))), latex(Words("yes"))
    ('-\\\\frac{1}{2}', None)
    """
    if isinstance(reading, Formula):
        return reading.latex
    if isinstance(reading, Quantity):
        return _latex_quantity(reading)
    if isinstance(reading, Named):
        inner = [latex(one) for one in reading.readings]
        return f"{reading.name}={inner[0]}" if inner[0] is not None else None
    if isinstance(reading, Group) and reading.brackets != "" and not reading.brackets.startswith("matrix"):
        inner = [latex(part[0]) for part in reading.parts]
        if any(one is None for one in inner):
            return None
        if reading.brackets == "U":
            return r"\cup ".join(str(one) for one in inner)
        opening, closing = (f"\\{one}" if one in "{}" else one for one in reading.brackets)
        return f"{opening}{','.join(str(one) for one in inner)}{closing}"
    return None


def _latex_quantity(reading: Quantity) -> str:
    value = reading.value / 100 if reading.unit == PERCENT else reading.value
    above = abs(value.numerator)
    below = value.denominator
    size = str(above) if below == 1 else rf"\frac{{{above}}}{{{below}}}"
    number = f"-{size}" if value < 0 else size
    return rf"{number}\cdot 1^\circ" if reading.unit == DEGREE else number
