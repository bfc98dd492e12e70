"""The answer that a completion votes for, as the reward that judges it reads answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from rlax_llm.rewards.final_answer import final_answer
from rlax_llm.rewards.functions import exact_answer, integer_answer, last_integer
from rlax_llm.rewards.mathematics import math_answer, same_answers

Votes = Callable[[Sequence[str]], Sequence[Hashable | None]]
"""``completions of one prompt → the answer of each``: equal ones are one answer, ``None`` is none."""


def votes_of(function: Callable[..., Any]) -> Votes:
    """How completions vote that a reward function judges.

    Args:
        function: a built-in one of a column ``answer``; for another, completions vote for their final answer, as
            ``final_answer`` finds it, or for their whole text.

    >>> votes_of(integer_answer)(["2 + 2 = 4", "four", "4."]), votes_of(exact_answer)([" 4 ", ""])
    (['4', None, '4'], ['4', None])
    >>> votes_of(len)(["so the answer is Monday.", "Monday"])
    ['Monday', 'Monday']
    """
    if function is math_answer:
        return same_answers
    if function is integer_answer:
        return lambda texts: [last_integer(text) for text in texts]
    if function is exact_answer:
        return lambda texts: [text.strip() or None for text in texts]
    return lambda texts: [_final(text) for text in texts]


def _final(text: str) -> str | None:
    found = final_answer(text)
    return (found.text if found else text).strip() or None
