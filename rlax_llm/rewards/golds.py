"""Right answers as tables hold them: what is missing, and numbers of any type, as text."""

from __future__ import annotations

import math
import numbers
from decimal import Decimal
from typing import Any

import numpy as np

_MISSING = ("", "n/a", "na", "nan", "<na>", "none", "null", "nat")


def answer_text(answer: Any) -> str | None:
    """The right answer as people write it; ``None`` where a table holds none.

    A whole number of any type is written without a fraction, for a column with a gap becomes one of floats. A list of
    one answer is that answer. What is neither text nor number, and a list of several, of which nobody knows whether all
    or any are wanted, is none.

    Args:
        answer: one value of a column.

    >>> answer_text(" 4 "), answer_text(42.0), answer_text(["x"]), answer_text(float("nan")), answer_text(True)
    ('4', '42', 'x', None, None)
    """
    if isinstance(answer, np.ndarray):
        answer = answer.tolist()
    if isinstance(answer, list | tuple):
        return answer_text(answer[0]) if len(answer) == 1 else None
    if isinstance(answer, str):
        return answer.strip() or None
    # True and False alone have no text: whether "yes", "1" or "true" is right for them is not certain.
    if isinstance(answer, bool | np.bool_) or not isinstance(answer, numbers.Real | Decimal):
        return None
    number: Any = answer
    if not math.isfinite(number):
        return None
    return str(int(number)) if number == int(number) else str(number)


def known_answer(answer: Any) -> str | None:
    """As ``answer_text``, and ``None`` also for the words that a table without its gaps has in their place.

    Args:
        answer: one value of a column.

    >>> known_answer("N/A"), known_answer("null"), known_answer("nothing")
    (None, None, 'nothing')
    """
    text = answer_text(answer)
    return None if text is None or text.lower() in _MISSING else text
