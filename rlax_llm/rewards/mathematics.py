"""Comparing mathematical answers by their value, with math-verify, an optional dependency."""

from __future__ import annotations

import logging
import multiprocessing
import re
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from rlax_llm.rewards.calling import RewardError
from rlax_llm.rewards.functions import completion_text

_SECONDS = 5
_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed\b|\\fbox\b|\\begin\b")


def math_answer(
    prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any], **_: Any
) -> list[float | None]:
    """1 where math-verify finds the completion's last formula equal to the answer, else 0.

    ``1/2``, ``0.5`` and ``\\boxed{\\frac{2}{4}}`` are equal. In a completion, what is more than a number is read in
    LaTeX's delimiters only. Parsing and comparing have 5 seconds each and are then given up; in a thread other than the
    main one, which gets no signals, and in a worker process they have no limit: a ``RewardPool`` sets one.

    Args:
        prompts: not used.
        completions: strings or assistant messages.
        answer: column of right answers: numbers or formulas, with LaTeX's delimiters or without.

    Returns:
        None where the answer cannot be parsed.

    Raises:
        RewardError: math-verify is not installed.

    >>> math_answer(["", ""], ["It is 0.5.", "It is $\\\\frac{1}{3}$."], answer=["1/2", "1/2"])
    [1.0, 0.0]
    """
    math_verify = imported()
    if _seconds() is None:  # it would warn that it keeps no time
        logging.getLogger(math_verify.__name__).setLevel(logging.ERROR)
    return [_equal(math_verify, completion_text(given), str(right)) for given, right in zip(completions, answer)]


def imported() -> ModuleType:
    """The module ``math_verify``, whose import takes a second.

    Raises:
        RewardError: it is not installed.

    >>> imported().__name__
    'math_verify'
    """
    try:
        import math_verify
    except ImportError as error:
        raise RewardError(
            f"reward 'math_answer': math-verify is not installed ({error}); pip install 'rlax-llm[math]'."
        ) from error
    return math_verify


def _equal(math_verify: Any, completion: str, answer: str) -> float | None:
    # Undelimited, 2\sqrt{3} would be read as 2.
    formula = answer if _DELIMITED.search(answer) else f"${answer}$"
    right = _parsed(math_verify, formula, fallback_mode="no_fallback")
    if not right:
        return None
    return float(math_verify.verify(right, _parsed(math_verify, completion), timeout_seconds=_seconds()))


def _parsed(math_verify: Any, text: str, **settings: Any) -> list[Any]:
    """What ``text`` may mean: no element where that is nothing, or took too long to find."""
    try:
        return math_verify.parse(text, parsing_timeout=_seconds(), **settings)
    except math_verify.errors.TimeoutException:
        return []


def _seconds() -> int | None:
    """Time limit for math-verify, which sends itself a signal after it."""
    signals = threading.current_thread() is threading.main_thread()
    return _SECONDS if signals and multiprocessing.parent_process() is None else None
