r"""What an answer may mean: numbers with units, words, choices, groups of answers, named answers, formulas.

Numbers are exact: fractions of integers. What is more than that is a formula, which is left to a library of symbolic
mathematics.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from rlax_llm.rewards.notation import one_notation, top_level_parts, unwrap
from rlax_llm.rewards.units import (
    AMBIGUOUS,
    MULTIPLES,
    NO_UNIT,
    PERCENT,
    Unit,
    counted_things,
    known_unit,
)

_LONGEST = 2000
_DIGITS = 1000
_EXPONENT = 400


class Quantity(NamedTuple):
    """A number and its unit.

    Attributes:
        value: without its unit; of a percentage, what is before the sign.
        unit: ``NO_UNIT`` where none is written.
        places: decimals that are written; 0 of what is not a decimal.
    """

    value: Fraction
    unit: Unit = NO_UNIT
    places: int = 0


class Words(NamedTuple):
    """Words, in lower case, without fonts and quotes."""

    text: str


class Choice(NamedTuple):
    """A letter of multiple choice, and what else is written next to it."""

    letter: str
    beside: str = ""


class Formula(NamedTuple):
    """LaTeX that is more than a number."""

    latex: str


class Group(NamedTuple):
    """Several answers.

    Attributes:
        brackets: ``""`` of a bare list, ``"()"``, ``"[]"``, ``"{}"`` of a set, ``"U"`` of a union,
            ``"matrix 2"`` of two columns.
        parts: the readings of each.
    """

    brackets: str
    parts: tuple[tuple[Reading, ...], ...]


class Named(NamedTuple):
    """``name = answer``."""

    name: str
    readings: tuple[Reading, ...]


Reading = Quantity | Words | Choice | Formula | Group | Named

_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?: \d{3})+(?!\d)|\d{1,3}(?:\{,\}\d{3})+(?!\d)|\d+)"
_POINT = rf"(?:{_WHOLE}(?:\.\d+|\.(?!\d))?|\.\d+)"
_EUROPEAN = r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|\d{1,3}(?: \d{3})+,\d+|\d+\{,\}\d+"
_EUROPEAN_ONE = re.compile(r"[-+]?\s*(?:\\?[$\u20ac\u00a3])?\s*\d{1,3}(?:[. ]\d{3})+,\d+(?![\d,])")
_NUMBER = rf"(?:{_EUROPEAN}|{_POINT})"
_RATIO = (
    rf"(?:\\frac{{(?P<above>\s*-?\s*{_POINT}\s*)}}{{(?P<below>\s*-?\s*{_POINT}\s*)}}"
    rf"|(?P<top>{_POINT}) ?/ ?(?P<bottom>{_POINT}))"
)
_TEN = r"10\s*(?:\^|\*\*)\s*"
_QUANTITY = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<money>\\?\$|[\u20ac\u00a3])?\s*(?P<second>-?)\s*(?:"
    rf"(?:(?P<whole>{_WHOLE})(?:\s*\\text{{\s*and\s*}}\s*|\s*(?=\\frac)|\s+(?=[\d.]+\s?/)))?{_RATIO}"
    rf"|{_TEN}(?:{{\s*(?P<only>[-+]?\s*\d+)\s*}}|(?P<alone>\d))"
    rf"|(?P<number>{_NUMBER})"
    rf"(?:\s*(?:\\times|\\cdot|\*|x)\s*{_TEN}(?:{{\s*(?P<power>[-+]?\s*\d+)\s*}}|\(?(?P<bare>[-+]?\d+)\)?)"
    r"|[eE](?P<exponent>[-+]?\d+))?"
    r")(?![\d_!]|\^(?!\\circ)|\s*[-+*/=<>]\s*[\d\\(a-zA-Z.]|\s*[({\[]\s*\d|\s*\d)"
)
_NAME = re.compile(
    r"(?P<name>\\?[a-zA-Z]+(?:_(?:\w|{\w+}))?'?(?:\([a-zA-Z]\))?|\\angle ?[A-Z]{1,3}|\\text{[^{}]*})"
    r"\s*(?:=|\\in(?![a-z]))\s*(?P<rest>.+)"
)
_COMMAS = re.compile(
    r"\s*(?:[,;]\s*(?:and|or)\b|[,;](?!\d{3}(?!\d))|\\text{\s*,?\s*(?:and|or)\s*,?\s*}|\b(?:and|or)\b)\s*|[,;]\s+"
)
_INSIDE = re.compile(r"\s*[,;]\s*")
_MATRIX = re.compile(r"\\begin{(?P<kind>[pbB]?matrix|array)}(?:{[lcr| ]*})?(?P<rows>.*)\\end{(?P=kind)}", re.DOTALL)
_LETTER = re.compile(r"(?:(?i:option|choice)\s+)?\(?(?:\\text{\s*)?\(?(?P<letter>[A-J])\)?\s*}?\)?[.:]?")
_LETTER_FIRST = re.compile(
    r"(?:\\text{\s*)?(?:\((?P<a>[A-J])\)|(?P<b>[A-J])[).:])\s*}?[.:]?\s*(?P<beside>\S.*)", re.DOTALL
)
_FONT = re.compile(r"\\text\s*{([^{}]*)}")
_FUNCTION = re.compile(
    r"(?:sin|cos|tan|cot|sec|csc|log|ln|exp|lim|arcsin|arccos|arctan|sqrt|frac|max|min|gcd|lcm|pi|mod)\b"
)
_PROSE = frozenset(
    re.findall(
        r"\w+",
        """
        a an and are as at be but by can did do for had has he how i if in is it its no not of on or our she so ten that
        the they this to two up us was way we who why yes you one six
        """,
    )
)
_MISREAD = re.compile(r"\d\s+\d|\d_|\d\s*\\frac{-?\d+}{\d+}|\d\.\d+\.\d|[?#@$\"'~:]|\d,\d")
_SMALL = dict(
    zip(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"],
        range(13),
        strict=True,
    )
)


def readings(text: str) -> tuple[Reading, ...]:
    r"""All that an answer may mean, without what another reading excludes.

    Args:
        text: an answer and nothing else, LaTeX or plain.

    Returns:
        None where it is nothing, or prose that holds a number; two where it may mean either, as with ``3,14``.

    >>> readings(r"3\frac{1}{2}"), readings("1.234,5"), readings("Yes.")
    ((Quantity(value=Fraction(7, 2), unit=Unit(size=Fraction(1, 1), dimensions=(), counted=False), places=0),),
    (Quantity(value=Fraction(2469, 2), unit=Unit(size=Fraction(1, 1), dimensions=(), counted=False), places=1),),
    (Words(text='yes'),))
    """
    if len(text) > _LONGEST:
        return ()
    return _readings(unwrap(one_notation(text)))


def _readings(text: str, depth: int = 0) -> tuple[Reading, ...]:
    text = unwrap(text)
    if not text or depth > 8:
        return ()
    for reader in (
        _choice,
        _as_written,
        _comma_decimal,
        _matrix,
        _plus_minus,
        _union,
        _list,
        _bracketed,
        _named,
        _quantity,
    ):
        found = reader(text, depth)
        if found is not None:
            return found
    return _words(text)


def _choice(text: str, depth: int) -> tuple[Reading, ...] | None:
    if found := _LETTER.fullmatch(text):
        return (Choice(found["letter"]),)
    found = _LETTER_FIRST.fullmatch(text)
    if found is None:
        return None
    beside = found["beside"]
    if re.match(r"(?:and|or|,|/|=|&|\\cup|\\cap|\\text{ *(?:and|or))|.*\([A-J]\)", beside):
        return ()
    return (Choice(found["a"] or found["b"], beside),)


def _as_written(text: str, depth: int) -> tuple[Reading, ...] | None:
    """A ratio or a time of day, or a number in another base: the same text is right, any other may be."""
    if found := re.fullmatch(r"(\d{1,9})\s*:\s*(\d{1,9})", text):
        ratio = (Quantity(Fraction(int(found[1]), int(found[2]))),) if int(found[2]) else ()
        return (Words(f"{found[1]}:{found[2]}"), *ratio)
    if found := re.fullmatch(r"([0-9A-F]{1,99})_{?(?:\\text{)?(\w+)}?}?", text):
        number = (Quantity(Fraction(found[1])),) if found[1].isdigit() else ()
        return (Words(f"{found[1]}_{found[2]}"), *number)
    return None


def _comma_decimal(text: str, depth: int) -> tuple[Reading, ...] | None:
    """``3,14``: 3.14, or 3 and 14."""
    found = re.fullmatch(r"([-+]?\s*)(\\?[$\u20ac\u00a3]\s*)?(\d{1,15}),(\d{1,15})((?!\d|\s(?:and|or)\b)[^,;]*)", text)
    if found is None or (len(found[4]) == 3 and not found[3].startswith("0") and len(found[3]) <= 3):
        return None
    sign, money, above, below, after = (part or "" for part in found.groups())
    decimal = _quantity(f"{sign}{money}{above}.{below}{after}", depth) or ()
    if money:
        return decimal
    first = _readings(sign + above, depth + 1)
    second = _readings(below + after, depth + 1)
    return (*decimal, *((Group("", (first, second)),) if first and second else ()))


def _matrix(text: str, depth: int) -> tuple[Reading, ...] | None:
    found = _MATRIX.fullmatch(re.sub(r"^[(\[]\s*(?=\\begin)|(?<=})\s*[)\]]$", "", text))
    if found is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", found["rows"]) if row.strip()]
    if not rows or any(len(row) != len(rows[0]) for row in rows):
        return ()
    return _group(f"matrix {len(rows[0])}", [part for row in rows for part in row], depth)


def _group(brackets: str, parts: list[str], depth: int) -> tuple[Reading, ...]:
    read = tuple(_readings(part, depth + 1) for part in parts)
    return (Group(brackets, read),) if all(read) else ()


def _plus_minus(text: str, depth: int) -> tuple[Reading, ...] | None:
    if text.count(r"\pm") != 1:
        return None
    name, equals, value = text.rpartition("=")
    if _COMMAS.search(value):
        return None
    # Of a bare sum the + would be read as a sign.
    above = value.replace(r"\pm", "+")
    below = value.replace(r"\pm", "-")
    return _group("", [f"{name}{equals}{part.strip().removeprefix('+')}" for part in (above, below)], depth)


def _union(text: str, depth: int) -> tuple[Reading, ...] | None:
    name = _NAME.fullmatch(text)
    parts = top_level_parts(name["rest"] if name and r"\in" in text else text, re.compile(r"\s*\\cup(?![a-z])\s*"))
    return _group("U", parts, depth) if len(parts) > 1 else None


def _list(text: str, depth: int) -> tuple[Reading, ...] | None:
    parts = [part for part in top_level_parts(text, _COMMAS) if part.strip()]
    if len(parts) < 2 or _prose(text) or _EUROPEAN_ONE.match(text):
        return None
    return _group("", parts, depth)


def _prose(text: str) -> bool:
    """Whether there are more words than a list of answers has."""
    bare = _FONT.sub(r" \1 ", text)
    return len(re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", bare)) > 3 * len(top_level_parts(text, _COMMAS)) + 3


def _bracketed(text: str, depth: int) -> tuple[Reading, ...] | None:
    opening = r"\{" if text.startswith(r"\{") else text[0]
    closing = r"\}" if text.endswith(r"\}") else text[-1]
    if opening not in ("(", "[", r"\{") or closing not in (")", "]", r"\}"):
        return None
    inside = text[len(opening) : len(text) - len(closing)]
    if not _one_pair(inside):
        return None
    parts = [part.strip() for part in top_level_parts(inside, _INSIDE)]
    brackets = opening[-1] + closing[-1]
    thousands = re.fullmatch(r"\d{1,3}(?:,\d{3})+", inside)
    if thousands:
        return (*(_quantity(inside, depth) or ()), *_group(brackets, parts, depth))
    if len(parts) == 1 and brackets in ("()", "[]") and inside.strip():
        return _readings(inside, depth + 1)
    if brackets == "{}" and re.search(r"\\?[|:]|\\mid", inside):
        return (Formula(text),)
    return _group(brackets, parts if inside.strip() else [], depth)


def _one_pair(inside: str) -> bool:
    """Whether the brackets around ``inside`` belong together."""
    depth = 0
    for token in re.findall(r"\\?[{}()\[\]]", inside):
        depth += 1 if token[-1] in "{([" else -1
        if depth < 0:
            return False
    return depth == 0


def _named(text: str, depth: int) -> tuple[Reading, ...] | None:
    found = _NAME.fullmatch(text)
    if found is None and "=" in text and not re.search(r"[a-zA-Z\\<>!]=?", text.split("=")[0]):
        return _readings(text.split("=")[-1], depth + 1)
    if found is None or re.search(r"[<>]|\\(?:le|ge|ne|in)(?![a-z])", found["rest"]):
        return None
    rest = found["rest"].split("=")[-1]
    name = re.sub(r"[{}\s]", "", found["name"])
    if re.fullmatch(r"[A-Za-z]{4,}|\\text.*", name):
        name = ""  # a word: "area = 5"
    read = _readings(rest, depth + 1)
    if not read:
        return ()
    return (Named(name, read),) if name else read


def _quantity(text: str, depth: int) -> tuple[Reading, ...] | None:
    found = _QUANTITY.match(text)
    if found is None or len(text) > _DIGITS:
        return None
    value, places = _value(found)
    if value is None:
        return ()
    if (found["sign"] == "-") != (found["second"] == "-"):
        value = -value
    money = known_unit((found["money"] or "").removeprefix("\\")) if found["money"] else None
    after = text[found.end() :].strip()
    marked = "\\text" in after or text[found.end() :].startswith(" ") or money is not None
    value, after = _multiplied(value, _FONT.sub(r" \1 ", after).strip())
    bare = Quantity(value, money or NO_UNIT, places)
    if not after:
        return (bare,)
    read = _measured(bare, money, after, marked)
    if read and after in AMBIGUOUS and "\\text" not in text:
        return *read, Formula(text)
    return read


def _measured(bare: Quantity, money: Unit | None, after: str, marked: bool) -> tuple[Reading, ...] | None:
    """A number with what stands after it: its unit, unless money stands before it."""
    unit = _unit(after, marked)
    if unit is None:
        return () if _says_more(after) else None
    if money is None:
        return (bare._replace(unit=unit),)
    if unit.dimensions not in ((), money.dimensions) and not unit.counted:
        return ()
    return (bare,)


def _value(found: re.Match[str]) -> tuple[Fraction | None, int]:
    if found["above"] or found["top"]:
        return _fraction(found), 0
    if alone := found["only"] or found["alone"]:
        number = Fraction(1)
        places = 0
        power = alone
    else:
        number, places = _decimal(found["number"])
        power = found["power"] or found["bare"] or found["exponent"] or "0"
    exponent = int(power.replace(" ", "")[:8])
    if abs(exponent) > _EXPONENT:
        return None, 0
    return number * Fraction(10) ** exponent, 0 if exponent > 0 else places


def _fraction(found: re.Match[str]) -> Fraction | None:
    """A fraction, with the whole number before it."""
    above, places_above = _decimal(found["above"] or found["top"])
    below, places_below = _decimal(found["below"] or found["bottom"])
    if not below:
        return None
    value = above / below
    if found["whole"] is None:
        return value
    # A whole number before an improper fraction may be a product.
    proper = 0 < value < 1 and value.denominator > 1 and not places_above and not places_below
    return _decimal(found["whole"])[0] + value if proper else None


def _decimal(text: str) -> tuple[Fraction, int]:
    """The number that is written, and its decimals."""
    text = text.replace(" ", "")
    grouped = re.fullmatch(r"-?\d{1,3}(?:\{,\}\d{3})+(?:\.\d+)?", text) and not re.match(r"-?0\{", text)
    if grouped:
        text = text.replace("{,}", "")
    elif "{,}" in text:
        text = text.replace("{,}", ".")
    elif re.fullmatch(r"\d{1,3}(?:\.\d{3})+,\d+|\d{1,3}(?:\.\d{3}){2,}|\d+,\d{1,2}|\d{4,},\d+", text):
        text = text.replace(".", "").replace(",", ".")
    else:
        text = text.replace(",", "")
    return Fraction(text.rstrip(".")), len(text.partition(".")[2])


def _multiplied(value: Fraction, after: str) -> tuple[Fraction, str]:
    word, _, rest = after.partition(" ")
    multiple = MULTIPLES.get(word.lower().removesuffix("s"))
    return (value * multiple, rest.strip()) if multiple else (value, after)


def _unit(after: str, marked: bool) -> Unit | None:
    after = re.sub(r"\s*\^\s*\\circ\s*", "°", after.replace(r"\%", "%").replace(r"\$", "$")).strip()
    after = re.sub(r"°\s*", "°", after) if re.fullmatch(r"°\s*[CFK]\.?", after) else after
    after = re.sub(r"\s*\^\s*{?\s*([23])\s*}?", r"^\1", after).rstrip(".")
    after = re.sub(r"^(degrees?)\s+(celsius|fahrenheit)$", r"\2", after, flags=re.IGNORECASE)
    if re.fullmatch(r"(?i)per\s?cent(?:age)?", after):
        return PERCENT
    unit = known_unit(after.replace("°C", "celsius").replace("°F", "fahrenheit"))
    if unit is not None or not marked:
        return unit
    return counted_things(after)


def _says_more(after: str) -> bool:
    """Whether prose follows a number, which then may not be the answer's value."""
    return bool(re.search(r"(?<![\\a-zA-Z])[a-zA-Z]{4,}", after)) or bool(re.match(r"\d", after))


def _words(text: str) -> tuple[Reading, ...]:
    bare = _FONT.sub(r"\1", text).replace("\\_", "_").strip()
    bare = re.sub(r"[\"“”`*]", "", bare).strip()
    is_text = "\\text" in text and not re.search(r"[\\^=+<>]", bare)
    letters = re.fullmatch(r"[^\W\d_](?:[^\W\d_]|[\s',.&()-])*", bare)
    long = re.search(r"[^\W\d_]{3,}", bare) or re.fullmatch(r"(?i)no|up|we|he|me|us|it|be|am|pm", bare)
    if letters and (is_text or (long and not _FUNCTION.match(bare) and "\\" not in bare)):
        said = re.sub(r"^(?:the|an?) (?=\w\w)", "", re.sub(r"\s+", " ", bare.lower())).rstrip(".,")
        if re.fullmatch(r"[^\W\d_]", said):
            return (Formula(bare),)
        return (Quantity(Fraction(_SMALL[said])),) if said in _SMALL else (Words(said),)
    return (Formula(text),) if _may_be_formula(text) else ()


def _may_be_formula(text: str) -> bool:
    """Whether it is not prose, and not what a parser of LaTeX reads as something else."""
    bare = _FONT.sub("", text)
    words = [word for word in re.findall(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}", bare) if not _FUNCTION.fullmatch(word)]
    return (
        not any(len(word) > 3 or word.lower() in _PROSE for word in words)
        and not _MISREAD.search(bare)
        and "\\text" not in re.sub(r"_{?\s*\\text", "", text)
    )
