"""DAPO's transformation of data: answers that a rule can check, because they are integers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from fractions import Fraction

from rlax_llm.core.names import did_you_mean
from rlax_llm.data.messages import Text, asked_as
from rlax_llm.data.rows import DataError, Row
from rlax_llm.rewards.golds import known_answer

_LETTERS = "mnpqrs"
_WRAPPED = re.compile(r"\\boxed\{(.*)\}|\$(.*)\$|\\\((.*)\\\)", re.DOTALL)
_DROPPED = re.compile(r"\\left|\\right|\\!|^(-?)\\?\$(?=[\d.])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,\\!|\{,\}|\\,|[ \u00a0\u2009\u202f]|,)\d{3})+(?![\d])")
_SIDE_BY_SIDE = re.compile(r"\d\s+\d")
_QUOTIENT = re.compile(r"\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+)")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)")
_FRACTION = re.compile(r"(-?)(?:\\frac\{(\d+)\}\{(\d+)\}|(\d+)/(\d+))")
_OTHERS = re.compile(r"\\(?:frac|sqrt|pi|cdot|times)(?![a-zA-Z])|[0-9{}()+*/-]")


def integer_form(answer: str) -> tuple[str, int] | None:
    r"""The form of a closed answer, letters in place of its integers, and the sum of those integers.

    An integer is itself and has no form (""). Fractions and decimals are taken in lowest terms; a sign before a form
    stays in it. What holds a letter, a power, a word, numbers side by side (a mixed number, a list) or, within a longer
    form, a fraction that is not in lowest terms has no integer form.

    Reference: Yu et al. 2025, DAPO (arXiv 2503.14476), section 3.5, where a language model does the same.

    Args:
        answer: LaTeX or plain, such as ``\frac{3}{4}``, ``1,024``, ``$2\sqrt{3}$``, ``0.75``.

    >>> integer_form("1,024"), integer_form(r"$\frac{6}{8}$"), integer_form("-0.5")
    (('', 1024), ('\\frac{m}{n}', 7), ('-\\frac{m}{n}', 3))
    >>> integer_form(r"\boxed{3 - 2\sqrt{5}}"), integer_form("x + 1"), integer_form("2^{10}")
    (('m-n\\sqrt{p}', 10), None, None)
    """
    text = _plain(answer)
    if _NUMBER.fullmatch(text):
        return _of_fraction(Fraction(text))
    if found := _FRACTION.fullmatch(text):
        above, below = (int(a or b) for a, b in ((found[2], found[4]), (found[3], found[5])))
        return _of_fraction(Fraction(above if not found[1] else -above, below)) if below else None
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if _OTHERS.sub("", text) or not 0 < len(numbers) <= len(_LETTERS) or not _in_lowest_terms(text):
        return None
    letters = iter(_LETTERS)
    return re.sub(r"\d+", lambda _: next(letters), text), sum(numbers)


def _plain(answer: str) -> str:
    text = answer.strip().rstrip(".")
    while found := _WRAPPED.fullmatch(text):
        text = next(part for part in found.groups() if part is not None).strip()
    # Within parentheses a comma may be that of a pair.
    text = text if "(" in text else _THOUSANDS.sub(lambda number: re.sub(r"\D", "", number[0]), text)
    text = re.sub(r"\\[,; ]", " ", _DROPPED.sub(r"\1", text))
    if _SIDE_BY_SIDE.search(text):
        return ""
    text = re.sub(r"\s", "", text)
    # What LaTeX reads as one argument, or as a symbol and a number, before letters stand in for the digits.
    text = re.sub(r"\\(frac|sqrt)(\d)", r"\\\1{\2}", re.sub(r"\\[dt]frac", r"\\frac", text))
    text = re.sub(r"(\\frac\{\d+\})(\d)", r"\1{\2}", text)
    return re.sub(r"(\\(?:pi|cdot|times))(?=\d)", r"\1{}", text)


def _in_lowest_terms(text: str) -> bool:
    pairs = [[int(part) for part in found.groups() if part] for found in _QUOTIENT.finditer(text)]
    return all(below > 1 and math.gcd(above, below) == 1 for above, below in pairs)


def _of_fraction(value: Fraction) -> tuple[str, int]:
    if value.denominator == 1:
        return "", int(value)
    return f"{'-' if value < 0 else ''}\\frac{{m}}{{n}}", abs(value.numerator) + value.denominator


def with_integer_answers(rows: Sequence[Row]) -> list[Row]:
    r"""Rows whose answers are integers, their prompts asking for them; for ``Kept.then``.

    Args:
        rows: with columns ``prompt`` and ``answer``; a ``completion`` to imitate is dropped, for it is another one.

    Raises:
        DataError: a row without an ``answer``, or whose answer has no integer form.

    >>> rows = [{"prompt": "3/4 of 1?", "answer": r"\frac{3}{4}"}]
    >>> with_integer_answers(rows)[0]["prompt"].splitlines()[1]
    'The answer has the form $\\frac{m}{n}$ with positive integers m, n, in simplest terms. Give the value of m + n.'
    """
    changed = []
    for row in rows:
        if "answer" not in row:
            raise DataError(
                f"no column 'answer', which integer_answers reads; the columns are {', '.join(row)}"
                f"{did_you_mean('answer', row)}"
            )
        found = integer_form(known_answer(row["answer"]) or "")
        if found is None:
            raise DataError(f"the answer {row['answer']!r} has no integer form; leave the row out.")
        form, total = found
        kept = {name: value for name, value in row.items() if name != "completion"}
        changed.append(kept | {"prompt": _asking(row["prompt"], form), "answer": total})
    return changed


def _asking(prompt: Text, form: str) -> Text:
    """The prompt with the request for the sum of the integers in an answer of this form."""
    if not form:
        return prompt
    letters = list(itertools.takewhile(lambda letter: re.search(rf"(?<![a-z]){letter}(?![a-z])", form), _LETTERS))
    asked = (
        f"\nThe answer has the form ${form}$ with positive integers {', '.join(letters)}, in simplest terms. "
        f"Give the value of {' + '.join(letters)}."
    )
    return asked_as(prompt, lambda question: question + asked)
